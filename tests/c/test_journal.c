// links: io_fault scratch
/* The journal: round trips, torn tails, damage, faults at every I/O call. */
#include <errno.h>

#include "check.h"
#include "io_fault.h"
#include "scratch.h"
#include "wal/journal.h"

#define LOG_ID 0x1122334455667788u

static char dir[256];

struct replayed {
    uint64_t count;
    uint64_t sum; /* of the first octets */
};

static int
count_record(void *ctx, uint64_t seq, const uint8_t *record, size_t n,
             struct ag_error *err)
{
    struct replayed *r = ctx;
    (void)err;
    ASSERT_EQ_U(seq, r->count);
    ASSERT_LE_U(1, n);
    ASSERT_EQ(record[0], (uint8_t)seq);
    ASSERT_EQ_U(n, 1 + seq % 700);
    r->count++;
    r->sum += record[0];
    return AG_OK;
}

static int
open_at(const struct ag_io *io, const char *path, struct ag_journal **j,
        uint64_t *count, struct ag_error *err)
{
    struct replayed r = {0};
    int status = ag_journal_open(io, path, LOG_ID, true, count_record, &r, j, err);
    if (status == AG_OK) {
        status = ag_journal_begin(*j, err);
    }
    *count = r.count;
    return status;
}

static int
add_batch(struct ag_journal *j, uint64_t first, uint64_t count, struct ag_error *err)
{
    uint8_t record[701];
    for (uint64_t seq = first; seq < first + count; seq++) {
        memset(record, (int)(uint8_t)seq, sizeof(record));
        ASSERT_EQ(ag_journal_add(j, record, 1 + seq % 700), AG_OK);
    }
    return ag_journal_commit(j, err);
}

/* A journal of three batches: records 0-4, 5-5, 6-25; returns its length. */
static size_t
write_three(const char *path, size_t ends[3])
{
    struct ag_journal *j = NULL;
    struct ag_error err;
    uint64_t count = 0;
    unsigned char bytes[1 << 16];
    ASSERT_EQ(open_at(ag_io_posix(), path, &j, &count, &err), AG_OK);
    ASSERT_EQ_U(count, 0);
    ASSERT_EQ(add_batch(j, 0, 5, &err), AG_OK);
    ends[0] = scratch_read(path, bytes, sizeof(bytes));
    ASSERT_EQ(add_batch(j, 5, 1, &err), AG_OK);
    ends[1] = scratch_read(path, bytes, sizeof(bytes));
    ASSERT_EQ(ag_journal_commit(j, &err), AG_OK); /* nothing to do */
    ASSERT_EQ(add_batch(j, 6, 20, &err), AG_OK);
    ends[2] = scratch_read(path, bytes, sizeof(bytes));
    ag_journal_close(j);
    return ends[2];
}

static void
round_trip(void)
{
    char path[512];
    size_t ends[3];
    struct ag_journal *j = NULL;
    struct ag_error err;
    uint64_t count = 0;
    write_three(scratch_path(path, dir, "round"), ends);
    for (uint64_t extra = 0; extra < 3; extra++) {
        ASSERT_EQ(open_at(ag_io_posix(), path, &j, &count, &err), AG_OK);
        ASSERT_EQ_U(count, 26 + extra);
        ASSERT_EQ(add_batch(j, count, 1, &err), AG_OK);
        ag_journal_close(j);
    }
    struct replayed r = {0};
    ASSERT_EQ(ag_journal_open(ag_io_posix(), path, LOG_ID + 1, true, count_record, &r,
                              &j, &err),
              AG_EFOREIGN);
    ASSERT_EQ_STR(err.file, path);
    ASSERT_EQ(ag_journal_open(ag_io_posix(), scratch_path(path, dir, "none"), LOG_ID,
                              false, count_record, &r, &j, &err),
              AG_ENOTFOUND);
}

/* Cut anywhere: whole batches survive, the rest is kept in a copy, appending goes on.
 */
