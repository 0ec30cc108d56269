/* aegis_c.Baselines: what is ordinary for each model, shared by all analyses. The
 * core's object has its own lock. */
#include "analysis_type.h"

#include <math.h>
#include <string.h>

#include "fork.h"

struct baselines_object {
    PyObject_HEAD
    struct ag_baselines *value; /* owned */
    unsigned forks;
};

#define BASELINES(object) ((struct baselines_object *)(object))

static struct ag_baselines *
checked(PyObject *object)
{
    if (BASELINES(object)->forks != agpy_fork_count()) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "these Baselines belong to the parent of a fork: make new ones");
        return NULL;
    }
    return BASELINES(object)->value;
}

struct ag_baselines *
agpy_baselines(struct agpy_state *state, PyObject *object)
{
    if (!Py_IS_TYPE(object, (PyTypeObject *)state->baselines_type)) {
        PyErr_Format(PyExc_TypeError, "baselines must be Baselines or None, not %.100s",
                     Py_TYPE(object)->tp_name);
        return NULL;
    }
    return checked(object);
}

static PyObject *
baselines_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Baselines", names)) {
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL) {
        BASELINES(self)->forks = agpy_fork_count();
        BASELINES(self)->value = ag_baselines_new();
        if (BASELINES(self)->value == NULL) {
            Py_CLEAR(self);
            PyErr_NoMemory();
        }
    }
    return self;
}

PyDoc_STRVAR(quantile_doc,
             "quantile($self, /, model, statistic, part)\n--\n\n"
             "What a share `part` of the model's replies stayed below, or None.\n\n"
             "statistic: entropy, collapse, drift, repetition, compression or loop.\n"
             "Within 5 % of a value that was seen. Thread-safe.");

static PyObject *
baselines_quantile(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"model", "statistic", "part", NULL};
    const char *model = NULL, *statistic = NULL;
    Py_ssize_t model_n = 0;
    double part = 0.0;
    int which = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "s#sd:quantile", names, &model,
                                     &model_n, &statistic, &part)) {
        return NULL;
    }
    while (which < AG_BASELINE_COUNT &&
           strcmp(ag_baseline_name((enum ag_baseline)which), statistic) != 0) {
        which++;
    }
    if (which == AG_BASELINE_COUNT || !(part >= 0.0 && part <= 1.0)) {
        return PyErr_Format(PyExc_ValueError,
                            "unknown statistic, or part not within 0 and 1");
    }
    struct ag_baselines *b = checked(self);
    if (b == NULL) {
        return NULL;
    }
    uint64_t key = ag_token_key((const uint8_t *)model, (size_t)model_n);
    double value = ag_baselines_quantile(b, key, (enum ag_baseline)which, part);
    return isnan(value) ? Py_NewRef(Py_None) : PyFloat_FromDouble(value);
}

static void
baselines_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ag_baselines_free(BASELINES(self)->value);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
baselines_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef baselines_methods[] = {
    {"quantile", AGPY_METHOD(baselines_quantile), METH_VARARGS | METH_KEYWORDS,
     quantile_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    baselines_doc,
    "Baselines()\n--\n\n"
    "What is ordinary for each model's replies, and where each session stands.\n\n"
    "64 models and 2,048 sessions, in 900 KiB; those used longest ago make room.");

static PyType_Slot baselines_slots[] = {
    {Py_tp_doc, (void *)baselines_doc}, {Py_tp_new, baselines_new},
    {Py_tp_dealloc, baselines_dealloc}, {Py_tp_traverse, baselines_traverse},
    {Py_tp_methods, baselines_methods}, {0, NULL},
};

PyType_Spec agpy_baselines_spec = {
    .name = "aegis_c.Baselines",
    .basicsize = sizeof(struct baselines_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = baselines_slots,
};
