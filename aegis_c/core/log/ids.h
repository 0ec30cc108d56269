/* The id column: which entries belong to a request id.
 *
 * Entries come in the order in which calls end, ids in the order in which they began,
 * and a stream's settle may carry an id of hours ago, so the column is not sorted as it
 * grows. It is cut into runs of AG_IDS_RUN entries. The run that grows is a *tail*, ids
 * in the order of the log; once full it is written again as a *run*, sorted by a hash
 * of the id, so that a look-up reads a page or two of each run whose ids it may be
 * among, and one tail.
 *
 * Files, in the private folder of a log: `ids/<number>.tail` and `ids/<number>.run`,
 * the number in 8 hex digits. Both are pages of 4 KiB:
 *     {crc u32le, count u16le, kind u16le, first u64le}, count * 16 octets, zeros
 * where crc is the masked CRC-32C of the log's tag (8 octets) and of all that follows
 * it in the page.
 *   kind 1, page p of a tail: ids of the entries from `first` on; all zero: none
 *   kind 2, page p >= 1 of a run: {key[12], offset u32be}, ascending as octets; first =
 *     first entry of the run + p; key = the start of SHA-256(id), offset = number of
 * the entry within the run. Entries without an id are left out kind 3, page 0 of a run:
 * count 0; {records u32le, zero[12]}, smallest id, largest id
 *
 * All of it is derived from the entries and carries no fsync. Nothing is taken on
 * trust: a file that is absent, short, of another log, or fails a checksum is passed
 * over, and the entries themselves are read; and an entry that a file names is looked
 * at before it is reported. One owner writes; any thread of any process may look up
 * beside it. */
#ifndef AG_LOG_IDS_H
#define AG_LOG_IDS_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"
#include "log/entry.h"

#define AG_IDS_PAGE 4096u
#define AG_IDS_SLOTS 255u /* of 16 octets in a page, behind its header */
#define AG_IDS_PAGES 1024u
/* A multiple of 256, so that runs are whole bundles. */
#define AG_IDS_RUN (AG_IDS_SLOTS * AG_IDS_PAGES)
#define AG_IDS_BUFFER 8u /* pages gathered in memory */
#define AG_IDS_TAG 8u

/* Entry bundle `n` (up to 256 entries, as on disk) of the log whose ids these are, for
 * what the column does not answer; *bytes is owned by the caller (ag_free). And whether
 * `count` entries of its bytes, from `first` on, are those of the tree: AG_ECORRUPT. */
struct ag_ids_source {
    int (*bundle)(void *ctx, uint64_t n, uint8_t **bytes, size_t *bytes_n,
                  struct ag_error *err);
    int (*check)(void *ctx, uint64_t n, const uint8_t *bytes, size_t bytes_n,
                 size_t first, size_t count, struct ag_error *err);
    void *ctx;
};

/* What a look-up needs; constant once set, shared by all threads. */
struct ag_ids_place {
    const struct ag_io *io; /* borrowed */
    char dir[PATH_MAX - 64];
    uint8_t tag[AG_IDS_TAG]; /* tells the pages of one log from those of another */
};

/* `private_dir` and the verifier key (one line, without its newline) of a log. */
int ag_ids_place_init(struct ag_ids_place *place, const struct ag_io *io,
                      const char *private_dir, const char *vkey, size_t vkey_n,
                      struct ag_error *err);

/* The writer's side. */
struct ag_ids {
    struct ag_ids_place place;
    uint64_t size;       /* entries whose ids are here, some perhaps in memory only */
    uint64_t written;    /* entries whose ids are in the files */
    uint64_t sorted;     /* runs from the first on that are known to be there */
    uint64_t dropped;    /* tails from the first on that are gone */
    int tail_fd;         /* of the run that grows; -1: none */
    uint64_t first_page; /* number, within its run, of page 0 */
    uint8_t page[AG_IDS_BUFFER][AG_IDS_PAGE]; /* the last pages of the tail */
};

/* Takes over the column of a log of `size` entries, which the files may contradict:
 * what they say of later entries is dropped, and a tail that is not there is made from
 * `source`. Runs are looked at later, by ag_ids_mend. */
int ag_ids_open(struct ag_ids *ids, uint64_t size, const struct ag_ids_source *source,
                struct ag_error *err);
void ag_ids_close(struct ag_ids *ids); /* safe when nothing is open (tail_fd -1) */

/* The id of entry `index`, which is the next one, or one that was added already (no
 * effect). May write. */
int ag_ids_add(struct ag_ids *ids, uint64_t index, const uint8_t id[AG_UUID_SIZE],
               struct ag_error *err);
/* Brings what was added into the files. */
int ag_ids_flush(struct ag_ids *ids, struct ag_error *err);

/* Whether a full run may have no sorted file yet. Mending looks at the first such one
 * and makes it when it is not there, out of its tail or else out of the entries. To
 * condemn a run is to have it made again. */
bool ag_ids_mendable(const struct ag_ids *ids);
int ag_ids_mend(struct ag_ids *ids, const struct ag_ids_source *source,
                struct ag_error *err);
void ag_ids_condemn(struct ag_ids *ids, uint64_t run);
/* Removes tails of sorted runs below entry `size`. */
void ag_ids_drop_tails(struct ag_ids *ids, uint64_t size);

/* Indices, ascending. */
struct ag_found {    /* all zero: empty */
    uint64_t *index; /* owned (ag_free) */
    size_t count, room;
};

int ag_found_add(struct ag_found *found, uint64_t index); /* AG_ENOMEM */
void ag_found_sort(struct ag_found *found);               /* and each only once */

/* Adds the entries below `size` that carry this id, each of them looked at. `damaged`
 * (may be NULL) becomes the number of a run that had to be read from the entries
 * because its file was there but bad, if there was one. Any thread, any process. */
int ag_ids_find(const struct ag_ids_place *place, uint64_t size,
                const uint8_t id[AG_UUID_SIZE], const struct ag_ids_source *source,
                struct ag_found *found, uint64_t *damaged, struct ag_error *err);

/* The entries of a request, for a process that does not own the log: those that the
 * published checkpoint covers. `path`: the published folder. */
int ag_ids_find_published(const struct ag_io *io, const char *path,
                          const char *private_dir, const uint8_t id[AG_UUID_SIZE],
                          struct ag_found *found, struct ag_error *err);

#endif
