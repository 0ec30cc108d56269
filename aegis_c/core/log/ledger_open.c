/* Opening and closing a ledger: lock, thread, the order of it all. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "base/process.h"
#include "log/ledger_state.h"

#define CLOSE_GRACE_NS 1000000000u
#define MOST_US (24u * 3600 * (uint64_t)1000000)

void
ag_ledger_options_init(struct ag_ledger_options *options)
{
    memset(options, 0, sizeof(*options));
    options->ring_bytes = (size_t)16 << 20;
    options->segment_bytes = 4u << 20; /* a start reads two or three of them whole */
    options->max_delay_us = 2000;
    options->publish_gap_us = 100 * 1000;
    options->publish_max_us = 10 * 1000 * 1000;
    options->close_max_us = 20 * 1000 * 1000;
}

int
ag_ledger_private_path(const struct ag_ledger *ledger, const char *name,
                       char path[PATH_MAX], struct ag_error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", ledger->private_dir, name);
    return n > 0 && n < PATH_MAX
               ? AG_OK
               : ag_fail_sys(err, ENAMETOOLONG, ledger->private_dir, "open");
}

static int
take_lock(struct ag_ledger *ledger, struct ag_error *err)
{
    const struct ag_io *io = ledger->io;
    char path[PATH_MAX];
    int status = ag_ledger_private_path(ledger, "LOCK", path, err);
    if (status != AG_OK) {
        return status;
    }
    ledger->lock_fd = io->open(io->ctx, path, O_RDWR | O_CREAT, 0600);
    if (ledger->lock_fd < 0) {
        return ag_fail_sys(err, -ledger->lock_fd, path, "open");
    }
    int result = io->lock(io->ctx, ledger->lock_fd);
    if (result == -EWOULDBLOCK) {
        status =
            ag_fail(err, AG_ELOCKED, "ledger is open in another process or handle");
        ag_error_file(err, path, AG_NO_POSITION);
        ag_error_advice(err, "Stop the other one, or use another data directory.");
        return status;
    }
    return result < 0 ? ag_fail_sys(err, -result, path, "lock") : AG_OK;
}

/* What to do about a system that refuses, where nobody has said it yet. */
static void
advise(struct ag_error *err)
{
    if (err == NULL || err->advice[0] != '\0') {
        return;
    }
    switch (err->sys_errno) {
    case ENOSPC:
    case EDQUOT:
        ag_error_advice(err,
                        "Free some space on this disk and start again: nothing was "
                        "lost.");
        break;
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOTDIR:
    case EEXIST:
        ag_error_advice(err, "The ledger needs a directory that this user may write.");
        break;
    default:
        break;
    }
}

static int
start_thread(struct ag_ledger *ledger, struct ag_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread takes no signals */
    int result = pthread_create(&ledger->thread, NULL, ag_ledger_thread, ledger);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result == 0 ? AG_OK : ag_fail_sys(err, result, "", "starting a thread");
}

void
ag_ledger_free(struct ag_ledger *ledger)
{
    ag_signer_free(ledger->signer);
    if (ledger->lock_fd >= 0) {
        if (ledger->process == ag_process()) { /* else it would be the parent's */
            (void)ledger->io->unlock(ledger->io->ctx, ledger->lock_fd);
        }
        (void)ledger->io->close(ledger->io->ctx, ledger->lock_fd);
    }
    ag_store_close(&ledger->store);
    ag_wakeup_close(&ledger->wakeup);
    ag_ids_close(&ledger->ids);
    ag_intents_free(&ledger->intents);
    ag_intents_free(&ledger->intents_at_open);
    ag_pending_free(ledger);
    ag_free(ledger->bundle.bytes);
    ag_free(ledger);
}

static int
make(const struct ag_ledger_options *options, struct ag_ledger **ledger,
     struct ag_error *err)
{
    struct ag_ledger *made = ag_calloc(1, sizeof(*made));
    if (made == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the ledger");
    }
    made->io = options->io != NULL ? options->io : ag_io_posix();
    made->process = ag_process();
    made->lock_fd = made->store.root_fd = made->ids.tail_fd = -1;
    made->wakeup.read_fd = made->wakeup.write_fd = -1;
    made->publish_gap_ns = options->publish_gap_us * 1000;
    made->publish_max_ns = options->publish_max_us * 1000;
    made->close_max_ns = options->close_max_us * 1000;
    (void)snprintf(made->private_dir, sizeof(made->private_dir), "%s",
                   options->private_dir);
    (void)pthread_mutex_init(&made->lock, NULL);
    (void)pthread_mutex_init(&made->tree_lock, NULL);
    int result = ag_cond_init(&made->wake);
    if (result == 0) {
        result = ag_cond_init(&made->changed);
    }
    if (result == 0) {
        result = ag_wakeup_open(&made->wakeup);
    }
    if (result != 0) {
        ag_ledger_free(made);
        return ag_fail_sys(err, result, "", "eventfd");
    }
    *ledger = made;
    return AG_OK;
}

