#include "wal/replay.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "hash/crc32c.h"

static int
refuse_gap(const struct ag_log *log, uint64_t last, uint64_t proved,
           struct ag_error *err)
{
    char want[96], have[96];
    (void)snprintf(want, sizeof(want), "records up to at least %" PRIu64, proved);
    (void)snprintf(have, sizeof(have), "the end at %" PRIu64, last);
    ag_fail(err, AG_ECORRUPT,
            "the ring of the last run proves that the log lost acknowledged records");
    ag_error_file(err, log->path, AG_NO_POSITION);
    ag_error_index(err, last + 1);
    ag_error_pair(err, want, have);
    ag_error_advice(err,
                    "Copy the directory and the ring, bring back the lost segment, "
                    "or accept the loss: `aegis-c wal accept-tail DIR`");
    return AG_ECORRUPT;
}

/* Makes room for a record of n octets: flushes the batch, rotates. */
static int
make_room(struct ag_log *log, uint32_t n, struct ag_error *err)
{
    if (ag_log_batch_takes(log, n)) {
        return AG_OK;
    }
    int status = log->nrec > 0 ? ag_log_flush(log, 0, err) : AG_OK;
    if (status == AG_OK && !ag_log_segment_takes(log, n)) {
        int fd = -1;
        status = ag_log_make_segment(log->io, log->dir, log->segment_no + 1,
                                     log->segment_bytes, NULL, &log->direct, &fd, err);
        if (status == AG_OK) {
            status = ag_log_rotate(log, fd, err);
        }
    }
    return status;
}

int
ag_wal_replay_end(const struct ag_ring_view *view, uint32_t segment_bytes,
                  uint64_t last, uint64_t *end, struct ag_error *err)
{
    uint64_t position = view->head, previous = 0;
    struct ag_ring_entry entry;
    uint8_t *payload = ag_alloc(AG_WAL_PAYLOAD_MAX);
    if (payload == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory to read the ring");
    }
    *end = last;
    while (ag_ring_next(view, &position, previous, payload, &entry) == 1 &&
           entry.seq <= *end + 1 && entry.n <= ag_wal_payload_limit(segment_bytes)) {
        previous = entry.seq;
        *end = entry.seq > *end ? entry.seq : *end;
    }
    ag_free(payload);
    return AG_OK;
}

int
ag_wal_replay_ring(struct ag_log *log, const struct ag_ring_view *view,
                   bool loss_accepted, struct ag_wal_replay *result,
                   struct ag_error *err)
{
    uint64_t last = ag_log_last_seq(log);
    uint64_t position = view->head, previous = 0;
    struct ag_ring_entry entry;
    int status = AG_OK;
    result->replayed = 0;
    result->cut = false;
    if (view->durable_seq > last && !loss_accepted) {
        return refuse_gap(log, last, view->durable_seq, err);
    }
    uint8_t *payload = ag_alloc(AG_WAL_PAYLOAD_MAX);
    if (payload == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory to replay the ring");
    }
    for (;;) {
        int got = ag_ring_next(view, &position, previous, payload, &entry);
        if (got <= 0) {
            result->cut = got < 0;
            break;
        }
        previous = entry.seq;
        uint64_t next = last + 1 + result->replayed;
#ifdef AG_MUTANT_REPLAY_TWICE
        entry.seq = next;
        entry.crc = ag_crc32c_mask(ag_wal_record_crc(next, payload, entry.n));
#endif
        if (entry.seq < next) {
            continue; /* already in the log */
        }
        if (entry.seq > next) {
            if (!loss_accepted) {
                status = refuse_gap(log, last, entry.seq - 1, err);
            }
            result->cut = true;
            break;
        }
        if (entry.n > ag_wal_payload_limit(log->segment_bytes)) {
            result->cut = true;
            break;
        }
        status = make_room(log, entry.n, err);
        if (status != AG_OK) {
            break;
        }
        ag_log_add(log, payload, entry.n, entry.crc);
        result->replayed++;
    }
    if (status == AG_OK && log->nrec > 0) {
        status = ag_log_flush(log, 0, err);
    }
    ag_free(payload);
    return status;
}
