/* The write side of the log on disk, without threads and without the ring: prepare
 * segments, activate them, gather records into a batch, write and sync it, seal, move
 * old segments to the archive, keep LOG. Promise: when ag_log_flush returns 0, the
 * batch and everything before it is on disk; after any failed write or sync the object
 * refuses everything and never touches the file again but to close it.
 *
 * One thread at a time, but for ag_log_set_low_water and ag_log_segments, which any
 * thread may call beside the writer's calls. */
#ifndef AG_WAL_SEGMENT_H
#define AG_WAL_SEGMENT_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/io.h"
#include "wal/recovery.h"

struct ag_log {
    const struct ag_io *io; /* borrowed */
    char dir[AG_WAL_PATH];
    char archive[AG_WAL_PATH]; /* where segments below the low-water mark go */
    uint64_t wal_id;
    uint32_t epoch;
    uint32_t segment_bytes;
    bool direct; /* O_DIRECT is in use */
    bool failed; /* after a failed write or sync: for good */
    int fd;      /* of the active segment, kept from its making to its seal */
    uint32_t segment_no;
    char path[AG_WAL_PATH];
    uint64_t at;                  /* offset of the next batch */
    uint32_t crc;                 /* chain */
    _Atomic uint64_t durable_seq; /* everything up to it is synced */
    /* the batch being gathered */
    uint8_t *batch; /* owned, aligned, AG_WAL_EXTENT_MAX */
    size_t body_len;
    uint32_t nrec;
    /* under `lock` */
    pthread_mutex_t lock;
    struct ag_wal_segment_info *segments; /* owned; the last one is active */
    size_t count, capacity;
    uint32_t opened;
    uint64_t low_water;
    uint8_t *blob; /* owned */
    uint32_t blob_len;
};

/* How fast zeros may go to a disk that others wait for: `next` is called before each
 * piece with the bytes that are zero already, and returns when the piece may go; false:
 * give up. */
struct ag_log_pace {
    void *ctx;
    bool (*next)(void *ctx, uint32_t done);
};

/* Makes segment `number` ready: zeros over the whole file, fsync, rename, directory
 * fsync; *fd (owned by the caller) stays open for writing. *direct goes in as the wish
 * and comes out as what the file system allowed. At the given pace, NULL: as fast as it
 * goes; AG_ECLOSED when that gives up, and no file is left. Any thread. */
int ag_log_make_segment(const struct ag_io *io, const char *dir, uint32_t number,
                        uint32_t segment_bytes, const struct ag_log_pace *pace,
                        bool *direct, int *fd, struct ag_error *err);

/* Starts writing behind what `recovery` found: finishes an interrupted archive, makes
 * or takes the next segment, activates it (which certifies the end of the old log) and
 * records that in LOG. A fresh directory gets a new log with `segment_bytes`. `archive`
 * may be NULL: DIR/archive. On failure the object is closed. */
int ag_log_start(struct ag_log *log, const struct ag_io *io, const char *dir,
                 const char *archive, uint32_t segment_bytes, bool direct,
                 const struct ag_wal_recovery *recovery, struct ag_error *err);
void ag_log_stop(struct ag_log *log);

/* Whether a record fits the batch that is being gathered / the segment, when alone. */
bool ag_log_batch_takes(const struct ag_log *log, uint32_t payload);
bool ag_log_segment_takes(const struct ag_log *log, uint32_t payload);
/* Whether the segment takes a batch of so many bytes beside the block of the seal. */
bool ag_log_extent_fits(const struct ag_log *log, uint64_t extent);
/* Adds a record whose masked CRC is known; it must fit. */
void ag_log_add(struct ag_log *log, const uint8_t *payload, uint32_t n, uint32_t crc);
/* Writes and syncs the gathered batch; with flags, an empty one (marker). */
int ag_log_flush(struct ag_log *log, uint8_t flags, struct ag_error *err);
/* Whether there is room for a marker beside the block kept for the seal. */
bool ag_log_marker_fits(const struct ag_log *log);
/* Seals the active segment and activates the next one, `fd` from ag_log_make_segment.
 */
int ag_log_rotate(struct ag_log *log, int fd, struct ag_error *err);
uint64_t ag_log_last_seq(const struct ag_log *log); /* written and synced */

/* Records up to `seq` (durable) need no recovery any more; keeps `blob` with the mark.
 * LOG is replaced durably first, then whole segments below the mark move to the
 * archive. Any thread. */
int ag_log_set_low_water(struct ag_log *log, uint64_t seq, const void *blob,
                         uint32_t blob_len, struct ag_error *err);
/* Copies what is known about the live segments; *segments is owned by the caller. */
int ag_log_segments(struct ag_log *log, struct ag_wal_segment_info **segments,
                    size_t *count);

#endif
