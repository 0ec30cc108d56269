/* Waiting and waking on a word of memory inside one process. */
#ifndef AG_WAL_FUTEX_H
#define AG_WAL_FUTEX_H

#include <limits.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

/* Sleeps while *word is `value`, at most until the monotonic time `until_ns`
 * (UINT64_MAX: for ever). May wake early. */
static inline void
ag_futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t until_ns)
{
    struct timespec at = ag_clock_at(until_ns);
    (void)syscall(SYS_futex, word, FUTEX_WAIT_BITSET | FUTEX_PRIVATE_FLAG, value,
                  until_ns == UINT64_MAX ? NULL : &at, NULL, FUTEX_BITSET_MATCH_ANY);
}

static inline void
ag_futex_wake(_Atomic uint32_t *word)
{
    (void)syscall(SYS_futex, word, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, INT_MAX, NULL, NULL,
                  0);
}

#endif
