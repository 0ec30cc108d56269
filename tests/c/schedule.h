/* Runs functions as coroutines of one thread that change over at every AG_STEP(), in an
 * order drawn from a seed: the interleavings of the real code, as many as wanted, and
 * each of them again by its seed. A unit is tested so by including its .c after this.
 */
#ifndef SCHEDULE_H
#define SCHEDULE_H

#include <stdbool.h>
#include <stdint.h>
#include <ucontext.h>

#define SCHEDULE_MAX 6

struct schedule {
    uint64_t random;
    unsigned count, current;
    unsigned stickiness; /* of 256: how often the same goes on */
    bool done[SCHEDULE_MAX], dead[SCHEDULE_MAX];
    unsigned kill_after; /* kill coroutine 0 after so many of its steps; 0: never */
    unsigned steps_of_first;
    void (*tick)(void); /* at every step */
    ucontext_t main, at[SCHEDULE_MAX];
};

/* What AG_STEP() does; nothing outside of schedule_run. */
void schedule_step(void);
/* Runs bodies[i](i) to their ends, but for a killed one. */
void schedule_run(struct schedule *s, void (*const bodies[])(unsigned), unsigned count);

#define AG_STEP() schedule_step()

#endif
