/* The tree of a ledger: loading, integrating entries, publishing. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "log/ledger_state.h"

/* ---- loading ---- */

static int
load_bundle(struct ag_ledger *ledger, uint64_t size, struct ag_error *err)
{
    uint8_t *bytes = NULL;
    size_t n = 0, offset = 0;
    unsigned width = (unsigned)(size % AG_TILE_WIDTH);
    if (width == 0) {
        return AG_OK;
    }
    int status = ag_store_read_bundle(&ledger->store, size / AG_TILE_WIDTH, width,
                                      &bytes, &n, err);
    for (unsigned i = 0; status == AG_OK && i < width; i++) {
        const uint8_t *entry = NULL;
        uint8_t leaf[AG_HASH_SIZE];
        size_t entry_n = 0;
        status = ag_bundle_next(bytes, n, &offset, &entry, &entry_n, NULL);
        if (status == AG_OK) {
            ag_leaf_hash(entry, entry_n, leaf);
            if (memcmp(leaf, ledger->frontier.tile[0][i], AG_HASH_SIZE) != 0) {
                status = AG_ECORRUPT;
            }
        }
        if (status == AG_OK &&
            ag_bundle_add(&ledger->bundle, entry, entry_n) != AG_OK) {
            status = ag_fail(err, AG_ENOMEM, "no memory for the entry bundle");
        }
    }
    if (status == AG_ECORRUPT) {
        status = ag_store_refuse(&ledger->store, AG_TILE_ENTRIES, size / AG_TILE_WIDTH,
                                 width, "entry differs from its hash", err);
    }
    ag_free(bytes);
    return status;
}

int
ag_ledger_load_tree(struct ag_ledger *ledger, uint64_t size, struct ag_error *err)
{
    struct ag_frontier *frontier = &ledger->frontier;
    int status = AG_OK;
    for (unsigned level = 0; status == AG_OK && level < AG_TILE_LEVELS; level++) {
        uint64_t count = ag_tile_count(size, level);
        unsigned width = (unsigned)(count % AG_TILE_WIDTH);
        if (width != 0) {
            status =
                ag_store_read_hashes(&ledger->store, level, count / AG_TILE_WIDTH,
                                     width, 0, width, frontier->tile[level][0], err);
        }
    }
    frontier->size = size;
    if (status == AG_OK) {
        status = load_bundle(ledger, size, err);
    }
    if (status != AG_OK && status != AG_ENOMEM) {
        ag_error_advice(err,
                        "Run `aegis-c ledger fsck` and restore the named file from a "
                        "copy.");
    }
    return status;
}

/* ---- integrating ---- */

struct full_ctx {
    struct ag_ledger *ledger;
    bool compare;
    struct ag_error *err;
};

static int
put(struct ag_ledger *ledger, bool compare, unsigned level, uint64_t n, unsigned width,
    const uint8_t *bytes, size_t bytes_n, struct ag_error *err)
{
    char name[AG_TILE_PATH_SIZE];
    ag_tile_path(name, level, n, width);
    return compare ? ag_store_ensure(&ledger->store, name, bytes, bytes_n, err)
                   : ag_store_put(&ledger->store, name, bytes, bytes_n, err);
}

static int
write_full_tile(void *ctx, unsigned level, uint64_t n,
                const uint8_t tile[AG_TILE_BYTES])
{
    const struct full_ctx *c = ctx;
    if (level == 0) {
        const struct ag_bundle *bundle = &c->ledger->bundle;
        int status = put(c->ledger, c->compare, AG_TILE_ENTRIES, n, AG_TILE_WIDTH,
                         bundle->bytes, bundle->used, c->err);
        if (status != AG_OK) {
            return status;
        }
    }
    return put(c->ledger, c->compare, level, n, AG_TILE_WIDTH, tile, AG_TILE_BYTES,
               c->err);
}

int
ag_ledger_integrate(struct ag_ledger *ledger, const uint8_t *entry, size_t n,
                    bool compare, struct ag_error *err)
{
    struct full_ctx ctx = {ledger, compare, err};
    struct ag_entry_head head;
    uint8_t leaf[AG_HASH_SIZE];
    uint64_t index = ledger->frontier.size;
    if (n > AG_ENTRY_MAX) {
        return ag_fail(err, AG_ECORRUPT, "entry has %zu octets, at most %d allowed", n,
                       AG_ENTRY_MAX);
    }
    ag_entry_head(entry, n, &head);
    int status = ag_ids_add(&ledger->ids, index, head.id, err);
    if (status != AG_OK) {
        return status;
    }
    if (ag_intents_reserve(&ledger->intents) != AG_OK) {
        return ag_fail(err, AG_ENOMEM, "no memory for the open intents");
    }
    ag_leaf_hash(entry, n, leaf);
    pthread_mutex_lock(&ledger->tree_lock);
    status = ag_bundle_add(&ledger->bundle, entry, n);
    pthread_mutex_unlock(&ledger->tree_lock);
    if (status != AG_OK) {
        return ag_fail(err, status, "no memory for the entry bundle");
    }
    /* Full tiles are on disk before the frontier forgets them: readers always find a
     * hash in one place or the other. */
    status = ag_frontier_flush(&ledger->frontier, leaf, write_full_tile, &ctx);
    pthread_mutex_lock(&ledger->tree_lock);
    if (status != AG_OK) {
        ag_bundle_drop_last(&ledger->bundle);
    } else {
        ag_frontier_append(&ledger->frontier, leaf);
        if (ledger->frontier.size % AG_TILE_WIDTH == 0) {
            ledger->bundle.used = 0;
            ledger->bundle.count = 0;
        }
    }
    pthread_mutex_unlock(&ledger->tree_lock);
    if (status == AG_OK) {
        ag_intents_take(&ledger->intents, index, &head);
    }
    return status;
}

