/* aegis_c.ConcurrencyLimiter: caps on calls in flight, across processes. The core
 * object has its own lock, held for well below a microsecond, so nothing here detaches
 * but opening and reaping. */
#include "limit_types.h"

#include "limit/concurrency.h"

struct concurrency_object {
    PyObject_HEAD
    struct ag_concurrency *limiter; /* owned */
    struct agpy_state *state;       /* borrowed: the type keeps the module alive */
};

#define CONCURRENCY(object) ((struct concurrency_object *)(object))

static PyObject *
concurrency_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "slots", "workers", NULL};
    PyObject *path_object = Py_None, *path = NULL, *self = NULL;
    Py_ssize_t slots = (Py_ssize_t)1 << 14;
    int workers = 64;
    struct ag_concurrency_options options = {0};
    struct ag_concurrency *limiter = NULL;
    struct ag_error err;
    int status = AG_OK;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|O$ni:ConcurrencyLimiter", names,
                                     &path_object, &slots, &workers)) {
        return NULL;
    }
    if (slots < 1 || workers < 1) {
        return PyErr_Format(PyExc_ValueError,
                            "slots and workers must be at least 1, not %zd and %d",
                            slots, workers);
    }
    if (path_object != Py_None && !PyUnicode_FSConverter(path_object, &path)) {
        return NULL;
    }
    options.path = path != NULL ? PyBytes_AS_STRING(path) : NULL;
    options.slots = (uint64_t)slots;
    options.workers = (uint32_t)workers;
    Py_BEGIN_ALLOW_THREADS
        status = ag_concurrency_open(&options, &limiter, &err);
    Py_END_ALLOW_THREADS
    if (status != AG_OK) {
        agpy_raise(state, AGPY_LIMIT, status, &err);
        goto exit;
    }
    self = type->tp_alloc(type, 0);
    if (self == NULL) {
        ag_concurrency_close(limiter);
        goto exit;
    }
    CONCURRENCY(self)->limiter = limiter; /* transferred */
    CONCURRENCY(self)->state = state;
exit:
    Py_XDECREF(path);
    return self;
}

static int
tag_of(PyObject *self, PyObject *key, uint64_t *tag)
{
    const char *octets = NULL;
    Py_ssize_t n = 0;
    if (agpy_key(key, &octets, &n) < 0) {
        return -1;
    }
    *tag = ag_concurrency_tag(CONCURRENCY(self)->limiter, octets, (size_t)n);
    return 0;
}

PyDoc_STRVAR(
    enter_doc,
    "enter($self, key, limit, /)\n--\n\n"
    "One more in flight for the key, of at most `limit` over all processes.\n\n"
    "Returns a lease > 0 for leave(), or 0 when refused. Never above the limit;\n"
    "two who enter the last place at the same moment may both be refused. A\n"
    "refusal first gives back what dead workers held, at most every 100 ms.");

static PyObject *
concurrency_enter(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t tag = 0, limit = 0;
    int64_t lease = 0;
    struct ag_error err;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "enter() takes a key and a limit");
        return NULL;
    }
    if (tag_of(self, args[0], &tag) < 0 || agpy_units(args[1], "limit", &limit) < 0) {
        return NULL;
    }
    if (limit == 0) {
        PyErr_SetString(PyExc_ValueError, "limit must be at least 1");
        return NULL;
    }
    int status =
        ag_concurrency_enter(CONCURRENCY(self)->limiter, tag, limit, &lease, &err);
    if (status != AG_OK) {
        return agpy_raise(CONCURRENCY(self)->state, AGPY_LIMIT, status, &err);
    }
    return PyLong_FromLongLong(lease);
}

PyDoc_STRVAR(leave_doc, "leave($self, lease, /)\n--\n\n"
                        "End a lease of this process; True when it was in force.\n\n"
                        "Leaving twice, or a lease of before a fork, does nothing.");

static PyObject *
concurrency_leave(PyObject *self, PyObject *lease)
{
    long long number = PyLong_AsLongLong(lease);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    return PyBool_FromLong(ag_concurrency_leave(CONCURRENCY(self)->limiter, number));
}

PyDoc_STRVAR(count_doc, "count($self, key, /)\n--\n\n"
                        "In flight for the key now, over all processes.");

static PyObject *
concurrency_count(PyObject *self, PyObject *key)
{
    uint64_t tag = 0;
    if (tag_of(self, key, &tag) < 0) {
        return NULL;
    }
    return PyLong_FromUnsignedLongLong(
        ag_concurrency_count(CONCURRENCY(self)->limiter, tag));
}

PyDoc_STRVAR(reap_doc, "reap($self, /)\n--\n\n"
                       "Give back what dead workers held; returns how many leases.");

static PyObject *
concurrency_reap(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    uint64_t sum = 0;
    Py_BEGIN_ALLOW_THREADS
        sum = ag_concurrency_reap(CONCURRENCY(self)->limiter);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(sum);
}

PyDoc_STRVAR(stats_doc,
             "stats($self, /)\n--\n\n"
             "Sizes and counters as a dict of ints; reads the whole table.\n\n"
             "slots, used (keys with something in flight), workers, rows (held by\n"
             "workers), in_flight, bytes, full (refused because no slot was free),\n"
             "reaped (given back for dead workers).");

static PyObject *
concurrency_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_concurrency_stats s;
    Py_BEGIN_ALLOW_THREADS
        ag_concurrency_stats(CONCURRENCY(self)->limiter, &s);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("{sKsKsKsKsKsKsKsK}", "slots", s.slots, "used", s.used,
                         "workers", s.workers, "rows", s.rows, "in_flight", s.in_flight,
                         "bytes", s.bytes, "full", s.full, "reaped", s.reaped);
}

static void
concurrency_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ag_concurrency_close(CONCURRENCY(self)->limiter);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
concurrency_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef concurrency_methods[] = {
    {"enter", AGPY_METHOD(concurrency_enter), METH_FASTCALL, enter_doc},
    {"leave", concurrency_leave, METH_O, leave_doc},
    {"count", concurrency_count, METH_O, count_doc},
    {"reap", concurrency_reap, METH_NOARGS, reap_doc},
    {"stats", concurrency_stats, METH_NOARGS, stats_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    concurrency_doc,
    "ConcurrencyLimiter(path=None, *, slots=1 << 14, workers=64)\n--\n\n"
    "Caps on what is in flight, exact over all processes that open the same path.\n\n"
    "A worker's share comes back when it ends, however it ends. path: as for\n"
    "RateLimiter. slots: keys in flight at one time. workers: open limiters of this\n"
    "path at one time, at most 1024. An existing file keeps its own numbers.");

static PyType_Slot concurrency_slots[] = {
    {Py_tp_doc, (void *)concurrency_doc}, {Py_tp_new, concurrency_new},
    {Py_tp_dealloc, concurrency_dealloc}, {Py_tp_traverse, concurrency_traverse},
    {Py_tp_methods, concurrency_methods}, {0, NULL},
};

PyType_Spec agpy_concurrency_spec = {
    .name = "aegis_c.ConcurrencyLimiter",
    .basicsize = sizeof(struct concurrency_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = concurrency_slots,
};
