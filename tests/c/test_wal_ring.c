// links: ring_trace
/* The ring: a kill between any two stores, whatever the bytes say, and two threads. */
#include <pthread.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "hash/crc32c.h"
#include "wal/format.h"
#include "wal/ring.h"

/* The ring as a kill right now would leave it. */
static struct {
    const struct ag_ring *ring;
    uint8_t *image; /* owned: the file */
    size_t size;
    uint64_t returned, durable; /* what the caller was told */
    uint64_t states;
    bool on;
} kill_now;

static uint32_t
payload_of(uint64_t seq, uint8_t *to)
{
    uint64_t state = seq;
    uint32_t n = 1 + (uint32_t)check_random(&state) % 400;
    for (uint32_t i = 0; i < n; i++) {
        to[i] = (uint8_t)check_random(&state);
    }
    return n;
}

void ag_ring_trace(void);

/* What the next process finds: whole records, in order, none missing, none twice. */
void
ag_ring_trace(void)
{
    struct ag_ring_view view;
    struct ag_ring_entry entry;
    static uint8_t payload[AG_WAL_PAYLOAD_MAX], expected[512];
    if (!kill_now.on) {
        return;
    }
    memcpy(kill_now.image, (const void *)kill_now.ring->header, AG_RING_PAGE);
    memcpy(kill_now.image + AG_RING_PAGE, kill_now.ring->data, kill_now.ring->capacity);
    ASSERT_EQ(ag_ring_parse(kill_now.image, kill_now.size, &view), AG_OK);
    uint64_t position = view.head, previous = 0;
    int got;
    while ((got = ag_ring_next(&view, &position, previous, payload, &entry)) == 1) {
        ASSERT_LE_U(previous == 0 ? entry.seq : 0, kill_now.durable + 1);
        uint32_t n = payload_of(entry.seq, expected);
        ASSERT_EQ_U(entry.n, n);
        ASSERT_EQ_MEM(payload, expected, n);
        previous = entry.seq;
    }
    ASSERT_EQ(got, 0); /* below the tail there are whole records only */
    ASSERT_LE_U(view.durable_seq, kill_now.durable);
    if (previous == 0) {
        ASSERT_LE_U(kill_now.returned, kill_now.durable);
    } else {
        ASSERT_LE_U(kill_now.returned, previous);
    }
    kill_now.states++;
}

static void
make_ring(struct ag_ring *ring, char *path, size_t size)
{
    struct ag_error err;
    uint8_t boot[AG_RING_BOOT] = {1};
    (void)snprintf(path, 64, "/dev/shm/aegis-test-%d.ring", (int)getpid());
    (void)unlink(path);
    memset(ring, 0, sizeof(*ring));
    ASSERT_EQ(ag_ring_create(ag_io_posix(), path, size, ring, &err), AG_OK);
    ag_ring_begin(ring, 42, 1, boot);
}

static void
test_kill_between_any_two_stores(void)
{
    struct ag_ring ring;
    char path[64];
    make_ring(&ring, path, AG_RING_MIN);
    uint64_t rng = check_seed(7), seq = 0, freed = 0, freed_position = 0;
    uint8_t payload[512];
    kill_now.ring = &ring;
    kill_now.size = AG_RING_PAGE + ring.capacity;
    kill_now.image = malloc(kill_now.size);
    ASSERT_NOT_NULL(kill_now.image);
    kill_now.on = true;
    for (int step = 0; step < 1500; step++) {
        uint32_t n = payload_of(seq + 1, payload);
        uint8_t *to = NULL;
        if (ag_ring_reserve(&ring, n, &to) == AG_OK) {
            for (uint32_t i = 0; i < n; i++) {
                to[i] = payload[i];
                if (i % 97 == 0) {
                    ag_ring_trace();
                }
            }
            ag_ring_commit(&ring, n, ++seq);
            kill_now.returned = seq;
        }
        if (check_random(&rng) % 3 == 0) {
            uint64_t up_to = freed + check_random(&rng) % (seq - freed + 1);
            const uint8_t *data = NULL;
            while (freed < up_to) {
                struct ag_ring_entry entry = ag_ring_at(&ring, freed_position, &data);
                ASSERT_EQ_U(entry.seq, freed + 1);
                freed_position = ag_ring_entry_end(&entry);
                freed++;
            }
            kill_now.durable = freed;
            ag_ring_free(&ring, freed_position, freed);
        }
    }
    kill_now.on = false;
    fprintf(stderr, "    %" PRIu64 " states, sequence %" PRIu64 "\n", kill_now.states,
            seq);
    ASSERT_LT_U(500, seq);
    free(kill_now.image);
    ag_ring_unmap(ag_io_posix(), &ring);
    ASSERT_EQ(unlink(path), 0);
}

