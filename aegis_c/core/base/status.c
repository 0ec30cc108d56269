#include "base/status.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *
ag_status_name(int status)
{
    switch (status) {
#define AG_STATUS_NAME(name, value, text)                                              \
    case value:                                                                        \
        return #name;
        AG_STATUS_MAP(AG_STATUS_NAME)
#undef AG_STATUS_NAME
    default:
        return "AG_EUNKNOWN";
    }
}

const char *
ag_status_text(int status)
{
    switch (status) {
#define AG_STATUS_TEXT(name, value, text)                                              \
    case value:                                                                        \
        return text;
        AG_STATUS_MAP(AG_STATUS_TEXT)
#undef AG_STATUS_TEXT
    default:
        return "unknown status";
    }
}

static void
error_reset(struct ag_error *err, int status)
{
    memset(err, 0, sizeof(*err));
    err->status = status;
    err->offset = AG_NO_POSITION;
    err->index = AG_NO_POSITION;
}

int
ag_fail(struct ag_error *err, int status, const char *what, ...)
{
    if (err == NULL) {
        return status;
    }
    error_reset(err, status);
    va_list args;
    va_start(args, what);
    (void)vsnprintf(err->what, sizeof(err->what), what, args);
    va_end(args);
    return status;
}

/* strerror_r has two signatures; both are thread-safe. */
static const char *
error_text(int sys_errno, char *buffer, size_t size)
{
#if defined(__GLIBC__) && defined(_GNU_SOURCE)
    return strerror_r(sys_errno, buffer, size);
#else
    if (strerror_r(sys_errno, buffer, size) != 0) {
        (void)snprintf(buffer, size, "errno %d", sys_errno);
    }
    return buffer;
#endif
}

int
ag_fail_sys(struct ag_error *err, int sys_errno, const char *file, const char *doing)
{
    int status = sys_errno == ENOMEM ? AG_ENOMEM : AG_EIO;
    if (err == NULL) {
        return status;
    }
    error_reset(err, status);
    err->sys_errno = sys_errno;
    char buffer[96] = "";
    const char *text = error_text(sys_errno, buffer, sizeof(buffer));
    (void)snprintf(err->what, sizeof(err->what), "%s failed: %s", doing, text);
    ag_error_file(err, file, AG_NO_POSITION);
    return status;
}

static void
copy_text(char *to, size_t size, const char *from)
{
    (void)snprintf(to, size, "%s", from != NULL ? from : "");
}

void
ag_error_file(struct ag_error *err, const char *file, uint64_t offset)
{
    if (err != NULL) {
        copy_text(err->file, sizeof(err->file), file);
        err->offset = offset;
    }
}

void
ag_error_index(struct ag_error *err, uint64_t index)
{
    if (err != NULL) {
        err->index = index;
    }
}

void
ag_error_pair(struct ag_error *err, const char *expected, const char *found)
{
    if (err != NULL) {
        copy_text(err->expected, sizeof(err->expected), expected);
        copy_text(err->found, sizeof(err->found), found);
    }
}

void
ag_error_advice(struct ag_error *err, const char *advice, ...)
{
    if (err == NULL) {
        return;
    }
    va_list args;
    va_start(args, advice);
    (void)vsnprintf(err->advice, sizeof(err->advice), advice, args);
    va_end(args);
}
