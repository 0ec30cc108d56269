/* SHA-256 with the SHA extensions of x86 ("SHA-NI"), one, two and four messages in
 * step.
 *
 * One instruction does two rounds and is longer in flight than it occupies its unit, so
 * independent messages side by side fill the gaps. Which width is best differs between
 * CPUs and is measured at start. Two things spare work with nodes (65 octets, so two
 * blocks): the second block holds one variable octet, so its whole message schedule
 * comes from a table of 256 rows; and octets 16..63 of the first block lie as they are
 * in the children, one octet lower, and are loaded from there without a copy. No load
 * or store leaves the children, the entries or `out`.
 *
 * The state is kept as the instructions want it: words A B E F in one register, C D G H
 * in the other. */
#include "hash/sha256_kernel.h"

#if defined(AG_SHA256_SHANI)

#include <cpuid.h>
#include <immintrin.h>
#include <string.h>

#define SHANI __attribute__((target("sha,sse4.1")))
#define INLINE static inline __attribute__((always_inline)) SHANI

/* The loops over lanes and groups of rounds have constant bounds and must disappear. */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#define LANES AG_SHA256_LANES_MAX

/* Big-endian words from 16 octets; and from 15 octets that a prefix octet precedes. */
#define WORDS _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203)
#define WORDS_AFTER_ONE _mm_set_epi64x(0x0b0c0d0e0708090a, 0x03040506ff000102)
#define NODE_PREFIX _mm_set_epi32(0, 0, 0, 0x01000000)

#define IV_ABEF _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c)
#define IV_CDGH _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19)

INLINE __m128i
load(const void *from)
{
    return _mm_loadu_si128((const __m128i *)from);
}

INLINE __m128i
load_words(const uint8_t *from)
{
    return _mm_shuffle_epi8(load(from), WORDS);
}

/* Four rounds; `wk` is W + K of them. */
INLINE void
four_rounds(__m128i *abef, __m128i *cdgh, __m128i wk)
{
    *cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, wk);
    *abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(wk, 0x0e));
}

/* The 64 rounds of one block in each lane, without the final addition. w[0..3][lane]
 * are the 16 words of the block; they are used up. */
INLINE void
rounds(__m128i *abef, __m128i *cdgh, __m128i (*w)[LANES], const int lanes)
{
    UNROLL for (int g = 0; g < 16; g++)
    {
        __m128i *w0 = w[g & 3], *w1 = w[(g + 1) & 3];
        __m128i *w2 = w[(g + 2) & 3], *w3 = w[(g + 3) & 3];
        const __m128i k = load(ag_sha256_k + 4 * g);
        UNROLL for (int i = 0; i < lanes; i++)
        {
            if (g >= 4) {
                __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w0[i], w1[i]),
                                            _mm_alignr_epi8(w3[i], w2[i], 4));
                w0[i] = _mm_sha256msg2_epu32(sum, w3[i]);
            }
        }
        UNROLL for (int i = 0; i < lanes; i++)
        {
            four_rounds(&abef[i], &cdgh[i], _mm_add_epi32(w0[i], k));
        }
    }
}

/* The digest words as big-endian octets. */
INLINE void
store_digest(__m128i abef, __m128i cdgh, uint8_t *out)
{
    __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
    __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    __m128i abcd = _mm_blend_epi16(feba, dchg, 0xf0);
    __m128i efgh = _mm_alignr_epi8(dchg, feba, 8);
    _mm_storeu_si128((__m128i *)out, _mm_shuffle_epi8(abcd, WORDS));
    _mm_storeu_si128((__m128i *)(out + 16), _mm_shuffle_epi8(efgh, WORDS));
}

/* --- blocks of any message --- */

