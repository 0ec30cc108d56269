/* The fast pass of a check of a published log: entry bundles against the tiles of level
 * 0, as fast as the hashes allow.
 *
 * It only tells which tiles are in order. What to make of the others is
 * ledger/fsck.py's to find out: it looks at them again, slowly, and names file, octet
 * and entry. */
#ifndef AG_LOG_AUDIT_H
#define AG_LOG_AUDIT_H

#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"
#include "hash/sha256.h"

/* What is not in order with a tile, or 0. */
#define AG_AUDIT_BUNDLE 1 /* the bundle cannot be read or parsed: no root */
#define AG_AUDIT_TILE 2   /* the tile is not what the bundle gives */
#define AG_AUDIT_ENTRY 4  /* an entry may not have the schema */

/* Checks `count` full tiles from number `first` on of the log in `folder`. For tile i:
 * flags[i], and in roots[i] the root over its bundle's entries. *octets counts the
 * octets of bundles with no flag. Any thread; reads only. AG_ENOMEM;
 * AG_EINVAL for a folder whose name is too long. A file that cannot be read is a flag.
 */
int ag_audit_tiles(const struct ag_io *io, const char *folder, uint64_t first,
                   size_t count, uint8_t *flags, uint8_t (*roots)[AG_HASH_SIZE],
                   uint64_t *octets, struct ag_error *err);

#endif
