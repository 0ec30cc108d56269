/* aegis_c.Ledger, for the files that hold its methods: ledger_submit.c, ledger_stages.c
 * and ledger_read.c. The object itself, its making and its end are in ledger_type.c. */
#ifndef AGPY_LEDGER_TYPE_H
#define AGPY_LEDGER_TYPE_H

#include <pthread.h>
#include <sys/types.h>

#include "agpy.h"
#include "log/ledger.h"

struct ledger_object {
    PyObject_HEAD
    pthread_rwlock_t handle;
    struct ag_ledger *ledger; /* owned, under handle; NULL once closed */
    uint64_t process;         /* that made it */
    struct agpy_state *state; /* borrowed: the type keeps the module alive */
};

#define LEDGER(object) ((struct ledger_object *)(object))

/* The core object, to be given back with agpy_ledger_release(); NULL with LedgerError
 * when closed, or in a forked child. */
struct ag_ledger *agpy_ledger_acquire(PyObject *self);
void agpy_ledger_release(PyObject *self);
/* Raises LedgerError, or what else `status` stands for; returns NULL. */
PyObject *agpy_ledger_raise(PyObject *self, int status, const struct ag_error *err);

/* The methods, by how they are called; X is given each name. */
#define AGPY_LEDGER_FAST(X) X(submit)
#define AGPY_LEDGER_KEYWORDS(X)                                                        \
    X(commitment)                                                                      \
    X(salt)                                                                            \
    X(want)                                                                            \
    X(wait)                                                                            \
    X(root)                                                                            \
    X(inclusion_proof)                                                                 \
    X(consistency_proof)
#define AGPY_LEDGER_ONE(X) X(entry) X(find) X(receipt)
#define AGPY_LEDGER_NONE(X)                                                            \
    X(drain) X(fileno) X(room) X(checkpoint) X(open_intents) X(stats)

#define AGPY_LEDGER_DOC(name, text)                                                    \
    const char agpy_ledger_##name##_doc[] = PyDoc_STR(text)
#define AGPY_DECLARE_FAST(name)                                                        \
    PyObject *agpy_ledger_##name(PyObject *self, PyObject *const *args,                \
                                 Py_ssize_t count, PyObject *kwnames);                 \
    extern const char agpy_ledger_##name##_doc[];
#define AGPY_DECLARE_KEYWORDS(name)                                                    \
    PyObject *agpy_ledger_##name(PyObject *self, PyObject *args, PyObject *kwargs);    \
    extern const char agpy_ledger_##name##_doc[];
#define AGPY_DECLARE_PLAIN(name)                                                       \
    PyObject *agpy_ledger_##name(PyObject *self, PyObject *arg);                       \
    extern const char agpy_ledger_##name##_doc[];
AGPY_LEDGER_FAST(AGPY_DECLARE_FAST)
AGPY_LEDGER_KEYWORDS(AGPY_DECLARE_KEYWORDS)
AGPY_LEDGER_ONE(AGPY_DECLARE_PLAIN)
AGPY_LEDGER_NONE(AGPY_DECLARE_PLAIN)
#undef AGPY_DECLARE_FAST
#undef AGPY_DECLARE_KEYWORDS
#undef AGPY_DECLARE_PLAIN

/* Properties: `closure` is NULL for the submitted size, or names a stage or a text. */
PyObject *agpy_ledger_size(PyObject *self, void *closure);
PyObject *agpy_ledger_text(PyObject *self, void *closure);
PyObject *agpy_ledger_poisoned(PyObject *self, void *closure);
Py_ssize_t agpy_ledger_length(PyObject *self);

#endif
