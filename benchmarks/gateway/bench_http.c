/* Mock upstream and load generator of the gateway benchmark: HTTP/1.1 over loopback,
 * one thread, epoll. In C, because both share a core with nothing else and must cost
 * far less than what is measured.
 *
 *   bench_http serve [PORT]
 *     Prints its address, serves until standard input ends. Every POST is answered with
 * the same chat completion of 1,370 bytes, or, when the first bytes of its body hold
 *     `"stream":true`, with 32 events, one every 20 ms, then [DONE].
 * `"model":"mock-<n>ms"` delays a plain answer by n ms.
 *
 *   bench_http load PORT CONNECTIONS SECONDS REQUESTS [RAMP] < one whole request
 *     Closed loop: each connection sends the request, reads the whole reply, sends it
 *     again, until SECONDS have passed or REQUESTS (0: no bound) were sent. The first
 *     requests go out at once, or evenly over RAMP seconds. Prints one
 *     JSON object; latencies are in microseconds, from before the first byte is sent to
 *     after the last is read (`first`: to the first byte of the body). A reply other
 * than 200 and a broken connection are errors; the latter ends that connection. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    HEAD_MAX = 8192,
    BODY_KEPT = 256, /* bytes of a request's body that serve() looks at */
    EVENTS = 32,
    EVENT_GAP_MS = 20,
    SAMPLES_MAX = 1 << 22,
};

static void
die(const char *what)
{
    fprintf(stderr, "bench_http: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t
now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void *
allocate(size_t n, size_t size)
{
    void *memory = calloc(n, size);
    if (memory == NULL)
        die("memory");
    return memory;
}

/* ---- one message, request or reply, as it comes in ---------------------------------
 */

enum state { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, DONE };

struct message {
    enum state state;
    int status;      /* of a reply */
    uint64_t left;   /* bytes of the body or of the chunk */
    uint64_t body;   /* bytes of the body so far */
    uint64_t events; /* blank lines in the body: ends of events */
    char last;       /* last byte of the body so far */
    size_t head_n, kept_n;
    char head[HEAD_MAX + 1];
    char kept[BODY_KEPT + 1];
};

static void
message_begin(struct message *m)
{
    m->state = HEAD;
    m->status = 0;
    m->left = m->body = m->events = 0;
    m->last = 0;
    m->head_n = m->kept_n = 0;
    m->kept[0] = 0;
}

static void
message_body(struct message *m, const char *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        m->events += data[i] == '\n' && m->last == '\n';
        m->last = data[i];
    }
    m->body += n;
    size_t keep = n < BODY_KEPT - m->kept_n ? n : BODY_KEPT - m->kept_n;
    memcpy(m->kept + m->kept_n, data, keep);
    m->kept_n += keep;
    m->kept[m->kept_n] = 0;
}

/* The head is complete: what follows it? False when it cannot be read. */
static bool
message_head(struct message *m)
{
    m->head[m->head_n] = 0;
    if (memcmp(m->head, "HTTP/1.", 7) == 0)
        m->status = atoi(m->head + 9);
    char *length = strcasestr(m->head, "\r\ncontent-length:");
    m->head_n = 0; /* the buffer now collects chunk sizes */
    if (length != NULL) {
        m->left = strtoull(length + 17, NULL, 10);
        m->state = m->left ? BODY : DONE;
        return true;
    }
    if (strcasestr(m->head, "\r\ntransfer-encoding: chunked") != NULL) {
        m->state = CHUNK_SIZE;
        return true;
    }
    m->state = DONE;
    return m->status == 0; /* a request without a body; a reply must say its length */
}

/* Takes up to n bytes; returns how many belong to this message, or -1. */
static ssize_t
message_feed(struct message *m, const char *data, size_t n)
{
    size_t i = 0;
    while (i < n && m->state != DONE) {
        if (m->state == BODY || m->state == CHUNK_DATA) {
            size_t take = m->left < n - i ? m->left : n - i;
            message_body(m, data + i, take);
            i += take;
            m->left -= take;
            if (m->left == 0)
                m->state = m->state == BODY ? DONE : CHUNK_END;
            continue;
        }
        if (m->head_n == HEAD_MAX)
            return -1;
        m->head[m->head_n++] = data[i++];
        if (data[i - 1] != '\n')
            continue;
        if (m->state == HEAD) {
            if (m->head_n >= 4 && memcmp(m->head + m->head_n - 4, "\r\n\r\n", 4) == 0 &&
                !message_head(m))
                return -1;
        } else if (m->state == CHUNK_SIZE) {
            m->left = strtoull(m->head, NULL, 16);
            m->state = m->left ? CHUNK_DATA : TRAILER;
            m->head_n = 0;
        } else { /* CHUNK_END, TRAILER: a line */
            if (m->state == CHUNK_END)
                m->state = CHUNK_SIZE;
            else if (m->head_n == 2)
                m->state = DONE;
            m->head_n = 0;
        }
    }
    return (ssize_t)i;
}

static void
set_nodelay(int fd)
{
    int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0)
        die("TCP_NODELAY");
}

