/* A file system in memory behind the I/O table, for crash tests: it can record every
 * operation, and build what a crash may leave of them.
 *
 * The model of the disk: data that was synced is there; of what was written since, any
 * subset of 512-byte sectors may be there; names made, moved or removed since the last
 * fsync of their directory may be there or not, each on its own; a rename is atomic. */
#ifndef MEMFS_H
#define MEMFS_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/io.h"

#define MEMFS_NAMES 64
#define MEMFS_INODES 96
#define MEMFS_NAME 96
#define MEMFS_SECTOR 512u

struct memfs_inode {
    uint8_t *data;
    size_t size, room;
    bool shared; /* data belongs to another image: copy before writing */
};

struct memfs_name {
    char path[MEMFS_NAME];
    int inode; /* -1: free; -2: directory */
};

enum memfs_kind {
    MEMFS_WRITE,
    MEMFS_SYNC,
    MEMFS_LINK,
    MEMFS_MOVE,
    MEMFS_DROP,
    MEMFS_DIR
};

struct memfs_op {
    enum memfs_kind kind;
    int inode; /* of WRITE, SYNC, LINK */
    uint64_t offset;
    size_t n;
    uint8_t *data;                         /* owned: what was written */
    char from[MEMFS_NAME], to[MEMFS_NAME]; /* names; DIR: the directory in `from` */
    uint64_t acked;                        /* what was acknowledged before this one */
};

struct memfs_trace {
    struct memfs_op *ops; /* owned */
    size_t count, capacity;
};

struct memfs {
    struct ag_io table; /* pass &fs.table */
    struct memfs_inode inodes[MEMFS_INODES];
    int inode_count;
    struct memfs_name names[MEMFS_NAMES];
    int fds[32];                   /* inode, or -1 */
    struct memfs_trace *trace;     /* NULL: not recording */
    const _Atomic uint64_t *acked; /* sampled before each recorded operation */
    uint64_t acked_floor;          /* acknowledged before the recording began */
};

void memfs_init(struct memfs *fs);
void memfs_free(struct memfs *fs);
/* `to` (uninitialised) becomes an image that shares the data of `from`. */
void memfs_share(struct memfs *to, const struct memfs *from);
/* `to` becomes a copy of its own. */
void memfs_copy(struct memfs *to, const struct memfs *from);
void memfs_trace_free(struct memfs_trace *trace);
/* Applies an operation to an image as if it had reached the disk. */
void memfs_apply(struct memfs *fs, const struct memfs_op *op);
/* Writes into an inode of an image. */
void memfs_put(struct memfs *fs, int inode, uint64_t offset, const uint8_t *from,
               size_t n);
/* The inode of a path, or -1. */
int memfs_find(const struct memfs *fs, const char *path);

#endif
