/* aegis_c.Ledger: one shard of a transparency log inside the process. Making it, its
 * handle, its end, and its table of methods; they are in ledger_submit.c,
 * ledger_stages.c and ledger_read.c.
 *
 * The core object is thread-safe; `handle` only keeps close() from pulling it away
 * under a running call: every method holds the read side, close() the write side for
 * the moment in which it takes the pointer. */
#include "ledger_type.h"

#include <string.h>

#include "base/process.h"

/* ---- the handle ---- */

/* The core object, to be given back with release(); NULL with LedgerError when closed.
 */
struct ag_ledger *
agpy_ledger_acquire(PyObject *self)
{
    struct ledger_object *object = LEDGER(self);
    if (object->process != ag_process()) { /* the parent's locks mean nothing here */
        struct ag_error err;
        (void)ag_fail(&err, AG_EFORKED, "ledger of the parent process");
        ag_error_advice(&err, "Open a ledger of its own in the child.");
        agpy_raise(object->state, AGPY_LEDGER, AG_EFORKED, &err);
        return NULL;
    }
    pthread_rwlock_rdlock(&object->handle);
    if (object->ledger == NULL) {
        pthread_rwlock_unlock(&object->handle);
        struct ag_error err;
        (void)ag_fail(&err, AG_ECLOSED, "ledger is closed");
        agpy_raise(object->state, AGPY_LEDGER, AG_ECLOSED, &err);
        return NULL;
    }
    return object->ledger;
}

void
agpy_ledger_release(PyObject *self)
{
    pthread_rwlock_unlock(&LEDGER(self)->handle);
}

PyObject *
agpy_ledger_raise(PyObject *self, int status, const struct ag_error *err)
{
    return agpy_raise(LEDGER(self)->state, AGPY_LEDGER, status, err);
}

/* Closes what is open; detached, because the thread commits and publishes first. */
static int
close_handle(struct ledger_object *object, struct ag_error *err)
{
    struct ag_ledger *ledger = NULL;
    int status = AG_OK;
    Py_BEGIN_ALLOW_THREADS
        if (object->process == ag_process()) {
            pthread_rwlock_wrlock(&object->handle);
            ledger = object->ledger;
            object->ledger = NULL;
            pthread_rwlock_unlock(&object->handle);
        } else {
            ledger = object->ledger;
            object->ledger = NULL;
        }
        if (ledger != NULL) {
            status = ag_ledger_close(ledger, err);
        }
    Py_END_ALLOW_THREADS
    return status;
}

/* ---- making ---- */

static PyObject *
join3(const char *first, Py_ssize_t first_n, const char *middle, const char *last,
      Py_ssize_t last_n)
{
    Py_ssize_t middle_n = (Py_ssize_t)strlen(middle);
    PyObject *joined = PyBytes_FromStringAndSize(NULL, first_n + middle_n + last_n);
    if (joined != NULL) {
        char *to = PyBytes_AS_STRING(joined);
        memcpy(to, first, (size_t)first_n);
        memcpy(to + first_n, middle, (size_t)middle_n);
        memcpy(to + first_n + middle_n, last, (size_t)last_n);
    }
    return joined;
}

/* ".../private/<name>" beside ".../ledger/<name>", else "<path>.private". */
static PyObject *
default_private(PyObject *path)
{
    const char *text = PyBytes_AS_STRING(path);
    Py_ssize_t n = PyBytes_GET_SIZE(path);
    static const char parent[] = "/ledger/";
    const Py_ssize_t parent_n = sizeof(parent) - 1;
    while (n > 1 && text[n - 1] == '/') {
        n--;
    }
    Py_ssize_t name = n;
    while (name > 0 && text[name - 1] != '/') {
        name--;
    }
    if (name >= parent_n &&
        memcmp(text + name - parent_n, parent, (size_t)parent_n) == 0) {
        return join3(text, name - parent_n, "/private/", text + name, n - name);
    }
    return join3(text, n, ".private", "", 0);
}

static int
optional_path(PyObject *object, PyObject **path)
{
    if (object == NULL || object == Py_None) {
        return 0;
    }
    return PyUnicode_FSConverter(object, path) ? 0 : -1;
}

