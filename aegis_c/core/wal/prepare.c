#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "wal/segment_files.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

/* Zeros that go out in one write: at full speed, and beside the writes of a log that
 * is in use (140 us on the disk of spare.c; smaller pieces cost more than they spare).
 */
#define ZERO_CHUNK (1u << 20)
#define ZERO_PIECE (256u << 10)

int
ag_log_open_for_writing(const struct ag_io *io, const char *path, int extra,
                        bool *direct, struct ag_error *err)
{
    int flags = O_RDWR | O_NOFOLLOW | extra;
    int fd = *direct ? io->open(io->ctx, path, flags | O_DIRECT, 0600) : -EINVAL;
    if (fd == -EINVAL) {
        *direct = false;
        fd = io->open(io->ctx, path, flags, 0600);
    }
    return fd >= 0 ? fd : ag_fail_sys(err, -fd, path, "open for writing");
}

static int
fill_with_zeros(const struct ag_io *io, int fd, const char *path, uint32_t n,
                const struct ag_log_pace *pace, struct ag_error *err)
{
    size_t chunk = pace != NULL ? ZERO_PIECE : ZERO_CHUNK;
    chunk = n < chunk ? n : chunk;
    uint8_t *zeros = ag_wal_buffer(chunk);
    int status = AG_OK;
    if (zeros == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for %zu zero bytes", chunk);
    }
    memset(zeros, 0, chunk);
    for (uint32_t at = 0; at < n && status == AG_OK;) {
        size_t part = n - at < chunk ? n - at : chunk;
        if (pace != NULL && !pace->next(pace->ctx, at)) {
            status = AG_ECLOSED;
            break;
        }
        status = ag_io_write_full(io, fd, path, zeros, part, at, err);
        at += (uint32_t)part;
    }
    ag_wal_buffer_free(zeros);
    return status;
}

int
ag_log_make_segment(const struct ag_io *io, const char *dir, uint32_t number,
                    uint32_t segment_bytes, const struct ag_log_pace *pace,
                    bool *direct, int *fd, struct ag_error *err)
{
    char path[AG_WAL_PATH], temporary[AG_WAL_PATH];
    int file = -1;
    int status = ag_wal_segment_path(path, dir, number, err);
    if (status == AG_OK) {
        status = ag_wal_path(temporary, dir, "segment.tmp", err);
    }
    if (status != AG_OK) {
        return status;
    }
    /* A leftover of another size, mode or kind must not shine through. */
    (void)io->unlink(io->ctx, temporary);
    file = ag_log_open_for_writing(io, temporary, O_CREAT | O_EXCL, direct, err);
    if (file < 0) {
        return file;
    }
    status = fill_with_zeros(io, file, temporary, segment_bytes, pace, err);
    if (status == AG_EIO && *direct && err != NULL && err->sys_errno == EINVAL) {
        /* Some file systems take O_DIRECT at open and refuse it at the first write. */
        *direct = false;
        (void)io->close(io->ctx, file);
        (void)io->unlink(io->ctx, temporary);
        file = ag_log_open_for_writing(io, temporary, O_CREAT | O_EXCL, direct, err);
        if (file < 0) {
            return file;
        }
        status = fill_with_zeros(io, file, temporary, segment_bytes, pace, err);
    }
    if (status == AG_OK) {
        int result = io->fsync(io->ctx, file);
        status = result < 0 ? ag_fail_sys(err, -result, temporary, "fsync") : AG_OK;
    }
    if (status == AG_OK) {
        int result = io->rename(io->ctx, temporary, path);
        status = result < 0 ? ag_fail_sys(err, -result, path, "rename") : AG_OK;
    }
#ifndef AG_MUTANT_SKIP_DIR_SYNC
    if (status == AG_OK) {
        int result = io->fsync_dir(io->ctx, dir);
        status = result < 0 ? ag_fail_sys(err, -result, dir, "fsync of the directory")
                            : AG_OK;
    }
#endif
    if (status != AG_OK) {
        (void)io->close(io->ctx, file);
        (void)io->unlink(io->ctx, temporary);
        return status;
    }
    *fd = file;
    return AG_OK;
}
