#include "log/entry_schema.h"

#include <string.h>

#include "base/bytes.h"
#include "base/utf8.h"
#include "hash/sha256.h"
#include "log/entry.h"

#define DEPTH_MAX 12     /* objects and arrays inside each other */
#define NAMES_MAX 48     /* members of one object */
#define NUMBER_MAX 32    /* characters of a number */
#define TEXT_MAX 256     /* octets of a capped text */
#define SUFFIX "_sha256" /* of a member that holds the hash of a capped one */

/* ---- the rules ---- */

enum rule {
    ANY,
    ONE,    /* the number 1 */
    KIND,   /* one of `kinds` */
    STATUS, /* depends on the kind: judged at the end */
    TEXT,   /* a text of at most 256 octets */
    COUNT,  /* an integer >= 0 */
    OBJECT, /* an object with any members */
    MODEL,  /* an object by model_rules */
    BODY,   /* an object by body_rules, all of them there */
    SHARDS, /* an object by shards_rules, all of them there */
    UUID,   /* the last four: a text that matches a pattern */
    TIME,
    DIGEST,
    COMMITMENT,
};

struct member {
    const char *name;
    uint8_t length;
    uint8_t rule;
};
#define MEMBER(name, rule) {name, sizeof(name) - 1, rule}

/* In the order in which entries are written: the next name is mostly the next rule. */
static const struct member entry_rules[] = {
    MEMBER("v", ONE),           MEMBER("kind", KIND),        MEMBER("id", UUID),
    MEMBER("client_id", TEXT),  MEMBER("of", COUNT),         MEMBER("event", TEXT),
    MEMBER("session", TEXT),    MEMBER("time", TIME),        MEMBER("tenant", TEXT),
    MEMBER("key", TEXT),        MEMBER("endpoint", TEXT),    MEMBER("model", MODEL),
    MEMBER("provider", TEXT),   MEMBER("status", STATUS),    MEMBER("usage", OBJECT),
    MEMBER("policy", DIGEST),   MEMBER("firewall", OBJECT),  MEMBER("limits", OBJECT),
    MEMBER("timing", OBJECT),   MEMBER("events", COUNT),     MEMBER("reason", TEXT),
    MEMBER("stage", TEXT),      MEMBER("suppressed", COUNT), MEMBER("size", COUNT),
    MEMBER("root", COMMITMENT), MEMBER("shards", SHARDS),    MEMBER("analysis", OBJECT),
    MEMBER("request", BODY),    MEMBER("response", BODY),
};
#define RULES(table) (sizeof(table) / sizeof((table)[0]))
/* Bits of entry_rules, for what must be there. */
enum {
    HAS_V = 1u << 0,
    HAS_KIND = 1u << 1,
    HAS_ID = 1u << 2,
    HAS_OF = 1u << 4,
    HAS_EVENT = 1u << 5,
    HAS_TIME = 1u << 7,
    HAS_STATUS = 1u << 13,
    HAS_REASON = 1u << 20,
    HAS_STAGE = 1u << 21,
    HAS_ANALYSIS = 1u << 26,
    HAS_ALWAYS = HAS_V | HAS_KIND | HAS_ID | HAS_TIME,
};

static const struct member model_rules[] = {
    MEMBER("asked", TEXT),
    MEMBER("answered", TEXT),
};
static const struct member shards_rules[] = {
    MEMBER("served", ANY),
    MEMBER("closed", ANY),
};
static const struct member body_rules[] = {
    MEMBER("bytes", COUNT),
    MEMBER("commitment", COMMITMENT),
};
#define HAS_BOTH 3u /* members of one of the last two */

static const struct {
    const char *name;
    uint32_t required;
} kinds[] = {
    {"call", HAS_STATUS},
    {"intent", 0},
    {"settle", HAS_STATUS},
    {"rejection", HAS_STATUS | HAS_REASON | HAS_STAGE},
    {"analysis", HAS_OF | HAS_ANALYSIS},
    {"admin", HAS_EVENT},
};
#define SETTLE 2u

