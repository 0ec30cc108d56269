/* The write-ahead log: one ring, thread W that writes and syncs and does nothing else,
 * and a helper that keeps one zero-written segment ready.
 *
 * Promise: what append or commit returned survives the death of the process; what is
 * durable survives the loss of power. Sequence numbers start at 1 and have no gaps.
 * After a failed write or sync the log is poisoned: nothing is retried, waiters hear
 * "outcome unknown", appends refuse, until ag_wal_reopen has recovered on a new
 * segment.
 *
 * Threads. The producer side (reserve, commit, append) is one thread at a time: the
 * caller's lock. Reopen, stop and close are one at a time, too; an append beside a
 * reopen is refused as before it. Everything else may be called by any thread beside
 * them. Nothing here waits for the disk but open, sync, set_low_water and low_water
 * (which waits for a mark that moves), reopen, stop and close. In a forked child every
 * call fails with AG_EFORKED; release the object there with ag_wal_abandon. */
#ifndef AG_WAL_WRITER_H
#define AG_WAL_WRITER_H

#include "base/io.h"
#include "wal/recovery.h"

struct ag_wal;

/* A log that is being opened. */
struct ag_wal_found {
    uint64_t last_seq; /* with what will be replayed from the ring; 0: nothing */
    uint64_t low_water;
    const uint8_t *blob; /* borrowed: what was kept with the mark */
    uint32_t blob_len;
};

struct ag_wal_options {
    const struct ag_io *io;         /* NULL: ag_io_posix() */
    const char *ring_path;          /* NULL: a place in tmpfs derived from the path */
    const char *archive;            /* NULL: PATH/archive; same file system as PATH */
    uint32_t segment_bytes;         /* 0: 16 MiB; an existing log keeps its own */
    size_t ring_bytes;              /* 0: 16 MiB */
    uint32_t max_delay_us;          /* how long W gathers while nobody waits */
    bool buffered;                  /* do not use O_DIRECT */
    uint64_t accept_at, accept_seq; /* operator's order for a damaged tail, or 0, 0 */
    /* Called by open when it knows what the log will hold, before anything is written;
     * what is not AG_OK refuses the log. */
    int (*judge)(void *ctx, const struct ag_wal_found *found, struct ag_error *err);
    void *judge_ctx;
    /* Called on thread W after each batch, and when the log is poisoned (status
     * AG_EPOISONED): must not block and not call back into the log. */
    void (*notify)(void *ctx, uint64_t durable_seq, int status);
    void *notify_ctx;
};

#define AG_WAL_SYNC_BUCKETS 24u
#define AG_WAL_BATCH_BUCKETS 12u

struct ag_wal_stats {
    uint64_t next_seq, durable_seq, low_water;
    uint64_t ring_capacity, ring_used;
    uint64_t batches, records, bytes, markers, rotations;
    uint64_t syncs, slow_syncs;                         /* slow: over a second */
    uint64_t sync_ns_total, sync_ns_max, sync_ns_first; /* write and fdatasync */
    uint64_t sync_us[AG_WAL_SYNC_BUCKETS];        /* bucket k: below 2^k microseconds */
    uint64_t batch_records[AG_WAL_BATCH_BUCKETS]; /* bucket k: below 2^k records */
    uint64_t wakes;                               /* of W by the producer or a waiter */
    uint64_t wal_id;
    uint32_t segment_no, segment_bytes, epoch, chain;
    uint32_t live_segments;
    uint64_t disk_free; /* of the file system, some seconds old */
    uint64_t replayed;  /* from the ring at open */
    bool poisoned, direct, no_space, recovered_torn;
    bool ring_lost; /* the last run did not end cleanly and its ring was not there */
    const char *ring_mode; /* "tmpfs" or "disk" */
    /* Of the last recovery: "new" (no log was here), "clean" (the last run closed),
     * "whole" (it did not, and nothing was left out), "torn" (an unfinished write was),
     * "accepted" (it ends where an operator ordered). */
    const char *verdict;
};

/* Opens or creates the log in directory `path` (made when missing, 0700): lock,
 * recovery, new segment, replay of the last ring, threads. AG_ELOCKED, AG_ECORRUPT,
 * AG_EFOREIGN, AG_EVERSION, AG_EPERM, AG_EIO with advice. */
int ag_wal_open(const char *path, const struct ag_wal_options *options,
                struct ag_wal **wal, struct ag_error *err);

/* Space for a payload of at most n octets in the ring, to be filled by the caller
 * before ag_wal_commit; reserving again forgets it. AG_EINVAL (0, or over the limit),
 * AG_EFULL, AG_EPOISONED, AG_ECLOSED, AG_EFORKED. */
