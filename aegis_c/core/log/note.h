/* Signed notes and checkpoints (c2sp.org/signed-note, tlog-checkpoint), Ed25519 keys.
 *
 * The only unit that talks to OpenSSL's public-key code. */
#ifndef AG_LOG_NOTE_H
#define AG_LOG_NOTE_H

#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"
#include "hash/sha256.h"

#define AG_ORIGIN_MAX 255 /* octets of an origin */
#define AG_CHECKPOINT_MAX                                                              \
    1024 /* octets of a checkpoint signed by this unit, with NUL */
#define AG_VKEY_MAX 512

/* Holds one log key and its name. Any thread may sign once it is made. */
struct ag_signer;

/* An origin is 1 to 255 octets of printable ASCII without space and '+'. AG_EINVAL. */
int ag_origin_check(const char *origin, struct ag_error *err);

/* Loads the Ed25519 private key of a PEM file (PKCS #8); refuses a file that others may
 * read (mode & 077) unless it belongs to root with 0640 or 0644. With `create`, a
 * missing file is made first, mode 0600, synced. *signer is owned by the caller. */
/* The key in a PEM text. AG_ECORRUPT, which does not tell any of it. */
int ag_signer_from_pem(const void *pem, size_t n, const char *origin,
                       struct ag_signer **signer, struct ag_error *err);

int ag_signer_open(const struct ag_io *io, const char *path, const char *origin,
                   int create, struct ag_signer **signer, struct ag_error *err);
void ag_signer_free(struct ag_signer *signer);

/* The verifier key "<origin>+<id>+<base64>" without line end; borrowed from signer. */
const char *ag_signer_vkey(const struct ag_signer *signer);

/* Writes the signed checkpoint of (size, root) with a NUL behind it. */
int ag_checkpoint_sign(const struct ag_signer *signer, uint64_t size,
                       const uint8_t root[AG_HASH_SIZE], char out[AG_CHECKPOINT_MAX],
                       size_t *n, struct ag_error *err);

/* Reads a signed checkpoint and checks that `signer` signed it. AG_ECORRUPT: not a
 * checkpoint; AG_EFOREIGN: another origin or no signature of this key; AG_EVERIFY: this
 * key's signature is wrong. */
int ag_checkpoint_open(const struct ag_signer *signer, const char *note, size_t n,
                       uint64_t *size, uint8_t root[AG_HASH_SIZE],
                       struct ag_error *err);

#endif
