/* aegis_c.HandOver: puts a finished call on the background queue and wakes its workers,
 * in one call that runs no Python of its own. Every call of the gateway pays this. */
#include "agpy.h"

#include <stdbool.h>
#include <stddef.h>

#include "base/clock.h"

struct handover_object {
    PyObject_HEAD
    PyObject *append;    /* of the queue */
    PyObject *call_soon; /* of the loop */
    PyObject *wake;      /* its argument */
    PyObject *context;   /* its `context`: else it copies one each time */
    PyObject *names;     /* ("context",) */
    bool asleep;         /* a worker waits to be woken, and nobody has asked for it */
    bool closed;
};

#define HANDOVER(object) ((struct handover_object *)(object))

static PyObject *
handover_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue", "call_soon", "wake", "context", NULL};
    PyObject *queue = NULL, *call_soon = NULL, *wake = NULL, *context = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOOO:HandOver", names, &queue,
                                     &call_soon, &wake, &context)) {
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    HANDOVER(self)->call_soon = Py_NewRef(call_soon);
    HANDOVER(self)->wake = Py_NewRef(wake);
    HANDOVER(self)->context = Py_NewRef(context);
    HANDOVER(self)->asleep = true;
    HANDOVER(self)->names = Py_BuildValue("(s)", "context");
    HANDOVER(self)->append = PyObject_GetAttrString(queue, "append");
    if (HANDOVER(self)->names == NULL || HANDOVER(self)->append == NULL) {
        Py_CLEAR(self);
    }
    return self;
}

/* (when, session, job, arguments) */
static PyObject *
make_item(PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *arguments = PyTuple_New(nargs - 2);
    PyObject *when = PyFloat_FromDouble((double)ag_clock_ns() * 1e-9);
    PyObject *item = PyTuple_New(4);
    if (arguments == NULL || when == NULL || item == NULL) {
        Py_XDECREF(arguments);
        Py_XDECREF(when);
        Py_XDECREF(item);
        return NULL;
    }
    for (Py_ssize_t i = 2; i < nargs; i++) {
        PyTuple_SET_ITEM(arguments, i - 2, Py_NewRef(args[i]));
    }
    PyTuple_SET_ITEM(item, 0, when);
    PyTuple_SET_ITEM(item, 1, Py_NewRef(args[0]));
    PyTuple_SET_ITEM(item, 2, Py_NewRef(args[1]));
    PyTuple_SET_ITEM(item, 3, arguments);
    return item;
}

PyDoc_STRVAR(spawn_doc,
             "spawn($self, session, job, /, *arguments)\n--\n\n"
             "Append (now, session, job, arguments) to the queue, and ask the loop to\n"
             "wake a worker if one sleeps. now: seconds of CLOCK_MONOTONIC.\n\n"
             "From the loop's own thread only. RuntimeError after close().");

static PyObject *
handover_spawn(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    struct handover_object *h = HANDOVER(self);
    if (nargs < 2) {
        PyErr_SetString(PyExc_TypeError, "spawn() takes a session and a job");
        return NULL;
    }
    if (h->closed) {
        PyErr_SetString(PyExc_RuntimeError,
                        "the background queue is closed; the job was not taken");
        return NULL;
    }
    PyObject *item = make_item(args, nargs);
    if (item == NULL) {
        return NULL;
    }
    if (h->asleep) {
        PyObject *const call[] = {h->wake, h->context};
        PyObject *handle = PyObject_Vectorcall(h->call_soon, call, 1, h->names);
        if (handle == NULL) {
            Py_DECREF(item);
            return NULL;
        }
        Py_DECREF(handle);
        h->asleep = false;
    }
    PyObject *done = PyObject_CallOneArg(h->append, item);
    Py_DECREF(item);
    return done;
}

PyDoc_STRVAR(sleeps_doc, "sleeps($self, /)\n--\n\n"
                         "A worker found the queue empty and waits to be woken.");

static PyObject *
handover_sleeps(PyObject *self, PyObject *unused)
{
    (void)unused;
    HANDOVER(self)->asleep = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\nTake no more jobs.");

static PyObject *
handover_close(PyObject *self, PyObject *unused)
{
    (void)unused;
    HANDOVER(self)->closed = true;
    Py_RETURN_NONE;
}

static int
handover_clear(PyObject *self)
{
    Py_CLEAR(HANDOVER(self)->append);
    Py_CLEAR(HANDOVER(self)->call_soon);
    Py_CLEAR(HANDOVER(self)->wake);
    Py_CLEAR(HANDOVER(self)->context);
    Py_CLEAR(HANDOVER(self)->names);
    return 0;
}

static void
handover_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)handover_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
handover_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(HANDOVER(self)->append);
    Py_VISIT(HANDOVER(self)->call_soon);
    Py_VISIT(HANDOVER(self)->wake);
    Py_VISIT(HANDOVER(self)->context);
    Py_VISIT(HANDOVER(self)->names);
    return 0;
}

static PyMethodDef handover_methods[] = {
    {"spawn", AGPY_METHOD(handover_spawn), METH_FASTCALL, spawn_doc},
    {"sleeps", handover_sleeps, METH_NOARGS, sleeps_doc},
    {"close", handover_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    handover_doc,
    "HandOver(queue, call_soon, wake, context)\n--\n\n"
    "The entrance of a queue of jobs on one event loop.\n\n"
    "queue: what has append(). call_soon: of the loop. wake: called by the loop,\n"
    "in `context`, once for all jobs that came while the workers slept.");

static PyType_Slot handover_slots[] = {
    {Py_tp_doc, (void *)handover_doc},
    {Py_tp_new, handover_new},
    {Py_tp_dealloc, handover_dealloc},
    {Py_tp_traverse, handover_traverse},
    {Py_tp_clear, handover_clear},
    {Py_tp_methods, handover_methods},
    {0, NULL},
};

PyType_Spec agpy_handover_spec = {
    .name = "aegis_c.HandOver",
    .basicsize = sizeof(struct handover_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = handover_slots,
};
