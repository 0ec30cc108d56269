/* An I/O table over another one that counts calls and makes chosen ones fail, for the
 * tests of what stands on files. */
#ifndef IO_FAULT_H
#define IO_FAULT_H

#include <stdatomic.h>

#include "base/io.h"

#define IO_FAULT_FDS 1024
#define IO_FAULT_KILL (-1) /* as fail_errno: SIGKILL, before the call */

struct io_fault {
    struct ag_io table;        /* pass &fault.table */
    const struct ag_io *below; /* the real one, unless it is changed */
    _Atomic long calls;        /* of any kind, so far */
    _Atomic long fail_at;      /* number of the first call that fails; 0: none */
    _Atomic long fail_for;     /* so many calls fail from then on */
    _Atomic int fail_errno;    /* with this */
    _Atomic int fail_syncs;    /* every fdatasync fails while this is set */
    _Atomic int fail_sync_fs;  /* so many of the next sync_fs fail */
    _Atomic int stall;         /* fdatasync waits while this is set */
    _Atomic long
        flip_size; /* a write of just so many octets arrives with a bit flipped */
    _Atomic int stall_dirs; /* fsync_dir does */
    _Atomic long syncs,
        syncs_after_failure;               /* fdatasync calls; those on a failed file */
    _Atomic int sync_failed[IO_FAULT_FDS]; /* by open descriptor */
};

void io_fault_init(struct io_fault *fault);

#endif
