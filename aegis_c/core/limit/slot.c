#include "limit/slot.h"

#include <errno.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

bool
ag_slot_cas_works(void)
{
#if defined(__x86_64__)
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_CMPXCHG16B) != 0;
#else
    return false;
#endif
}

int
ag_slot_locks_init(pthread_mutex_t *locks, unsigned count)
{
    pthread_mutexattr_t attributes;
    int result = pthread_mutexattr_init(&attributes);
    if (result != 0) {
        return result;
    }
    result = pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    if (result == 0) {
        result = pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    }
    for (unsigned i = 0; i < count && result == 0; i++) {
        result = pthread_mutex_init(&locks[i], &attributes);
    }
    (void)pthread_mutexattr_destroy(&attributes);
    return result;
}

bool
ag_slot_cas_locked(pthread_mutex_t *lock, struct ag_slot *slot, struct ag_pair seen,
                   struct ag_pair wanted)
{
    if (pthread_mutex_lock(lock) == EOWNERDEAD) {
        (void)pthread_mutex_consistent(lock); /* every state of a slot is a valid one */
    }
    bool same = atomic_load_explicit(&slot->tag, memory_order_relaxed) == seen.tag &&
                atomic_load_explicit(&slot->tat, memory_order_relaxed) == seen.tat;
    if (same) {
        atomic_store_explicit(&slot->tat, wanted.tat, memory_order_release);
        atomic_store_explicit(&slot->tag, wanted.tag, memory_order_release);
    }
    (void)pthread_mutex_unlock(lock);
    return same;
}
