/* How far one token's distribution is from the one before.
 *
 * Divergence of P (this token) from Q (the one before), tokens told apart by their
 * octets. Each of the u tokens that P lists and Q does not has in Q the mass
 *
 *     e_Q = min(q_Q, r_Q / (u + 1)), and any other token together r_Q - u e_Q;
 *
 * P likewise. r counts as at least AG_TAIL_LEAST (a provider rounds), p as at least
 * AG_P_LEAST, and P and Q are divided by their sums. Of a list longer than AG_TOP_MAX
 * the first AG_TOP_MAX are told apart; the others count in r here, and the drawn token
 * counts as one of them.
 *
 *     KL = sum P log2(P / Q)    over every listed token and "any other"
 *     JS = (KL(P, M) + KL(Q, M)) / 2, M = (P + Q) / 2, over every token that both list,
 *          "listed in P only", "listed in Q only" and "any other"
 *
 * JS with outcomes put together is never above the JS without (data processing).
 * (Kullback and Leibler 1951; Lin 1991: 0 <= JS <= 1.) */
#ifndef AG_TEXT_DIVERGENCE_H
#define AG_TEXT_DIVERGENCE_H

#include "text/entropy.h"

enum { AG_SINGLE_LOGS = 16 };

/* One of the two sides, divided by its sum. */
struct ag_side {
    double scale;                  /* 1 / sum */
    double missing, of_all, other; /* e, e times the missing tokens, any other token */
    double alone;                  /* what only this side lists */
    double mass, self; /* of what both list, before scaling: sum p, sum p ln p */
};

/* A comparison half way: everything but the logarithms. */
struct ag_comparison {
    const struct ag_distribution *now, *before; /* borrowed */
    struct ag_side p, q;
    double cross, q_logs; /* of what both list: sum p ln q, sum ln q */
    uint32_t shared;
    size_t count; /* of logs, a multiple of AG_LANES */
    double m[AG_TOP_MAX], logs[AG_SINGLE_LOGS + AG_TOP_MAX + AG_LANES];
};

struct ag_distance {
    struct ag_entropy entropy; /* of the token's own list: one pass of logarithms */
    double kl, js;             /* bits */
};

/* Compares closed lists that were usable; `before` may be NULL: the entropy alone. In
 * three steps, so that several comparisons can take each step together, which keeps the
 * processor from waiting: begin, ag_log2_many(c->logs, c->count), end. */
void ag_comparison_begin(struct ag_comparison *c, const struct ag_distribution *now,
                         const struct ag_distribution *before);
struct ag_distance ag_comparison_end(const struct ag_comparison *c);

/* All three steps. */
struct ag_distance ag_divergence(const struct ag_distribution *now,
                                 const struct ag_distribution *before);

#endif
