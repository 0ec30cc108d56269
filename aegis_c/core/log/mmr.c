#include "log/mmr.h"

#include <assert.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "log/mmr_tiles.h"

/* Indices and sizes stay within a signed 64-bit number. */
#define SIZE_LIMIT ((uint64_t)INT64_MAX)

/* Leaves that may wait for their parents to be hashed. */
#define BATCH 64u

#define DUMP_MAGIC "aegismmr"
#define DUMP_VERSION 1u
#define DUMP_FLAG_PROOFS 1u
#define DUMP_HEADER 24u

struct ag_mmr {
    uint64_t size;
    uint64_t settled;   /* all nodes inside the first `settled` leaves are hashed */
    uint64_t root_size; /* the size that `root` belongs to */
    uint8_t root[AG_HASH_SIZE];
    bool proofs;
    uint64_t room; /* leaves that can be added without a call to make_room */
    struct ag_mmr_tiles tiles; /* with proofs */
    /* without: only allocated then */
    struct frontier {
        uint8_t peaks[64][AG_HASH_SIZE]; /* by height, of the first `settled` leaves */
        uint8_t waiting[BATCH][AG_HASH_SIZE];
    } frontier[];
};

/* The slow half of ag_mmr_reserve. */
static int
make_room(struct ag_mmr *mmr, uint64_t count)
{
    uint64_t size;
    if (__builtin_add_overflow(mmr->size, count, &size) || size > SIZE_LIMIT) {
        return AG_ETOOBIG;
    }
    int status = ag_mmr_tiles_reserve(&mmr->tiles, mmr->size, size);
    mmr->room = mmr->tiles.room;
    return status;
}

/* --- hashing what waits --- */

static void
settle_tiles(struct ag_mmr *mmr)
{
    for (unsigned h = 0; mmr->size >> (h + 1) != 0; h++) {
        uint64_t next = mmr->settled >> (h + 1), end = mmr->size >> (h + 1);
        /* parents of this height that have their children in one tile */
        uint64_t group = (AG_MMR_TILE_WIDTH / 2) >> (h % AG_MMR_TILE_LOG2);
        while (next < end) {
            uint64_t stop = (next / group + 1) * group;
            size_t pairs = (size_t)((stop < end ? stop : end) - next);
            ag_node_hash_level(ag_mmr_node(&mmr->tiles, h, 2 * next), pairs,
                               ag_mmr_node(&mmr->tiles, h + 1, next));
            next += pairs;
        }
    }
    mmr->settled = mmr->size;
}

/* The same without storage: at each height the waiting nodes pair up, the first with
 * the peak to its left where there is one; an odd one out becomes the new peak. */
static void
settle_frontier(struct ag_mmr *mmr)
{
    struct frontier *frontier = mmr->frontier;
    size_t count = (size_t)(mmr->size - mmr->settled);
    uint64_t index = mmr->settled;
    uint8_t (*nodes)[AG_HASH_SIZE] = frontier->waiting;
    for (unsigned h = 0; count > 0; h++) {
        size_t joined = (size_t)(index & 1);
        if (joined != 0) {
            ag_node_hash(frontier->peaks[h], nodes[0], nodes[0]);
        }
        size_t pairs = (count - joined) / 2;
        if ((count - joined) % 2 != 0) {
            memcpy(frontier->peaks[h], nodes[count - 1], AG_HASH_SIZE);
        }
        if (pairs > 0) {
            ag_node_hash_level(nodes[joined], pairs, nodes[joined]);
        }
        count = joined + pairs;
        index >>= 1;
    }
    mmr->settled = mmr->size;
}

static void
settle(struct ag_mmr *mmr)
{
    if (mmr->settled != mmr->size) {
        if (mmr->proofs) {
            settle_tiles(mmr);
        } else {
            settle_frontier(mmr);
        }
    }
}

/* Where the next leaves go, and how many fit there before they must be taken with
 * leaves_added. There must be room. */
