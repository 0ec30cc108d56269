/* Opening and closing a ledger: first start, recovery, and the checks that refuse. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/alloc.h"
#include "log/ledger_state.h"

#define LOG_FILE_MAX 1024
#define VKEY_FILE "log.vkey"

void
ag_ledger_options_init(struct ag_ledger_options *options)
{
    memset(options, 0, sizeof(*options));
    options->ring_bytes = (size_t)16 << 20;
    options->max_delay_us = 2000;
    options->publish_gap_us = 100 * 1000;
    options->publish_max_us = 10 * 1000 * 1000;
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

/* ---- the LOG file: what this log is, written once ----
 *
 *     aegis ledger 1
 *     origin <origin>
 *     id <16 hex digits>
 *     vkey <verifier key>
 */

static int
refuse_log_file(const char *path, const char *what, struct ag_error *err)
{
    int status = ag_fail(err, AG_ECORRUPT, "%s", what);
    ag_error_file(err, path, AG_NO_POSITION);
    ag_error_advice(err, "Restore the private folder of this log from a copy.");
    return status;
}

/* The value of "\n<name> <value>\n" in text, copied with a NUL; false when missing. */
static bool
find_line(const char *text, const char *name, char *value, size_t room)
{
    char start[32];
    (void)snprintf(start, sizeof(start), "\n%s ", name);
    const char *at = strstr(text, start);
    if (at == NULL) {
        return false;
    }
    at += strlen(start);
    size_t n = strcspn(at, "\n");
    if (n == 0 || n >= room || at[n] != '\n') {
        return false;
    }
    memcpy(value, at, n);
    value[n] = '\0';
    return true;
}

static int
read_log_file(struct ag_ledger *ledger, const char *path, char vkey[AG_VKEY_MAX],
              struct ag_error *err)
{
    static const char first_line[] = "aegis ledger 1\n";
    uint8_t *text = NULL;
    size_t n = 0;
    char id[17], *end = NULL;
    int status = ag_io_read_file(ledger->io, path, LOG_FILE_MAX, &text, &n, err);
    if (status != AG_OK) {
        return status;
    }
    const char *s = (const char *)text;
    if (strlen(s) != n || strncmp(s, first_line, sizeof(first_line) - 1) != 0) {
        status = refuse_log_file(path, "not a LOG file of this version", err);
        goto exit;
    }
    if (!find_line(s, "origin", ledger->origin, sizeof(ledger->origin)) ||
        !find_line(s, "id", id, sizeof(id)) ||
        !find_line(s, "vkey", vkey, AG_VKEY_MAX)) {
        status = refuse_log_file(path, "LOG file lacks a line", err);
        goto exit;
    }
    ledger->log_id = strtoull(id, &end, 16);
    if (strlen(id) != 16 || *end != '\0') {
        status = refuse_log_file(path, "LOG file has no valid id", err);
    }
exit:
    ag_free(text);
    return status;
}

static int
write_log_file(struct ag_ledger *ledger, const char *path, struct ag_error *err)
{
    char text[LOG_FILE_MAX];
    int n = snprintf(text, sizeof(text),
                     "aegis ledger 1\norigin %s\nid %016" PRIx64 "\nvkey %s\n",
                     ledger->origin, ledger->log_id, ag_signer_vkey(ledger->signer));
    return ag_io_replace_file(ledger->io, path, text, (size_t)n, 0600, 1, err);
}

/* ---- first start ---- */

static bool
exists(const struct ag_io *io, const char *path)
{
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd >= 0) {
        (void)io->close(io->ctx, fd);
    }
    return fd >= 0 || fd != -ENOENT;
}

/* A folder that holds a log, while the private folder knows none. */
static int
refuse_foreign_folder(struct ag_ledger *ledger, struct ag_error *err)
{
    static const char *const names[] = {"checkpoint", "tile", VKEY_FILE};
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", ledger->store.root, names[i]);
        if (exists(ledger->io, path)) {
            int status = ag_fail(err, AG_EFOREIGN,
                                 "folder holds a log whose private part is missing");
            ag_error_file(err, path, AG_NO_POSITION);
            ag_error_advice(err, "Restore %s, or use an empty folder.",
                            ledger->private_dir);
            return status;
        }
    }
    return AG_OK;
}

/* A start that was cut short leaves a journal without entries; one with entries belongs
 * to a log whose LOG file is lost. */
