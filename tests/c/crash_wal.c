// links: memfs
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
#include "hash/crc32c.h"
#include "memfs.h"
#include "wal/reader.h"
#include "wal/replay.h"
#include "wal/segment.h"

#define DIR_NAME "L"
#define MAX_SEQ 4000u
#define MAX_PAYLOAD 2600u
#define RUNS 5
#define MAX_PIECES 4096
#define RING_BYTES (64u * 1024u)

struct piece {
    int inode;
    uint64_t offset;
    size_t n;
    const uint8_t *data; /* borrowed from the trace */
};

struct scenario {
    uint64_t rng;
    uint64_t seed;
    uint32_t segment_bytes;
    uint32_t tags[MAX_SEQ]; /* which run submitted a sequence number last */
    uint32_t run;
    uint64_t submitted;
    uint8_t ring[RING_BYTES];
    struct ag_ring_view view;
    bool has_ring;
    uint64_t states, limit;
    uint64_t until_ns;
    /* the state where the next run begins, chosen at random among those seen */
    struct memfs next;
    bool has_next;
    uint64_t next_choices;
};

static uint32_t
payload_of(uint32_t tag, uint64_t seq, uint8_t *to)
{
    uint64_t state = seq * 1000003u + tag;
    uint64_t first = check_random(&state);
    uint32_t n = 1 + (uint32_t)(first >> 32) % (first % 5 == 0 ? MAX_PAYLOAD : 300);
    memset(to, 0, n); /* often zeros: what an unwritten sector looks like */
    if (first % 3 != 0) {
        for (uint32_t i = 0; i < n; i++) {
            to[i] = (uint8_t)check_random(&state);
        }
    }
    for (uint32_t i = 0; i < n && i < 8; i++) {
        to[i] = (uint8_t)(tag + seq * 7 + i);
    }
    return n;
}

static void
fail_state(const struct scenario *s, const char *what, const struct ag_error *err)
{
    fprintf(stderr, "seed %" PRIu64 " run %u state %" PRIu64 ": %s", s->seed, s->run,
            s->states, what);
    if (err != NULL) {
        fprintf(
            stderr, ": %s; %s byte %" PRIu64 " seq %" PRIu64 "; expected %s, found %s",
            err->what, err->file, err->offset, err->index, err->expected, err->found);
    }
    fputc('\n', stderr);
    exit(1);
}

/* All records from 1 to `last`, out of the live and the archived segments. */
static void
check_content(struct scenario *s, struct memfs *fs, uint64_t last)
{
    struct ag_wal_reader *reader = NULL;
    struct ag_error err;
    uint8_t expected[MAX_PAYLOAD];
    uint64_t seq = 0, next = 1;
    const uint8_t *payload = NULL;
    uint32_t n = 0;
    int got = ag_wal_reader_open(&fs->table, DIR_NAME, NULL, 0, true, &reader, &err);
    if (got != AG_OK) {
        fail_state(s, "the reader does not open", &err);
    }
    while ((got = ag_wal_reader_next(reader, &seq, &payload, &n, &err)) == 1) {
        if (seq != next || seq > last) {
            fail_state(s, "the reader skips or invents a record", NULL);
        }
        uint32_t want = payload_of(s->tags[seq], seq, expected);
        if (n != want || memcmp(payload, expected, n) != 0) {
            fprintf(stderr, "sequence %" PRIu64 " of %" PRIu64 "\n", seq, last);
            fail_state(s, "a record is not the one submitted", NULL);
        }
        next++;
    }
    if (got < 0) {
        fail_state(s, "the reader refuses", &err);
    }
    if (next != last + 1) {
        fprintf(stderr, "%" PRIu64 " of %" PRIu64 " records\n", next - 1, last);
        fail_state(s, "the reader misses records", NULL);
    }
    ag_wal_reader_close(reader);
}

static uint64_t
recover(struct scenario *s, struct memfs *fs, struct ag_wal_recovery *recovery,
        uint64_t acked)
{
    const struct ag_wal_recover_options options = {0};
    struct ag_error err;
    if (ag_wal_recover(&fs->table, DIR_NAME, &options, recovery, &err) != AG_OK) {
        fail_state(s, "recovery refuses", &err);
    }
    if (recovery->last_seq < acked || recovery->last_seq > s->submitted) {
        fprintf(stderr,
                "acknowledged %" PRIu64 ", recovered %" PRIu64 ", submitted %" PRIu64
                "\n",
                acked, recovery->last_seq, s->submitted);
        fail_state(s, "an acknowledged record is lost, or one invented", NULL);
    }
    return recovery->last_seq;
}

