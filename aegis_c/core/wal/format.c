#include "wal/format.h"

#include <string.h>

#include "base/bytes.h"
#include "base/status.h"
#include "hash/crc32c.h"

static const uint8_t segment_magic[8] = {'A', 'G', 'W', 'S', 'E', 'G', 0, 1};
static const uint8_t log_magic[8] = {'A', 'G', 'W', 'A', 'L', 'O', 'G', 1};
static const uint8_t batch_magic[4] = {'A', 'G', 'B', 'T'};

bool
ag_wal_is_zero(const uint8_t *bytes, size_t n)
{
    /* Word by word: the buffers are large and the answer is "no" within a few words. */
    while (n >= 8) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        if (word != 0) {
            return false;
        }
        bytes += 8;
        n -= 8;
    }
    for (size_t i = 0; i < n; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

uint32_t
ag_wal_record_crc(uint64_t seq, const void *payload, uint32_t n)
{
    uint8_t prefix[12];
    ag_put_u64le(prefix, seq);
    ag_put_u32le(prefix + 8, n);
    return ag_crc32c(ag_crc32c(0, prefix, sizeof(prefix)), payload, n);
}

static uint32_t
header_crc(const uint8_t *header)
{
    return ag_crc32c_mask(ag_crc32c(0, header, AG_WAL_HEADER - 4u));
}

void
ag_wal_encode_segment(struct ag_wal_segment_header *header, uint8_t *block)
{
    memset(block, 0xFF, AG_WAL_BLOCK);
    memcpy(block, segment_magic, 8);
    ag_put_u64le(block + 8, header->wal_id);
    ag_put_u32le(block + 16, header->segment_no);
    ag_put_u32le(block + 20, header->epoch);
    ag_put_u64le(block + 24, header->first_seq);
    ag_put_u64le(block + 32, header->prev_valid_len);
    ag_put_u64le(block + 40, header->prev_last_seq);
    ag_put_u32le(block + 48, header->prev_crc);
    ag_put_u32le(block + 52, header->flags);
    ag_put_u32le(block + 56, 0);
    header->crc = header_crc(block);
    ag_put_u32le(block + 60, header->crc);
}

enum ag_wal_read
ag_wal_decode_segment(const uint8_t *block, struct ag_wal_segment_header *header)
{
    if (ag_wal_is_zero(block, AG_WAL_BLOCK)) {
        return AG_READ_ZERO;
    }
    uint32_t crc = ag_get_u32le(block + 60);
    if (crc != header_crc(block) || memcmp(block, segment_magic, 7) != 0) {
        return AG_READ_BAD;
    }
    if (block[7] != segment_magic[7]) {
        return AG_READ_VERSION;
    }
    for (size_t i = AG_WAL_HEADER; i < AG_WAL_BLOCK; i++) {
        if (block[i] != 0xFF) {
            return AG_READ_BAD;
        }
    }
    header->wal_id = ag_get_u64le(block + 8);
    header->segment_no = ag_get_u32le(block + 16);
    header->epoch = ag_get_u32le(block + 20);
    header->first_seq = ag_get_u64le(block + 24);
    header->prev_valid_len = ag_get_u64le(block + 32);
    header->prev_last_seq = ag_get_u64le(block + 40);
    header->prev_crc = ag_get_u32le(block + 48);
    header->flags = ag_get_u32le(block + 52);
    header->crc = crc;
    return AG_READ_OK;
}

uint64_t
ag_wal_whitening_word(uint16_t key)
{
    /* The finaliser of splitmix64 (Steele, Lea, Flood 2014): a bijection, so keys give
     * different words. */
    uint64_t word = key * UINT64_C(0x9E3779B97F4A7C15);
    word = (word ^ (word >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    word = (word ^ (word >> 27)) * UINT64_C(0x94D049BB133111EB);
    return word ^ (word >> 31);
}

void
ag_wal_whiten(uint8_t *batch, size_t extent, uint16_t key)
{
    uint8_t pattern[8];
    ag_put_u64le(pattern, ag_wal_whitening_word(key));
    uint64_t word;
    memcpy(&word, pattern, 8);
    for (size_t at = AG_WAL_HEADER; at < extent; at += 8) {
        uint64_t data;
        memcpy(&data, batch + at, 8);
        data ^= word;
        memcpy(batch + at, &data, 8);
    }
}

/* Whether some sector behind the first one is nothing but `pattern`. */
static bool
has_sector_of(const uint8_t *batch, size_t extent, const uint8_t pattern[8])
{
    for (size_t at = AG_WAL_SECTOR; at < extent; at += AG_WAL_SECTOR) {
        size_t i = 0;
        while (i < AG_WAL_SECTOR && memcmp(batch + at + i, pattern, 8) == 0) {
            i += 8;
        }
        if (i == AG_WAL_SECTOR) {
            return true;
        }
    }
    return false;
}

static uint16_t
choose_whitening(const uint8_t *batch, size_t extent)
{
    uint8_t pattern[8] = {0};
    uint16_t key = 0;
    while (has_sector_of(batch, extent, pattern)) {
        key++;
        ag_put_u64le(pattern, ag_wal_whitening_word(key));
    }
    return key;
}

size_t
ag_wal_seal_batch(struct ag_wal_batch_header *header, uint8_t *batch)
{
    size_t extent = ag_wal_extent(header->body_len);
    size_t end = AG_WAL_HEADER + header->body_len;
    memset(batch + end, 0xFF, extent - end);
    header->whitening = choose_whitening(batch, extent);
    if (header->whitening != 0) {
        ag_wal_whiten(batch, extent, header->whitening);
    }
    header->body_crc = ag_crc32c(0, batch + AG_WAL_HEADER, extent - AG_WAL_HEADER);
    memcpy(batch, batch_magic, 4);
    batch[4] = AG_WAL_VERSION;
    batch[5] = header->flags;
    ag_put_u16le(batch + 6, header->whitening);
    ag_put_u64le(batch + 8, header->wal_id);
    ag_put_u32le(batch + 16, header->segment_no);
    ag_put_u32le(batch + 20, header->block_no);
    ag_put_u64le(batch + 24, header->first_seq);
    ag_put_u64le(batch + 32, header->durable_seq);
    ag_put_u32le(batch + 40, header->nrec);
    ag_put_u32le(batch + 44, header->body_len);
    ag_put_u32le(batch + 48, header->body_crc);
    ag_put_u32le(batch + 52, header->prev_crc);
    ag_put_u32le(batch + 56, header->epoch);
    header->crc = header_crc(batch);
    ag_put_u32le(batch + 60, header->crc);
    return extent;
}

enum ag_wal_read
ag_wal_decode_batch(const uint8_t *batch, struct ag_wal_batch_header *header)
{
    if (ag_wal_is_zero(batch, AG_WAL_HEADER)) {
        return AG_READ_ZERO;
    }
    uint32_t crc = ag_get_u32le(batch + 60);
#ifdef AG_MUTANT_TRUST_LENGTH
    if (memcmp(batch, batch_magic, 4) != 0) {
        return AG_READ_BAD;
    }
#else
    if (crc != header_crc(batch) || memcmp(batch, batch_magic, 4) != 0) {
        return AG_READ_BAD;
    }
#endif
    if (batch[4] != AG_WAL_VERSION) {
        return AG_READ_VERSION;
    }
    header->flags = batch[5];
    header->whitening = ag_get_u16le(batch + 6);
    header->wal_id = ag_get_u64le(batch + 8);
    header->segment_no = ag_get_u32le(batch + 16);
    header->block_no = ag_get_u32le(batch + 20);
    header->first_seq = ag_get_u64le(batch + 24);
    header->durable_seq = ag_get_u64le(batch + 32);
    header->nrec = ag_get_u32le(batch + 40);
    header->body_len = ag_get_u32le(batch + 44);
    header->body_crc = ag_get_u32le(batch + 48);
    header->prev_crc = ag_get_u32le(batch + 52);
    header->epoch = ag_get_u32le(batch + 56);
    header->crc = crc;
    return AG_READ_OK;
}

bool
ag_wal_batch_body_ok(const struct ag_wal_batch_header *header, const uint8_t *batch)
{
    size_t extent = ag_wal_extent(header->body_len);
    return ag_crc32c(0, batch + AG_WAL_HEADER, extent - AG_WAL_HEADER) ==
           header->body_crc;
}

int
ag_wal_body_next(struct ag_wal_body *body, uint64_t *seq, const uint8_t **payload,
                 uint32_t *n)
{
    if (body->records_left == 0) {
        return body->left == 0 ? 0 : AG_ECORRUPT;
    }
    if (body->left < AG_WAL_RECORD_HEADER) {
        return AG_ECORRUPT;
    }
    uint32_t length = ag_get_u32le(body->next);
    if (length == 0 || length > AG_WAL_PAYLOAD_MAX ||
        ag_wal_record_size(length) > body->left) {
        return AG_ECORRUPT;
    }
    const uint8_t *data = body->next + AG_WAL_RECORD_HEADER;
    uint32_t crc = ag_crc32c_mask(ag_wal_record_crc(body->seq, data, length));
    if (ag_get_u32le(body->next + 4) != crc) {
        return AG_ECORRUPT;
    }
    *seq = body->seq;
    *payload = data;
    *n = length;
    body->seq++;
    body->records_left--;
    body->next += ag_wal_record_size(length);
    body->left -= ag_wal_record_size(length);
    return 1;
}

size_t
ag_wal_encode_log(const struct ag_wal_log_file *log, uint8_t *to)
{
    memcpy(to, log_magic, 8);
    ag_put_u64le(to + 8, log->wal_id);
    ag_put_u32le(to + 16, log->segment_bytes);
    ag_put_u32le(to + 20, AG_WAL_BLOCK);
    ag_put_u32le(to + 24, log->epoch);
    ag_put_u32le(to + 28, log->first_live);
    ag_put_u32le(to + 32, log->opened);
    ag_put_u32le(to + 36, log->blob_len);
    ag_put_u64le(to + 40, log->first_seq);
    ag_put_u64le(to + 48, log->low_water);
    ag_put_u32le(to + 56, log->prev_crc);
    if (log->blob_len != 0) {
        memcpy(to + AG_WAL_HEADER, log->blob, log->blob_len);
    }
    uint32_t crc = ag_crc32c(0, to, 60);
    crc = ag_crc32c(crc, to + AG_WAL_HEADER, log->blob_len);
    ag_put_u32le(to + 60, ag_crc32c_mask(crc));
    return AG_WAL_HEADER + log->blob_len;
}

int
ag_wal_decode_log(const uint8_t *bytes, size_t n, struct ag_wal_log_file *log)
{
    if (n < AG_WAL_HEADER || memcmp(bytes, log_magic, 7) != 0) {
        return AG_ECORRUPT;
    }
    if (bytes[7] != log_magic[7]) {
        return AG_EVERSION;
    }
    uint32_t crc = ag_crc32c(0, bytes, 60);
    crc = ag_crc32c(crc, bytes + AG_WAL_HEADER, n - AG_WAL_HEADER);
    if (ag_get_u32le(bytes + 60) != ag_crc32c_mask(crc)) {
        return AG_ECORRUPT;
    }
    log->wal_id = ag_get_u64le(bytes + 8);
    log->segment_bytes = ag_get_u32le(bytes + 16);
    log->epoch = ag_get_u32le(bytes + 24);
    log->first_live = ag_get_u32le(bytes + 28);
    log->opened = ag_get_u32le(bytes + 32);
    log->blob_len = ag_get_u32le(bytes + 36);
    log->first_seq = ag_get_u64le(bytes + 40);
    log->low_water = ag_get_u64le(bytes + 48);
    log->prev_crc = ag_get_u32le(bytes + 56);
    log->blob = bytes + AG_WAL_HEADER;
    if (ag_get_u32le(bytes + 20) != AG_WAL_BLOCK ||
        log->blob_len != n - AG_WAL_HEADER || log->segment_bytes < AG_WAL_SEGMENT_MIN ||
        log->segment_bytes > AG_WAL_SEGMENT_MAX ||
        log->segment_bytes % AG_WAL_BLOCK != 0 || log->first_live == 0) {
        return AG_ECORRUPT;
    }
    return AG_OK;
}
