#include "text/reply_reader.h"

#include <math.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "text/entropy.h"

/* Places in a reply. Members that are not in `edges` lead to IGNORED. */
enum node {
    IGNORED,
    ROOT,
    CHOICES,
    CHOICE,
    CHOICE_INDEX,
    MESSAGE, /* a string here is text as well */
    CONTENT, /* text, or a list of parts */
    PART,
    TEXT,
    OUTPUTS,
    OUTPUT,
    LOGPROBS,
    TOKENS,
    TOKEN,
    TOKEN_TEXT,
    TOKEN_BYTES,
    TOKEN_BYTE,
    TOKEN_LOGPROB,
    TOPS,
    TOP,
    TOP_TEXT,
    TOP_BYTES,
    TOP_BYTE,
    TOP_LOGPROB,
};

static const struct {
    uint8_t from, to;
    const char *name;
} edges[] = {
    {ROOT, CHOICES, "choices"},
    {ROOT, CONTENT, "content"},
    {ROOT, MESSAGE, "delta"},
    {ROOT, OUTPUTS, "output"},
    {ROOT, LOGPROBS, "logprobs"},
    {CHOICE, CHOICE_INDEX, "index"},
    {CHOICE, MESSAGE, "message"},
    {CHOICE, MESSAGE, "delta"},
    {CHOICE, TEXT, "text"},
    {CHOICE, LOGPROBS, "logprobs"},
    {MESSAGE, CONTENT, "content"},
    {MESSAGE, TEXT, "text"},
    {PART, TEXT, "text"},
    {PART, LOGPROBS, "logprobs"},
    {OUTPUT, CONTENT, "content"},
    {LOGPROBS, TOKENS, "content"},
    {TOKEN, TOKEN_TEXT, "token"},
    {TOKEN, TOKEN_BYTES, "bytes"},
    {TOKEN, TOKEN_LOGPROB, "logprob"},
    {TOKEN, TOPS, "top_logprobs"},
    {TOP, TOP_TEXT, "token"},
    {TOP, TOP_BYTES, "bytes"},
    {TOP, TOP_LOGPROB, "logprob"},
};

/* What the elements of a list are; and a list at LOGPROBS is one of tokens. */
static uint8_t
element_of(uint8_t node)
{
    switch (node) {
    case CHOICES:
        return CHOICE;
    case CONTENT:
        return PART;
    case OUTPUTS:
        return OUTPUT;
    case LOGPROBS:
    case TOKENS:
        return TOKEN;
    case TOKEN_BYTES:
        return TOKEN_BYTE;
    case TOPS:
        return TOP;
    case TOP_BYTES:
        return TOP_BYTE;
    default:
        return IGNORED;
    }
}

enum state {
    BEFORE,  /* the document */
    VALUE,   /* a value must come */
    STRING,  /* inside the string of a value */
    NAME,    /* inside a member's name */
    ESCAPE,  /* after a backslash, of STRING or NAME (r->fresh says which) */
    UNICODE, /* inside \uXXXX */
    COLON,   /* after a name */
    SCALAR,  /* inside a number or word */
    AFTER,   /* a value: comma or end */
    SKIP,    /* inside a value that nobody wants */
    SKIP_STRING,
    SKIP_ESCAPE,
    DONE,   /* after the document */
    BROKEN, /* until the next one */
};

enum line { LINE_START, LINE_DATA, LINE_SPACE, LINE_OTHER };

void
ag_reader_start(struct ag_reply_reader *r, bool events,
                const struct ag_reader_sink *sink, void *to)
{
    memset(r, 0, sizeof(*r));
    r->sink = sink;
    r->to = to;
    r->events = events;
}

/* --- the finds --- */

static inline unsigned
which_token(uint8_t node)
{
    return node >= TOP;
}

static void
clear_token(struct ag_reply_reader *r, unsigned which)
{
    memset(&r->token[which], 0, sizeof(r->token[which]));
    r->token[which].text_key = r->token[which].bytes_key = AG_KEY_START;
}

