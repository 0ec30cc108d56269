/* The fast pass over a published log, with every kind of damage, failing calls, failing
 * allocations, and from several threads.
 * links: alloc_fault io_fault scratch */
#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "alloc_fault.h"
#include "base/bytes.h"
#include "check.h"
#include "io_fault.h"
#include "log/audit.h"
#include "log/tile.h"
#include "scratch.h"

#define TILES 3
#define META                                                                           \
    "{\"v\":1,\"kind\":\"call\",\"id\":\"0190b0aa-0000-7000-8000-%012zu\","            \
    "\"time\":\"2026-01-02T03:04:05.123456Z\",\"status\":200}"

static char folder[256];
static uint8_t bundles[TILES][AG_TILE_WIDTH * 256];
static size_t bundle_sizes[TILES];
static uint8_t tiles[TILES][AG_TILE_BYTES], roots[TILES][AG_HASH_SIZE];

static void
tile_file(char path[512], unsigned level, size_t n)
{
    char name[AG_TILE_PATH_SIZE];
    ag_tile_path(name, level, n, AG_TILE_WIDTH);
    (void)scratch_path(path, folder, name);
}

static void
write_tile(size_t n)
{
    char path[512];
    tile_file(path, AG_TILE_ENTRIES, n);
    scratch_write(path, bundles[n], bundle_sizes[n]);
    tile_file(path, 0, n);
    scratch_write(path, tiles[n], AG_TILE_BYTES);
}

static void
make_log(void)
{
    char path[512];
    static const char *const names[] = {"tile", "tile/0", "tile/entries"};
    for (size_t i = 0; i < 3; i++) {
        ASSERT_EQ(mkdir(scratch_path(path, folder, names[i]), 0700), 0);
    }
    for (size_t n = 0; n < TILES; n++) {
        size_t at = 0;
        for (size_t i = 0; i < AG_TILE_WIDTH; i++) {
            char *entry = (char *)bundles[n] + at + 2;
            int size = snprintf(entry, 200, META, n * AG_TILE_WIDTH + i);
            ag_put_u16be(bundles[n] + at, (uint16_t)size);
            ag_leaf_hash(entry, (size_t)size, tiles[n] + i * AG_HASH_SIZE);
            at += 2 + (size_t)size;
        }
        bundle_sizes[n] = at;
        ag_tile_fold(tiles[n], 8, roots[n]);
        write_tile(n);
    }
}

static uint8_t flags[TILES], found[TILES][AG_HASH_SIZE];
static uint64_t octets;

static int
audit(const struct ag_io *io)
{
    memset(flags, 0xee, sizeof(flags));
    struct ag_error err;
    return ag_audit_tiles(io, folder, 0, TILES, flags, found, &octets, &err);
}

/* One flag at tile 1, the others in order. */
static void
expect(uint8_t flag)
{
    ASSERT_EQ(audit(ag_io_posix()), AG_OK);
    size_t sum = 0;
    for (size_t n = 0; n < TILES; n++) {
        ASSERT_EQ(flags[n], n == 1 ? flag : 0);
        sum += flags[n] == 0 ? bundle_sizes[n] : 0;
        if ((flags[n] & AG_AUDIT_BUNDLE) == 0 && (n != 1 || flag == 0)) {
            ASSERT_EQ_MEM(found[n], roots[n], AG_HASH_SIZE);
        }
    }
    ASSERT_EQ_U(octets, sum);
    write_tile(1);
}

static void
damage(void)
{
    char bundle[512], tile[512];
    tile_file(bundle, AG_TILE_ENTRIES, 1);
    tile_file(tile, 0, 1);
    expect(0);
    ASSERT_EQ(unlink(bundle), 0);
    expect(AG_AUDIT_BUNDLE);
    ASSERT_EQ(unlink(tile), 0);
    expect(AG_AUDIT_TILE);
    scratch_write(bundle, bundles[1], bundle_sizes[1] - 1);
    expect(AG_AUDIT_BUNDLE);
    scratch_write(bundle, bundles[1], 0);
    expect(AG_AUDIT_BUNDLE);
    scratch_write(tile, tiles[1], AG_TILE_BYTES - 1);
    expect(AG_AUDIT_TILE);
    static uint8_t longer[AG_TILE_WIDTH * 256 + 1];
    memcpy(longer, tiles[1], AG_TILE_BYTES);
    scratch_write(tile, longer, AG_TILE_BYTES + 1);
    expect(AG_AUDIT_TILE);
    memcpy(longer, bundles[1], bundle_sizes[1]);
    scratch_write(bundle, longer, bundle_sizes[1] + 1);
    expect(AG_AUDIT_BUNDLE);
    /* an entry of another kind: well-formed, with its own hash in the tile */
    char *kind = strstr((char *)longer + 2, "call");
    ASSERT_NOT_NULL(kind);
    memcpy(kind, "cell", 4);
    scratch_write(bundle, longer, bundle_sizes[1]);
    expect(AG_AUDIT_TILE | AG_AUDIT_ENTRY);
    /* nothing waits for a writer that never comes */
    ASSERT_EQ(unlink(bundle), 0);
    ASSERT_EQ(mkfifo(bundle, 0600), 0);
    ASSERT_EQ(audit(ag_io_posix()), AG_OK);
    ASSERT_EQ(flags[1], AG_AUDIT_BUNDLE);
    ASSERT_EQ(unlink(bundle), 0);
    write_tile(1);
    expect(0);
}

