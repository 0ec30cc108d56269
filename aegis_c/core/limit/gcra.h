/* The arithmetic of the generic cell rate algorithm (ITU-T I.371, annex A), in whole
 * nanoseconds.
 *
 * A limit of `rate` units per `per_ns` with room for `burst` is a bucket whose level is
 * a time: a charge raises it by the time in which the limit drains that many units. A
 * key's whole state is the moment at which its bucket is empty again, the theoretical
 * arrival time (TAT): level = max(0, TAT - now).
 *
 * A charge is rounded up, once, in 128-bit integers: the error is below 1 ns a charge
 * and never in the user's favour. The tolerance is rounded up too, so that one charge
 * of the whole burst fits. Hence in any window of t ns the admitted units are at most
 * burst + (t + 1) x rate / per_ns. */
#ifndef AG_LIMIT_GCRA_H
#define AG_LIMIT_GCRA_H

#include <stdint.h>

#include "base/status.h"

__extension__ typedef unsigned __int128 ag_u128;

/* No level goes beyond this (146 years): sums with a time then cannot overflow. */
#define AG_LEVEL_MAX (UINT64_C(1) << 62)

struct ag_gcra {
    uint64_t rate, per_ns, burst;
    uint64_t unit;      /* increment of one unit */
    uint64_t tolerance; /* the highest level that a charge may reach */
    uint64_t slack; /* what rounding may have cost so far: a ns a unit, half a unit */
};

/* ceil(cost x per_ns / rate), at most AG_LEVEL_MAX. */
static inline uint64_t
ag_gcra_increment(const struct ag_gcra *g, uint64_t cost)
{
    if (cost == 1) {
        return g->unit;
    }
    ag_u128 ns = ((ag_u128)cost * g->per_ns + (g->rate - 1)) / g->rate;
    return ns < AG_LEVEL_MAX ? (uint64_t)ns : AG_LEVEL_MAX;
}

/* Units that still fit at this level, or will within `slack`: a count that goes down by
 * one a charge whatever the rate. 0 in debt. */
static inline uint64_t
ag_gcra_remaining(const struct ag_gcra *g, uint64_t level)
{
    if (level >= g->tolerance) {
        return 0;
    }
    ag_u128 product = (ag_u128)(g->tolerance + g->slack - level) * g->rate;
    uint64_t units = product >> 64 == 0 ? (uint64_t)product / g->per_ns
                                        : (uint64_t)(product / g->per_ns);
    return units < g->burst ? units : g->burst;
}

/* AG_OK; AG_EINVAL when a number is 0 or the burst would take longer than AG_LEVEL_MAX
 * to drain. */
int ag_gcra_init(struct ag_gcra *g, uint64_t rate, uint64_t per_ns, uint64_t burst,
                 struct ag_error *err);

#endif
