// links: io_fault ledger_rig scratch
/* A disk that fails, stalls or lies. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "base/alloc.h"
#include "check.h"
#include "io_fault.h"
#include "ledger_rig.h"
#include "log/ledger_state.h"
#include "scratch.h"

/* The tile that reaches the disk is not what memory holds: nothing is signed. */
static void
nothing_is_signed_over_damage(void)
{
    struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_ledger_stats stats;
    struct ag_error err;
    char note[AG_CHECKPOINT_MAX], path[512];
    size_t n = 0;
    io_fault_init(&fault);
    ASSERT_EQ(try_open("damage", &fault.table, NULL, &ledger, &err), AG_OK);
    fault.flip_size = 77 * AG_HASH_SIZE; /* tile/0/000.p/77 */
    fill(ledger, 0, 77);
    ASSERT_EQ(ag_ledger_wait(ledger, 76, AG_INTEGRATED, 20 * SECOND, &err), AG_OK);
    ASSERT_EQ(ag_ledger_wait(ledger, 76, AG_PUBLISHED, SECOND / 4, &err), AG_ETIMEDOUT);
    ag_ledger_stats(ledger, &stats);
    ASSERT_LT_U(0, stats.publish_failures);
    ASSERT_EQ(stats.last_failure.status, AG_ECORRUPT);
    ASSERT_EQ_U(stats.checkpoints, 0);
    ag_ledger_checkpoint(ledger, note, &n);
    ASSERT_EQ_U(n, 0);
    ASSERT_EQ(access(file_of(path, "damage", "ledger/w0/checkpoint"), F_OK), -1);
    fault.flip_size = 0; /* tried again every second */
    wait_published(ledger, 77);

    /* The last signed root is not a beginning of this tree. */
    pthread_mutex_lock(&ledger->tree_lock);
    ledger->checkpoint_root[5] ^= 1;
    pthread_mutex_unlock(&ledger->tree_lock);
    fill(ledger, 77, 80);
    ASSERT_EQ(ag_ledger_wait(ledger, 79, AG_PUBLISHED, SECOND / 4, &err), AG_ETIMEDOUT);
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ(stats.last_failure.status, AG_EVERIFY);
    ASSERT_EQ_U(stats.checkpoints, 1);
    pthread_mutex_lock(&ledger->tree_lock);
    ledger->checkpoint_root[5] ^= 1;
    pthread_mutex_unlock(&ledger->tree_lock);
    wait_published(ledger, 80);
    check_proofs(ledger, 80, 7);
    close_ledger(ledger);
}

/* The disk hangs in what thread P does, not in the log: closing ends all the same, and
 * what was submitted is there at the next open. */
static void
closed_while_the_thread_hangs(void)
{
    static struct io_fault fault; /* outlives the ledger */
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    char path[512], private_dir[512], folder[300];
    struct ag_ledger_options options;
    (void)snprintf(folder, sizeof(folder), "%s/hangs", dir);
    ag_ledger_options_init(&options);
    io_fault_init(&fault);
    options.io = &fault.table;
    options.path = scratch_path(path, folder, "ledger/w0");
    options.private_dir = scratch_path(private_dir, folder, "private/w0");
    options.ring_bytes = AG_LEDGER_RING_MIN;
    options.segment_bytes = SEGMENT;
    options.publish_gap_us = 1000;
    options.close_max_us = 50000;
    ASSERT_EQ(ag_ledger_open(&options, &ledger, &err), AG_OK);
    fill(ledger, 0, 10);
    fault.stall_dirs = 1;
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_ETIMEDOUT);
    ASSERT(err.what[0] != '\0' && err.advice[0] != '\0');
    ASSERT_EQ(try_open("hangs", NULL, NULL, &ledger, &err), AG_ELOCKED);
    fault.stall_dirs = 0; /* the thread comes back, and frees the directory */
    int status = AG_ELOCKED;
    while (status == AG_ELOCKED) {
        usleep(1000);
        status = try_open("hangs", NULL, NULL, &ledger, &err);
    }
    ASSERT_EQ(status, AG_OK);
    ASSERT_EQ_U(ag_ledger_size(ledger), 10);
    check_entries(ledger, 10);
    close_ledger(ledger);
}

