#include "wal/place.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

#define SHM "/dev/shm"
/* A ring below this size is made before a thread has begun. */
#define THREAD_MIN (4u << 20)
#define TMPFS_MAGIC 0x01021994u
#define RAMFS_MAGIC 0x858458f6u

/* FNV-1a: the name only has to differ between the logs of one user. */
static uint64_t
hash_of(const char *text)
{
    uint64_t hash = UINT64_C(0xcbf29ce484222325);
    for (; *text != '\0'; text++) {
        hash = (hash ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
    }
    return hash;
}

static bool
is_memory(const struct ag_io *io, const char *path)
{
    struct ag_io_fs fs;
    return io->statfs(io->ctx, path, &fs) == 0 &&
           (fs.type == TMPFS_MAGIC || fs.type == RAMFS_MAGIC);
}

const char *
ag_ring_mode(const struct ag_io *io, const char *path)
{
    return is_memory(io, path) ? "tmpfs" : "disk";
}

static int
no_place(struct ag_error *err, int status, const char *path, const char *what,
         const char *expected, const char *found)
{
    ag_fail(err, status, "%s", what);
    ag_error_file(err, path, AG_NO_POSITION);
    ag_error_pair(err, expected, found);
    ag_error_advice(err,
                    "Mount a tmpfs there, or choose the ring's file with ring=PATH "
                    "(on a disk an append can take milliseconds)");
    return status;
}

int
ag_ring_place(const struct ag_io *io, const char *dir, const char *wish, char *to,
              struct ag_error *err)
{
    char folder[64], name[40];
    if (wish != NULL) {
        int n = snprintf(to, AG_WAL_PATH, "%s", wish);
        return n < 0 || n >= AG_WAL_PATH
                   ? ag_fail_sys(err, ENAMETOOLONG, wish, "open the ring")
                   : AG_OK;
    }
    if (!is_memory(io, SHM)) {
        return no_place(err, AG_EIO, SHM, "no memory file system for the ring",
                        "tmpfs at " SHM, "none");
    }
    uint32_t uid = (uint32_t)geteuid();
    (void)snprintf(folder, sizeof(folder), SHM "/aegis-%" PRIu32, uid);
    int result = io->mkdir(io->ctx, folder, 0700);
    if (result < 0 && result != -EEXIST) {
        return ag_fail_sys(err, -result, folder, "mkdir");
    }
    struct ag_io_stat st;
    result = io->stat(io->ctx, folder, &st);
    if (result < 0) {
        return ag_fail_sys(err, -result, folder, "stat");
    }
    if (!S_ISDIR(st.mode) || st.uid != uid || (st.mode & 077) != 0) {
        char found[96];
        (void)snprintf(found, sizeof(found), "mode %o, owner %" PRIu32,
                       (unsigned)st.mode, st.uid);
        return no_place(err, AG_EPERM, folder,
                        "the directory of the rings is not this user's alone",
                        "a directory 0700 of the own user", found);
    }
    char *real = realpath(dir, NULL);
    if (real == NULL) {
        return ag_fail_sys(err, errno, dir, "resolve");
    }
    (void)snprintf(name, sizeof(name), "%016" PRIx64 ".ring", hash_of(real));
    free(real);
    return ag_wal_path(to, folder, name, err);
}

static int
make(struct ag_ring_making *making)
{
    const struct ag_io *io = making->io;
    const char *path = making->path;
    struct ag_error *err = &making->err;
    int result = io->unlink(io->ctx, path);
    if (result < 0 && result != -ENOENT) {
        return ag_fail_sys(err, -result, path, "remove the old ring");
    }
    size_t bytes = making->bytes;
    size_t smallest = bytes < AG_RING_SMALLEST ? bytes : AG_RING_SMALLEST;
    for (size_t size = bytes;; size /= 2) {
        size = size < smallest ? smallest : size;
        int status = ag_ring_create(io, path, size, &making->ring, err);
        if (status != AG_EFULL) {
            return status;
        }
        if (size == smallest) {
            char want[96];
            (void)snprintf(want, sizeof(want), "%zu free bytes", smallest);
            return no_place(err, AG_EIO, path, "no room in shared memory for the ring",
                            want, "less");
        }
    }
}

static void *
make_main(void *arg)
{
    struct ag_ring_making *making = arg;
    making->status = make(making);
    return NULL;
}

void
ag_ring_make_start(struct ag_ring_making *making, const struct ag_io *io,
                   const char *path, size_t bytes)
{
    memset(making, 0, sizeof(*making));
    making->io = io;
    making->path = path;
    making->bytes = bytes;
    making->begun = true;
    making->running = bytes >= THREAD_MIN &&
                      pthread_create(&making->thread, NULL, make_main, making) == 0;
    if (!making->running) {
        (void)make_main(making);
    }
}

static void
wait_for(struct ag_ring_making *making)
{
    if (making->running) {
        (void)pthread_join(making->thread, NULL);
        making->running = false;
    }
    making->begun = false;
}

int
ag_ring_make_finish(struct ag_ring_making *making, struct ag_ring *ring,
                    struct ag_error *err)
{
    wait_for(making);
    *ring = making->ring;
    if (making->status != AG_OK && err != NULL) {
        *err = making->err;
    }
    return making->status;
}

void
ag_ring_make_undo(struct ag_ring_making *making)
{
    if (!making->begun) {
        return;
    }
    wait_for(making);
    if (making->status == AG_OK) {
        (void)making->io->unlink(making->io->ctx, making->path);
        ag_ring_unlock(making->io, &making->ring);
        ag_ring_unmap(making->io, &making->ring);
    }
}

void
ag_wal_judge_fs(const struct ag_io *io, const char *dir, struct ag_wal_recovery *notes)
{
    static const struct {
        uint64_t type;
        const char *name, *what;
    } known[] = {
        {0x6969, "NFS", "locks and syncs depend on the server"},
        {TMPFS_MAGIC, "tmpfs", "nothing survives a power loss"},
        {RAMFS_MAGIC, "ramfs", "nothing survives a power loss"},
        {0x9123683E, "btrfs", "a full disk can fail a write into reserved space"},
        {0x2FC12FC1, "ZFS", "a full disk can fail a write into reserved space"},
        {0x65735546, "FUSE", "durability depends on the server"},
        {0x794c7630, "overlayfs", "durability depends on the upper layer"},
    };
    struct ag_io_fs fs;
    if (io->statfs(io->ctx, dir, &fs) != 0) {
        return;
    }
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (fs.type == known[i].type) {
            ag_wal_note(notes, "warning: the log lies on %s: %s", known[i].name,
                        known[i].what);
        }
    }
}
