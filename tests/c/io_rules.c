/* The I/O table of the extension that is built with AEGIS_IO=fault: the real one, but
 * for what the rules in a control file say. Linked with -Wl,--wrap=ag_io_posix, so that
 * whoever in the extension asks for the real table gets this one.
 *
 * The file is shared memory, written by tests/io_faults.py, which has the same structs:
 * rules come and go while a program runs. AEGIS_IO_RULES names it; without it every
 * call is the real one. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"

#define IO_RULES_MAGIC 0x31304c5549474541u /* "AEGIUL01" */
#define IO_RULES_COUNT 16u
#define IO_RULES_FDS 4096u

/* Applies to calls of `operation` (a member of struct ag_io; "" any) on a path that
 * holds `path` ("" any; of a rename either one). The first `skip` of them pass, the
 * next `times` are hit (below 0: all that follow). Actions:
 *   fail    the call returns -value; of a write, half has arrived
 *   short   a read or write handles half of what it was given (at least one octet)
 *   stall   the call waits until the rule is lifted, then is made
 *   crash   the process dies by SIGKILL; of a write, half has arrived
 *   type    statfs answers with the file system's type `value` */
struct io_rule {
    _Atomic uint32_t armed; /* written last; 0: lifted */
    uint32_t reserved;
    int64_t value, skip, times;
    _Atomic int64_t calls, hits,
        waiting; /* that match; that were hit; that stall now */
    char operation[16], action[16];
    char path[160];
};

struct io_rules {
    uint64_t magic;
    _Atomic uint64_t calls, syncs; /* of any kind; fdatasync and fsync */
    _Atomic uint64_t
        touched_after_failure; /* writes and syncs of a failed descriptor */
    struct io_rule rule[IO_RULES_COUNT];
};

const struct ag_io *__real_ag_io_posix(void);
const struct ag_io *__wrap_ag_io_posix(void);

#define REAL __real_ag_io_posix()
#define PATH_KEPT 192

static struct io_rules *rules;              /* the mapped control file, or NULL */
static char names[IO_RULES_FDS][PATH_KEPT]; /* of descriptors, last known */
static _Atomic int failed[IO_RULES_FDS];

static const char *
name_of(int fd)
{
    return fd >= 0 && (unsigned)fd < IO_RULES_FDS ? names[fd] : "";
}

static void
set_failed(int fd, int value)
{
    if (fd >= 0 && (unsigned)fd < IO_RULES_FDS) {
        atomic_store(&failed[fd], value);
    }
}

static int
is_action(const struct io_rule *rule, const char *action)
{
    return strcmp(rule->action, action) == 0;
}

/* The rule that hits this call, after waiting for as long as one stalls it; or NULL. */
static struct io_rule *
hit(const char *operation, const char *path, const char *other)
{
    struct io_rule *found = NULL;
    if (rules == NULL) {
        return NULL;
    }
    atomic_fetch_add(&rules->calls, 1);
    for (unsigned i = 0; i < IO_RULES_COUNT; i++) {
        struct io_rule *rule = &rules->rule[i];
        uint32_t armed = atomic_load(&rule->armed);
        if (armed == 0 ||
            (rule->operation[0] != '\0' && strcmp(rule->operation, operation) != 0) ||
            (strstr(path, rule->path) == NULL && strstr(other, rule->path) == NULL)) {
            continue;
        }
        int64_t call = atomic_fetch_add(&rule->calls, 1);
        if (call < rule->skip ||
            (rule->times >= 0 && call - rule->skip >= rule->times)) {
            continue;
        }
        atomic_fetch_add(&rule->hits, 1);
        if (!is_action(rule, "stall")) {
            found = found != NULL ? found : rule;
            continue;
        }
        atomic_fetch_add(&rule->waiting, 1);
        while (atomic_load(&rule->armed) == armed) {
            struct timespec pause = {.tv_nsec = 1000 * 1000};
            (void)nanosleep(&pause, NULL);
        }
        atomic_fetch_sub(&rule->waiting, 1);
    }
    return found;
}

