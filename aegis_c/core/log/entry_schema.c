#include "log/entry_schema.h"

#include <string.h>

#include "log/entry.h"
#include "log/entry_pattern.h"
#include "log/entry_walk.h"

#define DEPTH_MAX 12     /* objects and arrays inside each other */
#define NAMES_MAX 48     /* members of one object */
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
    UUID,   /* the last four: a text by a pattern, in the order of enum ag_pattern */
    TIME,
    DIGEST,
    COMMITMENT,
};

#define NAME_ROOM 16

struct member {
    char name[NAME_ROOM];
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

struct walk {
    const uint8_t *end;
    unsigned depth;
    size_t kind;           /* index in kinds */
    struct ag_span status; /* the value's characters; size 0: not seen */
    bool status_is_text;
};

/* ---- values ---- */

static const uint8_t *take_object(struct walk *walk, const uint8_t *p,
                                  const struct member *rules, size_t count,
                                  uint32_t *seen);

static const uint8_t *take_value(struct walk *walk, const uint8_t *p);

static const uint8_t *
take_array(struct walk *walk, const uint8_t *p)
{
    if (++walk->depth > DEPTH_MAX) {
        return NULL;
    }
    p = skip_space(p + 1, walk->end);
    if (p < walk->end && *p == ']') {
        walk->depth--;
        return p + 1;
    }
    for (;;) {
        p = take_value(walk, skip_space(p, walk->end));
        if (p == NULL) {
            return NULL;
        }
        p = skip_space(p, walk->end);
        if (p == walk->end || *p != ',') {
            break;
        }
        p++;
    }
    walk->depth--;
    return take(p, walk->end, ']');
}

/* Any value. */
static const uint8_t *
take_value(struct walk *walk, const uint8_t *p)
{
    struct text text;
    struct ag_span number;
    uint32_t seen;
    bool count;
    if (p == walk->end) {
        return NULL;
    }
    switch (*p) {
    case '"':
        return take_text(p, walk->end, &text);
    case '{':
        return take_object(walk, p, NULL, 0, &seen);
    case '[':
        return take_array(walk, p);
    case 't':
        return take_word(p, walk->end, "true", 4);
    case 'f':
        return take_word(p, walk->end, "false", 5);
    case 'n':
        return take_word(p, walk->end, "null", 4);
    default:
        return take_number(p, walk->end, &number, &count);
    }
}

static const uint8_t *
take_pattern(struct walk *walk, const uint8_t *p, enum ag_pattern pattern)
{
    size_t n = ag_pattern_length(pattern);
    if ((size_t)(walk->end - p) < n + 2 || *p != '"' || p[n + 1] != '"' ||
        !ag_pattern_matches(pattern, p + 1)) {
        return NULL;
    }
    return p + n + 2;
}

static bool
equals(const struct ag_span *raw, const char *text)
{
    return raw->size == strlen(text) && memcmp(raw->data, text, raw->size) == 0;
}

static bool
find_kind(struct walk *walk, const struct ag_span *raw)
{
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (equals(raw, kinds[i].name)) {
            walk->kind = i;
            return true;
        }
    }
    return false;
}

static const uint8_t *
take_status(struct walk *walk, const uint8_t *p)
{
    struct text text;
    bool count = false;
    walk->status_is_text = p < walk->end && *p == '"';
    if (walk->status_is_text) {
        p = take_text(p, walk->end, &text);
        if (p == NULL || text.escaped) {
            return NULL;
        }
        walk->status = text.raw;
        return p;
    }
    p = take_number(p, walk->end, &walk->status, &count);
    return count ? p : NULL;
}

static const uint8_t *
take_both(struct walk *walk, const uint8_t *p, const struct member rules[2])
{
    uint32_t seen = 0;
    p = take_object(walk, p, rules, 2, &seen);
    return seen == HAS_BOTH ? p : NULL;
}

