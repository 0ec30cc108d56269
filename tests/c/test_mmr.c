// threads: none
/* The in-memory tree against RFC 6962 by recursion; memory, failing allocations, dumps.
 * links: alloc_fault */
#include "alloc_fault.h"
#include "check.h"
#include "guard_pages.h"
#include "log/mmr.h"

#define MOST 1300

typedef uint8_t hash[AG_HASH_SIZE];

static uint64_t seed;
static uint8_t entries[MOST][32];
static hash leaves[MOST], roots[MOST + 1];

/* --- the slow twin --- */

static void
slow_root(uint64_t first, uint64_t n, hash out)
{
    if (n == 0) {
        ag_sha256(NULL, 0, out);
    } else if (n == 1) {
        memcpy(out, leaves[first], AG_HASH_SIZE);
    } else {
        uint64_t k = 1;
        while (2 * k < n) {
            k *= 2;
        }
        hash left, right;
        slow_root(first, k, left);
        slow_root(first + k, n - k, right);
        ag_node_hash(left, right, out);
    }
}

static void
make_entries(void)
{
    for (size_t i = 0; i < MOST; i++) {
        for (size_t j = 0; j < 32; j++) {
            entries[i][j] = (uint8_t)check_random(&seed);
        }
        ag_leaf_hash(entries[i], 32, leaves[i]);
    }
    for (uint64_t n = 0; n <= MOST; n++) {
        slow_root(0, n, roots[n]);
    }
}

static struct ag_mmr *
make(bool proofs)
{
    struct ag_mmr *mmr = NULL;
    ASSERT_EQ(ag_mmr_new(proofs, &mmr), AG_OK);
    ASSERT_EQ_U(ag_mmr_size(mmr), 0);
    ASSERT_EQ(ag_mmr_keeps_proofs(mmr), proofs);
    return mmr;
}

static void
expect_root(struct ag_mmr *mmr, uint64_t size)
{
    hash found;
    ASSERT_EQ_U(ag_mmr_size(mmr), size);
    ag_mmr_root(mmr, found);
    ASSERT_EQ_MEM(found, roots[size], AG_HASH_SIZE);
}

/* Adds leaves [size, size + count) in one of the ways there are. */
static int
add(struct ag_mmr *mmr, size_t count, unsigned way)
{
    uint64_t at = ag_mmr_size(mmr);
    struct ag_span spans[MOST];
    switch (way % 5) {
    case 0:
        if (count == 1) {
            return ag_mmr_append(mmr, entries[at], 32);
        }
        return ag_mmr_extend_flat(mmr, entries[at], 32, count);
    case 1:
        if (count == 1) {
            return ag_mmr_append_hash(mmr, leaves[at]);
        }
        return ag_mmr_extend_hashes(mmr, leaves[at], count);
    case 2:
        for (size_t i = 0; i < count; i++) {
            spans[i] = (struct ag_span){entries[at + i], 32};
        }
        return ag_mmr_extend(mmr, spans, count);
    case 3: {
        int status = ag_mmr_reserve(mmr, count);
        for (size_t i = 0; status == AG_OK && i < count; i++) {
            status = ag_mmr_append(mmr, entries[at + i], 32);
        }
        return status;
    }
    default:
        return ag_mmr_extend_flat(mmr, entries[at], 32, count);
    }
}

/* --- roots and proofs --- */

static void
every_size_one_by_one(void)
{
    for (int proofs = 0; proofs < 2; proofs++) {
        struct ag_mmr *mmr = make(proofs);
        for (uint64_t n = 0; n < MOST; n++) {
            expect_root(mmr, n);
            ASSERT_EQ(add(mmr, 1, (unsigned)n), AG_OK);
        }
        expect_root(mmr, MOST);
        ag_mmr_free(mmr);
    }
}

static void
random_steps(void)
{
    for (int round = 0; round < 120; round++) {
        struct ag_mmr *mmr = make(round % 2 == 0);
        uint64_t n = 0;
        while (n < MOST) {
            size_t step = (size_t)(check_random(&seed) % (round % 5 == 0 ? 900 : 90));
            step = step < MOST - n ? step : (size_t)(MOST - n);
            ASSERT_EQ(add(mmr, step, (unsigned)check_random(&seed)), AG_OK);
            n += step;
            if (check_random(&seed) % 3 == 0) {
                expect_root(mmr, n);
            }
        }
        expect_root(mmr, MOST);
        ag_mmr_free(mmr);
    }
}

