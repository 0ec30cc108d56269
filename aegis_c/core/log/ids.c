/* The writer's side of the id column: the tail that grows, and sorting a full one. */
#include "log/ids.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "hash/sha256.h"
#include "log/bundle.h"
#include "log/ids_page.h"

#define TAIL "tail"
#define SORTED "run"
#define SORTED_BYTES_MAX ((AG_IDS_PAGES + 1u) * AG_IDS_PAGE)
#define READS 4 /* of a page that the writer may be in the middle of */

int
ag_ids_place_init(struct ag_ids_place *place, const struct ag_io *io,
                  const char *private_dir, const char *vkey, size_t vkey_n,
                  struct ag_error *err)
{
    uint8_t hash[AG_HASH_SIZE];
    place->io = io;
    ag_sha256(vkey, vkey_n, hash);
    memcpy(place->tag, hash, AG_IDS_TAG);
    int n = snprintf(place->dir, sizeof(place->dir), "%s/ids", private_dir);
    return n > 0 && (size_t)n < sizeof(place->dir)
               ? AG_OK
               : ag_fail_sys(err, ENAMETOOLONG, private_dir, "open");
}

int
ag_ids_path(const struct ag_ids_place *place, uint64_t run, const char *what,
            char path[PATH_MAX], struct ag_error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%08" PRIx64 ".%s", place->dir, run, what);
    return n > 0 && n < PATH_MAX ? AG_OK
                                 : ag_fail_sys(err, ENAMETOOLONG, place->dir, "open");
}

/* ---- reading what is there ---- */

int
ag_ids_read_tail(const struct ag_ids_place *place, int fd, const char *path,
                 uint64_t run_first, uint64_t page, unsigned count, uint8_t *to,
                 struct ag_error *err)
{
    int status = ag_io_read_full(place->io, fd, path, to, count * (size_t)AG_IDS_PAGE,
                                 page * AG_IDS_PAGE, err);
    for (unsigned i = 0; status == AG_OK && i < count; i++, to += AG_IDS_PAGE) {
        uint64_t first = run_first + (page + i) * AG_IDS_SLOTS;
        bool good = ag_ids_page_good(place->tag, to, AG_IDS_TAIL, first);
        for (int again = 1; !good && status == AG_OK && again < READS; again++) {
            status = ag_io_read_full(place->io, fd, path, to, AG_IDS_PAGE,
                                     (page + i) * AG_IDS_PAGE, err);
            good = ag_ids_page_good(place->tag, to, AG_IDS_TAIL, first);
        }
        if (status == AG_OK && !good) {
            status = ag_fail(err, AG_ECORRUPT, "page of the id column is damaged");
            ag_error_file(err, path, (page + i) * AG_IDS_PAGE);
        }
    }
    return status;
}

int
ag_ids_from_entries(const struct ag_ids_source *source, uint64_t first, uint64_t count,
                    uint8_t *to, struct ag_error *err)
{
    uint64_t end = first + count;
    int status = AG_OK;
    for (uint64_t n = first / AG_TILE_WIDTH; status == AG_OK && n * AG_TILE_WIDTH < end;
         n++) {
        uint8_t *bytes = NULL;
        size_t bytes_n = 0, offset = 0;
        status = source->bundle(source->ctx, n, &bytes, &bytes_n, err);
        uint64_t last = (n + 1) * AG_TILE_WIDTH < end ? (n + 1) * AG_TILE_WIDTH : end;
        uint64_t from = n * AG_TILE_WIDTH > first ? n * AG_TILE_WIDTH : first;
        if (status == AG_OK) {
            status = source->check(source->ctx, n, bytes, bytes_n,
                                   (size_t)(from % AG_TILE_WIDTH),
                                   (size_t)(last - from), err);
        }
        for (uint64_t i = n * AG_TILE_WIDTH; status == AG_OK && i < last; i++) {
            const uint8_t *entry = NULL;
            size_t entry_n = 0;
            status = ag_bundle_next(bytes, bytes_n, &offset, &entry, &entry_n, err);
            if (status == AG_OK && i >= first) {
                struct ag_entry_head head;
                ag_entry_head(entry, entry_n, &head);
                memcpy(to + (i - first) * AG_UUID_SIZE, head.id, AG_UUID_SIZE);
            }
        }
        ag_free(bytes);
    }
    return status;
}

