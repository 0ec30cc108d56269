#include "http/request_head.h"

#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "http/octets.h"

/* A stretch of octets. */
struct span {
    const uint8_t *p, *end;
};

static size_t
size_of(struct span s)
{
    return (size_t)(s.end - s.p);
}

/* Octets of a token (RFC 9110 5.6.2); '_' is one, but no framing name has it. */
#define TOKEN 1
#define NO_UNDERSCORE 2
#define BOTH (TOKEN | NO_UNDERSCORE)
static const uint8_t octet_class[256] = {
    ['_'] = TOKEN, ['!'] = BOTH, ['#'] = BOTH, ['$'] = BOTH, ['%'] = BOTH, ['&'] = BOTH,
    ['\''] = BOTH, ['*'] = BOTH, ['+'] = BOTH, ['-'] = BOTH, ['.'] = BOTH, ['^'] = BOTH,
    ['`'] = BOTH,  ['|'] = BOTH, ['~'] = BOTH, ['0'] = BOTH, ['1'] = BOTH, ['2'] = BOTH,
    ['3'] = BOTH,  ['4'] = BOTH, ['5'] = BOTH, ['6'] = BOTH, ['7'] = BOTH, ['8'] = BOTH,
    ['9'] = BOTH,  ['A'] = BOTH, ['B'] = BOTH, ['C'] = BOTH, ['D'] = BOTH, ['E'] = BOTH,
    ['F'] = BOTH,  ['G'] = BOTH, ['H'] = BOTH, ['I'] = BOTH, ['J'] = BOTH, ['K'] = BOTH,
    ['L'] = BOTH,  ['M'] = BOTH, ['N'] = BOTH, ['O'] = BOTH, ['P'] = BOTH, ['Q'] = BOTH,
    ['R'] = BOTH,  ['S'] = BOTH, ['T'] = BOTH, ['U'] = BOTH, ['V'] = BOTH, ['W'] = BOTH,
    ['X'] = BOTH,  ['Y'] = BOTH, ['Z'] = BOTH, ['a'] = BOTH, ['b'] = BOTH, ['c'] = BOTH,
    ['d'] = BOTH,  ['e'] = BOTH, ['f'] = BOTH, ['g'] = BOTH, ['h'] = BOTH, ['i'] = BOTH,
    ['j'] = BOTH,  ['k'] = BOTH, ['l'] = BOTH, ['m'] = BOTH, ['n'] = BOTH, ['o'] = BOTH,
    ['p'] = BOTH,  ['q'] = BOTH, ['r'] = BOTH, ['s'] = BOTH, ['t'] = BOTH, ['u'] = BOTH,
    ['v'] = BOTH,  ['w'] = BOTH, ['x'] = BOTH, ['y'] = BOTH, ['z'] = BOTH,
};

static uint8_t
lower(uint8_t c)
{
    return c >= 'A' && c <= 'Z' ? (uint8_t)(c | 0x20) : c;
}

/* Whether the text is `word` (lower case) but for case; '_' counts as '-' on demand. */
static bool
is_word(struct span text, const char *word, bool underscores)
{
    size_t n = strlen(word);
    if (size_of(text) != n) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        uint8_t c = lower(text.p[i]);
        if (c != (uint8_t)word[i] && !(underscores && c == '_' && word[i] == '-')) {
            return false;
        }
    }
    return true;
}

static bool
is_one_of(struct span text, const char *const *words, bool underscores)
{
    for (; *words != NULL; words++) {
        if (is_word(text, *words, underscores)) {
            return true;
        }
    }
    return false;
}

static struct span
trimmed(struct span s)
{
    while (s.p < s.end && (*s.p == ' ' || *s.p == '\t')) {
        s.p++;
    }
    while (s.p < s.end && (s.end[-1] == ' ' || s.end[-1] == '\t')) {
        s.end--;
    }
    return s;
}

/* The next element of a comma-separated list, trimmed; false at its end. */
static bool
next_element(struct span *list, struct span *element)
{
    if (list->p > list->end) {
        return false;
    }
    const uint8_t *comma = ag_find_octet(list->p, list->end, ',');
    const uint8_t *end = comma != NULL ? comma : list->end;
    *element = trimmed((struct span){list->p, end});
    list->p = end + 1;
    return true;
}

/* --- the head as a whole --- */

/* Whether an octet may not be in a head at all; CR is for the caller to count. */
static bool
is_control(uint8_t c)
{
    return (c < ' ' && c != '\t' && c != '\r' && c != '\n') || c == 0x7f;
}

