// links: io_fault scratch
/* Caps on what is in flight: never above the limit with threads and processes, capacity
 * back after kill -9, leases that end once, fork, full tables, bad files. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "check.h"
#include "io_fault.h"
#include "limit/concurrency.h"
#include "scratch.h"

static char dir[256];

static struct ag_concurrency *
open_limiter(const char *path, uint64_t slots, uint32_t workers)
{
    struct ag_error err;
    struct ag_concurrency *c = NULL;
    struct ag_concurrency_options options = {
        .path = path, .slots = slots, .workers = workers};
    int status = ag_concurrency_open(&options, &c, &err);
    if (status != AG_OK) {
        CHECK_FAIL("open: %s (%s)", err.what, err.file);
    }
    return c;
}

static int64_t
enter(struct ag_concurrency *c, const char *key, uint64_t limit)
{
    struct ag_error err;
    int64_t lease = -1;
    uint64_t tag = ag_concurrency_tag(c, key, strlen(key));
    ASSERT_EQ(ag_concurrency_enter(c, tag, limit, &lease, &err), AG_OK);
    ASSERT_LE(0, lease);
    return lease;
}

static uint64_t
count(struct ag_concurrency *c, const char *key)
{
    return ag_concurrency_count(c, ag_concurrency_tag(c, key, strlen(key)));
}

static void
leases_end_once(void)
{
    struct ag_concurrency *c = open_limiter(NULL, 16, 2);
    int64_t a = enter(c, "k", 2), b = enter(c, "k", 2);
    ASSERT_LT(0, a);
    ASSERT_LT(0, b);
    ASSERT_NE(a, b);
    ASSERT_EQ(enter(c, "k", 2), 0);
    ASSERT_LT(0, enter(c, "other", 1));
    ASSERT(ag_concurrency_leave(c, a));
    ASSERT(!ag_concurrency_leave(c, a));
    ASSERT_EQ_U(count(c, "k"), 1);
    int64_t again = enter(c, "k", 2);
    ASSERT_NE(again,
              a); /* numbers are not used again, so a late double leave is none */
    ASSERT(!ag_concurrency_leave(c, a));
    ASSERT_EQ_U(count(c, "k"), 2);
    static const int64_t wrong[] = {0, -1, 1, INT64_MAX, INT64_MIN, (int64_t)1 << 32};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        ASSERT(!ag_concurrency_leave(c, wrong[i]));
    }
    ASSERT(ag_concurrency_leave(c, b));
    ASSERT(ag_concurrency_leave(c, again));
    ASSERT_EQ_U(count(c, "k"), 0);
    for (int i = 0; i < 1000; i++) { /* more than the first block of leases */
        ASSERT_LT(0, enter(c, "many", 1000));
    }
    ASSERT_EQ(enter(c, "many", 1000), 0);
    ag_concurrency_close(c);
}

static void
a_full_table_refuses_and_counts(void)
{
    struct ag_concurrency *c = open_limiter(NULL, 16, 1);
    struct ag_concurrency_stats stats;
    int64_t leases[64];
    char key[16];
    unsigned in = 0;
    for (int i = 0; i < 64; i++) {
        (void)snprintf(key, sizeof(key), "%d", i);
        leases[i] = enter(c, key, 1);
        in += leases[i] > 0;
    }
    ASSERT_EQ(in, 16);
    ag_concurrency_stats(c, &stats);
    ASSERT_EQ_U(stats.used, 16);
    ASSERT_EQ_U(stats.in_flight, 16);
    ASSERT_EQ_U(stats.rows, 1);
    ASSERT_LE_U(48, stats.full);
    for (int i = 0; i < 64; i++) {
        ASSERT_EQ(ag_concurrency_leave(c, leases[i]), leases[i] > 0);
    }
    for (int i = 100; i < 116; i++) { /* idle slots are taken over */
        (void)snprintf(key, sizeof(key), "%d", i);
        ASSERT_LT(0, enter(c, key, 1));
    }
    ag_concurrency_close(c);
}

