/* The low-water mark of a ledger: the size up to which tiles and bundles on disk are
 * synced and stand for themselves. Recovery replays the log from there on; whole
 * segments of the log below it are no longer needed. Kept with the log's own mark as
 *     {version u8 = 1, zero[7], size u64le, root[32]}. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "log/ledger_state.h"
#include "wal/recovery.h"

#define MARK_VERSION 1
#define MARK_SIZE 48

int
ag_ledger_read_mark(struct ag_ledger *ledger, uint64_t *size,
                    uint8_t root[AG_HASH_SIZE], struct ag_error *err)
{
    uint64_t seq = 0;
    uint8_t *blob = NULL;
    uint32_t n = 0;
    int status = ag_wal_low_water(ledger->wal, &seq, &blob, &n);
    if (status != AG_OK) {
        return ag_fail(err, status, "cannot read the low-water mark");
    }
    if (n == 0 && seq == 0) {
        *size = 0;
        ag_sha256("", 0, root);
    } else if (n != MARK_SIZE || blob[0] != MARK_VERSION ||
               ag_get_u64le(blob + 8) != seq) {
        status = ag_fail(err, AG_EVERSION, "low-water mark of an unknown version");
        ag_error_file(err, ledger->private_dir, AG_NO_POSITION);
        ag_error_advice(err, "Open this log with the version that wrote it.");
    } else {
        *size = seq;
        memcpy(root, blob + 16, AG_HASH_SIZE);
    }
    ag_free(blob);
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
    uint8_t blob[MARK_SIZE] = {MARK_VERSION};
    const struct ag_io *io = ledger->io;
    uint64_t size = ledger->checkpoint_size;
    /* The files of this size were written when it was published. */
    int result = io->sync_fs(io->ctx, ledger->store.root);
    if (result < 0) {
        return ag_fail_sys(err, -result, ledger->store.root, "syncfs");
    }
    ag_put_u64le(blob + 8, size);
    memcpy(blob + 16, ledger->checkpoint_root, AG_HASH_SIZE);
    int status = ag_wal_set_low_water(ledger->wal, size, blob, sizeof(blob), err);
    if (status == AG_OK) {
        ledger->low_water = size;
        /* Segments that went to the archive: their entries are in bundles now. */
        (void)io->list(io->ctx, ledger->archive, drop_segment, ledger);
    }
    return status;
}