/* Whether the head has control characters, or a CR that no LF follows. */
static bool
has_controls(const uint8_t *p, const uint8_t *end)
{
    bool after_return = false;
#ifdef __SSE2__
    const __m128i low = _mm_set1_epi8(0x1f), del = _mm_set1_epi8(0x7f);
    const __m128i tab = _mm_set1_epi8('\t'), cr = _mm_set1_epi8('\r');
    const __m128i lf = _mm_set1_epi8('\n');
    for (; end - p >= 16; p += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i is_cr = _mm_cmpeq_epi8(v, cr), is_lf = _mm_cmpeq_epi8(v, lf);
        __m128i fine = _mm_or_si128(_mm_or_si128(is_cr, is_lf), _mm_cmpeq_epi8(v, tab));
        __m128i small = _mm_cmpeq_epi8(_mm_min_epu8(v, low), v);
        __m128i bad =
            _mm_or_si128(_mm_andnot_si128(fine, small), _mm_cmpeq_epi8(v, del));
        unsigned returns = (unsigned)_mm_movemask_epi8(is_cr) << 1 | after_return;
        unsigned feeds = (unsigned)_mm_movemask_epi8(is_lf);
        if (((unsigned)_mm_movemask_epi8(bad) | (returns & 0xffff & ~feeds)) != 0) {
            return true;
        }
        after_return = (returns & 0x10000) != 0;
    }
#endif
    for (; p < end; p++) {
        if (is_control(*p) || (after_return && *p != '\n')) {
            return true;
        }
        after_return = *p == '\r';
    }
    return after_return;
}

/* The first control character or bare CR. */
static enum ag_guard_fault
find_control(const uint8_t *head, size_t n, size_t *offset)
{
    for (size_t i = 0; i < n; i++) {
        bool bare = head[i] == '\r' && head[i + 1] != '\n'; /* the last is an LF */
        if (bare || is_control(head[i])) {
            *offset = i;
            return bare ? AG_GUARD_BARE_CR : AG_GUARD_CONTROL;
        }
    }
    return AG_GUARD_FINE;
}

/* --- the request line --- */

static const char *const without_body[] = {"GET", "HEAD", "DELETE", "OPTIONS", NULL};
static const char *const with_body[] = {"POST", "PUT", "PATCH", NULL};

static bool
is_method(struct span method, const char *const *methods)
{
    for (; *methods != NULL; methods++) {
        if (size_of(method) == strlen(*methods) &&
            memcmp(method.p, *methods, size_of(method)) == 0) {
            return true;
        }
    }
    return false;
}

/* uri-host [ ":" port ] (RFC 9110 7.2), not empty. */
static bool
is_authority(struct span s)
{
    const uint8_t *p = s.p;
    if (p < s.end && *p == '[') {
        for (p++; p < s.end && *p != ']'; p++) {
            uint8_t c = lower(*p);
            if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || c == ':' ||
                  c == '.')) {
                return false;
            }
        }
        if (p == s.end || p - s.p < 3) {
            return false;
        }
        p++;
    } else {
        for (; p < s.end && *p != ':'; p++) {
            uint8_t c = lower(*p);
            if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                  strchr("-._~%!$&'()*+;=", c) != NULL) ||
                c == '\0') {
                return false;
            }
        }
        if (p == s.p) {
            return false;
        }
    }
    if (p == s.end) {
        return true;
    }
    if (*p != ':' || s.end - p > 6) {
        return false;
    }
    for (p++; p < s.end; p++) {
        if (*p < '0' || *p > '9') {
            return false;
        }
    }
    return true;
}

/* Checks a target's form; *authority is that of an absolute one, else empty. */
static bool
is_target(struct span target, struct span method, struct span *authority)
{
    *authority = (struct span){NULL, NULL};
    for (const uint8_t *p = target.p; p < target.end; p++) {
        if (*p <= ' ' || *p >= 0x7f || *p == '#' || *p == '\\') {
            return false;
        }
    }
    if (target.p == target.end) {
        return false;
    }
    if (*target.p == '/') {
        return true;
    }
    if (*target.p == '*') {
        static const char *const options[] = {"OPTIONS", NULL};
        return size_of(target) == 1 && is_method(method, options);
    }
    static const char *const schemes[] = {"http://", "https://"};
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(schemes[i]);
        if (size_of(target) > n &&
            is_word((struct span){target.p, target.p + n}, schemes[i], false)) {
            const uint8_t *end = target.p + n;
            while (end < target.end && *end != '/' && *end != '?') {
                end++;
            }
            *authority = (struct span){target.p + n, end};
            return is_authority(*authority) && end < target.end && *end == '/';
        }
    }
    return false;
}

struct request {
    struct span method, authority; /* the authority of an absolute target */
    bool old;                      /* HTTP/1.0 */
};

