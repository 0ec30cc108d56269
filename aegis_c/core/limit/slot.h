/* One key's state, 16 octets {tag, TAT}, changed by one 128-bit compare-and-swap.
 *
 * x86-64: `lock cmpxchg16b` as inline assembly, so that neither a compiler switch nor
 * libatomic is needed (its fallback lock is private to a process). Everywhere else, and
 * on request: a robust process-shared mutex per stripe of slots around the comparison
 * and the two stores, TAT first: whoever dies between them leaves an old tag with a
 * later TAT, which at most refuses an idle key for a while.
 *
 * Loads take no lock: two 64-bit loads whose halves may belong to different moments;
 * a swap fails then. */
#ifndef AG_LIMIT_SLOT_H
#define AG_LIMIT_SLOT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "limit/gcra.h"

/* Before every look at or change of shared memory. Nothing, but tests that go through
 * interleavings put their scheduler here. */
#ifndef AG_STEP
#define AG_STEP() ((void)0)
#endif

struct ag_slot {
    _Alignas(16) _Atomic uint64_t tag;
    _Atomic uint64_t tat;
};

struct ag_pair {
    uint64_t tag, tat;
};

/* The two halves as they were one after the other, acquire. */
static inline struct ag_pair
ag_slot_load(struct ag_slot *slot)
{
    struct ag_pair pair;
    AG_STEP();
    pair.tag = atomic_load_explicit(&slot->tag, memory_order_acquire);
    AG_STEP();
    pair.tat = atomic_load_explicit(&slot->tat, memory_order_acquire);
    return pair;
}

#if defined(__x86_64__)
#define AG_SLOT_HAS_CAS 1

static inline bool
ag_slot_cas16(struct ag_slot *slot, struct ag_pair seen, struct ag_pair wanted)
{
#if defined(__SANITIZE_THREAD__) /* which does not see assembly, but has its own */
    return __sync_bool_compare_and_swap((ag_u128 *)(void *)slot,
                                        (ag_u128)seen.tat << 64 | seen.tag,
                                        (ag_u128)wanted.tat << 64 | wanted.tag);
#else
    bool done;
    __asm__ volatile("lock cmpxchg16b %1"
                     : "=@ccz"(done), "+m"(*slot), "+a"(seen.tag), "+d"(seen.tat)
                     : "b"(wanted.tag), "c"(wanted.tat)
                     : "memory");
    return done;
#endif
}
#else
#define AG_SLOT_HAS_CAS 0

static inline bool
ag_slot_cas16(struct ag_slot *slot, struct ag_pair seen, struct ag_pair wanted)
{
    (void)slot, (void)seen, (void)wanted;
    return false; /* never called: ag_slot_cas_works() says no */
}
#endif

/* True when this CPU has the instruction. */
bool ag_slot_cas_works(void);

/* Robust process-shared mutexes in shared memory; 0 or a positive errno. */
int ag_slot_locks_init(pthread_mutex_t *locks, unsigned count);

/* As ag_slot_cas16 under `lock`; takes over from an owner that died. */
bool ag_slot_cas_locked(pthread_mutex_t *lock, struct ag_slot *slot,
                        struct ag_pair seen, struct ag_pair wanted);

#endif
