#include "http/strict_json.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/json_text.h"
#include "base/utf8.h"
#include "http/json_names.h"

/* An array or object that the scan is inside of. */
struct level {
    const struct ag_json_node
        *node;                   /* of an array: of its elements; NULL: not governed */
    struct ag_json_table *table; /* owned; of an object with many members */
    size_t first;                /* names below this object's own */
    size_t index;                /* of an array: the element */
    bool is_object;
};

struct scan {
    const uint8_t *body, *end;
    const struct ag_json_rules *rules;
    struct ag_json_fault *fault;
    uint8_t *decoded; /* owned; as large as the body, made for the first escaped name */
    size_t decoded_size;
    int status;
    size_t depth, max_depth;
    struct level levels[AG_JSON_DEPTH_MAX];
    struct ag_json_names names;
};

const char *
ag_json_code_text(enum ag_json_code code)
{
    static const char *const texts[] = {
#define AG_JSON_TEXT(name, text) [name] = (text),
        AG_JSON_FAULT_MAP(AG_JSON_TEXT)
#undef AG_JSON_TEXT
    };
    return texts[code];
}

/* --- faults --- */

/* Copies a name of valid UTF-8 for a message: cut between characters so that it fits,
 * control characters as question marks. */
static void
copy_name(char *to, size_t room, const uint8_t *text, size_t size)
{
    size_t n = size < 64 ? size : 64;
    n = n < room - 1 ? n : room - 1;
    while (n > 0 && n < size && (text[n] & 0xc0) == 0x80) {
        n--;
    }
    for (size_t i = 0; i < n; i++) {
        to[i] = text[i] < ' ' || text[i] == 0x7f ? '?' : (char)text[i];
    }
    to[n] = '\0';
}

/* The path to the member or element that the scan is at. */
static void
write_path(const struct scan *s, char path[AG_JSON_PATH_MAX])
{
    size_t n = 0;
    path[0] = '\0';
    for (size_t i = 0; i < s->depth; i++) {
        const struct level *level = &s->levels[i];
        char part[96];
        if (!level->is_object) {
            (void)snprintf(part, sizeof(part), "[%zu]", level->index);
        } else {
            size_t last = i + 1 < s->depth ? s->levels[i + 1].first : s->names.count;
            if (last == level->first) {
                break; /* no member yet */
            }
            const struct ag_json_member *member = &s->names.members[last - 1];
            part[0] = '.';
            copy_name(part + (n > 0), sizeof(part) - 1, member->text, member->size);
        }
        size_t size = strlen(part);
        if (n + size + sizeof("...") > AG_JSON_PATH_MAX) {
            memcpy(path + n, "...", sizeof("..."));
            return;
        }
        memcpy(path + n, part, size + 1);
        n += size;
    }
}

/* Fills the fault and returns NULL, which ends the scan. */
static const uint8_t *
refuse(struct scan *s, enum ag_json_code code, const uint8_t *at, const char *what)
{
    s->status = AG_EVERIFY;
    s->fault->code = code;
    s->fault->offset = (size_t)(at - s->body);
    s->fault->what = what;
    s->fault->name[0] = s->fault->governed[0] = '\0';
    write_path(s, s->fault->path);
    return NULL;
}

/* Refuses the octet at `at`: not UTF-8, the end of the body, or not what the grammar
 * has there. */
static const uint8_t *
unexpected(struct scan *s, const uint8_t *at, const char *what)
{
    if (at == s->end) {
        return refuse(s, AG_JSON_SYNTAX, at, "it ends too early");
    }
    if (*at >= 0x80 && ag_utf8_sequence(at, (size_t)(s->end - at)) == 0) {
        return refuse(s, AG_JSON_UTF8, at, "it is not valid UTF-8");
    }
    return refuse(s, AG_JSON_SYNTAX, at, what);
}

