/* exp and log2 of many doubles at once, and the sums that entropies are made of.
 *
 * Polynomials and bit moves on vectors as wide as the processor has them; no libm. Any
 * thread. */
#ifndef AG_TEXT_VECTOR_MATH_H
#define AG_TEXT_VECTOR_MATH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AG_LANES 8

/* Levels: 0 without special instructions, 1 AVX2 with FMA, 2 AVX-512. For tests: uses
 * none above `most`; returns the level that is used from now on. Not beside calls. */
#define AG_VECTOR_LEVELS 3
int ag_vector_limit(int most);

#define AG_LOGPROB_LEAST (-16384.0) /* stands for -inf: e^x is 0 below -700 */

struct ag_exp_sums {
    double sum;      /* of p = e^x */
    double weighted; /* of p x */
    double logs;     /* of x */
};

/* p[i] = e^x[i], within 1e-11, relative, for n numbers from AG_LOGPROB_LEAST to 700;
 * both arrays have room up to the next multiple of AG_LANES, which is overwritten. */
void ag_exp_many(double *x, size_t n, double *p, struct ag_exp_sums *sums);

#define AG_LIST_MOST 1e-3

/* Where a list goes: room for it up to the next multiple of AG_LANES, which is
 * overwritten. */
struct ag_list_room {
    double *x, *p;
    uint64_t *keys;
    uint16_t *tags;
};

struct ag_list_sums {
    struct ag_exp_sums exp;
    double smallest; /* p */
    bool usable;     /* nothing is NaN or above AG_LIST_MOST */
};

/* All that is done to each of n > 0 numbers of a list and their keys, in one pass: x is
 * the number, at least AG_LOGPROB_LEAST (which NaN becomes too), p = e^x as in
 * ag_exp_many, tags are the low bits of the keys. */
void ag_take_list(const double *from, const uint64_t *key, size_t n,
                  const struct ag_list_room *to, struct ag_list_sums *sums);

double ag_exp(double x);

/* x[i] = log2(x[i]) for n positive and normal numbers, n a multiple of AG_LANES; within
 * 1e-12. */
void ag_log2_many(double *x, size_t n);

/* masks[i] has a bit for each of tags[0..AG_TAGS) that is queries[i]; n <= 64. Returns
 * a bit for each query that has any. */
#define AG_TAGS 32
uint64_t ag_match_tags(const uint16_t *tags, const uint16_t *queries, size_t n,
                       uint32_t *masks);

#endif
