#include "limit/table.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "limit/slot.h"

#define BUCKET 8u
#define SLOTS_MAX (UINT64_C(1) << 36)
#define LOCKS 64u
#define LOCKS_BYTES 4096u
_Static_assert(LOCKS * sizeof(pthread_mutex_t) <= LOCKS_BYTES,
               "mutexes fit their page");

/* A claim lapses one to three times 2^24 ns after it was made: 17 to 50 ms. */
#define CLAIM_BITS 24
/* Looks at somebody's claim before it is taken for a dead one's: about a microsecond,
 * twenty times what an insert takes. */
#define CLAIM_PATIENCE 64

enum counter { COUNT_FULL, COUNT_DEBTS_LOST, COUNT_NONCE };

struct ag_table {
    struct ag_slot *slots; /* in the area */
    uint64_t buckets;
    pthread_mutex_t *locks; /* in the area; NULL with the instruction */
    struct ag_area area;
    const struct ag_io *io;
    uint64_t (*clock)(void);
};

/* The two buckets of a tag, in the order in which everybody looks. */
struct home {
    struct ag_slot *bucket[2];
};

/* ---- opening ---- */

static uint64_t
body_of(uint64_t items, uint32_t width)
{
    (void)width;
    return items >= 2 * BUCKET && items % BUCKET == 0 && items <= SLOTS_MAX
               ? LOCKS_BYTES + items * sizeof(struct ag_slot)
               : 0;
}

static int
prepare_body(void *body, struct ag_error *err)
{
    int result = ag_slot_locks_init(body, LOCKS);
    return result != 0 ? ag_fail_sys(err, result, "", "making the mutexes of a table")
                       : AG_OK;
}

static void
rebase_body(const struct ag_area_header *header, void *body, int64_t shift)
{
    struct ag_slot *slots = (void *)((uint8_t *)body + LOCKS_BYTES);
    for (uint64_t i = 0; i < header->items; i++) {
        struct ag_pair pair = ag_slot_load(&slots[i]);
        uint64_t moved = pair.tat + (uint64_t)shift;
        bool past = shift < 0 ? moved > pair.tat : false;
        past = past || (pair.tag & 1) != 0 || pair.tat == 0;
        atomic_store_explicit(&slots[i].tat, past ? 0 : moved, memory_order_relaxed);
        atomic_store_explicit(&slots[i].tag, past ? 0 : pair.tag, memory_order_relaxed);
    }
}

int
ag_table_open(const struct ag_table_options *options, struct ag_table **table,
              struct ag_error *err)
{
    enum ag_sync sync = options->sync;
    struct ag_moment now;
    if (options->slots > SLOTS_MAX) {
        return ag_fail(err, AG_EINVAL,
                       "slots must be at most %" PRIu64 ", not %" PRIu64, SLOTS_MAX,
                       options->slots);
    }
    if (sync == AG_SYNC_CAS && !ag_slot_cas_works()) {
        return ag_fail(err, AG_EINVAL, "this CPU has no 128-bit compare-and-swap");
    }
    if (sync == AG_SYNC_AUTO) {
        sync = ag_slot_cas_works() ? AG_SYNC_CAS : AG_SYNC_MUTEX;
    }
    uint64_t slots = (options->slots + BUCKET - 1) / BUCKET * BUCKET;
    const struct ag_area_spec spec = {
        .kind = AG_AREA_LIMITS,
        .sync = sync,
        .items = slots < 2 * BUCKET ? 2 * BUCKET : slots,
        .body = body_of,
        .prepare = prepare_body,
        .rebase = rebase_body,
    };
    if (options->now != NULL) {
        now = *options->now;
    } else {
        ag_moment_now(&now);
    }
    struct ag_table *t = ag_calloc(1, sizeof(*t));
    if (t == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for a limiter");
    }
    t->io = options->io != NULL ? options->io : ag_io_posix();
    t->clock = options->clock != NULL ? options->clock : ag_boottime_ns;
    int status = ag_area_open(t->io, options->path, &spec, &now, &t->area, err);
    if (status != AG_OK) {
        ag_free(t);
        return status;
    }
    t->slots = (void *)(t->area.body + LOCKS_BYTES);
    t->buckets = t->area.header->items / BUCKET;
    t->locks = sync == AG_SYNC_MUTEX ? (void *)t->area.body : NULL;
    *table = t;
    return AG_OK;
}

void
ag_table_close(struct ag_table *table)
{
    if (table != NULL) {
        ag_area_close(table->io, &table->area);
        ag_free(table);
    }
}

/* ---- slots ---- */

static inline bool
swap(struct ag_table *t, struct ag_slot *slot, struct ag_pair seen,
     struct ag_pair wanted)
{
    AG_STEP();
    if (__builtin_expect(t->locks == NULL, 1)) {
        return ag_slot_cas16(slot, seen, wanted);
    }
    size_t stripe = (size_t)(slot - t->slots) / BUCKET % LOCKS;
    return ag_slot_cas_locked(&t->locks[stripe], slot, seen, wanted);
}

