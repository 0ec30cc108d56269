/* Names of a log's files, and buffers for reading and writing them. */
#ifndef AG_WAL_FILES_H
#define AG_WAL_FILES_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* DIR/wal-<number>.seg, DIR/LOG and so on into `to` of AG_WAL_PATH bytes. */
#define AG_WAL_PATH 4096
int ag_wal_path(char *to, const char *dir, const char *name, struct ag_error *err);
int ag_wal_segment_path(char *to, const char *dir, uint32_t segment_no,
                        struct ag_error *err);
/* Number of a segment file name, or 0. */
uint32_t ag_wal_segment_number(const char *name);

/* Buffers for uncached I/O: 4 KiB aligned; release with ag_wal_buffer_free. */
uint8_t *ag_wal_buffer(size_t n);
void ag_wal_buffer_free(uint8_t *buffer);

#endif