static struct ag_read_token
read_token(const struct ag_reply_reader *r, unsigned which)
{
    bool bytes = r->token[which].has_bytes;
    return (struct ag_read_token){
        .key = ag_key_mix(bytes ? r->token[which].bytes_key : r->token[which].text_key),
        .logprob = r->token[which].logprob,
        .has_logprob = r->token[which].has_logprob,
    };
}

static void
object_begins(struct ag_reply_reader *r, uint8_t node)
{
    if (node == CHOICE) {
        r->sink->choice(r->to);
    } else if (node == TOKEN || node == TOP) {
        clear_token(r, which_token(node));
    }
}

static void
object_ends(struct ag_reply_reader *r, uint8_t node)
{
    if (node == TOKEN || node == TOP) {
        struct ag_read_token token = read_token(r, which_token(node));
        (node == TOP ? r->sink->alternative : r->sink->token)(r->to, &token);
    }
}

/* Decoded octets of the string under way. */
static inline void
emit(struct ag_reply_reader *r, const uint8_t *octets, size_t n)
{
    if (r->fresh) { /* a name */
        for (size_t i = 0; i < n; i++) {
            r->name_long = r->name_long || r->name_n == AG_READER_NAME;
            if (!r->name_long) {
                r->name[r->name_n++] = (char)octets[i];
            }
        }
    } else if (r->node == TOKEN_TEXT || r->node == TOP_TEXT) {
        uint64_t *key = &r->token[which_token(r->node)].text_key;
        for (size_t i = 0; i < n; i++) {
            *key = ag_key_add(*key, octets[i]);
        }
    } else if (n > 0) {
        r->sink->text(r->to, octets, n);
    }
}

static void
emit_character(struct ag_reply_reader *r, uint32_t c)
{
    uint8_t out[4];
    size_t n = 0;
    if (c < 0x80) {
        out[n++] = (uint8_t)c;
    } else if (c < 0x800) {
        out[n++] = (uint8_t)(0xc0 | c >> 6);
        out[n++] = (uint8_t)(0x80 | (c & 0x3f));
    } else {
        if (c < 0x10000) {
            out[n++] = (uint8_t)(0xe0 | c >> 12);
        } else {
            out[n++] = (uint8_t)(0xf0 | c >> 18);
            out[n++] = (uint8_t)(0x80 | (c >> 12 & 0x3f));
        }
        out[n++] = (uint8_t)(0x80 | (c >> 6 & 0x3f));
        out[n++] = (uint8_t)(0x80 | (c & 0x3f));
    }
    emit(r, out, n);
}

/* A high surrogate that found no low one. */
static inline void
flush_high(struct ag_reply_reader *r)
{
    if (r->high != 0) {
        r->high = 0;
        emit_character(r, 0xfffd);
    }
}

static void
emit_unit(struct ag_reply_reader *r, uint16_t unit)
{
    if (unit >= 0xdc00 && unit < 0xe000 && r->high != 0) {
        uint32_t c = 0x10000u + ((uint32_t)(r->high - 0xd800) << 10) + (unit - 0xdc00u);
        r->high = 0;
        emit_character(r, c);
        return;
    }
    flush_high(r);
    if (unit >= 0xd800 && unit < 0xdc00) {
        r->high = unit;
    } else {
        emit_character(r, unit >= 0xdc00 && unit < 0xe000 ? 0xfffd : unit);
    }
}

static void
take_scalar(struct ag_reply_reader *r)
{
    double value = 0.0;
    bool number = r->scalar_n < AG_READER_SCALAR &&
                  ag_reader_number(r->scalar, r->scalar_n, &value);
    if (!number) {
        return;
    }
    if (r->node == CHOICE_INDEX) {
        r->sink->index(r->to, value);
    } else if (r->node == TOKEN_LOGPROB || r->node == TOP_LOGPROB) {
        r->token[which_token(r->node)].logprob = value;
        r->token[which_token(r->node)].has_logprob = true;
    } else if ((r->node == TOKEN_BYTE || r->node == TOP_BYTE) && value >= 0 &&
               value < 256) {
        unsigned which = which_token(r->node);
        r->token[which].has_bytes = true;
        r->token[which].bytes_key =
            ag_key_add(r->token[which].bytes_key, (uint8_t)value);
    }
}

