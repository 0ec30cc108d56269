#include "limit_rig.h"

#include <stdio.h>
#include <string.h>

#include "check.h"
#include "limit/slot.h"
#include "scratch.h"

char dir[256];
enum ag_sync way;
_Atomic uint64_t now = 1000 * SECOND;

uint64_t
told_time(void)
{
    return atomic_load(&now);
}

struct ag_table *
open_with_clock(const char *path, uint64_t slots, uint64_t (*clock)(void))
{
    struct ag_error err;
    struct ag_table *t = NULL;
    struct ag_table_options options = {
        .path = path, .slots = slots, .sync = way, .clock = clock};
    int status = ag_table_open(&options, &t, &err);
    if (status != AG_OK) {
        CHECK_FAIL("open: %s (%s)", err.what, err.file);
    }
    return t;
}

struct ag_table *
open_table(const char *path, uint64_t slots)
{
    return open_with_clock(path, slots, told_time);
}

struct ag_limit
make_limit(struct ag_table *t, const char *name, uint64_t rate, uint64_t per,
           uint64_t burst)
{
    struct ag_limit limit;
    struct ag_error err;
    ASSERT_EQ(ag_limit_init(&limit, t, name, strlen(name), rate, per, burst, &err),
              AG_OK);
    return limit;
}

struct ag_charge
acquire(const struct ag_limit *limit, const char *key, uint64_t cost)
{
    struct ag_charge charge;
    uint64_t tag = ag_limit_tag(limit, key, strlen(key));
    ASSERT_EQ(ag_limit_acquire(limit, tag, cost, told_time(), &charge), AG_OK);
    return charge;
}

uint64_t
level_of(const struct ag_limit *limit, const char *key)
{
    struct ag_charge charge;
    uint64_t tag = ag_limit_tag(limit, key, strlen(key));
    ASSERT_EQ(ag_limit_look(limit, tag, 1, told_time(), &charge), AG_OK);
    return charge.level;
}

void
run_both_ways(void (*tests)(void))
{
    for (way = AG_SYNC_CAS; way <= AG_SYNC_MUTEX; way++) {
        if (way == AG_SYNC_CAS && !ag_slot_cas_works()) {
            fprintf(stderr, "  this CPU has no 128-bit compare-and-swap\n");
            continue;
        }
        fprintf(stderr, " %s\n", way == AG_SYNC_CAS ? "swaps" : "mutexes");
        scratch_make(dir);
        tests();
        scratch_remove(dir);
    }
}
