#include "wal/scan.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "hash/crc32c.h"

#define SALVAGE_ADVICE                                                                 \
    "Nothing was changed. Copy the directory, then run `aegis-c wal verify DIR` and "  \
    "`aegis-c wal salvage DIR --to NEW`"

struct ag_wal_position
ag_wal_position_start(const struct ag_wal_segment_header *header)
{
    struct ag_wal_position position = {
        .wal_id = header->wal_id,
        .segment_no = header->segment_no,
        .epoch = header->epoch,
        .at = AG_WAL_BLOCK,
        .next_seq = header->first_seq,
        .crc = header->crc,
    };
    return position;
}

static int
refuse(struct ag_error *err, int status, const char *file,
       const struct ag_wal_position *position, const char *what, const char *name,
       uint64_t expected, uint64_t found)
{
    char want[96], have[96];
    (void)snprintf(want, sizeof(want), "%s %" PRIu64, name, expected);
    (void)snprintf(have, sizeof(have), "%" PRIu64, found);
    ag_fail(err, status, "%s", what);
    ag_error_file(err, file, position->at);
    ag_error_index(err, position->next_seq);
    ag_error_pair(err, want, have);
    ag_error_advice(err, SALVAGE_ADVICE);
    return status;
}

/* An intact header that is not the one that belongs here. */
static int
check_identity(const struct ag_wal_batch_header *header,
               const struct ag_wal_position *position, uint64_t left, const char *file,
               struct ag_error *err)
{
#define REFUSE_UNLESS(field, value, status, what)                                      \
    if (header->field != (value)) {                                                    \
        return refuse(err, status, file, position, what, #field, value,                \
                      header->field);                                                  \
    }
    REFUSE_UNLESS(wal_id, position->wal_id, AG_EFOREIGN, "a batch of another log")
    REFUSE_UNLESS(segment_no, position->segment_no, AG_ECORRUPT,
                  "a batch of another segment")
    REFUSE_UNLESS(block_no, position->at / AG_WAL_BLOCK, AG_ECORRUPT,
                  "a batch that was written for another place")
    REFUSE_UNLESS(epoch, position->epoch, AG_ECORRUPT, "a batch of another writer")
    REFUSE_UNLESS(first_seq, position->next_seq, AG_ECORRUPT,
                  "a batch is missing or repeated")
#ifndef AG_MUTANT_IGNORE_CHAIN
    REFUSE_UNLESS(prev_crc, position->crc, AG_ECORRUPT,
                  "a batch that continues another history (restored backup, fork)")
#endif
#undef REFUSE_UNLESS
    if (header->durable_seq >= header->first_seq) {
        return refuse(err, AG_ECORRUPT, file, position,
                      "a batch that calls itself durable before it was written",
                      "durable_seq below", header->first_seq, header->durable_seq);
    }
    bool marker = (header->flags & (AG_BATCH_MARKER | AG_BATCH_SEAL)) != 0;
    if (ag_wal_extent(header->body_len) > left ||
        (header->nrec == 0) != (header->body_len == 0) ||
        (header->nrec == 0) != marker || header->nrec > header->body_len / 16u) {
        return refuse(err, AG_ECORRUPT, file, position,
                      "a batch header whose counts cannot be", "body_len for nrec",
                      header->nrec, header->body_len);
    }
    return AG_OK;
}

int
ag_wal_step(const uint8_t *batch, uint64_t left, struct ag_wal_position *position,
            struct ag_wal_batch_header *header, enum ag_wal_stop *stop,
            const char *file, struct ag_error *err)
{
    *stop = AG_STOP_NONE;
    if (left < AG_WAL_BLOCK) {
        *stop = AG_STOP_END;
        return 0;
    }
    switch (ag_wal_decode_batch(batch, header)) {
    case AG_READ_ZERO:
        *stop = AG_STOP_ZERO_HEADER;
        return 0;
    case AG_READ_BAD:
        *stop = AG_STOP_BAD_HEADER;
        return 0;
    case AG_READ_VERSION:
        return refuse(err, AG_EVERSION, file, position, "a batch of another version",
                      "version", AG_WAL_VERSION, batch[4]);
    case AG_READ_OK:
        break;
    }
#ifndef AG_MUTANT_TRUST_LENGTH
    int status = check_identity(header, position, left, file, err);
    if (status != AG_OK) {
        return status;
    }
    if (!ag_wal_batch_body_ok(header, batch)) {
        *stop = AG_STOP_BAD_BODY;
        return 0;
    }
#else
    (void)check_identity;
#endif
    position->at += ag_wal_extent(header->body_len);
    position->next_seq += header->nrec;
    position->crc = header->crc;
    position->sealed = (header->flags & AG_BATCH_SEAL) != 0;
    position->clean = (header->flags & AG_BATCH_CLEAN) != 0;
    return 1;
}

