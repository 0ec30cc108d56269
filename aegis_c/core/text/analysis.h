/* One reply, whole or as it streams: everything that is measured of it, in constant
 * memory (sizeof(struct ag_analysis), below 64 KiB), and the same however the bytes are
 * cut. One thread at a time. */
#ifndef AG_TEXT_ANALYSIS_H
#define AG_TEXT_ANALYSIS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/divergence.h"
#include "text/repetition.h"
#include "text/reply_reader.h"
#include "text/sequence.h"
#include "text/words.h"

struct ag_analysis {
    struct ag_reply_reader reader;
    uint64_t octets;
    uint64_t choices;  /* begun; of a stream: the highest number seen, plus one */
    bool elsewhere;    /* what comes now belongs to another choice of a stream */
    uint64_t skipped;  /* tokens with a list that is no part of a distribution */
    uint64_t unlisted; /* tokens without a list */
    uint64_t other_tokens, other_octets; /* of other choices of a stream: not read */
    uint64_t impossible; /* logprobs that are NaN or above 0, with or without a list */
    /* tokens with a usable list */
    struct ag_distribution lists[2]; /* the token's, and the one before it in turns */
    int now;
    bool has_before; /* the other one is the token before, usable */
    uint64_t tokens, pairs;
    double upper_total, upper_max, tail_total;
    double kl_total, kl_max, js_total, js_max;
    uint64_t js_at;
    /* drawn tokens with a usable logprob */
    uint64_t surprisals;
    double surprisal_total, surprisal_max;
    struct ag_sequence entropy, surprisal;
    struct ag_words words;
    struct ag_repetition repetition;
};

/* NULL: out of memory. `events`: a text/event-stream, not one document. `session` is
 * NULL or where the session stands. ag_free() it. */
struct ag_analysis *ag_analysis_new(bool events, const struct ag_session *session);

void ag_analysis_feed(struct ag_analysis *a, const uint8_t *data, size_t n);
void ag_analysis_end(struct ag_analysis *a); /* once, after the last octet */

/* Without a reader: `n` tokens that were drawn, and `k` alternatives of each, by
 * logprob and key. */
void ag_analysis_tokens(struct ag_analysis *a, const double *drawn,
                        const uint64_t *drawn_keys, const double *logprobs,
                        const uint64_t *keys, size_t n, size_t k);
/* Without a reader: more of the text. */
void ag_analysis_text(struct ag_analysis *a, const uint8_t *text, size_t n);

/* What the sequence of numbers is of: entropies when there are lists, else surprisals.
 */
const struct ag_sequence *ag_analysis_sequence(const struct ag_analysis *a);
/* Where the session stands after this reply. */
struct ag_session ag_analysis_session(const struct ag_analysis *a);

#endif
