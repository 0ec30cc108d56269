#include "wal/recovery.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "wal/source.h"

/* Segments below this size are not worth a second thread. */
#define PREFETCH_MIN (1u << 20)
/* A spare is read in pieces of this size: fast enough for a disk, and few new pages. */
#define SPARE_PIECE (512u << 10)

void
ag_wal_note(struct ag_wal_recovery *recovery, const char *format, ...)
{
    size_t used = strlen(recovery->notes);
    size_t left = sizeof(recovery->notes) - used;
    va_list args;
    va_start(args, format);
    int n = vsnprintf(recovery->notes + used, left, format, args);
    va_end(args);
    if (n < 0 || (size_t)n + 2 > left) {
        recovery->notes[used] = '\0';
        return;
    }
    recovery->notes[used + (size_t)n] = '\n';
    recovery->notes[used + (size_t)n + 1] = '\0';
}

void
ag_wal_recovery_free(struct ag_wal_recovery *recovery)
{
    ag_free(recovery->log_bytes);
    ag_free(recovery->segments);
    ag_free(recovery->leftovers);
    recovery->log_bytes = NULL;
    recovery->segments = NULL;
    recovery->leftovers = NULL;
}

static int
read_log_file(const struct ag_io *io, const char *dir, struct ag_wal_recovery *recovery,
              struct ag_error *err)
{
    char path[AG_WAL_PATH];
    size_t n = 0;
    int status = ag_wal_path(path, dir, "LOG", err);
    if (status != AG_OK) {
        return status;
    }
    status = ag_io_read_file(io, path, AG_WAL_HEADER + AG_WAL_BLOB_MAX,
                             &recovery->log_bytes, &n, err);
    if (status == AG_ENOTFOUND) {
        recovery->fresh = true;
        return AG_OK;
    }
    if (status != AG_OK) {
        return status;
    }
    status = ag_wal_decode_log(recovery->log_bytes, n, &recovery->log);
    if (status != AG_OK) {
        ag_fail(err, status, "LOG cannot be read: %s", ag_status_text(status));
        ag_error_file(err, path, 0);
        ag_error_pair(err, "an intact LOG file of version 1", "other bytes");
        ag_error_advice(err, "Nothing was changed. Bring LOG back from a copy, or run "
                             "`aegis-c wal salvage DIR --to NEW`");
    }
    return status;
}

static int
refuse_segment(struct ag_error *err, int status, const char *dir, uint32_t number,
               uint64_t seq, const char *what, const char *expected, const char *found)
{
    char path[AG_WAL_PATH];
    ag_fail(err, status, "%s", what);
    if (ag_wal_segment_path(path, dir, number, NULL) == AG_OK) {
        ag_error_file(err, path, 0);
    }
    ag_error_index(err, seq);
    ag_error_pair(err, expected, found);
    ag_error_advice(err, "Nothing was changed. Copy the directory, bring back what is "
                         "missing, or run `aegis-c wal salvage DIR --to NEW`");
    return status;
}

/* Without LOG there may be nothing but the remains of a creation cut short: segment 1,
 * without any batch. */
static int
check_fresh(const struct ag_io *io, const char *dir, const struct ag_wal_names *names,
            struct ag_error *err)
{
    if (names->count == 0) {
        return AG_OK;
    }
    if (names->count == 1 && names->numbers[0] == 1) {
        char path[AG_WAL_PATH];
        uint8_t *bytes = NULL;
        size_t n = 0;
        int status = ag_wal_segment_path(path, dir, 1, err);
        if (status == AG_OK) {
            status = ag_io_read_file(io, path, AG_WAL_SEGMENT_MAX, &bytes, &n, err);
        }
        if (status != AG_OK) {
            return status;
        }
        bool empty = ag_wal_is_zero(bytes, n);
        ag_free(bytes);
        if (empty) {
            return AG_OK;
        }
    }
    return refuse_segment(err, AG_ECORRUPT, dir, names->numbers[0], AG_NO_POSITION,
                          "segments without a LOG file", "LOG", "none");
}

