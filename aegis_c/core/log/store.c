#include "log/store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "log/tile.h"

static int
join(const struct ag_store *store, const char *name, char path[PATH_MAX],
     struct ag_error *err)
{
    int n = snprintf(path, PATH_MAX, "%s/%s", store->root, name);
    if (n < 0 || n >= PATH_MAX) {
        return ag_fail_sys(err, ENAMETOOLONG, store->root, "open");
    }
    return AG_OK;
}

int
ag_store_open(struct ag_store *store, const struct ag_io *io, const char *root,
              struct ag_error *err)
{
    char temporary[PATH_MAX];
    memset(store, 0, sizeof(*store));
    store->io = io;
    store->root_fd = -1;
    int n = snprintf(store->root, sizeof(store->root), "%s", root);
    if (n <= 0 || (size_t)n >= sizeof(store->root)) {
        return ag_fail_sys(err, ENAMETOOLONG, root, "open");
    }
    int status = ag_io_make_durable_dirs(io, root, AG_STORE_DIR_MODE, err);
    if (status == AG_OK) {
        status = join(store, ".tmp", temporary, err);
    }
    if (status == AG_OK) {
        int result = io->unlink(io->ctx, temporary);
        if (result < 0 && result != -ENOENT) {
            status = ag_fail_sys(err, -result, temporary, "unlink");
        }
    }
    if (status == AG_OK) {
        int fd = io->open(io->ctx, root, O_RDONLY, 0);
        if (fd < 0) {
            return ag_fail_sys(err, -fd, root, "open");
        }
        store->root_fd = fd;
    }
    return status;
}

void
ag_store_close(struct ag_store *store)
{
    if (store->root_fd >= 0) {
        (void)store->io->close(store->io->ctx, store->root_fd);
        store->root_fd = -1;
    }
}

static int
write_temporary(struct ag_store *store, const char *path, const void *from, size_t n,
                struct ag_error *err)
{
    const struct ag_io *io = store->io;
    int fd = io->open(io->ctx, path, O_WRONLY | O_CREAT | O_TRUNC, AG_STORE_FILE_MODE);
    if (fd < 0) {
        return ag_fail_sys(err, -fd, path, "create");
    }
    int status = ag_io_write_full(io, fd, path, from, n, 0, err);
    int closed = io->close(io->ctx, fd);
    if (status == AG_OK && closed < 0) {
        status = ag_fail_sys(err, -closed, path, "close");
    }
    return status;
}

int
ag_store_put(struct ag_store *store, const char *name, const void *from, size_t n,
             struct ag_error *err)
{
    const struct ag_io *io = store->io;
    char temporary[PATH_MAX], path[PATH_MAX], dir[PATH_MAX];
    int status = join(store, ".tmp", temporary, err);
    if (status == AG_OK) {
        status = join(store, name, path, err);
    }
    if (status == AG_OK) {
        status = write_temporary(store, temporary, from, n, err);
    }
    if (status != AG_OK) {
        return status;
    }
    int result = io->rename(io->ctx, temporary, path);
    if (result == -ENOENT) {
        memcpy(dir, path, sizeof(dir));
        *strrchr(dir, '/') = '\0';
        status = ag_io_make_dirs(io, dir, AG_STORE_DIR_MODE, err);
        if (status != AG_OK) {
            return status;
        }
        result = io->rename(io->ctx, temporary, path);
    }
    return result < 0 ? ag_fail_sys(err, -result, path, "rename") : AG_OK;
}

/* Drops what memory holds of a file. After a failed write-back that is not what the
 * disk holds. */
static void
forget_cached(const struct ag_io *io, const char *path)
{
    int fd = io->open(io->ctx, path, O_RDONLY, 0);
    if (fd >= 0) {
        (void)io->uncache(io->ctx, fd);
        (void)io->close(io->ctx, fd);
    }
}

int
ag_store_ensure(struct ag_store *store, const char *name, const void *from, size_t n,
                struct ag_error *err)
{
    char path[PATH_MAX];
    uint8_t *found = NULL;
    size_t found_n = 0;
    int status = join(store, name, path, err);
    if (status != AG_OK) {
        return status;
    }
    forget_cached(store->io, path);
    status = ag_io_read_file(store->io, path, n, &found, &found_n, NULL);
    bool same = status == AG_OK && found_n == n && memcmp(found, from, n) == 0;
    ag_free(found);
    if (same) {
        return AG_OK;
    }
    if (status != AG_ENOTFOUND) {
        store->rewritten++;
    }
    return ag_store_put(store, name, from, n, err);
}