uint64_t
ag_wal_find_batch(const uint8_t *bytes, size_t n, uint64_t from, uint64_t wal_id,
                  uint32_t segment_no, uint64_t after_seq,
                  struct ag_wal_batch_header *header)
{
    for (uint64_t at = from; at + AG_WAL_BLOCK <= n; at += AG_WAL_BLOCK) {
        if (ag_wal_decode_batch(bytes + at, header) == AG_READ_OK &&
            header->wal_id == wal_id && header->segment_no == segment_no &&
            header->block_no == at / AG_WAL_BLOCK && header->first_seq >= after_seq) {
            return at;
        }
    }
    return 0;
}

static bool
has_zero_sector(const uint8_t *bytes, size_t n)
{
    for (size_t at = 0; at < n; at += AG_WAL_SECTOR) {
        if (ag_wal_is_zero(bytes + at, AG_WAL_SECTOR)) {
            return true;
        }
    }
    return false;
}

/* A write cut short inside the last 8 bytes, which are padding: completed, the body has
 * its CRC. (Cut before them, they are all zero.) */
static bool
lacks_padding(const struct ag_wal_batch_header *header, const uint8_t *batch,
              size_t extent)
{
    uint8_t padding[8];
    const uint8_t *last = batch + extent - 8;
    ag_put_u64le(padding, header->whitening != 0
                              ? ~ag_wal_whitening_word(header->whitening)
                              : UINT64_MAX);
    size_t n = 0;
    while (n < 8 && last[n] == padding[n]) {
        n++;
    }
    uint32_t crc = ag_crc32c(0, batch + AG_WAL_HEADER, extent - AG_WAL_HEADER - 8);
    return n < 8 && ag_wal_is_zero(last + n, 8 - n) &&
           ag_crc32c(crc, padding, 8) == header->body_crc;
}

static int
refuse_tail(struct ag_error *err, const struct ag_wal_expect *expect,
            const struct ag_wal_position *end, const char *what, const char *expected,
            const char *found)
{
    ag_fail(err, AG_ECORRUPT, "%s", what);
    ag_error_file(err, expect->file, end->at);
    ag_error_index(err, end->next_seq);
    ag_error_pair(err, expected, found);
    ag_error_advice(
        err,
        "Nothing was changed. Run `aegis-c wal verify DIR`; to go on without "
        "what follows: `aegis-c wal accept-tail DIR --at %" PRIu64
        " --expect-seq %" PRIu64 "`",
        end->at, end->next_seq - 1);
    return AG_ECORRUPT;
}

