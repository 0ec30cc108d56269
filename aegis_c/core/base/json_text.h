/* Passing over the plain part of a JSON string. */
#ifndef AG_BASE_JSON_TEXT_H
#define AG_BASE_JSON_TEXT_H

#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "base/bytes.h"

/* The first octet in p .. end that is a quote, a backslash, a control character or not
 * ASCII; `end` when there is none. */
static inline const uint8_t *
ag_json_skip_plain(const uint8_t *p, const uint8_t *end)
{
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\');
    const __m128i space = _mm_set1_epi8(' ');
    for (; end - p >= 16; p += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        /* signed: what is not ASCII is negative, and so below the space as well */
        __m128i special = _mm_or_si128(
            _mm_cmplt_epi8(v, space),
            _mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, backslash)));
        unsigned mask = (unsigned)_mm_movemask_epi8(special);
        if (mask != 0) {
            return p + __builtin_ctz(mask);
        }
    }
#else
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    for (; end - p >= 8; p += 8) {
        uint64_t v = ag_get_u64le(p);
        uint64_t quote = v ^ '"' * ones, backslash = v ^ '\\' * ones;
        /* of an octet below 0x80, each term has the high bit when it is special */
        if (((v | (v - ' ' * ones) | (quote - ones) | (backslash - ones)) & high) !=
            0) {
            break;
        }
    }
#endif
    while (p < end && *p >= ' ' && *p < 0x80 && *p != '"' && *p != '\\') {
        p++;
    }
    return p;
}

#endif