INLINE void
blocks_of(uint32_t (*states)[8], const uint8_t *const *data, size_t count,
          const int lanes)
{
    __m128i abef[LANES], cdgh[LANES], abef_in[LANES], cdgh_in[LANES], w[4][LANES];
    UNROLL for (int i = 0; i < lanes; i++)
    {
        __m128i badc = _mm_shuffle_epi32(load(states[i]), 0xb1);
        __m128i hgfe = _mm_shuffle_epi32(load(states[i] + 4), 0x1b);
        abef[i] = _mm_alignr_epi8(badc, hgfe, 8);
        cdgh[i] = _mm_blend_epi16(hgfe, badc, 0xf0);
    }
    for (size_t at = 0; at < count; at++) {
        UNROLL for (int i = 0; i < lanes; i++)
        {
            const uint8_t *block = data[i] + 64 * at;
            abef_in[i] = abef[i];
            cdgh_in[i] = cdgh[i];
            UNROLL for (int j = 0; j < 4; j++)
            {
                w[j][i] = load_words(block + 16 * j);
            }
        }
        rounds(abef, cdgh, w, lanes);
        UNROLL for (int i = 0; i < lanes; i++)
        {
            abef[i] = _mm_add_epi32(abef[i], abef_in[i]);
            cdgh[i] = _mm_add_epi32(cdgh[i], cdgh_in[i]);
        }
    }
    UNROLL for (int i = 0; i < lanes; i++)
    {
        __m128i feba = _mm_shuffle_epi32(abef[i], 0x1b);
        __m128i dchg = _mm_shuffle_epi32(cdgh[i], 0xb1);
        _mm_storeu_si128((__m128i *)states[i], _mm_blend_epi16(feba, dchg, 0xf0));
        _mm_storeu_si128((__m128i *)(states[i] + 4), _mm_alignr_epi8(dchg, feba, 8));
    }
}

/* --- nodes --- */

/* left[i] and right[i] are the children of lane i. */
INLINE void
nodes_of(const uint8_t *const *left, const uint8_t *const *right, const bool adjacent,
         uint8_t *out, const int lanes)
{
    __m128i abef[LANES], cdgh[LANES], abef_in[LANES], cdgh_in[LANES], w[4][LANES];
    const uint32_t *row[LANES];
    UNROLL for (int i = 0; i < lanes; i++)
    {
        abef[i] = IV_ABEF;
        cdgh[i] = IV_CDGH;
        w[0][i] =
            _mm_or_si128(_mm_shuffle_epi8(load(left[i]), WORDS_AFTER_ONE), NODE_PREFIX);
        w[1][i] = load_words(left[i] + 15);
        if (adjacent) {
            w[2][i] = load_words(left[i] + 31);
        } else {
            w[2][i] = _mm_insert_epi8(_mm_shuffle_epi8(load(right[i]), WORDS_AFTER_ONE),
                                      (char)left[i][31], 3);
        }
        w[3][i] = load_words(right[i] + 15);
        row[i] = ag_sha256_rows[right[i][31]];
    }
    rounds(abef, cdgh, w, lanes);
    UNROLL for (int i = 0; i < lanes; i++)
    {
        abef[i] = abef_in[i] = _mm_add_epi32(abef[i], IV_ABEF);
        cdgh[i] = cdgh_in[i] = _mm_add_epi32(cdgh[i], IV_CDGH);
    }
    UNROLL for (int g = 0; g < 16; g++)
    {
        UNROLL for (int i = 0; i < lanes; i++)
        {
            four_rounds(&abef[i], &cdgh[i], load(row[i] + 4 * g));
        }
    }
    UNROLL for (int i = 0; i < lanes; i++)
    {
        store_digest(_mm_add_epi32(abef[i], abef_in[i]),
                     _mm_add_epi32(cdgh[i], cdgh_in[i]), out + 32 * i);
    }
}

INLINE void
adjacent_nodes_of(const uint8_t *children, uint8_t *out, const int lanes)
{
    const uint8_t *left[LANES], *right[LANES];
    UNROLL for (int i = 0; i < lanes; i++)
    {
        left[i] = children + 64 * i;
        right[i] = left[i] + 32;
    }
    nodes_of(left, right, true, out, lanes);
}

/* --- leaves of 32 octets: one block, of which the second half is padding --- */

