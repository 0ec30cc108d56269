#include "text/analysis.h"

#include <math.h>

#include "base/alloc.h"

#define INV_LN2 0x1.71547652b82fep+0

enum { BLOCK = 8 };

static inline double
larger(double a, double b)
{
    return a > b ? a : b;
}

/* `listed`: the token has a list, whose entropy says more than this in the sequence. */
static void
add_surprisal(struct ag_analysis *a, double logprob, bool listed)
{
    if (!(logprob <= AG_LOGPROB_MAX) || !isfinite(logprob)) { /* -inf was not drawn */
        a->impossible++;
        return;
    }
    double bits = logprob < 0.0 ? -logprob * INV_LN2 : 0.0;
    a->surprisals++;
    a->surprisal_total += bits;
    a->surprisal_max = larger(a->surprisal_max, bits);
    if (!listed) {
        ag_sequence_add(&a->surprisal, bits);
    }
}

/* A usable list: its entropy, and how far it is from the one before, if there is one.
 */
static void
add_list(struct ag_analysis *a, const struct ag_distance *found, bool paired)
{
    if (paired) {
        a->pairs++;
        a->kl_total += found->kl;
        a->kl_max = larger(a->kl_max, found->kl);
        a->js_total += found->js;
        if (found->js > a->js_max) {
            a->js_max = found->js;
            a->js_at = a->tokens;
        }
    }
    a->tokens++;
    a->upper_total += found->entropy.upper;
    a->upper_max = larger(a->upper_max, found->entropy.upper);
    a->tail_total += found->entropy.tail;
    ag_sequence_add(&a->entropy, found->entropy.lower);
}

/* The token whose list is a->lists[a->now], complete but for the drawn one. */
static void
end_token(struct ag_analysis *a, uint64_t key, const double *drawn)
{
    struct ag_distribution *list = &a->lists[a->now];
    bool listed = list->listed > 0 || !list->usable;
    if (drawn != NULL) {
        add_surprisal(a, *drawn, listed);
    }
    if (listed && ag_distribution_close(list, key, drawn)) {
        const struct ag_distribution *before =
            a->has_before ? &a->lists[!a->now] : NULL;
        struct ag_distance found = ag_divergence(list, before);
        add_list(a, &found, a->has_before);
        a->has_before = true;
        a->now = !a->now;
    } else {
        a->skipped += listed;
        a->unlisted += !listed;
        a->has_before = false;
    }
    ag_distribution_clear(&a->lists[a->now]);
}

/* --- what the reader finds --- */

static void
on_text(void *to, const uint8_t *text, size_t n)
{
    struct ag_analysis *a = to;
    if (a->elsewhere) {
        a->other_octets += n;
        return;
    }
    ag_analysis_text(a, text, n);
}

/* Choices of one document follow each other; those of a stream come in turns, and only
 * the first is read there. */
static void
on_choice(void *to)
{
    struct ag_analysis *a = to;
    if (!a->reader.events) {
        a->choices++;
        a->has_before = false;
    } else if (a->choices == 0) {
        a->choices = 1;
    }
    a->elsewhere = false;
}

static void
on_index(void *to, double index)
{
    struct ag_analysis *a = to;
    if (!a->reader.events || !(index >= 0.0 && index < 1e6)) {
        return;
    }
    a->elsewhere = index >= 1.0;
    if (index + 1.0 > (double)a->choices) {
        a->choices = (uint64_t)index + 1;
    }
}

static void
on_alternative(void *to, const struct ag_read_token *t)
{
    struct ag_analysis *a = to;
    if (!a->elsewhere) {
        ag_distribution_add(&a->lists[a->now], t->key,
                            t->has_logprob ? t->logprob : NAN);
    }
}

static void
on_token(void *to, const struct ag_read_token *t)
{
    struct ag_analysis *a = to;
    if (a->elsewhere) {
        a->other_tokens++;
        return;
    }
    end_token(a, t->key, t->has_logprob ? &t->logprob : NULL);
}

