#include "log/tile.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"

void
ag_tile_path(char *to, unsigned level, uint64_t n, unsigned width)
{
    size_t room = AG_TILE_PATH_SIZE;
    int used = level == AG_TILE_ENTRIES ? snprintf(to, room, "tile/entries/")
                                        : snprintf(to, room, "tile/%u/", level);
    unsigned groups = 1;
    uint64_t unit = 1;
    while (n / unit >= 1000) {
        unit *= 1000;
        groups++;
    }
    for (; groups > 0; groups--, unit /= 1000) {
        used +=
            snprintf(to + used, room - (size_t)used, "%s%03u%s", groups > 1 ? "x" : "",
                     (unsigned)(n / unit % 1000), groups > 1 ? "/" : "");
    }
    if (width < AG_TILE_WIDTH) {
        (void)snprintf(to + used, room - (size_t)used, ".p/%u", width);
    }
}

uint64_t
ag_tile_count(uint64_t size, unsigned level)
{
    return level < AG_TILE_LEVELS ? size >> (8 * level) : 0;
}

void
ag_tile_fold(const uint8_t *hashes, unsigned height, uint8_t out[AG_HASH_SIZE])
{
    uint8_t work[AG_TILE_BYTES / 2];
    if (height == 0) {
        memcpy(out, hashes, AG_HASH_SIZE);
        return;
    }
    size_t pairs = (size_t)1 << (height - 1);
    ag_node_hash_level(hashes, pairs, work);
    for (pairs /= 2; pairs > 0; pairs /= 2) {
        ag_node_hash_level(work, pairs, work);
    }
    memcpy(out, work, AG_HASH_SIZE);
}

int
ag_frontier_flush(const struct ag_frontier *frontier, const uint8_t leaf[AG_HASH_SIZE],
                  ag_tile_full_fn full, void *ctx)
{
    uint8_t tile[AG_TILE_BYTES], next[AG_HASH_SIZE];
    memcpy(next, leaf, AG_HASH_SIZE);
    for (unsigned level = 0; level < AG_TILE_LEVELS; level++) {
        uint64_t count = ag_tile_count(frontier->size, level);
        if (count % AG_TILE_WIDTH != AG_TILE_WIDTH - 1) {
            return AG_OK;
        }
        memcpy(tile, frontier->tile[level], AG_TILE_BYTES - AG_HASH_SIZE);
        memcpy(tile + AG_TILE_BYTES - AG_HASH_SIZE, next, AG_HASH_SIZE);
        int status = full(ctx, level, count / AG_TILE_WIDTH, tile);
        if (status != AG_OK) {
            return status;
        }
        ag_tile_fold(tile, 8, next);
    }
    return AG_OK;
}

void
ag_frontier_append(struct ag_frontier *frontier, const uint8_t leaf[AG_HASH_SIZE])
{
    uint8_t next[AG_HASH_SIZE];
    memcpy(next, leaf, AG_HASH_SIZE);
    for (unsigned level = 0; level < AG_TILE_LEVELS; level++) {
        uint64_t at = ag_tile_count(frontier->size, level) % AG_TILE_WIDTH;
        memcpy(frontier->tile[level][at], next, AG_HASH_SIZE);
        if (at != AG_TILE_WIDTH - 1) {
            break;
        }
        ag_tile_fold(frontier->tile[level][0], 8, next);
    }
    frontier->size++;
}
