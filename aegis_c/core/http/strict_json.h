/* The strict JSON scan: is this body one JSON object that every parser reads the same
 * way?
 *
 * What a gateway judges has to be what the upstream reads, and parsers differ on more
 * than the grammar. So of RFC 8259 this accepts only: one object; UTF-8 without a byte
 * order mark; no member twice in one object, escapes decoded before the comparison; no
 * lone surrogate; no number beyond the range of a double; nesting up to a limit; no
 * member that equals a governed name of its place (json_rules.h) under case folding but
 * is not that name octet for octet.
 *
 * One pass, in time linear in the size whatever the input: the names of an object are
 * compared with each other up to sixteen, then held in a hash table with a secret key.
 * Nothing is allocated for an ordinary body; no input makes it take more than about ten
 * times the body's own size. */
#ifndef AG_HTTP_STRICT_JSON_H
#define AG_HTTP_STRICT_JSON_H

#include <stddef.h>
#include <stdint.h>

#include "http/json_rules.h"

#define AG_JSON_DEPTH_MAX 512
#define AG_JSON_PATH_MAX 256 /* octets of a member's path in a fault, NUL included */

/* name, code as callers know it */
#define AG_JSON_FAULT_MAP(X)                                                           \
    X(AG_JSON_SYNTAX, "invalid_json")                                                  \
    X(AG_JSON_UTF8, "invalid_utf8")                                                    \
    X(AG_JSON_DUPLICATE, "duplicate_member")                                           \
    X(AG_JSON_AMBIGUOUS, "ambiguous_member")                                           \
    X(AG_JSON_DEEP, "json_too_deep")

enum ag_json_code {
#define AG_JSON_ENUM(name, code) name,
    AG_JSON_FAULT_MAP(AG_JSON_ENUM)
#undef AG_JSON_ENUM
};

struct ag_json_fault {
    enum ag_json_code code;
    size_t offset;     /* octet of the body at which it shows */
    const char *what;  /* static: what was wrong, as part of a sentence */
    char name[72];     /* the member, cut at 64 octets; "" when none is to blame */
    char governed[72]; /* AG_JSON_AMBIGUOUS: the name it stands beside */
    /* Where: "messages[0].role"; of AG_JSON_AMBIGUOUS with the governed name. */
    char path[AG_JSON_PATH_MAX];
};

/* Any thread; `rules` may be shared, `max_depth` is at most AG_JSON_DEPTH_MAX. AG_OK;
 * AG_EVERIFY and a filled `fault`, the first by position; AG_ENOMEM. */
int ag_json_scan(const struct ag_json_rules *rules, const uint8_t *body, size_t n,
                 size_t max_depth, struct ag_json_fault *fault);

/* "duplicate_member" of AG_JSON_DUPLICATE. */
const char *ag_json_code_text(enum ag_json_code code);

#endif
