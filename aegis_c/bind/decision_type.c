/* aegis_c.Decision: what a limit answered, and the numbers for the reply's headers. */
#include "limit_types.h"

#include <structmember.h>

struct decision_object {
    PyObject_HEAD
    PyObject *name; /* owned: str */
    PyObject *each; /* owned: tuple of decisions, empty for a single limit */
    unsigned long long limit, remaining;
    double retry_after, reset_after;
    char allowed, full;
};

#define DECISION(object) ((struct decision_object *)(object))

PyObject *
agpy_decision_make(struct agpy_limit *limit, const struct ag_charge *charge,
                   PyObject *each)
{
    PyTypeObject *type = (PyTypeObject *)limit->state->decision_type;
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    DECISION(self)->each = each != NULL ? Py_NewRef(each) : PyTuple_New(0);
    if (DECISION(self)->each == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    DECISION(self)->name = Py_NewRef(limit->name);
    DECISION(self)->limit = limit->limit.gcra.burst;
    DECISION(self)->remaining = ag_gcra_remaining(&limit->limit.gcra, charge->level);
    DECISION(self)->retry_after = (double)charge->wait / 1e9;
    DECISION(self)->reset_after = (double)charge->level / 1e9;
    DECISION(self)->allowed = (char)charge->allowed;
    DECISION(self)->full = (char)charge->full;
    return self;
}

static PyObject *
decision_repr(PyObject *self)
{
    struct decision_object *d = DECISION(self);
    char numbers[96];
    (void)PyOS_snprintf(numbers, sizeof(numbers), "retry_after=%.9g, reset_after=%.9g",
                        d->retry_after, d->reset_after);
    return PyUnicode_FromFormat(
        "Decision(name=%R, allowed=%s, limit=%llu, remaining=%llu, %s)", d->name,
        d->allowed ? "True" : "False", d->limit, d->remaining, numbers);
}

static int
decision_bool(PyObject *self)
{
    return DECISION(self)->allowed;
}

static int
decision_clear(PyObject *self)
{
    Py_CLEAR(DECISION(self)->name);
    Py_CLEAR(DECISION(self)->each);
    return 0;
}

static void
decision_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)decision_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
decision_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(DECISION(self)->name);
    Py_VISIT(DECISION(self)->each);
    return 0;
}

static PyMemberDef decision_members[] = {
    {"allowed", T_BOOL, offsetof(struct decision_object, allowed), READONLY,
     "Whether the cost fits; a plan's: fits every limit."},
    {"limit", T_ULONGLONG, offsetof(struct decision_object, limit), READONLY,
     "Units that fit an idle key: the burst."},
    {"remaining", T_ULONGLONG, offsetof(struct decision_object, remaining), READONLY,
     "Units that fit now, after the charge when there was one."},
    {"retry_after", T_DOUBLE, offsetof(struct decision_object, retry_after), READONLY,
     "Seconds until the same cost would fit; 0.0 when allowed."},
    {"reset_after", T_DOUBLE, offsetof(struct decision_object, reset_after), READONLY,
     "Seconds until the key is idle again."},
    {"full", T_BOOL, offsetof(struct decision_object, full), READONLY,
     "Refused because the table had no slot for a new key; a plan's: see each."},
    {"name", T_OBJECT, offsetof(struct decision_object, name), READONLY,
     "The limit's name; a plan's: the most binding limit's."},
    {"each", T_OBJECT, offsetof(struct decision_object, each), READONLY,
     "The decisions of a plan's limits, in its order; () for a single limit."},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(decision_doc,
             "What a limit answered. True when allowed. Made by Limit and Plan.");

static PyType_Slot decision_slots[] = {
    {Py_tp_doc, (void *)decision_doc},   {Py_tp_repr, decision_repr},
    {Py_nb_bool, decision_bool},         {Py_tp_dealloc, decision_dealloc},
    {Py_tp_traverse, decision_traverse}, {Py_tp_clear, decision_clear},
    {Py_tp_members, decision_members},   {0, NULL},
};

PyType_Spec agpy_decision_spec = {
    .name = "aegis_c.Decision",
    .basicsize = sizeof(struct decision_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = decision_slots,
};
