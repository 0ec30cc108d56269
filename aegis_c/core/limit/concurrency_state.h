/* The inside of a concurrency limiter, shared by concurrency*.c only: rows and handles
 * in concurrency_rows.c, slots, leases and entering in concurrency.c. */
#ifndef AG_LIMIT_CONCURRENCY_STATE_H
#define AG_LIMIT_CONCURRENCY_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "limit/concurrency.h"

/* As in slot.h. */
#ifndef AG_STEP
#define AG_STEP() ((void)0)
#endif

#define AG_CONCURRENCY_BUCKET 8u

enum counter { COUNT_FULL, COUNT_REAPED, COUNT_ROWS, COUNT_LAST_REAP };

/* The body: a line per row, the tag words, the cells. */
struct row {
    _Alignas(64) _Atomic uint32_t in_use; /* by its holder, or a dead one */
};

struct lease {
    uint32_t slot;
    uint32_t generation; /* of this record; odd while the lease is in force */
    uint32_t next_free;
};

struct ag_concurrency {
    struct row *rows;       /* in the area, like the next two */
    _Atomic uint64_t *tags; /* items */
    uint8_t *cells;         /* items x stride octets */
    size_t stride;
    uint64_t items, buckets;
    uint32_t workers;
    const struct ag_io *io;
    struct ag_area area;
    _Atomic int row;      /* own; -1: none yet in this process */
    pthread_mutex_t lock; /* of what follows; a leaf */
    struct lease *leases; /* owned */
    uint32_t lease_count, lease_room,
        first_free;                         /* first_free: index + 1, 0 for none */
    struct ag_concurrency *next, *previous; /* of all handles of this process */
};

static inline _Atomic uint16_t *
cell_of(const struct ag_concurrency *c, uint64_t slot, uint32_t row)
{
    return (_Atomic uint16_t *)(void *)(c->cells + slot * c->stride +
                                        row * sizeof(uint16_t));
}

static inline _Atomic uint64_t *
counter_of(const struct ag_concurrency *c, enum counter which)
{
    return &c->area.header->counters[which];
}

/* A row for a handle that has none yet. Clears what a dead holder left in it. AG_EFULL;
 * AG_EFORKED. */
int ag_concurrency_claim_row_lock_held(struct ag_concurrency *c, struct ag_error *err);

#endif
