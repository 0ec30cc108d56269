#include "limit/concurrency.h"

#include "base/alloc.h"
#include "base/clock.h"
#include "limit/concurrency_state.h"

#define BUCKET AG_CONCURRENCY_BUCKET
#define CELL_MAX 65535u

/* A tag word: 47 bits of the key's hash, 16 of a version that every change raises, and
 * the mark "being taken over". 0: never used. */
#define MARK UINT64_C(1)
#define VERSION_ONE UINT64_C(2)
#define VERSION_MASK UINT64_C(0x1fffe)
#define TAG_MASK (~(VERSION_MASK | MARK))

/* ---- keys and slots ---- */

uint64_t
ag_concurrency_tag(const struct ag_concurrency *c, const void *key, size_t n)
{
    uint64_t tag = ag_siphash13(c->area.header->key, key, n) & TAG_MASK;
    return tag != 0 ? tag : TAG_MASK;
}

static void
home_of(const struct ag_concurrency *c, uint64_t tag, uint64_t home[2])
{
    uint64_t second = tag * UINT64_C(0x9e3779b97f4a7c15);
    second ^= second >> 32;
    second *= UINT64_C(0xd6e8feb86659fd93);
    home[0] = (tag >> 32) * c->buckets >> 32;
    home[1] = (second >> 32) * c->buckets >> 32;
    if (home[0] == home[1]) {
        home[1] = home[1] + 1 < c->buckets ? home[1] + 1 : 0;
    }
    home[0] *= BUCKET;
    home[1] *= BUCKET;
}

static uint64_t
sum_of(const struct ag_concurrency *c, uint64_t slot)
{
    uint64_t rows = atomic_load(counter_of(c, COUNT_ROWS));
    uint64_t sum = 0;
    if (rows > c->workers) { /* a damaged file */
        rows = c->workers;
    }
    for (uint32_t row = 0; row < rows; row++) {
        AG_STEP();
        sum += atomic_load(cell_of(c, slot, row));
    }
    return sum;
}

static uint64_t
next_version(uint64_t word)
{
    return (word & ~VERSION_MASK) | ((word + VERSION_ONE) & VERSION_MASK);
}

/* Sum over all slots of the key, marked ones included. */
static uint64_t
count_at(const struct ag_concurrency *c, const uint64_t home[2], uint64_t tag)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < 2 * BUCKET; i++) {
        uint64_t slot = home[i / BUCKET] + i % BUCKET;
        AG_STEP();
        if ((atomic_load(&c->tags[slot]) & TAG_MASK) == tag) {
            sum += sum_of(c, slot);
        }
    }
    return sum;
}

uint64_t
ag_concurrency_count(struct ag_concurrency *c, uint64_t tag)
{
    uint64_t home[2];
    home_of(c, tag, home);
    return count_at(c, home, tag);
}

/* Makes slot, seen as `word`, the key's. False: it is in use, or somebody was there
 * first. A newcomer to the old key raises its cell and then reads the word; we mark the
 * word and then read the cells: one of the two sees the other. */
static bool
take_over(struct ag_concurrency *c, uint64_t slot, uint64_t word, uint64_t tag)
{
    if (word == 0) {
        return atomic_compare_exchange_strong(&c->tags[slot], &word, tag | VERSION_ONE);
    }
    if (sum_of(c, slot) != 0) {
        return false;
    }
    uint64_t marked = next_version(word) | MARK;
    AG_STEP();
    if (!atomic_compare_exchange_strong(&c->tags[slot], &word, marked)) {
        return false;
    }
    uint64_t then = next_version(marked) & ~MARK;
    if (sum_of(c, slot) == 0) {
        then = (then & VERSION_MASK) | tag;
        AG_STEP();
        return atomic_compare_exchange_strong(&c->tags[slot], &marked, then);
    }
    (void)atomic_compare_exchange_strong(&c->tags[slot], &marked, then);
    return false;
}

/* The key's slot, made when there is none; false: no slot is free. */
static bool
find_slot(struct ag_concurrency *c, const uint64_t home[2], uint64_t tag,
          uint64_t *found)
{
    for (;;) {
        bool again = false;
        for (unsigned i = 0; i < 2 * BUCKET; i++) {
            uint64_t slot = home[i / BUCKET] + i % BUCKET;
            AG_STEP();
            uint64_t word = atomic_load(&c->tags[slot]);
            if ((word & TAG_MASK) != tag) {
                continue;
            }
            if ((word & MARK) == 0 ||
                atomic_compare_exchange_strong(&c->tags[slot], &word,
                                               next_version(word) & ~MARK)) {
                *found = slot;
                return true;
            }
            again = true;
        }
        for (unsigned i = 0; i < 2 * BUCKET && !again; i++) {
            uint64_t slot = home[i / BUCKET] + i % BUCKET;
            AG_STEP();
            uint64_t word = atomic_load(&c->tags[slot]);
            if (take_over(c, slot, word, tag)) {
                *found = slot;
                return true;
            }
            uint64_t now = atomic_load(&c->tags[slot]);
            again = now != word && ((now & TAG_MASK) == tag || sum_of(c, slot) == 0);
        }
        if (!again) {
            return false;
        }
    }
}

static bool
raise_cell(_Atomic uint16_t *cell)
{
    uint16_t seen = atomic_load(cell);
    while (seen < CELL_MAX) {
        if (atomic_compare_exchange_weak(cell, &seen, (uint16_t)(seen + 1))) {
            return true;
        }
    }
    return false;
}

/* Never below zero: a process that closed descriptors that are not its own may have
 * lost its row's lock, and then its cells. */