/* Starts the log in an image, replays the ring, appends, and recovers again. */
static void
check_deep(struct scenario *s, struct memfs *fs, struct ag_wal_recovery *recovery,
           uint64_t acked)
{
    static struct ag_log log;
    struct ag_error err;
    struct ag_wal_replay replay = {0};
    uint8_t payload[MAX_PAYLOAD];
    if (ag_log_start(&log, &fs->table, DIR_NAME, NULL, s->segment_bytes, true, recovery,
                     &err) != AG_OK) {
        fail_state(s, "the log does not start", &err);
    }
    if (s->has_ring &&
        ag_wal_replay_ring(&log, &s->view, false, &replay, &err) != AG_OK) {
        fail_state(s, "the ring is not replayed", &err);
    }
    uint64_t last = ag_log_last_seq(&log);
    if (s->has_ring && (last != s->submitted || replay.cut)) {
        fprintf(stderr, "%" PRIu64 " instead of %" PRIu64 "\n", last, s->submitted);
        fail_state(s, "the replay does not bring the log to where the ring ends", NULL);
    }
    uint64_t before = s->submitted;
    uint32_t tag = s->tags[last + 1];
    s->submitted = last + 1;
    s->tags[last + 1] = 77777;
    uint32_t n = payload_of(77777, last + 1, payload);
    if (!ag_log_segment_takes(&log, n)) {
        int fd = -1;
        bool direct = true;
        ASSERT_EQ(ag_log_make_segment(&fs->table, DIR_NAME, log.segment_no + 1,
                                      s->segment_bytes, NULL, &direct, &fd, &err),
                  AG_OK);
        ASSERT_EQ(ag_log_rotate(&log, fd, &err), AG_OK);
    }
    ag_log_add(&log, payload, n,
               ag_crc32c_mask(ag_wal_record_crc(last + 1, payload, n)));
    ASSERT_EQ(ag_log_flush(&log, 0, &err), AG_OK);
    ag_log_stop(&log);
    ag_wal_recovery_free(recovery);
    (void)acked;
    recover(s, fs, recovery, last + 1);
    check_content(s, fs, last + 1);
    s->submitted = before;
    s->tags[last + 1] = tag;
}

/* One state: `image` may be changed. */
static void
check_state(struct scenario *s, struct memfs *image, uint64_t acked)
{
    struct ag_wal_recovery recovery;
    s->states++;
    uint64_t last = recover(s, image, &recovery, acked);
    if (!recovery.fresh && (recovery.log.opened != 0 || last != 0)) {
        check_content(s, image, last);
    }
    if (check_random(&s->rng) % ++s->next_choices == 0) {
        if (s->has_next) {
            memfs_free(&s->next);
        }
        memfs_copy(&s->next, image);
        s->has_next = true;
    }
    if (s->states % 8 == 0) {
        check_deep(s, image, &recovery, acked);
    }
    ag_wal_recovery_free(&recovery);
}

static bool
is_temporary(const char *path)
{
    size_t n = strlen(path);
    return n > 4 && strcmp(path + n - 4, ".tmp") == 0;
}

/* Whether any name that recovery looks at may lead to the inode. */
static bool
matters(const struct memfs *durable, const struct memfs_op *ops, const size_t *names,
        size_t name_count, int inode)
{
    for (int i = 0; i < durable->name_count; i++) {
        if (durable->names[i].inode == inode && !is_temporary(durable->names[i].path)) {
            return true;
        }
    }
    for (size_t i = 0; i < name_count; i++) {
        const struct memfs_op *op = &ops[names[i]];
        if (op->inode == inode && !is_temporary(op->to)) {
            return true;
        }
    }
    return false;
}

