/* aegis_c.JsonScanner: refuses a body that two JSON parsers could read differently.
 * Made once from the governed names, then only read, so it needs no lock. */
#include "agpy.h"
#include "detach.h"

#include <stdio.h>
#include <string.h>

#include "http/strict_json.h"

struct jsonscanner_object {
    PyObject_HEAD
    struct ag_json_rules *rules; /* owned */
    struct agpy_state *state;    /* borrowed: the type keeps the module alive */
    size_t max_depth;
};

#define JSONSCANNER(object) ((struct jsonscanner_object *)(object))

/* One place and the iterable of its names. 0, or -1 with an exception. */
static int
add_names(struct agpy_state *state, struct ag_json_rules *rules, PyObject *path,
          PyObject *names)
{
    struct ag_error err;
    int result = -1;
    const char *place = NULL;
    PyObject *name = NULL, *iterator = PyObject_GetIter(names);
    if (iterator == NULL || (place = PyUnicode_AsUTF8(path)) == NULL) {
        goto exit;
    }
    while ((name = PyIter_Next(iterator)) != NULL) {
        const char *text = PyUnicode_AsUTF8(name);
        if (text == NULL) {
            goto exit;
        }
        int status = ag_json_rules_add(rules, place, text, &err);
        if (status != AG_OK) {
            agpy_raise(state, AGPY_TREE, status, &err);
            goto exit;
        }
        Py_CLEAR(name);
    }
    result = PyErr_Occurred() ? -1 : 0;
exit:
    Py_XDECREF(name);
    Py_XDECREF(iterator);
    return result;
}

static PyObject *
jsonscanner_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"governed", "max_depth", NULL};
    PyObject *governed = NULL, *items = NULL, *self = NULL;
    Py_ssize_t max_depth = 64;
    struct ag_json_rules *rules = NULL;
    struct ag_error err;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL || !PyArg_ParseTupleAndKeywords(args, kwargs, "|O$n:JsonScanner",
                                                      names, &governed, &max_depth)) {
        return NULL;
    }
    if (max_depth < 1 || max_depth > AG_JSON_DEPTH_MAX) {
        return PyErr_Format(PyExc_ValueError, "max_depth must be 1 to %d, not %zd",
                            AG_JSON_DEPTH_MAX, max_depth);
    }
    if (governed != NULL && !PyMapping_Check(governed)) {
        return PyErr_Format(PyExc_TypeError, "governed must be a mapping, not %.100s",
                            Py_TYPE(governed)->tp_name);
    }
    int status = ag_json_rules_new(&rules, &err);
    if (status != AG_OK) {
        return agpy_raise(state, AGPY_TREE, status, &err);
    }
    if (governed != NULL) {
        items = PyMapping_Items(governed);
        if (items == NULL) {
            goto exit;
        }
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(items); i++) {
            PyObject *path, *given;
            if (!PyArg_ParseTuple(PyList_GET_ITEM(items, i), "UO", &path, &given) ||
                add_names(state, rules, path, given) < 0) {
                goto exit;
            }
        }
    }
    self = type->tp_alloc(type, 0);
    if (self != NULL) {
        JSONSCANNER(self)->rules = rules; /* transferred */
        JSONSCANNER(self)->state = state;
        JSONSCANNER(self)->max_depth = (size_t)max_depth;
        rules = NULL;
    }
exit:
    ag_json_rules_free(rules);
    Py_XDECREF(items);
    return self;
}

static PyObject *
message_of(const struct jsonscanner_object *self, const struct ag_json_fault *fault)
{
    const char *in = fault->path[0] != '\0' ? ", in " : "";
    switch (fault->code) {
    case AG_JSON_UTF8:
        return PyUnicode_FromFormat("The body is not valid UTF-8 at byte %zu%s%s.",
                                    fault->offset, in, fault->path);
    case AG_JSON_DUPLICATE:
        return PyUnicode_FromFormat(
            "The member '%s' is given twice: again at byte %zu.", fault->name,
            fault->offset);
    case AG_JSON_AMBIGUOUS:
        return PyUnicode_FromFormat(
            "The member '%s' at byte %zu differs from '%s' only by case; write '%s'.",
            fault->name, fault->offset, fault->governed, fault->governed);
    case AG_JSON_DEEP:
        return PyUnicode_FromFormat(
            "The body is nested deeper than the limit of %zu levels at byte %zu.",
            self->max_depth, fault->offset);
    case AG_JSON_SYNTAX:
    default:
        return PyUnicode_FromFormat("The body is not valid JSON: %s at byte %zu%s%s.",
                                    fault->what, fault->offset, in, fault->path);
    }
}