/* A stalled disk: submit goes on until the ring is full, then says so at once. */
static void
stalled_disk(void)
{
    struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    uint64_t n = 0, index = 0;
    int status = AG_OK;
    io_fault_init(&fault);
    ASSERT_EQ(try_open("stalled", &fault.table, NULL, &ledger, &err), AG_OK);
    size_t room = ag_ledger_room(ledger);
    fault.stall = 1;
    while ((status = submit(ledger, n, &index, &err)) == AG_OK) {
        n++;
    }
    ASSERT_EQ(status, AG_EFULL);
    ASSERT_LT_U(ag_ledger_room(ledger), room);
    ASSERT_LE_U(room / ENTRY_ROOM, n); /* as many as room() promised, and more */
    ASSERT_EQ(ag_ledger_wait(ledger, n - 1, AG_DURABLE, 1000000, &err), AG_ETIMEDOUT);
    fault.stall = 0;
    ASSERT_EQ(ag_ledger_wait(ledger, n - 1, AG_INTEGRATED, 20 * SECOND, &err), AG_OK);
    ASSERT_EQ(submit(ledger, n, &index, &err), AG_OK);
    ASSERT_EQ_U(index, n);
    close_ledger(ledger);
    ledger = open_ledger("stalled");
    ASSERT_EQ_U(ag_ledger_size(ledger), n + 1);
    check_entries(ledger, n + 1);
    close_ledger(ledger);
}

struct watched {
    struct ag_ledger *ledger;
    atomic_int stop;
};

/* A failed sync: nobody is told that the entry is durable, submits are refused, and
 * once the disk is good again the log comes back by itself with every entry in its
 * place. */
static void *
look_at_stats(void *arg)
{
    struct watched *w = arg;
    while (!atomic_load(&w->stop)) {
        struct ag_ledger_stats stats;
        ag_ledger_stats(w->ledger, &stats);
        usleep(100);
    }
    return NULL;
}

static void
poisoned(void)
{
    struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    uint64_t index = 0;
    io_fault_init(&fault);
    ASSERT_EQ(try_open("poisoned", &fault.table, NULL, &ledger, &err), AG_OK);
    ASSERT_EQ(ag_ledger_failure(ledger, &err), AG_OK);
    struct watched watched = {.ledger = ledger}; /* one more reader, all the while */
    pthread_t watcher;
    ASSERT_EQ(pthread_create(&watcher, NULL, look_at_stats, &watched), 0);
    fault.fail_syncs = 1;
    ASSERT_EQ(submit(ledger, 0, &index, &err), AG_OK);
    ASSERT_EQ(ag_ledger_wait(ledger, 0, AG_DURABLE, 20 * SECOND, &err), AG_EPOISONED);
    ASSERT(err.what[0] != '\0' && err.file[0] != '\0' && err.advice[0] != '\0');
    ASSERT_EQ_U(ag_ledger_stage_size(ledger, AG_DURABLE), 0);
    ASSERT_EQ(submit(ledger, 1, &index, &err), AG_EPOISONED);
    ASSERT_EQ(ag_ledger_failure(ledger, &err), AG_EPOISONED);
    fault.fail_syncs = 0;
    while (ag_ledger_failure(ledger, &err) != AG_OK) {
        usleep(1000);
    }
    ASSERT_EQ(submit(ledger, 1, &index, &err), AG_OK);
    ASSERT_EQ_U(index, 1);
    wait_published(ledger, 2);
    check_entries(ledger, 2);
    atomic_store(&watched.stop, 1);
    ASSERT_EQ(pthread_join(watcher, NULL), 0);
    struct ag_ledger_stats stats;
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.reopens, 1);
    close_ledger(ledger);
    ASSERT_EQ(fault.syncs_after_failure, 0);
}

