#include "wal/salvage.h"

int
ag_wal_salvage(uint8_t *bytes, size_t n, uint64_t wal_id, uint32_t segment_no,
               ag_wal_salvaged each, void *ctx)
{
    for (size_t at = AG_WAL_BLOCK; at + AG_WAL_BLOCK <= n;) {
        struct ag_wal_batch_header header;
        size_t extent = AG_WAL_BLOCK;
        uint8_t *batch = bytes + at;
        if (ag_wal_decode_batch(batch, &header) == AG_READ_OK &&
            (wal_id == 0 || header.wal_id == wal_id) &&
            header.segment_no == segment_no && header.block_no == at / AG_WAL_BLOCK &&
            ag_wal_extent(header.body_len) <= n - at &&
            ag_wal_batch_body_ok(&header, batch)) {
            extent = ag_wal_extent(header.body_len);
            if (header.whitening != 0) {
                ag_wal_whiten(batch, extent, header.whitening);
            }
            struct ag_wal_body body = {
                .next = batch + AG_WAL_HEADER,
                .left = header.body_len,
                .seq = header.first_seq,
                .records_left = header.nrec,
            };
            uint64_t seq;
            const uint8_t *payload;
            uint32_t length;
            while (ag_wal_body_next(&body, &seq, &payload, &length) == 1) {
                int status = each(ctx, at, seq, payload, length);
                if (status != 0) {
                    return status;
                }
            }
        }
        at += extent;
    }
    return 0;
}