static PyObject *
ledger_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path",          "origin",          "private",
                            "key",           "key_pem",         "ring_bytes",
                            "max_delay_us",  "publish_gap_us",  "publish_max_us",
                            "segment_bytes", "accept_rollback", NULL};
    PyObject *path = NULL, *private_object = NULL, *key_object = NULL;
    PyObject *private_dir = NULL, *key = NULL, *self = NULL;
    struct ag_ledger *ledger = NULL;
    struct ag_ledger_options options;
    struct ag_error err = {0};
    Py_ssize_t ring_bytes = 0;
    unsigned int max_delay_us = 0, segment_bytes = 0;
    unsigned long long gap_us = 0, max_us = 0;
    int status = AG_OK, accept_rollback = 0;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL) {
        return NULL;
    }
    ag_ledger_options_init(&options);
    ring_bytes = (Py_ssize_t)options.ring_bytes;
    max_delay_us = options.max_delay_us;
    segment_bytes = options.segment_bytes;
    gap_us = options.publish_gap_us;
    max_us = options.publish_max_us;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$zOOznIKKIp:Ledger", names,
                                     PyUnicode_FSConverter, &path, &options.origin,
                                     &private_object, &key_object, &options.key_pem,
                                     &ring_bytes, &max_delay_us, &gap_us, &max_us,
                                     &segment_bytes, &accept_rollback) ||
        optional_path(private_object, &private_dir) < 0 ||
        optional_path(key_object, &key) < 0) {
        goto exit;
    }
    if (private_dir == NULL) {
        private_dir = default_private(path);
        if (private_dir == NULL) {
            goto exit;
        }
    }
    options.path = PyBytes_AS_STRING(path);
    options.private_dir = PyBytes_AS_STRING(private_dir);
    options.key_path = key != NULL ? PyBytes_AS_STRING(key) : NULL;
    options.ring_bytes = ring_bytes > 0 ? (size_t)ring_bytes : 0;
    options.max_delay_us = max_delay_us;
    options.segment_bytes = segment_bytes;
    options.publish_gap_us = gap_us;
    options.publish_max_us = max_us;
    options.accept_rollback = accept_rollback != 0;
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_open(&options, &ledger, &err);
    Py_END_ALLOW_THREADS
    if (status != AG_OK) {
        agpy_raise(state, AGPY_LEDGER, status, &err);
        goto exit;
    }
    self = type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_BEGIN_ALLOW_THREADS(void)
            ag_ledger_close(ledger, &err);
        Py_END_ALLOW_THREADS
        goto exit;
    }
    pthread_rwlock_init(&LEDGER(self)->handle, NULL);
    LEDGER(self)->ledger = ledger; /* transferred */
    LEDGER(self)->process = ag_process();
    LEDGER(self)->state = state;
exit:
    Py_XDECREF(path);
    Py_XDECREF(private_dir);
    Py_XDECREF(key);
    return self;
}

/* ---- end of life ---- */

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Commit and publish what was submitted, then end. Idempotent.\n\n"
             "LedgerError when the log had failed: not everything is durable.");

static PyObject *
ledger_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_error err;
    int status = close_handle(LEDGER(self), &err);
    if (status != AG_OK) {
        return agpy_ledger_raise(self, status, &err);
    }
    Py_RETURN_NONE;
}

static PyObject *
ledger_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(self);
}

static PyObject *
ledger_exit(PyObject *self, PyObject *Py_UNUSED(args))
{
    return ledger_close(self, NULL);
}

static void
ledger_finalize(PyObject *self)
{
    struct ag_error err;
    PyObject *type = NULL, *value = NULL, *traceback = NULL;
    if (LEDGER(self)->ledger == NULL) {
        return;
    }
    PyErr_Fetch(&type, &value, &traceback);
    if (LEDGER(self)->process == ag_process() &&
        PyErr_WarnFormat(PyExc_ResourceWarning, 1, "unclosed ledger %s",
                         ag_ledger_path(LEDGER(self)->ledger)) < 0) {
        PyErr_WriteUnraisable(self);
    }
    (void)close_handle(LEDGER(self), &err);
    PyErr_Restore(type, value, traceback);
}

