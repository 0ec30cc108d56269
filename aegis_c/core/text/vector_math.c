#include "text/vector_math.h"

#include <math.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* GCC's vector extension: one source for SSE2 (or what the target has), AVX2 and
 * AVX-512, chosen when called. The order of additions depends on the width: the last
 * bits of a sum may differ between machines. */
typedef double vdouble4 __attribute__((vector_size(32)));
typedef uint64_t vword4 __attribute__((vector_size(32)));
typedef uint16_t vtag4 __attribute__((vector_size(8)));
typedef double vdouble8 __attribute__((vector_size(64)));
typedef uint64_t vword8 __attribute__((vector_size(64)));
typedef uint16_t vtag8 __attribute__((vector_size(16)));

#define INLINE static inline __attribute__((always_inline))

#define SHIFTER 0x1.8p52 /* adding it rounds to an integer in the low bits */
#define SHIFTER_BITS 0x4338000000000000u
#define LN2 0x1.62e42fefa39efp-1
#define INV_LN2 0x1.71547652b82fep+0
#define EXP_LEAST (-700.0)
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcdu
#define ONE_BITS 0x3ff0000000000000u

#define TAGS_OF(key, tag)                                                              \
    do {                                                                               \
        for (size_t k = 0; k < LANES; k++) {                                           \
            (*(tag))[k] = (uint16_t)(*(key))[k];                                       \
        }                                                                              \
    } while (0)
#define ALL(x) ((VDOUBLE){0} + (x))
#define FMA(a, b, c) ((a) * (b) + (c))
#define LANES 4
#define VDOUBLE vdouble4
#define VWORD vword4
#define VTAG vtag4
#define TARGET
#define NAMED(function) function##_plain
#include "text/vector_kernels.h"
#undef FMA
#undef TARGET
#undef NAMED

#if defined(__x86_64__)
#define HAVE_WIDER 1
#define TARGET __attribute__((target("avx2,fma")))
#define FMA(a, b, c)                                                                   \
    ((vdouble4)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c)))
#define NAMED(function) function##_avx2
#include "text/vector_kernels.h"
#undef LANES
#undef VDOUBLE
#undef VWORD
#undef VTAG
#undef TARGET
#undef NAMED

#undef FMA
#define FMA(a, b, c)                                                                   \
    ((vdouble8)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#undef TAGS_OF
#define TAGS_OF(key, tag) *(tag) = (vtag8)_mm512_cvtepi64_epi16((__m512i) * (key))
#define LANES 8
#define VDOUBLE vdouble8
#define VWORD vword8
#define VTAG vtag8
#define TARGET __attribute__((target("avx512f,avx512dq,avx512bw")))
#define NAMED(function) function##_avx512
#include "text/vector_kernels.h"
#endif

#ifdef HAVE_WIDER
/* Packing works on halves of 128 bits, so the middle quarters change places. */
__attribute__((target("avx2"))) static uint64_t
match_tags_avx2(const uint16_t *tags, const uint16_t *queries, size_t n,
                uint32_t *masks)
{
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)tags);
    const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(tags + 16));
    const __m256i first = _mm256_permute2x128_si256(low, high, 0x20);
    const __m256i second = _mm256_permute2x128_si256(low, high, 0x31);
    uint64_t matched = 0;
    for (size_t i = n; i-- > 0;) {
        const __m256i query = _mm256_set1_epi16((short)queries[i]);
        const __m256i both = _mm256_packs_epi16(_mm256_cmpeq_epi16(first, query),
                                                _mm256_cmpeq_epi16(second, query));
        masks[i] = (uint32_t)_mm256_movemask_epi8(both);
        matched = 2 * matched + (masks[i] != 0);
    }
    return matched;
}

__attribute__((target("avx512f,avx512bw"))) static uint64_t
match_tags_avx512(const uint16_t *tags, const uint16_t *queries, size_t n,
                  uint32_t *masks)
{
    const __m512i all = _mm512_loadu_si512((const void *)tags);
    uint64_t matched = 0;
    for (size_t i = n; i-- > 0;) {
        masks[i] = _mm512_cmpeq_epi16_mask(all, _mm512_set1_epi16((short)queries[i]));
        matched = 2 * matched + (masks[i] != 0);
    }
    return matched;
}
#endif

static uint64_t
match_tags_plain(const uint16_t *tags, const uint16_t *queries, size_t n,
                 uint32_t *masks)
{
    uint64_t matched = 0;
    for (size_t i = 0; i < n; i++) {
        masks[i] = 0;
        for (size_t j = 0; j < AG_TAGS; j++) {
            masks[i] |= (uint32_t)(tags[j] == queries[i]) << j;
        }
        matched |= (uint64_t)(masks[i] != 0) << i;
    }
    return matched;
}

/* What the processor has, up to the limit that a test has set. */
enum level { UNKNOWN, PLAIN, AVX2, AVX512 };
static _Atomic int level_now = UNKNOWN;

static int
level_of_processor(void)
{
#ifdef HAVE_WIDER
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw")) {
        return AVX512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return AVX2;
    }
#endif
    return PLAIN;
}

int
ag_vector_limit(int most)
{
    int has = level_of_processor();
    has = most + PLAIN < has ? most + PLAIN : has;
    atomic_store_explicit(&level_now, has, memory_order_relaxed);
    return has - PLAIN;
}

static inline int
level(void)
{
    int now = atomic_load_explicit(&level_now, memory_order_relaxed);
    return now != UNKNOWN ? now : ag_vector_limit(AG_VECTOR_LEVELS - 1) + PLAIN;
}

/* `what` is nothing, or where the result goes. */
#ifdef HAVE_WIDER
#define DISPATCH(what, function, ...)                                                  \
    switch (level()) {                                                                 \
    case AVX512:                                                                       \
        what function##_avx512(__VA_ARGS__);                                           \
        break;                                                                         \
    case AVX2:                                                                         \
        what function##_avx2(__VA_ARGS__);                                             \
        break;                                                                         \
    default:                                                                           \
        what function##_plain(__VA_ARGS__);                                            \
    }
#else
#define DISPATCH(what, function, ...) what function##_plain(__VA_ARGS__);
#endif

uint64_t
ag_match_tags(const uint16_t *tags, const uint16_t *queries, size_t n, uint32_t *masks)
{
    uint64_t matched;
    DISPATCH(matched =, match_tags, tags, queries, n, masks)
    return matched;
}

void
ag_take_list(const double *from, const uint64_t *key, size_t n,
             const struct ag_list_room *to, struct ag_list_sums *sums)
{
    DISPATCH(, take_list, from, key, n, to, sums)
}

void
ag_exp_many(double *x, size_t n, double *p, struct ag_exp_sums *sums)
{
    DISPATCH(, exp_many, x, n, p, sums)
}

void
ag_log2_many(double *x, size_t n)
{
    DISPATCH(, log2_many, x, n)
}

double
ag_exp(double x)
{
    vdouble4 lanes = {x, x, x, x}, out;
    exp_lanes_plain(&lanes, &out);
    return out[0];
}
