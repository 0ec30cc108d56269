// links: ledger_rig memfs scratch
// only: asan
/* A bit is flipped in an octet of a ledger's files, private ones included, on a disk in
 * memory: it either opens with every entry, proof, receipt, id and salt as it was, or
 * is refused with a file and advice.
 *
 * Octets are drawn at random; AEGIS_EVERY=1 takes every octet of every file (a minute
 * or two with optimisation), 8 also every bit. AEGIS_JOBS of them share the work. */
#include <inttypes.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "check.h"
#include "ledger_rig.h"
#include "memfs.h"
#include "scratch.h"

#define SMALL 12u  /* entries of a log that is one partial tile */
#define LARGE 258u /* of one with a full tile and a low-water mark */
#define DRAWN 500  /* octets of each log */

struct good {
    uint64_t entries;
    struct memfs disk;
    char *receipts[LARGE]; /* owned */
    uint8_t salt[AG_HASH_SIZE];
};

static struct good good;
static uint64_t rng;
static unsigned long opened, refused_later, refused;

static int
open_on(struct memfs *disk, struct ag_ledger **ledger, struct ag_error *err)
{
    struct ag_ledger_options options = ledger_options(dir, &disk->table);
    options.segment_bytes = 16u << 10;
    return ag_ledger_open(&options, ledger, err);
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
make_good(uint64_t entries)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    good.entries = entries;
    memfs_init_at(&good.disk, dir);
    ASSERT_EQ(open_on(&good.disk, &ledger, &err), AG_OK);
    fill(ledger, 0, entries);
    wait_published(ledger, entries);
    for (uint64_t i = 0; i < entries; i++) {
        size_t n = 0;
        ASSERT_EQ(ag_ledger_receipt(ledger, i, &good.receipts[i], &n, &err), AG_OK);
    }
    salt_of(ledger, good.salt);
    close_ledger(ledger);
}

static void
drop_good(void)
{
    for (uint64_t i = 0; i < good.entries; i++) {
        ag_free(good.receipts[i]);
    }
    memfs_free(&good.disk);
}

static void
check_refusal(const struct ag_error *err, const char *what)
{
    if (err->what[0] == '\0' || err->file[0] == '\0' || err->advice[0] == '\0') {
        CHECK_FAIL("%s: refused with \"%s\", file \"%s\", advice \"%s\"", what,
                   err->what, err->file, err->advice);
    }
}

/* False: refused, as a damaged file may be when it is read. */
static bool
check_answer(int status, const void *answer, size_t n, const void *expected,
             size_t expected_n, const struct ag_error *err, const char *what)
{
    if (status != AG_OK) {
        ASSERT_EQ(status, AG_ECORRUPT);
        check_refusal(err, what);
        return false;
    }
    if (n != expected_n || memcmp(answer, expected, n) != 0) {
        CHECK_FAIL("%s: another entry, receipt or index", what);
    }
    return true;
}

static bool
check_entry(struct ag_ledger *ledger, uint64_t i, const char *what)
{
    struct ag_error err;
    char expected[ENTRY_ROOM], *receipt = NULL;
    uint8_t *entry = NULL, id[AG_UUID_SIZE];
    size_t n = 0, expected_n = make_entry(i, expected);
    struct ag_found found = {0};
    int status = ag_ledger_entry(ledger, i, &entry, &n, &err);
    bool answered = check_answer(status, entry, n, expected, expected_n, &err, what);
    ag_free(entry);
    status = ag_ledger_receipt(ledger, i, &receipt, &n, &err);
    answered &= check_answer(status, receipt, n, good.receipts[i],
                             strlen(good.receipts[i]), &err, what);
    ag_free(receipt);
    id_of(i, id);
    status = ag_ledger_find(ledger, id, &found, &err);
    answered &= check_answer(status, found.index, found.count * sizeof(i), &i,
                             sizeof(i), &err, what);
    ag_free(found.index);
    return answered;
}

/* All that anybody can ask of the log; of a large one a part. False when not all of it
 * was answered. */
