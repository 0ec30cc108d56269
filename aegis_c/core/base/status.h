/* Status codes of the core, and the detail that goes with a failure.
 *
 * Every function that can fail returns 0 or one of these negative numbers. Functions
 * that touch files or other people's bytes also take a `struct ag_error *`, filled only
 * on failure: what was wrong, where, what was expected, and what to do next. errno
 * never crosses a layer except inside that struct. */
#ifndef AG_BASE_STATUS_H
#define AG_BASE_STATUS_H

#include <stdint.h>

/* name, value, short text */
#define AG_STATUS_MAP(X)                                                               \
    X(AG_OK, 0, "ok")                                                                  \
    X(AG_ENOMEM, -1, "out of memory")                                                  \
    X(AG_EINVAL, -2, "invalid argument")                                               \
    X(AG_ERANGE, -3, "index or size out of range")                                     \
    X(AG_ETOOBIG, -4, "too large")                                                     \
    X(AG_EFULL, -5, "full: try again later")                                           \
    X(AG_EIO, -6, "input/output error")                                                \
    X(AG_ECORRUPT, -7, "damaged data")                                                 \
    X(AG_EFOREIGN, -8, "belongs to another log")                                       \
    X(AG_EVERSION, -9, "unknown format version")                                       \
    X(AG_ELOCKED, -10, "held by another process or handle")                            \
    X(AG_EPOISONED, -11, "stopped after a failed write: outcome unknown")              \
    X(AG_ECLOSED, -12, "closed")                                                       \
    X(AG_EFORKED, -13, "not usable after fork in the child")                           \
    X(AG_EROLLBACK, -14, "older than the last signed state")                           \
    X(AG_EVERIFY, -15, "verification failed")                                          \
    X(AG_ENOTFOUND, -16, "not found")                                                  \
    X(AG_ETIMEDOUT, -17, "timed out")                                                  \
    X(AG_EPERM, -18, "permissions do not allow it")                                    \
    X(AG_ECRYPTO, -19, "cryptographic library failed")                                 \
    X(AG_ENOTYET, -20, "not available yet")

enum ag_status {
#define AG_STATUS_ENUM(name, value, text) name = (value),
    AG_STATUS_MAP(AG_STATUS_ENUM)
#undef AG_STATUS_ENUM
};

#define AG_NO_POSITION UINT64_MAX

struct ag_error {
    int status;        /* AG_E* */
    int sys_errno;     /* errno of the failed system call, 0 when there was none */
    uint64_t offset;   /* byte in `file`, or AG_NO_POSITION */
    uint64_t index;    /* entry index or sequence number, or AG_NO_POSITION */
    char file[512];    /* "" when no file is concerned */
    char what[256];    /* one sentence: what was wrong */
    char expected[96]; /* "" when it does not apply */
    char found[96];
    char advice[256]; /* what to do next */
};

/* The constant name ("AG_EIO") and the short text of a status; never NULL. Any thread.
 */
const char *ag_status_name(int status);
const char *ag_status_text(int status);

/* Resets `err` and sets status and the `what` sentence (printf style); returns
 * `status`, so that a caller can `return ag_fail(err, AG_EINVAL, "...")`. `err` may be
 * NULL. */
int ag_fail(struct ag_error *err, int status, const char *what, ...)
    __attribute__((format(printf, 3, 4)));

/* As ag_fail, for a failed system call: appends strerror(sys_errno) and names the file.
 * `sys_errno` is positive. Returns AG_ENOMEM for ENOMEM, else AG_EIO. */
int ag_fail_sys(struct ag_error *err, int sys_errno, const char *file,
                const char *doing);

/* Add detail to an error that ag_fail has just set; all accept NULL `err`. */
void ag_error_file(struct ag_error *err, const char *file, uint64_t offset);
void ag_error_index(struct ag_error *err, uint64_t index);
void ag_error_pair(struct ag_error *err, const char *expected, const char *found);
void ag_error_advice(struct ag_error *err, const char *advice, ...)
    __attribute__((format(printf, 2, 3)));

#endif
