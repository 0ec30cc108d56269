// links: memfs
/* Damage that is no crash: flipped bits, lost or foreign sectors and files. Whatever
 * happens to a closed log, recovery either refuses, naming the file, or returns every
 * record; it never returns a wrong one and never drops one in silence. */
#include "base/bytes.h"
#include "check.h"
#include "hash/crc32c.h"
#include "memfs.h"
#include "wal/reader.h"
#include "wal/salvage.h"
#include "wal/segment.h"

#if defined(__SANITIZE_THREAD__)
int
main(void)
{
    fprintf(stderr, "  one thread: nothing that this sanitizer could see\n");
    return 0;
}
#else

#define SEGMENT 16384u

static uint32_t
payload_of(uint64_t seq, uint32_t tag, uint8_t *to)
{
    uint64_t state = seq * 31 + tag;
    uint32_t n = 200 + (uint32_t)(seq * 37 % 900);
    for (uint32_t i = 0; i < n; i++) {
        to[i] = seq % 4 == 0 ? 0 : (uint8_t)check_random(&state);
    }
    to[0] = (uint8_t)tag;
    return n;
}

static void
add(struct ag_log *log, const uint8_t *payload, uint32_t n, bool flush)
{
    struct ag_error err;
    uint64_t seq = ag_log_last_seq(log) + log->nrec + 1;
    if (log->nrec == 0 && !ag_log_segment_takes(log, n)) {
        int fd = -1;
        bool direct = true;
        ASSERT_EQ(ag_log_make_segment(log->io, "L", log->segment_no + 1,
                                      log->segment_bytes, NULL, &direct, &fd, &err),
                  AG_OK);
        ASSERT_EQ(ag_log_rotate(log, fd, &err), AG_OK);
    }
    ASSERT(ag_log_batch_takes(log, n));
    ag_log_add(log, payload, n, ag_crc32c_mask(ag_wal_record_crc(seq, payload, n)));
    if (flush) {
        ASSERT_EQ(ag_log_flush(log, 0, &err), AG_OK);
    }
}

static void
start(struct ag_log *log, struct memfs *fs, struct ag_wal_recovery *recovery)
{
    const struct ag_wal_recover_options options = {0};
    struct ag_error err;
    ASSERT_EQ(ag_wal_recover(&fs->table, "L", &options, recovery, &err), AG_OK);
    ASSERT_EQ(ag_log_start(log, &fs->table, "L", NULL, SEGMENT, true, recovery, &err),
              AG_OK);
    ag_wal_recovery_free(recovery);
}

static void
make_directory(struct memfs *fs)
{
    const struct memfs_op directory = {.kind = MEMFS_LINK, .inode = -2, .to = "L"};
    memfs_init(fs);
    memfs_apply(fs, &directory);
}

/* Appends records up to `last` in batches of two and ends with a marker. */
static void
extend(struct memfs *fs, uint64_t last, uint32_t tag)
{
    static struct ag_log log;
    struct ag_wal_recovery recovery;
    struct ag_error err;
    uint8_t payload[2048];
    start(&log, fs, &recovery);
    while (ag_log_last_seq(&log) + log.nrec < last) {
        uint64_t seq = ag_log_last_seq(&log) + log.nrec + 1;
        add(&log, payload, payload_of(seq, tag, payload), seq % 2 == 0 || seq == last);
    }
    if (ag_log_marker_fits(&log)) {
        ASSERT_EQ(ag_log_flush(&log, AG_BATCH_MARKER, &err), AG_OK);
    }
    ag_log_stop(&log);
}

static struct memfs healthy;
static uint64_t healthy_last;

static void
make_healthy(void)
{
    make_directory(&healthy);
    healthy_last = 14;
    extend(&healthy, healthy_last, 1);
}

/* True when everything was recovered, false when refused; anything else ends the
 * program. */
