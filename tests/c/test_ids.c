// links: io_fault scratch
// threads: none
/* The id column: everything that is there is found, nothing else, whatever its files
 * look like. The slow twin is a walk over all ids. */
#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "ids_column.h"
#include "io_fault.h"
#include "log/intents.h"
#include "scratch.h"

static void
mend_all(struct ag_ids *ids)
{
    struct ag_error err;
    while (ag_ids_mendable(ids)) {
        ASSERT_EQ(ag_ids_mend(ids, &source, &err), AG_OK);
    }
}

/* What is found among the first `size` entries for the id of entry i is what the slow
 * walk finds. Returns the damaged run, or UINT64_MAX. */
static uint64_t
check_id(const struct ag_ids *ids, uint64_t size, uint64_t i)
{
    uint8_t id[AG_UUID_SIZE];
    struct ag_found found = {0};
    struct ag_error err;
    uint64_t damaged = UINT64_MAX;
    size_t at = 0;
    id_of(i, id);
    ASSERT_EQ(ag_ids_find(&ids->place, size, id, &source, &found, &damaged, &err),
              AG_OK);
    for (uint64_t k = 0; !ag_ids_is_none(id) && k < size; k++) {
        if (column[k][0] == column[i][0] && column[k][1] == column[i][1]) {
            ASSERT_LT_U(at, found.count);
            ASSERT_EQ_U(found.index[at++], k);
        }
    }
    ASSERT_EQ_U(found.count, at);
    ag_free(found.index);
    return damaged;
}

static void
finds_everything(void)
{
    static const uint64_t some[] = {0,
                                    1,
                                    7,
                                    254,
                                    255,
                                    256,
                                    1000,
                                    4000,
                                    5000,
                                    5010,
                                    AG_IDS_RUN - 1,
                                    AG_IDS_RUN,
                                    AG_IDS_RUN + 1,
                                    200000,
                                    SIZE - 1,
                                    SIZE + 5};
    struct ag_ids ids;
    open_column(&ids, ag_io_posix(), "whole", VKEY, 0);
    for (uint64_t size = 0; size < 600; size += 1 + size / 7) {
        grow(&ids, size, 3);
        ASSERT_EQ_U(check_id(&ids, size, size), UINT64_MAX);
        ASSERT_EQ_U(check_id(&ids, size, size / 2), UINT64_MAX);
    }
    grow(&ids, SIZE, 1024);
    bundles_read = 0;
    for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++) {
        check_id(&ids, SIZE, some[i]); /* out of the tails alone */
    }
    ASSERT_EQ_U(ids.sorted, 0);
    mend_all(&ids);
    ASSERT_EQ_U(ids.sorted, RUNS);
    ag_ids_drop_tails(&ids, SIZE);
    for (size_t i = 0; i < sizeof(some) / sizeof(some[0]); i++) {
        ASSERT_EQ_U(check_id(&ids, SIZE, some[i]), UINT64_MAX);
    }
    check_id(&ids, AG_IDS_RUN / 2, 1000); /* no more than was asked for */
    ASSERT_LT(bundles_read, 2000);        /* of the entries found, and of no other */
    ag_ids_close(&ids);
    for (uint64_t size = SIZE; size > SIZE - 300; size -= 77) { /* a mark before */
        open_column(&ids, ag_io_posix(), "whole", VKEY, size);
        ASSERT_EQ_U(ids.size, size);
        grow(&ids, SIZE, 1024);
        ASSERT_EQ_U(check_id(&ids, SIZE, SIZE - 1), UINT64_MAX);
        ag_ids_close(&ids);
    }
}

/* Few pages are read, however long the log. */
static void
reads_little(void)
{
    struct io_fault fault; /* only counts */
    struct ag_ids ids;
    struct ag_found found = {0};
    struct ag_error err;
    uint8_t id[AG_UUID_SIZE];
    io_fault_init(&fault);
    open_column(&ids, &fault.table, "whole", VKEY, SIZE);
    ASSERT_LT(fault.calls, 40); /* opening neither */
    long worst = 0;
    for (uint64_t i = 3; i < AG_IDS_RUN; i += 9001) {
        long before = fault.calls;
        id_of(i, id);
        ASSERT_EQ(
            ag_ids_find(&ids.place, RUNS * AG_IDS_RUN, id, &source, &found, NULL, &err),
            AG_OK);
        worst = fault.calls - before > worst ? fault.calls - before : worst;
    }
    ag_free(found.index);
    ASSERT_LE(worst, 8);
    ag_ids_close(&ids);
}

