/* aegis_c.LoopWatch: how late an event loop is, measured by a native thread. */
#include "agpy.h"
#include "fork.h"

#include "loop/watch.h"

struct loopwatch_object {
    PyObject_HEAD
    struct ag_watch *watch; /* owned; not freed in a forked child */
    unsigned forks;
};

#define LOOPWATCH(object) ((struct loopwatch_object *)(object))

static PyObject *
loopwatch_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"every", "slow", NULL};
    double every = 0.02, slow = 0.1;
    struct ag_watch *watch = NULL;
    struct ag_error err;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|$dd:LoopWatch",
                                                      names, &every, &slow)) {
        return NULL;
    }
    if (!(every >= 1e-4 && every <= 3600 && slow >= 1e-4 && slow <= 3600)) {
        PyErr_SetString(PyExc_ValueError,
                        "every and slow must be from 0.0001 to 3600 seconds");
        return NULL;
    }
    int status =
        ag_watch_start((uint64_t)(every * 1e9), (uint64_t)(slow * 1e9), &watch, &err);
    if (status != AG_OK) {
        return agpy_raise(state, AGPY_TREE, status, &err);
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        ag_watch_stop(watch);
        ag_watch_free(watch);
        return NULL;
    }
    LOOPWATCH(self)->watch = watch; /* transferred */
    LOOPWATCH(self)->forks = agpy_fork_count();
    return self;
}

/* The watch, or NULL with an exception in a forked child, which has no such thread. */
static struct ag_watch *
own(PyObject *self)
{
    if (LOOPWATCH(self)->forks != agpy_fork_count()) {
        struct agpy_state *state = agpy_state_of_type(Py_TYPE(self));
        if (state != NULL) {
            PyErr_SetString(state->aegis_error,
                            "the watch belongs to the parent process; make a new one");
        }
        return NULL;
    }
    return LOOPWATCH(self)->watch;
}

PyDoc_STRVAR(fileno_doc,
             "fileno($self, /)\n--\n\n"
             "Readable while an answer is wanted; it stays the watch's own.");

static PyObject *
loopwatch_fileno(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_watch *watch = own(self);
    return watch != NULL ? PyLong_FromLong(ag_watch_fd(watch)) : NULL;
}

PyDoc_STRVAR(
    answer_doc,
    "answer($self, /)\n--\n\n"
    "The loop's answer, for loop.add_reader; returns its lag in nanoseconds.\n\n"
    "0 when no beat was open.");

static PyObject *
loopwatch_answer(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_watch *watch = own(self);
    return watch != NULL ? PyLong_FromUnsignedLongLong(ag_watch_answer(watch)) : NULL;
}

PyDoc_STRVAR(
    wait_doc,
    "wait($self, /, *, end=False)\n--\n\n"
    "Wait for the next stall; returns how late the loop is so far, in nanoseconds.\n\n"
    "end: until the stalled beat is answered; how late that was. 0: closed. For one\n"
    "thread, never the loop's.");

static PyObject *
loopwatch_wait(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"end", NULL};
    int end = 0;
    uint64_t late = 0;
    struct ag_watch *watch = own(self);
    if (watch == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:wait", names, &end)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        late = ag_watch_wait(watch, end);
    Py_END_ALLOW_THREADS
    return PyLong_FromUnsignedLongLong(late);
}

PyDoc_STRVAR(
    stats_doc,
    "stats($self, /)\n--\n\n"
    "A dict: lags_us, a list whose item k counts lags below 2**k us (the last\n"
    "one: and above); sum_ns, max_ns, stalls.");

static PyObject *
loopwatch_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_watch_stats stats;
    struct ag_watch *watch = own(self);
    if (watch == NULL) {
        return NULL;
    }
    ag_watch_stats(watch, &stats);
    PyObject *lags = PyList_New(AG_WATCH_BUCKETS);
    for (Py_ssize_t k = 0; lags != NULL && k < AG_WATCH_BUCKETS; k++) {
        PyObject *count = PyLong_FromUnsignedLongLong(stats.lags[k]);
        if (count == NULL) {
            Py_CLEAR(lags);
        } else {
            PyList_SET_ITEM(lags, k, count);
        }
    }
    if (lags == NULL) {
        return NULL;
    }
    return Py_BuildValue("{sNsKsKsK}", "lags_us", lags, "sum_ns", stats.sum_ns,
                         "max_ns", stats.max_ns, "stalls", stats.stalls);
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\n"
                        "Beat no more and end whoever waits; may be called again.");

static PyObject *
loopwatch_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_watch *watch = own(self);
    if (watch == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        ag_watch_stop(watch);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void
loopwatch_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (LOOPWATCH(self)->forks == agpy_fork_count()) {
        Py_BEGIN_ALLOW_THREADS
            ag_watch_stop(LOOPWATCH(self)->watch);
        Py_END_ALLOW_THREADS
        ag_watch_free(LOOPWATCH(self)->watch);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static int
loopwatch_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef loopwatch_methods[] = {
    {"fileno", loopwatch_fileno, METH_NOARGS, fileno_doc},
    {"answer", loopwatch_answer, METH_NOARGS, answer_doc},
    {"wait", AGPY_METHOD(loopwatch_wait), METH_VARARGS | METH_KEYWORDS, wait_doc},
    {"stats", loopwatch_stats, METH_NOARGS, stats_doc},
    {"close", loopwatch_close, METH_NOARGS, close_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    loopwatch_doc,
    "LoopWatch(*, every=0.02, slow=0.1)\n--\n\n"
    "How late an event loop is, measured by a thread that needs no GIL.\n\n"
    "Every so many seconds it makes fileno() readable and takes the time until\n"
    "answer(); a loop that is `slow` seconds late is a stall, see wait().");

static PyType_Slot loopwatch_slots[] = {
    {Py_tp_doc, (void *)loopwatch_doc}, {Py_tp_new, loopwatch_new},
    {Py_tp_dealloc, loopwatch_dealloc}, {Py_tp_traverse, loopwatch_traverse},
    {Py_tp_methods, loopwatch_methods}, {0, NULL},
};

PyType_Spec agpy_loopwatch_spec = {
    .name = "aegis_c.LoopWatch",
    .basicsize = sizeof(struct loopwatch_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = loopwatch_slots,
};
