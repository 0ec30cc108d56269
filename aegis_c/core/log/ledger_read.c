/* Reading a ledger: entries, proofs, receipts.
 *
 * Whatever comes from disk is held against what memory has. The frontier was checked
 * when the log was opened, so it vouches for the tiles below it: each full tile must
 * hash to what the tile above it says, up to the frontier; an entry to its leaf. A file
 * that rotted is an error that names it, never an answer. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/base64.h"
#include "base/bytes.h"
#include "log/ledger_state.h"

/* ---- nodes ---- */

struct kept_tile {
    uint64_t number; /* and 1; 0: none */
    uint8_t bytes[AG_TILE_BYTES];
};

/* One question to the tree, with the tile of each level that it saw last. */
struct reader {
    struct ag_ledger *ledger;
    struct ag_error *err;
    struct kept_tile kept[AG_TILE_LEVELS];
};

static int
refuse_tile(const struct reader *r, unsigned level, uint64_t n,
            const uint8_t expected[AG_HASH_SIZE], const uint8_t found[AG_HASH_SIZE])
{
    char hex[2][2 * AG_HASH_SIZE + 1];
    ag_hash_hex(expected, hex[0]);
    ag_hash_hex(found, hex[1]);
    hex[0][2 * AG_HASH_SIZE] = hex[1][2 * AG_HASH_SIZE] = '\0';
    int status = ag_store_refuse(&r->ledger->store, level, n, AG_TILE_WIDTH,
                                 "tile differs from the tree above it", r->err);
    ag_error_pair(r->err, hex[0], hex[1]);
    return status;
}

/* Copies `count` hashes of a level from the frontier; false when they left it. */
static bool
from_frontier(struct ag_ledger *ledger, unsigned level, uint64_t first, size_t count,
              uint8_t *out)
{
    struct ag_frontier *frontier = &ledger->frontier;
    pthread_mutex_lock(&ledger->tree_lock);
    bool there =
        first / AG_TILE_WIDTH == ag_tile_count(frontier->size, level) / AG_TILE_WIDTH;
    if (there) {
        memcpy(out, frontier->tile[level][first % AG_TILE_WIDTH], count * AG_HASH_SIZE);
    }
    pthread_mutex_unlock(&ledger->tree_lock);
    return there;
}

/* Copies `count` hashes, all of one tile. */
static int
read_hashes(struct reader *r, unsigned level, uint64_t first, size_t count,
            uint8_t *out)
{
    if (from_frontier(r->ledger, level, first, count, out)) {
        return AG_OK;
    }
    uint64_t n = first / AG_TILE_WIDTH;
    struct kept_tile *kept = &r->kept[level];
    if (kept->number != n + 1) {
        uint8_t expected[AG_HASH_SIZE], found[AG_HASH_SIZE];
        kept->number = 0;
        int status = ag_store_read_hashes(&r->ledger->store, level, n, AG_TILE_WIDTH, 0,
                                          AG_TILE_WIDTH, kept->bytes, r->err);
        if (status == AG_OK) { /* 256^8 entries have no tile above: nobody has them */
            status = read_hashes(r, level + 1, n, 1, expected);
        }
        if (status != AG_OK) {
            return status;
        }
        ag_tile_fold(kept->bytes, 8, found);
        if (memcmp(found, expected, AG_HASH_SIZE) != 0) {
            return refuse_tile(r, level, n, expected, found);
        }
        kept->number = n + 1;
    }
    memcpy(out, kept->bytes + first % AG_TILE_WIDTH * AG_HASH_SIZE,
           count * AG_HASH_SIZE);
    return AG_OK;
}

static int
read_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    unsigned fold = height % 8;
    uint8_t hashes[AG_TILE_BYTES / 2];
    int status = read_hashes(ctx, height / 8, index << fold, (size_t)1 << fold, hashes);
    if (status == AG_OK) {
        ag_tile_fold(hashes, fold, out);
    }
    return status;
}

static int
frontier_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    unsigned fold = height % 8;
    uint8_t hashes[AG_TILE_BYTES / 2];
    if (!from_frontier(ctx, height / 8, index << fold, (size_t)1 << fold, hashes)) {
        return AG_ERANGE; /* not asked for: the peaks of a tree are at its right edge */
    }
    ag_tile_fold(hashes, fold, out);
    return AG_OK;
}

