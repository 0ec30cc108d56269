/* The shared memory below a limiter: a header page and a body, in a file that every
 * process opens by its path, or in anonymous memory that only forked children share.
 *
 * The file lies in a directory of mode 0700 of this user (made when missing), is opened
 * O_NOFOLLOW, and its owner, mode, kind, version and size are checked. A new one is
 * written whole before it gets its name, so that no store into the mapping can fault
 * for want of space; an exclusive lock on the directory makes two creators, and two who
 * re-base after a reboot, take turns. The lock ends with its holder. Nobody but the
 * owner can shorten the file; an owner who does takes the memory away under everybody.
 *
 * Times in the body are CLOCK_BOOTTIME. The header keeps one moment on that clock and
 * on CLOCK_REALTIME, so that after a reboot the times are moved to the new clock; a
 * real-time clock that went backwards counts as no time passed. */
#ifndef AG_LIMIT_AREA_H
#define AG_LIMIT_AREA_H

#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/io.h"
#include "base/status.h"
#include "hash/siphash.h"

#define AG_AREA_HEADER 4096u
#define AG_AREA_COUNTERS 8
#define AG_AREA_BOOT 16 /* octets of a boot id */

enum ag_area_kind { AG_AREA_LIMITS = 1, AG_AREA_CONCURRENCY = 2 };

/* How slots are changed; a property of the file, for all who open it. */
enum ag_sync { AG_SYNC_AUTO = 0, AG_SYNC_CAS = 1, AG_SYNC_MUTEX = 2 };

struct ag_area_header {
    uint8_t magic[8];
    uint32_t version, kind, sync, width; /* width: workers of a concurrency table */
    uint64_t items;                      /* slots */
    uint64_t bytes;                      /* of the whole file */
    struct ag_siphash_key key;           /* random, of this file */
    uint32_t crc;                        /* of all above */
    uint32_t reserved;
    uint8_t boot_id[AG_AREA_BOOT];
    uint64_t boot_ns, real_ns; /* the same moment on both clocks */
    _Alignas(64) _Atomic uint64_t counters[AG_AREA_COUNTERS];
};

/* Where "now" comes from; tests pass their own. */
struct ag_moment {
    uint8_t boot_id[AG_AREA_BOOT];
    uint64_t boot_ns, real_ns;
};

struct ag_area_spec {
    enum ag_area_kind kind;
    enum ag_sync sync;
    uint32_t width;
    uint64_t items;
    /* Octets of the body for this geometry, or 0 when it is not a possible one. */
    uint64_t (*body)(uint64_t items, uint32_t width);
    /* Prepares a new body of zeros (locks); 0 or a status. May be NULL. */
    int (*prepare)(void *body, struct ag_error *err);
    /* Moves the times of a body to the clock of this boot. NULL: a body of another boot
     * is replaced by a new one. */
    void (*rebase)(const struct ag_area_header *header, void *body, int64_t shift);
};

struct ag_area {
    struct ag_area_header *header; /* the mapping */
    uint8_t *body;
    size_t bytes;
    int fd;
    char path[PATH_MAX]; /* "" when anonymous */
};

/* Opens or makes the area at `path` (NULL: anonymous). An existing file keeps its own
 * items and width, whatever the spec says. AG_EPERM: directory or file not of this user
 * alone; AG_EFOREIGN, AG_EVERSION, AG_ECORRUPT: not a table of this kind, version,
 * size; AG_EFULL: no room; AG_ELOCKED: another process makes it and does not finish;
 * AG_EIO. */
int ag_area_open(const struct ag_io *io, const char *path,
                 const struct ag_area_spec *spec, const struct ag_moment *now,
                 struct ag_area *area, struct ag_error *err);
void ag_area_close(const struct ag_io *io, struct ag_area *area);

/* CLOCK_BOOTTIME in nanoseconds: goes on during suspend. Any thread. */
uint64_t ag_boottime_ns(void);
/* This moment of this boot. */
void ag_moment_now(struct ag_moment *now);

#endif