static inline bool
clear(struct ag_table *t, struct ag_slot *slot, struct ag_pair seen)
{
    return swap(t, slot, seen, (struct ag_pair){0, 0});
}

static inline struct home
home_of(const struct ag_table *t, uint64_t tag)
{
    uint64_t second = tag * UINT64_C(0x9e3779b97f4a7c15);
    second ^= second >> 32;
    second *= UINT64_C(0xd6e8feb86659fd93);
    uint64_t a = (uint64_t)((ag_u128)tag * t->buckets >> 64);
    uint64_t b = (uint64_t)((ag_u128)second * t->buckets >> 64);
    if (a == b) {
        b = b + 1 < t->buckets ? b + 1 : 0;
    }
    return (struct home){{&t->slots[a * BUCKET], &t->slots[b * BUCKET]}};
}

void
ag_table_prefetch(const struct ag_table *table, uint64_t tag)
{
    struct home home = home_of(table, tag);
    __builtin_prefetch(home.bucket[0], 1);
    __builtin_prefetch(home.bucket[0] + BUCKET / 2, 1);
    __builtin_prefetch(home.bucket[1], 1);
    __builtin_prefetch(home.bucket[1] + BUCKET / 2, 1);
}

static inline void
relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* The first slot with the tag or a claim of it, and what it held; NULL when there was
 * none. A tag has at most one slot besides claims, and both together never last. */
static inline struct ag_slot *
find(const struct home *home, uint64_t tag, struct ag_pair *seen)
{
    for (unsigned b = 0; b < 2; b++) {
        struct ag_slot *bucket = home->bucket[b];
        for (unsigned i = 0; i < BUCKET; i++) {
            AG_STEP();
            uint64_t found = atomic_load_explicit(&bucket[i].tag, memory_order_acquire);
            if ((found ^ tag) > 1) {
                continue;
            }
            seen->tag = found;
            AG_STEP();
            seen->tat = atomic_load_explicit(&bucket[i].tat, memory_order_acquire);
            AG_STEP();
            if (atomic_load_explicit(&bucket[i].tag, memory_order_acquire) == found) {
                return &bucket[i];
            }
            i--; /* changed hands between the two halves: look again */
        }
    }
    return NULL;
}

/* Somebody inserts this key: waits for it a little, else removes the claim. */
static void
pass_claim(struct ag_table *t, struct ag_slot *slot, struct ag_pair claim)
{
    for (int i = 0; i < CLAIM_PATIENCE; i++) {
        relax();
        struct ag_pair seen = ag_slot_load(slot);
        if (seen.tag != claim.tag || seen.tat != claim.tat) {
            return;
        }
    }
    (void)clear(t, slot, claim);
}

/* The emptier bucket's first free slot; NULL when all 16 are live, and then *soonest is
 * the earliest TAT among them. */
static struct ag_slot *
find_free(const struct home *home, uint64_t now, struct ag_pair *seen,
          uint64_t *soonest)
{
    struct ag_slot *first[2] = {NULL, NULL};
    struct ag_pair was[2] = {{0, 0}, {0, 0}};
    unsigned room[2] = {0, 0};
    *soonest = UINT64_MAX;
    for (unsigned b = 0; b < 2; b++) {
        for (unsigned i = 0; i < BUCKET; i++) {
            struct ag_slot *slot = &home->bucket[b][i];
            struct ag_pair pair = ag_slot_load(slot);
            if (pair.tat > now) {
                *soonest = pair.tat < *soonest ? pair.tat : *soonest;
                continue;
            }
            if (room[b]++ == 0) {
                first[b] = slot;
                was[b] = pair;
            }
        }
    }
    unsigned b = room[1] > room[0] ? 1 : 0;
    *seen = was[b];
    return first[b];
}

/* After the own claim is in: true when no other slot of the tag stands against it. */
static bool
claim_stands(struct ag_table *t, const struct home *home, const struct ag_slot *own,
             uint64_t tag)
{
    bool passed_own = false;
    for (unsigned b = 0; b < 2; b++) {
        for (unsigned i = 0; i < BUCKET; i++) {
            struct ag_slot *slot = &home->bucket[b][i];
            if (slot == own) {
                passed_own = true;
                continue;
            }
            for (;;) {
                struct ag_pair seen = ag_slot_load(slot);
                if ((seen.tag ^ tag) > 1) {
                    break;
                }
                if (seen.tag == tag || !passed_own) {
                    return false;
                }
                if (clear(t, slot, seen)) {
                    break;
                }
            }
        }
    }
    return true;
}

enum insert_result { INSERTED, AGAIN, NO_ROOM };

/* The time is looked at again once the claim stands: what is forgotten of the key, its
 * slot having gone to another, had drained by then, while `now` may be older than that
 * and the charge would begin to drain before it was made. */
