/* Caps on what is in flight, across processes, that no death can leak.
 *
 * There is no global counter: between its two writes a death would lose a unit. A key's
 * slot has a 16-bit cell per worker; entering raises the own cell, sums all cells of
 * the key, and lowers the own cell again when the sum is above the limit. Two who enter
 * at the same moment may both be refused, never both admitted over the limit.
 *
 * A worker is an open handle; it owns a row (a column of cells) for as long as it holds
 * a lock on the row's octet of the file, which the kernel releases when the process
 * ends, however it ends, whatever its PID namespace. A row that can be locked by
 * another is dead: its cells are set to zero. An entry that is refused does this by
 * itself, at most every AG_REAP_NS, so capacity comes back without anybody's help.
 *
 * Slots are taken over when all their cells are zero, with a mark in the tag word that
 * a newcomer sees or whose setter sees the newcomer. Two slots of one key can exist for
 * a while; sums go over all slots of a key, so that they count as one.
 *
 * After fork the child is another worker: it takes a row of its own when it first
 * enters; leases of the parent are the parent's to leave. Any thread. */
#ifndef AG_LIMIT_CONCURRENCY_H
#define AG_LIMIT_CONCURRENCY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "limit/area.h"

#define AG_REAP_NS UINT64_C(100000000)
#define AG_WORKERS_MAX 1024u

struct ag_concurrency;

struct ag_concurrency_options {
    const char *path; /* NULL: anonymous memory of this process and its children */
    uint64_t slots;   /* keys in flight at one time; a file keeps its own */
    uint32_t workers; /* handles open at one time, 1 to AG_WORKERS_MAX; likewise */
    const struct ag_io *io;      /* NULL: the real one */
    const struct ag_moment *now; /* NULL: now */
};

/* Statuses of ag_area_open; AG_EINVAL for an impossible geometry; AG_EFULL when live
 * workers hold all rows. */
int ag_concurrency_open(const struct ag_concurrency_options *options,
                        struct ag_concurrency **limiter, struct ag_error *err);
/* Gives the row back, and with it what was not left. NULL is allowed. */
void ag_concurrency_close(struct ag_concurrency *limiter);

uint64_t ag_concurrency_tag(const struct ag_concurrency *limiter, const void *key,
                            size_t n);

/* One more in flight for the key, of at most `limit` (at least 1): *lease > 0, or 0
 * when refused. AG_ENOMEM; AG_EFULL, AG_EFORKED when a child finds no row or file. */
int ag_concurrency_enter(struct ag_concurrency *limiter, uint64_t tag, uint64_t limit,
                         int64_t *lease, struct ag_error *err);
/* Ends a lease of this process; true when it was in force. */
bool ag_concurrency_leave(struct ag_concurrency *limiter, int64_t lease);
/* In flight for the key now, over all workers, dead ones not yet reaped included. */
uint64_t ag_concurrency_count(struct ag_concurrency *limiter, uint64_t tag);
/* Clears the rows of dead workers; returns what was in flight in them. */
uint64_t ag_concurrency_reap(struct ag_concurrency *limiter);

struct ag_concurrency_stats {
    uint64_t slots, used;      /* used: keys with something in flight */
    uint64_t workers, rows;    /* rows: held by live workers, as far as known */
    uint64_t in_flight, bytes; /* in_flight: of all workers */
    uint64_t full;             /* refused because no slot was free */
    uint64_t reaped;           /* in flight in dead workers and given back, ever */
};
void ag_concurrency_stats(struct ag_concurrency *limiter,
                          struct ag_concurrency_stats *stats);

#endif
