/* Arguments of METH_FASTCALL | METH_KEYWORDS functions, and numbers and hashes in them.
 */
#ifndef AGPY_ARGS_H
#define AGPY_ARGS_H

#include "agpy.h"

/* Where the arguments of a call belong. */
struct agpy_signature {
    const char *function;     /* "root", for messages */
    Py_ssize_t positional;    /* so many may be given by position */
    Py_ssize_t required;      /* the first so many must be given */
    Py_ssize_t count;         /* of names */
    const char *const *names; /* "" where a parameter is positional only */
};

/* Sorts a call's arguments into out[0..count), borrowed, NULL for those not given.
 * 0, or -1 with TypeError. */
int agpy_unpack(const struct agpy_signature *signature, PyObject *const *args,
                Py_ssize_t nargs, PyObject *kwnames, PyObject **out);

/* An int within 0 .. 2^64 - 1. 0; -1 with TypeError when it is no int, and with
 * `out_of_range` (naming the value) when it does not fit. */
int agpy_u64(PyObject *value, const char *name, PyObject *out_of_range, uint64_t *out);

/* The same as a converter ("O&") for an index, a size or a sequence number: IndexError.
 * 1, or 0 with the exception set. */
int agpy_position(PyObject *value, void *to_u64);

/* The 32 octets of a hash, borrowed from `value`; NULL with TypeError unless it is
 * bytes, with `wrong_length` (naming the length) unless it has 32. */
const uint8_t *agpy_hash(PyObject *value, const char *name, PyObject *wrong_length);

/* A new list of `count` hashes as bytes. */
PyObject *agpy_hash_list(const uint8_t (*hashes)[32], size_t count);

#endif
