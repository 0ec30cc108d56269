/* What a ledger knows of ids and intents: submitted ids that are not in the column yet,
 * looking up, and keeping the column whole. */
#include <string.h>

#include "base/alloc.h"
#include "base/process.h"
#include "log/ledger_state.h"

/* Ids of entries first .. first + AG_PENDING_CHUNK - 1, as far as submitted. */
struct ag_pending_chunk {
    struct ag_pending_chunk *next; /* owned */
    uint64_t first;
    uint8_t id[AG_PENDING_CHUNK][AG_UUID_SIZE];
};

/* ---- submitted, not integrated ---- */

int
ag_pending_reserve_lock_held(struct ag_ledger *ledger, uint64_t index)
{
    struct ag_pending *p = &ledger->pending;
    if (p->last != NULL && index - p->last->first < AG_PENDING_CHUNK) {
        return AG_OK;
    }
    struct ag_pending_chunk *chunk = p->spare;
    p->spare = NULL;
    if (chunk == NULL) {
        chunk = ag_alloc(sizeof(*chunk));
    }
    if (chunk == NULL) {
        return AG_ENOMEM;
    }
    chunk->next = NULL;
    chunk->first = index;
    if (p->last != NULL) {
        p->last->next = chunk;
    } else {
        p->first = chunk;
    }
    p->last = chunk;
    return AG_OK;
}

void
ag_pending_put_lock_held(struct ag_ledger *ledger, uint64_t index,
                         const uint8_t id[AG_UUID_SIZE])
{
    struct ag_pending_chunk *chunk = ledger->pending.last;
    memcpy(chunk->id[index - chunk->first], id, AG_UUID_SIZE);
}

void
ag_pending_drop_lock_held(struct ag_ledger *ledger, uint64_t size)
{
    struct ag_pending *p = &ledger->pending;
    while (p->first != p->last && p->first->next->first <= size) {
        struct ag_pending_chunk *chunk = p->first;
        p->first = chunk->next;
        if (p->spare == NULL) {
            p->spare = chunk;
        } else {
            ag_free(chunk);
        }
    }
}

void
ag_pending_free(struct ag_ledger *ledger)
{
    struct ag_pending *p = &ledger->pending;
    while (p->first != NULL) {
        struct ag_pending_chunk *next = p->first->next;
        ag_free(p->first);
        p->first = next;
    }
    ag_free(p->spare);
    memset(p, 0, sizeof(*p));
}

/* One chunk at a time under the lock, so that submitters wait for microseconds. */
static int
find_pending(struct ag_ledger *ledger, const uint8_t id[AG_UUID_SIZE],
             struct ag_found *found)
{
    uint64_t from = ag_ledger_stage_size(ledger, AG_INTEGRATED), end = UINT64_MAX;
    int status = AG_OK;
    while (status == AG_OK && from < end) {
        pthread_mutex_lock(&ledger->lock);
        const struct ag_pending_chunk *chunk = ledger->pending.first;
        end = ledger->submitted;
        while (chunk != NULL && chunk->next != NULL && chunk->next->first <= from) {
            chunk = chunk->next;
        }
        uint64_t last = end;
        if (chunk == NULL) {
            last = from = end;
        } else {
            from = from > chunk->first ? from : chunk->first;
            last = chunk->next != NULL && chunk->next->first < end ? chunk->next->first
                                                                   : end;
        }
        for (; status == AG_OK && from < last; from++) {
            if (memcmp(chunk->id[from - chunk->first], id, AG_UUID_SIZE) == 0) {
                status = ag_found_add(found, from);
            }
        }
        pthread_mutex_unlock(&ledger->lock);
    }
    return status;
}

/* ---- the column ---- */

