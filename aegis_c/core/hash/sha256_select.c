/* Which kernel may run: self-test against OpenSSL, and the choice of the fastest. */
#include <openssl/evp.h>
#include <string.h>

#include "base/clock.h"
#include "base/status.h"
#include "hash/sha256_kernel.h"

/* Every length of the last block, with no, one and two blocks before it. */
#define TEST_LENGTHS 136u
#define TEST_PAIRS 256u /* one for each row */

int
ag_sha256_openssl(const void *data, size_t n, uint8_t out[32])
{
    unsigned got = 0;
    EVP_MD *md = EVP_MD_fetch(NULL, "SHA256", NULL);
    int ok = md != NULL && EVP_Digest(data, n, out, &got, md, NULL);
    EVP_MD_free(md);
    return ok && got == 32 ? AG_OK : AG_ECRYPTO;
}

/* Reproducible octets (xorshift). */
static void
fill(uint8_t *to, size_t n, uint32_t seed)
{
    for (size_t i = 0; i < n; i++) {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        to[i] = (uint8_t)seed;
    }
}

static bool
same_digest(const uint32_t state[8], const uint8_t expected[32])
{
    uint8_t found[32];
    for (int i = 0; i < 32; i++) {
        found[i] = (uint8_t)(state[i / 4] >> (24 - 8 * (i % 4)));
    }
    return memcmp(found, expected, 32) == 0;
}

/* Messages of every length: alone, two, and `lanes` of the same length in step. */
static int
test_blocks(const struct ag_sha256_kernel *kernel, ag_sha256_oracle oracle)
{
    uint8_t padded[AG_SHA256_LANES_MAX][260];
    uint8_t expected[AG_SHA256_LANES_MAX][32];
    const unsigned messages = kernel->lanes > 2 ? kernel->lanes : 2;
    for (uint32_t n = 0; n < TEST_LENGTHS; n++) {
        size_t blocks = (n + 9 + 63) / 64;
        const uint8_t *data[AG_SHA256_LANES_MAX];
        uint32_t alone[8], two[2][8], states[AG_SHA256_LANES_MAX][8];
        for (unsigned i = 0; i < messages; i++) {
            uint8_t *at = padded[i] + n % 4; /* unaligned, too */
            memset(padded[i], 0, sizeof(padded[i]));
            fill(at, n, n * 7 + i + 1);
            if (oracle(at, n, expected[i]) != AG_OK) {
                return AG_ECRYPTO;
            }
            at[n] = 0x80;
            at[64 * blocks - 2] = (uint8_t)(n * 8 >> 8);
            at[64 * blocks - 1] = (uint8_t)(n * 8);
            data[i] = at;
            memcpy(states[i], ag_sha256_iv, sizeof(states[i]));
        }
        memcpy(alone, ag_sha256_iv, sizeof(alone));
        kernel->blocks(alone, data[0], blocks);
        if (!same_digest(alone, expected[0])) {
            return AG_ECRYPTO;
        }
        memcpy(two, states, sizeof(two));
        kernel->blocks_of_two(two, data, blocks);
        if (!same_digest(two[0], expected[0]) || !same_digest(two[1], expected[1])) {
            return AG_ECRYPTO;
        }
        kernel->blocks_in_step(states, data, blocks);
        for (unsigned i = 0; i < kernel->lanes; i++) {
            if (!same_digest(states[i], expected[i])) {
                return AG_ECRYPTO;
            }
        }
    }
    return AG_OK;
}

