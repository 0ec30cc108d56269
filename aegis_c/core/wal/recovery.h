/* The driver of recovery: reads LOG and every live segment of a directory, uncached,
 * and says where the log ends, or refuses. It never changes, renames or deletes
 * anything.
 *
 * What it demands beyond ag_wal_scan_segment: LOG is intact; the segments from
 * first_live on are there without a gap and of exact size; every header continues its
 * predecessor; the segment that the last open activated is there; nothing that LOG
 * calls no longer needed lies beyond the end. */
#ifndef AG_WAL_RECOVERY_H
#define AG_WAL_RECOVERY_H

#include "base/io.h"
#include "wal/files.h"
#include "wal/scan.h"

#define AG_WAL_NOTES 2048u

struct ag_wal_segment_info {
    uint32_t segment_no;
    uint32_t epoch;
    uint64_t first_seq;
    uint64_t last_seq;  /* first_seq - 1 when it holds no record */
    uint64_t valid_len; /* bytes that count */
    uint32_t prev_crc;  /* of its header */
    uint32_t last_crc;  /* chain value at its end */
};

struct ag_wal_recover_options {
    uint64_t accept_at, accept_seq; /* operator's order for the tail, or 0, 0 */
    bool read_only; /* beside a live writer: no fsync, no advice to wait */
};

struct ag_wal_recovery {
    bool fresh; /* no log here yet; the rest is then empty */
    struct ag_wal_log_file log;
    uint8_t *log_bytes;                   /* owned: holds log.blob */
    struct ag_wal_segment_info *segments; /* owned: the active ones, in order */
    size_t count;
    uint32_t *leftovers; /* owned: numbers below first_live, an archive cut short */
    size_t leftover_count;
    uint32_t epoch;   /* the largest seen */
    uint32_t next_no; /* number of the segment to start */
    bool spare;       /* its file is there, all zero or a header cut short */
    uint64_t last_seq;
    uint64_t durable_seq; /* the largest witness */
    uint64_t records;     /* in the live segments */
    uint64_t bytes_read;
    bool torn;                /* an unfinished write was left out */
    bool accepted;            /* by the operator's order */
    bool clean_close;         /* the last run closed with nothing outstanding */
    char notes[AG_WAL_NOTES]; /* one line per decision */
};

/* Fills `recovery` (release it with ag_wal_recovery_free in every case). 0, or a status
 * with file, offset, sequence, expected, found and the next command in `err`. The
 * caller holds the lock of the directory unless read_only. */
int ag_wal_recover(const struct ag_io *io, const char *dir,
                   const struct ag_wal_recover_options *options,
                   struct ag_wal_recovery *recovery, struct ag_error *err);
void ag_wal_recovery_free(struct ag_wal_recovery *recovery);

/* Adds a line to recovery->notes (dropped when full). */
void ag_wal_note(struct ag_wal_recovery *recovery, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
