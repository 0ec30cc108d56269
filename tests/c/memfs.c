#include "memfs.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include "check.h"

static int
find_name(const struct memfs *fs, const char *path)
{
    for (int i = 0; i < MEMFS_NAMES; i++) {
        if (fs->names[i].inode != -1 && strcmp(fs->names[i].path, path) == 0) {
            return i;
        }
    }
    return -1;
}

int
memfs_find(const struct memfs *fs, const char *path)
{
    int name = find_name(fs, path);
    return name >= 0 ? fs->names[name].inode : -1;
}

static void
set_name(struct memfs *fs, const char *path, int inode)
{
    int name = find_name(fs, path);
    for (int i = 0; name < 0 && i < MEMFS_NAMES; i++) {
        name = fs->names[i].inode == -1 ? i : name;
    }
    ASSERT(name >= 0);
    ASSERT_LT(strlen(path), MEMFS_NAME);
    (void)snprintf(fs->names[name].path, MEMFS_NAME, "%s", path);
    fs->names[name].inode = inode;
}

static void
drop_name(struct memfs *fs, const char *path)
{
    int name = find_name(fs, path);
    if (name >= 0) {
        fs->names[name].inode = -1;
    }
}

static void
make_room(struct memfs_inode *inode, size_t n)
{
    if (inode->shared || n > inode->room) {
        size_t room = n > inode->size ? n : inode->size;
        room = (room + 4095) & ~(size_t)4095;
        uint8_t *own = calloc(1, room + 1);
        ASSERT_NOT_NULL(own);
        if (inode->size != 0) {
            memcpy(own, inode->data, inode->size);
        }
        if (!inode->shared) {
            free(inode->data);
        }
        inode->data = own;
        inode->room = room;
        inode->shared = false;
    }
}

void
memfs_put(struct memfs *fs, int number, uint64_t offset, const uint8_t *from, size_t n)
{
    struct memfs_inode *inode = &fs->inodes[number];
    size_t end = (size_t)offset + n;
    make_room(inode, end > inode->size ? end : inode->size);
    memcpy(inode->data + offset, from, n);
    inode->size = end > inode->size ? end : inode->size;
}

static void
record(struct memfs *fs, enum memfs_kind kind, int inode, const char *from,
       const char *to, uint64_t offset, const void *data, size_t n)
{
    struct memfs_trace *trace = fs->trace;
    if (trace == NULL) {
        return;
    }
    if (trace->count == trace->capacity) {
        trace->capacity = trace->capacity * 2 + 64;
        trace->ops = realloc(trace->ops, trace->capacity * sizeof(*trace->ops));
        ASSERT_NOT_NULL(trace->ops);
    }
    struct memfs_op *op = &trace->ops[trace->count++];
    memset(op, 0, sizeof(*op));
    op->kind = kind;
    op->inode = inode;
    op->offset = offset;
    op->n = n;
    (void)snprintf(op->from, sizeof(op->from), "%s", from != NULL ? from : "");
    (void)snprintf(op->to, sizeof(op->to), "%s", to != NULL ? to : "");
    if (n != 0) {
        op->data = malloc(n);
        ASSERT_NOT_NULL(op->data);
        memcpy(op->data, data, n);
    }
    uint64_t acked = fs->acked != NULL ? atomic_load(fs->acked) : 0;
    op->acked = acked > fs->acked_floor ? acked : fs->acked_floor;
}

void
memfs_apply(struct memfs *fs, const struct memfs_op *op)
{
    switch (op->kind) {
    case MEMFS_WRITE:
        memfs_put(fs, op->inode, op->offset, op->data, op->n);
        break;
    case MEMFS_LINK:
        set_name(fs, op->to, op->inode);
        break;
    case MEMFS_MOVE:
        drop_name(fs, op->from);
        set_name(fs, op->to, op->inode);
        break;
    case MEMFS_DROP:
        drop_name(fs, op->from);
        break;
    case MEMFS_SYNC:
    case MEMFS_DIR:
        break;
    }
}

void
memfs_trace_free(struct memfs_trace *trace)
{
    for (size_t i = 0; i < trace->count; i++) {
        free(trace->ops[i].data);
    }
    free(trace->ops);
    memset(trace, 0, sizeof(*trace));
}

