#include "wal_rig.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "check.h"
#include "scratch.h"
#include "wal/reader.h"

struct wal_fault fault;
static int
due(enum kind kind)
{
    long call = atomic_fetch_add(&fault.calls, 1) + 1;
    long at = atomic_load(&fault.at);
    if (at == 0 || call < at ||
        (call > at && !(atomic_load(&fault.lasting) &&
                        (int)kind == atomic_load(&fault.lasting_kind)))) {
        return 0;
    }
    atomic_store(&fault.hit, true);
    if (call == at) {
        atomic_store(&fault.lasting_kind, (int)kind);
        atomic_store(&fault.hit_kind, (int)kind);
    }
    int error = atomic_load(&fault.error);
    if (error == -2) {
        (void)kill(getpid(), SIGKILL);
    }
    if (error == EINTR && kind != READ && kind != WRITE) {
        return 0; /* the others do not return it, or are not to be repeated */
    }
    return error == -1 ? 0 : error;
}

static void
note_failure(int fd)
{
    if (fd >= 0 && fd < FDS) {
        atomic_store(&fault.failed_fd[fd], true);
    }
}

static void
note_use(int fd)
{
    if (fd >= 0 && fd < FDS && atomic_load(&fault.failed_fd[fd])) {
        atomic_fetch_add(&fault.repeated, 1);
    }
}

#define REAL ag_io_posix()

static int
f_open(void *ctx, const char *path, int flags, mode_t mode)
{
    (void)ctx;
    int error = due(OPEN);
    if (error == 0 && (flags & O_CREAT) && strstr(path, "segment.tmp") != NULL &&
        atomic_load(&fault.no_space)) {
        error = ENOSPC;
    }
    int fd = error != 0 ? -error : REAL->open(NULL, path, flags, mode);
    if (fd >= 0 && fd < FDS) {
        atomic_store(&fault.failed_fd[fd], false);
    }
    return fd;
}

static int
f_close(void *ctx, int fd)
{
    (void)ctx;
    int error = due(CLOSE);
    int result = REAL->close(NULL, fd);
    return error != 0 ? -error : result;
}

static ssize_t
f_pread(void *ctx, int fd, void *to, size_t n, off_t offset)
{
    (void)ctx;
    int error = due(READ);
    return error != 0 ? -error : REAL->pread(NULL, fd, to, n, offset);
}

static ssize_t
f_pwrite(void *ctx, int fd, const void *from, size_t n, off_t offset)
{
    (void)ctx;
    long call = atomic_load(&fault.calls) + 1;
    note_use(fd);
    int error = due(WRITE);
    if (error != 0) {
        if (error != EINTR) {
            (void)REAL->pwrite(NULL, fd, from, n / 2 / 512 * 512, offset);
            note_failure(fd);
        }
        return -error;
    }
    if (atomic_load(&fault.error) == -1 && call == atomic_load(&fault.at) && n > 512) {
        n = 512;
    }
    return REAL->pwrite(NULL, fd, from, n, offset);
}

static int
f_sync(void *ctx, int fd)
{
    (void)ctx;
    while (atomic_load(&fault.stall)) {
        struct timespec pause = {.tv_nsec = 1000 * 1000};
        (void)nanosleep(&pause, NULL);
    }
    note_use(fd);
    int error = due(SYNC);
    if (error != 0) {
        note_failure(fd);
        return -error;
    }
    return REAL->fdatasync(NULL, fd);
}

static int
f_sync_dir(void *ctx, const char *path)
{
    (void)ctx;
    int error = due(NAME);
    return error != 0 ? -error : REAL->fsync_dir(NULL, path);
}

static int
f_rename(void *ctx, const char *from, const char *to)
{
    (void)ctx;
    int error = due(NAME);
    return error != 0 ? -error : REAL->rename(NULL, from, to);
}

static int
f_unlink(void *ctx, const char *path)
{
    (void)ctx;
    int error = due(NAME);
    return error != 0 ? -error : REAL->unlink(NULL, path);
}

static int
f_mkdir(void *ctx, const char *path, mode_t mode)
{
    (void)ctx;
    int error = due(NAME);
    return error != 0 ? -error : REAL->mkdir(NULL, path, mode);
}

static int
f_reserve(void *ctx, int fd, off_t size)
{
    (void)ctx;
    int error = due(NAME);
    return error != 0 ? -error : REAL->reserve(NULL, fd, size);
}

