/* A named limit over a table: requests, tokens, money, anything counted in whole units;
 * reservations that are settled later; several limits as one.
 *
 * Time is an argument everywhere (ag_table_clock is what callers pass); only a plan and
 * its undoing look at the table's clock again.
 *
 * Thread rule: a limit does not change after ag_limit_init; any thread. */
#ifndef AG_LIMIT_LIMIT_H
#define AG_LIMIT_LIMIT_H

#include "limit/table.h"

#include "limit/gcra.h"

/* Limits of one plan, at most. */
#define AG_PLAN_MAX 16

struct ag_limit {
    struct ag_gcra gcra;
    struct ag_siphash_key key; /* of this table and name */
    struct ag_table *table;    /* borrowed */
};

/* `name` separates the keys of one limit from those of another in the same table: two
 * limits of one name share them, whatever their rates. Statuses of ag_gcra_init. */
int ag_limit_init(struct ag_limit *limit, struct ag_table *table, const char *name,
                  size_t name_n, uint64_t rate, uint64_t per_ns, uint64_t burst,
                  struct ag_error *err);

static inline uint64_t
ag_limit_tag(const struct ag_limit *limit, const void *key, size_t n)
{
    return ag_table_tag(ag_siphash13(limit->key, key, n));
}

/* Charges `cost` units when they fit. A cost of 0 charges nothing and passes only where
 * a cost of 1 would. AG_ETOOBIG when cost is above the burst: it can never pass. */
int ag_limit_acquire(const struct ag_limit *limit, uint64_t tag, uint64_t cost,
                     uint64_t now, struct ag_charge *charge);
/* As ag_limit_acquire, but writes nothing: charge->level stays without the cost. */
int ag_limit_look(const struct ag_limit *limit, uint64_t tag, uint64_t cost,
                  uint64_t now, struct ag_charge *charge);

/* Settles a charge of `cost` units made at `then` (charge->at), of which `used` were
 * used. Unused units come back, except what has drained since: after that they could
 * only erase the charges of others. Units used beyond the cost are charged in full, as
 * debt. Once per charge, which the caller sees to. False when a debt found no slot in a
 * full table. */
bool ag_limit_settle(const struct ag_limit *limit, uint64_t tag, uint64_t cost,
                     uint64_t used, uint64_t then, uint64_t now);

/* Charges all or nothing. Looks at every limit first, then charges one by one; when one
 * refuses then, what this call added to the others is taken back. Never above any
 * bound; a refusal that a serial order would not have made is possible when others
 * charge the same keys meanwhile. Fills charges[0..n); *refused is the index of the
 * refusing limit that asks for the longest wait, or n. AG_ETOOBIG as ag_limit_acquire,
 * with *refused telling which. n is 1 to AG_PLAN_MAX. */
int ag_plan_acquire(const struct ag_limit *const limits[], const uint64_t tags[],
                    const uint64_t costs[], size_t n, uint64_t now,
                    struct ag_charge charges[], size_t *refused);

#endif
