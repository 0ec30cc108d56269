#include "text/repetition.h"

#include <stdbool.h>

#define MASK (AG_LZ_WINDOW - 1u)

static inline bool
is_letter(uint8_t c)
{
    return (uint8_t)((c | 0x20) - 'a') < 26 || c >= 0x80;
}

/* Keeps the match under way when it is a loop longer than those before. */
static void
note_loop(struct ag_repetition *r)
{
    if (r->length < (uint64_t)(AG_LOOP_TIMES - 1) * r->distance) {
        return;
    }
    struct ag_loop *best = 4 * r->letters >= r->length ? &r->loop : &r->signs;
    uint64_t octets = r->length + r->distance;
    if (octets > best->octets) {
        *best = (struct ag_loop){r->octets - octets, octets, r->distance};
    }
}

/* Looks for an earlier place of the last four octets, which end at octet r->octets. */
static void
begin_match(struct ag_repetition *r, uint32_t place)
{
    uint32_t here = (uint32_t)r->octets, distance = here - place;
    if (distance == 0 || distance > AG_LZ_WINDOW - AG_LZ_LEAST ||
        distance > r->octets) {
        return;
    }
    uint64_t letters = 0;
    for (uint32_t i = 1; i <= AG_LZ_LEAST; i++) {
        uint8_t c = r->window[(here - i) & MASK];
        if (c != r->window[(place - i) & MASK]) {
            return;
        }
        letters += is_letter(c);
    }
    r->distance = distance;
    r->length = AG_LZ_LEAST;
    r->letters = letters;
    r->literals -= AG_LZ_LEAST;
    r->matches++;
    r->fresh = 0;
    note_loop(r);
}

static inline void
add_octet(struct ag_repetition *r, uint8_t c)
{
    uint32_t here = (uint32_t)r->octets;
    bool matched = r->distance != 0 && r->window[(here - r->distance) & MASK] == c;
    r->window[here & MASK] = c;
    r->last = r->last << 8 | c;
    r->octets++;
    uint32_t *head = &r->head[(r->last * 0x9e3779b1u) >> 21];
    if (matched) {
        r->length++;
        r->letters += is_letter(c);
        if (r->length >= (uint64_t)(AG_LOOP_TIMES - 1) * r->distance) {
            note_loop(r);
        }
    } else {
        r->distance = 0;
        r->literals++;
        r->fresh += r->fresh < AG_LZ_LEAST;
        if (r->fresh == AG_LZ_LEAST && *head != 0) {
            begin_match(r, *head);
        }
    }
    if (r->octets >= AG_LZ_LEAST) {
        *head = (uint32_t)r->octets;
    }
}

void
ag_repetition_add(struct ag_repetition *r, const uint8_t *text, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        add_octet(r, text[i]);
    }
}

double
ag_repetition_compression(const struct ag_repetition *r)
{
    uint64_t cost = r->literals + AG_LZ_MATCH * r->matches;
    return r->octets > 0 ? (double)cost / (double)r->octets : 1.0;
}
