/* The files around the active segment: what segment.c needs of prepare.c (new segments)
 * and mark.c (LOG, the low-water mark, the archive). */
#ifndef AG_WAL_SEGMENT_FILES_H
#define AG_WAL_SEGMENT_FILES_H

#include "wal/segment.h"

/* A descriptor, or a status. *direct goes in as the wish for O_DIRECT and comes out as
 * what the file system allowed. */
int ag_log_open_for_writing(const struct ag_io *io, const char *path, int extra,
                            bool *direct, struct ag_error *err);
/* Replaces LOG durably: with this mark, and segments[first_live] as the first. */
int ag_log_write_file_lock_held(struct ag_log *log, uint64_t low_water,
                                const void *blob, uint32_t blob_len, size_t first_live,
                                struct ag_error *err);
/* Moves segments to the archive, durably. */
int ag_log_archive(struct ag_log *log, const uint32_t *numbers, size_t count,
                   struct ag_error *err);

#endif
