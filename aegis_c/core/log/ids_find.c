/* Looking up a request id, in this process or beside the one that writes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "hash/sha256.h"
#include "log/bundle.h"
#include "log/ids_page.h"
#include "log/note.h"
#include "log/store.h"

#define CHUNK_PAGES 16u /* of a tail that are read at once */

/* ---- indices ---- */

int
ag_found_add(struct ag_found *found, uint64_t index)
{
    if (found->count == found->room) {
        size_t room = found->room == 0 ? 8 : 2 * found->room, bytes;
        uint64_t *larger = ag_mul_size(room, sizeof(*larger), &bytes)
                               ? ag_realloc(found->index, bytes)
                               : NULL;
        if (larger == NULL) {
            return AG_ENOMEM;
        }
        found->index = larger;
        found->room = room;
    }
    found->index[found->count++] = index;
    return AG_OK;
}

static int
compare_indices(const void *a, const void *b)
{
    uint64_t x, y;
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return (x > y) - (x < y);
}

void
ag_found_sort(struct ag_found *found)
{
    size_t kept = 0;
    if (found->count < 2) {
        return;
    }
    qsort(found->index, found->count, sizeof(*found->index), compare_indices);
    for (size_t i = 0; i < found->count; i++) {
        if (kept == 0 || found->index[i] != found->index[kept - 1]) {
            found->index[kept++] = found->index[i];
        }
    }
    found->count = kept;
}

/* ---- one file ---- */

struct search {
    const struct ag_ids_place *place;
    uint64_t size;
    const uint8_t *id;
    uint8_t key[AG_IDS_KEY];
    struct ag_found *named; /* by the files: to be looked at */
    struct ag_error *err;
};

static int
name_entry(const struct search *s, uint64_t index)
{
    if (index >= s->size) {
        return AG_OK; /* later than what was asked for */
    }
    return ag_found_add(s->named, index) == AG_OK
               ? AG_OK
               : ag_fail(s->err, AG_ENOMEM, "no memory for a list of entries");
}

static int
search_tail(const struct search *s, uint64_t run, int fd, const char *path)
{
    uint8_t chunk[CHUNK_PAGES * AG_IDS_PAGE];
    uint64_t run_first = run * AG_IDS_RUN, wanted = s->size - run_first;
    int status = AG_OK;
    if (wanted > AG_IDS_RUN) {
        wanted = AG_IDS_RUN;
    }
    uint64_t pages = (wanted + AG_IDS_SLOTS - 1) / AG_IDS_SLOTS;
    for (uint64_t p = 0; status == AG_OK && p < pages; p += CHUNK_PAGES) {
        unsigned count = (unsigned)(pages - p < CHUNK_PAGES ? pages - p : CHUNK_PAGES);
        status =
            ag_ids_read_tail(s->place, fd, path, run_first, p, count, chunk, s->err);
        for (unsigned i = 0; status == AG_OK && i < count; i++) {
            uint8_t *page = chunk + i * AG_IDS_PAGE;
            uint64_t first = (p + i) * AG_IDS_SLOTS;
            unsigned used = ag_ids_count(page);
            if (used < AG_IDS_SLOTS && first + used < wanted) {
                status = ag_fail(s->err, AG_ECORRUPT, "the id column is short");
            }
            for (unsigned k = 0; status == AG_OK && k < used; k++) {
                if (memcmp(ag_ids_slot(page, k), s->id, AG_UUID_SIZE) == 0) {
                    status = name_entry(s, run_first + first + k);
                }
            }
        }
    }
    return status;
}

static int
read_page(const struct search *s, int fd, const char *path, enum ag_ids_kind kind,
          uint64_t run_first, uint32_t number, uint8_t page[AG_IDS_PAGE])
{
    uint64_t offset = (uint64_t)number * AG_IDS_PAGE;
    int status =
        ag_io_read_full(s->place->io, fd, path, page, AG_IDS_PAGE, offset, s->err);
    if (status == AG_OK &&
        !ag_ids_page_good(s->place->tag, page, kind, run_first + number)) {
        status = ag_fail(s->err, AG_ECORRUPT, "page of the id column is damaged");
        ag_error_file(s->err, path, offset);
    }
    return status;
}

/* Keys are as good as random, so a record is near its share of the pages. From there to
 * the first page that may hold the key, and on as long as pages do. */
