/* The compression function of FIPS 180-4 section 6.2.2 in plain C: the kernel that
 * every machine has, and the one that the others are compared with. */
#include <string.h>

#include "base/bytes.h"
#include "hash/sha256_kernel.h"

_Alignas(64) const uint32_t ag_sha256_k[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
    0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
    0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
    0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
    0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2,
};

const uint32_t ag_sha256_iv[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

static inline uint32_t
rotr(uint32_t x, unsigned n)
{
    return x >> n | x << (32 - n);
}

static inline uint32_t
schedule(const uint32_t *w, int t)
{
    uint32_t s0 = rotr(w[t - 15], 7) ^ rotr(w[t - 15], 18) ^ w[t - 15] >> 3;
    uint32_t s1 = rotr(w[t - 2], 17) ^ rotr(w[t - 2], 19) ^ w[t - 2] >> 10;
    return w[t - 16] + s0 + w[t - 7] + s1;
}

_Alignas(64) uint32_t ag_sha256_rows[256][64];

void
ag_sha256_rows_fill(void)
{
    for (uint32_t last = 0; last < 256; last++) {
        uint32_t w[64] = {last << 24 | 0x800000, [15] = 65 * 8};
        for (int t = 16; t < 64; t++) {
            w[t] = schedule(w, t);
        }
        for (int t = 0; t < 64; t++) {
            ag_sha256_rows[last][t] = w[t] + ag_sha256_k[t];
        }
    }
}

static void
portable_blocks(uint32_t state[8], const uint8_t *data, size_t count)
{
    for (; count > 0; count--, data += 64) {
        uint32_t w[64];
        for (int t = 0; t < 16; t++) {
            w[t] = ag_get_u32be(data + 4 * t);
        }
        for (int t = 16; t < 64; t++) {
            w[t] = schedule(w, t);
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0; t < 64; t++) {
            uint32_t big1 = rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25);
            uint32_t t1 = h + big1 + ((e & f) ^ (~e & g)) + ag_sha256_k[t] + w[t];
            uint32_t big0 = rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22);
            uint32_t t2 = big0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g;
            g = f;
            f = e;
            e = d + t1;
            d = c;
            c = b;
            b = a;
            a = t1 + t2;
        }
        state[0] += a;
        state[1] += b;
        state[2] += c;
        state[3] += d;
        state[4] += e;
        state[5] += f;
        state[6] += g;
        state[7] += h;
    }
}

static void
portable_blocks_in_step(uint32_t (*states)[8], const uint8_t *const *data, size_t count)
{
    portable_blocks(states[0], data[0], count);
}

static void
portable_blocks_of_two(uint32_t (*states)[8], const uint8_t *const *data, size_t count)
{
    portable_blocks(states[0], data[0], count);
    portable_blocks(states[1], data[1], count);
}

/* Hashes blocks that already carry their padding. */
static void
portable_digest(const uint8_t *padded, size_t count, uint8_t *out)
{
    uint32_t state[8];
    memcpy(state, ag_sha256_iv, sizeof(state));
    portable_blocks(state, padded, count);
    for (int i = 0; i < 8; i++) {
        ag_put_u32be(out + 4 * i, state[i]);
    }
}

static void
portable_node(const uint8_t *left, const uint8_t *right, uint8_t *out)
{
    uint8_t padded[128] = {[0] = 0x01, [65] = 0x80};
    memcpy(padded + 1, left, 32);
    memcpy(padded + 33, right, 32);
    ag_put_u16be(padded + 126, 65 * 8);
    portable_digest(padded, 2, out);
}

static void
portable_nodes(const uint8_t *children, size_t pairs, uint8_t *out)
{
    for (; pairs > 0; pairs--, children += 64, out += 32) {
        portable_node(children, children + 32, out);
    }
}

static void
portable_leaves32(const struct ag_span *entries, size_t count, uint8_t *out)
{
    for (; count > 0; count--, entries++, out += 32) {
        uint8_t padded[64] = {[33] = 0x80};
        memcpy(padded + 1, entries->data, 32);
        ag_put_u16be(padded + 62, 33 * 8);
        portable_digest(padded, 1, out);
    }
}

static bool
portable_runs_here(void)
{
    return true;
}

const struct ag_sha256_kernel ag_sha256_portable = {
    .name = "portable",
    .lanes = 1,
    .runs_here = portable_runs_here,
    .blocks = portable_blocks,
    .blocks_in_step = portable_blocks_in_step,
    .blocks_of_two = portable_blocks_of_two,
    .node = portable_node,
    .nodes = portable_nodes,
    .leaves32 = portable_leaves32,
};