static void
earlier_sizes_and_proofs(void)
{
    struct ag_mmr *mmr = make(true);
    hash proof[AG_PROOF_MAX], found;
    const uint8_t (*path)[AG_HASH_SIZE] = (const uint8_t (*)[AG_HASH_SIZE])proof;
    size_t count = 99;
    ASSERT_EQ(add(mmr, MOST, 0), AG_OK);
    for (uint64_t n = 0; n <= MOST; n++) {
        ASSERT_EQ(ag_mmr_root_at(mmr, n, found), AG_OK);
        ASSERT_EQ_MEM(found, roots[n], AG_HASH_SIZE);
        for (int round = 0; round < 20 && n > 0; round++) {
            uint64_t i = check_random(&seed) % n, m = check_random(&seed) % (n + 1);
            ASSERT_EQ(ag_mmr_inclusion_proof(mmr, i, n, proof, &count), AG_OK);
            ASSERT_EQ(ag_verify_inclusion(leaves[i], i, n, roots[n], path, count),
                      AG_OK);
            ASSERT_EQ(ag_mmr_consistency_proof(mmr, m, n, proof, &count), AG_OK);
            ASSERT_EQ(ag_verify_consistency(m, n, roots[m], roots[n], path, count),
                      AG_OK);
        }
    }
    static const uint64_t beyond[] = {MOST + 1, (uint64_t)1 << 63, UINT64_MAX};
    for (int i = 0; i < 3; i++) {
        ASSERT_EQ(ag_mmr_root_at(mmr, beyond[i], found), AG_ERANGE);
        ASSERT_EQ(ag_mmr_inclusion_proof(mmr, 0, beyond[i], proof, &count), AG_ERANGE);
        ASSERT_EQ(ag_mmr_inclusion_proof(mmr, beyond[i] - 1, MOST, proof, &count),
                  AG_ERANGE);
        ASSERT_EQ(ag_mmr_consistency_proof(mmr, 0, beyond[i], proof, &count),
                  AG_ERANGE);
        ASSERT_EQ(ag_mmr_consistency_proof(mmr, beyond[i], MOST, proof, &count),
                  AG_ERANGE);
    }
    ASSERT_EQ(ag_mmr_inclusion_proof(mmr, 5, 5, proof, &count), AG_ERANGE);
    ASSERT_EQ(ag_mmr_consistency_proof(mmr, 6, 5, proof, &count), AG_ERANGE);
    ag_mmr_free(mmr);
}

static void
without_proofs_only_the_present(void)
{
    struct ag_mmr *mmr = make(false);
    hash proof[AG_PROOF_MAX], found;
    size_t count = 99;
    ASSERT_EQ(add(mmr, 77, 0), AG_OK);
    ASSERT_EQ(ag_mmr_root_at(mmr, 77, found), AG_OK);
    ASSERT_EQ_MEM(found, roots[77], AG_HASH_SIZE);
    ASSERT_EQ(ag_mmr_root_at(mmr, 0, found), AG_OK);
    ASSERT_EQ_MEM(found, roots[0], AG_HASH_SIZE);
    ASSERT_EQ(ag_mmr_root_at(mmr, 76, found), AG_ENOTFOUND);
    ASSERT_EQ(ag_mmr_root_at(mmr, 78, found), AG_ERANGE);
    ASSERT_EQ(ag_mmr_inclusion_proof(mmr, 0, 77, proof, &count), AG_ENOTFOUND);
    ASSERT_EQ(ag_mmr_inclusion_proof(mmr, 77, 77, proof, &count), AG_ERANGE);
    ASSERT_EQ(ag_mmr_consistency_proof(mmr, 1, 77, proof, &count), AG_ENOTFOUND);
    ag_mmr_free(mmr);
}

