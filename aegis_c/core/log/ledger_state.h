/* The inside of a ledger, shared by ledger*.c only.
 *
 * Locks: `lock` guards the ring's positions and everything that submitters and waiters
 * share; `tree_lock` guards frontier, bundle and checkpoint against readers. Neither is
 * held across I/O, and they are never held together. */
#ifndef AG_LOG_LEDGER_STATE_H
#define AG_LOG_LEDGER_STATE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/sync.h"
#include "log/ledger.h"
#include "log/store.h"
#include "log/tile.h"
#include "wal/journal.h"

/* The entries of the incomplete bundle: u16be length, octets, one after the other. */
struct ag_bundle {
    uint8_t *bytes; /* owned */
    size_t used, room;
    size_t start[AG_TILE_WIDTH]; /* offset of each entry's length */
    unsigned count;
};

struct ag_ledger {
    const struct ag_io *io;
    struct ag_store store;
    struct ag_signer *signer;   /* owned */
    struct ag_journal *journal; /* owned; used by the thread only, once it runs */
    char private_dir[PATH_MAX - 128];
    char origin[AG_ORIGIN_MAX + 1];
    uint64_t log_id;
    uint8_t secret[AG_HASH_SIZE]; /* default subject secret */
    uint64_t max_delay_ns, publish_gap_ns, publish_max_ns;
    int lock_fd;
    struct ag_wakeup wakeup;
    pid_t pid;
    pthread_t thread;
    bool thread_runs;

    pthread_mutex_t lock;
    pthread_cond_t wake;    /* for the thread */
    pthread_cond_t changed; /* for ag_ledger_wait */
    /* under lock */
    uint8_t *ring; /* owned; octets between tail and head belong to the thread */
    size_t ring_n, head, tail, used;
    uint64_t submitted;
    uint64_t first_pending_ns;  /* when the oldest entry that is not durable came */
    uint64_t wanted[AG_STAGES]; /* size that somebody waits for */
    bool closing, failed;
    struct ag_error failure;
    struct ag_ledger_stats stats; /* counters of the thread */

    _Atomic uint64_t stage_size[AG_STAGES];
    _Atomic int event_pending;

    pthread_mutex_t tree_lock;
    /* under tree_lock; changed by the thread only */
    struct ag_frontier frontier;
    struct ag_bundle bundle;
    char checkpoint[AG_CHECKPOINT_MAX]; /* last published; "" before the first */
    size_t checkpoint_n;
    uint64_t checkpoint_size;
    uint8_t checkpoint_root[AG_HASH_SIZE];
};

/* ledger_open.c */
int ag_ledger_private_path(const struct ag_ledger *ledger, const char *name,
                           char path[PATH_MAX], struct ag_error *err);

/* ledger_tree.c: the tree of the integrated entries, owner thread. Integrating writes
 * the tiles that become full; `compare` leaves equal files alone. */
int ag_ledger_integrate(struct ag_ledger *ledger, const uint8_t *entry, size_t n,
                        bool compare, struct ag_error *err);
int ag_ledger_write_partials(struct ag_ledger *ledger, bool compare,
                             struct ag_error *err);
int ag_ledger_publish(struct ag_ledger *ledger, struct ag_error *err);

/* ledger_thread.c */
void *ag_ledger_thread(void *ledger);

/* ledger.c: the ring. A record is {length u32, zero u32, octets, padding to 8}; a
 * length of AG_RING_WRAP sends the reader back to the start. */
#define AG_RING_HEADER 8
#define AG_RING_WRAP UINT32_MAX
size_t ag_ring_record_size(size_t n);

#endif