/* Any damage, or none of the files: found all the same, and the run is named. */
static void
damage_is_passed_over(void)
{
    static unsigned char bytes[(AG_IDS_PAGES + 1) * AG_IDS_PAGE];
    struct ag_ids ids;
    char run[512], tail[512];
    open_column(&ids, ag_io_posix(), "whole", VKEY, SIZE);
    ids.sorted = RUNS;
    scratch_path(run, dir, "whole/ids/00000000.run");
    scratch_path(tail, dir, "whole/ids/00000001.tail");
    size_t n = scratch_read(run, bytes, sizeof(bytes));
    const uint64_t looked_for = 12345;
    uint8_t id[AG_UUID_SIZE], hash[AG_HASH_SIZE];
    id_of(looked_for, id);
    ag_sha256(id, AG_UUID_SIZE, hash);
    size_t near = (size_t)((uint64_t)ag_get_u32be(hash) * (n / AG_IDS_PAGE - 1) >> 32);
    for (size_t k = 0; k < 4; k++) { /* the head, and the page where it is */
        size_t at = k * 5 + (k < 2 ? 0 : (near + 1) * AG_IDS_PAGE + k * 300);
        bytes[at] ^= 0x40;
        scratch_write(run, bytes, n);
        bytes[at] ^= 0x40;
        ASSERT_EQ_U(check_id(&ids, SIZE, looked_for), 0);
    }
    const size_t lengths[] = {0, AG_IDS_PAGE};
    for (size_t k = 0; k < 2; k++) {
        scratch_write(run, bytes, lengths[k]);
        ASSERT_EQ_U(check_id(&ids, SIZE, looked_for), 0);
    }
    ag_ids_condemn(&ids, 0);
    mend_all(&ids);
    ASSERT_EQ_U(check_id(&ids, SIZE, looked_for), UINT64_MAX);
    static unsigned char again[sizeof(bytes)];
    ASSERT_EQ_U(scratch_read(run, again, sizeof(again)), n);
    ASSERT_EQ_MEM(again, bytes, n);

    n = scratch_read(tail, bytes, sizeof(bytes));
    for (size_t at = 0; at < n; at += 1000) {
        bytes[at] ^= 1;
        scratch_write(tail, bytes, n);
        bytes[at] ^= 1;
        check_id(&ids, SIZE, SIZE - 3);
    }
    ag_ids_close(&ids);
    for (size_t k = 0; k < 4; k++) { /* opening makes a short tail anew */
        scratch_write(tail, bytes, k * AG_IDS_PAGE);
        open_column(&ids, ag_io_posix(), "whole", VKEY, SIZE);
        check_id(&ids, SIZE, SIZE - 3);
        ag_ids_close(&ids);
        ASSERT_EQ_U(scratch_read(tail, again, sizeof(again)), n);
        ASSERT_EQ_MEM(again, bytes, n);
    }
    ASSERT_EQ(remove(tail), 0);
    ASSERT_EQ(remove(run), 0);
    open_column(&ids, ag_io_posix(), "whole", VKEY, SIZE);
    check_id(&ids, SIZE, looked_for);
    mend_all(&ids);
    ASSERT_EQ(access(run, F_OK), 0);
    ag_ids_close(&ids);

    /* The column of another log answers for nothing. */
    open_column(&ids, ag_io_posix(), "whole", "example.org/other+01020304+AAAA", SIZE);
    ASSERT_EQ_U(check_id(&ids, SIZE, looked_for), 0);
    ag_ids_close(&ids);
}

/* A column that is in itself in order, but of other entries, invents none. */
static void
entries_are_looked_at(void)
{
    uint64_t shift = 1;
    const struct ag_ids_source shifted = {make_bundle, believe, &shift};
    struct ag_ids ids;
    struct ag_found found = {0};
    struct ag_error err;
    uint8_t id[AG_UUID_SIZE];
    open_column(&ids, ag_io_posix(), "shifted", VKEY, 0);
    grow(&ids, 900, 100);
    id_of(33, id);
    ASSERT_EQ(ag_ids_find(&ids.place, 900, id, &shifted, &found, NULL, &err), AG_OK);
    ASSERT_EQ_U(found.count, 0);
    ASSERT_EQ(ag_ids_find(&ids.place, 900, id, &source, &found, NULL, &err), AG_OK);
    ASSERT_EQ_U(found.count, 1);
    ag_free(found.index);
    ag_ids_close(&ids);
}