static void
peaks_are_the_set_bits(void)
{
    for (int proofs = 0; proofs < 2; proofs++) {
        struct ag_mmr *mmr = make(proofs);
        hash peaks[64], fold;
        for (uint64_t n = 1; n <= MOST; n++) {
            ASSERT_EQ(add(mmr, 1, 0), AG_OK);
            if (n % 7 != 0) {
                continue;
            }
            size_t count = ag_mmr_peaks(mmr, peaks);
            ASSERT_EQ_U(count, __builtin_popcountll(n));
            memcpy(fold, peaks[count - 1], AG_HASH_SIZE);
            for (size_t i = count - 1; i-- > 0;) {
                ag_node_hash(peaks[i], fold, fold);
            }
            ASSERT_EQ_MEM(fold, roots[n], AG_HASH_SIZE);
        }
        ag_mmr_free(mmr);
    }
}

/* --- memory --- */

static void
memory_per_leaf(void)
{
    /* the worst sizes are those at which something has just been allocated */
    struct ag_mmr *mmr = make(true);
    double worst = 0;
    for (uint64_t n = 1; n <= 300000; n++) {
        ASSERT_EQ(ag_mmr_append_hash(mmr, leaves[n % MOST]), AG_OK);
        double each = (double)ag_mmr_memory(mmr) / (double)n;
        if (n >= 10000 && each > worst) {
            worst = each;
        }
        if (n == 1024) {
            ASSERT(each <= 70);
        }
    }
    fprintf(stderr, "    at most %.2f octets a leaf from 10,000 leaves on\n", worst);
    ASSERT(worst <= 68);
    ag_mmr_free(mmr);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

static void
without_proofs_nothing_is_allocated(void)
{
    struct ag_mmr *mmr = make(false);
    long calls = ag_test_alloc_calls();
    ag_test_fail_every_alloc(1);
    size_t memory = ag_mmr_memory(mmr);
    ASSERT_LT_U(memory, 8192);
    hash found;
    for (uint64_t n = 0; n < 100000; n++) {
        ASSERT_EQ(ag_mmr_append(mmr, entries[n % MOST], 32), AG_OK);
        if (n % 1000 == 0) {
            ag_mmr_root(mmr, found);
        }
    }
    ASSERT_EQ(ag_mmr_extend_flat(mmr, entries[0], 32, MOST), AG_OK);
    ASSERT_EQ(ag_test_alloc_calls(), calls);
    ASSERT_EQ_U(ag_mmr_memory(mmr), memory);
    ag_test_fail_every_alloc(0);
    ag_mmr_free(mmr);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

/* Every allocation fails once, at every step: the tree stays as it was, and the same
 * call succeeds afterwards. */
static void
failing_allocations(void)
{
    ag_test_fail_alloc_at(1);
    struct ag_mmr *mmr = NULL;
    ASSERT_EQ(ag_mmr_new(true, &mmr), AG_ENOMEM);
    ASSERT_EQ(ag_mmr_new(true, &mmr), AG_OK);
    long failures = 0;
    for (uint64_t n = 0; n < MOST;) {
        size_t step = n < 600 ? 1 : (size_t)(MOST - n < 211 ? MOST - n : 211);
        for (long at = 1;; at++) {
            ag_test_fail_alloc_at(at);
            int status = add(mmr, step, (unsigned)n);
            ag_test_fail_alloc_at(0);
            if (status == AG_OK) {
                break;
            }
            failures++;
            ASSERT_EQ(status, AG_ENOMEM);
            expect_root(mmr, n);
        }
        n += step;
        expect_root(mmr, n);
    }
    ASSERT_LT(20, failures);
    ag_mmr_free(mmr);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

/* What a failed call had already allocated is given back. */
static void
failed_reservation_keeps_nothing(void)
{
    struct ag_mmr *mmr = make(true);
    ASSERT_EQ(add(mmr, 300, 0), AG_OK);
    size_t before = ag_mmr_memory(mmr);
    long failures = 0;
    for (long at = 1;; at++) {
        ag_test_fail_alloc_at(at);
        int status = ag_mmr_reserve(mmr, 1 << 16);
        ag_test_fail_alloc_at(0);
        if (status == AG_OK) {
            break;
        }
        failures++;
        ASSERT_EQ(status, AG_ENOMEM);
        /* but for the arrays of tiles, and last tiles that were widened */
        ASSERT_LE_U(ag_mmr_memory(mmr), before + (40 << 10));
    }
    ASSERT_LT(3, failures);
    ASSERT_LT_U(before + (4 << 20), ag_mmr_memory(mmr));
    expect_root(mmr, 300);
    ag_mmr_free(mmr);
}

static void
too_many_leaves(void)
{
    struct ag_mmr *mmr = make(false);
    ASSERT_EQ(add(mmr, 5, 0), AG_OK);
    ASSERT_EQ(ag_mmr_reserve(mmr, UINT64_MAX), AG_ETOOBIG);
    ASSERT_EQ(ag_mmr_reserve(mmr, INT64_MAX), AG_ETOOBIG);
    ASSERT_EQ(ag_mmr_reserve(mmr, INT64_MAX - 5), AG_OK);
    ag_mmr_free(mmr);
    mmr = make(true);
    ASSERT_EQ(add(mmr, 5, 0), AG_OK);
    ASSERT_EQ(ag_mmr_reserve(mmr, INT64_MAX), AG_ETOOBIG);
    ASSERT_EQ(ag_mmr_reserve(mmr, INT64_MAX - 5), AG_ENOMEM);
    expect_root(mmr, 5);
    ASSERT_EQ(add(mmr, 200, 0), AG_OK);
    expect_root(mmr, 205);
    ag_mmr_free(mmr);
}

/* --- dump and load --- */

static void
dump_and_load(void)
{
    for (int proofs = 0; proofs < 2; proofs++) {
        struct ag_mmr *mmr = make(proofs), *copy = NULL;
        struct ag_error err;
        for (uint64_t n = 0; n <= MOST; n += n < 70 ? 1 : 41) {
            ASSERT_EQ(add(mmr, (size_t)(n - ag_mmr_size(mmr)), 0), AG_OK);
            size_t size = ag_mmr_dump_size(mmr);
            uint8_t *dump = malloc(size), *again = malloc(size);
            ag_mmr_dump(mmr, dump);
            ASSERT_EQ(ag_mmr_load(dump, size, &copy, &err), AG_OK);
            ASSERT_EQ(ag_mmr_keeps_proofs(copy), proofs);
            expect_root(copy, n);
            ASSERT_EQ_U(ag_mmr_dump_size(copy), size);
            ag_mmr_dump(copy, again);
            ASSERT_EQ_MEM(again, dump, size);
            if (n < MOST) {
                ASSERT_EQ(add(copy, 1, 0), AG_OK); /* it goes on */
                expect_root(copy, n + 1);
            }
            ag_mmr_free(copy);
            free(dump);
            free(again);
        }
        ag_mmr_free(mmr);
    }
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

/* Puts the right checksum under a changed dump. */
static void
seal(uint8_t *dump, size_t size)
{
    ag_sha256(dump, size - AG_HASH_SIZE, dump + size - AG_HASH_SIZE);
}

/* One peak more than a tree can have: refused by its number, not by its length. */
static void
dump_of_too_many_leaves(void)
{
    uint8_t dump[24 + 32 + 32] = "aegismmr";
    uint64_t size = (uint64_t)1 << 63;
    struct ag_mmr *none = NULL;
    dump[8] = 1;
    memcpy(dump + 16, &size, 8);
    seal(dump, sizeof(dump));
    ASSERT_EQ(ag_mmr_load(dump, sizeof(dump), &none, NULL), AG_ECORRUPT);
}

static void
damaged_dumps(void)
{
    struct guard_pages guard = guard_pages_make(1);
    for (int proofs = 0; proofs < 2; proofs++) {
        struct ag_mmr *mmr = make(proofs), *none = NULL;
        struct ag_error err;
        ASSERT_EQ(add(mmr, 45, 0), AG_OK);
        size_t size = ag_mmr_dump_size(mmr);
        uint8_t *dump = guard.end - size; /* reading beyond it would fault */
        ag_mmr_dump(mmr, dump);
        for (size_t i = 0; i < size; i++) {
            for (int bit = 0; bit < 8; bit++) {
                dump[i] ^= (uint8_t)(1 << bit);
                int status = ag_mmr_load(dump, size, &none, &err);
                ASSERT(status == AG_ECORRUPT || status == AG_EVERSION);
                ASSERT_EQ(err.status, status);
                ASSERT(err.what[0] != '\0');
                dump[i] ^= (uint8_t)(1 << bit);
            }
        }
        for (size_t cut = 1; cut <= size; cut++) {
            uint8_t *shorter = memmove(guard.begin, dump, size - cut);
            ASSERT_EQ(ag_mmr_load(shorter, size - cut, &none, &err), AG_ECORRUPT);
        }
        ASSERT_EQ(ag_mmr_load(NULL, 0, &none, NULL), AG_ECORRUPT);
        /* numbers that lie, under a checksum that holds */
        static const uint64_t sizes[] = {0,         1,          44,
                                         46,        1 << 20,    (uint64_t)1 << 59,
                                         INT64_MAX, UINT64_MAX, (uint64_t)1 << 63};
        for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
            uint8_t lie[4096];
            memcpy(lie, dump, size);
            memcpy(lie + 16, &sizes[i], 8);
            seal(lie, size);
            int same = __builtin_popcountll(sizes[i]) == __builtin_popcountll(45);
            if (!proofs && same && sizes[i] <= INT64_MAX) {
                continue; /* as many peaks: another tree, not a damaged one */
            }
            ASSERT_EQ(ag_mmr_load(lie, size, &none, &err), AG_ECORRUPT);
        }
        for (unsigned flag = 2; flag < 256; flag *= 2) {
            uint8_t lie[4096];
            memcpy(lie, dump, size);
            lie[12] |= (uint8_t)flag;
            seal(lie, size);
            ASSERT_EQ(ag_mmr_load(lie, size, &none, &err), AG_EVERSION);
        }
        ASSERT_NULL(none);
        for (long at = 1;; at++) {
            ag_test_fail_alloc_at(at);
            int status = ag_mmr_load(dump, size, &none, &err);
            ag_test_fail_alloc_at(0);
            if (status == AG_OK) {
                break;
            }
            ASSERT_EQ(status, AG_ENOMEM);
            ASSERT_NULL(none);
        }
        ag_mmr_free(none);
        ag_mmr_free(mmr);
    }
    guard_pages_free(&guard);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

/* The largest tree of peaks there can be takes no more leaves, and says so. */
static void
full_tree_of_peaks(void)
{
    enum { SIZE = 24 + 63 * 32 + 32 };
    uint8_t dump[SIZE] = "aegismmr";
    struct ag_mmr *mmr = NULL;
    hash before, after;
    uint64_t most = INT64_MAX;
    dump[8] = 1;
    memcpy(dump + 16, &most, 8);
    seal(dump, SIZE);
    ASSERT_EQ(ag_mmr_load(dump, SIZE, &mmr, NULL), AG_OK);
    ag_mmr_root(mmr, before);
    ASSERT_EQ(ag_mmr_append(mmr, "x", 1), AG_ETOOBIG);
    ASSERT_EQ(ag_mmr_extend_hashes(mmr, leaves[0], 3), AG_ETOOBIG);
    ag_mmr_root(mmr, after);
    ASSERT_EQ_MEM(after, before, AG_HASH_SIZE);
    ASSERT_EQ_U(ag_mmr_size(mmr), most);
    ag_mmr_free(mmr);
}

int
main(void)
{
    seed = check_seed(1);
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    make_entries();
    RUN(every_size_one_by_one);
    RUN(random_steps);
    RUN(earlier_sizes_and_proofs);
    RUN(without_proofs_only_the_present);
    RUN(peaks_are_the_set_bits);
    RUN(memory_per_leaf);
    RUN(without_proofs_nothing_is_allocated);
    RUN(failing_allocations);
    RUN(failed_reservation_keeps_nothing);
    RUN(too_many_leaves);
    RUN(dump_and_load);
    RUN(damaged_dumps);
    RUN(dump_of_too_many_leaves);
    RUN(full_tree_of_peaks);
    ASSERT_EQ(ag_test_live_blocks(), 0);
    return 0;
}
