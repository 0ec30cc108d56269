// links: alloc_fault
/* The request guard: streams of requests whole, at every split, and without memory. */
#include "alloc_fault.h"
#include "check.h"

#include "http/request_guard.h"

static const struct ag_guard_options defaults = {AG_GUARD_HEAD_MAX, AG_GUARD_FIELDS_MAX,
                                                 false};

/* What came through of one connection. */
struct seen {
    char passed[4096];
    size_t size, messages;
    size_t complete; /* octets of complete messages */
    enum ag_guard_fault fault;
    uint64_t offset;
    int status;
};

/* Feeds a copy of exactly these octets, so that a sanitizer sees a read beyond them. */
static void
feed(struct ag_guard *guard, const char *data, size_t n, struct seen *seen)
{
    uint8_t *copy = malloc(n > 0 ? n : 1);
    ASSERT_NOT_NULL(copy);
    memcpy(copy, data, n);
    size_t at = 0;
    while (at < n) {
        struct ag_guard_piece piece;
        size_t used = 0;
        seen->status = ag_guard_next(guard, copy + at, n - at, &used, &piece);
        if (seen->status != AG_OK) {
            break;
        }
        ASSERT_LT_U(0, used);
        ASSERT_LE_U(used, n - at);
        ASSERT_LT_U(seen->size + piece.size, sizeof(seen->passed));
        memcpy(seen->passed + seen->size, piece.data, piece.size);
        seen->size += piece.size;
        ASSERT(!piece.last || piece.size > 0);
        if (piece.last) {
            seen->messages++;
            seen->complete = seen->size;
        }
        at += used;
    }
    seen->fault = guard->fault;
    seen->offset = guard->offset;
    free(copy);
}

static void
compare(const struct seen *a, const struct seen *b)
{
    ASSERT_EQ_U(a->messages, b->messages);
    ASSERT_EQ(a->status, b->status);
    ASSERT_EQ(a->fault, b->fault);
    ASSERT_EQ_U(a->offset, b->offset);
    ASSERT_EQ_U(a->complete, b->complete);
    ASSERT_EQ_MEM(a->passed, b->passed, a->complete);
}

#define GET "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
#define CHUNKED "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
#define WITH(fields) "POST / HTTP/1.1\r\nHost: a\r\n" fields "\r\n\r\n"

