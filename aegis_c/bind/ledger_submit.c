/* Methods of aegis_c.Ledger that append entries and make commitments. */
#include <string.h>

#include "commitment_type.h"
#include "ledger_type.h"

/* ---- submitting ---- */

AGPY_LEDGER_DOC(
    submit,
    "submit($self, meta, request=None, response=None, *, secret=None)\n--\n\n"
    "Append an entry and return its index; memory only, never waits for a disk.\n\n"
    "meta: bytes of one JSON object. request, response: a Commitment (finished\n"
    "here), or the raw bytes of the body, whose commitment is then made with the\n"
    "UUID in meta's member \"id\" and `secret` (default: the shard's own).\n"
    "LedgerFull: no room in the ring, nothing was appended. LedgerError: poisoned\n"
    "or closed. ValueError: meta is not UTF-8, not {...}, or too large.");

struct submit_args {
    PyObject *meta, *request, *response, *secret; /* borrowed */
};

static int
parse_submit(PyObject *const *args, Py_ssize_t count, PyObject *kwnames,
             struct submit_args *parsed)
{
    static const char *const names[] = {"meta", "request", "response", "secret"};
    PyObject **slots[] = {&parsed->meta, &parsed->request, &parsed->response,
                          &parsed->secret};
    if (count > 3) {
        PyErr_SetString(PyExc_TypeError, "submit takes at most 3 positional arguments");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        *slots[i] = args[i];
    }
    Py_ssize_t keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < keywords; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        size_t k = 0;
        while (k < 4 && PyUnicode_CompareWithASCIIString(name, names[k]) != 0) {
            k++;
        }
        if (k == 4 || *slots[k] != NULL) {
            PyErr_Format(PyExc_TypeError, "submit got an unexpected argument %R", name);
            return -1;
        }
        *slots[k] = args[count + i];
    }
    if (parsed->meta == NULL || !PyBytes_Check(parsed->meta)) {
        PyErr_SetString(PyExc_TypeError, "meta must be bytes");
        return -1;
    }
    if (parsed->secret == Py_None) {
        parsed->secret = NULL;
    }
    if (parsed->secret != NULL && !PyBytes_Check(parsed->secret)) {
        PyErr_SetString(PyExc_TypeError, "secret must be bytes or None");
        return -1;
    }
    if (parsed->secret != NULL && PyBytes_GET_SIZE(parsed->secret) == 0) {
        agpy_refuse_empty_secret();
        return -1;
    }
    return 0;
}

/* The bodies given to submit, request and response: absent, a commitment to finish, or
 * raw bytes to commit to. */
struct bodies {
    struct ag_span raw[2]; /* borrowed from the arguments */
    bool present[2], is_raw[2];
    struct ag_commitment commitment[2];
};

static int
parse_body(struct agpy_state *state, PyObject *object, struct bodies *bodies,
           enum ag_role role)
{
    if (object == NULL || object == Py_None) {
        return 0;
    }
    bodies->present[role] = true;
    if (PyBytes_Check(object)) {
        bodies->is_raw[role] = true;
        bodies->raw[role].data = (const uint8_t *)PyBytes_AS_STRING(object);
        bodies->raw[role].size = (size_t)PyBytes_GET_SIZE(object);
        return 0;
    }
    return agpy_commitment_finish(state, object, &bodies->commitment[role]);
}

static void
commit_raw(const struct ag_ledger *ledger, PyObject *secret, const uint8_t *id,
           struct bodies *bodies)
{
    const uint8_t *bytes =
        secret != NULL ? (const uint8_t *)PyBytes_AS_STRING(secret) : NULL;
    size_t n = secret != NULL ? (size_t)PyBytes_GET_SIZE(secret) : 0;
    if (bodies->is_raw[0] && bodies->is_raw[1]) {
        ag_ledger_commit_two(ledger, bytes, n, id, bodies->raw, bodies->commitment);
        return;
    }
    for (int role = 0; role < 2; role++) {
        struct ag_commitment *c = &bodies->commitment[role];
        if (bodies->is_raw[role]) {
            ag_ledger_commitment(ledger, bytes, n, id, (enum ag_role)role, c);
            (void)ag_commitment_update(c, bodies->raw[role].data,
                                       bodies->raw[role].size);
            ag_commitment_finish(c);
        }
    }
}

