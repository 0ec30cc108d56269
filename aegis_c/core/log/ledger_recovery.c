/* Recovery of a ledger: the tree at the low-water mark, the rest out of the log, all of
 * it held against both copies of the last signed checkpoint. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "log/ledger_state.h"
#include "wal/reader.h"

struct signed_state {
    char path[PATH_MAX];
    char note[AG_CHECKPOINT_MAX];
    size_t n; /* 0: there is none */
    uint64_t size;
    uint8_t root[AG_HASH_SIZE];
};

/* The private copy is written first, so it is the newer one, or they are equal. */
struct recovery {
    struct ag_ledger *ledger;
    struct signed_state private_copy, public_copy;
    bool accept_rollback; /* neither counts */
};

static int
read_signed(struct ag_ledger *ledger, struct signed_state *state, struct ag_error *err)
{
    uint8_t *text = NULL;
    size_t n = 0;
    int status =
        ag_io_read_file(ledger->io, state->path, AG_CHECKPOINT_MAX - 1, &text, &n, err);
    if (status == AG_ENOTFOUND) {
        return AG_OK;
    }
    if (status != AG_OK) {
        return status;
    }
    status = ag_checkpoint_open(ledger->signer, (const char *)text, n, &state->size,
                                state->root, err);
    if (status == AG_OK) {
        memcpy(state->note, text, n + 1);
        state->n = n;
    } else {
        ag_error_file(err, state->path, AG_NO_POSITION);
        ag_error_advice(err, "Restore the file from a copy; it is never overwritten.");
    }
    ag_free(text);
    return status;
}

/* The public copy is not synced: power loss may have left it empty or full of zeros,
 * which is as good as none. Adopting writes it anew from the private copy. */
static int
read_public(struct recovery *r, struct ag_error *err)
{
    int status = read_signed(r->ledger, &r->public_copy, err);
    return status == AG_ECORRUPT && r->private_copy.n > 0 ? AG_OK : status;
}

static int
refuse_rollback(const struct signed_state *state, uint64_t size, struct ag_error *err)
{
    char expected[48], found[48];
#ifdef AG_MUTANT_TRUST_LENGTH_OF_LOG
    return AG_OK;
#endif
    if (state->n == 0 || state->size <= size) {
        return AG_OK;
    }
    (void)snprintf(expected, sizeof(expected), "%" PRIu64 " entries", state->size);
    (void)snprintf(found, sizeof(found), "%" PRIu64, size);
    int status = ag_fail(err, AG_EROLLBACK, "log is older than its signed checkpoint");
    ag_error_file(err, state->path, AG_NO_POSITION);
    ag_error_pair(err, expected, found);
    ag_error_advice(err, "Restore the newer log; what was signed must not vanish.");
    return status;
}

/* When the tree has just the size that was signed: its root must be the signed one. */
static int
compare_with(struct ag_ledger *ledger, const struct signed_state *state,
             struct ag_error *err)
{
    uint8_t root[AG_HASH_SIZE];
    if (state->n == 0 || ledger->frontier.size != state->size) {
        return AG_OK;
    }
    int status = ag_ledger_frontier_root(ledger, root);
#ifndef AG_MUTANT_TRUST_ROOT
    if (status == AG_OK && memcmp(root, state->root, AG_HASH_SIZE) != 0) {
        status = ag_fail(err, AG_EROLLBACK, "log differs from what was signed");
        ag_error_file(err, state->path, AG_NO_POSITION);
        ag_error_index(err, state->size);
        ag_error_advice(err,
                        "The log was exchanged: restore the one that belongs to this "
                        "checkpoint.");
    }
#endif
    return status;
}

static int
compare_with_signed(const struct recovery *r, struct ag_error *err)
{
    int status = compare_with(r->ledger, &r->public_copy, err);
    return status == AG_OK ? compare_with(r->ledger, &r->private_copy, err) : status;
}

/* What was signed must be readable: its partial tiles, where the tree has that size. */
static int
keep_signed(const struct recovery *r, struct ag_error *err)
{
    uint64_t size = r->ledger->frontier.size;
    bool is_signed = (r->public_copy.n != 0 && r->public_copy.size == size) ||
                     (r->private_copy.n != 0 && r->private_copy.size == size);
    int status = compare_with_signed(r, err);
    return status == AG_OK && is_signed ? ag_ledger_write_partials(r->ledger, true, err)
                                        : status;
}

/* The tree at the low-water mark, whose files are synced: loaded, and checked against
 * the root that the mark carries. */