/* The ids of a full run out of its tail. */
static int
read_full_tail(const struct ag_ids *ids, uint64_t run, uint8_t *to, uint8_t *pages,
               struct ag_error *err)
{
    const struct ag_io *io = ids->place.io;
    char path[PATH_MAX];
    int status = ag_ids_path(&ids->place, run, TAIL, path, err);
    if (status != AG_OK) {
        return status;
    }
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd < 0) {
        return ag_fail_sys(err, -fd, path, "open");
    }
    status = ag_ids_read_tail(&ids->place, fd, path, run * AG_IDS_RUN, 0, AG_IDS_PAGES,
                              pages, err);
    (void)io->close(io->ctx, fd);
    for (size_t p = 0; status == AG_OK && p < AG_IDS_PAGES; p++) {
        uint8_t *page = pages + p * AG_IDS_PAGE;
        if (ag_ids_count(page) != AG_IDS_SLOTS) {
            return ag_fail(err, AG_ECORRUPT, "page of the id column is not full");
        }
        memcpy(to + p * AG_IDS_SLOTS * AG_UUID_SIZE, ag_ids_slot(page, 0),
               AG_IDS_SLOTS * AG_UUID_SIZE);
    }
    return status;
}

/* ---- opening ---- */

struct listing {
    struct ag_ids *ids;
    uint64_t run; /* the one that grows */
};

/* Drops what is beyond the log, and tails of runs that are whole below it. */
static void
drop_stale(void *arg, const char *name)
{
    const struct listing *l = arg;
    const struct ag_io *io = l->ids->place.io;
    char path[PATH_MAX], *end = NULL;
    uint64_t run = strtoull(name, &end, 16);
    bool sorted = strcmp(end, "." SORTED) == 0, tail = strcmp(end, "." TAIL) == 0;
    bool keep = (sorted && run < l->run) || (tail && run <= l->run);
    int n = snprintf(path, sizeof(path), "%s/%s", l->ids->place.dir, name);
    if (!keep && n > 0 && n < PATH_MAX &&
        (sorted || tail || strcmp(end, "." SORTED ".tmp") == 0)) {
        (void)io->unlink(io->ctx, path);
    }
}

static int
open_tail(struct ag_ids *ids, uint64_t run, int flags, struct ag_error *err)
{
    const struct ag_io *io = ids->place.io;
    char path[PATH_MAX];
    int status = ag_ids_path(&ids->place, run, TAIL, path, err);
    if (status == AG_OK) {
        int fd = io->open(io->ctx, path, O_RDWR | O_CREAT | flags, 0600);
        if (fd < 0) {
            return ag_fail_sys(err, -fd, path, "open");
        }
        ids->tail_fd = fd;
    }
    return status;
}

/* The last page, which will go on, out of the tail's file; the pages before it are
 * looked at when they are needed. */
static int
load_last_page(struct ag_ids *ids, struct ag_error *err)
{
    uint64_t run_first = ids->size / AG_IDS_RUN * AG_IDS_RUN;
    uint64_t in_run = ids->size - run_first;
    unsigned used = (unsigned)(in_run % AG_IDS_SLOTS);
    ids->first_page = in_run / AG_IDS_SLOTS;
    if (used == 0) { /* the file must at least be as long as the pages before */
        off_t length = ids->place.io->size(ids->place.io->ctx, ids->tail_fd);
        return length >= (off_t)(ids->first_page * AG_IDS_PAGE)
                   ? AG_OK
                   : ag_fail(err, AG_ECORRUPT, "the id column is short");
    }
    int status = ag_ids_read_tail(&ids->place, ids->tail_fd, ids->place.dir, run_first,
                                  ids->first_page, 1, ids->page[0], err);
    if (status == AG_OK && ag_ids_count(ids->page[0]) < used) {
        status = ag_fail(err, AG_ECORRUPT, "the id column is short");
    }
    if (status == AG_OK) { /* what replay brings again goes behind it */
        memset(ag_ids_slot(ids->page[0], used), 0,
               (AG_IDS_SLOTS - used) * (size_t)AG_UUID_SIZE);
    }
    return status;
}

