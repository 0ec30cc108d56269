// links: scratch
/* Loss of power at any call of a ledger: what was said to be durable is there, what was
 * signed still holds, and the ledger opens.
 *
 * The model is the worst that POSIX allows: of a file there is what it held when it was
 * last synced, empty when it never was; a name is there when its directory was synced
 * after it was made, and only if all directories above it are; a removed or replaced
 * name comes back until then; a rename is atomic. The ring is gone. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "check.h"
#include "log/ledger_state.h"
#include "scratch.h"

#define SECOND ((uint64_t)1000000000u)
#define NAMES 4096
#define INODES 4096
#define REAL ag_io_posix()

static char dir[256];

/* snprintf that must fit. */
static void __attribute__((format(printf, 3, 4)))
put(char *to, size_t room, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(to, room, format, args);
    va_end(args);
    ASSERT(n >= 0 && (size_t)n < room);
}

struct durable_name {
    char path[400];
    ino_t ino;
    bool folder;
};

struct power {
    struct ag_io table;
    pthread_mutex_t lock;
    char root[300], kept[300]; /* what is written; synced content and extra links */
    struct durable_name names[NAMES];
    int count;
    _Atomic long calls, dies_at; /* 0: never */
};

static struct power power;

static bool
dead(void)
{
    long call = atomic_fetch_add(&power.calls, 1) + 1;
    long at = atomic_load(&power.dies_at);
    return at != 0 && call >= at;
}

#define UNLESS_DEAD(call) (dead() ? -EIO : (call))

static bool
is_ours(const char *path)
{
    return strncmp(path, power.root, strlen(power.root)) == 0;
}

static void
copy_fd(int fd, const char *to)
{
    static char bytes[1 << 20];
    int out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ASSERT_LE(0, out);
    off_t at = 0;
    for (;;) {
        ssize_t n = pread(fd, bytes, sizeof(bytes), at);
        if (n <= 0) {
            break;
        }
        ASSERT_EQ(pwrite(out, bytes, (size_t)n, at), n);
        at += n;
    }
    ASSERT_EQ(close(out), 0);
}

/* Under the lock. The file's content is on the disk from here on. */
static void
keep_content(const char *path)
{
    struct stat st;
    char to[400];
    int fd = open(path, O_RDONLY);
    if (fd < 0) {
        return;
    }
    ASSERT_EQ(fstat(fd, &st), 0);
    if (S_ISREG(st.st_mode)) {
        put(to, sizeof(to), "%s/content-%lu", power.kept, (unsigned long)st.st_ino);
        copy_fd(fd, to);
    }
    ASSERT_EQ(close(fd), 0);
}

/* Under the lock. A rename is atomic: where the new name is, the old one is not. */
static void
drop_old_name(ino_t ino)
{
    for (int i = 0; i < power.count; i++) {
        struct stat st;
        bool moved = lstat(power.names[i].path, &st) != 0 || st.st_ino != ino;
        if (power.names[i].ino == ino && moved) {
            power.names[i] = power.names[--power.count];
            return;
        }
    }
}

/* Under the lock. The names in a folder are on the disk from here on. */
static void
keep_names(const char *folder)
{
    size_t n = strlen(folder);
    int left = 0;
    for (int i = 0; i < power.count; i++) {
        const char *path = power.names[i].path;
        bool here = strncmp(path, folder, n) == 0 && path[n] == '/' &&
                    strchr(path + n + 1, '/') == NULL;
        if (!here) {
            power.names[left++] = power.names[i];
        }
    }
    power.count = left;
    DIR *d = opendir(folder);
    ASSERT_NOT_NULL(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        struct durable_name *name = &power.names[power.count];
        struct stat st;
        if (e->d_name[0] == '.' && (e->d_name[1] == '\0' || e->d_name[1] == '.')) {
            continue;
        }
        ASSERT_LT(power.count, NAMES);
        put(name->path, sizeof(name->path), "%s/%s", folder, e->d_name);
        if (lstat(name->path, &st) == 0) {
            drop_old_name(st.st_ino);
            name = &power.names[power.count];
            put(name->path, sizeof(name->path), "%s/%s", folder, e->d_name);
            name->ino = st.st_ino;
            name->folder = S_ISDIR(st.st_mode);
            power.count++;
        }
    }
    (void)closedir(d);
}

static void
keep_tree(const char *folder)
{
    keep_names(folder);
    DIR *d = opendir(folder);
    ASSERT_NOT_NULL(d);
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        char path[600];
        struct stat st;
        put(path, sizeof(path), "%s/%s", folder, e->d_name);
        if ((e->d_name[0] == '.' && (e->d_name[1] == '\0' || e->d_name[1] == '.')) ||
            lstat(path, &st) != 0) {
            continue;
        }
        if (S_ISDIR(st.st_mode)) {
            keep_tree(path);
        } else {
            keep_content(path);
        }
    }
    (void)closedir(d);
}

/* ---- the table ---- */

