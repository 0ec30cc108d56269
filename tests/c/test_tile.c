// threads: none
/* Tile paths and the frontier against trees that are hashed the slow way. */
#include "base/status.h"
#include "check.h"
#include "log/proof.h"
#include "log/tile.h"

#define LEAVES 70000

static uint8_t leaves[LEAVES][AG_HASH_SIZE];

static void
paths(void)
{
    static const struct {
        unsigned level;
        uint64_t n;
        unsigned width;
        const char *path;
    } cases[] = {
        {0, 0, 256, "tile/0/000"},
        {0, 5, 256, "tile/0/005"},
        {1, 0, 1, "tile/1/000.p/1"},
        {0, 999, 255, "tile/0/999.p/255"},
        {0, 1000, 256, "tile/0/x001/000"},
        {0, 1234067, 256, "tile/0/x001/x234/067"},
        {AG_TILE_ENTRIES, 273, 112, "tile/entries/273.p/112"},
        {7, UINT64_MAX >> 8, 255, "tile/7/x072/x057/x594/x037/x927/935.p/255"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char path[AG_TILE_PATH_SIZE];
        ag_tile_path(path, cases[i].level, cases[i].n, cases[i].width);
        ASSERT_EQ_STR(path, cases[i].path);
    }
}

/* RFC 6962 section 2.1 by recursion. */
static void
slow_root(size_t first, size_t n, uint8_t out[AG_HASH_SIZE])
{
    if (n == 1) {
        memcpy(out, leaves[first], AG_HASH_SIZE);
        return;
    }
    size_t k = 1;
    while (k * 2 < n) {
        k *= 2;
    }
    uint8_t left[AG_HASH_SIZE], right[AG_HASH_SIZE];
    slow_root(first, k, left);
    slow_root(first + k, n - k, right);
    ag_node_hash(left, right, out);
}

struct seen {
    unsigned tiles[AG_TILE_LEVELS];
    int stop_at; /* refuse the n-th tile */
    int count;
};

static int
see_tile(void *ctx, unsigned level, uint64_t n, const uint8_t tile[AG_TILE_BYTES])
{
    struct seen *seen = ctx;
    if (++seen->count == seen->stop_at) {
        return AG_EIO;
    }
    ASSERT_EQ_U(n, seen->tiles[level]);
    seen->tiles[level]++;
    size_t span = (size_t)1 << (8 * level);
    for (size_t i = 0; i < AG_TILE_WIDTH; i += 51) { /* 0, 51, ..., 255 */
        uint8_t expected[AG_HASH_SIZE];
        slow_root((size_t)(n * AG_TILE_WIDTH + i) * span, span, expected);
        ASSERT_EQ_MEM(tile + i * AG_HASH_SIZE, expected, AG_HASH_SIZE);
    }
    return AG_OK;
}

static int
frontier_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    const struct ag_frontier *frontier = ctx;
    uint64_t first = index << (height % 8);
    ASSERT_EQ_U(first / AG_TILE_WIDTH,
                ag_tile_count(frontier->size, height / 8) / AG_TILE_WIDTH);
    ag_tile_fold(frontier->tile[height / 8][first % AG_TILE_WIDTH], height % 8, out);
    return AG_OK;
}

static void
frontier_grows(void)
{
    static struct ag_frontier frontier;
    struct seen seen = {0};
    memset(&frontier, 0, sizeof(frontier));
    for (uint32_t i = 0; i < LEAVES; i++) {
        ag_leaf_hash(&i, sizeof(i), leaves[i]);
    }
    for (size_t i = 0; i < LEAVES; i++) {
        ASSERT_EQ(ag_frontier_flush(&frontier, leaves[i], see_tile, &seen), AG_OK);
        ag_frontier_append(&frontier, leaves[i]);
        size_t size = i + 1;
        if (size <= 600 || (size >= 65530 && size <= 65545) || size == LEAVES) {
            uint8_t root[AG_HASH_SIZE], expected[AG_HASH_SIZE];
            ASSERT_EQ(ag_tree_root(size, frontier_node, &frontier, root), AG_OK);
            slow_root(0, size, expected);
            ASSERT_EQ_MEM(root, expected, AG_HASH_SIZE);
        }
    }
    ASSERT_EQ(seen.tiles[0], LEAVES / 256);
    ASSERT_EQ(seen.tiles[1], 1);
    ASSERT_EQ(seen.tiles[2], 0);
    ASSERT_EQ_U(ag_tile_count(LEAVES, 0) % 256, 112); /* the example of tlog-tiles */
    ASSERT_EQ_U(ag_tile_count(LEAVES, 1) % 256, 17);
    ASSERT_EQ_U(ag_tile_count(LEAVES, 2) % 256, 1);
}

static void
failed_flush_changes_nothing(void)
{
    static struct ag_frontier frontier, before;
    struct seen seen = {.stop_at = 1};
    memset(&frontier, 0, sizeof(frontier));
    for (size_t i = 0; i < 255; i++) {
        ag_frontier_append(&frontier, leaves[i]);
    }
    before = frontier;
    ASSERT_EQ(ag_frontier_flush(&frontier, leaves[255], see_tile, &seen), AG_EIO);
    ASSERT_EQ_MEM(&frontier, &before, sizeof(frontier));
    ASSERT_EQ(ag_frontier_flush(&frontier, leaves[255], see_tile, &seen), AG_OK);
}

int
main(void)
{
    RUN(paths);
    RUN(frontier_grows);
    RUN(failed_flush_changes_nothing);
    return 0;
}