/* --- structure --- */

static uint8_t
find_edge(const struct ag_reply_reader *r)
{
    uint8_t from = r->levels[r->depth - 1].node;
    for (size_t i = 0; i < sizeof(edges) / sizeof(edges[0]) && !r->name_long; i++) {
        if (edges[i].from == from && edges[i].name[0] == r->name[0] &&
            strlen(edges[i].name) == r->name_n &&
            memcmp(edges[i].name, r->name, r->name_n) == 0) {
            return edges[i].to;
        }
    }
    return IGNORED;
}

static void
break_off(struct ag_reply_reader *r)
{
    r->state = BROKEN;
    r->damaged++;
}

static bool
wants_text(uint8_t node)
{
    return node == TEXT || node == CONTENT || node == MESSAGE || node == TOKEN_TEXT ||
           node == TOP_TEXT;
}

static bool
wants_number(uint8_t node)
{
    return node == CHOICE_INDEX || node == TOKEN_LOGPROB || node == TOP_LOGPROB ||
           node == TOKEN_BYTE || node == TOP_BYTE;
}

static bool
wants_object(uint8_t node)
{
    return node == ROOT || node == CHOICE || node == MESSAGE || node == PART ||
           node == OUTPUT || node == LOGPROBS || node == TOKEN || node == TOP;
}

static void
open_level(struct ag_reply_reader *r, bool is_object)
{
    bool wanted = is_object ? wants_object(r->node) : element_of(r->node) != IGNORED;
    if (!wanted || r->depth == AG_READER_DEPTH) {
        r->ignored = 1;
        r->state = SKIP;
        return;
    }
    r->levels[r->depth++] = (struct ag_reader_level){r->node, is_object};
    if (is_object) {
        object_begins(r, r->node);
    }
    r->fresh = true; /* the end may come at once */
    r->state = AFTER;
}

static void
close_level(struct ag_reply_reader *r, bool is_object)
{
    struct ag_reader_level level = r->levels[r->depth - 1];
    if (level.is_object != is_object) {
        break_off(r);
        return;
    }
    if (is_object) {
        object_ends(r, level.node);
    }
    r->depth--;
    r->fresh = false;
    r->state = r->depth > 0 ? AFTER : DONE;
}

static void
begin_value(struct ag_reply_reader *r, uint8_t c)
{
    r->fresh = false;
    if (c == '{' || c == '[') {
        open_level(r, c == '{');
    } else if (c == '"') {
        r->state = wants_text(r->node) ? STRING : SKIP_STRING;
        r->ignored = 0;
        r->high = 0;
    } else if (c == '-' || (c >= '0' && c <= '9') || (uint8_t)((c | 0x20) - 'a') < 26) {
        r->state = SCALAR;
        r->scalar[0] = (char)c;
        r->scalar_n = 1;
    } else {
        break_off(r);
    }
}

static void
after_value(struct ag_reply_reader *r, uint8_t c)
{
    struct ag_reader_level level = r->levels[r->depth - 1];
    if (c == '}' || c == ']') {
        close_level(r, c == '}');
    } else if (r->fresh || c == ',') {
        bool comma = c == ',';
        if (comma && r->fresh) {
            break_off(r);
            return;
        }
        r->node = level.is_object ? IGNORED : element_of(level.node);
        r->state = VALUE;
        r->fresh = level.is_object; /* a name comes first */
        if (!comma && !level.is_object) {
            begin_value(r, c);
        } else if (!comma && c == '"') {
            r->state = NAME;
            r->name_n = 0;
            r->name_long = false;
            r->high = 0;
        } else if (!comma) {
            break_off(r);
        }
    } else {
        break_off(r);
    }
}

/* --- octet by octet --- */

static void
take_escape(struct ag_reply_reader *r, uint8_t c)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *at = c != 0 ? strchr(from, c) : NULL;
    if (c == 'u') {
        r->state = UNICODE;
        r->unit = 0;
        r->escape_n = 0;
    } else if (at != NULL) {
        flush_high(r);
        emit(r, (const uint8_t *)&to[at - from], 1);
        r->state = r->fresh ? NAME : STRING;
    } else {
        break_off(r);
    }
}