static void
handles_are_workers(void)
{
    char path[512];
    struct ag_error err;
    struct ag_concurrency *c = open_limiter(scratch_path(path, dir, "two"), 16, 2);
    struct ag_concurrency *d = open_limiter(path, 999, 999), *e = NULL;
    struct ag_concurrency_options options = {.path = path, .slots = 16, .workers = 2};
    ASSERT_LT(0, enter(c, "k", 3));
    ASSERT_LT(0, enter(d, "k", 3));
    ASSERT_LT(0, enter(d, "k", 3));
    ASSERT_EQ(enter(c, "k", 3), 0);
    ASSERT_EQ(ag_concurrency_open(&options, &e, &err), AG_EFULL);
    ASSERT(strstr(err.advice, "workers") != NULL);
    ASSERT_EQ_STR(err.file, path);
    ag_concurrency_close(d); /* gives back what was not left */
    ASSERT_EQ_U(count(c, "k"), 1);
    d = open_limiter(path, 16, 2);
    ASSERT_LT(0, enter(d, "k", 2));
    ag_concurrency_close(d);
    ag_concurrency_close(c);
    ag_concurrency_close(NULL);
}

/* ---- threads ---- */

struct storm {
    struct ag_concurrency *c;
    _Atomic int *in_flight; /* by key */
    _Atomic uint64_t *entered;
    uint64_t seed;
    int rounds;
};

enum { STORM_KEYS = 40, STORM_LIMIT = 2 };

static void *
storm_thread(void *arg)
{
    struct storm *s = arg;
    uint64_t random = s->seed;
    char key[16];
    for (int i = 0; i < s->rounds; i++) {
        unsigned k = (unsigned)(check_random(&random) % STORM_KEYS);
        (void)snprintf(key, sizeof(key), "s%u", k);
        int64_t lease = enter(s->c, key, STORM_LIMIT);
        if (lease > 0) {
            ASSERT_LE(atomic_fetch_add(&s->in_flight[k], 1) + 1, STORM_LIMIT);
            atomic_fetch_add(s->entered, 1);
            atomic_fetch_sub(&s->in_flight[k], 1);
            ASSERT(ag_concurrency_leave(s->c, lease));
        }
    }
    return NULL;
}

/* Three handles of one small table, so that slots change their key all the time. */
static void
storm(void)
{
    enum { HANDLES = 3 };
    char path[512];
    _Atomic int in_flight[STORM_KEYS] = {0};
    _Atomic uint64_t entered = 0;
    struct storm storms[HANDLES];
    pthread_t threads[HANDLES];
    uint64_t seed = check_seed(ag_clock_ns());
    (void)scratch_path(path, dir, "storm");
    for (unsigned i = 0; i < HANDLES; i++) {
        storms[i] = (struct storm){open_limiter(path, 16, 4), in_flight, &entered,
                                   seed + i, 30000};
        ASSERT_EQ(pthread_create(&threads[i], NULL, storm_thread, &storms[i]), 0);
    }
    for (unsigned i = 0; i < HANDLES; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
    }
    ASSERT_LT_U(10000, atomic_load(&entered));
    struct ag_concurrency_stats stats;
    ag_concurrency_stats(storms[0].c, &stats);
    ASSERT_EQ_U(stats.in_flight, 0);
    ASSERT_EQ_U(stats.reaped, 0);
    for (unsigned i = 0; i < HANDLES; i++) {
        ag_concurrency_close(storms[i].c);
    }
}

/* ---- processes ---- */

struct shared {
    _Atomic int ready, stop;
    _Atomic uint64_t rounds;
    /* one octet per process and unit in flight: the process sets it after it entered,
     * clears it before it leaves, so their sum never exceeds what is in flight */
    _Atomic int held[8];
};

static pid_t
start(struct shared *shared, const char *path, unsigned me, uint64_t limit)
{
    pid_t pid = fork();
    ASSERT_LE(0, pid);
    if (pid != 0) {
        return pid;
    }
    struct ag_concurrency *c = open_limiter(path, 64, 16);
    uint64_t random = me + (uint64_t)getpid();
    while (!atomic_load(&shared->stop)) {
        int64_t lease = enter(c, "k", limit);
        if (lease > 0) {
            atomic_store(&shared->held[me], 1);
            int sum = 0;
            for (unsigned i = 0; i < 8; i++) {
                sum += atomic_load(&shared->held[i]);
            }
            if (sum > (int)limit) {
                _exit(3);
            }
            if (check_random(&random) % 64 == 0) {
                (void)usleep(500);
            }
            atomic_store(&shared->held[me], 0);
            (void)ag_concurrency_leave(c, lease);
        }
        atomic_fetch_add(&shared->rounds, 1);
    }
    _exit(0);
}

/* Workers are killed, in flight or not: what they held comes back, within a second, and
 * meanwhile it counts. */
