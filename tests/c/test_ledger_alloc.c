// links: alloc_fault scratch
/* The ledger without memory: whichever allocation of open, submit, receipt and close
 * fails, the call says so or gets by without, nothing leaks, and what was submitted is
 * there with the next open. */
#include <stdbool.h>
#include <stdio.h>

#include "alloc_fault.h"
#include "base/alloc.h"
#include "check.h"
#include "log/ledger.h"
#include "scratch.h"

#define SECOND ((uint64_t)1000000000)
#define EACH 3 /* entries a run */

static char dir[256];

static int
try_open(const char *name, struct ag_ledger **ledger, struct ag_error *err)
{
    char path[512], private_dir[512], folder[300];
    struct ag_ledger_options options;
    (void)snprintf(folder, sizeof(folder), "%s/%s", dir, name);
    ag_ledger_options_init(&options);
    options.path = scratch_path(path, folder, "ledger/w0");
    options.private_dir = scratch_path(private_dir, folder, "private/w0");
    options.ring_bytes = AG_LEDGER_RING_MIN;
    options.segment_bytes = 64u << 10;
    options.publish_gap_us = 1000;
    return ag_ledger_open(&options, ledger, err);
}

/* Entry i is {"n":i,"pad":"    "} with so many blanks that the ring's cursor has to
 * grow its buffer. */
static size_t
make_entry(uint64_t i, char out[6000])
{
    return (size_t)snprintf(out, 6000, "{\"n\":%llu,\"pad\":\"%*s\"}",
                            (unsigned long long)i, i % EACH == 1 ? 5000 : 10, "");
}

static void
read_back(struct ag_ledger *ledger, uint64_t index)
{
    struct ag_error err;
    char *receipt = NULL, expected[6000];
    uint8_t *entry = NULL;
    size_t n = 0;
    int status = ag_ledger_receipt(ledger, index, &receipt, &n, &err);
    if (status == AG_OK) {
        ASSERT_EQ(strncmp(receipt, "c2sp.org/tlog-proof@v1\n", 23), 0);
        ag_free(receipt);
    } else {
        ASSERT_EQ(status, AG_ENOMEM);
        ASSERT(err.what[0] != '\0');
    }
    status = ag_ledger_entry(ledger, index, &entry, &n, &err);
    if (status == AG_OK) {
        ASSERT_EQ_U(n, make_entry(index, expected));
        ASSERT_EQ_MEM(entry, expected, n);
        ag_free(entry);
    } else {
        ASSERT_EQ(status, AG_ENOMEM);
        ASSERT(err.what[0] != '\0');
    }
}

/* Open, submit EACH entries, read back, close; *size is what the log then has. */
static void
use(const char *name, uint64_t *size)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    char entry[6000];
    memset(&err, 0, sizeof(err));
    int status = try_open(name, &ledger, &err);
    if (status != AG_OK) {
        ASSERT_EQ(status, AG_ENOMEM);
        ASSERT(err.what[0] != '\0');
        return;
    }
    ASSERT_EQ_U(ag_ledger_size(ledger), *size);
    uint64_t index = 0;
    for (int i = 0; i < EACH; i++) {
        size_t n = make_entry(*size, entry);
        status = ag_ledger_submit(ledger, (const uint8_t *)entry, n, NULL, NULL, &index,
                                  &err);
        if (status == AG_ENOMEM) { /* for the id, before anything was appended */
            i--;
            continue;
        }
        if (status == AG_EPOISONED) { /* no memory on thread W */
            break;
        }
        ASSERT_EQ(status, AG_OK);
        ASSERT_EQ_U(index, *size);
        ++*size;
    }
    if (*size > 0) {
        index = *size - 1;
        status = ag_ledger_wait(ledger, index, AG_PUBLISHED, 20 * SECOND, &err);
        if (status == AG_OK) {
            read_back(ledger, index);
            read_back(ledger, 0);
        } else {
            ASSERT_EQ(status, AG_EPOISONED);
        }
    }
    status = ag_ledger_close(ledger, &err);
    ASSERT(status == AG_OK || status == AG_EPOISONED);
}

static void
check_all(const char *name, uint64_t size)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    int status = try_open(name, &ledger, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s %s", ag_status_name(status), err.what, err.file);
    }
    ASSERT_EQ_U(ag_ledger_size(ledger), size);
    if (size > 0) {
        ASSERT_EQ(ag_ledger_wait(ledger, size - 1, AG_PUBLISHED, 20 * SECOND, &err),
                  AG_OK);
    }
    for (uint64_t i = 0; i < size; i++) {
        uint8_t *entry = NULL;
        char expected[6000];
        size_t n = 0, expected_n = make_entry(i, expected);
        ASSERT_EQ(ag_ledger_entry(ledger, i, &entry, &n, &err), AG_OK);
        ASSERT_EQ_U(n, expected_n);
        ASSERT_EQ_MEM(entry, expected, n);
        ag_free(entry);
    }
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

/* Every n-th allocation fails, each time in a new log, or all in one that grows. */
static void
every_allocation(bool fresh)
{
    uint64_t size = 0;
    char name[32];
    long at = 1;
    for (bool hit = true; hit; at++) {
        (void)snprintf(name, sizeof(name), "%s%ld", fresh ? "new" : "old",
                       fresh ? at : 0);
        size = fresh ? 0 : size;
        long before = ag_test_alloc_calls();
        ag_test_fail_alloc_at(at);
        use(name, &size);
        ag_test_fail_alloc_at(0);
        hit = ag_test_alloc_calls() - before >= at;
        ASSERT_EQ(ag_test_live_blocks(), 0);
        if (fresh || !hit) {
            check_all(name, size);
            ASSERT_EQ(ag_test_live_blocks(), 0);
        }
    }
    fprintf(stderr, "    %ld allocations, %llu entries\n", at - 2,
            (unsigned long long)size);
    ASSERT_LT(10, at);
}

static void
of_a_new_log(void)
{
    every_allocation(true);
}

static void
of_a_log_that_grows(void)
{
    every_allocation(false);
}

int
main(void)
{
    scratch_make_in_memory(dir);
    RUN(of_a_new_log);
    RUN(of_a_log_that_grows);
    scratch_remove(dir);
    return 0;
}
