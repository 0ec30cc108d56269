// links: ledger_rig memfs scratch
// only: asan
/* Loss of power at every call of a ledger that changes a file: what was said to be
 * durable is there, what was signed still holds, and the ledger opens.
 *
 * A few runs on a disk in memory (memfs.h) are recorded: first start, publishing,
 * reopening with a log to replay, a low-water mark at a close. Then, for each
 * operation, what a loss of power may leave is opened and checked: only what was
 * synced, all that was written, and random parts of what was not synced. The ring is
 * gone.
 *
 * With AEGIS_CRASH_SECONDS the runs are longer and more parts are tried; one of the
 * states is where the next runs begin, so that crashes pile up; and so on. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/clock.h"
#include "check.h"
#include "ledger_rig.h"
#include "log/ledger_state.h"
#include "memfs.h"
#include "scratch.h"

#define GENERATIONS 6

/* What the world knew of the ledger. */
struct told {
    uint64_t durable;
    uint64_t signed_size; /* of the checkpoint that anybody could read */
    uint8_t root[AG_HASH_SIZE];
};

/* A disk that a loss of power has left. */
struct state {
    struct memfs disk;
    struct told told;
};

static struct memfs live;
static struct memfs_trace trace;
static struct ag_signer *signer; /* owned */
static uint64_t rng, states;
static struct state base;   /* where the runs begin */
static struct state chosen; /* at random among those after it */
static uint64_t choices;

static struct ag_ledger *
open_on(struct memfs *disk, const char *what)
{
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    struct ag_ledger_options options = ledger_options(dir, &disk->table);
    options.segment_bytes = 16u << 10;
    int status = ag_ledger_open(&options, &ledger, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s %s %s", what, ag_status_name(status), err.what, err.file);
    }
    return ledger;
}

/* Records runs that begin with the base, of `first` and then of 30 new entries, each
 * with a checkpoint on the way. */
static void
record_runs(int runs, uint64_t first)
{
    uint64_t count = first;
    struct ag_error err;
    char path[512], origin[AG_ORIGIN_MAX + 1] = "";
    memfs_copy(&live, &base.disk);
    live.trace = &trace;
    memfs_watch(&live, NULL, base.told.durable);
    for (int run = 0; run < runs; run++) {
        memfs_drop_outside();
        struct ag_ledger *ledger = open_on(&live, "a run");
        uint64_t size = ag_ledger_size(ledger), half = size + (count + 1) / 2;
        memfs_watch(&live, &ledger->stage_size[AG_DURABLE], size);
        fill(ledger, size, half);
        wait_published(ledger, half);
        fill(ledger, half, size + count);
        (void)snprintf(origin, sizeof(origin), "%s", ag_ledger_origin(ledger));
        close_ledger(ledger);
        memfs_watch(&live, NULL, size + count);
        count = 30;
    }
    /* The key, for reading what was signed. */
    ASSERT_EQ(ag_signer_open(&live.table, scratch_path(path, dir, "private/w0/log.key"),
                             origin, 0, &signer, &err),
              AG_OK);
}

/* An operation may have made another checkpoint public. */
static void
follow_checkpoint(const struct memfs_op *op, struct told *told)
{
    char path[512];
    if (op->kind == MEMFS_MOVE &&
        strcmp(op->to, scratch_path(path, dir, "ledger/w0/checkpoint")) == 0) {
        const struct memfs_inode *text = &live.inodes[op->inode];
        struct ag_error err;
        ASSERT_EQ(ag_checkpoint_open(signer, (const char *)text->data, text->size,
                                     &told->signed_size, told->root, &err),
                  AG_OK);
    }
}

static void
check_ids_and_intents(struct ag_ledger *ledger, uint64_t size)
{
    struct ag_error err;
    uint64_t *index = NULL;
    size_t count = 0;
    ASSERT_EQ(ag_ledger_open_intents(ledger, &index, &count, &err), AG_OK);
    ASSERT_EQ_U(count, (size + 8) / 9);
    ag_free(index);
    for (uint64_t i = 0; i < size; i += 50) {
        uint8_t id[AG_UUID_SIZE];
        struct ag_found found = {0};
        id_of(i, id);
        ASSERT_EQ(ag_ledger_find(ledger, id, &found, &err), AG_OK);
        ASSERT_EQ_U(found.count, 1);
        ASSERT_EQ_U(found.index[0], i);
        ag_free(found.index);
    }
}

