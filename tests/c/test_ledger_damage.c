// links: scratch
/* A bit is flipped anywhere in the folders of a ledger, private files included: it
 * either opens with every entry, proof and receipt as it was, or is refused. */
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "check.h"
#include "log/ledger.h"
#include "scratch.h"

#define ENTRIES 270u /* a full bundle and a partial one */
#define SECOND ((uint64_t)1000000000u)

static char dir[256];

/* snprintf that must fit. */
static void __attribute__((format(printf, 3, 4)))
put(char *to, size_t room, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(to, room, format, args);
    va_end(args);
    ASSERT(n >= 0 && (size_t)n < room);
}
static char *receipts[ENTRIES]; /* owned */
static uint8_t salt[AG_HASH_SIZE];
static int opened, refused;

static int
try_open(const char *name, struct ag_ledger **ledger, struct ag_error *err)
{
    char path[512], private_dir[512], folder[300];
    struct ag_ledger_options options;
    put(folder, sizeof(folder), "%s/%s", dir, name);
    ag_ledger_options_init(&options);
    options.path = scratch_path(path, folder, "ledger/w0");
    options.private_dir = scratch_path(private_dir, folder, "private/w0");
    options.ring_bytes = AG_LEDGER_RING_MIN;
    options.segment_bytes = 64u << 10;
    options.publish_gap_us = 1000;
    return ag_ledger_open(&options, ledger, err);
}

static size_t
make_entry(uint64_t i, char out[200])
{
    return (size_t)snprintf(
        out, 200,
        "{\"kind\":\"call\",\"id\":\"00000000-0000-7000-8000-%012" PRIx64 "\"}", i);
}

static void
id_of(uint64_t i, uint8_t id[AG_UUID_SIZE])
{
    memset(id, 0, AG_UUID_SIZE);
    id[6] = 0x70;
    id[8] = 0x80;
    ag_put_u32be(id + 12, (uint32_t)i);
}

static void
salt_of(struct ag_ledger *ledger, uint8_t out[AG_HASH_SIZE])
{
    struct ag_commitment c;
    uint8_t id[AG_UUID_SIZE];
    id_of(1, id);
    ag_ledger_commitment(ledger, NULL, 0, id, AG_ROLE_REQUEST, &c);
    memcpy(out, c.salt, AG_HASH_SIZE);
}

static void
make_log(void)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    ASSERT_EQ(try_open("good", &ledger, &err), AG_OK);
    for (uint64_t i = 0; i < ENTRIES; i++) {
        char entry[200];
        uint64_t index = 0;
        size_t n = make_entry(i, entry);
        ASSERT_EQ(ag_ledger_submit(ledger, (const uint8_t *)entry, n, NULL, NULL,
                                   &index, &err),
                  AG_OK);
    }
    ASSERT_EQ(ag_ledger_wait(ledger, ENTRIES - 1, AG_PUBLISHED, 20 * SECOND, &err),
              AG_OK);
    for (uint64_t i = 0; i < ENTRIES; i++) {
        size_t n = 0;
        ASSERT_EQ(ag_ledger_receipt(ledger, i, &receipts[i], &n, &err), AG_OK);
    }
    salt_of(ledger, salt);
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

/* All that anybody can ask of the log. */
static void
check_log(struct ag_ledger *ledger, const char *what)
{
    struct ag_error err;
    uint8_t found_salt[AG_HASH_SIZE];
    salt_of(ledger, found_salt);
    if (memcmp(found_salt, salt, AG_HASH_SIZE) != 0) {
        CHECK_FAIL("%s: another salt", what);
    }
    ASSERT_EQ_U(ag_ledger_size(ledger), ENTRIES);
    for (uint64_t i = 0; i < ENTRIES; i += 1 + i % 7) {
        char expected[200], *receipt = NULL;
        uint8_t *entry = NULL, id[AG_UUID_SIZE];
        size_t n = 0, expected_n = make_entry(i, expected);
        struct ag_found found = {0};
        ASSERT_EQ(ag_ledger_entry(ledger, i, &entry, &n, &err), AG_OK);
        if (n != expected_n || memcmp(entry, expected, n) != 0) {
            CHECK_FAIL("%s: entry %llu is another", what, (unsigned long long)i);
        }
        ag_free(entry);
        ASSERT_EQ(ag_ledger_receipt(ledger, i, &receipt, &n, &err), AG_OK);
        if (strcmp(receipt, receipts[i]) != 0) {
            CHECK_FAIL("%s: receipt %llu is another", what, (unsigned long long)i);
        }
        ag_free(receipt);
        id_of(i, id);
        ASSERT_EQ(ag_ledger_find(ledger, id, &found, &err), AG_OK);
        ASSERT_EQ_U(found.count, 1);
        ASSERT_EQ_U(found.index[0], i);
        ag_free(found.index);
    }
}

static void
flip_and_open(const char *file, size_t at)
{
    static unsigned char bytes[1 << 17];
    char command[900], path[800], what[700];
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    put(command, sizeof(command), "rm -rf %s/bad && cp -a %s/good %s/bad", dir, dir,
        dir);
    ASSERT_EQ(system(command), 0);
    put(path, sizeof(path), "%s/bad/%s", dir, file);
    put(what, sizeof(what), "%s, octet %zu", file, at);
    size_t n = scratch_read(path, bytes, sizeof(bytes));
    bytes[at] ^= (unsigned char)(1u << (at % 7));
    scratch_write(path, bytes, n);
    if (try_open("bad", &ledger, &err) == AG_OK) {
        opened++;
        check_log(ledger, what);
        ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
    } else {
        refused++;
        ASSERT(err.what[0] != '\0');
    }
}

static void
each_file(const char *folder)
{
    char path[700];
    put(path, sizeof(path), "%s/good%s", dir, folder);
    DIR *d = opendir(path);
    ASSERT_NOT_NULL(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        char name[600];
        struct stat st;
        if (e->d_name[0] == '.') {
            continue;
        }
        put(name, sizeof(name), "%s/%s", folder, e->d_name);
        put(path, sizeof(path), "%s/good%s", dir, name);
        ASSERT_EQ(lstat(path, &st), 0);
        if (S_ISDIR(st.st_mode)) {
            each_file(name);
            continue;
        }
        size_t size = (size_t)st.st_size;
        /* Texts closely; of pages the header, the records and what is behind them. */
        for (size_t at = 0; at < size; at += size <= 512 ? 17
                                             : at < 64   ? 13
                                                         : size / 7) {
            flip_and_open(name + 1, at);
        }
    }
    (void)closedir(d);
}

static void
every_file(void)
{
    make_log();
    each_file("");
    fprintf(stderr, "    %d opened, %d refused\n", opened, refused);
    ASSERT_LT(0, opened);
    ASSERT_LT(0, refused);
    for (size_t i = 0; i < ENTRIES; i++) {
        ag_free(receipts[i]);
    }
}

int
main(void)
{
    scratch_make(dir);
    RUN(every_file);
    scratch_remove(dir);
    return 0;
}
