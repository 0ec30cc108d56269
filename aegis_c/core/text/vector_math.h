/* exp and log2 of many doubles at once, and the sums that entropies are made of.
 *
 * Polynomials and bit moves on vectors as wide as the processor has them; no libm. Any
 * thread. */
#ifndef AG_TEXT_VECTOR_MATH_H
#define AG_TEXT_VECTOR_MATH_H

#include <stddef.h>
#include <stdint.h>

#define AG_LANES 8

#define AG_LOGPROB_LEAST (-16384.0) /* stands for -inf: e^x is 0 below -700 */

struct ag_exp_sums {
    double sum;      /* of p = e^x */
    double weighted; /* of p x */
    double logs;     /* of x */
};

/* p[i] = e^x[i], within 1e-11, relative, for n numbers from AG_LOGPROB_LEAST to 700;
 * both arrays have room up to the next multiple of AG_LANES, which is overwritten. */
void ag_exp_many(double *x, size_t n, double *p, struct ag_exp_sums *sums);

double ag_exp(double x);

/* x[i] = log2(x[i]) for n positive and normal numbers, n a multiple of AG_LANES; within
 * 1e-12. */
void ag_log2_many(double *x, size_t n);

/* masks[i] has a bit for each of tags[0..AG_TAGS) that is queries[i]. */
#define AG_TAGS 32
void ag_match_tags(const uint16_t *tags, const uint16_t *queries, size_t n,
                   uint32_t *masks);

#endif