/* Whatever is in the file, reading it ends, and gives whole records or says no. */
static void
test_any_bytes(void)
{
    struct ag_ring ring;
    char path[64];
    make_ring(&ring, path, AG_RING_MIN);
    uint64_t rng = check_seed(11), given = 0;
    uint8_t payload[512], *to = NULL;
    uint8_t *out = malloc(AG_WAL_PAYLOAD_MAX);
    size_t size = AG_RING_PAGE + ring.capacity;
    uint8_t *image = malloc(size), *damaged = malloc(size);
    for (uint64_t seq = 1; seq <= 40; seq++) {
        uint32_t n = payload_of(seq, payload);
        ASSERT_EQ(ag_ring_reserve(&ring, n, &to), AG_OK);
        memcpy(to, payload, n);
        ag_ring_commit(&ring, n, seq);
    }
    memcpy(image, (const void *)ring.header, AG_RING_PAGE);
    memcpy(image + AG_RING_PAGE, ring.data, ring.capacity);
    for (int round = 0; round < 40000; round++) {
        struct ag_ring_view view;
        struct ag_ring_entry entry;
        memcpy(damaged, image, size);
        size_t range = round % 3 == 0 ? 256 : AG_RING_PAGE + 9000;
        for (uint64_t k = 0; k <= check_random(&rng) % 4; k++) {
            damaged[check_random(&rng) % range] ^=
                (uint8_t)(1u << check_random(&rng) % 8);
        }
        if (ag_ring_parse(damaged, size, &view) != AG_OK) {
            continue;
        }
        uint64_t position = view.head, previous = 0;
        while (ag_ring_next(&view, &position, previous, out, &entry) == 1) {
            uint32_t n = payload_of(entry.seq, payload);
            ASSERT_EQ_U(entry.n, n);
            ASSERT_EQ_MEM(out, payload, n);
            previous = entry.seq;
            given++;
        }
    }
    ASSERT_LT_U(1000, given);
    free(out);
    free(image);
    free(damaged);
    ag_ring_unmap(ag_io_posix(), &ring);
    ASSERT_EQ(unlink(path), 0);
}

struct race {
    struct ag_ring ring;
    _Atomic uint64_t durable;
    _Atomic uint64_t copied, missed;
};

static void *
consume(void *arg)
{
    struct race *race = arg;
    uint64_t position = 0, seq = 0;
    uint8_t expected[512];
    while (seq < 20000) {
        struct ag_ring_view view = ag_ring_look(&race->ring);
        while (position < view.tail) {
            const uint8_t *data = NULL;
            struct ag_ring_entry entry = ag_ring_at(&race->ring, position, &data);
            ASSERT_EQ_U(entry.seq, seq + 1);
            ASSERT_EQ_U(entry.n, payload_of(entry.seq, expected));
            ASSERT_EQ_MEM(data, expected, entry.n);
            position = ag_ring_entry_end(&entry);
            seq++;
        }
        ag_ring_free(&race->ring, position, seq);
        atomic_store(&race->durable, seq);
    }
    return NULL;
}

/* A third thread that comes late: what it gets is right or refused. */
__attribute__((unused)) static void *
look_on(void *arg)
{
    struct race *race = arg;
    uint64_t position = 0, seq = 1;
    uint8_t got[512], expected[512];
    while (atomic_load(&race->durable) < 20000) {
        struct ag_ring_entry entry;
        if (ag_ring_copy(&race->ring, position, seq, got, sizeof(got), &entry) == 1) {
            ASSERT_EQ_U(entry.n, payload_of(seq, expected));
            ASSERT_EQ_MEM(got, expected, entry.n);
            atomic_fetch_add(&race->copied, 1);
            position = ag_ring_entry_end(&entry);
            seq++;
        } else if (atomic_load(&race->durable) > seq + 8) {
            /* Overtaken: go on at the head. */
            struct ag_ring_view view = ag_ring_look(&race->ring);
            uint8_t head[AG_RING_ENTRY];
            atomic_fetch_add(&race->missed, 1);
            memcpy(head, view.data + view.head % view.capacity, sizeof(head));
            position = view.head;
            memcpy(&seq, head + 8, 8);
        }
    }
    return NULL;
}

