#include "text/analysis.h"

#include <math.h>

#include "base/alloc.h"

#define INV_LN2 0x1.71547652b82fep+0

static inline double
larger(double a, double b)
{
    return a > b ? a : b;
}

/* A surprisal that is no number of bits is no part of the sequence. */
static void
add_surprisal(struct ag_analysis *a, double logprob)
{
    if (!(logprob <= AG_LOGPROB_MAX)) {
        a->impossible++;
        return;
    }
    if (!isfinite(logprob)) { /* -inf: drawn though impossible */
        a->impossible++;
        return;
    }
    double bits = logprob < 0.0 ? -logprob * INV_LN2 : 0.0;
    a->surprisals++;
    a->surprisal_total += bits;
    a->surprisal_max = larger(a->surprisal_max, bits);
    ag_sequence_add(&a->surprisal, bits);
}

static void
add_divergence(struct ag_analysis *a)
{
    double kl = 0.0, js = 0.0;
    ag_divergence(&a->lists[a->now], &a->lists[!a->now], &kl, &js);
    a->pairs++;
    a->kl_total += kl;
    a->kl_max = larger(a->kl_max, kl);
    a->js_total += js;
    if (js > a->js_max) {
        a->js_max = js;
        a->js_at = a->tokens - 1;
    }
}

/* The token whose list is a->lists[a->now], complete but for the drawn one. */
static void
end_token(struct ag_analysis *a, uint64_t key, const double *drawn)
{
    struct ag_distribution *list = &a->lists[a->now];
    struct ag_entropy entropy;
    if (drawn != NULL) {
        add_surprisal(a, *drawn);
    }
    if (list->listed == 0 && list->usable) {
        a->unlisted++;
        a->has_before = false;
    } else if (!ag_distribution_close(list, key, drawn, &entropy)) {
        a->skipped++;
        a->has_before = false;
    } else {
        a->tokens++;
        a->upper_total += entropy.upper;
        a->upper_max = larger(a->upper_max, entropy.upper);
        a->tail_total += entropy.tail;
        ag_sequence_add(&a->entropy, entropy.lower);
        if (a->has_before) {
            add_divergence(a);
        }
        a->has_before = true;
        a->now = !a->now;
    }
    ag_distribution_clear(&a->lists[a->now]);
}

/* --- what the reader finds --- */

static void
on_text(void *to, const uint8_t *text, size_t n)
{
    struct ag_analysis *a = to;
    if (a->elsewhere) {
        a->passed_over++;
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
        a->passed_over++;
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
    ag_words_start(&a->words);
    ag_repetition_start(&a->repetition);
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

void
ag_analysis_tokens(struct ag_analysis *a, const double *drawn,
                   const uint64_t *drawn_keys, const double *logprobs,
                   const uint64_t *keys, size_t n, size_t k)
{
    for (size_t i = 0; i < n; i++) {
        ag_distribution_fill(&a->lists[a->now], keys + i * k, logprobs + i * k, k);
        end_token(a, drawn != NULL ? drawn_keys[i] : 0,
                  drawn != NULL ? &drawn[i] : NULL);
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
