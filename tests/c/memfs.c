#include "memfs.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

#define FIRST_FD 1000 /* the real file system has those below */
#define REAL ag_io_posix()

static int
find_name(const struct memfs *fs, const char *path)
{
    for (int i = 0; i < fs->name_count; i++) {
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
    for (int i = 0; name < 0 && i < fs->name_count; i++) {
        name = fs->names[i].inode == -1 ? i : name;
    }
    if (name < 0) {
        ASSERT_LT(fs->name_count, MEMFS_NAMES);
        name = fs->name_count++;
    }
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

static int
new_inode(struct memfs *fs)
{
    ASSERT_LT(fs->inode_count, MEMFS_INODES);
    memset(&fs->inodes[fs->inode_count], 0, sizeof(fs->inodes[0]));
    return fs->inode_count++;
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
    case MEMFS_SYNC_ALL:
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

/* ---- the table ---- */

static bool
is_outside(const struct memfs *fs, const char *path)
{
    return fs->root != NULL && strncmp(path, fs->root, strlen(fs->root)) != 0;
}

static char last_outside[512]; /* made by any file system of this process */

/* A file of the real system, of this process alone. */
static const char *
outside_name(const char *path, char to[512])
{
    (void)snprintf(to, 512, "%s.%ld", path, (long)getpid());
    return to;
}

void
memfs_drop_outside(void)
{
    (void)unlink(last_outside);
}

static bool
has_parent(const struct memfs *fs, const char *path)
{
    char above[MEMFS_NAME];
    if (fs->root == NULL || strcmp(path, fs->root) == 0) {
        return true;
    }
    (void)snprintf(above, sizeof(above), "%s", path);
    char *slash = strrchr(above, '/');
    ASSERT_NOT_NULL(slash);
    *slash = '\0';
    return memfs_find(fs, above) == -2;
}

static int
take_fd(struct memfs *fs, int inode)
{
    for (int fd = 0; fd < MEMFS_FDS; fd++) {
        if (fs->fds[fd] == -1) {
            fs->fds[fd] = inode;
            return fd + FIRST_FD;
        }
    }
    return -EMFILE;
}

static int
open_locked(struct memfs *fs, const char *path, int flags)
{
    int inode = memfs_find(fs, path);
    if (inode == -2) {
        bool reads = fs->root != NULL && (flags & (O_ACCMODE | O_CREAT)) == O_RDONLY;
        return reads ? take_fd(fs, inode) : -EISDIR;
    }
    if (inode >= 0 && (flags & O_CREAT) && (flags & O_EXCL)) {
        return -EEXIST;
    }
    if (inode < 0 && (!(flags & O_CREAT) || !has_parent(fs, path))) {
        return -ENOENT;
    }
    if (inode < 0 || (flags & O_TRUNC)) {
        /* Truncated are only temporary files, and a new inode does as well. */
        inode = new_inode(fs);
        record(fs, MEMFS_LINK, inode, NULL, path, 0, NULL, 0);
        set_name(fs, path, inode);
    }
    return take_fd(fs, inode);
}

static int
fs_open(void *ctx, const char *path, int flags, mode_t mode)
{
    struct memfs *fs = ctx;
    char name[512];
    if (is_outside(fs, path)) {
        (void)outside_name(path, name);
        if (flags & O_CREAT) {
            (void)snprintf(last_outside, sizeof(last_outside), "%s", name);
        }
        return REAL->open(NULL, name, flags, mode);
    }
    (void)pthread_mutex_lock(&fs->lock);
    int result = open_locked(fs, path, flags);
    (void)pthread_mutex_unlock(&fs->lock);
    return result;
}

/* Under the lock. */
static int *
fd_of(struct memfs *fs, int fd)
{
    ASSERT(fd >= FIRST_FD && fd < FIRST_FD + MEMFS_FDS);
    ASSERT_NE(fs->fds[fd - FIRST_FD], -1);
    return &fs->fds[fd - FIRST_FD];
}

static int
fs_close(void *ctx, int fd)
{
    struct memfs *fs = ctx;
    if (fd < FIRST_FD) {
        return REAL->close(NULL, fd);
    }
    (void)pthread_mutex_lock(&fs->lock);
    *fd_of(fs, fd) = -1;
    (void)pthread_mutex_unlock(&fs->lock);
    return 0;
}

static ssize_t
fs_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    struct memfs *fs = ctx;
    (void)pthread_mutex_lock(&fs->lock);
    const struct memfs_inode *inode = &fs->inodes[*fd_of(fs, fd)];
    size_t left = (size_t)offset < inode->size ? inode->size - (size_t)offset : 0;
    n = n < left ? n : left;
    if (n != 0) {
        memcpy(to, inode->data + offset, n);
    }
    (void)pthread_mutex_unlock(&fs->lock);
    return (ssize_t)n;
}

static ssize_t
fs_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    struct memfs *fs = ctx;
    (void)pthread_mutex_lock(&fs->lock);
    int inode = *fd_of(fs, fd);
    record(fs, MEMFS_WRITE, inode, NULL, NULL, (uint64_t)offset, from, n);
    memfs_put(fs, inode, (uint64_t)offset, from, n);
    (void)pthread_mutex_unlock(&fs->lock);
    return (ssize_t)n;
}

static int
fs_sync(void *ctx, int fd)
{
    struct memfs *fs = ctx;
    (void)pthread_mutex_lock(&fs->lock);
    record(fs, MEMFS_SYNC, *fd_of(fs, fd), NULL, NULL, 0, NULL, 0);
    (void)pthread_mutex_unlock(&fs->lock);
    return 0;
}

static int
fs_sync_fs(void *ctx, int fd)
{
    struct memfs *fs = ctx;
    (void)pthread_mutex_lock(&fs->lock);
    (void)fd_of(fs, fd);
    record(fs, MEMFS_SYNC_ALL, -1, NULL, NULL, 0, NULL, 0);
    (void)pthread_mutex_unlock(&fs->lock);
    return 0;
}

static int
fs_sync_dir(void *ctx, const char *path)
{
    struct memfs *fs = ctx;
    if (is_outside(fs, path)) {
        return 0; /* the directory above the root */
    }
    (void)pthread_mutex_lock(&fs->lock);
    int result = memfs_find(fs, path) == -2 ? 0 : -ENOENT;
    if (result == 0) {
        record(fs, MEMFS_DIR, -1, path, NULL, 0, NULL, 0);
    }
    (void)pthread_mutex_unlock(&fs->lock);
    return result;
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
    if (fd < FIRST_FD) {
        return REAL->size(NULL, fd);
    }
    (void)pthread_mutex_lock(&fs->lock);
    off_t size = (off_t)fs->inodes[*fd_of(fs, fd)].size;
    (void)pthread_mutex_unlock(&fs->lock);
    return size;
}

static int
fs_rename(void *ctx, const char *from, const char *to)
{
    struct memfs *fs = ctx;
    char outside[2][512];
    if (is_outside(fs, from)) {
        return REAL->rename(NULL, outside_name(from, outside[0]),
                            outside_name(to, outside[1]));
    }
    (void)pthread_mutex_lock(&fs->lock);
    int inode = memfs_find(fs, from);
    int result = inode >= 0 && has_parent(fs, to) ? 0 : -ENOENT;
    if (result == 0) {
        record(fs, MEMFS_MOVE, inode, from, to, 0, NULL, 0);
        drop_name(fs, from);
        set_name(fs, to, inode);
    }
    (void)pthread_mutex_unlock(&fs->lock);
    return result;
}

static int
fs_unlink(void *ctx, const char *path)
{
    struct memfs *fs = ctx;
    char name[512];
    if (is_outside(fs, path)) {
        return REAL->unlink(NULL, outside_name(path, name));
    }
    (void)pthread_mutex_lock(&fs->lock);
    int result = memfs_find(fs, path) >= 0 ? 0 : -ENOENT;
    if (result == 0) {
        record(fs, MEMFS_DROP, -1, path, NULL, 0, NULL, 0);
        drop_name(fs, path);
    }
    (void)pthread_mutex_unlock(&fs->lock);
    return result;
}

/* Whether the name lies in the directory itself; *last is its last component. */
static bool
lies_in(const char *name, const char *dir, const char **last)
{
    size_t n = strlen(dir);
    *last = name + n + 1;
    return strncmp(name, dir, n) == 0 && name[n] == '/' && strchr(*last, '/') == NULL;
}

static int
rmdir_locked(struct memfs *fs, const char *path)
{
    const char *last;
    if (memfs_find(fs, path) != -2) {
        return -ENOENT;
    }
    for (int i = 0; i < fs->name_count; i++) {
        if (fs->names[i].inode != -1 && lies_in(fs->names[i].path, path, &last)) {
            return -ENOTEMPTY;
        }
    }
    record(fs, MEMFS_DROP, -1, path, NULL, 0, NULL, 0);
    drop_name(fs, path);
    return 0;
}

static int
fs_rmdir(void *ctx, const char *path)
{
    struct memfs *fs = ctx;
    (void)pthread_mutex_lock(&fs->lock);
    int result = rmdir_locked(fs, path);
    (void)pthread_mutex_unlock(&fs->lock);
    return result;
}

static int
mkdir_locked(struct memfs *fs, const char *path)
{
    if (memfs_find(fs, path) != -1) {
        return -EEXIST;
    }
    if (!has_parent(fs, path)) {
        return -ENOENT;
    }
    record(fs, MEMFS_LINK, -2, NULL, path, 0, NULL, 0);
    set_name(fs, path, -2);
    return 0;
}

static int
fs_mkdir(void *ctx, const char *path, mode_t mode)
{
    struct memfs *fs = ctx;
    if (is_outside(fs, path)) {
        return REAL->mkdir(NULL, path, mode);
    }
    (void)pthread_mutex_lock(&fs->lock);
    int result = mkdir_locked(fs, path);
    (void)pthread_mutex_unlock(&fs->lock);
    return result;
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
    if (is_outside(fs, path)) {
        return REAL->stat(NULL, path, out);
    }
    (void)pthread_mutex_lock(&fs->lock);
    int inode = memfs_find(fs, path);
    out->uid = (uint32_t)geteuid();
    out->size = inode >= 0 ? fs->inodes[inode].size : 4096;
    out->mode = inode >= 0 ? (S_IFREG | 0600) : (S_IFDIR | 0700);
    (void)pthread_mutex_unlock(&fs->lock);
    return inode == -1 ? -ENOENT : 0;
}

static int
fs_statfs(void *ctx, const char *path, struct ag_io_fs *out)
{
    if (is_outside(ctx, path)) {
        return REAL->statfs(NULL, path, out);
    }
    out->type = 0xEF53;
    out->free_bytes = UINT64_MAX;
    return 0;
}

static int
fs_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
        void *arg)
{
    struct memfs *fs = ctx;
    static _Thread_local char found[MEMFS_NAMES][MEMFS_NAME];
    int count = 0;
    (void)pthread_mutex_lock(&fs->lock);
    bool there = memfs_find(fs, path) == -2;
    for (int i = 0; there && i < fs->name_count; i++) {
        const char *last;
        if (fs->names[i].inode != -1 && lies_in(fs->names[i].path, path, &last)) {
            (void)snprintf(found[count++], MEMFS_NAME, "%s", last);
        }
    }
    (void)pthread_mutex_unlock(&fs->lock);
    for (int i = 0; i < count; i++) { /* which may change the directory */
        each(arg, found[i]);
    }
    return there ? 0 : -ENOENT;
}