static int
power_open(void *ctx, const char *path, int flags, mode_t mode)
{
    (void)ctx;
    int fd = UNLESS_DEAD(REAL->open(NULL, path, flags, mode));
    struct stat st;
    if (fd >= 0 && (flags & O_CREAT) && is_ours(path) && fstat(fd, &st) == 0) {
        char to[400]; /* another link, so that no other file gets this number */
        put(to, sizeof(to), "%s/link-%lu", power.kept, (unsigned long)st.st_ino);
        (void)link(path, to);
    }
    return fd;
}

static ssize_t
power_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    (void)ctx;
    return UNLESS_DEAD(REAL->pwrite(NULL, fd, from, n, offset));
}

static int
power_sync(void *ctx, int fd)
{
    (void)ctx;
    char self[64];
    if (dead()) {
        return -EIO;
    }
    put(self, sizeof(self), "/proc/self/fd/%d", fd);
    pthread_mutex_lock(&power.lock);
    keep_content(self);
    pthread_mutex_unlock(&power.lock);
    return 0;
}

static int
power_sync_dir(void *ctx, const char *path)
{
    (void)ctx;
    if (dead()) {
        return -EIO;
    }
    pthread_mutex_lock(&power.lock);
    keep_names(path);
    pthread_mutex_unlock(&power.lock);
    return 0;
}

static int
power_sync_fs(void *ctx, int fd)
{
    (void)ctx, (void)fd;
    if (dead()) {
        return -EIO;
    }
    pthread_mutex_lock(&power.lock);
    keep_tree(power.root);
    pthread_mutex_unlock(&power.lock);
    return 0;
}

static int
power_rename(void *ctx, const char *from, const char *to)
{
    (void)ctx;
    return UNLESS_DEAD(REAL->rename(NULL, from, to));
}

static int
power_unlink(void *ctx, const char *path)
{
    (void)ctx;
    return UNLESS_DEAD(REAL->unlink(NULL, path));
}

static int
power_mkdir(void *ctx, const char *path, mode_t mode)
{
    (void)ctx;
    return UNLESS_DEAD(REAL->mkdir(NULL, path, mode));
}

static void
start_power(int number, long dies_at)
{
    memset(&power, 0, sizeof(power));
    power.table = *REAL;
    power.table.open = power_open;
    power.table.pwrite = power_pwrite;
    power.table.fdatasync = power.table.fsync = power_sync;
    power.table.fsync_dir = power_sync_dir;
    power.table.sync_fs = power_sync_fs;
    power.table.rename = power_rename;
    power.table.unlink = power_unlink;
    power.table.mkdir = power_mkdir;
    ASSERT_EQ(pthread_mutex_init(&power.lock, NULL), 0);
    put(power.root, sizeof(power.root), "%s/before-%d", dir, number);
    put(power.kept, sizeof(power.kept), "%s/kept-%d", dir, number);
    ASSERT_EQ(mkdir(power.root, 0700), 0);
    ASSERT_EQ(mkdir(power.kept, 0700), 0);
    power.dies_at = dies_at;
}

static bool
is_durable_folder(const char *path)
{
    if (strcmp(path, power.root) == 0) {
        return true;
    }
    for (int i = 0; i < power.count; i++) {
        if (power.names[i].folder && strcmp(power.names[i].path, path) == 0) {
            char above[400];
            put(above, sizeof(above), "%s", path);
            *strrchr(above, '/') = '\0';
            return is_durable_folder(above);
        }
    }
    return false;
}

static int
by_length(const void *a, const void *b)
{
    return (int)strlen(((const struct durable_name *)a)->path) -
           (int)strlen(((const struct durable_name *)b)->path);
}

/* What a loss of power leaves, in a folder of another name (so that no ring is found).
 */
static void
lose_power(const char *after)
{
    ASSERT_EQ(mkdir(after, 0700), 0);
    qsort(power.names, (size_t)power.count, sizeof(power.names[0]), by_length);
    for (int i = 0; i < power.count; i++) {
        const struct durable_name *name = &power.names[i];
        char above[400], to[900], from[400];
        put(above, sizeof(above), "%s", name->path);
        *strrchr(above, '/') = '\0';
        if (!is_durable_folder(above)) {
            continue;
        }
        put(to, sizeof(to), "%s%s", after, name->path + strlen(power.root));
        if (name->folder) {
            ASSERT_EQ(mkdir(to, 0700), 0);
            continue;
        }
        put(from, sizeof(from), "%s/content-%lu", power.kept, (unsigned long)name->ino);
        int fd = open(from, O_RDONLY);
        if (fd >= 0) {
            copy_fd(fd, to);
            ASSERT_EQ(close(fd), 0);
        } else {
            scratch_write(to, "", 0);
        }
        ASSERT_EQ(chmod(to, 0600), 0);
    }
}

/* ---- the ledger ---- */

static int
try_open(const char *root, const struct ag_io *io, struct ag_ledger **ledger,
         struct ag_error *err)
{
    char path[512], private_dir[512];
    struct ag_ledger_options options;
    ag_ledger_options_init(&options);
    options.io = io;
    options.path = scratch_path(path, root, "ledger/w0");
    options.private_dir = scratch_path(private_dir, root, "private/w0");
    options.ring_bytes = AG_LEDGER_RING_MIN;
    options.segment_bytes = 64u << 10;
    options.publish_gap_us = 1000;
    options.close_max_us = 2000000;
    return ag_ledger_open(&options, ledger, err);
}

