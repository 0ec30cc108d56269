#include "limit/concurrency.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"

/* As in slot.h. */
#ifndef AG_STEP
#define AG_STEP() ((void)0)
#endif

#define BUCKET 8u
#define SLOTS_MAX (UINT64_C(1) << 24)
#define LINE 64u
#define CELL_MAX 65535u

/* A tag word: 47 bits of the key's hash, 16 of a version that every change raises, and
 * the mark "being taken over". 0: never used. */
#define MARK UINT64_C(1)
#define VERSION_ONE UINT64_C(2)
#define VERSION_MASK UINT64_C(0x1fffe)
#define TAG_MASK (~(VERSION_MASK | MARK))

enum counter { COUNT_FULL, COUNT_REAPED, COUNT_ROWS, COUNT_LAST_REAP };

/* The body: a line per row, the tag words, the cells. */
struct row {
    _Alignas(LINE) _Atomic uint32_t in_use; /* by its holder, or a dead one */
};

struct lease {
    uint32_t slot;
    uint32_t generation; /* of this record; odd while the lease is in force */
    uint32_t next_free;
};

struct ag_concurrency {
    struct row *rows;       /* in the area, like the next two */
    _Atomic uint64_t *tags; /* items */
    uint8_t *cells;         /* items x stride octets */
    size_t stride;
    uint64_t items, buckets;
    uint32_t workers;
    const struct ag_io *io;
    struct ag_area area;
    _Atomic int row;      /* own; -1: none yet in this process */
    pthread_mutex_t lock; /* of what follows; a leaf */
    struct lease *leases; /* owned */
    uint32_t lease_count, lease_room,
        first_free;                         /* first_free: index + 1, 0 for none */
    struct ag_concurrency *next, *previous; /* in `handles` */
};

/* ---- handles and fork ----
 *
 * The one mutable global of the core: a child must drop its copies of the descriptors
 * whose locks say that the parent lives, else a child outliving its parent would keep
 * the parent's row. */

static struct {
    pthread_mutex_t lock; /* taken before a handle's own */
    struct ag_concurrency *first;
} handles = {PTHREAD_MUTEX_INITIALIZER, NULL};

static void
before_fork(void)
{
    pthread_mutex_lock(&handles.lock);
    for (struct ag_concurrency *c = handles.first; c != NULL; c = c->next) {
        pthread_mutex_lock(&c->lock);
    }
}

