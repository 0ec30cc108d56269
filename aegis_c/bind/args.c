#include "args.h"

#include <string.h>

static int
unpack_keyword(const struct agpy_signature *signature, PyObject *name, PyObject *value,
               PyObject **out)
{
    for (Py_ssize_t i = 0; i < signature->count; i++) {
        const char *known = signature->names[i];
        if (known[0] == '\0' || PyUnicode_CompareWithASCIIString(name, known) != 0) {
            continue;
        }
        if (out[i] != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got two values for argument '%s'",
                         signature->function, known);
            return -1;
        }
        out[i] = value;
        return 0;
    }
    PyErr_Format(PyExc_TypeError, "%s() has no keyword argument %R",
                 signature->function, name);
    return -1;
}

int
agpy_unpack(const struct agpy_signature *signature, PyObject *const *args,
            Py_ssize_t nargs, PyObject *kwnames, PyObject **out)
{
    if (nargs > signature->positional) {
        PyErr_Format(PyExc_TypeError,
                     "%s() takes at most %zd positional argument%s, %zd given",
                     signature->function, signature->positional,
                     signature->positional == 1 ? "" : "s", nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < signature->count; i++) {
        out[i] = i < nargs ? args[i] : NULL;
    }
    Py_ssize_t keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < keywords; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        if (unpack_keyword(signature, name, args[nargs + i], out) < 0) {
            return -1;
        }
    }
    for (Py_ssize_t i = 0; i < signature->required; i++) {
        if (out[i] == NULL) {
            const char *name = signature->names[i];
            PyErr_Format(PyExc_TypeError, "%s() needs %s%s%s", signature->function,
                         name[0] != '\0' ? "the argument '" : "a positional argument",
                         name, name[0] != '\0' ? "'" : "");
            return -1;
        }
    }
    return 0;
}

int
agpy_u64(PyObject *value, const char *name, PyObject *out_of_range, uint64_t *out)
{
    PyObject *number = PyNumber_Index(value);
    if (number == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", name,
                         Py_TYPE(value)->tp_name);
        }
        return -1;
    }
    unsigned long long result = PyLong_AsUnsignedLongLong(number);
    if (result == (unsigned long long)-1 && PyErr_Occurred()) {
        PyErr_Clear();
        PyObject *text = PyObject_Str(number);
        if (text != NULL && PyUnicode_GET_LENGTH(text) <= 100) {
            PyErr_Format(out_of_range, "%s %U is outside 0 .. 2**64 - 1", name, text);
        } else {
            PyErr_Clear();
            PyErr_Format(out_of_range,
                         "%s of more than 100 digits is outside 0 .. 2**64 - 1", name);
        }
        Py_XDECREF(text);
        Py_DECREF(number);
        return -1;
    }
    Py_DECREF(number);
    *out = result;
    return 0;
}

int
agpy_position(PyObject *value, void *to_u64)
{
    return agpy_u64(value, "index, size or sequence number", PyExc_IndexError,
                    to_u64) == 0;
}

const uint8_t *
agpy_hash(PyObject *value, const char *name, PyObject *wrong_length)
{
    if (!PyBytes_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be bytes, not %.100s", name,
                     Py_TYPE(value)->tp_name);
        return NULL;
    }
    if (PyBytes_GET_SIZE(value) != 32) {
        PyErr_Format(wrong_length, "%s must have 32 bytes, not %zd", name,
                     PyBytes_GET_SIZE(value));
        return NULL;
    }
    return (const uint8_t *)PyBytes_AS_STRING(value);
}

PyObject *
agpy_hash_list(const uint8_t (*hashes)[32], size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *hash = PyBytes_FromStringAndSize((const char *)hashes[i], 32);
        if (hash == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, hash); /* takes ownership */
    }
    return list;
}