static int
fs_open(void *ctx, const char *path, int flags, mode_t mode)
{
    struct memfs *fs = ctx;
    (void)mode;
    int inode = memfs_find(fs, path);
    if (inode == -2) {
        return -EISDIR;
    }
    if (inode >= 0 && (flags & O_CREAT) && (flags & O_EXCL)) {
        return -EEXIST;
    }
    if (inode < 0) {
        if (!(flags & O_CREAT)) {
            return -ENOENT;
        }
        ASSERT_LT(fs->inode_count, MEMFS_INODES);
        inode = fs->inode_count++;
        memset(&fs->inodes[inode], 0, sizeof(fs->inodes[inode]));
        record(fs, MEMFS_LINK, inode, NULL, path, 0, NULL, 0);
        set_name(fs, path, inode);
    } else if (flags & O_TRUNC) {
        /* The log truncates nothing but its own temporary file: a new inode does. */
        int fresh = fs->inode_count++;
        ASSERT_LT(fresh, MEMFS_INODES);
        memset(&fs->inodes[fresh], 0, sizeof(fs->inodes[fresh]));
        inode = fresh;
        record(fs, MEMFS_LINK, inode, NULL, path, 0, NULL, 0);
        set_name(fs, path, inode);
    }
    for (int fd = 0; fd < 32; fd++) {
        if (fs->fds[fd] == -1) {
            fs->fds[fd] = inode;
            return fd + 100;
        }
    }
    return -EMFILE;
}

static int *
fd_of(struct memfs *fs, int fd)
{
    ASSERT(fd >= 100 && fd < 132);
    ASSERT(fs->fds[fd - 100] >= 0);
    return &fs->fds[fd - 100];
}

static int
fs_close(void *ctx, int fd)
{
    *fd_of(ctx, fd) = -1;
    return 0;
}

static ssize_t
fs_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    struct memfs *fs = ctx;
    const struct memfs_inode *inode = &fs->inodes[*fd_of(fs, fd)];
    if ((size_t)offset >= inode->size) {
        return 0;
    }
    size_t left = inode->size - (size_t)offset;
    n = n < left ? n : left;
    memcpy(to, inode->data + offset, n);
    return (ssize_t)n;
}

static ssize_t
fs_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    struct memfs *fs = ctx;
    int inode = *fd_of(fs, fd);
    record(fs, MEMFS_WRITE, inode, NULL, NULL, (uint64_t)offset, from, n);
    memfs_put(fs, inode, (uint64_t)offset, from, n);
    return (ssize_t)n;
}

static int
fs_sync(void *ctx, int fd)
{
    struct memfs *fs = ctx;
    record(fs, MEMFS_SYNC, *fd_of(fs, fd), NULL, NULL, 0, NULL, 0);
    return 0;
}

static int
fs_sync_dir(void *ctx, const char *path)
{
    struct memfs *fs = ctx;
    if (memfs_find(fs, path) != -2) {
        return -ENOENT;
    }
    record(fs, MEMFS_DIR, -1, path, NULL, 0, NULL, 0);
    return 0;
}

static int
fs_truncate(void *ctx, int fd, off_t size)
{
    (void)ctx, (void)fd, (void)size;
    return -ENOTSUP;
}

static off_t
fs_size(void *ctx, int fd)
{
    struct memfs *fs = ctx;
    return (off_t)fs->inodes[*fd_of(fs, fd)].size;
}

static int
fs_rename(void *ctx, const char *from, const char *to)
{
    struct memfs *fs = ctx;
    int inode = memfs_find(fs, from);
    if (inode < 0) {
        return -ENOENT;
    }
    record(fs, MEMFS_MOVE, inode, from, to, 0, NULL, 0);
    drop_name(fs, from);
    set_name(fs, to, inode);
    return 0;
}

static int
fs_unlink(void *ctx, const char *path)
{
    struct memfs *fs = ctx;
    if (memfs_find(fs, path) < 0) {
        return -ENOENT;
    }
    record(fs, MEMFS_DROP, -1, path, NULL, 0, NULL, 0);
    drop_name(fs, path);
    return 0;
}

static int
fs_rmdir(void *ctx, const char *path)
{
    return memfs_find(ctx, path) == -2 ? -ENOTEMPTY
                                       : -ENOENT; /* the log removes none */
}