static const struct ag_reader_sink sink = {
    .text = on_text,
    .choice = on_choice,
    .index = on_index,
    .alternative = on_alternative,
    .token = on_token,
};

/* --- from outside --- */

struct ag_analysis *
ag_analysis_new(bool events, const struct ag_session *session)
{
    struct ag_analysis *a = ag_calloc(1, sizeof(*a));
    if (a == NULL) {
        return NULL;
    }
    ag_reader_start(&a->reader, events, &sink, a);
    ag_distribution_clear(&a->lists[0]);
    ag_distribution_clear(&a->lists[1]);
    ag_sequence_start(&a->entropy, session != NULL ? &session->entropy : NULL);
    ag_sequence_start(&a->surprisal, session != NULL ? &session->surprisal : NULL);
    return a;
}

void
ag_analysis_feed(struct ag_analysis *a, const uint8_t *data, size_t n)
{
    a->octets += n;
    ag_reader_feed(&a->reader, data, n);
}

void
ag_analysis_end(struct ag_analysis *a)
{
    ag_reader_end(&a->reader);
    ag_words_end(&a->words);
}

/* A block of tokens, each step for all of them before the next step: what one token's
 * step waits for, another's can do meanwhile. */
static void
add_block(struct ag_analysis *a, const double *drawn, const uint64_t *drawn_keys,
          const double *logprobs, const uint64_t *keys, size_t n, size_t k)
{
    struct ag_distribution lists[BLOCK];
    struct ag_comparison comparisons[BLOCK];
    bool usable[BLOCK];
    for (size_t i = 0; i < n; i++) {
        ag_distribution_fill(&lists[i], keys + i * k, logprobs + i * k, k);
    }
    for (size_t i = 0; i < n; i++) {
        usable[i] = ag_distribution_close(&lists[i], drawn_keys[i], &drawn[i]);
    }
    const struct ag_distribution *before = a->has_before ? &a->lists[!a->now] : NULL;
    for (size_t i = 0; i < n; i++) {
        if (usable[i]) {
            ag_comparison_begin(&comparisons[i], &lists[i], before);
        }
        before = usable[i] ? &lists[i] : NULL;
    }
    for (size_t i = 0; i < n; i++) {
        if (usable[i]) {
            ag_log2_many(comparisons[i].logs, comparisons[i].count);
        }
    }
    for (size_t i = 0; i < n; i++) {
        add_surprisal(a, drawn[i], true);
        a->skipped += !usable[i];
        if (usable[i]) {
            struct ag_distance found = ag_comparison_end(&comparisons[i]);
            add_list(a, &found, comparisons[i].before != NULL);
        }
    }
    a->has_before = usable[n - 1];
    if (a->has_before) {
        a->lists[!a->now] = lists[n - 1];
    }
}

void
ag_analysis_tokens(struct ag_analysis *a, const double *drawn,
                   const uint64_t *drawn_keys, const double *logprobs,
                   const uint64_t *keys, size_t n, size_t k)
{
    for (size_t i = 0; i < n && k == 0; i++) {
        end_token(a, drawn_keys[i], &drawn[i]);
    }
    for (size_t i = 0; i < n && k > 0; i += BLOCK) {
        add_block(a, drawn + i, drawn_keys + i, logprobs + i * k, keys + i * k,
                  n - i < BLOCK ? n - i : BLOCK, k);
    }
}

void
ag_analysis_text(struct ag_analysis *a, const uint8_t *text, size_t n)
{
    ag_words_add(&a->words, text, n);
    ag_repetition_add(&a->repetition, text, n);
}

const struct ag_sequence *
ag_analysis_sequence(const struct ag_analysis *a)
{
    return a->tokens > 0 ? &a->entropy : &a->surprisal;
}

struct ag_session
ag_analysis_session(const struct ag_analysis *a)
{
    return (struct ag_session){a->entropy.drift, a->surprisal.drift};
}
