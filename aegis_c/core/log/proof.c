#include "log/proof.h"

#include <stdbool.h>
#include <string.h>

#include "base/status.h"

/* The tree of n leaves is the list of its peaks: one complete subtree for every set bit
 * of n, tallest first. With bit h set, n >> h is odd and the peak of height h is the
 * node (n >> h) - 1 of its level. Folding the peaks from the right is the split of RFC
 * 6962 section 2.1 at the largest power of two, written as a loop. */

static bool
is_power_of_two(uint64_t n)
{
    return (n & (n - 1)) == 0;
}

/* Hash of the leaves of the peaks below `height`, at least one of which there must be.
 */
static int
fold_peaks(uint64_t size, unsigned height, ag_node_fn node, void *ctx,
           uint8_t out[AG_HASH_SIZE])
{
    uint8_t fold[AG_HASH_SIZE], peak[AG_HASH_SIZE];
    unsigned h = (unsigned)__builtin_ctzll(size);
    int status = node(ctx, h, (size >> h) - 1, fold);
    for (h++; status == AG_OK && h < height; h++) {
        if ((size >> h & 1) != 0) {
            status = node(ctx, h, (size >> h) - 1, peak);
            if (status == AG_OK) {
                ag_node_hash(peak, fold, fold);
            }
        }
    }
    if (status == AG_OK) {
        memcpy(out, fold, AG_HASH_SIZE);
    }
    return status;
}

int
ag_tree_root(uint64_t size, ag_node_fn node, void *ctx, uint8_t out[AG_HASH_SIZE])
{
    if (size == 0) {
        ag_sha256(NULL, 0, out);
        return AG_OK;
    }
    return fold_peaks(size, 64, node, ctx, out);
}

/* The siblings on the way from the complete subtree `index` of `height` up to the root
 * of `size` leaves. At most one of them, on the right edge, is not complete itself. */
static int
path_to_root(unsigned height, uint64_t index, uint64_t size, ag_node_fn node, void *ctx,
             uint8_t (*proof)[AG_HASH_SIZE], size_t *count)
{
    int status = AG_OK;
    uint64_t last = (size - 1) >> height;
    for (unsigned h = height; status == AG_OK && last > 0; h++) {
        uint64_t sibling = index ^ 1;
        if (sibling < size >> h) {
            status = node(ctx, h, sibling, proof[(*count)++]);
        } else if (sibling == last) {
            status = fold_peaks(size, h, node, ctx, proof[(*count)++]);
        }
        index >>= 1;
        last >>= 1;
    }
    return status;
}

/* How many siblings path_to_root finds: every level below the one where `index` and the
 * last node part has one; above it only the levels where the path is a right child. */
static size_t
path_count(unsigned height, uint64_t index, uint64_t size)
{
    uint64_t apart = index ^ ((size - 1) >> height);
    unsigned inner = apart == 0 ? 0 : 64 - (unsigned)__builtin_clzll(apart);
    uint64_t border = inner == 64 ? 0 : index >> inner;
    return inner + (size_t)__builtin_popcountll(border);
}

size_t
ag_inclusion_proof_count(uint64_t index, uint64_t size)
{
    return index < size ? path_count(0, index, size) : 0;
}

size_t
ag_consistency_proof_count(uint64_t old_size, uint64_t new_size)
{
    if (old_size == 0 || old_size >= new_size) {
        return 0;
    }
    unsigned h = (unsigned)__builtin_ctzll(old_size);
    return (is_power_of_two(old_size) ? 0 : 1) +
           path_count(h, (old_size >> h) - 1, new_size);
}

int
ag_inclusion_proof(uint64_t index, uint64_t size, ag_node_fn node, void *ctx,
                   uint8_t (*proof)[AG_HASH_SIZE], size_t *count)
{
    if (index >= size) {
        return AG_ERANGE;
    }
    size_t found = 0;
    int status = path_to_root(0, index, size, node, ctx, proof, &found);
    if (status == AG_OK) {
        *count = found;
    }
    return status;
}

int
ag_consistency_proof(uint64_t old_size, uint64_t new_size, ag_node_fn node, void *ctx,
                     uint8_t (*proof)[AG_HASH_SIZE], size_t *count)
{
    if (old_size > new_size) {
        return AG_ERANGE;
    }
    size_t found = 0;
    int status = AG_OK;
    if (old_size != 0 && old_size != new_size) {
        unsigned h = (unsigned)__builtin_ctzll(old_size);
        uint64_t index = (old_size >> h) - 1;
        if (!is_power_of_two(old_size)) {
            status = node(ctx, h, index, proof[found++]);
        }
        if (status == AG_OK) {
            status = path_to_root(h, index, new_size, node, ctx, proof, &found);
        }
    }
    if (status == AG_OK) {
        *count = found;
    }
    return status;
}

