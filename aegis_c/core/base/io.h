/* The I/O table: every file operation of the core goes through one of these pointers.
 * `ag_io_posix()` is the real table; tests pass a faulty or recording one. Calls return
 * >= 0, or -errno. Directories are fsynced by path. */
#ifndef AG_BASE_IO_H
#define AG_BASE_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/status.h"

/* What `stat` tells about a path (the last component is not followed when it is a
 * symbolic link). */
struct ag_io_stat {
    uint64_t size;
    uint32_t mode; /* st_mode */
    uint32_t uid;
};

/* What `statfs` tells about the file system below a path. */
struct ag_io_fs {
    uint64_t type;       /* the f_type magic of statfs(2) */
    uint64_t free_bytes; /* for this user */
};

struct ag_io {
    void *ctx;
    int (*open)(void *ctx, const char *path, int flags, mode_t mode);
    int (*close)(void *ctx, int fd);
    ssize_t (*pread)(void *ctx, int fd, void *to, size_t n, off_t offset);
    ssize_t (*pwrite)(void *ctx, int fd, const void *from, size_t n, off_t offset);
    int (*fdatasync)(void *ctx, int fd);
    int (*fsync)(void *ctx, int fd);
    int (*fsync_dir)(void *ctx, const char *path);
    int (*truncate)(void *ctx, int fd, off_t size);
    off_t (*size)(void *ctx, int fd);
    int (*rename)(void *ctx, const char *from, const char *to);
    int (*unlink)(void *ctx, const char *path);
    int (*rmdir)(void *ctx, const char *path);
    int (*mkdir)(void *ctx, const char *path,
                 mode_t mode);      /* -EEXIST when it is there */
    int (*lock)(void *ctx, int fd); /* exclusive, not waiting: -EWOULDBLOCK when held */
    /* Before close: a forked child's copy of the descriptor would keep the lock. */
    int (*unlock)(void *ctx, int fd);
    int (*stat)(void *ctx, const char *path, struct ag_io_stat *out);
    int (*statfs)(void *ctx, const char *path, struct ag_io_fs *out);
    /* Calls `each` for every name in the directory but "." and "..", in no order. */
    int (*list)(void *ctx, const char *path, void (*each)(void *arg, const char *name),
                void *arg);
    /* The whole file system of an open file. The kernel tells a failed write-back once
     * to every descriptor that was open then: keep one open from before the writes. */
    int (*sync_fs)(void *ctx, int fd);
    int (*reserve)(void *ctx, int fd, off_t size); /* posix_fallocate from 0 */
    int (*uncache)(void *ctx, int fd); /* drops clean cached pages of the file */
};

/* The real table; constant, shared by all threads. */
const struct ag_io *ag_io_posix(void);

/* Whole-buffer forms: loop over short counts, repeat on EINTR. 0 or a status with
 * `path` named in `err`. ag_io_read_full fails with AG_ECORRUPT when the file ends
 * early. */
int ag_io_write_full(const struct ag_io *io, int fd, const char *path, const void *from,
                     size_t n, uint64_t offset, struct ag_error *err);
int ag_io_read_full(const struct ag_io *io, int fd, const char *path, void *to,
                    size_t n, uint64_t offset, struct ag_error *err);

/* Reads a whole file of at most `limit` bytes into a new block with a NUL behind it
 * (*bytes is owned by the caller, ag_free). AG_ENOTFOUND when there is no such file,
 * AG_ETOOBIG beyond the limit. */
int ag_io_read_file(const struct ag_io *io, const char *path, size_t limit,
                    uint8_t **bytes, size_t *n, struct ag_error *err);

/* Writes `path` atomically: a temporary name beside it, then rename. With `sync` the
 * file and its directory are fsynced in that order before it returns. */
int ag_io_replace_file(const struct ag_io *io, const char *path, const void *from,
                       size_t n, mode_t mode, int sync, struct ag_error *err);

/* mkdir -p for the last `path` component and its parents; existing ones are fine. */
int ag_io_make_dirs(const struct ag_io *io, const char *path, mode_t mode,
                    struct ag_error *err);

/* The same, and fsyncs the directory above each one that it makes: what is then synced
 * inside cannot vanish with a name above it. */
int ag_io_make_durable_dirs(const struct ag_io *io, const char *path, mode_t mode,
                            struct ag_error *err);

#endif