static const char *const endings[] = {
    "done",     "client_gone",    "upstream_error", "timeout",
    "shutdown", "internal_error", "abandoned",
};

/* What a character may stand for in a pattern. */
enum { DIGIT = 1, HEX = 2, BASE64 = 4, DASH = 8, COLON = 16, DOT = 32, EQUALS = 64 };
enum { LETTER_T = 128, LETTER_Z = 256 };
#define FOUR(c, v) [c] = (v), [(c) + 1] = (v), [(c) + 2] = (v), [(c) + 3] = (v)
#define EACH_DIGIT (DIGIT | HEX | BASE64)
static const uint16_t classes[256] = {
    FOUR('0', EACH_DIGIT),
    FOUR('4', EACH_DIGIT),
    ['8'] = EACH_DIGIT,
    ['9'] = EACH_DIGIT,
    FOUR('a', HEX | BASE64),
    ['e'] = HEX | BASE64,
    ['f'] = HEX | BASE64,
    FOUR('g', BASE64),
    FOUR('k', BASE64),
    FOUR('o', BASE64),
    FOUR('s', BASE64),
    FOUR('w', BASE64),
    FOUR('A', BASE64),
    FOUR('E', BASE64),
    FOUR('I', BASE64),
    FOUR('M', BASE64),
    ['Q'] = BASE64,
    ['R'] = BASE64,
    ['S'] = BASE64,
    ['U'] = BASE64,
    ['V'] = BASE64,
    ['W'] = BASE64,
    ['X'] = BASE64,
    ['Y'] = BASE64,
    ['T'] = BASE64 | LETTER_T,
    ['Z'] = BASE64 | LETTER_Z,
    ['+'] = BASE64,
    ['/'] = BASE64,
    ['-'] = DASH,
    [':'] = COLON,
    ['.'] = DOT,
    ['='] = EQUALS,
};

struct run {
    uint16_t class;
    uint8_t count; /* 0: the end */
};
static const struct run uuid_runs[] = {
    {HEX, 8},  {DASH, 1}, {HEX, 4},  {DASH, 1}, {HEX, 4},
    {DASH, 1}, {HEX, 4},  {DASH, 1}, {HEX, 12}, {0, 0},
};
static const struct run time_runs[] = {
    {DIGIT, 4},    {DASH, 1},  {DIGIT, 2}, {DASH, 1},     {DIGIT, 2},
    {LETTER_T, 1}, {DIGIT, 2}, {COLON, 1}, {DIGIT, 2},    {COLON, 1},
    {DIGIT, 2},    {DOT, 1},   {DIGIT, 6}, {LETTER_Z, 1}, {0, 0},
};
static const struct run digest_runs[] = {{HEX, 64}, {0, 0}};
static const struct run commitment_runs[] = {{BASE64, 43}, {EQUALS, 1}, {0, 0}};

static const struct {
    const struct run *runs;
    size_t length;
} patterns[] = {
    /* by rule - UUID */
    {uuid_runs, 36},
    {time_runs, 27},
    {digest_runs, 64},
    {commitment_runs, 44},
};

/* ---- tokens ---- */

struct walk {
    const uint8_t *at, *end;
    unsigned depth;
    size_t kind;           /* index in kinds */
    struct ag_span status; /* the value's characters; size 0: not seen */
    bool status_is_text;
};

struct text {
    struct ag_span raw; /* between the quotes */
    bool escaped;       /* holds a backslash */
};

static bool
is_digit(uint8_t c)
{
    return c >= '0' && c <= '9';
}

static bool
is_space(uint8_t c)
{
    return c <= ' ' && (c == ' ' || c == '\n' || c == '\t' || c == '\r');
}

static void
skip_space(struct walk *walk)
{
    while (walk->at < walk->end && is_space(*walk->at)) {
        walk->at++;
    }
}

static bool
take(struct walk *walk, uint8_t c)
{
    if (walk->at == walk->end || *walk->at != c) {
        return false;
    }
    walk->at++;
    return true;
}

