// links: scratch wal_rig
/* The log with its threads, on real files: errors and kills at every call, a full disk,
 * a slow disk, waiting, forks, the second consumer. AEGIS_LONG=1 tries every call where
 * the short form tries some. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "check.h"
#include "scratch.h"
#include "wal/reader.h"
#include "wal_rig.h"

#define RECORDS 40u

/* What is told to the outside, in memory that outlives a kill. */
struct told {
    uint64_t returned, acked;
};

static struct ag_error open_error;

/* Opens, appends with syncs, rotations and low-water marks up to `last`, closes; stops
 * at the first failure. */
static int
work(uint64_t first, uint64_t last, struct told *told)
{
    const struct ag_wal_options made = options();
    struct ag_wal *wal = NULL;
    struct ag_error err;
    int status = ag_wal_open(log_path, &made, &wal, &err);
    if (status != AG_OK) {
        open_error = err;
        return status;
    }
    ASSERT_LE_U(told->returned, ag_wal_durable(wal)); /* the ring was replayed */
    ASSERT_LE_U(first, ag_wal_next_seq(wal));
    told->acked = ag_wal_durable(wal);
    for (uint64_t seq = ag_wal_next_seq(wal); seq <= last; seq++) {
        status = append(wal, seq);
        if (status != AG_OK) {
            break;
        }
        told->returned = seq;
        if (seq % 3 == 0) {
            status = ag_wal_sync(wal, seq, patience_ns, &err);
            if (status != AG_OK) {
                break;
            }
            told->acked = seq;
        }
        if (seq % 16 == 0) {
            (void)ag_wal_set_low_water(wal, told->acked, "intents", 7, &err);
        }
    }
    int closed = ag_wal_close(wal, UINT64_MAX, &err);
    if (closed == AG_OK && status == AG_OK) {
        told->acked = told->returned;
    }
    return status != AG_OK ? status : closed;
}

static void
test_plain(void)
{
    setup("plain");
    struct told told = {0};
    ASSERT_EQ(work(1, RECORDS, &told), AG_OK);
    ASSERT_EQ_U(check_records(), RECORDS);
    ASSERT_EQ(access(ring_path, F_OK), -1); /* a clean end leaves no ring */
    ASSERT_EQ(work(RECORDS + 1, 2 * RECORDS, &told), AG_OK);
    ASSERT_EQ_U(check_records(), 2 * RECORDS);
    struct ag_wal *wal = open_log();
    uint64_t seq = 0;
    uint8_t *blob = NULL;
    uint32_t n = 0;
    ASSERT_EQ(ag_wal_low_water(wal, &seq, &blob, &n), AG_OK);
    ASSERT_EQ_U(seq, 78);
    ASSERT_EQ_U(n, 7);
    ASSERT_EQ_MEM(blob, "intents", 7);
    ag_free(blob);
    char notes[AG_WAL_NOTES];
    ag_wal_notes(wal, notes);
    ASSERT(strstr(notes, "closed cleanly") != NULL);
    close_log(wal);
    forget();
}

static long
step_of(long calls, long runs)
{
    if (getenv("AEGIS_LONG") != NULL || calls <= runs) {
        return 1;
    }
    return calls / runs + 1;
}

/* The n-th call fails, for all n: nothing acknowledged is ever lost, no descriptor is
 * used after its sync failed, and reopening brings back everything that was appended.
 */