PyObject *
agpy_ledger_submit(PyObject *self, PyObject *const *args, Py_ssize_t count,
                   PyObject *kwnames)
{
    struct submit_args parsed = {0};
    struct bodies bodies; /* of `commitment` only what is present is ever written */
    struct ag_error err;
    uint8_t id[AG_UUID_SIZE];
    uint64_t index = 0;
    int status = AG_OK;
    memset(bodies.raw, 0, sizeof(bodies.raw));
    memset(bodies.present, 0, sizeof(bodies.present));
    memset(bodies.is_raw, 0, sizeof(bodies.is_raw));
    if (parse_submit(args, count, kwnames, &parsed) < 0 ||
        parse_body(LEDGER(self)->state, parsed.request, &bodies, AG_ROLE_REQUEST) < 0 ||
        parse_body(LEDGER(self)->state, parsed.response, &bodies, AG_ROLE_RESPONSE) <
            0) {
        return NULL;
    }
    const uint8_t *meta = (const uint8_t *)PyBytes_AS_STRING(parsed.meta);
    size_t meta_n = (size_t)PyBytes_GET_SIZE(parsed.meta);
    bool raw = bodies.is_raw[0] || bodies.is_raw[1];
    if (raw) {
        status = ag_meta_id(meta, meta_n, id, &err);
        if (status != AG_OK) {
            return agpy_ledger_raise(self, status, &err);
        }
    }
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    PyThreadState *detached = NULL;
    if (bodies.raw[0].size + bodies.raw[1].size >= AG_DETACH_MIN) {
        detached = PyEval_SaveThread();
    }
    if (raw) {
        commit_raw(ledger, parsed.secret, id, &bodies);
    }
    status = ag_ledger_submit(
        ledger, meta, meta_n, bodies.present[0] ? &bodies.commitment[0] : NULL,
        bodies.present[1] ? &bodies.commitment[1] : NULL, &index, &err);
    if (detached != NULL) {
        PyEval_RestoreThread(detached);
    }
    agpy_ledger_release(self);
    return status == AG_OK ? PyLong_FromUnsignedLongLong(index)
                           : agpy_ledger_raise(self, status, &err);
}

/* ---- commitments ---- */

static int
parse_commitment_args(PyObject *args, PyObject *kwargs, const char *format, uint8_t *id,
                      enum ag_role *role, const char **secret, Py_ssize_t *secret_n)
{
    static char *names[] = {"request_id", "role", "secret", NULL};
    PyObject *id_object = NULL, *role_object = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &id_object,
                                     &role_object, secret, secret_n) ||
        agpy_parse_id(id_object, id) < 0 || agpy_parse_role(role_object, role) < 0) {
        return -1;
    }
    if (*secret != NULL && *secret_n == 0) {
        agpy_refuse_empty_secret();
        return -1;
    }
    return 0;
}

/* The commitment that `commitment` and `salt` return a part of. */
static int
make_commitment(PyObject *self, PyObject *args, PyObject *kwargs, const char *format,
                struct ag_commitment *commitment)
{
    uint8_t id[AG_UUID_SIZE];
    enum ag_role role = AG_ROLE_REQUEST;
    const char *secret = NULL;
    Py_ssize_t secret_n = 0;
    if (parse_commitment_args(args, kwargs, format, id, &role, &secret, &secret_n) <
        0) {
        return -1;
    }
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return -1;
    }
    ag_ledger_commitment(ledger, (const uint8_t *)secret, (size_t)secret_n, id, role,
                         commitment);
    agpy_ledger_release(self);
    return 0;
}

AGPY_LEDGER_DOC(
    commitment,
    "commitment($self, request_id, role, *, secret=None)\n--\n\n"
    "A new Commitment with `secret`, or with the shard's default subject secret.");

PyObject *
agpy_ledger_commitment(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct ag_commitment commitment;
    if (make_commitment(self, args, kwargs, "OO|$z#:commitment", &commitment) < 0) {
        return NULL;
    }
    return agpy_commitment_new(LEDGER(self)->state, &commitment);
}

AGPY_LEDGER_DOC(salt, "salt($self, request_id, role, *, secret=None)\n--\n\n"
                      "The 32-byte salt with which that body's commitment is made.");

PyObject *
agpy_ledger_salt(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct ag_commitment commitment;
    if (make_commitment(self, args, kwargs, "OO|$z#:salt", &commitment) < 0) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)commitment.salt, AG_HASH_SIZE);
}
