#include "limit/area.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "hash/crc32c.h"

#define VERSION 1u
#define WRITE_CHUNK ((size_t)256 * 1024)
#define LOCK_SECONDS 10
/* Of a huge page, on every machine that has them by default. A table spreads its keys
 * evenly, so with small pages nearly every look at a large one misses the TLB too. */
#define HUGE ((size_t)2 << 20)
#if defined(__linux__) && !defined(MADV_COLLAPSE)
#define MADV_COLLAPSE 25 /* Linux 6.1; older ones refuse it */
#endif

static const uint8_t magic[8] = {'A', 'G', 'L', 'I', 'M', 'I', 'T', 0};

/* ---- clocks ---- */

static uint64_t
clock_of(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t
ag_boottime_ns(void)
{
#if defined(CLOCK_BOOTTIME)
    return clock_of(CLOCK_BOOTTIME);
#else
    return clock_of(CLOCK_MONOTONIC); /* of macOS: goes on during sleep */
#endif
}

static unsigned
digit_of(char c)
{
    return c >= '0' && c <= '9'   ? (unsigned)(c - '0')
           : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a') + 10
                                  : 16;
}

/* Zeros when the system has no such file; then every boot looks the same. */
static void
read_boot_id(uint8_t to[AG_AREA_BOOT])
{
    char text[64] = "";
    memset(to, 0, AG_AREA_BOOT);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (file == NULL) {
        return;
    }
    if (fgets(text, sizeof(text), file) != NULL) {
        unsigned digits = 0;
        for (const char *c = text; *c != '\0' && digits < 2 * AG_AREA_BOOT; c++) {
            unsigned value = digit_of(*c);
            if (value < 16) {
                to[digits / 2] = (uint8_t)((unsigned)to[digits / 2] << 4 | value);
                digits++;
            }
        }
    }
    (void)fclose(file);
}

void
ag_moment_now(struct ag_moment *now)
{
    read_boot_id(now->boot_id);
    now->boot_ns = ag_boottime_ns();
    now->real_ns = clock_of(CLOCK_REALTIME);
}

/* Without a boot id, a clock that went back by more than the age of a look at it. */
static bool
same_boot(const struct ag_area_header *header, const struct ag_moment *now)
{
    return memcmp(header->boot_id, now->boot_id, AG_AREA_BOOT) == 0 &&
           header->boot_ns < now->boot_ns + 60 * UINT64_C(1000000000);
}

/* What to add to a time of the header's boot to get the same moment in this boot. */
static int64_t
shift_between(const struct ag_area_header *then, const struct ag_moment *now)
{
    uint64_t passed = now->real_ns > then->real_ns ? now->real_ns - then->real_ns : 0;
    return (int64_t)(now->boot_ns - then->boot_ns - passed);
}

/* ---- the header ---- */

static uint32_t
header_crc(const struct ag_area_header *header)
{
    return ag_crc32c(0, header, offsetof(struct ag_area_header, crc));
}

static int
make_header(const struct ag_area_spec *spec, const struct ag_moment *now,
            struct ag_area_header *header, struct ag_error *err)
{
    uint64_t body = spec->body(spec->items, spec->width);
    if (body == 0 || body > SIZE_MAX / 2) {
        return ag_fail(err, AG_EINVAL, "no table of %" PRIu64 " slots is possible",
                       spec->items);
    }
    memset(header, 0, sizeof(*header));
    memcpy(header->magic, magic, sizeof(magic));
    header->version = VERSION;
    header->kind = (uint32_t)spec->kind;
    header->sync = (uint32_t)spec->sync;
    header->width = spec->width;
    header->items = spec->items;
    header->bytes = AG_AREA_HEADER + body;
    if (getrandom(&header->key, sizeof(header->key), 0) != sizeof(header->key)) {
        return ag_fail_sys(err, errno, "", "getrandom");
    }
    header->crc = header_crc(header);
    memcpy(header->boot_id, now->boot_id, AG_AREA_BOOT);
    header->boot_ns = now->boot_ns;
    header->real_ns = now->real_ns;
    return AG_OK;
}

static const char *
kind_name(uint32_t kind)
{
    return kind == AG_AREA_LIMITS        ? "rate limits"
           : kind == AG_AREA_CONCURRENCY ? "concurrency"
                                         : "unknown";
}

static int
refuse_file(struct ag_error *err, int status, const char *path, const char *what,
            const char *expected, const char *found)
{
    ag_fail(err, status, "%s", what);
    ag_error_file(err, path, AG_NO_POSITION);
    ag_error_pair(err, expected, found);
    ag_error_advice(err, "Stop the processes that use this file and remove it (its "
                         "limits start anew), or choose another path");
    return status;
}

static int
check_header(const struct ag_area_header *header, const struct ag_area_spec *spec,
             const char *path, uint64_t file_bytes, struct ag_error *err)
{
    char expected[64], found[64];
    if (memcmp(header->magic, magic, sizeof(magic)) != 0) {
        return refuse_file(err, AG_EFOREIGN, path, "not a limiter table", "", "");
    }
    if (header->version != VERSION) {
        (void)snprintf(expected, sizeof(expected), "version %u", VERSION);
        (void)snprintf(found, sizeof(found), "version %" PRIu32, header->version);
        return refuse_file(err, AG_EVERSION, path,
                           "limiter table of another version of this program", expected,
                           found);
    }
    if (header->crc != header_crc(header)) {
        return refuse_file(err, AG_ECORRUPT, path,
                           "the header of the limiter table is damaged", "", "");
    }
    if (header->kind != (uint32_t)spec->kind) {
        return refuse_file(err, AG_EFOREIGN, path, "limiter table of another kind",
                           kind_name((uint32_t)spec->kind), kind_name(header->kind));
    }
    if (header->sync != (uint32_t)spec->sync) {
        return refuse_file(err, AG_EFOREIGN, path,
                           "the table's users change it in another way",
                           spec->sync == AG_SYNC_CAS ? "cas" : "mutex",
                           header->sync == AG_SYNC_CAS ? "cas" : "mutex");
    }
    uint64_t body = spec->body(header->items, header->width);
    if (body == 0 || header->bytes != AG_AREA_HEADER + body ||
        file_bytes != header->bytes) {
        (void)snprintf(expected, sizeof(expected), "%" PRIu64 " bytes", header->bytes);
        (void)snprintf(found, sizeof(found), "%" PRIu64 " bytes", file_bytes);
        return refuse_file(err, AG_ECORRUPT, path, "the limiter table is cut short",
                           expected, found);
    }
    return AG_OK;
}

/* ---- the directory ---- */

/* Makes and checks the directory of `path`, and takes its lock: *fd to be closed. */
static int
lock_directory(const struct ag_io *io, const char *path, int *fd, struct ag_error *err)
{
    char dir[PATH_MAX] = ".";
    struct stat st;
    int status = AG_OK;
    const char *slash = strrchr(path, '/');
    if (slash != NULL) {
        size_t n = slash == path ? 1 : (size_t)(slash - path);
        memcpy(dir, path, n);
        dir[n] = '\0';
        if (lstat(dir, &st) != 0 && errno == ENOENT) {
            status = ag_io_make_dirs(io, dir, 0700, err);
            if (status != AG_OK) {
                return status;
            }
        }
    }
    *fd = io->open(io->ctx, dir, O_RDONLY | O_DIRECTORY, 0);
    if (*fd < 0) {
        status = ag_fail_sys(err, -*fd, dir, "open the directory of the table");
        ag_error_advice(err, "Choose a path in a directory, best in a tmpfs");
        return status;
    }
    if (fstat(*fd, &st) != 0) {
        status = ag_fail_sys(err, errno, dir, "stat");
        goto fail;
    }
    if (st.st_uid != geteuid() || (st.st_mode & 077) != 0) {
        char found[64], expected[64];
        (void)snprintf(expected, sizeof(expected), "mode 700 of user %u",
                       (unsigned)geteuid());
        (void)snprintf(found, sizeof(found), "mode %o of user %u",
                       (unsigned)st.st_mode & 07777, (unsigned)st.st_uid);
        status = ag_fail(err, AG_EPERM,
                         "others can reach the directory of the limiter table");
        ag_error_file(err, dir, AG_NO_POSITION);
        ag_error_pair(err, expected, found);
        ag_error_advice(err, "Use a directory of its own: mkdir -m 700");
        goto fail;
    }
    uint64_t deadline = ag_clock_ns() + LOCK_SECONDS * UINT64_C(1000000000);
    int result = 0;
    while ((result = io->lock(io->ctx, *fd)) == -EWOULDBLOCK || result == -EINTR) {
        if (ag_clock_ns() > deadline) {
            status = ag_fail(err, AG_ELOCKED, "another process holds the directory");
            ag_error_file(err, dir, AG_NO_POSITION);
            ag_error_advice(err, "See which one with: fuser -v %.180s", dir);
            goto fail;
        }
        const struct timespec pause = {.tv_nsec = 1000000};
        (void)nanosleep(&pause, NULL);
    }
    if (result < 0) {
        status = ag_fail_sys(err, -result, dir, "lock");
        goto fail;
    }
    return AG_OK;
fail:
    (void)io->close(io->ctx, *fd);
    return status;
}

/* ---- making and mapping ---- */

/* Writes header and body (NULL: zeros, then prepared) under a new name and renames it
 * to `path`. Under the directory's lock. */
static int
write_file(const struct ag_io *io, const char *path, const struct ag_area_spec *spec,
           const struct ag_area_header *header, const void *old_body,
           struct ag_error *err)
{
    char temporary[PATH_MAX + 8];
    uint8_t *chunk = NULL;
    uint8_t *page = NULL;
    int status = AG_OK;
    (void)snprintf(temporary, sizeof(temporary), "%s.new", path);
    int result = io->unlink(io->ctx, temporary); /* of a creator that died */
    if (result < 0 && result != -ENOENT) {
        return ag_fail_sys(err, -result, temporary, "remove");
    }
    int fd = io->open(io->ctx, temporary, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return ag_fail_sys(err, -fd, temporary, "create the limiter table");
    }
    page = ag_calloc(1, AG_AREA_HEADER);
    chunk = ag_calloc(1, WRITE_CHUNK);
    if (page == NULL || chunk == NULL) {
        status = ag_fail(err, AG_ENOMEM, "no memory to make a limiter table");
        goto exit;
    }
    memcpy(page, header, sizeof(*header));
    status = ag_io_write_full(io, fd, temporary, page, AG_AREA_HEADER, 0, err);
    if (old_body == NULL && spec->prepare != NULL && status == AG_OK) {
        status = spec->prepare(chunk, err); /* what it prepares lies at the front */
    }
    for (uint64_t at = AG_AREA_HEADER, n = 0; at < header->bytes && status == AG_OK;
         at += n) {
        n = header->bytes - at < WRITE_CHUNK ? header->bytes - at : WRITE_CHUNK;
        const uint8_t *from = old_body != NULL
                                  ? (const uint8_t *)old_body + (at - AG_AREA_HEADER)
                                  : chunk;
        status = ag_io_write_full(io, fd, temporary, from, (size_t)n, at, err);
        if (at == AG_AREA_HEADER) {
            memset(chunk, 0, WRITE_CHUNK);
        }
    }
    if (status != AG_OK) {
        if (err != NULL && (err->sys_errno == ENOSPC || err->sys_errno == EDQUOT ||
                            err->sys_errno == EFBIG)) {
            char want[64];
            (void)snprintf(want, sizeof(want), "room for %" PRIu64 " bytes",
                           header->bytes);
            ag_error_pair(err, want, "less");
            ag_error_advice(err, "Make room in that file system, or use fewer slots");
            status = err->status = AG_EFULL;
        }
        goto exit;
    }
    result = io->rename(io->ctx, temporary, path);
    if (result < 0) {
        status = ag_fail_sys(err, -result, path, "rename the limiter table");
    }
exit:
    (void)io->close(io->ctx, fd);
    if (status != AG_OK) {
        (void)io->unlink(io->ctx, temporary);
    }
    ag_free(chunk);
    ag_free(page);
    return status;
}

/* Maps the file at a multiple of the huge page's size: only so can huge pages back it.
 */
static void *
map_aligned(int fd, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t pages = (bytes + page - 1) / page * page;
    uint8_t *range = mmap(NULL, pages + HUGE, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED) {
        return MAP_FAILED;
    }
    size_t before = (HUGE - (uintptr_t)range % HUGE) % HUGE;
    void *at = mmap(range + before, bytes, PROT_READ | PROT_WRITE,
                    MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0);
    if (at == MAP_FAILED) {
        int failure = errno;
        (void)munmap(range, pages + HUGE);
        errno = failure;
        return at;
    }
    if (before > 0) {
        (void)munmap(range, before);
    }
    (void)munmap(range + before + pages, HUGE - before);
    return at;
}

static int
map_area(int fd, uint64_t bytes, const char *path, struct ag_area *area,
         struct ag_error *err)
{
    void *at = map_aligned(fd, (size_t)bytes);
    if (at == MAP_FAILED) {
        return ag_fail_sys(err, errno, path, "mmap of the limiter table");
    }
    size_t whole = (size_t)bytes / HUGE * HUGE; /* a huge page at the end would waste */
    if (whole > 0) {
        (void)madvise(at, whole, MADV_HUGEPAGE); /* hints, both */
#if defined(MADV_COLLAPSE)
        (void)madvise(at, whole, MADV_COLLAPSE);
#endif
    }
    area->header = at;
    area->body = (uint8_t *)at + AG_AREA_HEADER;
    area->bytes = (size_t)bytes;
    area->fd = fd;
    (void)snprintf(area->path, sizeof(area->path), "%s", path);
    return AG_OK;
}

static int
open_anonymous(const struct ag_area_spec *spec, const struct ag_moment *now,
               struct ag_area *area, struct ag_error *err)
{
    struct ag_area_header header;
    int status = make_header(spec, now, &header, err);
    if (status != AG_OK) {
        return status;
    }
    int fd = memfd_create("aegis-limits", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)header.bytes) != 0) {
        status = ag_fail_sys(err, errno, "", "anonymous memory for a limiter table");
    } else {
        status = map_area(fd, header.bytes, "", area, err);
    }
    if (status != AG_OK) {
        if (fd >= 0) {
            (void)close(fd);
        }
        return status;
    }
    memcpy(area->header, &header, sizeof(header));
    status = spec->prepare != NULL ? spec->prepare(area->body, err) : AG_OK;
    if (status != AG_OK) {
        ag_area_close(ag_io_posix(), area);
    }
    return status;
}