static int
check_header(const struct ag_wal_recovery *recovery, const char *dir, uint32_t number,
             const struct ag_wal_segment_header *header,
             const struct ag_wal_segment_info *before, struct ag_error *err)
{
    uint64_t first = recovery->log.first_seq;
    char want[96], have[96];
    if (header->wal_id != recovery->log.wal_id) {
        (void)snprintf(want, sizeof(want), "wal_id %016" PRIx64, recovery->log.wal_id);
        (void)snprintf(have, sizeof(have), "%016" PRIx64, header->wal_id);
        return refuse_segment(err, AG_EFOREIGN, dir, number, header->first_seq,
                              "a segment of another log", want, have);
    }
    if (header->segment_no != number) {
        (void)snprintf(want, sizeof(want), "segment %" PRIu32, number);
        (void)snprintf(have, sizeof(have), "segment %" PRIu32, header->segment_no);
        return refuse_segment(err, AG_ECORRUPT, dir, number, header->first_seq,
                              "a segment under another segment's name", want, have);
    }
    if (before == NULL) {
        /* The first live one: LOG says what it continues. */
        (void)snprintf(want, sizeof(want), "sequence %" PRIu64 ", chain %08" PRIx32,
                       first, recovery->log.prev_crc);
        (void)snprintf(have, sizeof(have), "sequence %" PRIu64 ", chain %08" PRIx32,
                       header->first_seq, header->prev_crc);
        if (header->first_seq != first || header->prev_crc != recovery->log.prev_crc ||
            header->prev_last_seq != first - 1) {
            return refuse_segment(err, AG_ECORRUPT, dir, number, header->first_seq,
                                  "the first segment is not the one that LOG names",
                                  want, have);
        }
        return AG_OK;
    }
    (void)snprintf(want, sizeof(want),
                   "predecessor of %" PRIu64 " bytes, sequence %" PRIu64
                   ", chain %08" PRIx32,
                   before->valid_len, before->last_seq, before->last_crc);
    (void)snprintf(have, sizeof(have),
                   "%" PRIu64 " bytes, sequence %" PRIu64 ", chain %08" PRIx32,
                   header->prev_valid_len, header->prev_last_seq, header->prev_crc);
    bool continues = header->prev_valid_len == before->valid_len &&
                     header->prev_last_seq == before->last_seq &&
                     header->first_seq == before->last_seq + 1 &&
                     header->epoch >= before->epoch;
#ifndef AG_MUTANT_IGNORE_CHAIN
    continues = continues && header->prev_crc == before->last_crc;
#endif
    return continues
               ? AG_OK
               : refuse_segment(err, AG_ECORRUPT, dir, number, header->first_seq,
                                "a segment that does not continue the one before it",
                                want, have);
}

/* What recovery knows of each file before the bodies are read. */
struct live {
    uint32_t number;
    enum ag_wal_read read;
    struct ag_wal_segment_header header;
};

static int
refuse_header(struct ag_error *err, const char *dir, const struct live *live)
{
    return refuse_segment(err, AG_ECORRUPT, dir, live->number, AG_NO_POSITION,
                          "the header of a segment with content is damaged",
                          "an intact header",
                          live->read == AG_READ_ZERO ? "zeros" : "other bytes");
}

/* Reads block 0 of every live file and decides which are active; the last file may be a
 * spare: whether the rest of it is zero, `rest` is then asked to find out. */
static int
read_headers(const struct ag_io *io, const char *dir, bool read_only, uint8_t *buffer,
             struct live *live, size_t count, size_t *active, struct ag_wal_fetch *rest,
             const struct ag_wal_recovery *recovery, struct ag_error *err)
{
    uint32_t bytes = recovery->log.segment_bytes;
    *active = count;
    for (size_t i = 0; i < count; i++) {
        struct ag_wal_source source;
        bool last = i + 1 == count;
        int status =
            ag_wal_source_open(io, dir, live[i].number, bytes, read_only, &source, err);
        if (status != AG_OK) {
            return status;
        }
        status =
            ag_io_read_full(io, source.fd, source.path, buffer, AG_WAL_BLOCK, 0, err);
        if (status == AG_OK) {
            live[i].read = ag_wal_decode_segment(buffer, &live[i].header);
        }
        if (status == AG_OK && last &&
            (live[i].read == AG_READ_ZERO || live[i].read == AG_READ_BAD)) {
            *active = i;
            rest->io = io;
            rest->source = source; /* transferred */
            rest->from = AG_WAL_BLOCK;
            rest->n = bytes - AG_WAL_BLOCK;
            rest->piece = bytes < SPARE_PIECE ? bytes : SPARE_PIECE;
            rest->buffer = ag_wal_buffer(rest->piece);
            if (rest->buffer == NULL) {
                return ag_fail(err, AG_ENOMEM, "no memory to read segments");
            }
            ag_wal_fetch_start(rest, bytes >= PREFETCH_MIN);
            return AG_OK;
        }
        ag_wal_source_close(io, &source);
        if (status != AG_OK) {
            return status;
        }
        if (live[i].read == AG_READ_VERSION) {
            return refuse_segment(err, AG_EVERSION, dir, live[i].number, AG_NO_POSITION,
                                  "a segment of another version", "version 1",
                                  "another");
        }
        if (live[i].read != AG_READ_OK) {
            return refuse_header(err, dir, &live[i]);
        }
    }
    return AG_OK;
}