static void
watch(int poll, int fd, void *data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};
    if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event) != 0)
        die("epoll_ctl");
}

/* Small writes to sockets that are read at once: a full buffer counts as broken. */
static bool
write_all(int fd, const char *data, size_t n)
{
    return send(fd, data, n, MSG_NOSIGNAL) == (ssize_t)n;
}

/* ---- serve
 * --------------------------------------------------------------------------- */

struct client {
    int fd;
    uint64_t due; /* when to write next; 0: nothing to write */
    int events;   /* left of a stream; 0: a plain answer is due */
    struct client *next;
    struct message request;
};

/* Plain prose, so that a gateway that looks at replies finds nothing in them. */
static const char TEXT[] =
    "A lighthouse keeper once told me that the lamp is the easy part. "
    "What takes a lifetime is the book beside it: when the wind "
    "turned, which ship passed, how long the fog held, who rowed out "
    "with oil and bread. Nobody reads those pages in a quiet year. "
    "Then a hull breaks on the northern reef, lawyers arrive from "
    "three harbours, and suddenly each line matters, down to the "
    "minute and the colour of the sky. He wrote in ink, numbered every "
    "sheet, and left no gap that somebody could fill later. His "
    "predecessor had used a pencil. That man's log burned in the stove "
    "one winter, and a captain lost his licence because no witness "
    "could say whether the light had failed. Since then two copies are "
    "kept, one ashore, and at noon on Sundays the postmaster stamps "
    "both. I asked whether this was not too much trouble for a rock "
    "with nine sheep. He laughed, trimmed the wick, and pointed at the "
    "water. Out there, he said, people steer by what they cannot "
    "check; the least I owe them is a record that others can. Before "
    "dawn we carried coal, boiled eggs over the paraffin burner and "
    "argued about football until the relief boat came round the point, "
    "late as usual, flying a borrowed flag. ";
static const char EVENT[] =
    "data: "
    "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\",\"created\":1,"
    "\"model\":\"mock-1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"%.*s\"},"
    "\"finish_reason\":null}]}\n\n";
static char reply[2048];
static size_t reply_n;
static char event_chunk[EVENTS][512]; /* a word each */
static size_t event_chunk_n[EVENTS];

static void
make_replies(void)
{
    static const char front[] =
        "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1,"
        "\"model\":\"mock-1\",\"choices\":[{\"index\":0,\"message\":{\"role\":"
        "\"assistant\",\"content\":\"";
    static const char back[] = "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_"
                               "tokens\":120,\"completion_tokens\":240,"
                               "\"total_tokens\":360}}";
    const int body_n = 1370;
    int n = snprintf(reply, sizeof reply,
                     "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                     "Content-Length: %d\r\n\r\n%s",
                     body_n, front);
    for (size_t i = 0; i < body_n - strlen(front) - strlen(back); i++)
        reply[n++] = TEXT[i % (sizeof TEXT - 1)];
    memcpy(reply + n, back, strlen(back));
    reply_n = (size_t)n + strlen(back);
    const char *word = TEXT;
    for (size_t i = 0; i < EVENTS; i++) {
        char event[400];
        int word_n = (int)strcspn(word, " ") + 1;
        int event_n = snprintf(event, sizeof event, EVENT, word_n, word);
        event_chunk_n[i] = (size_t)snprintf(event_chunk[i], sizeof event_chunk[i],
                                            "%x\r\n%s\r\n", (unsigned)event_n, event);
        word += word_n;
    }
}

/* Writes what is due; false when the client is gone. */
static bool
client_write(struct client *c)
{
    if (c->events == 0) {
        c->due = 0;
        return write_all(c->fd, reply, reply_n);
    }
    if (c->events == EVENTS) {
        static const char head[] =
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            "Transfer-Encoding: chunked\r\n\r\n";
        if (!write_all(c->fd, head, sizeof head - 1))
            return false;
    }
    c->due += EVENT_GAP_MS * 1000000u;
    size_t i = (size_t)(EVENTS - c->events);
    if (!write_all(c->fd, event_chunk[i], event_chunk_n[i]))
        return false;
    if (--c->events > 0)
        return true;
    static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    c->due = 0;
    return write_all(c->fd, end, sizeof end - 1);
}

