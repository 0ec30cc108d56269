/* The published folder of a log: checkpoint, tiles and entry bundles as plain files
 * (c2sp.org/tlog-tiles).
 *
 * A file gets its name only at full length: it is written as ".tmp" in the log's folder
 * and renamed. Files carry no fsync of their own; they are derived from the log and
 * checked against it when a log is opened. One writer; any thread may read. */
#ifndef AG_LOG_STORE_H
#define AG_LOG_STORE_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"
#include "hash/sha256.h"

#define AG_STORE_FILE_MODE 0640
#define AG_STORE_DIR_MODE 0750

struct ag_store {
    const struct ag_io *io; /* borrowed */
    char root[PATH_MAX - 128];
    int root_fd;        /* owned, -1: none; from before any write, see ag_io.sync_fs */
    uint64_t rewritten; /* files that did not match and were written anew */
};

/* Makes the folder when it is missing and removes a left-over ".tmp". */
int ag_store_open(struct ag_store *store, const struct ag_io *io, const char *root,
                  struct ag_error *err);

/* Closes what it holds; safe when it holds nothing (root_fd -1). */
void ag_store_close(struct ag_store *store);

/* Writes root/<name>, making folders on the way. Owner thread. */
int ag_store_put(struct ag_store *store, const char *name, const void *from, size_t n,
                 struct ag_error *err);

/* As ag_store_put, but leaves a file alone that has these very bytes on disk (not only
 * in memory); counts the others that it replaces in `rewritten`. */
int ag_store_ensure(struct ag_store *store, const char *name, const void *from,
                    size_t n, struct ag_error *err);

/* Removes the partial tiles or bundles of (level, n), of all widths; what cannot be
 * removed stays. Only for one whose full tile is there: readers fall back to it. */
void ag_store_drop_partials(const struct ag_store *store, unsigned level, uint64_t n);

/* Reads `count` hashes of tile (level, n) from hash `first` on: from the partial tile
 * of `width`, or, when there is none (or width is 256), from the full tile. */
int ag_store_read_hashes(const struct ag_store *store, unsigned level, uint64_t n,
                         unsigned width, size_t first, size_t count, uint8_t *out,
                         struct ag_error *err);

/* Reads the entry bundle n likewise; *bytes is owned by the caller (ag_free). */
int ag_store_read_bundle(const struct ag_store *store, uint64_t n, unsigned width,
                         uint8_t **bytes, size_t *bytes_n, struct ag_error *err);

/* Refuses what a file of the folder says: AG_ECORRUPT, which names the tile (or bundle:
 * AG_TILE_ENTRIES) and what to do. */
int ag_store_refuse(const struct ag_store *store, unsigned level, uint64_t n,
                    unsigned width, const char *what, struct ag_error *err);

#endif