static bool
recovers_all(struct memfs *fs, const char *what, uint64_t at)
{
    const struct ag_wal_recover_options options = {0};
    struct ag_wal_recovery recovery;
    struct ag_error err;
    int status = ag_wal_recover(&fs->table, "L", &options, &recovery, &err);
    uint64_t last = recovery.last_seq;
    ag_wal_recovery_free(&recovery);
    if (status != AG_OK) {
        if (err.what[0] == '\0' || err.file[0] == '\0') {
            CHECK_FAIL("%s at %" PRIu64 ": refused without a reason or file", what, at);
        }
        return false;
    }
    if (last != healthy_last) {
        CHECK_FAIL("%s at %" PRIu64 ": %" PRIu64 " of %" PRIu64 " records, in silence",
                   what, at, last, healthy_last);
    }
    struct ag_wal_reader *reader = NULL;
    ASSERT_EQ(ag_wal_reader_open(&fs->table, "L", NULL, 0, true, &reader, &err), AG_OK);
    uint64_t seq = 0, next = 1;
    const uint8_t *payload = NULL;
    uint8_t expected[2048];
    uint32_t n = 0;
    int got;
    while ((got = ag_wal_reader_next(reader, &seq, &payload, &n, &err)) == 1) {
        ASSERT_EQ_U(seq, next);
        ASSERT_EQ_U(n, payload_of(seq, 1, expected));
        ASSERT_EQ_MEM(payload, expected, n);
        next++;
    }
    if (got != 0 || next != last + 1) {
        CHECK_FAIL("%s at %" PRIu64 ": the reader ends at %" PRIu64 " (%d)", what, at,
                   next - 1, got);
    }
    ag_wal_reader_close(reader);
    return true;
}

/* The segment of a number in an image: its inode. */
static int
segment(const struct memfs *fs, uint32_t number)
{
    char path[AG_WAL_PATH];
    ASSERT_EQ(ag_wal_segment_path(path, "L", number, NULL), AG_OK);
    return memfs_find(fs, path);
}

static void
test_every_byte(void)
{
    static struct memfs fs;
    uint64_t rng = check_seed(3);
    unsigned refused = 0, whole = 0;
    for (uint32_t number = 1; segment(&healthy, number) >= 0; number++) {
        int inode = segment(&healthy, number);
        for (uint64_t at = 0; at < SEGMENT; at++) {
            memfs_share(&fs, &healthy);
            uint8_t byte = healthy.inodes[inode].data[at];
            byte ^= (uint8_t)(1u << check_random(&rng) % 8);
            memfs_put(&fs, inode, at, &byte, 1);
            bool all = recovers_all(&fs, "a flipped bit", number * 100000u + at);
            whole += all;
            refused += !all;
            memfs_free(&fs);
        }
    }
    int inode = memfs_find(&healthy, "L/LOG");
    for (uint64_t at = 0; at < healthy.inodes[inode].size; at++) {
        memfs_share(&fs, &healthy);
        uint8_t byte = (uint8_t)(healthy.inodes[inode].data[at] ^ 0x10);
        memfs_put(&fs, inode, at, &byte, 1);
        ASSERT(!recovers_all(&fs, "a flipped bit in LOG", at));
        memfs_free(&fs);
    }
    fprintf(stderr, "    %u refused, %u complete\n", refused, whole);
    ASSERT_LT_U(whole, refused);
}

static void
test_every_sector(void)
{
    static struct memfs fs;
    uint8_t sector[MEMFS_SECTOR];
    for (uint32_t number = 1; segment(&healthy, number) >= 0; number++) {
        int inode = segment(&healthy, number);
        for (int kind = 0; kind < 3; kind++) {
            for (uint64_t at = 0; at < SEGMENT; at += MEMFS_SECTOR) {
                memset(sector, kind == 0 ? 0 : 0xFF, sizeof(sector));
                if (kind == 2) {
                    memcpy(sector, healthy.inodes[inode].data + AG_WAL_BLOCK,
                           sizeof(sector));
                }
                memfs_share(&fs, &healthy);
                memfs_put(&fs, inode, at, sector, sizeof(sector));
                (void)recovers_all(&fs, "another sector", number * 100000u + at);
                memfs_free(&fs);
            }
        }
    }
}

static void
refuse(struct memfs *fs, const char *what)
{
    if (recovers_all(fs, what, 0)) {
        CHECK_FAIL("%s was accepted", what);
    }
    memfs_free(fs);
}

static void
drop_file(struct memfs *fs, const char *path)
{
    struct memfs_op op = {.kind = MEMFS_DROP};
    (void)snprintf(op.from, sizeof(op.from), "%s", path);
    memfs_apply(fs, &op);
}

