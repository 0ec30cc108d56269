#include "log/ledger.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/process.h"
#include "log/ledger_state.h"

static int
check_process(const struct ag_ledger *ledger, struct ag_error *err)
{
    if (ledger->process != ag_process()) {
        int status = ag_fail(err, AG_EFORKED, "ledger of the parent process");
        ag_error_advice(err, "Open a ledger of its own in the child.");
        return status;
    }
    return AG_OK;
}

/* What stopped the log, or AG_OK. */
static int
failure_lock_held(struct ag_ledger *ledger, struct ag_error *err)
{
    int status = AG_EPOISONED;
    if (ledger->reopening) {
        if (err != NULL) {
            *err = ledger->failure;
        }
    } else {
        status = ag_wal_failure(ledger->wal, err);
    }
    if (status != AG_OK) {
        ag_error_advice(err,
                        "Entries that were not durable may or may not be in the log "
                        "once it is open again; it is tried again by itself.");
    }
    return status;
}

/* ---- submitting ---- */

static int
refuse_submit(int status, uint32_t n, struct ag_error *err)
{
    switch (status) {
    case AG_EFULL:
        (void)ag_fail(err, status,
                      "ring has no room for an entry of %" PRIu32 " octets", n);
        ag_error_advice(err, "Wait until entries are durable, then submit again.");
        return status;
    case AG_EPOISONED: /* described already */
        return status;
    default:
        return ag_fail(err, status, "%s", ag_status_text(status));
    }
}

int
ag_ledger_submit(struct ag_ledger *ledger, const uint8_t *meta, size_t meta_n,
                 const struct ag_commitment *request,
                 const struct ag_commitment *response, uint64_t *index,
                 struct ag_error *err)
{
    char tail[AG_ENTRY_TAIL_MAX];
    uint8_t *place = NULL;
    uint8_t id[AG_UUID_SIZE] = {0};
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
    (void)ag_meta_id(meta, meta_n, id, NULL); /* without one it is found by none */

    pthread_mutex_lock(&ledger->lock);
    status = ledger->reopening
                 ? AG_EPOISONED
                 : ag_pending_reserve_lock_held(ledger, ledger->submitted);
    if (status == AG_OK) {
        status = ag_wal_reserve(ledger->wal, n, &place);
    }
    if (status == AG_OK) {
        memcpy(place, meta, body_n);
        memcpy(place + body_n, tail, tail_n);
        *index = ag_wal_commit(ledger->wal, n) - 1;
        ag_pending_put_lock_held(ledger, *index, id);
        ledger->submitted = *index + 1;
    } else if (status == AG_EPOISONED) {
        status = failure_lock_held(ledger, err);
        status = status != AG_OK ? status : AG_EFULL; /* it has just come back */
    }
    pthread_mutex_unlock(&ledger->lock);
    return status == AG_OK ? AG_OK : refuse_submit(status, n, err);
}

/* The shard's own secret, or `secret` taken into *given. */
static const struct ag_hmac *
take_secret(const struct ag_ledger *ledger, const uint8_t *secret, size_t secret_n,
            struct ag_hmac *given)
{
    if (secret == NULL) {
        return &ledger->secret_taken;
    }
    ag_hmac_init(given, secret, secret_n);
    return given;
}

void
ag_ledger_commitment(const struct ag_ledger *ledger, const uint8_t *secret,
                     size_t secret_n, const uint8_t id[AG_UUID_SIZE], enum ag_role role,
                     struct ag_commitment *commitment)
{
    struct ag_hmac given;
    ag_commitment_init(commitment, take_secret(ledger, secret, secret_n, &given), id,
                       role);
}

void
ag_ledger_commit_two(const struct ag_ledger *ledger, const uint8_t *secret,
                     size_t secret_n, const uint8_t id[AG_UUID_SIZE],
                     const struct ag_span bodies[2], struct ag_commitment c[2])
{
    struct ag_hmac given;
    ag_commitment_two(c, take_secret(ledger, secret, secret_n, &given), id, bodies);
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
    return ag_wal_room(ledger->wal);
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
    } else if (stage == AG_PUBLISHED && ledger->wanted_published <= index) {
        ledger->wanted_published = index + 1;
        pthread_cond_signal(&ledger->wake);
    }
    pthread_mutex_unlock(&ledger->lock);
    if (status == AG_OK) {
        ag_wal_want(ledger->wal, index + 1);
    }
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
    /* Asked before every call: no lock that thread P, which stepped back, may hold.
     * Both looks at `reopening`: the log is open again before submitters may go on. */
    if (!atomic_load(&ledger->reopening) &&
        ag_wal_failure(ledger->wal, NULL) == AG_OK &&
        !atomic_load(&ledger->reopening)) {
        return AG_OK;
    }
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
    pthread_mutex_unlock(&ledger->lock);
    stats->durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    stats->integrated = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    stats->published = ag_ledger_stage_size(ledger, AG_PUBLISHED);
    ag_wal_stats(ledger->wal, &stats->wal);
}
