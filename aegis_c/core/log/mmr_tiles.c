#include "log/mmr_tiles.h"

#include <stdbool.h>
#include <string.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/status.h"

#define TILE_WIDTH_MIN 16u
#define SMALL_TILES 32u /* from then on a whole spare tile costs under 4 % */
#define BLOCK_TILES 16u /* at most so many spare tiles: 256 KiB */

/* Tiles that were allocated together; they follow the struct. */
struct ag_mmr_block {
    struct ag_mmr_block *before; /* owned: the tiles with lower numbers */
    size_t first;                /* number of the first tile here */
    size_t bytes;
};

static size_t
tile_bytes(size_t width)
{
    return (2 * width - 1) * AG_HASH_SIZE;
}

static uint64_t
level_room(const struct ag_mmr_level *level)
{
    if (level->tile_count == 0) {
        return 0;
    }
    return (uint64_t)(level->tile_count - 1) * AG_MMR_TILE_WIDTH + level->last_width;
}

/* Asks for the pages of a new block at once: a page fault for each costs as much as
 * hashing the leaves that fit there. Failure only means that they come later. */
static void
want_pages(void *block, size_t bytes)
{
#if defined(__linux__) && defined(MADV_POPULATE_WRITE)
    enum { PAGE = 4096, HUGE_FROM = 4 << 20 };
    uintptr_t begin = ((uintptr_t)block + PAGE - 1) & ~(uintptr_t)(PAGE - 1);
    uintptr_t end = ((uintptr_t)block + bytes) & ~(uintptr_t)(PAGE - 1);
    if (bytes >= HUGE_FROM) {
        (void)madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    }
    if (bytes >= 16 * PAGE) {
        (void)madvise((void *)begin, end - begin, MADV_POPULATE_WRITE);
    }
#else
    (void)block;
    (void)bytes;
#endif
}

/* Appends a block of `count` tiles of `width` to the level. */
static int
level_add_block(struct ag_mmr_tiles *tiles, struct ag_mmr_level *level, size_t count,
                size_t width)
{
    size_t tile_count = level->tile_count + count;
    if (tile_count > level->tile_room) {
        size_t room =
            2 * level->tile_room > tile_count ? 2 * level->tile_room : tile_count;
        size_t bytes;
        uint8_t **longer = ag_mul_size(room, sizeof(*longer), &bytes)
                               ? ag_realloc(level->tiles, bytes)
                               : NULL;
        if (longer == NULL) {
            return AG_ENOMEM;
        }
        tiles->memory += bytes - level->tile_room * sizeof(*longer);
        level->tiles = longer;
        level->tile_room = room;
    }
    size_t bytes;
    struct ag_mmr_block *block = NULL;
    if (ag_mul_size(count, tile_bytes(width), &bytes) &&
        ag_add_size(bytes, sizeof(*block), &bytes)) {
        block = ag_alloc(bytes);
    }
    if (block == NULL) {
        return AG_ENOMEM;
    }
    want_pages(block, bytes);
    *block = (struct ag_mmr_block){level->last, level->tile_count, bytes};
    for (size_t i = 0; i < count; i++) {
        level->tiles[level->tile_count + i] =
            (uint8_t *)(block + 1) + i * tile_bytes(width);
    }
    level->last = block;
    level->tile_count = tile_count;
    level->last_width = width;
    tiles->memory += bytes;
    return AG_OK;
}

static void
level_drop_block(struct ag_mmr_tiles *tiles, struct ag_mmr_level *level)
{
    struct ag_mmr_block *block = level->last;
    level->last = block->before;
    level->tile_count = block->first;
    level->last_width = AG_MMR_TILE_WIDTH; /* of a tile that is not the last */
    tiles->memory -= block->bytes;
    ag_free(block);
}

/* Replaces the last tile, which has its block to itself, by one of `width` with the
 * same nodes. */
