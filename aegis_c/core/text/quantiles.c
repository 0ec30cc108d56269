#include "text/quantiles.h"

#include <math.h>

#define GROWTH ((1.0 + AG_QUANTILE_ERROR) / (1.0 - AG_QUANTILE_ERROR))

static void
halve(struct ag_quantiles *q)
{
    q->count = 0;
    for (int i = 0; i < AG_QUANTILE_BINS; i++) {
        q->bin[i] /= 2;
        q->count += q->bin[i];
    }
}

void
ag_quantiles_add(struct ag_quantiles *q, double x)
{
    int at = 0;
    if (!(x >= 0.0)) {
        return;
    }
    if (x >= AG_QUANTILE_LEAST) {
        double above = ceil(log(x / AG_QUANTILE_LEAST) / log(GROWTH)) + 1.0;
        at = above < AG_QUANTILE_BINS - 1 ? (int)above : AG_QUANTILE_BINS - 1;
    }
    q->bin[at]++;
    if (++q->count >= AG_QUANTILE_FULL) {
        halve(q);
    }
}

double
ag_quantiles_at(const struct ag_quantiles *q, double part)
{
    uint64_t seen = 0;
    int at = 0;
    if (q->count == 0) {
        return NAN;
    }
    double rank = part * (q->count - 1.0);
    for (; at < AG_QUANTILE_BINS - 1; at++) {
        seen += q->bin[at];
        if ((double)seen > rank) {
            break;
        }
    }
    if (at == 0) {
        return 0.0;
    }
    /* the bin's middle in the sense of the relative error */
    return AG_QUANTILE_LEAST * pow(GROWTH, at - 1) * 2.0 / (1.0 + GROWTH);
}
