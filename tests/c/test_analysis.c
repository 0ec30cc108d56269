// threads: none
// links: alloc_fault
/* The statistics of replies: by hand, in any cut, at the bounds of every table, and
 * when memory runs out. */
#include "alloc_fault.h"
#include "check.h"

#include <math.h>

#include "base/alloc.h"
#include "base/status.h"
#include "text/findings.h"
#include "text/vector_math.h"

#define NEAR(a, b, within) ASSERT(fabs((a) - (b)) <= (within))

static void
logarithms_and_powers(void)
{
    double x[AG_LANES * 2], p[AG_LANES * 2];
    struct ag_exp_sums sums;
    uint64_t seed = check_seed(1);
    for (int round = 0; round < 2000; round++) {
        double sum = 0.0, weighted = 0.0, logs = 0.0, given[AG_LANES * 2];
        size_t n = 1 + check_random(&seed) % (AG_LANES * 2);
        for (size_t i = 0; i < n; i++) {
            given[i] = x[i] = -(double)(check_random(&seed) % 1000000) / 20000.0;
            sum += exp(x[i]);
            weighted += exp(x[i]) * x[i];
            logs += x[i];
        }
        ag_exp_many(x, n, p, &sums);
        for (size_t i = 0; i < n; i++) {
            NEAR(p[i], exp(given[i]), 1e-11 * exp(given[i]));
            NEAR(ag_exp(given[i]), exp(given[i]), 1e-11 * exp(given[i]));
        }
        NEAR(sums.sum, sum, 1e-10);
        NEAR(sums.weighted, weighted, 1e-9);
        NEAR(sums.logs, logs, 1e-9);
        for (size_t i = 0; i < AG_LANES; i++) {
            given[i] = x[i] = ldexp(1.0 + (double)(check_random(&seed) % 4096) / 4096.0,
                                    (int)(check_random(&seed) % 600) - 500);
        }
        ag_log2_many(x, AG_LANES);
        for (size_t i = 0; i < AG_LANES; i++) {
            NEAR(x[i], log2(given[i]), 1e-12 * (1.0 + fabs(log2(given[i]))));
        }
    }
    ASSERT(ag_exp(0.0) == 1.0);
    ASSERT(ag_exp(AG_LOGPROB_LEAST) == 0.0);
}

/* A list in one pass, beside the same in plain doubles; nothing behind n is read. */
static void
lists_in_one_pass(void)
{
    enum { MOST = 40 };
    uint64_t seed = check_seed(3);
    for (int round = 0; round < 4000; round++) {
        size_t n = 1 + check_random(&seed) % MOST;
        double *from = malloc(n * sizeof(*from)); /* of that size: ASan sees more */
        uint64_t *key = malloc(n * sizeof(*key));
        double x[MOST + AG_LANES], p[MOST + AG_LANES];
        uint64_t keys[MOST + AG_LANES];
        uint16_t tags[MOST + AG_LANES];
        const struct ag_list_room room = {x, p, keys, tags};
        struct ag_list_sums sums;
        double sum = 0.0, weighted = 0.0, logs = 0.0, smallest = HUGE_VAL;
        bool usable = true;
        ASSERT_NOT_NULL(from);
        ASSERT_NOT_NULL(key);
        for (size_t i = 0; i < n; i++) {
            static const double odd[] = {NAN,      -INFINITY, INFINITY, 2e-3,
                                         -1e6,     -0.0,      1e-3,     -700.5,
                                         -16384.0, -1e-300,   0.0,      -27.7};
            uint64_t kind = check_random(&seed) % (round % 2 != 0 ? 40 : 400);
            from[i] = kind < sizeof(odd) / sizeof(odd[0])
                          ? odd[kind]
                          : -(double)(check_random(&seed) % 1000000) / 30000.0;
            key[i] = check_random(&seed);
            usable = usable && from[i] <= AG_LIST_MOST;
            double lifted = from[i] > AG_LOGPROB_LEAST ? from[i] : AG_LOGPROB_LEAST;
            double one = lifted >= -700.0 ? exp(lifted) : 0.0;
            sum += one;
            weighted += one * lifted;
            logs += lifted;
            smallest = one < smallest ? one : smallest;
        }
        ag_take_list(from, key, n, &room, &sums);
        ASSERT_EQ(sums.usable, usable);
        for (size_t i = 0; i < n; i++) {
            ASSERT_EQ_U(keys[i], key[i]);
            ASSERT_EQ_U(tags[i], (uint16_t)key[i]);
            if (from[i] <= AG_LIST_MOST) {
                ASSERT(x[i] ==
                       (from[i] > AG_LOGPROB_LEAST ? from[i] : AG_LOGPROB_LEAST));
                NEAR(p[i], x[i] >= -700.0 ? exp(x[i]) : 0.0, 1e-11 * exp(x[i]));
            }
        }
        if (usable) {
            NEAR(sums.exp.sum, sum, 1e-10 * (1.0 + sum));
            NEAR(sums.exp.weighted, weighted, 1e-9);
            NEAR(sums.exp.logs, logs, 1e-9 * (1.0 - logs));
            NEAR(sums.smallest, smallest, 1e-11 * smallest);
        }
        free(from);
        free(key);
    }
}

