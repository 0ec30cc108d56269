/* Thread W. It gathers what the ring holds into a batch, writes and syncs it, says so,
 * and goes on. When does it flush? At once if somebody waits or the ring fills up; else
 * once per window of max_delay_us. While records keep coming it sleeps with a timer, so
 * that the producer never has to wake it (a futex wake costs the producer 9-15 us);
 * after some empty windows it parks, and the next record wakes it.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#include "wal/futex.h"
#include "wal/state.h"

/* Empty windows before W parks. */
#define IDLE_WINDOWS 8u
/* The last acknowledged batch gets its witness after this much quiet. */
#define MARKER_AFTER_NS (250u * 1000u * 1000u)
#define SLOW_SYNC_NS 1000000000u

void
ag_wal_wake(struct ag_wal *wal, enum ag_wal_sleep depth)
{
    /* The store that W must see comes before this load, W's store of `sleep` before its
     * last look at what there is to do: one of the two sees the other. */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&wal->sleep, memory_order_relaxed) >= (uint32_t)depth &&
        atomic_exchange(&wal->sleep, AG_AWAKE) != AG_AWAKE) {
        atomic_fetch_add_explicit(&wal->wakes, 1, memory_order_relaxed);
        ag_futex_wake(&wal->sleep);
    }
}

void
ag_wal_signal(struct ag_wal *wal)
{
    if (wal->event_fd >= 0 && atomic_exchange(&wal->event_pending, 1) == 0) {
        const uint64_t one = 1;
        ssize_t put;
        do {
            put = write(wal->event_fd, &one, sizeof(one));
        } while (put < 0 && errno == EINTR);
    }
}

void
ag_wal_mark_position(struct ag_wal *wal, uint64_t seq, uint64_t position)
{
    (void)pthread_mutex_lock(&wal->lock);
    struct ag_wal_mark *mark = &wal->marks[wal->mark_count++ % AG_WAL_MARKS];
    mark->seq = seq;
    mark->position = position;
    (void)pthread_mutex_unlock(&wal->lock);
}

static void
wake_waiters(struct ag_wal *wal)
{
    if (atomic_load(&wal->waiters) != 0) {
        (void)pthread_mutex_lock(&wal->lock);
        (void)pthread_cond_broadcast(&wal->changed);
        (void)pthread_mutex_unlock(&wal->lock);
    }
}

static void
poison(struct ag_wal *wal, const struct ag_error *err)
{
    (void)pthread_mutex_lock(&wal->lock);
    wal->failure = *err;
    wal->failure.status = AG_EPOISONED;
    ag_error_advice(&wal->failure,
                    "The outcome of records that are not durable is unknown. Mend the "
                    "disk, then reopen the log: what the ring holds is written again");
    atomic_store(&wal->state, AG_WAL_POISONED);
    (void)pthread_cond_broadcast(&wal->changed);
    (void)pthread_mutex_unlock(&wal->lock);
    ag_wal_signal(wal);
    if (wal->options.notify != NULL) {
        wal->options.notify(
            wal->options.notify_ctx,
            atomic_load_explicit(&wal->durable_seq, memory_order_relaxed),
            AG_EPOISONED);
    }
}

static unsigned
bucket_of(uint64_t value, unsigned buckets)
{
    unsigned bucket = 0;
    while (bucket + 1 < buckets && value >> bucket != 0) {
        bucket++;
    }
    return bucket;
}

static void
count_batch(struct ag_wal *wal, uint64_t ns, uint32_t records, uint64_t bytes)
{
    (void)pthread_mutex_lock(&wal->lock);
    struct ag_wal_stats *stats = &wal->stats;
    if (stats->syncs == 0) {
        stats->sync_ns_first = ns;
    }
    stats->syncs++;
    stats->slow_syncs += ns > SLOW_SYNC_NS;
    stats->sync_ns_total += ns;
    stats->sync_ns_max = ns > stats->sync_ns_max ? ns : stats->sync_ns_max;
    stats->sync_us[bucket_of(ns / 1000, AG_WAL_SYNC_BUCKETS)]++;
    stats->bytes += bytes;
    stats->chain = wal->log.crc;
    if (records != 0) {
        stats->batches++;
        stats->records += records;
        stats->batch_records[bucket_of(records, AG_WAL_BATCH_BUCKETS)]++;
    } else {
        stats->markers++;
    }
    (void)pthread_mutex_unlock(&wal->lock);
}