/* Opens one state of the disk, which is used up. */
static void
check_state(struct memfs *disk, size_t at, const char *what, const struct told *told)
{
    struct ag_error err;
    char where[80];
    states++;
    (void)snprintf(where, sizeof(where), "call %zu, %s", at, what);
    memfs_prune(disk);
    memfs_drop_outside();
    if (check_random(&rng) % ++choices == 0) {
        memfs_free(&chosen.disk);
        memfs_copy(&chosen.disk, disk);
        chosen.told = *told;
    }
    struct ag_ledger *ledger = open_on(disk, where);
    uint64_t size = ag_ledger_size(ledger);
    if (size < told->durable || size < told->signed_size) {
        CHECK_FAIL("%s: %" PRIu64 " entries, but %" PRIu64 " were durable, %" PRIu64
                   " signed",
                   where, size, told->durable, told->signed_size);
    }
    check_each(ledger, size, 1 + at % 7);
    if (told->signed_size > 0) {
        uint8_t root[AG_HASH_SIZE];
        ASSERT_EQ(ag_ledger_root(ledger, told->signed_size, root, &err), AG_OK);
        ASSERT_EQ_MEM(root, told->root, AG_HASH_SIZE);
    }
    check_ids_and_intents(ledger, size);
    close_ledger(ledger);
    memfs_free(disk);
}

/* What becomes of the pending names and sectors: each is there with so many eighths of
 * probability. The first three are certain. */
struct fate {
    const char *what;
    uint64_t names, sectors;
};

static const struct fate fates[] = {{"only what was synced", 0, 0},
                                    {"all that was written", 8, 8},
                                    {"names without content", 8, 0}};
#define FATES (sizeof(fates) / sizeof(fates[0]))

static void
add_pending(struct memfs *disk, const struct memfs_walk *walk, const struct fate *fate)
{
    for (size_t i = 0; i < walk->name_count; i++) {
        if (check_random(&rng) % 8 < fate->names) {
            memfs_apply(disk, &trace.ops[walk->names[i]]);
        }
    }
    for (size_t i = 0; i < walk->write_count; i++) {
        const struct memfs_op *op = &trace.ops[walk->writes[i]];
        for (size_t from = 0; from < op->n; from += MEMFS_SECTOR) {
            size_t left = op->n - from, n = left < MEMFS_SECTOR ? left : MEMFS_SECTOR;
            if (check_random(&rng) % 8 < fate->sectors) {
                memfs_put(disk, op->inode, op->offset + from, op->data + from, n);
            }
        }
    }
}

/* Every crash along the recorded runs, with so many random fates each. */
static void
crash_everywhere(size_t more)
{
    static struct memfs_walk walk;
    static struct memfs disk;
    struct told told = base.told;
    choices = 0;
    memfs_walk_start(&walk, &base.disk);
    for (size_t at = 0; at < trace.count; at++) {
        memfs_walk_step(&walk, &trace, at);
        follow_checkpoint(&trace.ops[at], &told);
        told.durable = at + 1 < trace.count ? trace.ops[at + 1].acked : told.durable;
        for (size_t i = 0; i < FATES + more; i++) {
            const struct fate chance = {"a part of what was written",
                                        1 + check_random(&rng) % 8,
                                        1 + check_random(&rng) % 7};
            const struct fate *fate = i < FATES ? &fates[i] : &chance;
            memfs_share(&disk, &walk.durable);
            add_pending(&disk, &walk, fate);
            check_state(&disk, at, fate->what, &told);
        }
    }
    memfs_walk_end(&walk);
}

static void
forget_runs(void)
{
    memfs_free(&live);
    memfs_trace_free(&trace);
    ag_signer_free(signer);
    signer = NULL;
}

static void
start_with_nothing(void)
{
    memfs_free(&base.disk);
    memset(&base.told, 0, sizeof(base.told));
    memfs_init_at(&base.disk, dir);
}

static void
at_every_call(void)
{
    start_with_nothing();
    record_runs(3, 260);
    crash_everywhere(1);
    fprintf(stderr, "    %zu calls, %" PRIu64 " states\n", trace.count, states);
    ASSERT_LT_U(100, trace.count);
    forget_runs();
}

static void
after_one_another(void)
{
    const char *seconds = getenv("AEGIS_CRASH_SECONDS");
    uint64_t until =
        ag_clock_ns() + (seconds != NULL ? strtoull(seconds, NULL, 0) : 0) * SECOND;
    for (uint64_t number = 0; ag_clock_ns() < until; number++) {
        if (number % GENERATIONS == 0) {
            start_with_nothing();
        }
        record_runs(1 + (int)(check_random(&rng) % 3), 1 + check_random(&rng) % 300);
        crash_everywhere(3);
        forget_runs();
        memfs_free(&base.disk);
        memfs_copy(&base.disk, &chosen.disk);
        base.told = chosen.told;
    }
    fprintf(stderr, "    %" PRIu64 " states\n", states);
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make(dir);
    make_shadow(dir);
    rng = check_seed((uint64_t)getpid() ^ ag_clock_ns());
    RUN(at_every_call);
    RUN(after_one_another);
    memfs_free(&base.disk);
    memfs_free(&chosen.disk);
    scratch_remove(dir);
    return 0;
}
