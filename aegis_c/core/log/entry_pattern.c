#include "log/entry_pattern.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* In a template, a character of the pattern's class; all others stand for themselves.
 */
#define CLASSED '\1'
#define X2 "\1\1"
#define X4 X2 X2
#define X8 X4 X4
#define X16 X8 X8

enum class { DIGIT, HEX, BASE64 };

static const struct {
    const char *text;
    uint8_t length; /* at least 16 */
    uint8_t class;
} templates[] = {
    [AG_PATTERN_UUID] = {X8 "-" X4 "-" X4 "-" X4 "-" X8 X4, 36, HEX},
    [AG_PATTERN_TIME] = {X4 "-" X2 "-" X2 "T" X2 ":" X2 ":" X2 "." X4 X2 "Z", 27,
                         DIGIT},
    [AG_PATTERN_DIGEST] = {X16 X16 X16 X16, 64, HEX},
    [AG_PATTERN_COMMITMENT] = {X16 X16 X8 X2 "\1=", 44, BASE64},
};

size_t
ag_pattern_length(enum ag_pattern pattern)
{
    return templates[pattern].length;
}

#ifdef __SSE2__

/* 0xff where an octet is `low`, or at most `more` above it. */
static inline __m128i
in_range(__m128i v, char low, char more)
{
    __m128i above = _mm_sub_epi8(v, _mm_set1_epi8(low));
    return _mm_cmpeq_epi8(_mm_subs_epu8(above, _mm_set1_epi8(more)),
                          _mm_setzero_si128());
}

static inline __m128i
in_class(__m128i v, enum class class)
{
    __m128i found = in_range(v, '0', 9);
    if (class == HEX) {
        found = _mm_or_si128(found, in_range(v, 'a', 5));
    } else if (class == BASE64) {
        __m128i lower = _mm_or_si128(v, _mm_set1_epi8(0x20));
        found = _mm_or_si128(found, in_range(lower, 'a', 25));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(v, _mm_set1_epi8('+')));
        found = _mm_or_si128(found, _mm_cmpeq_epi8(v, _mm_set1_epi8('/')));
    }
    return found;
}

bool
ag_pattern_matches(enum ag_pattern pattern, const uint8_t *text)
{
    const uint8_t *wanted = (const uint8_t *)templates[pattern].text;
    size_t n = templates[pattern].length;
    __m128i good = _mm_set1_epi8(-1);
    /* in steps of 16, the last of which may overlap the one before it */
    for (size_t i = 0; i < n; i = i + 16 < n && i + 32 > n ? n - 16 : i + 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)(text + i));
        __m128i w = _mm_loadu_si128((const __m128i *)(const void *)(wanted + i));
        __m128i any = _mm_cmpeq_epi8(w, _mm_set1_epi8(CLASSED));
        __m128i itself = _mm_andnot_si128(any, _mm_cmpeq_epi8(v, w));
        __m128i classed =
            _mm_and_si128(any, in_class(v, (enum class)templates[pattern].class));
        good = _mm_and_si128(good, _mm_or_si128(itself, classed));
    }
    return _mm_movemask_epi8(good) == 0xffff;
}

#else

static bool
in_class(uint8_t c, enum class class)
{
    if (c >= '0' && c <= '9') {
        return true;
    }
    if (class == HEX) {
        return c >= 'a' && c <= 'f';
    }
    return class == BASE64 &&
           (((c | 0x20) >= 'a' && (c | 0x20) <= 'z') || c == '+' || c == '/');
}

bool
ag_pattern_matches(enum ag_pattern pattern, const uint8_t *text)
{
    const char *wanted = templates[pattern].text;
    bool good = true;
    for (size_t i = 0; i < templates[pattern].length; i++) {
        good = good && (wanted[i] == CLASSED
                            ? in_class(text[i], (enum class)templates[pattern].class)
                            : text[i] == (uint8_t)wanted[i]);
    }
    return good;
}

#endif
