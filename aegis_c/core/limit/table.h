/* The table of rate limits: every key's level, exact for all threads and processes that
 * share the memory, and after the death of any of them at any instruction.
 *
 * Buckets of 8 slots {tag, TAT} (slot.h); a tag is a keyed hash and has two buckets, so
 * that a table can be filled to four fifths and more before an insert finds no place.
 * A slot whose TAT has passed equals a key never seen: an insert may take it, nothing
 * ever sweeps. Every change is one swap, so there is no state that a death can break:
 *
 *   charge    {tag, TAT}  -> {tag, later TAT}
 *   insert    {old, TAT <= now} -> {tag | 1, nonce} -> {tag, TAT}
 *
 * Two inserters of one key could take two slots and then charge apart. So an insert
 * first takes a slot as a claim (lowest bit of the tag set, in place of the TAT a
 * moment just ahead with a nonce that tells claims apart), looks through both buckets
 * again, and only then makes it a key. It gives way to a key it finds, or to a claim in
 * an earlier slot, and removes claims in later ones. Of two claims the later one sees
 * the earlier, hence at most one becomes a key: a tag never has two slots, and a charge
 * is one swap on one slot. A claim charges nothing; whoever meets the claim of a dead
 * inserter removes it, and it lapses by itself.
 *
 * Both buckets full of live keys: the charge is refused and counted, never guessed.
 *
 * Thread rule: any thread, any process; nothing here waits, except on the mutexes of
 * CPUs without the instruction. After fork the child uses the same memory. */
#ifndef AG_LIMIT_TABLE_H
#define AG_LIMIT_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "limit/area.h"

struct ag_table;

struct ag_table_options {
    const char *path; /* NULL: anonymous memory of this process and its children */
    uint64_t
        slots; /* rounded up to a multiple of 8, at least 16; a file keeps its own */
    enum ag_sync sync;
    const struct ag_io *io;      /* NULL: the real one */
    const struct ag_moment *now; /* NULL: now */
    uint64_t (*clock)(void);     /* NULL: ag_boottime_ns; used where a call needs a
                                    second look at the time */
};

/* Statuses of ag_area_open; AG_EINVAL for an impossible geometry, or for AG_SYNC_CAS on
 * a CPU without the instruction. */
int ag_table_open(const struct ag_table_options *options, struct ag_table **table,
                  struct ag_error *err);
void ag_table_close(struct ag_table *table); /* NULL is allowed */

/* What a charge met. Levels and times in nanoseconds. */
struct ag_charge {
    bool allowed;
    bool full;      /* refused because no slot was free */
    uint64_t level; /* after the charge; without it when refused */
    uint64_t wait;  /* until it could pass; 0 when allowed */
    uint64_t at;    /* when it was made: `now`, or later for a new key */
};

/* Charges `increment` when level + need <= tolerance. An increment of 0 writes
 * nothing. `tag` comes from ag_table_tag. */
void ag_table_charge(struct ag_table *table, uint64_t tag, uint64_t need,
                     uint64_t increment, uint64_t tolerance, uint64_t now,
                     struct ag_charge *charge);
/* Takes back `amount`, of a charge of the same tag at most. */
void ag_table_refund(struct ag_table *table, uint64_t tag, uint64_t amount);
/* Charges whatever the level is; false (and counted) when no slot was free. */
bool ag_table_debt(struct ag_table *table, uint64_t tag, uint64_t amount, uint64_t now);

/* A hash as a tag; and a hint that its buckets will be needed. */
static inline uint64_t
ag_table_tag(uint64_t hash)
{
    return hash < 2 ? 2 : hash & ~UINT64_C(1);
}
void ag_table_prefetch(const struct ag_table *table, uint64_t tag);

struct ag_siphash_key ag_table_key(const struct ag_table *table);
uint64_t ag_table_clock(const struct ag_table *table);
const char *ag_table_path(const struct ag_table *table); /* "" when anonymous */

struct ag_table_stats {
    uint64_t slots, live; /* live: level above 0 at `now`; reads the whole table */
    uint64_t bytes;
    uint64_t full;       /* charges refused because no slot was free */
    uint64_t debts_lost; /* debts not written because no slot was free */
    bool cas;            /* false: mutexes */
};
void ag_table_stats(struct ag_table *table, uint64_t now, struct ag_table_stats *stats);

#endif
