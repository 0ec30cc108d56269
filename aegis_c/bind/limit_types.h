/* What the types of the limiter share: RateLimiter makes Limit and Plan, these make
 * Decision and Reservation. None of them changes after it was made, but for the one
 * flag of a Reservation, so none needs a lock: the table below is safe for all threads
 * and processes. */
#ifndef AGPY_LIMIT_TYPES_H
#define AGPY_LIMIT_TYPES_H

#include "agpy.h"

#include <stdatomic.h>
#include <sys/types.h>

#include "limit/limit.h"

struct agpy_limiter {
    PyObject_HEAD
    struct ag_table *table;   /* owned */
    struct agpy_state *state; /* borrowed: the type keeps the module alive */
};

struct agpy_limit {
    PyObject_HEAD
    struct ag_limit limit;
    PyObject *limiter;        /* owned: the RateLimiter with the table */
    PyObject *name;           /* owned: str */
    struct agpy_state *state; /* borrowed */
};

struct agpy_plan {
    PyObject_VAR_HEAD PyObject *limiter; /* owned */
    struct agpy_state *state;            /* borrowed */
    struct agpy_limit *limits[];         /* owned */
};

/* One part of a reservation: what was charged to which key of which limit, and when. */
struct agpy_part {
    uint64_t tag, cost, then;
};

struct agpy_reservation {
    PyObject_VAR_HEAD PyObject *owner; /* owned: the Limit or Plan that made it */
    PyObject *decision;                /* owned */
    uint64_t process;                  /* that made it */
    bool allowed;
    atomic_bool settled;
    struct agpy_part parts[];
};

#define LIMITER(object) ((struct agpy_limiter *)(object))
#define LIMIT(object) ((struct agpy_limit *)(object))
#define PLAN(object) ((struct agpy_plan *)(object))
#define RESERVATION(object) ((struct agpy_reservation *)(object))

/* A new Limit or Plan of `limiter`; NULL with an exception. */
PyObject *agpy_limit_make(PyObject *limiter, PyObject *name, PyObject *rate,
                          PyObject *per, PyObject *burst);
PyObject *agpy_plan_make(PyObject *limiter, PyObject *const *limits, Py_ssize_t n);

/* A Decision of one limit, from what a charge met. `each` is a tuple of the decisions
 * of a plan (borrowed), or NULL for none. */
PyObject *agpy_decision_make(struct agpy_limit *limit, const struct ag_charge *charge,
                             PyObject *each);

/* A Reservation of `n` parts for the owner; takes over `decision`, also on failure. */
PyObject *agpy_reservation_make(struct agpy_state *state, PyObject *owner,
                                PyObject *decision, bool allowed,
                                const struct agpy_part *parts, Py_ssize_t n);
/* The reservation in `object`, now settled by this call; NULL with an exception when it
 * is another's, was refused, was settled, or was made by the parent of a fork. */
struct agpy_reservation *agpy_reservation_take(struct agpy_state *state,
                                               PyObject *owner, PyObject *object);

/* Number of units from an int. -1 with TypeError or ValueError; a number beyond 64 bits
 * becomes UINT64_MAX. */
int agpy_units(PyObject *object, const char *what, uint64_t *units);
/* LimitError: this cost can never pass. Returns NULL. */
PyObject *agpy_raise_too_big(struct agpy_limit *limit, uint64_t cost);

/* Octets of a key, str (as UTF-8) or bytes, borrowed from it; -1 with TypeError, or
 * UnicodeEncodeError for lone surrogates. */
static inline int
agpy_key(PyObject *key, const char **octets, Py_ssize_t *n)
{
    if (PyUnicode_Check(key)) {
        if (PyUnicode_IS_COMPACT_ASCII(key)) {
            *octets = PyUnicode_DATA(key);
            *n = PyUnicode_GET_LENGTH(key);
            return 0;
        }
        *octets = PyUnicode_AsUTF8AndSize(key, n);
        return *octets != NULL ? 0 : -1;
    }
    if (PyBytes_Check(key)) {
        *octets = PyBytes_AS_STRING(key);
        *n = PyBytes_GET_SIZE(key);
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "key must be str or bytes, not %.100s",
                 Py_TYPE(key)->tp_name);
    return -1;
}

#endif