/* Opens what is there and reads its header; AG_ENOTFOUND when there is nothing. */
static int
open_existing(const struct ag_io *io, const char *path, const struct ag_area_spec *spec,
              struct ag_area_header *header, int *fd, struct ag_error *err)
{
    struct stat st;
    int status = AG_OK;
    *fd = io->open(io->ctx, path, O_RDWR | O_NOFOLLOW, 0);
    if (*fd == -ENOENT) {
        return AG_ENOTFOUND;
    }
    if (*fd < 0) {
        status = ag_fail_sys(err, -*fd, path, "open the limiter table");
        ag_error_advice(err, *fd == -ELOOP ? "A symbolic link is not followed here"
                                           : "Choose the path of a file");
        return status;
    }
    if (fstat(*fd, &st) != 0) {
        status = ag_fail_sys(err, errno, path, "stat");
    } else if (!S_ISREG(st.st_mode)) {
        status = refuse_file(err, AG_EFOREIGN, path, "not a regular file", "", "");
    } else if (st.st_uid != geteuid() || (st.st_mode & 077) != 0) {
        char expected[64], found[64];
        (void)snprintf(expected, sizeof(expected), "mode 600 of user %u",
                       (unsigned)geteuid());
        (void)snprintf(found, sizeof(found), "mode %o of user %u",
                       (unsigned)st.st_mode & 07777, (unsigned)st.st_uid);
        status =
            refuse_file(err, AG_EPERM, path,
                        "the limiter table is not this user's alone", expected, found);
    } else if (st.st_size < (off_t)AG_AREA_HEADER) {
        status = refuse_file(err, AG_EFOREIGN, path, "too short for a limiter table",
                             "", "");
    } else {
        status = ag_io_read_full(io, *fd, path, header, sizeof(*header), 0, err);
    }
    if (status == AG_OK) {
        status = check_header(header, spec, path, (uint64_t)st.st_size, err);
    }
    if (status != AG_OK) {
        (void)io->close(io->ctx, *fd);
    }
    return status;
}

