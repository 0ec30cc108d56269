/* aegis_c.Commitment: a salted commitment to a body, taken chunk by chunk. */
#include "commitment_type.h"

#include <string.h>

#include "lock.h"

struct commitment_object {
    PyObject_HEAD
    struct agpy_lock lock;
    struct ag_commitment value; /* under lock */
};

#define COMMITMENT(object) ((struct commitment_object *)(object))

/* ---- arguments ---- */

int
agpy_parse_id(PyObject *object, uint8_t id[AG_UUID_SIZE])
{
    if (PyUnicode_Check(object)) {
        Py_ssize_t n = 0;
        const char *text = PyUnicode_AsUTF8AndSize(object, &n);
        if (text == NULL) {
            return -1;
        }
        if (ag_uuid_parse(text, (size_t)n, id) == AG_OK) {
            return 0;
        }
    } else if (PyBytes_Check(object)) {
        if (PyBytes_GET_SIZE(object) == AG_UUID_SIZE) {
            memcpy(id, PyBytes_AS_STRING(object), AG_UUID_SIZE);
            return 0;
        }
    } else {
        PyErr_Format(PyExc_TypeError, "request_id must be str or bytes, not %.100s",
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    PyErr_Format(PyExc_ValueError,
                 "request_id must be a UUID: 36 characters of text or 16 bytes, not %R",
                 object);
    return -1;
}

int
agpy_parse_role(PyObject *object, enum ag_role *role)
{
    if (PyUnicode_Check(object)) {
        if (PyUnicode_CompareWithASCIIString(object, "request") == 0) {
            *role = AG_ROLE_REQUEST;
            return 0;
        }
        if (PyUnicode_CompareWithASCIIString(object, "response") == 0) {
            *role = AG_ROLE_RESPONSE;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "role must be 'request' or 'response', not %R",
                 object);
    return -1;
}

void
agpy_refuse_empty_secret(void)
{
    PyErr_SetString(PyExc_ValueError, "secret is empty: use at least 16 random bytes");
}

/* ---- making ---- */

static PyObject *
allocate(PyTypeObject *type)
{
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL && agpy_lock_init(&COMMITMENT(self)->lock) < 0) {
        Py_CLEAR(self);
    }
    return self;
}

PyObject *
agpy_commitment_new(struct agpy_state *state, const struct ag_commitment *commitment)
{
    PyObject *self = allocate((PyTypeObject *)state->commitment_type);
    if (self != NULL) {
        COMMITMENT(self)->value = *commitment;
    }
    return self;
}

static PyObject *
commitment_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"secret", "request_id", "role", NULL};
    const char *secret = NULL;
    Py_ssize_t secret_n = 0;
    PyObject *id_object = NULL, *role_object = NULL;
    uint8_t id[AG_UUID_SIZE];
    enum ag_role role = AG_ROLE_REQUEST;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y#OO:Commitment", names, &secret,
                                     &secret_n, &id_object, &role_object) ||
        agpy_parse_id(id_object, id) < 0 || agpy_parse_role(role_object, &role) < 0) {
        return NULL;
    }
    if (secret_n == 0) {
        agpy_refuse_empty_secret();
        return NULL;
    }
    PyObject *self = allocate(type);
    if (self != NULL) {
        struct ag_hmac taken;
        ag_hmac_init(&taken, secret, (size_t)secret_n);
        ag_commitment_init(&COMMITMENT(self)->value, &taken, id, role);
    }
    return self;
}