#define HIGHS 0x8080808080808080u /* the high bit of each of eight octets */

/* Where the first quote, backslash or control character stands in the eight octets at
 * `from`; 8: nowhere. Collects the octets in *any. */
static unsigned
first_special(const uint8_t *from, uint64_t *any)
{
    const uint64_t ones = 0x0101010101010101u;
    uint64_t eight = ag_get_u64le(from);
    uint64_t quote = eight ^ (ones * '"'), slash = eight ^ (ones * '\\');
    /* the high bit of each octet sought; a borrow can set others, but only above it */
    uint64_t found = (((quote - ones) & ~quote) | ((slash - ones) & ~slash) |
                      ((eight - ones * 0x20) & ~eight)) &
                     HIGHS;
    *any |= eight;
    return found != 0 ? (unsigned)__builtin_ctzll(found) / 8 : 8;
}

static bool
is_hex(uint8_t c)
{
    return is_digit(c) || (c >= 'A' && (classes[c | 0x20] & HEX) != 0);
}

/* Behind a backslash. */
static bool
take_escape(struct walk *walk)
{
    if (walk->at == walk->end) {
        return false;
    }
    uint8_t c = *walk->at++;
    if (c != 'u') {
        return c != 0 && strchr("\"\\/bfnrt", c) != NULL;
    }
    for (int i = 0; i < 4; i++, walk->at++) {
        if (walk->at == walk->end || !is_hex(*walk->at)) {
            return false;
        }
    }
    return true;
}

static bool
take_text(struct walk *walk, struct text *text)
{
    if (!take(walk, '"')) {
        return false;
    }
    const uint8_t *start = walk->at;
    uint64_t any = 0;
    text->escaped = false;
    for (;;) {
        unsigned skip = 8;
        while (skip == 8 && walk->end - walk->at >= 8) {
            skip = first_special(walk->at, &any);
            walk->at += skip;
        }
        while (walk->at < walk->end && *walk->at != '"' && *walk->at != '\\' &&
               *walk->at >= 0x20) {
            any |= (uint64_t)*walk->at++;
        }
        if (walk->at == walk->end || *walk->at < 0x20) {
            return false;
        }
        if (*walk->at++ == '"') {
            text->raw.data = start;
            text->raw.size = (size_t)(walk->at - 1 - start);
            return (any & HIGHS) == 0 ||
                   ag_utf8_valid_prefix(start, text->raw.size) == text->raw.size;
        }
        text->escaped = true;
        if (!take_escape(walk)) {
            return false;
        }
    }
}

static size_t
take_digits(struct walk *walk)
{
    const uint8_t *start = walk->at;
    while (walk->at < walk->end && is_digit(*walk->at)) {
        walk->at++;
    }
    return (size_t)(walk->at - start);
}

/* A number; *count tells whether it is an integer without a sign. */
static bool
take_number(struct walk *walk, struct ag_span *raw, bool *count)
{
    const uint8_t *start = walk->at;
    *count = !take(walk, '-');
    const uint8_t *first = walk->at;
    size_t digits = take_digits(walk);
    if (digits == 0 || (digits > 1 && *first == '0')) {
        return false;
    }
    if (take(walk, '.')) {
        *count = false;
        if (take_digits(walk) == 0) {
            return false;
        }
    }
    if (walk->at < walk->end && (*walk->at | 0x20) == 'e') {
        *count = false;
        walk->at++;
        if (!take(walk, '+')) {
            (void)take(walk, '-');
        }
        if (take_digits(walk) == 0) {
            return false;
        }
    }
    raw->data = start;
    raw->size = (size_t)(walk->at - start);
    return raw->size <= NUMBER_MAX;
}

static bool
take_word(struct walk *walk, const char *word, size_t n)
{
    if ((size_t)(walk->end - walk->at) < n || memcmp(walk->at, word, n) != 0) {
        return false;
    }
    walk->at += n;
    return true;
}

/* ---- values ---- */

static bool take_object(struct walk *walk, const struct member *rules, size_t count,
                        uint32_t *seen);

