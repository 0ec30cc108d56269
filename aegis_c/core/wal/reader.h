/* Reads records out of the files of a log, in order, beside a live writer. Never
 * changes anything. One thread at a time per reader. */
#ifndef AG_WAL_READER_H
#define AG_WAL_READER_H

#include "wal/recovery.h"

struct ag_wal_reader;

/* From the first record with a number >= from_seq (0: the first there is), out of the
 * live segments, with `archived` out of those in DIR/archive (or `archive`) too.
 * AG_ENOTFOUND when there is no log; AG_ERANGE when from_seq lies before the first
 * segment that can be read. */
int ag_wal_reader_open(const struct ag_io *io, const char *dir, const char *archive,
                       uint64_t from_seq, bool archived, struct ag_wal_reader **reader,
                       struct ag_error *err);
/* 1 and a record (payload borrowed until the next call), 0 at the end (call again later
 * to see what a live writer has added), or a refusal. */
int ag_wal_reader_next(struct ag_wal_reader *reader, uint64_t *seq,
                       const uint8_t **payload, uint32_t *n, struct ag_error *err);
void ag_wal_reader_close(struct ag_wal_reader *reader);

/* Full recovery of the directory, read only; tries again while a live writer changes
 * LOG or writes its tail. *live says whether a writer holds the lock. Release with
 * ag_wal_recovery_free. */
int ag_wal_verify(const struct ag_io *io, const char *dir,
                  struct ag_wal_recovery *recovery, bool *live, struct ag_error *err);

#endif