static int
drop_empty_journal(const struct ag_io *io, const char *path, struct ag_error *err)
{
    uint8_t *bytes = NULL;
    size_t n = 0;
    int status = ag_io_read_file(io, path, AG_JOURNAL_EMPTY, &bytes, &n, err);
    ag_free(bytes);
    if (status == AG_ENOTFOUND) {
        return AG_OK;
    }
    if (status == AG_ETOOBIG) {
        status = ag_fail(err, AG_EFOREIGN, "journal has entries, but LOG is missing");
        ag_error_file(err, path, AG_NO_POSITION);
        ag_error_advice(err, "Restore the LOG file of this log from a copy.");
    }
    if (status != AG_OK) {
        return status;
    }
    int result = io->unlink(io->ctx, path);
    return result < 0 ? ag_fail_sys(err, -result, path, "unlink") : AG_OK;
}

static int
replay_nothing(void *ctx, uint64_t seq, const uint8_t *record, size_t n,
               struct ag_error *err)
{
    (void)ctx, (void)record, (void)n;
    int status = ag_fail(err, AG_ECORRUPT, "new journal is not empty");
    ag_error_index(err, seq);
    return status;
}

static const char *
last_component(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : "w0";
}

/* Makes what a log consists of; the LOG file comes last, so that a start that was cut
 * short is simply made again. */
static int
first_start(struct ag_ledger *ledger, const struct ag_ledger_options *options,
            const char *key_path, const char *journal_path, const char *log_path,
            struct ag_error *err)
{
    char path[PATH_MAX];
    uint8_t secret[AG_HASH_SIZE];
    struct ag_journal *journal = NULL;
    int status = refuse_foreign_folder(ledger, err);
    if (status != AG_OK) {
        return status;
    }
    if (getentropy(&ledger->log_id, sizeof(ledger->log_id)) != 0 ||
        getentropy(secret, sizeof(secret)) != 0) {
        return ag_fail_sys(err, errno, "", "reading random numbers");
    }
    if (options->origin != NULL) {
        (void)snprintf(ledger->origin, sizeof(ledger->origin), "%s", options->origin);
    } else {
        (void)snprintf(ledger->origin, sizeof(ledger->origin),
                       "aegis.local/%016" PRIx64 "/%s", ledger->log_id,
                       last_component(options->path));
    }
    status = drop_empty_journal(ledger->io, journal_path, err);
    if (status != AG_OK) {
        return status;
    }
    status =
        ag_signer_open(ledger->io, key_path, ledger->origin, 1, &ledger->signer, err);
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "subject.secret", path, err);
    }
    if (status == AG_OK) {
        status =
            ag_io_replace_file(ledger->io, path, secret, sizeof(secret), 0600, 1, err);
    }
    if (status == AG_OK) {
        status = ag_journal_open(ledger->io, journal_path, ledger->log_id, true,
                                 replay_nothing, NULL, &journal, err);
        ag_journal_close(journal);
    }
    return status == AG_OK ? write_log_file(ledger, log_path, err) : status;
}

/* ---- recovery ---- */

struct signed_state {
    char path[PATH_MAX];
    char note[AG_CHECKPOINT_MAX];
    size_t n; /* 0: there is none */
    uint64_t size;
    uint8_t root[AG_HASH_SIZE];
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

struct recovery {
    struct ag_ledger *ledger;
    struct signed_state private_copy, public_copy;
};

static int
compare_with_signed(struct ag_ledger *ledger, const struct signed_state *state,
                    struct ag_error *err)
{
    uint8_t root[AG_HASH_SIZE];
    if (state->n == 0 || ledger->frontier.size != state->size) {
        return AG_OK;
    }
    atomic_store(&ledger->stage_size[AG_INTEGRATED], state->size);
    int status = ag_ledger_root(ledger, state->size, root, err);
    if (status == AG_OK && memcmp(root, state->root, AG_HASH_SIZE) != 0) {
        status = ag_fail(err, AG_EROLLBACK, "log differs from what was signed");
        ag_error_file(err, state->path, AG_NO_POSITION);
        ag_error_index(err, state->size);
        ag_error_advice(err,
                        "The journal was exchanged: restore the one that belongs to "
                        "this checkpoint.");
    }
    if (status == AG_OK) {
        status = ag_ledger_write_partials(ledger, true, err);
    }
    return status;
}

static int
replay_entry(void *ctx, uint64_t seq, const uint8_t *record, size_t n,
             struct ag_error *err)
{
    struct recovery *r = ctx;
    int status = ag_ledger_integrate(r->ledger, record, n, true, err);
    if (status == AG_OK) {
        status = compare_with_signed(r->ledger, &r->public_copy, err);
    }
    if (status == AG_OK) {
        status = compare_with_signed(r->ledger, &r->private_copy, err);
    }
    (void)seq;
    return status;
}

static int
refuse_rollback(const struct signed_state *state, uint64_t size, struct ag_error *err)
{
    char expected[48], found[48];
    if (state->n == 0 || state->size <= size) {
        return AG_OK;
    }
    (void)snprintf(expected, sizeof(expected), "%" PRIu64 " entries", state->size);
    (void)snprintf(found, sizeof(found), "%" PRIu64, size);
    int status = ag_fail(err, AG_EROLLBACK, "log is older than its signed checkpoint");
    ag_error_file(err, state->path, AG_NO_POSITION);
    ag_error_pair(err, expected, found);
    ag_error_advice(err, "Restore the newer journal; what was signed must not vanish.");
    return status;
}

static int
recover(struct ag_ledger *ledger, const char *journal_path, struct ag_error *err)
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
        status = read_signed(ledger, &r.public_copy, err);
    }
    if (status == AG_OK) {
        status = ag_journal_open(ledger->io, journal_path, ledger->log_id, false,
                                 replay_entry, &r, &ledger->journal, err);
    }
    if (status != AG_OK) {
        return status;
    }
    uint64_t size = ledger->frontier.size;
    struct signed_state *newest =
        r.private_copy.size >= r.public_copy.size ? &r.private_copy : &r.public_copy;
    status = refuse_rollback(newest, size, err);
    if (status == AG_OK) {
        status = ag_journal_begin(ledger->journal, err);
    }
    if (status != AG_OK) {
        return status;
    }
    for (int stage = 0; stage < AG_STAGES; stage++) {
        atomic_store(&ledger->stage_size[stage], size);
    }
    atomic_store(&ledger->stage_size[AG_PUBLISHED], newest->size);
    ledger->submitted = size;
    ledger->stats.recovered = size;
    ledger->stats.rewritten = ledger->store.rewritten;
    if (newest->n > 0) {
        memcpy(ledger->checkpoint, newest->note, newest->n + 1);
        ledger->checkpoint_n = newest->n;
        ledger->checkpoint_size = newest->size;
        memcpy(ledger->checkpoint_root, newest->root, AG_HASH_SIZE);
        status =
            ag_store_ensure(&ledger->store, "checkpoint", newest->note, newest->n, err);
    }
    return status;
}

