#include "wal/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/bytes.h"
#include "hash/crc32c.h"
#include "wal/format.h"

/* Pages made present in one go: the kernel lets nobody map or unmap meanwhile. */
#define POPULATE_STEP ((size_t)256 << 10)

static const uint8_t ring_magic[8] = {'A', 'G', 'R', 'I', 'N', 'G', 0, 1};

static uint32_t
static_crc(const struct ag_ring_header *header)
{
    return ag_crc32c_mask(ag_crc32c(0, header, offsetof(struct ag_ring_header, crc)));
}

void
ag_ring_boot_id(uint8_t to[AG_RING_BOOT])
{
    memset(to, 0, AG_RING_BOOT);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    char text[64] = "";
    if (file == NULL) {
        return;
    }
    if (fgets(text, sizeof(text), file) != NULL) {
        unsigned digits = 0;
        for (const char *c = text; *c != '\0' && digits < 2 * AG_RING_BOOT; c++) {
            unsigned value = 0;
            if (*c >= '0' && *c <= '9') {
                value = (unsigned)(*c - '0');
            } else if (*c >= 'a' && *c <= 'f') {
                value = (unsigned)(*c - 'a') + 10;
            } else {
                continue;
            }
            to[digits / 2] = (uint8_t)((unsigned)to[digits / 2] << 4 | value);
            digits++;
        }
    }
    (void)fclose(file);
}

/* Maps header and data, the data twice in a row. Pages come as they are touched. */
static int
map_ring(int fd, size_t capacity, const char *path, struct ag_ring *ring,
         struct ag_error *err)
{
    const int protection = PROT_READ | PROT_WRITE;
    const int flags = MAP_SHARED;
    uint8_t *area = MAP_FAILED;
    void *header = mmap(NULL, AG_RING_PAGE, protection, flags, fd, 0);
    if (header == MAP_FAILED) {
        return ag_fail_sys(err, errno, path, "mmap of the ring");
    }
    area = mmap(NULL, 2 * capacity, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED ||
        mmap(area, capacity, protection, flags | MAP_FIXED, fd, AG_RING_PAGE) ==
            MAP_FAILED ||
        mmap(area + capacity, capacity, protection, flags | MAP_FIXED, fd,
             AG_RING_PAGE) == MAP_FAILED) {
        int status = ag_fail_sys(err, errno, path, "mmap of the ring");
        if (area != MAP_FAILED) {
            (void)munmap(area, 2 * capacity);
        }
        (void)munmap(header, AG_RING_PAGE);
        return status;
    }
    ring->header = header;
    ring->data = area;
    ring->capacity = capacity;
    ring->fd = fd;
    return AG_OK;
}

int
ag_ring_create(const struct ag_io *io, const char *path, size_t bytes,
               struct ag_ring *ring, struct ag_error *err)
{
    size_t capacity = (bytes + AG_RING_PAGE - 1) & ~(size_t)(AG_RING_PAGE - 1);
    int fd = io->open(io->ctx, path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return ag_fail_sys(err, -fd, path, "create the ring");
    }
    int status = AG_OK;
    int result = io->lock(io->ctx, fd);
    if (result == 0) {
        result = io->reserve(io->ctx, fd, (off_t)(AG_RING_PAGE + capacity));
    }
    if (result < 0) {
        status = ag_fail_sys(err, -result, path, "reserve space for the ring");
        if (result == -ENOSPC && err != NULL) {
            err->status = AG_EFULL;
        }
        status = result == -ENOSPC ? AG_EFULL : status;
    }
    if (status == AG_OK) {
        status = map_ring(fd, capacity, path, ring, err);
    }
    if (status != AG_OK) {
        (void)io->unlink(io->ctx, path);
        (void)io->close(io->ctx, fd);
        return status;
    }
    ring->tail = 0;
    return AG_OK;
}

void
ag_ring_begin(struct ag_ring *ring, uint64_t wal_id, uint32_t epoch,
              const uint8_t boot_id[AG_RING_BOOT])
{
    struct ag_ring_header *header = ring->header;
    memcpy(header->magic, ring_magic, sizeof(ring_magic));
    header->wal_id = wal_id;
    memcpy(header->boot_id, boot_id, AG_RING_BOOT);
    header->capacity = ring->capacity;
    header->epoch = epoch;
    header->crc = static_crc(header);
}