/* Refuses the member that was put on the stack last. */
static const uint8_t *
refuse_member(struct scan *s, enum ag_json_code code, const uint8_t *at,
              const struct ag_json_name *governed)
{
    struct ag_json_member *member = &s->names.members[s->names.count - 1];
    const struct ag_json_member given = *member;
    if (governed != NULL) {
        member->text = governed->text; /* the path shows the governed name */
        member->size = governed->size;
    }
    (void)refuse(s, code, at, "");
    copy_name(s->fault->name, sizeof(s->fault->name), given.text, given.size);
    if (governed != NULL) {
        copy_name(s->fault->governed, sizeof(s->fault->governed), governed->text,
                  governed->size);
    }
    return NULL;
}

/* --- strings --- */

/* The four hex digits at `p` as a number, or -1. */
static int
hex4(const uint8_t *p, const uint8_t *end)
{
    int value = 0;
    if (end - p < 4) {
        return -1;
    }
    for (int i = 0; i < 4; i++) {
        int c = p[i], digit;
        if (c >= '0' && c <= '9') {
            digit = c - '0';
        } else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') {
            digit = (c | 0x20) - 'a' + 10;
        } else {
            return -1;
        }
        value = value << 4 | digit;
    }
    return value;
}

/* After the escape at `p`, which is a backslash; NULL when it is refused. */
static const uint8_t *
scan_escape(struct scan *s, const uint8_t *p)
{
    if (s->end - p < 2) {
        return unexpected(s, s->end, "");
    }
    if (p[1] != 'u') {
        if (p[1] == '\0' || strchr("\"\\/bfnrt", p[1]) == NULL) {
            return unexpected(s, p + 1, "an unknown escape");
        }
        return p + 2;
    }
    int unit = hex4(p + 2, s->end);
    if (unit < 0) {
        return refuse(s, AG_JSON_SYNTAX, p, "\\u without four hex digits");
    }
    if (unit < 0xd800 || unit > 0xdfff) {
        return p + 6;
    }
    int low = unit < 0xdc00 && s->end - p >= 12 && p[6] == '\\' && p[7] == 'u'
                  ? hex4(p + 8, s->end)
                  : -1;
    if (low < 0xdc00 || low > 0xdfff) {
        return refuse(
            s, AG_JSON_SYNTAX, p,
            "a lone surrogate escape (half of a pair, which no UTF-8 text has)");
    }
    return p + 12;
}

/* Past the characters at `p` that are not ASCII; NULL when they are no UTF-8. */
static inline const uint8_t *
scan_characters(struct scan *s, const uint8_t *p)
{
    do {
        size_t left = (size_t)(s->end - p);
        if (left >= 3 && p[0] > 0xe0 && p[0] < 0xed && (p[1] & 0xc0) == 0x80 &&
            (p[2] & 0xc0) == 0x80) {
            p += 3; /* most scripts of Asia */
            continue;
        }
        size_t length = ag_utf8_sequence(p, left);
        if (length == 0) {
            return refuse(s, AG_JSON_UTF8, p, "it is not valid UTF-8");
        }
        p += length;
    } while (p < s->end && *p >= 0x80);
    return p;
}

/* The closing quote of the string whose text starts at `p`; NULL when it is refused. */
static inline const uint8_t *
scan_string(struct scan *s, const uint8_t *p, bool *escaped)
{
    for (;;) {
        p = ag_json_skip_plain(p, s->end);
        if (p == s->end) {
            return unexpected(s, p, "");
        }
        if (*p == '"') {
            return p;
        }
        if (*p == '\\') {
            *escaped = true;
            p = scan_escape(s, p);
        } else if (*p >= 0x80) {
            p = scan_characters(s, p);
        } else {
            return refuse(s, AG_JSON_SYNTAX, p, "a control character in a string");
        }
        if (p == NULL) {
            return NULL;
        }
    }
}

