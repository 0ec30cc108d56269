/* The lock that every Python object of ours carries.
 *
 * 3.13+: PyMutex, which detaches the thread while it waits. Before: PyThread_type_lock,
 * first tried without waiting; when another thread holds it, we detach and wait,
 * because the holder may itself be waiting to attach again. Either is a real lock on
 * every build, may be held while the thread is detached, and must be released by its
 * taker.
 *
 * agpy_lock_init before anything else can see the object (PyMutex must never be moved);
 * agpy_lock_free when nobody can hold it any more. Both are safe on zeroed memory.
 * Acquire with a thread state attached; release with or without one. A lock protects
 * C state only: no Python code runs while it is held. */
#ifndef AGPY_LOCK_H
#define AGPY_LOCK_H

#include <Python.h>

#include "gil_times.h"

#if PY_VERSION_HEX >= 0x030d0000

struct agpy_lock {
    PyMutex mutex;
};

/* 0; cannot fail. */
static inline int
agpy_lock_init(struct agpy_lock *lock)
{
    *lock = (struct agpy_lock){0};
    return 0;
}

static inline void
agpy_lock_acquire(struct agpy_lock *lock)
{
    PyMutex_Lock(&lock->mutex);
}

static inline void
agpy_lock_release(struct agpy_lock *lock)
{
    PyMutex_Unlock(&lock->mutex);
}

static inline void
agpy_lock_free(struct agpy_lock *lock)
{
    (void)lock;
}

#else

struct agpy_lock {
    PyThread_type_lock native; /* owned */
};

/* 0, or -1 with MemoryError set. */
static inline int
agpy_lock_init(struct agpy_lock *lock)
{
    lock->native = PyThread_allocate_lock();
    if (lock->native == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

static inline void
agpy_lock_acquire(struct agpy_lock *lock)
{
    if (!PyThread_acquire_lock(lock->native, NOWAIT_LOCK)) {
        Py_BEGIN_ALLOW_THREADS
            PyThread_acquire_lock(lock->native, WAIT_LOCK);
        Py_END_ALLOW_THREADS
    }
}

static inline void
agpy_lock_release(struct agpy_lock *lock)
{
    PyThread_release_lock(lock->native);
}

static inline void
agpy_lock_free(struct agpy_lock *lock)
{
    if (lock->native != NULL) {
        PyThread_free_lock(lock->native);
        lock->native = NULL;
    }
}

#endif

#endif