static uint8_t *
leaf_places(struct ag_mmr *mmr, size_t *count)
{
    if (!mmr->proofs) {
        size_t waiting = (size_t)(mmr->size - mmr->settled);
        *count = BATCH - waiting;
        return mmr->frontier->waiting[waiting];
    }
    size_t slot = (size_t)(mmr->size % AG_MMR_TILE_WIDTH);
    *count = AG_MMR_TILE_WIDTH - slot;
    return ag_mmr_node(&mmr->tiles, 0, mmr->size);
}

static void
leaves_added(struct ag_mmr *mmr, size_t count)
{
    mmr->size += count;
    if (mmr->size - mmr->settled >= BATCH) {
        settle(mmr);
    }
}

/* --- the interface --- */

int
ag_mmr_new(bool proofs, struct ag_mmr **mmr)
{
    size_t bytes = sizeof(struct ag_mmr) + (proofs ? 0 : sizeof(struct frontier));
    struct ag_mmr *fresh = ag_calloc(1, bytes);
    if (fresh == NULL) {
        return AG_ENOMEM;
    }
    fresh->proofs = proofs;
    fresh->room = proofs ? 0 : SIZE_LIMIT;
    ag_sha256(NULL, 0, fresh->root); /* of size 0 */
    *mmr = fresh;
    return AG_OK;
}

void
ag_mmr_free(struct ag_mmr *mmr)
{
    if (mmr == NULL) {
        return;
    }
    ag_mmr_tiles_free(&mmr->tiles);
    ag_free(mmr);
}

uint64_t
ag_mmr_size(const struct ag_mmr *mmr)
{
    return mmr->size;
}

bool
ag_mmr_keeps_proofs(const struct ag_mmr *mmr)
{
    return mmr->proofs;
}

size_t
ag_mmr_memory(const struct ag_mmr *mmr)
{
    return mmr->tiles.memory + sizeof(*mmr) +
           (mmr->proofs ? 0 : sizeof(struct frontier));
}

int
ag_mmr_reserve(struct ag_mmr *mmr, uint64_t count)
{
    return count <= mmr->room - mmr->size ? AG_OK : make_room(mmr, count);
}

int
ag_mmr_append(struct ag_mmr *mmr, const void *entry, size_t n)
{
    int status = ag_mmr_reserve(mmr, 1);
    if (status == AG_OK) {
        size_t places;
        ag_leaf_hash(entry, n, leaf_places(mmr, &places));
        leaves_added(mmr, 1);
    }
    return status;
}

int
ag_mmr_append_hash(struct ag_mmr *mmr, const uint8_t leaf[AG_HASH_SIZE])
{
    return ag_mmr_extend_hashes(mmr, leaf, 1);
}

int
ag_mmr_extend(struct ag_mmr *mmr, const struct ag_span *entries, size_t count)
{
    int status = ag_mmr_reserve(mmr, count);
    while (status == AG_OK && count > 0) {
        size_t places;
        uint8_t *to = leaf_places(mmr, &places);
        size_t take = count < places ? count : places;
        ag_leaf_hash_spans(entries, take, to);
        leaves_added(mmr, take);
        entries += take;
        count -= take;
    }
    return status;
}

int
ag_mmr_extend_flat(struct ag_mmr *mmr, const uint8_t *entries, size_t entry_size,
                   size_t count)
{
    int status = ag_mmr_reserve(mmr, count);
    while (status == AG_OK && count > 0) {
        size_t places;
        uint8_t *to = leaf_places(mmr, &places);
        size_t take = count < places ? count : places;
        ag_leaf_hash_many(entries, entry_size, take, to);
        leaves_added(mmr, take);
        entries += take * entry_size;
        count -= take;
    }
    return status;
}

int
ag_mmr_extend_hashes(struct ag_mmr *mmr, const uint8_t *leaves, size_t count)
{
    int status = ag_mmr_reserve(mmr, count);
    while (status == AG_OK && count > 0) {
        size_t places;
        uint8_t *to = leaf_places(mmr, &places);
        size_t take = count < places ? count : places;
        memcpy(to, leaves, take * AG_HASH_SIZE);
        leaves_added(mmr, take);
        leaves += take * AG_HASH_SIZE;
        count -= take;
    }
    return status;
}