/* Makes the tail anew from the entries. */
static int
remake_tail(struct ag_ids *ids, const struct ag_ids_source *source,
            struct ag_error *err)
{
    uint64_t size = ids->size, first = size / AG_IDS_RUN * AG_IDS_RUN;
    uint8_t *column = ag_alloc((size_t)(size - first) * AG_UUID_SIZE);
    if (column == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the id column");
    }
    int status = ag_ids_from_entries(source, first, size - first, column, err);
    memset(ids->page, 0, sizeof(ids->page));
    ids->size = ids->written = first;
    ids->first_page = 0;
    for (uint64_t i = first; status == AG_OK && i < size; i++) {
        status = ag_ids_add(ids, i, column + (i - first) * AG_UUID_SIZE, err);
    }
    if (status == AG_OK) {
        status = ag_ids_flush(ids, err);
    }
    ag_free(column);
    return status;
}

int
ag_ids_open(struct ag_ids *ids, uint64_t size, const struct ag_ids_source *source,
            struct ag_error *err)
{
    const struct ag_io *io = ids->place.io;
    struct listing listing = {ids, size / AG_IDS_RUN};
    int result = io->mkdir(io->ctx, ids->place.dir, 0700);
    if (result < 0 && result != -EEXIST) {
        return ag_fail_sys(err, -result, ids->place.dir, "mkdir");
    }
    result = io->list(io->ctx, ids->place.dir, drop_stale, &listing);
    if (result < 0) {
        return ag_fail_sys(err, -result, ids->place.dir, "list");
    }
    ids->size = ids->written = size;
    int status = open_tail(ids, listing.run, 0, err);
    if (status == AG_OK) {
        status = load_last_page(ids, err);
        if (status == AG_ECORRUPT) {
            status = remake_tail(ids, source, err);
        }
    }
    return status;
}

void
ag_ids_close(struct ag_ids *ids)
{
    if (ids->tail_fd >= 0) {
        (void)ids->place.io->close(ids->place.io->ctx, ids->tail_fd);
        ids->tail_fd = -1;
    }
}

/* ---- growing ---- */

static int
start_next_tail(struct ag_ids *ids, struct ag_error *err)
{
    ag_ids_close(ids);
    memset(ids->page[0], 0, AG_IDS_PAGE);
    ids->first_page = 0;
    return open_tail(ids, ids->size / AG_IDS_RUN, O_TRUNC, err);
}

int
ag_ids_add(struct ag_ids *ids, uint64_t index, const uint8_t id[AG_UUID_SIZE],
           struct ag_error *err)
{
    int status = AG_OK;
    if (index < ids->size) {
        return AG_OK;
    }
    uint64_t in_run = index % AG_IDS_RUN, page = in_run / AG_IDS_SLOTS;
    bool next_run = in_run == 0 && index > 0;
    if (next_run || page - ids->first_page >= AG_IDS_BUFFER) {
        status = ag_ids_flush(ids, err);
    }
    if (status == AG_OK && (next_run || ids->tail_fd < 0)) {
        status = start_next_tail(ids, err);
    }
    if (status == AG_OK) {
        uint8_t *to = ids->page[page - ids->first_page];
        memcpy(ag_ids_slot(to, (unsigned)(in_run % AG_IDS_SLOTS)), id, AG_UUID_SIZE);
        ids->size = index + 1;
    }
    return status;
}

