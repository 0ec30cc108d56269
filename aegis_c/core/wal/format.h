/* The bytes of the write-ahead log: pure functions, no I/O. All integers little-endian.
 *
 * A log is a directory with the file LOG and segments `wal-%016x.seg` of one exact
 * size, zero-written before use. Block 0 of a segment (4 KiB) is its header, the rest
 * of that block 0xFF; then batches, each at a 4 KiB boundary, the unit of write and
 * sync.
 *
 * Segment header, 64 bytes:
 *    0 magic "AGWSEG\0\1" | 8 wal_id u64 | 16 segment_no u32 | 20 epoch u32 |
 *   24 first_seq u64 | 32 prev_valid_len u64 | 40 prev_last_seq u64 | 48 prev_crc u32 |
 *   52 flags u32 (1: tail of the predecessor accepted by an operator) | 56 zero u32 |
 *   60 masked CRC-32C of bytes 0-59
 * It certifies its predecessor: how many bytes of it count, its last sequence number
 * and the header CRC of its last batch (its segment header's when it holds no batch).
 *
 * Batch header, 64 bytes:
 *    0 magic "AGBT" | 4 version u8 | 5 flags u8 (1 marker, 4 seal, 8 clean close) |
 *    6 whitening u16 | 8 wal_id u64 | 16 segment_no u32 | 20 block_no u32 |
 *   24 first_seq u64 | 32 durable_seq u64 (all up to it were synced before this header
 *   was built: a later batch proves earlier ones) | 40 nrec u32 | 44 body_len u32 |
 *   48 CRC-32C of everything behind the header | 52 prev_crc u32 (chain) |
 *   56 epoch u32 | 60 masked CRC-32C of bytes 0-59
 * Body: records {len u32, crc u32 = masked CRC-32C(seq u64, len u32, payload), payload,
 * 0xFF to a multiple of 8}, then at least 8 bytes 0xFF up to the next 4 KiB.
 *
 * Whitening: if a 512-byte sector of the batch would be all zero, the part behind the
 * header is XORed with the 8-byte word that ag_wal_whitening_word(key) gives, the key
 * chosen so that no sector is zero afterwards (there are more keys than sectors in a
 * batch, and a sector excludes one at most). So a zero sector inside a batch means, for
 * certain, "never written".
 *
 * LOG, 64 bytes and a blob: 0 magic "AGWALOG\1" | 8 wal_id u64 | 16 segment_bytes u32 |
 *   20 block_bytes u32 | 24 epoch u32 | 28 first_live u32 | 32 opened u32 (segment
 *   activated by the last open) | 36 blob_len u32 | 40 first_seq u64 (of first_live) |
 *   48 low_water u64 | 56 prev_crc u32 (in the header of first_live) | 60 masked
 * CRC-32C of bytes 0-59 and the blob */
#ifndef AG_WAL_FORMAT_H
#define AG_WAL_FORMAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AG_WAL_BLOCK 4096u
#define AG_WAL_SECTOR 512u
#define AG_WAL_HEADER 64u
#define AG_WAL_VERSION 1u
#define AG_WAL_PAYLOAD_MAX (1u << 20)
#define AG_WAL_RECORD_HEADER 8u
#define AG_WAL_SEGMENT_MIN (4u * AG_WAL_BLOCK)
#define AG_WAL_SEGMENT_MAX (1u << 30)
#define AG_WAL_BLOB_MAX (1u << 20)
/* A batch is at most this long on disk, or holds one record. */
#define AG_WAL_BATCH_MAX (1u << 20)
/* The longest batch there can be: one record of the largest payload. */
#define AG_WAL_EXTENT_MAX (AG_WAL_PAYLOAD_MAX + AG_WAL_BLOCK)

enum ag_wal_batch_flags { AG_BATCH_MARKER = 1, AG_BATCH_SEAL = 4, AG_BATCH_CLEAN = 8 };
enum ag_wal_segment_flags { AG_SEGMENT_TAIL_ACCEPTED = 1 };

struct ag_wal_segment_header {
    uint64_t wal_id;
    uint32_t segment_no;
    uint32_t epoch;
    uint64_t first_seq;
    uint64_t prev_valid_len;
    uint64_t prev_last_seq;
    uint32_t prev_crc;
    uint32_t flags;
    uint32_t crc; /* set by encode and decode: the chain starts with it */
};

