#include "text/divergence.h"

#include <stddef.h>

#define INV_LN2 0x1.71547652b82fep+0

/* Places of the logarithms. */
enum {
    BOUNDS, /* and the next one */
    P_SCALE = 2,
    Q_SCALE,
    P_MISSING,
    Q_MISSING,
    P_OTHER,
    Q_OTHER,
    M_OTHER,
    P_ALONE,
    Q_ALONE,
    P_ALL,
    Q_ALL,
    M_P_ALONE,
    M_Q_ALONE,
};

/* What a side gives to the tokens that it does not list. */
static void
set_missing(struct ag_side *side, const struct ag_distribution *d, uint32_t missing)
{
    double e = d->smallest > AG_P_LEAST ? d->smallest : AG_P_LEAST;
    if (e * (missing + 1.0) > d->rest) {
        e = d->rest / (missing + 1.0);
    }
    double all = missing * e;
    side->missing = e * d->scale;
    side->of_all = all * d->scale;
    side->other = (d->rest - all) * d->scale;
}

/* Every token that both list. */
static void
align(struct ag_comparison *c)
{
    const struct ag_distribution *now = c->now, *before = c->before;
    struct ag_side p = {.scale = now->scale}, q = {.scale = before->scale};
    double cross = 0.0, q_logs = 0.0;
    uint32_t tags[AG_TOP_MAX], n = 0;
    for (uint32_t first = 0; first < before->count; first += AG_TAGS) {
        uint64_t maybe = ag_match_tags(before->tag + first, now->tag, now->count, tags);
        for (; maybe != 0 && n < AG_TOP_MAX; maybe &= maybe - 1) {
            uint32_t i = (uint32_t)__builtin_ctzll(maybe);
            int j = ag_distribution_find(before, now->key[i], tags[i], first);
            if (j < 0) {
                continue;
            }
            double p_mass = now->mass[i], q_mass = before->mass[j];
            double log_q = before->logprob[j];
            double m = (p_mass * p.scale + q_mass * q.scale) * 0.5;
            p.mass += p_mass;
            q.mass += q_mass;
            p.self += p_mass * now->logprob[i];
            q.self += q_mass * log_q;
            cross += p_mass * log_q;
            q_logs += log_q;
            c->m[n] = m;
            c->logs[AG_SINGLE_LOGS + n++] = m;
        }
    }
    c->p = p;
    c->q = q;
    c->cross = cross;
    c->q_logs = q_logs;
    c->shared = n;
}

/* What is left of a side's list when the shared tokens are taken out. */
static double
alone(const struct ag_distribution *d, const struct ag_side *side, uint32_t tokens)
{
    double mass = (d->masses - side->mass) * side->scale;
    return tokens > 0 && mass > 0.0 ? mass : 0.0;
}

static inline double
positive(double x)
{
    return x > 1e-300 ? x : 1e-300; /* a mass that may be 0, for its logarithm */
}

static void
set_arguments(struct ag_comparison *c)
{
    const struct ag_side *p = &c->p, *q = &c->q;
    double *logs = c->logs;
    logs[P_SCALE] = p->scale;
    logs[Q_SCALE] = q->scale;
    logs[P_MISSING] = p->missing;
    logs[Q_MISSING] = q->missing;
    logs[P_OTHER] = p->other;
    logs[Q_OTHER] = q->other;
    logs[M_OTHER] = (p->other + q->other) * 0.5;
    logs[P_ALONE] = positive(p->alone);
    logs[Q_ALONE] = positive(q->alone);
    logs[P_ALL] = positive(p->of_all);
    logs[Q_ALL] = positive(q->of_all);
    logs[M_P_ALONE] = positive((p->alone + q->of_all) * 0.5);
    logs[M_Q_ALONE] = positive((q->alone + p->of_all) * 0.5);
    logs[AG_SINGLE_LOGS - 1] = 1.0;
}

void
ag_comparison_begin(struct ag_comparison *c, const struct ag_distribution *now,
                    const struct ag_distribution *before)
{
    c->now = now;
    c->before = before;
    ag_entropy_arguments(now, c->logs + BOUNDS);
    c->count = AG_LANES;
    if (before == NULL) {
        for (size_t i = BOUNDS + 2; i < AG_LANES; i++) {
            c->logs[i] = 1.0;
        }
        return;
    }
    align(c);
    const uint32_t n = c->shared;
    const uint32_t p_only = now->count - n;
    const uint32_t q_only = before->count > n ? before->count - n : 0;
    for (uint32_t s = n; s % AG_LANES != 0; s++) {
        c->logs[AG_SINGLE_LOGS + s] = 1.0;
    }
    set_missing(&c->p, now, q_only);
    set_missing(&c->q, before, p_only);
    c->p.alone = alone(now, &c->p, p_only);
    c->q.alone = alone(before, &c->q, q_only);
    c->count = AG_SINGLE_LOGS + (n + AG_LANES - 1) / AG_LANES * AG_LANES;
    set_arguments(c);
}

static double
jensen_shannon(const struct ag_comparison *c)
{
    const struct ag_side *p = &c->p, *q = &c->q;
    const double *logs = c->logs;
    double own = p->scale * (p->self * INV_LN2 + p->mass * logs[P_SCALE]) +
                 p->alone * logs[P_ALONE] + p->of_all * logs[P_ALL] +
                 p->other * logs[P_OTHER];
    double theirs = q->scale * (q->self * INV_LN2 + q->mass * logs[Q_SCALE]) +
                    q->alone * logs[Q_ALONE] + q->of_all * logs[Q_ALL] +
                    q->other * logs[Q_OTHER];
    double mixed = (p->other + q->other) * logs[M_OTHER] +
                   (p->alone + q->of_all) * logs[M_P_ALONE] +
                   (q->alone + p->of_all) * logs[M_Q_ALONE];
    double even = 0.0, odd = 0.0; /* two sums, which do not wait for each other */
    for (uint32_t s = 0; s < c->shared; s += 2) {
        even += c->m[s] * logs[AG_SINGLE_LOGS + s];
        odd += s + 1 < c->shared ? c->m[s + 1] * logs[AG_SINGLE_LOGS + s + 1] : 0.0;
    }
    double js = (own + theirs - mixed) * 0.5 - (even + odd);
    return js > 0.0 ? (js < 1.0 ? js : 1.0) : 0.0;
}

static double
kullback_leibler(const struct ag_comparison *c)
{
    const struct ag_side *p = &c->p;
    const double *logs = c->logs;
    double kl = p->scale * (c->now->self * INV_LN2 + c->now->masses * logs[P_SCALE]) -
                p->scale * (c->cross * INV_LN2 + p->mass * logs[Q_SCALE]) -
                p->alone * logs[Q_MISSING] +
                p->of_all * (logs[P_MISSING] - logs[Q_SCALE]) -
                p->missing * (c->before->logs - c->q_logs) * INV_LN2 +
                p->other * (logs[P_OTHER] - logs[Q_OTHER]);
    return kl > 0.0 ? kl : 0.0;
}

struct ag_distance
ag_comparison_end(const struct ag_comparison *c)
{
    struct ag_distance found = {.entropy = ag_entropy_bounds(c->now, c->logs + BOUNDS)};
    if (c->before != NULL) {
        found.kl = kullback_leibler(c);
        found.js = jensen_shannon(c);
    }
    return found;
}

struct ag_distance
ag_divergence(const struct ag_distribution *now, const struct ag_distribution *before)
{
    struct ag_comparison c;
    ag_comparison_begin(&c, now, before);
    ag_log2_many(c.logs, c.count);
    return ag_comparison_end(&c);
}