static void
after_fork_in_parent(void)
{
    for (struct ag_concurrency *c = handles.first; c != NULL; c = c->next) {
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_unlock(&handles.lock);
}

/* Only async-signal-safe calls: the parent may have had threads. */
static void
after_fork_in_child(void)
{
    for (struct ag_concurrency *c = handles.first; c != NULL; c = c->next) {
        int own = c->area.fd;
        char name[] = "/proc/self/fd/0000000000";
        char *digit = name + sizeof(name) - 1;
        for (int fd = own, i = 0; i < 10; i++, fd /= 10) {
            *--digit = (char)('0' + fd % 10);
        }
        while (*digit == '0' && digit[1] != '\0') {
            digit++;
        }
        memmove(name + sizeof("/proc/self/fd/") - 1, digit, strlen(digit) + 1);
        if (own >= 0) { /* the same file again, for locks of its own */
            c->area.fd = open(name, O_RDWR | O_CLOEXEC);
            (void)close(own);
        }
        atomic_store(&c->row, -1);
        c->first_free = 0;
        for (uint32_t i = c->lease_count; i > 0; i--) {
            struct lease *lease = &c->leases[i - 1];
            lease->generation = (lease->generation | 1) + 1;
            lease->next_free = c->first_free;
            c->first_free = i;
        }
        pthread_mutex_unlock(&c->lock);
    }
    pthread_mutex_unlock(&handles.lock);
}

static void
install_fork_handlers(void)
{
    (void)pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
}

static void
link_handle_lock_held(struct ag_concurrency *c)
{
    c->previous = NULL;
    c->next = handles.first;
    if (c->next != NULL) {
        c->next->previous = c;
    }
    handles.first = c;
}

static void
unlink_handle_lock_held(struct ag_concurrency *c)
{
    if (c->previous != NULL) {
        c->previous->next = c->next;
    } else {
        handles.first = c->next;
    }
    if (c->next != NULL) {
        c->next->previous = c->previous;
    }
}

/* ---- geometry ---- */

static size_t
stride_of(uint32_t workers)
{
    return (workers * sizeof(uint16_t) + LINE - 1) / LINE * LINE;
}

static uint64_t
body_of(uint64_t items, uint32_t workers)
{
    if (items < 2 * BUCKET || items % BUCKET != 0 || items > SLOTS_MAX || workers < 1 ||
        workers > AG_WORKERS_MAX) {
        return 0;
    }
    return workers * sizeof(struct row) +
           items * (sizeof(uint64_t) + stride_of(workers));
}

static _Atomic uint16_t *
cell_of(const struct ag_concurrency *c, uint64_t slot, uint32_t row)
{
    return (_Atomic uint16_t *)(void *)(c->cells + slot * c->stride +
                                        row * sizeof(uint16_t));
}

static _Atomic uint64_t *
counter_of(const struct ag_concurrency *c, enum counter which)
{
    return &c->area.header->counters[which];
}

/* ---- rows ---- */

/* Takes (F_WRLCK) or gives back (F_UNLCK) the lock of a row; not waiting. 0 or -errno.
 */
static int
lock_row(const struct ag_concurrency *c, uint32_t row, short type)
{
    struct flock range = {.l_type = type,
                          .l_whence = SEEK_SET,
                          .l_start = (off_t)(AG_AREA_HEADER + row),
                          .l_len = 1};
    return fcntl(c->area.fd, F_OFD_SETLK, &range) == 0 ? 0 : -errno;
}

/* Zeroes the cells of a row whose lock we hold; returns their sum. */
static uint64_t
clear_row(struct ag_concurrency *c, uint32_t row)
{
    uint64_t sum = 0;
    for (uint64_t slot = 0; slot < c->items; slot++) {
        _Atomic uint16_t *cell = cell_of(c, slot, row);
        if (atomic_load_explicit(cell, memory_order_relaxed) != 0) {
            sum += atomic_exchange(cell, 0);
        }
    }
    atomic_store(&c->rows[row].in_use, 0);
    return sum;
}

uint64_t
ag_concurrency_reap(struct ag_concurrency *c)
{
    uint64_t sum = 0;
    pthread_mutex_lock(&c->lock); /* the row and the descriptor stay as they are */
    for (uint32_t row = 0; row < c->workers && c->area.fd >= 0; row++) {
        if ((int)row == atomic_load(&c->row) ||
            atomic_load(&c->rows[row].in_use) == 0 || lock_row(c, row, F_WRLCK) != 0) {
            continue;
        }
        sum += clear_row(c, row);
        (void)lock_row(c, row, F_UNLCK);
    }
    pthread_mutex_unlock(&c->lock);
    atomic_fetch_add(counter_of(c, COUNT_REAPED), sum);
    return sum;
}

/* The child of a fork without /proc opens the file again by its path. */
static int
reopen_lock_held(struct ag_concurrency *c, struct ag_error *err)
{
    struct stat st;
    struct ag_area_header header;
    int fd = c->area.path[0] != '\0'
                 ? c->io->open(c->io->ctx, c->area.path, O_RDWR | O_NOFOLLOW, 0)
                 : -ENOENT;
    if (fd >= 0 && fstat(fd, &st) == 0 && (uint64_t)st.st_size == c->area.bytes &&
        ag_io_read_full(c->io, fd, c->area.path, &header, sizeof(header), 0, NULL) ==
            AG_OK &&
        header.key.k0 == c->area.header->key.k0 &&
        header.key.k1 == c->area.header->key.k1) {
        c->area.fd = fd;
        return AG_OK;
    }
    if (fd >= 0) {
        (void)c->io->close(c->io->ctx, fd);
    }
    int status = ag_fail(err, AG_EFORKED, "the limiter's file cannot be opened again");
    ag_error_file(err, c->area.path, AG_NO_POSITION);
    ag_error_advice(err, "Make the limiter in the child, or mount /proc");
    return status;
}

static int
claim_row_lock_held(struct ag_concurrency *c, struct ag_error *err)
{
    int status = AG_OK;
    if (c->area.fd < 0) {
        status = reopen_lock_held(c, err);
    }
    for (uint32_t row = 0; row < c->workers && status == AG_OK; row++) {
        int result = lock_row(c, row, F_WRLCK);
        if (result == -EAGAIN || result == -EACCES) {
            continue;
        }
        if (result < 0) {
            return ag_fail_sys(err, -result, c->area.path, "lock a row of the limiter");
        }
        if (atomic_load(&c->rows[row].in_use) != 0) { /* its holder died */
            atomic_fetch_add(counter_of(c, COUNT_REAPED), clear_row(c, row));
        }
        atomic_store(&c->rows[row].in_use, 1);
        uint64_t rows = atomic_load(counter_of(c, COUNT_ROWS));
        while (rows < row + 1u && !atomic_compare_exchange_weak(
                                      counter_of(c, COUNT_ROWS), &rows, row + 1u)) {
        }
        atomic_store(&c->row, (int)row);
        return AG_OK;
    }
    if (status == AG_OK) {
        status = ag_fail(err, AG_EFULL, "all %" PRIu32 " rows are held by live workers",
                         c->workers);
        ag_error_file(err, c->area.path, AG_NO_POSITION);
        ag_error_advice(err, "Remove the file when nothing uses it, and make it with "
                             "more workers=");
    }
    return status;
}

/* ---- opening ---- */

static void
free_handle(struct ag_concurrency *c)
{
    ag_area_close(c->io, &c->area);
    (void)pthread_mutex_destroy(&c->lock);
    ag_free(c->leases);
    ag_free(c);
}

/* No fork happens between opening the descriptor and listing the handle. */
static int
open_handle(const struct ag_io *io, const char *path, const struct ag_area_spec *spec,
            const struct ag_moment *now, struct ag_concurrency **limiter,
            struct ag_error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct ag_concurrency *c = ag_calloc(1, sizeof(*c));
    if (c == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for a limiter");
    }
    (void)pthread_once(&once, install_fork_handlers);
    (void)pthread_mutex_init(&c->lock, NULL);
    atomic_init(&c->row, -1);
    c->io = io;
    pthread_mutex_lock(&handles.lock);
    int status = ag_area_open(io, path, spec, now, &c->area, err);
    if (status == AG_OK) {
        c->items = c->area.header->items;
        c->buckets = c->items / BUCKET;
        c->workers = c->area.header->width;
        c->stride = stride_of(c->workers);
        c->rows = (void *)c->area.body;
        c->tags = (void *)(c->area.body + c->workers * sizeof(struct row));
        c->cells = (uint8_t *)(c->tags + c->items);
        status = claim_row_lock_held(c, err);
    }
    if (status == AG_OK) {
        link_handle_lock_held(c);
        *limiter = c;
    } else {
        free_handle(c);
    }
    pthread_mutex_unlock(&handles.lock);
    return status;
}

int
ag_concurrency_open(const struct ag_concurrency_options *options,
                    struct ag_concurrency **limiter, struct ag_error *err)
{
    struct ag_moment now;
    if (options->workers < 1 || options->workers > AG_WORKERS_MAX) {
        return ag_fail(err, AG_EINVAL, "workers must be 1 to %u, not %" PRIu32,
                       AG_WORKERS_MAX, options->workers);
    }
    if (options->slots > SLOTS_MAX) {
        return ag_fail(err, AG_EINVAL,
                       "slots must be at most %" PRIu64 ", not %" PRIu64, SLOTS_MAX,
                       options->slots);
    }
    uint64_t slots = (options->slots + BUCKET - 1) / BUCKET * BUCKET;
    const struct ag_area_spec spec = {
        .kind = AG_AREA_CONCURRENCY,
        .sync = AG_SYNC_CAS, /* 64-bit, which every CPU has */
        .width = options->workers,
        .items = slots < 2 * BUCKET ? 2 * BUCKET : slots,
        .body = body_of,
    };
    if (options->now != NULL) {
        now = *options->now;
    } else {
        ag_moment_now(&now);
    }
    return open_handle(options->io != NULL ? options->io : ag_io_posix(), options->path,
                       &spec, &now, limiter, err);
}

void
ag_concurrency_close(struct ag_concurrency *c)
{
    if (c == NULL) {
        return;
    }
    pthread_mutex_lock(&handles.lock);
    unlink_handle_lock_held(c);
    int row = atomic_load(&c->row);
    if (row >= 0) {
        (void)clear_row(c, (uint32_t)row);
        (void)lock_row(c, (uint32_t)row, F_UNLCK);
    }
    free_handle(c);
    pthread_mutex_unlock(&handles.lock);
}

/* ---- keys and slots ---- */

uint64_t
ag_concurrency_tag(const struct ag_concurrency *c, const void *key, size_t n)
{
    uint64_t tag = ag_siphash13(c->area.header->key, key, n) & TAG_MASK;
    return tag != 0 ? tag : TAG_MASK;
}

static void
home_of(const struct ag_concurrency *c, uint64_t tag, uint64_t home[2])
{
    uint64_t second = tag * UINT64_C(0x9e3779b97f4a7c15);
    second ^= second >> 32;
    second *= UINT64_C(0xd6e8feb86659fd93);
    home[0] = (tag >> 32) * c->buckets >> 32;
    home[1] = (second >> 32) * c->buckets >> 32;
    if (home[0] == home[1]) {
        home[1] = home[1] + 1 < c->buckets ? home[1] + 1 : 0;
    }
    home[0] *= BUCKET;
    home[1] *= BUCKET;
}

static uint64_t
sum_of(const struct ag_concurrency *c, uint64_t slot)
{
    uint32_t rows = (uint32_t)atomic_load(counter_of(c, COUNT_ROWS));
    uint64_t sum = 0;
    for (uint32_t row = 0; row < rows; row++) {
        AG_STEP();
        sum += atomic_load(cell_of(c, slot, row));
    }
    return sum;
}

static uint64_t
next_version(uint64_t word)
{
    return (word & ~VERSION_MASK) | ((word + VERSION_ONE) & VERSION_MASK);
}

/* Sum over all slots of the key, marked ones included. */
static uint64_t
count_at(const struct ag_concurrency *c, const uint64_t home[2], uint64_t tag)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < 2 * BUCKET; i++) {
        uint64_t slot = home[i / BUCKET] + i % BUCKET;
        AG_STEP();
        if ((atomic_load(&c->tags[slot]) & TAG_MASK) == tag) {
            sum += sum_of(c, slot);
        }
    }
    return sum;
}

