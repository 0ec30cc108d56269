/* What a log is: its identity file, key, verifier key and default secret, made at the
 * first start and held against each other at every later one. The identity file:
 *
 *     aegis ledger 1
 *     origin <origin>
 *     vkey <verifier key>
 *     secret <first 8 octets, in hex, of H("aegis/secret/v1" || subject secret)>
 *
 * The last tells a damaged secret, with which no commitment would open. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "log/ledger_state.h"

#define IDENTITY_MAX 1024
#define SECRET_NAME 16
#define VKEY_FILE "log.vkey"

static int
refuse_private_file(const char *path, const char *what, struct ag_error *err)
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
read_identity(struct ag_ledger *ledger, const char *path, char vkey[AG_VKEY_MAX],
              char secret[SECRET_NAME + 1], struct ag_error *err)
{
    static const char first_line[] = "aegis ledger 1\n";
    uint8_t *text = NULL;
    size_t n = 0;
    int status = ag_io_read_file(ledger->io, path, IDENTITY_MAX, &text, &n, err);
    if (status != AG_OK) {
        return status;
    }
    const char *s = (const char *)text;
    if (strlen(s) != n || strncmp(s, first_line, sizeof(first_line) - 1) != 0) {
        status = refuse_private_file(path, "not an identity file of this version", err);
    } else if (!find_line(s, "origin", ledger->origin, sizeof(ledger->origin)) ||
               !find_line(s, "vkey", vkey, AG_VKEY_MAX)) {
        status = refuse_private_file(path, "identity file lacks a line", err);
    } else if (ag_origin_check(ledger->origin, NULL) != AG_OK) {
        status = refuse_private_file(path, "identity file names no origin", err);
    } else if (!find_line(s, "secret", secret, SECRET_NAME + 1)) {
        secret[0] = '\0'; /* of an earlier version */
    }
    ag_free(text);
    return status;
}

static void
name_secret(const struct ag_ledger *ledger, char name[SECRET_NAME + 1])
{
    static const char label[] = "aegis/secret/v1";
    struct ag_sha256 hash;
    uint8_t digest[AG_HASH_SIZE];
    char hex[64];
    ag_sha256_init(&hash);
    ag_sha256_update(&hash, label, sizeof(label) - 1);
    ag_sha256_update(&hash, ledger->secret, sizeof(ledger->secret));
    ag_sha256_final(&hash, digest);
    ag_hash_hex(digest, hex);
    (void)snprintf(name, SECRET_NAME + 1, "%.*s", SECRET_NAME, hex);
}

static int
write_identity(struct ag_ledger *ledger, const char *path, struct ag_error *err)
{
    char text[IDENTITY_MAX], secret[SECRET_NAME + 1];
    name_secret(ledger, secret);
    int n =
        snprintf(text, sizeof(text), "aegis ledger 1\norigin %s\nvkey %s\nsecret %s\n",
                 ledger->origin, ag_signer_vkey(ledger->signer), secret);
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

static void
each_foreign(void *arg, const char *name)
{
    char *found = arg;
    if (name[0] != '.' && strcmp(name, "lost+found") != 0 && found[0] == '\0') {
        (void)snprintf(found, NAME_MAX + 1, "%s", name);
    }
}

/* A new log is not made among somebody's other files, which would be served with it. */
static int
refuse_foreign(const struct ag_ledger *ledger, const char *published,
               struct ag_error *err)
{
    char found[NAME_MAX + 1] = "", path[PATH_MAX];
    int result = ledger->io->list(ledger->io->ctx, published, each_foreign, found);
    if (result < 0 && result != -ENOENT) {
        return ag_fail_sys(err, -result, published, "list");
    }
    if (found[0] == '\0') {
        return AG_OK;
    }
    (void)snprintf(path, sizeof(path), "%s/%s", published, found);
    int status =
        ag_fail(err, AG_EFOREIGN, "the folder holds something else than a log");
    ag_error_file(err, path, AG_NO_POSITION);
    ag_error_pair(err, "an empty folder, or none", found);
    ag_error_advice(err, "Nothing was made. Give the log a folder of its own.");
    return status;
}

/* A folder that holds a log, or the log itself, without the identity file. */
static int
refuse_without_identity(struct ag_ledger *ledger, const char *published,
                        struct ag_error *err)
{
    const struct {
        const char *folder, *name;
    } signs[] = {
        {ledger->private_dir, "wal/LOG"},
        {published, "checkpoint"},
        {published, "tile"},
        {published, VKEY_FILE},
    };
    char path[PATH_MAX];
    for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++) {
        (void)snprintf(path, sizeof(path), "%s/%s", signs[i].folder, signs[i].name);
        if (exists(ledger->io, path)) {
            int status = ag_fail(err, AG_EFOREIGN,
                                 "there is a log, but its identity file is missing");
            ag_error_file(err, path, AG_NO_POSITION);
            ag_error_advice(err, "Restore %s from a copy, or use an empty folder.",
                            ledger->private_dir);
            return status;
        }
    }
    return refuse_foreign(ledger, published, err);
}

static const char *
last_component(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL && slash[1] != '\0' ? slash + 1 : "w0";
}