static bool
check_log(struct ag_ledger *ledger, const char *what)
{
    uint8_t salt[AG_HASH_SIZE];
    salt_of(ledger, salt);
    if (memcmp(salt, good.salt, AG_HASH_SIZE) != 0) {
        CHECK_FAIL("%s: another salt", what);
    }
    if (ag_ledger_size(ledger) != good.entries) {
        CHECK_FAIL("%s: %" PRIu64 " entries", what, ag_ledger_size(ledger));
    }
    uint64_t step = good.entries == SMALL ? 1 : 1 + check_random(&rng) % 30;
    bool answered = true;
    for (uint64_t i = check_random(&rng) % step; i < good.entries; i += step) {
        answered &= check_entry(ledger, i, what);
    }
    return answered;
}

static void
flip_and_open(const struct memfs_name *file, size_t at, unsigned bit)
{
    static struct memfs disk;
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    char what[200];
    uint8_t octet = good.disk.inodes[file->inode].data[at] ^ (uint8_t)(1u << bit);
    (void)snprintf(what, sizeof(what), "%s, octet %zu, bit %u",
                   file->path + strlen(dir), at, bit);
    memfs_share(&disk, &good.disk);
    memfs_put(&disk, file->inode, at, &octet, 1);
    memfs_drop_outside();
    if (open_on(&disk, &ledger, &err) == AG_OK) {
        if (check_log(ledger, what)) {
            opened++;
        } else {
            refused_later++;
        }
        close_ledger(ledger);
    } else {
        refused++;
        check_refusal(&err, what);
    }
    memfs_free(&disk);
}

static void
tell(void)
{
    fprintf(stderr, "    %lu unchanged, %lu refused when read, %lu when opened\n",
            opened, refused_later, refused);
}

static const struct memfs_name *
file_at(int i)
{
    const struct memfs_name *name = &good.disk.names[i];
    return name->inode >= 0 && good.disk.inodes[name->inode].size > 0 ? name : NULL;
}

static void
some_octets(uint64_t entries)
{
    make_good(entries);
    for (int i = 0; i < DRAWN;) {
        const struct memfs_name *file =
            file_at((int)(check_random(&rng) % (unsigned)good.disk.name_count));
        if (file != NULL) {
            size_t size = good.disk.inodes[file->inode].size;
            flip_and_open(file, check_random(&rng) % size, check_random(&rng) % 8);
            i++;
        }
    }
    drop_good();
}

/* Every octet whose number leaves `job` in a division by `jobs`. */
static void
every_octet(uint64_t entries, unsigned bits, unsigned jobs, unsigned job)
{
    make_good(entries);
    for (int i = 0; i < good.disk.name_count; i++) {
        const struct memfs_name *file = file_at(i);
        size_t size = file != NULL ? good.disk.inodes[file->inode].size : 0;
        if (job == 0 && size > 0) {
            fprintf(stderr, "    %s, %zu octets\n", file->path + strlen(dir), size);
        }
        for (size_t at = job; at < size; at += jobs) {
            for (unsigned bit = 0; bit < bits; bit++) {
                flip_and_open(file, at, bits == 8 ? bit : (unsigned)(at % 8));
            }
        }
    }
    drop_good();
}

static void
share_out(void)
{
    const char *every = getenv("AEGIS_EVERY"), *jobs = getenv("AEGIS_JOBS");
    unsigned bits = (unsigned)atoi(every),
             count = jobs != NULL ? (unsigned)atoi(jobs) : 1;
    for (unsigned job = 0; job < count; job++) {
        if (fork() == 0) {
            every_octet(SMALL, bits, count, job);
            every_octet(LARGE, bits, count, job);
            tell();
            _exit(0);
        }
    }
    for (unsigned job = 0; job < count; job++) {
        int status = 0;
        (void)wait(&status);
        ASSERT_EQ(status, 0);
    }
}

static void
drawn(void)
{
    rng = check_seed((uint64_t)getpid() ^ ag_clock_ns());
    some_octets(SMALL);
    some_octets(LARGE);
    tell();
    ASSERT_LT(0, opened);
    ASSERT_LT(0, refused);
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make(dir);
    make_shadow(dir);
    if (getenv("AEGIS_EVERY") != NULL) {
        RUN(share_out);
    } else {
        RUN(drawn);
    }
    scratch_remove(dir);
    return 0;
}