struct folder {
    const struct ag_io *io;
    char path[PATH_MAX];
};

static void
drop_file(void *arg, const char *name)
{
    const struct folder *folder = arg;
    char path[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s/%s", folder->path, name);
    if (n > 0 && n < PATH_MAX) {
        (void)folder->io->unlink(folder->io->ctx, path);
    }
}

void
ag_store_drop_partials(const struct ag_store *store, unsigned level, uint64_t n)
{
    struct folder folder = {.io = store->io};
    char name[AG_TILE_PATH_SIZE];
    ag_tile_path(name, level, n, 1); /* any width names the folder */
    *strrchr(name, '/') = '\0';
    if (join(store, name, folder.path, NULL) == AG_OK &&
        store->io->list(store->io->ctx, folder.path, drop_file, &folder) == 0) {
        (void)store->io->rmdir(store->io->ctx, folder.path);
    }
}

/* Opens the partial tile of `width`, or else the full one; the path is left in `path`.
 */
static int
open_tile(const struct ag_store *store, unsigned level, uint64_t n, unsigned width,
          char path[PATH_MAX], struct ag_error *err)
{
    const struct ag_io *io = store->io;
    char name[AG_TILE_PATH_SIZE];
    unsigned widths[2] = {width, AG_TILE_WIDTH};
    int fd = -ENOENT;
    for (size_t i = width == AG_TILE_WIDTH; i < 2 && fd == -ENOENT; i++) {
        ag_tile_path(name, level, n, widths[i]);
        int status = join(store, name, path, err);
        if (status != AG_OK) {
            return status;
        }
        fd = io->open(io->ctx, path, O_RDONLY, 0);
    }
    if (fd < 0) {
        int status = ag_fail_sys(err, -fd, path, "open of a tile");
        ag_error_advice(err, "Restore the file from a copy of the published folder.");
        return status;
    }
    return fd;
}

int
ag_store_read_hashes(const struct ag_store *store, unsigned level, uint64_t n,
                     unsigned width, size_t first, size_t count, uint8_t *out,
                     struct ag_error *err)
{
    char path[PATH_MAX];
    int fd = open_tile(store, level, n, width, path, err);
    if (fd < 0) {
        return fd;
    }
    int status = ag_io_read_full(store->io, fd, path, out, count * AG_HASH_SIZE,
                                 first * AG_HASH_SIZE, err);
    (void)store->io->close(store->io->ctx, fd);
    return status;
}

int
ag_store_read_bundle(const struct ag_store *store, uint64_t n, unsigned width,
                     uint8_t **bytes, size_t *bytes_n, struct ag_error *err)
{
    char path[PATH_MAX], name[AG_TILE_PATH_SIZE];
    const unsigned widths[2] = {width, AG_TILE_WIDTH};
    int status = AG_ENOTFOUND;
    for (size_t i = width == AG_TILE_WIDTH; i < 2 && status == AG_ENOTFOUND; i++) {
        ag_tile_path(name, AG_TILE_ENTRIES, n, widths[i]);
        status = join(store, name, path, err);
        if (status == AG_OK) {
            status = ag_io_read_file(store->io, path,
                                     AG_TILE_WIDTH * (size_t)(UINT16_MAX + 2), bytes,
                                     bytes_n, err);
        }
    }
    if (status == AG_ENOTFOUND) {
        ag_error_advice(err, "Restore the file from a copy of the published folder.");
    }
    return status;
}

int
ag_store_refuse(const struct ag_store *store, unsigned level, uint64_t n,
                unsigned width, const char *what, struct ag_error *err)
{
    char path[PATH_MAX], name[AG_TILE_PATH_SIZE];
    ag_tile_path(name, level, n, width);
    (void)join(store, name, path, NULL);
    int status = ag_fail(err, AG_ECORRUPT, "%s", what);
    ag_error_file(err, path, AG_NO_POSITION);
    ag_error_advice(err,
                    "Run `aegis-c ledger fsck` and restore the file from a copy of "
                    "the published folder.");
    return status;
}
