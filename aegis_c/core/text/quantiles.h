/* Streaming quantiles in constant memory: DDSketch (Masson, Rim and Lee, VLDB 2019)
 * with fixed bins. A value x > 0 counts in bin ceil(log(x) / log(g)), g = (1 + a) / (1
 * - a), so that every quantile is within the relative error a = AG_QUANTILE_ERROR of a
 * value that was seen, for values from AG_QUANTILE_LEAST to about 2,000; smaller ones,
 * 0 included, count as 0, larger ones in the last bin. When AG_QUANTILE_FULL values are
 * in, all counts are halved, rounded down: older values weigh less. Under the owner's
 * lock. */
#ifndef AG_TEXT_QUANTILES_H
#define AG_TEXT_QUANTILES_H

#include <stdint.h>

#define AG_QUANTILE_ERROR 0.05
#define AG_QUANTILE_LEAST 1e-4
#define AG_QUANTILE_BINS 169
#define AG_QUANTILE_FULL 65536

struct ag_quantiles {
    uint32_t count; /* of all bins */
    uint32_t bin[AG_QUANTILE_BINS];
};

void ag_quantiles_add(struct ag_quantiles *q, double x); /* ignores what is not >= 0 */

/* The value below which a share of `part` (0 to 1) lies; NAN when nothing was added. */
double ag_quantiles_at(const struct ag_quantiles *q, double part);

#endif