static void
build_and_check(struct scenario *s, const struct memfs *durable,
                const struct memfs_op *ops, const size_t *names, size_t name_count,
                uint64_t name_mask, const struct piece *pieces, size_t piece_count,
                const uint8_t *chosen, size_t cut, uint64_t acked)
{
    static struct memfs image;
    memfs_share(&image, durable);
    for (size_t i = 0; i < name_count; i++) {
        if (name_mask >> i & 1) {
            memfs_apply(&image, &ops[names[i]]);
        }
    }
    for (size_t i = 0; i < piece_count; i++) {
        if (chosen[i]) {
            size_t n = i + 1 == piece_count && cut != 0 ? cut : pieces[i].n;
            memfs_put(&image, pieces[i].inode, pieces[i].offset, pieces[i].data, n);
        }
    }
    check_state(s, &image, acked);
    memfs_free(&image);
}

/* Every subset of what is pending. */
static void
enumerate(struct scenario *s, const struct memfs *durable, const struct memfs_op *ops,
          const size_t *names, size_t name_count, const struct piece *pieces, size_t n,
          uint64_t acked)
{
    static uint8_t chosen[MAX_PIECES];
    uint64_t masks = name_count <= 5 ? UINT64_C(1) << name_count : 32;
    for (uint64_t k = 0; k < masks; k++) {
        uint64_t mask = name_count <= 5 ? k : check_random(&s->rng);
        size_t important = 0;
        for (size_t i = 0; i < n; i++) {
            important += matters(durable, ops, names, name_count, pieces[i].inode);
        }
#define TRY(cut)                                                                       \
    build_and_check(s, durable, ops, names, name_count, mask, pieces, n, chosen, cut,  \
                    acked)
        memset(chosen, 0, sizeof(chosen));
        if (important == 0) {
            TRY(0);
            memset(chosen, 1, n);
            TRY(0);
            continue;
        }
        if (n <= 12) {
            for (uint32_t subset = 0; subset < 1u << n; subset++) {
                for (size_t i = 0; i < n; i++) {
                    chosen[i] = subset >> i & 1;
                }
                TRY(0);
            }
        } else {
            for (size_t i = 0; i <= n; i++) {
                memset(chosen, 0, n);
                memset(chosen, 1, i);
                TRY(0);
                for (size_t j = 0; j < n; j++) {
                    chosen[j] = !chosen[j];
                }
                TRY(0);
                memset(chosen, 1, n);
                if (i < n) {
                    chosen[i] = 0;
                    TRY(0);
                }
            }
            for (int i = 0; i < 400; i++) {
                uint64_t density = check_random(&s->rng) % 7 + 1;
                for (size_t j = 0; j < n; j++) {
                    chosen[j] = check_random(&s->rng) % 8 < density;
                }
                TRY(0);
            }
        }
        /* A process that dies inside write(2) leaves any prefix. */
        for (int i = 0; i < 24; i++) {
            size_t last = check_random(&s->rng) % n;
            memset(chosen, 0, n);
            memset(chosen, 1, last + 1);
            build_and_check(s, durable, ops, names, name_count, mask, pieces, last + 1,
                            chosen, 1 + check_random(&s->rng) % pieces[last].n, acked);
        }
#undef TRY
        if (s->states >= s->limit || ag_clock_ns() > s->until_ns) {
            return;
        }
    }
}

/* Walks through a trace: what is durable, what is pending, and all crashes between. */
static void
crash_everywhere(struct scenario *s, const struct memfs *base,
                 const struct memfs_trace *trace, uint64_t final_acked)
{
    static struct memfs_walk walk;
    static struct piece pieces[MAX_PIECES];
    memfs_walk_start(&walk, base);
    for (size_t i = 0; i <= trace->count; i++) {
        if (i > 0) {
            memfs_walk_step(&walk, trace, i - 1);
        }
        size_t n = 0;
        for (size_t k = 0; k < walk.write_count; k++) {
            const struct memfs_op *op = &trace->ops[walk.writes[k]];
            for (size_t at = 0; at < op->n && n < MAX_PIECES; at += MEMFS_SECTOR) {
                size_t left = op->n - at;
                pieces[n].inode = op->inode;
                pieces[n].offset = op->offset + at;
                pieces[n].n = left < MEMFS_SECTOR ? left : MEMFS_SECTOR;
                pieces[n++].data = op->data + at;
            }
        }
        uint64_t acked = i < trace->count ? trace->ops[i].acked : final_acked;
        enumerate(s, &walk.durable, trace->ops, walk.names, walk.name_count, pieces, n,
                  acked);
        if (s->states >= s->limit || ag_clock_ns() > s->until_ns) {
            break;
        }
    }
    memfs_walk_end(&walk);
}

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
