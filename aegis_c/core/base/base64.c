#include "base/base64.h"

#include <string.h>

#include "base/status.h"

static const char alphabet[] =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

size_t
ag_base64_encode(char *to, const uint8_t *from, size_t n)
{
    char *next = to;
    for (size_t i = 0; i < n; i += 3) {
        size_t left = n - i;
        uint32_t v = (uint32_t)from[i] << 16;
        v |= left > 1 ? (uint32_t)from[i + 1] << 8 : 0;
        v |= left > 2 ? (uint32_t)from[i + 2] : 0;
        *next++ = alphabet[v >> 18 & 63];
        *next++ = alphabet[v >> 12 & 63];
        *next++ = left > 1 ? alphabet[v >> 6 & 63] : '=';
        *next++ = left > 2 ? alphabet[v & 63] : '=';
    }
    return (size_t)(next - to);
}

static int
digit_value(char c)
{
    const char *at = c != '\0' ? strchr(alphabet, c) : NULL;
    return at != NULL ? (int)(at - alphabet) : -1;
}

int
ag_base64_decode(uint8_t *to, size_t *to_n, const char *from, size_t n)
{
    if (n % 4 != 0) {
        return AG_EINVAL;
    }
    size_t written = 0;
    for (size_t i = 0; i < n; i += 4) {
        size_t digits = 4;
        if (i + 4 == n && from[i + 3] == '=') {
            digits = from[i + 2] == '=' ? 2 : 3;
        }
        uint32_t v = 0;
        for (size_t k = 0; k < 4; k++) {
            int d = k < digits ? digit_value(from[i + k]) : 0;
            if (d < 0) {
                return AG_EINVAL;
            }
            v = v << 6 | (uint32_t)d;
        }
        if ((digits == 2 && (v & 0xffff) != 0) || (digits == 3 && (v & 0xff) != 0)) {
            return AG_EINVAL;
        }
        for (size_t k = 0; k + 1 < digits; k++) {
            to[written++] = (uint8_t)(v >> (16 - 8 * k));
        }
    }
    *to_n = written;
    return AG_OK;
}
