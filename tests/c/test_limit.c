// links: io_fault scratch
/* Rate limits: the arithmetic, the table under churn and threads, deaths at any
 * instruction, files that are not what they should be, reboots, ten years of time.
 * Everything that depends on how slots are changed runs both ways. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "io_fault.h"
#include "limit/limit.h"
#include "limit/slot.h"
#include "scratch.h"

#define SECOND UINT64_C(1000000000)

static char dir[256];
static enum ag_sync way; /* of this round */
static _Atomic uint64_t now = 1000 * SECOND;

static uint64_t
told_time(void)
{
    return atomic_load(&now);
}

static struct ag_table *
open_with_clock(const char *path, uint64_t slots, uint64_t (*clock)(void))
{
    struct ag_error err;
    struct ag_table *t = NULL;
    struct ag_table_options options = {
        .path = path, .slots = slots, .sync = way, .clock = clock};
    int status = ag_table_open(&options, &t, &err);
    if (status != AG_OK) {
        CHECK_FAIL("open: %s (%s)", err.what, err.file);
    }
    return t;
}

static struct ag_table *
open_table(const char *path, uint64_t slots)
{
    return open_with_clock(path, slots, told_time);
}

static struct ag_limit
make_limit(struct ag_table *t, const char *name, uint64_t rate, uint64_t per,
           uint64_t burst)
{
    struct ag_limit limit;
    struct ag_error err;
    ASSERT_EQ(ag_limit_init(&limit, t, name, strlen(name), rate, per, burst, &err),
              AG_OK);
    return limit;
}

static struct ag_charge
acquire(const struct ag_limit *limit, const char *key, uint64_t cost)
{
    struct ag_charge charge;
    uint64_t tag = ag_limit_tag(limit, key, strlen(key));
    ASSERT_EQ(ag_limit_acquire(limit, tag, cost, told_time(), &charge), AG_OK);
    return charge;
}

static uint64_t
level_of(const struct ag_limit *limit, const char *key)
{
    struct ag_charge charge;
    uint64_t tag = ag_limit_tag(limit, key, strlen(key));
    ASSERT_EQ(ag_limit_look(limit, tag, 1, told_time(), &charge), AG_OK);
    return charge.level;
}

/* ---- arithmetic ---- */

static void
siphash_is_the_one_of_the_paper(void)
{
    /* SipHash-1-3 with key 0, as CPython 3.11+ computes hash(bytes) with
     * PYTHONHASHSEED=0 */
    static const struct {
        const char *text;
        uint64_t hash;
    } known[] = {
        {"a", UINT64_C(0x407448d2b89b1813)},
        {"abcdefg", UINT64_C(0x6db12aae9070f506)},
        {"abcdefgh", UINT64_C(0x3f7b849c0b8e35ea)},
        {"user-0000000000000000000000000000000000042", UINT64_C(0x039d2ac556dd6cd7)}};
    const struct ag_siphash_key zero = {0, 0};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        ASSERT_EQ_U(ag_siphash13(zero, known[i].text, strlen(known[i].text)),
                    known[i].hash);
    }
}

