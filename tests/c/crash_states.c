/* The states that a crash may leave: at each point of a trace, every subset of what was
 * not synced. */
#include "crash_states.h"
#include "base/clock.h"
#include "check.h"

#define MAX_PIECES 4096

struct piece {
    int inode;
    uint64_t offset;
    size_t n;
    const uint8_t *data; /* borrowed from the trace */
};

static bool
is_temporary(const char *path)
{
    size_t n = strlen(path);
    return n > 4 && strcmp(path + n - 4, ".tmp") == 0;
}

/* Whether any name that recovery looks at may lead to the inode. */
static bool
matters(const struct memfs *durable, const struct memfs_op *ops, const size_t *names,
        size_t name_count, int inode)
{
    for (int i = 0; i < durable->name_count; i++) {
        if (durable->names[i].inode == inode && !is_temporary(durable->names[i].path)) {
            return true;
        }
    }
    for (size_t i = 0; i < name_count; i++) {
        const struct memfs_op *op = &ops[names[i]];
        if (op->inode == inode && !is_temporary(op->to)) {
            return true;
        }
    }
    return false;
}

static void
build_and_check(struct scenario *s, const struct memfs *durable,
                const struct memfs_op *ops, const size_t *names, size_t name_count,
                uint64_t name_mask, const struct piece *pieces, size_t piece_count,
                const uint8_t *chosen, size_t cut, uint64_t acked)
{
    static struct memfs image;
    memfs_share(&image, durable);
    for (size_t i = 0; i < name_count; i++) {
        if (name_mask >> i & 1) {
            memfs_apply(&image, &ops[names[i]]);
        }
    }
    for (size_t i = 0; i < piece_count; i++) {
        if (chosen[i]) {
            size_t n = i + 1 == piece_count && cut != 0 ? cut : pieces[i].n;
            memfs_put(&image, pieces[i].inode, pieces[i].offset, pieces[i].data, n);
        }
    }
    check_state(s, &image, acked);
    memfs_free(&image);
}

/* Every subset of what is pending. */
static void
enumerate(struct scenario *s, const struct memfs *durable, const struct memfs_op *ops,
          const size_t *names, size_t name_count, const struct piece *pieces, size_t n,
          uint64_t acked)
{
    static uint8_t chosen[MAX_PIECES];
    uint64_t masks = name_count <= 5 ? UINT64_C(1) << name_count : 32;
    for (uint64_t k = 0; k < masks; k++) {
        uint64_t mask = name_count <= 5 ? k : check_random(&s->rng);
        size_t important = 0;
        for (size_t i = 0; i < n; i++) {
            important += matters(durable, ops, names, name_count, pieces[i].inode);
        }
#define TRY(cut)                                                                       \
    build_and_check(s, durable, ops, names, name_count, mask, pieces, n, chosen, cut,  \
                    acked)
        memset(chosen, 0, sizeof(chosen));
        if (important == 0) {
            TRY(0);
            memset(chosen, 1, n);
            TRY(0);
            continue;
        }
        if (n <= 12) {
            for (uint32_t subset = 0; subset < 1u << n; subset++) {
                for (size_t i = 0; i < n; i++) {
                    chosen[i] = subset >> i & 1;
                }
                TRY(0);
            }
        } else {
            for (size_t i = 0; i <= n; i++) {
                memset(chosen, 0, n);
                memset(chosen, 1, i);
                TRY(0);
                for (size_t j = 0; j < n; j++) {
                    chosen[j] = !chosen[j];
                }
                TRY(0);
                memset(chosen, 1, n);
                if (i < n) {
                    chosen[i] = 0;
                    TRY(0);
                }
            }
            for (int i = 0; i < 400; i++) {
                uint64_t density = check_random(&s->rng) % 7 + 1;
                for (size_t j = 0; j < n; j++) {
                    chosen[j] = check_random(&s->rng) % 8 < density;
                }
                TRY(0);
            }
        }
        /* A process that dies inside write(2) leaves any prefix. */
        for (int i = 0; i < 24; i++) {
            size_t last = check_random(&s->rng) % n;
            memset(chosen, 0, n);
            memset(chosen, 1, last + 1);
            build_and_check(s, durable, ops, names, name_count, mask, pieces, last + 1,
                            chosen, 1 + check_random(&s->rng) % pieces[last].n, acked);
        }
#undef TRY
        if (s->states >= s->limit || ag_clock_ns() > s->until_ns) {
            return;
        }
    }
}

/* The pending writes, cut into sectors; how many. */
static size_t
cut_into_sectors(const struct memfs_walk *walk, const struct memfs_trace *trace,
                 struct piece pieces[MAX_PIECES])
{
    size_t n = 0;
    for (size_t k = 0; k < walk->write_count; k++) {
        const struct memfs_op *op = &trace->ops[walk->writes[k]];
        for (size_t at = 0; at < op->n && n < MAX_PIECES; at += MEMFS_SECTOR) {
            size_t left = op->n - at;
            pieces[n].inode = op->inode;
            pieces[n].offset = op->offset + at;
            pieces[n].n = left < MEMFS_SECTOR ? left : MEMFS_SECTOR;
            pieces[n++].data = op->data + at;
        }
    }
    return n;
}

void
crash_everywhere(struct scenario *s, const struct memfs *base,
                 const struct memfs_trace *trace, uint64_t final_acked)
{
    static struct memfs_walk walk;
    static struct piece pieces[MAX_PIECES];
    memfs_walk_start(&walk, base);
    for (size_t i = 0; i <= trace->count; i++) {
        if (i > 0) {
            memfs_walk_step(&walk, trace, i - 1);
        }
        size_t n = cut_into_sectors(&walk, trace, pieces);
        uint64_t acked = i < trace->count ? trace->ops[i].acked : final_acked;
        enumerate(s, &walk.durable, trace->ops, walk.names, walk.name_count, pieces, n,
                  acked);
        if (s->states >= s->limit || ag_clock_ns() > s->until_ns) {
            break;
        }
    }
    memfs_walk_end(&walk);
}