/* Replaces a table of another boot by one whose times are moved to this boot. The old
 * file stays until the new one is complete; nobody uses it, all its users are gone. */
static int
rebase_file(const struct ag_io *io, const char *path, const struct ag_area_spec *spec,
            struct ag_area_header *header, int fd, const struct ag_moment *now,
            struct ag_error *err)
{
    size_t n = (size_t)(header->bytes - AG_AREA_HEADER);
    int64_t shift = shift_between(header, now);
    uint8_t *body = NULL;
    int status = AG_OK;
    memcpy(header->boot_id, now->boot_id, AG_AREA_BOOT);
    header->boot_ns = now->boot_ns;
    header->real_ns = now->real_ns;
    if (spec->rebase == NULL) {
        return write_file(io, path, spec, header, NULL, err);
    }
    body = ag_alloc(n);
    if (body == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory to re-base a limiter table");
    }
    status = ag_io_read_full(io, fd, path, body, n, AG_AREA_HEADER, err);
    if (status == AG_OK) {
        spec->rebase(header, body, shift);
        status = spec->prepare != NULL ? spec->prepare(body, err) : AG_OK;
    }
    if (status == AG_OK) {
        status = write_file(io, path, spec, header, body, err);
    }
    ag_free(body);
    return status;
}

