// threads: none
// links: limit_rig scratch
/* Rate limits in one thread: the arithmetic, reservations, plans, a full table, a flood
 * of chosen keys, ten years of time. Each both ways in which slots are changed. */
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "limit_rig.h"

/* ---- arithmetic ---- */

static void
siphash_is_the_one_of_the_paper(void)
{
    /* SipHash-1-3 with key 0, as CPython 3.11+ computes hash(bytes) with
     * PYTHONHASHSEED=0 */
    static const struct {
        const char *text;
        uint64_t hash;
    } known[] = {
        {"a", UINT64_C(0x407448d2b89b1813)},
        {"abcdefg", UINT64_C(0x6db12aae9070f506)},
        {"abcdefgh", UINT64_C(0x3f7b849c0b8e35ea)},
        {"user-0000000000000000000000000000000000042", UINT64_C(0x039d2ac556dd6cd7)}};
    const struct ag_siphash_key zero = {0, 0};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        ASSERT_EQ_U(ag_siphash13(zero, known[i].text, strlen(known[i].text)),
                    known[i].hash);
    }
}

static void
increments_round_up_and_saturate(void)
{
    struct ag_gcra g;
    struct ag_error err;
    ASSERT_EQ(ag_gcra_init(&g, 3, SECOND, 3, &err), AG_OK);
    ASSERT_EQ_U(g.unit, 333333334);
    ASSERT_EQ_U(g.tolerance, SECOND);
    ASSERT_EQ_U(ag_gcra_increment(&g, 0), 0);
    ASSERT_EQ_U(ag_gcra_increment(&g, 2), 666666667);
    ASSERT_EQ_U(ag_gcra_increment(&g, 3), SECOND);
    ASSERT_EQ_U(ag_gcra_increment(&g, UINT64_MAX), AG_LEVEL_MAX);
    ASSERT_EQ_U(ag_gcra_remaining(&g, 0), 3);
    ASSERT_EQ_U(ag_gcra_remaining(&g, 4), 2);
    ASSERT_EQ_U(ag_gcra_remaining(&g, g.unit), 2); /* and not 1.999999998 */
    ASSERT_EQ_U(ag_gcra_remaining(&g, 2 * g.unit), 1);
    ASSERT_EQ_U(ag_gcra_remaining(&g, SECOND), 0);
    ASSERT_EQ_U(ag_gcra_remaining(&g, AG_LEVEL_MAX), 0);
    /* more units than nanoseconds: each still costs, one at a time a nanosecond */
    ASSERT_EQ(ag_gcra_init(&g, 10 * SECOND, SECOND, 10 * SECOND, &err), AG_OK);
    ASSERT_EQ_U(g.unit, 1);
    ASSERT_EQ_U(ag_gcra_increment(&g, 11), 2);
    ASSERT_EQ(ag_gcra_init(&g, 0, SECOND, 1, &err), AG_EINVAL);
    ASSERT_EQ(ag_gcra_init(&g, 1, 0, 1, &err), AG_EINVAL);
    ASSERT_EQ(ag_gcra_init(&g, 1, SECOND, 0, &err), AG_EINVAL);
    ASSERT_EQ(ag_gcra_init(&g, 1, SECOND, UINT64_MAX, &err), AG_EINVAL);
}

static void
a_limit_counts(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "rpm", 60, 60 * SECOND, 5);
    for (unsigned i = 0; i < 5; i++) {
        struct ag_charge charge = acquire(&limit, "k", 1);
        ASSERT(charge.allowed);
        ASSERT_EQ_U(ag_gcra_remaining(&limit.gcra, charge.level), 4 - i);
    }
    struct ag_charge charge = acquire(&limit, "k", 1);
    ASSERT(!charge.allowed && !charge.full);
    ASSERT_EQ_U(charge.wait, SECOND);
    ASSERT_EQ_U(charge.level, 5 * SECOND);
    ASSERT(!acquire(&limit, "k", 0).allowed); /* a zero cost is no way round */
    ASSERT(acquire(&limit, "other", 5).allowed);
    now += SECOND - 1;
    ASSERT_EQ_U(acquire(&limit, "k", 1).wait, 1);
    now += 1;
    ASSERT(acquire(&limit, "k", 0).allowed);
    ASSERT(acquire(&limit, "k", 1).allowed);
    ASSERT(!acquire(&limit, "k", 1).allowed);
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    ASSERT_EQ(ag_limit_acquire(&limit, tag, 6, told_time(), &charge), AG_ETOOBIG);
    ASSERT_EQ(ag_limit_look(&limit, tag, UINT64_MAX, told_time(), &charge), AG_ETOOBIG);
    struct ag_limit other = make_limit(t, "tpm", 60, 60 * SECOND, 5);
    ASSERT_EQ_U(level_of(&other, "k"), 0); /* names separate keys */
    ag_table_close(t);
}

