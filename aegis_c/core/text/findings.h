/* From the statistics of a reply to its findings: what is above (or below) its
 * threshold, and where. */
#ifndef AG_TEXT_FINDINGS_H
#define AG_TEXT_FINDINGS_H

#include <stdint.h>

#include "text/analysis.h"
#include "text/baselines.h"

#define AG_FINDINGS_MAX 8
#define AG_GRAMS_LEAST 100   /* 4-grams from which their repeated share counts */
#define AG_OCTETS_LEAST 1024 /* of text from which its compression does */
#define AG_SIGNS_LEAST 4096  /* octets of a loop without letters: rulers are shorter */
#define AG_COLLAPSE_RATIO 0.25 /* of the entropy before */

struct ag_finding {
    const char *kind; /* static: a name of AG_BASELINE_MAP, or "script" */
    char reason[96];  /* one sentence, ASCII, no text of the reply */
    double value, threshold;
    uint64_t at; /* token, or octet of the text: reason says which */
};

/* After ag_analysis_end. `b` may be NULL: the defaults hold. Counts the reply in the
 * model's baseline. Returns how many of `findings` were filled. */
size_t ag_findings(const struct ag_analysis *a, struct ag_baselines *b, uint64_t model,
                   struct ag_finding findings[AG_FINDINGS_MAX]);

#endif
