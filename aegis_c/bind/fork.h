/* Forks of this process, so that an object of the parent can refuse in the child: its
 * lock may be held by a thread that the child does not have, and two processes that
 * both went on with one log would make two histories. */
#ifndef AGPY_FORK_H
#define AGPY_FORK_H

/* Starts counting; any number of calls. 0, or -1 with an exception set. */
int agpy_fork_watch(void);

/* How many forks lie between the first watch and this process: an object keeps the
 * number it was made under and compares. One relaxed load. */
unsigned agpy_fork_count(void);

#endif