static void
tags_are_matched(void)
{
    uint16_t tags[AG_TAGS], queries[3];
    uint32_t masks[3];
    uint64_t seed = check_seed(2);
    for (int round = 0; round < 1000; round++) {
        for (size_t i = 0; i < AG_TAGS; i++) {
            tags[i] = (uint16_t)(check_random(&seed) % 20);
        }
        for (size_t i = 0; i < 3; i++) {
            queries[i] = (uint16_t)(check_random(&seed) % 20);
        }
        uint64_t matched = ag_match_tags(tags, queries, 3, masks);
        ASSERT_EQ_U(matched >> 3, 0);
        for (size_t i = 0; i < 3; i++) {
            ASSERT_EQ(matched >> i & 1, masks[i] != 0);
            for (size_t j = 0; j < AG_TAGS; j++) {
                ASSERT_EQ(masks[i] >> j & 1, tags[j] == queries[i]);
            }
        }
    }
}

static void
entropies_by_hand(void)
{
    struct ag_distribution d, e;
    ag_distribution_clear(&d);
    ag_distribution_add(&d, 1, log(0.5));
    ag_distribution_add(&d, 2, log(0.25));
    double drawn = log(0.125);
    ASSERT(ag_distribution_close(&d, 3, &drawn));
    struct ag_entropy found = ag_distribution_entropy(&d);
    NEAR(found.lower, 0.5 + 0.5 + 3 / 8.0 + 3 / 8.0, 1e-9);
    NEAR(found.tail, 0.125, 1e-10);

    /* Twice as many as are told apart: all count in the sums, in any order of calls. */
    double logprobs[2 * AG_TOP_MAX];
    struct ag_distance apart;
    uint64_t keys[2 * AG_TOP_MAX];
    for (size_t i = 0; i < 2 * AG_TOP_MAX; i++) {
        logprobs[i] = -log(2.0 * AG_TOP_MAX);
        keys[i] = ag_token_key((const uint8_t *)&i, sizeof(i));
    }
    ag_distribution_fill(&d, keys, logprobs, 2 * AG_TOP_MAX);
    ASSERT(ag_distribution_close(&d, 0, NULL));
    NEAR(ag_distribution_entropy(&d).lower, log2(2.0 * AG_TOP_MAX), 1e-6);
    ag_distribution_clear(&e);
    for (size_t i = 0; i < 2 * AG_TOP_MAX; i++) {
        ag_distribution_add(&e, keys[i], logprobs[i]);
    }
    ASSERT(ag_distribution_close(&e, keys[70], &logprobs[70]));
    apart = ag_divergence(&d, &e);
    NEAR(apart.kl, 0.0, 1e-9); /* the drawn one is among those beyond */
    ASSERT(apart.js >= 0.0 && apart.js <= 1.0);

    /* The same token all over: no read beyond, no more than a bit. */
    for (size_t i = 0; i < AG_TOP_MAX; i++) {
        keys[i] = 7;
    }
    ag_distribution_fill(&d, keys, logprobs, AG_TOP_MAX);
    ag_distribution_fill(&e, keys, logprobs, AG_TOP_MAX);
    ASSERT(ag_distribution_close(&d, 7, logprobs) &&
           ag_distribution_close(&e, 8, logprobs));
    apart = ag_divergence(&d, &e);
    ASSERT(isfinite(apart.kl) && apart.js >= 0.0 && apart.js <= 1.0);

    static const double bad[] = {NAN, INFINITY, 0.5, 2.0};
    for (size_t i = 0; i < 4; i++) {
        ag_distribution_fill(&d, keys, &bad[i], 1);
        ASSERT(!ag_distribution_close(&d, 0, NULL));
        ag_distribution_fill(&d, keys, logprobs, 1);
        ASSERT(!ag_distribution_close(&d, 99, &bad[i]));
    }
    ag_distribution_clear(&d);
    ASSERT(!ag_distribution_close(&d, 0, NULL));
}