int
ag_ledger_open(const struct ag_ledger_options *options, struct ag_ledger **ledger,
               struct ag_error *err)
{
    struct ag_ledger *made = NULL;
    if (options->ring_bytes < AG_LEDGER_RING_MIN) {
        return ag_fail(err, AG_EINVAL, "ring of %zu octets is too small, %zu needed",
                       options->ring_bytes, AG_LEDGER_RING_MIN);
    }
    if (options->publish_gap_us > MOST_US || options->publish_max_us > MOST_US ||
        options->close_max_us > MOST_US) {
        return ag_fail(err, AG_EINVAL,
                       "publishing or closing is put off by more than a day");
    }
    if (options->origin != NULL && ag_origin_check(options->origin, err) != AG_OK) {
        return AG_EINVAL;
    }
    if (strlen(options->private_dir) >= PATH_MAX - 128) {
        return ag_fail_sys(err, ENAMETOOLONG, options->private_dir, "open");
    }
    int status = make(options, &made, err);
    if (status != AG_OK) {
        return status;
    }
    status = ag_ledger_look_before(made, options, err);
    if (status == AG_OK) {
        status = ag_io_make_durable_dirs(made->io, options->private_dir, 0700, err);
    }
    if (status == AG_OK) {
        status = take_lock(made, err);
    }
    if (status == AG_OK) {
        status = ag_store_open(&made->store, made->io, options->path, err);
    }
    if (status == AG_OK) {
        status = ag_ledger_identify(made, options, err);
    }
    if (status == AG_OK) {
        status = ag_ledger_recover(made, options, err);
    }
    if (status == AG_OK) {
        status = start_thread(made, err);
    }
    if (status != AG_OK) {
        if (made->wal != NULL) {
            (void)ag_wal_close(made->wal, UINT64_MAX, NULL);
        }
        ag_ledger_free(made);
        advise(err);
        return status;
    }
    *ledger = made;
    return AG_OK;
}

/* Waits for the end of the thread until a little after it should give up by itself.
 * False: it hangs in the disk, and the ledger is left to it. */
static bool
join_thread(struct ag_ledger *ledger, uint64_t close_by)
{
    pthread_mutex_lock(&ledger->lock);
    while (!ledger->thread_ended && ag_clock_ns() < close_by + CLOSE_GRACE_NS) {
        ag_cond_wait_until(&ledger->changed, &ledger->lock, close_by + CLOSE_GRACE_NS);
    }
    bool ended = ledger->thread_ended;
    ledger->left_to_thread = !ended;
    if (!ended) {
        (void)pthread_detach(ledger->thread);
    }
    pthread_mutex_unlock(&ledger->lock);
    if (ended) {
        (void)pthread_join(ledger->thread, NULL);
    }
    return ended;
}

int
ag_ledger_close(struct ag_ledger *ledger, struct ag_error *err)
{
    if (ledger->process != ag_process()) {
        ag_wal_abandon(ledger->wal);
        ag_ledger_free(ledger);
        return AG_OK;
    }
    uint64_t close_by = ag_clock_ns() + ledger->close_max_ns;
    pthread_mutex_lock(&ledger->lock);
    ledger->close_by_ns = close_by;
    pthread_cond_signal(&ledger->wake);
    uint64_t submitted = ledger->submitted;
    pthread_mutex_unlock(&ledger->lock);
    ag_wal_want(ledger->wal, submitted);
    if (!join_thread(ledger, close_by)) {
        int status = ag_fail(err, AG_ETIMEDOUT, "disk does not answer: not published");
        ag_error_advice(err, "Nothing is lost: the next open goes on from there. Until "
                             "the disk answers, this process holds the directory.");
        return status;
    }
    uint64_t now = ag_clock_ns();
    int status = ag_wal_close(ledger->wal, close_by > now ? close_by - now : 0, err);
    if (status == AG_ETIMEDOUT) {
        return status; /* thread W still uses the ledger: both are left to it */
    }
    ag_ledger_free(ledger);
    return status;
}
