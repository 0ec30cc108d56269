/* Ledger entries: salted commitments to bodies, and the final bytes of an entry.
 *
 * An entry is one JSON object in UTF-8 of at most 65,535 octets, opaque to the tree.
 * The caller gives its members as `meta`; this unit appends
 *     "request":{"bytes":n,"commitment":"<base64>"},"response":{...}
 * before the last brace. Formats: docs/formats.md. Nothing here allocates. */
#ifndef AG_LOG_ENTRY_H
#define AG_LOG_ENTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "hash/sha256.h"

#define AG_ENTRY_MAX 65535
#define AG_UUID_SIZE 16
#define AG_UUID_TEXT 36
/* Octets that two commitments add to meta, at most. */
#define AG_ENTRY_TAIL_MAX 256

enum ag_role { AG_ROLE_REQUEST, AG_ROLE_RESPONSE };

/* salt = HMAC-SHA-256(secret, "aegis/salt/v1" || id || role); role is 8 octets:
 * "request\0" or "response". `secret` is what ag_hmac_init made of the subject secret,
 * here and below: one that serves many calls is taken once. */
void ag_salt(const struct ag_hmac *secret, const uint8_t id[AG_UUID_SIZE],
             enum ag_role role, uint8_t salt[AG_HASH_SIZE]);

/* commitment = HMAC-SHA-256(salt, octets), taken piece by piece. Owner thread. */
struct ag_commitment {
    struct ag_hmac hmac;
    uint8_t salt[AG_HASH_SIZE];
    uint8_t digest[AG_HASH_SIZE]; /* valid once finished */
    uint64_t octets;
    bool finished;
};

void ag_commitment_init(struct ag_commitment *c, const struct ag_hmac *secret,
                        const uint8_t id[AG_UUID_SIZE], enum ag_role role);
/* AG_ECLOSED when it is finished already. */
int ag_commitment_update(struct ag_commitment *c, const void *data, size_t n);
void ag_commitment_finish(struct ag_commitment *c); /* again: no effect */

/* The finished commitments to the request and the response of one call, whose hashes
 * are taken in step. */
void ag_commitment_two(struct ag_commitment c[2], const struct ag_hmac *secret,
                       const uint8_t id[AG_UUID_SIZE], const struct ag_span bodies[2]);

/* Text form 8-4-4-4-12, either case. AG_EINVAL. */
int ag_uuid_parse(const char *text, size_t n, uint8_t id[AG_UUID_SIZE]);

/* Checks that meta is UTF-8, has the shape {...} and leaves room for the commitments
 * within AG_ENTRY_MAX. AG_EINVAL or AG_ETOOBIG. JSON and schema are fsck's to check. */
int ag_meta_check(const uint8_t *meta, size_t n, struct ag_error *err);

/* What the ledger itself must know of an entry; all else is opaque to it. */
enum ag_kind { AG_KIND_OTHER, AG_KIND_INTENT, AG_KIND_SETTLE };

struct ag_entry_head {
    uint8_t id[AG_UUID_SIZE]; /* all zero: none */
    enum ag_kind kind;
    uint64_t of; /* of a settle: index of its intent; UINT64_MAX: none */
};

/* Reads the members `id`, `kind` and, of a settle, `of` at the top level, wherever they
 * are; of a name that comes twice the first counts. Never fails: whatever is not there,
 * or not of its form, is none. */
void ag_entry_head(const uint8_t *entry, size_t n, struct ag_entry_head *head);

/* Finds the UUID in the member "id" of the top level of meta. AG_EINVAL when there is
 * none. */
int ag_meta_id(const uint8_t *meta, size_t n, uint8_t id[AG_UUID_SIZE],
               struct ag_error *err);

/* Writes what goes in place of meta's closing brace, brace included, into `tail`
 * (AG_ENTRY_TAIL_MAX octets) and returns its length. A finished commitment or NULL. The
 * entry is meta without its last octet, followed by the tail. */
size_t ag_entry_tail(bool meta_is_empty, const struct ag_commitment *request,
                     const struct ag_commitment *response, char *tail);

/* Octets of meta up to its closing brace (white space behind it is dropped); *is_empty
 * tells whether the object has no member. For a meta that ag_meta_check accepted. */
size_t ag_meta_body(const uint8_t *meta, size_t n, bool *is_empty);

#endif
