/* Searching short stretches of octets, as the lines of a head are: inline, since a call
 * of memchr costs more than the search. */
#ifndef AG_HTTP_OCTETS_H
#define AG_HTTP_OCTETS_H

#include <stddef.h>
#include <stdint.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* The first `octet` in p .. end, or NULL. */
static inline const uint8_t *
ag_find_octet(const uint8_t *p, const uint8_t *end, uint8_t octet)
{
#ifdef __SSE2__
    const __m128i wanted = _mm_set1_epi8((char)octet);
    for (; end - p >= 16; p += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        unsigned mask = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(v, wanted));
        if (mask != 0) {
            return p + __builtin_ctz(mask);
        }
    }
#endif
    for (; p < end; p++) {
        if (*p == octet) {
            return p;
        }
    }
    return NULL;
}

#endif
