/* Fuzz targets of the tree: what they feed, and what must hold whatever that is. Each
 * is built with libFuzzer (fuzz_*.c beside this file) and as a plain regression test
 * (tests/c/test_fuzz_tree.c). They abort when something does not hold. */
#ifndef TREE_TARGETS_H
#define TREE_TARGETS_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/status.h"
#include "log/mmr.h"
#include "log/proof.h"

typedef uint8_t fuzz_hash[AG_HASH_SIZE];

#define MUST(condition)                                                                \
    do {                                                                               \
        if (!(condition)) {                                                            \
            abort();                                                                   \
        }                                                                              \
    } while (0)

/* RFC 9162 section 2.1.3.2, word for word. */
static inline bool
rfc_inclusion(const uint8_t *leaf, uint64_t index, uint64_t size, const uint8_t *root,
              const uint8_t (*proof)[AG_HASH_SIZE], size_t count)
{
    fuzz_hash r;
    uint64_t fn = index, sn = size - 1;
    if (index >= size) {
        return false;
    }
    memcpy(r, leaf, AG_HASH_SIZE);
    for (size_t i = 0; i < count; i++) {
        if (sn == 0) {
            return false;
        }
        if ((fn & 1) != 0 || fn == sn) {
            ag_node_hash(proof[i], r, r);
            while ((fn & 1) == 0 && fn != 0) {
                fn >>= 1;
                sn >>= 1;
            }
        } else {
            ag_node_hash(r, proof[i], r);
        }
        fn >>= 1;
        sn >>= 1;
    }
    return sn == 0 && memcmp(r, root, AG_HASH_SIZE) == 0;
}

/* RFC 9162 section 2.1.4.2, and the two cases that it leaves out. */
static inline bool
rfc_consistency(uint64_t first, uint64_t second, const uint8_t *first_hash,
                const uint8_t *second_hash, const uint8_t (*proof)[AG_HASH_SIZE],
                size_t count)
{
    fuzz_hash fr, sr;
    uint64_t fn = first - 1, sn = second - 1;
    size_t i = 0;
    if (first > second) {
        return false;
    }
    if (first == second) {
        ag_sha256(NULL, 0, fr);
        return count == 0 && memcmp(first_hash, second_hash, AG_HASH_SIZE) == 0 &&
               (first != 0 || memcmp(first_hash, fr, AG_HASH_SIZE) == 0);
    }
    if (first == 0) {
        ag_sha256(NULL, 0, fr);
        return count == 0 && memcmp(first_hash, fr, AG_HASH_SIZE) == 0;
    }
    if (count == 0) {
        return false;
    }
    memcpy(fr, (first & (first - 1)) == 0 ? first_hash : proof[i++], AG_HASH_SIZE);
    memcpy(sr, fr, AG_HASH_SIZE);
    while ((fn & 1) != 0) {
        fn >>= 1;
        sn >>= 1;
    }
    for (; i < count; i++) {
        if (sn == 0) {
            return false;
        }
        if ((fn & 1) != 0 || fn == sn) {
            ag_node_hash(proof[i], fr, fr);
            ag_node_hash(proof[i], sr, sr);
            while ((fn & 1) == 0 && fn != 0) {
                fn >>= 1;
                sn >>= 1;
            }
        } else {
            ag_node_hash(sr, proof[i], sr);
        }
        fn >>= 1;
        sn >>= 1;
    }
    return sn == 0 && memcmp(fr, first_hash, AG_HASH_SIZE) == 0 &&
           memcmp(sr, second_hash, AG_HASH_SIZE) == 0;
}

/* A proof as octets: flags, two numbers (little-endian), two hashes, then whole hashes.
 * Flag 1: compare with the root that the proof leads to, so that good proofs occur. Our
 * verdict must be that of the RFC's own algorithm. */
static inline void
fuzz_proof(const uint8_t *data, size_t n)
{
    enum { HEAD = 1 + 8 + 8 + 64 };
    if (n < HEAD) {
        return;
    }
    uint64_t a = ag_get_u64le(data + 1), b = ag_get_u64le(data + 9);
    size_t count = (n - HEAD) / AG_HASH_SIZE;
    /* a copy of the exact size: an octet read beyond it is found */
    fuzz_hash *proof = malloc(count > 0 ? count * AG_HASH_SIZE : 1);
    MUST(proof != NULL);
    memcpy(proof, data + HEAD, count * AG_HASH_SIZE);
    const uint8_t (*hashes)[AG_HASH_SIZE] = (const uint8_t (*)[AG_HASH_SIZE])proof;
    fuzz_hash first, second, old_found, new_found;
    memcpy(first, data + 17, AG_HASH_SIZE);
    memcpy(second, data + 49, AG_HASH_SIZE);
    bool lead = (data[0] & 1) != 0;
    if (lead) {
        (void)ag_inclusion_root(first, a, b, hashes, count, second);
    }
    int status = ag_verify_inclusion(first, a, b, second, hashes, count);
    MUST((status == AG_OK) == rfc_inclusion(first, a, b, second, hashes, count));
    MUST(status == AG_OK || status == (a < b ? AG_EVERIFY : AG_ERANGE));
    if (lead && ag_consistency_roots(a, b, first, hashes, count, old_found,
                                     new_found) == AG_OK) {
        memcpy(first, old_found, AG_HASH_SIZE);
        if (a != 0 || b == 0) {
            memcpy(second, new_found, AG_HASH_SIZE);
        }
    }
    status = ag_verify_consistency(a, b, first, second, hashes, count);
    MUST((status == AG_OK) == rfc_consistency(a, b, first, second, hashes, count));
    MUST(status == AG_OK || status == (a <= b ? AG_EVERIFY : AG_ERANGE));
    free(proof);
}

/* A dump: as it is, and once more under a checksum that holds. What loads must dump to
 * the same octets and go on. */
static inline void
fuzz_load(const uint8_t *data, size_t n)
{
    uint8_t *dump = malloc(n > 0 ? n : 1);
    MUST(dump != NULL);
    memcpy(dump, data, n);
    for (int sealed = 0; sealed < 2; sealed++) {
        if (sealed && n >= AG_HASH_SIZE) {
            ag_sha256(dump, n - AG_HASH_SIZE, dump + n - AG_HASH_SIZE);
        }
        struct ag_mmr *mmr = NULL;
        struct ag_error err;
        int status = ag_mmr_load(dump, n, &mmr, &err);
        if (status != AG_OK) {
            MUST(status == AG_ECORRUPT || status == AG_EVERSION);
            MUST(mmr == NULL && err.status == status && err.what[0] != '\0');
            continue;
        }
        MUST(ag_mmr_dump_size(mmr) == n);
        uint8_t *again = malloc(n);
        MUST(again != NULL);
        ag_mmr_dump(mmr, again);
        MUST(memcmp(again, dump, n) == 0);
        free(again);
        fuzz_hash root;
        ag_mmr_root(mmr, root);
        uint64_t size = ag_mmr_size(mmr);
        status = ag_mmr_append(mmr, data, n);
        MUST(status == (size == (uint64_t)INT64_MAX ? AG_ETOOBIG : AG_OK));
        ag_mmr_free(mmr);
    }
    free(dump);
}

#endif
