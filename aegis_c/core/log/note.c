#include "log/note.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/base64.h"
#include "base/bytes.h"

#define KEY_TYPE_ED25519 0x01
#define PUBLIC_SIZE 32
#define SIGNATURE_SIZE 64
#define KEY_FILE_MAX 4096

static const char signature_prefix[] = "\xe2\x80\x94 "; /* U+2014, space */

struct ag_signer {
    EVP_PKEY *key; /* owned */
    uint8_t public_key[PUBLIC_SIZE];
    uint32_t key_id;
    char origin[AG_ORIGIN_MAX + 1];
    char vkey[AG_VKEY_MAX];
};

int
ag_origin_check(const char *origin, struct ag_error *err)
{
    size_t n = strlen(origin);
    if (n == 0 || n > AG_ORIGIN_MAX) {
        int status = ag_fail(err, AG_EINVAL, "origin has %zu octets, 1 to %d allowed",
                             n, AG_ORIGIN_MAX);
        ag_error_advice(err, "Use a URL without scheme, such as example.org/aegis/w0.");
        return status;
    }
    for (size_t i = 0; i < n; i++) {
        if (origin[i] <= ' ' || origin[i] > '~' || origin[i] == '+') {
            int status =
                ag_fail(err, AG_EINVAL, "origin has the octet 0x%02x at position %zu",
                        (unsigned)(uint8_t)origin[i], i);
            ag_error_advice(err, "Use printable ASCII without space and '+'.");
            return status;
        }
    }
    return AG_OK;
}

/* ---- keys ---- */

static int
write_new_key(const struct ag_io *io, const char *path, struct ag_error *err)
{
    int status = AG_OK;
    EVP_PKEY_CTX *ctx = NULL;
    EVP_PKEY *key = NULL;
    BIO *pem = NULL;
    char *text = NULL;
    ctx = EVP_PKEY_CTX_new_id(EVP_PKEY_ED25519, NULL);
    pem = BIO_new(BIO_s_mem());
    if (ctx == NULL || pem == NULL || EVP_PKEY_keygen_init(ctx) != 1 ||
        EVP_PKEY_keygen(ctx, &key) != 1 ||
        PEM_write_bio_PrivateKey(pem, key, NULL, NULL, 0, NULL, NULL) != 1) {
        status = ag_fail(err, AG_ECRYPTO, "cannot make an Ed25519 key");
        goto exit;
    }
    long n = BIO_get_mem_data(pem, &text);
    status = ag_io_replace_file(io, path, text, (size_t)n, 0600, 1, err);
exit:
    BIO_free(pem);
    EVP_PKEY_free(key);
    EVP_PKEY_CTX_free(ctx);
    return status;
}

static int
check_key_mode(const char *path, struct ag_error *err)
{
    struct stat st;
    if (stat(path, &st) != 0) {
        return ag_fail_sys(err, errno, path, "stat");
    }
    mode_t mode = st.st_mode & 07777;
    bool secret_mount = st.st_uid == 0 &&
                        (mode == 0640 || mode == 0644 || mode == 0440 || mode == 0444);
    if ((mode & 077) != 0 && !secret_mount) {
        int status = ag_fail(err, AG_EPERM, "log key is open to others (mode %04o)",
                             (unsigned)mode);
        ag_error_file(err, path, AG_NO_POSITION);
        ag_error_advice(err, "Run: chmod 600 on that file.");
        return status;
    }
    return AG_OK;
}

static void
signer_describe(struct ag_signer *signer)
{
    uint8_t typed[1 + PUBLIC_SIZE];
    char encoded[AG_BASE64_SIZE(sizeof(typed)) + 1];
    struct ag_sha256 hash;
    uint8_t digest[AG_HASH_SIZE];
    typed[0] = KEY_TYPE_ED25519;
    memcpy(typed + 1, signer->public_key, PUBLIC_SIZE);
    ag_sha256_init(&hash);
    ag_sha256_update(&hash, signer->origin, strlen(signer->origin));
    ag_sha256_update(&hash, "\n", 1);
    ag_sha256_update(&hash, typed, sizeof(typed));
    ag_sha256_final(&hash, digest);
    signer->key_id = ag_get_u32be(digest);
    encoded[ag_base64_encode(encoded, typed, sizeof(typed))] = '\0';
    (void)snprintf(signer->vkey, sizeof(signer->vkey), "%s+%08" PRIx32 "+%s",
                   signer->origin, signer->key_id, encoded);
}

/* Without it OpenSSL asks the terminal for the passphrase of an encrypted key. */
static int
no_passphrase(char *to, int room, int writing, void *arg)
{
    (void)to;
    (void)room;
    (void)writing;
    (void)arg;
    return -1;
}