size_t
ag_ring_populate(const struct ag_ring *ring, size_t at)
{
#ifdef MADV_POPULATE_WRITE
    /* Of the second mapping only as much as an entry reaches into it. */
    size_t wrapped = AG_RING_ENTRY + AG_WAL_PAYLOAD_MAX;
    size_t end = ring->capacity + (wrapped < ring->capacity ? wrapped : ring->capacity);
    size_t n = at < end ? end - at : 0;
    n = n < POPULATE_STEP ? n : POPULATE_STEP;
    /* An older kernel refuses: pages come as they are touched. */
    if (n > 0 && madvise(ring->data + at, n, MADV_POPULATE_WRITE) == 0) {
        return at + n;
    }
#else
    (void)ring;
    (void)at;
#endif
    return AG_RING_POPULATED;
}

static int
check_header(const struct ag_ring_header *header, size_t file_size)
{
    if (memcmp(header->magic, ring_magic, 7) != 0 ||
        header->crc != static_crc(header)) {
        return AG_ECORRUPT;
    }
    if (header->magic[7] != ring_magic[7]) {
        return AG_EVERSION;
    }
    uint64_t head = atomic_load_explicit(&header->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&header->tail, memory_order_acquire);
    if (header->capacity < AG_RING_PAGE || header->capacity % AG_RING_PAGE != 0 ||
        header->capacity != file_size - AG_RING_PAGE || tail < head ||
        tail - head > header->capacity || head % 8 != 0 || tail % 8 != 0) {
        return AG_ECORRUPT;
    }
    return AG_OK;
}

static struct ag_ring_view
view_of(const struct ag_ring_header *header, const uint8_t *data)
{
    struct ag_ring_view view = {
        .data = data,
        .capacity = (size_t)header->capacity,
        .wal_id = header->wal_id,
        .head = atomic_load_explicit(&header->head, memory_order_acquire),
        .tail = atomic_load_explicit(&header->tail, memory_order_acquire),
        .durable_seq = atomic_load_explicit(&header->durable_seq, memory_order_acquire),
    };
    memcpy(view.boot_id, header->boot_id, AG_RING_BOOT);
    return view;
}

int
ag_ring_parse(const uint8_t *bytes, size_t n, struct ag_ring_view *view)
{
    struct ag_ring_header header;
    if (n < 2 * AG_RING_PAGE) {
        return AG_ECORRUPT;
    }
    memcpy((void *)&header, bytes, sizeof(header));
    int status = check_header(&header, n);
    if (status == AG_OK) {
        *view = view_of(&header, bytes + AG_RING_PAGE);
    }
    return status;
}

struct ag_ring_view
ag_ring_look(const struct ag_ring *ring)
{
    return view_of(ring->header, ring->data);
}

int
ag_ring_attach(const struct ag_io *io, const char *path, struct ag_ring *ring,
               struct ag_error *err)
{
    int fd = io->open(io->ctx, path, O_RDWR | O_NOFOLLOW, 0);
    if (fd == -ENOENT) {
        return ag_fail(err, AG_ENOTFOUND, "no ring");
    }
    if (fd < 0) {
        return ag_fail_sys(err, -fd, path, "open the ring");
    }
    int status = AG_OK;
    int result = io->lock(io->ctx, fd);
    if (result < 0) {
        ag_fail(err, AG_ELOCKED, "another writer uses this ring");
        ag_error_file(err, path, AG_NO_POSITION);
        ag_error_advice(err, "Stop it, or give each log a ring of its own");
        status = AG_ELOCKED;
        goto fail;
    }
    off_t size = io->size(io->ctx, fd);
    if (size == 0) {
        status = ag_fail(err, AG_ENOTFOUND, "a ring whose making was cut short");
        goto fail;
    }
    if (size < (off_t)(2 * AG_RING_PAGE) || size % (off_t)AG_RING_PAGE != 0 ||
        (uint64_t)size > AG_RING_MAX + AG_RING_PAGE) {
        status = ag_fail(err, AG_ECORRUPT, "not a ring: %lld bytes", (long long)size);
        goto fail;
    }
    status = map_ring(fd, (size_t)size - AG_RING_PAGE, path, ring, err);
    if (status != AG_OK) {
        goto fail;
    }
    status = check_header(ring->header, (size_t)size);
    if (status != AG_OK) {
        bool begun = !ag_wal_is_zero((const uint8_t *)ring->header, AG_RING_PAGE);
        status = begun
                     ? ag_fail(err, status, "not a ring of this version")
                     : ag_fail(err, AG_ENOTFOUND, "a ring whose making was cut short");
        (void)munmap(ring->data, 2 * ring->capacity);
        (void)munmap(ring->header, AG_RING_PAGE);
        ring->header = NULL; /* for callers that go on without it */
        ring->data = NULL;
        ag_error_file(err, path, 0);
        goto fail;
    }
    ring->tail = atomic_load_explicit(&ring->header->tail, memory_order_acquire);
    return AG_OK;
fail:
    (void)io->close(io->ctx, fd);
    return status;
}

