/* The two accumulators of the module that aegis_c.compat replaces. Neither is an RFC
 * 6962 tree; both are Merkle Mountain Ranges of which only the peaks are kept.
 *
 * v1 ("v1-asciihex"): a hash is the text of 64 lower-case hex digits.
 *     leaf = hex(SHA-256(data))    node = hex(SHA-256(left || right))
 *     root = hex(SHA-256(all peaks, tallest first)), of a single peak as well
 * v2 ("v2-binary-domain-separated"): a hash is 32 octets.
 *     leaf = SHA-256(00 || data)   node = SHA-256(01 || left || right)
 *     root = hex(SHA-256(02 || all peaks, tallest first))
 *
 * The hash over the first peaks is kept after each peak, so a new root costs the hashes
 * of the peaks that changed: one on average. One caller at a time. */
#ifndef AG_LOG_LEGACY_TREE_H
#define AG_LOG_LEGACY_TREE_H

#include <stddef.h>
#include <stdint.h>

enum ag_legacy_scheme { AG_LEGACY_V1, AG_LEGACY_V2 };

struct ag_legacy_tree; /* opaque */

/* An empty tree, owned by the caller. AG_ENOMEM. */
int ag_legacy_tree_new(enum ag_legacy_scheme scheme, struct ag_legacy_tree **tree);
void ag_legacy_tree_free(struct ag_legacy_tree *tree); /* NULL is allowed */

enum ag_legacy_scheme ag_legacy_tree_scheme(const struct ag_legacy_tree *tree);
uint64_t ag_legacy_tree_count(const struct ag_legacy_tree *tree);

/* Adds one leaf. Neither allocates nor fails. */
void ag_legacy_tree_add(struct ag_legacy_tree *tree, const void *data, size_t n);

/* The root as 64 lower-case hex digits, without a NUL; 64 zeros for the empty tree. */
void ag_legacy_tree_root(const struct ag_legacy_tree *tree, char out[64]);

#endif
