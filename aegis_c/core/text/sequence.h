/* A reply as a sequence of numbers, one a token: running mean, EMA, the least mean of a
 * window (collapse) and drift against the start of the session. Constant memory.
 *
 * The numbers are entropies (lower bounds) where lists are known, else surprisals.
 *
 *     EMA         e_1 = x_1, e_t = e_(t-1) + AG_EMA_WEIGHT (x_t - e_(t-1))
 *     window      mean of the last AG_WINDOW numbers; the least one of all windows that
 *                 begin after the reply's first AG_WINDOW numbers
 *     reference   mean m and deviation s (n - 1, at least AG_DEVIATION_LEAST) of the
 *                 session's first AG_REFERENCE numbers, by Welford's recurrence
 *     drift       blocks of AG_BLOCK numbers after the reference, b the mean of one;
 *                 z = (b - m) / (s / sqrt(AG_BLOCK)); two-sided CUSUM (Page 1954):
 *                 up = max(0, up + z - AG_SLACK), down = max(0, down - z - AG_SLACK);
 *                 the largest of all values in this reply
 */
#ifndef AG_TEXT_SEQUENCE_H
#define AG_TEXT_SEQUENCE_H

#include <stdint.h>

#define AG_WINDOW 32
#define AG_REFERENCE 64
#define AG_BLOCK 16
#define AG_EMA_WEIGHT 0.1
#define AG_SLACK 1.5
#define AG_DEVIATION_LEAST 0.05 /* bits: a start that is certain has no spread */

/* What a session keeps from reply to reply. All zero: nothing seen yet. */
struct ag_drift {
    uint64_t n;     /* numbers of the session's replies so far */
    double mean;    /* of the first AG_REFERENCE */
    double squares; /* their squared differences from it, summed up */
    double block;   /* sum of the block under way */
    double up, down;
};

/* Of the two sequences that a reply can have. */
struct ag_session {
    struct ag_drift entropy, surprisal;
};

struct ag_sequence {
    uint64_t n;
    double total, max, ema, ema_min;
    double start; /* mean of the first AG_WINDOW numbers, or of those there are */
    double ring[AG_WINDOW], window;
    double window_min;  /* HUGE_VAL: no window yet */
    uint64_t window_at; /* where the window with the least mean begins */
    struct ag_drift drift;
    double drift_max;
    uint64_t drift_at; /* number at which the largest value was reached */
    int drift_up;      /* 1: towards larger numbers */
};

/* `drift` is NULL or what the session has so far. */
void ag_sequence_start(struct ag_sequence *s, const struct ag_drift *drift);
void ag_sequence_add(struct ag_sequence *s, double x); /* finite */

#endif
