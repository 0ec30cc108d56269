#include "base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/alloc.h"

static int
posix_open(void *ctx, const char *path, int flags, mode_t mode)
{
    (void)ctx;
    int fd = open(path, flags | O_CLOEXEC, mode);
    return fd >= 0 ? fd : -errno;
}

static int
posix_close(void *ctx, int fd)
{
    (void)ctx;
    return close(fd) == 0 ? 0 : -errno;
}

static ssize_t
posix_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    (void)ctx;
    ssize_t got = pread(fd, to, n, offset);
    return got >= 0 ? got : -errno;
}

static ssize_t
posix_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    (void)ctx;
    ssize_t put = pwrite(fd, from, n, offset);
    return put >= 0 ? put : -errno;
}

static int
posix_fdatasync(void *ctx, int fd)
{
    (void)ctx;
#if defined(__APPLE__)
    return fcntl(fd, F_FULLFSYNC) == 0 ? 0 : -errno;
#else
    return fdatasync(fd) == 0 ? 0 : -errno;
#endif
}

static int
posix_fsync(void *ctx, int fd)
{
    (void)ctx;
    return fsync(fd) == 0 ? 0 : -errno;
}

static int
posix_fsync_dir(void *ctx, const char *path)
{
    (void)ctx;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) {
        return -errno;
    }
    int result = fsync(fd) == 0 ? 0 : -errno;
    (void)close(fd);
    return result;
}

static int
posix_sync_fs(void *ctx, int fd)
{
    (void)ctx;
#if defined(__linux__)
    return syncfs(fd) == 0 ? 0 : -errno;
#else
    (void)fd;
    sync();
    return 0;
#endif
}

static int
posix_truncate(void *ctx, int fd, off_t size)
{
    (void)ctx;
    return ftruncate(fd, size) == 0 ? 0 : -errno;
}

static off_t
posix_size(void *ctx, int fd)
{
    (void)ctx;
    struct stat st;
    return fstat(fd, &st) == 0 ? st.st_size : -errno;
}

static int
posix_rename(void *ctx, const char *from, const char *to)
{
    (void)ctx;
    return rename(from, to) == 0 ? 0 : -errno;
}

static int
posix_unlink(void *ctx, const char *path)
{
    (void)ctx;
    return unlink(path) == 0 ? 0 : -errno;
}

static int
posix_rmdir(void *ctx, const char *path)
{
    (void)ctx;
    return rmdir(path) == 0 ? 0 : -errno;
}

static int
posix_mkdir(void *ctx, const char *path, mode_t mode)
{
    (void)ctx;
    return mkdir(path, mode) == 0 ? 0 : -errno;
}

static int
posix_lock(void *ctx, int fd)
{
    (void)ctx;
    return flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : -errno;
}

static int
posix_unlock(void *ctx, int fd)
{
    (void)ctx;
    return flock(fd, LOCK_UN) == 0 ? 0 : -errno;
}

static int
posix_stat(void *ctx, const char *path, struct ag_io_stat *out)
{
    (void)ctx;
    struct stat st;
    if (lstat(path, &st) != 0) {
        return -errno;
    }
    out->size = (uint64_t)st.st_size;
    out->mode = (uint32_t)st.st_mode;
    out->uid = (uint32_t)st.st_uid;
    return 0;
}

static int
posix_statfs(void *ctx, const char *path, struct ag_io_fs *out)
{
    (void)ctx;
    struct statfs fs;
    if (statfs(path, &fs) != 0) {
        return -errno;
    }
    out->type = (uint64_t)fs.f_type;
    out->free_bytes = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
    return 0;
}

static int
posix_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
           void *arg)
{
    (void)ctx;
    DIR *dir = opendir(path);
    if (dir == NULL) {
        return -errno;
    }
    int result = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(dir);
        if (entry == NULL) {
            result = -errno;
            break;
        }
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0) {
            each(arg, entry->d_name);
        }
    }
    (void)closedir(dir);
    return result;
}

static int
posix_reserve(void *ctx, int fd, off_t size)
{
    (void)ctx;
    return -posix_fallocate(fd, 0, size);
}