uint64_t
ag_concurrency_count(struct ag_concurrency *c, uint64_t tag)
{
    uint64_t home[2];
    home_of(c, tag, home);
    return count_at(c, home, tag);
}

/* Makes slot, seen as `word`, the key's. False: it is in use, or somebody was there
 * first. A newcomer to the old key raises its cell and then reads the word; we mark the
 * word and then read the cells: one of the two sees the other. */
static bool
take_over(struct ag_concurrency *c, uint64_t slot, uint64_t word, uint64_t tag)
{
    if (word == 0) {
        return atomic_compare_exchange_strong(&c->tags[slot], &word, tag | VERSION_ONE);
    }
    if (sum_of(c, slot) != 0) {
        return false;
    }
    uint64_t marked = next_version(word) | MARK;
    AG_STEP();
    if (!atomic_compare_exchange_strong(&c->tags[slot], &word, marked)) {
        return false;
    }
    uint64_t then = next_version(marked) & ~MARK;
    if (sum_of(c, slot) == 0) {
        then = (then & VERSION_MASK) | tag;
        AG_STEP();
        return atomic_compare_exchange_strong(&c->tags[slot], &marked, then);
    }
    (void)atomic_compare_exchange_strong(&c->tags[slot], &marked, then);
    return false;
}

/* The key's slot, made when there is none; false: no slot is free. */
static bool
find_slot(struct ag_concurrency *c, const uint64_t home[2], uint64_t tag,
          uint64_t *found)
{
    for (;;) {
        bool again = false;
        for (unsigned i = 0; i < 2 * BUCKET; i++) {
            uint64_t slot = home[i / BUCKET] + i % BUCKET;
            AG_STEP();
            uint64_t word = atomic_load(&c->tags[slot]);
            if ((word & TAG_MASK) != tag) {
                continue;
            }
            if ((word & MARK) == 0 ||
                atomic_compare_exchange_strong(&c->tags[slot], &word,
                                               next_version(word) & ~MARK)) {
                *found = slot;
                return true;
            }
            again = true;
        }
        for (unsigned i = 0; i < 2 * BUCKET && !again; i++) {
            uint64_t slot = home[i / BUCKET] + i % BUCKET;
            AG_STEP();
            uint64_t word = atomic_load(&c->tags[slot]);
            if (take_over(c, slot, word, tag)) {
                *found = slot;
                return true;
            }
            uint64_t now = atomic_load(&c->tags[slot]);
            again = now != word && ((now & TAG_MASK) == tag || sum_of(c, slot) == 0);
        }
        if (!again) {
            return false;
        }
    }
}

