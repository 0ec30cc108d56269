/* Monotonic time for waits and windows. No ordering in the core depends on a clock. */
#ifndef AG_BASE_CLOCK_H
#define AG_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Nanoseconds of CLOCK_MONOTONIC. Any thread. */
static inline uint64_t
ag_clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The absolute CLOCK_MONOTONIC time `ns` as a timespec, for pthread_cond_timedwait on a
 * condition variable made with that clock. */
static inline struct timespec
ag_clock_at(uint64_t ns)
{
    struct timespec at = {.tv_sec = (time_t)(ns / 1000000000u),
                          .tv_nsec = (long)(ns % 1000000000u)};
    return at;
}

#endif
