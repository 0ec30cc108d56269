/* The ledger's truth on disk: one append-only file of batches, each covered by a
 * CRC-32C and synced before anything is published. Tiles are rebuilt from it.
 *
 * File: 16-octet header {magic "AGJRNL\0\1", log id u64le}, then batches
 *   {magic u32le, body length u32le, first sequence u64le, records u32le,
 *    CRC-32C of the body u32le, CRC-32C of the 24 octets before u32le, zero u32le}
 *   body: records {length u32le, octets}.
 * CRCs are masked. Recovery accepts a torn last batch and refuses damage that a valid
 * batch follows. One batch is in flight at a time. */
#ifndef AG_WAL_JOURNAL_H
#define AG_WAL_JOURNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"

/* Octets of a journal without records. */
#define AG_JOURNAL_EMPTY 16

struct ag_journal;

typedef int (*ag_journal_replay_fn)(void *ctx, uint64_t seq, const uint8_t *record,
                                    size_t n, struct ag_error *err);

/* Opens `path` (created when it is missing and `create` is set) and replays every
 * record in order. *journal is owned by the caller. AG_ECORRUPT, AG_EFOREIGN,
 * AG_EVERSION, AG_ENOTFOUND, or what `replay` returned. */
int ag_journal_open(const struct ag_io *io, const char *path, uint64_t log_id,
                    bool create, ag_journal_replay_fn replay, void *ctx,
                    struct ag_journal **journal, struct ag_error *err);

/* Makes the journal ready for writing, once what was replayed is accepted: copies a
 * torn last batch to <path>.torn-<offset>, cuts it off, and syncs. Before this call the
 * file is only read. */
int ag_journal_begin(struct ag_journal *journal, struct ag_error *err);

/* Adds a record to the batch in memory. AG_ENOMEM (nothing added). Owner thread. */
int ag_journal_add(struct ag_journal *journal, const uint8_t *record, size_t n);

/* Writes the batch and fdatasyncs it; an empty batch is nothing to do. After a failure
 * the journal is poisoned: never retried, AG_EPOISONED from then on. Owner thread. */
int ag_journal_commit(struct ag_journal *journal, struct ag_error *err);

void ag_journal_close(struct ag_journal *journal);

#endif
