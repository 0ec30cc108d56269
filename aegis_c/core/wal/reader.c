#include "wal/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "base/alloc.h"
#include "base/bytes.h"

#define WINDOW (2u * AG_WAL_EXTENT_MAX)

struct ag_wal_reader {
    const struct ag_io *io; /* borrowed */
    char dir[AG_WAL_PATH];
    char archive[AG_WAL_PATH];
    char path[AG_WAL_PATH]; /* of the open segment */
    bool archived;
    uint32_t segment_bytes;
    uint64_t from_seq;
    int fd;
    struct ag_wal_position position;
    uint8_t *window; /* owned: bytes [start, start + filled) of the segment */
    uint64_t start;
    size_t filled;
    struct ag_wal_body body; /* of the batch being given out, inside `window` */
    bool in_batch;
};

/* Opens a segment where it is now: it may move to the archive at any time. */
static int
open_segment(struct ag_wal_reader *reader, uint32_t number, struct ag_error *err)
{
    int status = AG_OK;
    for (int attempt = 0; attempt < 3; attempt++) {
        bool in_archive = attempt == 1;
        status = ag_wal_segment_path(
            reader->path, in_archive ? reader->archive : reader->dir, number, err);
        if (status != AG_OK) {
            return status;
        }
        int fd =
            reader->io->open(reader->io->ctx, reader->path, O_RDONLY | O_NOFOLLOW, 0);
        if (fd >= 0) {
            reader->fd = fd;
            reader->filled = 0;
            return AG_OK;
        }
        if (fd != -ENOENT) {
            return ag_fail_sys(err, -fd, reader->path, "open");
        }
    }
    ag_fail(err, AG_ENOTFOUND, "no such segment");
    ag_error_file(err, reader->path, AG_NO_POSITION);
    return AG_ENOTFOUND;
}

static void
close_segment(struct ag_wal_reader *reader)
{
    if (reader->fd >= 0) {
        (void)reader->io->close(reader->io->ctx, reader->fd);
        reader->fd = -1;
    }
    reader->in_batch = false;
}

/* Makes bytes [at, at + n) available; *to points at them. A live writer's file always
 * has its full size, so a short read is damage. */
static int
load(struct ag_wal_reader *reader, uint64_t at, size_t n, const uint8_t **to,
     struct ag_error *err)
{
    if (at < reader->start || at + n > reader->start + reader->filled) {
        uint64_t left = reader->segment_bytes - at;
        size_t want = left < WINDOW ? (size_t)left : WINDOW;
        reader->filled = 0;
        int status = ag_io_read_full(reader->io, reader->fd, reader->path,
                                     reader->window, want, at, err);
        if (status != AG_OK) {
            return status;
        }
        reader->start = at;
        reader->filled = want;
    }
    *to = reader->window + (at - reader->start);
    return AG_OK;
}

/* Header of segment `number`: 1 intact, 0 not (yet) active or not there. */
static int
read_segment_header(struct ag_wal_reader *reader, uint32_t number,
                    struct ag_wal_segment_header *header, struct ag_error *err)
{
    int status = open_segment(reader, number, err);
    if (status != AG_OK) {
        return status == AG_ENOTFOUND ? 0 : status;
    }
    off_t size = reader->io->size(reader->io->ctx, reader->fd);
    const uint8_t *block = NULL;
    if (size != (off_t)reader->segment_bytes) {
        status = ag_fail(err, AG_ECORRUPT, "a segment has the wrong size");
        ag_error_file(err, reader->path, AG_NO_POSITION);
    } else {
        status = load(reader, 0, AG_WAL_BLOCK, &block, err);
    }
    if (status != AG_OK) {
        close_segment(reader);
        return status;
    }
    if (ag_wal_decode_segment(block, header) != AG_READ_OK ||
        header->segment_no != number) {
        close_segment(reader);
        return 0;
    }
    return 1;
}

