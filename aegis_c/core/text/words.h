/* The words of a text: entropy of their histogram, repeated 4-grams, change of script.
 * The text comes in pieces cut anywhere, also inside a character; constant memory.
 *
 *     word        letters and ASCII digits in a row, A-Z folded; in the scripts without
 *                 spaces (Han with kana, Thai) every character
 *     entropy     log2 N - (1/N) sum c log2 c over the counts c of N words, bits a
 *                 word. Exact while the table has room; afterwards a new word counts
 *                 with another one, which can only make it smaller
 *     repetition  share of 4-grams of words that came before (the "seq-rep-4" of
 *                 Welleck et al. 2019); a bounded memory forgets, so at most that
 *     switch      a script settles with AG_SCRIPT_RUN letters of it in a row; a switch
 *                 is the settling of another one than before
 */
#ifndef AG_TEXT_WORDS_H
#define AG_TEXT_WORDS_H

#include <stddef.h>
#include <stdint.h>

#include "text/script.h"

#define AG_WORD_SLOTS 2048 /* words told apart; a power of two */
#define AG_WORD_PROBES 8   /* slots that are tried for one word */
#define AG_GRAM 4          /* words */
#define AG_GRAM_SLOTS 4096 /* 4-grams remembered; a power of two */
#define AG_SCRIPT_RUN 16   /* letters */

/* Begins as zeros. */
struct ag_words {
    uint64_t octets, characters, damaged; /* damaged: ill-formed sequences of UTF-8 */
    uint64_t words, grams, repeated;
    uint64_t letters[AG_SCRIPT_COUNT];
    enum ag_script settled, running;
    uint32_t run; /* letters of `running` in a row */
    uint32_t switches;
    uint64_t switch_at; /* octet at which the first switch began */
    enum ag_script switch_from, switch_to;
    uint64_t run_at; /* octet at which the run began */
    uint64_t word;   /* hash of the word under way */
    uint64_t recent[AG_GRAM];
    uint8_t pending[4]; /* octets of a character that is not complete */
    uint8_t pending_n, in_word;
    uint32_t tag[AG_WORD_SLOTS], count[AG_WORD_SLOTS];
    uint32_t gram[AG_GRAM_SLOTS];
};

void ag_words_add(struct ag_words *w, const uint8_t *text, size_t n);
void ag_words_end(struct ag_words *w); /* no more text: closes the last word */
double ag_words_entropy(const struct ag_words *w); /* bits; 0 without words */

#endif