/* ---- open and close ---- */

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

static int
load_secret(struct ag_ledger *ledger, struct ag_error *err)
{
    char path[PATH_MAX];
    uint8_t *secret = NULL;
    size_t n = 0;
    int status = ag_ledger_private_path(ledger, "subject.secret", path, err);
    if (status == AG_OK) {
        status = ag_io_read_file(ledger->io, path, AG_HASH_SIZE, &secret, &n, err);
    }
    if (status == AG_OK && n != AG_HASH_SIZE) {
        status = refuse_log_file(path, "subject secret is not 32 octets long", err);
    }
    if (status == AG_OK) {
        memcpy(ledger->secret, secret, AG_HASH_SIZE);
    }
    ag_free(secret);
    return status;
}

/* The key must be the one that this log began with, here and in the published folder.
 */
static int
check_vkey(struct ag_ledger *ledger, const char *vkey, const char *key_path,
           struct ag_error *err)
{
    char line[AG_VKEY_MAX + 1];
    const char *mine = ag_signer_vkey(ledger->signer);
    if (strcmp(vkey, mine) != 0) {
        int status = ag_fail(err, AG_EFOREIGN, "log key belongs to another log");
        ag_error_file(err, key_path, AG_NO_POSITION);
        ag_error_pair(err, vkey, mine);
        ag_error_advice(err, "Restore the key that this log was started with.");
        return status;
    }
    int n = snprintf(line, sizeof(line), "%s\n", mine);
    return ag_store_ensure(&ledger->store, VKEY_FILE, line, (size_t)n, err);
}

static int
load(struct ag_ledger *ledger, const struct ag_ledger_options *options,
     struct ag_error *err)
{
    char key_path[PATH_MAX], log_path[PATH_MAX], journal_path[PATH_MAX];
    char vkey[AG_VKEY_MAX];
    int status = AG_OK;
    if (options->key_path != NULL) {
        (void)snprintf(key_path, sizeof(key_path), "%s", options->key_path);
    } else {
        status = ag_ledger_private_path(ledger, "log.key", key_path, err);
    }
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "LOG", log_path, err);
    }
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "wal", journal_path, err);
    }
    if (status == AG_OK) {
        status = ag_io_make_dirs(ledger->io, journal_path, 0700, err);
    }
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "wal/journal", journal_path, err);
    }
    if (status != AG_OK) {
        return status;
    }
    status = read_log_file(ledger, log_path, vkey, err);
    if (status == AG_ENOTFOUND) {
        status = first_start(ledger, options, key_path, journal_path, log_path, err);
        if (status == AG_OK) {
            status = read_log_file(ledger, log_path, vkey, err);
        }
    } else if (status == AG_OK) {
        status = ag_signer_open(ledger->io, key_path, ledger->origin, 0,
                                &ledger->signer, err);
        if (status == AG_ENOTFOUND) {
            ag_error_advice(err, "Restore the key of this log; it is never made anew.");
        }
    }
    if (status == AG_OK && options->origin != NULL &&
        strcmp(options->origin, ledger->origin) != 0) {
        status = ag_fail(err, AG_EFOREIGN, "log has another origin");
        ag_error_file(err, log_path, AG_NO_POSITION);
        ag_error_pair(err, options->origin, ledger->origin);
        ag_error_advice(err, "The origin is fixed at the first start.");
    }
    if (status == AG_OK) {
        status = check_vkey(ledger, vkey, key_path, err);
    }
    if (status == AG_OK) {
        status = load_secret(ledger, err);
    }
    return status == AG_OK ? recover(ledger, journal_path, err) : status;
}

