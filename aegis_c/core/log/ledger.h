/* The ledger: one shard of a transparency log inside the process.
 *
 * submitted -> durable -> integrated -> published. `ag_ledger_submit` copies the final
 * entry bytes into the ring of a write-ahead log (wal/writer.h) and returns its index:
 * no I/O, no lock that a disk can hold. Thread W of that log makes entries durable;
 * thread P of the ledger hashes what is durable into tiles and publishes a signed
 * checkpoint: when somebody waits for it or a tile fills (at most every 100 ms), else
 * 10 s after the first unpublished entry. Neither knows anything of Python.
 *
 * What submit returned survives the death of the process; what is durable survives the
 * loss of power. After a failed write or sync of the log the ledger is poisoned:
 * nothing is retried, submits are refused, the outcome of what was not durable is
 * unknown; thread P reopens the log on a new segment, with back-off. A failed write of
 * a tile or checkpoint is retried every second: those files are derived. In a forked
 * child every call answers AG_EFORKED. */
#ifndef AG_LOG_LEDGER_H
#define AG_LOG_LEDGER_H

#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"
#include "log/entry.h"
#include "log/ids.h"
#include "log/note.h"
#include "log/proof.h"
#include "wal/writer.h"

#define AG_LEDGER_RING_MIN ((size_t)256 << 10)

struct ag_ledger; /* opaque; any thread may call everything but open and close */

enum ag_stage { AG_DURABLE, AG_INTEGRATED, AG_PUBLISHED, AG_STAGES };

struct ag_ledger_options {
    const struct ag_io *io;  /* NULL: ag_io_posix() */
    const char *path;        /* published folder, ".../ledger/w0" */
    const char *private_dir; /* log, lock, key, secret, copy of the checkpoint */
    const char *origin;   /* NULL: made at first start; else must equal the log's own */
    const char *key_path; /* NULL: private_dir/log.key, made at first start */
    const char *key_pem;  /* NULL, or the key itself: then no file is looked at */
    size_t ring_bytes;
    uint32_t segment_bytes;  /* of the write-ahead log; an existing log keeps its own */
    uint32_t max_delay_us;   /* gather this long when nobody waits */
    uint64_t publish_gap_us; /* least time between two checkpoints */
    uint64_t publish_max_us; /* most time that an entry stays unpublished */
    uint64_t close_max_us;   /* most time that closing waits for the disk */
    bool accept_rollback;    /* open although what was signed last says more or else:
                                both signed checkpoints are passed over, and replaced by
                                the next one. Only ever after AG_EROLLBACK, by decision */
};

/* The defaults: 16 MiB, 4 MiB, 2,000 us, 100 ms, 10 s, 20 s. */
void ag_ledger_options_init(struct ag_ledger_options *options);

/* Locks the directory, recovers the log, loads the tree at the low-water mark, replays
 * the rest (tiles that differ are written anew), compares it with both copies of the
 * last signed checkpoint, and starts the thread. A directory that it refuses keeps its
 * keys, checkpoints and log as they were. *ledger is owned by the caller. AG_ELOCKED,
 * AG_EFOREIGN, AG_ECORRUPT, AG_EROLLBACK, AG_EVERSION, AG_EPERM, AG_EIO, AG_EINVAL,
 * AG_ENOMEM. */
int ag_ledger_open(const struct ag_ledger_options *options, struct ag_ledger **ledger,
                   struct ag_error *err);

/* Makes durable and publishes what was submitted, as far as the disk lets it within
 * close_max_us, ends the threads and frees the ledger. No other call may be under way.
 * Returns what stopped the ledger, AG_ETIMEDOUT (the rest is in the ring and comes with
 * the next open; what a thread still uses, the lock of the directory with it, is freed
 * when the disk answers, or left to the end of the process), or AG_OK. In a forked
 * child it only frees memory. */
int ag_ledger_close(struct ag_ledger *ledger, struct ag_error *err);

/* Appends an entry: meta (checked with ag_meta_check) and the finished commitments,
 * each may be NULL. AG_EFULL, AG_EPOISONED, AG_EINVAL, AG_ETOOBIG, AG_EFORKED. */
int ag_ledger_submit(struct ag_ledger *ledger, const uint8_t *meta, size_t meta_n,
                     const struct ag_commitment *request,
                     const struct ag_commitment *response, uint64_t *index,
                     struct ag_error *err);

/* Makes a commitment with `secret`, or with the shard's default one when NULL. */
void ag_ledger_commitment(const struct ag_ledger *ledger, const uint8_t *secret,
                          size_t secret_n, const uint8_t id[AG_UUID_SIZE],
                          enum ag_role role, struct ag_commitment *commitment);