/* Moves on to the next segment when there is an active one: 1, 0 or a refusal. */
static int
next_segment(struct ag_wal_reader *reader, struct ag_error *err)
{
    struct ag_wal_segment_header header;
    int fd = reader->fd;
    char path[AG_WAL_PATH];
    memcpy(path, reader->path, sizeof(path));
    reader->fd = -1;
    int got =
        read_segment_header(reader, reader->position.segment_no + 1, &header, err);
    if (got <= 0) {
        reader->fd = fd;
        memcpy(reader->path, path, sizeof(path));
        reader->filled = 0;
        return got;
    }
    (void)reader->io->close(reader->io->ctx, fd);
    if (header.wal_id != reader->position.wal_id ||
        header.prev_valid_len != reader->position.at ||
        header.first_seq != reader->position.next_seq ||
        header.prev_crc != reader->position.crc) {
        char want[96], have[96];
        (void)snprintf(want, sizeof(want), "%" PRIu64 " bytes, sequence %" PRIu64,
                       reader->position.at, reader->position.next_seq);
        (void)snprintf(have, sizeof(have), "%" PRIu64 " bytes, sequence %" PRIu64,
                       header.prev_valid_len, header.first_seq);
        ag_fail(err, AG_ECORRUPT, "a segment that does not continue the one before it");
        ag_error_file(err, reader->path, 0);
        ag_error_index(err, reader->position.next_seq);
        ag_error_pair(err, want, have);
        ag_error_advice(err, "Run `aegis-c wal verify DIR`");
        return AG_ECORRUPT;
    }
    reader->position = ag_wal_position_start(&header);
    return 1;
}

/* Takes the next batch into reader->body: 1, 0 at the end, or a refusal. */
static int
next_batch(struct ag_wal_reader *reader, struct ag_error *err)
{
    struct ag_wal_batch_header header;
    for (int fresh = 0;;) {
        if (!reader->position.sealed) {
            uint64_t at = reader->position.at;
            uint64_t left = reader->segment_bytes - at;
            const uint8_t *batch = NULL;
            enum ag_wal_stop stop = AG_STOP_END;
            int got = 0;
            if (left >= AG_WAL_BLOCK) {
                int status = load(reader, at, AG_WAL_BLOCK, &batch, err);
                if (status == AG_OK &&
                    ag_wal_decode_batch(batch, &header) == AG_READ_OK &&
                    ag_wal_extent(header.body_len) <= left) {
                    status =
                        load(reader, at, ag_wal_extent(header.body_len), &batch, err);
                }
                if (status != AG_OK) {
                    return status;
                }
                got = ag_wal_step(batch, left, &reader->position, &header, &stop,
                                  reader->path, err);
            }
            if (got < 0) {
                return got;
            }
            if (got == 1) {
                fresh = 0;
                if (header.nrec == 0) {
                    continue;
                }
                size_t offset = (size_t)(at - reader->start);
                if (header.whitening != 0) {
                    ag_wal_whiten(reader->window + offset,
                                  ag_wal_extent(header.body_len), header.whitening);
                    /* What lies in the window is no longer what lies in the file. */
                    reader->filled = 0;
                }
                reader->body.next = reader->window + offset + AG_WAL_HEADER;
                reader->body.left = header.body_len;
                reader->body.seq = header.first_seq;
                reader->body.records_left = header.nrec;
                reader->in_batch = true;
                return 1;
            }
            if (fresh == 0) {
                /* The window may be older than what a live writer has added. */
                reader->filled = 0;
                fresh = 1;
                continue;
            }
        }
        int got = next_segment(reader, err);
        if (got <= 0) {
            return got;
        }
        fresh = 0;
    }
}