static int
search_sorted(const struct search *s, uint64_t run, int fd, const char *path)
{
    uint8_t page[AG_IDS_PAGE];
    uint64_t run_first = run * AG_IDS_RUN;
    int status = read_page(s, fd, path, AG_IDS_HEAD, run_first, 0, page);
    if (status != AG_OK) {
        return status;
    }
    const uint8_t *least = page + AG_IDS_HEADER + 16, *most = least + AG_UUID_SIZE;
    uint32_t total = ag_get_u32le(page + AG_IDS_HEADER);
    uint32_t pages = (total + AG_IDS_SLOTS - 1) / AG_IDS_SLOTS;
    if (pages == 0 || memcmp(s->id, least, AG_UUID_SIZE) < 0 ||
        memcmp(s->id, most, AG_UUID_SIZE) > 0) {
        return AG_OK;
    }
    uint32_t at = (uint32_t)((uint64_t)ag_get_u32be(s->key) * pages >> 32) + 1;
    status = read_page(s, fd, path, AG_IDS_SORTED, run_first, at, page);
    while (status == AG_OK && at > 1 &&
           memcmp(ag_ids_slot(page, 0), s->key, AG_IDS_KEY) >= 0) {
        status = read_page(s, fd, path, AG_IDS_SORTED, run_first, --at, page);
    }
    while (status == AG_OK) {
        int order = -1; /* of the last record against the key */
        unsigned count = ag_ids_count(page);
        for (unsigned k = 0; status == AG_OK && k < count && order <= 0; k++) {
            const uint8_t *record = ag_ids_slot(page, k);
            order = memcmp(record, s->key, AG_IDS_KEY);
            if (order == 0) {
                status = name_entry(s, run_first + ag_get_u32be(record + AG_IDS_KEY));
            }
        }
        if (order > 0 || at == pages || status != AG_OK) {
            break;
        }
        status = read_page(s, fd, path, AG_IDS_SORTED, run_first, ++at, page);
    }
    return status;
}

/* AG_ENOTFOUND when there is no such file. */
static int
search_file(const struct search *s, uint64_t run, const char *what)
{
    const struct ag_io *io = s->place->io;
    char path[PATH_MAX];
    int status = ag_ids_path(s->place, run, what, path, s->err);
    if (status != AG_OK) {
        return status;
    }
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd < 0) {
        return fd == -ENOENT ? AG_ENOTFOUND : ag_fail_sys(s->err, -fd, path, "open");
    }
    status = strcmp(what, "run") == 0 ? search_sorted(s, run, fd, path)
                                      : search_tail(s, run, fd, path);
    (void)io->close(io->ctx, fd);
    return status;
}

/* ---- all of them ---- */

/* A run that no file answers for: every entry of it is named. */
static int
search_entries(const struct search *s, uint64_t run, const struct ag_ids_source *source)
{
    uint64_t first = run * AG_IDS_RUN, count = s->size - first;
    count = count < AG_IDS_RUN ? count : AG_IDS_RUN;
    uint8_t *column = ag_alloc((size_t)count * AG_UUID_SIZE);
    if (column == NULL) {
        return ag_fail(s->err, AG_ENOMEM, "no memory to read ids from entries");
    }
    int status = ag_ids_from_entries(source, first, count, column, s->err);
    for (uint64_t i = 0; status == AG_OK && i < count; i++) {
        if (memcmp(column + i * AG_UUID_SIZE, s->id, AG_UUID_SIZE) == 0) {
            status = name_entry(s, first + i);
        }
    }
    ag_free(column);
    return status;
}

/* Keeps of the named entries those that really carry the id. */
static int
look_at_entries(const struct search *s, const struct ag_ids_source *source,
                struct ag_found *found)
{
    uint8_t id[AG_UUID_SIZE];
    int status = AG_OK;
    for (size_t i = 0; status == AG_OK && i < s->named->count; i++) {
        uint64_t index = s->named->index[i];
        status = ag_ids_from_entries(source, index, 1, id, s->err);
#ifdef AG_MUTANT_TRUST_COLUMN
        memcpy(id, s->id, AG_UUID_SIZE);
#endif
        if (status == AG_OK && memcmp(id, s->id, AG_UUID_SIZE) == 0 &&
            ag_found_add(found, index) != AG_OK) {
            status = ag_fail(s->err, AG_ENOMEM, "no memory for a list of entries");
        }
    }
    return status;
}

int
ag_ids_find(const struct ag_ids_place *place, uint64_t size,
            const uint8_t id[AG_UUID_SIZE], const struct ag_ids_source *source,
            struct ag_found *found, uint64_t *damaged, struct ag_error *err)
{
    /* A full tail is removed only when its run is there, so one of three looks finds
     * something. */
    static const char *const looks[] = {"run", "tail", "run"};
    uint8_t hash[AG_HASH_SIZE];
    struct ag_found named = {0};
    struct search s = {
        .place = place, .size = size, .id = id, .named = &named, .err = err};
    int status = AG_OK;
    if (ag_ids_is_none(id)) {
        return AG_OK;
    }
    ag_sha256(id, AG_UUID_SIZE, hash);
    memcpy(s.key, hash, AG_IDS_KEY);
    for (uint64_t run = 0; status == AG_OK && run * AG_IDS_RUN < size; run++) {
        size_t before = named.count;
        bool bad_run = false;
        status = AG_ENOTFOUND;
        for (size_t i = 0; i < 3 && status != AG_OK && status != AG_ENOMEM; i++) {
            named.count = before;
            status = search_file(&s, run, looks[i]);
            bad_run = bad_run || (i != 1 && status == AG_ECORRUPT);
        }
        if (bad_run && damaged != NULL) {
            *damaged = run;
        }
        if (status != AG_OK && status != AG_ENOMEM) {
            named.count = before;
            status = search_entries(&s, run, source);
        }
    }
    if (status == AG_OK) {
        ag_found_sort(&named);
        status = look_at_entries(&s, source, found);
    }
    ag_free(named.index);
    return status;
}

