/* What one token's list of alternatives says: entropy with bounds.
 *
 * A list names k tokens with their natural log-probabilities; p = e^logprob. What is
 * not listed is the tail, r = max(0, 1 - sum p), spread over tokens that we do not
 * know. The drawn token counts as listed when it is not; q is the smallest p of the
 * list as sent (r when that is 0). V = AG_VOCABULARY_MAX, and in bits:
 *
 *     known = -sum p log2 p
 *     lower = known + r log2(1 / min(q, r))   no unlisted token is likelier than q or r
 *     upper = known + r log2((V - k) / r)     the tail is even over all other tokens
 *
 * lower is cut to upper where rounded input would put it above. */
#ifndef AG_TEXT_ENTROPY_H
#define AG_TEXT_ENTROPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "text/vector_math.h"

#define AG_TOP_MAX 64 /* tokens of a list that are told apart */
#define AG_VOCABULARY_MAX (1 << 18)
#define AG_LOGPROB_MAX                                                                 \
    AG_LIST_MOST /* above 0 by rounding; also what a sum may exceed 1 by */
#define AG_TAIL_LEAST 1e-6
#define AG_P_LEAST 1e-12
#define AG_LOG_P_LEAST (-27.631021115928547) /* its natural logarithm */

struct ag_distribution {
    double logprob[AG_TOP_MAX + AG_LANES]; /* at least AG_LOGPROB_LEAST */
    double mass[AG_TOP_MAX + AG_LANES];    /* p, at least AG_P_LEAST */
    uint64_t key[AG_TOP_MAX + AG_LANES];
    uint16_t
        tag[AG_TOP_MAX + AG_TAGS]; /* low half of the key's low half: found by these */
    uint32_t count;                /* tokens in the arrays */
    uint32_t massed;               /* of them, those whose mass is there already */
    uint32_t listed; /* tokens, with those beyond the arrays and the drawn one */
    double sum;      /* of p, of all that is listed */
    double weighted; /* sum p logprob */
    double masses;   /* sum of mass */
    double self;     /* sum of mass times its natural logarithm */
    double logs;     /* sum of the natural logarithms of mass */
    double beyond;   /* of p, of what is listed beyond the arrays */
    double least;    /* the smallest logprob of the list as sent, but for the massed */
    double smallest; /* q; while the list is open, of the massed */
    double tail;     /* r */
    double rest;  /* r with what is listed beyond the arrays, at least AG_TAIL_LEAST */
    double scale; /* 1 / (masses + rest) */
    bool usable;
};

struct ag_entropy {
    double lower, upper, tail; /* bits, bits, mass */
};

/* Identity of a token's octets: FNV-1a, then mixed. Start with AG_KEY_START, finish
 * with ag_key_mix. */
#define AG_KEY_START 0xcbf29ce484222325u
static inline uint64_t
ag_key_add(uint64_t hash, uint8_t octet)
{
    return (hash ^ octet) * 0x100000001b3u;
}
static inline uint64_t
ag_key_mix(uint64_t hash)
{
    hash = (hash ^ (hash >> 32)) * 0x9e3779b97f4a7c15u;
    return hash ^ (hash >> 29);
}
uint64_t ag_token_key(const uint8_t *octets, size_t n);

/* An empty list. */
void ag_distribution_clear(struct ag_distribution *d);

/* The next listed token. A logprob that is NaN or above AG_LOGPROB_MAX makes the list
 * unusable; -inf is probability 0. */
void ag_distribution_add(struct ag_distribution *d, uint64_t key, double logprob);

/* As many at once, of a list that is empty. */
void ag_distribution_fill(struct ag_distribution *d, const uint64_t *keys,
                          const double *logprobs, size_t n);

/* Closes the list; `drawn` is NULL or the drawn token's logprob, which counts unless
 * its key is listed. True and *entropy, or false when these are no part of a
 * distribution: nothing listed, unusable, or a sum above 1 + AG_LOGPROB_MAX. */
bool ag_distribution_close(struct ag_distribution *d, uint64_t key,
                           const double *drawn);

/* Of a closed list that was usable. */
struct ag_entropy ag_distribution_entropy(const struct ag_distribution *d);

/* The same in two halves, for who has more logarithms to take: what they are of, min(q,
 * r) and (V - k) / r, and the bounds from them. */
void ag_entropy_arguments(const struct ag_distribution *d, double argument[2]);
struct ag_entropy ag_entropy_bounds(const struct ag_distribution *d,
                                    const double logs[2]);

/* Index of `key` in the arrays, or -1. `tags` has a bit for each place from `first` on
 * whose tag is the key's (ag_match_tags). */
static inline int
ag_distribution_find(const struct ag_distribution *d, uint64_t key, uint32_t tags,
                     uint32_t first)
{
    for (; tags != 0; tags &= tags - 1) {
        uint32_t j = first + (uint32_t)__builtin_ctz(tags);
        if (j < d->count && d->key[j] == key) {
            return (int)j;
        }
    }
    return -1;
}

#endif
