// links: io_fault scratch
/* The ledger: stages, proofs, restarts, refusals, faults at every I/O call, threads. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "check.h"
#include "io_fault.h"
#include "log/ledger_state.h"
#include "scratch.h"

#define SECOND 1000000000u
#define SEGMENT (64u << 10) /* small, so that segments are many */
#define MOST 1000           /* entries in any test here */

static char dir[256];

static int
try_open(const char *name, const struct ag_io *io, const char *origin,
         struct ag_ledger **ledger, struct ag_error *err)
{
    char path[512], private_dir[512], folder[300];
    struct ag_ledger_options options;
    (void)snprintf(folder, sizeof(folder), "%s/%s", dir, name);
    ag_ledger_options_init(&options);
    options.io = io;
    options.path = scratch_path(path, folder, "ledger/w0");
    options.private_dir = scratch_path(private_dir, folder, "private/w0");
    options.origin = origin;
    options.ring_bytes = AG_LEDGER_RING_MIN;
    options.publish_gap_us = 1000;
    options.segment_bytes = SEGMENT;
    return ag_ledger_open(&options, ledger, err);
}

static struct ag_ledger *
open_ledger(const char *name)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    int status = try_open(name, NULL, NULL, &ledger, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s %s", ag_status_name(status), err.what, err.file);
    }
    return ledger;
}

static char *
file_of(char to[512], const char *name, const char *file)
{
    char relative[256];
    (void)snprintf(relative, sizeof(relative), "%s/%s", name, file);
    return scratch_path(to, dir, relative);
}