static void
increments_round_up_and_saturate(void)
{
    struct ag_gcra g;
    struct ag_error err;
    ASSERT_EQ(ag_gcra_init(&g, 3, SECOND, 3, &err), AG_OK);
    ASSERT_EQ_U(g.unit, 333333334);
    ASSERT_EQ_U(g.tolerance, SECOND);
    ASSERT_EQ_U(ag_gcra_increment(&g, 0), 0);
    ASSERT_EQ_U(ag_gcra_increment(&g, 2), 666666667);
    ASSERT_EQ_U(ag_gcra_increment(&g, 3), SECOND);
    ASSERT_EQ_U(ag_gcra_increment(&g, UINT64_MAX), AG_LEVEL_MAX);
    ASSERT_EQ_U(ag_gcra_remaining(&g, 0), 3);
    ASSERT_EQ_U(ag_gcra_remaining(&g, 4), 2);
    ASSERT_EQ_U(ag_gcra_remaining(&g, g.unit), 2); /* and not 1.999999998 */
    ASSERT_EQ_U(ag_gcra_remaining(&g, 2 * g.unit), 1);
    ASSERT_EQ_U(ag_gcra_remaining(&g, SECOND), 0);
    ASSERT_EQ_U(ag_gcra_remaining(&g, AG_LEVEL_MAX), 0);
    /* more units than nanoseconds: each still costs, one at a time a nanosecond */
    ASSERT_EQ(ag_gcra_init(&g, 10 * SECOND, SECOND, 10 * SECOND, &err), AG_OK);
    ASSERT_EQ_U(g.unit, 1);
    ASSERT_EQ_U(ag_gcra_increment(&g, 11), 2);
    ASSERT_EQ(ag_gcra_init(&g, 0, SECOND, 1, &err), AG_EINVAL);
    ASSERT_EQ(ag_gcra_init(&g, 1, 0, 1, &err), AG_EINVAL);
    ASSERT_EQ(ag_gcra_init(&g, 1, SECOND, 0, &err), AG_EINVAL);
    ASSERT_EQ(ag_gcra_init(&g, 1, SECOND, UINT64_MAX, &err), AG_EINVAL);
}

static void
a_limit_counts(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "rpm", 60, 60 * SECOND, 5);
    for (unsigned i = 0; i < 5; i++) {
        struct ag_charge charge = acquire(&limit, "k", 1);
        ASSERT(charge.allowed);
        ASSERT_EQ_U(ag_gcra_remaining(&limit.gcra, charge.level), 4 - i);
    }
    struct ag_charge charge = acquire(&limit, "k", 1);
    ASSERT(!charge.allowed && !charge.full);
    ASSERT_EQ_U(charge.wait, SECOND);
    ASSERT_EQ_U(charge.level, 5 * SECOND);
    ASSERT(!acquire(&limit, "k", 0).allowed); /* a zero cost is no way round */
    ASSERT(acquire(&limit, "other", 5).allowed);
    now += SECOND - 1;
    ASSERT_EQ_U(acquire(&limit, "k", 1).wait, 1);
    now += 1;
    ASSERT(acquire(&limit, "k", 0).allowed);
    ASSERT(acquire(&limit, "k", 1).allowed);
    ASSERT(!acquire(&limit, "k", 1).allowed);
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    ASSERT_EQ(ag_limit_acquire(&limit, tag, 6, told_time(), &charge), AG_ETOOBIG);
    ASSERT_EQ(ag_limit_look(&limit, tag, UINT64_MAX, told_time(), &charge), AG_ETOOBIG);
    struct ag_limit other = make_limit(t, "tpm", 60, 60 * SECOND, 5);
    ASSERT_EQ_U(level_of(&other, "k"), 0); /* names separate keys */
    ag_table_close(t);
}

/* ---- reservations ---- */

static void
settling(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "tpm", 100, SECOND, 100); /* 10 ms a unit */
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    const uint64_t unit = limit.gcra.unit;
    uint64_t then = told_time();
    ASSERT(acquire(&limit, "k", 80).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 80, 30, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 30 * unit);
    /* all back */
    then = told_time();
    ASSERT(acquire(&limit, "k", 70).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 70, 0, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 30 * unit);
    /* debt, without bound by the tolerance */
    then = told_time();
    ASSERT(acquire(&limit, "k", 1).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 1, 500, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 530 * unit);
    ASSERT(!acquire(&limit, "k", 1).allowed);
    ASSERT(!acquire(&limit, "k", 0).allowed);
    ASSERT_EQ_U(acquire(&limit, "k", 1).wait, 431 * unit);
    /* a huge debt is the highest level, not an overflow */
    ASSERT(ag_limit_settle(&limit, tag, 1, UINT64_MAX, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), AG_LEVEL_MAX);
    ag_table_close(t);
}