struct ag_wal_batch_header {
    uint8_t flags;
    uint16_t whitening;
    uint64_t wal_id;
    uint32_t segment_no;
    uint32_t block_no;
    uint64_t first_seq;
    uint64_t durable_seq;
    uint32_t nrec;
    uint32_t body_len; /* records with their padding, without the final 0xFF */
    uint32_t body_crc;
    uint32_t prev_crc;
    uint32_t epoch;
    uint32_t crc; /* set by seal and decode: prev_crc of the next batch */
};

struct ag_wal_log_file {
    uint64_t wal_id;
    uint32_t segment_bytes;
    uint32_t epoch;
    uint32_t first_live;
    uint32_t opened;
    uint64_t first_seq;
    uint64_t low_water;
    uint32_t prev_crc;
    uint32_t blob_len;
    const uint8_t *blob; /* borrowed */
};

/* How a 64-byte header reads. */
enum ag_wal_read { AG_READ_OK, AG_READ_ZERO, AG_READ_BAD, AG_READ_VERSION };

static inline size_t
ag_wal_pad8(size_t n)
{
    return (n + 7u) & ~(size_t)7u;
}

/* Octets of a record with this payload inside a body. */
static inline size_t
ag_wal_record_size(size_t payload)
{
    return AG_WAL_RECORD_HEADER + ag_wal_pad8(payload);
}

/* Octets on disk of a batch whose records take `body_len`. */
static inline size_t
ag_wal_extent(size_t body_len)
{
    return (AG_WAL_HEADER + body_len + 8u + AG_WAL_BLOCK - 1u) &
           ~(size_t)(AG_WAL_BLOCK - 1u);
}

/* The largest payload that a log with such segments takes. */
static inline size_t
ag_wal_payload_limit(uint32_t segment_bytes)
{
    size_t room =
        segment_bytes - 2u * AG_WAL_BLOCK - AG_WAL_HEADER - 8u - AG_WAL_RECORD_HEADER;
    return room < AG_WAL_PAYLOAD_MAX ? room : AG_WAL_PAYLOAD_MAX;
}

/* Unmasked CRC of a record, stored masked. Any thread. */
uint32_t ag_wal_record_crc(uint64_t seq, const void *payload, uint32_t n);

/* Writes one block: header and 0xFF. Sets header->crc. */
void ag_wal_encode_segment(struct ag_wal_segment_header *header, uint8_t *block);
enum ag_wal_read ag_wal_decode_segment(const uint8_t *block,
                                       struct ag_wal_segment_header *header);

/* Finishes the batch at `batch`, which already holds header->body_len octets of records
 * at offset 64: padding, whitening, both CRCs, header. Returns its extent. `batch` must
 * have room for it. */
size_t ag_wal_seal_batch(struct ag_wal_batch_header *header, uint8_t *batch);
enum ag_wal_read ag_wal_decode_batch(const uint8_t *batch,
                                     struct ag_wal_batch_header *header);
/* Whether the body of a decoded batch has its CRC; `batch` holds the whole extent. */
bool ag_wal_batch_body_ok(const struct ag_wal_batch_header *header,
                          const uint8_t *batch);

uint64_t ag_wal_whitening_word(uint16_t key);
/* XORs everything behind the header of a batch; its own inverse. */
void ag_wal_whiten(uint8_t *batch, size_t extent, uint16_t key);

/* Step through the records of a body that is not whitened (any more). */
struct ag_wal_body {
    const uint8_t *next;
    size_t left;
    uint64_t seq; /* of the next record */
    uint32_t records_left;
};

/* 1 and the payload (borrowed from the body), 0 at the end, AG_ECORRUPT when a record
 * does not fit the body or its CRC is wrong. */
int ag_wal_body_next(struct ag_wal_body *body, uint64_t *seq, const uint8_t **payload,
                     uint32_t *n);

/* `to` has room for AG_WAL_HEADER + blob_len. Returns the length. */
size_t ag_wal_encode_log(const struct ag_wal_log_file *log, uint8_t *to);
/* 0, AG_ECORRUPT or AG_EVERSION; the blob is borrowed from `bytes`. */
int ag_wal_decode_log(const uint8_t *bytes, size_t n, struct ag_wal_log_file *log);

bool ag_wal_is_zero(const uint8_t *bytes, size_t n);

#endif