static void
every_prefix(void)
{
    unsigned char bytes[1 << 16], kept[1 << 16];
    char path[512], cut[512], torn[600];
    size_t ends[3];
    size_t n = write_three(scratch_path(path, dir, "whole"), ends);
    ASSERT_EQ_U(scratch_read(path, bytes, sizeof(bytes)), n);
    scratch_path(cut, dir, "cut");
    for (size_t length = AG_JOURNAL_EMPTY; length <= n; length += 1 + length % 7) {
        struct ag_journal *j = NULL;
        struct ag_error err;
        uint64_t count = 0;
        scratch_write(cut, bytes, length);
        ASSERT_EQ(open_at(ag_io_posix(), cut, &j, &count, &err), AG_OK);
        uint64_t expected = length >= ends[2]   ? 26
                            : length >= ends[1] ? 6
                            : length >= ends[0] ? 5
                                                : 0;
        size_t end = length >= ends[2]   ? ends[2]
                     : length >= ends[1] ? ends[1]
                     : length >= ends[0] ? ends[0]
                                         : AG_JOURNAL_EMPTY;
        ASSERT_EQ_U(count, expected);
        if (length > end) {
            (void)snprintf(torn, sizeof(torn), "%s.torn-%zu", cut, end);
            ASSERT_EQ_U(scratch_read(torn, kept, sizeof(kept)), length - end);
            ASSERT_EQ_MEM(kept, bytes + end, length - end);
        }
        ASSERT_EQ(add_batch(j, expected, 2, &err), AG_OK);
        ag_journal_close(j);
        ASSERT_EQ(open_at(ag_io_posix(), cut, &j, &count, &err), AG_OK);
        ASSERT_EQ_U(count, expected + 2);
        ag_journal_close(j);
    }
}

/* A flipped bit never changes a record: before the last batch it is refused, in the
 * last batch the batch counts as torn (and is kept in a copy). */
static void
every_flipped_byte(void)
{
    unsigned char bytes[1 << 16];
    char path[512], bad[512];
    size_t ends[3];
    size_t n = write_three(scratch_path(path, dir, "rot"), ends);
    ASSERT_EQ_U(scratch_read(path, bytes, sizeof(bytes)), n);
    scratch_path(bad, dir, "rotten");
    for (size_t at = 0; at < n; at++) {
        struct ag_journal *j = NULL;
        struct ag_error err;
        uint64_t count = 0;
        bytes[at] ^= 0x10;
        scratch_write(bad, bytes, n);
        bytes[at] ^= 0x10;
        int status = open_at(ag_io_posix(), bad, &j, &count, &err);
        if (at < ends[1]) {
            ASSERT_NE(status, AG_OK);
            ASSERT_EQ_STR(err.file, bad);
        } else {
            ASSERT_EQ(status, AG_OK);
            ASSERT_EQ_U(count, 6);
            ag_journal_close(j);
        }
    }
}

/* From the n-th call on everything fails: what was acknowledged is there afterwards,
 * nothing else than a prefix of what was added, and a failed sync is never repeated. */
static void
faults_at_every_call(void)
{
    for (int forever = 0; forever < 2; forever++) {
        for (long at = 1;; at++) {
            struct io_fault fault;
            struct ag_journal *j = NULL;
            struct ag_error err;
            uint64_t count = 0, acked = 0, added = 0;
            char name[48], path[512];
            io_fault_init(&fault);
            fault.fail_at = at;
            fault.fail_for = forever ? 1000000 : 1;
            fault.fail_errno = forever ? EIO : ENOSPC;
            (void)snprintf(name, sizeof(name), "fault%d-%ld", forever, at);
            scratch_path(path, dir, name);
            int status = open_at(&fault.table, path, &j, &count, &err);
            while (status == AG_OK && added < 30) {
                added += 3;
                status = add_batch(j, added - 3, 3, &err);
                acked = status == AG_OK ? added : acked;
            }
            if (j != NULL && status != AG_OK) {
                ASSERT_EQ(ag_journal_commit(j, &err), AG_EPOISONED);
            }
            ag_journal_close(j);
            ASSERT_EQ(fault.syncs_after_failure, 0);
            j = NULL;
            ASSERT_EQ(open_at(ag_io_posix(), path, &j, &count, &err), AG_OK);
            ASSERT_LE_U(acked, count);
            ASSERT_LE_U(count, added);
            ag_journal_close(j);
            if (fault.calls < at) {
                ASSERT_EQ_U(acked, 30);
                break;
            }
        }
    }
}

int
main(void)
{
    scratch_make(dir);
    RUN(round_trip);
    RUN(every_prefix);
    RUN(every_flipped_byte);
    RUN(faults_at_every_call);
    scratch_remove(dir);
    return 0;
}