static void
test_errors(void)
{
    static const int errors[] = {EIO, ENOSPC, EINTR, -1, EMFILE, EDQUOT};
    setup("errors");
    struct told told = {0};
    ASSERT_EQ(work(1, RECORDS, &told), AG_OK);
    long calls = atomic_load(&fault.calls);
    unsigned runs = 0, poisoned = 0;
    forget();
    for (size_t e = 0; e < sizeof(errors) / sizeof(errors[0]); e++) {
        for (long at = 1 + (long)e; at <= calls; at += step_of(calls, 25)) {
            fault_clear();
            atomic_store(&fault.error, errors[e]);
            atomic_store(&fault.lasting, errors[e] != EINTR && at % 2 == 0);
            atomic_store(&fault.at, at);
            memset(&told, 0, sizeof(told));
            patience_ns = 300000000;
            int status = work(1, RECORDS, &told);
            patience_ns = 20000000000u;
            if (errors[e] == EINTR || errors[e] == -1) {
                ASSERT_EQ(status, AG_OK);
            }
            poisoned += status == AG_EPOISONED;
            int kind = atomic_load(&fault.hit_kind);
            ASSERT_EQ(atomic_load(&fault.repeated), 0);
            fault_clear();
            /* The ring is still there: what append returned comes back. */
            status = work(1, RECORDS + 5, &told);
            if (status != AG_OK) {
                CHECK_FAIL(
                    "errno %d at call %ld (kind %d): %s; %s; expected %s, found %s",
                    errors[e], at, kind, open_error.what, open_error.file,
                    open_error.expected, open_error.found);
            }
            ASSERT_EQ_U(check_records(), RECORDS + 5);
            forget();
            runs++;
        }
    }
    fprintf(stderr, "    %u runs over %ld calls, %u poisoned\n", runs, calls, poisoned);
    ASSERT_LT_U(5, poisoned);
}

/* SIGKILL at the n-th call, for all n, and again in the recovery that follows. */
static void
test_kills(void)
{
    setup("kills");
    struct told *told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(told != MAP_FAILED);
    uint64_t rng = check_seed(5);
    memset(told, 0, sizeof(*told));
    ASSERT_EQ(work(1, RECORDS, told), AG_OK);
    long calls = atomic_load(&fault.calls);
    unsigned killed = 0, runs = 0;
    const int lives = getenv("AEGIS_LONG") != NULL ? 7 : 3;
    forget();
    for (long at = 1; at <= calls + 5; at += step_of(calls, 60)) {
        memset(told, 0, sizeof(*told));
        for (int life = 0; life < lives; life++) {
            pid_t child = fork();
            ASSERT(child >= 0);
            if (child == 0) {
                fault_clear();
                atomic_store(&fault.error, -2);
                atomic_store(&fault.at,
                             life == 0 ? at : 1 + (long)(check_random(&rng) % 60));
                _exit(work(1, RECORDS, told) == AG_OK ? 0 : 3);
            }
            (void)check_random(&rng);
            int status = 0;
            ASSERT_EQ(waitpid(child, &status, 0), child);
            runs++;
            killed += WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
            ASSERT(WIFSIGNALED(status) ? WTERMSIG(status) == SIGKILL
                                       : WEXITSTATUS(status) == 0);
        }
        fault_clear();
        struct ag_wal *wal = open_log();
        ASSERT_LE_U(told->returned, ag_wal_durable(wal));
        ASSERT_LE_U(ag_wal_durable(wal), told->returned + 1);
        close_log(wal);
        ASSERT_EQ_U(check_records() >= told->returned, 1);
        forget();
    }
    fprintf(stderr, "    %u of %u killed\n", killed, runs);
    ASSERT_LT_U(10, killed);
    ASSERT_EQ(munmap(told, sizeof(*told)), 0);
}

static void
test_poison_and_reopen(void)
{
    setup("poison");
    struct ag_wal *wal = open_log();
    struct ag_error err;
    ASSERT_EQ(append(wal, 1), AG_OK);
    ASSERT_EQ(ag_wal_sync(wal, 1, UINT64_MAX, &err), AG_OK);
    usleep(20000); /* the helper is done with its segment */
    atomic_store(&fault.error, EIO);
    atomic_store(&fault.lasting, true);
    atomic_store(&fault.lasting_kind, SYNC);
    ASSERT_EQ(append(wal, 2), AG_OK);
    /* The next sync fails, whichever call it is. */
    atomic_store(&fault.at, 1);
    ASSERT_EQ(ag_wal_sync(wal, 2, UINT64_MAX, &err), AG_EPOISONED);
    ASSERT(strstr(err.what, "Input/output error") != NULL);
    ASSERT(strstr(err.file, "wal-") != NULL);
    ASSERT_EQ(append(wal, 3), AG_EPOISONED);
    ASSERT_EQ(ag_wal_failure(wal, &err), AG_EPOISONED);
    ASSERT(ag_wal_reopen(wal, &err) != AG_OK); /* still broken: stays poisoned */
    ASSERT_EQ(append(wal, 3), AG_EPOISONED);
    ASSERT_EQ(atomic_load(&fault.repeated), 0);
    fault_clear();
    ASSERT_EQ(ag_wal_reopen(wal, &err), AG_OK);
    ASSERT_EQ_U(ag_wal_durable(wal), 2); /* what was submitted is written again */
    ASSERT_EQ(append(wal, 3), AG_OK);
    ASSERT_EQ(ag_wal_sync(wal, 3, UINT64_MAX, &err), AG_OK);
    close_log(wal);
    ASSERT_EQ_U(check_records(), 3);
    forget();
}

