#include "loop/watch.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/sync.h"

struct ag_watch {
    uint64_t every_ns, slow_ns;
    struct ag_wakeup wakeup;
    pthread_t thread;
    _Atomic uint64_t beat_ns; /* when the open beat was made; 0: none is open */
    _Atomic uint64_t lags[AG_WATCH_BUCKETS];
    _Atomic uint64_t sum_ns, max_ns, stalls;

    pthread_mutex_t lock;   /* never held by the loop unless a stall is open */
    pthread_cond_t stop;    /* wakes the thread */
    pthread_cond_t changed; /* wakes ag_watch_wait */
    bool stopping, joined;  /* under lock */
    uint64_t stalled_ns;  /* under lock: of the stall that nobody has waited for yet */
    uint64_t ended_ns;    /* under lock: what the last stall came to */
    _Atomic bool stalled; /* changed under lock: the open beat is a stall */
};

static unsigned
bucket_of(uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned k = us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(us);
    return k < AG_WATCH_BUCKETS ? k : AG_WATCH_BUCKETS - 1;
}

static void
end_lock_held(struct ag_watch *watch, uint64_t lag)
{
    if (atomic_load(&watch->stalled)) {
        watch->ended_ns = lag;
        atomic_store(&watch->stalled, false);
        pthread_cond_broadcast(&watch->changed);
    }
}

/* The open beat and `stalled` are each written before the other one is read, here and
 * in ag_watch_answer: one of the two sides sees that a stall has ended. */
static void
beat_lock_held(struct ag_watch *watch)
{
    uint64_t now = ag_clock_ns();
    uint64_t since = atomic_load(&watch->beat_ns);
    if (since == 0) {
        atomic_store(&watch->beat_ns, now);
        ag_wakeup_signal(&watch->wakeup);
    } else if (now - since >= watch->slow_ns && !atomic_load(&watch->stalled)) {
        watch->stalled_ns = now - since;
        atomic_store(&watch->stalled, true);
        atomic_fetch_add_explicit(&watch->stalls, 1, memory_order_relaxed);
        if (atomic_load(&watch->beat_ns) != since) {
            end_lock_held(watch,
                          now - since); /* answered before it could see a stall */
        }
        pthread_cond_broadcast(&watch->changed);
    }
}

static void *
watch_main(void *arg)
{
    struct ag_watch *watch = arg;
    uint64_t due = ag_clock_ns();
    pthread_mutex_lock(&watch->lock);
    while (!watch->stopping) {
        due += watch->every_ns;
        uint64_t now = ag_clock_ns();
        if (due < now) { /* the machine stood still: no beats to make up for */
            due = now + watch->every_ns;
        }
        while (!watch->stopping && ag_clock_ns() < due) {
            ag_cond_wait_until(&watch->stop, &watch->lock, due);
        }
        if (!watch->stopping) {
            beat_lock_held(watch);
        }
    }
    pthread_mutex_unlock(&watch->lock);
    return NULL;
}

/* 0 or a positive errno. */
static int
start_thread(struct ag_watch *watch)
{
    sigset_t all, before;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread takes no signals */
    int result = pthread_create(&watch->thread, NULL, watch_main, watch);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

int
ag_watch_start(uint64_t every_ns, uint64_t slow_ns, struct ag_watch **out,
               struct ag_error *err)
{
    if (every_ns == 0 || slow_ns == 0) {
        return ag_fail(err, AG_EINVAL, "every and slow must be more than nothing");
    }
    struct ag_watch *watch = ag_calloc(1, sizeof(*watch));
    if (watch == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory to watch an event loop");
    }
    watch->every_ns = every_ns;
    watch->slow_ns = slow_ns;
    (void)pthread_mutex_init(&watch->lock, NULL);
    int result = ag_wakeup_open(&watch->wakeup);
    if (result != 0) {
        goto no_wakeup;
    }
    if ((result = ag_cond_init(&watch->stop)) != 0) {
        goto no_stop;
    }
    if ((result = ag_cond_init(&watch->changed)) != 0) {
        goto no_changed;
    }
    if ((result = start_thread(watch)) != 0) {
        goto no_thread;
    }
    *out = watch;
    return AG_OK;

no_thread:
    (void)pthread_cond_destroy(&watch->changed);
no_changed:
    (void)pthread_cond_destroy(&watch->stop);
no_stop:
    ag_wakeup_close(&watch->wakeup);
no_wakeup:
    (void)pthread_mutex_destroy(&watch->lock);
    ag_free(watch);
    return ag_fail_sys(err, result, "", "watch an event loop");
}

void
ag_watch_stop(struct ag_watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    bool join = !watch->joined;
    watch->stopping = watch->joined = true;
    pthread_cond_broadcast(&watch->stop);
    pthread_cond_broadcast(&watch->changed);
    pthread_mutex_unlock(&watch->lock);
    if (join) {
        (void)pthread_join(watch->thread, NULL);
    }
}

void
ag_watch_free(struct ag_watch *watch)
{
    if (watch == NULL) {
        return;
    }
    (void)pthread_cond_destroy(&watch->changed);
    (void)pthread_cond_destroy(&watch->stop);
    ag_wakeup_close(&watch->wakeup);
    (void)pthread_mutex_destroy(&watch->lock);
    ag_free(watch);
}

int
ag_watch_fd(const struct ag_watch *watch)
{
    return watch->wakeup.read_fd;
}

uint64_t
ag_watch_answer(struct ag_watch *watch)
{
    ag_wakeup_clear(&watch->wakeup);
    uint64_t since = atomic_exchange(&watch->beat_ns, 0);
    if (since == 0) {
        return 0;
    }
    uint64_t lag = ag_clock_ns() - since;
    atomic_fetch_add_explicit(&watch->lags[bucket_of(lag)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&watch->sum_ns, lag, memory_order_relaxed);
    if (lag > atomic_load_explicit(&watch->max_ns, memory_order_relaxed)) {
        atomic_store_explicit(&watch->max_ns, lag, memory_order_relaxed);
    }
    if (atomic_load(&watch->stalled)) {
        pthread_mutex_lock(&watch->lock);
        end_lock_held(watch, lag);
        pthread_mutex_unlock(&watch->lock);
    }
    return lag;
}

uint64_t
ag_watch_wait(struct ag_watch *watch, int end)
{
    uint64_t found = 0;
    pthread_mutex_lock(&watch->lock);
    uint64_t *wanted = end ? &watch->ended_ns : &watch->stalled_ns;
    while (*wanted == 0 && !watch->stopping) {
        (void)pthread_cond_wait(&watch->changed, &watch->lock);
    }
    if (!watch->stopping) {
        found = *wanted;
        *wanted = 0;
    }
    pthread_mutex_unlock(&watch->lock);
    return found;
}

void
ag_watch_stats(const struct ag_watch *watch, struct ag_watch_stats *out)
{
    for (unsigned k = 0; k < AG_WATCH_BUCKETS; k++) {
        out->lags[k] = atomic_load_explicit(&watch->lags[k], memory_order_relaxed);
    }
    out->sum_ns = atomic_load_explicit(&watch->sum_ns, memory_order_relaxed);
    out->max_ns = atomic_load_explicit(&watch->max_ns, memory_order_relaxed);
    out->stalls = atomic_load_explicit(&watch->stalls, memory_order_relaxed);
}