static void
test_files(void)
{
    static struct memfs fs, other;
    char path[AG_WAL_PATH];
    uint32_t last = 1;
    while (segment(&healthy, last + 1) >= 0) {
        last++;
    }
    ASSERT_LE_U(4, last);
    for (uint32_t number = 1; number <= last; number++) {
        memfs_share(&fs, &healthy);
        ASSERT_EQ(ag_wal_segment_path(path, "L", number, NULL), AG_OK);
        drop_file(&fs, path);
        refuse(&fs, "a missing segment");
        memfs_share(&fs, &healthy);
        fs.inodes[segment(&fs, number)].size = SEGMENT - 512;
        refuse(&fs, "a shortened segment");
        memfs_share(&fs, &healthy);
        fs.inodes[segment(&fs, number)].size = 0;
        refuse(&fs, "an empty segment");
        memfs_share(&fs, &healthy);
        uint8_t extra = 0;
        memfs_put(&fs, segment(&fs, number), SEGMENT, &extra, 1);
        refuse(&fs, "a lengthened segment");
        memfs_share(&fs, &healthy);
        drop_file(&fs, path);
        struct memfs_op directory = {.kind = MEMFS_LINK, .inode = -2};
        (void)snprintf(directory.to, sizeof(directory.to), "%.95s", path);
        memfs_apply(&fs, &directory);
        refuse(&fs, "a directory in place of a segment");
        for (uint32_t twin = 1; twin <= last; twin++) {
            if (twin != number) {
                memfs_share(&fs, &healthy);
                const struct memfs_inode *from = &healthy.inodes[segment(&fs, twin)];
                memfs_put(&fs, segment(&fs, number), 0, from->data, SEGMENT);
                refuse(&fs, "a segment under the name of another");
            }
        }
    }
    memfs_share(&fs, &healthy);
    drop_file(&fs, "L/LOG");
    refuse(&fs, "a missing LOG");

    /* Another log, and a stray file. */
    make_directory(&other);
    extend(&other, healthy_last, 1);
    memfs_share(&fs, &healthy);
    memfs_put(&fs, segment(&fs, 2), 0, other.inodes[segment(&other, 2)].data, SEGMENT);
    refuse(&fs, "a segment of another log");
    memfs_free(&other);
    memfs_share(&fs, &healthy);
    struct memfs_op stray = {.kind = MEMFS_LINK, .inode = 0, .to = "L/segment.tmp"};
    memfs_apply(&fs, &stray);
    ASSERT(recovers_all(&fs, "a stray file", 0));
    memfs_free(&fs);
}

/* Two histories of one log: a restored copy that went on by itself. */
static void
test_fork(void)
{
    static struct memfs common, a, b, fs;
    make_directory(&common);
    extend(&common, 4, 1);
    memfs_copy(&a, &common);
    memfs_copy(&b, &common);
    uint64_t before = healthy_last;
    extend(&a, 14, 1);
    extend(&b, 14, 2);
    healthy_last = 14;
    ASSERT(recovers_all(&a, "the first history", 0));
    unsigned swapped = 0;
    for (uint32_t number = 3; segment(&a, number) >= 0 && segment(&b, number) >= 0;
         number++) {
        memfs_share(&fs, &a);
        memfs_put(&fs, segment(&fs, number), 0, b.inodes[segment(&b, number)].data,
                  SEGMENT);
        refuse(&fs, "a segment of another history");
        swapped++;
    }
    ASSERT_LT_U(0, swapped);
    /* A single batch of the other history, in its place. */
    memfs_share(&fs, &a);
    memfs_put(&fs, segment(&fs, 2), AG_WAL_BLOCK,
              b.inodes[segment(&b, 2)].data + AG_WAL_BLOCK, AG_WAL_BLOCK);
    refuse(&fs, "a batch of another history");
    healthy_last = before;
    memfs_free(&a);
    memfs_free(&b);
    memfs_free(&common);
}

/* Bytes that look like batches, zeros, or whitening words are payload like any other.
 */
static void
test_payloads(void)
{
    static struct memfs fs;
    static struct ag_log log;
    struct ag_wal_recovery recovery;
    struct ag_error err;
    uint8_t payload[8 * 1024];
    make_directory(&fs);
    start(&log, &fs, &recovery);
    for (int kind = 0; kind < 6; kind++) {
        memset(payload, kind == 1 ? 0xFF : kind == 2 ? 0xA5 : 0, sizeof(payload));
        if (kind == 3) {
            memcpy(payload, fs.inodes[segment(&fs, 1)].data + AG_WAL_BLOCK, 4096);
        }
        for (size_t i = 0; kind >= 4 && i < sizeof(payload); i += 8) {
            /* Sectors of zeros beside sectors of the words that would hide them. */
            uint16_t key = (uint16_t)(i / 1536);
            ag_put_u64le(payload + i,
                         key % 2 == 0 ? 0
                                      : ag_wal_whitening_word((uint16_t)(key / 2 + 1)));
        }
        uint32_t n = kind == 5 ? sizeof(payload) - 101 : 5000;
        add(&log, payload, n, true);
        const uint8_t *data = fs.inodes[segment(&fs, log.segment_no)].data;
        for (uint64_t at = AG_WAL_BLOCK; at < log.at; at += AG_WAL_SECTOR) {
            ASSERT(!ag_wal_is_zero(data + at, AG_WAL_SECTOR));
        }
    }
    ag_log_stop(&log);
    const struct ag_wal_recover_options options = {0};
    ASSERT_EQ(ag_wal_recover(&fs.table, "L", &options, &recovery, &err), AG_OK);
    ASSERT_EQ_U(recovery.last_seq, 6);
    ag_wal_recovery_free(&recovery);
    memfs_free(&fs);
    for (uint32_t key = 1; key <= UINT16_MAX; key++) {
        uint64_t word = ag_wal_whitening_word((uint16_t)key);
        ASSERT(word != 0 && word != UINT64_MAX);
    }
}

