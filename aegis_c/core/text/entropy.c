#include "text/entropy.h"

#include <math.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

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
    d->count = d->listed = d->least_at = 0;
    d->weighted = d->beyond = 0.0;
    d->smallest = HUGE_VAL; /* of those beyond the arrays, until it is closed */
    d->usable = true;
}

static double
keep(struct ag_distribution *d, uint64_t key, double logprob)
{
    double x = logprob > AG_LOGPROB_LEAST ? logprob : AG_LOGPROB_LEAST;
    d->listed++;
    if (d->count < AG_TOP_MAX) {
        d->logprob[d->count] = x;
        d->tag[d->count] = (uint16_t)key;
        d->key[d->count++] = key;
        return HUGE_VAL;
    }
    double p = ag_exp(x);
    d->beyond += p;
    d->weighted += p * x;
    return p;
}

void
ag_distribution_add(struct ag_distribution *d, uint64_t key, double logprob)
{
    if (!(logprob <= AG_LOGPROB_MAX)) { /* NaN as well */
        d->usable = false;
        return;
    }
    double p = keep(d, key, logprob);
    d->smallest = p < d->smallest ? p : d->smallest;
    if (d->listed == d->count &&
        !(d->logprob[d->count - 1] > d->logprob[d->least_at])) {
        d->least_at = d->count - 1;
    }
}

void
ag_distribution_fill(struct ag_distribution *d, const uint64_t *keys,
                     const double *logprobs, size_t n)
{
    size_t kept = n < AG_TOP_MAX ? n : AG_TOP_MAX;
    double least = HUGE_VAL;
    bool usable = true;
    ag_distribution_clear(d);
    for (size_t i = 0; i < kept; i++) {
        double x = logprobs[i];
        usable = usable & (x <= AG_LOGPROB_MAX);
        x = x > AG_LOGPROB_LEAST ? x : AG_LOGPROB_LEAST;
        if (x <= least) {
            least = x;
            d->least_at = (uint32_t)i;
        }
        d->logprob[i] = x;
        d->key[i] = keys[i];
        d->tag[i] = (uint16_t)keys[i];
    }
    d->count = d->listed = (uint32_t)kept;
    d->usable = usable;
    for (size_t i = kept; i < n; i++) {
        ag_distribution_add(d, keys[i], logprobs[i]);
    }
}

/* Index of `key` in the arrays, or -1. */
static inline int
find(const struct ag_distribution *d, uint64_t key)
{
#ifdef __SSE2__
    const __m128i tag = _mm_set1_epi16((short)key);
    for (uint32_t i = 0; i < d->count; i += 16) {
        const __m128i *at = (const __m128i *)(const void *)(d->tag + i);
        __m128i low = _mm_cmpeq_epi16(_mm_loadu_si128(at), tag);
        __m128i high = _mm_cmpeq_epi16(_mm_loadu_si128(at + 1), tag);
        unsigned mask = (unsigned)_mm_movemask_epi8(_mm_packs_epi16(low, high));
        for (; mask != 0; mask &= mask - 1) {
            uint32_t j = i + (uint32_t)__builtin_ctz(mask);
            if (j < d->count && d->key[j] == key) {
                return (int)j;
            }
        }
    }
#else
    for (uint32_t j = 0; j < d->count; j++) {
        if (d->tag[j] == (uint16_t)key && d->key[j] == key) {
            return (int)j;
        }
    }
#endif
    return -1;
}

static struct ag_entropy
bounds_of(const struct ag_distribution *d)
{
    double known = -d->weighted * INV_LN2, r = d->tail;
    known = known > 0.0 ? known : 0.0;
    struct ag_entropy entropy = {.lower = known, .upper = known, .tail = r};
    if (r > 0.0) {
        double others =
            d->listed < AG_VOCABULARY_MAX ? AG_VOCABULARY_MAX - d->listed : 1;
        double logs[AG_LANES] = {r, others / r, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0};
        if (d->smallest > 0.0 && d->smallest < r) {
            logs[0] = d->smallest;
        }
        ag_log2_many(logs, AG_LANES);
        entropy.lower = known - r * logs[0];
        entropy.upper = known + r * logs[1];
        if (entropy.lower > entropy.upper) {
            entropy.lower = entropy.upper;
        }
    }
    return entropy;
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
ag_distribution_close(struct ag_distribution *d, uint64_t key, const double *drawn,
                      struct ag_entropy *entropy)
{
    if (!d->usable || d->count == 0) {
        d->usable = false;
        return false;
    }
    if (drawn != NULL && find(d, key) < 0) {
        if (!(*drawn <= AG_LOGPROB_MAX)) {
            d->usable = false;
            return false;
        }
        (void)keep(d, key, *drawn);
    }
    struct ag_exp_sums sums;
    ag_exp_many(d->logprob, d->count, d->mass, &sums);
    d->sum = sums.sum + d->beyond;
    d->weighted += sums.weighted;
    if (d->sum > 1.0 + AG_LOGPROB_MAX) {
        d->usable = false;
        return false;
    }
    double smallest = d->mass[d->least_at];
    d->smallest = smallest < d->smallest ? smallest : d->smallest;
    d->tail = d->sum < 1.0 ? 1.0 - d->sum : 0.0;
    *entropy = bounds_of(d);
    d->masses = sums.sum;
    d->self = sums.weighted;
    d->logs = sums.logs;
    if (smallest < AG_P_LEAST || (drawn != NULL && *drawn < AG_LOG_P_LEAST)) {
        raise_masses(d);
    }
    return true;
}

/* One of the two sides of a divergence, divided by its sum. */
struct side {
    double scale;                  /* 1 / sum */
    double missing, of_all, other; /* e, e times the missing tokens, any other token */
};

static struct side
side_of(const struct ag_distribution *d, uint32_t missing)
{
    double r = d->tail + d->beyond;
    r = r > AG_TAIL_LEAST ? r : AG_TAIL_LEAST;
    double share = r / (missing + 1.0);
    double e = d->smallest > AG_P_LEAST ? d->smallest : AG_P_LEAST;
    e = e < share ? e : share;
    double scale = 1.0 / (d->masses + r), all = missing * e;
    return (struct side){scale, e * scale, all * scale, (r - all) * scale};
}

/* Index in `now` and in `before` of every token that both list; returns how many. */
static uint32_t
align(const struct ag_distribution *now, const struct ag_distribution *before,
      uint8_t shared[AG_TOP_MAX][2])
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < now->count; i++) {
        int j = find(before, now->key[i]);
        if (j >= 0) {
            shared[n][0] = (uint8_t)i;
            shared[n++][1] = (uint8_t)j;
        }
    }
    return n;
}