/* The key that was given, or the one in its file, which a first start makes. */
static int
open_key(struct ag_ledger *ledger, const struct ag_ledger_options *options,
         const char *key_path, int create, struct ag_error *err)
{
    if (options->key_pem != NULL) {
        return ag_signer_from_pem(options->key_pem, strlen(options->key_pem),
                                  ledger->origin, &ledger->signer, err);
    }
    return ag_signer_open(ledger->io, key_path, ledger->origin, create, &ledger->signer,
                          err);
}

/* Makes key, secret and, last, the identity file, so that a start that was cut short is
 * simply made again. The log itself comes after it. */
static int
first_start(struct ag_ledger *ledger, const struct ag_ledger_options *options,
            const char *key_path, const char *identity_path, struct ag_error *err)
{
    char path[PATH_MAX];
    uint8_t secret[AG_HASH_SIZE];
    uint64_t number = 0;
    int status = refuse_without_identity(ledger, options->path, err);
    if (status != AG_OK) {
        return status;
    }
    if (getentropy(&number, sizeof(number)) != 0 ||
        getentropy(secret, sizeof(secret)) != 0) {
        return ag_fail_sys(err, errno, "", "reading random numbers");
    }
    memcpy(ledger->secret, secret, sizeof(secret));
    if (options->origin != NULL) {
        (void)snprintf(ledger->origin, sizeof(ledger->origin), "%s", options->origin);
    } else {
        (void)snprintf(ledger->origin, sizeof(ledger->origin),
                       "aegis.local/%016" PRIx64 "/%.100s", number,
                       last_component(options->path));
    }
    status = open_key(ledger, options, key_path, 1, err);
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "subject.secret", path, err);
    }
    if (status == AG_OK) {
        status =
            ag_io_replace_file(ledger->io, path, secret, sizeof(secret), 0600, 1, err);
    }
    return status == AG_OK ? write_identity(ledger, identity_path, err) : status;
}

/* ---- every start ---- */

static int
load_secret(struct ag_ledger *ledger, const char *name, struct ag_error *err)
{
    char path[PATH_MAX], found[SECRET_NAME + 1];
    uint8_t *secret = NULL;
    size_t n = 0;
    int status = ag_ledger_private_path(ledger, "subject.secret", path, err);
    if (status == AG_OK) {
        status = ag_io_read_file(ledger->io, path, AG_HASH_SIZE, &secret, &n, err);
    }
    if (status == AG_ENOTFOUND) {
        ag_error_advice(err,
                        "Restore it from a copy. If it was deleted for good, so that "
                        "nobody can open its commitments: this log can be verified "
                        "for ever, but goes on only as a new one in another folder.");
    }
    if (status == AG_OK && n != AG_HASH_SIZE) {
        status = refuse_private_file(path, "subject secret is not 32 octets long", err);
    }
    if (status == AG_OK) {
        memcpy(ledger->secret, secret, AG_HASH_SIZE);
        ag_hmac_init(&ledger->secret_taken, ledger->secret, AG_HASH_SIZE);
        name_secret(ledger, found);
        if (name[0] != '\0' && strcmp(name, found) != 0) {
            status = refuse_private_file(path, "subject secret is not this log's", err);
        }
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

int
ag_ledger_identify(struct ag_ledger *ledger, const struct ag_ledger_options *options,
                   struct ag_error *err)
{
    char key_path[PATH_MAX], identity_path[PATH_MAX], vkey[AG_VKEY_MAX];
    char secret[SECRET_NAME + 1];
    int status = ag_ledger_private_path(ledger, "log.key", key_path, err);
    if (options->key_path != NULL) {
        (void)snprintf(key_path, sizeof(key_path), "%s", options->key_path);
    }
    if (options->key_pem != NULL) {
        key_path[0] = '\0'; /* errors name no file */
    }
    if (status == AG_OK) {
        status = ag_ledger_private_path(ledger, "identity", identity_path, err);
    }
    if (status != AG_OK) {
        return status;
    }
    status = read_identity(ledger, identity_path, vkey, secret, err);
    if (status == AG_ENOTFOUND) {
        status = first_start(ledger, options, key_path, identity_path, err);
        if (status == AG_OK) {
            status = read_identity(ledger, identity_path, vkey, secret, err);
        }
    } else if (status == AG_OK) {
        status = open_key(ledger, options, key_path, 0, err);
        if (status == AG_ENOTFOUND) {
            ag_error_advice(err, "Restore the key of this log; it is never made anew.");
        }
    }
    if (status == AG_OK && options->origin != NULL &&
        strcmp(options->origin, ledger->origin) != 0) {
        status = ag_fail(err, AG_EFOREIGN, "log has another origin");
        ag_error_file(err, identity_path, AG_NO_POSITION);
        ag_error_pair(err, options->origin, ledger->origin);
        ag_error_advice(err, "The origin is fixed at the first start.");
    }
    if (status == AG_OK) {
        status = check_vkey(ledger, vkey, key_path, err);
    }
    if (status == AG_OK) {
        status = load_secret(ledger, secret, err);
    }
    return status;
}

int
ag_ledger_look_before(struct ag_ledger *ledger, const struct ag_ledger_options *options,
                      struct ag_error *err)
{
    char path[PATH_MAX];
    int status = ag_ledger_private_path(ledger, "identity", path, err);
    return status == AG_OK && !exists(ledger->io, path)
               ? refuse_without_identity(ledger, options->path, err)
               : status;
}