int
ag_ledger_frontier_root(struct ag_ledger *ledger, uint8_t root[AG_HASH_SIZE])
{
    return ag_tree_root(ledger->frontier.size, frontier_node, ledger, root);
}

static int
open_reader(struct ag_ledger *ledger, struct reader **reader, struct ag_error *err)
{
    struct reader *r = ag_alloc(sizeof(*r));
    if (r == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for reading the tree");
    }
    r->ledger = ledger;
    r->err = err;
    for (unsigned level = 0; level < AG_TILE_LEVELS; level++) {
        r->kept[level].number = 0;
    }
    *reader = r;
    return AG_OK;
}

/* ---- entries ---- */

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

int
ag_ledger_check_bundle(struct ag_ledger *ledger, uint64_t n, const uint8_t *bytes,
                       size_t bytes_n, size_t first, size_t count, struct ag_error *err)
{
    struct reader *r = NULL;
    uint8_t hashes[AG_TILE_BYTES];
    size_t bad = 0;
    int status = open_reader(ledger, &r, err);
    if (status == AG_OK) {
        status = read_hashes(r, 0, n * AG_TILE_WIDTH + first, count, hashes);
    }
    ag_free(r);
    if (status == AG_OK &&
        ag_bundle_check(bytes, bytes_n, first, count, hashes, &bad) != AG_OK) {
        status = ag_store_refuse(&ledger->store, AG_TILE_ENTRIES, n, AG_TILE_WIDTH,
                                 "entry differs from its hash", err);
        ag_error_index(err, n * AG_TILE_WIDTH + bad);
    }
    return status;
}

static int
read_from_bundle(struct ag_ledger *ledger, uint64_t index, uint8_t **entry, size_t *n,
                 struct ag_error *err)
{
    uint8_t *bytes = NULL;
    const uint8_t *at = NULL;
    uint64_t number = index / AG_TILE_WIDTH;
    size_t bytes_n = 0, offset = 0, length = 0, place = index % AG_TILE_WIDTH;
    int status = ag_store_read_bundle(&ledger->store, number, AG_TILE_WIDTH, &bytes,
                                      &bytes_n, err);
    if (status == AG_OK) {
        status = ag_ledger_check_bundle(ledger, number, bytes, bytes_n, place, 1, err);
    }
    for (size_t i = 0; status == AG_OK && i <= place; i++) {
        status = ag_bundle_next(bytes, bytes_n, &offset, &at, &length, err);
    }
    if (status == AG_OK) {
        status = copy_entry(at, length, entry, n, err);
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
    struct reader *r = NULL;
    int status = check_size(ledger, size, err);
    if (status == AG_OK) {
        status = open_reader(ledger, &r, err);
    }
    if (status == AG_OK) {
        status = ag_tree_root(size, read_node, r, root);
    }
    ag_free(r);
    return status;
}

int
ag_ledger_inclusion(struct ag_ledger *ledger, uint64_t index, uint64_t size,
                    uint8_t (*proof)[AG_HASH_SIZE], size_t *count, struct ag_error *err)
{
    struct reader *r = NULL;
    int status = check_size(ledger, size, err);
    if (status == AG_OK && index >= size) {
        status =
            ag_fail(err, AG_ERANGE,
                    "entry %" PRIu64 " is not in a tree of size %" PRIu64, index, size);
    }
    if (status == AG_OK) {
        status = open_reader(ledger, &r, err);
    }
    if (status == AG_OK) {
        status = ag_inclusion_proof(index, size, read_node, r, proof, count);
    }
    ag_free(r);
    return status;
}

int
ag_ledger_consistency(struct ag_ledger *ledger, uint64_t old_size, uint64_t new_size,
                      uint8_t (*proof)[AG_HASH_SIZE], size_t *count,
                      struct ag_error *err)
{
    struct reader *r = NULL;
    int status = check_size(ledger, new_size, err);
    if (status == AG_OK && old_size > new_size) {
        status = ag_fail(err, AG_ERANGE,
                         "old size %" PRIu64 " is larger than new size %" PRIu64,
                         old_size, new_size);
    }
    if (status == AG_OK) {
        status = open_reader(ledger, &r, err);
    }
    if (status == AG_OK) {
        status = ag_consistency_proof(old_size, new_size, read_node, r, proof, count);
    }
    ag_free(r);
    return status;
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