/* ---- reservations ---- */

static void
settling(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "tpm", 100, SECOND, 100); /* 10 ms a unit */
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    const uint64_t unit = limit.gcra.unit;
    uint64_t then = told_time();
    ASSERT(acquire(&limit, "k", 80).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 80, 30, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 30 * unit);
    /* all back */
    then = told_time();
    ASSERT(acquire(&limit, "k", 70).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 70, 0, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 30 * unit);
    /* debt, without bound by the tolerance */
    then = told_time();
    ASSERT(acquire(&limit, "k", 1).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 1, 500, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 530 * unit);
    ASSERT(!acquire(&limit, "k", 1).allowed);
    ASSERT(!acquire(&limit, "k", 0).allowed);
    ASSERT_EQ_U(acquire(&limit, "k", 1).wait, 431 * unit);
    /* a huge debt is the highest level, not an overflow */
    ASSERT(ag_limit_settle(&limit, tag, 1, UINT64_MAX, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), AG_LEVEL_MAX);
    ag_table_close(t);
}

static void
a_late_settle_does_not_erase_others(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "tpm", 100, SECOND, 100);
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    const uint64_t unit = limit.gcra.unit;
    uint64_t then = told_time();
    ASSERT(acquire(&limit, "k", 100).allowed);
    now += 90 * unit; /* 90 of the 100 have drained */
    ASSERT(acquire(&limit, "k", 90).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 100, 0, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 90 * unit); /* 10 back, not 100 */
    now += 200 * unit;
    ASSERT(acquire(&limit, "k", 7).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 100, 0, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 7 * unit);
    /* debt of a key whose slot went to others meanwhile */
    now += 200 * unit;
    ASSERT(ag_limit_settle(&limit, ag_limit_tag(&limit, "gone", 4), 1, 4, then, now));
    ASSERT_EQ_U(level_of(&limit, "gone"), 3 * unit);
    ag_table_close(t);
}

/* ---- plans ---- */

static void
a_plan_charges_all_or_nothing(void)
{
    struct ag_table *t = open_table(NULL, 64);
    struct ag_limit a = make_limit(t, "a", 10, SECOND, 10);
    struct ag_limit b = make_limit(t, "b", 5, SECOND, 5);
    const struct ag_limit *const limits[] = {&a, &b};
    const uint64_t tags[] = {ag_limit_tag(&a, "k", 1), ag_limit_tag(&b, "k", 1)};
    uint64_t costs[] = {2, 2};
    struct ag_charge charges[2];
    size_t refused = 9;
    for (int i = 0; i < 2; i++) {
        ASSERT_EQ(ag_plan_acquire(limits, tags, costs, 2, now, charges, &refused),
                  AG_OK);
        ASSERT_EQ_U(refused, 2);
    }
    uint64_t before = level_of(&a, "k");
    ASSERT_EQ(ag_plan_acquire(limits, tags, costs, 2, now, charges, &refused), AG_OK);
    ASSERT_EQ_U(refused, 1);
    ASSERT(charges[0].allowed && !charges[1].allowed);
    ASSERT_EQ_U(level_of(&a, "k"), before);
    ASSERT_EQ_U(level_of(&b, "k"), 4 * b.gcra.unit);
    costs[0] = 11;
    ASSERT_EQ(ag_plan_acquire(limits, tags, costs, 2, now, charges, &refused),
              AG_ETOOBIG);
    ASSERT_EQ_U(refused, 0);
    ASSERT_EQ_U(level_of(&a, "k"), before);
    /* the same key of the same limit twice: each look fits, both together do not, so
     * that the second charge refuses and the first is taken back */
    const struct ag_limit *const twice[] = {&a, &a};
    const uint64_t same[] = {tags[0], tags[0]};
    costs[0] = costs[1] = 4;
    ASSERT_EQ(ag_plan_acquire(twice, same, costs, 2, now, charges, &refused), AG_OK);
    ASSERT_EQ_U(refused, 1);
    ASSERT_EQ_U(level_of(&a, "k"), before);
    ag_table_close(t);
}

/* ---- the table ---- */

