/* The module `aegis_c._native`: its state, its exceptions and its types (PEP 489). */
#include "agpy.h"
#include "fork.h"

#include <string.h>

#include "hash/sha256.h"

static struct PyModuleDef native_module;

struct agpy_state *
agpy_state_of_module(PyObject *module)
{
    return PyModule_GetState(module);
}

struct agpy_state *
agpy_state_of_type(PyTypeObject *type)
{
    PyObject *module = PyType_GetModuleByDef(type, &native_module);
    return module != NULL ? PyModule_GetState(module) : NULL;
}

static PyObject *
make_exception(PyObject *module, const char *name, PyObject *base, const char *doc)
{
    char full[64];
    (void)snprintf(full, sizeof(full), "aegis_c.%s", name);
    PyObject *exception = PyErr_NewExceptionWithDoc(full, doc, base, NULL);
    if (exception != NULL && PyModule_AddObjectRef(module, name, exception) < 0) {
        Py_CLEAR(exception);
    }
    return exception;
}

static PyObject *
make_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddType(module, (PyTypeObject *)type) < 0) {
        Py_CLEAR(type);
    }
    return type;
}

static int
native_exec(PyObject *module)
{
    struct agpy_state *state = PyModule_GetState(module);
    if (ag_sha256_start() != AG_OK) {
        PyErr_SetString(PyExc_ImportError,
                        "aegis_c: SHA-256 fails its self-test against OpenSSL on this "
                        "machine; reinstall OpenSSL or rebuild aegis_c");
        return -1;
    }
    if (agpy_fork_watch() < 0) {
        return -1;
    }
#ifdef AG_GIL_TIMES
    static PyMethodDef times[] = {
        {"_gil_times", agpy_gil_times, METH_NOARGS, "How long calls held the GIL."},
        {NULL, NULL, 0, NULL},
    };
    agpy_gil_times_start();
    if (PyModule_AddFunctions(module, times) < 0) {
        return -1;
    }
#endif
#define AGPY_BASE_NULL NULL
#define MAKE_EXCEPTION(field, name, base, doc)                                         \
    state->field = make_exception(module, name, AGPY_BASE_##base, doc);                \
    if (state->field == NULL) {                                                        \
        return -1;                                                                     \
    }
#define AGPY_BASE_aegis_error state->aegis_error
#define AGPY_BASE_wal_error state->wal_error
#define AGPY_BASE_ledger_error state->ledger_error
    AGPY_EXCEPTIONS(MAKE_EXCEPTION)
#undef MAKE_EXCEPTION
#define MAKE_TYPE(field, spec)                                                         \
    state->field = make_type(module, &spec);                                           \
    if (state->field == NULL) {                                                        \
        return -1;                                                                     \
    }
    AGPY_TYPES(MAKE_TYPE)
#undef MAKE_TYPE
#define ADD_FUNCTIONS(table)                                                           \
    if (PyModule_AddFunctions(module, table) < 0) {                                    \
        return -1;                                                                     \
    }
    AGPY_FUNCTIONS(ADD_FUNCTIONS)
#undef ADD_FUNCTIONS
    return 0;
}

static int
native_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct agpy_state *state = PyModule_GetState(module);
#define VISIT_FIELD(field, ...) Py_VISIT(state->field);
    AGPY_EXCEPTIONS(VISIT_FIELD)
    AGPY_TYPES(VISIT_FIELD)
#undef VISIT_FIELD
    return 0;
}

static int
native_clear(PyObject *module)
{
    struct agpy_state *state = PyModule_GetState(module);
#define CLEAR_FIELD(field, ...) Py_CLEAR(state->field);
    AGPY_EXCEPTIONS(CLEAR_FIELD)
    AGPY_TYPES(CLEAR_FIELD)
#undef CLEAR_FIELD
    return 0;
}

static void
native_free(void *module)
{
    (void)native_clear(module);
}

static PyModuleDef_Slot native_slots[] = {
    {Py_mod_exec, native_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030D0000
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef native_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "aegis_c._native",
    .m_doc = "The native core of aegis_c.",
    .m_size = sizeof(struct agpy_state),
    .m_slots = native_slots,
    .m_traverse = native_traverse,
    .m_clear = native_clear,
    .m_free = native_free,
};

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&native_module);
}