static inline double
positive(double x)
{
    return x > 1e-300 ? x : 1e-300; /* a mass that may be 0, for its logarithm */
}

/* Logarithms that both divergences need, in the order in which they are computed. */
enum {
    P_SCALE,
    Q_SCALE,
    P_MISSING,
    Q_MISSING,
    P_OTHER,
    Q_OTHER,
    M_OTHER,
    P_ONLY,
    Q_ONLY,
    P_ALL,
    Q_ALL,
    M_P_ONLY,
    M_Q_ONLY,
    SINGLE_LOGS = 16
};

void
ag_divergence(const struct ag_distribution *now, const struct ag_distribution *before,
              double *kl, double *js)
{
    uint8_t shared[AG_TOP_MAX][2];
    double m[AG_TOP_MAX], logs[SINGLE_LOGS + AG_TOP_MAX + AG_LANES];
    const uint32_t n = align(now, before, shared);
    const uint32_t p_only = now->count - n;
    const uint32_t q_only = before->count > n ? before->count - n : 0;
    const struct side p = side_of(now, q_only), q = side_of(before, p_only);

    /* over the tokens that both list */
    double p_mass = 0.0, q_mass = 0.0, p_self = 0.0, q_self = 0.0, cross = 0.0,
           q_logs = 0.0;
    for (uint32_t s = 0; s < n; s++) {
        uint32_t i = shared[s][0], j = shared[s][1];
        double log_q = before->logprob[j];
        p_mass += now->mass[i];
        q_mass += before->mass[j];
        p_self += now->mass[i] * now->logprob[i];
        q_self += before->mass[j] * log_q;
        cross += now->mass[i] * log_q;
        q_logs += log_q;
        m[s] = (now->mass[i] * p.scale + before->mass[j] * q.scale) * 0.5;
        logs[SINGLE_LOGS + s] = m[s];
    }
    for (uint32_t s = n; s % AG_LANES != 0; s++) {
        logs[SINGLE_LOGS + s] = 1.0;
    }
    double p_alone = (now->masses - p_mass) * p.scale; /* of what only P lists */
    double q_alone = (before->masses - q_mass) * q.scale;
    p_alone = p_only > 0 && p_alone > 0.0 ? p_alone : 0.0;
    q_alone = q_only > 0 && q_alone > 0.0 ? q_alone : 0.0;
    const double m_other = (p.other + q.other) * 0.5;
    const double m_p = (p_alone + q.of_all) * 0.5, m_q = (q_alone + p.of_all) * 0.5;
    logs[P_SCALE] = p.scale;
    logs[Q_SCALE] = q.scale;
    logs[P_MISSING] = p.missing;
    logs[Q_MISSING] = q.missing;
    logs[P_OTHER] = p.other;
    logs[Q_OTHER] = q.other;
    logs[M_OTHER] = m_other;
    logs[P_ONLY] = positive(p_alone);
    logs[Q_ONLY] = positive(q_alone);
    logs[P_ALL] = positive(p.of_all);
    logs[Q_ALL] = positive(q.of_all);
    logs[M_P_ONLY] = positive(m_p);
    logs[M_Q_ONLY] = positive(m_q);
    logs[13] = logs[14] = logs[15] = 1.0;
    ag_log2_many(logs, SINGLE_LOGS + (n + AG_LANES - 1) / AG_LANES * AG_LANES);

    double same =
        p.scale * (p_self * INV_LN2 + p_mass * logs[P_SCALE]); /* sum P log P */
    double same_q = q.scale * (q_self * INV_LN2 + q_mass * logs[Q_SCALE]);
    double mixed =
        m_other * logs[M_OTHER] + m_p * logs[M_P_ONLY] + m_q * logs[M_Q_ONLY];
    for (uint32_t s = 0; s < n; s++) {
        mixed += m[s] * logs[SINGLE_LOGS + s];
    }
    double shannon = (same + p_alone * logs[P_ONLY] + p.of_all * logs[P_ALL] +
                      p.other * logs[P_OTHER] + same_q + q_alone * logs[Q_ONLY] +
                      q.of_all * logs[Q_ALL] + q.other * logs[Q_OTHER]) *
                         0.5 -
                     mixed;
    double divergence = p.scale * (now->self * INV_LN2 + now->masses * logs[P_SCALE]) -
                        p.scale * (cross * INV_LN2 + p_mass * logs[Q_SCALE]) -
                        p_alone * logs[Q_MISSING] +
                        p.of_all * (logs[P_MISSING] - logs[Q_SCALE]) -
                        p.missing * (before->logs - q_logs) * INV_LN2 +
                        p.other * (logs[P_OTHER] - logs[Q_OTHER]);
    *kl = divergence > 0.0 ? divergence : 0.0;
    *js = shannon > 0.0 ? (shannon < 1.0 ? shannon : 1.0) : 0.0;
}