int
ag_wal_reader_next(struct ag_wal_reader *reader, uint64_t *seq, const uint8_t **payload,
                   uint32_t *n, struct ag_error *err)
{
    for (;;) {
        if (reader->in_batch) {
            int got = ag_wal_body_next(&reader->body, seq, payload, n);
            if (got < 0) {
                ag_fail(err, AG_ECORRUPT, "a record inside an intact batch is damaged");
                ag_error_file(err, reader->path, AG_NO_POSITION);
                ag_error_index(err, reader->body.seq);
                return AG_ECORRUPT;
            }
            if (got == 1) {
                if (*seq >= reader->from_seq) {
                    return 1;
                }
                continue;
            }
            reader->in_batch = false;
        }
        int got = next_batch(reader, err);
        if (got <= 0) {
            return got;
        }
    }
}

struct found {
    uint32_t *numbers; /* owned */
    size_t count, capacity;
    bool failed;
};

static void
each_segment(void *arg, const char *name)
{
    struct found *found = arg;
    uint32_t number = ag_wal_segment_number(name);
    if (number == 0) {
        return;
    }
    if (found->count == found->capacity) {
        size_t capacity = found->capacity * 2 + 16;
        uint32_t *grown = ag_realloc(found->numbers, capacity * sizeof(*grown));
        if (grown == NULL) {
            found->failed = true;
            return;
        }
        found->numbers = grown;
        found->capacity = capacity;
    }
    found->numbers[found->count++] = number;
}

static int
descending(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x > y ? -1 : x < y;
}

/* Opens the last segment that starts at or before from_seq. */
static int
find_start(struct ag_wal_reader *reader, uint64_t wal_id, struct ag_error *err)
{
    struct found found = {0};
    struct ag_wal_segment_header header;
    int status = AG_OK;
    bool opened = false;
    uint64_t lowest = 0;
    int result = reader->io->list(reader->io->ctx, reader->dir, each_segment, &found);
    if (result == 0 && reader->archived) {
        result =
            reader->io->list(reader->io->ctx, reader->archive, each_segment, &found);
        result = result == -ENOENT ? 0 : result;
    }
    if (result < 0) {
        status = ag_fail_sys(err, -result, reader->dir, "list");
        goto exit;
    }
    if (found.failed) {
        status = ag_fail(err, AG_ENOMEM, "no memory for the list of segments");
        goto exit;
    }
    if (found.count > 1) {
        qsort(found.numbers, found.count, sizeof(*found.numbers), descending);
    }
    for (size_t i = 0; i < found.count && !opened; i++) {
        int got = read_segment_header(reader, found.numbers[i], &header, err);
        if (got < 0) {
            status = got;
            goto exit;
        }
        if (got == 0 || header.wal_id != wal_id) {
            close_segment(reader);
            continue;
        }
        lowest = header.first_seq;
        bool first = i + 1 == found.count;
        if (header.first_seq <= reader->from_seq || (first && reader->from_seq == 0)) {
            reader->position = ag_wal_position_start(&header);
            opened = true;
        } else {
            close_segment(reader);
        }
    }
    if (!opened && lowest != 0) {
        status = ag_fail(err, AG_ERANGE,
                         "sequence %" PRIu64 " lies before the first segment, which "
                         "starts at %" PRIu64,
                         reader->from_seq, lowest);
        ag_error_file(err, reader->dir, AG_NO_POSITION);
    } else if (!opened) {
        status = ag_fail(err, AG_ENOTFOUND, "no segment that can be read");
        ag_error_file(err, reader->dir, AG_NO_POSITION);
        ag_error_advice(err, "Run `aegis-c wal verify DIR`");
    }
exit:
    ag_free(found.numbers);
    return status;
}

