/* A column of made-up ids, for the tests of the id column. */
#ifndef IDS_COLUMN_H
#define IDS_COLUMN_H

#include <stdio.h>

#include "base/alloc.h"
#include "check.h"
#include "log/ids.h"
#include "log/ids_page.h"
#include "scratch.h"

#define RUNS 1u
#define SIZE (RUNS * AG_IDS_RUN + 1000u) /* a whole run and a tail */
#define VKEY "example.org/w0+01020304+AAAA"

static char dir[256];
static _Atomic long bundles_read;
static uint64_t column[SIZE + 4096][2];

/* The id of entry i: arbitrary, but every 1,000th is that of an entry long before (a
 * stream's settle), every 5,000th is one and the same, and some entries have none. */
static void
make_ids(void)
{
    for (uint64_t i = 0; i < SIZE + 4096; i++) {
        uint64_t state = i % 5000 == 0 ? 0 : i % 1000 == 0 ? i / 2 + 1 : i;
        column[i][0] = i % 5003 == 7 ? 0 : check_random(&state);
        column[i][1] = i % 5003 == 7 ? 0 : check_random(&state);
    }
}

static void
id_of(uint64_t i, uint8_t id[AG_UUID_SIZE])
{
    memcpy(id, column[i], AG_UUID_SIZE);
}

static int
make_bundle(void *ctx, uint64_t n, uint8_t **bytes, size_t *bytes_n,
            struct ag_error *err)
{
    const uint64_t *shift = ctx; /* NULL: 0 */
    (void)err;
    uint8_t *to = ag_alloc(256 * 64);
    size_t used = 0;
    ASSERT_NOT_NULL(to);
    bundles_read++;
    for (uint64_t i = n * 256; i < (n + 1) * 256; i++) {
        char text[64] = "{\"id\":\"--------------------------------------";
        uint8_t id[AG_UUID_SIZE];
        int length = 7;
        id_of(i + (shift != NULL ? *shift : 0), id);
        for (size_t k = 0; k < AG_UUID_SIZE; k++) {
            length += k == 4 || k == 6 || k == 8 || k == 10;
            text[length++] = "0123456789abcdef"[id[k] >> 4];
            text[length++] = "0123456789abcdef"[id[k] & 15];
        }
        text[length++] = '"';
        text[length++] = '}';
        ag_put_u16be(to + used, (uint16_t)length);
        memcpy(to + used + 2, text, (size_t)length);
        used += 2 + (size_t)length;
    }
    *bytes = to;
    *bytes_n = used;
    return AG_OK;
}

static int
believe(void *ctx, uint64_t n, const uint8_t *bytes, size_t bytes_n, size_t first,
        size_t count, struct ag_error *err)
{
    (void)ctx, (void)n, (void)bytes, (void)bytes_n, (void)first, (void)count, (void)err;
    return AG_OK;
}

static const struct ag_ids_source source = {make_bundle, believe, NULL};

static void
open_column(struct ag_ids *ids, const struct ag_io *io, const char *name,
            const char *vkey, uint64_t size)
{
    char path[512];
    struct ag_error err;
    memset(ids, 0, sizeof(*ids));
    ids->tail_fd = -1;
    scratch_path(path, dir, name);
    (void)ag_io_make_dirs(io, path, 0700, &err);
    ASSERT_EQ(ag_ids_place_init(&ids->place, io, path, vkey, strlen(vkey), &err),
              AG_OK);
    int status = ag_ids_open(ids, size, &source, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s", ag_status_name(status), err.what);
    }
}

static void
grow(struct ag_ids *ids, uint64_t to, uint64_t flush_every)
{
    struct ag_error err;
    for (uint64_t i = ids->size; i < to; i++) {
        uint8_t id[AG_UUID_SIZE];
        id_of(i, id);
        ASSERT_EQ(ag_ids_add(ids, i, id, &err), AG_OK);
        ASSERT_EQ(ag_ids_add(ids, i, id, &err), AG_OK); /* as after a failed tile */
        if (i % flush_every == 0) {
            ASSERT_EQ(ag_ids_flush(ids, &err), AG_OK);
        }
    }
    ASSERT_EQ(ag_ids_flush(ids, &err), AG_OK);
    ASSERT_EQ_U(ids->written, to);
}

#endif