static int
level_widen(struct ag_mmr_tiles *tiles, struct ag_mmr_level *level, size_t width)
{
    struct ag_mmr_block *narrow = level->last;
    size_t number = level->tile_count - 1, old = level->last_width;
    const uint8_t *from = level->tiles[number];
    level->tile_count = number;
    int status = level_add_block(tiles, level, 1, width);
    if (status != AG_OK) {
        level->tile_count = number + 1;
        return status;
    }
    for (unsigned h = 0; old >> h != 0; h++) {
        memcpy(level->tiles[number] + ag_mmr_tile_offset(width, h),
               from + ag_mmr_tile_offset(old, h), (old >> h) * AG_HASH_SIZE);
    }
    level->last->before = narrow->before;
    tiles->memory -= narrow->bytes;
    ag_free(narrow);
    return AG_OK;
}

/* Makes room for `need` nodes of the bottom height. */
static int
level_reserve(struct ag_mmr_tiles *tiles, struct ag_mmr_level *level, uint64_t need)
{
    int status = AG_OK;
    while (status == AG_OK && level_room(level) < need) {
        size_t have = level->tile_count;
        bool fresh = have == 0 || level->last_width == AG_MMR_TILE_WIDTH;
        uint64_t missing =
            need - (uint64_t)(have - (fresh ? 0 : 1)) * AG_MMR_TILE_WIDTH;
        if (fresh && (missing >= AG_MMR_TILE_WIDTH || have >= SMALL_TILES)) {
            size_t spare = have / SMALL_TILES;
            spare = spare < BLOCK_TILES ? spare : BLOCK_TILES;
            uint64_t whole = missing / AG_MMR_TILE_WIDTH;
            if (whole > SIZE_MAX / AG_MMR_TILE_WIDTH) {
                return AG_ENOMEM;
            }
            status = level_add_block(tiles, level,
                                     (size_t)whole > spare ? (size_t)whole : spare,
                                     AG_MMR_TILE_WIDTH);
            continue;
        }
        size_t width = TILE_WIDTH_MIN;
        while (width < AG_MMR_TILE_WIDTH && width < missing) {
            width *= 2;
        }
        status = fresh ? level_add_block(tiles, level, 1, width)
                       : level_widen(tiles, level, width);
    }
    return status;
}

/* Frees the blocks that hold none of the first `size` leaves or nodes above them. */
static void
drop_unused_blocks(struct ag_mmr_tiles *tiles, uint64_t size)
{
    for (unsigned l = 0; l < AG_MMR_LEVELS; l++) {
        struct ag_mmr_level *level = &tiles->levels[l];
        uint64_t used = size >> (l * AG_MMR_TILE_LOG2);
        while (level->last != NULL && level->last->first * AG_MMR_TILE_WIDTH >= used) {
            level_drop_block(tiles, level);
        }
    }
}

int
ag_mmr_tiles_reserve(struct ag_mmr_tiles *tiles, uint64_t used, uint64_t size)
{
    uint64_t room = UINT64_MAX;
    for (unsigned l = 0; l < AG_MMR_LEVELS; l++) {
        struct ag_mmr_level *level = &tiles->levels[l];
        unsigned shift = l * AG_MMR_TILE_LOG2;
        int status = level_reserve(tiles, level, size >> shift);
        if (status != AG_OK) {
            drop_unused_blocks(tiles, used);
            tiles->room = used;
            return status;
        }
        /* with places for r nodes a tree may have fewer than (r + 1) << shift */
        uint64_t next = level_room(level) + 1;
        if (next <= UINT64_MAX >> shift && (next << shift) - 1 < room) {
            room = (next << shift) - 1;
        }
    }
    tiles->room = room;
    return AG_OK;
}

void
ag_mmr_tiles_free(struct ag_mmr_tiles *tiles)
{
    drop_unused_blocks(tiles, 0);
    for (unsigned l = 0; l < AG_MMR_LEVELS; l++) {
        ag_free(tiles->levels[l].tiles);
        tiles->levels[l].tiles = NULL;
        tiles->levels[l].tile_room = 0;
    }
    tiles->memory = 0;
    tiles->room = 0;
}
