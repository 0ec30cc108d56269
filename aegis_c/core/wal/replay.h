/* Carries what a ring holds beyond the end of the log into the log, exactly once and in
 * order. A record counts as new by its sequence number alone, so a replay that is
 * itself cut short is simply done again. */
#ifndef AG_WAL_REPLAY_H
#define AG_WAL_REPLAY_H

#include "wal/ring.h"
#include "wal/segment.h"

struct ag_wal_replay {
    uint64_t replayed;
    bool cut; /* behind the last whole record lay something that is none */
};

/* The last sequence number of a log that ends at `last` once the ring was replayed.
 * Writes nothing. AG_ENOMEM. */
int ag_wal_replay_end(const struct ag_ring_view *view, uint32_t segment_bytes,
                      uint64_t last, uint64_t *end, struct ag_error *err);

/* Appends to `log`, rotating as needed, and syncs. Refuses with AG_ECORRUPT when the
 * ring proves that the log lost acknowledged records (not with `loss_accepted`: then
 * nothing is replayed across the gap). After a failure nothing may be dropped: do it
 * again with the same ring. */
int ag_wal_replay_ring(struct ag_log *log, const struct ag_ring_view *view,
                       bool loss_accepted, struct ag_wal_replay *result,
                       struct ag_error *err);

#endif