/* What `rest` has found behind the header of a file that seemed to be the spare. */
static int
check_spare(const char *dir, const struct live *live, struct ag_wal_fetch *rest,
            struct ag_wal_recovery *recovery, struct ag_error *err)
{
    int status = ag_wal_fetch_finish(rest, err);
    if (status == AG_OK && !rest->zero) {
        status = refuse_header(err, dir, live);
    }
    if (status != AG_OK) {
        return status;
    }
    recovery->spare = true;
    recovery->bytes_read += recovery->log.segment_bytes;
    if (live->read == AG_READ_BAD) {
        ag_wal_note(recovery, "segment %" PRIu32 ": activation cut short, empty",
                    live->number);
    }
    return AG_OK;
}

static void
record_scan(struct ag_wal_recovery *recovery, const struct ag_wal_segment_scan *scan)
{
    struct ag_wal_segment_info *info = &recovery->segments[recovery->count++];
    info->segment_no = scan->header.segment_no;
    info->epoch = scan->header.epoch;
    info->first_seq = scan->header.first_seq;
    info->last_seq = scan->end.next_seq - 1;
    info->valid_len = scan->end.at;
    info->prev_crc = scan->header.prev_crc;
    info->last_crc = scan->end.crc;
    recovery->last_seq = info->last_seq;
    recovery->records += scan->records;
    recovery->clean_close = scan->end.clean;
    recovery->torn = scan->how == AG_END_TORN;
    recovery->accepted = scan->accepted;
    if (scan->header.epoch > recovery->epoch) {
        recovery->epoch = scan->header.epoch;
    }
    if (scan->durable_seq > recovery->durable_seq) {
        recovery->durable_seq = scan->durable_seq;
    }
}