static int
test_tree(const struct ag_sha256_kernel *kernel, ag_sha256_oracle oracle)
{
    uint8_t children[TEST_PAIRS * 64 + 1], expected[TEST_PAIRS * 32];
    uint8_t found[TEST_PAIRS * 32], message[65];
    uint8_t *pairs = children + 1; /* unaligned */
    fill(pairs, TEST_PAIRS * 64, 4242);
    for (unsigned i = 0; i < TEST_PAIRS; i++) {
        pairs[64 * i + 63] = (uint8_t)i;
        message[0] = 0x01;
        memcpy(message + 1, pairs + 64 * (size_t)i, 64);
        if (oracle(message, 65, expected + 32 * (size_t)i) != AG_OK) {
            return AG_ECRYPTO;
        }
    }
    for (size_t i = 0; i < TEST_PAIRS; i++) {
        /* the children of a pair need not be neighbours */
        uint8_t left[32];
        memcpy(left, pairs + 64 * i, 32);
        kernel->node(left, pairs + 64 * i + 32, left);
        if (memcmp(left, expected + 32 * i, 32) != 0) {
            return AG_ECRYPTO;
        }
    }
    for (size_t count = 0; count <= TEST_PAIRS; count += count < 9 ? 1 : 247) {
        memset(found, 0, sizeof(found));
        kernel->nodes(pairs, count, found);
        if (memcmp(found, expected, 32 * count) != 0) {
            return AG_ECRYPTO;
        }
    }
    uint8_t in_place[TEST_PAIRS * 64];
    memcpy(in_place, pairs, sizeof(in_place));
    kernel->nodes(in_place, TEST_PAIRS, in_place);
    if (memcmp(in_place, expected, sizeof(expected)) != 0) {
        return AG_ECRYPTO;
    }
    struct ag_span spans[9];
    for (size_t i = 0; i < 9; i++) {
        spans[i] = (struct ag_span){pairs + 31 * i, 32};
        message[0] = 0x00;
        memcpy(message + 1, spans[i].data, 32);
        if (oracle(message, 33, expected + 32 * i) != AG_OK) {
            return AG_ECRYPTO;
        }
    }
    for (size_t count = 0; count <= 9; count++) {
        memset(found, 0, sizeof(found));
        kernel->leaves32(spans, count, found);
        if (memcmp(found, expected, 32 * count) != 0) {
            return AG_ECRYPTO;
        }
    }
    return AG_OK;
}

int
ag_sha256_self_test(const struct ag_sha256_kernel *kernel, ag_sha256_oracle oracle)
{
    int status = test_blocks(kernel, oracle);
    return status == AG_OK ? test_tree(kernel, oracle) : status;
}

/* Nanoseconds per node of a batch, the best of several. */
static double
measure(const struct ag_sha256_kernel *kernel)
{
    enum { PAIRS = 32, TIMES = 16 };
    uint8_t children[PAIRS * 64], parents[PAIRS * 32];
    uint64_t best = UINT64_MAX;
    fill(children, sizeof(children), 7);
    for (int i = 0; i < TIMES; i++) {
        uint64_t begin = ag_clock_ns();
        kernel->nodes(children, PAIRS, parents);
        uint64_t took = ag_clock_ns() - begin;
        best = took < best ? took : best;
    }
    return (double)best / PAIRS;
}

const struct ag_sha256_kernel *
ag_sha256_select(const struct ag_sha256_kernel *const *kernels, size_t count,
                 ag_sha256_oracle oracle, bool *passed, double *ns)
{
    const struct ag_sha256_kernel *best = NULL;
    double best_ns = 0;
    for (size_t i = 0; i < count; i++) {
        passed[i] =
            kernels[i]->runs_here() && ag_sha256_self_test(kernels[i], oracle) == AG_OK;
        ns[i] = passed[i] ? measure(kernels[i]) : 0;
        if (passed[i] && (best == NULL || ns[i] < best_ns)) {
            best = kernels[i];
            best_ns = ns[i];
        }
    }
    return best;
}

/* --- measuring on demand --- */

#define RUN_BATCH 128u

void
ag_sha256_run_kernel(const struct ag_sha256_kernel *kernel, bool leaves, size_t count)
{
    uint8_t data[RUN_BATCH * 64], hashes[RUN_BATCH * 32];
    struct ag_span spans[RUN_BATCH];
    fill(data, sizeof(data), 7);
    for (size_t i = 0; i < RUN_BATCH; i++) {
        spans[i] = (struct ag_span){data + 32 * i, 32};
    }
    while (count > 0) {
        size_t take = count < RUN_BATCH ? count : RUN_BATCH;
        if (leaves) {
            kernel->leaves32(spans, take, hashes);
        } else {
            kernel->nodes(data, take, hashes);
        }
        count -= take;
    }
}

int
ag_sha256_run_openssl(bool leaves, size_t count)
{
    uint8_t message[65] = {!leaves}, hash[32];
    unsigned got;
    size_t n = leaves ? 33 : 65;
    EVP_MD *md = EVP_MD_fetch(NULL, "SHA256", NULL);
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = md != NULL && ctx != NULL && EVP_DigestInit_ex(ctx, md, NULL);
    fill(message + 1, 64, 7);
    for (; ok && count > 0; count--) {
        ok = EVP_DigestInit_ex(ctx, NULL, NULL) && EVP_DigestUpdate(ctx, message, n) &&
             EVP_DigestFinal_ex(ctx, hash, &got);
    }
    EVP_MD_CTX_free(ctx);
    EVP_MD_free(md);
    return ok ? AG_OK : AG_ECRYPTO;
}
