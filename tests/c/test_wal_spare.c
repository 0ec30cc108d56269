// links: scratch
/* The spare segment: zeros wait for what the log writes, and the log moves on to it
 * while nobody waits. */
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "check.h"
#include "scratch.h"
#include "wal/reader.h"
#include "wal/segment.h"
#include "wal/writer.h"

#define SEGMENT (4u << 20)
#define PIECE (256u << 10)

static char folder[256], log_path[512], ring_path[512];
static struct ag_io table;
static _Atomic unsigned pieces;       /* of zeros, beside a log in use */
static atomic_bool stall_next, stall; /* the fdatasync after the next header waits */
static atomic_bool stalled;

static void
pause_ms(long ms)
{
    struct timespec pause = {.tv_nsec = ms * 1000 * 1000};
    (void)nanosleep(&pause, NULL);
}

static ssize_t
watched_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    static _Atomic unsigned headers;
    const uint8_t *bytes = from;
    if (n == PIECE && bytes[0] == 0 && memcmp(bytes, bytes + 1, n - 1) == 0) {
        atomic_fetch_add(&pieces, 1);
    } else if (offset == 0 && n == AG_WAL_BLOCK) {
        atomic_fetch_add(&headers, 1);
        if (atomic_load(&headers) == 2) {
            atomic_store(&pieces, 0);
            atomic_store(&stall_next, true);
        }
    }
    return ag_io_posix()->pwrite(ctx, fd, from, n, offset);
}

static int
watched_fdatasync(void *ctx, int fd)
{
    if (atomic_load(&stall)) {
        atomic_store(&stalled, true);
        while (atomic_load(&stall)) {
            pause_ms(1);
        }
    }
    if (atomic_exchange(&stall_next, false)) {
        atomic_store(&stall, true); /* this one is the header's: the next one */
    }
    return ag_io_posix()->fdatasync(ctx, fd);
}

static struct ag_wal *
open_watched(const char *name, uint32_t segment_bytes)
{
    struct ag_wal *wal = NULL;
    struct ag_error err;
    scratch_path(log_path, folder, name);
    (void)snprintf(ring_path, sizeof(ring_path), "%.500s.ring", log_path);
    table = *ag_io_posix();
    table.pwrite = watched_pwrite;
    table.fdatasync = watched_fdatasync;
    const struct ag_wal_options options = {.io = &table,
                                           .ring_path = ring_path,
                                           .segment_bytes = segment_bytes,
                                           .ring_bytes = 1 << 20,
                                           .max_delay_us = 300};
    if (ag_wal_open(log_path, &options, &wal, &err) != AG_OK) {
        CHECK_FAIL("%s", err.what);
    }
    return wal;
}

static void
close_watched(struct ag_wal *wal)
{
    struct ag_error err;
    ASSERT_EQ(ag_wal_close(wal, UINT64_MAX, &err), AG_OK);
}

/* One durable batch of one record. */
static void
put(struct ag_wal *wal, size_t n, bool wait)
{
    static const uint8_t payload[512 << 10] = {1};
    struct ag_error err;
    uint64_t seq = 0;
    ASSERT_EQ(ag_wal_append(wal, payload, n, &seq), AG_OK);
    if (wait) {
        ASSERT_EQ(ag_wal_sync(wal, seq, UINT64_MAX, &err), AG_OK);
    } else {
        ag_wal_want(wal, seq);
    }
}

static uint64_t
rotations(struct ag_wal *wal)
{
    struct ag_wal_stats stats;
    ag_wal_stats(wal, &stats);
    return stats.rotations;
}

static bool
has_segment(uint32_t number)
{
    char path[AG_WAL_PATH];
    ASSERT_EQ(ag_wal_segment_path(path, log_path, number, NULL), AG_OK);
    return access(path, F_OK) == 0;
}

static void
wait_for_segment(uint32_t number)
{
    uint64_t until = ag_clock_ns() + 20000000000u;
    while (!has_segment(number)) {
        ASSERT_LT_U(ag_clock_ns(), until);
        pause_ms(1);
    }
}

/* While W writes its first batch into a new segment, however long that takes, no zeros
 * of the next one go to the disk; when W sleeps, they all do. */
