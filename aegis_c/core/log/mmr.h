/* The RFC 6962 tree in memory: a Merkle Mountain Range whose peaks are bagged from the
 * right, so that its roots and proofs are those of RFC 6962 section 2.1.
 *
 * With proofs it keeps every node: 64 octets a leaf in tiles of 256 leaves, plus a
 * slack below 4 octets a leaf from about a thousand leaves on. Without, it keeps the
 * peaks and a small buffer, all inside one block: append and extend never allocate.
 *
 * Interior nodes are hashed late, in batches of independent nodes, and at the latest
 * when a root or proof needs them. Every function that can fail leaves the tree as it
 * was. One caller at a time; that holds for roots and proofs too, which settle late
 * nodes. */
#ifndef AG_LOG_MMR_H
#define AG_LOG_MMR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "hash/sha256.h"
#include "log/proof.h"

struct ag_mmr; /* opaque */

/* An empty tree, owned by the caller. AG_ENOMEM. */
int ag_mmr_new(bool proofs, struct ag_mmr **mmr);
void ag_mmr_free(struct ag_mmr *mmr); /* NULL is allowed */

uint64_t ag_mmr_size(const struct ag_mmr *mmr);
bool ag_mmr_keeps_proofs(const struct ag_mmr *mmr);

/* Octets that the tree holds from the allocator. */
size_t ag_mmr_memory(const struct ag_mmr *mmr);

/* Adds one leaf, given its entry or its leaf hash; the index of the leaf is the size
 * before the call. AG_ENOMEM (never without proofs). */
int ag_mmr_append(struct ag_mmr *mmr, const void *entry, size_t n);
int ag_mmr_append_hash(struct ag_mmr *mmr, const uint8_t leaf[AG_HASH_SIZE]);

/* Adds `count` leaves, all or none: entries of any sizes; entries of one size that lie
 * one after the other; or leaf hashes. Each octet is read once. AG_ENOMEM. */
int ag_mmr_extend(struct ag_mmr *mmr, const struct ag_span *entries, size_t count);
int ag_mmr_extend_flat(struct ag_mmr *mmr, const uint8_t *entries, size_t entry_size,
                       size_t count);
int ag_mmr_extend_hashes(struct ag_mmr *mmr, const uint8_t *leaves, size_t count);

/* All three fail with AG_ETOOBIG beyond 2^63 - 1 leaves. */

/* Makes room, so that adding the next `count` leaves cannot fail, in however many
 * calls. AG_ENOMEM, AG_ETOOBIG. */
int ag_mmr_reserve(struct ag_mmr *mmr, uint64_t count);

/* The root of the whole tree; O(1) when it has not changed since the last call. */
void ag_mmr_root(struct ag_mmr *mmr, uint8_t out[AG_HASH_SIZE]);

/* The root of the first `size` leaves. AG_ERANGE beyond the tree; without proofs only
 * the sizes 0 and ag_mmr_size are known, AG_ENOTFOUND for the others. */
int ag_mmr_root_at(struct ag_mmr *mmr, uint64_t size, uint8_t out[AG_HASH_SIZE]);

/* The peaks, tallest first, at most 64; returns how many. */
size_t ag_mmr_peaks(struct ag_mmr *mmr, uint8_t (*peaks)[AG_HASH_SIZE]);

/* As in log/proof.h, within the first `size` leaves. AG_ERANGE for numbers beyond the
 * tree; AG_ENOTFOUND without proofs. */
int ag_mmr_inclusion_proof(struct ag_mmr *mmr, uint64_t index, uint64_t size,
                           uint8_t (*proof)[AG_HASH_SIZE], size_t *count);
int ag_mmr_consistency_proof(struct ag_mmr *mmr, uint64_t old_size, uint64_t new_size,
                             uint8_t (*proof)[AG_HASH_SIZE], size_t *count);

/* The tree as octets, ag_mmr_dump_size of them:
 *   "aegismmr"  u32le version 1  u32le flags (1 = with proofs)  u64le size
 *   hashes of 32 octets: with proofs all leaves, else the peaks, tallest first
 *   SHA-256 of everything before it
 * Interior nodes are hashed again on load. */
size_t ag_mmr_dump_size(const struct ag_mmr *mmr);
void ag_mmr_dump(struct ag_mmr *mmr, uint8_t *out);

/* Reads a dump of exactly `n` octets. AG_ECORRUPT (magic, length, checksum),
 * AG_EVERSION (version, flags), AG_ENOMEM; `err` (may be NULL) names what was found. */
int ag_mmr_load(const uint8_t *dump, size_t n, struct ag_mmr **mmr,
                struct ag_error *err);

#endif
