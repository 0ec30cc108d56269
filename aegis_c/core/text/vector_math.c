#include "text/vector_math.h"

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
typedef double vdouble8 __attribute__((vector_size(64)));
typedef uint64_t vword8 __attribute__((vector_size(64)));

#define INLINE static inline __attribute__((always_inline))

#define SHIFTER 0x1.8p52 /* adding it rounds to an integer in the low bits */
#define SHIFTER_BITS 0x4338000000000000u
#define LN2 0x1.62e42fefa39efp-1
#define INV_LN2 0x1.71547652b82fep+0
#define EXP_LEAST (-700.0)
#define SQRT_HALF_BITS 0x3fe6a09e667f3bcdu
#define ONE_BITS 0x3ff0000000000000u

#define LANES 4
#define VDOUBLE vdouble4
#define VWORD vword4
#define TARGET
#define NAMED(function) function##_plain
#include "text/vector_kernels.h"
#undef TARGET
#undef NAMED

#if defined(__x86_64__)
#define HAVE_WIDER 1
#define TARGET __attribute__((target("avx2")))
#define NAMED(function) function##_avx2
#include "text/vector_kernels.h"
#undef LANES
#undef VDOUBLE
#undef VWORD
#undef TARGET
#undef NAMED

#define LANES 8
#define VDOUBLE vdouble8
#define VWORD vword8
#define TARGET __attribute__((target("avx512f,avx512dq")))
#define NAMED(function) function##_avx512
#include "text/vector_kernels.h"
#endif

#ifdef HAVE_WIDER
/* Packing works on halves of 128 bits, so the middle quarters change places. */
__attribute__((target("avx2"))) static void
match_tags_avx2(const uint16_t *tags, const uint16_t *queries, size_t n,
                uint32_t *masks)
{
    const __m256i low = _mm256_loadu_si256((const __m256i *)(const void *)tags);
    const __m256i high = _mm256_loadu_si256((const __m256i *)(const void *)(tags + 16));
    const __m256i first = _mm256_permute2x128_si256(low, high, 0x20);
    const __m256i second = _mm256_permute2x128_si256(low, high, 0x31);
    for (size_t i = 0; i < n; i++) {
        const __m256i query = _mm256_set1_epi16((short)queries[i]);
        const __m256i both = _mm256_packs_epi16(_mm256_cmpeq_epi16(first, query),
                                                _mm256_cmpeq_epi16(second, query));
        masks[i] = (uint32_t)_mm256_movemask_epi8(both);
    }
}
#endif

void
ag_match_tags(const uint16_t *tags, const uint16_t *queries, size_t n, uint32_t *masks)
{
#ifdef HAVE_WIDER
    if (__builtin_cpu_supports("avx2")) {
        match_tags_avx2(tags, queries, n, masks);
        return;
    }
#endif
    for (size_t i = 0; i < n; i++) {
        masks[i] = 0;
        for (size_t j = 0; j < AG_TAGS; j++) {
            masks[i] |= (uint32_t)(tags[j] == queries[i]) << j;
        }
    }
}

void
ag_exp_many(double *x, size_t n, double *p, struct ag_exp_sums *sums)
{
#ifdef HAVE_WIDER
    if (__builtin_cpu_supports("avx512dq")) {
        exp_many_avx512(x, n, p, sums);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        exp_many_avx2(x, n, p, sums);
        return;
    }
#endif
    exp_many_plain(x, n, p, sums);
}

void
ag_log2_many(double *x, size_t n)
{
#ifdef HAVE_WIDER
    if (__builtin_cpu_supports("avx512dq")) {
        log2_many_avx512(x, n);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        log2_many_avx2(x, n);
        return;
    }
#endif
    log2_many_plain(x, n);
}

double
ag_exp(double x)
{
    vdouble4 lanes = {x, x, x, x}, out;
    exp_lanes_plain(&lanes, &out);
    return out[0];
}
