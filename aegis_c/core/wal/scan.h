/* Recovery of one segment, as a pure function over its bytes. Promise: every batch that
 * it accepts is whole, of this log, this segment and this place, continues its
 * predecessor, and nothing that may have been acknowledged is dropped in silence:
 * damage that cannot be proved to be an unfinished last write is refused.
 *
 * Why this works: one write is in flight at a time, a batch is synced before the next
 * one is built, segments start as zeros, and no sector of a batch is ever all zero. So
 * a write that a crash cut short shows as a zero sector (or zero tail) with nothing
 * behind it; a later batch proves that an earlier one was durable. */
#ifndef AG_WAL_SCAN_H
#define AG_WAL_SCAN_H

#include "base/status.h"
#include "wal/format.h"

/* Where a walk through the batches of a segment stands. */
struct ag_wal_position {
    uint64_t wal_id;
    uint32_t segment_no;
    uint32_t epoch;
    uint64_t at;       /* offset of the next batch */
    uint64_t next_seq; /* sequence number that the next record has */
    uint32_t crc;      /* prev_crc that the next batch must carry */
    bool sealed;
    bool clean; /* the last batch says: closed with nothing outstanding */
};

/* Why there is no batch at a position. */
enum ag_wal_stop {
    AG_STOP_NONE,
    AG_STOP_END,         /* end of the segment */
    AG_STOP_ZERO_HEADER, /* 64 zero bytes */
    AG_STOP_BAD_HEADER,
    AG_STOP_BAD_BODY
};

enum ag_wal_end {
    AG_END_CLEAN,    /* followed by zeros only, or by the end of the file */
    AG_END_SEALED,   /* a seal: a successor must exist */
    AG_END_TORN,     /* an unfinished, never acknowledged write follows: ignored */
    AG_END_CERTIFIED /* the successor's header names this end */
};

/* What the caller knows about a segment before it is read. */
struct ag_wal_expect {
    const char *file;    /* for messages */
    uint64_t certified;  /* bytes that the successor certifies; 0: it is the last one */
    uint64_t accept_at;  /* an operator's order: the log ends at this offset ... */
    uint64_t accept_seq; /* ... with this sequence number; 0, 0: no such order */
};

struct ag_wal_segment_scan {
    struct ag_wal_segment_header header;
    struct ag_wal_position end;
    enum ag_wal_end how;
    bool accepted; /* by the operator's order */
    uint32_t batches;
    uint64_t records;
    uint64_t durable_seq; /* witness: the largest durable_seq of its headers */
};

/* Position of the first batch behind an intact segment header. */
struct ag_wal_position
ag_wal_position_start(const struct ag_wal_segment_header *header);

/* One batch, at `batch`, which is position->at of a segment that ends `left` bytes
 * later: 1 when it is valid (header filled, position moved on), 0 when there is none
 * (`stop` says why; for AG_STOP_BAD_BODY the header is filled), AG_ECORRUPT,
 * AG_EFOREIGN or AG_EVERSION when an intact header does not belong here. Reads the
 * header, and the extent that an intact header names. */
int ag_wal_step(const uint8_t *batch, uint64_t left, struct ag_wal_position *position,
                struct ag_wal_batch_header *header, enum ag_wal_stop *stop,
                const char *file, struct ag_error *err);

/* Walks a whole segment whose header was decoded into scan->header. 0 or the refusal.
 */
int ag_wal_scan_segment(const uint8_t *bytes, size_t n,
                        const struct ag_wal_expect *expect,
                        struct ag_wal_segment_scan *scan, struct ag_error *err);

/* Offset of the first intact batch header of this log and segment at or after `from`
 * whose records come after `after_seq`, or 0. */
uint64_t ag_wal_find_batch(const uint8_t *bytes, size_t n, uint64_t from,
                           uint64_t wal_id, uint32_t segment_no, uint64_t after_seq,
                           struct ag_wal_batch_header *header);

#endif