/* Scans the active segments in order, reading the next one meanwhile. */
static int
scan_all(const struct ag_io *io, const char *dir,
         const struct ag_wal_recover_options *options, struct live *live, size_t active,
         uint8_t *buffers[2], struct ag_wal_recovery *recovery,
         struct ag_wal_segment_scan *scan, struct ag_error *err)
{
    uint32_t bytes = recovery->log.segment_bytes;
    bool threaded = active > 1 && bytes >= PREFETCH_MIN;
    struct ag_wal_fetch *fetches = ag_calloc(2, sizeof(*fetches));
    int status = AG_OK;
    if (fetches == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory to read segments");
    }
    fetches[0].source.fd = fetches[1].source.fd = -1;
    for (size_t i = 0; i <= active && status == AG_OK; i++) {
        struct ag_wal_fetch *ahead = &fetches[i % 2];
        if (i < active) {
            bool last = i + 1 == active;
            uint64_t certified = last ? bytes : live[i + 1].header.prev_valid_len;
            if (certified < AG_WAL_BLOCK || certified > bytes ||
                certified % AG_WAL_BLOCK != 0) {
                status = refuse_segment(err, AG_ECORRUPT, dir, live[i + 1].number,
                                        live[i + 1].header.first_seq,
                                        "a header certifies an impossible length",
                                        "a multiple of 4096 inside the segment",
                                        "another length");
                break;
            }
            status = ag_wal_source_open(io, dir, live[i].number, bytes, true,
                                        &ahead->source, err);
            if (status != AG_OK) {
                break;
            }
            ahead->io = io;
            ahead->buffer = buffers[i % 2];
            ahead->n = (size_t)certified;
            ag_wal_fetch_start(ahead, threaded);
            recovery->bytes_read += certified;
        }
        if (i == 0) {
            continue;
        }
        struct ag_wal_fetch *now = &fetches[(i - 1) % 2];
        bool last = i == active;
        status = ag_wal_fetch_finish(now, err);
        if (status != AG_OK) {
            break;
        }
        struct ag_wal_expect expect = {
            .file = now->source.path,
            .certified = last ? 0 : live[i].header.prev_valid_len,
            .accept_at = last ? options->accept_at : 0,
            .accept_seq = last ? options->accept_seq : 0,
        };
        const struct ag_wal_segment_info *before =
            recovery->count > 0 ? &recovery->segments[recovery->count - 1] : NULL;
        scan->header = live[i - 1].header;
        status =
            check_header(recovery, dir, live[i - 1].number, &scan->header, before, err);
        if (status == AG_OK) {
            status = ag_wal_scan_segment(now->buffer, now->n, &expect, scan, err);
        }
        if (status == AG_OK && scan->how == AG_END_TORN) {
            /* A bad read is not a torn write: look again before believing it. */
            uint64_t at = scan->end.at;
            ag_wal_fetch_start(now, false);
            status = ag_wal_fetch_finish(now, err);
            if (status == AG_OK) {
                status = ag_wal_scan_segment(now->buffer, now->n, &expect, scan, err);
            }
            if (status == AG_OK && scan->end.at != at) {
                status = refuse_segment(
                    err, AG_EIO, dir, live[i - 1].number, scan->end.next_seq,
                    "two reads of the tail differ", "one content", "two");
            }
        }
        if (status == AG_OK) {
            record_scan(recovery, scan);
        }
        ag_wal_source_close(io, &now->source);
    }
    for (int k = 0; k < 2; k++) {
        (void)ag_wal_fetch_finish(&fetches[k], NULL);
        ag_wal_source_close(io, &fetches[k].source);
    }
    ag_free(fetches);
    return status;
}

/* The demands that concern the end of the whole log. */
static int
check_end(const char *dir, size_t count, size_t active,
          const struct ag_wal_segment_scan *scan, struct ag_wal_recovery *recovery,
          struct ag_error *err)
{
    char want[96], have[96];
    uint32_t last_active = active > 0 ? recovery->segments[active - 1].segment_no
                                      : recovery->log.first_live - 1;
    if (recovery->log.opened > last_active) {
        (void)snprintf(want, sizeof(want),
                       "segment %" PRIu32 ", activated by the last run",
                       recovery->log.opened);
        (void)snprintf(have, sizeof(have), "the last one is %" PRIu32, last_active);
        return refuse_segment(err, AG_ECORRUPT, dir, recovery->log.opened,
                              recovery->last_seq + 1,
                              "the last segments of the log are missing", want, have);
    }
    if (active > 0 && scan->how == AG_END_SEALED && count == active) {
        return refuse_segment(
            err, AG_ECORRUPT, dir, last_active + 1, recovery->last_seq + 1,
            "the segment behind a sealed one is missing", "its successor", "no file");
    }
    if (recovery->log.low_water > recovery->last_seq) {
        (void)snprintf(want, sizeof(want), "at least sequence %" PRIu64,
                       recovery->log.low_water);
        (void)snprintf(have, sizeof(have), "the end at %" PRIu64, recovery->last_seq);
        return refuse_segment(err, AG_ECORRUPT, dir, last_active, recovery->last_seq,
                              "the log ends before its own low-water mark", want, have);
    }
    return AG_OK;
}