/* ag_node_fn. Without proofs only the peaks of the whole tree are asked for. */
static int
read_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    const struct ag_mmr *mmr = ctx;
    assert(mmr->proofs || index == (mmr->size >> height) - 1);
    memcpy(out,
           mmr->proofs ? ag_mmr_node(&mmr->tiles, height, index)
                       : mmr->frontier->peaks[height],
           AG_HASH_SIZE);
    return AG_OK;
}

void
ag_mmr_root(struct ag_mmr *mmr, uint8_t out[AG_HASH_SIZE])
{
    if (mmr->root_size != mmr->size) {
        settle(mmr);
        (void)ag_tree_root(mmr->size, read_node, mmr,
                           mmr->root); /* read_node succeeds */
        mmr->root_size = mmr->size;
    }
    memcpy(out, mmr->root, AG_HASH_SIZE);
}

int
ag_mmr_root_at(struct ag_mmr *mmr, uint64_t size, uint8_t out[AG_HASH_SIZE])
{
    if (size > mmr->size) {
        return AG_ERANGE;
    }
    if (size == mmr->size) {
        ag_mmr_root(mmr, out);
        return AG_OK;
    }
    if (!mmr->proofs && size != 0) {
        return AG_ENOTFOUND;
    }
    settle(mmr);
    return ag_tree_root(size, read_node, mmr, out);
}

size_t
ag_mmr_peaks(struct ag_mmr *mmr, uint8_t (*peaks)[AG_HASH_SIZE])
{
    size_t count = 0;
    settle(mmr);
    for (unsigned h = 64; h-- > 0;) {
        if ((mmr->size >> h & 1) != 0) {
            (void)read_node(mmr, h, (mmr->size >> h) - 1, peaks[count++]);
        }
    }
    return count;
}

int
ag_mmr_inclusion_proof(struct ag_mmr *mmr, uint64_t index, uint64_t size,
                       uint8_t (*proof)[AG_HASH_SIZE], size_t *count)
{
    if (size > mmr->size || index >= size) {
        return AG_ERANGE;
    }
    if (!mmr->proofs) {
        return AG_ENOTFOUND;
    }
    settle(mmr);
    return ag_inclusion_proof(index, size, read_node, mmr, proof, count);
}

int
ag_mmr_consistency_proof(struct ag_mmr *mmr, uint64_t old_size, uint64_t new_size,
                         uint8_t (*proof)[AG_HASH_SIZE], size_t *count)
{
    if (new_size > mmr->size || old_size > new_size) {
        return AG_ERANGE;
    }
    if (!mmr->proofs) {
        return AG_ENOTFOUND;
    }
    settle(mmr);
    return ag_consistency_proof(old_size, new_size, read_node, mmr, proof, count);
}

/* --- dump and load --- */

/* Hashes in the dump of a tree of `size` leaves. */
static uint64_t
dump_hashes(bool proofs, uint64_t size)
{
    return proofs ? size : (uint64_t)__builtin_popcountll(size);
}

size_t
ag_mmr_dump_size(const struct ag_mmr *mmr)
{
    uint64_t hashes = dump_hashes(mmr->proofs, mmr->size);
    return DUMP_HEADER + (size_t)hashes * AG_HASH_SIZE + AG_HASH_SIZE;
}

void
ag_mmr_dump(struct ag_mmr *mmr, uint8_t *out)
{
    uint8_t *to = out;
    memcpy(to, DUMP_MAGIC, 8);
    ag_put_u32le(to + 8, DUMP_VERSION);
    ag_put_u32le(to + 12, mmr->proofs ? DUMP_FLAG_PROOFS : 0);
    ag_put_u64le(to + 16, mmr->size);
    to += DUMP_HEADER;
    if (mmr->proofs) {
        for (uint64_t i = 0; i < mmr->size; i += AG_MMR_TILE_WIDTH) {
            uint64_t left = mmr->size - i;
            size_t part =
                (size_t)(left < AG_MMR_TILE_WIDTH ? left : AG_MMR_TILE_WIDTH) *
                AG_HASH_SIZE;
            memcpy(to, ag_mmr_node(&mmr->tiles, 0, i), part);
            to += part;
        }
    } else {
        uint8_t peaks[64][AG_HASH_SIZE];
        size_t part = ag_mmr_peaks(mmr, peaks) * AG_HASH_SIZE;
        memcpy(to, peaks, part);
        to += part;
    }
    ag_sha256(out, (size_t)(to - out), to);
}