static size_t
put_utf8(uint8_t *to, unsigned c)
{
    if (c < 0x80) {
        to[0] = (uint8_t)c;
        return 1;
    }
    if (c < 0x800) {
        to[0] = (uint8_t)(0xc0 | c >> 6);
        to[1] = (uint8_t)(0x80 | (c & 0x3f));
        return 2;
    }
    if (c < 0x10000) {
        to[0] = (uint8_t)(0xe0 | c >> 12);
        to[1] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        to[2] = (uint8_t)(0x80 | (c & 0x3f));
        return 3;
    }
    to[0] = (uint8_t)(0xf0 | c >> 18);
    to[1] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
    to[2] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
    to[3] = (uint8_t)(0x80 | (c & 0x3f));
    return 4;
}

/* Decodes the escapes of a name that scan_string has accepted; never longer than it. */
static int
decode_name(struct scan *s, const uint8_t **text, size_t *size)
{
    static const char letters[] = "bfnrt", meant[] = "\b\f\n\r\t";
    if (s->decoded == NULL) {
        s->decoded = ag_alloc((size_t)(s->end - s->body));
        if (s->decoded == NULL) {
            return AG_ENOMEM;
        }
    }
    uint8_t *start = s->decoded + s->decoded_size, *to = start;
    const uint8_t *p = *text, *end = p + *size;
    while (p < end) {
        if (*p != '\\') {
            *to++ = *p++;
        } else if (p[1] != 'u') {
            const char *letter = strchr(letters, p[1]);
            *to++ = letter != NULL ? (uint8_t)meant[letter - letters] : p[1];
            p += 2;
        } else {
            unsigned c = (unsigned)hex4(p + 2, end);
            p += 6;
            if (c >= 0xd800 && c <= 0xdfff) {
                c = 0x10000 + ((c - 0xd800) << 10) +
                    ((unsigned)hex4(p + 2, end) - 0xdc00);
                p += 6;
            }
            to += put_utf8(to, c);
        }
    }
    s->decoded_size += (size_t)(to - start);
    *text = start;
    *size = (size_t)(to - start);
    return AG_OK;
}

/* --- numbers --- */

static const uint8_t *
skip_digits(const uint8_t *p, const uint8_t *end)
{
    while (p < end && *p >= '0' && *p <= '9') {
        p++;
    }
    return p;
}

/* Whether |d| >= 1.797693134862315808e308, which no double holds: a parser would make
 * infinity of it, or refuse. `p` .. `end` is a number by the grammar, unsigned. */
static bool
is_out_of_range(const uint8_t *p, const uint8_t *end)
{
    int64_t magnitude = 0, exponent = 0; /* d is 0.ddd times 10 to the magnitude */
    uint64_t digits = 0;
    int taken = 0;
    bool fraction = false;
    for (; p < end && (*p | 0x20) != 'e'; p++) {
        if (*p == '.') {
            fraction = true;
            continue;
        }
        if (taken == 0 && *p == '0') {
            magnitude -= fraction; /* a leading zero */
            continue;
        }
        magnitude += !fraction;
        if (taken < 19) {
            digits = digits * 10 + (uint64_t)(*p - '0');
            taken++;
        }
    }
    if (taken == 0) {
        return false; /* zero */
    }
    for (; taken < 19; taken++) {
        digits *= 10;
    }
    if (p < end) {
        p++;
        bool negative = *p == '-';
        p += *p == '-' || *p == '+';
        for (; p < end && exponent < INT32_MAX; p++) {
            exponent = exponent * 10 + (*p - '0');
        }
        exponent = negative ? -exponent : exponent;
    }
    magnitude += exponent;
    return magnitude > 309 || (magnitude == 309 && digits >= 1797693134862315808u);
}