static void
a_full_table_refuses_and_counts(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "x", 1, 60 * SECOND, 1);
    struct ag_table_stats stats;
    char key[32];
    unsigned admitted = 0, full = 0;
    for (int i = 0; i < 100; i++) {
        (void)snprintf(key, sizeof(key), "key %d", i);
        struct ag_charge charge = acquire(&limit, key, 1);
        admitted += charge.allowed;
        full += charge.full;
        ASSERT(charge.allowed || (charge.full && charge.wait == 60 * SECOND));
    }
    ASSERT_EQ(admitted, 16);
    ASSERT_EQ(full, 84);
    for (int i = 0; i < 16; i++) { /* those that are in keep their state */
        (void)snprintf(key, sizeof(key), "key %d", i);
        ASSERT(!acquire(&limit, key, 1).allowed);
        ASSERT(!acquire(&limit, key, 1).full);
    }
    ASSERT(!ag_limit_settle(&limit, ag_limit_tag(&limit, "key 99", 6), 1, 3, now, now));
    ag_table_stats(t, now, &stats);
    ASSERT_EQ_U(stats.live, 16);
    ASSERT_EQ_U(stats.debts_lost, 1);
    ASSERT_LE_U(84, stats.full);
    now += 60 * SECOND; /* idle slots are taken without a sweep */
    for (int i = 50; i < 66; i++) {
        (void)snprintf(key, sizeof(key), "key %d", i);
        ASSERT(acquire(&limit, key, 1).allowed);
    }
    ag_table_close(t);
}

static void
a_flood_of_colliding_keys_spreads(void)
{
    /* keys that crowd into two buckets of one table, whose hash key the attacker knows,
     * are ordinary keys of another */
    enum { BUCKETS = 64, WANTED = 100 };
    struct ag_table *known = open_table(NULL, BUCKETS * 8);
    struct ag_table *other = open_table(NULL, BUCKETS * 8);
    struct ag_limit here = make_limit(known, "x", 1, 60 * SECOND, 1);
    struct ag_limit there = make_limit(other, "x", 1, 60 * SECOND, 1);
    struct ag_siphash_key a = ag_table_key(known), b = ag_table_key(other);
    ASSERT(a.k0 != b.k0 && a.k1 != b.k1);
    unsigned crowded = 0, refused = 0, found = 0;
    char key[32];
    for (unsigned i = 0; found < WANTED; i++) {
        int n = snprintf(key, sizeof(key), "flood %u", i);
        uint64_t tag = ag_limit_tag(&here, key, (size_t)n);
        if (tag >> 58 != 7) { /* the first choice among 64 buckets */
            continue;
        }
        found++;
        crowded += acquire(&here, key, 1).allowed;
        refused += !acquire(&there, key, 1).allowed;
    }
    ASSERT_EQ(refused, 0);
    (void)crowded;
    ag_table_close(known);
    ag_table_close(other);
}

/* ---- time ---- */

static void
ten_years(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "x", 7, 3600 * SECOND, 7); /* no whole ns */
    const uint64_t year = UINT64_C(365) * 86400 * SECOND, from = now;
    uint64_t admitted = 0, step = 3600 * SECOND / 7 - 13;
    uint64_t loops = way == AG_SYNC_MUTEX ? 20000 : 100000;
    while (now - from < 10 * year) {
        for (uint64_t i = 0; i < loops / 50; i++) {
            admitted += acquire(&limit, "k", 1).allowed;
            now += step;
        }
        now += year / 8; /* asleep: the clock goes on */
        ASSERT_EQ_U(level_of(&limit, "k"), 0);
    }
    uint64_t passed = now - from;
    ASSERT_LE_U(admitted, 7 + (uint64_t)((ag_u128)(passed + 1) * 7 / (3600 * SECOND)));
    /* within the awake stretches less than one in a million is lost to rounding */
    ASSERT_LT_U(loops, admitted);
    now = from;
    ag_table_close(t);
}

static void
run_all(void)
{
    RUN(a_limit_counts);
    RUN(settling);
    RUN(a_late_settle_does_not_erase_others);
    RUN(a_plan_charges_all_or_nothing);
    RUN(a_full_table_refuses_and_counts);
    RUN(a_flood_of_colliding_keys_spreads);
    RUN(ten_years);
}

int
main(void)
{
    RUN(siphash_is_the_one_of_the_paper);
    RUN(increments_round_up_and_saturate);
    run_both_ways(run_all);
    return 0;
}
