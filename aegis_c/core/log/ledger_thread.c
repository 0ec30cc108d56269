/* The native thread of a ledger: commit, integrate, publish. */
#include <string.h>
#if defined(__linux__)
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/bytes.h"
#include "base/clock.h"
#include "log/ledger_state.h"

#define BATCH_BYTES ((size_t)1 << 20) /* a commit grows no further than this */
#define RETRY_NS 1000000000u          /* after a failed tile or checkpoint */

/* What the thread alone knows. */
struct work {
    size_t commit_at; /* ring offset of the first entry that is not durable */
    size_t tree_at;   /* ring offset of the first entry that is not integrated */
    uint64_t durable, integrated, published;
    uint64_t first_unpublished_ns, last_publish_ns, retry_ns;
    bool poisoned;
};

/* What is due now, decided under the lock. */
struct due {
    bool commit, integrate, publish, stop;
    uint64_t submitted;
};

static void
announce(struct ag_ledger *ledger, enum ag_stage stage, uint64_t size)
{
    atomic_store_explicit(&ledger->stage_size[stage], size, memory_order_release);
    pthread_mutex_lock(&ledger->lock);
    pthread_cond_broadcast(&ledger->changed);
    pthread_mutex_unlock(&ledger->lock);
    if (atomic_exchange(&ledger->event_pending, 1) == 0) {
        ag_wakeup_signal(&ledger->wakeup);
    }
}

static void
poison(struct ag_ledger *ledger, struct work *work, const struct ag_error *err)
{
    work->poisoned = true;
    pthread_mutex_lock(&ledger->lock);
    ledger->failed = true;
    ledger->failure = *err;
    pthread_cond_broadcast(&ledger->changed);
    pthread_mutex_unlock(&ledger->lock);
    if (atomic_exchange(&ledger->event_pending, 1) == 0) {
        ag_wakeup_signal(&ledger->wakeup);
    }
}

/* The record at ring offset *at; moves *at behind it. */
static const uint8_t *
next_record(const struct ag_ledger *ledger, size_t *at, size_t *n)
{
    uint32_t length = 0;
    if (*at == ledger->ring_n) {
        *at = 0;
    }
    memcpy(&length, ledger->ring + *at, sizeof(length));
    if (length == AG_RING_WRAP) {
        *at = 0;
        memcpy(&length, ledger->ring, sizeof(length));
    }
    const uint8_t *record = ledger->ring + *at + AG_RING_HEADER;
    *at += ag_ring_record_size(length);
    *n = length;
    return record;
}

static void
commit_batch(struct ag_ledger *ledger, struct work *work, uint64_t submitted)
{
    struct ag_error err;
    size_t at = work->commit_at, bytes = 0;
    uint64_t upto = work->durable;
    while (upto < submitted && bytes < BATCH_BYTES) {
        size_t n = 0, before = at;
        const uint8_t *record = next_record(ledger, &at, &n);
        if (ag_journal_add(ledger->journal, record, n) != AG_OK) {
            at = before;
            break; /* no memory for more: commit what is there, the rest comes next */
        }
        bytes += n;
        upto++;
    }
    if (upto == work->durable) { /* no memory even for one: let others free some */
        struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
        (void)nanosleep(&pause, NULL);
        return;
    }
    uint64_t start = ag_clock_ns();
    int status = ag_journal_commit(ledger->journal, &err);
    uint64_t took = ag_clock_ns() - start;
    if (status != AG_OK) {
        poison(ledger, work, &err);
        return;
    }
    work->commit_at = at;
    work->durable = upto;
    pthread_mutex_lock(&ledger->lock);
    ledger->stats.commits++;
    ledger->stats.commit_ns += took;
    if (took > ledger->stats.commit_max_ns) {
        ledger->stats.commit_max_ns = took;
    }
    pthread_mutex_unlock(&ledger->lock);
    announce(ledger, AG_DURABLE, upto);
}

