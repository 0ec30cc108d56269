#include "text/entropy.h"

#include <math.h>
#include <string.h>

#define INV_LN2 0x1.71547652b82fep+0

uint64_t
ag_token_key(const uint8_t *octets, size_t n)
{
    uint64_t hash = AG_KEY_START;
    for (size_t i = 0; i < n; i++) {
        hash = ag_key_add(hash, octets[i]);
    }
    return ag_key_mix(hash);
}

void
ag_distribution_clear(struct ag_distribution *d)
{
    d->count = d->listed = d->massed = 0;
    d->weighted = d->beyond = 0.0;
    d->least = d->smallest = HUGE_VAL;
    d->usable = true;
}

/* Another logprob that is no NaN and not above AG_LOGPROB_MAX. */
static void
keep(struct ag_distribution *d, uint64_t key, double logprob)
{
    double x = logprob > AG_LOGPROB_LEAST ? logprob : AG_LOGPROB_LEAST;
    d->listed++;
    if (d->count < AG_TOP_MAX) {
        d->logprob[d->count] = x;
        d->tag[d->count] = (uint16_t)key;
        d->key[d->count++] = key;
        return;
    }
    double p = ag_exp(x);
    d->beyond += p;
    d->weighted += p * x;
}

void
ag_distribution_add(struct ag_distribution *d, uint64_t key, double logprob)
{
    if (!(logprob <= AG_LOGPROB_MAX)) { /* NaN as well */
        d->usable = false;
        return;
    }
    d->least = logprob < d->least ? logprob : d->least;
    keep(d, key, logprob);
}

void
ag_distribution_fill(struct ag_distribution *d, const uint64_t *keys,
                     const double *logprobs, size_t n)
{
    size_t kept = n < AG_TOP_MAX ? n : AG_TOP_MAX;
    const struct ag_list_room room = {d->logprob, d->mass, d->key, d->tag};
    struct ag_list_sums sums;
    ag_distribution_clear(d);
    if (n == 0) {
        return;
    }
    ag_take_list(logprobs, keys, kept, &room, &sums);
    d->count = d->listed = d->massed = (uint32_t)kept;
    d->masses = sums.exp.sum;
    d->self = sums.exp.weighted;
    d->logs = sums.exp.logs;
    d->smallest = sums.smallest;
    d->usable = sums.usable;
    for (size_t i = kept; i < n; i++) {
        ag_distribution_add(d, keys[i], logprobs[i]);
    }
}

static inline int
find(const struct ag_distribution *d, uint64_t key)
{
    int at = -1;
    for (uint32_t i = 0; i < d->count && at < 0; i += AG_TAGS) {
        uint32_t tags;
        (void)ag_match_tags(d->tag + i, (const uint16_t[]){(uint16_t)key}, 1, &tags);
        at = ag_distribution_find(d, key, tags, i);
    }
    return at;
}

void
ag_entropy_arguments(const struct ag_distribution *d, double argument[2])
{
    double r = d->tail;
    double others = d->listed < AG_VOCABULARY_MAX ? AG_VOCABULARY_MAX - d->listed : 1;
    argument[0] = argument[1] = 1.0;
    if (r > 0.0) {
        argument[0] = d->smallest > 0.0 && d->smallest < r ? d->smallest : r;
        argument[1] = others / r;
    }
}

struct ag_entropy
ag_entropy_bounds(const struct ag_distribution *d, const double logs[2])
{
    double known = d->weighted < 0.0 ? -d->weighted * INV_LN2 : 0.0;
    double lower = known - d->tail * logs[0], upper = known + d->tail * logs[1];
    return (struct ag_entropy){lower < upper ? lower : upper, upper, d->tail};
}

struct ag_entropy
ag_distribution_entropy(const struct ag_distribution *d)
{
    double logs[AG_LANES] = {1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0};
    ag_entropy_arguments(d, logs);
    ag_log2_many(logs, AG_LANES);
    return ag_entropy_bounds(d, logs);
}

/* The masses that are not there yet: of a list that came token by token, or of the
 * drawn one. */
static void
add_masses(struct ag_distribution *d)
{
    if (d->massed == 0) {
        struct ag_exp_sums sums;
        ag_exp_many(d->logprob, d->count, d->mass, &sums);
        d->masses = sums.sum;
        d->self = sums.weighted;
        d->logs = sums.logs;
    } else {
        for (uint32_t i = d->massed; i < d->count; i++) {
            d->mass[i] = ag_exp(d->logprob[i]);
            d->masses += d->mass[i];
            d->self += d->mass[i] * d->logprob[i];
            d->logs += d->logprob[i];
        }
    }
    d->massed = d->count;
    if (d->least < HUGE_VAL) {
        double smallest = ag_exp(d->least);
        d->smallest = smallest < d->smallest ? smallest : d->smallest;
    }
}

/* Puts the floor under the masses and their logarithms, for divergences. */
static void
raise_masses(struct ag_distribution *d)
{
    d->masses = d->self = d->logs = 0.0;
    for (uint32_t i = 0; i < d->count; i++) {
        if (d->mass[i] < AG_P_LEAST) {
            d->mass[i] = AG_P_LEAST;
            d->logprob[i] = AG_LOG_P_LEAST;
        }
        d->masses += d->mass[i];
        d->self += d->mass[i] * d->logprob[i];
        d->logs += d->logprob[i];
    }
}

bool
ag_distribution_close(struct ag_distribution *d, uint64_t key, const double *drawn)
{
    d->usable = d->usable && d->count > 0;
    if (d->usable && drawn != NULL && d->listed == d->count && d->key[0] != key &&
        find(d, key) < 0) {
        d->usable = *drawn <= AG_LOGPROB_MAX;
        keep(d, key, *drawn);
    }
    if (!d->usable) {
        return false;
    }
    add_masses(d);
    d->sum = d->masses + d->beyond;
    if (d->sum > 1.0 + AG_LOGPROB_MAX) {
        d->usable = false;
        return false;
    }
    d->weighted += d->self;
    d->tail = d->sum < 1.0 ? 1.0 - d->sum : 0.0;
    if (d->smallest < AG_P_LEAST || (drawn != NULL && *drawn < AG_LOG_P_LEAST)) {
        raise_masses(d);
    }
    double rest = d->tail + d->beyond;
    d->rest = rest > AG_TAIL_LEAST ? rest : AG_TAIL_LEAST;
    d->scale = 1.0 / (d->masses + d->rest);
    return true;
}