static void
ledger_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0) {
        return;
    }
    PyObject_GC_UnTrack(self);
    pthread_rwlock_destroy(&LEDGER(self)->handle);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
ledger_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

#define FAST_ROW(name)                                                                 \
    {#name, AGPY_METHOD(agpy_ledger_##name), METH_FASTCALL | METH_KEYWORDS,            \
     agpy_ledger_##name##_doc},
#define KEYWORDS_ROW(name)                                                             \
    {#name, AGPY_METHOD(agpy_ledger_##name), METH_VARARGS | METH_KEYWORDS,             \
     agpy_ledger_##name##_doc},
#define ONE_ROW(name) {#name, agpy_ledger_##name, METH_O, agpy_ledger_##name##_doc},
#define NONE_ROW(name)                                                                 \
    {#name, agpy_ledger_##name, METH_NOARGS, agpy_ledger_##name##_doc},

/* clang-format off */
static PyMethodDef ledger_methods[] = {
    AGPY_LEDGER_FAST(FAST_ROW)
    AGPY_LEDGER_KEYWORDS(KEYWORDS_ROW)
    AGPY_LEDGER_ONE(ONE_ROW)
    AGPY_LEDGER_NONE(NONE_ROW)
    {"close", ledger_close, METH_NOARGS, close_doc},
    {"__enter__", ledger_enter, METH_NOARGS, NULL},
    {"__exit__", ledger_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
/* clang-format on */

static const enum ag_stage stages[AG_STAGES] = {AG_DURABLE, AG_INTEGRATED,
                                                AG_PUBLISHED};

static PyGetSetDef ledger_getset[] = {
    {"size", agpy_ledger_size, NULL, "Entries submitted.", NULL},
    {"durable_size", agpy_ledger_size, NULL, "Entries on disk for good.",
     (void *)&stages[0]},
    {"integrated_size", agpy_ledger_size, NULL, "Entries in the tree.",
     (void *)&stages[1]},
    {"published_size", agpy_ledger_size, NULL, "Size of the last signed checkpoint.",
     (void *)&stages[2]},
    {"origin", agpy_ledger_text, NULL, "The log's name, fixed at its first start.",
     (void *)"o"},
    {"vkey", agpy_ledger_text, NULL, "The verifier key that receipts are checked with.",
     (void *)"v"},
    {"path", agpy_ledger_text, NULL, "The published folder.", (void *)"p"},
    {"poisoned", agpy_ledger_poisoned, NULL, "None, or what stopped the log.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    ledger_doc,
    "Ledger(path, *, origin=None, private=None, key=None, ring_bytes=16 << 20,\n"
    "       max_delay_us=2000, publish_gap_us=100_000, publish_max_us=10_000_000,\n"
    "       segment_bytes=4 << 20, accept_rollback=False)\n"
    "--\n\n"
    "One shard of a transparency log: submitted -> durable -> integrated ->\n"
    "published, in the order of submit.\n\n"
    "path: the published folder (tlog-tiles). private: log, key, secret;\n"
    "default `.../private/<name>` beside `.../ledger/<name>`, else\n"
    "`<path>.private`. origin: the log's name, made at the first start. key: PEM\n"
    "file of the Ed25519 log key, made at the first start. LedgerError names the\n"
    "file and the reason when the directory is damaged, foreign, older than its\n"
    "signed checkpoint, or held by another process.");

static PyType_Slot ledger_slots[] = {
    {Py_tp_doc, (void *)ledger_doc},
    {Py_tp_new, ledger_new},
    {Py_tp_finalize, ledger_finalize},
    {Py_tp_dealloc, ledger_dealloc},
    {Py_tp_traverse, ledger_traverse},
    {Py_tp_methods, ledger_methods},
    {Py_tp_getset, ledger_getset},
    {Py_sq_length, agpy_ledger_length},
    {0, NULL},
};

PyType_Spec agpy_ledger_spec = {
    .name = "aegis_c.Ledger",
    .basicsize = sizeof(struct ledger_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ledger_slots,
};
