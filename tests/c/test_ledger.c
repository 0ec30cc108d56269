// links: io_fault ledger_rig scratch
/* The ledger: stages, proofs, restarts, the mark, ids and intents, threads. */
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "check.h"
#include "io_fault.h"
#include "ledger_rig.h"
#include "log/ledger_state.h"
#include "scratch.h"

#define MOST 1000 /* entries in any test here */

static void
stages_and_proofs(void)
{
    struct ag_ledger *ledger = open_ledger("stages");
    struct ag_error err;
    char note[AG_CHECKPOINT_MAX], *receipt = NULL;
    size_t n = 0;
    uint8_t *entry = NULL;
    ag_ledger_checkpoint(ledger, note, &n);
    ASSERT_EQ_U(n, 0);
    ASSERT_EQ_U(ag_ledger_size(ledger), 0);
    ASSERT_EQ(ag_ledger_entry(ledger, 0, &entry, &n, &err), AG_ERANGE);
    ASSERT_EQ(ag_ledger_wait(ledger, 0, AG_DURABLE, 0, &err), AG_ERANGE);
    fill(ledger, 0, 700);
    wait_published(ledger, 700);
    ASSERT_EQ_U(ag_ledger_stage_size(ledger, AG_PUBLISHED), 700);
    check_entries(ledger, 700);
    for (uint64_t size = 1; size <= 700; size += 1 + size / 3) {
        check_proofs(ledger, size, 1 + size / 40);
    }
    check_proofs(ledger, 256, 5);
    check_proofs(ledger, 512, 11);
    ASSERT_EQ(ag_ledger_receipt(ledger, 300, &receipt, &n, &err), AG_OK);
    ASSERT_EQ(strncmp(receipt, "c2sp.org/tlog-proof@v1\nindex 300\n", 33), 0);
    ag_ledger_checkpoint(ledger, note, &n);
    ASSERT_EQ_STR(strstr(receipt, "\n\n") + 2, note);
    ag_free(receipt);
    ASSERT_EQ(ag_ledger_receipt(ledger, 700, &receipt, &n, &err), AG_ERANGE);
    close_ledger(ledger);
}

static void
restarts(void)
{
    uint64_t size = 0;
    char vkey[AG_VKEY_MAX] = "";
    for (uint64_t next = 1; next < MOST; next = next * 2 + 1) {
        struct ag_ledger *ledger = open_ledger("restarts");
        struct ag_ledger_stats stats;
        ag_ledger_stats(ledger, &stats);
        ASSERT_EQ_U(stats.replayed + stats.wal.low_water, size);
        ASSERT_EQ_U(stats.published, size);
        ASSERT_EQ_U(stats.rewritten, 0);
        ASSERT_EQ_U(ag_ledger_size(ledger), size);
        ASSERT(vkey[0] == '\0' || strcmp(vkey, ag_ledger_vkey(ledger)) == 0);
        (void)snprintf(vkey, sizeof(vkey), "%s", ag_ledger_vkey(ledger));
        check_entries(ledger, size);
        fill(ledger, size, next);
        size = next;
        close_ledger(ledger); /* flushes and publishes */
    }
    struct ag_ledger *ledger = open_ledger("restarts");
    check_proofs(ledger, size, 17);
    close_ledger(ledger);
}

/* With room for all of a test in one segment: a close that leaves three of them moves
 * the low-water mark, and what lies below it is not written again. */
static struct ag_ledger *
open_roomy(const char *name)
{
    char folder[512];
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    struct ag_ledger_options options =
        ledger_options(scratch_path(folder, dir, name), NULL);
    options.segment_bytes = 4u << 20;
    ASSERT_EQ(ag_ledger_open(&options, &ledger, &err), AG_OK);
    return ledger;
}

/* Published files are derived: lost or damaged ones come back from the log. */
static void
tiles_are_rebuilt(void)
{
    char path[512];
    unsigned char before[9000], after[9000];
    struct ag_ledger_stats stats;
    struct ag_ledger *ledger = open_roomy("tiles");
    fill(ledger, 0, 600);
    close_ledger(ledger);
    file_of(path, "tiles", "ledger/w0/tile/0/001");
    ASSERT_EQ_U(scratch_read(path, before, sizeof(before)), 8192);
    scratch_write(path, "junk", 4);
    ASSERT_EQ(remove(file_of(path, "tiles", "ledger/w0/tile/entries/000")), 0);
    ASSERT_EQ(remove(file_of(path, "tiles", "ledger/w0/checkpoint")), 0);
    ledger = open_roomy("tiles");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.rewritten, 1); /* the missing ones were only missing */
    check_entries(ledger, 600);
    close_ledger(ledger);
    ASSERT_EQ_U(scratch_read(file_of(path, "tiles", "ledger/w0/tile/0/001"), after,
                             sizeof(after)),
                8192);
    ASSERT_EQ_MEM(before, after, 8192);
    ASSERT_LT_U(100, scratch_read(file_of(path, "tiles", "ledger/w0/checkpoint"), after,
                                  sizeof(after)));
}

