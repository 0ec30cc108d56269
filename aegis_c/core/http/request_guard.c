#include "http/request_guard.h"

#include <string.h>

#include "base/alloc.h"
#include "http/octets.h"
#include "http/request_head.h"

#define FIRST_ROOM 1024

/* What of a chunked body comes next. */
enum chunk_state {
    NOT_CHUNKED,
    SIZE,      /* digits */
    SIZE_FEED, /* the LF after the size */
    DATA,
    DATA_RETURN,
    DATA_FEED,
    END_RETURN, /* the empty line after the last chunk */
    END_FEED,
};

struct ag_guard_said
ag_guard_say(enum ag_guard_fault fault)
{
    static const struct ag_guard_said said[] = {
#define AG_GUARD_SAID(name, status, code, text)                                        \
    [AG_GUARD_##name] = {status, code, text},
        AG_GUARD_FAULT_MAP(AG_GUARD_SAID)
#undef AG_GUARD_SAID
    };
    return said[fault];
}

void
ag_guard_init(struct ag_guard *guard, const struct ag_guard_options *options)
{
    *guard = (struct ag_guard){.options = *options};
}

static void
forget_head(struct ag_guard *guard)
{
    ag_free(guard->head);
    guard->head = NULL;
    guard->head_size = guard->room = guard->scanned = guard->line = 0;
}

void
ag_guard_clear(struct ag_guard *guard)
{
    forget_head(guard);
}

void
ag_guard_answered(struct ag_guard *guard)
{
    guard->offered = false;
}

static int
refuse(struct ag_guard *guard, enum ag_guard_fault fault, uint64_t offset)
{
    guard->state = AG_GUARD_REFUSED;
    guard->fault = fault;
    guard->offset = offset;
    return AG_EVERIFY;
}

/* --- bodies --- */

static int
hex_digit(uint8_t c)
{
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* One octet of a chunked body that is not data. */
static enum ag_guard_fault
chunk_octet(struct ag_guard *guard, uint8_t c)
{
    int digit;
    switch ((enum chunk_state)guard->chunk) {
    case SIZE:
        digit = hex_digit(c);
        if (digit >= 0) {
            if (guard->digits == 16 || guard->left >= UINT64_C(1) << 59) {
                return AG_GUARD_CHUNK_SIZE;
            }
            guard->digits++;
            guard->left = guard->left << 4 | (uint64_t)digit;
            return AG_GUARD_FINE;
        }
        if (guard->digits > 0 && c == ';') {
            return AG_GUARD_CHUNK_EXTENSION;
        }
        guard->chunk = SIZE_FEED;
        return guard->digits > 0 && c == '\r' ? AG_GUARD_FINE : AG_GUARD_CHUNK_SIZE;
    case SIZE_FEED:
        guard->digits = 0;
        guard->chunk = guard->left > 0 ? DATA : END_RETURN;
        return c == '\n' ? AG_GUARD_FINE : AG_GUARD_CHUNK_END;
    case DATA_RETURN:
        guard->chunk = DATA_FEED;
        return c == '\r' ? AG_GUARD_FINE : AG_GUARD_CHUNK_END;
    case DATA_FEED:
        guard->chunk = SIZE;
        return c == '\n' ? AG_GUARD_FINE : AG_GUARD_CHUNK_END;
    case END_RETURN:
        guard->chunk = END_FEED;
        return c == '\r' ? AG_GUARD_FINE : AG_GUARD_TRAILERS;
    case END_FEED:
        guard->chunk = NOT_CHUNKED;
        return c == '\n' ? AG_GUARD_FINE : AG_GUARD_CHUNK_END;
    case NOT_CHUNKED:
    case DATA:
    default:
        return AG_GUARD_FINE; /* not reached: the caller has taken these */
    }
}

/* Reads the body from `data`; *used octets, up to its end. */
static enum ag_guard_fault
read_body(struct ag_guard *guard, const uint8_t *data, size_t n, size_t *used)
{
    size_t i = 0;
    while (i < n && (guard->chunk != NOT_CHUNKED || guard->left > 0)) {
        if (guard->chunk == NOT_CHUNKED || guard->chunk == DATA) {
            size_t take = guard->left < n - i ? (size_t)guard->left : n - i;
            guard->left -= take;
            i += take;
            if (guard->left == 0 && guard->chunk == DATA) {
                guard->chunk = DATA_RETURN;
            }
        } else {
            enum ag_guard_fault fault = chunk_octet(guard, data[i]);
            if (fault != AG_GUARD_FINE) {
                *used = i;
                return fault;
            }
            i++;
        }
    }
    *used = i;
    return AG_GUARD_FINE;
}

/* --- heads --- */

/* Searches `text` for the head's end from where the last search stopped. The size of
 * the whole head; 0: not here yet; faults are left in the guard. */
static size_t
find_end(struct ag_guard *guard, const uint8_t *text, size_t n, int *status)
{
    size_t limit = guard->options.head_bytes;
    size_t end = n < limit ? n : limit;
    const uint8_t *feed;
    *status = AG_OK;
    while (guard->scanned < end &&
           (feed = ag_find_octet(text + guard->scanned, text + end, '\n')) != NULL) {
        size_t i = (size_t)(feed - text);
        if (i == 0 || text[i - 1] != '\r') {
            *status = refuse(guard, AG_GUARD_LINE_END, i);
            return 0;
        }
        if (i == guard->line + 1) {
            return i + 1;
        }
        guard->scanned = guard->line = i + 1;
    }
    guard->scanned = end;
    if (n >= limit) {
        *status = refuse(guard, AG_GUARD_HEAD_SIZE, limit);
    }
    return 0;
}

/* Keeps octets of a head that is not complete yet. */
static int
keep(struct ag_guard *guard, const uint8_t *data, size_t n)
{
    size_t need = guard->head_size + n;
    if (need > guard->room) {
        size_t room = guard->room != 0 ? guard->room : FIRST_ROOM;
        while (room < need) {
            room *= 2;
        }
        uint8_t *larger = ag_realloc(guard->head, room);
        if (larger == NULL) {
            return AG_ENOMEM;
        }
        guard->head = larger;
        guard->room = room;
    }
    memcpy(guard->head + guard->head_size, data, n);
    guard->head_size = need;
    return AG_OK;
}

/* The complete head at `text`: checks it, and sets the guard up for its body. */
static int
enter_message(struct ag_guard *guard, const uint8_t *text, size_t n,
              struct ag_head *head)
{
    size_t offset = 0;
    enum ag_guard_fault fault = ag_head_check(text, n, &guard->options, head, &offset);
    if (fault != AG_GUARD_FINE) {
        return refuse(guard, fault, offset);
    }
    guard->at = n;
    guard->left = head->length;
    guard->digits = 0;
    guard->chunk = head->chunked ? SIZE : NOT_CHUNKED;
    guard->closing = head->closing;
    guard->offered = head->offer || head->upgrade;
    return AG_OK;
}

static bool
is_complete(const struct ag_guard *guard)
{
    return guard->chunk == NOT_CHUNKED && guard->left == 0;
}

static void
set_piece(struct ag_guard *guard, struct ag_guard_piece *piece, const uint8_t *data,
          size_t size)
{
    *piece = (struct ag_guard_piece){data, size, is_complete(guard)};
    guard->state = piece->last ? AG_GUARD_IDLE : AG_GUARD_IN_BODY;
    guard->empty_line = 0;
}

/* A head that is complete in the input, or is now with what was kept. */
static int
next_of_head(struct ag_guard *guard, const uint8_t *data, size_t n, size_t *used,
             struct ag_guard_piece *piece)
{
    struct ag_head head;
    int status = AG_OK;
    size_t kept = guard->head_size, limit = guard->options.head_bytes;
    const uint8_t *text = data;
    size_t size = n;
    if (kept > 0) {
        size = n < limit - kept ? n : limit - kept;
        status = keep(guard, data, size);
        text = guard->head;
        size += kept;
    }
    if (status != AG_OK) {
        return status;
    }
    size_t whole = find_end(guard, text, size, &status);
    if (status != AG_OK) {
        return status;
    }
    if (whole == 0) {
        *used = n;
        guard->state = AG_GUARD_IN_HEAD;
        return kept > 0 ? AG_OK : keep(guard, data, n);
    }
    *used = whole - kept;
    status = enter_message(guard, text, whole, &head);
    if (status != AG_OK) {
        return status;
    }
    if (head.offer) {
        if (kept == 0 && keep(guard, data, whole) != AG_OK) {
            return AG_ENOMEM;
        }
        /* in place: what is written is never ahead of what is read */
        guard->head_size = ag_head_without_offer(guard->head, whole, guard->head);
        set_piece(guard, piece, guard->head, guard->head_size);
        return AG_OK;
    }
    if (kept > 0) {
        set_piece(guard, piece, guard->head, whole);
        return AG_OK;
    }
    guard->scanned = guard->line = 0;
    size_t more = 0;
    enum ag_guard_fault fault = read_body(guard, data + whole, n - whole, &more);
    if (fault != AG_GUARD_FINE) {
        return refuse(guard, fault, guard->at + more);
    }
    guard->at += more;
    *used = whole + more;
    set_piece(guard, piece, data, *used);
    return AG_OK;
}

/* Drops one empty line before a message, and refuses at once what is no request.
 * *used octets; AG_ENOTYET when the data ends before a message begins. */
static int
skip_empty_line(struct ag_guard *guard, const uint8_t *data, size_t n, size_t *used)
{
    size_t i = 0;
    for (; i < n && guard->empty_line < 2; i++) {
        if (data[i] != (guard->empty_line == 0 ? '\r' : '\n')) {
            if (guard->empty_line == 1) {
                return refuse(guard, AG_GUARD_BARE_CR, 0);
            }
            break;
        }
        guard->empty_line++;
    }
    *used = i;
    if (i == n) {
        return AG_ENOTYET;
    }
    if (guard->closing) {
        return refuse(guard, AG_GUARD_AFTER_CLOSE, 0);
    }
    if (guard->offered) {
        return refuse(guard, AG_GUARD_UPGRADE, 0);
    }
    uint8_t c = data[i];
    bool letter = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    return letter ? AG_OK : refuse(guard, AG_GUARD_START, 0);
}

int
ag_guard_next(struct ag_guard *guard, const uint8_t *data, size_t n, size_t *used,
              struct ag_guard_piece *piece)
{
    size_t skipped = 0;
    int status = AG_OK;
    *used = 0;
    *piece = (struct ag_guard_piece){data, 0, false};
    switch (guard->state) {
    case AG_GUARD_REFUSED:
        return AG_EVERIFY;
    case AG_GUARD_IN_BODY: {
        forget_head(guard);
        enum ag_guard_fault fault = read_body(guard, data, n, used);
        guard->at += *used;
        if (fault != AG_GUARD_FINE) {
            return refuse(guard, fault, guard->at);
        }
        set_piece(guard, piece, data, *used);
        return AG_OK;
    }
    case AG_GUARD_IDLE:
        forget_head(guard);
        status = skip_empty_line(guard, data, n, &skipped);
        if (status == AG_ENOTYET) {
            *used = n;
            return AG_OK;
        }
        break;
    case AG_GUARD_IN_HEAD:
    default:
        break;
    }
    if (status == AG_OK) {
        status = next_of_head(guard, data + skipped, n - skipped, used, piece);
        *used += skipped;
    }
    return status;
}