/* Entry i: "{"n":i,"pad":"xxx..."}", lengths from about 20 to 320. */
static size_t
make_entry(uint64_t i, char out[512])
{
    int n = snprintf(
        out, 512, "{\"n\":%llu,\"pad\":\"%.*s\"}", (unsigned long long)i,
        (int)(i * 37 % 300),
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
    return (size_t)n;
}

static int
submit(struct ag_ledger *ledger, uint64_t i, uint64_t *index, struct ag_error *err)
{
    char entry[512];
    size_t n = make_entry(i, entry);
    return ag_ledger_submit(ledger, (const uint8_t *)entry, n, NULL, NULL, index, err);
}

static void
fill(struct ag_ledger *ledger, uint64_t from, uint64_t to)
{
    struct ag_error err;
    for (uint64_t i = from; i < to; i++) {
        uint64_t index = 0;
        int status = submit(ledger, i, &index, &err);
        while (status == AG_EFULL) {
            usleep(500);
            status = submit(ledger, i, &index, &err);
        }
        ASSERT_EQ(status, AG_OK);
        ASSERT_EQ_U(index, i);
    }
}

static void
check_entries(struct ag_ledger *ledger, uint64_t to)
{
    for (uint64_t i = 0; i < to; i++) {
        char expected[512];
        size_t n = 0, expected_n = make_entry(i, expected);
        uint8_t *entry = NULL;
        struct ag_error err;
        ASSERT_EQ(ag_ledger_entry(ledger, i, &entry, &n, &err), AG_OK);
        ASSERT_EQ_U(n, expected_n);
        ASSERT_EQ_MEM(entry, expected, n);
        ag_free(entry);
    }
}

/* RFC 6962 section 2.1 by recursion over the entries that make_entry gives. */
static void
slow_root(uint64_t first, uint64_t n, uint8_t out[AG_HASH_SIZE])
{
    if (n == 1) {
        char entry[512];
        size_t entry_n = make_entry(first, entry);
        ag_leaf_hash(entry, entry_n, out);
        return;
    }
    uint64_t k = 1;
    while (k * 2 < n) {
        k *= 2;
    }
    uint8_t left[AG_HASH_SIZE], right[AG_HASH_SIZE];
    slow_root(first, k, left);
    slow_root(first + k, n - k, right);
    ag_node_hash(left, right, out);
}

static void
check_proofs(struct ag_ledger *ledger, uint64_t size, uint64_t step)
{
    uint8_t root[AG_HASH_SIZE], old_root[AG_HASH_SIZE], leaf[AG_HASH_SIZE];
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE], got[AG_HASH_SIZE];
    size_t count = 0;
    struct ag_error err;
    slow_root(0, size, root);
    ASSERT_EQ(ag_ledger_root(ledger, size, got, &err), AG_OK);
    ASSERT_EQ_MEM(got, root, AG_HASH_SIZE);
    for (uint64_t i = 0; i < size; i += step) {
        slow_root(i, 1, leaf);
        ASSERT_EQ(ag_ledger_inclusion(ledger, i, size, proof, &count, &err), AG_OK);
        ASSERT_EQ(ag_verify_inclusion(leaf, i, size, root,
                                      (const uint8_t (*)[AG_HASH_SIZE])proof, count),
                  AG_OK);
        if (i == 0) {
            continue;
        }
        slow_root(0, i, old_root);
        ASSERT_EQ(ag_ledger_consistency(ledger, i, size, proof, &count, &err), AG_OK);
        ASSERT_EQ(ag_verify_consistency(i, size, old_root, root,
                                        (const uint8_t (*)[AG_HASH_SIZE])proof, count),
                  AG_OK);
    }
}

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
    ASSERT_EQ(ag_ledger_wait(ledger, 699, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

static void
restarts(void)
{
    uint64_t size = 0;
    struct ag_error err;
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
        ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK); /* flushes and publishes */
    }
    struct ag_ledger *ledger = open_ledger("restarts");
    check_proofs(ledger, size, 17);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

/* Published files are derived: lost or damaged ones come back from the log. */
static void
tiles_are_rebuilt(void)
{
    struct ag_error err;
    char path[512];
    unsigned char before[9000], after[9000];
    struct ag_ledger_stats stats;
    struct ag_ledger *ledger = open_ledger("tiles");
    fill(ledger, 0, 600);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    file_of(path, "tiles", "ledger/w0/tile/0/001");
    ASSERT_EQ_U(scratch_read(path, before, sizeof(before)), 8192);
    scratch_write(path, "junk", 4);
    ASSERT_EQ(remove(file_of(path, "tiles", "ledger/w0/tile/entries/000")), 0);
    ASSERT_EQ(remove(file_of(path, "tiles", "ledger/w0/checkpoint")), 0);
    ledger = open_ledger("tiles");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.rewritten, 1); /* the missing ones were only missing */
    check_entries(ledger, 600);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    ASSERT_EQ_U(scratch_read(file_of(path, "tiles", "ledger/w0/tile/0/001"), after,
                             sizeof(after)),
                8192);
    ASSERT_EQ_MEM(before, after, 8192);
    ASSERT_LT_U(100, scratch_read(file_of(path, "tiles", "ledger/w0/checkpoint"), after,
                                  sizeof(after)));
}

static void
refuses(const char *name, int status, const char *file)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    char path[512];
    int got = try_open(name, NULL, NULL, &ledger, &err);
    if (got != status) {
        CHECK_FAIL("%s: %s, but %s: %s", name, ag_status_name(status),
                   ag_status_name(got), got != AG_OK ? err.what : "opened");
    }
    ASSERT_EQ_STR(err.file, file_of(path, name, file));
    ASSERT(err.advice[0] != '\0');
}

