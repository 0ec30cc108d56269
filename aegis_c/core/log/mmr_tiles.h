/* Where the in-memory tree keeps its nodes: private to log/mmr.
 *
 * A tile of level L holds 256 nodes of height 8L and all nodes above them of heights
 * below 8L + 8, height by height, so that siblings are neighbours and one tile (16 KiB)
 * is hashed bottom-up inside the L1 cache. Tile number t of level L is node t of height
 * 8L + 8, which is kept in level L + 1.
 *
 * Only the last tile of a level may be smaller: in the first tiles of a level it starts
 * with room for 16 nodes and doubles, which keeps small trees small. Whole tiles are
 * allocated in blocks: what a call needs, or else a small part of what the level has.
 */
#ifndef AG_LOG_MMR_TILES_H
#define AG_LOG_MMR_TILES_H

#include <stddef.h>
#include <stdint.h>

#include "hash/sha256.h"

#define AG_MMR_TILE_LOG2 8
#define AG_MMR_TILE_WIDTH 256u
#define AG_MMR_LEVELS 8u

struct ag_mmr_level {
    uint8_t **tiles;           /* owned; each points into a block */
    struct ag_mmr_block *last; /* owned */
    size_t tile_count;         /* tiles that exist */
    size_t tile_room;          /* tiles that the array has room for */
    size_t last_width; /* nodes of the bottom height that the last tile can hold */
};

struct ag_mmr_tiles { /* all zero: empty */
    struct ag_mmr_level levels[AG_MMR_LEVELS];
    uint64_t room; /* leaves for which every level has a place */
    size_t memory; /* octets from the allocator */
};

/* Makes room for a tree of `size` leaves, of which `used` exist. AG_ENOMEM: then room
 * is `used` and what nobody uses is freed. */
int ag_mmr_tiles_reserve(struct ag_mmr_tiles *tiles, uint64_t used, uint64_t size);

/* Frees all; `tiles` is empty again. */
void ag_mmr_tiles_free(struct ag_mmr_tiles *tiles);

/* Where the nodes of `height` (0..8) above the bottom of a tile begin. */
static inline size_t
ag_mmr_tile_offset(size_t width, unsigned height)
{
    return (2 * width - (2 * width >> height)) * AG_HASH_SIZE;
}

/* The place of node `index` of `height`; there must be room for it. */
static inline uint8_t *
ag_mmr_node(const struct ag_mmr_tiles *tiles, unsigned height, uint64_t index)
{
    const struct ag_mmr_level *level = &tiles->levels[height / AG_MMR_TILE_LOG2];
    unsigned inside = height % AG_MMR_TILE_LOG2;
    size_t tile = (size_t)(index >> (AG_MMR_TILE_LOG2 - inside));
    size_t slot = (size_t)(index & ((AG_MMR_TILE_WIDTH >> inside) - 1));
    size_t width =
        tile + 1 == level->tile_count ? level->last_width : AG_MMR_TILE_WIDTH;
    return level->tiles[tile] + ag_mmr_tile_offset(width, inside) + slot * AG_HASH_SIZE;
}

#endif