struct persistent {
    struct ag_wal *wal;
    _Atomic bool stop;
    uint64_t refused, appended;
};

/* The producer goes on trying, and others look, while the log is mended. */
static void *
persist(void *arg)
{
    struct persistent *p = arg;
    struct ag_wal_stats stats;
    char notes[AG_WAL_NOTES];
    uint8_t payload[3001];
    while (!atomic_load(&p->stop)) {
        uint64_t seq = ag_wal_next_seq(p->wal);
        int status = ag_wal_append(p->wal, payload, payload_of(seq, payload), &seq);
        if (status == AG_OK) {
            p->appended = seq;
        } else {
            ASSERT(status == AG_EPOISONED || status == AG_EFULL);
            p->refused++;
        }
        ag_wal_stats(p->wal, &stats);
        ag_wal_notes(p->wal, notes);
        ASSERT(strcmp(stats.verdict, "new") == 0 ||
               strcmp(stats.verdict, "whole") == 0 ||
               strcmp(stats.verdict, "torn") == 0);
    }
    return NULL;
}

static void
test_appends_beside_a_reopen(void)
{
    setup("beside");
    struct ag_wal_options made = options();
    struct persistent p = {0};
    struct ag_error err;
    pthread_t thread;
    made.segment_bytes =
        8u << 20; /* no rotation: that would wait for the disk to mend */
    ASSERT_EQ(ag_wal_open(log_path, &made, &p.wal, &err), AG_OK);
    ASSERT_EQ(append(p.wal, 1), AG_OK);
    ASSERT_EQ(ag_wal_sync(p.wal, 1, UINT64_MAX, &err), AG_OK);
    ASSERT_EQ(pthread_create(&thread, NULL, persist, &p), 0);
    for (int round = 0; round < 5; round++) {
        atomic_store(&fault.error, EIO);
        atomic_store(&fault.lasting, true);
        atomic_store(&fault.lasting_kind, SYNC);
        atomic_store(&fault.at, 1);
        while (ag_wal_failure(p.wal, &err) == AG_OK) {
            usleep(200);
        }
        ASSERT(ag_wal_reopen(p.wal, &err) != AG_OK);
        fault_clear();
        ASSERT_EQ(ag_wal_reopen(p.wal, &err), AG_OK);
    }
    atomic_store(&p.stop, true);
    ASSERT_EQ(pthread_join(thread, NULL), 0);
    ASSERT_LT_U(0, p.refused);
    ASSERT_LT_U(1, p.appended);
    close_log(p.wal);
    ASSERT_EQ_U(check_records(), p.appended);
    forget();
}

static void
test_full_disk(void)
{
    setup("full");
    struct ag_wal *wal = open_log();
    struct ag_error err;
    uint64_t seq = 0;
    usleep(20000);
    atomic_store(&fault.no_space, true);
    uint8_t payload[3001];
    int status = AG_OK;
    uint64_t last = 0;
    for (int i = 0; i < 1000 && status == AG_OK; i++) {
        payload_of(last + 1, payload);
        status = ag_wal_append(wal, payload, 2000, &seq);
        last = status == AG_OK ? seq : last;
        usleep(500);
    }
    ASSERT_EQ(status, AG_EFULL); /* not poisoned: the ring is full, the disk says why */
    struct ag_wal_stats stats;
    for (int i = 0; i < 10000; i++) { /* the helper may not have got there yet */
        ag_wal_stats(wal, &stats);
        if (stats.no_space) {
            break;
        }
        usleep(1000);
    }
    ASSERT(stats.no_space);
    ASSERT(!stats.poisoned);
    ASSERT_EQ(ag_wal_sync(wal, last, 1000000, &err), AG_ETIMEDOUT);
    atomic_store(&fault.no_space, false);
    ASSERT_EQ(ag_wal_sync(wal, last, UINT64_MAX, &err), AG_OK); /* by itself */
    ag_wal_stats(wal, &stats);
    ASSERT(!stats.no_space);
    close_log(wal);
    forget();
}

