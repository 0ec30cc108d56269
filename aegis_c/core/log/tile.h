/* Tiles of 256 hashes (c2sp.org/tlog-tiles): paths, widths, and the right edge of a
 * growing tree.
 *
 * A tile of level L holds the roots of complete subtrees of 256^L leaves. The frontier
 * keeps the one incomplete tile of each level: 64 KiB, no allocation. */
#ifndef AG_LOG_TILE_H
#define AG_LOG_TILE_H

#include <stddef.h>
#include <stdint.h>

#include "hash/sha256.h"

#define AG_TILE_WIDTH 256
#define AG_TILE_BYTES (AG_TILE_WIDTH * AG_HASH_SIZE)
#define AG_TILE_LEVELS 8
/* Stands for the level of entry bundles in ag_tile_path. */
#define AG_TILE_ENTRIES 64
/* Longest path with its NUL: "tile/entries/" and 7 groups and ".p/255". */
#define AG_TILE_PATH_SIZE 64

/* Writes "tile/<L>/<N>[.p/<W>]" relative to the log's folder; width 256 means full.
 * `to` has AG_TILE_PATH_SIZE bytes. */
void ag_tile_path(char *to, unsigned level, uint64_t n, unsigned width);

/* Number of complete hashes of `level` in a tree of `size` leaves: floor(size/256^L).
 * The width of its incomplete tile is that modulo 256. */
uint64_t ag_tile_count(uint64_t size, unsigned level);

struct ag_frontier {
    uint64_t size; /* leaves */
    uint8_t tile[AG_TILE_LEVELS][AG_TILE_WIDTH][AG_HASH_SIZE];
};

/* Called with each tile that becomes full, lowest level first, before the frontier lets
 * go of it. A negative status stops the append and is passed on. */
typedef int (*ag_tile_full_fn)(void *ctx, unsigned level, uint64_t n,
                               const uint8_t tile[AG_TILE_BYTES]);

/* Two steps, so that a full tile can be on disk before the frontier forgets it:
 * ag_frontier_flush writes out the tiles that the next leaf would complete, and
 * ag_frontier_append then adds the leaf (never fails, no I/O). Owner thread. */
int ag_frontier_flush(const struct ag_frontier *frontier,
                      const uint8_t leaf[AG_HASH_SIZE], ag_tile_full_fn full,
                      void *ctx);
void ag_frontier_append(struct ag_frontier *frontier, const uint8_t leaf[AG_HASH_SIZE]);

/* Hash over 2^height adjacent hashes (height <= 8). */
void ag_tile_fold(const uint8_t *hashes, unsigned height, uint8_t out[AG_HASH_SIZE]);

#endif