/* ---- the tree as the disk has it ---- */

/* Of the tree of `size` entries, its partial tiles included; what it reads is checked
 * by its caller. */
struct disk_ctx {
    struct ag_ledger *ledger;
    uint64_t size;
    struct ag_error *err;
    bool again; /* with the other kernel */
};

/* ag_tile_fold with the other kernel; `hashes` is overwritten. */
static int
fold_again(uint8_t *hashes, unsigned height, uint8_t out[AG_HASH_SIZE])
{
    int status = AG_OK;
    for (size_t pairs = ((size_t)1 << height) / 2; pairs > 0; pairs /= 2) {
        for (size_t i = 0; status == AG_OK && i < pairs; i++) {
            status = ag_node_hash_again(hashes + 2 * i * AG_HASH_SIZE,
                                        hashes + (2 * i + 1) * AG_HASH_SIZE,
                                        hashes + i * AG_HASH_SIZE);
        }
    }
    memcpy(out, hashes, AG_HASH_SIZE);
    return status;
}

static int
disk_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    const struct disk_ctx *c = ctx;
    unsigned level = height / 8, fold = height % 8;
    uint64_t first = index << fold, n = first / AG_TILE_WIDTH;
    uint64_t complete = ag_tile_count(c->size, level);
    bool partial = n == complete / AG_TILE_WIDTH;
    unsigned width = partial ? (unsigned)(complete % AG_TILE_WIDTH) : AG_TILE_WIDTH;
    uint8_t hashes[AG_TILE_BYTES / 2];
    int status =
        ag_store_read_hashes(&c->ledger->store, level, n, width, first % AG_TILE_WIDTH,
                             (size_t)1 << fold, hashes, c->err);
    if (status != AG_OK) {
        return status;
    }
    if (c->again) {
        return fold_again(hashes, fold, out);
    }
    ag_tile_fold(hashes, fold, out);
    return AG_OK;
}

/* ---- publishing ---- */

/* Whether the last checkpoint or the low-water mark stands on the same partial tile. It
 * is there then; and that of the mark, which is synced and never made anew, must not
 * give way to a file that is not. */
static bool
is_written(const struct ag_ledger *ledger, unsigned level, uint64_t count)
{
    return count == ag_tile_count(ledger->checkpoint_size, level) ||
           count == ag_tile_count(ledger->low_water, level);
}

int
ag_ledger_write_partials(struct ag_ledger *ledger, bool compare, struct ag_error *err)
{
    const struct ag_frontier *frontier = &ledger->frontier;
    int status = AG_OK;
    for (unsigned level = 0; status == AG_OK && level < AG_TILE_LEVELS; level++) {
        uint64_t count = ag_tile_count(frontier->size, level);
        unsigned width = (unsigned)(count % AG_TILE_WIDTH);
        if (width == 0 || (!compare && is_written(ledger, level, count))) {
            continue;
        }
        if (level == 0) {
            status = put(ledger, compare, AG_TILE_ENTRIES, count / AG_TILE_WIDTH, width,
                         ledger->bundle.bytes, ledger->bundle.used, err);
        }
        if (status == AG_OK) {
            status = put(ledger, compare, level, count / AG_TILE_WIDTH, width,
                         frontier->tile[level][0], width * AG_HASH_SIZE, err);
        }
    }
    return status;
}

void
ag_ledger_drop_partials(struct ag_ledger *ledger, uint64_t from, uint64_t to)
{
    for (unsigned level = 0; level < AG_TILE_LEVELS; level++) {
        uint64_t marked = ag_tile_count(ledger->low_water, level);
        uint64_t end = ag_tile_count(to, level) / AG_TILE_WIDTH;
        for (uint64_t n = ag_tile_count(from, level) / AG_TILE_WIDTH; n < end; n++) {
#ifndef AG_MUTANT_COLLECT_MARKED
            if (n == marked / AG_TILE_WIDTH && marked % AG_TILE_WIDTH != 0) {
                continue;
            }
#endif
            ag_store_drop_partials(&ledger->store, level, n);
            if (level == 0) {
                ag_store_drop_partials(&ledger->store, AG_TILE_ENTRIES, n);
            }
        }
    }
}

