/* What every state that a crash leaves must satisfy. */
#include "check.h"
#include "crash_states.h"
#include "hash/crc32c.h"
#include "wal/reader.h"
#include "wal/replay.h"
#include "wal/segment.h"

uint32_t
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

void
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

uint64_t
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

void
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
