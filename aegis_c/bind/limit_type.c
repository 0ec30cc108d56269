/* aegis_c.Limit: one named rate over the table of a RateLimiter. */
#include "limit_types.h"

#include <math.h>
#include <structmember.h>

/* ---- numbers ---- */

int
agpy_units(PyObject *object, const char *what, uint64_t *units)
{
    int overflow = 0;
    if (!PyLong_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s must be an int, not %.100s", what,
                     Py_TYPE(object)->tp_name);
        return -1;
    }
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (value < 0 && overflow <= 0) {
        PyErr_Format(PyExc_ValueError, "%s must not be negative, but is %R", what,
                     object);
        return -1;
    }
    *units = overflow > 0 ? UINT64_MAX : (uint64_t)value;
    return 0;
}

/* Seconds, int or float, as nanoseconds. */
static int
duration(PyObject *object, uint64_t *ns)
{
    double seconds = PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    if (!(seconds > 0) || seconds * 1e9 < 1 || seconds * 1e9 >= (double)AG_LEVEL_MAX) {
        PyErr_Format(PyExc_ValueError,
                     "per must be seconds, above zero and below 146 years, not %R",
                     object);
        return -1;
    }
    *ns = (uint64_t)llround(seconds * 1e9);
    return 0;
}

PyObject *
agpy_raise_too_big(struct agpy_limit *limit, uint64_t cost)
{
    struct ag_error err;
    const char *name = PyUnicode_AsUTF8(limit->name);
    if (name == NULL) {
        PyErr_Clear();
        name = "?";
    }
    (void)ag_fail(&err, AG_ETOOBIG, "the cost can never pass the limit \"%.150s\"",
                  name);
    char expected[64], found[64];
    (void)PyOS_snprintf(expected, sizeof(expected), "at most its burst of %llu",
                        (unsigned long long)limit->limit.gcra.burst);
    (void)PyOS_snprintf(found, sizeof(found),
                        cost == UINT64_MAX ? "more than %llu" : "%llu",
                        (unsigned long long)(cost == UINT64_MAX ? INT64_MAX : cost));
    ag_error_pair(&err, expected, found);
    ag_error_advice(&err, "Ask for less at a time, or raise the burst");
    return agpy_raise(limit->state, AGPY_LIMIT, AG_ETOOBIG, &err);
}

/* ---- making ---- */

PyObject *
agpy_limit_make(PyObject *limiter, PyObject *name, PyObject *rate, PyObject *per,
                PyObject *burst)
{
    struct agpy_state *state = LIMITER(limiter)->state;
    PyTypeObject *type = (PyTypeObject *)state->limit_type;
    uint64_t rate_units = 0, per_ns = 0, burst_units = 0;
    struct ag_limit limit;
    struct ag_error err;
    Py_ssize_t n = 0;
    const char *text = PyUnicode_AsUTF8AndSize(name, &n);
    if (text == NULL || agpy_units(rate, "rate", &rate_units) < 0 ||
        duration(per, &per_ns) < 0 || agpy_units(burst, "burst", &burst_units) < 0) {
        return NULL;
    }
    int status = ag_limit_init(&limit, LIMITER(limiter)->table, text, (size_t)n,
                               rate_units, per_ns, burst_units, &err);
    if (status != AG_OK) {
        return agpy_raise(state, AGPY_LIMIT, status, &err);
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL) {
        LIMIT(self)->limit = limit;
        LIMIT(self)->limiter = Py_NewRef(limiter);
        LIMIT(self)->name = Py_NewRef(name);
        LIMIT(self)->state = state;
    }
    return self;
}

/* ---- arguments (key, second=...) ---- */

struct request {
    uint64_t tag;
    uint64_t cost;
};