static bool take_value(struct walk *walk);

static bool
take_array(struct walk *walk)
{
    if (++walk->depth > DEPTH_MAX) {
        return false;
    }
    walk->at++;
    skip_space(walk);
    if (!take(walk, ']')) {
        do {
            if (!take_value(walk)) {
                return false;
            }
            skip_space(walk);
        } while (take(walk, ','));
        if (!take(walk, ']')) {
            return false;
        }
    }
    walk->depth--;
    return true;
}

/* Any value. */
static bool
take_value(struct walk *walk)
{
    struct text text;
    struct ag_span number;
    uint32_t seen;
    bool count;
    skip_space(walk);
    if (walk->at == walk->end) {
        return false;
    }
    switch (*walk->at) {
    case '"':
        return take_text(walk, &text);
    case '{':
        return take_object(walk, NULL, 0, &seen);
    case '[':
        return take_array(walk);
    case 't':
        return take_word(walk, "true", 4);
    case 'f':
        return take_word(walk, "false", 5);
    case 'n':
        return take_word(walk, "null", 4);
    default:
        return take_number(walk, &number, &count);
    }
}

static bool
take_pattern(struct walk *walk, size_t pattern)
{
    if (!take(walk, '"') || (size_t)(walk->end - walk->at) < patterns[pattern].length) {
        return false;
    }
    for (const struct run *run = patterns[pattern].runs; run->count > 0; run++) {
        uint16_t common = run->class;
        for (const uint8_t *end = walk->at + run->count; walk->at < end; walk->at++) {
            common &= classes[*walk->at];
        }
        if (common == 0) {
            return false;
        }
    }
    return take(walk, '"');
}

static bool
equals(const struct ag_span *raw, const char *text)
{
    return raw->size == strlen(text) && memcmp(raw->data, text, raw->size) == 0;
}

static bool
take_kind(struct walk *walk, const struct ag_span *raw)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (equals(raw, kinds[i].name)) {
            walk->kind = i;
            return true;
        }
    }
    return false;
}

static bool
take_status(struct walk *walk)
{
    struct text text;
    bool count;
    walk->status_is_text = walk->at < walk->end && *walk->at == '"';
    if (walk->status_is_text) {
        bool good = take_text(walk, &text);
        walk->status = text.raw;
        return good && !text.escaped;
    }
    return take_number(walk, &walk->status, &count) && count;
}

/* A value that must keep `rule`. */
static bool
take_ruled(struct walk *walk, enum rule rule)
{
    struct text text;
    struct ag_span raw;
    uint32_t seen = 0;
    bool count;
    skip_space(walk);
    switch (rule) {
    case ANY:
        return take_value(walk);
    case ONE:
        return take_number(walk, &raw, &count) && raw.size == 1 && *raw.data == '1';
    case COUNT:
        return take_number(walk, &raw, &count) && count;
    case STATUS:
        return take_status(walk);
    case OBJECT:
        return take_object(walk, NULL, 0, &seen);
    case MODEL:
        return take_object(walk, model_rules, RULES(model_rules), &seen);
    case BODY:
        return take_object(walk, body_rules, RULES(body_rules), &seen) &&
               seen == HAS_BOTH;
    case SHARDS:
        return take_object(walk, shards_rules, RULES(shards_rules), &seen) &&
               seen == HAS_BOTH;
    case TEXT: /* an escape is longer than what it stands for */
        return take_text(walk, &text) && text.raw.size <= TEXT_MAX;
    case KIND:
        return take_text(walk, &text) && take_kind(walk, &text.raw);
    case UUID:
    case TIME:
    case DIGEST:
    case COMMITMENT:
        return take_pattern(walk, rule - UUID);
    }
    return false;
}

/* ---- objects ---- */

/* The names of one object so far that have no rule. */
struct names {
    uint64_t filter; /* a bit for each; when it is not set, the name is new */
    size_t count;
    struct ag_span list[NAMES_MAX];
};

