/* The helper thread: keeps one zero-written segment ready behind the active one, maps
 * the ring's pages, and has an eye on the free space of the disk.
 *
 * Its zeros go to the disk that W waits for. A batch of 64 KiB is written and synced in
 * 0.11 ms alone, in 0.74 ms beside a piece of 1 MiB of zeros (median; virtio, ext4), so
 * the pieces are small, and while W writes, each one waits until W has used its share
 * of the active segment. The spare is whole when that is full to four fifths. */
#include <sys/prctl.h>

#include "wal/futex.h"
#include "wal/state.h"

/* How long the helper waits before it tries again to make a segment. */
#define RETRY_NS (200u * 1000u * 1000u)
/* How old what is known of the disk's free space may become. */
#define SPACE_EVERY_NS (10u * UINT64_C(1000000000))
/* After so long a piece goes while W sleeps; if W wrote nothing in that time, there is
 * nobody to disturb and the others follow without pauses. */
#define PIECE_NS (2u * 1000u * 1000u)
#define POPULATE_PAUSE_NS (200u * 1000u)

void
ag_wal_use_segment(struct ag_wal *wal, uint64_t at)
{
    /* Both sides store before they load: one of the two sees the other. */
    atomic_store(&wal->used, at);
    if (at >= atomic_load(&wal->piece_at)) {
        atomic_store(&wal->piece_at, UINT64_MAX);
        atomic_fetch_add(&wal->pieces, 1);
        ag_futex_wake(&wal->pieces);
    }
}

void
ag_wal_hurry_spare(struct ag_wal *wal)
{
    ag_wal_use_segment(wal, UINT64_MAX);
}

struct pace {
    struct ag_wal *wal;
    uint64_t idle_at; /* where W was when it wrote nothing for PIECE_NS */
};

static bool
let_piece_go(void *ctx, uint32_t done)
{
    struct pace *pace = ctx;
    struct ag_wal *wal = pace->wal;
    const uint64_t share = (uint64_t)done / 4 * 3 + wal->log.segment_bytes / 16;
    const uint64_t before = atomic_load(&wal->used);
    uint64_t until = ag_clock_ns() + PIECE_NS;
    while (!atomic_load(&wal->helper_stop)) {
        uint32_t seen = atomic_load(&wal->pieces);
        atomic_store(&wal->piece_at, share);
        uint64_t used = atomic_load(&wal->used);
        if (used >= share || used == pace->idle_at) {
            break;
        }
        uint64_t now = ag_clock_ns();
        if (now >= until) {
            if (atomic_load(&wal->sleep) != AG_AWAKE) {
                pace->idle_at = used == before ? used : 0;
                break;
            }
            until = now + PIECE_NS;
        }
        ag_futex_wait(&wal->pieces, seen, until);
    }
    atomic_store(&wal->piece_at, UINT64_MAX);
    return !atomic_load(&wal->helper_stop);
}

static void
wait_lock_held(struct ag_wal *wal, uint64_t ns)
{
    struct timespec at = ag_clock_at(ag_clock_ns() + ns);
    (void)pthread_cond_timedwait(&wal->changed, &wal->lock, &at);
}

/* Asks how much space there is, without the lock meanwhile. */
static void
look_at_space_lock_held(struct ag_wal *wal)
{
    struct ag_io_fs fs;
    (void)pthread_mutex_unlock(&wal->lock);
    int result = wal->io->statfs(wal->io->ctx, wal->path, &fs);
    (void)pthread_mutex_lock(&wal->lock);
    if (result == 0) {
        wal->stats.disk_free = fs.free_bytes;
    }
}

static void
make_spare_lock_held(struct ag_wal *wal)
{
    struct ag_error err;
    struct pace state = {.wal = wal};
    const struct ag_log_pace pace = {.ctx = &state, .next = let_piece_go};
    (void)pthread_mutex_unlock(&wal->lock);
    /* The number is stable: W does not rotate before it has this segment. */
    bool direct = wal->log.direct;
    int fd = -1;
    int status = ag_log_make_segment(wal->io, wal->path, wal->log.segment_no + 1,
                                     wal->log.segment_bytes, &pace, &direct, &fd, &err);
    (void)pthread_mutex_lock(&wal->lock);
    wal->spare_failed = status != AG_OK && status != AG_ECLOSED;
    wal->stats.no_space = wal->spare_failed;
    if (status == AG_OK) {
        wal->spare_fd = fd;
        wal->spare_wanted = false;
        (void)pthread_cond_broadcast(&wal->changed);
    } else if (status != AG_ECLOSED) {
        if (atomic_load(&wal->state) == AG_WAL_OPEN) {
            wal->failure = err;
        }
        (void)pthread_cond_broadcast(&wal->changed);
        wait_lock_held(wal, RETRY_NS);
    }
}

/* Some more pages of the ring, and a pause: an open that went on beside it, and had to
 * wait for the map of the process, took 3 ms longer without. */
static size_t
populate_lock_held(struct ag_wal *wal, size_t at)
{
    (void)pthread_mutex_unlock(&wal->lock);
    at = ag_ring_populate(&wal->ring, at);
    (void)pthread_mutex_lock(&wal->lock);
    wait_lock_held(wal, POPULATE_PAUSE_NS);
    return at;
}

void *
ag_wal_helper(void *arg)
{
    struct ag_wal *wal = arg;
    uint64_t look_at = 0;
    size_t populated = 0;
    (void)prctl(PR_SET_NAME, "aegis-wal-prep", 0, 0, 0);
    (void)pthread_mutex_lock(&wal->lock);
    while (!atomic_load(&wal->helper_stop)) {
        uint64_t now = ag_clock_ns();
        if (now >= look_at) {
            look_at_space_lock_held(wal);
            look_at = now + SPACE_EVERY_NS;
        } else if (populated != AG_RING_POPULATED &&
                   atomic_load(&wal->used) != UINT64_MAX) {
            /* Before the spare, unless W waits for that: a first touch costs a producer
             * more than an append. */
            populated = populate_lock_held(wal, populated);
        } else if (!wal->spare_wanted) {
            wait_lock_held(wal, look_at - now);
        } else {
            look_at = 0; /* there is less, or there was too little */
            make_spare_lock_held(wal);
        }
    }
    wal->helper_running = false;
    (void)pthread_mutex_unlock(&wal->lock);
    return NULL;
}