int
ag_wal_reader_open(const struct ag_io *io, const char *dir, const char *archive,
                   uint64_t from_seq, bool archived, struct ag_wal_reader **out,
                   struct ag_error *err)
{
    char path[AG_WAL_PATH];
    uint8_t *bytes = NULL;
    size_t n = 0;
    struct ag_wal_log_file file;
    struct ag_wal_reader *reader = NULL;
    int status = ag_wal_path(path, dir, "LOG", err);
    if (status == AG_OK) {
        status =
            ag_io_read_file(io, path, AG_WAL_HEADER + AG_WAL_BLOB_MAX, &bytes, &n, err);
    }
    if (status == AG_OK) {
        status = ag_wal_decode_log(bytes, n, &file);
        if (status != AG_OK) {
            ag_fail(err, status, "LOG cannot be read: %s", ag_status_text(status));
            ag_error_file(err, path, 0);
            ag_error_advice(err, "Run `aegis-c wal verify DIR`");
        }
    } else if (status == AG_ENOTFOUND) {
        ag_fail(err, AG_ENOTFOUND, "no log here");
        ag_error_file(err, path, AG_NO_POSITION);
        ag_error_advice(err, "Name the directory that holds the file LOG");
    }
    ag_free(bytes);
    if (status != AG_OK) {
        return status;
    }
    reader = ag_calloc(1, sizeof(*reader));
    uint8_t *window = ag_wal_buffer(WINDOW);
    if (reader == NULL || window == NULL) {
        ag_wal_buffer_free(window);
        ag_free(reader);
        return ag_fail(err, AG_ENOMEM, "no memory for a reader");
    }
    reader->io = io;
    reader->fd = -1;
    reader->window = window;
    reader->segment_bytes = file.segment_bytes;
    reader->archived = archived;
    /* Without an explicit start, the live part begins where LOG says. */
    reader->from_seq = from_seq != 0 || archived ? from_seq : file.first_seq;
    (void)snprintf(reader->dir, sizeof(reader->dir), "%s", dir);
    if (archive != NULL) {
        (void)snprintf(reader->archive, sizeof(reader->archive), "%s", archive);
        status = AG_OK;
    } else {
        status = ag_wal_path(reader->archive, dir, "archive", err);
    }
    if (status == AG_OK) {
        status = find_start(reader, file.wal_id, err);
    }
    if (status == AG_ENOTFOUND && file.opened == 0) {
        status = AG_OK; /* created, never activated: nothing to read */
        reader->position.sealed = true;
    }
    if (status != AG_OK) {
        ag_wal_reader_close(reader);
        return status;
    }
    *out = reader;
    return AG_OK;
}

void
ag_wal_reader_close(struct ag_wal_reader *reader)
{
    if (reader != NULL) {
        close_segment(reader);
        ag_wal_buffer_free(reader->window);
        ag_free(reader);
    }
}

static bool
is_locked(const struct ag_io *io, const char *dir)
{
    char path[AG_WAL_PATH];
    if (ag_wal_path(path, dir, "LOCK", NULL) != AG_OK) {
        return false;
    }
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd < 0) {
        return false;
    }
    int result = io->lock(io->ctx, fd);
    (void)io->close(io->ctx, fd);
    return result == -EWOULDBLOCK;
}

int
ag_wal_verify(const struct ag_io *io, const char *dir, struct ag_wal_recovery *recovery,
              bool *live, struct ag_error *err)
{
    const struct ag_wal_recover_options options = {.read_only = true};
    int status = AG_OK;
    for (int attempt = 0; attempt < 5; attempt++) {
        *live = is_locked(io, dir);
        status = ag_wal_recover(io, dir, &options, recovery, err);
        if (status == AG_OK || !*live) {
            break;
        }
        if (attempt < 4) {
            /* A live writer may have moved LOG or its tail while we looked. */
            ag_wal_recovery_free(recovery);
            struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
            (void)nanosleep(&pause, NULL);
        }
    }
    if (status == AG_OK && recovery->fresh) {
        char path[AG_WAL_PATH];
        ag_fail(err, AG_ENOTFOUND, "no log here");
        if (ag_wal_path(path, dir, "LOG", NULL) == AG_OK) {
            ag_error_file(err, path, AG_NO_POSITION);
        }
        ag_error_advice(err, "Name the directory that holds the file LOG");
        status = AG_ENOTFOUND;
    }
    return status;
}