static bool
raise_cell(_Atomic uint16_t *cell)
{
    uint16_t seen = atomic_load(cell);
    while (seen < CELL_MAX) {
        if (atomic_compare_exchange_weak(cell, &seen, (uint16_t)(seen + 1))) {
            return true;
        }
    }
    return false;
}

/* Never below zero: a process that closed descriptors that are not its own may have
 * lost its row's lock, and then its cells. */
static void
lower_cell(_Atomic uint16_t *cell)
{
    uint16_t seen = atomic_load(cell);
    while (seen > 0 &&
           !atomic_compare_exchange_weak(cell, &seen, (uint16_t)(seen - 1))) {
    }
}

/* ---- leases ---- */

/* Room for one lease more, so that entering cannot fail half-way. */
static int
reserve_lease_lock_held(struct ag_concurrency *c, struct ag_error *err)
{
    if (c->first_free != 0) {
        return AG_OK;
    }
    uint32_t room = c->lease_room == 0 ? 64 : 2 * c->lease_room;
    struct lease *leases = room <= UINT32_C(1) << 30
                               ? ag_realloc(c->leases, room * sizeof(*leases))
                               : NULL;
    if (leases == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for a lease");
    }
    c->leases = leases;
    c->lease_room = room;
    for (uint32_t i = room; i > c->lease_count; i--) {
        leases[i - 1] = (struct lease){.next_free = c->first_free};
        c->first_free = i;
    }
    c->lease_count = room;
    return AG_OK;
}