static void
numbers(void)
{
    static const struct {
        const char *text;
        double value;
    } good[] = {
        {"0", 0.0},
        {"-0.0", 0.0},
        {"-1.5", -1.5},
        {"1e3", 1000.0},
        {"12E-1", 1.2},
        {"-0.00012345678901234567", -0.00012345678901234567},
        {"1234567890123456789012345", 1234567890123456789012345.0},
        {"1.7e308", 1.7e308},
        {"4.9e-324", 4.9e-324},
        {"1e-400", 0.0},
        {"1e99999999999999999999", HUGE_VAL},
        {"-1e400", -HUGE_VAL},
        {"Infinity", HUGE_VAL},
        {"-Infinity", -HUGE_VAL},
        {"0e999999", 0.0},
        {"2.2250738585072014e-308", 2.2250738585072014e-308},
    };
    static const char *const bad[] = {"",   "-",   ".",     "1.",   "1e",  "e5", "null",
                                      "1x", "--1", "0x10a", "true", "1e+", "nan"};
    double value = 0.0;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ASSERT(ag_reader_number(good[i].text, strlen(good[i].text), &value));
        if (value != good[i].value) {
            NEAR(value, good[i].value, 4e-15 * fabs(good[i].value) + 5e-324);
        }
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ASSERT(!ag_reader_number(bad[i], strlen(bad[i]), &value));
    }
    ASSERT(ag_reader_number("NaN", 3, &value) && isnan(value));
    uint64_t seed = check_seed(3);
    for (int round = 0; round < 5000; round++) {
        char text[64];
        double given = -(double)(check_random(&seed) % 1000000007) / 12345.678;
        int n = snprintf(text, sizeof(text), "%.17g", ldexp(given, -(round % 60)));
        ASSERT(ag_reader_number(text, (size_t)n, &value));
        NEAR(value, strtod(text, NULL), 1e-15 * fabs(value));
    }
}

static const char reply[] =
    "{\"id\":\"x\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
    "\"content\":"
    "\"Gr\\u00fc\xc3\x9f"
    "e \\ud83d\\ude00 \\ud800 \\\"so\\n\"},\"logprobs\":{\"content\":["
    "{\"token\":\"a\",\"bytes\":[97],\"logprob\":-0.5,\"top_logprobs\":["
    "{\"token\":\"a\",\"bytes\":[97],\"logprob\":-0.5},"
    "{\"token\":\"b\",\"logprob\":-Infinity,\"bytes\":null}]},"
    "{\"top_logprobs\":[{\"logprob\":-1e-2,\"token\":\"\\u0061\"}],\"logprob\":NaN,"
    "\"token\":\"q\"}]}}],\"usage\":{\"content\":[1,{\"text\":\"no\"}]}}";

static struct ag_analysis *
analysed(const char *text, size_t n, size_t step, bool events)
{
    struct ag_analysis *a = ag_analysis_new(events, NULL);
    ASSERT_NOT_NULL(a);
    for (size_t at = 0; at < n; at += step) {
        size_t size = n - at < step ? n - at : step;
        uint8_t *exact = malloc(size); /* so that a read beyond it shows */
        ASSERT_NOT_NULL(exact);
        memcpy(exact, text + at, size);
        ag_analysis_feed(a, exact, size);
        free(exact);
    }
    ag_analysis_end(a);
    return a;
}

