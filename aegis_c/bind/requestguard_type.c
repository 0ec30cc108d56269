/* aegis_c.RequestGuard: the request-smuggling guard of one connection. It only
 * computes, for less than a microsecond a request, so nothing here detaches. */
#include "agpy.h"
#include "lock.h"

#include "http/request_guard.h"

struct requestguard_object {
    PyObject_HEAD
    struct agpy_lock lock;
    struct ag_guard guard; /* under lock */
};

#define REQUESTGUARD(object) ((struct requestguard_object *)(object))

static PyObject *
requestguard_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"head_bytes", "fields", "keep_websocket", NULL};
    Py_ssize_t head_bytes = AG_GUARD_HEAD_MAX;
    int fields = AG_GUARD_FIELDS_MAX, keep_websocket = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$nip:RequestGuard", names,
                                     &head_bytes, &fields, &keep_websocket)) {
        return NULL;
    }
    if (head_bytes < 64 || head_bytes > 1 << 20 || fields < 1 || fields > 10000) {
        return PyErr_Format(PyExc_ValueError,
                            "head_bytes must be 64 to 1048576 and fields 1 to 10000, "
                            "not %zd and %d",
                            head_bytes, fields);
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL || agpy_lock_init(&REQUESTGUARD(self)->lock) < 0) {
        Py_XDECREF(self);
        return NULL;
    }
    struct ag_guard_options options = {(size_t)head_bytes, (unsigned)fields,
                                       keep_websocket != 0};
    ag_guard_init(&REQUESTGUARD(self)->guard, &options);
    return self;
}

/* Appends (octets, last) to the list; `whole` is used when it is those octets. */
static int
add_piece(PyObject *list, const struct ag_guard_piece *piece, PyObject *whole)
{
    PyObject *octets = NULL, *item = NULL;
    int result = -1;
    if (piece->data == (const uint8_t *)PyBytes_AS_STRING(whole) &&
        piece->size == (size_t)PyBytes_GET_SIZE(whole)) {
        octets = Py_NewRef(whole);
    } else {
        octets = PyBytes_FromStringAndSize((const char *)piece->data,
                                           (Py_ssize_t)piece->size);
    }
    if (octets != NULL) {
        item = PyTuple_Pack(2, octets, piece->last ? Py_True : Py_False);
    }
    if (item != NULL) {
        result = PyList_Append(list, item);
    }
    Py_XDECREF(octets);
    Py_XDECREF(item);
    return result;
}

PyDoc_STRVAR(
    feed_doc,
    "feed($self, data, /)\n--\n\n"
    "Read what arrived; returns the pieces that may go to the parser.\n\n"
    "Each is (bytes, last): a message ends with the one that says so. When the\n"
    "guard refuses, `violation` says why; what was before it is still returned.");

static PyObject *
requestguard_feed(PyObject *object, PyObject *data)
{
    struct requestguard_object *self = REQUESTGUARD(object);
    if (!PyBytes_Check(data)) {
        return PyErr_Format(PyExc_TypeError, "data must be bytes, not %.100s",
                            Py_TYPE(data)->tp_name);
    }
    PyObject *list = PyList_New(0);
    if (list == NULL) {
        return NULL;
    }
    const uint8_t *next = (const uint8_t *)PyBytes_AS_STRING(data);
    size_t left = (size_t)PyBytes_GET_SIZE(data);
    int status = AG_OK, failed = 0;
    agpy_lock_acquire(&self->lock);
    while (left > 0 && status == AG_OK && !failed) {
        struct ag_guard_piece piece;
        size_t used = 0;
        status = ag_guard_next(&self->guard, next, left, &used, &piece);
        next += used;
        left -= used;
        if (status == AG_OK && piece.size > 0) {
            failed = add_piece(list, &piece, data) < 0;
        }
    }
    agpy_lock_release(&self->lock);
    if (status == AG_ENOMEM) {
        PyErr_NoMemory();
        failed = 1;
    }
    if (failed) {
        Py_CLEAR(list);
    }
    return list;
}

PyDoc_STRVAR(answered_doc,
             "answered($self, /)\n--\n\n"
             "The last message has been answered, without an upgrade of the protocol.");

static PyObject *
requestguard_answered(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    struct requestguard_object *self = REQUESTGUARD(object);
    agpy_lock_acquire(&self->lock);
    ag_guard_answered(&self->guard);
    agpy_lock_release(&self->lock);
    Py_RETURN_NONE;
}

static PyObject *
requestguard_state(PyObject *object, void *Py_UNUSED(closure))
{
    static const char *const names[] = {
        [AG_GUARD_IDLE] = "idle",
        [AG_GUARD_IN_HEAD] = "head",
        [AG_GUARD_IN_BODY] = "body",
        [AG_GUARD_REFUSED] = "refused",
    };
    struct requestguard_object *self = REQUESTGUARD(object);
    agpy_lock_acquire(&self->lock);
    const char *name = names[self->guard.state];
    agpy_lock_release(&self->lock);
    return PyUnicode_InternFromString(name);
}

static PyObject *
requestguard_violation(PyObject *object, void *Py_UNUSED(closure))
{
    struct requestguard_object *self = REQUESTGUARD(object);
    agpy_lock_acquire(&self->lock);
    bool refused = self->guard.state == AG_GUARD_REFUSED;
    struct ag_guard_said said = ag_guard_say(self->guard.fault);
    uint64_t offset = self->guard.offset;
    agpy_lock_release(&self->lock);
    if (!refused) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(issK)", said.status, said.code, said.text,
                         (unsigned long long)offset);
}

static void
requestguard_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ag_guard_clear(&REQUESTGUARD(self)->guard);
    agpy_lock_free(&REQUESTGUARD(self)->lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
requestguard_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef requestguard_methods[] = {
    {"feed", requestguard_feed, METH_O, feed_doc},
    {"answered", requestguard_answered, METH_NOARGS, answered_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef requestguard_properties[] = {
    {"state", requestguard_state, NULL, "idle, head, body or refused", NULL},
    {"violation", requestguard_violation, NULL,
     "None, or (status, code, text, offset in the message) of a refusal", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    requestguard_doc,
    "RequestGuard(*, head_bytes=16384, fields=100, keep_websocket=False)\n--\n\n"
    "Refuses HTTP/1 requests that two parsers could read differently.\n\n"
    "One per connection: it reads the bytes before the parser does and passes them\n"
    "on one message at a time. Offers to upgrade are taken out of the head;\n"
    "keep_websocket leaves one to `websocket` in.");

static PyType_Slot requestguard_slots[] = {
    {Py_tp_doc, (void *)requestguard_doc},
    {Py_tp_new, requestguard_new},
    {Py_tp_dealloc, requestguard_dealloc},
    {Py_tp_traverse, requestguard_traverse},
    {Py_tp_methods, requestguard_methods},
    {Py_tp_getset, requestguard_properties},
    {0, NULL},
};

PyType_Spec agpy_requestguard_spec = {
    .name = "aegis_c.RequestGuard",
    .basicsize = sizeof(struct requestguard_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = requestguard_slots,
};