static void
kills(void)
{
    enum { WORKERS = 3, LIMIT = 2 };
    const char *wish = getenv("AEGIS_KILLS");
    int left = wish != NULL ? atoi(wish) : 20;
    char path[512];
    (void)scratch_path(path, dir, "kills");
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(shared != MAP_FAILED);
    uint64_t seed = check_seed(ag_clock_ns());
    pid_t pids[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        pids[i] = start(shared, path, i, LIMIT);
    }
    for (; left > 0; left--) {
        unsigned victim = (unsigned)(check_random(&seed) % WORKERS);
        int status = 0;
        (void)usleep((useconds_t)(check_random(&seed) % 10000));
        /* stopped first, so that its mark is gone before what it held can come back */
        ASSERT_EQ(kill(pids[victim], SIGSTOP), 0);
        ASSERT_EQ(waitpid(pids[victim], &status, WUNTRACED), pids[victim]);
        ASSERT(WIFSTOPPED(status));
        atomic_store(&shared->held[victim], 0);
        ASSERT_EQ(kill(pids[victim], SIGKILL), 0);
        ASSERT_EQ(waitpid(pids[victim], &status, 0), pids[victim]);
        ASSERT(WIFSIGNALED(status));
        pids[victim] = start(shared, path, victim, LIMIT);
    }
    uint64_t rounds = atomic_load(&shared->rounds);
    while (atomic_load(&shared->rounds) < rounds + 100) {
        (void)usleep(1000);
    }
    atomic_store(&shared->stop, 1);
    for (unsigned i = 0; i < WORKERS; i++) {
        int status = 0;
        ASSERT_EQ(waitpid(pids[i], &status, 0), pids[i]);
        ASSERT_EQ(status, 0);
    }
    struct ag_concurrency *c = open_limiter(path, 64, 16);
    (void)ag_concurrency_reap(c);
    ASSERT_EQ_U(count(c, "k"), 0);
    ag_concurrency_close(c);
    (void)munmap(shared, sizeof(*shared));
}

static void
capacity_comes_back(void)
{
    char path[512];
    struct ag_concurrency *c = open_limiter(scratch_path(path, dir, "back"), 64, 4);
    int ends[2];
    char octet = 0;
    ASSERT_EQ(pipe(ends), 0);
    pid_t pid = fork();
    ASSERT_LE(0, pid);
    if (pid == 0) {
        struct ag_concurrency *d = open_limiter(path, 64, 4);
        for (int i = 0; i < 3; i++) {
            if (enter(d, "k", 3) <= 0) {
                _exit(1);
            }
        }
        ASSERT_EQ(write(ends[1], "x", 1), 1);
        (void)pause();
        _exit(1);
    }
    ASSERT_EQ(read(ends[0], &octet, 1), 1);
    ASSERT_EQ(enter(c, "k", 3), 0);
    ASSERT_EQ_U(ag_concurrency_reap(c), 0); /* alive */
    ASSERT_EQ(kill(pid, SIGKILL), 0);
    uint64_t killed = ag_clock_ns();
    int64_t lease = 0;
    while ((lease = enter(c, "k", 3)) == 0) {
        (void)usleep(1000);
        ASSERT_LT_U(ag_clock_ns() - killed, 1000000000);
    }
    ASSERT_EQ_U(count(c, "k"), 1);
    ASSERT_EQ(waitpid(pid, NULL, 0), pid);
    struct ag_concurrency_stats stats;
    ag_concurrency_stats(c, &stats);
    ASSERT_EQ_U(stats.reaped, 3);
    ASSERT_EQ_U(stats.rows, 1);
    (void)close(ends[0]);
    (void)close(ends[1]);
    ag_concurrency_close(c);
}

/* The child of a fork is a worker of its own; a parent that dies before its child is
 * still seen as dead. */