/* What a ruled call returns instead of being made; 0: make it. */
static int
verdict(const struct io_rule *rule)
{
    if (rule == NULL) {
        return 0;
    }
    if (is_action(rule, "crash")) {
        (void)kill(getpid(), SIGKILL);
        (void)pause();
    }
    return is_action(rule, "fail") ? -(int)rule->value : 0;
}

/* Before a write or sync of `fd`. */
static void
touch(int fd)
{
    if (rules != NULL && fd >= 0 && (unsigned)fd < IO_RULES_FDS &&
        atomic_load(&failed[fd])) {
        atomic_fetch_add(&rules->touched_after_failure, 1);
    }
}

/* The whole of a call without more ado. */
#define RULED(operation, path, other)                                                  \
    do {                                                                               \
        int ruled = verdict(hit(operation, path, other));                              \
        if (ruled != 0) {                                                              \
            return ruled;                                                              \
        }                                                                              \
    } while (0)

static int
ruled_open(void *ctx, const char *path, int flags, mode_t mode)
{
    RULED("open", path, path);
    int fd = REAL->open(ctx, path, flags, mode);
    if (fd >= 0 && (unsigned)fd < IO_RULES_FDS) {
        (void)snprintf(names[fd], PATH_KEPT, "%s", path);
        set_failed(fd, 0);
    }
    return fd;
}

static int
ruled_close(void *ctx, int fd)
{
    /* The descriptor is gone either way, as on Linux. */
    int ruled = verdict(hit("close", name_of(fd), ""));
    set_failed(fd, 0);
    int result = REAL->close(ctx, fd);
    return ruled != 0 ? ruled : result;
}

static ssize_t
ruled_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    struct io_rule *rule = hit("pread", name_of(fd), "");
    int ruled = verdict(rule);
    if (ruled != 0) {
        return ruled;
    }
    if (rule != NULL && is_action(rule, "short") && n > 1) {
        n /= 2;
    }
    return REAL->pread(ctx, fd, to, n, offset);
}

static ssize_t
ruled_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    touch(fd);
    struct io_rule *rule = hit("pwrite", name_of(fd), "");
    if (rule == NULL) {
        return REAL->pwrite(ctx, fd, from, n, offset);
    }
    ssize_t put = REAL->pwrite(ctx, fd, from, n > 1 ? n / 2 : n, offset);
    int ruled = verdict(rule);
    if (ruled != 0) {
        set_failed(fd, 1);
        return ruled;
    }
    return put;
}

static int
synced(int fd, const char *operation, int (*real)(void *ctx, int fd))
{
    touch(fd);
    if (rules != NULL) {
        atomic_fetch_add(&rules->syncs, 1);
    }
    int result = verdict(hit(operation, name_of(fd), ""));
    if (result == 0) {
        result = real(NULL, fd);
    }
    if (result < 0) {
        set_failed(fd, 1);
    }
    return result;
}

static int
ruled_fdatasync(void *ctx, int fd)
{
    (void)ctx;
    return synced(fd, "fdatasync", REAL->fdatasync);
}

static int
ruled_fsync(void *ctx, int fd)
{
    (void)ctx;
    return synced(fd, "fsync", REAL->fsync);
}

static int
ruled_fsync_dir(void *ctx, const char *path)
{
    RULED("fsync_dir", path, path);
    return REAL->fsync_dir(ctx, path);
}

static int
ruled_truncate(void *ctx, int fd, off_t size)
{
    RULED("truncate", name_of(fd), "");
    return REAL->truncate(ctx, fd, size);
}

static off_t
ruled_size(void *ctx, int fd)
{
    RULED("size", name_of(fd), "");
    return REAL->size(ctx, fd);
}

