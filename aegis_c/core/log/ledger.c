#include "log/ledger.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "log/ledger_state.h"

size_t
ag_ring_record_size(size_t n)
{
    return (AG_RING_HEADER + n + 7) & ~(size_t)7;
}

static int
check_process(const struct ag_ledger *ledger, struct ag_error *err)
{
    if (ledger->pid != getpid()) {
        int status = ag_fail(err, AG_EFORKED, "ledger of the parent process");
        ag_error_advice(err, "Open a ledger of its own in the child.");
        return status;
    }
    return AG_OK;
}

static int
failure_lock_held(const struct ag_ledger *ledger, struct ag_error *err)
{
    if (!ledger->failed) {
        return AG_OK;
    }
    if (err != NULL) {
        *err = ledger->failure;
        err->status = AG_EPOISONED;
        ag_error_advice(err,
                        "Entries that were not durable may or may not be in the log: "
                        "open it again to know.");
    }
    return AG_EPOISONED;
}

/* ---- submitting ---- */

/* Room for a record of `size` octets: moves head to its place and counts what is used.
 * AG_EFULL when there is none. */
static int
ring_reserve_lock_held(struct ag_ledger *ledger, size_t size, uint8_t **place)
{
    size_t at_end = ledger->ring_n - ledger->head;
    size_t skip = at_end < size ? at_end : 0;
    if (ledger->ring_n - ledger->used < skip + size) {
        return AG_EFULL;
    }
    if (skip > 0) {
        uint32_t wrap = AG_RING_WRAP;
        memcpy(ledger->ring + ledger->head, &wrap, sizeof(wrap));
    }
    if (skip > 0 || ledger->head == ledger->ring_n) {
        ledger->head = 0;
    }
    *place = ledger->ring + ledger->head;
    ledger->head += size;
    ledger->used += skip + size;
    return AG_OK;
}

int
ag_ledger_submit(struct ag_ledger *ledger, const uint8_t *meta, size_t meta_n,
                 const struct ag_commitment *request,
                 const struct ag_commitment *response, uint64_t *index,
                 struct ag_error *err)
{
    char tail[AG_ENTRY_TAIL_MAX];
    uint8_t *place = NULL;
    bool is_empty = false;
    int status = check_process(ledger, err);
    if (status == AG_OK) {
        status = ag_meta_check(meta, meta_n, err);
    }
    if (status != AG_OK) {
        return status;
    }
    size_t body_n = ag_meta_body(meta, meta_n, &is_empty);
    size_t tail_n = ag_entry_tail(is_empty, request, response, tail);
    uint32_t n = (uint32_t)(body_n + tail_n);

    pthread_mutex_lock(&ledger->lock);
    status = failure_lock_held(ledger, err);
    if (status == AG_OK) {
        status = ring_reserve_lock_held(ledger, ag_ring_record_size(n), &place);
    }
    if (status == AG_OK) {
        memcpy(place, &n, sizeof(n));
        memcpy(place + AG_RING_HEADER, meta, body_n);
        memcpy(place + AG_RING_HEADER + body_n, tail, tail_n);
        *index = ledger->submitted++;
        /* The first of a batch wakes the thread; it then gathers what follows. */
        if (*index == ag_ledger_stage_size(ledger, AG_DURABLE)) {
            ledger->first_pending_ns = ag_clock_ns();
            pthread_cond_signal(&ledger->wake);
        }
    }
    pthread_mutex_unlock(&ledger->lock);
    if (status == AG_EFULL) {
        (void)ag_fail(err, AG_EFULL, "ring has no room for an entry of %u octets", n);
        ag_error_advice(err, "Wait until entries are durable, then submit again.");
    }
    return status;
}

void
ag_ledger_commitment(const struct ag_ledger *ledger, const uint8_t *secret,
                     size_t secret_n, const uint8_t id[AG_UUID_SIZE], enum ag_role role,
                     struct ag_commitment *commitment)
{
    if (secret == NULL) {
        secret = ledger->secret;
        secret_n = sizeof(ledger->secret);
    }
    ag_commitment_init(commitment, secret, secret_n, id, role);
}

/* ---- stages ---- */

uint64_t
ag_ledger_size(struct ag_ledger *ledger)
{
    pthread_mutex_lock(&ledger->lock);
    uint64_t size = ledger->submitted;
    pthread_mutex_unlock(&ledger->lock);
    return size;
}