static int
check_dump(const uint8_t *dump, size_t n, struct ag_error *err)
{
    char expected[65] = {0}, found[65] = {0};
    if (n < DUMP_HEADER + AG_HASH_SIZE) {
        return ag_fail(err, AG_ECORRUPT,
                       "dump has %zu bytes, the shortest possible one has %u", n,
                       DUMP_HEADER + AG_HASH_SIZE);
    }
    if (memcmp(dump, DUMP_MAGIC, 8) != 0) {
        return ag_fail(err, AG_ECORRUPT,
                       "not the dump of a tree: it does not begin with "
                       "\"" DUMP_MAGIC "\"");
    }
    uint32_t version = ag_get_u32le(dump + 8), flags = ag_get_u32le(dump + 12);
    if (version != DUMP_VERSION) {
        return ag_fail(err, AG_EVERSION, "dump has version %u, this release reads %u",
                       version, DUMP_VERSION);
    }
    if ((flags & ~DUMP_FLAG_PROOFS) != 0) {
        return ag_fail(err, AG_EVERSION, "dump has unknown flags 0x%08x", flags);
    }
    uint64_t size = ag_get_u64le(dump + 16);
    if (size > SIZE_LIMIT) {
        return ag_fail(err, AG_ECORRUPT, "dump claims %llu leaves, at most %llu can be",
                       (unsigned long long)size, (unsigned long long)SIZE_LIMIT);
    }
    uint64_t hashes = dump_hashes((flags & DUMP_FLAG_PROOFS) != 0, size);
    uint64_t held = (n - DUMP_HEADER) / AG_HASH_SIZE - 1;
    if (hashes != held || (n - DUMP_HEADER) % AG_HASH_SIZE != 0) {
        return ag_fail(
            err, AG_ECORRUPT,
            "dump of %llu leaves must hold %llu hashes, but its %zu bytes hold "
            "%llu%s",
            (unsigned long long)size, (unsigned long long)hashes, n,
            (unsigned long long)held,
            (n - DUMP_HEADER) % AG_HASH_SIZE != 0 ? " and a part of one" : "");
    }
    uint8_t sum[AG_HASH_SIZE];
    const uint8_t *stored = dump + n - AG_HASH_SIZE;
    ag_sha256(dump, n - AG_HASH_SIZE, sum);
    if (memcmp(sum, stored, AG_HASH_SIZE) != 0) {
        int status = ag_fail(err, AG_ECORRUPT, "checksum of the dump does not match");
        ag_hash_hex(stored, expected);
        ag_hash_hex(sum, found);
        ag_error_pair(err, expected, found);
        ag_error_advice(err, "Load an undamaged copy");
        return status;
    }
    return AG_OK;
}

int
ag_mmr_load(const uint8_t *dump, size_t n, struct ag_mmr **mmr, struct ag_error *err)
{
    int status = check_dump(dump, n, err);
    if (status != AG_OK) {
        return status;
    }
    bool proofs = (ag_get_u32le(dump + 12) & DUMP_FLAG_PROOFS) != 0;
    uint64_t size = ag_get_u64le(dump + 16);
    const uint8_t *hashes = dump + DUMP_HEADER;
    struct ag_mmr *fresh = NULL;
    status = ag_mmr_new(proofs, &fresh);
    if (status == AG_OK && proofs) {
        status = ag_mmr_extend_hashes(fresh, hashes, (size_t)size);
    } else if (status == AG_OK) {
        for (unsigned h = 64; h-- > 0;) {
            if ((size >> h & 1) != 0) {
                memcpy(fresh->frontier->peaks[h], hashes, AG_HASH_SIZE);
                hashes += AG_HASH_SIZE;
            }
        }
        fresh->size = fresh->settled = size;
        fresh->root_size = size == 0 ? 0 : UINT64_MAX;
    }
    if (status != AG_OK) {
        ag_mmr_free(fresh);
        return ag_fail(err, status, "no memory for a tree of %llu leaves",
                       (unsigned long long)size);
    }
    *mmr = fresh;
    return AG_OK;
}
