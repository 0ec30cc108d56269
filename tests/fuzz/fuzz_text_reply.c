/* libFuzzer target: a reply, whole and as a stream. Any bytes are read in constant
 * memory, give finite figures, and the same ones however they are cut. The first octet
 * says how. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "text/findings.h"

#define MUST(condition)                                                                \
    do {                                                                               \
        if (!(condition)) {                                                            \
            abort();                                                                   \
        }                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct ag_analysis *
analysed(const uint8_t *data, size_t n, size_t step, bool events)
{
    struct ag_analysis *a = ag_analysis_new(events, NULL);
    MUST(a != NULL);
    for (size_t at = 0; at < n; at += step) {
        size_t size = n - at < step ? n - at : step;
        uint8_t *piece = malloc(size); /* exact, so that a read beyond it shows */
        MUST(piece != NULL);
        memcpy(piece, data + at, size);
        ag_analysis_feed(a, piece, size);
        free(piece);
    }
    ag_analysis_end(a);
    return a;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (n == 0) {
        return 0;
    }
    bool events = (data[0] & 1) != 0;
    size_t step = 1 + (data[0] >> 1) % 16;
    struct ag_analysis *whole = analysed(data + 1, n - 1, n, events);
    struct ag_analysis *parts = analysed(data + 1, n - 1, step, events);
    struct ag_finding findings[AG_FINDINGS_MAX];
    MUST(ag_findings(whole, NULL, 0, findings) <= AG_FINDINGS_MAX);
    MUST(isfinite(whole->entropy.total) && isfinite(whole->surprisal.total));
    MUST(isfinite(whole->kl_total) && isfinite(whole->js_total));
    MUST(whole->js_max >= 0.0 && whole->js_max <= 1.0);
    MUST(isfinite(ag_words_entropy(&whole->words)));
    MUST(whole->reader.damaged == parts->reader.damaged);
    MUST(whole->reader.documents == parts->reader.documents);
    parts->reader = whole->reader; /* has pointers, and what is left of scratch space */
    MUST(memcmp(whole, parts, sizeof(*whole)) == 0);
    ag_free(whole);
    ag_free(parts);
    return 0;
}
