// links: limit_rig scratch
/* Rate limits under threads and processes: keys that come and go in a table too small
 * for them, inserts that race, deaths at any instruction, fork. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "limit/slot.h"
#include "limit_rig.h"
#include "scratch.h"

/* ---- threads ---- */

/* Slots of a key, in use or not. */
static unsigned
slots_of(const char *path, uint64_t tag)
{
    static unsigned char bytes[1 << 17];
    size_t n = scratch_read(path, bytes, sizeof(bytes));
    unsigned found = 0;
    for (size_t at = AG_AREA_HEADER + 4096; at + 16 <= n; at += 16) {
        uint64_t seen;
        memcpy(&seen, bytes + at, sizeof(seen));
        found += (seen & ~UINT64_C(1)) == tag;
    }
    return found;
}

struct churn {
    struct ag_limit limit;
    uint64_t seed;
    _Atomic uint64_t *admitted; /* by key */
    uint64_t rounds;
};

enum { CHURN_KEYS = 48, CHURN_SLOTS = 32 };

static void *
churn_thread(void *arg)
{
    struct churn *c = arg;
    uint64_t random = c->seed;
    char key[16];
    for (uint64_t i = 0; i < c->rounds; i++) {
        unsigned k = (unsigned)(check_random(&random) % CHURN_KEYS);
        int n = snprintf(key, sizeof(key), "c%u", k);
        struct ag_charge charge;
        uint64_t tag = ag_limit_tag(&c->limit, key, (size_t)n);
        ASSERT_EQ(ag_limit_acquire(&c->limit, tag, 1, ag_boottime_ns(), &charge),
                  AG_OK);
        if (charge.allowed) {
            atomic_fetch_add(&c->admitted[k], 1);
        }
    }
    return NULL;
}

/* 48 keys in 32 slots, each charge gone after microseconds: inserts race all the time,
 * and no key may ever get more than its rate. */
