// links: io_fault ledger_rig memfs scratch
// only: asan
/* Each I/O call of a ledger fails, once or from then on for good: no crash, no hang,
 * and with a good disk again everything is there. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>

#include "check.h"
#include "io_fault.h"
#include "ledger_rig.h"
#include "memfs.h"
#include "scratch.h"

/* From the first start on. */
static void
faults_at_every_call(void)
{
    for (int forever = 0; forever < 2; forever++) {
        for (long at = 1;; at++) {
            struct io_fault fault;
            struct ag_ledger *ledger = NULL;
            struct ag_error err;
            char name[48];
            uint64_t durable = 0, submitted = 0, index = 0;
            io_fault_init(&fault);
            fault.fail_at = at;
            fault.fail_for = forever ? 1000000 : 1;
            fault.fail_errno = at % 2 != 0 ? EIO : ENOSPC;
            (void)snprintf(name, sizeof(name), "fault%d-%ld", forever, at);
            if (try_open(name, &fault.table, NULL, &ledger, &err) == AG_OK) {
                for (int round = 0; round < 2; round++) {
                    while (submitted < (round + 1) * 20u &&
                           submit(ledger, submitted, &index, &err) == AG_OK) {
                        submitted++;
                    }
                    if (submitted > 0) {
                        (void)ag_ledger_wait(ledger, submitted - 1, AG_DURABLE, SECOND,
                                             &err);
                    }
                }
                durable = ag_ledger_stage_size(ledger, AG_DURABLE);
                (void)ag_ledger_close(ledger, &err);
            }
            ASSERT_EQ(fault.syncs_after_failure, 0);
            ledger = open_ledger(name);
            ASSERT_LE_U(durable, ag_ledger_size(ledger));
            ASSERT_EQ_U(ag_ledger_size(ledger), submitted); /* the ring held the rest */
            check_entries(ledger, ag_ledger_size(ledger));
            fill(ledger, ag_ledger_size(ledger), ag_ledger_size(ledger) + 1);
            close_ledger(ledger);
            if (fault.calls < at) {
                ASSERT_EQ_U(durable, 40);
                break;
            }
        }
    }
}

static struct ag_ledger *
open_in_memory(struct memfs *disk)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    struct ag_ledger_options options = ledger_options(dir, &disk->table);
    ASSERT_EQ(ag_ledger_open(&options, &ledger, &err), AG_OK);
    return ledger;
}

#define HAD 250u /* entries of the log; the next ones fill a tile */

/* A run on a disk that fails: `at` and `forever` as above. Returns what it made durable
 * and adds to *submitted. */
static uint64_t
run_with_fault(struct io_fault *fault, uint64_t *submitted)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    struct ag_ledger_options options = ledger_options(dir, &fault->table);
    uint64_t index = 0, durable = HAD;
    if (ag_ledger_open(&options, &ledger, &err) != AG_OK) {
        return durable;
    }
    while (*submitted < HAD + 9 && submit(ledger, *submitted, &index, &err) == AG_OK) {
        ++*submitted;
    }
    (void)ag_ledger_wait(ledger, *submitted - 1, AG_DURABLE, SECOND, &err);
    durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    (void)ag_ledger_close(ledger, &err);
    return durable;
}

/* The same for a log of two segments, on a disk in memory, whose third run moves the
 * low-water mark when it ends: recovery, replay, the mark, the archive and its
 * emptying.
 */
static void
faults_with_a_log_and_a_mark(void)
{
    static struct memfs log, disk;
    struct ag_ledger_stats stats;
    char path[512];
    long calls = 0;
    make_shadow(dir);
    memfs_init_at(&log, dir);
    for (uint64_t size = 0; size < HAD; size += HAD / 2) {
        struct ag_ledger *ledger = open_in_memory(&log);
        fill(ledger, size, size + HAD / 2);
        close_ledger(ledger);
    }
    for (int forever = 0; forever < 2; forever++) {
        calls = LONG_MAX;
        for (long at = 1; at <= calls; at++) {
            struct io_fault fault;
            uint64_t submitted = HAD;
            io_fault_init(&fault);
            memfs_share(&disk, &log);
            fault.below = &disk.table;
            fault.fail_at = at;
            fault.fail_for = forever ? 1000000 : 1;
            fault.fail_errno = at % 2 != 0 ? EIO : ENOSPC;
            uint64_t durable = run_with_fault(&fault, &submitted);
            ASSERT_EQ(fault.syncs_after_failure, 0);
            struct ag_ledger *ledger = open_in_memory(&disk);
            ag_ledger_stats(ledger, &stats);
            ASSERT_LE_U(durable, ag_ledger_size(ledger));
            ASSERT_EQ_U(ag_ledger_size(ledger), submitted);
            check_each(ledger, submitted, 1 + (uint64_t)at % 20);
            check_proofs(ledger, submitted, at % 8 == 0 ? 64 : submitted);
            close_ledger(ledger);
            if (fault.calls <
                at) { /* nothing failed: the mark moved, the log is free */
                calls = fault.calls;
                ASSERT_EQ_U(stats.wal.low_water, HAD + 9);
                ASSERT_EQ(memfs_find(&disk, scratch_path(path, dir,
                                                         "private/w0/archive/"
                                                         "wal-0000000000000001.seg")),
                          -1);
            }
            memfs_free(&disk);
        }
    }
    memfs_free(&log);
    fprintf(stderr, "    %ld calls\n", calls);
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make_in_memory(dir);
    RUN(faults_at_every_call);
    RUN(faults_with_a_log_and_a_mark);
    scratch_remove(dir);
    return 0;
}