static void
integrate_batch(struct ag_ledger *ledger, struct work *work)
{
    struct ag_error err;
    size_t freed = 0, tail = work->tree_at;
    uint64_t before = work->integrated;
    while (work->integrated < work->durable) {
        size_t n = 0, at = work->tree_at;
        const uint8_t *record = next_record(ledger, &at, &n);
        if (ag_ledger_integrate(ledger, record, n, false, &err) != AG_OK) {
            work->retry_ns = ag_clock_ns() + RETRY_NS;
            pthread_mutex_lock(&ledger->lock);
            ledger->stats.publish_failures++;
            pthread_mutex_unlock(&ledger->lock);
            break;
        }
        if (at <= work->tree_at) { /* went back to the start: the rest was padding */
            freed += ledger->ring_n - work->tree_at + at;
        } else {
            freed += at - work->tree_at;
        }
        work->tree_at = tail = at;
        work->integrated++;
    }
    if (work->integrated == before) {
        return;
    }
    if (before == work->published) {
        work->first_unpublished_ns = ag_clock_ns();
    }
    pthread_mutex_lock(&ledger->lock);
    ledger->tail = tail;
    ledger->used -= freed;
    pthread_mutex_unlock(&ledger->lock);
    announce(ledger, AG_INTEGRATED, work->integrated);
}

static void
publish(struct ag_ledger *ledger, struct work *work)
{
    struct ag_error err;
    int status = ag_ledger_publish(ledger, &err);
    work->last_publish_ns = ag_clock_ns();
    pthread_mutex_lock(&ledger->lock);
    if (status == AG_OK) {
        ledger->stats.checkpoints++;
    } else {
        ledger->stats.publish_failures++;
        work->retry_ns = work->last_publish_ns + RETRY_NS;
    }
    pthread_mutex_unlock(&ledger->lock);
    if (status == AG_OK) {
        work->published = work->integrated;
        announce(ledger, AG_PUBLISHED, work->published);
    }
}

static uint64_t
earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Fills `due` and returns the time until which there is nothing to do. */
static uint64_t
decide_lock_held(struct ag_ledger *ledger, const struct work *work, struct due *due)
{
    uint64_t now = ag_clock_ns(), next = UINT64_MAX;
    bool retry = work->retry_ns <= now || ledger->closing;
    memset(due, 0, sizeof(*due));
    due->submitted = ledger->submitted;
    if (work->durable < ledger->submitted && !work->poisoned) {
        bool wanted = false;
        for (int stage = 0; stage < AG_STAGES; stage++) {
            wanted = wanted || ledger->wanted[stage] > work->durable;
        }
        uint64_t at = ledger->first_pending_ns + ledger->max_delay_ns;
        due->commit =
            wanted || ledger->closing || at <= now || ledger->used > ledger->ring_n / 2;
        next = earlier(next, at);
    }
    if (work->integrated < work->durable) {
        due->integrate = retry;
        next = earlier(next, work->retry_ns);
    } else if (work->integrated > work->published) {
        bool soon = ledger->wanted[AG_PUBLISHED] > work->published ||
                    work->integrated / AG_TILE_WIDTH != work->published / AG_TILE_WIDTH;
        uint64_t at = soon ? work->last_publish_ns + ledger->publish_gap_ns
                           : work->first_unpublished_ns + ledger->publish_max_ns;
        at = at > work->retry_ns ? at : work->retry_ns;
        due->publish = at <= now || ledger->closing;
        next = earlier(next, at);
    }
    due->stop = ledger->closing && !due->commit && !due->integrate && !due->publish;
    return due->commit || due->integrate || due->publish || due->stop ? 0 : next;
}

/* A busy thread on the event loop's core costs the loop 4 ms of lag at nice 0, 0.09 ms
 * at nice 10. */
static void
step_back(void)
{
#if defined(__linux__)
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), 10);
#endif
}

void *
ag_ledger_thread(void *arg)
{
    struct ag_ledger *ledger = arg;
    step_back();
    struct work work = {.durable = ag_ledger_stage_size(ledger, AG_DURABLE)};
    struct due due = {0};
    work.integrated = work.durable;
    work.published = ag_ledger_stage_size(ledger, AG_PUBLISHED);
    work.first_unpublished_ns = ag_clock_ns();
    for (bool last_try = false; !due.stop && !last_try;) {
        pthread_mutex_lock(&ledger->lock);
        uint64_t until = decide_lock_held(ledger, &work, &due);
        while (until != 0) {
            ag_cond_wait_until(&ledger->wake, &ledger->lock, until);
            until = decide_lock_held(ledger, &work, &due);
        }
        bool closing = ledger->closing;
        pthread_mutex_unlock(&ledger->lock);
        uint64_t failed_at = work.retry_ns;
        if (due.commit) {
            commit_batch(ledger, &work, due.submitted);
        }
        if (due.integrate || (due.commit && work.retry_ns <= ag_clock_ns())) {
            integrate_batch(ledger, &work);
        }
        if (due.publish) {
            publish(ledger, &work);
        }
        /* A disk that refuses tiles must not keep a process from ending. */
        last_try = closing && work.retry_ns != failed_at;
    }
    return NULL;
}