static int
fs_mkdir(void *ctx, const char *path, mode_t mode)
{
    struct memfs *fs = ctx;
    (void)mode;
    if (memfs_find(fs, path) != -1) {
        return -EEXIST;
    }
    record(fs, MEMFS_LINK, -2, NULL, path, 0, NULL, 0);
    set_name(fs, path, -2);
    return 0;
}

static int
fs_lock(void *ctx, int fd)
{
    (void)ctx, (void)fd;
    return 0;
}

static int
fs_stat(void *ctx, const char *path, struct ag_io_stat *out)
{
    struct memfs *fs = ctx;
    int inode = memfs_find(fs, path);
    if (inode == -1) {
        return -ENOENT;
    }
    out->uid = 0;
    out->size = inode >= 0 ? fs->inodes[inode].size : 4096;
    out->mode = inode >= 0 ? (S_IFREG | 0600) : (S_IFDIR | 0700);
    return 0;
}

static int
fs_statfs(void *ctx, const char *path, struct ag_io_fs *out)
{
    (void)ctx, (void)path;
    out->type = 0xEF53;
    out->free_bytes = UINT64_MAX;
    return 0;
}

static int
fs_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
        void *arg)
{
    struct memfs *fs = ctx;
    size_t n = strlen(path);
    if (memfs_find(fs, path) != -2) {
        return -ENOENT;
    }
    for (int i = 0; i < MEMFS_NAMES; i++) {
        const char *name = fs->names[i].path;
        if (fs->names[i].inode != -1 && strncmp(name, path, n) == 0 && name[n] == '/' &&
            strchr(name + n + 1, '/') == NULL) {
            each(arg, name + n + 1);
        }
    }
    return 0;
}

static int
fs_reserve(void *ctx, int fd, off_t size)
{
    (void)ctx, (void)fd, (void)size;
    return 0;
}

static int
fs_uncache(void *ctx, int fd)
{
    (void)ctx, (void)fd;
    return 0;
}

static void
set_table(struct memfs *fs)
{
    const struct ag_io table = {
        .ctx = fs,
        .open = fs_open,
        .close = fs_close,
        .pread = fs_pread,
        .pwrite = fs_pwrite,
        .fdatasync = fs_sync,
        .fsync = fs_sync,
        .fsync_dir = fs_sync_dir,
        .truncate = fs_truncate,
        .size = fs_size,
        .rename = fs_rename,
        .unlink = fs_unlink,
        .rmdir = fs_rmdir,
        .mkdir = fs_mkdir,
        .lock = fs_lock,
        .unlock = fs_lock,
        .stat = fs_stat,
        .statfs = fs_statfs,
        .list = fs_list,
        .reserve = fs_reserve,
        .uncache = fs_uncache,
    };
    memcpy(&fs->table, &table, sizeof(table));
    for (int fd = 0; fd < 32; fd++) {
        fs->fds[fd] = -1;
    }
}

void
memfs_init(struct memfs *fs)
{
    memset(fs, 0, sizeof(*fs));
    for (int i = 0; i < MEMFS_NAMES; i++) {
        fs->names[i].inode = -1;
    }
    set_table(fs);
}

void
memfs_share(struct memfs *to, const struct memfs *from)
{
    memcpy(to->inodes, from->inodes, sizeof(to->inodes));
    memcpy(to->names, from->names, sizeof(to->names));
    to->inode_count = from->inode_count;
    to->trace = NULL;
    to->acked = NULL;
    to->acked_floor = 0;
    for (int i = 0; i < to->inode_count; i++) {
        to->inodes[i].shared = true;
    }
    set_table(to);
}

void
memfs_copy(struct memfs *to, const struct memfs *from)
{
    /* Only what has a name lives on, under new numbers. */
    memfs_init(to);
    for (int i = 0; i < MEMFS_NAMES; i++) {
        int inode = from->names[i].inode;
        if (inode == -1) {
            continue;
        }
        if (inode >= 0) {
            int fresh = to->inode_count++;
            const struct memfs_inode *source = &from->inodes[inode];
            if (source->size != 0) {
                memfs_put(to, fresh, 0, source->data, source->size);
            }
            inode = fresh;
        }
        set_name(to, from->names[i].path, inode);
    }
}

void
memfs_free(struct memfs *fs)
{
    for (int i = 0; i < fs->inode_count; i++) {
        if (!fs->inodes[i].shared) {
            free(fs->inodes[i].data);
        }
    }
    fs->inode_count = 0;
}