static int
ruled_rename(void *ctx, const char *from, const char *to)
{
    RULED("rename", from, to);
    int result = REAL->rename(ctx, from, to);
    for (unsigned fd = 0; result == 0 && fd < IO_RULES_FDS; fd++) {
        if (strcmp(names[fd], from) == 0) {
            (void)snprintf(names[fd], PATH_KEPT, "%s", to);
        }
    }
    return result;
}

static int
ruled_unlink(void *ctx, const char *path)
{
    RULED("unlink", path, path);
    return REAL->unlink(ctx, path);
}

static int
ruled_rmdir(void *ctx, const char *path)
{
    RULED("rmdir", path, path);
    return REAL->rmdir(ctx, path);
}

static int
ruled_mkdir(void *ctx, const char *path, mode_t mode)
{
    RULED("mkdir", path, path);
    return REAL->mkdir(ctx, path, mode);
}

static int
ruled_lock(void *ctx, int fd)
{
    RULED("lock", name_of(fd), "");
    return REAL->lock(ctx, fd);
}

static int
ruled_unlock(void *ctx, int fd)
{
    RULED("unlock", name_of(fd), "");
    return REAL->unlock(ctx, fd);
}

static int
ruled_stat(void *ctx, const char *path, struct ag_io_stat *out)
{
    RULED("stat", path, path);
    return REAL->stat(ctx, path, out);
}

static int
ruled_statfs(void *ctx, const char *path, struct ag_io_fs *out)
{
    const struct io_rule *rule = hit("statfs", path, path);
    int ruled = verdict(rule);
    int result = ruled != 0 ? ruled : REAL->statfs(ctx, path, out);
    if (result == 0 && rule != NULL && is_action(rule, "type")) {
        out->type = (uint64_t)rule->value;
    }
    return result;
}

static int
ruled_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
           void *arg)
{
    RULED("list", path, path);
    return REAL->list(ctx, path, each, arg);
}

static int
ruled_sync_fs(void *ctx, int fd)
{
    RULED("sync_fs", name_of(fd), "");
    return REAL->sync_fs(ctx, fd);
}

static int
ruled_reserve(void *ctx, int fd, off_t size)
{
    RULED("reserve", name_of(fd), "");
    return REAL->reserve(ctx, fd, size);
}

static int
ruled_uncache(void *ctx, int fd)
{
    RULED("uncache", name_of(fd), "");
    return REAL->uncache(ctx, fd);
}

static const struct ag_io ruled = {
    .ctx = NULL,
    .open = ruled_open,
    .close = ruled_close,
    .pread = ruled_pread,
    .pwrite = ruled_pwrite,
    .fdatasync = ruled_fdatasync,
    .fsync = ruled_fsync,
    .fsync_dir = ruled_fsync_dir,
    .truncate = ruled_truncate,
    .size = ruled_size,
    .rename = ruled_rename,
    .unlink = ruled_unlink,
    .rmdir = ruled_rmdir,
    .mkdir = ruled_mkdir,
    .lock = ruled_lock,
    .unlock = ruled_unlock,
    .sync_fs = ruled_sync_fs,
    .stat = ruled_stat,
    .statfs = ruled_statfs,
    .list = ruled_list,
    .reserve = ruled_reserve,
    .uncache = ruled_uncache,
};

static void
map_rules(void)
{
    const char *path = getenv("AEGIS_IO_RULES");
    if (path == NULL) {
        return;
    }
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *at =
        fd < 0 ? MAP_FAILED
               : mmap(NULL, sizeof(*rules), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED || ((struct io_rules *)at)->magic != IO_RULES_MAGIC) {
        (void)fprintf(stderr, "AEGIS_IO_RULES=%s is no control file\n", path);
        abort();
    }
    (void)close(fd);
    rules = at;
}

const struct ag_io *
__wrap_ag_io_posix(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, map_rules);
    return &ruled;
}