static void
test_slow_disk(void)
{
    setup("slow");
    struct ag_wal *wal = open_log();
    struct ag_error err;
    atomic_store(&fault.stall, true);
    uint64_t slowest = 0;
    for (uint64_t seq = 1; seq <= 20; seq++) {
        uint64_t started = ag_clock_ns();
        ASSERT_EQ(append(wal, seq), AG_OK);
        ag_wal_want(wal, seq);
        uint64_t took = ag_clock_ns() - started;
        slowest = took > slowest ? took : slowest;
        usleep(1000);
    }
    ASSERT_LT_U(slowest, 500000000);
    ASSERT_EQ(ag_wal_sync(wal, 20, 30000000, &err), AG_ETIMEDOUT);
    ASSERT_EQ(ag_wal_close(wal, 30000000, &err), AG_ETIMEDOUT);
    ASSERT_EQ(append(wal, 21), AG_ECLOSED);
    atomic_store(&fault.stall, false);
    close_log(wal);
    ASSERT_EQ_U(check_records(), 20);
    forget();
}

static bool
readable(int fd, int milliseconds)
{
    struct pollfd watched = {.fd = fd, .events = POLLIN};
    return poll(&watched, 1, milliseconds) == 1;
}

static void
test_news(void)
{
    setup("news");
    struct ag_wal *wal = open_log();
    int fd = ag_wal_fileno(wal);
    ASSERT_EQ(append(wal, 1), AG_OK);
    ASSERT(!readable(fd, 30));           /* nobody asked */
    ASSERT_EQ_U(ag_wal_durable(wal), 1); /* written all the same, after the window */
    ag_wal_want(wal, 1);                 /* too late is not too late */
    ASSERT(readable(fd, 1000));
    ASSERT_EQ_U(ag_wal_drain(wal), 1);
    ASSERT(!readable(fd, 0));
    ASSERT_EQ(append(wal, 2), AG_OK);
    ag_wal_want(wal, 2);
    ASSERT(readable(fd, 1000));
    ASSERT_EQ_U(ag_wal_drain(wal), 2);
    /* Room. */
    atomic_store(&fault.stall, true);
    uint64_t seq = 2;
    uint8_t payload[4000] = {0};
    while (ag_wal_append(wal, payload, sizeof(payload), &seq) == AG_OK) {
    }
    ASSERT_LT_U(ag_wal_room(wal), 5000);
    ASSERT(!ag_wal_want_room(wal, 30000));
    (void)ag_wal_drain(wal);
    ASSERT(!readable(fd, 20));
    atomic_store(&fault.stall, false);
    ASSERT(readable(fd, 2000));
    ASSERT(ag_wal_room(wal) >= 30000);
    ASSERT_EQ(ag_wal_reserve(wal, 0, NULL), AG_EINVAL);
    ASSERT_EQ(ag_wal_reserve(wal, ag_wal_payload_max(wal) + 1, NULL), AG_EINVAL);
    struct ag_error err;
    ASSERT_EQ(ag_wal_sync(wal, seq + 100, 0, &err), AG_ERANGE);
    close_log(wal);
    forget();
}

static void
test_marker(void)
{
    setup("marker");
    struct ag_wal *wal = open_log();
    struct ag_wal_stats stats;
    struct ag_error err;
    ASSERT_EQ(append(wal, 1), AG_OK);
    ASSERT_EQ(ag_wal_sync(wal, 1, UINT64_MAX, &err), AG_OK);
    usleep(600000);
    ag_wal_stats(wal, &stats);
    ASSERT_EQ_U(stats.markers, 1); /* one, and no more while nothing happens */
    usleep(400000);
    ag_wal_stats(wal, &stats);
    ASSERT_EQ_U(stats.markers, 1);
    ASSERT_EQ(append(wal, 2), AG_OK);
    ASSERT_EQ(ag_wal_sync(wal, 2, UINT64_MAX, &err), AG_OK);
    ag_wal_mark(wal);
    usleep(50000);
    ag_wal_stats(wal, &stats);
    ASSERT_EQ_U(stats.markers, 2);
    close_log(wal);
    forget();
}