/* Damage in the last segment at scan->end: is it an unfinished write? */
static int
judge_tail(const uint8_t *bytes, size_t n, const struct ag_wal_expect *expect,
           enum ag_wal_stop stop, const struct ag_wal_batch_header *header,
           struct ag_wal_segment_scan *scan, struct ag_error *err)
{
    const struct ag_wal_position *end = &scan->end;
    const uint8_t *tail = bytes + end->at;
    size_t left = n - end->at;
    size_t extent =
        stop == AG_STOP_BAD_BODY ? ag_wal_extent(header->body_len) : AG_WAL_BLOCK;
    struct ag_wal_batch_header later;
    uint64_t next = ag_wal_find_batch(bytes, n, end->at + extent, end->wal_id,
                                      end->segment_no, end->next_seq, &later);
    if (next != 0) {
        char found[96];
        (void)snprintf(found, sizeof(found),
                       "at byte %" PRIu64 " a batch from sequence %" PRIu64, next,
                       later.first_seq);
        return refuse_tail(err, expect, end,
                           "damage in the middle of the log: a later batch proves that "
                           "this one was durable",
                           "an intact batch", found);
    }
    if (stop == AG_STOP_BAD_BODY) {
        if (!ag_wal_is_zero(tail + extent, left - extent)) {
            return refuse_tail(err, expect, end, "data behind a damaged batch",
                               "zeros behind it", "other bytes");
        }
        if (has_zero_sector(tail, extent) || ag_wal_is_zero(tail + extent - 8, 8) ||
            lacks_padding(header, tail, extent)) {
            return AG_OK;
        }
        return refuse_tail(
            err, expect, end, "the last batch is completely written but damaged",
            "body with its CRC-32C", "another CRC and no unwritten sector");
    }
    if (ag_wal_is_zero(tail + AG_WAL_HEADER, left - AG_WAL_HEADER)) {
        return AG_OK;
    }
    size_t longest = left < AG_WAL_EXTENT_MAX ? left : AG_WAL_EXTENT_MAX;
    if (ag_wal_is_zero(tail, AG_WAL_SECTOR) &&
        ag_wal_is_zero(tail + longest, left - longest)) {
        return AG_OK;
    }
    return refuse_tail(err, expect, end,
                       "a damaged batch header that no unfinished write leaves behind",
                       "a batch header or an unwritten sector", "other bytes");
}

/* The walk stopped before the end that the successor's header certifies. */
static int
refuse_certified(struct ag_error *err, const struct ag_wal_expect *expect,
                 const struct ag_wal_position *end)
{
    char want[96], have[96];
    (void)snprintf(want, sizeof(want), "intact batches up to byte %" PRIu64,
                   expect->certified);
    (void)snprintf(have, sizeof(have), "damage at byte %" PRIu64, end->at);
    ag_fail(err, AG_ECORRUPT, "damage before the end that the next segment certifies");
    ag_error_file(err, expect->file, end->at);
    ag_error_index(err, end->next_seq);
    ag_error_pair(err, want, have);
    ag_error_advice(err, SALVAGE_ADVICE);
    return AG_ECORRUPT;
}

int
ag_wal_scan_segment(const uint8_t *bytes, size_t n, const struct ag_wal_expect *expect,
                    struct ag_wal_segment_scan *scan, struct ag_error *err)
{
    struct ag_wal_batch_header header;
    enum ag_wal_stop stop = AG_STOP_NONE;
    scan->end = ag_wal_position_start(&scan->header);
    scan->how = AG_END_CLEAN;
    scan->accepted = false;
    scan->batches = 0;
    scan->records = 0;
    scan->durable_seq = 0;
    for (;;) {
        if (expect->certified != 0 && scan->end.at >= expect->certified) {
            scan->how = AG_END_CERTIFIED;
            return scan->end.at == expect->certified
                       ? AG_OK
                       : refuse_certified(err, expect, &scan->end);
        }
        if (scan->end.sealed) {
            break;
        }
        int got = ag_wal_step(bytes + scan->end.at, n - scan->end.at, &scan->end,
                              &header, &stop, expect->file, err);
        if (got <= 0) {
            bool ordered = expect->accept_at != 0 && expect->certified == 0 &&
                           expect->accept_at == scan->end.at &&
                           expect->accept_seq == scan->end.next_seq - 1;
            if (ordered) {
                scan->how = AG_END_TORN;
                scan->accepted = true;
                return AG_OK;
            }
            if (got < 0) {
                return got;
            }
            break;
        }
        scan->batches++;
        scan->records += header.nrec;
        if (header.durable_seq > scan->durable_seq) {
            scan->durable_seq = header.durable_seq;
        }
    }
    if (expect->certified != 0) {
        return refuse_certified(err, expect, &scan->end);
    }
    if (stop == AG_STOP_END || ag_wal_is_zero(bytes + scan->end.at, n - scan->end.at)) {
        scan->how = scan->end.sealed ? AG_END_SEALED : AG_END_CLEAN;
        return AG_OK;
    }
    if (scan->end.sealed) {
        return refuse_tail(err, expect, &scan->end, "data behind the seal of a segment",
                           "zeros", "other bytes");
    }
    int status = judge_tail(bytes, n, expect, stop, &header, scan, err);
    if (status == AG_OK) {
        scan->how = AG_END_TORN;
    }
    return status;
}
