#include "log/audit.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "log/entry_schema.h"
#include "log/tile.h"

#define BUNDLE_MAX (AG_TILE_WIDTH * (size_t)(UINT16_MAX + 2))

struct audit {
    const struct ag_io *io;
    const char *folder;
    uint8_t *bundle; /* owned: the present one, kept for the next */
    size_t room, n;
    struct ag_span entries[AG_TILE_WIDTH]; /* in `bundle` */
    uint8_t hashes[AG_TILE_BYTES];
    uint8_t stored[AG_TILE_BYTES + 1]; /* one more, to see a file that is too long */
};

static int
open_file(const struct audit *audit, unsigned level, uint64_t n)
{
    char name[AG_TILE_PATH_SIZE], path[PATH_MAX];
    ag_tile_path(name, level, n, AG_TILE_WIDTH);
    (void)snprintf(path, sizeof(path), "%s/%s", audit->folder, name);
    /* not waiting: a pipe in the place of a file must not hold the check up */
    return audit->io->open(audit->io->ctx, path, O_RDONLY | O_NONBLOCK, 0);
}

/* Reads up to `n` octets from the start; how many there were, or a negative status. */
static ssize_t
read_some(const struct audit *audit, int fd, uint8_t *to, size_t n)
{
    size_t have = 0;
    while (have < n) {
        ssize_t got =
            audit->io->pread(audit->io->ctx, fd, to + have, n - have, (off_t)have);
        if (got < 0 && got != -EINTR) {
            return AG_EIO;
        }
        if (got == 0) {
            break;
        }
        have += got > 0 ? (size_t)got : 0;
    }
    return (ssize_t)have;
}

/* Makes room for a bundle of `size` octets and one more. */
static int
make_room(struct audit *audit, size_t size)
{
    if (size < audit->room) {
        return AG_OK;
    }
    size_t room = size + size / 4 + 4096;
    ag_free(audit->bundle);
    audit->room = 0;
    audit->bundle = ag_alloc(room);
    if (audit->bundle == NULL) {
        return AG_ENOMEM;
    }
    audit->room = room;
    return AG_OK;
}

/* AG_OK with the bundle's octets; AG_EIO when it cannot be read; AG_ENOMEM. */
static int
read_bundle(struct audit *audit, uint64_t n)
{
    int fd = open_file(audit, AG_TILE_ENTRIES, n);
    if (fd < 0) {
        return AG_EIO;
    }
    off_t size = audit->io->size(audit->io->ctx, fd);
    int status = size < 0 || (uint64_t)size > BUNDLE_MAX
                     ? AG_EIO
                     : make_room(audit, (size_t)size);
    if (status == AG_OK) {
        ssize_t got = read_some(audit, fd, audit->bundle, (size_t)size + 1);
        status = got == size ? AG_OK : AG_EIO;
        audit->n = (size_t)size;
    }
    (void)audit->io->close(audit->io->ctx, fd);
    return status;
}

/* Finds the entries in the bundle: exactly 256 of them. */
static bool
parse_bundle(struct audit *audit)
{
    size_t at = 0;
    for (size_t i = 0; i < AG_TILE_WIDTH; i++) {
        if (audit->n - at < 2) {
            return false;
        }
        size_t size = ag_get_u16be(audit->bundle + at);
        at += 2;
        if (audit->n - at < size) {
            return false;
        }
        audit->entries[i].data = audit->bundle + at;
        audit->entries[i].size = size;
        at += size;
    }
    return at == audit->n;
}

static bool
tile_matches(struct audit *audit, uint64_t n)
{
    int fd = open_file(audit, 0, n);
    if (fd < 0) {
        return false;
    }
    ssize_t got = read_some(audit, fd, audit->stored, sizeof(audit->stored));
    (void)audit->io->close(audit->io->ctx, fd);
    return got == AG_TILE_BYTES &&
           memcmp(audit->stored, audit->hashes, AG_TILE_BYTES) == 0;
}

static bool
all_conform(const struct audit *audit)
{
    for (size_t i = 0; i < AG_TILE_WIDTH; i++) {
        if (!ag_entry_conforms(audit->entries[i].data, audit->entries[i].size)) {
            return false;
        }
    }
    return true;
}

static int
audit_tile(struct audit *audit, uint64_t n, uint8_t *flags, uint8_t root[AG_HASH_SIZE])
{
    int status = read_bundle(audit, n);
    if (status == AG_ENOMEM) {
        return status;
    }
    if (status != AG_OK || !parse_bundle(audit)) {
        *flags = AG_AUDIT_BUNDLE;
        memset(root, 0, AG_HASH_SIZE);
        return AG_OK;
    }
    ag_leaf_hash_spans(audit->entries, AG_TILE_WIDTH, audit->hashes);
    *flags = tile_matches(audit, n) ? 0 : AG_AUDIT_TILE;
    *flags |= all_conform(audit) ? 0 : AG_AUDIT_ENTRY;
    ag_tile_fold(audit->hashes, 8, root);
    return AG_OK;
}

int
ag_audit_tiles(const struct ag_io *io, const char *folder, uint64_t first, size_t count,
               uint8_t *flags, uint8_t (*roots)[AG_HASH_SIZE], uint64_t *octets,
               struct ag_error *err)
{
    if (strlen(folder) >= PATH_MAX - AG_TILE_PATH_SIZE) {
        return ag_fail(err, AG_EINVAL, "the folder's name is too long");
    }
    struct audit *audit = ag_calloc(1, sizeof(*audit));
    if (audit == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory to check a log");
    }
    audit->io = io;
    audit->folder = folder;
    uint64_t total = 0;
    int status = AG_OK;
    for (size_t i = 0; i < count && status == AG_OK; i++) {
        status = audit_tile(audit, first + i, &flags[i], roots[i]);
        if (status != AG_OK) {
            (void)ag_fail(err, status, "no memory for an entry bundle");
        } else if (flags[i] == 0) {
            total += audit->n;
        }
    }
    ag_free(audit->bundle);
    ag_free(audit);
    if (status == AG_OK) {
        *octets = total;
    }
    return status;
}
