/* The tokens of strict JSON, as the check of entries walks over them: private to
 * entry_schema.c, and inline, since a token is over within a few nanoseconds. Each
 * function takes the token at `p`, of octets that go on to `end`, and returns what is
 * behind it: NULL when the token is not there or not whole. */
#ifndef AG_LOG_ENTRY_WALK_H
#define AG_LOG_ENTRY_WALK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/json_text.h"
#include "base/utf8.h"
#include "hash/sha256.h"

#define NUMBER_MAX 32 /* characters of a number */

struct text {
    struct ag_span raw; /* between the quotes */
    bool escaped;       /* holds a backslash */
};

static inline bool
is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

/* Never NULL. */
static inline const uint8_t *
skip_space(const uint8_t *p, const uint8_t *end)
{
    while (p < end && *p <= ' ' &&
           (*p == ' ' || *p == '\n' || *p == '\t' || *p == '\r')) {
        p++;
    }
    return p;
}

static inline const uint8_t *
take(const uint8_t *p, const uint8_t *end, uint8_t c)
{
    return p < end && *p == c ? p + 1 : NULL;
}

/* Behind a backslash. */
static const uint8_t *
take_escape(const uint8_t *p, const uint8_t *end)
{
    if (p == end) {
        return NULL;
    }
    uint8_t c = *p++;
    if (c != 'u') {
        return c != 0 && strchr("\"\\/bfnrt", c) != NULL ? p : NULL;
    }
    for (int i = 0; i < 4; i++, p++) {
        if (p == end || !(is_digit(*p) || ((*p | 0x20) >= 'a' && (*p | 0x20) <= 'f'))) {
            return NULL;
        }
    }
    return p;
}

/* The rest of a text, from a character that is not plain ASCII. */
static const uint8_t *
take_rest_of_text(const uint8_t *p, const uint8_t *end, struct text *text)
{
    while (p < end && *p != '"') {
        if (*p >= 0x80) {
            size_t n = ag_utf8_sequence(p, (size_t)(end - p));
            if (n == 0) {
                return NULL;
            }
            p += n;
        } else if (*p == '\\') {
            text->escaped = true;
            p = take_escape(p + 1, end);
            if (p == NULL) {
                return NULL;
            }
        } else if (*p < 0x20) {
            return NULL;
        } else {
            p = ag_json_skip_plain(p, end);
        }
    }
    if (p == end) {
        return NULL;
    }
    text->raw.size = (size_t)(p - text->raw.data);
    return p + 1;
}

static inline __attribute__((always_inline)) const uint8_t *
take_text(const uint8_t *p, const uint8_t *end, struct text *text)
{
    if (p == end || *p != '"') {
        return NULL;
    }
    const uint8_t *stop = ag_json_skip_plain(p + 1, end);
    text->raw.data = p + 1;
    text->escaped = false;
    if (stop < end && *stop == '"') {
        text->raw.size = (size_t)(stop - (p + 1));
        return stop + 1;
    }
    return take_rest_of_text(stop, end, text);
}

static inline const uint8_t *
skip_digits(const uint8_t *p, const uint8_t *end)
{
    while (p < end && is_digit(*p)) {
        p++;
    }
    return p;
}

/* A number; *count tells whether it is an integer without a sign. */
static inline const uint8_t *
take_number(const uint8_t *p, const uint8_t *end, struct ag_span *raw, bool *count)
{
    const uint8_t *start = p;
    bool negative = p < end && *p == '-';
    const uint8_t *first = p + negative;
    p = skip_digits(first, end);
    if (p == first || (p > first + 1 && *first == '0')) {
        return NULL;
    }
    *count = !negative;
    if (p < end && *p == '.') {
        *count = false;
        first = p + 1;
        p = skip_digits(first, end);
        if (p == first) {
            return NULL;
        }
    }
    if (p < end && (*p | 0x20) == 'e') {
        *count = false;
        first = p + 1;
        first += first < end && (*first == '+' || *first == '-');
        p = skip_digits(first, end);
        if (p == first) {
            return NULL;
        }
    }
    raw->data = start;
    raw->size = (size_t)(p - start);
    return raw->size <= NUMBER_MAX ? p : NULL;
}

static inline const uint8_t *
take_word(const uint8_t *p, const uint8_t *end, const char *word, size_t n)
{
    return (size_t)(end - p) >= n && memcmp(p, word, n) == 0 ? p + n : NULL;
}

#endif
