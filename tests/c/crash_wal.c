// links: memfs crash_check crash_states
/* Enumerates what a crash may leave of a log, and opens every such state.
 *
 * A scenario is a chain of runs: recovery, replay of a ring, batches, markers,
 * rotations, low-water marks, sometimes a clean end. Every operation of a run is
 * recorded; then, for each point in time, every subset of what was not synced (all
 * subsets up to 12 sectors, beyond that all prefixes, all single holes and random
 * subsets; also cuts inside a sector) is built, recovered and checked: acknowledged <=
 * recovered <= submitted, and each record is the one submitted. Part of the states is
 * also started, replayed, appended to and recovered again. One of the states is where
 * the next run of the chain begins, so tears, crashes during recovery and appends after
 * a tear pile up.
 *
 * usage: crash_wal [--states N] [--seconds S] [--jobs J] [--seed X] */
#include <malloc.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "check.h"
#include "crash_states.h"
#include "hash/crc32c.h"
#include "wal/replay.h"
#include "wal/segment.h"

#define RUNS 5

/* A ring as a killed process leaves it: some records the log has, some it has not. */
static void
make_ring(struct scenario *s, uint64_t wal_id, uint64_t last)
{
    uint64_t held = check_random(&s->rng) % 3, fresh = 1 + check_random(&s->rng) % 6;
    uint64_t at = check_random(&s->rng) % 1000 * 8;
    uint8_t entry[AG_RING_ENTRY + MAX_PAYLOAD + 8];
    held = held < last ? held : last;
    memset(&s->view, 0, sizeof(s->view));
    s->view.data = s->ring;
    s->view.capacity = sizeof(s->ring);
    s->view.wal_id = wal_id;
    s->view.head = at;
    s->view.durable_seq = last - held;
    for (uint64_t seq = last - held + 1; seq <= last + fresh; seq++) {
        if (seq > last) {
            s->tags[seq] = s->run;
        }
        uint32_t n = payload_of(s->tags[seq], seq, entry + AG_RING_ENTRY);
        uint32_t crc = ag_crc32c_mask(ag_wal_record_crc(seq, entry + AG_RING_ENTRY, n));
        memcpy(entry, &n, 4);
        memcpy(entry + 4, &crc, 4);
        memcpy(entry + 8, &seq, 8);
        for (size_t i = 0; i < AG_RING_ENTRY + ag_wal_pad8(n); i++) {
            s->ring[(at + i) % sizeof(s->ring)] = entry[i];
        }
        at += AG_RING_ENTRY + ag_wal_pad8(n);
    }
    s->view.tail = at;
    s->has_ring = true;
    s->submitted = last + fresh;
}

static void
rotate(struct scenario *s, struct ag_log *log)
{
    struct ag_error err;
    int fd = -1;
    bool direct = true;
    ASSERT_EQ(ag_log_make_segment(log->io, DIR_NAME, log->segment_no + 1,
                                  s->segment_bytes, NULL, &direct, &fd, &err),
              AG_OK);
    ASSERT_EQ(ag_log_rotate(log, fd, &err), AG_OK);
}

static void
add_batch(struct scenario *s, struct ag_log *log)
{
    uint8_t payload[MAX_PAYLOAD];
    struct ag_error err;
    unsigned records = 1 + (unsigned)(check_random(&s->rng) % 4);
    for (unsigned i = 0; i < records && s->submitted + 2 < MAX_SEQ; i++) {
        uint64_t seq = s->submitted + 1;
        uint32_t n = payload_of(s->run, seq, payload);
        if (i == 0 && !ag_log_segment_takes(log, n)) {
            rotate(s, log);
        }
        if (!ag_log_batch_takes(log, n)) {
            break;
        }
        s->submitted = seq;
        s->tags[seq] = s->run;
        ag_log_add(log, payload, n, ag_crc32c_mask(ag_wal_record_crc(seq, payload, n)));
    }
    ASSERT_EQ(ag_log_flush(log, 0, &err), AG_OK);
}