int
agpy_commitment_finish(struct agpy_state *state, PyObject *object,
                       struct ag_commitment *commitment)
{
    if (!Py_IS_TYPE(object, (PyTypeObject *)state->commitment_type)) {
        PyErr_Format(PyExc_TypeError,
                     "a Commitment, bytes or None is needed, not %.100s",
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    struct commitment_object *self = COMMITMENT(object);
    agpy_lock_acquire(&self->lock);
    ag_commitment_finish(&self->value);
    *commitment = self->value;
    agpy_lock_release(&self->lock);
    return 0;
}

/* ---- methods ---- */

PyDoc_STRVAR(update_doc,
             "update($self, chunk, /)\n--\n\n"
             "Add the next octets of the body.\n\n"
             "Thread-safe at method level. ValueError once it is finished.");

static int
update_detached(struct commitment_object *self, const void *data, size_t n)
{
    int status = AG_OK;
    if (n >= AG_DETACH_MIN) {
        Py_BEGIN_ALLOW_THREADS
            status = ag_commitment_update(&self->value, data, n);
        Py_END_ALLOW_THREADS
    } else {
        status = ag_commitment_update(&self->value, data, n);
    }
    return status;
}

static PyObject *
commitment_update(PyObject *self, PyObject *chunk)
{
    Py_buffer view = {0};
    PyObject *copy = NULL; /* of a buffer that others may write while we are detached */
    int status = AG_OK;
    if (PyObject_GetBuffer(chunk, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    if (!view.readonly) {
        copy = PyBytes_FromStringAndSize(view.buf, view.len);
        PyBuffer_Release(&view);
        if (copy == NULL || PyObject_GetBuffer(copy, &view, PyBUF_SIMPLE) < 0) {
            Py_XDECREF(copy);
            return NULL;
        }
    }
    agpy_lock_acquire(&COMMITMENT(self)->lock);
    status = update_detached(COMMITMENT(self), view.buf, (size_t)view.len);
    agpy_lock_release(&COMMITMENT(self)->lock);
    PyBuffer_Release(&view);
    Py_XDECREF(copy);
    if (status != AG_OK) {
        PyErr_SetString(PyExc_ValueError, "commitment is finished: no more octets");
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(finish_doc,
             "finish($self, /)\n--\n\n"
             "End the body; return (number of octets, 32-byte commitment).\n\n"
             "commitment = HMAC-SHA-256(salt, octets). May be called again.");

static PyObject *
commitment_finish(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    agpy_lock_acquire(&COMMITMENT(self)->lock);
    ag_commitment_finish(&COMMITMENT(self)->value);
    struct ag_commitment value = COMMITMENT(self)->value;
    agpy_lock_release(&COMMITMENT(self)->lock);
    return Py_BuildValue("Ky#", (unsigned long long)value.octets, value.digest,
                         (Py_ssize_t)AG_HASH_SIZE);
}

static PyObject *
commitment_salt(PyObject *self, void *Py_UNUSED(closure))
{
    /* Set when the object was made, never changed. */
    return PyBytes_FromStringAndSize((const char *)COMMITMENT(self)->value.salt,
                                     AG_HASH_SIZE);
}

static void
commitment_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    agpy_lock_free(&COMMITMENT(self)->lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
commitment_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef commitment_methods[] = {
    {"update", commitment_update, METH_O, update_doc},
    {"finish", commitment_finish, METH_NOARGS, finish_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef commitment_getset[] = {
    {"salt", commitment_salt, NULL,
     "The 32-byte salt: HMAC-SHA-256(secret, label, id, role).", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    commitment_doc,
    "Commitment(secret, request_id, role)\n--\n\n"
    "A salted commitment to the body of a request or response.\n\n"
    "secret: bytes, the subject's. request_id: UUID as text or 16 bytes. role:\n"
    "'request' or 'response'. The salt is HMAC-SHA-256(secret, 'aegis/salt/v1' ||\n"
    "id || role); who knows it can check the body, nobody else can guess it.");

static PyType_Slot commitment_slots[] = {
    {Py_tp_doc, (void *)commitment_doc},
    {Py_tp_new, commitment_new},
    {Py_tp_dealloc, commitment_dealloc},
    {Py_tp_traverse, commitment_traverse},
    {Py_tp_methods, commitment_methods},
    {Py_tp_getset, commitment_getset},
    {0, NULL},
};

PyType_Spec agpy_commitment_spec = {
    .name = "aegis_c.Commitment",
    .basicsize = sizeof(struct commitment_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = commitment_slots,
};