static void
test_zeros_wait_for_the_log(void)
{
    struct ag_wal *wal = open_watched("zeros", SEGMENT);
    wait_for_segment(2);
    for (int i = 0; i < 15; i++) {
        put(wal, 250 << 10, true);
    }
    ASSERT_EQ_U(rotations(wal), 0);
    put(wal, 400 << 10, false); /* takes the next segment */
    while (!atomic_load(&stalled)) {
        pause_ms(1);
    }
    pause_ms(50);
    ASSERT_EQ_U(atomic_load(&pieces), 0);
    ASSERT(!has_segment(3));
    atomic_store(&stall, false);
    wait_for_segment(3);
    ASSERT_EQ_U(atomic_load(&pieces), SEGMENT / PIECE);
    close_watched(wal);
}

/* A W that needs the spare gets it without any pause: many segments in a row. */
static void
test_the_log_waits_for_zeros(void)
{
    struct ag_wal *wal = open_watched("hurry", AG_WAL_SEGMENT_MIN);
    for (int i = 0; i < 60; i++) {
        put(wal, 7000, true);
    }
    ASSERT_LE_U(59, rotations(wal));
    close_watched(wal);
}

/* When the next batch would not fit, the log rotates before anybody waits for it. */
static void
test_rotates_while_nobody_waits(void)
{
    struct ag_wal *wal = open_watched("early", 64 << 10);
    wait_for_segment(2);
    for (int i = 0; i < 3; i++) { /* 16 KiB each; the fourth has no room */
        ASSERT_EQ_U(rotations(wal), 0);
        put(wal, 15000, true);
    }
    uint64_t until = ag_clock_ns() + 20000000000u;
    while (rotations(wal) == 0) {
        ASSERT_LT_U(ag_clock_ns(), until);
        pause_ms(1);
    }
    struct ag_wal_stats stats;
    put(wal, 15000, true);
    ag_wal_stats(wal, &stats);
    ASSERT_EQ_U(stats.rotations, 1);
    ASSERT_EQ_U(stats.markers, 0); /* the new segment's header is the witness */
    close_watched(wal);
    wal = open_watched("early", 64 << 10);
    ASSERT_EQ_U(ag_wal_durable(wal), 4);
    close_watched(wal);
}

struct steps {
    uint32_t done[8];
    unsigned count, last;
};

static bool
count_step(void *ctx, uint32_t done)
{
    struct steps *steps = ctx;
    steps->done[steps->count++] = done;
    return steps->count != steps->last;
}

static void
test_pace(void)
{
    struct steps steps = {.last = 8};
    const struct ag_log_pace pace = {.ctx = &steps, .next = count_step};
    struct ag_error err;
    bool direct = true;
    int fd = -1;
    scratch_path(log_path, folder, "pace");
    ASSERT_EQ(ag_io_make_dirs(ag_io_posix(), log_path, 0700, &err), AG_OK);
    ASSERT_EQ(ag_log_make_segment(ag_io_posix(), log_path, 7, 4 * PIECE, &pace, &direct,
                                  &fd, &err),
              AG_OK);
    ASSERT_EQ(steps.count, 4);
    for (unsigned i = 0; i < 4; i++) {
        ASSERT_EQ_U(steps.done[i], i * PIECE);
    }
    ASSERT(has_segment(7));
    (void)close(fd);
    steps = (struct steps){.last = 3};
    ASSERT_EQ(ag_log_make_segment(ag_io_posix(), log_path, 8, 4 * PIECE, &pace, &direct,
                                  &fd, &err),
              AG_ECLOSED);
    ASSERT_EQ(steps.count, 3);
    ASSERT(!has_segment(8));
    char temporary[600];
    (void)snprintf(temporary, sizeof(temporary), "%s/segment.tmp", log_path);
    ASSERT_EQ(access(temporary, F_OK), -1);
}

int
main(void)
{
    scratch_make(folder);
    RUN(test_pace);
    RUN(test_zeros_wait_for_the_log);
    RUN(test_the_log_waits_for_zeros);
    RUN(test_rotates_while_nobody_waits);
    scratch_remove(folder);
    return 0;
}