int
ag_ids_flush(struct ag_ids *ids, struct ag_error *err)
{
    if (ids->written == ids->size) {
        return AG_OK;
    }
    uint64_t run_first = (ids->size - 1) / AG_IDS_RUN * AG_IDS_RUN;
    uint64_t in_run = ids->size - run_first, end = in_run / AG_IDS_SLOTS;
    unsigned used = (unsigned)(in_run % AG_IDS_SLOTS);
    unsigned whole = (unsigned)(end - ids->first_page);
    for (unsigned i = 0; i < whole + (used > 0); i++) {
        ag_ids_page_seal(ids->place.tag, ids->page[i], AG_IDS_TAIL,
                         i < whole ? AG_IDS_SLOTS : used,
                         run_first + (ids->first_page + i) * AG_IDS_SLOTS);
    }
    int status = ag_io_write_full(ids->place.io, ids->tail_fd, ids->place.dir,
                                  ids->page, (whole + (used > 0)) * (size_t)AG_IDS_PAGE,
                                  ids->first_page * AG_IDS_PAGE, err);
    if (status != AG_OK) {
        return status;
    }
    ids->written = ids->size;
    if (whole > 0) { /* the page that goes on becomes the first */
        if (used > 0) {
            memmove(ids->page[0], ids->page[whole], AG_IDS_PAGE);
        }
        memset(ids->page[used > 0], 0,
               sizeof(ids->page) - (used > 0) * (size_t)AG_IDS_PAGE);
        ids->first_page = end;
    }
    return AG_OK;
}

/* ---- sorting ---- */

/* Turns the ids of a run into records, sorted: dealt out by their first two octets, and
 * these few by insertion. Returns their number, UINT32_MAX without memory. */
static uint32_t
sort_records(const uint8_t *from, uint8_t *to)
{
    enum { BUCKETS = 1 << 16 };
    uint32_t *end = ag_calloc(BUCKETS, sizeof(*end));
    uint8_t *key = ag_alloc((size_t)AG_IDS_RUN * AG_IDS_KEY);
    uint32_t total = 0;
    if (end == NULL || key == NULL) {
        ag_free(end);
        ag_free(key);
        return UINT32_MAX;
    }
    for (uint32_t i = 0; i < AG_IDS_RUN; i++) {
        uint8_t hash[AG_HASH_SIZE];
        if (!ag_ids_is_none(from + (size_t)i * AG_UUID_SIZE)) {
            ag_sha256(from + (size_t)i * AG_UUID_SIZE, AG_UUID_SIZE, hash);
            memcpy(key + (size_t)i * AG_IDS_KEY, hash, AG_IDS_KEY);
            end[ag_get_u16be(hash)]++;
        }
    }
    for (uint32_t b = 0; b < BUCKETS; b++) {
        uint32_t n = end[b];
        end[b] = total; /* for now where it begins */
        total += n;
    }
    for (uint32_t i = 0; i < AG_IDS_RUN; i++) {
        const uint8_t *k = key + (size_t)i * AG_IDS_KEY;
        if (ag_ids_is_none(from + (size_t)i * AG_UUID_SIZE)) {
            continue;
        }
        uint8_t *record = to + (size_t)end[ag_get_u16be(k)]++ * AG_UUID_SIZE;
        memcpy(record, k, AG_IDS_KEY);
        ag_put_u32be(record + AG_IDS_KEY, i);
    }
    for (uint32_t i = 1; i < total; i++) {
        uint8_t record[AG_UUID_SIZE];
        uint32_t j = i;
        memcpy(record, to + (size_t)i * AG_UUID_SIZE, AG_UUID_SIZE);
        while (j > 0 &&
               memcmp(to + (size_t)(j - 1) * AG_UUID_SIZE, record, AG_UUID_SIZE) > 0) {
            memcpy(to + (size_t)j * AG_UUID_SIZE, to + (size_t)(j - 1) * AG_UUID_SIZE,
                   AG_UUID_SIZE);
            j--;
        }
        memcpy(to + (size_t)j * AG_UUID_SIZE, record, AG_UUID_SIZE);
    }
    ag_free(end);
    ag_free(key);
    return total;
}

/* The pages of a sorted run out of its ids, into SORTED_BYTES_MAX octets; their length
 * into *n. */