static const struct {
    const char *stream;
    size_t messages;
    enum ag_guard_fault fault;
    uint64_t offset;
} cases[] = {
    {GET, 1, AG_GUARD_FINE, 0},
    {"\r\n" GET GET GET "\r\n", 3, AG_GUARD_FINE, 0},
    {WITH("Content-Length: 5") "hello" GET, 2, AG_GUARD_FINE, 0},
    {CHUNKED "5\r\nhello\r\n0A\r\n0123456789\r\n0\r\n\r\n" GET, 2, AG_GUARD_FINE, 0},
    {CHUNKED "7fffffffffffffff\r\nx", 0, AG_GUARD_FINE, 0},
    {"GET / HTTP/1.0\r\n\r\n\r\n", 1, AG_GUARD_FINE, 0},
    {"OPTIONS * HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 1, AG_GUARD_FINE, 0},
    {"GET HTTP://A:80/ HTTP/1.1\r\nHost: a:80\r\n\r\n", 1, AG_GUARD_FINE, 0},
    {WITH("Expect: 100-continue\r\nContent-Length: 1") "x", 1, AG_GUARD_FINE, 0},
    {WITH("Upgrade: h2c\r\nConnection: Upgrade , HTTP2-Settings,close\r\n"
          "HTTP2-Settings: AA\r\nContent-Length: 1") "x",
     1, AG_GUARD_FINE, 0},
    {GET "\r\n\r\n", 1, AG_GUARD_START, 0},
    {"\r ", 0, AG_GUARD_BARE_CR, 0},
    {"\n", 0, AG_GUARD_START, 0},
    {"\x16\x03\x01", 0, AG_GUARD_START, 0},
    {"GET / HTTP/1.1\nHost: a\r\n\r\n", 0, AG_GUARD_LINE_END, 14},
    {"GET / HTTP/1.1\r\nHost: a\r\n\n", 0, AG_GUARD_LINE_END, 25},
    {WITH("X: a\rb"), 0, AG_GUARD_BARE_CR, 30},
    {WITH("X: a\r\r"), 0, AG_GUARD_BARE_CR, 30},
    {WITH("X: \x01"), 0, AG_GUARD_CONTROL, 29},
    {WITH("X: \x7f"), 0, AG_GUARD_CONTROL, 29},
    {"BREW / HTTP/1.1\r\n\r\n", 0, AG_GUARD_METHOD, 0},
    {"GET\r\n\r\n", 0, AG_GUARD_METHOD, 0},
    {"CONNECT a:80 HTTP/1.1\r\n\r\n", 0, AG_GUARD_METHOD, 0},
    {"GET /\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET  / HTTP/1.1\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET a HTTP/1.1\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET * HTTP/1.1\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET /# HTTP/1.1\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", 0, AG_GUARD_TARGET, 4},
    {"GET / HTTP/1.2\r\n\r\n", 0, AG_GUARD_VERSION, 6},
    {"GET / HTTP/1.1 \r\n\r\n", 0, AG_GUARD_VERSION, 6},
    {"GET / http/1.1\r\n\r\n", 0, AG_GUARD_VERSION, 6},
    {WITH(" X: y"), 0, AG_GUARD_FOLDED, 26},
    {"GET / HTTP/1.1\r\n\tHost: a\r\n\r\n", 0, AG_GUARD_FOLDED, 16},
    {WITH("X : y"), 0, AG_GUARD_NAME, 27},
    {WITH(": y"), 0, AG_GUARD_NAME, 26},
    {WITH("Xy"), 0, AG_GUARD_NAME, 28},
    {WITH("X\xff: y"), 0, AG_GUARD_NAME, 27},
    {WITH("Transfer_Encoding: chunked"), 0, AG_GUARD_IMITATION, 26},
    {WITH("Content-Length: 1\r\nContent-Length: 1"), 0, AG_GUARD_LENGTH_TWICE, 45},
    {WITH("Content-Length: +1"), 0, AG_GUARD_LENGTH, 26},
    {WITH("Content-Length: 1, 1"), 0, AG_GUARD_LENGTH, 26},
    {WITH("Content-Length: 01"), 0, AG_GUARD_LENGTH, 26},
    {WITH("Content-Length: 10000000000000000000"), 0, AG_GUARD_LENGTH, 26},
    {WITH("Content-Length: "), 0, AG_GUARD_LENGTH, 26},
    {WITH("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), 0,
     AG_GUARD_CODING_TWICE, 54},
    {WITH("Transfer-Encoding: gzip, chunked"), 0, AG_GUARD_CODING, 26},
    {WITH("Transfer-Encoding: chunked\r\nContent-Length: 1"), 0, AG_GUARD_BOTH, 75},
    {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 0, AG_GUARD_CODING_OLD,
     47},
    {"GET / HTTP/1.1\r\n\r\n", 0, AG_GUARD_NO_HOST, 18},
    {WITH("host: a"), 0, AG_GUARD_HOST_TWICE, 26},
    {"GET / HTTP/1.1\r\nHost: \r\n\r\n", 0, AG_GUARD_HOST, 16},
    {"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 0, AG_GUARD_HOST, 16},
    {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 0, AG_GUARD_HOST, 16},
    {"GET / HTTP/1.1\r\nHost: [a\r\n\r\n", 0, AG_GUARD_HOST, 16},
    {"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 0, AG_GUARD_AUTHORITY, 35},
    {"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 0, AG_GUARD_BODY, 46},
    {WITH("Expect: 100-continue"), 0, AG_GUARD_EXPECT, 50},
    {WITH("Expect: x\r\nContent-Length: 1"), 0, AG_GUARD_EXPECT, 26},
    {WITH("Connection: close, content_length"), 0, AG_GUARD_CONNECTION, 26},
    {WITH("Upgrade: x") GET, 1, AG_GUARD_UPGRADE, 0},
    {WITH("Connection: close") GET, 1, AG_GUARD_AFTER_CLOSE, 0},
    {"GET / HTTP/1.0\r\n\r\nx", 1, AG_GUARD_AFTER_CLOSE, 0},
    {CHUNKED "x", 0, AG_GUARD_CHUNK_SIZE, 56},
    {CHUNKED "\r\n", 0, AG_GUARD_CHUNK_SIZE, 56},
    {CHUNKED "5 \r\n", 0, AG_GUARD_CHUNK_SIZE, 57},
    {CHUNKED "8000000000000000", 0, AG_GUARD_CHUNK_SIZE, 71},
    {CHUNKED "00000000000000001", 0, AG_GUARD_CHUNK_SIZE, 72},
    {CHUNKED "5;", 0, AG_GUARD_CHUNK_EXTENSION, 57},
    {CHUNKED "1\rx", 0, AG_GUARD_CHUNK_END, 58},
    {CHUNKED "1\r\nxy", 0, AG_GUARD_CHUNK_END, 60},
    {CHUNKED "1\r\nx\rz", 0, AG_GUARD_CHUNK_END, 61},
    {CHUNKED "0\r\nX: y", 0, AG_GUARD_TRAILERS, 59},
    {CHUNKED "0\r\n\rx", 0, AG_GUARD_CHUNK_END, 60},
};

static void
whole_and_at_every_split(void)
{
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *stream = cases[i].stream;
        size_t n = strlen(stream);
        struct ag_guard guard;
        struct seen whole = {0};
        ag_guard_init(&guard, &defaults);
        feed(&guard, stream, n, &whole);
        ag_guard_clear(&guard);
        if (whole.messages != cases[i].messages || whole.fault != cases[i].fault ||
            whole.offset != cases[i].offset) {
            CHECK_FAIL("%s\n: %zu messages, %s (%d) at %" PRIu64, stream,
                       whole.messages, ag_guard_say(whole.fault).text, (int)whole.fault,
                       whole.offset);
        }
        for (size_t cut = 0; cut <= n; cut++) {
            struct seen parts = {0};
            ag_guard_init(&guard, &defaults);
            feed(&guard, stream, cut, &parts);
            if (parts.status == AG_OK) {
                feed(&guard, stream + cut, n - cut, &parts);
            }
            ag_guard_clear(&guard);
            compare(&whole, &parts);
        }
        struct seen octets = {0};
        ag_guard_init(&guard, &defaults);
        for (size_t k = 0; k < n && octets.status == AG_OK; k++) {
            feed(&guard, stream + k, 1, &octets);
        }
        compare(&whole, &octets);
        if (octets.status != AG_OK) { /* and it stays so */
            feed(&guard, GET, strlen(GET), &octets);
            ASSERT_EQ(octets.status, AG_EVERIFY);
            ASSERT_EQ(guard.state, AG_GUARD_REFUSED);
            compare(&whole, &octets);
        }
        ag_guard_clear(&guard);
        ASSERT_EQ(ag_test_live_blocks(), 0);
    }
}

static void
every_fault_has_words(void)
{
    bool seen[64] = {false};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        seen[cases[i].fault] = true;
    }
    seen[AG_GUARD_HEAD_SIZE] = seen[AG_GUARD_FIELDS] = true; /* below */
    for (int fault = AG_GUARD_START; fault <= AG_GUARD_TRAILERS; fault++) {
        ASSERT(seen[fault]);
        struct ag_guard_said said = ag_guard_say((enum ag_guard_fault)fault);
        ASSERT(said.status >= 400 && said.code[0] != '\0');
        ASSERT_EQ(said.text[strlen(said.text) - 1], '.');
    }
}

static void
limits(void)
{
    struct ag_guard_options options = {64, 3, true};
    struct ag_guard guard;
    char head[256];
    for (size_t extra = 0; extra < 60; extra++) {
        struct seen seen = {0};
        int n =
            sprintf(head, "GET / HTTP/1.1\r\nHost: a\r\nX: %.*s\r\n\r\n", (int)extra,
                    "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
        ag_guard_init(&guard, &options);
        feed(&guard, head, (size_t)n, &seen);
        ASSERT_EQ(seen.status, n <= 64 ? AG_OK : AG_EVERIFY);
        ASSERT(n <= 64 || (seen.fault == AG_GUARD_HEAD_SIZE && seen.offset == 64));
        ag_guard_clear(&guard);
    }
    struct seen seen = {0};
    ag_guard_init(&guard, &options);
    const char *four = "GET / HTTP/1.1\r\nHost: a\r\nA:\r\nB:\r\nC:\r\n\r\n";
    feed(&guard, four, strlen(four), &seen);
    ASSERT_EQ(seen.fault, AG_GUARD_FIELDS);
    ASSERT_EQ_U(seen.offset, 33);
    ag_guard_clear(&guard);

    const char *upgrade =
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: "
        "websocket\r\n\r\n";
    options.head_bytes = 1000;
    ag_guard_init(&guard, &options);
    memset(&seen, 0, sizeof(seen));
    feed(&guard, upgrade, strlen(upgrade), &seen);
    ASSERT_EQ_U(seen.size, strlen(upgrade)); /* kept */
    ag_guard_answered(&guard);
    feed(&guard, GET, strlen(GET), &seen);
    ASSERT_EQ_U(seen.messages, 2);
    ag_guard_clear(&guard);
}

static void
without_memory(void)
{
    const char *streams[] = {WITH("Upgrade: h2c\r\nX: y"), GET};
    for (size_t i = 0; i < 2; i++) {
        size_t n = strlen(streams[i]);
        for (long fail = 1; fail < 4; fail++) {
            struct ag_guard guard;
            struct seen seen = {0};
            ag_guard_init(&guard, &defaults);
            ag_test_fail_alloc_at(fail);
            feed(&guard, streams[i], n - 3, &seen);
            if (seen.status == AG_OK) {
                feed(&guard, streams[i] + n - 3, 3, &seen);
            }
            ASSERT(seen.status == AG_ENOMEM || seen.messages == 1);
            ASSERT(fail > 1 || seen.status == AG_ENOMEM);
            ag_guard_clear(&guard);
            ASSERT_EQ(ag_test_live_blocks(), 0);
        }
    }
    ag_test_fail_alloc_at(0);
    long calls = ag_test_alloc_calls();
    struct ag_guard guard;
    struct seen seen = {0};
    ag_guard_init(&guard, &defaults);
    feed(&guard, GET GET, 2 * strlen(GET), &seen);
    ag_guard_clear(&guard);
    ASSERT_EQ(ag_test_alloc_calls(), calls); /* heads that come whole need none */
}

int
main(void)
{
    RUN(whole_and_at_every_split);
    RUN(every_fault_has_words);
    RUN(limits);
    RUN(without_memory);
    return 0;
}
