/* What is ordinary for a model: the quantiles of its replies' statistics, from which
 * the thresholds of findings follow; and where each session's sequence stands. Bounded:
 * the model or session that was used longest ago makes room. Any thread (one mutex,
 * held for microseconds, never across a call out).
 *
 *     threshold = the default, until AG_BASELINE_READY replies were seen; then
 *                 quantile * margin, kept between the least and the greatest allowed
 *
 * The quantiles are medians and quartiles, and the span is bounded: faults in a quarter
 * of the replies do not make themselves ordinary. */
#ifndef AG_TEXT_BASELINES_H
#define AG_TEXT_BASELINES_H

#include <stdint.h>

#include "text/analysis.h"
#include "text/quantiles.h"

#define AG_BASELINE_MODELS 64
#define AG_BASELINE_SESSIONS 2048
#define AG_BASELINE_READY 200

/* name, text, quantile, margin, default, least, greatest */
#define AG_BASELINE_MAP(X)                                                             \
    X(ENTROPY, "entropy", 0.5, 2.5, 8.0, 3.0, 16.0)                                    \
    X(COLLAPSE, "collapse", 0.5, 0.1, 0.2, 0.02, 0.5)                                  \
    X(DRIFT, "drift", 0.75, 8.0, 24.0, 24.0, 60.0)                                     \
    X(REPETITION, "repetition", 0.5, 4.0, 0.4, 0.2, 0.7)                               \
    X(COMPRESSION, "compression", 0.5, 0.3, 0.2, 0.1, 0.3)                             \
    X(LOOP, "loop", 0.75, 3.0, 96.0, 80.0, 1024.0)

enum ag_baseline {
#define AG_BASELINE_ENUM(name, ...) AG_BASELINE_##name,
    AG_BASELINE_MAP(AG_BASELINE_ENUM)
#undef AG_BASELINE_ENUM
        AG_BASELINE_COUNT
};

struct ag_baselines;

struct ag_baselines *ag_baselines_new(void); /* NULL: out of memory */
void ag_baselines_free(struct ag_baselines *b);

/* The thresholds that hold for the model now, then counts the values; NAN: the reply
 * has none. `b` may be NULL: the defaults hold. */
void ag_baselines_judge(struct ag_baselines *b, uint64_t model,
                        const double values[AG_BASELINE_COUNT],
                        double thresholds[AG_BASELINE_COUNT]);

/* A quantile of what the model's replies had; NAN when there are none. */
double ag_baselines_quantile(struct ag_baselines *b, uint64_t model,
                             enum ag_baseline which, double part);

/* Where the session stands: all zero when it is new. The last one to put it wins. */
void ag_baselines_get_session(struct ag_baselines *b, uint64_t session,
                              struct ag_session *where);
void ag_baselines_put_session(struct ag_baselines *b, uint64_t session,
                              const struct ag_session *where);

const char *ag_baseline_name(enum ag_baseline which);

#endif