static void
take_hex(struct ag_reply_reader *r, uint8_t c)
{
    unsigned digit = 0;
    if (c >= '0' && c <= '9') {
        digit = c - '0';
    } else if ((uint8_t)((c | 0x20) - 'a') < 6) {
        digit = (c | 0x20u) - 'a' + 10;
    } else {
        break_off(r);
        return;
    }
    r->unit = (uint16_t)((unsigned)r->unit << 4 | digit);
    if (++r->escape_n == 4) {
        emit_unit(r, r->unit);
        r->state = r->fresh ? NAME : STRING;
    }
}

/* First octet from `p` on that is a quote or a backslash (a control character too where
 * it may end in one step); `end` when there is none. */
static const uint8_t *
skip_string(const uint8_t *p, const uint8_t *end)
{
#ifdef __SSE2__
    const __m128i quote = _mm_set1_epi8('"'), backslash = _mm_set1_epi8('\\');
    for (; end - p >= 16; p += 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i special =
            _mm_or_si128(_mm_cmpeq_epi8(v, quote), _mm_cmpeq_epi8(v, backslash));
        unsigned mask = (unsigned)_mm_movemask_epi8(special);
        if (mask != 0) {
            return p + __builtin_ctz(mask);
        }
    }
#endif
    while (p < end && *p != '"' && *p != '\\') {
        p++;
    }
    return p;
}

/* A stretch inside of a string that is read; returns where it stopped. */
static const uint8_t *
take_string(struct ag_reply_reader *r, const uint8_t *p, const uint8_t *end)
{
    const uint8_t *stop = skip_string(p, end);
    if (stop > p) {
        flush_high(r);
        emit(r, p, (size_t)(stop - p));
    }
    if (stop == end) {
        return end;
    }
    if (*stop == '\\') {
        r->state = ESCAPE;
    } else {
        flush_high(r);
        r->state = r->fresh ? COLON : AFTER;
    }
    return stop + 1;
}

static const uint8_t *
take_skipped(struct ag_reply_reader *r, const uint8_t *p, const uint8_t *end)
{
    while (p < end) {
        if (r->state == SKIP_STRING) {
            p = skip_string(p, end);
            if (p == end) {
                return end;
            }
            r->state = *p++ == '\\' ? SKIP_ESCAPE : SKIP;
        } else if (r->state == SKIP_ESCAPE) {
            p++;
            r->state = SKIP_STRING;
        } else if (r->ignored == 0) { /* it was a string */
            r->state = AFTER;
            return p;
        } else {
            uint8_t c = *p++;
            if (c == '"') {
                r->state = SKIP_STRING;
            } else if (c == '{' || c == '[') {
                r->ignored++;
            } else if ((c == '}' || c == ']') && --r->ignored == 0) {
                r->state = AFTER;
                return p;
            }
        }
    }
    return p;
}

/* Takes one octet of a number or word; false when it belongs to what follows. */
static bool
take_scalar_octet(struct ag_reply_reader *r, uint8_t c)
{
    if ((uint8_t)((c | 0x20) - 'a') < 26 || (c >= '0' && c <= '9') || c == '.' ||
        c == '-' || c == '+') {
        if (r->scalar_n < AG_READER_SCALAR) {
            r->scalar[r->scalar_n++] = (char)c;
        }
        return true;
    }
    if (wants_number(r->node)) {
        take_scalar(r);
    }
    r->state = AFTER;
    return false;
}

static void
begin_document(struct ag_reply_reader *r, uint8_t c)
{
    r->depth = 0;
    r->node = ROOT;
    r->fresh = false;
    if (c == '{') {
        r->documents++;
        open_level(r, true);
    } else if (c == '[' && r->events) {
        r->state = BROKEN; /* [DONE] */
    } else {
        break_off(r);
    }
}

