/* One place turns a status of the core into a Python exception. */
#include "agpy.h"

#include <string.h>

static PyObject *
exception_for(struct agpy_state *state, enum agpy_family family, int status)
{
    switch (status) {
    case AG_ENOMEM:
        return PyExc_MemoryError;
    case AG_EINVAL:
        return PyExc_ValueError;
    case AG_ERANGE:
        return PyExc_IndexError;
    case AG_ETIMEDOUT:
        return PyExc_TimeoutError;
    case AG_EVERIFY:
        return state->verification_error;
    default:
        break;
    }
    switch (family) {
    case AGPY_WAL:
        switch (status) {
        case AG_ECORRUPT:
        case AG_EFOREIGN:
        case AG_EVERSION:
        case AG_EROLLBACK:
            return state->wal_corruption;
        case AG_EPOISONED:
            return state->wal_poisoned;
        case AG_EFULL:
            return state->wal_full;
        case AG_ELOCKED:
            return state->wal_locked;
        default:
            return state->wal_error;
        }
    case AGPY_LEDGER:
        return status == AG_EFULL ? state->ledger_full : state->ledger_error;
    case AGPY_LIMIT:
        return state->limit_error;
    case AGPY_TREE:
    default:
        return state->aegis_error;
    }
}

/* "what; in FILE, byte N, entry I; expected X, found Y. Advice" with the parts that
 * apply. */
static PyObject *
message_for(int status, const struct ag_error *err)
{
    if (err == NULL || err->what[0] == '\0') {
        return PyUnicode_FromString(ag_status_text(status));
    }
    char place[640] = "", pair[224] = "";
    int used = 0;
    if (err->file[0] != '\0') {
        used = snprintf(place, sizeof(place), "; in %s", err->file);
    }
    if (err->offset != AG_NO_POSITION && used >= 0 && (size_t)used < sizeof(place)) {
        used += snprintf(place + used, sizeof(place) - (size_t)used, ", byte %llu",
                         (unsigned long long)err->offset);
    }
    if (err->index != AG_NO_POSITION && used >= 0 && (size_t)used < sizeof(place)) {
        (void)snprintf(place + used, sizeof(place) - (size_t)used, ", entry %llu",
                       (unsigned long long)err->index);
    }
    if (err->expected[0] != '\0' || err->found[0] != '\0') {
        (void)snprintf(pair, sizeof(pair), "; expected %s, found %s", err->expected,
                       err->found);
    }
    char whole[1400];
    (void)snprintf(whole, sizeof(whole), "%s%s%s%s%s", err->what, place, pair,
                   err->advice[0] != '\0' ? ". " : "", err->advice);
    return PyUnicode_DecodeUTF8(whole, (Py_ssize_t)strlen(whole), "replace");
}

static int
set_text(PyObject *exception, const char *name, const char *text)
{
    PyObject *value = NULL;
    if (text[0] == '\0') {
        value = Py_NewRef(Py_None);
    } else {
        value = PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "surrogateescape");
    }
    if (value == NULL) {
        return -1;
    }
    int result = PyObject_SetAttrString(exception, name, value);
    Py_DECREF(value);
    return result;
}

static int
set_position(PyObject *exception, const char *name, uint64_t position)
{
    PyObject *value = position == AG_NO_POSITION
                          ? Py_NewRef(Py_None)
                          : PyLong_FromUnsignedLongLong(position);
    if (value == NULL) {
        return -1;
    }
    int result = PyObject_SetAttrString(exception, name, value);
    Py_DECREF(value);
    return result;
}

int
agpy_describe(PyObject *exception, const struct ag_error *err)
{
    if (set_text(exception, "file", err->file) < 0 ||
        set_position(exception, "offset", err->offset) < 0 ||
        set_position(exception, "index", err->index) < 0 ||
        set_position(exception, "seq", err->index) < 0 ||
        set_text(exception, "expected", err->expected) < 0 ||
        set_text(exception, "found", err->found) < 0 ||
        set_text(exception, "advice", err->advice) < 0) {
        return -1;
    }
    return 0;
}

PyObject *
agpy_raise(struct agpy_state *state, enum agpy_family family, int status,
           const struct ag_error *err)
{
    PyObject *type = exception_for(state, family, status);
    PyObject *message = NULL, *exception = NULL;
    if (type == PyExc_MemoryError) {
        return PyErr_NoMemory();
    }
    message = message_for(status, err);
    if (message == NULL) {
        goto exit;
    }
    exception = PyObject_CallOneArg(type, message);
    if (exception == NULL) {
        goto exit;
    }
    if (err != NULL && PyObject_IsInstance(exception, state->aegis_error) == 1 &&
        agpy_describe(exception, err) < 0) {
        goto exit;
    }
    PyErr_SetObject(type, exception);
exit:
    Py_XDECREF(exception);
    Py_XDECREF(message);
    return NULL;
}
