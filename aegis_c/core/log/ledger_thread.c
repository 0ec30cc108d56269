/* Thread P of a ledger: integrate what is durable, publish, advance the low-water mark,
 * reopen a log that failed. Thread W belongs to the write-ahead log. */
#include <string.h>
#if defined(__linux__)
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "base/clock.h"
#include "log/ledger_state.h"

#define BATCH_ENTRIES 1024u         /* integrated between two announcements */
#define RETRY_NS 1000000000u        /* after a failed tile or checkpoint */
#define REOPEN_FIRST_NS 100000000u  /* after the log failed; doubles ... */
#define REOPEN_MOST_NS 10000000000u /* ... up to this */
#define MARK_ENTRIES 65536u         /* entries between two low-water marks */
#define MARK_ENTRIES_AT_CLOSE 4096u /* fewer are replayed at the next start */
#define MARK_SEGMENTS_AT_CLOSE 3u   /* each one is read at the next start */

/* What the thread alone knows. */
struct work {
    struct ag_wal_cursor *cursor; /* owned; at the first entry not integrated */
    uint64_t integrated; /* in the tree; told once their ids are in the column */
    uint64_t announced, published;
    uint64_t first_unpublished_ns, last_publish_ns, retry_ns;
    uint64_t reopen_ns, reopen_delay_ns; /* 0: the log has not failed */
};

/* What is due now, decided under the lock. */
struct due {
    bool integrate, publish, mend, reopen, stop;
};

static void
tell(struct ag_ledger *ledger)
{
    pthread_mutex_lock(&ledger->lock);
    pthread_cond_broadcast(&ledger->changed);
    pthread_cond_signal(&ledger->wake);
    pthread_mutex_unlock(&ledger->lock);
    if (atomic_exchange(&ledger->event_pending, 1) == 0) {
        ag_wakeup_signal(&ledger->wakeup);
    }
}

static void
announce(struct ag_ledger *ledger, enum ag_stage stage, uint64_t size)
{
    atomic_store_explicit(&ledger->stage_size[stage], size, memory_order_release);
    tell(ledger);
}

/* Called on thread W. */
void
ag_ledger_on_durable(void *arg, uint64_t durable_seq, int status)
{
    struct ag_ledger *ledger = arg;
    if (status == AG_OK) {
        announce(ledger, AG_DURABLE, durable_seq);
    } else {
        tell(ledger);
    }
}

static void
count_failure(struct ag_ledger *ledger, struct work *work, const struct ag_error *err)
{
    work->retry_ns = ag_clock_ns() + RETRY_NS;
    pthread_mutex_lock(&ledger->lock);
    ledger->stats.publish_failures++;
    ledger->stats.last_failure = *err;
    pthread_mutex_unlock(&ledger->lock);
}

static void
integrate(struct ag_ledger *ledger, struct work *work)
{
    struct ag_error err;
    uint64_t durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    uint64_t before = work->integrated;
    while (work->integrated < durable && work->integrated - before < BATCH_ENTRIES) {
        uint64_t seq = 0;
        const uint8_t *entry = NULL;
        uint32_t n = 0;
        int status = AG_OK;
        if (work->cursor == NULL) {
            status = ag_wal_cursor_open(ledger->wal, work->integrated + 1,
                                        &work->cursor, &err);
        }
        if (status == AG_OK) {
            status = ag_wal_cursor_next(work->cursor, durable, &seq, &entry, &n, &err);
        }
        if (status == 0) {
            break; /* announced by W, but not there for the cursor yet */
        }
        if (status > 0) {
            status = ag_ledger_integrate(ledger, entry, n, false, &err);
        }
        if (status < 0) { /* the cursor starts again at the entry that failed */
            ag_wal_cursor_close(work->cursor);
            work->cursor = NULL;
            count_failure(ledger, work, &err);
            break;
        }
        work->integrated++;
    }
    if (work->integrated == work->announced) {
        return;
    }
    if (ag_ids_flush(&ledger->ids, &err) != AG_OK) {
        count_failure(ledger, work, &err);
        return;
    }
    if (work->announced == work->published) {
        work->first_unpublished_ns = ag_clock_ns();
    }
    work->announced = work->integrated;
    announce(ledger, AG_INTEGRATED, work->integrated);
    pthread_mutex_lock(&ledger->lock);
    ag_pending_drop_lock_held(ledger, work->integrated);
    pthread_mutex_unlock(&ledger->lock);
}

static void
mend(struct ag_ledger *ledger, struct work *work)
{
    struct ag_error err;
    if (ag_ledger_mend_ids(ledger, &err) != AG_OK) {
        count_failure(ledger, work, &err);
    }
}

static void
advance_mark(struct ag_ledger *ledger, struct work *work, uint64_t entries)
{
    struct ag_error err;
    if (!ledger->tiles_doubtful && work->published - ledger->low_water >= entries &&
        ag_ledger_advance_mark(ledger, &err) != AG_OK) {
        count_failure(ledger, work, &err);
    }
}

static void
publish(struct ag_ledger *ledger, struct work *work)
{
    struct ag_error err;
    int status = ag_ledger_publish(ledger, &err);
    work->last_publish_ns = ag_clock_ns();
    if (status != AG_OK) {
        count_failure(ledger, work, &err);
        return;
    }
    pthread_mutex_lock(&ledger->lock);
    ledger->stats.checkpoints++;
    pthread_mutex_unlock(&ledger->lock);
    work->published = work->integrated;
    announce(ledger, AG_PUBLISHED, work->published);
    ag_ledger_drop_partials(ledger, ledger->collected, work->published);
    ledger->collected = work->published;
    advance_mark(ledger, work, MARK_ENTRIES);
}