/* The published copy is not synced: power loss may leave it empty or full of zeros.
 * That is no reason to stay closed, the private copy says the same. */
static void
torn_checkpoint(void)
{
    static const unsigned char zeros[AG_CHECKPOINT_MAX];
    char path[512];
    unsigned char before[AG_CHECKPOINT_MAX], after[AG_CHECKPOINT_MAX];
    make_small("torn", 0);
    file_of(path, "torn", "ledger/w0/checkpoint");
    size_t n = scratch_read(path, before, sizeof(before));
    const size_t lengths[] = {0, n, 512};
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        scratch_write(path, zeros, lengths[i]);
        struct ag_ledger *ledger = open_ledger("torn");
        ASSERT_EQ_U(ag_ledger_stage_size(ledger, AG_PUBLISHED), 20);
        close_ledger(ledger);
        ASSERT_EQ_U(scratch_read(path, after, sizeof(after)), n);
        ASSERT_EQ_MEM(before, after, n);
    }
    /* Without the private copy there is nothing that it could be made from. */
    drop("torn/private/w0/checkpoint");
    scratch_write(path, "", 0);
    refuses("torn", AG_ECORRUPT, "ledger/w0/checkpoint");
}

/* A partial tile of an earlier checkpoint that was not collected (the process died) is
 * not rewritten at the start; power loss may have damaged it, so proofs do not read it
 * once the tile is full. */
static void
torn_partial_tile(void)
{
    char path[512];
    static const unsigned char zeros[8192];
    struct ag_ledger *ledger = open_ledger("partial");
    fill(ledger, 0, 300);
    wait_published(ledger, 300);
    fill(ledger, 300, 600);
    close_ledger(ledger);
    (void)mkdir(file_of(path, "partial", "ledger/w0/tile/0/001.p"), 0750);
    scratch_write(file_of(path, "partial", "ledger/w0/tile/0/001.p/44"), zeros,
                  44 * AG_HASH_SIZE);
    ledger = open_ledger("partial");
    check_proofs(ledger, 300, 7);
    close_ledger(ledger);
}

/* Beyond enough entries the low-water mark moves: the next start loads the tree from
 * the tiles, replays nothing, and old segments are gone. */
static void
marked_start(void)
{
    struct ag_error err;
    char path[512];
    struct ag_ledger_stats stats;
    struct ag_ledger *ledger = open_ledger("marked");
    const uint64_t size = 5000;
    fill(ledger, 0, size);
    close_ledger(ledger);
    copy_over("marked", "marked-intact");
    ledger = open_ledger("marked");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.wal.low_water, size);
    ASSERT_EQ_U(stats.replayed, 0);
    ASSERT_LE_U(stats.wal.live_segments, 2);
    check_entries(ledger, size);
    check_proofs(ledger, size, 97);
    fill(ledger, size, size + 300);
    wait_published(ledger, size + 300);
    check_proofs(ledger, size + 300, 301);
    close_ledger(ledger);

    /* What the mark stands on is not taken on trust. */
    static const char *const files[] = {"ledger/w0/tile/0/019.p/136",
                                        "ledger/w0/tile/1/000.p/19",
                                        "ledger/w0/tile/entries/019.p/136"};
    for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "marked%zu", i);
        copy_over("marked-intact", name);
        flip(file_of(path, name, files[i]), 100);
        ASSERT_EQ(try_open(name, NULL, NULL, &ledger, &err), AG_ECORRUPT);
        ASSERT(strstr(err.advice, "fsck") != NULL);
    }
    drop("marked-intact/private/w0/checkpoint");
    refuses("marked-intact", AG_EROLLBACK, "private/w0/checkpoint");
}

/* Entry i of a log of streams: every tenth is an intent, whose settle comes five
 * entries later, but for every seventh of them; its id is that of its intent. */
static int
submit_stream(struct ag_ledger *ledger, uint64_t i, uint64_t settles)
{
    char entry[200];
    struct ag_error err;
    uint64_t index = 0;
    const char *kind = i % 10 == 0 ? "intent" : "call";
    char of[32] = "";
    if (settles != UINT64_MAX) {
        kind = "settle";
        (void)snprintf(of, sizeof(of), ",\"of\":%" PRIu64, settles);
    }
    int n = snprintf(
        entry, sizeof(entry),
        "{\"v\":1,\"kind\":\"%s\",\"id\":\"00000000-0000-7000-8000-%012" PRIx64 "\"%s}",
        kind, settles != UINT64_MAX ? settles : i, of);
    int status = AG_EFULL;
    while (status == AG_EFULL) {
        status = ag_ledger_submit(ledger, (const uint8_t *)entry, (size_t)n, NULL, NULL,
                                  &index, &err);
    }
    ASSERT_EQ(status, AG_OK);
    ASSERT_EQ_U(index, i);
    return status;
}

