/* aegis_c.Plan: several limits as one, all or nothing. */
#include "limit_types.h"

#include <structmember.h>

PyObject *
agpy_plan_make(PyObject *limiter, PyObject *const *limits, Py_ssize_t n)
{
    struct agpy_state *state = LIMITER(limiter)->state;
    PyTypeObject *type = (PyTypeObject *)state->plan_type;
    if (n < 1 || n > AG_PLAN_MAX) {
        return PyErr_Format(PyExc_ValueError, "a plan has 1 to %d limits, not %zd",
                            AG_PLAN_MAX, n);
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        if (Py_TYPE(limits[i]) != (PyTypeObject *)state->limit_type) {
            return PyErr_Format(PyExc_TypeError, "expected a Limit, not %.100s",
                                Py_TYPE(limits[i])->tp_name);
        }
        if (LIMIT(limits[i])->limiter != limiter) {
            return PyErr_Format(PyExc_ValueError, "%R belongs to another RateLimiter",
                                limits[i]);
        }
    }
    PyObject *self = type->tp_alloc(type, n);
    if (self != NULL) {
        PLAN(self)->limiter = Py_NewRef(limiter);
        PLAN(self)->state = state;
        for (Py_ssize_t i = 0; i < n; i++) {
            PLAN(self)->limits[i] = LIMIT(Py_NewRef(limits[i]));
        }
    }
    return self;
}

/* ---- charging ---- */

struct charging {
    const struct ag_limit *limits[AG_PLAN_MAX];
    uint64_t tags[AG_PLAN_MAX], costs[AG_PLAN_MAX];
    struct ag_charge charges[AG_PLAN_MAX];
    struct agpy_part parts[AG_PLAN_MAX];
    size_t n, refused;
    uint64_t now;
};

/* One number for all, or a tuple with one for each. */
static int
parse_units(PyObject *object, const char *what, size_t n, uint64_t units[])
{
    if (!PyTuple_Check(object)) {
        if (agpy_units(object, what, &units[0]) < 0) {
            return -1;
        }
        for (size_t i = 1; i < n; i++) {
            units[i] = units[0];
        }
        return 0;
    }
    if ((size_t)PyTuple_GET_SIZE(object) != n) {
        PyErr_Format(PyExc_ValueError, "%s has %zd numbers for %zu limits", what,
                     PyTuple_GET_SIZE(object), n);
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        if (agpy_units(PyTuple_GET_ITEM(object, (Py_ssize_t)i), what, &units[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Parses (keys, costs) and charges. */
static int
charge(PyObject *self, PyObject *keys, PyObject *costs, struct charging *c)
{
    c->n = (size_t)Py_SIZE(self);
    if (!PyTuple_Check(keys)) {
        PyErr_Format(PyExc_TypeError, "keys must be a tuple, not %.100s",
                     Py_TYPE(keys)->tp_name);
        return -1;
    }
    if ((size_t)PyTuple_GET_SIZE(keys) != c->n) {
        PyErr_Format(PyExc_ValueError, "%zd keys for %zu limits",
                     PyTuple_GET_SIZE(keys), c->n);
        return -1;
    }
    for (size_t i = 0; i < c->n; i++) {
        c->costs[i] = 1;
    }
    if (costs != NULL && parse_units(costs, "costs", c->n, c->costs) < 0) {
        return -1;
    }
    for (size_t i = 0; i < c->n; i++) {
        const char *octets = NULL;
        Py_ssize_t n = 0;
        if (agpy_key(PyTuple_GET_ITEM(keys, (Py_ssize_t)i), &octets, &n) < 0) {
            return -1;
        }
        c->limits[i] = &PLAN(self)->limits[i]->limit;
        c->tags[i] = ag_limit_tag(c->limits[i], octets, (size_t)n);
        ag_table_prefetch(c->limits[i]->table, c->tags[i]);
    }
    c->now = ag_table_clock(c->limits[0]->table);
    if (ag_plan_acquire(c->limits, c->tags, c->costs, c->n, c->now, c->charges,
                        &c->refused) != AG_OK) {
        agpy_raise_too_big(PLAN(self)->limits[c->refused], c->costs[c->refused]);
        return -1;
    }
    return 0;
}

/* The limit that refuses, else the one with the smallest part of its burst left. */
static size_t
binding_limit(const struct charging *c)
{
    if (c->refused < c->n) {
        return c->refused;
    }
    size_t best = 0;
    uint64_t best_left = 0;
    for (size_t i = 0; i < c->n; i++) {
        const struct ag_gcra *g = &c->limits[i]->gcra;
        uint64_t left = ag_gcra_remaining(g, c->charges[i].level);
        if (i == 0 || (ag_u128)left * c->limits[best]->gcra.burst <
                          (ag_u128)best_left * g->burst) {
            best = i;
            best_left = left;
        }
    }
    return best;
}

static PyObject *
decide(PyObject *self, const struct charging *c)
{
    PyObject *decision = NULL;
    PyObject *each = PyTuple_New((Py_ssize_t)c->n);
    if (each == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < c->n; i++) {
        PyObject *one = agpy_decision_make(PLAN(self)->limits[i], &c->charges[i], NULL);
        if (one == NULL) {
            goto exit;
        }
        PyTuple_SET_ITEM(each, (Py_ssize_t)i, one);
    }
    size_t binding = binding_limit(c);
    decision =
        agpy_decision_make(PLAN(self)->limits[binding], &c->charges[binding], each);
exit:
    Py_DECREF(each);
    return decision;
}

/* ---- methods ---- */

PyDoc_STRVAR(
    acquire_doc,
    "acquire($self, keys, costs=1, /)\n--\n\n"
    "Charge every limit, or none: the Decision of the most binding one.\n\n"
    "keys: a tuple, one key a limit. costs: one int for all, or a tuple. Never\n"
    "above any limit; while others charge the same keys, a refusal that a\n"
    "serial order would not have made is possible. LimitError: a cost is above\n"
    "its burst.");

static PyObject *
plan_acquire(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct charging c;
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "acquire() takes keys and costs");
        return NULL;
    }
    if (charge(self, args[0], count > 1 ? args[1] : NULL, &c) < 0) {
        return NULL;
    }
    return decide(self, &c);
}

PyDoc_STRVAR(reserve_doc, "reserve($self, keys, costs, /)\n--\n\n"
                          "As acquire, to be corrected by settle(): a Reservation.");

static PyObject *
plan_reserve(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    struct charging c;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "reserve() takes keys and costs");
        return NULL;
    }
    if (charge(self, args[0], args[1], &c) < 0) {
        return NULL;
    }
    for (size_t i = 0; i < c.n; i++) {
        c.parts[i] = (struct agpy_part){c.tags[i], c.costs[i], c.charges[i].at};
    }
    return agpy_reservation_make(PLAN(self)->state, self, decide(self, &c),
                                 c.refused == c.n, c.parts, (Py_ssize_t)c.n);
}

PyDoc_STRVAR(settle_doc,
             "settle($self, reservation, used, /)\n--\n\n"
             "Correct a reservation of this plan to what was used, once.\n\n"
             "used: one int for all limits, or a tuple; see Limit.settle.");

static PyObject *
plan_settle(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    uint64_t used[AG_PLAN_MAX];
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "settle() takes a reservation and numbers");
        return NULL;
    }
    if (parse_units(args[1], "used", (size_t)Py_SIZE(self), used) < 0) {
        return NULL;
    }
    struct agpy_reservation *reservation =
        agpy_reservation_take(PLAN(self)->state, self, args[0]);
    if (reservation == NULL) {
        return NULL;
    }
    uint64_t now = ag_table_clock(PLAN(self)->limits[0]->limit.table);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++) {
        (void)ag_limit_settle(&PLAN(self)->limits[i]->limit, reservation->parts[i].tag,
                              reservation->parts[i].cost, used[i],
                              reservation->parts[i].then, now);
    }
    Py_RETURN_NONE;
}