static int
load_marked(const struct recovery *r, const struct ag_wal_found *found,
            struct ag_error *err)
{
    struct ag_ledger *ledger = r->ledger;
    uint8_t marked[AG_HASH_SIZE], root[AG_HASH_SIZE];
    uint64_t size = 0;
    int status = ag_ledger_read_mark(ledger, found, &size, marked, err);
    if (status != AG_OK || size == 0) {
        return status;
    }
    ledger->low_water = ledger->collected = size;
    if (r->private_copy.size < size && !r->accept_rollback) {
        status = ag_fail(err, AG_EROLLBACK,
                         "signed checkpoint is older than the log's own mark");
        ag_error_file(err, r->private_copy.path, AG_NO_POSITION);
        ag_error_index(err, size);
        ag_error_advice(err, "Restore the newest copy of that file.");
        return status;
    }
    status = ag_ledger_load_tree(ledger, size, err);
    if (status == AG_OK) {
        status = ag_ledger_frontier_root(ledger, root);
    }
    if (status == AG_OK && memcmp(root, marked, AG_HASH_SIZE) != 0) {
        status = ag_fail(err, AG_ECORRUPT, "tiles differ from the root at the mark");
        ag_error_file(err, ledger->store.root, AG_NO_POSITION);
        ag_error_index(err, size);
        ag_error_advice(err,
                        "Run `aegis-c ledger fsck` and restore the file it names.");
    }
    return status == AG_OK ? compare_with_signed(r, err) : status;
}

/* What follows the mark, as far as it was signed, out of the files of the log into the
 * tree in memory, which then is the one at the mark again. */
static int
check_tail(const struct recovery *r, struct ag_error *err)
{
    struct ag_ledger *ledger = r->ledger;
    struct ag_wal_reader *reader = NULL;
    char path[PATH_MAX];
    uint64_t newest = r->private_copy.size > r->public_copy.size ? r->private_copy.size
                                                                 : r->public_copy.size;
    if (newest <= ledger->low_water) {
        return AG_OK;
    }
    struct ag_frontier *marked = ag_alloc(sizeof(*marked));
    if (marked == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the tree");
    }
    *marked = ledger->frontier;
    int status = ag_ledger_private_path(ledger, "wal", path, err);
    if (status == AG_OK) {
        status = ag_wal_reader_open(ledger->io, path, ledger->archive, marked->size + 1,
                                    false, &reader, err);
    }
    while (status == AG_OK && ledger->frontier.size < newest) {
        uint8_t leaf[AG_HASH_SIZE];
        uint64_t seq = 0;
        const uint8_t *entry = NULL;
        uint32_t n = 0;
        int got = ag_wal_reader_next(reader, &seq, &entry, &n, err);
        if (got <= 0) {
            status = got;
            break; /* the rest is in the ring: integrating it compares again */
        }
        ag_leaf_hash(entry, n, leaf);
        ag_frontier_append(&ledger->frontier, leaf);
        status = compare_with_signed(r, err);
    }
    ag_wal_reader_close(reader);
    ledger->frontier = *marked;
    ag_free(marked);
    return status;
}

/* Integrates the entries from the mark up to `size` out of the log. */
static int
replay(const struct recovery *r, uint64_t size, struct ag_error *err)
{
    struct ag_ledger *ledger = r->ledger;
    struct ag_wal_cursor *cursor = NULL;
    int status = ag_wal_cursor_open(ledger->wal, ledger->low_water + 1, &cursor, err);
    while (status == AG_OK && ledger->frontier.size < size) {
        uint64_t seq = 0;
        const uint8_t *entry = NULL;
        uint32_t n = 0;
        int got = ag_wal_cursor_next(cursor, size, &seq, &entry, &n, err);
        if (got <= 0) {
            status = got < 0 ? got : ag_fail(err, AG_ECORRUPT, "the log ends early");
            break;
        }
        status = ag_ledger_integrate(ledger, entry, n, true, err);
        if (status == AG_OK) {
            status = keep_signed(r, err);
        }
    }
    ag_wal_cursor_close(cursor);
    return status;
}

/* What was signed must not vanish. */
static int
refuse_older(const struct recovery *r, uint64_t size, struct ag_error *err)
{
    int status = refuse_rollback(&r->private_copy, size, err);
    return status == AG_OK ? refuse_rollback(&r->public_copy, size, err) : status;
}

