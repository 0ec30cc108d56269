/* RFC 6962 tree arithmetic over any source of nodes: roots, inclusion and consistency
 * proofs, and their verification (RFC 6962 section 2.1, RFC 9162 sections 2.1.3.2 and
 * 2.1.4.2). The in-memory tree and the tiles on disk share it. Nothing allocates. */
#ifndef AG_LOG_PROOF_H
#define AG_LOG_PROOF_H

#include <stddef.h>
#include <stdint.h>

#include "hash/sha256.h"

/* Hashes in the longest proof: one per bit of a size, plus one. */
#define AG_PROOF_MAX 65

/* Writes the hash of the complete subtree of 2^height leaves that starts at leaf
 * index << height. 0 or a negative status, which the caller passes on. Only asked for
 * subtrees that lie wholly inside the size that a call names. */
typedef int (*ag_node_fn)(void *ctx, unsigned height, uint64_t index,
                          uint8_t out[AG_HASH_SIZE]);

/* Root of the first `size` leaves; size 0 gives SHA-256(""). */
int ag_tree_root(uint64_t size, ag_node_fn node, void *ctx, uint8_t out[AG_HASH_SIZE]);

/* Proof that leaf `index` is in the tree of `size` leaves, leaf to root, at most
 * AG_PROOF_MAX hashes into `proof`. AG_ERANGE unless index < size. */
int ag_inclusion_proof(uint64_t index, uint64_t size, ag_node_fn node, void *ctx,
                       uint8_t (*proof)[AG_HASH_SIZE], size_t *count);

/* Proof that the tree of `old_size` is a prefix of that of `new_size`. Empty when the
 * sizes are equal or the old one is 0. AG_ERANGE when old_size > new_size. */
int ag_consistency_proof(uint64_t old_size, uint64_t new_size, ag_node_fn node,
                         void *ctx, uint8_t (*proof)[AG_HASH_SIZE], size_t *count);

/* How many hashes the proof of exactly these numbers has; 0 where there is none. */
size_t ag_inclusion_proof_count(uint64_t index, uint64_t size);
size_t ag_consistency_proof_count(uint64_t old_size, uint64_t new_size);

/* The root that a proof leads to. AG_ERANGE (index >= size) or AG_EVERIFY (a proof for
 * these numbers has another length). All structure is derived from index and size; the
 * proof is only hashes. */
int ag_inclusion_root(const uint8_t leaf[AG_HASH_SIZE], uint64_t index, uint64_t size,
                      const uint8_t (*proof)[AG_HASH_SIZE], size_t count,
                      uint8_t out[AG_HASH_SIZE]);

/* The two roots that a proof leads to, given what is claimed to be the old one (a proof
 * from a size that is a power of two starts from it). Where there is nothing to compute
 * the roots are the claimed one (equal sizes) and SHA-256("") (old_size 0; *new_out is
 * then left alone unless new_size is 0 too). AG_ERANGE (old_size > new_size) or
 * AG_EVERIFY (length). */
int ag_consistency_roots(uint64_t old_size, uint64_t new_size,
                         const uint8_t old_root[AG_HASH_SIZE],
                         const uint8_t (*proof)[AG_HASH_SIZE], size_t count,
                         uint8_t old_out[AG_HASH_SIZE], uint8_t new_out[AG_HASH_SIZE]);

/* The same compared with the claimed roots: AG_OK, AG_ERANGE, or AG_EVERIFY. Any new
 * root is consistent with the empty tree. */
int ag_verify_inclusion(const uint8_t leaf[AG_HASH_SIZE], uint64_t index, uint64_t size,
                        const uint8_t root[AG_HASH_SIZE],
                        const uint8_t (*proof)[AG_HASH_SIZE], size_t count);
int ag_verify_consistency(uint64_t old_size, uint64_t new_size,
                          const uint8_t old_root[AG_HASH_SIZE],
                          const uint8_t new_root[AG_HASH_SIZE],
                          const uint8_t (*proof)[AG_HASH_SIZE], size_t count);

#endif
