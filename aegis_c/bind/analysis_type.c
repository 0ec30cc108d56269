/* aegis_c.ReplyAnalysis: one reply, fed as it comes. */
#include "analysis_type.h"

#include "base/alloc.h"
#include "detach.h"
#include "fork.h"
#include "lock.h"

struct analysis_object {
    PyObject_HEAD
    struct agpy_lock lock;
    struct ag_analysis *value; /* owned, under lock; NULL once finished */
    PyObject *baselines;       /* owned; NULL or a Baselines */
    struct agpy_state *state;  /* borrowed: the type keeps the module alive */
    uint64_t model, session;   /* keys */
    bool has_session;
    unsigned forks;
};

#define ANALYSIS(object) ((struct analysis_object *)(object))

static uint64_t
key_of(const char *text, Py_ssize_t n)
{
    return ag_token_key((const uint8_t *)text, (size_t)n);
}

static PyObject *
analysis_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"baselines", "model", "session", "events", NULL};
    PyObject *baselines = Py_None;
    const char *model = "", *session = NULL;
    Py_ssize_t model_n = 0, session_n = 0;
    int events = 0;
    struct ag_session where = {0};
    struct ag_baselines *b = NULL;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "|O$s#z#p:ReplyAnalysis", names,
                                     &baselines, &model, &model_n, &session, &session_n,
                                     &events) ||
        (baselines != Py_None && (b = agpy_baselines(state, baselines)) == NULL)) {
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL || agpy_lock_init(&ANALYSIS(self)->lock) < 0) {
        Py_XDECREF(self);
        return NULL;
    }
    ANALYSIS(self)->state = state;
    ANALYSIS(self)->forks = agpy_fork_count();
    ANALYSIS(self)->model = key_of(model, model_n);
    if (b != NULL) {
        ANALYSIS(self)->baselines = Py_NewRef(baselines);
    }
    if (b != NULL && session != NULL) { /* a session is one model's */
        ANALYSIS(self)->has_session = true;
        ANALYSIS(self)->session =
            ag_key_mix(key_of(session, session_n) ^ (ANALYSIS(self)->model << 1));
        ag_baselines_get_session(b, ANALYSIS(self)->session, &where);
    }
    ANALYSIS(self)->value = ag_analysis_new(events != 0, &where);
    if (ANALYSIS(self)->value == NULL) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return self;
}

/* Takes the lock; false with an exception, and without the lock, when the object cannot
 * be used. */
static bool
acquire(struct analysis_object *self)
{
    if (self->forks != agpy_fork_count()) {
        PyErr_SetString(PyExc_RuntimeError,
                        "this ReplyAnalysis belongs to the parent of a fork");
        return false;
    }
    agpy_lock_acquire(&self->lock);
    if (self->value == NULL) {
        agpy_lock_release(&self->lock);
        PyErr_SetString(PyExc_ValueError, "the analysis is finished");
        return false;
    }
    return true;
}

/* The bytes of an argument, or false with TypeError: what others could write meanwhile
 * is not read detached. */
static bool
take_bytes(PyObject *object, const uint8_t **data, size_t *n)
{
    if (!PyBytes_Check(object)) {
        PyErr_Format(PyExc_TypeError, "bytes are needed, not %.100s",
                     Py_TYPE(object)->tp_name);
        return false;
    }
    *data = (const uint8_t *)PyBytes_AS_STRING(object);
    *n = (size_t)PyBytes_GET_SIZE(object);
    return true;
}

PyDoc_STRVAR(feed_doc, "feed($self, data, /)\n--\n\n"
                       "The next octets of the reply, cut anywhere.\n\n"
                       "Thread-safe at method level. ValueError once it is finished.");

