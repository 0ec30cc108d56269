/* For a damaged log: what is whole in one segment file, holes or not. Pure. */
#ifndef AG_WAL_SALVAGE_H
#define AG_WAL_SALVAGE_H

#include "wal/format.h"

/* Called for each whole record; a return other than 0 stops the walk and is passed on.
 */
typedef int (*ag_wal_salvaged)(void *ctx, uint64_t offset, uint64_t seq,
                               const uint8_t *payload, uint32_t n);

/* Looks at every block of `bytes` (which it may change: whitening) for intact batches
 * of segment `segment_no` of log `wal_id` (0: any) that stand where they belong, and
 * calls `each` for their records. */
int ag_wal_salvage(uint8_t *bytes, size_t n, uint64_t wal_id, uint32_t segment_no,
                   ag_wal_salvaged each, void *ctx);

#endif