/* Tells everybody that everything up to `durable` is. */
static void
announce(struct ag_wal *wal, uint64_t before, uint64_t durable)
{
    atomic_store(&wal->durable_seq, durable);
    bool signal = atomic_load(&wal->want_seq) > before;
    uint64_t room = atomic_load(&wal->want_room);
    if (room != 0 && ag_ring_room(&wal->ring) >= room) {
        (void)atomic_compare_exchange_strong(&wal->want_room, &room, 0);
        signal = true;
    }
    if (signal) {
        ag_wal_signal(wal);
    }
    wake_waiters(wal);
    if (wal->options.notify != NULL) {
        wal->options.notify(wal->options.notify_ctx, durable, AG_OK);
    }
}

/* Waits for the helper's segment and moves on to it. */
static int
rotate(struct ag_wal *wal, struct ag_error *err)
{
    (void)pthread_mutex_lock(&wal->lock);
    while (wal->spare_fd < 0) {
        /* At the end, one failed attempt is enough: the ring keeps the rest. */
        if (wal->spare_failed && atomic_load(&wal->stop)) {
            *err = wal->failure;
            (void)pthread_mutex_unlock(&wal->lock);
            return AG_EFULL;
        }
        ag_wal_hurry_spare(wal);
        (void)pthread_cond_wait(&wal->changed, &wal->lock);
    }
    int fd = wal->spare_fd;
    wal->spare_fd = -1;
    (void)pthread_mutex_unlock(&wal->lock);
    int status = ag_log_rotate(&wal->log, fd, err);
    if (status != AG_OK) {
        return status; /* and no spare behind a segment that never became active */
    }
    wal->witnessed = true; /* its header says that all before it is durable */
    ag_wal_use_segment(wal, wal->log.at);
    (void)pthread_mutex_lock(&wal->lock);
    wal->stats.rotations++;
    wal->spare_wanted = true;
    (void)pthread_cond_broadcast(&wal->changed);
    (void)pthread_mutex_unlock(&wal->lock);
    return AG_OK;
}

/* Writes and syncs one batch of what lies in [taken, tail). */
static int
flush_batch(struct ag_wal *wal, uint64_t tail, struct ag_error *err)
{
    const uint8_t *payload = NULL;
    uint64_t at = wal->taken, started = ag_clock_ns();
    uint64_t before = ag_log_last_seq(&wal->log);
    struct ag_ring_entry entry = ag_ring_at(&wal->ring, at, &payload);
    int status = AG_OK;
    if (!ag_log_segment_takes(&wal->log, entry.n)) {
        status = rotate(wal, err);
        if (status != AG_OK) {
            return status;
        }
    }
    while (at < tail) {
        entry = ag_ring_at(&wal->ring, at, &payload);
        if (!ag_log_batch_takes(&wal->log, entry.n)) {
            break;
        }
        ag_log_add(&wal->log, payload, entry.n, entry.crc);
        at = ag_ring_entry_end(&entry);
    }
    uint32_t records = wal->log.nrec;
    uint64_t bytes = ag_wal_extent(wal->log.body_len);
    ag_wal_mark_position(wal, before + 1, wal->taken);
    status = ag_log_flush(&wal->log, 0, err);
    if (status != AG_OK) {
        return status;
    }
    wal->taken = at;
    wal->witnessed = false;
    uint64_t durable = ag_log_last_seq(&wal->log);
    ag_ring_free(&wal->ring, at, durable);
    announce(wal, before, durable);
    ag_wal_use_segment(wal, wal->log.at);
    count_batch(wal, ag_clock_ns() - started, records, bytes);
    wal->batch_bytes = bytes;
    return AG_OK;
}