static int
count(void *ctx, uint64_t offset, uint64_t seq, const uint8_t *payload, uint32_t n)
{
    uint8_t expected[2048];
    (void)offset;
    ASSERT_EQ_U(n, payload_of(seq, 1, expected));
    ASSERT_EQ_MEM(payload, expected, n);
    ++*(unsigned *)ctx;
    return 0;
}

/* Salvage reads on behind a hole, and gives whole records only. */
static void
test_salvage(void)
{
    static struct memfs fs;
    unsigned all = 0, left = 0;
    memfs_copy(&fs, &healthy);
    for (uint32_t number = 1; segment(&fs, number) >= 0; number++) {
        struct memfs_inode *inode = &fs.inodes[segment(&fs, number)];
        ASSERT_EQ(ag_wal_salvage(inode->data, inode->size, 0, number, count, &all), 0);
    }
    ASSERT_EQ_U(all, healthy_last);
    memfs_free(&fs);
    memfs_copy(&fs, &healthy);
    fs.inodes[segment(&fs, 1)].data[AG_WAL_BLOCK + 100] ^= 1;
    for (uint32_t number = 1; segment(&fs, number) >= 0; number++) {
        struct memfs_inode *inode = &fs.inodes[segment(&fs, number)];
        ASSERT_EQ(ag_wal_salvage(inode->data, inode->size, 0, number, count, &left), 0);
    }
    ASSERT_EQ_U(left, healthy_last - 2);
    memfs_free(&fs);
}

/* An operator's order goes exactly where it points, and is remembered. */
static void
test_accept_tail(void)
{
    static struct memfs fs;
    static struct ag_log log;
    struct ag_wal_recovery recovery;
    struct ag_error err, other;
    make_directory(&fs);
    extend(&fs, 4, 1);
    fs.inodes[segment(&fs, 1)].data[2 * AG_WAL_BLOCK + 100] ^= 1; /* the second batch */
    struct ag_wal_recover_options options = {0};
    ASSERT_EQ(ag_wal_recover(&fs.table, "L", &options, &recovery, &err), AG_ECORRUPT);
    ag_wal_recovery_free(&recovery);
    ASSERT_EQ_U(err.offset, 2 * AG_WAL_BLOCK);
    ASSERT(strstr(err.advice, "accept-tail DIR --at 8192 --expect-seq 2") != NULL);
    options.accept_at = err.offset;
    options.accept_seq = err.index; /* one too many */
    ASSERT_EQ(ag_wal_recover(&fs.table, "L", &options, &recovery, &other), AG_ECORRUPT);
    ag_wal_recovery_free(&recovery);
    options.accept_seq = err.index - 1;
    ASSERT_EQ(ag_wal_recover(&fs.table, "L", &options, &recovery, &err), AG_OK);
    ASSERT_EQ_U(recovery.last_seq, 2);
    ASSERT_EQ(ag_log_start(&log, &fs.table, "L", NULL, SEGMENT, true, &recovery, &err),
              AG_OK);
    ag_log_stop(&log);
    ag_wal_recovery_free(&recovery);
    struct ag_wal_segment_header header;
    ASSERT_EQ(ag_wal_decode_segment(fs.inodes[segment(&fs, 2)].data, &header),
              AG_READ_OK);
    ASSERT_EQ_U(header.flags, AG_SEGMENT_TAIL_ACCEPTED);
    options.accept_at = options.accept_seq = 0;
    ASSERT_EQ(ag_wal_recover(&fs.table, "L", &options, &recovery, &err), AG_OK);
    ASSERT_EQ_U(recovery.last_seq, 2);
    ag_wal_recovery_free(&recovery);
    memfs_free(&fs);
}

int
main(void)
{
    make_healthy();
    RUN(test_every_byte);
    RUN(test_every_sector);
    RUN(test_files);
    RUN(test_fork);
    RUN(test_payloads);
    RUN(test_salvage);
    RUN(test_accept_tail);
    memfs_free(&healthy);
    return 0;
}
#endif