/* A whole request is there. */
static bool
client_answer(struct client *c)
{
    const struct message *m = &c->request;
    c->due = now_ns();
    c->events = 0;
    if (memmem(m->kept, m->kept_n, "\"stream\":true", 13) != NULL) {
        c->events = EVENTS;
        return client_write(c);
    }
    const char *name = memmem(m->kept, m->kept_n, "\"model\":\"mock-", 14);
    const long ms = name == NULL ? 0 : strtol(name + 14, NULL, 10);
    const char *unit = name == NULL ? "" : name + 14 + strspn(name + 14, "0123456789");
    if (ms > 0 && strncmp(unit, "ms", 2) == 0) {
        c->due += (uint64_t)ms * 1000000u;
        return true;
    }
    return client_write(c);
}

static bool
client_read(struct client *c)
{
    static char data[65536];
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n <= 0)
        return n < 0 && (errno == EAGAIN || errno == EINTR);
    for (ssize_t at = 0; at < n;) {
        ssize_t used = message_feed(&c->request, data + at, (size_t)(n - at));
        if (used < 0)
            return false;
        at += used;
        if (c->request.state == DONE) {
            if (!client_answer(c))
                return false;
            message_begin(&c->request);
        }
    }
    return true;
}

/* Milliseconds until the next client is due, -1 for never; writes what is due now. */
static int
serve_due(struct client *clients)
{
    uint64_t next = UINT64_MAX, now = now_ns();
    for (struct client *c = clients; c != NULL; c = c->next) {
        if (c->due != 0 && c->due <= now && !client_write(c)) {
            c->due = 0;
            shutdown(c->fd, SHUT_RDWR); /* its next read says that it is gone */
        }
        if (c->due != 0 && c->due < next)
            next = c->due;
    }
    if (next == UINT64_MAX)
        return -1;
    return next <= now ? 0 : (int)((next - now + 999999) / 1000000);
}

static void
client_free(struct client **clients, struct client *gone)
{
    struct client **at = clients;
    while (*at != gone)
        at = &(*at)->next;
    *at = gone->next;
    close(gone->fd);
    free(gone);
}

static int
serve(int port)
{
    make_replies();
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_n = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int poll = epoll_create1(0);
    int on = 1; /* a port that was in use a moment ago */
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (listener < 0 || bind(listener, (void *)&address, sizeof address) != 0 ||
        listen(listener, 4096) != 0 ||
        getsockname(listener, (void *)&address, &address_n) != 0 || poll < 0)
        die("listen");
    struct client *clients = NULL;
    int input = 0; /* its address stands for standard input */
    watch(poll, STDIN_FILENO, &input);
    watch(poll, listener, NULL);
    printf("listening on http://127.0.0.1:%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[256];
        int n = epoll_wait(poll, events, 256, serve_due(clients));
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == &input)
                return 0;
            struct client *c = events[i].data.ptr;
            if (c != NULL) {
                if (!client_read(c))
                    client_free(&clients, c);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd < 0)
                continue;
            set_nodelay(fd);
            c = allocate(1, sizeof *c);
            c->fd = fd;
            c->next = clients;
            clients = c;
            watch(poll, fd, c);
        }
    }
}

/* ---- load
 * ---------------------------------------------------------------------------- */

struct connection {
    int fd;
    uint64_t sent;  /* when the request was sent; 0: idle */
    uint64_t first; /* when the first byte of the body came */
    struct message reply;
};

struct load {
    const char *request;
    size_t request_n;
    uint64_t started, last, until, left; /* left: requests that may still be sent */
    uint64_t done, errors, events, bytes;
    int busy;
    uint32_t *total, *first; /* nanoseconds / 100 */
    size_t samples;
};

static bool
load_send(struct load *load, struct connection *c)
{
    const uint64_t now = now_ns();
    c->sent = 0;
    if (load->left == 0 || now >= load->until)
        return true;
    load->left--;
    message_begin(&c->reply);
    c->sent = now;
    c->first = 0;
    load->busy++;
    return write_all(c->fd, load->request, load->request_n);
}

static void
load_done(struct load *load, struct connection *c, uint64_t now)
{
    load->busy--;
    load->last = now;
    load->done++;
    if (c->reply.status != 200 && load->errors++ == 0)
        fprintf(stderr, "first wrong reply: %d %s\n", c->reply.status, c->reply.kept);
    load->events += c->reply.events;
    load->bytes += c->reply.body;
    if (load->samples < SAMPLES_MAX) {
        load->total[load->samples] = (uint32_t)((now - c->sent) / 100);
        load->first[load->samples++] = (uint32_t)((c->first - c->sent) / 100);
    }
}