static int
set_string(PyObject *exception, const char *name, const char *text)
{
    PyObject *value = text[0] != '\0' ? PyUnicode_FromString(text) : Py_NewRef(Py_None);
    int result = value != NULL ? PyObject_SetAttrString(exception, name, value) : -1;
    Py_XDECREF(value);
    return result;
}

static PyObject *
raise_fault(const struct jsonscanner_object *self, const struct ag_json_fault *fault)
{
    struct ag_error err;
    PyObject *type = self->state->json_error, *exception = NULL;
    PyObject *message = message_of(self, fault);
    if (message == NULL) {
        return NULL;
    }
    (void)ag_fail(&err, AG_EVERIFY, "%s", fault->what);
    err.offset = fault->offset;
    exception = PyObject_CallOneArg(type, message);
    if (exception != NULL && agpy_describe(exception, &err) == 0 &&
        set_string(exception, "code", ag_json_code_text(fault->code)) == 0 &&
        set_string(exception, "member", fault->path) == 0) {
        PyErr_SetObject(type, exception);
    }
    Py_XDECREF(exception);
    Py_DECREF(message);
    return NULL;
}

PyDoc_STRVAR(
    scan_doc,
    "scan($self, body, /)\n--\n\n"
    "Check that bytes hold one JSON object that every parser reads the same.\n\n"
    "Raises JsonError with code, offset and member of the first fault.");

static PyObject *
jsonscanner_scan(PyObject *object, PyObject *body)
{
    const struct jsonscanner_object *self = JSONSCANNER(object);
    struct ag_json_fault fault;
    int status = AG_OK;
    if (!PyBytes_Check(body)) {
        return PyErr_Format(PyExc_TypeError, "body must be bytes, not %.100s",
                            Py_TYPE(body)->tp_name);
    }
    const uint8_t *text = (const uint8_t *)PyBytes_AS_STRING(body);
    size_t n = (size_t)PyBytes_GET_SIZE(body);
    AGPY_DETACHED(n,
                  status = ag_json_scan(self->rules, text, n, self->max_depth, &fault));
    if (status == AG_ENOMEM) {
        return PyErr_NoMemory();
    }
    return status == AG_OK ? Py_NewRef(Py_None) : raise_fault(self, &fault);
}

static void
jsonscanner_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ag_json_rules_free(JSONSCANNER(self)->rules);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
jsonscanner_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static PyMethodDef jsonscanner_methods[] = {
    {"scan", jsonscanner_scan, METH_O, scan_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    jsonscanner_doc,
    "JsonScanner(governed={}, *, max_depth=64)\n--\n\n"
    "Refuses bodies that two JSON parsers could read differently.\n\n"
    "governed: names by the place where they count: '' is the document itself,\n"
    "'messages[]' each element of its member `messages`. A member there that equals\n"
    "one under case folding must be that name. max_depth: 1 to 512.");

static PyType_Slot jsonscanner_slots[] = {
    {Py_tp_doc, (void *)jsonscanner_doc}, {Py_tp_new, jsonscanner_new},
    {Py_tp_dealloc, jsonscanner_dealloc}, {Py_tp_traverse, jsonscanner_traverse},
    {Py_tp_methods, jsonscanner_methods}, {0, NULL},
};

PyType_Spec agpy_jsonscanner_spec = {
    .name = "aegis_c.JsonScanner",
    .basicsize = sizeof(struct jsonscanner_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = jsonscanner_slots,
};