/* `line` without its CR LF. */
static enum ag_guard_fault
check_request_line(struct span line, struct request *out, const uint8_t **at)
{
    *at = line.p;
    const uint8_t *first = ag_find_octet(line.p, line.end, ' ');
    if (first == NULL) {
        return AG_GUARD_METHOD;
    }
    out->method = (struct span){line.p, first};
    if (!is_method(out->method, with_body) && !is_method(out->method, without_body)) {
        return AG_GUARD_METHOD;
    }
    *at = first + 1;
    const uint8_t *second = ag_find_octet(*at, line.end, ' ');
    if (second == NULL ||
        !is_target((struct span){*at, second}, out->method, &out->authority)) {
        return AG_GUARD_TARGET;
    }
    *at = second + 1;
    if (line.end - *at != 8 || memcmp(*at, "HTTP/1.", 7) != 0 ||
        ((*at)[7] != '0' && (*at)[7] != '1')) {
        return AG_GUARD_VERSION;
    }
    out->old = (*at)[7] == '0';
    return AG_GUARD_FINE;
}

/* --- the fields --- */

/* Names that must not hide behind an underscore, as some applications read them. */
static const char *const framing[] = {
    "content-length", "transfer-encoding", "content-type",     "content-encoding",
    "keep-alive",     "http2-settings",    "proxy-connection", NULL};
/* End-to-end fields that Connection must not make hop-by-hop (RFC 9110 7.6.1). */
static const char *const end_to_end[] = {"authorization",
                                         "content-encoding",
                                         "content-length",
                                         "content-type",
                                         "cookie",
                                         "expect",
                                         "host",
                                         "transfer-encoding",
                                         NULL};

struct fields {
    struct ag_head *head;
    struct span host, upgrade;
    unsigned count;
    bool has_host, has_expect, wants_upgrade;
};

static bool
parse_length(struct span value, uint64_t *out)
{
    size_t n = size_of(value);
    if (n == 0 || n > 19 || (n > 1 && *value.p == '0')) {
        return false;
    }
    *out = 0;
    for (const uint8_t *p = value.p; p < value.end; p++) {
        if (*p < '0' || *p > '9') {
            return false;
        }
        *out = *out * 10 + (uint64_t)(*p - '0');
    }
    return true;
}

static enum ag_guard_fault
check_connection(struct span value, struct fields *fields)
{
    struct span element;
    while (next_element(&value, &element)) {
        if (is_word(element, "close", false)) {
            fields->head->closing = true;
        } else if (is_word(element, "upgrade", false)) {
            fields->wants_upgrade = true;
        } else if (is_one_of(element, end_to_end, true)) {
            return AG_GUARD_CONNECTION;
        }
    }
    return AG_GUARD_FINE;
}

/* A field whose name is one that the framing depends on; others are fine. */
static enum ag_guard_fault
check_field(struct span name, struct span value, struct fields *fields)
{
    struct ag_head *head = fields->head;
    switch (size_of(name) << 8 | lower(*name.p)) { /* few fields pass even this */
    case 4 << 8 | 'h':
        if (is_word(name, "host", false)) {
            if (fields->has_host) {
                return AG_GUARD_HOST_TWICE;
            }
            fields->has_host = true;
            fields->host = value;
            return is_authority(value) ? AG_GUARD_FINE : AG_GUARD_HOST;
        }
        break;
    case 6 << 8 | 'e':
        if (is_word(name, "expect", false)) {
            bool again = fields->has_expect;
            fields->has_expect = true;
            return !again && is_word(value, "100-continue", false) ? AG_GUARD_FINE
                                                                   : AG_GUARD_EXPECT;
        }
        break;
    case 7 << 8 | 'u':
        if (is_word(name, "upgrade", false)) {
            fields->upgrade = head->offer ? (struct span){NULL, NULL} : value;
            head->offer = true;
        }
        break;
    case 10 << 8 | 'c':
        if (is_word(name, "connection", false)) {
            return check_connection(value, fields);
        }
        break;
    case 14 << 8 | 'c':
        if (is_word(name, "content-length", false)) {
            if (head->has_length) {
                return AG_GUARD_LENGTH_TWICE;
            }
            head->has_length = true;
            return parse_length(value, &head->length) ? AG_GUARD_FINE : AG_GUARD_LENGTH;
        }
        break;
    case 14 << 8 | 'h':
        head->offer |= is_word(name, "http2-settings", false);
        break;
    case 17 << 8 | 't':
        if (is_word(name, "transfer-encoding", false)) {
            if (head->chunked) {
                return AG_GUARD_CODING_TWICE;
            }
            head->chunked = true;
            return is_word(value, "chunked", false) ? AG_GUARD_FINE : AG_GUARD_CODING;
        }
        break;
    default:
        break;
    }
    return AG_GUARD_FINE;
}