static void
closed_while_poisoned(void)
{
    struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    uint64_t index = 0;
    io_fault_init(&fault);
    ASSERT_EQ(try_open("closed", &fault.table, NULL, &ledger, &err), AG_OK);
    fault.fail_syncs = 1;
    ASSERT_EQ(submit(ledger, 0, &index, &err), AG_OK);
    ASSERT_EQ(ag_ledger_wait(ledger, 0, AG_DURABLE, 20 * SECOND, &err), AG_EPOISONED);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_EPOISONED);
    ASSERT_EQ(fault.syncs_after_failure, 0);
    ledger = open_ledger("closed"); /* the ring held it */
    ASSERT_EQ_U(ag_ledger_size(ledger), 1);
    check_entries(ledger, 1);
    close_ledger(ledger);
}

/* A failed write-back is told once; that the next sync succeeds says nothing of the
 * files that were lost, so the mark stays, and with it the log. */
static void
failed_sync_of_tiles(void)
{
    struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_ledger_stats stats;
    struct ag_error err;
    const uint64_t enough = 65536; /* for a mark while it runs */
    io_fault_init(&fault);
    ASSERT_EQ(try_open("writeback", &fault.table, NULL, &ledger, &err), AG_OK);
    fault.fail_sync_fs = 1;
    for (uint64_t i = 0; i <= enough;) {
        uint64_t index = 0;
        if (i == enough) {
            ASSERT_EQ(ag_ledger_wait(ledger, i - 1, AG_PUBLISHED, 60 * SECOND, &err),
                      AG_OK);
        }
        int status = ag_ledger_submit(ledger, (const uint8_t *)"{}", 2, NULL, NULL,
                                      &index, &err);
        if (status == AG_EFULL) {
            usleep(500);
            continue;
        }
        ASSERT_EQ(status, AG_OK);
        i++;
    }
    ASSERT_EQ(ag_ledger_wait(ledger, enough, AG_PUBLISHED, 60 * SECOND, &err), AG_OK);
    close_ledger(ledger);
    ASSERT_EQ(fault.fail_sync_fs, 0);
    ledger = open_ledger("writeback");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.wal.low_water, 0);
    ASSERT_EQ_U(stats.replayed, enough + 1);
    close_ledger(ledger); /* with a disk that works again */
    ledger = open_ledger("writeback");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.wal.low_water, enough + 1);
    close_ledger(ledger);
}

static void *
move_mark(void *arg)
{
    struct ag_ledger *ledger = arg;
    struct ag_error err;
    ASSERT_EQ(ag_wal_set_low_water(ledger->wal, 0, NULL, 0, &err), AG_OK);
    return NULL;
}

/* A monitor must not hang with the disk, even while the mark moves. */
static void
stats_do_not_wait(void)
{
    struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_ledger_stats stats;
    struct ag_error err;
    pthread_t thread;
    io_fault_init(&fault);
    ASSERT_EQ(try_open("stats", &fault.table, NULL, &ledger, &err), AG_OK);
    long before = fault.syncs;
    fault.stall = 1;
    ASSERT_EQ(pthread_create(&thread, NULL, move_mark, ledger), 0);
    while (fault.syncs == before) {
        usleep(1000);
    }
    (void)alarm(20); /* ends the program when the next line waits for the disk */
    ag_ledger_stats(ledger, &stats);
    (void)alarm(0);
    ASSERT_EQ_U(stats.wal.segment_bytes, SEGMENT);
    fault.stall = 0;
    ASSERT_EQ(pthread_join(thread, NULL), 0);
    close_ledger(ledger);
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make_in_memory(dir);
    RUN(nothing_is_signed_over_damage);
    RUN(closed_while_the_thread_hangs);
    RUN(stalled_disk);
    RUN(poisoned);
    RUN(closed_while_poisoned);
    RUN(failed_sync_of_tiles);
    RUN(stats_do_not_wait);
    scratch_remove(dir);
    return 0;
}