/* Twenty entries, of which `first` + i is the i-th, published in two steps. */
static void
make_small(const char *name, uint64_t first)
{
    struct ag_error err;
    uint64_t index = 0;
    struct ag_ledger *ledger = open_ledger(name);
    for (uint64_t i = 0; i < 20; i++) {
        ASSERT_EQ(submit(ledger, first + i, &index, &err), AG_OK);
        if (i == 9) {
            ASSERT_EQ(
                ag_ledger_wait(ledger, 9, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
                AG_OK);
        }
    }
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

static void
flip(const char *path, size_t at)
{
    static unsigned char bytes[1 << 17];
    size_t n = scratch_read(path, bytes, sizeof(bytes));
    ASSERT_LT_U(at, n);
    bytes[at] ^= 1;
    scratch_write(path, bytes, n);
}

/* Puts a copy of a file or folder in place of another one. */
static void
copy_over(const char *from, const char *to)
{
    char command[1200];
    (void)snprintf(command, sizeof(command), "rm -rf '%s/%s' && cp -a '%s/%s' '%s/%s'",
                   dir, to, dir, from, dir, to);
    ASSERT_EQ(system(command), 0);
}

static void
drop(const char *name)
{
    char command[600];
    (void)snprintf(command, sizeof(command), "rm -r '%s/%s'", dir, name);
    ASSERT_EQ(system(command), 0);
}

static void
logs_that_are_refused(void)
{
    struct ag_error err;
    char path[512];
    struct ag_ledger *ledger = NULL;

    make_small("rollback", 0); /* the log of an earlier time, the rest of today */
    copy_over("rollback/private/w0/wal", "earlier");
    ledger = open_ledger("rollback");
    fill(ledger, 20, 30);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    copy_over("earlier", "rollback/private/w0/wal");
    refuses("rollback", AG_EROLLBACK, "private/w0/checkpoint");

    make_small("lost", 0);
    drop("lost/private/w0/wal");
    refuses("lost", AG_EROLLBACK, "private/w0/checkpoint");

    make_small("exchanged", 0); /* same length, other entries */
    make_small("donor", 1000);
    copy_over("donor/private/w0/wal", "exchanged/private/w0/wal");
    refuses("exchanged", AG_EROLLBACK, "ledger/w0/checkpoint");

    make_small("damaged", 0);
    flip(file_of(path, "damaged", "private/w0/wal/wal-0000000000000001.seg"),
         4096 + 100);
    refuses("damaged", AG_ECORRUPT, "private/w0/wal/wal-0000000000000001.seg");
}

static void
checkpoints_that_are_refused(void)
{
    make_small("foreign", 0);
    copy_over("donor/private/w0/checkpoint", "foreign/private/w0/checkpoint");
    refuses("foreign", AG_EFOREIGN, "private/w0/checkpoint");

    make_small("note", 0);
    char path[512];
    flip(file_of(path, "note", "ledger/w0/checkpoint"), 40); /* in the root */
    refuses("note", AG_EVERIFY, "ledger/w0/checkpoint");
}

/* The published copy is not synced: power loss may leave it empty or full of zeros.
 * That is no reason to stay closed, the private copy says the same. */
static void
torn_checkpoint(void)
{
    static const unsigned char zeros[AG_CHECKPOINT_MAX];
    struct ag_error err;
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
        ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    struct ag_error err;
    char path[512];
    static const unsigned char zeros[8192];
    struct ag_ledger *ledger = open_ledger("partial");
    fill(ledger, 0, 300);
    ASSERT_EQ(ag_ledger_wait(ledger, 299, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
    fill(ledger, 300, 600);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    (void)mkdir(file_of(path, "partial", "ledger/w0/tile/0/001.p"), 0750);
    scratch_write(file_of(path, "partial", "ledger/w0/tile/0/001.p/44"), zeros,
                  44 * AG_HASH_SIZE);
    ledger = open_ledger("partial");
    check_proofs(ledger, 300, 7);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

static void
folders_that_are_refused(void)
{
    struct ag_error err;
    char path[512];
    struct ag_ledger *ledger = NULL, *second = NULL;

    make_small("halfcopied", 0);
    drop("halfcopied/private");
    refuses("halfcopied", AG_EFOREIGN, "ledger/w0/checkpoint");

    make_small("noidentity", 0);
    drop("noidentity/private/w0/identity");
    refuses("noidentity", AG_EFOREIGN, "private/w0/wal/LOG");

    make_small("badidentity", 0);
    scratch_write(file_of(path, "badidentity", "private/w0/identity"),
                  "aegis ledger 1\norigin x\n", 24);
    refuses("badidentity", AG_ECORRUPT, "private/w0/identity");

    make_small("origin", 0);
    ASSERT_EQ(try_open("origin", NULL, "example.org/another", &ledger, &err),
              AG_EFOREIGN);

    ledger = open_ledger("locked");
    ASSERT_EQ(try_open("locked", NULL, NULL, &second, &err), AG_ELOCKED);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

static void
keys_that_are_refused(void)
{
    char path[512];
    make_small("nokey", 0);
    drop("nokey/private/w0/log.key");
    refuses("nokey", AG_ENOTFOUND, "private/w0/log.key");

    make_small("otherkey", 0);
    copy_over("donor/private/w0/log.key", "otherkey/private/w0/log.key");
    refuses("otherkey", AG_EFOREIGN, "private/w0/log.key");

    make_small("openkey", 0);
    ASSERT_EQ(chmod(file_of(path, "openkey", "private/w0/log.key"), 0666), 0);
    refuses("openkey", AG_EPERM, "private/w0/log.key");

    if (geteuid() == 0) { /* a secret that root has mounted for others */
        struct ag_error err;
        struct ag_ledger *ledger = NULL;
        make_small("mounted", 0);
        ASSERT_EQ(chmod(file_of(path, "mounted", "private/w0/log.key"), 0644), 0);
        ledger = open_ledger("mounted");
        ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
        ASSERT_EQ(chown(path, 1, (gid_t)-1), 0);
        refuses("mounted", AG_EPERM, "private/w0/log.key");
    }

    make_small("secret", 0);
    scratch_write(file_of(path, "secret", "private/w0/subject.secret"), "short", 5);
    refuses("secret", AG_ECORRUPT, "private/w0/subject.secret");
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    copy_over("marked", "marked-intact");
    ledger = open_ledger("marked");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.wal.low_water, size);
    ASSERT_EQ_U(stats.replayed, 0);
    ASSERT_LE_U(stats.wal.live_segments, 2);
    check_entries(ledger, size);
    check_proofs(ledger, size, 97);
    fill(ledger, size, size + 300);
    ASSERT_EQ(
        ag_ledger_wait(ledger, size + 299, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
        AG_OK);
    check_proofs(ledger, size + 300, 301);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);

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
    struct ag_error err;
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);

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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);

    ledger = open_ledger("streams");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.replayed, 2);
    check_open_intents(ledger, marked + 2, false);
    check_found(ledger, 70, (uint64_t[]){70, marked + 1}, 2);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

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
    ASSERT_EQ(ag_ledger_wait(ledger, 76, AG_INTEGRATED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
    ASSERT_EQ(ag_ledger_wait(ledger, 76, AG_PUBLISHED, SECOND / 4, &err), AG_ETIMEDOUT);
    ag_ledger_stats(ledger, &stats);
    ASSERT_LT_U(0, stats.publish_failures);
    ASSERT_EQ(stats.last_failure.status, AG_ECORRUPT);
    ASSERT_EQ_U(stats.checkpoints, 0);
    ag_ledger_checkpoint(ledger, note, &n);
    ASSERT_EQ_U(n, 0);
    ASSERT_EQ(access(file_of(path, "damage", "ledger/w0/checkpoint"), F_OK), -1);
    fault.flip_size = 0; /* tried again every second */
    ASSERT_EQ(ag_ledger_wait(ledger, 76, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
              AG_OK);

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
    ASSERT_EQ(ag_ledger_wait(ledger, 79, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
    check_proofs(ledger, 80, 7);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    struct ag_error err;
    char path[512];
    struct ag_ledger *ledger = open_ledger("collect");
    uint64_t size = 0;
    for (uint64_t to = 5; to <= 600; to += 35) {
        fill(ledger, size, to);
        size = to;
        ASSERT_EQ(
            ag_ledger_wait(ledger, size - 1, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
            AG_OK);
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);

    ledger = open_ledger("collect");
    check_proofs(ledger, size, 11);
    fill(ledger, size, 5000); /* the mark is at 5000 then */
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/0/019.p/136"), F_OK), 0);
    ASSERT_EQ(count_partials("collect", "-path '*.p/*' -not -path '*/019.p/*' "
                                        "-not -path '*/1/000.p/*'"),
              0);
    ledger = open_ledger("collect");
    fill(ledger, 5000, 5400); /* full, but of the mark */
    ASSERT_EQ(ag_ledger_wait(ledger, 5399, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
    ASSERT_EQ(access(file_of(path, "collect", "ledger/w0/tile/0/019.p/136"), F_OK), 0);
    copy_over("collect", "collect-crashed");
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    /* After a loss of power the tile that became full may be gone. */
    ASSERT_EQ(remove(file_of(path, "collect-crashed", "ledger/w0/tile/0/019")), 0);
    ASSERT_EQ(remove(file_of(path, "collect-crashed", "ledger/w0/tile/entries/019")),
              0);
    ledger = open_ledger("collect-crashed");
    check_entries(ledger, 5400);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

/* A child that lives on holds copies of all descriptors, but no lock. */
static void
closed_beside_a_forked_child(void)
{
    struct ag_error err;
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    ledger = open_ledger("child");
    check_entries(ledger, 3);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    (void)close(hold[1]);
    (void)close(hold[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
}

/* Every I/O call fails once, or from the n-th on for good: no crash, no hang, and with
 * a good disk again what was durable is there. */
static void
faults_at_every_call(void)
{
    for (int forever = 0; forever < 2; forever++) {
        for (long at = 1;; at += at < 40 ? 1 : 5) {
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
                    while (submitted < (round + 1) * 130u &&
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
            ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
            if (fault.calls < at) {
                ASSERT_EQ_U(durable, 260);
                break;
            }
        }
    }
}

/* The same for a log of two segments, whose third run moves the low-water mark when
 * it ends: recovery, replay, the mark, the archive and its emptying. */
static void
faults_with_a_log_and_a_mark(void)
{
    const uint64_t had = 2 * 90;
    struct ag_ledger_stats stats;
    struct ag_error err;
    long calls = 0;
    for (uint64_t size = 0; size < had; size += 90) {
        struct ag_ledger *ledger = open_ledger("template");
        fill(ledger, size, size + 90);
        ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    }
    for (int forever = 0; forever < 2; forever++) {
        for (long at = 1 + forever;; at += 4) {
            struct io_fault fault;
            struct ag_ledger *ledger = NULL;
            uint64_t submitted = had, durable = had, index = 0;
            char path[512];
            copy_over("template", "copy");
            io_fault_init(&fault);
            fault.fail_at = at;
            fault.fail_for = forever ? 1000000 : 1;
            fault.fail_errno = at % 8 < 4 ? EIO : ENOSPC;
            if (try_open("copy", &fault.table, NULL, &ledger, &err) == AG_OK) {
                while (submitted < had + 9 &&
                       submit(ledger, submitted, &index, &err) == AG_OK) {
                    submitted++;
                }
                (void)ag_ledger_wait(ledger, submitted - 1, AG_DURABLE, SECOND, &err);
                durable = ag_ledger_stage_size(ledger, AG_DURABLE);
                (void)ag_ledger_close(ledger, &err);
            }
            ASSERT_EQ(fault.syncs_after_failure, 0);
            calls = fault.calls;
            ledger = open_ledger("copy");
            ag_ledger_stats(ledger, &stats);
            ASSERT_LE_U(durable, ag_ledger_size(ledger));
            ASSERT_EQ_U(ag_ledger_size(ledger), submitted);
            check_entries(ledger, submitted);
            check_proofs(ledger, submitted, 64);
            ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
            if (calls < at) { /* nothing failed: the mark moved and freed the log */
                ASSERT_EQ_U(stats.wal.low_water, submitted);
                ASSERT_EQ(access(file_of(path, "copy",
                                         "private/w0/archive/wal-0000000000000001.seg"),
                                 F_OK),
                          -1);
                break;
            }
        }
    }
    fprintf(stderr, "    %ld calls\n", calls);
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
    ASSERT_LE_U(room / 344, n); /* as many as room() promised, and more */
    ASSERT_EQ(ag_ledger_wait(ledger, n - 1, AG_DURABLE, 1000000, &err), AG_ETIMEDOUT);
    fault.stall = 0;
    ASSERT_EQ(ag_ledger_wait(ledger, n - 1, AG_INTEGRATED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
    ASSERT_EQ(submit(ledger, n, &index, &err), AG_OK);
    ASSERT_EQ_U(index, n);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    ledger = open_ledger("stalled");
    ASSERT_EQ_U(ag_ledger_size(ledger), n + 1);
    check_entries(ledger, n + 1);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    ASSERT_EQ(ag_ledger_wait(ledger, 0, AG_DURABLE, 20 * (uint64_t)SECOND, &err),
              AG_EPOISONED);
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
    ASSERT_EQ(ag_ledger_wait(ledger, 1, AG_PUBLISHED, 20 * (uint64_t)SECOND, &err),
              AG_OK);
    check_entries(ledger, 2);
    atomic_store(&watched.stop, 1);
    ASSERT_EQ(pthread_join(watcher, NULL), 0);
    struct ag_ledger_stats stats;
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.reopens, 1);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    ASSERT_EQ(ag_ledger_wait(ledger, 0, AG_DURABLE, 20 * (uint64_t)SECOND, &err),
              AG_EPOISONED);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_EPOISONED);
    ASSERT_EQ(fault.syncs_after_failure, 0);
    ledger = open_ledger("closed"); /* the ring held it */
    ASSERT_EQ_U(ag_ledger_size(ledger), 1);
    check_entries(ledger, 1);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
            ASSERT_EQ(ag_ledger_wait(ledger, i - 1, AG_PUBLISHED, 60 * (uint64_t)SECOND,
                                     &err),
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
    ASSERT_EQ(ag_ledger_wait(ledger, enough, AG_PUBLISHED, 60 * (uint64_t)SECOND, &err),
              AG_OK);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    ASSERT_EQ(fault.fail_sync_fs, 0);
    ledger = open_ledger("writeback");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.wal.low_water, 0);
    ASSERT_EQ_U(stats.replayed, enough + 1);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK); /* with a disk that works again */
    ledger = open_ledger("writeback");
    ag_ledger_stats(ledger, &stats);
    ASSERT_EQ_U(stats.wal.low_water, enough + 1);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
            ASSERT_EQ(ag_ledger_wait(ledger, index, AG_INTEGRATED,
                                     20 * (uint64_t)SECOND, &err),
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
    struct ag_error err;
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_create(&threads[i], NULL, submit_many, ledger), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
    }
    ASSERT_EQ_U(ag_ledger_size(ledger), THREADS * EACH);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    ledger = open_ledger("threads");
    ASSERT_EQ_U(ag_ledger_size(ledger), THREADS * EACH);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
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
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

int
main(void)
{
    scratch_make(dir);
    RUN(stages_and_proofs);
    RUN(restarts);
    RUN(tiles_are_rebuilt);
    RUN(logs_that_are_refused);
    RUN(checkpoints_that_are_refused);
    RUN(torn_checkpoint);
    RUN(torn_partial_tile);
    RUN(folders_that_are_refused);
    RUN(keys_that_are_refused);
    RUN(marked_start);
    RUN(ids_and_intents);
    RUN(nothing_is_signed_over_damage);
    RUN(partials_are_collected);
    RUN(closed_while_the_thread_hangs);
    RUN(closed_beside_a_forked_child);
    RUN(faults_at_every_call);
    RUN(faults_with_a_log_and_a_mark);
    RUN(stalled_disk);
    RUN(poisoned);
    RUN(closed_while_poisoned);
    RUN(failed_sync_of_tiles);
    RUN(stats_do_not_wait);
    RUN(many_threads);
    RUN(forked_child);
    scratch_remove(dir);
    return 0;
}
