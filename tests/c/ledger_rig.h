/* Ledgers in folders below a scratch folder, their entries, and what must hold of them.
 * One at a time, from one thread, but for submit. */
#ifndef LEDGER_RIG_H
#define LEDGER_RIG_H

#include "log/ledger.h"

#define SECOND UINT64_C(1000000000)
#define SEGMENT (64u << 10) /* small, so that segments are many */
#define ENTRY_ROOM 512

extern char dir[256]; /* scratch_make */

/* With <folder>/ledger/w0 and <folder>/private/w0; their strings live until the next
 * call. */
struct ag_ledger_options ledger_options(const char *folder, const struct ag_io *io);

/* For a ledger in memory (memfs.h) with its root at this folder: what the core asks of
 * the real file system, what a path resolves to and the mode of the key. */
void make_shadow(const char *folder);

/* The ledger `name` in `dir`; NULL: the real table, the log's own origin. */
int try_open(const char *name, const struct ag_io *io, const char *origin,
             struct ag_ledger **ledger, struct ag_error *err);
struct ag_ledger *open_ledger(const char *name);
void close_ledger(struct ag_ledger *ledger);

/* Entry i: kind call, each ninth an intent; id_of(i); 70 to 130 octets. */
size_t make_entry(uint64_t i, char out[ENTRY_ROOM]);
void id_of(uint64_t i, uint8_t id[AG_UUID_SIZE]);

int submit(struct ag_ledger *ledger, uint64_t i, uint64_t *index, struct ag_error *err);
/* Entries from, from + 1, ... to - 1 at those indices, waiting for room. */
void fill(struct ag_ledger *ledger, uint64_t from, uint64_t to);
void wait_published(struct ag_ledger *ledger, uint64_t size);

/* The entries below `to`, all or every `step`. */
void check_entries(struct ag_ledger *ledger, uint64_t to);
void check_each(struct ag_ledger *ledger, uint64_t to, uint64_t step);
/* RFC 6962 section 2.1 by recursion over the entries that make_entry gives. */
void slow_root(uint64_t first, uint64_t n, uint8_t out[AG_HASH_SIZE]);
/* Root, inclusion and consistency within the tree of `size`, every `step` leaves. */
void check_proofs(struct ag_ledger *ledger, uint64_t size, uint64_t step);

/* Twenty entries, of which `first` + i is the i-th, published in two steps. */
void make_small(const char *name, uint64_t first);
/* <dir>/<name>/<file> into `to`; returns it. */
char *file_of(char to[512], const char *name, const char *file);
void flip(const char *path, size_t at);
/* The ledger `name` does not open: with that status, that file, and advice. */
void refuses(const char *name, int status, const char *file);
/* Puts a copy of a file or folder in place of another one; removes one. In `dir`. */
void copy_over(const char *from, const char *to);
void drop(const char *name);

#endif
