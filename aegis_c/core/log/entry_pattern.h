/* The texts of an entry whose every character is prescribed. */
#ifndef AG_LOG_ENTRY_PATTERN_H
#define AG_LOG_ENTRY_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum ag_pattern {
    AG_PATTERN_UUID,       /* 8-4-4-4-12, lower case */
    AG_PATTERN_TIME,       /* 2026-01-02T03:04:05.123456Z */
    AG_PATTERN_DIGEST,     /* 64 hex digits, lower case */
    AG_PATTERN_COMMITMENT, /* 32 octets in base64 */
};

/* Octets of such a text. */
size_t ag_pattern_length(enum ag_pattern pattern);

/* Whether so many octets at `text` are one. Any thread. */
bool ag_pattern_matches(enum ag_pattern pattern, const uint8_t *text);

#endif
