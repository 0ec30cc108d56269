#include "io_fault.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int
due(struct io_fault *f)
{
    long call = atomic_fetch_add(&f->calls, 1) + 1;
    long at = atomic_load(&f->fail_at);
    if (at == 0 || call < at || call - at >= atomic_load(&f->fail_for)) {
        return 0;
    }
    int error = atomic_load(&f->fail_errno);
    if (error == IO_FAULT_KILL) {
        (void)kill(getpid(), SIGKILL);
    }
    return error;
}

/* The call behind: REAL(ctx, close)(REAL_CTX(ctx), fd). */
#define REAL(ctx, name) ((const struct io_fault *)(ctx))->below->name
#define REAL_CTX(ctx) ((const struct io_fault *)(ctx))->below->ctx
#define FAIL_WHEN_DUE(ctx)                                                             \
    do {                                                                               \
        int error = due(ctx);                                                          \
        if (error != 0) {                                                              \
            return -error;                                                             \
        }                                                                              \
    } while (0)

static int
fault_open(void *ctx, const char *path, int flags, mode_t mode)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, open)(REAL_CTX(ctx), path, flags, mode);
}

static int
fault_close(void *ctx, int fd)
{
    struct io_fault *f = ctx;
    int error = due(f); /* the descriptor is gone either way, as on Linux */
    atomic_store(&f->sync_failed[fd % IO_FAULT_FDS], 0);
    int result = REAL(ctx, close)(REAL_CTX(ctx), fd);
    return error != 0 ? -error : result;
}

static ssize_t
fault_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, pread)(REAL_CTX(ctx), fd, to, n, offset);
}

static ssize_t
fault_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    struct io_fault *f = ctx;
    int error = due(ctx);
    uint8_t copy[8192];
    if (error == 0 && n <= sizeof(copy) && (long)n == atomic_load(&f->flip_size)) {
        memcpy(copy, from, n);
        copy[n / 2] ^= 1;
        return REAL(ctx, pwrite)(REAL_CTX(ctx), fd, copy, n, offset);
    }
    if (error != 0) { /* half of it arrives */
        (void)REAL(ctx, pwrite)(REAL_CTX(ctx), fd, from, n / 2, offset);
        return -error;
    }
    return REAL(ctx, pwrite)(REAL_CTX(ctx), fd, from, n, offset);
}

static int
fault_fdatasync(void *ctx, int fd)
{
    struct io_fault *f = ctx;
    atomic_fetch_add(&f->syncs, 1);
    while (atomic_load(&f->stall)) {
        struct timespec pause = {.tv_nsec = 1000 * 1000};
        (void)nanosleep(&pause, NULL);
    }
    if (atomic_load(&f->sync_failed[fd % IO_FAULT_FDS])) {
        atomic_fetch_add(&f->syncs_after_failure, 1);
    }
    int error = due(f);
    if (error == 0 && atomic_load(&f->fail_syncs)) {
        error = EIO;
    }
    if (error != 0) {
        atomic_store(&f->sync_failed[fd % IO_FAULT_FDS], 1);
        return -error;
    }
    return REAL(ctx, fdatasync)(REAL_CTX(ctx), fd);
}

static int
fault_fsync(void *ctx, int fd)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, fsync)(REAL_CTX(ctx), fd);
}

static int
fault_fsync_dir(void *ctx, const char *path)
{
    struct io_fault *f = ctx;
    while (atomic_load(&f->stall_dirs)) {
        struct timespec pause = {.tv_nsec = 1000 * 1000};
        (void)nanosleep(&pause, NULL);
    }
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, fsync_dir)(REAL_CTX(ctx), path);
}

static int
fault_truncate(void *ctx, int fd, off_t size)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, truncate)(REAL_CTX(ctx), fd, size);
}

static off_t
fault_size(void *ctx, int fd)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, size)(REAL_CTX(ctx), fd);
}

static int
fault_rename(void *ctx, const char *from, const char *to)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, rename)(REAL_CTX(ctx), from, to);
}

static int
fault_unlink(void *ctx, const char *path)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, unlink)(REAL_CTX(ctx), path);
}

static int
fault_rmdir(void *ctx, const char *path)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, rmdir)(REAL_CTX(ctx), path);
}

static int
fault_mkdir(void *ctx, const char *path, mode_t mode)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, mkdir)(REAL_CTX(ctx), path, mode);
}

static int
fault_lock(void *ctx, int fd)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, lock)(REAL_CTX(ctx), fd);
}

static int
fault_sync_fs(void *ctx, int fd)
{
    struct io_fault *f = ctx;
    FAIL_WHEN_DUE(ctx);
    if (atomic_load(&f->fail_sync_fs) > 0) {
        atomic_fetch_sub(&f->fail_sync_fs, 1);
        return -EIO;
    }
    return REAL(ctx, sync_fs)(REAL_CTX(ctx), fd);
}

static int
fault_stat(void *ctx, const char *path, struct ag_io_stat *out)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, stat)(REAL_CTX(ctx), path, out);
}

static int
fault_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
           void *arg)
{
    FAIL_WHEN_DUE(ctx);
    return REAL(ctx, list)(REAL_CTX(ctx), path, each, arg);
}

/* What never fails. */

static int
fault_unlock(void *ctx, int fd)
{
    return REAL(ctx, unlock)(REAL_CTX(ctx), fd);
}

static int
fault_statfs(void *ctx, const char *path, struct ag_io_fs *out)
{
    return REAL(ctx, statfs)(REAL_CTX(ctx), path, out);
}

static int
fault_reserve(void *ctx, int fd, off_t size)
{
    return REAL(ctx, reserve)(REAL_CTX(ctx), fd, size);
}

static int
fault_uncache(void *ctx, int fd)
{
    return REAL(ctx, uncache)(REAL_CTX(ctx), fd);
}

void
io_fault_init(struct io_fault *fault)
{
    memset(fault, 0, sizeof(*fault));
    fault->below = ag_io_posix();
    fault->table.ctx = fault;
    fault->table.unlock = fault_unlock;
    fault->table.statfs = fault_statfs;
    fault->table.reserve = fault_reserve;
    fault->table.uncache = fault_uncache;
    fault->table.open = fault_open;
    fault->table.close = fault_close;
    fault->table.pread = fault_pread;
    fault->table.pwrite = fault_pwrite;
    fault->table.fdatasync = fault_fdatasync;
    fault->table.fsync = fault_fsync;
    fault->table.fsync_dir = fault_fsync_dir;
    fault->table.truncate = fault_truncate;
    fault->table.size = fault_size;
    fault->table.rename = fault_rename;
    fault->table.unlink = fault_unlink;
    fault->table.rmdir = fault_rmdir;
    fault->table.mkdir = fault_mkdir;
    fault->table.lock = fault_lock;
    fault->table.sync_fs = fault_sync_fs;
    fault->table.stat = fault_stat;
    fault->table.list = fault_list;
}
