/* One complete request head: whether it can be read in one way only, and what of it
 * says where the message ends. */
#ifndef AG_HTTP_REQUEST_HEAD_H
#define AG_HTTP_REQUEST_HEAD_H

#include "http/request_guard.h"

struct ag_head {
    bool chunked;
    bool has_length;
    bool closing; /* Connection: close, or HTTP/1.0 */
    bool offer;   /* to upgrade: what says so is to be taken out */
    bool upgrade; /* a WebSocket upgrade that is kept */
    uint64_t length;
};

/* `head` is every octet up to and with the empty line, each LF after a CR. Any thread.
 * AG_GUARD_FINE and *out, or a fault and its *offset. */
enum ag_guard_fault ag_head_check(const uint8_t *head, size_t n,
                                  const struct ag_guard_options *options,
                                  struct ag_head *out, size_t *offset);

/* Copies a checked head without Upgrade, HTTP2-Settings and the tokens in Connection
 * that name them, to `to`, which has room for n octets and may be `head`; returns the
 * new size. */
size_t ag_head_without_offer(const uint8_t *head, size_t n, uint8_t *to);

#endif
