// threads: none
// links: schedule scratch
/* The caps on what is in flight under chosen interleavings: handles enter and leave one
 * key while others take over the slots around it, and one may die at any step. In every
 * order no more is in flight than the limit, and at the end nothing is left. */
#include "schedule.h"

#include "limit/concurrency.c" /* with a scheduler in them */
#include "limit/concurrency_rows.c"

#include "check.h"
#include "scratch.h"

#if defined(__SANITIZE_THREAD__)
int
main(void)
{
    fprintf(stderr, "  one thread: nothing that this sanitizer could see\n");
    return 0;
}
#else

enum { ACTORS = 5, ROUNDS = 3, LIMIT = 1, FILLED = 14 };

static struct ag_concurrency *handles_of[ACTORS];
static int held;
static unsigned entered;
static uint64_t random_of_kills = 1;

static void
enter_watched(unsigned me)
{
    struct ag_concurrency *c = handles_of[me];
    uint64_t tag = ag_concurrency_tag(c, "k", 1);
    for (unsigned i = 0; i < ROUNDS; i++) {
        struct ag_error err;
        int64_t lease = 0;
        ASSERT_EQ(ag_concurrency_enter(c, tag, LIMIT, &lease, &err), AG_OK);
        if (lease == 0) {
            continue;
        }
        held++;
        entered++;
        ASSERT_LE(held, LIMIT);
        for (int k = 0; k < 5; k++) {
            schedule_step();
        }
        held--;
        ASSERT(ag_concurrency_leave(c, lease));
    }
}

static void
take_slots(unsigned me)
{
    struct ag_concurrency *c = handles_of[me];
    for (unsigned i = 0; i < 3 * ROUNDS; i++) {
        char key[16];
        struct ag_error err;
        int64_t lease = 0;
        int n = snprintf(key, sizeof(key), "%u.%u", me, i);
        uint64_t tag = ag_concurrency_tag(c, key, (size_t)n);
        ASSERT_EQ(ag_concurrency_enter(c, tag, 1, &lease, &err), AG_OK);
        schedule_step();
        (void)ag_concurrency_leave(c, lease);
    }
}

static void
run_many(const char *path, bool kills)
{
    static void (*const all[])(unsigned) = {enter_watched, enter_watched, enter_watched,
                                            take_slots, take_slots};
    const char *wish = getenv("AEGIS_SCHEDULES");
    uint64_t n = wish != NULL ? strtoull(wish, NULL, 0) : 600;
    uint64_t seed = check_seed(ag_clock_ns());
    for (uint64_t i = 0; i < n; i++) {
        struct schedule s = {.random = seed + i};
        struct ag_concurrency_stats stats;
        struct ag_concurrency_options options = {
            .path = path, .slots = 16, .workers = ACTORS + 1};
        struct ag_error err;
        s.stickiness = (unsigned)(i % 4) * 80;
        s.kill_after = kills ? 1 + (unsigned)(check_random(&random_of_kills) % 400) : 0;
        held = 0;
        schedule_run(&s, all, ACTORS);
        if (s.dead[0]) { /* its process is gone, and with it the lock of its row */
            struct ag_concurrency *c = handles_of[0];
            (void)pthread_mutex_unlock(&c->lock); /* the dead one's may be held */
            (void)lock_row(c, (uint32_t)atomic_load(&c->row), F_UNLCK);
            (void)ag_concurrency_reap(handles_of[1]);
        }
        ag_concurrency_stats(handles_of[1], &stats);
        if (stats.in_flight != FILLED) {
            CHECK_FAIL("seed %" PRIu64 ": %" PRIu64 " left in flight", seed + i,
                       stats.in_flight);
        }
        if (s.dead[0]) {
            pthread_mutex_lock(&handles.lock);
            unlink_handle_lock_held(handles_of[0]);
            free_handle(handles_of[0]);
            pthread_mutex_unlock(&handles.lock);
            ASSERT_EQ(ag_concurrency_open(&options, &handles_of[0], &err), AG_OK);
        }
    }
    ASSERT_LT_U(n, entered);
}

static char path[512];

static void
every_order_keeps_the_limit(void)
{
    run_many(path, false);
}

static void
every_death_keeps_the_limit(void)
{
    run_many(path, true);
}

int
main(void)
{
    char dir[256];
    struct ag_error err;
    scratch_make(dir);
    (void)scratch_path(path, dir, "table");
    struct ag_concurrency *filler = NULL;
    struct ag_concurrency_options options = {
        .path = path, .slots = 16, .workers = ACTORS + 1};
    for (unsigned i = 0; i < ACTORS; i++) {
        ASSERT_EQ(ag_concurrency_open(&options, &handles_of[i], &err), AG_OK);
    }
    /* all slots but two are taken for good, so that those change their key often */
    ASSERT_EQ(ag_concurrency_open(&options, &filler, &err), AG_OK);
    for (unsigned i = 0; i < FILLED; i++) {
        int64_t lease = 0;
        uint64_t tag = ag_concurrency_tag(filler, &i, sizeof(i));
        ASSERT_EQ(ag_concurrency_enter(filler, tag, 1, &lease, &err), AG_OK);
        ASSERT_LT(0, lease);
    }
    RUN(every_order_keeps_the_limit);
    entered = 0;
    RUN(every_death_keeps_the_limit);
    for (unsigned i = 0; i < ACTORS; i++) {
        ag_concurrency_close(handles_of[i]);
    }
    ag_concurrency_close(filler);
    scratch_remove(dir);
    return 0;
}
#endif