int
ag_inclusion_root(const uint8_t leaf[AG_HASH_SIZE], uint64_t index, uint64_t size,
                  const uint8_t (*proof)[AG_HASH_SIZE], size_t count,
                  uint8_t out[AG_HASH_SIZE])
{
    if (index >= size) {
        return AG_ERANGE;
    }
    if (count != ag_inclusion_proof_count(index, size)) {
        return AG_EVERIFY;
    }
    uint8_t hash[AG_HASH_SIZE];
    memcpy(hash, leaf, AG_HASH_SIZE);
    uint64_t last = size - 1;
    for (size_t next = 0; next < count; index >>= 1, last >>= 1) {
        if ((index & 1) != 0) {
            ag_node_hash(proof[next++], hash, hash);
        } else if (index != last) {
            ag_node_hash(hash, proof[next++], hash);
        }
    }
    memcpy(out, hash, AG_HASH_SIZE);
    return AG_OK;
}

int
ag_consistency_roots(uint64_t old_size, uint64_t new_size,
                     const uint8_t old_root[AG_HASH_SIZE],
                     const uint8_t (*proof)[AG_HASH_SIZE], size_t count,
                     uint8_t old_out[AG_HASH_SIZE], uint8_t new_out[AG_HASH_SIZE])
{
    if (old_size > new_size) {
        return AG_ERANGE;
    }
    if (count != ag_consistency_proof_count(old_size, new_size)) {
        return AG_EVERIFY;
    }
    uint8_t old_hash[AG_HASH_SIZE], new_hash[AG_HASH_SIZE];
    if (old_size == 0) {
        ag_sha256(NULL, 0, old_out);
        if (new_size == 0) {
            ag_sha256(NULL, 0, new_out);
        }
        return AG_OK;
    }
    size_t next = count == 0 || is_power_of_two(old_size) ? 0 : 1;
    memcpy(old_hash, next == 0 ? old_root : proof[0], AG_HASH_SIZE);
    memcpy(new_hash, old_hash, AG_HASH_SIZE);
    unsigned h = (unsigned)__builtin_ctzll(old_size);
    uint64_t index = (old_size >> h) - 1, last = (new_size - 1) >> h;
    for (; next < count; index >>= 1, last >>= 1) {
        if ((index & 1) != 0) { /* to the left: in both trees */
            ag_node_hash(proof[next], old_hash, old_hash);
            ag_node_hash(proof[next++], new_hash, new_hash);
        } else if (index != last) { /* to the right: only in the new one */
            ag_node_hash(new_hash, proof[next++], new_hash);
        }
    }
    memcpy(old_out, old_hash, AG_HASH_SIZE);
    memcpy(new_out, new_hash, AG_HASH_SIZE);
    return AG_OK;
}

int
ag_verify_inclusion(const uint8_t leaf[AG_HASH_SIZE], uint64_t index, uint64_t size,
                    const uint8_t root[AG_HASH_SIZE],
                    const uint8_t (*proof)[AG_HASH_SIZE], size_t count)
{
    uint8_t found[AG_HASH_SIZE];
    int status = ag_inclusion_root(leaf, index, size, proof, count, found);
    if (status == AG_OK && memcmp(found, root, AG_HASH_SIZE) != 0) {
        status = AG_EVERIFY;
    }
    return status;
}

int
ag_verify_consistency(uint64_t old_size, uint64_t new_size,
                      const uint8_t old_root[AG_HASH_SIZE],
                      const uint8_t new_root[AG_HASH_SIZE],
                      const uint8_t (*proof)[AG_HASH_SIZE], size_t count)
{
    uint8_t old_found[AG_HASH_SIZE], new_found[AG_HASH_SIZE];
    memcpy(new_found, new_root, AG_HASH_SIZE); /* kept when anything is consistent */
    int status = ag_consistency_roots(old_size, new_size, old_root, proof, count,
                                      old_found, new_found);
    if (status == AG_OK && (memcmp(old_found, old_root, AG_HASH_SIZE) != 0 ||
                            memcmp(new_found, new_root, AG_HASH_SIZE) != 0)) {
        status = AG_EVERIFY;
    }
    return status;
}
