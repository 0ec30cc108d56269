#include "schedule.h"

#include <sys/mman.h>

#include "check.h"

#define STACK ((size_t)64 * 1024)

static struct schedule *active;
static char *stacks;
static void (*const *running)(unsigned);

static void
next(struct schedule *s, ucontext_t *from)
{
    unsigned alive[SCHEDULE_MAX], n = 0;
    for (unsigned i = 0; i < s->count; i++) {
        if (!s->done[i] && !s->dead[i]) {
            alive[n++] = i;
        }
    }
    if (n == 0) {
        active = NULL;
        ASSERT_EQ(swapcontext(from, &s->main), 0);
        return;
    }
    s->current = alive[check_random(&s->random) % n];
    if (from != &s->at[s->current]) {
        ASSERT_EQ(swapcontext(from, &s->at[s->current]), 0);
    }
}

void
schedule_step(void)
{
    struct schedule *s = active;
    if (s == NULL) {
        return;
    }
    if (s->tick != NULL) {
        s->tick();
    }
    if (s->current == 0 && ++s->steps_of_first == s->kill_after) {
        s->dead[0] = true; /* and its stack is never looked at again */
    } else if ((check_random(&s->random) & 255) < s->stickiness) {
        return;
    }
    next(s, &s->at[s->current]);
}

static void
body(int index)
{
    struct schedule *s = active;
    running[index]((unsigned)index);
    s->done[index] = true;
    next(s, &s->at[index]);
}

void
schedule_run(struct schedule *s, void (*const bodies[])(unsigned), unsigned count)
{
    ASSERT_LE_U(count, SCHEDULE_MAX);
    if (stacks == NULL) {
        stacks = mmap(NULL, SCHEDULE_MAX * STACK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ASSERT(stacks != MAP_FAILED);
    }
    s->count = count;
    s->steps_of_first = 0;
    running = bodies;
    for (unsigned i = 0; i < count; i++) {
        s->done[i] = s->dead[i] = false;
        ASSERT_EQ(getcontext(&s->at[i]), 0);
        s->at[i].uc_stack.ss_sp = stacks + i * STACK;
        s->at[i].uc_stack.ss_size = STACK;
        s->at[i].uc_link = NULL;
        makecontext(&s->at[i], (void (*)(void))(void *)body, 1, (int)i);
    }
    active = s;
    next(s, &s->main);
    active = NULL;
}