void
ag_ring_unlock(const struct ag_io *io, const struct ag_ring *ring)
{
    if (ring->header != NULL) {
        (void)io->unlock(io->ctx, ring->fd);
    }
}

void
ag_ring_unmap(const struct ag_io *io, struct ag_ring *ring)
{
    if (ring->header != NULL) {
        (void)munmap(ring->data, 2 * ring->capacity);
        (void)munmap(ring->header, AG_RING_PAGE);
        (void)io->close(io->ctx, ring->fd);
        ring->header = NULL;
        ring->data = NULL;
    }
}

/* Copies out of a view that is mapped once. */
static void
view_copy(const struct ag_ring_view *view, uint64_t position, uint8_t *to, size_t n)
{
    size_t at = (size_t)(position % view->capacity);
    size_t first = n < view->capacity - at ? n : view->capacity - at;
    memcpy(to, view->data + at, first);
    memcpy(to + first, view->data, n - first);
}

static size_t
entry_size(uint32_t n)
{
    return AG_RING_ENTRY + ag_wal_pad8(n);
}

uint64_t
ag_ring_entry_end(const struct ag_ring_entry *entry)
{
    return entry->position + entry_size(entry->n);
}

int
ag_ring_next(const struct ag_ring_view *view, uint64_t *position, uint64_t previous_seq,
             uint8_t *to, struct ag_ring_entry *entry)
{
    uint64_t left = view->tail - *position;
    if (left == 0) {
        return 0;
    }
    uint8_t head[AG_RING_ENTRY];
    if (*position % 8 != 0 || left > view->capacity || left < AG_RING_ENTRY) {
        return AG_ECORRUPT;
    }
    view_copy(view, *position, head, sizeof(head));
    entry->position = *position;
    memcpy(&entry->n, head, 4);
    memcpy(&entry->crc, head + 4, 4);
    memcpy(&entry->seq, head + 8, 8);
    if (entry->n == 0 || entry->n > AG_WAL_PAYLOAD_MAX || entry_size(entry->n) > left ||
        entry->seq == 0 || (previous_seq != 0 && entry->seq != previous_seq + 1)) {
        return AG_ECORRUPT;
    }
    view_copy(view, *position + AG_RING_ENTRY, to, entry->n);
    if (entry->crc != ag_crc32c_mask(ag_wal_record_crc(entry->seq, to, entry->n))) {
        return AG_ECORRUPT;
    }
    *position += entry_size(entry->n);
    return 1;
}

size_t
ag_ring_room(const struct ag_ring *ring)
{
    uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_acquire);
    uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_relaxed);
    /* Between the two loads the producer may have gone round. */
    return tail - head < ring->capacity ? ring->capacity - (size_t)(tail - head) : 0;
}

int
ag_ring_reserve(struct ag_ring *ring, uint32_t n, uint8_t **payload)
{
    struct ag_ring_header *header = ring->header;
    uint64_t head = atomic_load_explicit(&header->head, memory_order_acquire);
    uint64_t end = ring->tail + entry_size(n);
    if (end - head > ring->capacity) {
        return AG_EFULL;
    }
    atomic_store_explicit(&header->claim, end, memory_order_relaxed);
    AG_RING_POINT();
    /* The claim must be visible before the first byte of the entry. */
    atomic_thread_fence(memory_order_release);
    *payload = ring->data + (size_t)(ring->tail % ring->capacity) + AG_RING_ENTRY;
    return AG_OK;
}

