/* Tells a forked child from its parent without asking the kernel each time. */
#ifndef AG_BASE_PROCESS_H
#define AG_BASE_PROCESS_H

#include <stdint.h>

/* A number that is another one in every process of a line of forks: an object that
 * keeps it knows later whether it was made here. Not the pid; no meaning beyond the
 * life of a process. Any thread. */
uint64_t ag_process(void);

#endif
