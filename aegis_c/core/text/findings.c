#include "text/findings.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

struct list {
    struct ag_finding *findings;
    size_t n;
};

__attribute__((format(printf, 6, 7))) static void
add(struct list *list, const char *kind, double value, double threshold, uint64_t at,
    const char *reason, ...)
{
    struct ag_finding *f = &list->findings[list->n++];
    va_list arguments;
    *f = (struct ag_finding){
        .kind = kind, .value = value, .threshold = threshold, .at = at};
    va_start(arguments, reason);
    (void)vsnprintf(f->reason, sizeof(f->reason), reason, arguments);
    va_end(arguments);
}

/* The loop that counts: one with letters, else one of signs that is long indeed. */
static struct ag_loop
loop_of(const struct ag_analysis *a)
{
    const struct ag_repetition *r = &a->repetition;
    return r->loop.octets == 0 && r->signs.octets >= AG_SIGNS_LEAST ? r->signs
                                                                    : r->loop;
}

static void
measure(const struct ag_analysis *a, double values[AG_BASELINE_COUNT])
{
    const struct ag_sequence *s = ag_analysis_sequence(a);
    const struct ag_words *w = &a->words;
    for (size_t i = 0; i < AG_BASELINE_COUNT; i++) {
        values[i] = NAN;
    }
    if (s->n > 0) {
        values[AG_BASELINE_ENTROPY] = s->total / (double)s->n;
        values[AG_BASELINE_DRIFT] = s->drift_max;
    }
    if (isfinite(s->window_min)) {
        values[AG_BASELINE_COLLAPSE] = s->window_min;
    }
    if (w->grams >= AG_GRAMS_LEAST) {
        values[AG_BASELINE_REPETITION] = (double)w->repeated / (double)w->grams;
    }
    if (w->octets >= AG_OCTETS_LEAST) {
        values[AG_BASELINE_COMPRESSION] = ag_repetition_compression(&a->repetition);
    }
    if (w->octets > 0) {
        values[AG_BASELINE_LOOP] = (double)loop_of(a).octets;
    }
}

static void
judge_sequence(const struct ag_analysis *a, const double *value,
               const double *threshold, struct list *list)
{
    const struct ag_sequence *s = ag_analysis_sequence(a);
    const char *what = a->tokens > 0 ? "entropy" : "surprisal";
    enum ag_baseline i = AG_BASELINE_ENTROPY;
    if (s->n >= AG_WINDOW && value[i] > threshold[i]) {
        add(list, ag_baseline_name(i), value[i], threshold[i], 0,
            "mean %s of %" PRIu64 " tokens, in bits", what, s->n);
    }
    i = AG_BASELINE_COLLAPSE;
    if (value[i] < threshold[i] && value[i] < AG_COLLAPSE_RATIO * s->start) {
        add(list, ag_baseline_name(i), value[i], threshold[i], s->window_at,
            "mean %s fell from %.3g to %.3g bits in %d tokens from token `at`", what,
            s->start, value[i], AG_WINDOW);
    }
    i = AG_BASELINE_DRIFT;
    if (value[i] > threshold[i]) {
        add(list, ag_baseline_name(i), value[i], threshold[i], s->drift_at,
            "%s %s than at the session's start, up to token `at`", what,
            s->drift_up ? "larger" : "smaller");
    }
}

static void
judge_text(const struct ag_analysis *a, const double *value, const double *threshold,
           struct list *list)
{
    const struct ag_words *w = &a->words;
    enum ag_baseline i = AG_BASELINE_REPETITION;
    if (value[i] > threshold[i]) {
        add(list, ag_baseline_name(i), value[i], threshold[i], 0,
            "share of %" PRIu64 " word 4-grams that came before", w->grams);
    }
    i = AG_BASELINE_COMPRESSION;
    if (value[i] < threshold[i]) {
        add(list, ag_baseline_name(i), value[i], threshold[i], 0,
            "compressed share of %" PRIu64 " octets of text", w->octets);
    }
    i = AG_BASELINE_LOOP;
    if (value[i] > threshold[i]) {
        struct ag_loop loop = loop_of(a);
        add(list, ag_baseline_name(i), value[i], threshold[i], loop.at,
            "%" PRIu32 " octets %" PRIu64 " times in a row from octet `at`",
            loop.period, loop.octets / loop.period);
    }
    if (w->switches > 0) {
        add(list, "script", w->switches, 0.0, w->switch_at,
            "script changes from %s to %s at octet `at`",
            ag_script_name(w->switch_from), ag_script_name(w->switch_to));
    }
}

size_t
ag_findings(const struct ag_analysis *a, struct ag_baselines *b, uint64_t model,
            struct ag_finding findings[AG_FINDINGS_MAX])
{
    double values[AG_BASELINE_COUNT], thresholds[AG_BASELINE_COUNT];
    struct list list = {findings, 0};
    measure(a, values);
    ag_baselines_judge(b, model, values, thresholds);
    judge_sequence(a, values, thresholds, &list);
    judge_text(a, values, thresholds, &list);
    return list.n;
}