static void
a_late_settle_does_not_erase_others(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "tpm", 100, SECOND, 100);
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    const uint64_t unit = limit.gcra.unit;
    uint64_t then = told_time();
    ASSERT(acquire(&limit, "k", 100).allowed);
    now += 90 * unit; /* 90 of the 100 have drained */
    ASSERT(acquire(&limit, "k", 90).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 100, 0, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 90 * unit); /* 10 back, not 100 */
    now += 200 * unit;
    ASSERT(acquire(&limit, "k", 7).allowed);
    ASSERT(ag_limit_settle(&limit, tag, 100, 0, then, told_time()));
    ASSERT_EQ_U(level_of(&limit, "k"), 7 * unit);
    /* debt of a key whose slot went to others meanwhile */
    now += 200 * unit;
    ASSERT(ag_limit_settle(&limit, ag_limit_tag(&limit, "gone", 4), 1, 4, then, now));
    ASSERT_EQ_U(level_of(&limit, "gone"), 3 * unit);
    ag_table_close(t);
}

/* ---- plans ---- */

static void
a_plan_charges_all_or_nothing(void)
{
    struct ag_table *t = open_table(NULL, 64);
    struct ag_limit a = make_limit(t, "a", 10, SECOND, 10);
    struct ag_limit b = make_limit(t, "b", 5, SECOND, 5);
    const struct ag_limit *const limits[] = {&a, &b};
    const uint64_t tags[] = {ag_limit_tag(&a, "k", 1), ag_limit_tag(&b, "k", 1)};
    uint64_t costs[] = {2, 2};
    struct ag_charge charges[2];
    size_t refused = 9;
    for (int i = 0; i < 2; i++) {
        ASSERT_EQ(ag_plan_acquire(limits, tags, costs, 2, now, charges, &refused),
                  AG_OK);
        ASSERT_EQ_U(refused, 2);
    }
    uint64_t before = level_of(&a, "k");
    ASSERT_EQ(ag_plan_acquire(limits, tags, costs, 2, now, charges, &refused), AG_OK);
    ASSERT_EQ_U(refused, 1);
    ASSERT(charges[0].allowed && !charges[1].allowed);
    ASSERT_EQ_U(level_of(&a, "k"), before);
    ASSERT_EQ_U(level_of(&b, "k"), 4 * b.gcra.unit);
    costs[0] = 11;
    ASSERT_EQ(ag_plan_acquire(limits, tags, costs, 2, now, charges, &refused),
              AG_ETOOBIG);
    ASSERT_EQ_U(refused, 0);
    ASSERT_EQ_U(level_of(&a, "k"), before);
    /* the same key of the same limit twice: each look fits, both together do not, so
     * that the second charge refuses and the first is taken back */
    const struct ag_limit *const twice[] = {&a, &a};
    const uint64_t same[] = {tags[0], tags[0]};
    costs[0] = costs[1] = 4;
    ASSERT_EQ(ag_plan_acquire(twice, same, costs, 2, now, charges, &refused), AG_OK);
    ASSERT_EQ_U(refused, 1);
    ASSERT_EQ_U(level_of(&a, "k"), before);
    ag_table_close(t);
}

/* ---- the table ---- */

static void
a_full_table_refuses_and_counts(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "x", 1, 60 * SECOND, 1);
    struct ag_table_stats stats;
    char key[32];
    unsigned admitted = 0, full = 0;
    for (int i = 0; i < 100; i++) {
        (void)snprintf(key, sizeof(key), "key %d", i);
        struct ag_charge charge = acquire(&limit, key, 1);
        admitted += charge.allowed;
        full += charge.full;
        ASSERT(charge.allowed || (charge.full && charge.wait == 60 * SECOND));
    }
    ASSERT_EQ(admitted, 16);
    ASSERT_EQ(full, 84);
    for (int i = 0; i < 16; i++) { /* those that are in keep their state */
        (void)snprintf(key, sizeof(key), "key %d", i);
        ASSERT(!acquire(&limit, key, 1).allowed);
        ASSERT(!acquire(&limit, key, 1).full);
    }
    ASSERT(!ag_limit_settle(&limit, ag_limit_tag(&limit, "key 99", 6), 1, 3, now, now));
    ag_table_stats(t, now, &stats);
    ASSERT_EQ_U(stats.live, 16);
    ASSERT_EQ_U(stats.debts_lost, 1);
    ASSERT_LE_U(84, stats.full);
    now += 60 * SECOND; /* idle slots are taken without a sweep */
    for (int i = 50; i < 66; i++) {
        (void)snprintf(key, sizeof(key), "key %d", i);
        ASSERT(acquire(&limit, key, 1).allowed);
    }
    ag_table_close(t);
}

