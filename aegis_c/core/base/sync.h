/* Condition variables with monotonic deadlines, and the descriptor that wakes an event
 * loop: an eventfd on Linux, a pipe elsewhere. */
#ifndef AG_BASE_SYNC_H
#define AG_BASE_SYNC_H

#include <pthread.h>
#include <stdint.h>

/* 0 or a positive errno. */
int ag_cond_init(pthread_cond_t *cond);

/* Waits until signalled or until CLOCK_MONOTONIC reaches `deadline_ns` (UINT64_MAX: no
 * deadline). Under `lock`; may wake early. */
void ag_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock,
                        uint64_t deadline_ns);

struct ag_wakeup {
    int read_fd, write_fd; /* the same for an eventfd */
};

int ag_wakeup_open(struct ag_wakeup *wakeup); /* 0 or a positive errno */
void ag_wakeup_close(struct ag_wakeup *wakeup);
void ag_wakeup_signal(const struct ag_wakeup *wakeup); /* never blocks */
void ag_wakeup_clear(const struct ag_wakeup *wakeup);  /* never blocks */

#endif