/* Recovers the log on a new segment. Submitters are kept off it meanwhile; they are
 * told what stopped it. */
static void
reopen(struct ag_ledger *ledger, struct work *work)
{
    struct ag_error err;
    ag_wal_cursor_close(work->cursor);
    work->cursor = NULL;
    pthread_mutex_lock(&ledger->lock);
    (void)ag_wal_failure(ledger->wal, &ledger->failure);
    ledger->reopening = true;
    pthread_mutex_unlock(&ledger->lock);
    int status = ag_wal_reopen(ledger->wal, &err);
    pthread_mutex_lock(&ledger->lock);
    ledger->reopening = false;
    ledger->stats.reopens += status == AG_OK;
    pthread_mutex_unlock(&ledger->lock);
    if (status == AG_OK) { /* what is durable was announced before W could go on */
        work->reopen_delay_ns = work->reopen_ns = 0;
        return;
    }
    work->reopen_delay_ns = work->reopen_delay_ns * 2 < REOPEN_MOST_NS
                                ? work->reopen_delay_ns * 2
                                : REOPEN_MOST_NS;
    work->reopen_ns = ag_clock_ns() + work->reopen_delay_ns;
}

static uint64_t
earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* When the next checkpoint is due, given that there is something to publish. */
static uint64_t
publish_at(const struct ag_ledger *ledger, const struct work *work)
{
    bool soon = ledger->wanted_published > work->published ||
                work->integrated / AG_TILE_WIDTH != work->published / AG_TILE_WIDTH;
    uint64_t at = soon ? work->last_publish_ns + ledger->publish_gap_ns
                       : work->first_unpublished_ns + ledger->publish_max_ns;
    return at > work->retry_ns ? at : work->retry_ns;
}

/* Fills `due` and returns the time until which there is nothing to do, 0 for none. */
static uint64_t
decide_lock_held(struct ag_ledger *ledger, struct work *work, struct due *due)
{
    uint64_t now = ag_clock_ns(), next = UINT64_MAX;
    uint64_t durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    bool closing = ledger->close_by_ns != 0;
    bool failed = ag_wal_failure(ledger->wal, NULL) != AG_OK;
    memset(due, 0, sizeof(*due));
    if (failed && !closing) {
        if (work->reopen_ns == 0) {
            work->reopen_delay_ns = REOPEN_FIRST_NS;
            work->reopen_ns = now + REOPEN_FIRST_NS;
        }
        due->reopen = work->reopen_ns <= now;
        next = earlier(next, work->reopen_ns);
    }
    if (work->integrated < durable || work->announced < work->integrated) {
        due->integrate = work->retry_ns <= now || closing;
        next = earlier(next, work->retry_ns);
    } else if (work->integrated > work->published) {
        uint64_t at = publish_at(ledger, work);
        /* The last checkpoint covers everything, so it waits for thread W. */
        bool complete = failed || durable == ledger->submitted;
        due->publish = at <= now || (closing && complete);
        next = earlier(next, at);
    }
    if (!due->integrate && !due->publish && !closing &&
        ag_ledger_ids_mendable(ledger)) {
        due->mend = work->retry_ns <= now;
        next = earlier(next, work->retry_ns);
    }
    if (closing) {
        bool complete =
            work->published == durable && (failed || durable == ledger->submitted);
        due->stop = complete || ledger->close_by_ns <= now;
        next = earlier(next, ledger->close_by_ns);
    }
    bool nothing =
        !due->integrate && !due->publish && !due->mend && !due->reopen && !due->stop;
    return nothing ? next : 0;
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

/* Says that the thread is through with the ledger; frees it when closing gave up. */
static void
end(struct ag_ledger *ledger)
{
    pthread_mutex_lock(&ledger->lock);
    ledger->thread_ended = true;
    bool left = ledger->left_to_thread;
    uint64_t bound = ledger->close_max_ns;
    pthread_cond_broadcast(&ledger->changed);
    pthread_mutex_unlock(&ledger->lock);
    if (left && ag_wal_close(ledger->wal, bound, NULL) != AG_ETIMEDOUT) {
        ag_ledger_free(ledger);
    }
}

void *
ag_ledger_thread(void *arg)
{
    struct ag_ledger *ledger = arg;
    uint64_t size = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    struct work work = {.integrated = size,
                        .announced = size,
                        .published = ag_ledger_stage_size(ledger, AG_PUBLISHED),
                        .first_unpublished_ns = ag_clock_ns()};
    struct due due = {0};
    bool last_try = false;
    step_back();
    while (!due.stop && !last_try) {
        pthread_mutex_lock(&ledger->lock);
        uint64_t until = decide_lock_held(ledger, &work, &due);
        while (until != 0) {
            ag_cond_wait_until(&ledger->wake, &ledger->lock, until);
            until = decide_lock_held(ledger, &work, &due);
        }
        bool closing = ledger->close_by_ns != 0;
        pthread_mutex_unlock(&ledger->lock);
        uint64_t failed_at = work.retry_ns;
        if (due.reopen) {
            reopen(ledger, &work);
        }
        if (due.integrate) {
            integrate(ledger, &work);
        }
        if (due.publish) {
            publish(ledger, &work);
        }
        if (due.mend) {
            mend(ledger, &work);
        }
        /* A disk that refuses tiles must not keep a process from ending. */
        last_try = closing && work.retry_ns != failed_at;
    }
    struct ag_wal_stats stats;
    ag_wal_stats(ledger->wal, &stats);
    advance_mark(ledger, &work,
                 stats.live_segments >= MARK_SEGMENTS_AT_CLOSE ? 0
                                                               : MARK_ENTRIES_AT_CLOSE);
    ag_wal_cursor_close(work.cursor);
    end(ledger);
    return NULL;
}
