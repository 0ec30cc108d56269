// links: io_fault limit_rig scratch
/* The files of limiters' tables: damaged, foreign, out of reach, of another boot, made
 * by several at once, on a disk that fails. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "io_fault.h"
#include "limit_rig.h"
#include "scratch.h"

/* ---- another boot ---- */

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
    run_both_ways(run_all);
    return 0;
}