static void
every_octet(void)
{
    char path[512];
    for (unsigned level = 0; level <= AG_TILE_ENTRIES; level += AG_TILE_ENTRIES) {
        uint8_t *data = level == 0 ? tiles[1] : bundles[1];
        size_t n = level == 0 ? AG_TILE_BYTES : bundle_sizes[1];
        tile_file(path, level, 1);
        for (size_t at = 0; at < n; at += 37) {
            data[at] ^= 1;
            scratch_write(path, data, n);
            ASSERT_EQ(ag_audit_tiles(ag_io_posix(), folder, 1, 1, flags, found, &octets,
                                     NULL),
                      AG_OK);
            ASSERT_NE(flags[0], 0);
            data[at] ^= 1;
        }
        write_tile(1);
    }
}

/* A call that fails is a flag of its tile or is got over, never a wrong "in order". */
static void
failing_calls(void)
{
    static struct io_fault fault;
    static const int errors[] = {EIO, EMFILE, EINTR};
    for (size_t e = 0; e < 3; e++) {
        io_fault_init(&fault);
        ASSERT_EQ(audit(&fault.table), AG_OK);
        long calls = atomic_load(&fault.calls);
        ASSERT_LT(6 * TILES, calls);
        for (long at = 1; at <= calls; at++) {
            io_fault_init(&fault);
            fault.fail_at = at;
            fault.fail_for = 1;
            fault.fail_errno = errors[e];
            ASSERT_EQ(audit(&fault.table), AG_OK);
            size_t bad = 0;
            for (size_t n = 0; n < TILES; n++) {
                bad += flags[n] != 0;
                ASSERT((flags[n] & AG_AUDIT_ENTRY) == 0);
                if ((flags[n] & AG_AUDIT_BUNDLE) == 0) {
                    ASSERT_EQ_MEM(found[n], roots[n], AG_HASH_SIZE);
                }
            }
            ASSERT_LE(bad, 1);
        }
    }
}

static void
failing_allocations(void)
{
    long before = ag_test_live_blocks();
    for (long n = 1; n <= 3; n++) {
        octets = 77;
        ag_test_fail_alloc_at(n);
        int status = audit(ag_io_posix());
        ag_test_fail_alloc_at(0);
        ASSERT_EQ(status, n <= 2 ? AG_ENOMEM : AG_OK);
        ASSERT_EQ(octets == 77, n <= 2);
        ASSERT_EQ(ag_test_live_blocks(), before);
    }
    struct ag_error err;
    static char name[5000];
    memset(name, 'x', sizeof(name) - 1);
    ASSERT_EQ(
        ag_audit_tiles(ag_io_posix(), name, 0, TILES, flags, found, &octets, &err),
        AG_EINVAL);
}

static void *
audit_alone(void *arg)
{
    (void)arg;
    uint8_t own_flags[TILES], own[TILES][AG_HASH_SIZE];
    uint64_t sum;
    for (int i = 0; i < 20; i++) {
        ASSERT_EQ(
            ag_audit_tiles(ag_io_posix(), folder, 0, TILES, own_flags, own, &sum, NULL),
            AG_OK);
        ASSERT_EQ_MEM(own, roots, sizeof(roots));
    }
    return NULL;
}

static void
threads(void)
{
    pthread_t thread[4];
    for (size_t i = 0; i < 4; i++) {
        ASSERT_EQ(pthread_create(&thread[i], NULL, audit_alone, NULL), 0);
    }
    for (size_t i = 0; i < 4; i++) {
        ASSERT_EQ(pthread_join(thread[i], NULL), 0);
    }
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make(folder);
    make_log();
    RUN(damage);
    RUN(every_octet);
    RUN(failing_calls);
    RUN(failing_allocations);
    RUN(threads);
    scratch_remove(folder);
    return 0;
}