int
ag_signer_from_pem(const void *pem, size_t n, const char *origin,
                   struct ag_signer **signer, struct ag_error *err)
{
    size_t public_n = PUBLIC_SIZE;
    int status = ag_origin_check(origin, err);
    if (status != AG_OK) {
        return status;
    }
    struct ag_signer *made = ag_calloc(1, sizeof(*made));
    BIO *bio = BIO_new_mem_buf(pem, n < KEY_FILE_MAX ? (int)n : KEY_FILE_MAX);
    if (made == NULL || bio == NULL) {
        status = ag_fail(err, AG_ENOMEM, "no memory for the log key");
        goto exit;
    }
    made->key = PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    if (made->key == NULL || EVP_PKEY_id(made->key) != EVP_PKEY_ED25519 ||
        EVP_PKEY_get_raw_public_key(made->key, made->public_key, &public_n) != 1) {
        status = ag_fail(err, AG_ECORRUPT,
                         "not an unencrypted Ed25519 private key in PEM form");
        ag_error_advice(err, "Restore the key of this log; a new key is a new log.");
        goto exit;
    }
    (void)snprintf(made->origin, sizeof(made->origin), "%s", origin);
    signer_describe(made);
    *signer = made;
    made = NULL; /* transferred */
exit:
    BIO_free(bio);
    ag_signer_free(made);
    return status;
}

int
ag_signer_open(const struct ag_io *io, const char *path, const char *origin, int create,
               struct ag_signer **signer, struct ag_error *err)
{
    uint8_t *pem = NULL;
    size_t n = 0;
    int status = ag_origin_check(origin, err);
    if (status == AG_OK) {
        status = ag_io_read_file(io, path, KEY_FILE_MAX, &pem, &n, err);
    }
    if (status == AG_ENOTFOUND && create) {
        status = write_new_key(io, path, err);
        if (status == AG_OK) {
            status = ag_io_read_file(io, path, KEY_FILE_MAX, &pem, &n, err);
        }
    }
    if (status == AG_OK) {
        status = check_key_mode(path, err);
    }
    if (status == AG_OK) {
        status = ag_signer_from_pem(pem, n, origin, signer, err);
        if (status == AG_ECORRUPT) {
            ag_error_file(err, path, AG_NO_POSITION);
        }
    }
    if (pem != NULL) {
        OPENSSL_cleanse(pem, n);
        ag_free(pem);
    }
    return status;
}

void
ag_signer_free(struct ag_signer *signer)
{
    if (signer != NULL) {
        EVP_PKEY_free(signer->key);
        ag_free(signer);
    }
}

const char *
ag_signer_vkey(const struct ag_signer *signer)
{
    return signer->vkey;
}

/* ---- checkpoints ---- */

/* "<origin>\n<size>\n<root>\n" */
static size_t
checkpoint_text(const char *origin, uint64_t size, const uint8_t root[AG_HASH_SIZE],
                char *to, size_t room)
{
    char encoded[AG_BASE64_SIZE(AG_HASH_SIZE) + 1];
    encoded[ag_base64_encode(encoded, root, AG_HASH_SIZE)] = '\0';
    return (size_t)snprintf(to, room, "%s\n%" PRIu64 "\n%s\n", origin, size, encoded);
}

int
ag_checkpoint_sign(const struct ag_signer *signer, uint64_t size,
                   const uint8_t root[AG_HASH_SIZE], char out[AG_CHECKPOINT_MAX],
                   size_t *n, struct ag_error *err)
{
    uint8_t body[4 + SIGNATURE_SIZE];
    char encoded[AG_BASE64_SIZE(sizeof(body)) + 1];
    size_t text_n = checkpoint_text(signer->origin, size, root, out, AG_CHECKPOINT_MAX);
    size_t signature_n = SIGNATURE_SIZE;
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int signed_ok =
        ctx != NULL && EVP_DigestSignInit(ctx, NULL, NULL, NULL, signer->key) == 1 &&
        EVP_DigestSign(ctx, body + 4, &signature_n, (const uint8_t *)out, text_n) == 1;
    EVP_MD_CTX_free(ctx);
    if (!signed_ok || signature_n != SIGNATURE_SIZE) {
        return ag_fail(err, AG_ECRYPTO, "cannot sign the checkpoint of size %" PRIu64,
                       size);
    }
    ag_put_u32be(body, signer->key_id);
    encoded[ag_base64_encode(encoded, body, sizeof(body))] = '\0';
    int tail = snprintf(out + text_n, AG_CHECKPOINT_MAX - text_n, "\n%s%s %s\n",
                        signature_prefix, signer->origin, encoded);
    *n = text_n + (size_t)tail;
    return AG_OK;
}

/* The line at *at without its LF; moves *at behind it. NULL when there is no LF. */
static const char *
next_line(const char **at, const char *end, size_t *n)
{
    const char *line = *at;
    const char *lf = memchr(line, '\n', (size_t)(end - line));
    if (lf == NULL) {
        return NULL;
    }
    *n = (size_t)(lf - line);
    *at = lf + 1;
    return line;
}

static int
parse_size(const char *text, size_t n, uint64_t *size)
{
    uint64_t value = 0;
    if (n == 0 || n > 19 || (n > 1 && text[0] == '0')) {
        return AG_ECORRUPT;
    }
    for (size_t i = 0; i < n; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return AG_ECORRUPT;
        }
        value = value * 10 + (uint64_t)(text[i] - '0');
    }
    *size = value;
    return AG_OK;
}

