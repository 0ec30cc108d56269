/* The inside of struct ag_wal, shared by life.c, writer.c, flusher.c, spare.c and
 * cursor.c only. */
#ifndef AG_WAL_STATE_H
#define AG_WAL_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "wal/place.h"
#include "wal/replay.h"
#include "wal/segment.h"
#include "wal/writer.h"

enum ag_wal_state { AG_WAL_OPEN, AG_WAL_POISONED, AG_WAL_CLOSED };

/* How thread W sleeps: the producer must wake it from PARK, a waiter from both. */
enum ag_wal_sleep { AG_AWAKE, AG_TICK, AG_PARK };

/* Where batches began in the ring, for cursors that come back from the log. */
#define AG_WAL_MARKS 1024u

struct ag_wal_mark {
    uint64_t seq, position;
};

struct ag_wal {
    const struct ag_io *io;
    char path[AG_WAL_PATH];
    char ring_path[AG_WAL_PATH];
    char archive[AG_WAL_PATH];
    struct ag_wal_options options;
    uint8_t
        *alive; /* a page that the kernel wipes in a forked child: 1 here, 0 there */
    int lock_fd;
    int event_fd;
    size_t payload_max;

    /* producer */
    struct ag_ring ring;
    uint64_t next_seq; /* also read by others: see published_seq */
    uint32_t reserved;

    _Alignas(64) _Atomic uint64_t published_seq; /* last committed */
    _Atomic uint32_t state;                      /* enum ag_wal_state */
    _Atomic uint64_t want_seq;
    _Atomic uint64_t want_room;
    _Alignas(64) _Atomic uint32_t sleep; /* enum ag_wal_sleep; futex word of W */
    _Atomic uint32_t mark_asked;
    _Atomic uint64_t wakes;
    _Alignas(64) _Atomic uint64_t durable_seq;
    _Atomic uint32_t event_pending;
    _Atomic uint32_t waiters;
    atomic_bool stop;
    atomic_bool helper_stop;

    /* what W tells the helper, and what the helper waits for */
    _Alignas(64) _Atomic uint64_t used; /* offset in the active segment; UINT64_MAX: W
                                           waits for the spare */
    _Atomic uint64_t piece_at;          /* the next piece of zeros awaits this offset */
    _Atomic uint32_t pieces;            /* futex word of the helper */

    /* thread W alone (and open, reopen, close when W does not run) */
    struct ag_log log;
    bool log_open;
    uint64_t taken;       /* ring position behind the last entry written */
    uint64_t batch_bytes; /* of the last batch on disk */
    bool witnessed;       /* a header on disk says that everything is durable */
    bool closed_cleanly;

    /* under `lock` */
    pthread_mutex_t lock;
    pthread_cond_t changed; /* durable_seq, state, done, spare */
    bool writer_done, writer_running, helper_running;
    bool spare_wanted;
    int spare_fd; /* owned; -1: none */
    bool spare_failed;
    struct ag_error failure;
    struct ag_wal_mark marks[AG_WAL_MARKS];
    uint64_t mark_count;
    struct ag_wal_stats stats; /* counters of W */

    pthread_mutex_t meta; /* log_open against set_low_water */
    pthread_t writer, helper;
    struct ag_wal_recovery recovery;
    uint64_t replayed;
    bool ring_lost;
};

/* Whether this is a forked child of the process that opened the log. */
static inline bool
ag_wal_forked(const struct ag_wal *wal)
{
    return *(const volatile uint8_t *)wal->alive != 1;
}

/* Starts and stops the two threads. Stop waits for W to flush everything (until
 * `until_ns`; AG_ETIMEDOUT) and joins both. */
int ag_wal_threads_start(struct ag_wal *wal, struct ag_error *err);
int ag_wal_threads_stop(struct ag_wal *wal, uint64_t until_ns);

/* The helper's thread; `arg` is the log. */
void *ag_wal_helper(void *arg);
/* W's offset in the active segment is now `at`: as far as the zeros may follow. */
void ag_wal_use_segment(struct ag_wal *wal, uint64_t at);
/* Somebody waits for the helper: it goes on without pauses. */
void ag_wal_hurry_spare(struct ag_wal *wal);

/* Wakes W when it sleeps at least as deep as `depth`. Any thread. */
void ag_wal_wake(struct ag_wal *wal, enum ag_wal_sleep depth);
/* Makes the eventfd readable, once until the next drain. Any thread. */
void ag_wal_signal(struct ag_wal *wal);
/* Remembers that the entry of `seq` is at `position`. */
void ag_wal_mark_position(struct ag_wal *wal, uint64_t seq, uint64_t position);

/* Copies what the log knows of itself into wal->stats. Its locks are held across file
 * operations: while somebody has them, what was seen last must do. */
void ag_wal_look_at_log(struct ag_wal *wal);

#endif