/* False when the connection is of no more use. */
static bool
load_read(struct load *load, struct connection *c)
{
    static char data[65536];
    ssize_t n = recv(c->fd, data, sizeof data, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return true;
    if (n <= 0 || c->sent == 0)
        return false;
    ssize_t used = message_feed(&c->reply, data, (size_t)n);
    const uint64_t now = now_ns();
    if (c->first == 0 && c->reply.body > 0)
        c->first = now;
    if (used < n)
        return false; /* more than one reply, or none that can be read */
    if (c->reply.state != DONE)
        return true;
    if (c->first == 0)
        c->first = now;
    load_done(load, c, now);
    return load_send(load, c);
}

static int
compare(const void *a, const void *b)
{
    const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void
print_quantiles(const char *name, uint32_t *samples, size_t n)
{
    qsort(samples, n, sizeof *samples, compare);
    const double at[] = {0.5, 0.99, 1.0};
    const char *names[] = {"p50", "p99", "max"};
    for (int i = 0; i < 3; i++) {
        size_t k = n == 0 ? 0 : (size_t)(at[i] * (double)(n - 1) + 0.5);
        printf(", \"%s_%s\": %.1f", name, names[i], n ? (double)samples[k] / 10 : 0.0);
    }
}

static int
load(int port, int connections, double seconds, uint64_t requests, double ramp)
{
    static char request[1 << 20];
    struct load l = {
        .request = request,
        .request_n = fread(request, 1, sizeof request, stdin),
        .left = requests ? requests : UINT64_MAX,
        .total = allocate(SAMPLES_MAX, sizeof(uint32_t)),
        .first = allocate(SAMPLES_MAX, sizeof(uint32_t)),
    };
    if (l.request_n == 0 || l.request_n > 16384)
        die("standard input must hold one request of at most 16 KiB");
    alarm((unsigned)seconds + 60); /* whatever hangs ends */
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct connection *all = allocate((size_t)connections, sizeof *all);
    int poll = epoll_create1(0);
    for (int i = 0; i < connections; i++) {
        all[i].fd = socket(AF_INET, SOCK_STREAM, 0);
        if (all[i].fd < 0 || connect(all[i].fd, (void *)&address, sizeof address) != 0)
            die("connect");
        set_nodelay(all[i].fd);
        if (fcntl(all[i].fd, F_SETFL, O_NONBLOCK) != 0)
            die("O_NONBLOCK");
        watch(poll, all[i].fd, &all[i]);
    }
    l.started = l.last = now_ns();
    l.until = l.started + (uint64_t)(seconds * 1e9);
    int begun = 0;
    while (l.busy > 0 || begun < connections) {
        const double passed = (double)(now_ns() - l.started) / 1e9;
        for (; begun < connections && passed * connections >= ramp * begun; begun++) {
            if (!load_send(&l, &all[begun]))
                die("send");
        }
        struct epoll_event events[256];
        int n = epoll_wait(poll, events, 256, begun < connections ? 1 : -1);
        if (n < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (load_read(&l, c))
                continue;
            if (c->sent != 0) {
                if (l.errors++ == 0)
                    fprintf(stderr, "a connection broke\n");
                l.busy--;
            }
            close(c->fd);
        }
    }
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    const double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                       (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    const double took = (double)(l.last - l.started) / 1e9;
    printf(
        "{\"requests\": %llu, \"errors\": %llu, \"seconds\": %.6f, \"load_cpu\": %.6f",
        (unsigned long long)l.done, (unsigned long long)l.errors, took, cpu);
    printf(", \"events\": %llu, \"bytes\": %llu", (unsigned long long)l.events,
           (unsigned long long)l.bytes);
    print_quantiles("total", l.total, l.samples);
    print_quantiles("first", l.first, l.samples);
    printf("}\n");
    return 0;
}

int
main(int argc, char **argv)
{
    if ((argc == 2 || argc == 3) && strcmp(argv[1], "serve") == 0)
        return serve(argc == 3 ? atoi(argv[2]) : 0);
    if ((argc == 6 || argc == 7) && strcmp(argv[1], "load") == 0)
        return load(atoi(argv[2]), atoi(argv[3]), atof(argv[4]),
                    strtoull(argv[5], NULL, 10), argc == 7 ? atof(argv[6]) : 0);
    fprintf(
        stderr,
        "usage: bench_http serve [PORT]\n"
        "       bench_http load PORT CONNECTIONS SECONDS REQUESTS [RAMP] < request\n");
    return 2;
}
