// threads: none
/* The fuzz targets of the tree without a fuzzer: reproducible inputs near good ones. */
#include "../fuzz/tree_targets.h"
#include "check.h"

static uint64_t seed;

static void
random_octets(uint8_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = (uint8_t)check_random(&seed);
    }
}

/* Small, near a power of two, or anything. */
static uint64_t
random_number(void)
{
    uint64_t r = check_random(&seed);
    switch (r % 4) {
    case 0:
        return (r >> 8) % 70;
    case 1:
        return ((uint64_t)1 << (r >> 8) % 64) + (r >> 16) % 5 - 2;
    case 2:
        return r >> (r >> 8) % 64;
    default:
        return (r >> 8) % 3 == 0 ? UINT64_MAX - (r >> 16) % 3 : r >> 40;
    }
}

static void
proofs(void)
{
    static uint8_t input[81 + 200 * 32];
    long good = 0;
    for (int round = 0; round < 60000; round++) {
        uint64_t a = random_number(), b = random_number();
        if (a > b && round % 8 != 0) {
            uint64_t swap = a;
            a = b;
            b = swap;
        }
        size_t right = round % 2 == 0 ? ag_inclusion_proof_count(a, b)
                                      : ag_consistency_proof_count(a, b);
        uint64_t r = check_random(&seed);
        size_t count = r % 8 < 6 ? right : r % 8 == 6 ? right + 1 : (r >> 8) % 200;
        good += r % 8 < 6 && a < b;
        random_octets(input, 81 + 32 * count);
        ag_put_u64le(input + 1, a);
        ag_put_u64le(input + 9, b);
        fuzz_proof(input, 81 + 32 * count);
    }
    ASSERT_LT(10000, good);
    for (size_t n = 0; n < 200; n++) {
        random_octets(input, n);
        fuzz_proof(input, n);
    }
}

static void
dumps(void)
{
    static uint8_t dump[1 << 16];
    for (int round = 0; round < 4000; round++) {
        struct ag_mmr *mmr = NULL;
        ASSERT_EQ(ag_mmr_new(round % 2 == 0, &mmr), AG_OK);
        for (uint64_t n = check_random(&seed) % (round % 16 == 0 ? 700 : 40); n > 0;
             n--) {
            ASSERT_EQ(ag_mmr_append(mmr, &n, sizeof(n)), AG_OK);
        }
        size_t size = ag_mmr_dump_size(mmr);
        ASSERT_LE_U(size + 64, sizeof(dump));
        ag_mmr_dump(mmr, dump);
        ag_mmr_free(mmr);
        uint64_t r = check_random(&seed);
        for (uint64_t changes = r % 4; changes > 0; changes--) {
            /* mostly in the header, where the numbers are */
            uint64_t where = check_random(&seed);
            dump[where % 4 == 0 ? (where >> 8) % size : (where >> 8) % 24] =
                (uint8_t)(where >> 40);
        }
        if (r >> 8 & 1) {
            ag_put_u64le(dump + 16, random_number());
        }
        if ((r >> 9 & 3) == 0) {
            size = (r >> 16) % (size + 64);
        }
        fuzz_load(dump, size);
    }
}

int
main(void)
{
    seed = check_seed(1);
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    RUN(proofs);
    RUN(dumps);
    return 0;
}
