#include "log/legacy_tree.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"
#include "hash/sha256.h"

#define PEAKS_MAX 64

struct peak {
    uint8_t hash[64];         /* v1: 64 hex digits; v2: 32 octets */
    struct ag_sha256 through; /* has taken all peaks up to this one */
};

struct ag_legacy_tree {
    enum ag_legacy_scheme scheme;
    uint64_t count;
    size_t peak_count;
    struct ag_sha256 begin; /* what the first peak is added to */
    struct peak peaks[PEAKS_MAX];
};

int
ag_legacy_tree_new(enum ag_legacy_scheme scheme, struct ag_legacy_tree **tree)
{
    struct ag_legacy_tree *fresh = ag_alloc(sizeof(*fresh));
    if (fresh == NULL) {
        return AG_ENOMEM;
    }
    fresh->scheme = scheme;
    fresh->count = 0;
    fresh->peak_count = 0;
    ag_sha256_init(&fresh->begin);
    if (scheme == AG_LEGACY_V2) {
        ag_sha256_update(&fresh->begin, "\x02", 1);
    }
    *tree = fresh;
    return AG_OK;
}

void
ag_legacy_tree_free(struct ag_legacy_tree *tree)
{
    ag_free(tree);
}

enum ag_legacy_scheme
ag_legacy_tree_scheme(const struct ag_legacy_tree *tree)
{
    return tree->scheme;
}

uint64_t
ag_legacy_tree_count(const struct ag_legacy_tree *tree)
{
    return tree->count;
}

static void
v1_node(const uint8_t left[64], const uint8_t right[64], uint8_t out[64])
{
    struct ag_sha256 ctx;
    uint8_t digest[AG_HASH_SIZE];
    ag_sha256_init(&ctx);
    ag_sha256_update(&ctx, left, 64);
    ag_sha256_update(&ctx, right, 64);
    ag_sha256_final(&ctx, digest);
    ag_hash_hex(digest, (char *)out);
}

void
ag_legacy_tree_add(struct ag_legacy_tree *tree, const void *data, size_t n)
{
    uint8_t hash[64];
    if (tree->scheme == AG_LEGACY_V1) {
        uint8_t digest[AG_HASH_SIZE];
        ag_sha256(data, n, digest);
        ag_hash_hex(digest, (char *)hash);
    } else {
        ag_leaf_hash(data, n, hash);
    }
    /* one peak joins for every trailing 1 of the old count */
    for (uint64_t bits = tree->count; (bits & 1) != 0; bits >>= 1) {
        const uint8_t *left = tree->peaks[--tree->peak_count].hash;
        if (tree->scheme == AG_LEGACY_V1) {
            v1_node(left, hash, hash);
        } else {
            ag_node_hash(left, hash, hash);
        }
    }
    struct peak *peak = &tree->peaks[tree->peak_count];
    size_t size = tree->scheme == AG_LEGACY_V1 ? 64 : AG_HASH_SIZE;
    memcpy(peak->hash, hash, size);
    peak->through = tree->peak_count > 0 ? peak[-1].through : tree->begin;
    ag_sha256_update(&peak->through, hash, size);
    tree->peak_count++;
    tree->count++;
}

void
ag_legacy_tree_root(const struct ag_legacy_tree *tree, char out[64])
{
    if (tree->count == 0) {
        memset(out, '0', 64);
        return;
    }
    struct ag_sha256 ctx = tree->peaks[tree->peak_count - 1].through;
    uint8_t digest[AG_HASH_SIZE];
    ag_sha256_final(&ctx, digest);
    ag_hash_hex(digest, out);
}