INLINE void
leaves_of(const struct ag_span *entries, uint8_t *out, const int lanes)
{
    __m128i abef[LANES], cdgh[LANES], w[4][LANES];
    UNROLL for (int i = 0; i < lanes; i++)
    {
        const uint8_t *entry = entries[i].data;
        abef[i] = IV_ABEF;
        cdgh[i] = IV_CDGH;
        w[0][i] = _mm_shuffle_epi8(load(entry), WORDS_AFTER_ONE);
        w[1][i] = load_words(entry + 15);
        w[2][i] = _mm_cvtsi32_si128((int)((uint32_t)entry[31] << 24 | 0x800000));
        w[3][i] = _mm_set_epi32(33 * 8, 0, 0, 0);
    }
    rounds(abef, cdgh, w, lanes);
    UNROLL for (int i = 0; i < lanes; i++)
    {
        store_digest(_mm_add_epi32(abef[i], IV_ABEF), _mm_add_epi32(cdgh[i], IV_CDGH),
                     out + 32 * i);
    }
}

/* --- the kernels --- */

static bool
shani_runs_here(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & bit_SSSE3) == 0 ||
        (c & bit_SSE4_1) == 0) {
        return false;
    }
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) != 0;
}

SHANI static void
shani_blocks(uint32_t state[8], const uint8_t *data, size_t count)
{
    blocks_of((uint32_t (*)[8])state, &data, count, 1);
}

SHANI static void
shani_node(const uint8_t *left, const uint8_t *right, uint8_t *out)
{
    nodes_of(&left, &right, false, out, 1);
}

/* The kernel of one message is used where interleaving does not pay. */
SHANI static void
shani_two_blocks_x1(uint32_t (*states)[8], const uint8_t *const *data, size_t count)
{
    blocks_of(states, data, count, 1);
    blocks_of(states + 1, data + 1, count, 1);
}

SHANI static void
shani_two_blocks(uint32_t (*states)[8], const uint8_t *const *data, size_t count)
{
    blocks_of(states, data, count, 2);
}

#define KERNEL(N)                                                                      \
    SHANI static void shani_blocks_x##N(uint32_t (*states)[8],                         \
                                        const uint8_t *const *data, size_t count)      \
    {                                                                                  \
        blocks_of(states, data, count, N);                                             \
    }                                                                                  \
                                                                                       \
    SHANI static void shani_nodes_x##N(const uint8_t *children, size_t pairs,          \
                                       uint8_t *out)                                   \
    {                                                                                  \
        for (; pairs >= N; pairs -= N, children += 64 * N, out += 32 * N) {            \
            adjacent_nodes_of(children, out, N);                                       \
        }                                                                              \
        for (; pairs > 0; pairs--, children += 64, out += 32) {                        \
            adjacent_nodes_of(children, out, 1);                                       \
        }                                                                              \
    }                                                                                  \
                                                                                       \
    SHANI static void shani_leaves32_x##N(const struct ag_span *entries, size_t count, \
                                          uint8_t *out)                                \
    {                                                                                  \
        for (; count >= N; count -= N, entries += N, out += 32 * N) {                  \
            leaves_of(entries, out, N);                                                \
        }                                                                              \
        for (; count > 0; count--, entries++, out += 32) {                             \
            leaves_of(entries, out, 1);                                                \
        }                                                                              \
    }                                                                                  \
                                                                                       \
    const struct ag_sha256_kernel ag_sha256_shani_x##N = {                             \
        .name = "sha-ni x" #N,                                                         \
        .lanes = N,                                                                    \
        .runs_here = shani_runs_here,                                                  \
        .blocks = shani_blocks,                                                        \
        .blocks_in_step = shani_blocks_x##N,                                           \
        .blocks_of_two = (N) == 1 ? shani_two_blocks_x1 : shani_two_blocks,            \
        .node = shani_node,                                                            \
        .nodes = shani_nodes_x##N,                                                     \
        .leaves32 = shani_leaves32_x##N,                                               \
    }

KERNEL(1);
KERNEL(2);
KERNEL(4);

#else

typedef int ag_sha256_shani_not_built; /* a file must declare something */

#endif