/* One header line without its CR LF; *at becomes where the fault is. */
static enum ag_guard_fault
check_line(struct span line, struct fields *fields, const uint8_t **at)
{
    const uint8_t *p = line.p;
    *at = p;
    if (*p == ' ' || *p == '\t') {
        return AG_GUARD_FOLDED;
    }
    const uint8_t *colon = ag_find_octet(p, line.end, ':');
    unsigned class = colon == NULL || colon == p ? 0 : BOTH;
    for (; colon != NULL && p < colon; p++) {
        class &= octet_class[*p];
    }
    if ((class & TOKEN) == 0) {
        for (p = line.p; p < line.end && octet_class[*p] != 0; p++) {
        }
        *at = p;
        return AG_GUARD_NAME;
    }
    struct span name = {line.p, p};
    if ((class & NO_UNDERSCORE) == 0 && is_one_of(name, framing, true)) {
        return AG_GUARD_IMITATION;
    }
    return check_field(name, trimmed((struct span){p + 1, line.end}), fields);
}

static bool
same_authority(struct span a, struct span b)
{
    for (size_t i = 0; i < size_of(a) && i < size_of(b); i++) {
        if (lower(a.p[i]) != lower(b.p[i])) {
            return false;
        }
    }
    return size_of(a) == size_of(b);
}

/* What the fields say together. */
static enum ag_guard_fault
check_together(const struct request *request, const struct fields *fields,
               const struct ag_guard_options *options)
{
    struct ag_head *head = fields->head;
    bool has_body = head->chunked || head->length > 0;
    if (head->chunked && head->has_length) {
        return AG_GUARD_BOTH;
    }
    if (head->chunked && request->old) {
        return AG_GUARD_CODING_OLD;
    }
    if (!fields->has_host && !request->old) {
        return AG_GUARD_NO_HOST;
    }
    if (request->authority.p != NULL && fields->has_host &&
        !same_authority(request->authority, fields->host)) {
        return AG_GUARD_AUTHORITY;
    }
    if (has_body && is_method(request->method, without_body)) {
        return AG_GUARD_BODY;
    }
    if (fields->has_expect && (!has_body || request->old)) {
        return AG_GUARD_EXPECT;
    }
    head->closing |= request->old;
    if (options->keep_websocket && fields->wants_upgrade && !has_body &&
        fields->upgrade.p != NULL && is_word(fields->upgrade, "websocket", false)) {
        head->upgrade = true;
        head->offer = false;
    }
    return AG_GUARD_FINE;
}

enum ag_guard_fault
ag_head_check(const uint8_t *head, size_t n, const struct ag_guard_options *options,
              struct ag_head *out, size_t *offset)
{
    struct request request = {0};
    struct fields fields = {.head = out};
    const uint8_t *at = head, *p = head,
                  *end = head + n - 2; /* before the empty line */
    *out = (struct ag_head){0};
    if (has_controls(head, head + n)) {
        return find_control(head, n, offset);
    }
    const uint8_t *feed = ag_find_octet(p, end, '\n');
    enum ag_guard_fault fault =
        check_request_line((struct span){p, feed - 1}, &request, &at);
    for (p = feed + 1; fault == AG_GUARD_FINE && p < end; p = feed + 1) {
        feed = ag_find_octet(p, end, '\n');
        at = p;
        fault = ++fields.count > options->fields
                    ? AG_GUARD_FIELDS
                    : check_line((struct span){p, feed - 1}, &fields, &at);
    }
    if (fault == AG_GUARD_FINE) {
        at = head + n;
        fault = check_together(&request, &fields, options);
    }
    *offset = (size_t)(at - head);
    return fault;
}

size_t
ag_head_without_offer(const uint8_t *head, size_t n, uint8_t *to)
{
    static const char *const offers[] = {"upgrade", "http2-settings", NULL};
    uint8_t *start = to;
    const uint8_t *end = head + n, *feed;
    for (const uint8_t *p = head; p < end; p = feed + 1) {
        feed = ag_find_octet(p, end, '\n');
        const uint8_t *colon = p == head ? NULL : ag_find_octet(p, feed, ':');
        struct span name = {p, colon != NULL ? colon : p};
        if (is_one_of(name, offers, false)) {
            continue;
        }
        if (!is_word(name, "connection", false)) {
            memmove(to, p, (size_t)(feed + 1 - p));
            to += feed + 1 - p;
            continue;
        }
        /* never longer than before: a comma, or the colon, stood before each token */
        struct span element, list = {colon + 1, feed - 1};
        uint8_t *line = to;
        while (next_element(&list, &element)) {
            if (size_of(element) == 0 || is_one_of(element, offers, false)) {
                continue;
            }
            if (to == line) {
                memmove(to, p, size_of(name));
                to += size_of(name);
                *to++ = ':';
            } else {
                *to++ = ',';
            }
            memmove(to, element.p, size_of(element));
            to += size_of(element);
        }
        if (to != line) {
            *to++ = '\r';
            *to++ = '\n';
        }
    }
    return (size_t)(to - start);
}