/* Whether another batch like the last one needs the next segment, which is there. */
static bool
may_rotate_early(struct ag_wal *wal)
{
    if (wal->batch_bytes == 0 || ag_log_extent_fits(&wal->log, wal->batch_bytes)) {
        return false;
    }
    (void)pthread_mutex_lock(&wal->lock);
    bool ready = wal->spare_fd >= 0;
    (void)pthread_mutex_unlock(&wal->lock);
    return ready;
}

static int
write_marker(struct ag_wal *wal, uint8_t flags, struct ag_error *err)
{
    uint64_t started = ag_clock_ns();
    int status = ag_log_flush(&wal->log, flags, err);
    if (status == AG_OK) {
        wal->witnessed = true;
        count_batch(wal, ag_clock_ns() - started, 0, AG_WAL_BLOCK);
    }
    return status;
}

/* Whether to flush before the window ends. */
static bool
is_urgent(struct ag_wal *wal, uint64_t tail)
{
    if (wal->options.max_delay_us == 0 || atomic_load(&wal->stop) ||
        atomic_load(&wal->want_room) != 0) {
        return true;
    }
    if (tail - wal->taken >= AG_WAL_BATCH_MAX ||
        tail - wal->taken > wal->ring.capacity / 2) {
        return true;
    }
    return atomic_load(&wal->want_seq) >
           atomic_load_explicit(&wal->durable_seq, memory_order_relaxed);
}

/* Sleeps unless there is something to do, after saying how it sleeps. */
static void
sleep_until(struct ag_wal *wal, enum ag_wal_sleep how, uint64_t until_ns)
{
    atomic_store(&wal->sleep, (uint32_t)how);
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t tail = atomic_load_explicit(&wal->ring.header->tail, memory_order_acquire);
    bool pending = tail != wal->taken;
    if (atomic_load(&wal->stop) || atomic_load(&wal->mark_asked) != 0 ||
        (pending && (how == AG_PARK || is_urgent(wal, tail)))) {
        atomic_store(&wal->sleep, AG_AWAKE);
        return;
    }
    ag_futex_wait(&wal->sleep, (uint32_t)how, until_ns);
    atomic_store(&wal->sleep, AG_AWAKE);
}

static int
writer_loop(struct ag_wal *wal, struct ag_error *err)
{
    const uint64_t window = (uint64_t)wal->options.max_delay_us * 1000u;
    uint64_t flush_at = ag_clock_ns() + window, marker_at = 0;
    unsigned idle = 0;
    bool parked = false;
    for (;;) {
        /* First stop, then tail: whoever sets stop has appended before. */
        bool stop = atomic_load(&wal->stop);
        uint64_t tail =
            atomic_load_explicit(&wal->ring.header->tail, memory_order_acquire);
        uint64_t now = ag_clock_ns();
        int status = AG_OK;
        if (tail != wal->taken) {
            if (parked) {
                flush_at = now + window;
                parked = false;
            }
            idle = 0;
            if (now < flush_at && !is_urgent(wal, tail)) {
                sleep_until(wal, AG_TICK, flush_at);
                continue;
            }
            status = flush_batch(wal, tail, err);
            now = ag_clock_ns();
            flush_at = now + window;
            marker_at = now + MARKER_AFTER_NS;
        } else if (stop) {
            return AG_OK;
        } else if (may_rotate_early(wal)) {
            /* Nobody waits now: the next batch need not wait for a new segment. */
            status = rotate(wal, err);
        } else if (!wal->witnessed && ag_log_marker_fits(&wal->log) &&
                   (atomic_exchange(&wal->mark_asked, 0) != 0 || now >= marker_at)) {
            status = write_marker(wal, AG_BATCH_MARKER, err);
        } else if (window != 0 && idle < IDLE_WINDOWS) {
            atomic_store(&wal->mark_asked, 0);
            flush_at = now + window;
            sleep_until(wal, AG_TICK, flush_at);
            idle += ag_clock_ns() >= flush_at;
        } else {
            atomic_store(&wal->mark_asked, 0);
            parked = true;
            bool due = !wal->witnessed && ag_log_marker_fits(&wal->log);
            sleep_until(wal, AG_PARK, due ? marker_at : UINT64_MAX);
        }
        if (status != AG_OK) {
            return status;
        }
    }
}