static void
check_found(struct ag_ledger *ledger, uint64_t n, const uint64_t *expected,
            size_t expected_count)
{
    uint8_t id[AG_UUID_SIZE] = {0, 0, 0, 0, 0, 0, 0x70, 0, 0x80};
    struct ag_found found = {0};
    struct ag_error err;
    ag_put_u32be(id + 12, (uint32_t)n);
    ASSERT_EQ(ag_ledger_find(ledger, id, &found, &err), AG_OK);
    ASSERT_EQ_U(found.count, expected_count);
    for (size_t i = 0; i < found.count; i++) {
        ASSERT_EQ_U(found.index[i], expected[i]);
    }
    ag_free(found.index);
}

static void
check_open_intents(struct ag_ledger *ledger, uint64_t size, bool seventy)
{
    uint64_t *index = NULL;
    size_t count = 0, at = 0;
    struct ag_error err;
    ASSERT_EQ(ag_ledger_open_intents(ledger, &index, &count, &err), AG_OK);
    for (uint64_t i = 0; i < size; i += 10) {
        if ((i % 70 == 0 || i + 5 >= size) && (i != 70 || seventy)) {
            ASSERT_LT_U(at, count);
            ASSERT_EQ_U(index[at++], i);
        }
    }
    ASSERT_EQ_U(at, count);
    ag_free(index);
}

/* Ids and open intents over restarts: with nothing to replay, and with a tail. */
static void
ids_and_intents(void)
{
    const uint64_t marked = 6000;
    struct ag_ledger_stats stats;
    struct ag_ledger *ledger = open_ledger("streams");
    check_open_intents(ledger, 0, true);
    for (uint64_t i = 0; i < marked; i++) {
        bool settles = i % 10 == 5 && (i - 5) % 70 != 0;
        submit_stream(ledger, i, settles ? i - 5 : UINT64_MAX);
        if (i % 1999 == 0) { /* submitted, on its way, and in the column */
            check_found(ledger, i, (uint64_t[]){i}, 1);
            check_found(ledger, i / 2 / 10 * 10,
                        (uint64_t[]){i / 2 / 10 * 10, i / 2 / 10 * 10 + 5},
                        i > 20 && i / 2 / 10 % 7 != 0 ? 2 : 1);
        }
    }
    close_ledger(ledger);

    ledger = open_ledger("streams");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.replayed, 0);
    check_open_intents(ledger, marked, true);
    check_found(ledger, 70, (uint64_t[]){70}, 1);
    check_found(ledger, 80, (uint64_t[]){80, 85}, 2);
    check_found(ledger, 123456, NULL, 0);
    submit_stream(ledger, marked, UINT64_MAX);
    submit_stream(ledger, marked + 1, 70);
    check_found(ledger, 70, (uint64_t[]){70, marked + 1}, 2);
    check_open_intents(ledger, marked, true); /* what it was when it was opened */
    close_ledger(ledger);

    ledger = open_ledger("streams");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.replayed, 2);
    check_open_intents(ledger, marked + 2, false);
    check_found(ledger, 70, (uint64_t[]){70, marked + 1}, 2);
    close_ledger(ledger);
}

static int
count_partials(const char *name, const char *find)
{
    char command[600];
    int count = -1;
    (void)snprintf(command, sizeof(command), "find '%s/%s/ledger/w0/tile' %s | wc -l",
                   dir, name, find);
    FILE *pipe = popen(command, "r");
    ASSERT_NOT_NULL(pipe);
    ASSERT_EQ(fscanf(pipe, "%d", &count), 1);
    ASSERT_EQ(pclose(pipe), 0);
    return count;
}

/* Partial tiles go once their tile is full and a checkpoint covers it; those of the
 * mark, on which a start stands, once the mark has moved on. */
