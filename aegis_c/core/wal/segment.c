#include "wal/segment.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "wal/segment_files.h"

/* Any failure on the active segment: its content is unknown from here on. */
static int
fail(struct ag_log *log, int status)
{
    log->failed = true;
    return status;
}

static int
sync_segment(struct ag_log *log, struct ag_error *err)
{
#ifdef AG_MUTANT_DROP_SYNC
    (void)err;
    return AG_OK;
#else
    int result = log->io->fdatasync(log->io->ctx, log->fd);
#ifdef AG_MUTANT_RETRY_SYNC
    if (result < 0) {
        result = log->io->fdatasync(log->io->ctx, log->fd);
    }
#endif
    if (result < 0) {
        ag_fail_sys(err, -result, log->path, "fdatasync");
        ag_error_file(err, log->path, log->at);
        return fail(log, AG_EPOISONED);
    }
    return AG_OK;
#endif
}

/* As ag_io_write_full, but goes on at a whole block after a short write, because an
 * unaligned rest cannot be written with O_DIRECT; these blocks hold nothing
 * acknowledged. */
static int
write_blocks(struct ag_log *log, const uint8_t *from, size_t n, uint64_t offset,
             struct ag_error *err)
{
    size_t done = 0;
    unsigned stuck = 0;
    while (done < n) {
        ssize_t put = log->io->pwrite(log->io->ctx, log->fd, from + done, n - done,
                                      (off_t)(offset + done));
        if (put == -EINTR) {
            continue;
        }
        size_t whole = put > 0 ? (size_t)put : 0;
        if (done + whole < n) {
            whole -= whole % AG_WAL_BLOCK;
            stuck = whole == 0 ? stuck + 1 : 0;
        }
        if (put < 0 || stuck > 100) {
            ag_fail_sys(err, put < 0 ? (int)-put : EIO, log->path, "write");
            ag_error_file(err, log->path, offset + done);
            return fail(log, AG_EPOISONED);
        }
        done += whole;
    }
    return AG_OK;
}

uint64_t
ag_log_last_seq(const struct ag_log *log)
{
    return atomic_load_explicit(&log->durable_seq, memory_order_relaxed);
}

bool
ag_log_extent_fits(const struct ag_log *log, uint64_t extent)
{
    return log->at + extent + AG_WAL_BLOCK <= log->segment_bytes;
}

bool
ag_log_marker_fits(const struct ag_log *log)
{
    return ag_log_extent_fits(log, AG_WAL_BLOCK);
}

bool
ag_log_segment_takes(const struct ag_log *log, uint32_t payload)
{
    return ag_log_extent_fits(log, ag_wal_extent(ag_wal_record_size(payload)));
}

bool
ag_log_batch_takes(const struct ag_log *log, uint32_t payload)
{
    size_t extent = ag_wal_extent(log->body_len + ag_wal_record_size(payload));
    return (log->nrec == 0 || extent <= AG_WAL_BATCH_MAX) &&
           ag_log_extent_fits(log, extent);
}

void
ag_log_add(struct ag_log *log, const uint8_t *payload, uint32_t n, uint32_t crc)
{
    uint8_t *to = log->batch + AG_WAL_HEADER + log->body_len;
    size_t size = ag_wal_record_size(n);
    memset(to + size - 8, 0xFF, 8);
    ag_put_u32le(to, n);
    ag_put_u32le(to + 4, crc);
    memcpy(to + AG_WAL_RECORD_HEADER, payload, n);
    log->body_len += size;
    log->nrec++;
}

int
ag_log_flush(struct ag_log *log, uint8_t flags, struct ag_error *err)
{
    if (log->failed) {
        return ag_fail(err, AG_EPOISONED, "the log stopped after a failed write");
    }
    uint64_t last = ag_log_last_seq(log);
    struct ag_wal_batch_header header = {
        .flags = flags,
        .wal_id = log->wal_id,
        .segment_no = log->segment_no,
        .block_no = (uint32_t)(log->at / AG_WAL_BLOCK),
        .first_seq = last + 1,
        .durable_seq = last,
        .nrec = log->nrec,
        .body_len = (uint32_t)log->body_len,
        .prev_crc = log->crc,
        .epoch = log->epoch,
    };
    size_t extent = ag_wal_seal_batch(&header, log->batch);
    uint64_t now_durable = last + log->nrec;
    log->body_len = 0;
    log->nrec = 0;
    int status = write_blocks(log, log->batch, extent, log->at, err);
#ifdef AG_MUTANT_ACK_EARLY
    atomic_store_explicit(&log->durable_seq, now_durable, memory_order_release);
#endif
    if (status == AG_OK) {
        status = sync_segment(log, err);
    }
    if (status != AG_OK) {
        return status;
    }
    log->at += extent;
    log->crc = header.crc;
    atomic_store_explicit(&log->durable_seq, now_durable, memory_order_release);
    return AG_OK;
}