/* A log that is shorter than its column: what is beyond is dropped. */
static void
stale_files_are_dropped(void)
{
    struct ag_ids ids;
    char path[512];
    open_column(&ids, ag_io_posix(), "whole", VKEY, 500);
    ag_ids_close(&ids);
    ASSERT_EQ(access(scratch_path(path, dir, "whole/ids/00000000.run"), F_OK), -1);
    ASSERT_EQ(access(scratch_path(path, dir, "whole/ids/00000001.tail"), F_OK), -1);
    open_column(&ids, ag_io_posix(), "whole", VKEY, 500);
    check_id(&ids, 500, 3);
    ag_ids_close(&ids);
}

/* Every call fails once: what was flushed is found. */
static void
faults(void)
{
    for (long at = 1;; at++) {
        struct io_fault fault;
        struct ag_ids ids;
        struct ag_error err;
        char path[512], name[32];
        (void)snprintf(name, sizeof(name), "fault%ld", at);
        io_fault_init(&fault);
        fault.fail_at = at;
        fault.fail_for = 1;
        fault.fail_errno = at % 2 ? ENOSPC : EIO;
        memset(&ids, 0, sizeof(ids));
        ids.tail_fd = -1;
        ASSERT_EQ(mkdir(scratch_path(path, dir, name), 0700), 0);
        ASSERT_EQ(
            ag_ids_place_init(&ids.place, &fault.table, path, VKEY, strlen(VKEY), &err),
            AG_OK);
        if (ag_ids_open(&ids, 0, &source, &err) == AG_OK) {
            for (uint64_t i = 0; i < 700;) {
                uint8_t id[AG_UUID_SIZE];
                id_of(i, id);
                i += ag_ids_add(&ids, i, id, &err) == AG_OK;
                if (i % 100 == 0 && ag_ids_flush(&ids, &err) == AG_OK) {
                    check_id(&ids, i, i / 2);
                }
            }
        }
        ag_ids_close(&ids);
        open_column(&ids, ag_io_posix(), name, VKEY, 650);
        check_id(&ids, 650, 649);
        ag_ids_close(&ids);
        if (fault.calls < at) {
            break;
        }
    }
}

/* ---- intents ---- */

static void
intents(void)
{
    struct ag_intents set = {0}, copy = {0};
    for (uint64_t i = 0; i < 1000; i++) {
        struct ag_entry_head head = {.kind = AG_KIND_OTHER, .of = UINT64_MAX};
        head.kind = i % 3 == 0   ? AG_KIND_INTENT
                    : i % 3 == 1 ? AG_KIND_SETTLE
                                 : AG_KIND_OTHER;
        head.of = i % 3 == 1 && i > 30 ? i - 31 : UINT64_MAX; /* some are no intents */
        ASSERT_EQ(ag_intents_reserve(&set), AG_OK);
        ag_intents_take(&set, i, &head);
    }
    size_t at = 0;
    for (uint64_t i = 0; i < 1000; i += 3) {
        if (!((i + 31) % 3 == 1 && i + 31 < 1000)) {
            ASSERT_LT_U(at, set.count);
            ASSERT_EQ_U(set.index[at++], i);
        }
    }
    ASSERT_EQ_U(at, set.count);
    ASSERT_LT_U(0, at);
    ASSERT_EQ(ag_intents_copy(&set, &copy), AG_OK);
    ASSERT_EQ_U(copy.count, set.count);
    ag_intents_free(&set);
    ag_intents_free(&copy);
}

int
main(void)
{
    scratch_make(dir);
    make_ids();
    RUN(finds_everything);
    RUN(reads_little);
    RUN(damage_is_passed_over);
    RUN(entries_are_looked_at);
    RUN(stale_files_are_dropped);
    RUN(faults);
    RUN(intents);
    scratch_remove(dir);
    return 0;
}
