/* When a call that only computes gives the interpreter to other threads: from
 * AG_DETACH_MIN octets to be hashed in it. Built as 0, every call detaches.
 *
 * Detaching and attaching again costs 20-30 ns while nobody wants the interpreter, but
 * behind a CPU-bound Python thread the way back lasts up to the switch interval, 5 ms.
 * Not detaching makes the others wait for the hashing: measured with SHA-NI on a 2.6
 * GHz Xeon, 16 KiB take 10 us as one entry and 36 us as 512 entries of 32 octets with
 * their nodes; the portable kernel takes nine times as long, still a fraction of one
 * switch interval. So the bound is where the work is well above 10 us. */
#ifndef AGPY_DETACH_H
#define AGPY_DETACH_H

#include <stdbool.h>
#include <stddef.h>

#ifndef AG_DETACH_MIN
#define AG_DETACH_MIN 16384
#endif

static inline bool
agpy_worth_detaching(size_t octets)
{
    return octets + 1 > AG_DETACH_MIN;
}

/* Runs `statement`, which must touch no Python object, detached if it hashes that much.
 */
#define AGPY_DETACHED(octets, statement)                                               \
    do {                                                                               \
        if (agpy_worth_detaching(octets)) {                                            \
            PyThreadState *agpy_saved = PyEval_SaveThread();                           \
            statement;                                                                 \
            PyEval_RestoreThread(agpy_saved);                                          \
        } else {                                                                       \
            statement;                                                                 \
        }                                                                              \
    } while (0)

#endif