static PyObject *
plan_limits(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *limits = PyTuple_New(Py_SIZE(self));
    for (Py_ssize_t i = 0; i < Py_SIZE(self) && limits != NULL; i++) {
        PyTuple_SET_ITEM(limits, i, Py_NewRef((PyObject *)PLAN(self)->limits[i]));
    }
    return limits;
}

static int
plan_clear(PyObject *self)
{
    Py_CLEAR(PLAN(self)->limiter);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++) {
        Py_CLEAR(PLAN(self)->limits[i]);
    }
    return 0;
}

static void
plan_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)plan_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
plan_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(PLAN(self)->limiter);
    for (Py_ssize_t i = 0; i < Py_SIZE(self); i++) {
        Py_VISIT(PLAN(self)->limits[i]);
    }
    return 0;
}

static PyMethodDef plan_methods[] = {
    {"acquire", AGPY_METHOD(plan_acquire), METH_FASTCALL, acquire_doc},
    {"reserve", AGPY_METHOD(plan_reserve), METH_FASTCALL, reserve_doc},
    {"settle", AGPY_METHOD(plan_settle), METH_FASTCALL, settle_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef plan_getset[] = {
    {"limits", plan_limits, NULL, "The limits, in order.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(plan_doc,
             "Several limits as one, all or nothing; made by RateLimiter.plan().");

static PyType_Slot plan_slots[] = {
    {Py_tp_doc, (void *)plan_doc},
    {Py_tp_dealloc, plan_dealloc},
    {Py_tp_traverse, plan_traverse},
    {Py_tp_clear, plan_clear},
    {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset},
    {0, NULL},
};

PyType_Spec agpy_plan_spec = {
    .name = "aegis_c.Plan",
    .basicsize = sizeof(struct agpy_plan),
    .itemsize = sizeof(struct agpy_limit *),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = plan_slots,
};
