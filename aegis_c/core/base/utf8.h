/* UTF-8 validation (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF). */
#ifndef AG_BASE_UTF8_H
#define AG_BASE_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Offset of the first octet that does not belong to a valid sequence, or n. */
size_t ag_utf8_valid_prefix(const uint8_t *text, size_t n);

#endif