static int64_t
begin_lease_lock_held(struct ag_concurrency *c, uint64_t slot)
{
    uint32_t index = c->first_free - 1;
    struct lease *lease = &c->leases[index];
    c->first_free = lease->next_free;
    lease->slot = (uint32_t)slot;
    lease->generation++;
    return (int64_t)((uint64_t)(lease->generation & 0x7fffffffu) << 32 | (index + 1));
}

bool
ag_concurrency_leave(struct ag_concurrency *c, int64_t number)
{
    uint32_t index = (uint32_t)number - 1;
    uint32_t generation = (uint32_t)((uint64_t)number >> 32);
    bool left = false;
    pthread_mutex_lock(&c->lock);
    if (number > 0 && index < c->lease_count &&
        (c->leases[index].generation & 0x7fffffffu) == generation &&
        generation % 2 == 1) {
        struct lease *lease = &c->leases[index];
        lease->generation++;
        lease->next_free = c->first_free;
        c->first_free = index + 1;
        lower_cell(cell_of(c, lease->slot, (uint32_t)atomic_load(&c->row)));
        left = true;
    }
    pthread_mutex_unlock(&c->lock);
    return left;
}

/* ---- entering ---- */

/* Own cell up when the key stays within its limit: the slot; false when refused. */
static bool
enter_lock_held(struct ag_concurrency *c, uint64_t tag, uint64_t limit, uint64_t *slot)
{
    uint64_t home[2];
    home_of(c, tag, home);
    for (;;) {
        if (!find_slot(c, home, tag, slot)) {
            atomic_fetch_add(counter_of(c, COUNT_FULL), 1);
            return false;
        }
        _Atomic uint16_t *cell = cell_of(c, *slot, (uint32_t)atomic_load(&c->row));
        AG_STEP();
        if (!raise_cell(cell)) {
            return false;
        }
        AG_STEP();
        uint64_t word = atomic_load(&c->tags[*slot]);
        if ((word & TAG_MASK) == tag && (word & MARK) == 0) {
            if (count_at(c, home, tag) <= limit) {
                return true;
            }
            lower_cell(cell);
            return false;
        }
        lower_cell(cell); /* taken over meanwhile */
    }
}