static enum insert_result
insert(struct ag_table *t, const struct home *home, uint64_t tag, uint64_t level,
       uint64_t now, uint64_t *at, uint64_t *soonest)
{
    struct ag_pair seen;
    struct ag_slot *slot = find_free(home, now, &seen, soonest);
    if (slot == NULL) {
        return NO_ROOM;
    }
    uint64_t nonce = atomic_fetch_add_explicit(&t->area.header->counters[COUNT_NONCE],
                                               1, memory_order_relaxed);
    const uint64_t mask = (UINT64_C(1) << CLAIM_BITS) - 1;
    struct ag_pair claim = {tag | 1, ((now & ~mask) + 2 * (mask + 1)) | (nonce & mask)};
    if (!swap(t, slot, seen, claim)) {
        return AGAIN;
    }
    if (!claim_stands(t, home, slot, tag)) {
        (void)clear(t, slot, claim);
        relax();
        return AGAIN;
    }
    uint64_t later = t->clock();
    *at = later > now ? later : now;
    return swap(t, slot, claim, (struct ag_pair){tag, *at + level}) ? INSERTED : AGAIN;
}

static inline uint64_t
level_at(uint64_t tat, uint64_t now)
{
    uint64_t level = tat > now ? tat - now : 0;
    return level < AG_LEVEL_MAX ? level : AG_LEVEL_MAX;
}

static inline uint64_t
raised(uint64_t level, uint64_t increment)
{
    uint64_t sum = level + increment; /* neither is above AG_LEVEL_MAX */
    return sum < AG_LEVEL_MAX ? sum : AG_LEVEL_MAX;
}

/* ---- charges ---- */

void
ag_table_charge(struct ag_table *table, uint64_t tag, uint64_t need, uint64_t increment,
                uint64_t tolerance, uint64_t now, struct ag_charge *charge)
{
    const struct home home = home_of(table, tag);
    for (;;) {
        struct ag_pair seen;
        struct ag_slot *slot = find(&home, tag, &seen);
        if (slot != NULL && seen.tag != tag) {
            pass_claim(table, slot, seen);
            continue;
        }
        uint64_t level = slot != NULL ? level_at(seen.tat, now) : 0;
        *charge = (struct ag_charge){false, false, level, 0, now};
        if (level + need > tolerance) {
            if (slot != NULL && table->locks != NULL &&
                !swap(table, slot, seen, seen)) {
                continue; /* the two stores of a mutex's holder can be told apart */
            }
            charge->wait = level + need - tolerance;
            return;
        }
        uint64_t after = raised(level, increment);
        if (increment == 0 ||
            (slot != NULL &&
             swap(table, slot, seen, (struct ag_pair){tag, now + after}))) {
            charge->allowed = true;
            charge->level = after;
            return;
        }
        if (slot != NULL) {
            continue;
        }
        uint64_t soonest = 0;
        switch (insert(table, &home, tag, after, now, &charge->at, &soonest)) {
        case INSERTED:
            charge->allowed = true;
            charge->level = after;
            return;
        case NO_ROOM:
            atomic_fetch_add_explicit(&table->area.header->counters[COUNT_FULL], 1,
                                      memory_order_relaxed);
            charge->full = true;
            charge->wait = level_at(soonest, now);
            return;
        case AGAIN:
        default:
            break;
        }
    }
}

void
ag_table_refund(struct ag_table *table, uint64_t tag, uint64_t amount)
{
    const struct home home = home_of(table, tag);
    struct ag_pair seen;
    struct ag_slot *slot = NULL;
    while (amount > 0 && (slot = find(&home, tag, &seen)) != NULL) {
        if (seen.tag != tag) {
            pass_claim(table, slot, seen);
            continue;
        }
        uint64_t tat = seen.tat > amount ? seen.tat - amount : 0;
        if (swap(table, slot, seen, (struct ag_pair){tag, tat})) {
            return;
        }
    }
}

bool
ag_table_debt(struct ag_table *table, uint64_t tag, uint64_t amount, uint64_t now)
{
    struct ag_charge charge;
    /* need 0 against the highest tolerance: refused only for want of a slot */
    ag_table_charge(table, tag, 0, amount, UINT64_MAX, now, &charge);
    if (!charge.allowed) {
        atomic_fetch_add_explicit(&table->area.header->counters[COUNT_DEBTS_LOST], 1,
                                  memory_order_relaxed);
    }
    return charge.allowed;
}

/* ---- description ---- */

struct ag_siphash_key
ag_table_key(const struct ag_table *table)
{
    return table->area.header->key;
}

uint64_t
ag_table_clock(const struct ag_table *table)
{
    return table->clock();
}

const char *
ag_table_path(const struct ag_table *table)
{
    return table->area.path;
}

void
ag_table_stats(struct ag_table *table, uint64_t now, struct ag_table_stats *stats)
{
    struct ag_area_header *header = table->area.header;
    *stats = (struct ag_table_stats){
        .slots = header->items,
        .bytes = header->bytes,
        .full =
            atomic_load_explicit(&header->counters[COUNT_FULL], memory_order_relaxed),
        .debts_lost = atomic_load_explicit(&header->counters[COUNT_DEBTS_LOST],
                                           memory_order_relaxed),
        .cas = table->locks == NULL,
    };
    for (uint64_t i = 0; i < header->items; i++) {
        struct ag_pair pair = ag_slot_load(&table->slots[i]);
        stats->live += pair.tat > now && (pair.tag & 1) == 0;
    }
}
