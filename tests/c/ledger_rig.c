#include "ledger_rig.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "check.h"
#include "scratch.h"

char dir[256];

struct ag_ledger_options
ledger_options(const char *folder, const struct ag_io *io)
{
    static char path[512], private_dir[512];
    struct ag_ledger_options options;
    ag_ledger_options_init(&options);
    options.io = io;
    options.path = scratch_path(path, folder, "ledger/w0");
    options.private_dir = scratch_path(private_dir, folder, "private/w0");
    options.ring_bytes = AG_LEDGER_RING_MIN;
    options.segment_bytes = SEGMENT;
    options.publish_gap_us = 1000;
    return options;
}

void
make_shadow(const char *folder)
{
    char path[512];
    static const char *const names[] = {"private", "private/w0", "private/w0/wal"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        ASSERT_EQ(mkdir(scratch_path(path, folder, names[i]), 0700), 0);
    }
    scratch_write(scratch_path(path, folder, "private/w0/log.key"), "", 0);
    ASSERT_EQ(chmod(path, 0600), 0);
}

int
try_open(const char *name, const struct ag_io *io, const char *origin,
         struct ag_ledger **ledger, struct ag_error *err)
{
    char folder[512];
    struct ag_ledger_options options =
        ledger_options(scratch_path(folder, dir, name), io);
    options.origin = origin;
    return ag_ledger_open(&options, ledger, err);
}

struct ag_ledger *
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

void
close_ledger(struct ag_ledger *ledger)
{
    struct ag_error err;
    int status = ag_ledger_close(ledger, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s %s", ag_status_name(status), err.what, err.file);
    }
}

size_t
make_entry(uint64_t i, char out[ENTRY_ROOM])
{
    char pad[60];
    memset(pad, 'x', sizeof(pad));
    return (size_t)snprintf(out, ENTRY_ROOM,
                            "{\"kind\":\"%s\",\"id\":\"00000000-0000-7000-8000-"
                            "%012" PRIx64 "\",\"pad\":\"%.*s\"}",
                            i % 9 == 0 ? "intent" : "call", i, (int)(i * 37 % 60), pad);
}

void
id_of(uint64_t i, uint8_t id[AG_UUID_SIZE])
{
    memset(id, 0, AG_UUID_SIZE);
    id[6] = 0x70;
    id[8] = 0x80;
    ag_put_u32be(id + 12, (uint32_t)i);
}

int
submit(struct ag_ledger *ledger, uint64_t i, uint64_t *index, struct ag_error *err)
{
    char entry[ENTRY_ROOM];
    size_t n = make_entry(i, entry);
    return ag_ledger_submit(ledger, (const uint8_t *)entry, n, NULL, NULL, index, err);
}

void
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

void
wait_published(struct ag_ledger *ledger, uint64_t size)
{
    struct ag_error err;
    ASSERT_EQ(ag_ledger_wait(ledger, size - 1, AG_PUBLISHED, 20 * SECOND, &err), AG_OK);
}

void
check_each(struct ag_ledger *ledger, uint64_t to, uint64_t step)
{
    for (uint64_t i = 0; i < to; i += step) {
        char expected[ENTRY_ROOM];
        size_t n = 0, expected_n = make_entry(i, expected);
        uint8_t *entry = NULL;
        struct ag_error err;
        ASSERT_EQ(ag_ledger_entry(ledger, i, &entry, &n, &err), AG_OK);
        ASSERT_EQ_U(n, expected_n);
        ASSERT_EQ_MEM(entry, expected, n);
        ag_free(entry);
    }
}

void
check_entries(struct ag_ledger *ledger, uint64_t to)
{
    check_each(ledger, to, 1);
}

static void
leaf_of(uint64_t i, uint8_t out[AG_HASH_SIZE])
{
    static uint8_t known[8192][AG_HASH_SIZE]; /* all zero: not yet */
    static const uint8_t none[AG_HASH_SIZE];
    uint8_t *leaf = i < 8192 ? known[i] : out;
    if (i >= 8192 || memcmp(leaf, none, AG_HASH_SIZE) == 0) {
        char entry[ENTRY_ROOM];
        size_t n = make_entry(i, entry);
        ag_leaf_hash(entry, n, leaf);
    }
    memmove(out, leaf, AG_HASH_SIZE);
}

void
slow_root(uint64_t first, uint64_t n, uint8_t out[AG_HASH_SIZE])
{
    if (n == 1) {
        leaf_of(first, out);
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

void
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

void
make_small(const char *name, uint64_t first)
{
    struct ag_error err;
    uint64_t index = 0;
    struct ag_ledger *ledger = open_ledger(name);
    for (uint64_t i = 0; i < 20; i++) {
        ASSERT_EQ(submit(ledger, first + i, &index, &err), AG_OK);
        if (i == 9) {
            wait_published(ledger, 10);
        }
    }
    close_ledger(ledger);
}

char *
file_of(char to[512], const char *name, const char *file)
{
    char relative[256];
    (void)snprintf(relative, sizeof(relative), "%s/%s", name, file);
    return scratch_path(to, dir, relative);
}

void
flip(const char *path, size_t at)
{
    static unsigned char bytes[1 << 17];
    size_t n = scratch_read(path, bytes, sizeof(bytes));
    ASSERT_LT_U(at, n);
    bytes[at] ^= 1;
    scratch_write(path, bytes, n);
}

/* Of every name, mode and octet below a folder. */
static void
fingerprint(const char *name, char hex[65])
{
    char command[1200];
    (void)snprintf(command, sizeof(command),
                   "cd '%s/%s' && { find . -printf '%%p %%m %%s\\n' | sort; "
                   "find . -type f | sort | xargs -r sha256sum; } | sha256sum",
                   dir, name);
    FILE *pipe = popen(command, "r");
    ASSERT_NOT_NULL(pipe);
    ASSERT_EQ_U(fread(hex, 1, 64, pipe), 64);
    hex[64] = '\0';
    ASSERT_EQ(pclose(pipe), 0);
}

void
refuses(const char *name, int status, const char *file)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    char path[512], before[65], after[65];
    fingerprint(name, before);
    int got = try_open(name, NULL, NULL, &ledger, &err);
    if (got != status) {
        CHECK_FAIL("%s: %s, but %s: %s", name, ag_status_name(status),
                   ag_status_name(got), got != AG_OK ? err.what : "opened");
    }
    ASSERT_EQ_STR(err.file, file_of(path, name, file));
    ASSERT(err.advice[0] != '\0');
    fingerprint(name, after);
    ASSERT_EQ_STR(before, after); /* nothing is written, nothing is deleted */
}

void
copy_over(const char *from, const char *to)
{
    char command[1200];
    (void)snprintf(command, sizeof(command), "rm -rf '%s/%s' && cp -a '%s/%s' '%s/%s'",
                   dir, to, dir, from, dir, to);
    ASSERT_EQ(system(command), 0);
}

void
drop(const char *name)
{
    char command[600];
    (void)snprintf(command, sizeof(command), "rm -r '%s/%s'", dir, name);
    ASSERT_EQ(system(command), 0);
}