static void
lower_cell(_Atomic uint16_t *cell)
{
    uint16_t seen = atomic_load(cell);
    while (seen > 0 &&
           !atomic_compare_exchange_weak(cell, &seen, (uint16_t)(seen - 1))) {
    }
}

/* ---- leases ---- */

/* Room for one lease more, so that entering cannot fail half-way. */
static int
reserve_lease_lock_held(struct ag_concurrency *c, struct ag_error *err)
{
    if (c->first_free != 0) {
        return AG_OK;
    }
    uint32_t room = c->lease_room == 0 ? 64 : 2 * c->lease_room;
    struct lease *leases = room <= UINT32_C(1) << 30
                               ? ag_realloc(c->leases, room * sizeof(*leases))
                               : NULL;
    if (leases == NULL) {
        return ag_fail(err, AG_ENOMEM, "no memory for a lease");
    }
    c->leases = leases;
    c->lease_room = room;
    for (uint32_t i = room; i > c->lease_count; i--) {
        leases[i - 1] = (struct lease){.next_free = c->first_free};
        c->first_free = i;
    }
    c->lease_count = room;
    return AG_OK;
}

static int64_t
begin_lease_lock_held(struct ag_concurrency *c, uint64_t slot)
{
    uint32_t index = c->first_free - 1;
    struct lease *lease = &c->leases[index];
    c->first_free = lease->next_free;
    lease->slot = (uint32_t)slot;
    lease->generation++;
    return (int64_t)((uint64_t)(lease->generation & 0x7fffffffu) << 32 | (index + 1));
}

bool
ag_concurrency_leave(struct ag_concurrency *c, int64_t number)
{
    uint32_t index = (uint32_t)number - 1;
    uint32_t generation = (uint32_t)((uint64_t)number >> 32);
    bool left = false;
    pthread_mutex_lock(&c->lock);
    if (number > 0 && index < c->lease_count &&
        (c->leases[index].generation & 0x7fffffffu) == generation &&
        generation % 2 == 1) {
        struct lease *lease = &c->leases[index];
        lease->generation++;
        lease->next_free = c->first_free;
        c->first_free = index + 1;
        lower_cell(cell_of(c, lease->slot, (uint32_t)atomic_load(&c->row)));
        left = true;
    }
    pthread_mutex_unlock(&c->lock);
    return left;
}

/* ---- entering ---- */

/* Own cell up when the key stays within its limit: the slot; false when refused. */
static bool
enter_lock_held(struct ag_concurrency *c, uint64_t tag, uint64_t limit, uint64_t *slot)
{
    uint64_t home[2];
    home_of(c, tag, home);
    for (;;) {
        if (!find_slot(c, home, tag, slot)) {
            atomic_fetch_add(counter_of(c, COUNT_FULL), 1);
            return false;
        }
        _Atomic uint16_t *cell = cell_of(c, *slot, (uint32_t)atomic_load(&c->row));
        AG_STEP();
        if (!raise_cell(cell)) {
            return false;
        }
        AG_STEP();
        uint64_t word = atomic_load(&c->tags[*slot]);
        if ((word & TAG_MASK) == tag && (word & MARK) == 0) {
            if (count_at(c, home, tag) <= limit) {
                return true;
            }
            lower_cell(cell);
            return false;
        }
        lower_cell(cell); /* taken over meanwhile */
    }
}

/* True for one caller of all processes every AG_REAP_NS. */
static bool
may_reap(struct ag_concurrency *c)
{
    uint64_t now = ag_clock_ns();
    uint64_t last = atomic_load(counter_of(c, COUNT_LAST_REAP));
    return (now < last || now - last >= AG_REAP_NS) &&
           atomic_compare_exchange_strong(counter_of(c, COUNT_LAST_REAP), &last, now);
}

int
ag_concurrency_enter(struct ag_concurrency *c, uint64_t tag, uint64_t limit,
                     int64_t *lease, struct ag_error *err)
{
    uint64_t slot = 0;
    bool entered = false;
    *lease = 0;
    for (int attempt = 0; attempt < 2 && !entered; attempt++) {
        if (attempt == 1 && (!may_reap(c) || ag_concurrency_reap(c) == 0)) {
            break;
        }
        pthread_mutex_lock(&c->lock);
        int status = reserve_lease_lock_held(c, err);
        if (status == AG_OK && atomic_load(&c->row) < 0) {
            status = ag_concurrency_claim_row_lock_held(c, err);
        }
        if (status == AG_OK) {
            entered = enter_lock_held(c, tag, limit, &slot);
        }
        if (entered) {
            *lease = begin_lease_lock_held(c, slot);
        }
        pthread_mutex_unlock(&c->lock);
        if (status != AG_OK) {
            return status;
        }
    }
    return AG_OK;
}

void
ag_concurrency_stats(struct ag_concurrency *c, struct ag_concurrency_stats *stats)
{
    *stats = (struct ag_concurrency_stats){
        .slots = c->items,
        .workers = c->workers,
        .bytes = c->area.bytes,
        .full = atomic_load(counter_of(c, COUNT_FULL)),
        .reaped = atomic_load(counter_of(c, COUNT_REAPED)),
    };
    for (uint64_t slot = 0; slot < c->items; slot++) {
        uint64_t sum = sum_of(c, slot);
        stats->used += sum > 0;
        stats->in_flight += sum;
    }
    for (uint32_t row = 0; row < c->workers; row++) {
        stats->rows += atomic_load(&c->rows[row].in_use) != 0;
    }
}