/* True for one caller of all processes every AG_REAP_NS. */
static bool
may_reap(struct ag_concurrency *c)
{
    uint64_t now = ag_clock_ns();
    uint64_t last = atomic_load(counter_of(c, COUNT_LAST_REAP));
    return (now < last || now - last >= AG_REAP_NS) &&
           atomic_compare_exchange_strong(counter_of(c, COUNT_LAST_REAP), &last, now);
}

int
ag_concurrency_enter(struct ag_concurrency *c, uint64_t tag, uint64_t limit,
                     int64_t *lease, struct ag_error *err)
{
    uint64_t slot = 0;
    bool entered = false;
    *lease = 0;
    for (int attempt = 0; attempt < 2 && !entered; attempt++) {
        if (attempt == 1 && (!may_reap(c) || ag_concurrency_reap(c) == 0)) {
            break;
        }
        pthread_mutex_lock(&c->lock);
        int status = reserve_lease_lock_held(c, err);
        if (status == AG_OK && atomic_load(&c->row) < 0) {
            status = claim_row_lock_held(c, err);
        }
        if (status == AG_OK) {
            entered = enter_lock_held(c, tag, limit, &slot);
        }
        if (entered) {
            *lease = begin_lease_lock_held(c, slot);
        }
        pthread_mutex_unlock(&c->lock);
        if (status != AG_OK) {
            return status;
        }
    }
    return AG_OK;
}

void
ag_concurrency_stats(struct ag_concurrency *c, struct ag_concurrency_stats *stats)
{
    *stats = (struct ag_concurrency_stats){
        .slots = c->items,
        .workers = c->workers,
        .bytes = c->area.bytes,
        .full = atomic_load(counter_of(c, COUNT_FULL)),
        .reaped = atomic_load(counter_of(c, COUNT_REAPED)),
    };
    for (uint64_t slot = 0; slot < c->items; slot++) {
        uint64_t sum = sum_of(c, slot);
        stats->used += sum > 0;
        stats->in_flight += sum;
    }
    for (uint32_t row = 0; row < c->workers; row++) {
        stats->rows += atomic_load(&c->rows[row].in_use);
    }
}