static int
f_list(void *ctx, const char *path, void (*each)(void *arg, const char *name),
       void *arg)
{
    (void)ctx;
    int error = due(NAME);
    return error != 0 ? -error : REAL->list(NULL, path, each, arg);
}

static struct ag_io table;
char folder[256], log_path[512], ring_path[512];

void
fault_clear(void)
{
    memset(&fault, 0, sizeof(fault));
}

void
setup(const char *name)
{
    fault_clear();
    table = *REAL;
    table.open = f_open;
    table.close = f_close;
    table.pread = f_pread;
    table.pwrite = f_pwrite;
    table.fdatasync = f_sync;
    table.fsync = f_sync;
    table.fsync_dir = f_sync_dir;
    table.rename = f_rename;
    table.unlink = f_unlink;
    table.mkdir = f_mkdir;
    table.reserve = f_reserve;
    table.list = f_list;
    scratch_path(log_path, folder, name);
    (void)snprintf(ring_path, sizeof(ring_path), "/dev/shm/aegis-test-%d-%s",
                   (int)getpid(), name);
}

void
forget(void)
{
    char command[1200];
    (void)snprintf(command, sizeof(command), "rm -rf '%.350s' '%.350s' '%.350s.orphan'",
                   log_path, ring_path, ring_path);
    ASSERT_EQ(system(command), 0);
}

struct ag_wal_options
options(void)
{
    const struct ag_wal_options made = {
        .io = &table,
        .ring_path = ring_path,
        .segment_bytes = 32768,
        .ring_bytes = 65536,
        .max_delay_us = 300,
    };
    return made;
}

struct ag_wal *
open_log(void)
{
    const struct ag_wal_options made = options();
    struct ag_wal *wal = NULL;
    struct ag_error err;
    int status = ag_wal_open(log_path, &made, &wal, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s; %s; %s; expected %s, found %s", ag_status_name(status),
                   err.what, err.file, err.advice, err.expected, err.found);
    }
    return wal;
}

uint32_t
payload_of(uint64_t seq, uint8_t *to)
{
    uint64_t state = seq;
    uint32_t n = 1 + (uint32_t)check_random(&state) % 3000;
    for (uint32_t i = 0; i < n; i++) {
        to[i] = (uint8_t)(seq + i);
    }
    return n;
}

uint64_t patience_ns = 20000000000u;

int
append(struct ag_wal *wal, uint64_t expected)
{
    uint8_t payload[3001];
    uint64_t seq = 0;
    int status;
    uint32_t n = payload_of(expected, payload);
    uint64_t until = ag_clock_ns() + patience_ns;
    while ((status = ag_wal_append(wal, payload, n, &seq)) == AG_EFULL &&
           ag_clock_ns() < until) {
        struct timespec pause = {.tv_nsec = 200 * 1000};
        (void)nanosleep(&pause, NULL);
    }
    if (status == AG_OK) {
        ASSERT_EQ_U(seq, expected);
    }
    return status;
}

/* Every record from 1 on, whole and in order; returns the last. */
uint64_t
check_records(void)
{
    struct ag_wal_reader *reader = NULL;
    struct ag_error err;
    uint8_t expected[3001];
    uint64_t seq = 0, next = 1;
    const uint8_t *payload = NULL;
    uint32_t n = 0;
    int got = ag_wal_reader_open(REAL, log_path, NULL, 0, true, &reader, &err);
    if (got == AG_ENOTFOUND) {
        return 0;
    }
    ASSERT_EQ(got, AG_OK);
    while ((got = ag_wal_reader_next(reader, &seq, &payload, &n, &err)) == 1) {
        ASSERT_EQ_U(seq, next);
        ASSERT_EQ_U(n, payload_of(seq, expected));
        ASSERT_EQ_MEM(payload, expected, n);
        next++;
    }
    if (got < 0) {
        CHECK_FAIL("%s in %s", err.what, err.file);
    }
    ag_wal_reader_close(reader);
    return next - 1;
}

void
close_log(struct ag_wal *wal)
{
    struct ag_error err;
    int status = ag_wal_close(wal, UINT64_MAX, &err);
    if (status != AG_OK) {
        CHECK_FAIL("close: %s", err.what);
    }
}