static void
forks(const char *path)
{
    struct ag_concurrency *c = open_limiter(path, 64, 4);
    struct ag_concurrency_stats stats;
    int ends[2], status = 1;
    char octet = 0;
    int64_t lease = enter(c, "k", 3);
    pid_t pid = fork();
    ASSERT_LE(0, pid);
    if (pid == 0) {
        bool ok = !ag_concurrency_leave(c, lease) && count(c, "k") == 1;
        int64_t own = enter(c, "k", 3);
        ok = ok && own > 0 && own != lease && count(c, "k") == 2;
        ok = ok && ag_concurrency_reap(c) == 0; /* the parent lives */
        ok = ok && ag_concurrency_leave(c, own) && enter(c, "k", 2) > 0;
        _exit(ok ? 0 : 1);
    }
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_EQ(status, 0);
    ASSERT_EQ_U(ag_concurrency_reap(c), 1); /* the child's last one */
    ASSERT(ag_concurrency_leave(c, lease));
    ASSERT_EQ_U(count(c, "k"), 0);
    /* parent -> child -> grandchild that lives on */
    ASSERT_EQ(pipe(ends), 0);
    pid = fork();
    ASSERT_LE(0, pid);
    if (pid == 0) {
        if (enter(c, "k", 1) <= 0) {
            _exit(1);
        }
        pid_t grandchild = fork();
        if (grandchild == 0) {
            ASSERT_EQ(write(ends[1], &octet, 1), 1);
            ASSERT_EQ(read(ends[0], &octet, 1), 1); /* until the end of the test */
            _exit(0);
        }
        (void)usleep(20000);
        _exit(0);
    }
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_EQ(status, 0);
    ASSERT_EQ_U(ag_concurrency_reap(c), 1); /* though a copy of the descriptor lives */
    ASSERT_LT(0, enter(c, "k", 1));
    ASSERT_EQ(write(ends[1], &octet, 1), 1);
    (void)close(ends[0]);
    (void)close(ends[1]);
    ag_concurrency_stats(c, &stats);
    ASSERT_EQ_U(stats.rows, 1);
    ag_concurrency_close(c);
}

static void
fork_with_a_file(void)
{
    char path[512];
    forks(scratch_path(path, dir, "fork"));
}

static void
fork_without_a_file(void)
{
    forks(NULL);
}

/* ---- files ---- */

static void
bad_files_and_numbers(void)
{
    static unsigned char good[1 << 16];
    char path[512];
    struct ag_error err;
    struct ag_concurrency *c = NULL;
    struct ag_concurrency_options options = {.slots = 16, .workers = 0};
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_EINVAL);
    options.workers = AG_WORKERS_MAX + 1;
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_EINVAL);
    options.workers = 2;
    options.slots = UINT64_MAX;
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_EINVAL);
    options.slots = 16;
    options.path = scratch_path(path, dir, "bad");
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_OK);
    ag_concurrency_close(c);
    size_t n = scratch_read(path, good, sizeof(good));
    scratch_write(path, good, n - 1);
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_ECORRUPT);
    ASSERT_EQ_STR(err.file, path);
    good[12] ^= 3; /* the kind, and its checksum not */
    scratch_write(path, good, n);
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_ECORRUPT);
    good[12] ^= 3;
    scratch_write(path, good, n);
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_OK);
    ASSERT_LT(0, enter(c, "k", 1));
    /* after a reboot nothing is in flight, whatever the file says */
    struct ag_moment moment = {{7}, 1, 2};
    struct ag_concurrency *after = NULL;
    options.now = &moment;
    ASSERT_EQ(ag_concurrency_open(&options, &after, &err), AG_OK);
    ASSERT_EQ_U(count(after, "k"), 0);
    ag_concurrency_close(after);
    ag_concurrency_close(c);
}

static void
io_faults(void)
{
    char path[512];
    struct ag_error err;
    struct io_fault fault;
    int failures = 0;
    (void)scratch_path(path, dir, "faults");
    for (long at = 1;; at++) {
        struct ag_concurrency *c = NULL;
        io_fault_init(&fault);
        atomic_store(&fault.fail_at, at);
        atomic_store(&fault.fail_for, 1);
        atomic_store(&fault.fail_errno, EIO);
        struct ag_concurrency_options options = {
            .path = path, .slots = 16, .workers = 2, .io = &fault.table};
        (void)unlink(path);
        int status = ag_concurrency_open(&options, &c, &err);
        ag_concurrency_close(status == AG_OK ? c : NULL);
        if (status == AG_OK && atomic_load(&fault.calls) < at) {
            break;
        }
        failures += status != AG_OK;
        ASSERT(status == AG_OK || (status == AG_EIO && err.file[0] != '\0'));
    }
    ASSERT_LE(6, failures);
}

int
main(void)
{
    scratch_make(dir);
    RUN(leases_end_once);
    RUN(a_full_table_refuses_and_counts);
    RUN(handles_are_workers);
    RUN(storm);
    RUN(kills);
    RUN(capacity_comes_back);
    RUN(fork_with_a_file);
    RUN(fork_without_a_file);
    RUN(bad_files_and_numbers);
    RUN(io_faults);
    scratch_remove(dir);
    return 0;
}
