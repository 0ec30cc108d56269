/* Tables and limits for their tests, on a clock that the test sets. */
#ifndef LIMIT_RIG_H
#define LIMIT_RIG_H

#include <stdatomic.h>
#include <stdint.h>

#include "limit/limit.h"

#define SECOND UINT64_C(1000000000)

extern char dir[256];        /* of this round */
extern enum ag_sync way;     /* likewise: how slots are changed */
extern _Atomic uint64_t now; /* what told_time() says */

uint64_t told_time(void);
struct ag_table *open_with_clock(const char *path, uint64_t slots,
                                 uint64_t (*clock)(void));
/* On the told time. */
struct ag_table *open_table(const char *path, uint64_t slots);
struct ag_limit make_limit(struct ag_table *t, const char *name, uint64_t rate,
                           uint64_t per, uint64_t burst);
struct ag_charge acquire(const struct ag_limit *limit, const char *key, uint64_t cost);
uint64_t level_of(const struct ag_limit *limit, const char *key);

/* Runs all tests of a program in a new `dir`, each way that this CPU knows. */
void run_both_ways(void (*tests)(void));

#endif