/* Asked before anything is written to a log that is there. */
static int
judge(void *ctx, const struct ag_wal_found *found, struct ag_error *err)
{
    const struct recovery *r = ctx;
    int status = refuse_older(r, found->last_seq, err);
    if (status == AG_OK) {
        status = load_marked(r, found, err);
    }
    return status == AG_OK ? check_tail(r, err) : status;
}

static int
open_wal(struct recovery *r, const struct ag_ledger_options *options,
         struct ag_error *err)
{
    struct ag_ledger *ledger = r->ledger;
    char path[PATH_MAX];
    const struct ag_wal_options wal = {
        .io = ledger->io,
        .archive = ledger->archive,
        .segment_bytes = options->segment_bytes,
        .ring_bytes = options->ring_bytes,
        .max_delay_us = options->max_delay_us,
        .judge = judge,
        .judge_ctx = r,
        .notify = ag_ledger_on_durable,
        .notify_ctx = ledger,
    };
    int status = ag_ledger_private_path(ledger, "archive", ledger->archive, err);
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "wal", path, err);
    }
    return status == AG_OK ? ag_wal_open(path, &wal, &ledger->wal, err) : status;
}

/* A log that is not there at all is not made anew where something was signed: what
 * comes back from a copy must find its place empty. */
static int
refuse_lost_log(const struct recovery *r, struct ag_error *err)
{
    const struct ag_io *io = r->ledger->io;
    char path[PATH_MAX];
    int status = ag_ledger_private_path(r->ledger, "wal/LOG", path, err);
    if (status != AG_OK) {
        return status;
    }
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd >= 0) {
        (void)io->close(io->ctx, fd);
    }
    return fd == -ENOENT ? refuse_older(r, 0, err) : AG_OK;
}

/* Sets every counter to what was recovered. */
static int
adopt(const struct recovery *r, uint64_t size, struct ag_error *err)
{
    struct ag_ledger *ledger = r->ledger;
    const struct signed_state *newest = r->private_copy.size >= r->public_copy.size
                                            ? &r->private_copy
                                            : &r->public_copy;
    for (int stage = 0; stage < AG_STAGES; stage++) {
        atomic_store(&ledger->stage_size[stage], size);
    }
    atomic_store(&ledger->stage_size[AG_PUBLISHED], newest->size);
    ledger->submitted = size;
    ledger->stats.replayed = size - ledger->low_water;
    int status = AG_OK;
    if (newest->n > 0) {
        memcpy(ledger->checkpoint, newest->note, newest->n + 1);
        ledger->checkpoint_n = newest->n;
        ledger->checkpoint_size = newest->size;
        memcpy(ledger->checkpoint_root, newest->root, AG_HASH_SIZE);
        status =
            ag_store_ensure(&ledger->store, "checkpoint", newest->note, newest->n, err);
    }
    ledger->stats.rewritten = ledger->store.rewritten;
    return status;
}

int
ag_ledger_recover(struct ag_ledger *ledger, const struct ag_ledger_options *options,
                  struct ag_error *err)
{
    struct recovery r;
    memset(&r, 0, sizeof(r));
    r.ledger = ledger;
    int status = ag_ledger_private_path(ledger, "checkpoint", r.private_copy.path, err);
    (void)snprintf(r.public_copy.path, sizeof(r.public_copy.path), "%s/checkpoint",
                   ledger->store.root);
    if (status == AG_OK) {
        status = read_signed(ledger, &r.private_copy, err);
    }
    if (status == AG_OK) {
        status = read_public(&r, err);
    }
    if (status == AG_OK && options->accept_rollback) {
        r.accept_rollback = true;
        r.private_copy.n = r.public_copy.n = 0;
        r.private_copy.size = r.public_copy.size = 0;
    }
    if (status == AG_OK) {
        status = refuse_lost_log(&r, err);
    }
    if (status == AG_OK) {
        status = open_wal(&r, options, err);
    }
    if (status != AG_OK) {
        return status;
    }
    uint64_t size = ag_wal_durable(ledger->wal);
    status = refuse_older(&r, size, err);
    if (status == AG_OK) {
        status = keep_signed(&r, err);
    }
    if (status == AG_OK) {
        status = ag_ledger_open_ids(ledger, err);
    }
    if (status == AG_OK) {
        status = replay(&r, size, err);
    }
    if (status == AG_OK) {
        status = ag_ids_flush(&ledger->ids, err);
    }
    if (status == AG_OK &&
        ag_intents_copy(&ledger->intents, &ledger->intents_at_open) != AG_OK) {
        status = ag_fail(err, AG_ENOMEM, "no memory for the open intents");
    }
    return status == AG_OK ? adopt(&r, size, err) : status;
}