static void
a_flood_of_colliding_keys_spreads(void)
{
    /* keys that crowd into two buckets of one table, whose hash key the attacker knows,
     * are ordinary keys of another */
    enum { BUCKETS = 64, WANTED = 100 };
    struct ag_table *known = open_table(NULL, BUCKETS * 8);
    struct ag_table *other = open_table(NULL, BUCKETS * 8);
    struct ag_limit here = make_limit(known, "x", 1, 60 * SECOND, 1);
    struct ag_limit there = make_limit(other, "x", 1, 60 * SECOND, 1);
    struct ag_siphash_key a = ag_table_key(known), b = ag_table_key(other);
    ASSERT(a.k0 != b.k0 && a.k1 != b.k1);
    unsigned crowded = 0, refused = 0, found = 0;
    char key[32];
    for (unsigned i = 0; found < WANTED; i++) {
        int n = snprintf(key, sizeof(key), "flood %u", i);
        uint64_t tag = ag_limit_tag(&here, key, (size_t)n);
        if (tag >> 58 != 7) { /* the first choice among 64 buckets */
            continue;
        }
        found++;
        crowded += acquire(&here, key, 1).allowed;
        refused += !acquire(&there, key, 1).allowed;
    }
    ASSERT_EQ(refused, 0);
    (void)crowded;
    ag_table_close(known);
    ag_table_close(other);
}

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

/* ---- time ---- */

static void
ten_years(void)
{
    struct ag_table *t = open_table(NULL, 16);
    struct ag_limit limit = make_limit(t, "x", 7, 3600 * SECOND, 7); /* no whole ns */
    const uint64_t year = UINT64_C(365) * 86400 * SECOND, from = now;
    uint64_t admitted = 0, step = 3600 * SECOND / 7 - 13;
    uint64_t loops = way == AG_SYNC_MUTEX ? 20000 : 100000;
    while (now - from < 10 * year) {
        for (uint64_t i = 0; i < loops / 50; i++) {
            admitted += acquire(&limit, "k", 1).allowed;
            now += step;
        }
        now += year / 8; /* asleep: the clock goes on */
        ASSERT_EQ_U(level_of(&limit, "k"), 0);
    }
    uint64_t passed = now - from;
    ASSERT_LE_U(admitted, 7 + (uint64_t)((ag_u128)(passed + 1) * 7 / (3600 * SECOND)));
    /* within the awake stretches less than one in a million is lost to rounding */
    ASSERT_LT_U(loops, admitted);
    now = from;
    ag_table_close(t);
}

static void
open_at(const char *path, const struct ag_moment *moment, struct ag_table **t)
{
    struct ag_error err;
    struct ag_table_options options = {
        .path = path, .slots = 64, .sync = way, .now = moment, .clock = told_time};
    ASSERT_EQ(ag_table_open(&options, t, &err), AG_OK);
}