static bool
add_name(struct names *names, const struct ag_span *name)
{
    uint8_t first = name->size > 0 ? name->data[0] : 0;
    uint8_t last = name->size > 0 ? name->data[name->size - 1] : 0;
    uint64_t bit = (uint64_t)1 << ((name->size * 7 + first * 31u + last) & 63);
    if ((names->filter & bit) != 0) {
        for (size_t i = 0; i < names->count; i++) {
            if (names->list[i].size == name->size &&
                memcmp(names->list[i].data, name->data, name->size) == 0) {
                return false;
            }
        }
    }
    if (names->count == NAMES_MAX) {
        return false;
    }
    names->filter |= bit;
    names->list[names->count++] = *name;
    return true;
}

/* Names are short: a call of memcmp would take longer. */
static inline bool
same(const char *a, const uint8_t *b, size_t n)
{
    size_t i = 0;
    while (i < n && (uint8_t)a[i] == b[i]) {
        i++;
    }
    return i == n;
}

/* Index of the rule for a name, looked for from `next` on, around; `count`: none. */
static size_t
find_rule(const struct member *rules, size_t count, size_t next,
          const struct ag_span *name)
{
    for (size_t tried = 0; tried < count; tried++, next++) {
        next = next == count ? 0 : next;
        if (rules[next].length == name->size &&
            same(rules[next].name, name->data, name->size)) {
            return next;
        }
    }
    return count;
}

static bool
is_digest_name(const struct ag_span *name)
{
    size_t n = sizeof(SUFFIX) - 1;
    return name->size >= n && memcmp(name->data + name->size - n, SUFFIX, n) == 0;
}

/* An object whose members keep `rules` where these name them; a bit of *seen is set for
 * each rule that applied. */
static bool
take_object(struct walk *walk, const struct member *rules, size_t count, uint32_t *seen)
{
    struct names names;
    struct text name;
    size_t next = 0;
    names.filter = 0;
    names.count = 0;
    if (!take(walk, '{') || ++walk->depth > DEPTH_MAX) {
        return false;
    }
    skip_space(walk);
    if (take(walk, '}')) {
        walk->depth--;
        return true;
    }
    do {
        skip_space(walk);
        if (!take_text(walk, &name) || name.escaped) {
            return false;
        }
        skip_space(walk);
        if (!take(walk, ':')) {
            return false;
        }
        size_t found = find_rule(rules, count, next, &name.raw);
        enum rule rule = ANY;
        if (found < count) {
            if ((*seen & 1u << found) != 0) {
                return false;
            }
            *seen |= 1u << found;
            rule = (enum rule)rules[found].rule;
            next = found + 1;
        } else if (!add_name(&names, &name.raw)) {
            return false;
        } else if (rules == entry_rules && is_digest_name(&name.raw)) {
            rule = DIGEST;
        }
        if (!take_ruled(walk, rule)) {
            return false;
        }
        skip_space(walk);
    } while (take(walk, ','));
    walk->depth--;
    return take(walk, '}');
}

/* ---- the whole ---- */

/* An HTTP status; a settle may say in a word how its stream ended. */
static bool
status_fits(const struct walk *walk)
{
    if (!walk->status_is_text) {
        return walk->status.size == 3 && walk->status.data[0] >= '1' &&
               walk->status.data[0] <= '5';
    }
    for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++) {
        if (walk->kind == SETTLE && equals(&walk->status, endings[i])) {
            return true;
        }
    }
    return false;
}

bool
ag_entry_conforms(const uint8_t *entry, size_t n)
{
    struct walk walk = {.at = entry, .end = entry + n};
    uint32_t seen = 0;
    if (n > AG_ENTRY_MAX) {
        return false;
    }
    skip_space(&walk);
    if (!take_object(&walk, entry_rules, RULES(entry_rules), &seen)) {
        return false;
    }
    skip_space(&walk);
    uint32_t required = HAS_ALWAYS | kinds[walk.kind].required;
    return walk.at == walk.end && (seen & required) == required &&
           ((seen & HAS_STATUS) == 0 || status_fits(&walk));
}
