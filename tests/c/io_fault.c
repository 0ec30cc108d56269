#include "io_fault.h"

#include <errno.h>
#include <string.h>
#include <time.h>

static int
due(struct io_fault *f)
{
    long call = atomic_fetch_add(&f->calls, 1) + 1;
    long at = atomic_load(&f->fail_at);
    return at != 0 && call >= at && call - at < atomic_load(&f->fail_for)
               ? atomic_load(&f->fail_errno)
               : 0;
}

#define REAL ag_io_posix()
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
    return REAL->open(NULL, path, flags, mode);
}

static int
fault_close(void *ctx, int fd)
{
    struct io_fault *f = ctx;
    int error = due(f); /* the descriptor is gone either way, as on Linux */
    atomic_store(&f->sync_failed[fd % IO_FAULT_FDS], 0);
    int result = REAL->close(NULL, fd);
    return error != 0 ? -error : result;
}

static ssize_t
fault_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->pread(NULL, fd, to, n, offset);
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
        return REAL->pwrite(NULL, fd, copy, n, offset);
    }
    if (error != 0) { /* half of it arrives */
        (void)REAL->pwrite(NULL, fd, from, n / 2, offset);
        return -error;
    }
    return REAL->pwrite(NULL, fd, from, n, offset);
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
    return REAL->fdatasync(NULL, fd);
}

static int
fault_fsync(void *ctx, int fd)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->fsync(NULL, fd);
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
    return REAL->fsync_dir(NULL, path);
}

static int
fault_truncate(void *ctx, int fd, off_t size)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->truncate(NULL, fd, size);
}

static off_t
fault_size(void *ctx, int fd)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->size(NULL, fd);
}

static int
fault_rename(void *ctx, const char *from, const char *to)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->rename(NULL, from, to);
}

static int
fault_unlink(void *ctx, const char *path)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->unlink(NULL, path);
}

static int
fault_rmdir(void *ctx, const char *path)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->rmdir(NULL, path);
}

static int
fault_mkdir(void *ctx, const char *path, mode_t mode)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->mkdir(NULL, path, mode);
}

static int
fault_lock(void *ctx, int fd)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->lock(NULL, fd);
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
    return REAL->sync_fs(NULL, fd);
}

static int
fault_stat(void *ctx, const char *path, struct ag_io_stat *out)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->stat(NULL, path, out);
}

static int
fault_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
           void *arg)
{
    FAIL_WHEN_DUE(ctx);
    return REAL->list(NULL, path, each, arg);
}

void
io_fault_init(struct io_fault *fault)
{
    memset(fault, 0, sizeof(*fault));
    fault->table = *REAL; /* what is not listed below never fails */
    fault->table.ctx = fault;
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