static int
start_thread(struct ag_ledger *ledger, struct ag_error *err)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* the thread takes no signals */
    int result = pthread_create(&ledger->thread, NULL, ag_ledger_thread, ledger);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    ledger->thread_runs = result == 0;
    return result == 0 ? AG_OK : ag_fail_sys(err, result, "", "starting a thread");
}

static void
release(struct ag_ledger *ledger)
{
    ag_journal_close(ledger->journal);
    ag_signer_free(ledger->signer);
    if (ledger->lock_fd >= 0) {
        (void)ledger->io->close(ledger->io->ctx, ledger->lock_fd);
    }
    ag_wakeup_close(&ledger->wakeup);
    ag_free(ledger->bundle.bytes);
    ag_free(ledger->ring);
    ag_free(ledger);
}

int
ag_ledger_open(const struct ag_ledger_options *options, struct ag_ledger **ledger,
               struct ag_error *err)
{
    const struct ag_io *io = options->io != NULL ? options->io : ag_io_posix();
    if (options->ring_bytes < AG_LEDGER_RING_MIN) {
        return ag_fail(err, AG_EINVAL, "ring of %zu octets is too small, %zu needed",
                       options->ring_bytes, AG_LEDGER_RING_MIN);
    }
    if (options->origin != NULL && ag_origin_check(options->origin, err) != AG_OK) {
        return AG_EINVAL;
    }
    if (strlen(options->private_dir) >= PATH_MAX - 128) {
        return ag_fail_sys(err, ENAMETOOLONG, options->private_dir, "open");
    }
    struct ag_ledger *made = ag_calloc(1, sizeof(*made));
    if (made == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the ledger");
    }
    made->io = io;
    made->pid = getpid();
    made->lock_fd = -1;
    made->wakeup.read_fd = made->wakeup.write_fd = -1;
    made->max_delay_ns = options->max_delay_us * 1000;
    made->publish_gap_ns = options->publish_gap_us * 1000;
    made->publish_max_ns = options->publish_max_us * 1000;
    made->ring_n = options->ring_bytes & ~(size_t)7;
    (void)snprintf(made->private_dir, sizeof(made->private_dir), "%s",
                   options->private_dir);
    pthread_mutex_init(&made->lock, NULL);
    pthread_mutex_init(&made->tree_lock, NULL);
    int result = ag_cond_init(&made->wake);
    if (result == 0) {
        result = ag_cond_init(&made->changed);
    }
    if (result == 0) {
        result = ag_wakeup_open(&made->wakeup);
    }
    int status = result == 0 ? AG_OK : ag_fail_sys(err, result, "", "eventfd");
    made->ring = ag_alloc(made->ring_n);
    if (status == AG_OK && made->ring == NULL) {
        status =
            ag_fail(err, AG_ENOMEM, "no memory for a ring of %zu octets", made->ring_n);
    }
    if (status == AG_OK) {
        status = ag_io_make_dirs(io, options->private_dir, 0700, err);
    }
    if (status == AG_OK) {
        status = take_lock(made, err);
    }
    if (status == AG_OK) {
        status = ag_store_open(&made->store, io, options->path, err);
    }
    if (status == AG_OK) {
        status = load(made, options, err);
    }
    if (status == AG_OK) {
        status = start_thread(made, err);
    }
    if (status != AG_OK) {
        release(made);
        return status;
    }
    *ledger = made;
    return AG_OK;
}

int
ag_ledger_close(struct ag_ledger *ledger, struct ag_error *err)
{
    int status = AG_OK;
    if (ledger->pid == getpid() && ledger->thread_runs) {
        pthread_mutex_lock(&ledger->lock);
        ledger->closing = true;
        pthread_cond_signal(&ledger->wake);
        pthread_mutex_unlock(&ledger->lock);
        (void)pthread_join(ledger->thread, NULL);
        status = ag_ledger_failure(ledger, err);
    }
    release(ledger);
    return status;
}
