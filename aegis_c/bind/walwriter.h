/* What the files of WalWriter share: the object, and entering and leaving it. */
#ifndef AGPY_WALWRITER_H
#define AGPY_WALWRITER_H

#include "agpy.h"

#include <stdatomic.h>

#include "lock.h"
#include "wal/writer.h"

/* `lock` orders producers among themselves and against close; nobody holds it while the
 * disk works. A method that may wait (sync, reopen, stats) counts itself in `users` and
 * works without the lock; close first refuses newcomers, then stops the log, which
 * answers every waiter, then frees it once nobody is left inside. */
struct walwriter_object {
    PyObject_HEAD
    PyObject *weakrefs;
    PyObject *at_exit; /* owned: registered with atexit; holds a weak reference only */
    PyObject *path;    /* owned: bytes, for messages */
    struct agpy_lock lock;
    struct ag_wal *wal;       /* owned, under lock; NULL when closed */
    bool left;                /* at exit the disk did not take everything: not again */
    bool closing;             /* under lock */
    atomic_bool mending;      /* a reopen runs; set under lock */
    atomic_int users;         /* threads inside a call without the lock */
    unsigned forks;           /* agpy_fork_count() when it was made */
    struct agpy_state *state; /* borrowed: the type keeps the module alive */
};

#define WALWRITER(object) ((struct walwriter_object *)(object))

/* Whether this is a forked child, where the lock may be held for ever by a thread that
 * is not there. */
bool agpy_walwriter_is_forked(const struct walwriter_object *self);

/* Each raises an exception and returns NULL. */
PyObject *agpy_walwriter_raise(struct walwriter_object *self, int status,
                               const struct ag_error *err);
PyObject *agpy_walwriter_raise_closed(struct walwriter_object *self);
PyObject *agpy_walwriter_raise_forked(struct walwriter_object *self);

/* The log for a call without the lock, to be given back with leave; or NULL with an
 * exception. */
struct ag_wal *agpy_walwriter_enter(struct walwriter_object *self);
void agpy_walwriter_leave(struct walwriter_object *self);

/* Nanoseconds of a timeout in seconds, None for as long as it takes. 0, or -1 with an
 * exception. */
int agpy_walwriter_timeout(PyObject *seconds, uint64_t *ns);

/* Slots and methods of the object's life. */
PyObject *agpy_walwriter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
int agpy_walwriter_traverse(PyObject *self, visitproc visit, void *arg);
int agpy_walwriter_clear(PyObject *self);
void agpy_walwriter_dealloc(PyObject *object);
PyObject *agpy_walwriter_reopen(PyObject *object, PyObject *ignored);
PyObject *agpy_walwriter_close(PyObject *object, PyObject *args, PyObject *kwargs);

#endif
