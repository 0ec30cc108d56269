/* Where the ring of a log lives: by default `/dev/shm/aegis-<uid>/<hash of DIR>.ring`
 * in a directory 0700 of this user. Sized down (with a note) when the tmpfs is small;
 * refused, with advice, when there is no tmpfs or far too little room. */
#ifndef AG_WAL_PLACE_H
#define AG_WAL_PLACE_H

#include <pthread.h>

#include "wal/recovery.h"
#include "wal/ring.h"

/* Never sized down below this. */
#define AG_RING_SMALLEST (256u * 1024u)

/* Path of the ring of the log in `dir` (which exists) into `to` of AG_WAL_PATH bytes;
 * makes and checks the directory. `wish` (or NULL) is a path chosen by the caller. */
int ag_ring_place(const struct ag_io *io, const char *dir, const char *wish, char *to,
                  struct ag_error *err);
/* The making of a ring, beside other work when that pays: to reserve 16 MiB of shared
 * memory takes 4 ms. */
struct ag_ring_making {
    const struct ag_io *io;
    const char *path; /* borrowed */
    size_t bytes;
    struct ag_ring ring;
    int status;
    struct ag_error err;
    pthread_t thread;
    bool begun, running;
};

/* As ag_ring_create behind whatever is at `path` now (removed), trying smaller sizes.
 */
void ag_ring_make_start(struct ag_ring_making *making, const struct ag_io *io,
                        const char *path, size_t bytes);
/* Waits for it; the ring, without a header yet, goes to `ring`. */
int ag_ring_make_finish(struct ag_ring_making *making, struct ag_ring *ring,
                        struct ag_error *err);
/* Removes what was begun and not finished. */
void ag_ring_make_undo(struct ag_ring_making *making);
/* "tmpfs" or "disk": on which kind of file system `path` lies. */
const char *ag_ring_mode(const struct ag_io *io, const char *path);
/* Notes what the file system below a log directory means for its promises. */
void ag_wal_judge_fs(const struct ag_io *io, const char *dir,
                     struct ag_wal_recovery *notes);

#endif
