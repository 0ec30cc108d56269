/* The ring: a file in shared memory that holds every record from `append` until it is
 * durable in the log. It outlives the process (not the boot): what a killed process
 * leaves in it is replayed by the next one.
 *
 * File: one header page, then `capacity` bytes of entries, addressed by ever growing
 * positions (position modulo capacity). The data is mapped twice in a row, so that
 * every entry is contiguous in memory. Entry: len u32 | masked CRC-32C of the record
 * u32 | seq u64 | payload | padding to 8. The producer writes an entry completely, then
 * moves `tail` (release): whatever a kill interrupts, the bytes between head and tail
 * are whole records. The consumer moves `head` only over what is durable.
 *
 * Freed entries stay readable until the producer comes round: it announces in `claim`
 * how far it will write before it writes, and a reader that checks `claim` after its
 * copy knows whether the copy is good (a sequence lock). */
#ifndef AG_WAL_RING_H
#define AG_WAL_RING_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/io.h"

#define AG_RING_PAGE 4096u
#define AG_RING_ENTRY 16u
#define AG_RING_MIN (16u * 1024u)
#define AG_RING_MAX ((size_t)1 << 32)
#define AG_RING_BOOT 16u

/* The header page. Host byte order: a ring never leaves its boot. */
struct ag_ring_header {
    uint8_t magic[8]; /* "AGRING\0\1" */
    uint64_t wal_id;
    uint8_t boot_id[AG_RING_BOOT];
    uint64_t capacity;
    uint32_t epoch;
    uint32_t crc;                       /* masked, of the bytes before it */
    _Alignas(64) _Atomic uint64_t tail; /* the producer's */
    _Atomic uint64_t claim;
    _Alignas(64) _Atomic uint64_t head; /* the consumer's */
    _Atomic uint64_t durable_seq; /* witness: the log held this much for certain */
};

struct ag_ring {
    struct ag_ring_header *header; /* owned mapping */
    uint8_t *data;                 /* owned, mapped twice: 2 * capacity */
    size_t capacity;
    int fd;        /* owned, locked */
    uint64_t tail; /* the producer's own copy */
};

/* A ring to be read: a mapping, or bytes in a test. */
struct ag_ring_view {
    const uint8_t *data; /* borrowed, `capacity` bytes */
    size_t capacity;
    uint64_t wal_id;
    uint8_t boot_id[AG_RING_BOOT];
    uint64_t head, tail, durable_seq;
};

struct ag_ring_entry {
    uint64_t position;
    uint64_t seq;
    uint32_t n;
    uint32_t crc; /* masked */
};

/* `to` gets the id of this boot, zeros when the system does not tell. */
void ag_ring_boot_id(uint8_t to[AG_RING_BOOT]);

/* Makes a new ring file (which must not exist) of 4 KiB-rounded `bytes`: 0600, locked,
 * space reserved, its header zero. AG_EFULL when there is no space. */
int ag_ring_create(const struct ag_io *io, const char *path, size_t bytes,
                   struct ag_ring *ring, struct ag_error *err);
/* Writes the header: from here on it is the ring of this log. */
void ag_ring_begin(struct ag_ring *ring, uint64_t wal_id, uint32_t epoch,
                   const uint8_t boot_id[AG_RING_BOOT]);
/* Maps what an earlier process left. AG_ENOTFOUND (also for one whose header was never
 * written: nothing was ever in it), AG_ELOCKED (its owner lives), AG_EVERSION,
 * AG_ECORRUPT; the last two only when the file can be left aside. */
int ag_ring_attach(const struct ag_io *io, const char *path, struct ag_ring *ring,
                   struct ag_error *err);
/* Makes some pages present ahead of use, from offset `at` on (0 first), which costs
 * more than all else of an open (7 ms for 16 MiB, 100 on a virtual machine that has to
 * ask for them). Returns the next offset, AG_RING_POPULATED at the end. Any thread,
 * beside producer and consumer. */
#define AG_RING_POPULATED SIZE_MAX
size_t ag_ring_populate(const struct ag_ring *ring, size_t at);
/* Gives the lock back although a forked child may have copies of the descriptor. */
void ag_ring_unlock(const struct ag_io *io, const struct ag_ring *ring);
void ag_ring_unmap(const struct ag_io *io, struct ag_ring *ring);
struct ag_ring_view ag_ring_look(const struct ag_ring *ring);

/* Pure: a whole ring file as bytes. AG_ECORRUPT or AG_EVERSION when it is none. */
int ag_ring_parse(const uint8_t *bytes, size_t n, struct ag_ring_view *view);
/* Pure: the entry at *position: 1 and its payload copied to `to` (room for the largest
 * payload), *position moved on; 0 at the tail; AG_ECORRUPT for anything that is not a
 * whole record that follows `previous_seq` (0: any may come first). */
int ag_ring_next(const struct ag_ring_view *view, uint64_t *position,
                 uint64_t previous_seq, uint8_t *to, struct ag_ring_entry *entry);

/* Producer's thread: space for a payload of n octets, written by the caller before
 * ag_ring_commit with the same or a smaller n. AG_EFULL. */
int ag_ring_reserve(struct ag_ring *ring, uint32_t n, uint8_t **payload);
void ag_ring_commit(struct ag_ring *ring, uint32_t n, uint64_t seq);
/* Free bytes; an entry takes AG_RING_ENTRY more than its payload padded to 8. */
size_t ag_ring_room(const struct ag_ring *ring);

/* Consumer's thread: the entry at `position`, below the tail; payload borrowed until
 * the head moves over it. */
struct ag_ring_entry ag_ring_at(const struct ag_ring *ring, uint64_t position,
                                const uint8_t **payload);
uint64_t ag_ring_entry_end(const struct ag_ring_entry *entry);
/* Consumer's thread: everything below `position` is durable, up to `seq`. */
void ag_ring_free(struct ag_ring *ring, uint64_t position, uint64_t seq);

/* Any thread: copies the entry at `position` if it is still there. 1; 0 when it has
 * been overwritten (or never was there); `to` has room for `capacity` octets of
 * payload. AG_ETOOBIG with entry->n set when it has not. */
int ag_ring_copy(const struct ag_ring *ring, uint64_t position, uint64_t seq,
                 uint8_t *to, size_t capacity, struct ag_ring_entry *entry);

/* In test builds every store to the ring is followed by a call of this. */
#ifdef AG_RING_TRACE
void ag_ring_trace(void);
#define AG_RING_POINT() ag_ring_trace()
#else
#define AG_RING_POINT() ((void)0)
#endif

#endif