static void
test_threads(void)
{
    static struct race race;
    char path[64];
    make_ring(&race.ring, path, AG_RING_MIN);
    pthread_t consumer;
    uint8_t payload[512], *to = NULL;
    ASSERT_EQ(pthread_create(&consumer, NULL, consume, &race), 0);
#if !defined(__SANITIZE_THREAD__)
    /* (The look at the head above is a race on purpose.) */
    pthread_t onlooker;
    ASSERT_EQ(pthread_create(&onlooker, NULL, look_on, &race), 0);
#endif
    for (uint64_t seq = 1; seq <= 20000; seq++) {
        uint32_t n = payload_of(seq, payload);
        while (ag_ring_reserve(&race.ring, n, &to) != AG_OK) {
            usleep(10);
        }
        memcpy(to, payload, n);
        ag_ring_commit(&race.ring, n, seq);
    }
    ASSERT_EQ(pthread_join(consumer, NULL), 0);
#if !defined(__SANITIZE_THREAD__)
    ASSERT_EQ(pthread_join(onlooker, NULL), 0);
#endif
    fprintf(stderr, "    %" PRIu64 " copied, %" PRIu64 " times overtaken\n",
            atomic_load(&race.copied), atomic_load(&race.missed));
    ag_ring_unmap(ag_io_posix(), &race.ring);
    ASSERT_EQ(unlink(path), 0);
}

static void
test_refused_files(void)
{
    struct ag_ring ring;
    struct ag_error err;
    char path[64];
    make_ring(&ring, path, AG_RING_MIN);
    struct ag_ring other;
    ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_ELOCKED);
    ASSERT_EQ(ag_ring_create(ag_io_posix(), path, AG_RING_MIN, &other, &err), AG_EIO);
    ring.header->magic[7] = 9;
    ring.header->crc =
        ag_crc32c_mask(ag_crc32c(0, ring.header, offsetof(struct ag_ring_header, crc)));
    ag_ring_unmap(ag_io_posix(), &ring);
    ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_EVERSION);
    ASSERT_EQ(truncate(path, 5000), 0);
    ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_ECORRUPT);
    ASSERT_EQ(unlink(path), 0);
    ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_ENOTFOUND);
}

/* A process that dies between making the file and writing its header leaves a ring that
 * never held anything; one with anything in its header page is another matter. */
static void
test_making_cut_short(void)
{
    struct ag_ring ring, other;
    struct ag_error err;
    char path[64];
    make_ring(&ring, path, AG_RING_MIN);
    memset(ring.header, 0, AG_RING_PAGE);
    ag_ring_unmap(ag_io_posix(), &ring);
    ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_ENOTFOUND);
    ASSERT_EQ(truncate(path, 0), 0);
    ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_ENOTFOUND);
    ASSERT_EQ(unlink(path), 0);
    for (size_t at = 0; at < AG_RING_PAGE; at += 127) {
        make_ring(&ring, path, AG_RING_MIN);
        memset(ring.header, 0, AG_RING_PAGE);
        ((uint8_t *)ring.header)[at] = 1;
        ag_ring_unmap(ag_io_posix(), &ring);
        ASSERT_EQ(ag_ring_attach(ag_io_posix(), path, &other, &err), AG_ECORRUPT);
        ASSERT_EQ(unlink(path), 0);
    }
}

/* Other threads read head and tail one after the other; when the producer has gone
 * round in between, there is no room, and never more than the ring has. */
static void
test_room_seen_late(void)
{
    struct ag_ring_header header = {.capacity = AG_RING_MIN};
    struct ag_ring ring = {.header = &header, .capacity = AG_RING_MIN};
    ASSERT_EQ_U(ag_ring_room(&ring), AG_RING_MIN);
    for (uint64_t tail = 0; tail <= 3 * (uint64_t)AG_RING_MIN; tail += 8) {
        atomic_store(&header.tail, tail);
        ASSERT_EQ_U(ag_ring_room(&ring), tail < AG_RING_MIN ? AG_RING_MIN - tail : 0);
    }
}

int
main(void)
{
    RUN(test_kill_between_any_two_stores);
    RUN(test_any_bytes);
    RUN(test_room_seen_late);
    RUN(test_threads);
    RUN(test_refused_files);
    RUN(test_making_cut_short);
    return 0;
}