static void
test_fork_and_second_writer(void)
{
    setup("fork");
    struct ag_wal *wal = open_log(), *second = NULL;
    const struct ag_wal_options made = options();
    struct ag_error err;
    ASSERT_EQ(ag_wal_open(log_path, &made, &second, &err), AG_ELOCKED);
    ASSERT(err.advice[0] != '\0');
    ASSERT_EQ(append(wal, 1), AG_OK);
    pid_t child = fork();
    ASSERT(child >= 0);
    if (child == 0) {
        uint64_t seq = 0;
        bool right = ag_wal_append(wal, "x", 1, &seq) == AG_EFORKED &&
                     ag_wal_sync(wal, 1, 0, &err) == AG_EFORKED &&
                     ag_wal_close(wal, UINT64_MAX, &err) == AG_OK;
        _exit(right ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    ASSERT_EQ(append(wal, 2), AG_OK); /* the parent does not notice */
    ASSERT_EQ(ag_wal_open(log_path, &made, &second, &err), AG_ELOCKED);
    close_log(wal);
    ASSERT_EQ_U(check_records(), 2);
    forget();
}

struct follower {
    struct ag_wal *wal;
    uint64_t last, from_files;
    _Atomic bool slow;
};

static void *
follow(void *arg)
{
    struct follower *follower = arg;
    struct ag_wal_cursor *cursor = NULL;
    struct ag_error err;
    uint8_t expected[3001];
    uint64_t seq = 0, next = 1;
    const uint8_t *payload = NULL;
    uint32_t n = 0;
    ASSERT_EQ(ag_wal_cursor_open(follower->wal, 1, &cursor, &err), AG_OK);
    while (next <= follower->last) {
        int got = ag_wal_cursor_next(cursor, ag_wal_durable(follower->wal), &seq,
                                     &payload, &n, &err);
        if (got < 0) {
            CHECK_FAIL("%s; %s seq %" PRIu64, err.what, err.file, err.index);
        }
        if (got == 0 || (atomic_load(&follower->slow) && next % 40 == 0)) {
            struct timespec pause = {.tv_nsec = 2 * 1000 * 1000};
            (void)nanosleep(&pause, NULL);
        }
        if (got == 1) {
            ASSERT_EQ_U(seq, next);
            ASSERT_EQ_U(n, payload_of(seq, expected));
            ASSERT_EQ_MEM(payload, expected, n);
            follower->from_files += !ag_wal_cursor_in_ring(cursor);
            next++;
        }
    }
    ag_wal_cursor_close(cursor);
    return NULL;
}

/* Thread P: sees every durable record once, in order, whether it keeps up or not. */
static void
test_second_consumer(void)
{
    setup("cursor");
    struct follower quick = {.wal = open_log(), .last = 1500};
    struct follower slow = {.wal = quick.wal, .last = 1500};
    atomic_store(&slow.slow, true);
    pthread_t threads[2];
    ASSERT_EQ(pthread_create(&threads[0], NULL, follow, &quick), 0);
    ASSERT_EQ(pthread_create(&threads[1], NULL, follow, &slow), 0);
    for (uint64_t seq = 1; seq <= 1500; seq++) {
        ASSERT_EQ(append(quick.wal, seq), AG_OK);
    }
    ASSERT_EQ(pthread_join(threads[0], NULL), 0);
    ASSERT_EQ(pthread_join(threads[1], NULL), 0);
    fprintf(stderr, "    from the files: %" PRIu64 " and %" PRIu64 " of 1500\n",
            quick.from_files, slow.from_files);
    close_log(quick.wal);
    ASSERT_EQ_U(check_records(), 1500);
    forget();
}

static void
refused(const char *path, struct ag_wal_options made, int expected)
{
    struct ag_wal *wal = NULL;
    struct ag_error err;
    int status = ag_wal_open(path, &made, &wal, &err);
    if (status != expected || err.what[0] == '\0') {
        CHECK_FAIL("%s: %s (%s)", path, ag_status_name(status), err.what);
    }
}

static void
test_bad_input(void)
{
    setup("bad");
    struct ag_wal_options made = options();
    refused("", made, AG_EINVAL);
    made.segment_bytes = 4096;
    refused(log_path, made, AG_EINVAL);
    made = options();
    made.ring_bytes = 1;
    refused(log_path, made, AG_EINVAL);
    made = options();
    made.ring_path = "/nonexistent-directory/ring";
    refused(log_path, made, AG_EIO);
    forget();
    scratch_write(log_path, "a file", 6);
    refused(log_path, options(), AG_EIO);
    forget();
    /* Segments without LOG, a ring of another log. */
    struct told told = {0};
    ASSERT_EQ(work(1, 5, &told), AG_OK);
    char file[AG_WAL_PATH];
    ASSERT_EQ(ag_wal_path(file, log_path, "LOG", NULL), AG_OK);
    ASSERT_EQ(unlink(file), 0);
    refused(log_path, options(), AG_ECORRUPT);
    forget();
    scratch_write(ring_path, "not a ring", 10);
    memset(&told, 0, sizeof(told));
    ASSERT_EQ(work(1, 5, &told), AG_OK);
    char aside[600];
    (void)snprintf(aside, sizeof(aside), "%s.orphan", ring_path);
    ASSERT_EQ(access(aside, F_OK), 0); /* moved aside, not away */
    forget();
}

/* Large enough that the ring is made, and the spare read, by threads beside the rest of
 * an open: opened again; refused for a spare that is none, without a ring left behind.
 */
static void
test_large(void)
{
    setup("large");
    struct ag_wal_options made = options();
    made.segment_bytes = 1 << 20;
    made.ring_bytes = 4 << 20;
    for (uint64_t run = 0; run < 3; run++) {
        struct ag_wal *wal = NULL;
        struct ag_error err;
        ASSERT_EQ(ag_wal_open(log_path, &made, &wal, &err), AG_OK);
        ASSERT_EQ_U(ag_wal_durable(wal), run);
        ASSERT_EQ(append(wal, run + 1), AG_OK);
        char spare[AG_WAL_PATH];
        ASSERT_EQ(ag_wal_segment_path(spare, log_path, (uint32_t)run + 2, NULL), AG_OK);
        while (access(spare, F_OK) != 0) {
            (void)poll(NULL, 0, 1);
        }
        close_log(wal);
        ASSERT_EQ(access(ring_path, F_OK), -1);
    }
    char file[AG_WAL_PATH];
    ASSERT_EQ(ag_wal_segment_path(file, log_path, 4, NULL), AG_OK);
    int fd = open(file, O_WRONLY | O_CLOEXEC);
    ASSERT_LE(0, fd);
    ASSERT_EQ(pwrite(fd, "x", 1, (1 << 20) - 1), 1);
    refused(log_path, made, AG_ECORRUPT);
    ASSERT_EQ(access(ring_path, F_OK), -1);
    ASSERT_EQ(pwrite(fd, "", 1, (1 << 20) - 1), 1);
    ASSERT_EQ(close(fd), 0);
    struct ag_wal *wal = NULL;
    struct ag_error err;
    ASSERT_EQ(ag_wal_open(log_path, &made, &wal, &err), AG_OK);
    ASSERT_EQ_U(ag_wal_durable(wal), 3);
    close_log(wal);
    forget();
}

int
main(void)
{
    scratch_make(folder);
    RUN(test_plain);
    RUN(test_kills); /* forks: before any thread is left around */
    RUN(test_errors);
    RUN(test_poison_and_reopen);
    RUN(test_appends_beside_a_reopen);
    RUN(test_full_disk);
    RUN(test_slow_disk);
    RUN(test_news);
    RUN(test_marker);
    RUN(test_fork_and_second_writer);
    RUN(test_second_consumer);
    RUN(test_bad_input);
    RUN(test_large);
    scratch_remove(folder);
    return 0;
}