static size_t
make_entry(uint64_t i, char out[200])
{
    return (size_t)snprintf(
        out, 200,
        "{\"kind\":\"%s\",\"id\":\"00000000-0000-7000-8000-%012" PRIx64
        "\",\"pad\":\"%.*s\"}",
        i % 9 == 0 ? "intent" : "call", i, (int)(i % 60),
        "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
}

struct told {
    uint64_t durable, signed_size;
    uint8_t root[AG_HASH_SIZE];
    uint64_t submitted;
};

/* A run of a ledger, up to the loss of power or its end. */
static void
run(uint64_t count, struct told *told)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    if (try_open(power.root, &power.table, &ledger, &err) != AG_OK) {
        return;
    }
    for (int round = 0; round < 2; round++) {
        uint64_t end = told->submitted + count / 2, index = 0;
        for (; told->submitted < end; told->submitted++) {
            char entry[200];
            size_t n = make_entry(told->submitted, entry);
            int status = AG_EFULL;
            while (status == AG_EFULL) {
                status = ag_ledger_submit(ledger, (const uint8_t *)entry, n, NULL, NULL,
                                          &index, &err);
            }
            if (status != AG_OK) {
                break;
            }
            ASSERT_EQ_U(index, told->submitted);
        }
        if (told->submitted > 0) {
            (void)ag_ledger_wait(ledger, told->submitted - 1, AG_PUBLISHED, SECOND / 5,
                                 &err);
        }
        told->durable = ag_ledger_stage_size(ledger, AG_DURABLE);
        pthread_mutex_lock(&ledger->tree_lock);
        told->signed_size = ledger->checkpoint_size;
        memcpy(told->root, ledger->checkpoint_root, AG_HASH_SIZE);
        pthread_mutex_unlock(&ledger->tree_lock);
    }
    (void)ag_ledger_close(ledger, &err);
}

static void
check_after(int number, const struct told *told)
{
    char after[300];
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    put(after, sizeof(after), "%s/after-%d", dir, number);
    lose_power(after);
    int status = try_open(after, NULL, &ledger, &err);
    if (status != AG_OK) {
        CHECK_FAIL("call %d: %s %s %s", number, ag_status_name(status), err.what,
                   err.file);
    }
    uint64_t size = ag_ledger_size(ledger);
    ASSERT_LE_U(told->durable, size);
    ASSERT_LE_U(told->signed_size, size);
    for (uint64_t i = 0; i < size; i++) {
        char expected[200];
        uint8_t *entry = NULL;
        size_t n = 0, expected_n = make_entry(i, expected);
        ASSERT_EQ(ag_ledger_entry(ledger, i, &entry, &n, &err), AG_OK);
        ASSERT_EQ_U(n, expected_n);
        ASSERT_EQ_MEM(entry, expected, n);
        ag_free(entry);
    }
    if (told->signed_size > 0) {
        uint8_t root[AG_HASH_SIZE];
        ASSERT_EQ(ag_ledger_root(ledger, told->signed_size, root, &err), AG_OK);
        ASSERT_EQ_MEM(root, told->root, AG_HASH_SIZE);
    }
    uint64_t *index = NULL;
    size_t count = 0;
    ASSERT_EQ(ag_ledger_open_intents(ledger, &index, &count, &err), AG_OK);
    ASSERT_EQ_U(count, (size + 8) / 9);
    ag_free(index);
    for (uint64_t i = 0; i < size; i += 50) {
        uint8_t id[AG_UUID_SIZE] = {0, 0, 0, 0, 0, 0, 0x70, 0, 0x80};
        struct ag_found found = {0};
        id[14] = (uint8_t)(i >> 8);
        id[15] = (uint8_t)i;
        ASSERT_EQ(ag_ledger_find(ledger, id, &found, &err), AG_OK);
        ASSERT_EQ_U(found.count, 1);
        ASSERT_EQ_U(found.index[0], i);
        ag_free(found.index);
    }
    ASSERT_EQ(ag_ledger_close(ledger, &err), AG_OK);
}

/* Two runs, the second of which moves the mark when it ends, cut at one call after the
 * other. */
static void
at_every_call(void)
{
    long calls = LONG_MAX;
    for (long at = 1; at <= calls; at += 13) {
        struct told told = {0};
        char command[1200];
        start_power((int)at, at);
        run(300, &told);
        run(300, &told);
        run(20, &told);
        check_after((int)at, &told);
        if (power.calls < at) {
            calls = 0;
            ASSERT_EQ_U(told.durable, 620);
        }
        put(command, sizeof(command),
            "rm -rf %s/before-%ld %s/kept-%ld "
            "%s/after-%ld",
            dir, at, dir, at, dir, at);
        ASSERT_EQ(system(command), 0);
    }
    fprintf(stderr, "    %ld calls\n", (long)power.calls);
}

int
main(void)
{
    scratch_make(dir);
    RUN(at_every_call);
    scratch_remove(dir);
    return 0;
}