/* Writes the header of the segment behind log->fd, which certifies the log so far. */
static int
activate(struct ag_log *log, uint32_t number, const struct ag_wal_segment_info *before,
         uint32_t flags, struct ag_error *err)
{
    uint64_t last = ag_log_last_seq(log);
    struct ag_wal_segment_header header = {
        .wal_id = log->wal_id,
        .segment_no = number,
        .epoch = log->epoch,
        .first_seq = last + 1,
        .prev_valid_len = before != NULL ? before->valid_len : 0,
        .prev_last_seq = last,
        .prev_crc = before != NULL ? before->last_crc : 0,
        .flags = flags,
    };
    int status = ag_wal_segment_path(log->path, log->dir, number, err);
    if (status != AG_OK) {
        return fail(log, status);
    }
    ag_wal_encode_segment(&header, log->batch);
    log->segment_no = number;
    log->at = 0;
    status = write_blocks(log, log->batch, AG_WAL_BLOCK, 0, err);
    if (status == AG_OK) {
        status = sync_segment(log, err);
    }
    if (status != AG_OK) {
        return status;
    }
    log->at = AG_WAL_BLOCK;
    log->crc = header.crc;
    struct ag_wal_segment_info info = {
        .segment_no = number,
        .epoch = log->epoch,
        .first_seq = header.first_seq,
        .last_seq = last,
        .valid_len = AG_WAL_BLOCK,
        .prev_crc = header.prev_crc,
        .last_crc = header.crc,
    };
    (void)pthread_mutex_lock(&log->lock);
    if (log->count == log->capacity) {
        size_t capacity = log->capacity * 2 + 8;
        struct ag_wal_segment_info *grown =
            ag_realloc(log->segments, capacity * sizeof(*grown));
        if (grown == NULL) {
            (void)pthread_mutex_unlock(&log->lock);
            ag_fail(err, AG_ENOMEM, "no memory for the list of segments");
            return fail(log, AG_ENOMEM);
        }
        log->segments = grown;
        log->capacity = capacity;
    }
    log->segments[log->count++] = info;
    (void)pthread_mutex_unlock(&log->lock);
    return AG_OK;
}

int
ag_log_rotate(struct ag_log *log, int fd, struct ag_error *err)
{
    int status = ag_log_flush(log, AG_BATCH_SEAL, err);
    if (status != AG_OK) {
        (void)log->io->close(log->io->ctx, fd);
        return status;
    }
    (void)pthread_mutex_lock(&log->lock);
    struct ag_wal_segment_info *info = &log->segments[log->count - 1];
    info->valid_len = log->at;
    info->last_seq = ag_log_last_seq(log);
    info->last_crc = log->crc;
    struct ag_wal_segment_info before = *info;
    (void)pthread_mutex_unlock(&log->lock);
    int closed = log->io->close(log->io->ctx, log->fd);
    log->fd = fd;
    if (closed < 0) {
        ag_fail_sys(err, -closed, log->path, "close");
        return fail(log, AG_EPOISONED);
    }
    return activate(log, before.segment_no + 1, &before, 0, err);
}

int
ag_log_segments(struct ag_log *log, struct ag_wal_segment_info **segments,
                size_t *count)
{
    (void)pthread_mutex_lock(&log->lock);
    size_t n = log->count;
    struct ag_wal_segment_info *copy = ag_calloc(n, sizeof(*copy));
    if (copy != NULL && n != 0) {
        memcpy(copy, log->segments, n * sizeof(*copy));
    }
    (void)pthread_mutex_unlock(&log->lock);
    if (copy == NULL) {
        return AG_ENOMEM;
    }
    *segments = copy;
    *count = n;
    return AG_OK;
}

/* The first start: segment 1 as zeros, then LOG; the first activation comes after. */
static int
create_log(struct ag_log *log, struct ag_error *err)
{
    if (getrandom(&log->wal_id, sizeof(log->wal_id), 0) !=
        (ssize_t)sizeof(log->wal_id)) {
        return ag_fail_sys(err, errno, log->dir, "getrandom");
    }
    int status = ag_log_make_segment(log->io, log->dir, 1, log->segment_bytes, NULL,
                                     &log->direct, &log->fd, err);
    if (status == AG_OK) {
        status = ag_log_write_file_lock_held(log, 0, NULL, 0, 0, err);
    }
    return status;
}

