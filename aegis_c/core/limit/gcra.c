#include "limit/gcra.h"

#include <inttypes.h>

int
ag_gcra_init(struct ag_gcra *g, uint64_t rate, uint64_t per_ns, uint64_t burst,
             struct ag_error *err)
{
    if (rate == 0 || per_ns == 0 || burst == 0) {
        return ag_fail(err, AG_EINVAL,
                       "rate, per and burst must be above zero, not %" PRIu64
                       " units per %" PRIu64 " ns with a burst of %" PRIu64,
                       rate, per_ns, burst);
    }
    ag_u128 tolerance = ((ag_u128)burst * per_ns + (rate - 1)) / rate;
    ag_u128 unit = ((ag_u128)per_ns + (rate - 1)) / rate;
    if (tolerance >= AG_LEVEL_MAX) {
        return ag_fail(err, AG_EINVAL,
                       "a burst of %" PRIu64 " at %" PRIu64 " units per %" PRIu64
                       " ns takes more than 146 years to come back",
                       burst, rate, per_ns);
    }
    uint64_t half = (uint64_t)unit / 2;
    *g = (struct ag_gcra){.rate = rate,
                          .per_ns = per_ns,
                          .burst = burst,
                          .unit = (uint64_t)unit,
                          .tolerance = (uint64_t)tolerance,
                          .slack = burst < half ? burst : half};
    return AG_OK;
}
