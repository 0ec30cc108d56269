/* UTF-8 validation (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF). */
#ifndef AG_BASE_UTF8_H
#define AG_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the valid sequence that starts at text[0], or 0; n is at least 1. */
static inline size_t
ag_utf8_sequence(const uint8_t *text, size_t n)
{
    uint8_t lead = text[0];
    uint8_t low = 0x80, high = 0xbf; /* bounds of the second octet */
    size_t length = 0;
    if (lead < 0x80) {
        return 1;
    } else if (lead >= 0xc2 && lead <= 0xdf) {
        length = 2;
    } else if (lead >= 0xe0 && lead <= 0xef) {
        length = 3;
        low = lead == 0xe0 ? 0xa0 : 0x80;
        high = lead == 0xed ? 0x9f : 0xbf;
    } else if (lead >= 0xf0 && lead <= 0xf4) {
        length = 4;
        low = lead == 0xf0 ? 0x90 : 0x80;
        high = lead == 0xf4 ? 0x8f : 0xbf;
    } else {
        return 0;
    }
    if (length > n || text[1] < low || text[1] > high) {
        return 0;
    }
    for (size_t i = 2; i < length; i++) {
        if (text[i] < 0x80 || text[i] > 0xbf) {
            return 0;
        }
    }
    return length;
}

/* Offset of the first octet that does not belong to a valid sequence, or n. */
size_t ag_utf8_valid_prefix(const uint8_t *text, size_t n);

#endif