static void
every_cut_is_the_same(void)
{
    size_t n = sizeof(reply) - 1;
    struct ag_analysis *whole = analysed(reply, n, n, false);
    ASSERT_EQ(whole->reader.damaged, 0);
    ASSERT_EQ(whole->tokens, 1); /* the second's drawn token has no probability */
    ASSERT_EQ(whole->skipped, 1);
    ASSERT_EQ(whole->impossible, 1);
    ASSERT_EQ(whole->words.words, 2); /* Gr\u00fc\u00dfe, so */
    ASSERT_EQ(whole->words.damaged, 0);
    ASSERT_EQ(whole->words.octets, 21);
    for (size_t step = 1; step < n; step++) {
        struct ag_analysis *parts = analysed(reply, n, step, false);
        parts->reader = whole->reader; /* has pointers to its own */
        ASSERT_EQ_MEM(parts, whole, sizeof(*whole));
        ag_free(parts);
    }
    ag_free(whole);
}

static void
streams_are_framed(void)
{
    static const char *const streams[] = {
        "data: {\"delta\":\"one\"}\n\ndata: {\"delta\":\" two\"}\n\ndata: [DONE]\n\n",
        "\xef: x\r\ndata:{\"delta\":\"one\"}\r\n\r\ndata: {\"delta\":\ndata: \" "
        "two\"}\n\n",
        "event: e\rdata: {\"delta\":\"one\"}\r\rdata: broken\r\rdata: {\"delta\":\" "
        "two\"}",
        ":\n\nid: 1\ndata: {\"delta\":\"one\"}\nretry: 1\n\ndata\n\ndata: "
        "{\"delta\":\" two\"}",
    };
    for (size_t i = 0; i < sizeof(streams) / sizeof(streams[0]); i++) {
        for (size_t step = 1; step < 20; step++) {
            struct ag_analysis *a =
                analysed(streams[i], strlen(streams[i]), step, true);
            ASSERT_EQ(a->words.words, 2);
            ASSERT_EQ(a->words.octets, 7);
            ASSERT_EQ(a->reader.damaged, i == 2);
            ASSERT_EQ(a->reader.documents, 2);
            ag_free(a);
        }
    }
}

static void
utf8_is_read_across_cuts(void)
{
    static const struct {
        const char *text;
        uint64_t damaged, characters;
    } cases[] = {
        {"a\xc3\xa4\xe4\xb8\x96\xf0\x9f\x98\x80", 0, 4},
        {"\xc3", 1, 1},
        {"\xc3(", 1, 2},
        {"\xe4\xb8(", 2, 3},
        {"\xf0\x9f\x98", 3, 3},
        {"\xff\xfe\x80", 3, 3},
        {"\xed\xa0\x80", 3, 3}, /* a surrogate */
        {"\xf4\x90\x80\x80", 4, 4},
        {"\xe0\x80\xaf", 3, 3}, /* overlong */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        for (size_t cut = 0; cut <= strlen(cases[i].text); cut++) {
            struct ag_words *w = calloc(1, sizeof(*w));
            ASSERT_NOT_NULL(w);
            ag_words_add(w, (const uint8_t *)cases[i].text, cut);
            ag_words_add(w, (const uint8_t *)cases[i].text + cut,
                         strlen(cases[i].text) - cut);
            ag_words_end(w);
            ASSERT_EQ(w->damaged, cases[i].damaged);
            ASSERT_EQ(w->characters, cases[i].characters);
            free(w);
        }
    }
}

static void
full_tables_stay_bounded(void)
{
    struct ag_analysis *a = ag_analysis_new(false, NULL);
    ASSERT_NOT_NULL(a);
    char word[16];
    for (int i = 0; i < 20000; i++) {
        int n = snprintf(word, sizeof(word), "w%d ", i);
        ag_analysis_text(a, (const uint8_t *)word, (size_t)n);
    }
    ag_analysis_end(a);
    ASSERT_EQ(a->words.words, 20000);
    double entropy = ag_words_entropy(&a->words);
    ASSERT(entropy > 10.0 && entropy <= log2(20000)); /* at most the true one */
    ASSERT(sizeof(*a) < 65536);
    ag_free(a);
}

