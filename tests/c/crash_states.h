/* What the parts of crash_wal share: a scenario, what every state of it must satisfy,
 * and the states that a crash may leave. */
#ifndef CRASH_STATES_H
#define CRASH_STATES_H

#include <stdbool.h>

#include "memfs.h"
#include "wal/recovery.h"
#include "wal/ring.h"

#define DIR_NAME "L"
#define MAX_SEQ 4000u
#define MAX_PAYLOAD 2600u
#define RING_BYTES (64u * 1024u)

struct scenario {
    uint64_t rng;
    uint64_t seed;
    uint32_t segment_bytes;
    uint32_t tags[MAX_SEQ]; /* which run submitted a sequence number last */
    uint32_t run;
    uint64_t submitted;
    uint8_t ring[RING_BYTES];
    struct ag_ring_view view;
    bool has_ring;
    uint64_t states, limit;
    uint64_t until_ns;
    /* the state where the next run begins, chosen at random among those seen */
    struct memfs next;
    bool has_next;
    uint64_t next_choices;
};

/* The payload that a run submits under a sequence number; at most MAX_PAYLOAD octets.
 */
uint32_t payload_of(uint32_t tag, uint64_t seq, uint8_t *to);
/* Ends the program. */
void fail_state(const struct scenario *s, const char *what, const struct ag_error *err);
/* Recovers `fs` and checks acknowledged <= recovered <= submitted; returns the last. */
uint64_t recover(struct scenario *s, struct memfs *fs, struct ag_wal_recovery *recovery,
                 uint64_t acked);
/* One state: opens it, reads it, and goes on with every eighth; `image` may be changed.
 */
void check_state(struct scenario *s, struct memfs *image, uint64_t acked);

/* Walks through a trace that began on `base`: what is durable, what is pending, and all
 * crashes between. `final_acked` is what was acknowledged at its end. */
void crash_everywhere(struct scenario *s, const struct memfs *base,
                      const struct memfs_trace *trace, uint64_t final_acked);

#endif