/* A value that must keep `rule`. */
static const uint8_t *
take_ruled(struct walk *walk, const uint8_t *p, enum rule rule)
{
    struct text text;
    struct ag_span raw;
    uint32_t seen = 0;
    bool count = false;
    switch (rule) {
    case ANY:
        return take_value(walk, p);
    case ONE:
        p = take_number(p, walk->end, &raw, &count);
        return p != NULL && raw.size == 1 && *raw.data == '1' ? p : NULL;
    case COUNT:
        p = take_number(p, walk->end, &raw, &count);
        return count ? p : NULL;
    case STATUS:
        return take_status(walk, p);
    case OBJECT:
        return take_object(walk, p, NULL, 0, &seen);
    case MODEL:
        return take_object(walk, p, model_rules, RULES(model_rules), &seen);
    case BODY:
        return take_both(walk, p, body_rules);
    case SHARDS:
        return take_both(walk, p, shards_rules);
    case TEXT: /* an escape is longer than what it stands for */
        p = take_text(p, walk->end, &text);
        return p != NULL && text.raw.size <= TEXT_MAX ? p : NULL;
    case KIND:
        p = take_text(p, walk->end, &text);
        return p != NULL && find_kind(walk, &text.raw) ? p : NULL;
    case UUID:
    case TIME:
    case DIGEST:
    case COMMITMENT:
        return take_pattern(walk, p, (enum ag_pattern)(rule - UUID));
    }
    return NULL;
}

/* ---- objects ---- */

/* The names of one object so far that have no rule. */
struct names {
    size_t next;     /* the rule behind the last one that applied */
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

/* Whether the name at `text` is the rule's, which has its length; at least NAME_ROOM
 * octets may be read there, or `exact`. */
static inline bool
same_name(const struct member *rule, const uint8_t *text, bool exact)
{
#ifdef __SSE2__
    if (!exact) {
        __m128i a = _mm_loadu_si128((const __m128i *)(const void *)rule->name);
        __m128i b = _mm_loadu_si128((const __m128i *)(const void *)text);
        unsigned differ = ~(unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(a, b));
        return (differ & ((1u << rule->length) - 1)) == 0;
    }
#else
    (void)exact;
#endif
    return memcmp(rule->name, text, rule->length) == 0;
}

/* Index of the rule for a name, looked for from `next` on, around; `count`: none. */
static inline size_t
find_rule(const struct member *rules, size_t count, size_t next,
          const struct ag_span *name, const uint8_t *end)
{
    bool exact = end - name->data < NAME_ROOM;
    for (size_t tried = 0; tried < count; tried++, next++) {
        next = next == count ? 0 : next;
        if (rules[next].length == name->size &&
            same_name(&rules[next], name->data, exact)) {
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

/* Which rule the member `name` has to keep; false: it may not be there (again). */
static inline bool
find_member(const struct member *rules, size_t count, const struct ag_span *name,
            const uint8_t *end, struct names *names, uint32_t *seen, enum rule *rule)
{
    size_t found = find_rule(rules, count, names->next, name, end);
    *rule = ANY;
    if (found < count) {
        bool again = (*seen & 1u << found) != 0;
        *seen |= 1u << found;
        *rule = (enum rule)rules[found].rule;
        names->next = found + 1;
        return !again;
    }
    if (rules == entry_rules && is_digest_name(name)) {
        *rule = DIGEST;
    }
    return add_name(names, name);
}

/* An object whose members keep `rules` where these name them; a bit of *seen is set for
 * each rule that applied. */
static const uint8_t *
take_object(struct walk *walk, const uint8_t *p, const struct member *rules,
            size_t count, uint32_t *seen)
{
    const uint8_t *end = walk->end;
    struct names names;
    struct text name;
    enum rule rule;
    names.filter = 0;
    names.count = names.next = 0;
    p = take(p, end, '{');
    if (p == NULL || ++walk->depth > DEPTH_MAX) {
        return NULL;
    }
    p = skip_space(p, end);
    if (p < end && *p == '}') {
        walk->depth--;
        return p + 1;
    }
    for (;;) {
        p = take_text(skip_space(p, end), end, &name);
        if (p == NULL || name.escaped) {
            return NULL;
        }
        p = take(skip_space(p, end), end, ':');
        if (p == NULL ||
            !find_member(rules, count, &name.raw, end, &names, seen, &rule)) {
            return NULL;
        }
        p = take_ruled(walk, skip_space(p, end), rule);
        if (p == NULL) {
            return NULL;
        }
        p = skip_space(p, end);
        if (p == end || *p != ',') {
            break;
        }
        p++;
    }
    walk->depth--;
    return take(p, end, '}');
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
    struct walk walk = {.end = entry + n};
    uint32_t seen = 0;
    if (n > AG_ENTRY_MAX) {
        return false;
    }
    const uint8_t *p = skip_space(entry, walk.end);
    p = take_object(&walk, p, entry_rules, RULES(entry_rules), &seen);
    if (p == NULL || skip_space(p, walk.end) != walk.end) {
        return false;
    }
    uint32_t required = HAS_ALWAYS | kinds[walk.kind].required;
    return (seen & required) == required &&
           ((seen & HAS_STATUS) == 0 || status_fits(&walk));
}