static int
lay_out_run(const struct ag_ids_place *place, uint64_t run, const uint8_t *column,
            uint8_t *to, size_t *n, struct ag_error *err)
{
    uint8_t *records = ag_alloc((size_t)AG_IDS_RUN * AG_UUID_SIZE);
    uint32_t total = records != NULL ? sort_records(column, records) : UINT32_MAX;
    if (total == UINT32_MAX) {
        ag_free(records);
        return ag_fail(err, AG_ENOMEM, "no memory to sort the id column");
    }
    memset(to, 0, SORTED_BYTES_MAX);
    uint8_t *least = to + AG_IDS_HEADER + 16, *most = least + AG_UUID_SIZE;
    memset(least, 0xff, AG_UUID_SIZE);
    for (uint32_t i = 0; i < AG_IDS_RUN; i++) {
        const uint8_t *id = column + (size_t)i * AG_UUID_SIZE;
        if (!ag_ids_is_none(id)) {
            memcpy(least, memcmp(id, least, AG_UUID_SIZE) < 0 ? id : least,
                   AG_UUID_SIZE);
            memcpy(most, memcmp(id, most, AG_UUID_SIZE) > 0 ? id : most, AG_UUID_SIZE);
        }
    }
    ag_put_u32le(to + AG_IDS_HEADER, total);
    ag_ids_page_seal(place->tag, to, AG_IDS_HEAD, 0, run * AG_IDS_RUN);
    uint8_t *page = to + AG_IDS_PAGE;
    for (uint32_t at = 0; at < total; at += AG_IDS_SLOTS, page += AG_IDS_PAGE) {
        uint32_t count = total - at < AG_IDS_SLOTS ? total - at : AG_IDS_SLOTS;
        memcpy(ag_ids_slot(page, 0), records + (size_t)at * AG_UUID_SIZE,
               count * (size_t)AG_UUID_SIZE);
        ag_ids_page_seal(place->tag, page, AG_IDS_SORTED, count,
                         run * AG_IDS_RUN + (uint64_t)(page - to) / AG_IDS_PAGE);
    }
    *n = (size_t)(page - to);
    ag_free(records);
    return AG_OK;
}

static int
make_run(const struct ag_ids *ids, uint64_t run, const struct ag_ids_source *source,
         const char *path, struct ag_error *err)
{
    uint8_t *column = ag_alloc((size_t)AG_IDS_RUN * AG_UUID_SIZE);
    uint8_t *pages = ag_alloc(SORTED_BYTES_MAX);
    size_t n = 0;
    int status = column != NULL && pages != NULL
                     ? read_full_tail(ids, run, column, pages, err)
                     : ag_fail(err, AG_ENOMEM, "no memory to sort the id column");
    if (status != AG_OK && status != AG_ENOMEM) {
        status = ag_ids_from_entries(source, run * AG_IDS_RUN, AG_IDS_RUN, column, err);
    }
    if (status == AG_OK) {
        status = lay_out_run(&ids->place, run, column, pages, &n, err);
    }
    if (status == AG_OK) {
        status = ag_io_replace_file(ids->place.io, path, pages, n, 0600, 0, err);
    }
    ag_free(column);
    ag_free(pages);
    return status;
}

bool
ag_ids_mendable(const struct ag_ids *ids)
{
    return ids->sorted < ids->written / AG_IDS_RUN;
}

int
ag_ids_mend(struct ag_ids *ids, const struct ag_ids_source *source,
            struct ag_error *err)
{
    const struct ag_io *io = ids->place.io;
    struct ag_io_stat st;
    char path[PATH_MAX];
    int status = ag_ids_path(&ids->place, ids->sorted, SORTED, path, err);
    if (status == AG_OK && io->stat(io->ctx, path, &st) < 0) {
        status = make_run(ids, ids->sorted, source, path, err);
    }
    ids->sorted += status == AG_OK;
    return status;
}

void
ag_ids_condemn(struct ag_ids *ids, uint64_t run)
{
    char path[PATH_MAX];
    if (run < ids->sorted &&
        ag_ids_path(&ids->place, run, SORTED, path, NULL) == AG_OK) {
        (void)ids->place.io->unlink(ids->place.io->ctx, path);
        ids->sorted = run; /* those behind it are there, as mending will see */
    }
}

void
ag_ids_drop_tails(struct ag_ids *ids, uint64_t size)
{
    const struct ag_io *io = ids->place.io;
    char path[PATH_MAX];
    uint64_t below = size / AG_IDS_RUN < ids->sorted ? size / AG_IDS_RUN : ids->sorted;
    for (; ids->dropped < below; ids->dropped++) {
        if (ag_ids_path(&ids->place, ids->dropped, TAIL, path, NULL) == AG_OK) {
            (void)io->unlink(io->ctx, path);
        }
    }
}