static void *
writer_main(void *arg)
{
    struct ag_wal *wal = arg;
    struct ag_error err;
    memset(&err, 0, sizeof(err));
    (void)prctl(PR_SET_NAME, "aegis-wal", 0, 0, 0);
    int status = writer_loop(wal, &err);
    if (status == AG_OK && ag_log_marker_fits(&wal->log)) {
        /* Says that the ring was empty: the next open does not miss it. */
        status = write_marker(wal, AG_BATCH_MARKER | AG_BATCH_CLEAN, &err);
        wal->closed_cleanly = status == AG_OK;
    }
    if (status != AG_OK) {
        poison(wal, &err);
    }
    ag_wal_hurry_spare(wal);
    (void)pthread_mutex_lock(&wal->lock);
    wal->writer_done = true;
    (void)pthread_cond_broadcast(&wal->changed);
    (void)pthread_mutex_unlock(&wal->lock);
    return NULL;
}

int
ag_wal_threads_start(struct ag_wal *wal, struct ag_error *err)
{
    sigset_t all, before;
    atomic_store(&wal->stop, false);
    atomic_store(&wal->helper_stop, false);
    atomic_store(&wal->sleep, AG_AWAKE);
    atomic_store(&wal->piece_at, UINT64_MAX);
    atomic_store(&wal->used, wal->log.at);
    wal->batch_bytes = 0;
    wal->writer_done = false;
    wal->closed_cleanly = false;
    wal->witnessed = wal->log.at == AG_WAL_BLOCK; /* its header says it */
    wal->spare_wanted = true;
    wal->spare_failed = false;
    wal->spare_fd = -1;
    /* Signals are for the threads of the program. */
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int result = pthread_create(&wal->helper, NULL, ag_wal_helper, wal);
    if (result == 0) {
        wal->helper_running = true;
        result = pthread_create(&wal->writer, NULL, writer_main, wal);
        wal->writer_running = result == 0;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (result != 0) {
        wal->writer_done = true;
        (void)ag_wal_threads_stop(wal, UINT64_MAX);
        return ag_fail_sys(err, result, wal->path, "start a thread");
    }
    return AG_OK;
}

int
ag_wal_threads_stop(struct ag_wal *wal, uint64_t until_ns)
{
    atomic_store(&wal->stop, true);
    ag_wal_wake(wal, AG_TICK);
    (void)pthread_mutex_lock(&wal->lock);
    (void)pthread_cond_broadcast(&wal->changed);
    while (!wal->writer_done) {
        if (until_ns == UINT64_MAX) {
            (void)pthread_cond_wait(&wal->changed, &wal->lock);
            continue;
        }
        struct timespec at = ag_clock_at(until_ns);
        if (pthread_cond_timedwait(&wal->changed, &wal->lock, &at) == ETIMEDOUT &&
            !wal->writer_done) {
            (void)pthread_mutex_unlock(&wal->lock);
            return AG_ETIMEDOUT;
        }
    }
    bool helper = wal->helper_running;
    atomic_store(&wal->helper_stop, true);
    ag_wal_hurry_spare(wal);
    (void)pthread_cond_broadcast(&wal->changed);
    (void)pthread_mutex_unlock(&wal->lock);
    if (wal->writer_running) {
        (void)pthread_join(wal->writer, NULL);
        wal->writer_running = false;
    }
    if (helper) {
        (void)pthread_join(wal->helper, NULL);
    }
    if (wal->spare_fd >= 0) {
        (void)wal->io->close(wal->io->ctx, wal->spare_fd);
        wal->spare_fd = -1;
    }
    return AG_OK;
}
