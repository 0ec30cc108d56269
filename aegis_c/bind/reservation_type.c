/* aegis_c.Reservation: units charged before it is known how many will be used. */
#include "limit_types.h"

#include <structmember.h>

#include "base/process.h"

PyObject *
agpy_reservation_make(struct agpy_state *state, PyObject *owner, PyObject *decision,
                      bool allowed, const struct agpy_part *parts, Py_ssize_t n)
{
    PyTypeObject *type = (PyTypeObject *)state->reservation_type;
    PyObject *self = decision != NULL ? type->tp_alloc(type, n) : NULL;
    if (self == NULL) {
        Py_XDECREF(decision);
        return NULL;
    }
    RESERVATION(self)->owner = Py_NewRef(owner);
    RESERVATION(self)->decision = decision; /* transferred */
    RESERVATION(self)->process = ag_process();
    RESERVATION(self)->allowed = allowed;
    atomic_init(&RESERVATION(self)->settled, false);
    for (Py_ssize_t i = 0; i < n; i++) {
        RESERVATION(self)->parts[i] = parts[i];
    }
    return self;
}

static void
refuse(struct agpy_state *state, int status, const char *what, const char *advice)
{
    struct ag_error err;
    (void)ag_fail(&err, status, "%s", what);
    ag_error_advice(&err, "%s", advice);
    agpy_raise(state, AGPY_LIMIT, status, &err);
}

struct agpy_reservation *
agpy_reservation_take(struct agpy_state *state, PyObject *owner, PyObject *object)
{
    if (Py_TYPE(object) != (PyTypeObject *)state->reservation_type) {
        PyErr_Format(PyExc_TypeError, "expected a Reservation, not %.100s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    struct agpy_reservation *reservation = RESERVATION(object);
    if (reservation->owner != owner) {
        PyErr_SetString(PyExc_ValueError,
                        "the reservation was made by another limit or plan");
        return NULL;
    }
    if (!reservation->allowed) {
        refuse(state, AG_ENOTFOUND, "the reservation was refused: nothing is reserved",
               "Look at reservation.decision.allowed first.");
        return NULL;
    }
    if (reservation->process != ag_process()) {
        refuse(state, AG_EFORKED, "the reservation was made before the fork",
               "Settle it in the parent, where it also lives.");
        return NULL;
    }
    if (atomic_exchange(&reservation->settled, true)) {
        refuse(state, AG_ECLOSED, "the reservation was settled before",
               "Settle once, where the call ends.");
        return NULL;
    }
    return reservation;
}

static PyObject *
reservation_settled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(atomic_load(&RESERVATION(self)->settled));
}

static PyObject *
reservation_costs(PyObject *self, void *Py_UNUSED(closure))
{
    Py_ssize_t n = Py_SIZE(self);
    PyObject *costs = PyTuple_New(n);
    for (Py_ssize_t i = 0; i < n && costs != NULL; i++) {
        PyObject *cost = PyLong_FromUnsignedLongLong(RESERVATION(self)->parts[i].cost);
        if (cost == NULL) {
            Py_CLEAR(costs);
        } else {
            PyTuple_SET_ITEM(costs, i, cost);
        }
    }
    return costs;
}

static int
reservation_clear(PyObject *self)
{
    Py_CLEAR(RESERVATION(self)->owner);
    Py_CLEAR(RESERVATION(self)->decision);
    return 0;
}

static void
reservation_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)reservation_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
reservation_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(RESERVATION(self)->owner);
    Py_VISIT(RESERVATION(self)->decision);
    return 0;
}

static PyMemberDef reservation_members[] = {
    {"decision", T_OBJECT, offsetof(struct agpy_reservation, decision), READONLY,
     "The Decision of the charge; when it refused, nothing was written."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef reservation_getset[] = {
    {"settled", reservation_settled, NULL, "Whether it was settled.", NULL},
    {"costs", reservation_costs, NULL, "The reserved units, one number a limit.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(reservation_doc,
             "Units charged in advance, to be settled once with what was used.\n\n"
             "Never settled, it drains like any charge. Made by Limit and Plan.");

static PyType_Slot reservation_slots[] = {
    {Py_tp_doc, (void *)reservation_doc},
    {Py_tp_dealloc, reservation_dealloc},
    {Py_tp_traverse, reservation_traverse},
    {Py_tp_clear, reservation_clear},
    {Py_tp_members, reservation_members},
    {Py_tp_getset, reservation_getset},
    {0, NULL},
};

PyType_Spec agpy_reservation_spec = {
    .name = "aegis_c.Reservation",
    .basicsize = sizeof(struct agpy_reservation),
    .itemsize = sizeof(struct agpy_part),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = reservation_slots,
};
