// links: alloc_fault
/* The watch of an event loop: lags as they are, stalls seen while they last and once
 * each, waiters that a stop ends, and no answer lost between two threads. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "base/clock.h"
#include "check.h"
#include "loop/watch.h"

#define MS UINT64_C(1000000)

static struct ag_watch *
start(uint64_t every, uint64_t slow)
{
    struct ag_error err;
    struct ag_watch *watch = NULL;
    ASSERT_EQ(ag_watch_start(every, slow, &watch, &err), AG_OK);
    return watch;
}

static void
end(struct ag_watch *watch)
{
    ag_watch_stop(watch);
    ag_watch_stop(watch);
    ag_watch_free(watch);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

static void
await_beat(const struct ag_watch *watch)
{
    struct pollfd fd = {.fd = ag_watch_fd(watch), .events = POLLIN};
    ASSERT_EQ(poll(&fd, 1, 20000), 1);
}

static void
pass(uint64_t ns)
{
    struct timespec time = {.tv_sec = (time_t)(ns / (1000 * MS)),
                            .tv_nsec = (long)(ns % (1000 * MS))};
    while (nanosleep(&time, &time) != 0 && errno == EINTR) {
    }
}

static uint64_t
counted(const struct ag_watch_stats *stats)
{
    uint64_t sum = 0;
    for (unsigned k = 0; k < AG_WATCH_BUCKETS; k++) {
        sum += stats->lags[k];
    }
    return sum;
}

static void
lags_are_as_long_as_the_loop_was_late(void)
{
    struct ag_watch *watch = start(MS, 10000 * MS);
    struct ag_watch_stats stats;
    uint64_t sum = 0, most = 0;
    for (unsigned i = 0; i < 20; i++) {
        await_beat(watch);
        pass(2 * MS);
        uint64_t lag = ag_watch_answer(watch);
        ASSERT_LE_U(2 * MS, lag);
        sum += lag;
        most = lag > most ? lag : most;
    }
    ag_watch_stats(watch, &stats);
    ASSERT_EQ_U(counted(&stats), 20);
    for (unsigned k = 0; k <= 10; k++) {
        ASSERT_EQ_U(stats.lags[k], 0); /* below 1,024 us */
    }
    ASSERT_EQ_U(stats.sum_ns, sum);
    ASSERT_EQ_U(stats.max_ns, most);
    ASSERT_EQ_U(stats.stalls, 0);
    ag_watch_stop(watch);
    (void)ag_watch_answer(watch); /* there may have been one more beat */
    ASSERT_EQ_U(ag_watch_answer(watch), 0);
    end(watch);
}

static void
a_stall_is_seen_while_it_lasts_and_once(void)
{
    struct ag_watch *watch = start(MS, 5 * MS);
    struct ag_watch_stats stats;
    for (unsigned i = 1; i <= 3; i++) {
        await_beat(watch);
        uint64_t so_far = ag_watch_wait(watch, 0); /* comes back before any answer */
        ASSERT_LE_U(5 * MS, so_far);
        pass(3 * MS);
        uint64_t lag = ag_watch_answer(watch);
        ASSERT_LE_U(so_far + 3 * MS, lag);
        ASSERT_EQ_U(ag_watch_wait(watch, 1), lag);
        ag_watch_stats(watch, &stats);
        ASSERT_LE_U(i, stats.stalls);
    }
    end(watch);
    watch = start(MS, 5 * MS);
    pass(40 * MS);
    ag_watch_stats(watch, &stats);
    ASSERT_EQ_U(stats.stalls, 1);
    ASSERT_EQ_U(counted(&stats), 0);
    end(watch);
}

static void *
wait_for_end(void *watch)
{
    static uint64_t found;
    found = ag_watch_wait(watch, 1);
    return &found;
}

static void
stopping_ends_whoever_waits(void)
{
    struct ag_watch *watch = start(MS, 1000000 * MS);
    pthread_t thread;
    void *found = NULL;
    ASSERT_EQ(pthread_create(&thread, NULL, wait_for_end, watch), 0);
    pass(2 * MS);
    ag_watch_stop(watch);
    ASSERT_EQ(pthread_join(thread, &found), 0);
    ASSERT_EQ_U(*(uint64_t *)found, 0);
    ASSERT_EQ_U(ag_watch_wait(watch, 0), 0);
    end(watch);
}

static _Atomic int answering;

static void *
answer_at_once(void *arg)
{
    struct ag_watch *watch = arg;
    unsigned seed = 1;
    while (atomic_load(&answering)) {
        struct pollfd fd = {.fd = ag_watch_fd(watch), .events = POLLIN};
        (void)poll(&fd, 1, 10);
        seed = seed * 1103515245 + 12345;
        uint64_t until = ag_clock_ns() + seed / 65536 % 64 * 10000; /* about `slow` */
        while (ag_clock_ns() < until) {
        }
        (void)ag_watch_answer(watch);
    }
    return NULL;
}

static void
every_stall_ends(void)
{
    struct ag_watch *watch = start(MS / 10, 3 * MS / 10);
    pthread_t thread;
    atomic_store(&answering, 1);
    ASSERT_EQ(pthread_create(&thread, NULL, answer_at_once, watch), 0);
    for (unsigned i = 0; i < 300; i++) {
        ASSERT_LE_U(3 * MS / 10, ag_watch_wait(watch, 0));
        ASSERT_LE_U(3 * MS / 10, ag_watch_wait(watch, 1));
    }
    atomic_store(&answering, 0);
    ASSERT_EQ(pthread_join(thread, NULL), 0);
    end(watch);
}

static void
what_cannot_start_leaves_nothing(void)
{
    struct ag_error err;
    struct ag_watch *watch = NULL;
    struct rlimit before, none;
    ASSERT_EQ(ag_watch_start(0, MS, &watch, &err), AG_EINVAL);
    ASSERT_EQ(ag_watch_start(MS, 0, &watch, &err), AG_EINVAL);
    ag_test_fail_alloc_at(1);
    ASSERT_EQ(ag_watch_start(MS, MS, &watch, &err), AG_ENOMEM);
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    none = before;
    none.rlim_cur = 0;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    ASSERT_EQ(ag_watch_start(MS, MS, &watch, &err), AG_EIO);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    ASSERT_EQ(err.sys_errno, EMFILE);
    ASSERT_NULL(watch);
    ag_watch_free(NULL);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

int
main(void)
{
    RUN(lags_are_as_long_as_the_loop_was_late);
    RUN(a_stall_is_seen_while_it_lasts_and_once);
    RUN(stopping_ends_whoever_waits);
    RUN(every_stall_ends);
    RUN(what_cannot_start_leaves_nothing);
    return 0;
}