static void
a_reboot_refunds_nothing(void)
{
    char path[512];
    struct ag_table *t = NULL;
    struct ag_charge charge;
    const uint64_t day = 86400 * SECOND, kept = now;
    (void)scratch_path(path, dir, "reboot");
    (void)unlink(path);
    struct ag_moment moment = {{1}, 50 * day, 20000 * day};
    now = moment.boot_ns;
    open_at(path, &moment, &t);
    struct ag_limit limit = make_limit(t, "day", 24, day, 24); /* an hour a unit */
    ASSERT(acquire(&limit, "k", 24).allowed);
    ASSERT(acquire(&limit, "l", 2).allowed);
    ag_table_close(t);
    /* three hours later, five minutes after the boot */
    moment = (struct ag_moment){{2}, 300 * SECOND, 20000 * day + 3 * 3600 * SECOND};
    now = moment.boot_ns;
    open_at(path, &moment, &t);
    limit = make_limit(t, "day", 24, day, 24);
    ASSERT_EQ_U(level_of(&limit, "k"), 21 * 3600 * SECOND);
    ASSERT_EQ_U(level_of(&limit, "l"), 0);
    uint64_t tag = ag_limit_tag(&limit, "k", 1);
    ASSERT_EQ(ag_limit_acquire(&limit, tag, 4, now, &charge), AG_OK);
    ASSERT(!charge.allowed);
    ASSERT_EQ_U(charge.wait, 3600 * SECOND);
    ag_table_close(t);
    /* a real-time clock that went back: no time has passed, nothing is refunded */
    moment = (struct ag_moment){{3}, 10 * SECOND, 19000 * day};
    now = moment.boot_ns;
    open_at(path, &moment, &t);
    limit = make_limit(t, "day", 24, day, 24);
    ASSERT_EQ_U(level_of(&limit, "k"), 21 * 3600 * SECOND);
    ag_table_close(t);
    /* the same boot: nothing moves */
    moment.real_ns += day;
    open_at(path, &moment, &t);
    limit = make_limit(t, "day", 24, day, 24);
    ASSERT_EQ_U(level_of(&limit, "k"), 21 * 3600 * SECOND);
    ag_table_close(t);
    now = kept;
}

/* ---- files ---- */

static int
try_open(const char *path, enum ag_sync sync, struct ag_error *err)
{
    struct ag_table *t = NULL;
    struct ag_table_options options = {.path = path, .slots = 64, .sync = sync};
    int status = ag_table_open(&options, &t, err);
    if (status == AG_OK) {
        ag_table_close(t);
    }
    return status;
}

static void
bad_files(void)
{
    static unsigned char good[1 << 15], bad[1 << 15];
    char path[512], other[512];
    struct ag_error err;
    (void)scratch_path(path, dir, "bad");
    (void)scratch_path(other, dir, "link");
    ASSERT_EQ(try_open(path, way, &err), AG_OK);
    size_t n = scratch_read(path, good, sizeof(good));
    ASSERT_EQ_U(n, AG_AREA_HEADER + 4096 + 64 * 16);
    ASSERT_EQ(try_open(path, way, &err), AG_OK);
    for (size_t cut = 0; cut < n; cut += 97) {
        scratch_write(path, good, cut);
        int status = try_open(path, way, &err);
        ASSERT_EQ(status, cut < AG_AREA_HEADER ? AG_EFOREIGN : AG_ECORRUPT);
        ASSERT_EQ_STR(err.file, path);
        ASSERT(err.advice[0] != '\0');
    }
    for (size_t at = 0; at < 60; at++) { /* the constant part of the header */
        memcpy(bad, good, n);
        bad[at] ^= 0x55;
        scratch_write(path, bad, n);
        ASSERT_EQ(try_open(path, way, &err), at < 8    ? AG_EFOREIGN
                                             : at < 12 ? AG_EVERSION
                                                       : AG_ECORRUPT);
        ASSERT_EQ_STR(err.file, path);
        ASSERT(err.advice[0] != '\0');
    }
    scratch_write(path, good, n);
    ASSERT_EQ(try_open(path, way == AG_SYNC_CAS ? AG_SYNC_MUTEX : AG_SYNC_CAS, &err),
              AG_EFOREIGN);
    ASSERT_EQ(chmod(path, 0644), 0);
    ASSERT_EQ(try_open(path, way, &err), AG_EPERM);
    ASSERT_EQ(chmod(path, 0600), 0);
    ASSERT_EQ(try_open(path, way, &err), AG_OK);
    (void)unlink(other);
    ASSERT_EQ(symlink(path, other), 0);
    ASSERT_EQ(try_open(other, way, &err), AG_EIO);
    ASSERT_EQ(err.sys_errno, ELOOP);
    ASSERT_EQ(unlink(path), 0);
    ASSERT_EQ(mkdir(path, 0700), 0);
    ASSERT_EQ(try_open(path, way, &err), AG_EIO);
    ASSERT_EQ(err.sys_errno, EISDIR);
    ASSERT_EQ(rmdir(path), 0);
    ASSERT_EQ(try_open(dir, way, &err),
              AG_EPERM); /* the folder of all users' folders */
    ASSERT_EQ(unlink(other), 0);
}