static int
open_locked(const struct ag_io *io, const char *path, const struct ag_area_spec *spec,
            const struct ag_moment *now, struct ag_area *area, struct ag_error *err)
{
    struct ag_area_header header;
    int fd = -1;
    for (int attempt = 0; attempt < 2; attempt++) {
        int status = open_existing(io, path, spec, &header, &fd, err);
        if (status == AG_OK && same_boot(&header, now)) {
            status = map_area(fd, header.bytes, path, area, err);
            if (status != AG_OK) {
                (void)io->close(io->ctx, fd);
                return status;
            }
            area->header->boot_ns = now->boot_ns; /* follows a corrected real time */
            area->header->real_ns = now->real_ns;
            return AG_OK;
        }
        if (status == AG_OK) {
            status = rebase_file(io, path, spec, &header, fd, now, err);
            (void)io->close(io->ctx, fd);
        } else if (status == AG_ENOTFOUND) {
            status = make_header(spec, now, &header, err);
            if (status == AG_OK) {
                status = write_file(io, path, spec, &header, NULL, err);
            }
        }
        if (status != AG_OK) {
            return status;
        }
    }
    return ag_fail(err, AG_EIO, "the limiter table vanished while it was opened");
}

int
ag_area_open(const struct ag_io *io, const char *path, const struct ag_area_spec *spec,
             const struct ag_moment *now, struct ag_area *area, struct ag_error *err)
{
    int directory = -1;
    if (path == NULL) {
        return open_anonymous(spec, now, area, err);
    }
    if (path[0] == '\0' || strlen(path) >= PATH_MAX - 8) {
        return ag_fail_sys(err, path[0] == '\0' ? ENOENT : ENAMETOOLONG, path,
                           "open the limiter table");
    }
    int status = lock_directory(io, path, &directory, err);
    if (status == AG_OK) {
        status = open_locked(io, path, spec, now, area, err);
        (void)flock(directory, LOCK_UN); /* a child just forked may hold a copy of it */
        (void)io->close(io->ctx, directory);
    }
    return status;
}

void
ag_area_close(const struct ag_io *io, struct ag_area *area)
{
    if (area->header != NULL) {
        (void)munmap(area->header, area->bytes);
        (void)io->close(io->ctx, area->fd);
        area->header = NULL;
    }
}
