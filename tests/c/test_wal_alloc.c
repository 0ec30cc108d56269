// links: alloc_fault scratch
/* The log without memory: whichever allocation of open, append, marks, reading and
 * close fails, the call says so or gets by without, nothing leaks, and what append
 * returned is there with the next open. */
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "base/alloc.h"
#include "check.h"
#include "scratch.h"
#include "wal/reader.h"
#include "wal/writer.h"

#define EACH 40u /* records a run: over several segments */

static char folder[256], path[512], ring[512];
static unsigned refused;

/* 0, or the failure, which must be for want of memory. */
static int
judge(int status, const struct ag_error *err)
{
    if (status < 0) {
        if (status != AG_ENOMEM && status != AG_EPOISONED) {
            CHECK_FAIL("%s: %s", ag_status_name(status), err->what);
        }
        ASSERT(err->what[0] != '\0');
        refused++;
    }
    return status;
}

static struct ag_wal *
try_open(struct ag_error *err)
{
    const struct ag_wal_options options = {
        .ring_path = ring, .segment_bytes = 32768, .ring_bytes = 65536};
    struct ag_wal *wal = NULL;
    return judge(ag_wal_open(path, &options, &wal, err), err) == AG_OK ? wal : NULL;
}

/* Appends EACH records, moves the mark, closes; returns what append returned last. */
static uint64_t
run(uint64_t last)
{
    struct ag_error err;
    uint8_t payload[1500];
    struct ag_wal *wal = try_open(&err);
    if (wal == NULL) {
        return last;
    }
    ASSERT_EQ_U(ag_wal_next_seq(wal), last + 1);
    for (unsigned i = 0; i < EACH; i++) {
        uint64_t seq = 0;
        memset(payload, (int)(last + 1), sizeof(payload));
        int status = ag_wal_append(wal, payload, sizeof(payload), &seq);
        if (status != AG_OK) {
            ASSERT_EQ(status,
                      AG_EPOISONED); /* W found no memory for a segment's name */
            break;
        }
        last = seq;
        if (judge(ag_wal_sync(wal, seq, UINT64_MAX, &err), &err) != AG_OK) {
            break;
        }
    }
    (void)judge(ag_wal_set_low_water(wal, ag_wal_durable(wal), "blob", 4, &err), &err);
    (void)judge(ag_wal_close(wal, UINT64_MAX, &err), &err);
    return last;
}

static uint64_t
count_records(void)
{
    struct ag_wal_reader *reader = NULL;
    struct ag_error err;
    uint64_t seq = 0, count = 0;
    const uint8_t *payload = NULL;
    uint32_t n = 0;
    int got = judge(
        ag_wal_reader_open(ag_io_posix(), path, NULL, 0, true, &reader, &err), &err);
    if (got != AG_OK) {
        return 0;
    }
    while ((got = ag_wal_reader_next(reader, &seq, &payload, &n, &err)) == 1) {
        count++;
        ASSERT_EQ_U(seq, count);
        ASSERT_EQ(payload[n - 1], (uint8_t)seq);
    }
    (void)judge(got, &err);
    ag_wal_reader_close(reader);
    return count;
}

static void
test_every_allocation(void)
{
    uint64_t last = run(0);
    ASSERT_EQ_U(last, EACH);
    long held = ag_test_live_blocks();
    unsigned failures = 0;
    for (long n = 1, quiet = 0; quiet < 3; n++) {
        unsigned before = refused;
        ag_test_fail_alloc_at(n);
        last = run(last);
        ag_test_fail_alloc_at(0);
        quiet = refused == before ? quiet + 1 : 0;
        failures += refused - before;
        ASSERT_EQ(ag_test_live_blocks(), held);
        last = run(last); /* with memory it goes on */
        ASSERT_EQ(ag_test_live_blocks(), held);
    }
    fprintf(stderr, "    %u refusals\n", failures);
    ASSERT_LT_U(5, failures);
    unsigned before = refused;
    for (long n = 1; n < 200; n++) {
        ag_test_fail_alloc_at(n);
        uint64_t count = count_records();
        ag_test_fail_alloc_at(0);
        ASSERT(count <= last);
        ASSERT_EQ(ag_test_live_blocks(), held);
        if (count == last) {
            break;
        }
    }
    ASSERT_LT_U(before, refused);
    ASSERT_EQ_U(count_records(), last);
}

int
main(void)
{
    scratch_make(folder);
    scratch_path(path, folder, "wal");
    (void)snprintf(ring, sizeof(ring), "/dev/shm/aegis-test-%d-alloc", (int)getpid());
    RUN(test_every_allocation);
    (void)remove(ring);
    scratch_remove(folder);
    return 0;
}
