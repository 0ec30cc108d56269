/* What producers, waiters and onlookers call; life.c opens and closes. */
#include "wal/writer.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "wal/state.h"

void
ag_wal_look_at_log(struct ag_wal *wal)
{
    struct ag_log *log = &wal->log;
    if (pthread_mutex_trylock(&wal->meta) != 0) {
        return;
    }
    if (wal->log_open && pthread_mutex_trylock(&log->lock) == 0) {
        (void)pthread_mutex_lock(&wal->lock);
        struct ag_wal_stats *stats = &wal->stats;
        stats->wal_id = log->wal_id;
        stats->segment_bytes = log->segment_bytes;
        stats->epoch = log->epoch;
        stats->low_water = log->low_water;
        stats->live_segments = (uint32_t)log->count;
        stats->direct = log->direct;
        if (log->count > 0) {
            stats->segment_no = log->segments[log->count - 1].segment_no;
        }
        (void)pthread_mutex_unlock(&wal->lock);
        (void)pthread_mutex_unlock(&log->lock);
    }
    (void)pthread_mutex_unlock(&wal->meta);
}

int
ag_wal_reserve(struct ag_wal *wal, size_t n, uint8_t **payload)
{
    if (ag_wal_forked(wal)) {
        return AG_EFORKED;
    }
    /* Acquire: after a reopen on another thread the counters are those it made. */
    switch (atomic_load_explicit(&wal->state, memory_order_acquire)) {
    case AG_WAL_POISONED:
        return AG_EPOISONED;
    case AG_WAL_CLOSED:
        return AG_ECLOSED;
    default:
        break;
    }
    if (n == 0 || n > wal->payload_max) {
        return AG_EINVAL;
    }
    return ag_ring_reserve(&wal->ring, (uint32_t)n, payload);
}

uint64_t
ag_wal_commit(struct ag_wal *wal, size_t n)
{
    uint64_t seq = wal->next_seq++;
    ag_ring_commit(&wal->ring, (uint32_t)n, seq);
    atomic_store_explicit(&wal->published_seq, seq, memory_order_release);
    enum ag_wal_sleep depth = AG_PARK;
    uint64_t head = atomic_load_explicit(&wal->ring.header->head, memory_order_relaxed);
    if (wal->options.max_delay_us == 0 ||
        wal->ring.tail - head > wal->ring.capacity / 2) {
        depth = AG_TICK;
    }
    ag_wal_wake(wal, depth);
    return seq;
}

int
ag_wal_append(struct ag_wal *wal, const void *payload, size_t n, uint64_t *seq)
{
    uint8_t *to = NULL;
    int status = ag_wal_reserve(wal, n, &to);
    if (status == AG_OK) {
        memcpy(to, payload, n);
        *seq = ag_wal_commit(wal, n);
    }
    return status;
}

size_t
ag_wal_payload_max(const struct ag_wal *wal)
{
    return wal->payload_max;
}

void
ag_wal_want(struct ag_wal *wal, uint64_t seq)
{
    if (ag_wal_forked(wal)) {
        return;
    }
    uint64_t wanted = atomic_load_explicit(&wal->want_seq, memory_order_relaxed);
    while (wanted < seq &&
           !atomic_compare_exchange_weak(&wal->want_seq, &wanted, seq)) {
    }
    if (atomic_load(&wal->durable_seq) >= seq ||
        atomic_load(&wal->state) != AG_WAL_OPEN) {
        ag_wal_signal(wal);
        return;
    }
    ag_wal_wake(wal, AG_TICK);
}

int
ag_wal_failure(struct ag_wal *wal, struct ag_error *err)
{
    if (atomic_load(&wal->state) != AG_WAL_POISONED) {
        return AG_OK;
    }
    (void)pthread_mutex_lock(&wal->lock);
    if (err != NULL) {
        *err = wal->failure;
    }
    (void)pthread_mutex_unlock(&wal->lock);
    return AG_EPOISONED;
}

int
ag_wal_sync(struct ag_wal *wal, uint64_t seq, uint64_t timeout_ns, struct ag_error *err)
{
    if (ag_wal_forked(wal)) {
        return ag_fail(err, AG_EFORKED, "the log belongs to the parent process");
    }
    if (seq > atomic_load(&wal->published_seq)) {
        return ag_fail(err, AG_ERANGE, "sequence %" PRIu64 " was never appended", seq);
    }
    uint64_t now = ag_clock_ns();
    uint64_t until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    int status = AG_OK;
    atomic_fetch_add(&wal->waiters, 1);
    ag_wal_want(wal, seq);
    (void)pthread_mutex_lock(&wal->lock);
    while (atomic_load(&wal->durable_seq) < seq) {
        uint32_t state = atomic_load(&wal->state);
        if (state == AG_WAL_POISONED) {
            status = AG_EPOISONED;
            if (err != NULL) {
                *err = wal->failure;
            }
            break;
        }
        if (state == AG_WAL_CLOSED && wal->writer_done) {
            status = ag_fail(err, AG_ECLOSED, "the log was closed");
            break;
        }
        if (until == UINT64_MAX) {
            (void)pthread_cond_wait(&wal->changed, &wal->lock);
            continue;
        }
        struct timespec at = ag_clock_at(until);
        if (pthread_cond_timedwait(&wal->changed, &wal->lock, &at) == ETIMEDOUT &&
            atomic_load(&wal->durable_seq) < seq) {
            status = ag_fail(err, AG_ETIMEDOUT,
                             "sequence %" PRIu64 " is not durable yet; it may still "
                             "become so",
                             seq);
            break;
        }
    }
    atomic_fetch_sub(&wal->waiters, 1);
    (void)pthread_mutex_unlock(&wal->lock);
    return status;
}