static PyObject *
analysis_feed(PyObject *object, PyObject *argument)
{
    struct analysis_object *self = ANALYSIS(object);
    const uint8_t *data = NULL;
    size_t n = 0;
    if (!take_bytes(argument, &data, &n) || !acquire(self)) {
        return NULL;
    }
    AGPY_DETACHED(n, ag_analysis_feed(self->value, data, n));
    agpy_lock_release(&self->lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(text_doc, "text($self, data, /)\n--\n\n"
                       "More of the generated text itself, as UTF-8, cut anywhere.");

static PyObject *
analysis_text(PyObject *object, PyObject *argument)
{
    struct analysis_object *self = ANALYSIS(object);
    const uint8_t *data = NULL;
    size_t n = 0;
    if (!take_bytes(argument, &data, &n) || !acquire(self)) {
        return NULL;
    }
    AGPY_DETACHED(n, ag_analysis_text(self->value, data, n));
    agpy_lock_release(&self->lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    tokens_doc,
    "tokens($self, /, logprobs, keys, drawn, drawn_keys)\n--\n\n"
    "Decoded tokens, as bytes of native doubles and 64-bit unsigned integers.\n\n"
    "drawn, drawn_keys: one for each token. logprobs, keys: the alternatives of the\n"
    "first token, then of the second, the same number for each. A key is token_key()\n"
    "of the token's octets. ValueError when the lengths do not go together.");

static PyObject *
analysis_tokens(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"logprobs", "keys", "drawn", "drawn_keys", NULL};
    struct analysis_object *self = ANALYSIS(object);
    PyObject *arrays[4]; /* bytes objects: aligned for any of the types */
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "SSSS:tokens", names, &arrays[0],
                                     &arrays[1], &arrays[2], &arrays[3])) {
        return NULL;
    }
    size_t listed = (size_t)PyBytes_GET_SIZE(arrays[0]) / 8;
    size_t n = (size_t)PyBytes_GET_SIZE(arrays[2]) / 8;
    if (PyBytes_GET_SIZE(arrays[0]) % 8 != 0 || PyBytes_GET_SIZE(arrays[2]) % 8 != 0 ||
        PyBytes_GET_SIZE(arrays[0]) != PyBytes_GET_SIZE(arrays[1]) ||
        PyBytes_GET_SIZE(arrays[2]) != PyBytes_GET_SIZE(arrays[3]) ||
        (n == 0 ? listed != 0 : listed % n != 0)) {
        PyErr_SetString(PyExc_ValueError,
                        "as many logprobs as keys are needed, eight bytes each, and "
                        "the same number for each token");
        return NULL;
    }
    if (!acquire(self)) {
        return NULL;
    }
    const void *data[4];
    for (int i = 0; i < 4; i++) {
        data[i] = PyBytes_AS_STRING(arrays[i]);
    }
    AGPY_DETACHED(8 * listed, ag_analysis_tokens(self->value, data[2], data[3], data[0],
                                                 data[1], n, n > 0 ? listed / n : 0));
    agpy_lock_release(&self->lock);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    finish_doc,
    "finish($self, /)\n--\n\n"
    "End the reply; return its analysis as a dict.\n\n"
    "available, method or reason, findings, and the statistics that there are; made "
    "of\n"
    "finite numbers, names and positions only. The reply counts in the baselines, and\n"
    "its end is where its session stands. Once only: ValueError the second time.");

static PyObject *
analysis_finish(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    struct analysis_object *self = ANALYSIS(object);
    struct ag_finding findings[AG_FINDINGS_MAX];
    struct ag_baselines *b = NULL;
    if (self->baselines != NULL &&
        (b = agpy_baselines(self->state, self->baselines)) == NULL) {
        return NULL;
    }
    if (!acquire(self)) {
        return NULL;
    }
    struct ag_analysis *a = self->value;
    self->value = NULL; /* transferred */
    agpy_lock_release(&self->lock);
    ag_analysis_end(a);
    size_t n = ag_findings(a, b, self->model, findings);
    if (self->has_session) {
        struct ag_session where = ag_analysis_session(a);
        ag_baselines_put_session(b, self->session, &where);
    }
    PyObject *result = agpy_analysis_result(a, findings, n);
    ag_free(a);
    return result;
}

static void
analysis_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    ag_free(ANALYSIS(self)->value);
    Py_XDECREF(ANALYSIS(self)->baselines);
    agpy_lock_free(&ANALYSIS(self)->lock);
    type->tp_free(self);
    Py_DECREF(type);
}

static int
analysis_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(ANALYSIS(self)->baselines);
    return 0;
}

static PyMethodDef analysis_methods[] = {
    {"feed", analysis_feed, METH_O, feed_doc},
    {"text", analysis_text, METH_O, text_doc},
    {"tokens", AGPY_METHOD(analysis_tokens), METH_VARARGS | METH_KEYWORDS, tokens_doc},
    {"finish", analysis_finish, METH_NOARGS, finish_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    analysis_doc,
    "ReplyAnalysis(baselines=None, *, model='', session=None, events=False)\n--\n\n"
    "Measures one reply of a model: entropies, loops, drifts; in constant memory.\n\n"
    "events: what is fed is a text/event-stream, else one JSON document. baselines:\n"
    "where the thresholds of `model` come from, and where `session` stands; without\n"
    "them the defaults hold.");

static PyType_Slot analysis_slots[] = {
    {Py_tp_doc, (void *)analysis_doc}, {Py_tp_new, analysis_new},
    {Py_tp_dealloc, analysis_dealloc}, {Py_tp_traverse, analysis_traverse},
    {Py_tp_methods, analysis_methods}, {0, NULL},
};

PyType_Spec agpy_analysis_spec = {
    .name = "aegis_c.ReplyAnalysis",
    .basicsize = sizeof(struct analysis_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = analysis_slots,
};