/* The root out of the tile bytes on disk, all of it with the other kernel: the peaks of
 * the tree, bagged from the right (RFC 6962 section 2.1). */
static int
root_again(const struct disk_ctx *disk, uint64_t size, uint8_t root[AG_HASH_SIZE])
{
    struct disk_ctx ctx = {disk->ledger, disk->size, disk->err, true};
    uint8_t peaks[64][AG_HASH_SIZE];
    unsigned count = 0;
    uint64_t at = 0;
    int status = AG_OK;
    for (unsigned height = 64; status == AG_OK && height-- > 0;) {
        if ((size >> height & 1) != 0) {
            status = disk_node(&ctx, height, at >> height, peaks[count++]);
            at += (uint64_t)1 << height;
        }
    }
    for (unsigned i = count - 1; status == AG_OK && i > 0; i--) {
        status = ag_node_hash_again(peaks[i - 1], peaks[i], peaks[i - 1]);
    }
    memcpy(root, peaks[0], AG_HASH_SIZE);
    return status;
}

/* What is about to be signed is recomputed from the bytes on disk, and must extend what
 * was signed last. */
static int
check_before_signing(struct ag_ledger *ledger, uint64_t size,
                     const uint8_t root[AG_HASH_SIZE], struct ag_error *err)
{
    struct disk_ctx disk = {ledger, size, err, false};
    uint8_t again[AG_HASH_SIZE], proof[AG_PROOF_MAX][AG_HASH_SIZE], leaf[AG_HASH_SIZE];
    size_t count = 0;
    int status = root_again(&disk, size, again);
#ifdef AG_MUTANT_TRUST_TILES /* nor is the inclusion of the last entry looked at */
    return status;
#endif
    if (status == AG_OK && memcmp(again, root, AG_HASH_SIZE) != 0) {
        status =
            ag_fail(err, AG_ECORRUPT, "tiles on disk have another root than the log");
        ag_error_file(err, ledger->store.root, AG_NO_POSITION);
    }
    if (status == AG_OK) {
        status = ag_consistency_proof(ledger->checkpoint_size, size, disk_node, &disk,
                                      proof, &count);
    }
#ifndef AG_MUTANT_TRUST_HISTORY
    if (status == AG_OK && ledger->checkpoint_size > 0) {
        status = ag_verify_consistency(ledger->checkpoint_size, size,
                                       ledger->checkpoint_root, root,
                                       (const uint8_t (*)[AG_HASH_SIZE])proof, count);
    }
#endif
    if (status == AG_OK) {
        status = ag_inclusion_proof(size - 1, size, disk_node, &disk, proof, &count);
    }
    if (status == AG_OK) {
        status = disk_node(&disk, 0, size - 1, leaf);
    }
    if (status == AG_OK) {
        status = ag_verify_inclusion(leaf, size - 1, size, root,
                                     (const uint8_t (*)[AG_HASH_SIZE])proof, count);
    }
    if (status == AG_EVERIFY) {
        status = ag_fail(err, AG_EVERIFY,
                         "tree of size %" PRIu64 " does not extend the last checkpoint",
                         size);
    }
    return status;
}

int
ag_ledger_publish(struct ag_ledger *ledger, struct ag_error *err)
{
    uint64_t size = ledger->frontier.size;
    uint8_t root[AG_HASH_SIZE];
    char note[AG_CHECKPOINT_MAX], path[PATH_MAX];
    size_t n = 0;
    int status = ag_ledger_write_partials(ledger, false, err);
    if (status == AG_OK) {
        status = ag_ledger_frontier_root(ledger, root);
    }
    if (status == AG_OK) {
        status = check_before_signing(ledger, size, root, err);
    }
    if (status == AG_OK) {
        status = ag_checkpoint_sign(ledger->signer, size, root, note, &n, err);
    }
    /* The private copy is the newer one of the two, always: it tells a rollback. */
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "checkpoint", path, err);
    }
    if (status == AG_OK) {
        status = ag_io_replace_file(ledger->io, path, note, n, 0600, 1, err);
    }
    if (status == AG_OK) {
        status = ag_store_put(&ledger->store, "checkpoint", note, n, err);
    }
    if (status != AG_OK) {
        return status;
    }
    pthread_mutex_lock(&ledger->tree_lock);
    memcpy(ledger->checkpoint, note, n + 1);
    ledger->checkpoint_n = n;
    ledger->checkpoint_size = size;
    memcpy(ledger->checkpoint_root, root, AG_HASH_SIZE);
    pthread_mutex_unlock(&ledger->tree_lock);
    return AG_OK;
}