static void
bad_directories(void)
{
    char path[512], sub[400];
    struct ag_error err;
    struct stat st;
    (void)snprintf(sub, sizeof(sub), "%s/a", dir);
    (void)snprintf(path, sizeof(path), "%s/a/b/table", dir);
    ASSERT_EQ(try_open(path, way, &err), AG_OK); /* makes both, 0700 */
    ASSERT_EQ(stat(sub, &st), 0);
    ASSERT_EQ(st.st_mode & 0777, 0700);
    ASSERT_EQ(stat(path, &st), 0);
    ASSERT_EQ(st.st_mode & 0777, 0600);
    (void)snprintf(path, sizeof(path), "%s/a/table", dir);
    ASSERT_EQ(chmod(sub, 0750), 0);
    ASSERT_EQ(try_open(path, way, &err), AG_EPERM);
    ASSERT_EQ_STR(err.file, sub);
    ASSERT(strstr(err.found, "750") != NULL);
    ASSERT_EQ(chmod(sub, 0700), 0);
    ASSERT_EQ(try_open(path, way, &err), AG_OK);
    (void)snprintf(path, sizeof(path), "%s/a/table/x", dir);
    ASSERT_EQ(try_open(path, way, &err), AG_EIO);
    ASSERT_EQ(err.sys_errno, ENOTDIR);
    ASSERT_EQ(try_open("", way, &err), AG_EIO);
}

/* Every I/O call fails once: an error, no file left behind, the next open works. */
static void
io_faults(void)
{
    static const int kinds[] = {EIO, ENOSPC};
    char path[512], temporary[540];
    struct ag_error err;
    struct io_fault fault;
    (void)scratch_path(path, dir, "faults");
    (void)snprintf(temporary, sizeof(temporary), "%s.new", path);
    for (size_t kind = 0; kind < 2; kind++) {
        int failures = 0;
        for (long at = 1;; at++) {
            struct ag_table *t = NULL;
            io_fault_init(&fault);
            atomic_store(&fault.fail_at, at);
            atomic_store(&fault.fail_for, 1);
            atomic_store(&fault.fail_errno, kinds[kind]);
            struct ag_table_options options = {
                .path = path, .slots = 64, .sync = way, .io = &fault.table};
            (void)unlink(path);
            int status = ag_table_open(&options, &t, &err);
            if (status == AG_OK) {
                ag_table_close(t);
                if (atomic_load(&fault.calls) < at) {
                    break;
                }
                continue; /* a failed close */
            }
            failures++;
            ASSERT(status == AG_EIO || status == AG_EFULL);
            ASSERT(err.file[0] != '\0');
            if (status == AG_EFULL) {
                ASSERT_EQ(err.sys_errno, ENOSPC);
                ASSERT(strstr(err.advice, "fewer slots") != NULL);
            }
            if (access(path, F_OK) != 0) {
                struct stat st;
                /* at most an unremovable rest, which the next creator removes */
                ASSERT(stat(temporary, &st) != 0 || at > 3);
            }
            ASSERT_EQ(try_open(path, way, &err), AG_OK);
        }
        ASSERT_LE(6, failures);
    }
    (void)unlink(path);
}

