/* Entry bundles (c2sp.org/tlog-tiles): up to 256 entries, each a u16be length and its
 * octets. A growing one in memory, and walking through the bytes of any. */
#ifndef AG_LOG_BUNDLE_H
#define AG_LOG_BUNDLE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "log/tile.h"

struct ag_bundle {
    uint8_t *bytes; /* owned */
    size_t used, room;
    size_t start[AG_TILE_WIDTH]; /* offset of each entry's length */
    unsigned count;
};

/* Appends an entry of at most 65,535 octets; there are fewer than 256. AG_ENOMEM. */
int ag_bundle_add(struct ag_bundle *bundle, const uint8_t *entry, size_t n);
void ag_bundle_drop_last(struct ag_bundle *bundle);

/* The entry at *offset of a bundle's bytes; moves *offset behind it. AG_ECORRUPT. */
int ag_bundle_next(const uint8_t *bytes, size_t n, size_t *offset,
                   const uint8_t **entry, size_t *entry_n, struct ag_error *err);

/* Whether entries first .. first + count - 1 of a bundle's bytes have these leaf
 * hashes, `count` of them. AG_ECORRUPT; *bad is then the number of the first that has
 * not. */
int ag_bundle_check(const uint8_t *bytes, size_t n, size_t first, size_t count,
                    const uint8_t *hashes, size_t *bad);

#endif