static void
churn(void)
{
    enum { THREADS = 4 };
    char path[512];
    struct ag_table *t =
        open_with_clock(scratch_path(path, dir, "churn"), CHURN_SLOTS, ag_boottime_ns);
    _Atomic uint64_t admitted[CHURN_KEYS] = {0};
    struct churn args[THREADS];
    pthread_t threads[THREADS];
    const uint64_t per = 3000, burst = 2; /* ns a unit */
    uint64_t start = ag_boottime_ns(), seed = check_seed(start);
    for (unsigned i = 0; i < THREADS; i++) {
        args[i] = (struct churn){make_limit(t, "churn", 1, per, burst), seed + i,
                                 admitted, way == AG_SYNC_MUTEX ? 50000 : 200000};
        ASSERT_EQ(pthread_create(&threads[i], NULL, churn_thread, &args[i]), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
    }
    uint64_t passed = ag_boottime_ns() - start, all = 0;
    for (unsigned k = 0; k < CHURN_KEYS; k++) {
        uint64_t count = atomic_load(&admitted[k]);
        ASSERT_LE_U(count, burst + (passed + 1) / per);
        all += count;
    }
    ASSERT_LT_U(1000, all);
    /* at rest no key has two slots */
    for (unsigned k = 0; k < CHURN_KEYS; k++) {
        char key[16];
        int n = snprintf(key, sizeof(key), "c%u", k);
        ASSERT_LE_U(slots_of(path, ag_limit_tag(&args[0].limit, key, (size_t)n)), 1);
    }
    ag_table_close(t);
}

struct race {
    struct ag_limit *limit;
    pthread_barrier_t *barrier;
    _Atomic unsigned *admitted;
    unsigned rounds;
};

static void *
race_thread(void *arg)
{
    struct race *r = arg;
    char key[24];
    for (unsigned i = 0; i < r->rounds; i++) {
        int n = snprintf(key, sizeof(key), "new %u", i);
        struct ag_charge charge;
        uint64_t tag = ag_limit_tag(r->limit, key, (size_t)n);
        (void)pthread_barrier_wait(r->barrier);
        for (int k = 0; k < 3; k++) {
            ASSERT_EQ(ag_limit_acquire(r->limit, tag, 1, told_time(), &charge), AG_OK);
            atomic_fetch_add(&r->admitted[i], charge.allowed);
        }
    }
    return NULL;
}

/* Threads meet on one new key after the other: exactly the burst is admitted. */
static void
insert_race(void)
{
    enum { THREADS = 3, ROUNDS = 2000, BURST = 4 };
    static _Atomic unsigned admitted[ROUNDS];
    struct ag_table *t = open_table(NULL, 8 * ROUNDS);
    struct ag_limit limit = make_limit(t, "race", 1, 3600 * SECOND, BURST);
    pthread_barrier_t barrier;
    pthread_t threads[THREADS];
    struct race race = {&limit, &barrier, admitted, ROUNDS};
    memset((void *)admitted, 0, sizeof(admitted));
    ASSERT_EQ(pthread_barrier_init(&barrier, NULL, THREADS), 0);
    for (unsigned i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_create(&threads[i], NULL, race_thread, &race), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
    }
    for (unsigned i = 0; i < ROUNDS; i++) {
        ASSERT_EQ(admitted[i], BURST);
    }
    (void)pthread_barrier_destroy(&barrier);
    ag_table_close(t);
}

static void
claims_of_the_dead_are_passed(void)
{
    char path[512];
    struct ag_table *t = open_table(scratch_path(path, dir, "claims"), 16);
    struct ag_limit limit = make_limit(t, "x", 1, SECOND, 2);
    struct ag_table_stats stats;
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    /* as a process leaves it that died between claim and key */
    int fd = open(path, O_RDWR | O_CLOEXEC);
    ASSERT_LE(0, fd);
    struct ag_pair claim = {tag | 1, now + 30000000};
    for (off_t slot = 0; slot < 16; slot += 5) {
        ASSERT_EQ(pwrite(fd, &claim, 16, AG_AREA_HEADER + 4096 + 16 * slot), 16);
    }
    (void)close(fd);
    ASSERT(acquire(&limit, "k", 2).allowed);
    ASSERT(!acquire(&limit, "k", 1).allowed);
    ASSERT_EQ(slots_of(path, tag), 1);
    ag_table_stats(t, now, &stats);
    ASSERT_EQ_U(stats.live, 1);
    ag_table_close(t);
}

/* ---- deaths ---- */

struct shared {
    _Atomic uint64_t admitted, calls;
    _Atomic int stop;
};

static void
kill_worker(const char *path, struct shared *shared, uint64_t seed)
{
    struct ag_error err;
    struct ag_table *t = NULL;
    struct ag_table_options options = {.path = path, .slots = 64, .sync = way};
    if (ag_table_open(&options, &t, &err) != AG_OK) {
        _exit(2);
    }
    struct ag_limit one = make_limit(t, "one", 1000000, SECOND, 1000);
    struct ag_limit few = make_limit(t, "few", 1, 20000, 1);
    uint64_t tag = ag_limit_tag(&one, "k", 1);
    char key[16];
    while (!atomic_load(&shared->stop)) {
        struct ag_charge charge;
        (void)ag_limit_acquire(&one, tag, 1, ag_boottime_ns(), &charge);
        atomic_fetch_add(&shared->calls, 1);
        if (charge.allowed) {
            atomic_fetch_add(&shared->admitted, 1);
        }
        int n = snprintf(key, sizeof(key), "%u", (unsigned)(check_random(&seed) % 90));
        (void)ag_limit_acquire(&few, ag_limit_tag(&few, key, (size_t)n), 1,
                               ag_boottime_ns(), &charge);
    }
    _exit(0);
}

static pid_t
start_worker(const char *path, struct shared *shared, uint64_t seed)
{
    pid_t pid = fork();
    ASSERT_LE(0, pid);
    if (pid == 0) {
        kill_worker(path, shared, seed);
    }
    return pid;
}

/* Processes that share a hot key and churn others are killed at random moments. */
static void
kills(void)
{
    enum { WORKERS = 3 };
    const char *wish = getenv("AEGIS_KILLS");
    int left = wish != NULL ? atoi(wish) : 20;
    char path[512];
    (void)scratch_path(path, dir, "kills");
    (void)unlink(path);
    struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
                                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT(shared != MAP_FAILED);
    uint64_t seed = check_seed(ag_boottime_ns()), start = ag_boottime_ns();
    pid_t pids[WORKERS];
    for (unsigned i = 0; i < WORKERS; i++) {
        pids[i] = start_worker(path, shared, seed + i);
    }
    for (; left > 0; left--) {
        unsigned victim = (unsigned)(check_random(&seed) % WORKERS);
        const struct timespec pause = {.tv_nsec =
                                           (long)(check_random(&seed) % 8000000)};
        int status = 0;
        (void)nanosleep(&pause, NULL);
        ASSERT_EQ(kill(pids[victim], SIGKILL), 0);
        ASSERT_EQ(waitpid(pids[victim], &status, 0), pids[victim]);
        ASSERT(WIFSIGNALED(status));
        pids[victim] = start_worker(path, shared, check_random(&seed));
    }
    /* nothing hangs: every survivor goes on and ends */
    uint64_t calls = atomic_load(&shared->calls);
    while (atomic_load(&shared->calls) < calls + 1000) {
        (void)usleep(1000);
    }
    atomic_store(&shared->stop, 1);
    for (unsigned i = 0; i < WORKERS; i++) {
        int status = 0;
        ASSERT_EQ(waitpid(pids[i], &status, 0), pids[i]);
        ASSERT_EQ(status, 0);
    }
    uint64_t passed = ag_boottime_ns() - start;
    uint64_t bound = 1000 + (passed + 1) / 1000;
    ASSERT_LE_U(atomic_load(&shared->admitted), bound);
    ASSERT_LT_U(1000, atomic_load(&shared->admitted));
    (void)munmap(shared, sizeof(*shared));
}

static void
fork_shares_the_table(void)
{
    struct ag_table *t = open_table(NULL, 64);
    struct ag_limit limit = make_limit(t, "x", 1, 3600 * SECOND, 5);
    ASSERT(acquire(&limit, "k", 2).allowed);
    pid_t pid = fork();
    ASSERT_LE(0, pid);
    if (pid == 0) {
        _exit(acquire(&limit, "k", 2).allowed ? 0 : 1);
    }
    int status = 1;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    ASSERT_EQ(status, 0);
    ASSERT(acquire(&limit, "k", 1).allowed);
    ASSERT(!acquire(&limit, "k", 1).allowed);
    ag_table_close(t);
}

static void
run_all(void)
{
    RUN(churn);
    RUN(insert_race);
    RUN(claims_of_the_dead_are_passed);
    RUN(kills);
    RUN(fork_shares_the_table);
}

int
main(void)
{
    run_both_ways(run_all);
    return 0;
}