static int
parse_text(const char *text, const char *end, const char *origin, uint64_t *size,
           uint8_t root[AG_HASH_SIZE], struct ag_error *err)
{
    uint8_t decoded[AG_BASE64_SIZE(AG_HASH_SIZE)];
    size_t n = 0, decoded_n = 0;
    const char *line = next_line(&text, end, &n);
    if (line == NULL || n == 0) {
        return ag_fail(err, AG_ECORRUPT, "checkpoint has no origin line");
    }
    if (n != strlen(origin) || memcmp(line, origin, n) != 0) {
        char found[96];
        (void)snprintf(found, sizeof(found), "%.*s", (int)(n < 90 ? n : 90), line);
        int status = ag_fail(err, AG_EFOREIGN, "checkpoint is of another log");
        ag_error_pair(err, origin, found);
        return status;
    }
    line = next_line(&text, end, &n);
    if (line == NULL || parse_size(line, n, size) != AG_OK) {
        return ag_fail(err, AG_ECORRUPT, "checkpoint has no valid size line");
    }
    line = next_line(&text, end, &n);
    if (line == NULL || n != AG_BASE64_SIZE(AG_HASH_SIZE) ||
        ag_base64_decode(decoded, &decoded_n, line, n) != AG_OK ||
        decoded_n != AG_HASH_SIZE) {
        return ag_fail(err, AG_ECORRUPT, "checkpoint has no valid root line");
    }
    memcpy(root, decoded, AG_HASH_SIZE);
    while (text < end) { /* extension lines are allowed, empty ones are not */
        line = next_line(&text, end, &n);
        if (line == NULL || n == 0) {
            return ag_fail(err, AG_ECORRUPT, "checkpoint has an empty extension line");
        }
    }
    return AG_OK;
}

/* 1: this signer's valid signature; 0: somebody else's; negative: a status. */
static int
check_signature_line(const struct ag_signer *signer, const char *line, size_t n,
                     const char *text, size_t text_n, struct ag_error *err)
{
    uint8_t body[3 * 256];
    size_t body_n = 0, prefix_n = sizeof(signature_prefix) - 1;
    size_t name_n = strlen(signer->origin);
    if (n < prefix_n || memcmp(line, signature_prefix, prefix_n) != 0) {
        return ag_fail(err, AG_ECORRUPT, "note has a line that is no signature");
    }
    line += prefix_n;
    n -= prefix_n;
    const char *space = memchr(line, ' ', n);
    if (space == NULL || space == line) {
        return ag_fail(err, AG_ECORRUPT, "signature line has no key name");
    }
    size_t encoded_n = n - (size_t)(space - line) - 1;
    if ((size_t)(space - line) != name_n || memcmp(line, signer->origin, name_n) != 0) {
        return 0;
    }
    if (encoded_n > AG_BASE64_SIZE(sizeof(body)) - 4 ||
        ag_base64_decode(body, &body_n, space + 1, encoded_n) != AG_OK || body_n < 5) {
        return ag_fail(err, AG_ECORRUPT, "signature is not base64");
    }
    if (ag_get_u32be(body) != signer->key_id) {
        return 0;
    }
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    int good = ctx != NULL && body_n == 4 + SIGNATURE_SIZE &&
               EVP_DigestVerifyInit(ctx, NULL, NULL, NULL, signer->key) == 1 &&
               EVP_DigestVerify(ctx, body + 4, SIGNATURE_SIZE, (const uint8_t *)text,
                                text_n) == 1;
    EVP_MD_CTX_free(ctx);
    return good ? 1 : ag_fail(err, AG_EVERIFY, "signature of this log's key is wrong");
}

int
ag_checkpoint_open(const struct ag_signer *signer, const char *note, size_t n,
                   uint64_t *size, uint8_t root[AG_HASH_SIZE], struct ag_error *err)
{
    const char *end = note + n;
    const char *split = NULL; /* the LF that ends the text */
    for (const char *at = note; at + 1 < end; at++) {
        if (at[0] == '\n' && at[1] == '\n') {
            split = at;
        }
    }
    if (split == NULL || end[-1] != '\n') {
        return ag_fail(err, AG_ECORRUPT, "not a signed note: no signature block");
    }
    size_t text_n = (size_t)(split + 1 - note);
    bool mine = false;
    const char *at = split + 2;
    while (at < end) {
        size_t line_n = 0;
        const char *line = next_line(&at, end, &line_n);
        int found = line != NULL
                        ? check_signature_line(signer, line, line_n, note, text_n, err)
                        : ag_fail(err, AG_ECORRUPT, "signature line has no end");
        if (found < 0) {
            return found;
        }
        mine = mine || found == 1;
    }
    uint64_t read_size = 0;
    uint8_t read_root[AG_HASH_SIZE];
    int status =
        parse_text(note, split + 1, signer->origin, &read_size, read_root, err);
    if (status != AG_OK) {
        return status;
    }
    if (!mine) {
        return ag_fail(err, AG_EFOREIGN,
                       "checkpoint has no signature of this log's key");
    }
    *size = read_size;
    memcpy(root, read_root, AG_HASH_SIZE);
    return AG_OK;
}