/* Parses (key, cost) given by position or name; cost is 1 unless `required`. */
static inline int
parse(PyObject *self, const char *function, PyObject *const *args, Py_ssize_t count,
      PyObject *kwnames, bool required, struct request *request)
{
    PyObject *key = count > 0 ? args[0] : NULL;
    PyObject *cost = count > 1 ? args[1] : NULL;
    Py_ssize_t keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < keywords; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        PyObject **place = PyUnicode_CompareWithASCIIString(name, "key") == 0    ? &key
                           : PyUnicode_CompareWithASCIIString(name, "cost") == 0 ? &cost
                                                                                 : NULL;
        if (place == NULL || *place != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected argument %R",
                         function, name);
            return -1;
        }
        *place = args[count + i];
    }
    if (count > 2 || key == NULL || (required && cost == NULL)) {
        PyErr_Format(PyExc_TypeError, "%s() takes a key and a cost", function);
        return -1;
    }
    const char *octets = NULL;
    Py_ssize_t n = 0;
    request->cost = 1;
    if (agpy_key(key, &octets, &n) < 0 ||
        (cost != NULL && agpy_units(cost, "cost", &request->cost) < 0)) {
        return -1;
    }
    request->tag = ag_limit_tag(&LIMIT(self)->limit, octets, (size_t)n);
    ag_table_prefetch(LIMIT(self)->limit.table, request->tag);
    return 0;
}

/* ---- methods ---- */

PyDoc_STRVAR(
    acquire_doc,
    "acquire($self, /, key, cost=1)\n--\n\n"
    "Charge `cost` units to the key if they fit. The fast call.\n\n"
    "Returns the units that remain (>= 0), or, refused and nothing charged,\n"
    "-(nanoseconds to wait). A cost of 0 charges nothing and passes only where\n"
    "a cost of 1 would. LimitError: the cost is above the burst.");

static PyObject *
limit_acquire(PyObject *self, PyObject *const *args, Py_ssize_t count,
              PyObject *kwnames)
{
    struct request request;
    struct ag_charge charge;
    if (parse(self, "acquire", args, count, kwnames, false, &request) < 0) {
        return NULL;
    }
    const struct ag_limit *limit = &LIMIT(self)->limit;
    if (ag_limit_acquire(limit, request.tag, request.cost, ag_table_clock(limit->table),
                         &charge) != AG_OK) {
        return agpy_raise_too_big(LIMIT(self), request.cost);
    }
    if (charge.allowed) {
        return PyLong_FromUnsignedLongLong(
            ag_gcra_remaining(&limit->gcra, charge.level));
    }
    return PyLong_FromLongLong(-(long long)charge.wait);
}

PyDoc_STRVAR(check_doc,
             "check($self, /, key, cost=1)\n--\n\n"
             "What acquire would answer now, as a Decision. Charges nothing.\n\n"
             "LimitError: the cost is above the burst.");

static PyObject *
limit_check(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *kwnames)
{
    struct request request;
    struct ag_charge charge;
    if (parse(self, "check", args, count, kwnames, false, &request) < 0) {
        return NULL;
    }
    const struct ag_limit *limit = &LIMIT(self)->limit;
    if (ag_limit_look(limit, request.tag, request.cost, ag_table_clock(limit->table),
                      &charge) != AG_OK) {
        return agpy_raise_too_big(LIMIT(self), request.cost);
    }
    return agpy_decision_make(LIMIT(self), &charge, NULL);
}

PyDoc_STRVAR(reserve_doc,
             "reserve($self, /, key, cost)\n--\n\n"
             "Charge `cost` units now, to be corrected by settle(): a Reservation.\n\n"
             "Its decision says whether they fitted; refused, nothing was charged.\n"
             "LimitError: the cost is above the burst.");

static PyObject *
limit_reserve(PyObject *self, PyObject *const *args, Py_ssize_t count,
              PyObject *kwnames)
{
    struct request request;
    struct ag_charge charge;
    if (parse(self, "reserve", args, count, kwnames, true, &request) < 0) {
        return NULL;
    }
    const struct ag_limit *limit = &LIMIT(self)->limit;
    uint64_t now = ag_table_clock(limit->table);
    if (ag_limit_acquire(limit, request.tag, request.cost, now, &charge) != AG_OK) {
        return agpy_raise_too_big(LIMIT(self), request.cost);
    }
    const struct agpy_part part = {request.tag, request.cost, charge.at};
    return agpy_reservation_make(LIMIT(self)->state, self,
                                 agpy_decision_make(LIMIT(self), &charge, NULL),
                                 charge.allowed, &part, 1);
}