static int
take_over(struct ag_log *log, const struct ag_wal_recovery *recovery,
          struct ag_error *err)
{
    log->wal_id = recovery->log.wal_id;
    log->epoch = recovery->epoch + 1;
    log->segment_bytes = recovery->log.segment_bytes;
    log->opened = recovery->log.opened;
    log->low_water = recovery->log.low_water;
    log->blob_len = recovery->log.blob_len;
    log->blob = ag_alloc(log->blob_len);
    log->capacity = recovery->count + 8;
    log->segments = ag_calloc(log->capacity, sizeof(*log->segments));
    if (log->blob == NULL || log->segments == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the list of segments");
    }
    if (log->blob_len != 0) {
        memcpy(log->blob, recovery->log.blob, log->blob_len);
    }
    if (recovery->count != 0) {
        memcpy(log->segments, recovery->segments,
               recovery->count * sizeof(*log->segments));
    }
    log->count = recovery->count;
    atomic_store_explicit(&log->durable_seq, recovery->last_seq, memory_order_release);
    int status =
        ag_log_archive(log, recovery->leftovers, recovery->leftover_count, err);
    if (status != AG_OK) {
        return status;
    }
    if (!recovery->spare) {
        return ag_log_make_segment(log->io, log->dir, recovery->next_no,
                                   log->segment_bytes, NULL, &log->direct, &log->fd,
                                   err);
    }
    status = ag_wal_segment_path(log->path, log->dir, recovery->next_no, err);
    if (status == AG_OK) {
        log->fd = ag_log_open_for_writing(log->io, log->path, 0, &log->direct, err);
        status = log->fd < 0 ? log->fd : AG_OK;
    }
    return status;
}

int
ag_log_start(struct ag_log *log, const struct ag_io *io, const char *dir,
             const char *archive, uint32_t segment_bytes, bool direct,
             const struct ag_wal_recovery *recovery, struct ag_error *err)
{
    memset(log, 0, sizeof(*log));
    log->io = io;
    log->fd = -1;
    log->segment_bytes = segment_bytes;
    log->direct = direct;
    log->epoch = 1;
    (void)pthread_mutex_init(&log->lock, NULL);
    int status = ag_wal_path(log->dir, dir, "", err);
    if (status == AG_OK) {
        log->dir[strlen(dir)] = '\0';
        int n = archive != NULL
                    ? snprintf(log->archive, sizeof(log->archive), "%s", archive)
                    : snprintf(log->archive, sizeof(log->archive), "%s/archive", dir);
        status = n < 0 || n >= AG_WAL_PATH ? ag_fail_sys(err, ENAMETOOLONG, dir, "open")
                                           : AG_OK;
    }
    log->batch = ag_wal_buffer(AG_WAL_EXTENT_MAX);
    if (status == AG_OK && log->batch == NULL) {
        status = ag_fail(err, AG_ENOMEM, "no memory for a batch");
    }
    if (status == AG_OK) {
        status = recovery->fresh ? create_log(log, err) : take_over(log, recovery, err);
    }
    if (status == AG_OK) {
        struct ag_wal_segment_info before;
        if (log->count > 0) {
            before = log->segments[log->count - 1];
        }
        status = activate(log, recovery->next_no, log->count > 0 ? &before : NULL,
                          recovery->accepted ? AG_SEGMENT_TAIL_ACCEPTED : 0, err);
    }
    if (status == AG_OK) {
        /* From now on a missing segment up to this one is noticed. */
        (void)pthread_mutex_lock(&log->lock);
        log->opened = log->segment_no;
        status = ag_log_write_file_lock_held(log, log->low_water, log->blob,
                                             log->blob_len, 0, err);
        (void)pthread_mutex_unlock(&log->lock);
    }
    if (status != AG_OK) {
        ag_log_stop(log);
    }
    return status;
}

void
ag_log_stop(struct ag_log *log)
{
    if (log->fd >= 0) {
        (void)log->io->close(log->io->ctx, log->fd);
        log->fd = -1;
    }
    ag_wal_buffer_free(log->batch);
    ag_free(log->segments);
    ag_free(log->blob);
    log->batch = NULL;
    log->segments = NULL;
    log->blob = NULL;
    log->count = 0;
    (void)pthread_mutex_destroy(&log->lock);
}
