/* The life of a log: open, reopen after a failure, stop, close. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "wal/state.h"

#define DEFAULT_SEGMENT (16u << 20)
#define DEFAULT_RING ((size_t)16 << 20)

static int
check_options(const char *path, const struct ag_wal_options *options,
              struct ag_error *err)
{
    uint32_t segment = options->segment_bytes;
    if (path[0] == '\0' || strlen(path) + 64 > AG_WAL_PATH) {
        return ag_fail(err, AG_EINVAL, "the path is empty or too long");
    }
    if (segment < AG_WAL_SEGMENT_MIN || segment > AG_WAL_SEGMENT_MAX ||
        segment % AG_WAL_BLOCK != 0) {
        return ag_fail(err, AG_EINVAL,
                       "segment_bytes is %" PRIu32 ": a multiple of 4096 from %u to %u "
                       "expected",
                       segment, AG_WAL_SEGMENT_MIN, AG_WAL_SEGMENT_MAX);
    }
    if (options->ring_bytes < AG_RING_MIN || options->ring_bytes > AG_RING_MAX) {
        return ag_fail(err, AG_EINVAL, "ring_bytes is %zu: %u to %zu expected",
                       options->ring_bytes, AG_RING_MIN, AG_RING_MAX);
    }
    if (options->max_delay_us > 60u * 1000000u) {
        return ag_fail(err, AG_EINVAL, "max_delay_us is %" PRIu32 ": at most a minute",
                       options->max_delay_us);
    }
    return AG_OK;
}

/* A page that reads 0 in a forked child. */
static int
make_guard(struct ag_wal *wal, struct ag_error *err)
{
    uint8_t *page = mmap(NULL, AG_WAL_BLOCK, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        return ag_fail_sys(err, errno, wal->path, "mmap");
    }
    if (madvise(page, AG_WAL_BLOCK, MADV_WIPEONFORK) != 0) {
        int failed = errno;
        (void)munmap(page, AG_WAL_BLOCK);
        return ag_fail_sys(err, failed, wal->path, "madvise(MADV_WIPEONFORK)");
    }
    *page = 1;
    wal->alive = page;
    return AG_OK;
}

