/* The request-smuggling guard: a state machine in front of an HTTP/1 parser.
 *
 * Two parsers that disagree on where a request ends let an attacker hide one request in
 * another. The guard reads a connection's bytes before the parser does, accepts only
 * requests that can be read in one way, and passes them on one message at a time. A
 * head is passed on once it is complete and checked; of a body, what has arrived. What
 * it says depends on the bytes alone, never on how they were cut into packets.
 *
 * It refuses: anything but CRLF as line end, control characters, folded lines, names
 * that are no token or imitate a framing name; a Content-Length that is no plain number
 * or comes twice; Transfer-Encoding other than one `chunked`, beside a Content-Length
 * or in HTTP/1.0; a missing, second or malformed Host, or one unlike an absolute
 * target; methods and versions nobody needs; a body where none belongs; Expect without
 * a body or other than 100-continue; Connection tokens that would hide an end-to-end
 * field; chunk extensions, trailers, and chunks framed loosely; bytes behind a request
 * that closes the connection, or behind an offer to upgrade that is not answered yet.
 *
 * An offer to upgrade (Upgrade, HTTP2-Settings and their Connection tokens) may be
 * ignored by a server, so it is taken out of the head; `keep_websocket` leaves one of
 * exactly `websocket` in. One empty line before a request is dropped. */
#ifndef AG_HTTP_REQUEST_GUARD_H
#define AG_HTTP_REQUEST_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

#define AG_GUARD_HEAD_MAX 16384
#define AG_GUARD_FIELDS_MAX 100

/* name, HTTP status, code as callers know it, sentence */
#define AG_GUARD_FAULT_MAP(X)                                                          \
    X(FINE, 200, "", "")                                                               \
    X(START, 400, "malformed_request", "This is no HTTP/1 request.")                   \
    X(LINE_END, 400, "malformed_request", "A line must end with CR LF.")               \
    X(BARE_CR, 400, "malformed_request", "A CR must be followed by LF.")               \
    X(CONTROL, 400, "malformed_request", "The head holds a control character.")        \
    X(HEAD_SIZE, 431, "request_head_too_large", "The request's head is too large.")    \
    X(FIELDS, 431, "request_head_too_large",                                           \
      "The request has too many header fields.")                                       \
    X(METHOD, 400, "method_not_supported", "The method is not supported.")             \
    X(TARGET, 400, "malformed_request", "The request target is not valid.")            \
    X(VERSION, 400, "malformed_request", "The version must be HTTP/1.1 or HTTP/1.0.")  \
    X(FOLDED, 400, "invalid_header", "A header field must not start with a space.")    \
    X(NAME, 400, "invalid_header", "A header field's name is not valid.")              \
    X(IMITATION, 400, "invalid_header",                                                \
      "A header field's name has '_' where HTTP has '-'.")                             \
    X(LENGTH_TWICE, 400, "duplicate_header", "Content-Length is given twice.")         \
    X(LENGTH, 400, "invalid_header", "Content-Length is not a plain number.")          \
    X(CODING_TWICE, 400, "duplicate_header", "Transfer-Encoding is given twice.")      \
    X(CODING, 400, "invalid_header",                                                   \
      "Transfer-Encoding must be exactly one 'chunked'.")                              \
    X(CODING_OLD, 400, "invalid_header", "HTTP/1.0 has no Transfer-Encoding.")         \
    X(BOTH, 400, "invalid_header",                                                     \
      "Content-Length and Transfer-Encoding are both given.")                          \
    X(NO_HOST, 400, "invalid_header", "Host is missing.")                              \
    X(HOST_TWICE, 400, "duplicate_header", "Host is given twice.")                     \
    X(HOST, 400, "invalid_header", "Host is not valid.")                               \
    X(AUTHORITY, 400, "invalid_header", "Host differs from the request target.")       \
    X(BODY, 400, "invalid_body", "A request of this method must not have a body.")     \
    X(EXPECT, 400, "invalid_header",                                                   \
      "Expect must be '100-continue', once, on an HTTP/1.1 request with a body.")      \
    X(CONNECTION, 400, "invalid_header",                                               \
      "Connection must not list this header field.")                                   \
    X(UPGRADE, 400, "invalid_header", "Bytes follow an offer to upgrade.")             \
    X(AFTER_CLOSE, 400, "malformed_request",                                           \
      "Bytes follow a request that closes the connection.")                            \
    X(CHUNK_SIZE, 400, "invalid_body",                                                 \
      "A chunk's size must be 1 to 16 hex digits below 2^63.")                         \
    X(CHUNK_EXTENSION, 400, "invalid_body", "Chunk extensions are not supported.")     \
    X(CHUNK_END, 400, "invalid_body", "A chunk must end with CR LF.")                  \
    X(TRAILERS, 400, "invalid_body", "Trailers are not supported.")

enum ag_guard_fault {
#define AG_GUARD_ENUM(name, status, code, text) AG_GUARD_##name,
    AG_GUARD_FAULT_MAP(AG_GUARD_ENUM)
#undef AG_GUARD_ENUM
};

struct ag_guard_said {
    int status; /* of the reply */
    const char *code, *text;
};

/* What a fault is called; any thread. */
struct ag_guard_said ag_guard_say(enum ag_guard_fault fault);

enum ag_guard_state {
    AG_GUARD_IDLE,    /* between messages */
    AG_GUARD_IN_HEAD, /* part of a head is here */
    AG_GUARD_IN_BODY, /* a head was passed on, its body is not complete */
    AG_GUARD_REFUSED, /* for good: `fault` and `offset` say why */
};

struct ag_guard_options {
    size_t head_bytes; /* largest head, its last empty line included */
    unsigned fields;   /* most header fields */
    bool keep_websocket;
};

struct ag_guard {
    struct ag_guard_options options;
    enum ag_guard_state state;
    enum ag_guard_fault fault;
    uint64_t offset; /* of the fault: octets from the start of its message */
    /* -- private -- */
    uint8_t *head;            /* owned; a head that came in parts, or was changed */
    size_t head_size, room;   /* octets in `head`, and its size */
    size_t scanned, line;     /* of `head`: searched for line ends; start of the line */
    uint64_t at;              /* of the body: octets from the start of the message */
    uint64_t left;            /* of a body or chunk: octets to come */
    unsigned char empty_line; /* before a message: 0 none, 1 its CR, 2 CR LF */
    unsigned char chunk;      /* enum chunk_state; 0: not chunked */
    unsigned char digits;     /* of a chunk's size */
    bool closing;             /* nothing may follow this message */
    bool offered;             /* an upgrade that is not answered yet */
};

/* A piece of a message that may go to the parser. */
struct ag_guard_piece {
    const uint8_t *data; /* in the input or in the guard; valid until the next call */
    size_t size;         /* 0: nothing yet */
    bool last;           /* the message ends with it */
};

void ag_guard_init(struct ag_guard *guard, const struct ag_guard_options *options);
void ag_guard_clear(struct ag_guard *guard); /* frees what init and next have taken */

/* Reads from `data` up to the end of a message or of the data; *used octets, at least
 * one when n is. Owner thread. AG_OK and a piece; AG_EVERIFY when the message is
 * refused
 * (`fault`, `offset`), then and ever after; AG_ENOMEM. */
int ag_guard_next(struct ag_guard *guard, const uint8_t *data, size_t n, size_t *used,
                  struct ag_guard_piece *piece);

/* The last message has been answered, without an upgrade: another may follow. */
void ag_guard_answered(struct ag_guard *guard);

#endif
