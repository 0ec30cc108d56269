#include "limit/concurrency_state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

#define BUCKET AG_CONCURRENCY_BUCKET
#define LINE 64u
#define SLOTS_MAX (UINT64_C(1) << 24)

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

int
ag_concurrency_claim_row_lock_held(struct ag_concurrency *c, struct ag_error *err)
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
        status = ag_concurrency_claim_row_lock_held(c, err);
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