static int
take_lock(struct ag_wal *wal, struct ag_error *err)
{
    char path[AG_WAL_PATH];
    int status = ag_wal_path(path, wal->path, "LOCK", err);
    if (status != AG_OK) {
        return status;
    }
    int fd = wal->io->open(wal->io->ctx, path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    if (fd < 0) {
        return ag_fail_sys(err, -fd, path, "open");
    }
    int result = 0;
    for (int attempt = 0; attempt < 10; attempt++) {
        result = wal->io->lock(wal->io->ctx, fd);
        if (result != -EWOULDBLOCK) {
            break;
        }
        /* `wal verify` takes the lock for an instant to see whether it is held. */
        struct timespec pause = {.tv_nsec = 10 * 1000 * 1000};
        (void)nanosleep(&pause, NULL);
    }
    if (result < 0) {
        (void)wal->io->close(wal->io->ctx, fd);
        if (result != -EWOULDBLOCK) {
            return ag_fail_sys(err, -result, path, "flock");
        }
        ag_fail(err, AG_ELOCKED, "another writer holds this log");
        ag_error_file(err, path, AG_NO_POSITION);
        ag_error_advice(err, "One writer per directory: stop the other one, or choose "
                             "another directory");
        return AG_ELOCKED;
    }
    wal->lock_fd = fd;
    return AG_OK;
}

/* The ring of the last run, and the one of this run. */
struct rings {
    struct ag_ring old; /* mapped when it can be replayed */
    int found;          /* status of the attempt to map it */
    struct ag_error why;
    struct ag_ring_making making;
};

/* Looks for the ring of the last run; when there is none, the new one is made while the
 * log is read. */
static int
look_for_ring(struct ag_wal *wal, struct rings *rings, struct ag_error *err)
{
    int status =
        ag_ring_place(wal->io, wal->path, wal->options.ring_path, wal->ring_path, err);
    if (status != AG_OK) {
        return status;
    }
    rings->found = ag_ring_attach(wal->io, wal->ring_path, &rings->old, &rings->why);
    if (rings->found == AG_ENOTFOUND) {
        ag_ring_make_start(&rings->making, wal->io, wal->ring_path,
                           wal->options.ring_bytes);
    } else if (rings->found != AG_OK && rings->found != AG_ECORRUPT &&
               rings->found != AG_EVERSION) {
        if (err != NULL) {
            *err = rings->why;
        }
        return rings->found;
    }
    return AG_OK;
}

/* What the ring of the last run means for what recovery found. It stays mapped when it
 * is to be replayed. */
static int
judge_old_ring(struct ag_wal *wal, struct rings *rings, struct ag_error *err)
{
    uint8_t boot_id[AG_RING_BOOT];
    struct ag_wal_recovery *notes = &wal->recovery;
    struct ag_ring *old = &rings->old;
    int status = rings->found;
    if (status == AG_ENOTFOUND) {
        wal->ring_lost = !notes->fresh && !notes->clean_close && notes->log.opened != 0;
        if (wal->ring_lost) {
            ag_wal_note(notes, "ring: the last run did not end cleanly and left none "
                               "(power loss, or the ring was removed)");
        }
        return AG_OK;
    }
    if (status != AG_OK) {
        wal->ring_lost = true;
        ag_wal_note(notes, "ring: %s, left out", rings->why.what);
    } else {
        ag_ring_boot_id(boot_id);
        struct ag_ring_view view = ag_ring_look(old);
        uint64_t held = view.tail - view.head;
        if (memcmp(view.boot_id, boot_id, AG_RING_BOOT) != 0) {
            wal->ring_lost = !notes->clean_close;
            ag_wal_note(notes, "ring: of another boot, %" PRIu64 " bytes left out",
                        held);
        } else if (notes->fresh || view.wal_id != notes->log.wal_id) {
            wal->ring_lost = !notes->fresh && !notes->clean_close;
            ag_wal_note(notes, "ring: of another log, %" PRIu64 " bytes left out",
                        held);
            if (held == 0) {
                ag_ring_unmap(wal->io, old);
                return AG_OK;
            }
        } else {
            return AG_OK;
        }
        ag_ring_unmap(wal->io, old);
    }
    /* Somebody may want to look at it: out of the way, not away. */
    char aside[AG_WAL_PATH + 16];
    (void)snprintf(aside, sizeof(aside), "%s.orphan", wal->ring_path);
    int result = wal->io->rename(wal->io->ctx, wal->ring_path, aside);
    return result < 0 ? ag_fail_sys(err, -result, aside, "rename the old ring") : AG_OK;
}

/* Recovery, a new segment, replay of `ring` (mapped or empty). On success the log on
 * disk holds everything that the ring held. */
static int
start_log(struct ag_wal *wal, const struct ag_ring *ring,
          struct ag_wal_recovery *recovery, struct ag_error *err)
{
    const char *archive = wal->archive[0] != '\0' ? wal->archive : NULL;
    int status =
        ag_log_start(&wal->log, wal->io, wal->path, archive, wal->options.segment_bytes,
                     !wal->options.buffered, recovery, err);
    if (status != AG_OK) {
        return status;
    }
    if (ring->header != NULL) {
        struct ag_ring_view view = ag_ring_look(ring);
        struct ag_wal_replay replay;
        status = ag_wal_replay_ring(&wal->log, &view, recovery->accepted, &replay, err);
        if (status != AG_OK) {
            ag_log_stop(&wal->log);
            return status;
        }
        wal->replayed = replay.replayed;
        ag_wal_note(recovery, "ring: %" PRIu64 " records replayed%s", replay.replayed,
                    replay.cut ? ", behind them something that is no whole record"
                               : "");
    }
    (void)pthread_mutex_lock(&wal->meta);
    wal->log_open = true;
    (void)pthread_mutex_unlock(&wal->meta);
    return AG_OK;
}

static const char *
verdict_of(const struct ag_wal_recovery *recovery)
{
    if (recovery->fresh) {
        return "new";
    }
    if (recovery->accepted) {
        return "accepted";
    }
    return recovery->torn ? "torn" : recovery->clean_close ? "clean" : "whole";
}

/* Sets every counter to what the log now holds. */
static void
adopt_log(struct ag_wal *wal)
{
    uint64_t last = ag_log_last_seq(&wal->log);
    wal->next_seq = last + 1;
    wal->taken = wal->ring.tail;
    ag_ring_free(&wal->ring, wal->ring.tail, last);
    ag_wal_mark_position(wal, last + 1, wal->ring.tail);
    atomic_store(&wal->published_seq, last);
    atomic_store(&wal->durable_seq, last);
    atomic_store(&wal->want_seq, last);
    (void)pthread_mutex_lock(&wal->lock);
    wal->stats.replayed = wal->replayed;
    wal->stats.ring_lost = wal->ring_lost;
    wal->stats.recovered_torn = wal->recovery.torn;
    wal->stats.verdict = verdict_of(&wal->recovery);
    (void)pthread_mutex_unlock(&wal->lock);
    ag_wal_look_at_log(wal);
    size_t limit = ag_wal_payload_limit(wal->log.segment_bytes);
    size_t in_ring = wal->ring.capacity - AG_RING_ENTRY;
    wal->payload_max = limit < in_ring ? limit : in_ring;
}

static int
open_directory(struct ag_wal *wal, struct ag_error *err)
{
    struct ag_io_stat st;
    int status = ag_io_make_durable_dirs(wal->io, wal->path, 0700, err);
    if (status == AG_OK) {
        int result = wal->io->stat(wal->io->ctx, wal->path, &st);
        if (result < 0) {
            status = ag_fail_sys(err, -result, wal->path, "stat");
        } else if ((st.mode & 0170000u) == 0100000u) {
            status = ag_fail_sys(err, ENOTDIR, wal->path, "open the directory");
        }
    }
    return status;
}

/* What to do about a failure of the system, for those that do not say it themselves. */
static void
advise(struct ag_error *err)
{
    if (err == NULL || err->advice[0] != '\0') {
        return;
    }
    switch (err->sys_errno) {
    case 0:
        break;
    case ENOENT:
        ag_error_advice(err, "Make the directory that is to hold it");
        break;
    case EACCES:
    case EPERM:
    case EROFS:
    case ENOTDIR:
    case EEXIST:
    case ELOOP:
        ag_error_advice(err, "The log needs a directory of its own that this user may "
                             "write");
        break;
    case ENOSPC:
    case EDQUOT:
        ag_error_advice(err, "Free some space, or give the log another disk: it takes "
                             "two or three segments beside what it keeps");
        break;
    case EMFILE:
    case ENFILE:
        ag_error_advice(err, "Raise the number of open files (ulimit -n)");
        break;
    case EFBIG:
        ag_error_advice(err, "Raise the size of files (ulimit -f), or choose smaller "
                             "segment_bytes");
        break;
    default:
        ag_error_advice(err, "Nothing was lost. See what the system's log says of this "
                             "disk, mend it, and open the log again");
        break;
    }
}

static void
release(struct ag_wal *wal)
{
    ag_ring_unlock(wal->io, &wal->ring);
    ag_ring_unmap(wal->io, &wal->ring);
    if (wal->log_open) {
        ag_log_stop(&wal->log);
    }
    if (wal->event_fd >= 0) {
        (void)close(wal->event_fd);
    }
    if (wal->lock_fd >= 0) {
        (void)wal->io->unlock(wal->io->ctx, wal->lock_fd);
        (void)wal->io->close(wal->io->ctx, wal->lock_fd);
    }
    if (wal->alive != NULL) {
        (void)munmap(wal->alive, AG_WAL_BLOCK);
    }
    ag_wal_recovery_free(&wal->recovery);
    (void)pthread_mutex_destroy(&wal->lock);
    (void)pthread_mutex_destroy(&wal->meta);
    (void)pthread_cond_destroy(&wal->changed);
    ag_wal_buffer_free((void *)wal);
}

/* The ring of this run, with its header, behind a log that has been started. */
static int
take_ring(struct ag_wal *wal, struct ag_ring_making *making, struct ag_error *err)
{
    uint8_t boot_id[AG_RING_BOOT];
    size_t bytes = wal->options.ring_bytes;
    if (!making->begun) {
        ag_ring_make_start(making, wal->io, wal->ring_path, bytes);
    }
    int status = ag_ring_make_finish(making, &wal->ring, err);
    if (status != AG_OK) {
        return status;
    }
    if (wal->ring.capacity < bytes) {
        ag_wal_note(&wal->recovery,
                    "warning: ring of %zu bytes instead of %zu: no more room in shared "
                    "memory",
                    wal->ring.capacity, bytes);
    }
    ag_ring_boot_id(boot_id);
    ag_ring_begin(&wal->ring, wal->log.wal_id, wal->log.epoch, boot_id);
    return AG_OK;
}

/* Shows the caller what the log will hold, the ring included, before it is started. */
static int
ask_judge(const struct ag_wal *wal, const struct ag_ring *old, struct ag_error *err)
{
    const struct ag_wal_log_file *log = &wal->recovery.log;
    struct ag_wal_found found = {
        .last_seq = wal->recovery.last_seq,
        .low_water = log->low_water,
        .blob = log->blob,
        .blob_len = log->blob_len,
    };
    if (wal->options.judge == NULL) {
        return AG_OK;
    }
    if (old->header != NULL) {
        struct ag_ring_view view = ag_ring_look(old);
        int status = ag_wal_replay_end(&view, log->segment_bytes, found.last_seq,
                                       &found.last_seq, err);
        if (status != AG_OK) {
            return status;
        }
    }
    return wal->options.judge(wal->options.judge_ctx, &found, err);
}

static int
open_log_and_ring(struct ag_wal *wal, struct rings *rings, struct ag_error *err)
{
    const struct ag_wal_recover_options order = {.accept_at = wal->options.accept_at,
                                                 .accept_seq = wal->options.accept_seq};
    int status = look_for_ring(wal, rings, err);
    if (status == AG_OK) {
        status = ag_wal_recover(wal->io, wal->path, &order, &wal->recovery, err);
    }
    if (status == AG_OK) {
        ag_wal_judge_fs(wal->io, wal->path, &wal->recovery);
        status = judge_old_ring(wal, rings, err);
    }
    if (status == AG_OK) {
        status = ask_judge(wal, &rings->old, err);
    }
    if (status == AG_OK) {
        status = start_log(wal, &rings->old, &wal->recovery, err);
    }
    /* From here on everything that the old ring held is on disk. */
    ag_ring_unmap(wal->io, &rings->old);
    if (status == AG_OK) {
        status = take_ring(wal, &rings->making, err);
    }
    ag_ring_make_undo(&rings->making);
    return status;
}

static int
open_all(struct ag_wal *wal, struct ag_error *err)
{
    int status = make_guard(wal, err);
    if (status == AG_OK) {
        status = open_directory(wal, err);
    }
    if (status == AG_OK) {
        status = take_lock(wal, err);
    }
    if (status == AG_OK) {
        struct rings rings = {.old = {.fd = -1}};
        status = open_log_and_ring(wal, &rings, err);
    }
    if (status == AG_OK) {
        wal->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (wal->event_fd < 0) {
            status = ag_fail_sys(err, errno, wal->path, "eventfd");
        }
    }
    if (status == AG_OK) {
        adopt_log(wal);
        status = ag_wal_threads_start(wal, err);
    }
    return status;
}

int
ag_wal_open(const char *path, const struct ag_wal_options *options, struct ag_wal **out,
            struct ag_error *err)
{
    struct ag_wal_options filled = *options;
    filled.io = filled.io != NULL ? filled.io : ag_io_posix();
    filled.segment_bytes =
        filled.segment_bytes != 0 ? filled.segment_bytes : DEFAULT_SEGMENT;
    filled.ring_bytes = filled.ring_bytes != 0 ? filled.ring_bytes : DEFAULT_RING;
    int status = check_options(path, &filled, err);
    if (status != AG_OK) {
        return status;
    }
    /* Its fields lie on cache lines of their own, so it is aligned. */
    struct ag_wal *wal = (void *)ag_wal_buffer(sizeof(*wal));
    if (wal == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for the log");
    }
    memset(wal, 0, sizeof(*wal));
    wal->io = filled.io;
    wal->options = filled;
    wal->lock_fd = wal->event_fd = wal->spare_fd = -1;
    (void)snprintf(wal->path, sizeof(wal->path), "%s", path);
    if (filled.archive != NULL) {
        (void)snprintf(wal->archive, sizeof(wal->archive), "%s", filled.archive);
    }
    pthread_condattr_t attributes;
    (void)pthread_condattr_init(&attributes);
    (void)pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    (void)pthread_mutex_init(&wal->lock, NULL);
    (void)pthread_mutex_init(&wal->meta, NULL);
    (void)pthread_cond_init(&wal->changed, &attributes);
    (void)pthread_condattr_destroy(&attributes);
    status = open_all(wal, err);
    if (status != AG_OK) {
        advise(err);
        release(wal);
        return status;
    }
    *out = wal;
    return AG_OK;
}

static void
stop_log(struct ag_wal *wal)
{
    (void)pthread_mutex_lock(&wal->meta);
    if (wal->log_open) {
        wal->log_open = false;
        ag_log_stop(&wal->log);
    }
    (void)pthread_mutex_unlock(&wal->meta);
}

int
ag_wal_reopen(struct ag_wal *wal, struct ag_error *err)
{
    if (ag_wal_forked(wal)) {
        return ag_fail(err, AG_EFORKED, "the log belongs to the parent process");
    }
    uint32_t state = atomic_load(&wal->state);
    if (state != AG_WAL_POISONED) {
        return state == AG_WAL_OPEN ? AG_OK : ag_fail(err, AG_ECLOSED, "closed");
    }
    (void)ag_wal_threads_stop(wal, UINT64_MAX);
    stop_log(wal);
    const struct ag_wal_recover_options no_order = {0};
    struct ag_wal_recovery recovery;
    int status = ag_wal_recover(wal->io, wal->path, &no_order, &recovery, err);
    if (status == AG_OK) {
        status = start_log(wal, &wal->ring, &recovery, err);
    }
    /* Others may be reading the notes of the one before. */
    (void)pthread_mutex_lock(&wal->lock);
    struct ag_wal_recovery before = wal->recovery;
    wal->recovery = recovery;
    (void)pthread_mutex_unlock(&wal->lock);
    ag_wal_recovery_free(&before);
    if (status == AG_OK && ag_log_last_seq(&wal->log) + 1 != wal->next_seq) {
        status = ag_fail(err, AG_ECORRUPT,
                         "after reopening the log ends at %" PRIu64 ", not at %" PRIu64,
                         ag_log_last_seq(&wal->log), wal->next_seq - 1);
        stop_log(wal);
    }
    if (status != AG_OK) {
        advise(err);
        return status;
    }
    adopt_log(wal);
    atomic_store(&wal->state, AG_WAL_OPEN);
    status = ag_wal_threads_start(wal, err);
    if (status != AG_OK) {
        atomic_store(&wal->state, AG_WAL_POISONED);
        stop_log(wal);
        return status;
    }
    ag_wal_signal(wal);
    if (wal->options.notify != NULL) {
        wal->options.notify(wal->options.notify_ctx, ag_wal_durable(wal), AG_OK);
    }
    return AG_OK;
}

int
ag_wal_stop(struct ag_wal *wal, uint64_t timeout_ns, struct ag_error *err)
{
    if (ag_wal_forked(wal)) {
        return ag_fail(err, AG_EFORKED, "the log belongs to the parent process");
    }
    uint64_t now = ag_clock_ns();
    uint64_t until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    uint32_t state = AG_WAL_OPEN;
    (void)atomic_compare_exchange_strong(&wal->state, &state, AG_WAL_CLOSED);
    if (ag_wal_threads_stop(wal, until) != AG_OK) {
        return ag_fail(
            err, AG_ETIMEDOUT,
            "the disk has not taken everything yet; the rest is in the ring");
    }
    ag_wal_signal(wal);
    return ag_wal_failure(wal, err);
}

int
ag_wal_close(struct ag_wal *wal, uint64_t timeout_ns, struct ag_error *err)
{
    if (ag_wal_forked(wal)) {
        ag_wal_abandon(wal);
        return AG_OK;
    }
    int status = ag_wal_stop(wal, timeout_ns, err);
    if (status == AG_ETIMEDOUT) {
        return status;
    }
    if (status == AG_OK && wal->closed_cleanly &&
        ag_ring_room(&wal->ring) == wal->ring.capacity) {
        (void)wal->io->unlink(wal->io->ctx, wal->ring_path);
    }
    release(wal);
    return status;
}

void
ag_wal_abandon(struct ag_wal *wal)
{
    /* The descriptors are this process's own copies; locks belong to the parent. */
    ag_ring_unmap(wal->io, &wal->ring);
    (void)close(wal->event_fd);
    (void)wal->io->close(wal->io->ctx, wal->lock_fd);
    if (wal->log_open && wal->log.fd >= 0) {
        (void)wal->io->close(wal->io->ctx, wal->log.fd);
    }
    (void)munmap(wal->alive, AG_WAL_BLOCK);
    ag_wal_buffer_free((void *)wal);
}