static void
partials_are_collected(void)
{
    char path[512];
    struct ag_ledger *ledger = open_ledger("collect");
    uint64_t size = 0;
    for (uint64_t to = 5; to <= 600; to += 35) {
        fill(ledger, size, to);
        size = to;
        wait_published(ledger, size);
        /* What this checkpoint needs is there. */
        if (size % 256 != 0) {
            char name[80];
            (void)snprintf(name, sizeof(name), "ledger/w0/tile/0/%03u.p/%u",
                           (unsigned)(size / 256), (unsigned)(size % 256));
            ASSERT_EQ(access(file_of(path, "collect", name), F_OK), 0);
        }
    }
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/0/000.p"), F_OK), -1);
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/entries/001.p"), F_OK),
              -1);
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/0/002.p"), F_OK), 0);
    close_ledger(ledger);

    ledger = open_ledger("collect");
    check_proofs(ledger, size, 11);
    fill(ledger, size, 5000); /* the mark is at 5000 then */
    close_ledger(ledger);
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/0/019.p/136"), F_OK), 0);
    ASSERT_EQ(count_partials("collect", "-path '*.p/*' -not -path '*/019.p/*' "
                                        "-not -path '*/1/000.p/*'"),
              0);
    ledger = open_ledger("collect");
    fill(ledger, 5000, 5400); /* full, but of the mark */
    wait_published(ledger, 5400);
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/0/019.p/136"), F_OK), 0);
    copy_over("collect", "collect-crashed");
    close_ledger(ledger);
    /* After a loss of power the tile that became full may be gone. */
    ASSERT_EQ(remove(file_of(path, "collect-crashed", "ledger/w0/tile/0/019")), 0);
    ASSERT_EQ(remove(file_of(path, "collect-crashed", "ledger/w0/tile/entries/019")),
              0);
    ledger = open_ledger("collect-crashed");
    check_entries(ledger, 5400);
    close_ledger(ledger);
}

/* ---- threads ---- */

#define THREADS 4
#define EACH 200

static void *
submit_many(void *arg)
{
    struct ag_ledger *ledger = arg;
    struct ag_error err;
    uint64_t last = 0;
    for (int i = 0; i < EACH; i++) {
        uint64_t index = 0;
        int status = submit(ledger, 0, &index, &err);
        while (status == AG_EFULL) {
            usleep(500);
            status = submit(ledger, 0, &index, &err);
        }
        ASSERT_EQ(status, AG_OK);
        ASSERT(i == 0 || index > last);
        last = index;
        if (i % 50 == 0) {
            ASSERT_EQ(ag_ledger_wait(ledger, index, AG_INTEGRATED, 20 * SECOND, &err),
                      AG_OK);
            uint8_t *entry = NULL, proof[AG_PROOF_MAX][AG_HASH_SIZE];
            size_t n = 0;
            ASSERT_EQ(ag_ledger_entry(ledger, index, &entry, &n, &err), AG_OK);
            ag_free(entry);
            ASSERT_EQ(ag_ledger_inclusion(ledger, index, index + 1, proof, &n, &err),
                      AG_OK);
        }
    }
    return NULL;
}

static void
many_threads(void)
{
    struct ag_ledger *ledger = open_ledger("threads");
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_create(&threads[i], NULL, submit_many, ledger), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
    }
    ASSERT_EQ_U(ag_ledger_size(ledger), THREADS * EACH);
    close_ledger(ledger);
    ledger = open_ledger("threads");
    ASSERT_EQ_U(ag_ledger_size(ledger), THREADS * EACH);
    close_ledger(ledger);
}

static void
forked_child(void)
{
    struct ag_ledger *ledger = open_ledger("forked");
    struct ag_error err;
    uint64_t index = 0;
    fill(ledger, 0, 3);
    pid_t child = fork();
    if (child == 0) {
        int ok = submit(ledger, 3, &index, &err) == AG_EFORKED &&
                 ag_ledger_wait(ledger, 0, AG_DURABLE, 0, &err) == AG_EFORKED;
        _exit(ok ? 0 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    ASSERT_EQ(submit(ledger, 3, &index, &err), AG_OK);
    close_ledger(ledger);
}

/* A child that lives on holds copies of all descriptors, but no lock. */
static void
closed_beside_a_forked_child(void)
{
    int hold[2];
    char byte = 0;
    ASSERT_EQ(pipe(hold), 0);
    struct ag_ledger *ledger = open_ledger("child");
    fill(ledger, 0, 3);
    pid_t child = fork();
    if (child == 0) {
        (void)close(hold[1]);
        (void)!read(hold[0], &byte, 1); /* until the parent is through */
        _exit(0);
    }
    close_ledger(ledger);
    ledger = open_ledger("child");
    check_entries(ledger, 3);
    close_ledger(ledger);
    (void)close(hold[1]);
    (void)close(hold[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make(dir);
    RUN(stages_and_proofs);
    RUN(restarts);
    RUN(tiles_are_rebuilt);
    RUN(torn_checkpoint);
    RUN(torn_partial_tile);
    RUN(marked_start);
    RUN(ids_and_intents);
    RUN(partials_are_collected);
    RUN(many_threads);
    RUN(forked_child);
    RUN(closed_beside_a_forked_child);
    scratch_remove(dir);
    return 0;
}
