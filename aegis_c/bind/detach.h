/* When a call that only computes gives the interpreter to other threads: from
 * AG_DETACH_MIN octets to be hashed in it. Built as 0, every call detaches.
 *
 * Measured on a 2.6 GHz Xeon with SHA-NI, CPython 3.11: detaching and attaching again
 * costs 10 ns while nobody wants the interpreter. Beside a CPU-bound Python thread a
 * call that hashes 16 KiB takes 9 us either way, one of 64 KiB 34 us attached and 128
 * us detached, one of 1 MiB 0.5 ms and 2.2 ms: the way back may last a switch interval,
 * 5 ms. What the others wait for below the bound is at most 9 us for one entry and 36
 * us for 512 entries of 32 octets with their nodes, nine times that with the portable
 * kernel. */
#ifndef AGPY_DETACH_H
#define AGPY_DETACH_H

#include <stdbool.h>
#include <stddef.h>

#include "gil_times.h"

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