/* One run on `base`; false when the scenario is over. */
static bool
run(struct scenario *s, const struct memfs *base)
{
    static struct ag_log log;
    static struct memfs live;
    struct memfs_trace trace = {0};
    struct ag_wal_recovery recovery;
    struct ag_error err;
    memfs_copy(&live, base);
    s->has_ring = false;
    uint64_t last = recover(s, &live, &recovery, 0);
    s->submitted = last;
    /* From here on, what recovery found counts as acknowledged. */
    atomic_init(&log.durable_seq, 0);
    live.trace = &trace;
    live.acked = &log.durable_seq;
    live.acked_floor = last;
    bool with_ring = !recovery.fresh && check_random(&s->rng) % 2 == 0;
    if (with_ring) {
        make_ring(s, recovery.log.wal_id, last);
    }
    if (ag_log_start(&log, &live.table, DIR_NAME, NULL, s->segment_bytes, true,
                     &recovery, &err) != AG_OK) {
        fail_state(s, "the log does not start", &err);
    }
    ag_wal_recovery_free(&recovery);
    if (with_ring) {
        struct ag_wal_replay replay;
        if (ag_wal_replay_ring(&log, &s->view, false, &replay, &err) != AG_OK) {
            fail_state(s, "the ring is not replayed", &err);
        }
    }
    unsigned steps = with_ring ? 0 : 3 + (unsigned)(check_random(&s->rng) % 6);
    for (unsigned i = 0; i < steps; i++) {
        switch (check_random(&s->rng) % 8) {
        case 0:
            if (ag_log_marker_fits(&log)) {
                ASSERT_EQ(ag_log_flush(&log, AG_BATCH_MARKER, &err), AG_OK);
            }
            break;
        case 1:
            ASSERT_EQ(
                ag_log_set_low_water(&log, ag_log_last_seq(&log), "blob", 4, &err),
                AG_OK);
            break;
        case 2:
            rotate(s, &log);
            break;
        default:
            add_batch(s, &log);
            break;
        }
    }
    if (!with_ring && check_random(&s->rng) % 3 == 0 && ag_log_marker_fits(&log)) {
        ASSERT_EQ(ag_log_flush(&log, AG_BATCH_MARKER | AG_BATCH_CLEAN, &err), AG_OK);
    }
    uint64_t acked = ag_log_last_seq(&log);
    ag_log_stop(&log);
    s->next_choices = 0;
    crash_everywhere(s, base, &trace, acked);
    memfs_free(&live);
    memfs_trace_free(&trace);
    return s->states < s->limit && ag_clock_ns() < s->until_ns && s->submitted < 3000 &&
           log.segment_no < 30;
}

static void
scenario(struct scenario *s)
{
    static struct memfs base;
    static const uint32_t sizes[] = {16384, 20480, 28672};
    memfs_init(&base);
    const struct memfs_op directory = {.kind = MEMFS_LINK, .inode = -2, .to = DIR_NAME};
    memfs_apply(&base, &directory);
    s->segment_bytes = sizes[check_random(&s->rng) % 3];
    memset(s->tags, 0, sizeof(s->tags));
    s->submitted = 0;
    s->has_next = false;
    for (s->run = 1; s->run <= RUNS; s->run++) {
        if (!run(s, &base) || !s->has_next) {
            break;
        }
        memfs_free(&base);
        memfs_copy(&base, &s->next);
        memfs_free(&s->next);
        s->has_next = false;
    }
    if (s->has_next) {
        memfs_free(&s->next);
        s->has_next = false;
    }
    memfs_free(&base);
}

static uint64_t
work(uint64_t seed, uint64_t states, double seconds)
{
    static struct scenario s;
    s.limit = states;
    s.until_ns = ag_clock_ns() + (uint64_t)(seconds * 1e9);
    for (uint64_t round = 0; s.states < s.limit && ag_clock_ns() < s.until_ns;
         round++) {
        s.seed = seed + round;
        s.rng = s.seed;
        scenario(&s);
    }
    return s.states;
}

int
main(int argc, char **argv)
{
    uint64_t states = UINT64_MAX / 2, seed = 1;
    double seconds = 300;
    int jobs = 2;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--states") == 0) {
            states = strtoull(argv[i + 1], NULL, 0);
        } else if (strcmp(argv[i], "--seconds") == 0) {
            seconds = strtod(argv[i + 1], NULL);
        } else if (strcmp(argv[i], "--jobs") == 0) {
            jobs = atoi(argv[i + 1]);
        } else if (strcmp(argv[i], "--seed") == 0) {
            seed = strtoull(argv[i + 1], NULL, 0);
        } else {
            fprintf(stderr, "unknown option %s\n", argv[i]);
            return 2;
        }
    }
    /* Large buffers come and go with every state: keep them in the heap. */
    (void)mallopt(M_MMAP_THRESHOLD, 1 << 30);
    (void)mallopt(M_TRIM_THRESHOLD, 1 << 30);
    uint64_t started = ag_clock_ns(), total = 0;
    int pipes[2], failed = 0;
    ASSERT_EQ(pipe(pipes), 0);
    printf("seed %" PRIu64 "\n", seed);
    fflush(stdout);
    for (int job = 0; job < jobs; job++) {
        if (fork() == 0) {
            uint64_t done = work(seed + 1000000u * (uint64_t)job,
                                 states / (uint64_t)jobs + 1, seconds);
            ASSERT_EQ(write(pipes[1], &done, sizeof(done)), sizeof(done));
            _exit(0);
        }
    }
    (void)close(pipes[1]);
    for (int job = 0; job < jobs; job++) {
        int status = 0;
        uint64_t done = 0;
        (void)wait(&status);
        failed |= status;
        if (status == 0 && read(pipes[0], &done, sizeof(done)) == sizeof(done)) {
            total += done;
        }
    }
    double took = (double)(ag_clock_ns() - started) / 1e9;
    printf("%" PRIu64 " crash states opened and checked in %.1f s (%.0f/s): %s\n",
           total, took, (double)total / took, failed ? "FAILED" : "ok");
    return failed ? 1 : 0;
}