PyDoc_STRVAR(
    settle_doc,
    "settle($self, reservation, used, /)\n--\n\n"
    "Correct a reservation of this limit to what was used, once.\n\n"
    "Unused units come back, except what has drained meanwhile; units used\n"
    "beyond the reservation are charged in full, as debt that later calls wait\n"
    "for. LimitError: settled before, refused, or made before a fork.");

static PyObject *
limit_settle(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t used = 0;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "settle() takes a reservation and a number");
        return NULL;
    }
    if (agpy_units(args[1], "used", &used) < 0) {
        return NULL;
    }
    struct agpy_reservation *reservation =
        agpy_reservation_take(LIMIT(self)->state, self, args[0]);
    if (reservation == NULL) {
        return NULL;
    }
    const struct ag_limit *limit = &LIMIT(self)->limit;
    (void)ag_limit_settle(limit, reservation->parts[0].tag, reservation->parts[0].cost,
                          used, reservation->parts[0].then,
                          ag_table_clock(limit->table));
    Py_RETURN_NONE;
}

/* ---- description ---- */

static PyObject *
limit_number(PyObject *self, void *closure)
{
    const struct ag_gcra *g = &LIMIT(self)->limit.gcra;
    switch (*(const char *)closure) {
    case 'r':
        return PyLong_FromUnsignedLongLong(g->rate);
    case 'b':
        return PyLong_FromUnsignedLongLong(g->burst);
    default:
        return PyFloat_FromDouble((double)g->per_ns / 1e9);
    }
}

static PyObject *
limit_repr(PyObject *self)
{
    const struct ag_gcra *g = &LIMIT(self)->limit.gcra;
    char per[48];
    (void)PyOS_snprintf(per, sizeof(per), "%.9g", (double)g->per_ns / 1e9);
    return PyUnicode_FromFormat("Limit(%R, rate=%llu, per=%s, burst=%llu)",
                                LIMIT(self)->name, (unsigned long long)g->rate, per,
                                (unsigned long long)g->burst);
}

static int
limit_clear(PyObject *self)
{
    Py_CLEAR(LIMIT(self)->limiter);
    Py_CLEAR(LIMIT(self)->name);
    return 0;
}

static void
limit_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)limit_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
limit_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(LIMIT(self)->limiter);
    Py_VISIT(LIMIT(self)->name);
    return 0;
}

static PyMethodDef limit_methods[] = {
    {"acquire", AGPY_METHOD(limit_acquire), METH_FASTCALL | METH_KEYWORDS, acquire_doc},
    {"check", AGPY_METHOD(limit_check), METH_FASTCALL | METH_KEYWORDS, check_doc},
    {"reserve", AGPY_METHOD(limit_reserve), METH_FASTCALL | METH_KEYWORDS, reserve_doc},
    {"settle", AGPY_METHOD(limit_settle), METH_FASTCALL, settle_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef limit_members[] = {
    {"name", T_OBJECT, offsetof(struct agpy_limit, name), READONLY,
     "The limit's name."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef limit_getset[] = {
    {"rate", limit_number, NULL, "Units per period.", (void *)"r"},
    {"per", limit_number, NULL, "The period in seconds.", (void *)"p"},
    {"burst", limit_number, NULL, "Units that fit an idle key.", (void *)"b"},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(limit_doc,
             "One named limit; made by RateLimiter.limit(). Keys are str or bytes.");

static PyType_Slot limit_slots[] = {
    {Py_tp_doc, (void *)limit_doc},
    {Py_tp_repr, limit_repr},
    {Py_tp_dealloc, limit_dealloc},
    {Py_tp_traverse, limit_traverse},
    {Py_tp_clear, limit_clear},
    {Py_tp_methods, limit_methods},
    {Py_tp_members, limit_members},
    {Py_tp_getset, limit_getset},
    {0, NULL},
};

PyType_Spec agpy_limit_spec = {
    .name = "aegis_c.Limit",
    .basicsize = sizeof(struct agpy_limit),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = limit_slots,
};