static int
posix_uncache(void *ctx, int fd)
{
    (void)ctx;
    return -posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

static const struct ag_io posix_io = {
    .ctx = NULL,
    .open = posix_open,
    .close = posix_close,
    .pread = posix_pread,
    .pwrite = posix_pwrite,
    .fdatasync = posix_fdatasync,
    .fsync = posix_fsync,
    .fsync_dir = posix_fsync_dir,
    .truncate = posix_truncate,
    .size = posix_size,
    .rename = posix_rename,
    .unlink = posix_unlink,
    .rmdir = posix_rmdir,
    .mkdir = posix_mkdir,
    .lock = posix_lock,
    .unlock = posix_unlock,
    .sync_fs = posix_sync_fs,
    .stat = posix_stat,
    .statfs = posix_statfs,
    .list = posix_list,
    .reserve = posix_reserve,
    .uncache = posix_uncache,
};

const struct ag_io *
ag_io_posix(void)
{
    return &posix_io;
}

int
ag_io_write_full(const struct ag_io *io, int fd, const char *path, const void *from,
                 size_t n, uint64_t offset, struct ag_error *err)
{
    const uint8_t *next = from;
    while (n > 0) {
        ssize_t put = io->pwrite(io->ctx, fd, next, n, (off_t)offset);
        if (put == -EINTR) {
            continue;
        }
        if (put <= 0) {
            int status = ag_fail_sys(err, put < 0 ? (int)-put : EIO, path, "write");
            ag_error_file(err, path, offset);
            return status;
        }
        next += put;
        n -= (size_t)put;
        offset += (uint64_t)put;
    }
    return AG_OK;
}

int
ag_io_read_full(const struct ag_io *io, int fd, const char *path, void *to, size_t n,
                uint64_t offset, struct ag_error *err)
{
    uint8_t *next = to;
    while (n > 0) {
        ssize_t got = io->pread(io->ctx, fd, next, n, (off_t)offset);
        if (got == -EINTR) {
            continue;
        }
        if (got < 0) {
            int status = ag_fail_sys(err, (int)-got, path, "read");
            ag_error_file(err, path, offset);
            return status;
        }
        if (got == 0) {
            int status = ag_fail(err, AG_ECORRUPT, "file ends %zu bytes early", n);
            ag_error_file(err, path, offset);
            return status;
        }
        next += got;
        n -= (size_t)got;
        offset += (uint64_t)got;
    }
    return AG_OK;
}

int
ag_io_read_file(const struct ag_io *io, const char *path, size_t limit, uint8_t **bytes,
                size_t *n, struct ag_error *err)
{
    uint8_t *block = NULL;
    int status = AG_OK;
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd < 0) {
        if (fd == -ENOENT) {
            status = ag_fail(err, AG_ENOTFOUND, "no such file");
            ag_error_file(err, path, AG_NO_POSITION);
            return status;
        }
        return ag_fail_sys(err, -fd, path, "open");
    }
    off_t size = io->size(io->ctx, fd);
    if (size < 0) {
        status = ag_fail_sys(err, (int)-size, path, "stat");
        goto exit;
    }
    if ((uint64_t)size > limit) {
        status = ag_fail(err, AG_ETOOBIG, "file has %lld bytes, at most %zu expected",
                         (long long)size, limit);
        ag_error_file(err, path, AG_NO_POSITION);
        goto exit;
    }
    block = ag_alloc((size_t)size + 1);
    if (block == NULL) {
        status = ag_fail(err, AG_ENOMEM, "no memory for %lld bytes", (long long)size);
        goto exit;
    }
    status = ag_io_read_full(io, fd, path, block, (size_t)size, 0, err);
    if (status == AG_OK) {
        block[size] = 0;
        *bytes = block;
        *n = (size_t)size;
        block = NULL; /* transferred */
    }
exit:
    ag_free(block);
    (void)io->close(io->ctx, fd);
    return status;
}

static int
sync_parent(const struct ag_io *io, const char *path, struct ag_error *err)
{
    char dir[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (slash == NULL) {
        (void)snprintf(dir, sizeof(dir), ".");
    } else {
        size_t n = slash == path ? 1 : (size_t)(slash - path);
        if (n >= sizeof(dir)) {
            return ag_fail_sys(err, ENAMETOOLONG, path, "fsync of the directory");
        }
        memcpy(dir, path, n);
        dir[n] = '\0';
    }
    int result = io->fsync_dir(io->ctx, dir);
    return result < 0 ? ag_fail_sys(err, -result, dir, "fsync of the directory")
                      : AG_OK;
}

int
ag_io_replace_file(const struct ag_io *io, const char *path, const void *from, size_t n,
                   mode_t mode, int sync, struct ag_error *err)
{
    char temporary[PATH_MAX];
    int length = snprintf(temporary, sizeof(temporary), "%s.tmp", path);
    if (length < 0 || (size_t)length >= sizeof(temporary)) {
        return ag_fail_sys(err, ENAMETOOLONG, path, "create");
    }
    int fd = io->open(io->ctx, temporary, O_WRONLY | O_CREAT | O_TRUNC, mode);
    if (fd < 0) {
        return ag_fail_sys(err, -fd, temporary, "create");
    }
    int status = ag_io_write_full(io, fd, temporary, from, n, 0, err);
    if (status == AG_OK && sync) {
        int result = io->fdatasync(io->ctx, fd);
        if (result < 0) {
            status = ag_fail_sys(err, -result, temporary, "fdatasync");
        }
    }
    int closed = io->close(io->ctx, fd);
    if (status == AG_OK && closed < 0) {
        status = ag_fail_sys(err, -closed, temporary, "close");
    }
    if (status == AG_OK) {
        int result = io->rename(io->ctx, temporary, path);
        if (result < 0) {
            status = ag_fail_sys(err, -result, path, "rename");
        }
    }
    if (status != AG_OK) {
        (void)io->unlink(io->ctx, temporary);
        return status;
    }
    return sync ? sync_parent(io, path, err) : AG_OK;
}

static int
make_dirs(const struct ag_io *io, const char *path, mode_t mode, bool durable,
          struct ag_error *err)
{
    char part[PATH_MAX];
    size_t n = strlen(path);
    if (n == 0 || n >= sizeof(part)) {
        return ag_fail_sys(err, n == 0 ? ENOENT : ENAMETOOLONG, path, "mkdir");
    }
    memcpy(part, path, n + 1);
    for (size_t i = 1; i <= n; i++) {
        if (part[i] != '/' && part[i] != '\0') {
            continue;
        }
        char kept = part[i];
        part[i] = '\0';
        int result = io->mkdir(io->ctx, part, mode);
        if (result < 0 && result != -EEXIST) {
            return ag_fail_sys(err, -result, part, "mkdir");
        }
        int status = durable && result == 0 ? sync_parent(io, part, err) : AG_OK;
        if (status != AG_OK) {
            return status;
        }
        part[i] = kept;
    }
    return AG_OK;
}

int
ag_io_make_dirs(const struct ag_io *io, const char *path, mode_t mode,
                struct ag_error *err)
{
    return make_dirs(io, path, mode, false, err);
}

int
ag_io_make_durable_dirs(const struct ag_io *io, const char *path, mode_t mode,
                        struct ag_error *err)
{
    return make_dirs(io, path, mode, true, err);
}