static void
take_octet(struct ag_reply_reader *r, uint8_t c)
{
    switch (r->state) {
    case BEFORE:
        begin_document(r, c);
        break;
    case VALUE:
        if (!r->fresh) {
            begin_value(r, c);
        } else if (c == '"') {
            r->state = NAME;
            r->name_n = 0;
            r->name_long = false;
            r->high = 0;
        } else {
            break_off(r);
        }
        break;
    case COLON:
        if (c == ':') {
            r->node = find_edge(r);
            r->fresh = false;
            r->state = VALUE;
        } else {
            break_off(r);
        }
        break;
    case AFTER:
        after_value(r, c);
        break;
    default: /* DONE: more than one document */
        break_off(r);
        break;
    }
}

static void
feed_document(struct ag_reply_reader *r, const uint8_t *p, size_t n)
{
    const uint8_t *end = p + n;
    while (p < end) {
        switch (r->state) {
        case STRING:
        case NAME:
            p = take_string(r, p, end);
            break;
        case SKIP:
        case SKIP_STRING:
        case SKIP_ESCAPE:
            p = take_skipped(r, p, end);
            break;
        case ESCAPE:
            take_escape(r, *p++);
            break;
        case UNICODE:
            take_hex(r, *p++);
            break;
        case SCALAR:
            p += take_scalar_octet(r, *p);
            break;
        case BROKEN:
            return;
        default:
            if (*p != ' ' && *p != '\t' && *p != '\n' && *p != '\r') {
                take_octet(r, *p);
            }
            p++;
            break;
        }
    }
}

static void
end_document(struct ag_reply_reader *r)
{
    if (r->state != BEFORE && r->state != DONE && r->state != BROKEN) {
        r->damaged++;
    }
    r->state = BEFORE;
    r->ignored = 0;
}

/* --- text/event-stream (WHATWG HTML, 9.2.6): lines end in \n, \r or both; the data
 * lines of an event are one document; an empty line ends it --- */

static const uint8_t *
feed_data_line(struct ag_reply_reader *r, const uint8_t *p, const uint8_t *end)
{
    const uint8_t *stop = p;
    while (stop < end && *stop != '\n' && *stop != '\r') {
        stop++;
    }
    feed_document(r, p, (size_t)(stop - p));
    if (stop == end) {
        return end;
    }
    feed_document(r, (const uint8_t *)"\n", 1); /* what joins two data lines */
    r->line = LINE_START;
    r->line_n = *stop == '\r' ? 0x80 : 0; /* a \n that follows belongs to it */
    return stop + 1;
}

static void
take_line_octet(struct ag_reply_reader *r, uint8_t c)
{
    static const char field[] = "data:";
    bool second = r->line_n == 0x80 && c == '\n';
    r->line_n = r->line_n == 0x80 ? 0 : r->line_n;
    if (second) {
        return;
    }
    if (c == '\n' || c == '\r') {
        if (r->line == LINE_START && r->line_n == 0) {
            end_document(r);
        }
        r->line = LINE_START;
        r->line_n = c == '\r' ? 0x80 : 0;
    } else if (r->line == LINE_START && c == (uint8_t)field[r->line_n]) {
        if (++r->line_n == sizeof(field) - 1) {
            r->line = LINE_SPACE;
            r->line_n = 0;
        }
    } else if (r->line != LINE_OTHER) {
        r->line = LINE_OTHER;
        r->line_n = 0;
    }
}

void
ag_reader_feed(struct ag_reply_reader *r, const uint8_t *data, size_t n)
{
    if (!r->events) {
        feed_document(r, data, n);
        return;
    }
    for (const uint8_t *p = data, *end = data + n; p < end;) {
        if (r->line == LINE_SPACE) {
            p += *p == ' ';
            r->line = LINE_DATA;
        } else if (r->line == LINE_DATA) {
            p = feed_data_line(r, p, end);
        } else {
            take_line_octet(r, *p++);
        }
    }
}

void
ag_reader_end(struct ag_reply_reader *r)
{
    if (r->state == SCALAR) {
        feed_document(r, (const uint8_t *)"\n", 1);
    }
    end_document(r);
}