static int
copy_bundle(void *ctx, uint64_t n, uint8_t **bytes, size_t *bytes_n,
            struct ag_error *err)
{
    struct ag_ledger *ledger = ctx;
    bool in_memory = false;
    uint8_t *copy = NULL;
    pthread_mutex_lock(&ledger->tree_lock);
    if (n == ledger->frontier.size / AG_TILE_WIDTH) {
        in_memory = true;
        copy = ag_alloc(ledger->bundle.used);
        if (copy != NULL && ledger->bundle.used > 0) {
            memcpy(copy, ledger->bundle.bytes, ledger->bundle.used);
        }
        *bytes_n = ledger->bundle.used;
    }
    pthread_mutex_unlock(&ledger->tree_lock);
    if (!in_memory) { /* it was full, hence on disk, before memory let go of it */
        return ag_store_read_bundle(&ledger->store, n, AG_TILE_WIDTH, bytes, bytes_n,
                                    err);
    }
    *bytes = copy;
    return copy != NULL ? AG_OK : ag_fail(err, AG_ENOMEM, "no memory for a bundle");
}

static int
check_bundle(void *ctx, uint64_t n, const uint8_t *bytes, size_t bytes_n, size_t first,
             size_t count, struct ag_error *err)
{
    return ag_ledger_check_bundle(ctx, n, bytes, bytes_n, first, count, err);
}

static struct ag_ids_source
source_of(struct ag_ledger *ledger)
{
    return (struct ag_ids_source){copy_bundle, check_bundle, ledger};
}

int
ag_ledger_open_ids(struct ag_ledger *ledger, struct ag_error *err)
{
    const char *vkey = ag_signer_vkey(ledger->signer);
    struct ag_ids_source source = source_of(ledger);
    int status = ag_ids_place_init(&ledger->ids.place, ledger->io, ledger->private_dir,
                                   vkey, strlen(vkey), err);
    return status == AG_OK
               ? ag_ids_open(&ledger->ids, ledger->frontier.size, &source, err)
               : status;
}

bool
ag_ledger_ids_mendable(struct ag_ledger *ledger)
{
    return ag_ids_mendable(&ledger->ids) || atomic_load(&ledger->damaged_run) != 0;
}

int
ag_ledger_mend_ids(struct ag_ledger *ledger, struct ag_error *err)
{
    struct ag_ids_source source = source_of(ledger);
    uint64_t damaged = atomic_exchange(&ledger->damaged_run, 0);
    if (damaged != 0) {
        ag_ids_condemn(&ledger->ids, damaged - 1);
    }
    return ag_ids_mendable(&ledger->ids) ? ag_ids_mend(&ledger->ids, &source, err)
                                         : AG_OK;
}

int
ag_ledger_find(struct ag_ledger *ledger, const uint8_t id[AG_UUID_SIZE],
               struct ag_found *found, struct ag_error *err)
{
    struct ag_ids_source source = source_of(ledger);
    uint64_t damaged = UINT64_MAX;
    if (ledger->process != ag_process()) {
        return ag_fail(err, AG_EFORKED, "ledger of the parent process");
    }
    /* First what is not in the column: what moves there meanwhile is found twice. */
    int status = AG_OK;
    static const uint8_t none[AG_UUID_SIZE];
    if (memcmp(id, none, AG_UUID_SIZE) != 0) {
        status = find_pending(ledger, id, found);
    }
    if (status != AG_OK) {
        return ag_fail(err, status, "no memory for a list of entries");
    }
    status =
        ag_ids_find(&ledger->ids.place, ag_ledger_stage_size(ledger, AG_INTEGRATED), id,
                    &source, found, &damaged, err);
    ag_found_sort(found);
    if (damaged != UINT64_MAX) {
        atomic_store(&ledger->damaged_run, damaged + 1);
        pthread_mutex_lock(&ledger->lock);
        pthread_cond_signal(&ledger->wake);
        pthread_mutex_unlock(&ledger->lock);
    }
    return status;
}

/* ---- intents ---- */

int
ag_ledger_open_intents(struct ag_ledger *ledger, uint64_t **index, size_t *count,
                       struct ag_error *err)
{
    struct ag_intents copy = {0};
    if (ag_intents_copy(&ledger->intents_at_open, &copy) != AG_OK) {
        return ag_fail(err, AG_ENOMEM, "no memory for a list of intents");
    }
    *index = copy.index;
    *count = copy.count;
    return AG_OK;
}
