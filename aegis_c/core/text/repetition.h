/* How much of a text repeats what came before: a compression ratio and loops. Octet by
 * octet, cut anywhere; constant memory.
 *
 * A greedy parse in the manner of Ziv and Lempel (1977) over the last AG_LZ_WINDOW
 * octets: the last place of every four octets is remembered (by a hash, so seldom
 * forgotten), a match begins with four equal octets and goes on while the octets
 * `distance` back are the same. An octet outside of matches costs 1, a match
 * AG_LZ_MATCH:
 *
 *     compression = (literals + AG_LZ_MATCH * matches) / octets      1: no repetition
 *
 * A match of distance d and length n >= (AG_LOOP_TIMES - 1) d is a loop: at least
 * AG_LOOP_TIMES copies of d octets in a row, n + d octets in all. The longest one is
 * kept, those of signs only (rulers, padding) apart from those with letters, at least
 * one in four octets. */
#ifndef AG_TEXT_REPETITION_H
#define AG_TEXT_REPETITION_H

#include <stddef.h>
#include <stdint.h>

#define AG_LZ_WINDOW 8192 /* octets; a power of two */
#define AG_LZ_HEADS 2048  /* a power of two */
#define AG_LZ_LEAST 4
#define AG_LZ_MATCH 3
#define AG_LOOP_TIMES 4

struct ag_loop {
    uint64_t at, octets; /* where the first copy begins; of all copies. 0: no loop */
    uint32_t period;
};

/* Begins as zeros. */
struct ag_repetition {
    uint64_t octets, literals, matches;
    uint64_t length;     /* of the match under way */
    uint64_t letters;    /* octets of letters in it */
    uint32_t distance;   /* 0: no match */
    uint32_t fresh;      /* literals since the last match, at most AG_LZ_LEAST */
    uint32_t last;       /* the last four octets */
    struct ag_loop loop; /* with letters */
    struct ag_loop signs;
    uint32_t head[AG_LZ_HEADS]; /* position after the four octets, mod 2^32 */
    uint8_t window[AG_LZ_WINDOW];
};

void ag_repetition_add(struct ag_repetition *r, const uint8_t *text, size_t n);
double ag_repetition_compression(const struct ag_repetition *r); /* 1 without text */

#endif
