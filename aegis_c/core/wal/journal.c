#include "wal/journal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "hash/crc32c.h"

#define FILE_HEADER AG_JOURNAL_EMPTY
#define BATCH_HEADER 32
#define BATCH_MAGIC 0x4a424741u /* "AGBJ" little-endian */

static const uint8_t file_magic[8] = {'A', 'G', 'J', 'R', 'N', 'L', 0, 1};

struct ag_journal {
    const struct ag_io *io;
    int fd;
    bool poisoned;
    uint64_t end;      /* octets of the file that hold whole batches */
    uint64_t torn_end; /* end of a torn batch behind them, or `end` */
    uint64_t next_seq; /* of the batch in memory */
    uint32_t records;  /* in the batch in memory */
    uint8_t *batch;    /* owned; header space, then body */
    size_t used, room;
    char path[PATH_MAX];
};

struct batch {
    uint64_t first_seq;
    uint32_t body_n, records, body_crc;
};

static uint32_t
masked_crc(const uint8_t *data, size_t n)
{
    return ag_crc32c_mask(ag_crc32c(0, data, n));
}

static bool
parse_header(const uint8_t *at, struct batch *b)
{
    if (ag_get_u32le(at) != BATCH_MAGIC ||
        ag_get_u32le(at + 24) != masked_crc(at, 24)) {
        return false;
    }
    b->body_n = ag_get_u32le(at + 4);
    b->first_seq = ag_get_u64le(at + 8);
    b->records = ag_get_u32le(at + 16);
    b->body_crc = ag_get_u32le(at + 20);
    return ag_get_u32le(at + 28) == 0;
}

/* ---- recovery ---- */

/* A whole valid batch at data[offset...], of any sequence. */
static bool
whole_batch(const uint8_t *data, size_t n, size_t offset, struct batch *b)
{
    return n - offset >= BATCH_HEADER && parse_header(data + offset, b) &&
           n - offset - BATCH_HEADER >= b->body_n &&
           masked_crc(data + offset + BATCH_HEADER, b->body_n) == b->body_crc;
}

static int
replay_batch(const uint8_t *body, const struct batch *b, ag_journal_replay_fn replay,
             void *ctx, struct ag_error *err)
{
    size_t at = 0;
    for (uint32_t i = 0; i < b->records; i++) {
        if (b->body_n - at < 4) {
            return ag_fail(err, AG_ECORRUPT, "batch holds fewer records than it says");
        }
        size_t n = ag_get_u32le(body + at);
        at += 4;
        if (b->body_n - at < n) {
            return ag_fail(err, AG_ECORRUPT, "record is longer than its batch");
        }
        int status = replay(ctx, b->first_seq + i, body + at, n, err);
        if (status != AG_OK) {
            return status;
        }
        at += n;
    }
    return at == b->body_n ? AG_OK
                           : ag_fail(err, AG_ECORRUPT, "batch has octets to spare");
}

static int
refuse_damage(const char *path, size_t offset, uint64_t seq, struct ag_error *err)
{
    int status =
        ag_fail(err, AG_ECORRUPT, "damaged batch in the middle of the journal");
    ag_error_file(err, path, offset);
    ag_error_index(err, seq);
    ag_error_advice(err, "Keep the file as it is and restore it from a copy.");
    return status;
}

/* Everything from `offset` on is no whole batch: torn, unless a whole batch follows. */
static int
check_torn(const struct ag_journal *j, const uint8_t *data, size_t n, size_t offset,
           struct ag_error *err)
{
    struct batch later;
    for (size_t at = offset + 1; at + BATCH_HEADER <= n; at++) {
        if (whole_batch(data, n, at, &later)) {
            return refuse_damage(j->path, offset, j->next_seq, err);
        }
    }
    return AG_OK;
}

static int
recover(struct ag_journal *j, const uint8_t *data, size_t n, uint64_t log_id,
        ag_journal_replay_fn replay, void *ctx, struct ag_error *err)
{
    int status = AG_OK;
    if (n < FILE_HEADER || memcmp(data, file_magic, sizeof(file_magic)) != 0) {
        status = ag_fail(err, AG_EVERSION, "not a journal of this version");
        ag_error_file(err, j->path, 0);
        return status;
    }
    if (ag_get_u64le(data + 8) != log_id) {
        status = ag_fail(err, AG_EFOREIGN, "journal of another log");
        ag_error_file(err, j->path, 8);
        return status;
    }
    size_t offset = FILE_HEADER;
    while (offset < n) {
        struct batch b;
        if (!whole_batch(data, n, offset, &b)) {
            status = check_torn(j, data, n, offset, err);
            break;
        }
        if (b.first_seq != j->next_seq) {
            return refuse_damage(j->path, offset, j->next_seq, err);
        }
        status = replay_batch(data + offset + BATCH_HEADER, &b, replay, ctx, err);
        if (status != AG_OK) {
            if (err != NULL && err->file[0] == '\0') {
                ag_error_file(err, j->path, offset);
            }
            return status;
        }
        j->next_seq += b.records;
        offset += BATCH_HEADER + b.body_n;
    }
    j->end = offset;
    j->torn_end = n;
    return status;
}

static int
create_file(const struct ag_io *io, const char *path, uint64_t log_id,
            struct ag_error *err)
{
    uint8_t header[FILE_HEADER];
    memcpy(header, file_magic, sizeof(file_magic));
    ag_put_u64le(header + 8, log_id);
    return ag_io_replace_file(io, path, header, sizeof(header), 0600, 1, err);
}

