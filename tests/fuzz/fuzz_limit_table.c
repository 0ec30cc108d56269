/* Fuzz target: limiter tables out of any bytes. The input patches a healthy file, of
 * rates or of what is in flight, and may have its checksum mended. Opening it ends with
 * a status; what was opened answers every call within its own numbers, and ends. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "hash/crc32c.h"
#include "limit/concurrency.h"
#include "limit/limit.h"

#define ROOM 16384u
#define SECOND UINT64_C(1000000000)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64], path[96];
static uint8_t healthy[2][ROOM];
static size_t bytes[2];
static const struct ag_moment moment = {{7}, 1000 * SECOND, 5000 * SECOND};

static uint64_t
told_time(void)
{
    return moment.boot_ns;
}

static struct ag_table *
open_rates(void)
{
    struct ag_error err;
    struct ag_table *t = NULL;
    const struct ag_table_options options = {
        .path = path, .slots = 64, .now = &moment, .clock = told_time};
    return ag_table_open(&options, &t, &err) == AG_OK ? t : NULL;
}

static struct ag_concurrency *
open_calls(void)
{
    struct ag_error err;
    struct ag_concurrency *c = NULL;
    const struct ag_concurrency_options options = {
        .path = path, .slots = 32, .workers = 5, .now = &moment};
    return ag_concurrency_open(&options, &c, &err) == AG_OK ? c : NULL;
}

static void
use_rates(struct ag_table *t)
{
    struct ag_error err;
    struct ag_limit limit;
    struct ag_table_stats stats;
    if (ag_limit_init(&limit, t, "x", 1, 10, SECOND, 10, &err) != AG_OK) {
        abort();
    }
    for (unsigned i = 0; i < 40; i++) {
        char key[8];
        int n = snprintf(key, sizeof(key), "%u", i % 10);
        uint64_t tag = ag_limit_tag(&limit, key, (size_t)n);
        struct ag_charge charge;
        if (ag_limit_acquire(&limit, tag, 1 + i % 3, told_time(), &charge) != AG_OK ||
            charge.level > AG_LEVEL_MAX ||
            (charge.allowed && charge.level > limit.gcra.tolerance)) {
            abort();
        }
        if (charge.allowed) {
            (void)ag_limit_settle(&limit, tag, 1 + i % 3, i % 5, charge.at,
                                  told_time());
        }
    }
    ag_table_stats(t, told_time(), &stats);
    if (stats.live > stats.slots) {
        abort();
    }
    ag_table_close(t);
}

static void
use_calls(struct ag_concurrency *c)
{
    enum { LIMIT = 3 };
    int64_t leases[24] = {0};
    struct ag_error err;
    struct ag_concurrency_stats stats;
    (void)ag_concurrency_reap(c);
    for (unsigned i = 0; i < 24; i++) {
        char key[8];
        int n = snprintf(key, sizeof(key), "%u", i % 6);
        uint64_t tag = ag_concurrency_tag(c, key, (size_t)n);
        (void)ag_concurrency_enter(c, tag, LIMIT, &leases[i], &err);
        if (leases[i] != 0 && ag_concurrency_count(c, tag) > LIMIT) {
            abort();
        }
    }
    for (unsigned i = 0; i < 24; i++) {
        (void)ag_concurrency_leave(c, leases[i]);
    }
    ag_concurrency_stats(c, &stats);
    if (stats.used > stats.slots || stats.rows > stats.workers) {
        abort();
    }
    ag_concurrency_close(c);
}

static void
write_path(const uint8_t *from, size_t n)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(from, 1, n, file) != n || fclose(file) != 0) {
        abort();
    }
}

static void
mend(uint8_t *file)
{
    const size_t at = offsetof(struct ag_area_header, crc);
    uint32_t crc = ag_crc32c(0, file, at);
    memcpy(file + at, &crc, sizeof(crc));
}

static void
read_healthy(int kind)
{
    FILE *file = fopen(path, "rb");
    bytes[kind] = file == NULL ? 0 : fread(healthy[kind], 1, ROOM, file);
    if (bytes[kind] <= AG_AREA_HEADER || bytes[kind] == ROOM || fclose(file) != 0 ||
        unlink(path) != 0) {
        abort();
    }
    /* the same hashes every time */
    memset(healthy[kind] + offsetof(struct ag_area_header, key), 5,
           sizeof(struct ag_siphash_key));
    mend(healthy[kind]);
}

static void
forget(void)
{
    (void)unlink(path);
    (void)rmdir(folder);
}

static void
prepare(void)
{
    (void)snprintf(folder, sizeof(folder), "/dev/shm/aegis-fuzz-XXXXXX");
    if (mkdtemp(folder) == NULL || atexit(forget) != 0) {
        abort();
    }
    (void)snprintf(path, sizeof(path), "%s/table", folder);
    ag_table_close(open_rates());
    read_healthy(0);
    ag_concurrency_close(open_calls());
    read_healthy(1);
    write_path(healthy[0], bytes[0]);
    if (chmod(path, 0600) != 0) {
        abort();
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t file[ROOM];
    if (folder[0] == '\0') {
        prepare();
    }
    if (size < 1) {
        return 0;
    }
    int kind = data[0] & 1;
    size_t n = bytes[kind];
    memcpy(file, healthy[kind], n);
    for (size_t used = 1; used + 3 <= size; used += 3) {
        size_t at = ag_get_u16le(data + used) % n;
        /* Most of the first page is empty, and mutexes are as they were made. */
        at = at < AG_AREA_HEADER ? at % 256 : at;
        if (kind == 1 || at < AG_AREA_HEADER || at >= AG_AREA_HEADER + 4096) {
            file[at] = data[used + 2];
        }
    }
    if (data[0] & 2) {
        mend(file);
    }
    write_path(file, data[0] & 4 ? n - data[0] % 8 : n);
    if (kind == 0) {
        struct ag_table *t = open_rates();
        if (t != NULL) {
            use_rates(t);
        }
    } else {
        struct ag_concurrency *c = open_calls();
        if (c != NULL) {
            use_calls(c);
        }
    }
    return 0;
}
