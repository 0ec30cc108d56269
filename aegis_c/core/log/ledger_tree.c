/* The tree of a ledger: integrating entries, publishing, reading back, proving. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/base64.h"
#include "base/bytes.h"
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
        status = ag_bundle_next(bytes, n, &offset, &entry, &entry_n, err);
        if (status == AG_OK) {
            ag_leaf_hash(entry, entry_n, leaf);
            if (memcmp(leaf, ledger->frontier.tile[0][i], AG_HASH_SIZE) != 0) {
                status = ag_fail(err, AG_ECORRUPT, "entry differs from its hash");
                ag_error_index(err, size - width + i);
            }
        }
        if (status == AG_OK &&
            ag_bundle_add(&ledger->bundle, entry, entry_n) != AG_OK) {
            status = ag_fail(err, AG_ENOMEM, "no memory for the entry bundle");
        }
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

/* ---- nodes ---- */

struct node_ctx {
    struct ag_ledger *ledger;
    /* Of the tree that is to be read from disk alone; 0: what the frontier has not is
     * in full tiles. The partial tiles of smaller trees are never read: they are
     * neither synced nor written anew when the log is opened. */
    uint64_t disk_size;
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
tree_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    const struct node_ctx *c = ctx;
    unsigned level = height / 8, fold = height % 8;
    uint64_t first = index << fold, n = first / AG_TILE_WIDTH;
    size_t offset = first % AG_TILE_WIDTH, count = (size_t)1 << fold;
    uint8_t hashes[AG_TILE_BYTES / 2];
    bool found = false;
    if (c->disk_size == 0) {
        struct ag_frontier *frontier = &c->ledger->frontier;
        pthread_mutex_lock(&c->ledger->tree_lock);
        if (n == ag_tile_count(frontier->size, level) / AG_TILE_WIDTH) {
            memcpy(hashes, frontier->tile[level][offset], count * AG_HASH_SIZE);
            found = true;
        }
        pthread_mutex_unlock(&c->ledger->tree_lock);
    }
    if (!found) {
        uint64_t complete = ag_tile_count(c->disk_size, level);
        bool partial = c->disk_size != 0 && n == complete / AG_TILE_WIDTH;
        unsigned width = partial ? (unsigned)(complete % AG_TILE_WIDTH) : AG_TILE_WIDTH;
        int status = ag_store_read_hashes(&c->ledger->store, level, n, width, offset,
                                          count, hashes, c->err);
        if (status != AG_OK) {
            return status;
        }
    }
    if (c->again) {
        return fold_again(hashes, fold, out);
    }
    ag_tile_fold(hashes, fold, out);
    return AG_OK;
}

/* ---- publishing ---- */