/* The finished commitments to both bodies of one call. */
void ag_ledger_commit_two(const struct ag_ledger *ledger, const uint8_t *secret,
                          size_t secret_n, const uint8_t id[AG_UUID_SIZE],
                          const struct ag_span bodies[2], struct ag_commitment c[2]);

/* Entries submitted; entries that have reached `stage`; free bytes of the ring, of
 * which an entry takes its length, padded to 8, and 16. */
uint64_t ag_ledger_size(struct ag_ledger *ledger);
uint64_t ag_ledger_stage_size(struct ag_ledger *ledger, enum ag_stage stage);
size_t ag_ledger_room(struct ag_ledger *ledger);

/* Somebody waits until entry `index` reaches `stage`. AG_ERANGE beyond the end. */
int ag_ledger_want(struct ag_ledger *ledger, uint64_t index, enum ag_stage stage);

/* want + wait, at most timeout_ns (UINT64_MAX: no bound). AG_ETIMEDOUT, AG_EPOISONED.
 */
int ag_ledger_wait(struct ag_ledger *ledger, uint64_t index, enum ag_stage stage,
                   uint64_t timeout_ns, struct ag_error *err);

/* An eventfd (readable when a stage has moved or the ledger has failed), and its
 * clearing. */
int ag_ledger_fileno(const struct ag_ledger *ledger);
void ag_ledger_drain(struct ag_ledger *ledger);

/* AG_OK, or what poisoned the ledger. */
int ag_ledger_failure(struct ag_ledger *ledger, struct ag_error *err);

/* Bytes of an integrated entry; *entry is owned by the caller (ag_free). AG_ERANGE,
 * AG_ENOTYET. Reads a file when the entry has left memory: not for an event loop. */
int ag_ledger_entry(struct ag_ledger *ledger, uint64_t index, uint8_t **entry,
                    size_t *n, struct ag_error *err);

/* Adds to `found` (owned by the caller) the indices of the entries that carry `id`,
 * submitted ones included, ascending. It may read files, but a few pages only: of the
 * entries themselves where the id column is damaged. AG_EIO, AG_ENOMEM, AG_EFORKED. */
int ag_ledger_find(struct ag_ledger *ledger, const uint8_t id[AG_UUID_SIZE],
                   struct ag_found *found, struct ag_error *err);

/* The intents that had no settle when the ledger was opened, ascending; *index is owned
 * by the caller (ag_free; NULL when there are none). AG_ENOMEM. */
int ag_ledger_open_intents(struct ag_ledger *ledger, uint64_t **index, size_t *count,
                           struct ag_error *err);

/* The last published checkpoint, with a NUL behind it; n = 0 when there is none. */
void ag_ledger_checkpoint(struct ag_ledger *ledger, char out[AG_CHECKPOINT_MAX],
                          size_t *n);

/* Proofs within the integrated part of the tree; they may read tiles. */
int ag_ledger_root(struct ag_ledger *ledger, uint64_t size, uint8_t root[AG_HASH_SIZE],
                   struct ag_error *err);
int ag_ledger_inclusion(struct ag_ledger *ledger, uint64_t index, uint64_t size,
                        uint8_t (*proof)[AG_HASH_SIZE], size_t *count,
                        struct ag_error *err);
int ag_ledger_consistency(struct ag_ledger *ledger, uint64_t old_size,
                          uint64_t new_size, uint8_t (*proof)[AG_HASH_SIZE],
                          size_t *count, struct ag_error *err);

/* The tlog-proof of a published entry (c2sp.org/tlog-proof), with a NUL behind it;
 * *text is owned by the caller (ag_free). AG_ERANGE, AG_ENOTYET. */
int ag_ledger_receipt(struct ag_ledger *ledger, uint64_t index, char **text, size_t *n,
                      struct ag_error *err);

const char *ag_ledger_origin(const struct ag_ledger *ledger); /* borrowed */
const char *ag_ledger_vkey(const struct ag_ledger *ledger);   /* borrowed */
const char *ag_ledger_path(const struct ag_ledger *ledger);   /* borrowed */

struct ag_ledger_stats {
    uint64_t submitted, durable, integrated, published;
    uint64_t checkpoints, publish_failures, reopens;
    uint64_t replayed, rewritten; /* at open: entries replayed, tiles written anew */
    struct ag_error last_failure; /* of a tile or checkpoint; status AG_OK: none yet */
    struct ag_wal_stats wal;
};

void ag_ledger_stats(struct ag_ledger *ledger, struct ag_ledger_stats *stats);

#endif