struct opener {
    const char *path;
    pthread_barrier_t *barrier;
    struct ag_siphash_key key;
};

static void *
open_thread(void *arg)
{
    struct opener *o = arg;
    struct ag_table *t = NULL;
    struct ag_error err;
    struct ag_table_options options = {.path = o->path, .slots = 64, .sync = way};
    (void)pthread_barrier_wait(o->barrier);
    ASSERT_EQ(ag_table_open(&options, &t, &err), AG_OK);
    o->key = ag_table_key(t);
    ag_table_close(t);
    return NULL;
}

static void
creators_race(void)
{
    enum { THREADS = 4 };
    char path[512];
    pthread_barrier_t barrier;
    ASSERT_EQ(pthread_barrier_init(&barrier, NULL, THREADS), 0);
    (void)scratch_path(path, dir, "creators");
    for (int round = 0; round < 20; round++) {
        struct opener openers[THREADS];
        pthread_t threads[THREADS];
        (void)unlink(path);
        for (unsigned i = 0; i < THREADS; i++) {
            openers[i] = (struct opener){path, &barrier, {0, 0}};
            ASSERT_EQ(pthread_create(&threads[i], NULL, open_thread, &openers[i]), 0);
        }
        for (unsigned i = 0; i < THREADS; i++) {
            ASSERT_EQ(pthread_join(threads[i], NULL), 0);
            ASSERT_EQ_U(openers[i].key.k0, openers[0].key.k0); /* all have one table */
        }
    }
    (void)pthread_barrier_destroy(&barrier);
}

static void
geometry(void)
{
    char path[512];
    struct ag_error err;
    struct ag_table *t = NULL, *u = NULL;
    struct ag_table_stats stats;
    struct ag_table_options options = {.slots = UINT64_MAX, .sync = way};
    ASSERT_EQ(ag_table_open(&options, &t, &err), AG_EINVAL);
    t = open_table(scratch_path(path, dir, "geometry"), 1001);
    u = open_table(path, 64); /* the file keeps its own number */
    ag_table_stats(t, now, &stats);
    ASSERT_EQ_U(stats.slots, 1008);
    ag_table_stats(u, now, &stats);
    ASSERT_EQ_U(stats.slots, 1008);
    ASSERT_EQ(stats.cas, way == AG_SYNC_CAS);
    ag_table_close(t);
    ag_table_close(u);
    t = open_table(NULL, 1);
    ag_table_stats(t, now, &stats);
    ASSERT_EQ_U(stats.slots, 16);
    ag_table_close(t);
    ag_table_close(NULL);
}

static void
run_all(void)
{
    RUN(a_limit_counts);
    RUN(settling);
    RUN(a_late_settle_does_not_erase_others);
    RUN(a_plan_charges_all_or_nothing);
    RUN(a_full_table_refuses_and_counts);
    RUN(a_flood_of_colliding_keys_spreads);
    RUN(churn);
    RUN(insert_race);
    RUN(claims_of_the_dead_are_passed);
    RUN(kills);
    RUN(fork_shares_the_table);
    RUN(ten_years);
    RUN(a_reboot_refunds_nothing);
    RUN(bad_files);
    RUN(bad_directories);
    RUN(io_faults);
    RUN(creators_race);
    RUN(geometry);
}

int
main(void)
{
    RUN(siphash_is_the_one_of_the_paper);
    RUN(increments_round_up_and_saturate);
    for (way = AG_SYNC_CAS; way <= AG_SYNC_MUTEX; way++) {
        if (way == AG_SYNC_CAS && !ag_slot_cas_works()) {
            fprintf(stderr, "  this CPU has no 128-bit compare-and-swap\n");
            continue;
        }
        fprintf(stderr, " %s\n", way == AG_SYNC_CAS ? "swaps" : "mutexes");
        scratch_make(dir);
        run_all();
        scratch_remove(dir);
    }
    return 0;
}