/* Blocks of tokens are measured as single tokens are, whatever the block's end is. */
static void
blocks_are_as_single_tokens(void)
{
    enum { TOKENS = 37, K = 5 };
    double logprobs[TOKENS * K], drawn[TOKENS];
    uint64_t keys[TOKENS * K], drawn_keys[TOKENS], seed = check_seed(5);
    for (size_t i = 0; i < TOKENS; i++) {
        for (size_t j = 0; j < K; j++) {
            keys[i * K + j] = check_random(&seed) % 9 * 0x10001;
            logprobs[i * K + j] = -1.7 - (double)(check_random(&seed) % 1000) / 100.0;
        }
        drawn[i] = i % 7 == 3 ? NAN : -3.0;
        drawn_keys[i] = check_random(&seed) % 12 * 0x10001;
    }
    logprobs[11 * K] = 2.0; /* no distribution */
    struct ag_analysis *whole = ag_analysis_new(false, NULL);
    struct ag_analysis *parts = ag_analysis_new(false, NULL);
    ASSERT(whole != NULL && parts != NULL);
    ag_analysis_tokens(whole, drawn, drawn_keys, logprobs, keys, TOKENS, K);
    for (size_t i = 0; i < TOKENS; i++) {
        ag_analysis_tokens(parts, drawn + i, drawn_keys + i, logprobs + i * K,
                           keys + i * K, 1, K);
    }
    ASSERT(whole->skipped > 0 && whole->tokens + whole->skipped == TOKENS);
    ASSERT_EQ(whole->tokens, parts->tokens);
    ASSERT_EQ(whole->pairs, parts->pairs);
    ASSERT(whole->kl_total == parts->kl_total && whole->js_total == parts->js_total);
    ASSERT(whole->entropy.total == parts->entropy.total);
    ASSERT_EQ(whole->js_at, parts->js_at);
    ag_free(whole);
    ag_free(parts);
}

static void
memory_may_run_out(void)
{
    ag_test_fail_alloc_at(1);
    ASSERT_NULL(ag_analysis_new(false, NULL));
    ag_test_fail_alloc_at(1);
    ASSERT_NULL(ag_baselines_new());
    struct ag_analysis *a = analysed(reply, sizeof(reply) - 1, 7, false);
    struct ag_finding findings[AG_FINDINGS_MAX];
    long calls = ag_test_alloc_calls();
    ASSERT_EQ(ag_findings(a, NULL, 0, findings), 0);
    ASSERT_EQ(ag_test_alloc_calls(), calls); /* only the object itself is allocated */
    ag_free(a);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

static void
findings_say_where(void)
{
    struct ag_analysis *a = ag_analysis_new(false, NULL);
    struct ag_finding findings[AG_FINDINGS_MAX];
    ASSERT_NOT_NULL(a);
    const char *phrase = "so it went on, ";
    ag_analysis_text(a, (const uint8_t *)"First this. ", 12);
    for (int i = 0; i < 20; i++) {
        ag_analysis_text(a, (const uint8_t *)phrase, strlen(phrase));
    }
    ag_analysis_end(a);
    ASSERT_EQ(ag_findings(a, NULL, 0, findings), 1);
    ASSERT_EQ_STR(findings[0].kind, "loop");
    ASSERT_EQ_STR(findings[0].reason, "15 octets 20 times in a row from octet `at`");
    ASSERT(findings[0].value == 301.0 && findings[0].at == 11); /* the space before */
    ag_free(a);
}

int
main(void)
{
    for (int most = 0; most < AG_VECTOR_LEVELS; most++) {
        if (ag_vector_limit(most) != most) {
            fprintf(stderr, "    level %d: not on this processor\n", most);
            continue;
        }
        RUN(logarithms_and_powers);
        RUN(lists_in_one_pass);
        RUN(tags_are_matched);
        RUN(entropies_by_hand);
        RUN(blocks_are_as_single_tokens);
    }
    RUN(numbers);
    RUN(every_cut_is_the_same);
    RUN(streams_are_framed);
    RUN(utf8_is_read_across_cuts);
    RUN(full_tables_stay_bounded);
    RUN(findings_say_where);
    RUN(memory_may_run_out);
    return 0;
}