int ag_wal_reserve(struct ag_wal *wal, size_t n, uint8_t **payload);
/* Publishes the first n octets of the reservation; returns the sequence number. */
uint64_t ag_wal_commit(struct ag_wal *wal, size_t n);
int ag_wal_append(struct ag_wal *wal, const void *payload, size_t n, uint64_t *seq);
size_t ag_wal_payload_max(const struct ag_wal *wal);

/* Somebody awaits `seq`: flush now. When it is durable, the eventfd is signalled. */
void ag_wal_want(struct ag_wal *wal, uint64_t seq);
/* want, then waits; timeout_ns UINT64_MAX: for as long as it takes. 0, AG_ETIMEDOUT,
 * AG_EPOISONED (outcome unknown), AG_ECLOSED, AG_ERANGE (never appended). */
int ag_wal_sync(struct ag_wal *wal, uint64_t seq, uint64_t timeout_ns,
                struct ag_error *err);
uint64_t ag_wal_durable(const struct ag_wal *wal);
uint64_t ag_wal_next_seq(const struct ag_wal *wal); /* of the next commit */
/* Free bytes of the ring; a payload takes 16 more than its size padded to 8. */
size_t ag_wal_room(const struct ag_wal *wal);
/* True when there is room for n bytes, else the eventfd is signalled once there is. */
bool ag_wal_want_room(struct ag_wal *wal, size_t n);
/* The eventfd, owned by the log; readable after news. Drain clears it and returns the
 * durable sequence number. */
int ag_wal_fileno(const struct ag_wal *wal);
uint64_t ag_wal_drain(struct ag_wal *wal);
/* Asks W for a marker batch, which witnesses that all before it was durable. */
void ag_wal_mark(struct ag_wal *wal);

/* See ag_log_set_low_water. */
int ag_wal_set_low_water(struct ag_wal *wal, uint64_t seq, const void *blob, uint32_t n,
                         struct ag_error *err);
/* Copies of what the mark holds; *blob is owned by the caller (ag_free). */
int ag_wal_low_water(struct ag_wal *wal, uint64_t *seq, uint8_t **blob, uint32_t *n);

/* A cursor of a second consumer (thread P): every record from `from_seq` on, out of the
 * ring while it is there, else out of the log. One thread at a time per cursor; close
 * all cursors before the log. */
struct ag_wal_cursor;
int ag_wal_cursor_open(struct ag_wal *wal, uint64_t from_seq,
                       struct ag_wal_cursor **cursor, struct ag_error *err);
/* 1 and the record of the next sequence number (payload borrowed until the next call),
 * when it is at most `up_to`; 0 when not; or a failure of the log. */
int ag_wal_cursor_next(struct ag_wal_cursor *cursor, uint64_t up_to, uint64_t *seq,
                       const uint8_t **payload, uint32_t *n, struct ag_error *err);
/* Whether the last record came out of the ring (for tests and metrics). */
bool ag_wal_cursor_in_ring(const struct ag_wal_cursor *cursor);
void ag_wal_cursor_close(struct ag_wal_cursor *cursor);

/* After poisoning: full recovery, a new segment, replay of everything submitted and not
 * yet durable. On success the log is as before; on failure it stays poisoned. */
int ag_wal_reopen(struct ag_wal *wal, struct ag_error *err);
/* The failure that poisoned the log into `err`; AG_OK when it is not poisoned. */
int ag_wal_failure(struct ag_wal *wal, struct ag_error *err);
/* Copies the lines about the last recovery, the ring and the file system. */
void ag_wal_notes(struct ag_wal *wal, char to[AG_WAL_NOTES]);
/* Never waits for the disk: while the mark moves, what is known of the log is of
 * before. */
void ag_wal_stats(struct ag_wal *wal, struct ag_wal_stats *stats);

/* Refuses appends from now on, flushes everything and ends the threads; everybody who
 * waits gets an answer. AG_ETIMEDOUT: the disk has not taken everything, call it again.
 * AG_EPOISONED: what was not durable stays in the ring. */
int ag_wal_stop(struct ag_wal *wal, uint64_t timeout_ns, struct ag_error *err);
/* ag_wal_stop, then releases the object, which nobody may use any more (not after
 * AG_ETIMEDOUT: then it stays). */
int ag_wal_close(struct ag_wal *wal, uint64_t timeout_ns, struct ag_error *err);
/* Releases the object in a forked child without touching log, ring or threads. */
void ag_wal_abandon(struct ag_wal *wal);

#endif
