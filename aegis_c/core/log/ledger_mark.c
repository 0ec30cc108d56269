/* The low-water mark of a ledger: the size up to which tiles and bundles on disk are
 * synced and stand for themselves. Recovery replays the log from there on; whole
 * segments of the log below it are no longer needed. It carries the intents below it
 * that have no settle yet, so that a start needs only what follows. Kept with the log's
 * own mark as
 *     {version u8 = 2, zero[7], size u64le, root[32], count u64le, count * u64le}. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "log/ledger_state.h"
#include "wal/recovery.h"

#define MARK_VERSION 2
#define MARK_SIZE 56 /* before the intents */
#define INTENTS_MAX ((AG_WAL_BLOB_MAX - MARK_SIZE) / 8)

/* The intents of a mark into the ledger's set. */
static int
read_intents(struct ag_ledger *ledger, const uint8_t *blob, uint32_t n, uint64_t size,
             struct ag_error *err)
{
    uint64_t count = ag_get_u64le(blob + 48), before = 0;
    int status =
        count <= INTENTS_MAX && n == MARK_SIZE + count * 8 ? AG_OK : AG_ECORRUPT;
    for (uint64_t i = 0; status == AG_OK && i < count; i++) {
        const struct ag_entry_head intent = {.kind = AG_KIND_INTENT};
        uint64_t index = ag_get_u64le(blob + MARK_SIZE + i * 8);
        if (index >= size || (i > 0 && index <= before)) {
            status = AG_ECORRUPT;
        } else if (ag_intents_reserve(&ledger->intents) != AG_OK) {
            return ag_fail(err, AG_ENOMEM, "no memory for the open intents");
        } else {
            ag_intents_take(&ledger->intents, index, &intent);
        }
        before = index;
    }
    if (status != AG_OK) {
        status = ag_fail(err, AG_ECORRUPT, "low-water mark has an impossible intent");
        ag_error_file(err, ledger->private_dir, AG_NO_POSITION);
        ag_error_advice(err, "Restore the private folder of this log from a copy.");
    }
    return status;
}

int
ag_ledger_read_mark(struct ag_ledger *ledger, const struct ag_wal_found *found,
                    uint64_t *size, uint8_t root[AG_HASH_SIZE], struct ag_error *err)
{
    uint64_t seq = found->low_water;
    const uint8_t *blob = found->blob;
    uint32_t n = found->blob_len;
    int status = AG_OK;
    if (n == 0 && seq == 0) {
        *size = 0;
        ag_sha256("", 0, root);
    } else if (n < MARK_SIZE || blob[0] != MARK_VERSION ||
               ag_get_u64le(blob + 8) != seq) {
        status = ag_fail(err, AG_EVERSION, "low-water mark of an unknown version");
        ag_error_file(err, ledger->private_dir, AG_NO_POSITION);
        ag_error_advice(err, "Open this log with the version that wrote it.");
    } else {
        *size = seq;
        memcpy(root, blob + 16, AG_HASH_SIZE);
        status = read_intents(ledger, blob, n, seq, err);
    }
    return status;
}

static void
drop_segment(void *arg, const char *name)
{
    const struct ag_ledger *ledger = arg;
    char path[PATH_MAX];
    if (ag_wal_segment_number(name) != 0 &&
        ag_wal_path(path, ledger->archive, name, NULL) == AG_OK) {
        (void)ledger->io->unlink(ledger->io->ctx,
                                 path); /* tried again with the next mark */
    }
}

int
ag_ledger_advance_mark(struct ag_ledger *ledger, struct ag_error *err)
{
    const struct ag_io *io = ledger->io;
    const struct ag_intents *intents = &ledger->intents;
    uint64_t size = ledger->checkpoint_size;
    size_t count = 0;
#ifndef AG_MUTANT_FORGET_INTENTS
    while (count < intents->count && intents->index[count] < size) {
        count++;
    }
#endif
    if (count > INTENTS_MAX) { /* so many are of a past that was never settled */
        return ag_fail(err, AG_ETOOBIG, "%zu intents without a settle", count);
    }
    /* The files of this size were written when it was published. */
    int result = io->sync_fs(io->ctx, ledger->store.root_fd);
    if (result < 0) {
        /* Whatever a second attempt says, files may be lost that memory still shows. */
        ledger->tiles_doubtful = true;
        int status = ag_fail_sys(err, -result, ledger->store.root, "syncfs");
        ag_error_advice(err, "Mend the disk and open the ledger anew: until then the "
                             "log keeps every entry since the last mark.");
        return status;
    }
    uint32_t n = (uint32_t)(MARK_SIZE + count * 8);
    uint8_t *blob = ag_calloc(1, n);
    if (blob == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the low-water mark");
    }
    blob[0] = MARK_VERSION;
    ag_put_u64le(blob + 8, size);
    memcpy(blob + 16, ledger->checkpoint_root, AG_HASH_SIZE);
    ag_put_u64le(blob + 48, count);
    for (size_t i = 0; i < count; i++) {
        ag_put_u64le(blob + MARK_SIZE + i * 8, intents->index[i]);
    }
    int status = ag_wal_set_low_water(ledger->wal, size, blob, n, err);
    ag_free(blob);
    if (status == AG_OK) {
        uint64_t before = ledger->low_water;
        ledger->low_water = size;
        ag_ledger_drop_partials(ledger, before, size);
        /* Segments that went to the archive: their entries are in bundles now. */
        (void)io->list(io->ctx, ledger->archive, drop_segment, ledger);
        ag_ids_drop_tails(&ledger->ids, size);
    }
    return status;
}