static int
fs_reserve(void *ctx, int fd, off_t size)
{
    (void)ctx;
    return fd < FIRST_FD ? REAL->reserve(NULL, fd, size) : 0;
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
        .sync_fs = fs_sync_fs,
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
    (void)pthread_mutex_init(&fs->lock, NULL);
    for (int fd = 0; fd < MEMFS_FDS; fd++) {
        fs->fds[fd] = -1;
    }
}

void
memfs_init(struct memfs *fs)
{
    fs->inode_count = fs->name_count = 0;
    fs->root = NULL;
    fs->trace = NULL;
    fs->acked = NULL;
    fs->acked_floor = 0;
    set_table(fs);
}

void
memfs_init_at(struct memfs *fs, const char *root)
{
    memfs_init(fs);
    fs->root = root;
    set_name(fs, root, -2);
}

void
memfs_watch(struct memfs *fs, const _Atomic uint64_t *acked, uint64_t floor)
{
    (void)pthread_mutex_lock(&fs->lock);
    fs->acked = acked;
    fs->acked_floor = floor;
    (void)pthread_mutex_unlock(&fs->lock);
}

void
memfs_share(struct memfs *to, const struct memfs *from)
{
    memfs_init(to);
    memcpy(to->inodes, from->inodes, (size_t)from->inode_count * sizeof(to->inodes[0]));
    memcpy(to->names, from->names, (size_t)from->name_count * sizeof(to->names[0]));
    to->inode_count = from->inode_count;
    to->name_count = from->name_count;
    to->root = from->root;
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
    to->root = from->root;
    for (int i = 0; i < from->name_count; i++) {
        int inode = from->names[i].inode;
        if (inode == -1) {
            continue;
        }
        if (inode >= 0) {
            int fresh = new_inode(to);
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

/* ---- what a crash leaves ---- */

void
memfs_prune(struct memfs *fs)
{
    for (bool again = true; again;) {
        again = false;
        for (int i = 0; i < fs->name_count; i++) {
            if (fs->names[i].inode != -1 && !has_parent(fs, fs->names[i].path)) {
                fs->names[i].inode = -1;
                again = true;
            }
        }
    }
}

void
memfs_walk_start(struct memfs_walk *walk, const struct memfs *base)
{
    memfs_copy(&walk->durable, base);
    walk->write_count = walk->name_count = 0;
}

void
memfs_walk_end(struct memfs_walk *walk)
{
    memfs_free(&walk->durable);
}

/* Puts on the disk what is pending of an inode, or of all with -1. */
static void
sync_writes(struct memfs_walk *walk, const struct memfs_trace *trace, int inode)
{
    size_t kept = 0;
    for (size_t k = 0; k < walk->write_count; k++) {
        const struct memfs_op *op = &trace->ops[walk->writes[k]];
        if (inode == -1 || op->inode == inode) {
            memfs_apply(&walk->durable, op);
        } else {
            walk->writes[kept++] = walk->writes[k];
        }
    }
    walk->write_count = kept;
}

/* The same of the names in a directory, or of all with NULL. */
static void
sync_names(struct memfs_walk *walk, const struct memfs_trace *trace, const char *dir)
{
    size_t kept = 0;
    const char *last;
    for (size_t k = 0; k < walk->name_count; k++) {
        const struct memfs_op *op = &trace->ops[walk->names[k]];
        if (dir == NULL || lies_in(op->from, dir, &last) ||
            lies_in(op->to, dir, &last)) {
            memfs_apply(&walk->durable, op);
        } else {
            walk->names[kept++] = walk->names[k];
        }
    }
    walk->name_count = kept;
}

void
memfs_walk_step(struct memfs_walk *walk, const struct memfs_trace *trace, size_t at)
{
    const struct memfs_op *op = &trace->ops[at];
    struct memfs *durable = &walk->durable;
    while (op->inode >= durable->inode_count) {
        (void)new_inode(durable);
    }
    switch (op->kind) {
    case MEMFS_WRITE:
        ASSERT_LT_U(walk->write_count, MEMFS_PENDING);
        walk->writes[walk->write_count++] = at;
        break;
    case MEMFS_LINK:
    case MEMFS_MOVE:
    case MEMFS_DROP:
        ASSERT_LT_U(walk->name_count, MEMFS_PENDING);
        walk->names[walk->name_count++] = at;
        break;
    case MEMFS_SYNC:
        sync_writes(walk, trace, op->inode);
        break;
    case MEMFS_DIR:
        sync_names(walk, trace, op->from);
        break;
    case MEMFS_SYNC_ALL:
        sync_writes(walk, trace, -1);
        sync_names(walk, trace, NULL);
        break;
    }
}
