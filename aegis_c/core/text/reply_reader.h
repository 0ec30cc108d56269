/* Reads model replies as they arrive, in pieces cut anywhere, in constant memory: one
 * JSON document, or the events of a text/event-stream with a document each.
 *
 * It finds the generated text and the tokens' log-probabilities of OpenAI's chat
 * completions, completions and responses and Anthropic's messages, plain and streamed,
 * and hands them on; everything else is skipped. It reads what it needs and does not
 * check that the rest is JSON (that is strict_json.h): where the structure breaks on
 * the way, the document counts as damaged and the next event begins afresh.
 *
 * NaN, Infinity and -Infinity are taken as numbers, since some servers write them. */
#ifndef AG_TEXT_REPLY_READER_H
#define AG_TEXT_REPLY_READER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AG_READER_DEPTH 16  /* levels on the way to what is read */
#define AG_READER_NAME 16   /* octets of a member's name that can matter */
#define AG_READER_SCALAR 64 /* octets of a number; a longer one is none */

/* One token or alternative: its identity, and its logprob when it has one. */
struct ag_read_token {
    uint64_t key;
    double logprob; /* natural, as sent: any double */
    bool has_logprob;
};

/* Where the finds go; none may call the reader. */
struct ag_reader_sink {
    void (*text)(void *to, const uint8_t *text, size_t n);        /* UTF-8 as sent */
    void (*choice)(void *to);                                     /* a choice begins */
    void (*index)(void *to, double index);                        /* its number */
    void (*alternative)(void *to, const struct ag_read_token *t); /* of the token */
    void (*token)(void *to, const struct ag_read_token *t);       /* ends it */
};

struct ag_reader_level {
    uint8_t node;
    bool is_object;
};

struct ag_reply_reader {
    const struct ag_reader_sink *sink; /* borrowed, as is `to` */
    void *to;
    uint64_t documents, damaged;
    bool events;          /* framed as text/event-stream */
    uint8_t line, line_n; /* state of the framing; octets of "data:" that matched */
    uint8_t state, node;  /* what comes next, and which value it is */
    uint8_t escape_n, name_n, scalar_n;
    bool name_long, fresh;
    uint16_t unit, high; /* \u under way; a high surrogate that waits for its low one */
    uint64_t ignored;    /* arrays and objects open inside of a value that is skipped */
    uint32_t depth;
    struct { /* [0]: the token, [1]: the alternative under way */
        uint64_t text_key, bytes_key;
        double logprob;
        bool has_logprob, has_bytes;
    } token[2];
    struct ag_reader_level levels[AG_READER_DEPTH];
    char name[AG_READER_NAME];
    char scalar[AG_READER_SCALAR];
};

void ag_reader_start(struct ag_reply_reader *r, bool events,
                     const struct ag_reader_sink *sink, void *to);
void ag_reader_feed(struct ag_reply_reader *r, const uint8_t *data, size_t n);
void ag_reader_end(struct ag_reply_reader *r); /* closes the last document */

/* A decimal number of JSON as a double, within 4e-15 of it, relative, and within 1e-15
 * for up to 22 digits without an exponent; NaN, Infinity and -Infinity as well. False:
 * no number. Needs no locale, which strtod depends on. */
bool ag_reader_number(const char *text, size_t n, double *value);

#endif
