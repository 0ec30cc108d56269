#include "base/utf8.h"

#include <string.h>

size_t
ag_utf8_valid_prefix(const uint8_t *text, size_t n)
{
    size_t i = 0;
    while (i < n) {
        uint64_t eight = 0;
        if (n - i >= 8) {
            memcpy(&eight, text + i, 8);
            if ((eight & 0x8080808080808080u) == 0) {
                i += 8;
                continue;
            }
        }
        size_t length = ag_utf8_sequence(text + i, n - i);
        if (length == 0) {
            return i;
        }
        i += length;
    }
    return n;
}
