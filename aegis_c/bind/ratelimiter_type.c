/* aegis_c.RateLimiter: the table of rate limits that processes share. */
#include "limit_types.h"

#include <string.h>

static int
parse_sync(const char *text, enum ag_sync *sync)
{
    static const struct {
        const char *name;
        enum ag_sync value;
    } known[] = {
        {"auto", AG_SYNC_AUTO}, {"cas", AG_SYNC_CAS}, {"mutex", AG_SYNC_MUTEX}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(text, known[i].name) == 0) {
            *sync = known[i].value;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "sync must be 'auto', 'cas' or 'mutex', not '%s'",
                 text);
    return -1;
}

static PyObject *
limiter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "slots", "sync", NULL};
    PyObject *path_object = Py_None, *path = NULL, *self = NULL;
    Py_ssize_t slots = (Py_ssize_t)1 << 20;
    const char *sync = "auto";
    struct ag_table_options options = {0};
    struct ag_table *table = NULL;
    struct ag_error err;
    int status = AG_OK;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|O$ns:RateLimiter", names,
                                     &path_object, &slots, &sync) ||
        parse_sync(sync, &options.sync) < 0) {
        return NULL;
    }
    if (slots < 1) {
        return PyErr_Format(PyExc_ValueError, "slots must be at least 1, not %zd",
                            slots);
    }
    if (path_object != Py_None && !PyUnicode_FSConverter(path_object, &path)) {
        return NULL;
    }
    options.path = path != NULL ? PyBytes_AS_STRING(path) : NULL;
    options.slots = (uint64_t)slots;
    Py_BEGIN_ALLOW_THREADS
        status = ag_table_open(&options, &table, &err);
    Py_END_ALLOW_THREADS
    if (status != AG_OK) {
        agpy_raise(state, AGPY_LIMIT, status, &err);
        goto exit;
    }
    self = type->tp_alloc(type, 0);
    if (self == NULL) {
        ag_table_close(table);
        goto exit;
    }
    LIMITER(self)->table = table; /* transferred */
    LIMITER(self)->state = state;
exit:
    Py_XDECREF(path);
    return self;
}

PyDoc_STRVAR(
    limit_doc,
    "limit($self, name, *, rate, per, burst)\n--\n\n"
    "A Limit of `rate` units per `per` seconds, with room for `burst` at once.\n\n"
    "name: keys of limits with different names are different keys, in every\n"
    "process; limits of one name share them. rate, burst: int >= 1. ValueError.");

static PyObject *
limiter_limit(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"name", "rate", "per", "burst", NULL};
    PyObject *name = NULL, *rate = NULL, *per = NULL, *burst = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U$OOO:limit", names, &name, &rate,
                                     &per, &burst)) {
        return NULL;
    }
    return agpy_limit_make(self, name, rate, per, burst);
}

PyDoc_STRVAR(plan_doc, "plan($self, /, *limits)\n--\n\n"
                       "A Plan of 1 to 16 limits of this limiter, in this order.");

static PyObject *
limiter_plan(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    return agpy_plan_make(self, args, count);
}

PyDoc_STRVAR(
    stats_doc,
    "stats($self, /)\n--\n\n"
    "Sizes and counters as a dict of ints; reads the whole table.\n\n"
    "slots, live (keys with a level above zero), bytes, full (charges refused\n"
    "because both buckets of a key were full), debts_lost (debts not written for\n"
    "the same reason), cas (1: 128-bit swaps, 0: mutexes).");

static PyObject *
limiter_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_table_stats s;
    struct ag_table *table = LIMITER(self)->table;
    Py_BEGIN_ALLOW_THREADS
        ag_table_stats(table, ag_table_clock(table), &s);
    Py_END_ALLOW_THREADS
    return Py_BuildValue("{sKsKsKsKsKsi}", "slots", s.slots, "live", s.live, "bytes",
                         s.bytes, "full", s.full, "debts_lost", s.debts_lost, "cas",
                         (int)s.cas);
}

static PyObject *
limiter_path(PyObject *self, void *Py_UNUSED(closure))
{
    const char *path = ag_table_path(LIMITER(self)->table);
    if (path[0] == '\0') {
        Py_RETURN_NONE;
    }
    return PyUnicode_DecodeFSDefault(path);
}

static void
limiter_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ag_table_close(LIMITER(self)->table);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
limiter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef limiter_methods[] = {
    {"limit", AGPY_METHOD(limiter_limit), METH_VARARGS | METH_KEYWORDS, limit_doc},
    {"plan", AGPY_METHOD(limiter_plan), METH_FASTCALL, plan_doc},
    {"stats", limiter_stats, METH_NOARGS, stats_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef limiter_getset[] = {
    {"path", limiter_path, NULL, "The table's file, or None.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    limiter_doc,
    "RateLimiter(path=None, *, slots=1 << 20, sync='auto')\n--\n\n"
    "A table of rate limits (GCRA), exact for all threads and processes that open\n"
    "the same path, also after kill -9 of any of them.\n\n"
    "path: a file in a directory of mode 0700, best in a tmpfs; both are made when\n"
    "missing. None: memory of this process and its forked children. slots: of 16\n"
    "bytes, for keys that are live at one time, rounded up to a multiple of 8; full "
    "at\n"
    "about nine tenths; an existing file keeps its own number. sync: how slots are\n"
    "changed; 'auto' takes the CPU's 128-bit compare-and-swap, else mutexes.\n"
    "LimitError names the file when it is damaged, of another kind, version or owner,\n"
    "or when there is no room.");

static PyType_Slot limiter_slots[] = {
    {Py_tp_doc, (void *)limiter_doc},
    {Py_tp_new, limiter_new},
    {Py_tp_dealloc, limiter_dealloc},
    {Py_tp_traverse, limiter_traverse},
    {Py_tp_methods, limiter_methods},
    {Py_tp_getset, limiter_getset},
    {0, NULL},
};

PyType_Spec agpy_ratelimiter_spec = {
    .name = "aegis_c.RateLimiter",
    .basicsize = sizeof(struct agpy_limiter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = limiter_slots,
};
