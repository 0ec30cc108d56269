#include "wal/source.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "wal/format.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

static void
each_name(void *arg, const char *name)
{
    struct ag_wal_names *names = arg;
    uint32_t number = ag_wal_segment_number(name);
    if (number == 0 || names->failed) {
        return;
    }
    if (names->count == names->capacity) {
        size_t capacity = names->capacity != 0 ? names->capacity * 2 : 16;
        uint32_t *grown = ag_realloc(names->numbers, capacity * sizeof(*grown));
        if (grown == NULL) {
            names->failed = 1;
            return;
        }
        names->numbers = grown;
        names->capacity = capacity;
    }
    names->numbers[names->count++] = number;
}

static int
by_number(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int
ag_wal_list_segments(const struct ag_io *io, const char *dir, bool may_be_missing,
                     struct ag_wal_names *names, struct ag_error *err)
{
    int result = io->list(io->ctx, dir, each_name, names);
    if (result < 0 && !(may_be_missing && result == -ENOENT)) {
        return ag_fail_sys(err, -result, dir, "list");
    }
    if (names->failed) {
        return ag_fail(err, AG_ENOMEM, "no memory for the list of segments");
    }
    if (names->count > 1) {
        qsort(names->numbers, names->count, sizeof(*names->numbers), by_number);
    }
    return AG_OK;
}

int
ag_wal_source_open(const struct ag_io *io, const char *dir, uint32_t number,
                   uint32_t segment_bytes, bool read_only, struct ag_wal_source *source,
                   struct ag_error *err)
{
    source->fd = -1;
    int status = ag_wal_segment_path(source->path, dir, number, err);
    if (status != AG_OK) {
        return status;
    }
    struct ag_io_stat st;
    int result = io->stat(io->ctx, source->path, &st);
    if (result < 0) {
        return ag_fail_sys(err, -result, source->path, "stat");
    }
    if (!S_ISREG(st.mode) || st.size != segment_bytes) {
        char want[96], have[96];
        (void)snprintf(want, sizeof(want), "a regular file of %u bytes", segment_bytes);
        (void)snprintf(have, sizeof(have), "%s of %" PRIu64 " bytes",
                       S_ISREG(st.mode) ? "a regular file" : "something else", st.size);
        ag_fail(err, AG_ECORRUPT, "a segment has the wrong size or kind");
        ag_error_file(err, source->path, AG_NO_POSITION);
        ag_error_pair(err, want, have);
        ag_error_advice(err, "Nothing was changed. Bring the file back from a copy, or "
                             "run `aegis-c wal salvage DIR --to NEW`");
        return AG_ECORRUPT;
    }
    int fd = io->open(io->ctx, source->path, O_RDONLY | O_DIRECT | O_NOFOLLOW, 0);
    bool direct = fd >= 0 && O_DIRECT != 0;
    if (fd == -EINVAL) {
        fd = io->open(io->ctx, source->path, O_RDONLY | O_NOFOLLOW, 0);
    }
    if (fd < 0) {
        return ag_fail_sys(err, -fd, source->path, "open");
    }
    source->fd = fd;
    if (read_only) {
        return AG_OK;
    }
    /* A failed write of the last run may have left clean pages that the disk never got:
     * sync, then believe only what comes from the disk itself. */
    result = io->fsync(io->ctx, fd);
    if (result == 0 && !direct) {
        (void)io->uncache(io->ctx, fd);
    }
    if (result < 0) {
        status = ag_fail_sys(err, -result, source->path, "fsync");
        (void)io->close(io->ctx, fd);
        source->fd = -1;
    }
    return status;
}

void
ag_wal_source_close(const struct ag_io *io, struct ag_wal_source *source)
{
    if (source->fd >= 0) {
        (void)io->close(io->ctx, source->fd);
        source->fd = -1;
    }
}

static void *
fetch_main(void *arg)
{
    struct ag_wal_fetch *fetch = arg;
    size_t piece = fetch->piece != 0 ? fetch->piece : fetch->n;
    fetch->zero = fetch->piece != 0;
    fetch->status = AG_OK;
    for (size_t done = 0; done < fetch->n && fetch->status == AG_OK; done += piece) {
        size_t n = fetch->n - done < piece ? fetch->n - done : piece;
        fetch->status =
            ag_io_read_full(fetch->io, fetch->source.fd, fetch->source.path,
                            fetch->buffer, n, fetch->from + done, &fetch->err);
        if (fetch->status == AG_OK && fetch->zero) {
            fetch->zero = ag_wal_is_zero(fetch->buffer, n);
        }
    }
    return NULL;
}

void
ag_wal_fetch_start(struct ag_wal_fetch *fetch, bool threaded)
{
    fetch->running =
        threaded && pthread_create(&fetch->thread, NULL, fetch_main, fetch) == 0;
    if (!fetch->running) {
        (void)fetch_main(fetch);
    }
}

int
ag_wal_fetch_finish(struct ag_wal_fetch *fetch, struct ag_error *err)
{
    if (fetch->running) {
        (void)pthread_join(fetch->thread, NULL);
        fetch->running = false;
    }
    if (fetch->status != AG_OK && err != NULL) {
        *err = fetch->err;
    }
    return fetch->status;
}
