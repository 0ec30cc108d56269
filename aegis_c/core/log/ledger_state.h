/* The inside of a ledger, shared by ledger*.c only.
 *
 * Locks: `lock` serialises submitters and guards what they share with waiters and the
 * thread; `tree_lock` guards frontier, bundle and checkpoint against readers. Neither
 * is held across I/O, and they are never held together. */
#ifndef AG_LOG_LEDGER_STATE_H
#define AG_LOG_LEDGER_STATE_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/sync.h"
#include "log/bundle.h"
#include "log/ids.h"
#include "log/intents.h"
#include "log/ledger.h"
#include "log/store.h"
#include "log/tile.h"
#include "wal/writer.h"

#define AG_PENDING_CHUNK 4096u

/* Ids of the entries that are submitted and not integrated. */
struct ag_pending {
    struct ag_pending_chunk *first, *last; /* owned */
    struct ag_pending_chunk *spare;        /* owned: saves an allocation */
};

struct ag_ledger {
    const struct ag_io *io;
    struct ag_store store;
    struct ag_signer *signer; /* owned */
    struct ag_wal *wal;       /* owned; sequence number = index + 1 */
    char private_dir[PATH_MAX - 128];
    char archive[PATH_MAX];
    char origin[AG_ORIGIN_MAX + 1];
    uint8_t secret[AG_HASH_SIZE]; /* default subject secret ... */
    struct ag_hmac secret_taken;  /* ... as commitments start from it */
    uint64_t publish_gap_ns, publish_max_ns, close_max_ns;
    int lock_fd;
    struct ag_wakeup wakeup;
    uint64_t process; /* that opened it: see base/process.h */
    pthread_t thread;

    pthread_mutex_t lock;
    pthread_cond_t wake;    /* for the thread */
    pthread_cond_t changed; /* for ag_ledger_wait */
    /* under lock; the log's producer side belongs to whoever holds it */
    uint64_t submitted;
    uint64_t wanted_published; /* size that somebody waits for */
    uint64_t close_by_ns;      /* closing: give up then; 0 while open */
    atomic_bool reopening;     /* the thread has the producer side; set under `lock` */
    bool thread_ended;         /* but for freeing the ledger, when it is left to it */
    bool left_to_thread;       /* closing gave up: the thread frees */
    struct ag_error failure;   /* what stopped the log, while reopening */
    struct ag_ledger_stats stats; /* counters of the thread */
    struct ag_pending pending;

    _Atomic uint64_t stage_size[AG_STAGES];
    _Atomic int event_pending;
    _Atomic uint64_t damaged_run; /* of the id column, and 1; 0: none is known */

    pthread_mutex_t tree_lock;
    /* under tree_lock; changed by the thread only */
    struct ag_frontier frontier;
    struct ag_bundle bundle;
    char checkpoint[AG_CHECKPOINT_MAX]; /* last published; "" before the first */
    size_t checkpoint_n;
    uint64_t checkpoint_size;
    uint8_t checkpoint_root[AG_HASH_SIZE];

    struct ag_intents intents_at_open; /* constant once open */

    /* the thread's */
    struct ag_ids ids; /* but its place, which is constant */
    struct ag_intents intents;
    uint64_t low_water; /* entries that recovery need not replay */
    uint64_t collected; /* partial tiles of full ones in a tree of this size are gone */
    bool tiles_doubtful; /* a sync of them failed: the mark stays */
};

/* ledger_open.c */
void ag_ledger_free(struct ag_ledger *ledger);
int ag_ledger_private_path(const struct ag_ledger *ledger, const char *name,
                           char path[PATH_MAX], struct ag_error *err);

/* ledger_identity.c: a folder that is half of a log, as somebody copied it, or that is
 * somebody else's, is told before anything is made in it; then origin, key and secret.
 */
int ag_ledger_look_before(struct ag_ledger *ledger,
                          const struct ag_ledger_options *options,
                          struct ag_error *err);
int ag_ledger_identify(struct ag_ledger *ledger,
                       const struct ag_ledger_options *options, struct ag_error *err);

/* ledger_recovery.c */
int ag_ledger_recover(struct ag_ledger *ledger, const struct ag_ledger_options *options,
                      struct ag_error *err);

/* ledger_ids.c: ids that are not in the column yet; the column, whose writer is the
 * thread; and mending it, a run at a time. */
int ag_pending_reserve_lock_held(struct ag_ledger *ledger, uint64_t index);
void ag_pending_put_lock_held(struct ag_ledger *ledger, uint64_t index,
                              const uint8_t id[AG_UUID_SIZE]);
void ag_pending_drop_lock_held(struct ag_ledger *ledger, uint64_t size);
void ag_pending_free(struct ag_ledger *ledger);
int ag_ledger_open_ids(struct ag_ledger *ledger, struct ag_error *err);
bool ag_ledger_ids_mendable(struct ag_ledger *ledger);
int ag_ledger_mend_ids(struct ag_ledger *ledger, struct ag_error *err);

/* ledger_mark.c: how far the files on disk are trusted without the log. */
int ag_ledger_read_mark(struct ag_ledger *ledger, const struct ag_wal_found *found,
                        uint64_t *size, uint8_t root[AG_HASH_SIZE],
                        struct ag_error *err);
int ag_ledger_advance_mark(struct ag_ledger *ledger, struct ag_error *err);

/* ledger_tree.c: the tree of the integrated entries, owner thread. Loading reads the
 * right edge of the tree of `size` entries from disk. Integrating writes the tiles that
 * become full; `compare` leaves equal files alone. */
int ag_ledger_load_tree(struct ag_ledger *ledger, uint64_t size, struct ag_error *err);
int ag_ledger_integrate(struct ag_ledger *ledger, const uint8_t *entry, size_t n,
                        bool compare, struct ag_error *err);
int ag_ledger_write_partials(struct ag_ledger *ledger, bool compare,
                             struct ag_error *err);
int ag_ledger_publish(struct ag_ledger *ledger, struct ag_error *err);
/* Removes the partial tiles of tiles that became full between trees of `from` and `to`
 * entries, but those that the low-water mark stands on: their full tiles are not synced
 * yet, and are not written again from the log. */
void ag_ledger_drop_partials(struct ag_ledger *ledger, uint64_t from, uint64_t to);

/* ledger_read.c: the root of all that is integrated, out of memory; owner thread. And
 * whether `count` entries of a bundle are those of the tree; AG_ECORRUPT. */
int ag_ledger_frontier_root(struct ag_ledger *ledger, uint8_t root[AG_HASH_SIZE]);
int ag_ledger_check_bundle(struct ag_ledger *ledger, uint64_t n, const uint8_t *bytes,
                           size_t bytes_n, size_t first, size_t count,
                           struct ag_error *err);

/* ledger_thread.c: thread P, and what thread W tells it. */
void *ag_ledger_thread(void *ledger);
void ag_ledger_on_durable(void *ledger, uint64_t durable_seq, int status);

#endif
