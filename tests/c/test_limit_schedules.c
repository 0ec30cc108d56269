// threads: none
// links: schedule scratch
/* The table of limits under chosen interleavings: coroutines charge one key while
 * others take the slots around it and time goes on, and one may die at any step. In
 * every order a key has at most one slot and never gets more than its limit. */
#include "schedule.h"

#include "limit/table.c" /* in place of the archive's, with a scheduler in it */

#include "check.h"
#include "limit/limit.h"

#if defined(__SANITIZE_THREAD__)
int
main(void)
{
    fprintf(stderr, "  one thread: nothing that this sanitizer could see\n");
    return 0;
}
#else

enum { KEYS = 3, ACTORS = 5, ROUNDS = 3, LOG = ACTORS * ROUNDS };

/* Only key 0 is watched; a unit of it takes PERIOD, and two fit. */
enum { PERIOD = 1000, BURST = 2 };

static struct ag_table *table;
static struct ag_limit watched, crowd;
static uint64_t clock_now, random_state;
static unsigned tick_rate;
static struct {
    uint64_t before, after;
} admitted[LOG];
static unsigned admissions, full;

static void
tick(void)
{
    if (check_random(&random_state) % 64 < tick_rate) {
        clock_now += check_random(&random_state) % 400;
    }
}

static uint64_t
told_time(void)
{
    return clock_now;
}

static void
charge_watched(unsigned me)
{
    uint64_t tag = ag_limit_tag(&watched, "k", 1);
    (void)me;
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct ag_charge charge;
        uint64_t before = clock_now; /* as old as the schedule makes it */
        ASSERT_EQ(ag_limit_acquire(&watched, tag, 1, before, &charge), AG_OK);
        full += charge.full;
        if (charge.allowed) {
            admitted[admissions].before = before;
            admitted[admissions++].after = clock_now;
        }
    }
}

static void
take_slots(unsigned me)
{
    for (unsigned i = 0; i < ROUNDS; i++) {
        char key[16];
        struct ag_charge charge;
        int n = snprintf(key, sizeof(key), "%u.%u", me, i);
        (void)ag_limit_acquire(&crowd, ag_limit_tag(&crowd, key, (size_t)n), 1,
                               clock_now, &charge);
    }
}

/* Whether some order of the admissions keeps the limit: with every admission somewhere
 * between its two times, no window holds more than BURST + window / PERIOD. */
static void
check_bound(uint64_t seed)
{
    for (unsigned i = 0; i < admissions; i++) {
        for (unsigned j = 0; j < admissions; j++) {
            uint64_t from = admitted[i].before, to = admitted[j].after;
            uint64_t inside = 0;
            for (unsigned k = 0; k < admissions; k++) {
                inside += admitted[k].before >= from && admitted[k].after <= to;
            }
            if (to >= from && inside > BURST + (to - from) / PERIOD) {
                CHECK_FAIL("seed %" PRIu64 ": %" PRIu64 " admitted within %" PRIu64
                           " ns",
                           seed, inside, to - from);
            }
        }
    }
}

static unsigned
slots_of(uint64_t tag)
{
    unsigned found = 0;
    for (unsigned i = 0; i < 16; i++) {
        found += atomic_load(&table->slots[i].tag) == tag;
    }
    return found;
}

static unsigned
one_schedule(uint64_t seed, bool kills)
{
    static void (*const all[])(unsigned) = {charge_watched, charge_watched,
                                            charge_watched, take_slots, take_slots};
    struct schedule s = {.random = seed, .tick = tick};
    random_state = seed ^ UINT64_C(0x5555);
    clock_now = UINT64_C(1) << 40;
    admissions = full = 0;
    tick_rate = (unsigned)(seed % 4);
    s.stickiness = (unsigned)(seed / 4 % 4) * 80;
    s.kill_after = kills ? 1 + (unsigned)(seed / 16 % 150) : 0;
    for (unsigned i = 0; i < 16; i++) { /* some live, some soon free, some free */
        uint64_t kind = check_random(&random_state) % 3;
        uint64_t tat = kind == 0   ? clock_now + UINT64_C(1000000000)
                       : kind == 1 ? clock_now + check_random(&random_state) % 1500
                                   : 0;
        atomic_store(&table->slots[i].tat, tat);
        atomic_store(&table->slots[i].tag, 1000 + 2 * i);
    }
    schedule_run(&s, all, ACTORS);
    check_bound(seed);
    ASSERT_LE_U(slots_of(ag_limit_tag(&watched, "k", 1)), 1);
    if (tick_rate == 0 && !kills && full == 0) {
        ASSERT_EQ(admissions, BURST); /* and never less for no reason */
    }
    return admissions;
}

static void
run_many(bool kills)
{
    const char *wish = getenv("AEGIS_SCHEDULES");
    uint64_t n = wish != NULL ? strtoull(wish, NULL, 0) : 1000;
    uint64_t seed = check_seed(ag_boottime_ns()), sum = 0;
    for (uint64_t i = 0; i < n; i++) {
        sum += one_schedule(seed + i, kills);
    }
    ASSERT_LT_U(n, sum);
}

static void
every_order_keeps_the_limit(void)
{
    run_many(false);
}

static void
every_death_keeps_the_limit(void)
{
    run_many(true);
}

int
main(void)
{
    struct ag_error err;
    for (enum ag_sync way = AG_SYNC_CAS; way <= AG_SYNC_MUTEX; way++) {
        struct ag_table_options options = {
            .slots = 16, .sync = way, .clock = told_time};
        if (way == AG_SYNC_CAS && !ag_slot_cas_works()) {
            continue;
        }
        ASSERT_EQ(ag_table_open(&options, &table, &err), AG_OK);
        ASSERT_EQ(ag_limit_init(&watched, table, "w", 1, 1, PERIOD, BURST, &err),
                  AG_OK);
        ASSERT_EQ(ag_limit_init(&crowd, table, "c", 1, 1, 500, 1, &err), AG_OK);
        RUN(every_order_keeps_the_limit);
        RUN(every_death_keeps_the_limit);
        ag_table_close(table);
    }
    return 0;
}
#endif
