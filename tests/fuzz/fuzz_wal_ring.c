/* Fuzz target: a ring file out of any bytes. The input patches a healthy ring and may
 * have its checksum mended. Reading it ends, stays inside, and gives records whose
 * checksum and order are right. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "hash/crc32c.h"
#include "wal/format.h"
#include "wal/ring.h"

#define CAPACITY 8192u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void
healthy(uint8_t *file)
{
    struct ag_ring_header header;
    memset(file, 0, AG_RING_PAGE + CAPACITY);
    memset((void *)&header, 0, sizeof(header));
    memcpy(header.magic, "AGRING\0\1", 8);
    header.wal_id = 9;
    header.capacity = CAPACITY;
    uint64_t at = 6000;
    atomic_init(&header.head, at);
    atomic_init(&header.durable_seq, 4);
    for (uint64_t seq = 5; seq < 20; seq++) {
        uint8_t entry[512] = {0};
        uint32_t n = 17 * (uint32_t)seq;
        memset(entry + AG_RING_ENTRY, (int)seq, n);
        uint32_t crc = ag_crc32c_mask(ag_wal_record_crc(seq, entry + AG_RING_ENTRY, n));
        memcpy(entry, &n, 4);
        memcpy(entry + 4, &crc, 4);
        memcpy(entry + 8, &seq, 8);
        for (size_t i = 0; i < AG_RING_ENTRY + ag_wal_pad8(n); i++) {
            file[AG_RING_PAGE + (at + i) % CAPACITY] = entry[i];
        }
        at += AG_RING_ENTRY + ag_wal_pad8(n);
    }
    atomic_init(&header.tail, at);
    memcpy(file, (const void *)&header, sizeof(header));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const size_t whole = AG_RING_PAGE + CAPACITY;
    uint8_t *file = malloc(whole), *payload = malloc(AG_WAL_PAYLOAD_MAX);
    struct ag_ring_view view;
    if (file != NULL && payload != NULL && size >= 2) {
        healthy(file);
        size_t used = 1;
        for (; used + 3 <= size; used += 3) {
            size_t at = ag_get_u16le(data + used) % whole;
            /* Most of the first page is empty: aim at what is not. */
            file[at < AG_RING_PAGE ? at % 256 : at] = data[used + 2];
        }
        if (data[0] & 1) {
            size_t n = offsetof(struct ag_ring_header, crc);
            uint32_t crc = ag_crc32c_mask(ag_crc32c(0, file, n));
            memcpy(file + n, &crc, 4);
        }
        if (ag_ring_parse(file, whole, &view) == AG_OK) {
            struct ag_ring_entry entry;
            uint64_t position = view.head, previous = 0, steps = 0;
            while (ag_ring_next(&view, &position, previous, payload, &entry) == 1) {
                if ((previous != 0 && entry.seq != previous + 1) ||
                    ++steps > CAPACITY / AG_RING_ENTRY ||
                    entry.crc != ag_crc32c_mask(
                                     ag_wal_record_crc(entry.seq, payload, entry.n))) {
                    abort();
                }
                previous = entry.seq;
            }
        }
    }
    free(file);
    free(payload);
    return 0;
}