int
ag_ledger_write_partials(struct ag_ledger *ledger, bool compare, struct ag_error *err)
{
    const struct ag_frontier *frontier = &ledger->frontier;
    int status = AG_OK;
    for (unsigned level = 0; status == AG_OK && level < AG_TILE_LEVELS; level++) {
        uint64_t count = ag_tile_count(frontier->size, level);
        unsigned width = (unsigned)(count % AG_TILE_WIDTH);
        if (width == 0) {
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
root_again(const struct node_ctx *disk, uint64_t size, uint8_t root[AG_HASH_SIZE])
{
    struct node_ctx ctx = {disk->ledger, disk->disk_size, disk->err, true};
    uint8_t peaks[64][AG_HASH_SIZE];
    unsigned count = 0;
    uint64_t at = 0;
    int status = AG_OK;
    for (unsigned height = 64; status == AG_OK && height-- > 0;) {
        if ((size >> height & 1) != 0) {
            status = tree_node(&ctx, height, at >> height, peaks[count++]);
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
    struct node_ctx disk = {ledger, size, err, false};
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
        status = ag_consistency_proof(ledger->checkpoint_size, size, tree_node, &disk,
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
        status = ag_inclusion_proof(size - 1, size, tree_node, &disk, proof, &count);
    }
    if (status == AG_OK) {
        status = tree_node(&disk, 0, size - 1, leaf);
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
ag_ledger_frontier_root(struct ag_ledger *ledger, uint8_t root[AG_HASH_SIZE],
                        struct ag_error *err)
{
    struct node_ctx memory = {ledger, 0, err, false};
    return ag_tree_root(ledger->frontier.size, tree_node, &memory, root);
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
        status = ag_ledger_frontier_root(ledger, root, err);
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

/* ---- reading ---- */

static int
check_integrated(struct ag_ledger *ledger, uint64_t index, struct ag_error *err)
{
    uint64_t size = ag_ledger_size(ledger);
    if (index >= size) {
        return ag_fail(err, AG_ERANGE,
                       "entry %" PRIu64 " does not exist: the log has %" PRIu64, index,
                       size);
    }
    uint64_t integrated = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    if (index >= integrated) {
        int status =
            ag_fail(err, AG_ENOTYET, "entry %" PRIu64 " is not integrated yet", index);
        ag_error_advice(err, "Wait until it is integrated.");
        return status;
    }
    return AG_OK;
}

static int
copy_entry(const uint8_t *from, size_t n, uint8_t **entry, size_t *entry_n,
           struct ag_error *err)
{
    uint8_t *copy = ag_alloc(n);
    if (copy == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for an entry of %zu octets", n);
    }
    memcpy(copy, from, n);
    *entry = copy;
    *entry_n = n;
    return AG_OK;
}

static int
read_from_bundle(struct ag_ledger *ledger, uint64_t index, uint8_t **entry, size_t *n,
                 struct ag_error *err)
{
    uint8_t *bytes = NULL;
    const uint8_t *at = NULL;
    size_t bytes_n = 0, offset = 0, length = 0;
    int status = ag_store_read_bundle(&ledger->store, index / AG_TILE_WIDTH,
                                      AG_TILE_WIDTH, &bytes, &bytes_n, err);
    for (uint64_t i = 0; status == AG_OK && i <= index % AG_TILE_WIDTH; i++) {
        status = ag_bundle_next(bytes, bytes_n, &offset, &at, &length, err);
    }
    if (status == AG_OK) {
        status = copy_entry(at, length, entry, n, err);
    } else {
        ag_error_index(err, index);
    }
    ag_free(bytes);
    return status;
}

int
ag_ledger_entry(struct ag_ledger *ledger, uint64_t index, uint8_t **entry, size_t *n,
                struct ag_error *err)
{
    int status = check_integrated(ledger, index, err);
    if (status != AG_OK) {
        return status;
    }
    bool in_memory = false;
    pthread_mutex_lock(&ledger->tree_lock);
    if (index / AG_TILE_WIDTH == ledger->frontier.size / AG_TILE_WIDTH) {
        const uint8_t *at =
            ledger->bundle.bytes + ledger->bundle.start[index % AG_TILE_WIDTH];
        in_memory = true;
        status = copy_entry(at + 2, ag_get_u16be(at), entry, n, err);
    }
    pthread_mutex_unlock(&ledger->tree_lock);
    return in_memory ? status : read_from_bundle(ledger, index, entry, n, err);
}

void
ag_ledger_checkpoint(struct ag_ledger *ledger, char out[AG_CHECKPOINT_MAX], size_t *n)
{
    pthread_mutex_lock(&ledger->tree_lock);
    memcpy(out, ledger->checkpoint, ledger->checkpoint_n + 1);
    *n = ledger->checkpoint_n;
    pthread_mutex_unlock(&ledger->tree_lock);
}

/* ---- proving ---- */

static int
check_size(struct ag_ledger *ledger, uint64_t size, struct ag_error *err)
{
    uint64_t integrated = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    if (size > integrated) {
        return ag_fail(err, AG_ERANGE,
                       "size %" PRIu64 " is beyond the %" PRIu64 " integrated entries",
                       size, integrated);
    }
    return AG_OK;
}

int
ag_ledger_root(struct ag_ledger *ledger, uint64_t size, uint8_t root[AG_HASH_SIZE],
               struct ag_error *err)
{
    struct node_ctx ctx = {ledger, 0, err, false};
    int status = check_size(ledger, size, err);
    return status != AG_OK ? status : ag_tree_root(size, tree_node, &ctx, root);
}

int
ag_ledger_inclusion(struct ag_ledger *ledger, uint64_t index, uint64_t size,
                    uint8_t (*proof)[AG_HASH_SIZE], size_t *count, struct ag_error *err)
{
    struct node_ctx ctx = {ledger, 0, err, false};
    int status = check_size(ledger, size, err);
    if (status != AG_OK) {
        return status;
    }
    if (index >= size) {
        return ag_fail(err, AG_ERANGE,
                       "entry %" PRIu64 " is not in a tree of size %" PRIu64, index,
                       size);
    }
    return ag_inclusion_proof(index, size, tree_node, &ctx, proof, count);
}

int
ag_ledger_consistency(struct ag_ledger *ledger, uint64_t old_size, uint64_t new_size,
                      uint8_t (*proof)[AG_HASH_SIZE], size_t *count,
                      struct ag_error *err)
{
    struct node_ctx ctx = {ledger, 0, err, false};
    int status = check_size(ledger, new_size, err);
    if (status != AG_OK) {
        return status;
    }
    if (old_size > new_size) {
        return ag_fail(err, AG_ERANGE,
                       "old size %" PRIu64 " is larger than new size %" PRIu64,
                       old_size, new_size);
    }
    return ag_consistency_proof(old_size, new_size, tree_node, &ctx, proof, count);
}

int
ag_ledger_receipt(struct ag_ledger *ledger, uint64_t index, char **text, size_t *n,
                  struct ag_error *err)
{
    char note[AG_CHECKPOINT_MAX];
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE];
    size_t note_n = 0, count = 0;
    int status = check_integrated(ledger, index, err);
    if (status != AG_OK) {
        return status;
    }
    pthread_mutex_lock(&ledger->tree_lock);
    uint64_t size = ledger->checkpoint_size;
    note_n = ledger->checkpoint_n;
    memcpy(note, ledger->checkpoint, note_n + 1);
    pthread_mutex_unlock(&ledger->tree_lock);
    if (index >= size) {
        status =
            ag_fail(err, AG_ENOTYET, "entry %" PRIu64 " is not published yet", index);
        ag_error_advice(err, "Wait until it is published.");
        return status;
    }
    status = ag_ledger_inclusion(ledger, index, size, proof, &count, err);
    if (status != AG_OK) {
        return status;
    }
    size_t line = AG_BASE64_SIZE(AG_HASH_SIZE) + 1;
    size_t room = 64 + count * line + note_n + 2;
    char *out = ag_alloc(room);
    if (out == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for a receipt of %zu octets", room);
    }
    size_t at = (size_t)snprintf(out, room,
                                 "c2sp.org/tlog-proof@v1\nindex %" PRIu64 "\n", index);
    for (size_t i = 0; i < count; i++) {
        at += ag_base64_encode(out + at, proof[i], AG_HASH_SIZE);
        out[at++] = '\n';
    }
    out[at++] = '\n';
    memcpy(out + at, note, note_n + 1);
    *text = out;
    *n = at + note_n;
    return AG_OK;
}
