/* How late an event loop answers, measured from outside: a thread signals a descriptor
 * at a steady pace and takes the time until the loop has called ag_watch_answer. The
 * thread never touches the interpreter, so it sees a loop that keeps the interpreter,
 * or waits for it. Cost: two wake-ups and two system calls a beat.
 *
 * Threads: one of its own. `answer` belongs to the loop's thread, `wait` to one thread
 * of the caller's; the rest is for any. */
#ifndef AG_LOOP_WATCH_H
#define AG_LOOP_WATCH_H

#include <stdint.h>

#include "base/status.h"

/* Bucket k counts lags below 2^k us; the last one everything above as well. */
#define AG_WATCH_BUCKETS 24

struct ag_watch_stats {
    uint64_t lags[AG_WATCH_BUCKETS];
    uint64_t sum_ns;
    uint64_t max_ns;
    uint64_t stalls; /* beats that were not answered within `slow_ns` */
};

struct ag_watch;

/* Starts beating every `every_ns`; a beat without an answer for `slow_ns` is a stall.
 * AG_EINVAL for a zero, AG_ENOMEM, AG_EIO (no descriptor, no thread). */
int ag_watch_start(uint64_t every_ns, uint64_t slow_ns, struct ag_watch **out,
                   struct ag_error *err);

/* Ends the thread and whoever waits, who must be gone before ag_watch_free. Repeatable.
 */
void ag_watch_stop(struct ag_watch *watch);
void ag_watch_free(struct ag_watch *watch); /* stopped; NULL is allowed */

/* Readable while a beat wants its answer. */
int ag_watch_fd(const struct ag_watch *watch);

/* The loop's answer; returns its lag in ns, 0 when no beat was open. */
uint64_t ag_watch_answer(struct ag_watch *watch);

/* Waits for the next stall, or, with `end`, until the beat that stalled is answered.
 * Returns how late the loop is so far, or was, in ns; 0 once stopped. */
uint64_t ag_watch_wait(struct ag_watch *watch, int end);

void ag_watch_stats(const struct ag_watch *watch, struct ag_watch_stats *out);

#endif