uint64_t
ag_wal_durable(const struct ag_wal *wal)
{
    return atomic_load_explicit(&wal->durable_seq, memory_order_acquire);
}

uint64_t
ag_wal_next_seq(const struct ag_wal *wal)
{
    return atomic_load_explicit(&wal->published_seq, memory_order_acquire) + 1;
}

size_t
ag_wal_room(const struct ag_wal *wal)
{
    return ag_wal_forked(wal) ? 0 : ag_ring_room(&wal->ring);
}

bool
ag_wal_want_room(struct ag_wal *wal, size_t n)
{
    if (ag_wal_forked(wal) || n > wal->ring.capacity || ag_wal_room(wal) >= n) {
        return true;
    }
    atomic_store(&wal->want_room, n);
    if (ag_wal_room(wal) >= n) {
        ag_wal_signal(wal);
    }
    ag_wal_wake(wal, AG_TICK);
    return false;
}

int
ag_wal_fileno(const struct ag_wal *wal)
{
    return wal->event_fd;
}

uint64_t
ag_wal_drain(struct ag_wal *wal)
{
    if (!ag_wal_forked(wal)) {
        uint64_t count;
        ssize_t got;
        do {
            got = read(wal->event_fd, &count, sizeof(count));
        } while (got < 0 && errno == EINTR);
        /* Cleared before durable_seq is read: news after this read signals again. */
        atomic_store(&wal->event_pending, 0);
    }
    return atomic_load(&wal->durable_seq);
}

void
ag_wal_mark(struct ag_wal *wal)
{
    atomic_store(&wal->mark_asked, 1);
    ag_wal_wake(wal, AG_TICK);
}

int
ag_wal_set_low_water(struct ag_wal *wal, uint64_t seq, const void *blob, uint32_t n,
                     struct ag_error *err)
{
    if (ag_wal_forked(wal)) {
        return ag_fail(err, AG_EFORKED, "the log belongs to the parent process");
    }
    (void)pthread_mutex_lock(&wal->meta);
    int status = wal->log_open ? ag_log_set_low_water(&wal->log, seq, blob, n, err)
                               : ag_fail(err, AG_EPOISONED,
                                         "the log is being reopened or poisoned");
    (void)pthread_mutex_unlock(&wal->meta);
    return status;
}

int
ag_wal_low_water(struct ag_wal *wal, uint64_t *seq, uint8_t **blob, uint32_t *n)
{
    int status = AG_OK;
    (void)pthread_mutex_lock(&wal->meta);
    if (!wal->log_open) {
        (void)pthread_mutex_unlock(&wal->meta);
        return AG_EPOISONED;
    }
    (void)pthread_mutex_lock(&wal->log.lock);
    uint8_t *copy = ag_alloc(wal->log.blob_len);
    if (copy == NULL) {
        status = AG_ENOMEM;
    } else {
        if (wal->log.blob_len != 0) {
            memcpy(copy, wal->log.blob, wal->log.blob_len);
        }
        *seq = wal->log.low_water;
        *blob = copy;
        *n = wal->log.blob_len;
    }
    (void)pthread_mutex_unlock(&wal->log.lock);
    (void)pthread_mutex_unlock(&wal->meta);
    return status;
}

void
ag_wal_notes(struct ag_wal *wal, char to[AG_WAL_NOTES])
{
    (void)pthread_mutex_lock(&wal->lock);
    memcpy(to, wal->recovery.notes, AG_WAL_NOTES);
    (void)pthread_mutex_unlock(&wal->lock);
}

void
ag_wal_stats(struct ag_wal *wal, struct ag_wal_stats *stats)
{
    if (ag_wal_forked(wal)) {
        memset(stats, 0, sizeof(*stats));
        stats->ring_mode = stats->verdict = "none";
        return;
    }
    ag_wal_look_at_log(wal);
    (void)pthread_mutex_lock(&wal->lock);
    *stats = wal->stats;
    (void)pthread_mutex_unlock(&wal->lock);
    stats->next_seq = ag_wal_next_seq(wal);
    stats->durable_seq = ag_wal_durable(wal);
    stats->ring_capacity = wal->ring.capacity;
    stats->ring_used = wal->ring.capacity - ag_ring_room(&wal->ring);
    stats->wakes = atomic_load(&wal->wakes);
    stats->poisoned = atomic_load(&wal->state) == AG_WAL_POISONED;
    stats->ring_mode = ag_ring_mode(wal->io, wal->ring_path);
}