int
ag_journal_open(const struct ag_io *io, const char *path, uint64_t log_id, bool create,
                ag_journal_replay_fn replay, void *ctx, struct ag_journal **journal,
                struct ag_error *err)
{
    uint8_t *data = NULL;
    size_t n = 0;
    struct ag_journal *j = ag_calloc(1, sizeof(*j));
    if (j == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the journal");
    }
    j->io = io;
    j->fd = -1;
    (void)snprintf(j->path, sizeof(j->path), "%s", path);
    int status = ag_io_read_file(io, path, SIZE_MAX / 2, &data, &n, err);
    if (status == AG_ENOTFOUND && create) {
        status = create_file(io, path, log_id, err);
        if (status == AG_OK) {
            status = ag_io_read_file(io, path, SIZE_MAX / 2, &data, &n, err);
        }
    }
    if (status != AG_OK) {
        goto exit;
    }
    j->fd = io->open(io->ctx, path, O_RDWR, 0);
    if (j->fd < 0) {
        status = ag_fail_sys(err, -j->fd, path, "open");
        goto exit;
    }
    status = recover(j, data, n, log_id, replay, ctx, err);
    if (status == AG_OK) {
        *journal = j;
        j = NULL; /* transferred */
    }
exit:
    ag_free(data);
    ag_journal_close(j);
    return status;
}

static int
keep_torn_batch(struct ag_journal *j, struct ag_error *err)
{
    char copy[PATH_MAX + 32];
    size_t n = (size_t)(j->torn_end - j->end);
    uint8_t *torn = ag_alloc(n);
    if (torn == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for a torn batch of %zu octets", n);
    }
    (void)snprintf(copy, sizeof(copy), "%s.torn-%" PRIu64, j->path, j->end);
    int status = ag_io_read_full(j->io, j->fd, j->path, torn, n, j->end, err);
    if (status == AG_OK) {
        status = ag_io_replace_file(j->io, copy, torn, n, 0600, 1, err);
    }
    ag_free(torn);
    return status;
}

static int
make_ready(struct ag_journal *j, struct ag_error *err)
{
    if (j->torn_end > j->end) {
        int status = keep_torn_batch(j, err);
        if (status != AG_OK) {
            return status;
        }
        int result = j->io->truncate(j->io->ctx, j->fd, (off_t)j->end);
        if (result < 0) {
            return ag_fail_sys(err, -result, j->path, "truncate");
        }
        j->torn_end = j->end;
    }
    /* What was read may be only in the page cache, left by a killed writer. */
    int result = j->io->fdatasync(j->io->ctx, j->fd);
    return result < 0 ? ag_fail_sys(err, -result, j->path, "fdatasync") : AG_OK;
}

int
ag_journal_begin(struct ag_journal *j, struct ag_error *err)
{
    int status = make_ready(j, err);
    j->poisoned = status != AG_OK;
    return status;
}

/* ---- writing ---- */

int
ag_journal_add(struct ag_journal *j, const uint8_t *record, size_t n)
{
    size_t used = j->used != 0 ? j->used : BATCH_HEADER;
    size_t needed = 0;
    if (!ag_add_size(used + 4, n, &needed) || needed > UINT32_MAX) {
        return AG_ETOOBIG;
    }
    if (needed > j->room) {
        size_t room = needed + needed / 2;
        uint8_t *larger = ag_realloc(j->batch, room);
        if (larger == NULL) {
            return AG_ENOMEM;
        }
        j->batch = larger;
        j->room = room;
    }
    ag_put_u32le(j->batch + used, (uint32_t)n);
    memcpy(j->batch + used + 4, record, n);
    j->used = needed;
    j->records++;
    return AG_OK;
}

int
ag_journal_commit(struct ag_journal *j, struct ag_error *err)
{
    if (j->poisoned) {
        int status =
            ag_fail(err, AG_EPOISONED, "an earlier write of the journal failed");
        ag_error_file(err, j->path, j->end);
        return status;
    }
    if (j->records == 0) {
        return AG_OK;
    }
    uint8_t *at = j->batch;
    size_t body_n = j->used - BATCH_HEADER;
    ag_put_u32le(at, BATCH_MAGIC);
    ag_put_u32le(at + 4, (uint32_t)body_n);
    ag_put_u64le(at + 8, j->next_seq);
    ag_put_u32le(at + 16, j->records);
    ag_put_u32le(at + 20, masked_crc(at + BATCH_HEADER, body_n));
    ag_put_u32le(at + 24, masked_crc(at, 24));
    ag_put_u32le(at + 28, 0);
    int status = ag_io_write_full(j->io, j->fd, j->path, at, j->used, j->end, err);
    if (status == AG_OK) {
        int result = j->io->fdatasync(j->io->ctx, j->fd);
        if (result < 0) {
            status = ag_fail_sys(err, -result, j->path, "fdatasync");
        }
    }
    if (status != AG_OK) {
        j->poisoned = true; /* never retried: the kernel may have dropped the pages */
        return status;
    }
    j->end += j->used;
    j->next_seq += j->records;
    j->records = 0;
    j->used = 0;
    return AG_OK;
}

void
ag_journal_close(struct ag_journal *j)
{
    if (j != NULL) {
        if (j->fd >= 0) {
            (void)j->io->close(j->io->ctx, j->fd);
        }
        ag_free(j->batch);
        ag_free(j);
    }
}