/* ---- beside the writer ---- */

struct published {
    struct ag_store store;
    uint64_t size;
};

static int
published_bundle(void *ctx, uint64_t n, uint8_t **bytes, size_t *bytes_n,
                 struct ag_error *err)
{
    const struct published *p = ctx;
    bool whole = n < p->size / AG_TILE_WIDTH;
    unsigned width = whole ? AG_TILE_WIDTH : (unsigned)(p->size % AG_TILE_WIDTH);
    return ag_store_read_bundle(&p->store, n, width, bytes, bytes_n, err);
}

static int
check_published(void *ctx, uint64_t n, const uint8_t *bytes, size_t bytes_n,
                size_t first, size_t count, struct ag_error *err)
{
    const struct published *p = ctx;
    bool whole = n < p->size / AG_TILE_WIDTH;
    unsigned width = whole ? AG_TILE_WIDTH : (unsigned)(p->size % AG_TILE_WIDTH);
    uint8_t hashes[AG_TILE_BYTES];
    size_t bad = 0;
    int status =
        ag_store_read_hashes(&p->store, 0, n, width, first, count, hashes, err);
    if (status == AG_OK &&
        ag_bundle_check(bytes, bytes_n, first, count, hashes, &bad) != AG_OK) {
        status = ag_store_refuse(&p->store, AG_TILE_ENTRIES, n, width,
                                 "entry differs from its hash", err);
        ag_error_index(err, n * AG_TILE_WIDTH + bad);
    }
    return status;
}

/* The one line of log.vkey. */
static int
read_vkey(const struct ag_io *io, const struct published *p, struct ag_ids_place *place,
          const char *private_dir, struct ag_error *err)
{
    char path[PATH_MAX];
    uint8_t *line = NULL;
    size_t n = 0;
    (void)snprintf(path, sizeof(path), "%s/log.vkey", p->store.root);
    int status = ag_io_read_file(io, path, AG_VKEY_MAX + 1, &line, &n, err);
    if (status == AG_OK) {
        while (n > 0 && line[n - 1] == '\n') {
            n--;
        }
        status = ag_ids_place_init(place, io, private_dir, (const char *)line, n, err);
    }
    ag_free(line);
    return status;
}

/* The size in a checkpoint. Its signature is not looked at: it only says how far files
 * are there, and what is found is proven by others. None yet: 0. */
static int
read_size(const struct ag_io *io, struct published *p, struct ag_error *err)
{
    char path[PATH_MAX];
    uint8_t *note = NULL;
    size_t n = 0;
    (void)snprintf(path, sizeof(path), "%s/checkpoint", p->store.root);
    int status = ag_io_read_file(io, path, AG_CHECKPOINT_MAX, &note, &n, err);
    if (status == AG_ENOTFOUND) {
        p->size = 0;
        return AG_OK;
    }
    if (status == AG_OK) {
        const char *line = strchr((const char *)note, '\n');
        char *end = NULL;
        unsigned long long size = line != NULL ? strtoull(line + 1, &end, 10) : 0;
        if (line == NULL || end == line + 1 || *end != '\n') {
            status = ag_fail(err, AG_ECORRUPT, "checkpoint has no size");
            ag_error_file(err, path, AG_NO_POSITION);
        }
        p->size = size;
    }
    ag_free(note);
    return status;
}

int
ag_ids_find_published(const struct ag_io *io, const char *path, const char *private_dir,
                      const uint8_t id[AG_UUID_SIZE], struct ag_found *found,
                      struct ag_error *err)
{
    struct ag_ids_place place;
    struct published p = {.store = {.io = io, .root_fd = -1}};
    struct ag_ids_source source = {published_bundle, check_published, &p};
    int n = snprintf(p.store.root, sizeof(p.store.root), "%s", path);
    if (n <= 0 || (size_t)n >= sizeof(p.store.root)) {
        return ag_fail_sys(err, ENAMETOOLONG, path, "open");
    }
    int status = read_vkey(io, &p, &place, private_dir, err);
    if (status == AG_OK) {
        status = read_size(io, &p, err);
    }
    return status == AG_OK ? ag_ids_find(&place, p.size, id, &source, found, NULL, err)
                           : status;
}