void
ag_ring_commit(struct ag_ring *ring, uint32_t n, uint64_t seq)
{
    uint8_t *entry = ring->data + (size_t)(ring->tail % ring->capacity);
#ifdef AG_MUTANT_TAIL_FIRST
    atomic_store_explicit(&ring->header->tail, ring->tail + entry_size(n),
                          memory_order_release);
    AG_RING_POINT();
#endif
    uint32_t crc = ag_crc32c_mask(ag_wal_record_crc(seq, entry + AG_RING_ENTRY, n));
    memcpy(entry, &n, 4);
    AG_RING_POINT();
    memcpy(entry + 4, &crc, 4);
    AG_RING_POINT();
    memcpy(entry + 8, &seq, 8);
    AG_RING_POINT();
    ring->tail += entry_size(n);
    atomic_store_explicit(&ring->header->tail, ring->tail, memory_order_release);
    AG_RING_POINT();
}

struct ag_ring_entry
ag_ring_at(const struct ag_ring *ring, uint64_t position, const uint8_t **payload)
{
    const uint8_t *data = ring->data + (size_t)(position % ring->capacity);
    struct ag_ring_entry entry = {.position = position};
    memcpy(&entry.n, data, 4);
    memcpy(&entry.crc, data + 4, 4);
    memcpy(&entry.seq, data + 8, 8);
    *payload = data + AG_RING_ENTRY;
    return entry;
}

void
ag_ring_free(struct ag_ring *ring, uint64_t position, uint64_t seq)
{
    /* First the witness, then the space: a ring never says less than its head does. */
    atomic_store_explicit(&ring->header->durable_seq, seq, memory_order_release);
    AG_RING_POINT();
    atomic_store_explicit(&ring->header->head, position, memory_order_release);
    AG_RING_POINT();
}

/* Copies words that the producer may be overwriting; the caller checks `claim` after it
 * and throws a torn copy away, hence no sanitizer here. */
__attribute__((no_sanitize("thread"))) static void
racy_copy(uint8_t *to, const uint8_t *from, size_t n)
{
    while (n >= 8) {
        uint64_t word =
            __atomic_load_n((const uint64_t *)(const void *)from, __ATOMIC_RELAXED);
        memcpy(to, &word, 8);
        to += 8;
        from += 8;
        n -= 8;
    }
    for (; n > 0; n--) {
        *to++ = __atomic_load_n(from++, __ATOMIC_RELAXED);
    }
}

static bool
still_there(const struct ag_ring *ring, uint64_t position)
{
#if !defined(__SANITIZE_THREAD__) /* which knows no fences, and is not shown the copy  \
                                   */
    atomic_thread_fence(memory_order_acquire);
#endif
    uint64_t claim = atomic_load_explicit(&ring->header->claim, memory_order_relaxed);
    return claim <= position + ring->capacity;
}

int
ag_ring_copy(const struct ag_ring *ring, uint64_t position, uint64_t seq, uint8_t *to,
             size_t capacity, struct ag_ring_entry *entry)
{
    uint8_t head[AG_RING_ENTRY];
    uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_acquire);
    if (position + AG_RING_ENTRY > tail || tail - position > ring->capacity) {
        return 0;
    }
    const uint8_t *data = ring->data + (size_t)(position % ring->capacity);
    racy_copy(head, data, sizeof(head));
    if (!still_there(ring, position)) {
        return 0;
    }
    entry->position = position;
    memcpy(&entry->n, head, 4);
    memcpy(&entry->crc, head + 4, 4);
    memcpy(&entry->seq, head + 8, 8);
    if (entry->seq != seq || entry_size(entry->n) > tail - position) {
        return 0;
    }
    if (entry->n > capacity) {
        return AG_ETOOBIG;
    }
    racy_copy(to, data + AG_RING_ENTRY, entry->n);
    return still_there(ring, position) ? 1 : 0;
}