uint64_t
ag_ledger_stage_size(struct ag_ledger *ledger, enum ag_stage stage)
{
    return atomic_load_explicit(&ledger->stage_size[stage], memory_order_acquire);
}

size_t
ag_ledger_room(struct ag_ledger *ledger)
{
    /* What may be lost at the end of the ring when the next record must wrap. */
    size_t slack = ag_ring_record_size(AG_ENTRY_MAX);
    pthread_mutex_lock(&ledger->lock);
    size_t room = ledger->ring_n - ledger->used;
    pthread_mutex_unlock(&ledger->lock);
    return room > slack ? room - slack : 0;
}

int
ag_ledger_want(struct ag_ledger *ledger, uint64_t index, enum ag_stage stage)
{
    if (ag_ledger_stage_size(ledger, stage) > index) {
        return AG_OK;
    }
    int status = check_process(ledger, NULL);
    if (status != AG_OK) {
        return status;
    }
    pthread_mutex_lock(&ledger->lock);
    if (index >= ledger->submitted) {
        status = AG_ERANGE;
    } else if (ledger->wanted[stage] <= index) {
        ledger->wanted[stage] = index + 1;
        pthread_cond_signal(&ledger->wake);
    }
    pthread_mutex_unlock(&ledger->lock);
    return status;
}

int
ag_ledger_wait(struct ag_ledger *ledger, uint64_t index, enum ag_stage stage,
               uint64_t timeout_ns, struct ag_error *err)
{
    uint64_t now = ag_clock_ns();
    uint64_t deadline = timeout_ns < UINT64_MAX - now ? now + timeout_ns : UINT64_MAX;
    int status = check_process(ledger, err);
    if (status == AG_OK) {
        status = ag_ledger_want(ledger, index, stage);
    }
    if (status == AG_ERANGE) {
        return ag_fail(err, AG_ERANGE, "entry %" PRIu64 " does not exist", index);
    }
    if (status != AG_OK) {
        return status;
    }
    pthread_mutex_lock(&ledger->lock);
    while (ag_ledger_stage_size(ledger, stage) <= index) {
        /* What is durable goes on to be published even in a poisoned ledger. */
        if (ag_ledger_stage_size(ledger, AG_DURABLE) <= index) {
            status = failure_lock_held(ledger, err);
        }
        if (status == AG_OK && ag_clock_ns() >= deadline) {
            status =
                ag_fail(err, AG_ETIMEDOUT, "entry %" PRIu64 " is not there yet", index);
        }
        if (status != AG_OK) {
            break;
        }
        ag_cond_wait_until(&ledger->changed, &ledger->lock, deadline);
    }
    pthread_mutex_unlock(&ledger->lock);
    return status;
}

int
ag_ledger_fileno(const struct ag_ledger *ledger)
{
    return ledger->wakeup.read_fd;
}

void
ag_ledger_drain(struct ag_ledger *ledger)
{
    /* Cleared before the caller reads the sizes: a stage that moves later signals
     * again. */
    ag_wakeup_clear(&ledger->wakeup);
    atomic_store(&ledger->event_pending, 0);
}

int
ag_ledger_failure(struct ag_ledger *ledger, struct ag_error *err)
{
    pthread_mutex_lock(&ledger->lock);
    int status = failure_lock_held(ledger, err);
    pthread_mutex_unlock(&ledger->lock);
    return status;
}

/* ---- description ---- */

const char *
ag_ledger_origin(const struct ag_ledger *ledger)
{
    return ledger->origin;
}

const char *
ag_ledger_vkey(const struct ag_ledger *ledger)
{
    return ag_signer_vkey(ledger->signer);
}

const char *
ag_ledger_path(const struct ag_ledger *ledger)
{
    return ledger->store.root;
}

void
ag_ledger_stats(struct ag_ledger *ledger, struct ag_ledger_stats *stats)
{
    pthread_mutex_lock(&ledger->lock);
    *stats = ledger->stats;
    stats->submitted = ledger->submitted;
    stats->ring_bytes = ledger->ring_n;
    stats->ring_used = ledger->used;
    pthread_mutex_unlock(&ledger->lock);
    stats->durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    stats->integrated = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    stats->published = ag_ledger_stage_size(ledger, AG_PUBLISHED);
}