/* After the number at `p`, a digit or a minus; NULL when it is refused. */
static const uint8_t *
scan_number(struct scan *s, const uint8_t *p)
{
    const uint8_t *start = p, *digits, *end = s->end;
    p += *p == '-';
    start = digits = p;
    p = skip_digits(p, end);
    if (p == digits) {
        return unexpected(s, p, "a number without digits");
    }
    if (*digits == '0' && p - digits > 1) {
        return refuse(s, AG_JSON_SYNTAX, digits, "a number with a leading zero");
    }
    bool wide = p - digits > 308;
    if (p < end && *p == '.') {
        digits = ++p;
        p = skip_digits(p, end);
        if (p == digits) {
            return unexpected(s, p, "a number without digits after its point");
        }
    }
    if (p < end && (*p | 0x20) == 'e') {
        p++;
        p += p < end && (*p == '+' || *p == '-');
        digits = p;
        p = skip_digits(p, end);
        if (p == digits) {
            return unexpected(s, p, "a number without digits in its exponent");
        }
        wide = true;
    }
    if (wide && is_out_of_range(start, p)) {
        return refuse(s, AG_JSON_SYNTAX, start,
                      "a number beyond the range of a double");
    }
    return p;
}

/* --- the document --- */

static inline const uint8_t *
skip_space(const uint8_t *p, const uint8_t *end)
{
    while (p < end && (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')) {
        p++;
    }
    return p;
}

/* The first up to eight octets of a name, in the octets of a number. */
static inline uint64_t
mark_of(const uint8_t *text, size_t size, const uint8_t *end)
{
    if (end - text >= 8) {
        uint64_t mark = ag_get_u64le(text);
        return size >= 8 ? mark : mark & ((UINT64_C(1) << 8 * size) - 1);
    }
    uint64_t mark = 0;
    for (size_t i = 0; i < size && i < 8; i++) {
        mark |= (uint64_t)text[i] << 8 * i;
    }
    return mark;
}

/* Past the name at `p`, a quote, and its colon; *node is what the member may hold. */
static const uint8_t *
scan_member(struct scan *s, const uint8_t *p, const struct ag_json_node **node)
{
    struct level *level = &s->levels[s->depth - 1];
    const uint8_t *at = p, *text = p + 1, *readable = s->end;
    bool escaped = false, twice = false;
    const uint8_t *close = scan_string(s, text, &escaped);
    if (close == NULL) {
        return NULL;
    }
    size_t size = (size_t)(close - text);
    if (escaped) {
        if (decode_name(s, &text, &size) != AG_OK) {
            s->status = AG_ENOMEM;
            return NULL;
        }
        readable = text + size;
    }
    if (ag_json_names_push(&s->names, level->first, &level->table, text, size,
                           mark_of(text, size, readable), &twice) != AG_OK) {
        s->status = AG_ENOMEM;
        return NULL;
    }
    if (twice) {
        return refuse_member(s, AG_JSON_DUPLICATE, at, NULL);
    }
    *node = NULL;
    if (level->node != NULL) {
        const struct ag_json_name *governed =
            ag_json_rules_find(level->node, text, size);
        if (governed != NULL) {
            *node = governed->value;
        } else if ((governed = ag_json_rules_find_folded(level->node, text, size)) !=
                   NULL) {
            return refuse_member(s, AG_JSON_AMBIGUOUS, at, governed);
        }
    }
    p = skip_space(close + 1, s->end);
    if (p == s->end || *p != ':') {
        return unexpected(s, p, "expected ':' after a member's name");
    }
    return p + 1;
}

/* Past a `null`, `true` or `false` at `p`. */
static const uint8_t *
scan_word(struct scan *s, const uint8_t *p)
{
    const char *word = *p == 'n' ? "null" : *p == 't' ? "true" : "false";
    for (size_t i = 0; word[i] != '\0'; i++, p++) {
        if (p == s->end || *p != (uint8_t)word[i]) {
            return unexpected(s, p, "an unknown word");
        }
    }
    return p;
}

static const uint8_t *
open_level(struct scan *s, const uint8_t *p, const struct ag_json_node *node)
{
    if (s->depth == s->max_depth) {
        return refuse(s, AG_JSON_DEEP, p, "");
    }
    bool is_object = *p == '{';
    s->levels[s->depth++] = (struct level){
        .node = is_object || node == NULL ? node : node->elements,
        .first = s->names.count,
        .is_object = is_object,
    };
    return p + 1;
}

static void
close_level(struct scan *s)
{
    struct level *level = &s->levels[--s->depth];
    ag_json_table_free(level->table);
    s->names.count = level->first;
}

/* A value at `p`, or NULL at the first fault. Arrays and objects are opened only: what
 * is in them, and their end, is the caller's to read. */
static inline const uint8_t *
scan_value(struct scan *s, const uint8_t *p, const struct ag_json_node *node)
{
    bool escaped = false;
    if (p == s->end) {
        return unexpected(s, p, "");
    }
    switch (*p) {
    case '"':
        p = scan_string(s, p + 1, &escaped);
        return p != NULL ? p + 1 : NULL;
    case '{':
    case '[':
        return open_level(s, p, node);
    case 'n':
    case 't':
    case 'f':
        return scan_word(s, p);
    default:
        break;
    }
    if (*p == '-' || (*p >= '0' && *p <= '9')) {
        return scan_number(s, p);
    }
    return unexpected(s, p, "expected a value");
}

/* One step inside the innermost array or object: a member or element and its value, or
 * the end. `fresh`: just opened. */
static inline const uint8_t *
scan_inside(struct scan *s, const uint8_t *p, bool fresh)
{
    struct level *level = &s->levels[s->depth - 1];
    const struct ag_json_node *node = level->node;
    p = skip_space(p, s->end);
    if (p < s->end && *p == (level->is_object ? '}' : ']')) {
        close_level(s);
        return p + 1;
    }
    if (!fresh) {
        if (p == s->end || *p != ',') {
            return unexpected(s, p,
                              level->is_object
                                  ? "expected ',' or '}' after a member"
                                  : "expected ',' or ']' after an element");
        }
        p = skip_space(p + 1, s->end);
        level->index++;
    }
    if (level->is_object) {
        if (p == s->end || *p != '"') {
            return unexpected(s, p, "expected a member's name in quotes");
        }
        p = scan_member(s, p, &node);
        if (p == NULL) {
            return NULL;
        }
        p = skip_space(p, s->end);
    }
    return scan_value(s, p, node);
}

static void
scan_document(struct scan *s)
{
    const uint8_t *p = s->body;
    if (s->end - p >= 3 && memcmp(p, "\xef\xbb\xbf", 3) == 0) {
        (void)refuse(s, AG_JSON_SYNTAX, p, "it starts with a byte order mark");
        return;
    }
    p = skip_space(p, s->end);
    if (p == s->end || *p != '{') {
        (void)unexpected(s, p, "it must be a JSON object, which starts with '{'");
        return;
    }
    p = open_level(s, p, &s->rules->document);
    for (size_t before = 0; p != NULL && s->depth > 0;) {
        bool fresh = s->depth > before;
        before = s->depth;
        p = scan_inside(s, p, fresh);
    }
    if (p == NULL) {
        return;
    }
    p = skip_space(p, s->end);
    if (p != s->end) {
        (void)unexpected(s, p, "expected nothing after the object");
    }
}

int
ag_json_scan(const struct ag_json_rules *rules, const uint8_t *body, size_t n,
             size_t max_depth, struct ag_json_fault *fault)
{
    struct scan s; /* not cleared as a whole: most of it is room */
    s.body = body;
    s.end = body + n;
    s.rules = rules;
    s.fault = fault;
    s.decoded = NULL;
    s.decoded_size = 0;
    s.status = AG_OK;
    s.depth = 0;
    s.max_depth = max_depth < AG_JSON_DEPTH_MAX ? max_depth : AG_JSON_DEPTH_MAX;
    ag_json_names_init(&s.names, rules->key);
    scan_document(&s);
    while (s.depth > 0) {
        close_level(&s);
    }
    ag_json_names_free(&s.names);
    ag_free(s.decoded);
    return s.status;
}