int
ag_wal_recover(const struct ag_io *io, const char *dir,
               const struct ag_wal_recover_options *options,
               struct ag_wal_recovery *recovery, struct ag_error *err)
{
    struct ag_wal_names names = {0};
    struct live *live = NULL;
    uint8_t *buffers[2] = {NULL, NULL};
    struct ag_wal_fetch *spare = NULL;
    struct ag_wal_segment_scan scan;
    memset(&scan, 0, sizeof(scan));
    memset(recovery, 0, sizeof(*recovery));
    recovery->next_no = 1;
    int status = read_log_file(io, dir, recovery, err);
    if (status == AG_OK) {
        status = ag_wal_list_segments(io, dir, recovery->fresh, &names, err);
    }
    if (status != AG_OK || recovery->fresh) {
        if (status == AG_OK) {
            status = check_fresh(io, dir, &names, err);
        }
        ag_free(names.numbers);
        return status;
    }
    recovery->last_seq = recovery->log.first_seq - 1;
    recovery->epoch = recovery->log.epoch;
    size_t below = 0;
    while (below < names.count && names.numbers[below] < recovery->log.first_live) {
        below++;
    }
    size_t count = names.count - below, active = 0;
    live = ag_calloc(count, sizeof(*live));
    recovery->segments = ag_calloc(count, sizeof(*recovery->segments));
    recovery->leftovers = ag_calloc(below, sizeof(*recovery->leftovers));
    spare = ag_calloc(1, sizeof(*spare));
    buffers[0] = ag_wal_buffer(recovery->log.segment_bytes);
    buffers[1] = count > 1 ? ag_wal_buffer(recovery->log.segment_bytes) : buffers[0];
    if (live == NULL || recovery->segments == NULL || recovery->leftovers == NULL ||
        spare == NULL || buffers[0] == NULL || buffers[1] == NULL) {
        status = ag_fail(err, AG_ENOMEM, "no memory to read segments");
        goto exit;
    }
    spare->source.fd = -1;
    for (size_t i = 0; i < below; i++) {
        recovery->leftovers[recovery->leftover_count++] = names.numbers[i];
    }
    for (size_t i = 0; i < count; i++) {
        uint32_t wanted = recovery->log.first_live + (uint32_t)i;
        live[i].number = names.numbers[below + i];
        if (live[i].number != wanted) {
            status = refuse_segment(err, AG_ECORRUPT, dir, wanted, AG_NO_POSITION,
                                    "a segment is missing", "its file", "no file");
            goto exit;
        }
    }
    if (count == 0) {
        status = refuse_segment(err, AG_ECORRUPT, dir, recovery->log.first_live,
                                AG_NO_POSITION, "LOG names segments that are missing",
                                "its file", "no file");
        goto exit;
    }
    status = read_headers(io, dir, options->read_only, buffers[0], live, count, &active,
                          spare, recovery, err);
    if (status == AG_OK) {
        status =
            scan_all(io, dir, options, live, active, buffers, recovery, &scan, err);
    }
    if (status == AG_OK && active < count) {
        status = check_spare(dir, &live[active], spare, recovery, err);
    }
    if (status == AG_OK) {
        status = check_end(dir, count, active, &scan, recovery, err);
    }
    if (status != AG_OK) {
        goto exit;
    }
    recovery->next_no = recovery->log.first_live + (uint32_t)active;
    if (recovery->torn) {
        ag_wal_note(recovery,
                    "segment %" PRIu32 ": %s behind byte %" PRIu64 ", sequence %" PRIu64
                    " left out",
                    recovery->next_no - 1,
                    recovery->accepted ? "by order, everything" : "an unfinished write",
                    scan.end.at, scan.end.next_seq);
    }
    if (options->accept_at != 0 && !recovery->accepted) {
        status = refuse_segment(
            err, AG_EINVAL, dir, recovery->next_no - 1, recovery->last_seq,
            "the order to accept the tail does not fit this log",
            "the offset and sequence that `wal verify` names", "others");
        goto exit;
    }
    ag_wal_note(recovery,
                "%zu live segments, %" PRIu64 " records, the last sequence is %" PRIu64
                "%s",
                active, recovery->records, recovery->last_seq,
                recovery->clean_close ? ", closed cleanly" : "");
exit:
    if (spare != NULL) {
        (void)ag_wal_fetch_finish(spare, NULL);
        ag_wal_source_close(io, &spare->source);
        ag_wal_buffer_free(spare->buffer);
        ag_free(spare);
    }
    if (buffers[1] != buffers[0]) {
        ag_wal_buffer_free(buffers[1]);
    }
    ag_wal_buffer_free(buffers[0]);
    ag_free(live);
    ag_free(names.numbers);
    return status;
}
