/* Fuzz target: a segment out of any bytes. The input patches a healthy segment: first
 * the patches (offset u16, value u8) behind a count, the rest overwrites from a block
 * on; a flag mends the checksum of every header again, so that what lies behind it is
 * reached. Whatever comes: the scan ends, reads inside its bounds, and what it accepts
 * is a chain of whole batches. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "hash/crc32c.h"
#include "wal/salvage.h"
#include "wal/scan.h"

#define SIZE (8u * AG_WAL_BLOCK)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
healthy(uint8_t *segment)
{
    struct ag_wal_segment_header head = {
        .wal_id = 7, .segment_no = 3, .epoch = 2, .first_seq = 10, .prev_last_seq = 9};
    memset(segment, 0, SIZE);
    ag_wal_encode_segment(&head, segment);
    uint32_t crc = head.crc;
    uint64_t at = AG_WAL_BLOCK, seq = 10;
    for (uint32_t k = 0; k < 4; k++) {
        uint8_t *batch = segment + at;
        uint32_t n = k == 3 ? 0 : 100 + k * 1500;
        struct ag_wal_batch_header header = {.flags = n == 0 ? AG_BATCH_MARKER : 0,
                                             .wal_id = 7,
                                             .segment_no = 3,
                                             .block_no = (uint32_t)(at / AG_WAL_BLOCK),
                                             .first_seq = seq,
                                             .durable_seq = seq - 1,
                                             .nrec = n != 0,
                                             .prev_crc = crc,
                                             .epoch = 2};
        if (n != 0) {
            memset(batch + AG_WAL_HEADER, 0xFF, ag_wal_record_size(n));
            ag_put_u32le(batch + AG_WAL_HEADER, n);
            memset(batch + AG_WAL_HEADER + 8, (int)(k % 2), n);
            ag_put_u32le(
                batch + AG_WAL_HEADER + 4,
                ag_crc32c_mask(ag_wal_record_crc(seq, batch + AG_WAL_HEADER + 8, n)));
            header.body_len = (uint32_t)ag_wal_record_size(n);
        }
        at += ag_wal_seal_batch(&header, batch);
        crc = header.crc;
        seq += header.nrec;
    }
}

static void
mend(uint8_t *segment)
{
    for (size_t at = 0; at < SIZE; at += AG_WAL_BLOCK) {
        if (segment[at] == 'A' && segment[at + 1] == 'G') {
            ag_put_u32le(segment + at + 60,
                         ag_crc32c_mask(ag_crc32c(0, segment + at, 60)));
        }
    }
}

static int
count(void *ctx, uint64_t offset, uint64_t seq, const uint8_t *payload, uint32_t n)
{
    (void)offset, (void)seq;
    uint64_t *sum = ctx;
    for (uint32_t i = 0; i < n; i++) {
        *sum += payload[i];
    }
    return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    /* Exactly as long as the segment: a read behind it is seen. */
    uint8_t *segment = malloc(SIZE);
    struct ag_wal_segment_scan scan;
    struct ag_error err;
    struct ag_wal_expect expect = {.file = "fuzz"};
    if (segment == NULL || size < 2) {
        free(segment);
        return 0;
    }
    healthy(segment);
    uint8_t flags = data[0];
    size_t patches = data[1], used = 2;
    for (size_t i = 0; i < patches && used + 3 <= size; i++, used += 3) {
        segment[ag_get_u16le(data + used) % SIZE] = data[used + 2];
    }
    if (flags & 1) {
        size_t start = (flags >> 4) % 8 * AG_WAL_BLOCK;
        size_t left = size - used < SIZE - start ? size - used : SIZE - start;
        memcpy(segment + start, data + used, left);
    }
    if (flags & 2) {
        mend(segment);
    }
    expect.certified = flags & 4 ? 2u * AG_WAL_BLOCK * (1u + (flags >> 6)) : 0;
    memset(&scan, 0, sizeof(scan));
    if (ag_wal_decode_segment(segment, &scan.header) == AG_READ_OK &&
        ag_wal_scan_segment(segment, SIZE, &expect, &scan, &err) == AG_OK) {
        /* What was accepted can be walked again, batch by batch. */
        struct ag_wal_position position = ag_wal_position_start(&scan.header);
        struct ag_wal_batch_header header;
        enum ag_wal_stop stop;
        uint32_t batches = 0;
        while (position.at < scan.end.at &&
               ag_wal_step(segment + position.at, SIZE - position.at, &position,
                           &header, &stop, "fuzz", &err) == 1) {
            batches++;
        }
        if (position.at != scan.end.at || batches != scan.batches ||
            position.next_seq != scan.end.next_seq) {
            abort();
        }
    }
    uint64_t sum = 0;
    (void)ag_wal_salvage(segment, SIZE, 0, 3, count, &sum);
    free(segment);
    return 0;
}
