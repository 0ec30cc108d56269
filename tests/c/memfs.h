/* A file system in memory behind the I/O table, for crash tests: it can record every
 * operation, and build what a crash may leave of them.
 *
 * The model of the disk: data that was synced is there; of what was written since, any
 * subset of 512-byte sectors may be there; names made, moved or removed since the last
 * fsync of their directory may be there or not, each on its own; a rename is atomic; a
 * name is there only if the directories above it are.
 *
 * With a root, what lies outside it is the real file system: the ring of a log must be
 * mapped. Its file gets the number of the process behind its name. */
#ifndef MEMFS_H
#define MEMFS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/io.h"

#define MEMFS_NAMES 256
#define MEMFS_INODES 2048
#define MEMFS_FDS 32
#define MEMFS_NAME 96
#define MEMFS_SECTOR 512u
#define MEMFS_PENDING 2048 /* operations that are not synced, at most */

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
    MEMFS_DIR,
    MEMFS_SYNC_ALL
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
    struct ag_io table; /* pass &fs.table; every thread may use it */
    pthread_mutex_t lock;
    struct memfs_inode inodes[MEMFS_INODES];
    int inode_count;
    struct memfs_name names[MEMFS_NAMES];
    int name_count;                /* those behind are free */
    int fds[MEMFS_FDS];            /* inode, -2 for a directory, or -1 */
    const char *root;              /* borrowed; NULL: everything is in memory */
    struct memfs_trace *trace;     /* NULL: not recording */
    const _Atomic uint64_t *acked; /* sampled before each recorded operation */
    uint64_t acked_floor;          /* acknowledged before the recording began */
};

void memfs_init(struct memfs *fs);
/* An empty directory at `root`, and the real file system around it. */
void memfs_init_at(struct memfs *fs, const char *root);
void memfs_free(struct memfs *fs);
/* Removes the file that was made last outside of the roots: the ring is lost. */
void memfs_drop_outside(void);
/* What is acknowledged from now on: at least `floor`, and *acked when not NULL. */
void memfs_watch(struct memfs *fs, const _Atomic uint64_t *acked, uint64_t floor);
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

/* A walk along a trace: what is surely on the disk after each operation, and what may
 * or may not be. */
struct memfs_walk {
    struct memfs durable;
    size_t writes[MEMFS_PENDING], names[MEMFS_PENDING]; /* indices into the trace */
    size_t write_count, name_count;
};

void memfs_walk_start(struct memfs_walk *walk, const struct memfs *base);
/* One operation further: `at` is its index. */
void memfs_walk_step(struct memfs_walk *walk, const struct memfs_trace *trace,
                     size_t at);
void memfs_walk_end(struct memfs_walk *walk);
/* Removes the names to which no path leads any more, of a file system with a root. */
void memfs_prune(struct memfs *fs);

#endif
