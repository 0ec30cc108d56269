/* Segment files as recovery reads them: which there are, one opened past the cache, one
 * read ahead on a thread. */
#ifndef AG_WAL_SOURCE_H
#define AG_WAL_SOURCE_H

#include <pthread.h>
#include <stdbool.h>

#include "base/io.h"
#include "wal/files.h"

struct ag_wal_names {
    uint32_t *numbers; /* owned */
    size_t count, capacity;
    int failed;
};

/* Fills names->numbers, ascending (release it with ag_free in every case). */
int ag_wal_list_segments(const struct ag_io *io, const char *dir, bool may_be_missing,
                         struct ag_wal_names *names, struct ag_error *err);

/* One segment file, opened for uncached reading. */
struct ag_wal_source {
    int fd;
    char path[AG_WAL_PATH];
};

/* Checks kind and size, opens with O_DIRECT where that works. Unless read_only, syncs
 * the file first and drops what is cached of it. */
int ag_wal_source_open(const struct ag_io *io, const char *dir, uint32_t number,
                       uint32_t segment_bytes, bool read_only,
                       struct ag_wal_source *source, struct ag_error *err);
void ag_wal_source_close(const struct ag_io *io, struct ag_wal_source *source);

/* Reads one segment into a buffer, on a thread of its own when that pays; or, with
 * `piece`, through a buffer of so many bytes, only to see whether it is all zero. */
struct ag_wal_fetch {
    const struct ag_io *io;
    struct ag_wal_source source;
    uint8_t *buffer; /* borrowed */
    size_t from, n;  /* the bytes of the file; a multiple of a block */
    size_t piece;    /* 0: all of them at a time */
    bool zero;       /* with `piece`: whether they are */
    int status;
    struct ag_error err;
    pthread_t thread;
    bool running;
};

/* Reads n bytes of the source; finish waits for it. */
void ag_wal_fetch_start(struct ag_wal_fetch *fetch, bool threaded);
int ag_wal_fetch_finish(struct ag_wal_fetch *fetch, struct ag_error *err);

#endif
