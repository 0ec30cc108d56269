#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "wal/segment_files.h"

int
ag_log_write_file_lock_held(struct ag_log *log, uint64_t low_water, const void *blob,
                            uint32_t blob_len, size_t first_live, struct ag_error *err)
{
    char path[AG_WAL_PATH];
    int status = ag_wal_path(path, log->dir, "LOG", err);
    uint8_t *bytes = ag_alloc(AG_WAL_HEADER + (size_t)blob_len);
    if (status == AG_OK && bytes == NULL) {
        status = ag_fail(err, AG_ENOMEM, "no memory for the LOG file");
    }
    if (status == AG_OK) {
        struct ag_wal_log_file file = {
            .wal_id = log->wal_id,
            .segment_bytes = log->segment_bytes,
            .epoch = log->epoch,
            .first_live = 1,
            .opened = log->opened,
            .first_seq = 1,
            .low_water = low_water,
            .blob_len = blob_len,
            .blob = blob,
        };
        if (log->count > 0) {
            file.first_live = log->segments[first_live].segment_no;
            file.first_seq = log->segments[first_live].first_seq;
            file.prev_crc = log->segments[first_live].prev_crc;
        }
        size_t n = ag_wal_encode_log(&file, bytes);
        status = ag_io_replace_file(log->io, path, bytes, n, 0600, 1, err);
    }
    ag_free(bytes);
    return status;
}

static int
move_to_archive(struct ag_log *log, uint32_t number, struct ag_error *err)
{
    char from[AG_WAL_PATH], to[AG_WAL_PATH];
    int status = ag_wal_segment_path(from, log->dir, number, err);
    if (status == AG_OK) {
        status = ag_wal_segment_path(to, log->archive, number, err);
    }
    if (status != AG_OK) {
        return status;
    }
    struct ag_io_stat st;
    if (log->io->stat(log->io->ctx, to, &st) == 0) {
        ag_fail(err, AG_ECORRUPT, "the archive already has this segment");
        ag_error_file(err, to, AG_NO_POSITION);
        ag_error_advice(err, "Nothing was overwritten. Compare the two files, move one "
                             "away");
        return AG_ECORRUPT;
    }
    int result = log->io->rename(log->io->ctx, from, to);
    return result < 0 ? ag_fail_sys(err, -result, to, "rename into the archive")
                      : AG_OK;
}

static int
sync_archive(struct ag_log *log, struct ag_error *err)
{
    int result = log->io->fsync_dir(log->io->ctx, log->archive);
    if (result == 0) {
        result = log->io->fsync_dir(log->io->ctx, log->dir);
    }
    return result < 0
               ? ag_fail_sys(err, -result, log->archive, "fsync of the directory")
               : AG_OK;
}

/* Makes the archive directory durable before anything is moved there. */
static int
make_archive(struct ag_log *log, struct ag_error *err)
{
    int status = ag_io_make_dirs(log->io, log->archive, 0700, err);
    if (status != AG_OK) {
        return status;
    }
    char parent[AG_WAL_PATH];
    (void)snprintf(parent, sizeof(parent), "%s", log->archive);
    char *slash = strrchr(parent, '/');
    if (slash == NULL || slash == parent) {
        return AG_OK;
    }
    *slash = '\0';
    int result = log->io->fsync_dir(log->io->ctx, parent);
    return result < 0 ? ag_fail_sys(err, -result, parent, "fsync of the directory")
                      : AG_OK;
}

int
ag_log_set_low_water(struct ag_log *log, uint64_t seq, const void *blob,
                     uint32_t blob_len, struct ag_error *err)
{
    uint8_t *copy = NULL;
    if (blob_len > AG_WAL_BLOB_MAX) {
        return ag_fail(err, AG_EINVAL, "blob of %" PRIu32 " bytes, at most %u",
                       blob_len, AG_WAL_BLOB_MAX);
    }
    if (seq > atomic_load_explicit(&log->durable_seq, memory_order_acquire)) {
        return ag_fail(err, AG_ERANGE, "sequence %" PRIu64 " is not durable yet", seq);
    }
    copy = ag_alloc(blob_len);
    if (copy == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the blob");
    }
    if (blob_len != 0) {
        memcpy(copy, blob, blob_len);
    }
    (void)pthread_mutex_lock(&log->lock);
    int status = AG_OK;
    size_t keep = 0;
    if (seq < log->low_water) {
        status = ag_fail(err, AG_ERANGE,
                         "the low-water mark is at %" PRIu64 " and cannot go back to "
                         "%" PRIu64,
                         log->low_water, seq);
    }
    /* The active segment stays in any case: it is the last of the list. */
    while (status == AG_OK && keep + 1 < log->count &&
           log->segments[keep].last_seq <= seq) {
        keep++;
    }
    if (status == AG_OK && keep > 0) {
        status = make_archive(log, err);
    }
    if (status == AG_OK) {
        status = ag_log_write_file_lock_held(log, seq, copy, blob_len, keep, err);
    }
    if (status == AG_OK) {
        ag_free(log->blob);
        log->blob = copy;
        log->blob_len = blob_len;
        log->low_water = seq;
        copy = NULL; /* transferred */
        for (size_t i = 0; i < keep && status == AG_OK; i++) {
            status = move_to_archive(log, log->segments[i].segment_no, err);
        }
        if (keep > 0) {
            log->count -= keep;
            memmove(log->segments, log->segments + keep,
                    log->count * sizeof(*log->segments));
        }
        if (keep > 0 && status == AG_OK) {
            status = sync_archive(log, err);
        }
    }
    (void)pthread_mutex_unlock(&log->lock);
    ag_free(copy);
    return status;
}

int
ag_log_archive(struct ag_log *log, const uint32_t *numbers, size_t count,
               struct ag_error *err)
{
    int status = count > 0 ? make_archive(log, err) : AG_OK;
    for (size_t i = 0; i < count && status == AG_OK; i++) {
        status = move_to_archive(log, numbers[i], err);
    }
    return status == AG_OK && count > 0 ? sync_archive(log, err) : status;
}
