/* aegis_c.Ledger: one shard of a transparency log inside the process.
 *
 * The core object is thread-safe; `handle` only keeps close() from pulling it away
 * under a running call: every method holds the read side, close() the write side for
 * the moment in which it takes the pointer. */
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "commitment_type.h"
#include "log/ledger.h"
#include "wal_stats.h"

struct ledger_object {
    PyObject_HEAD
    pthread_rwlock_t handle;
    struct ag_ledger *ledger; /* owned, under handle; NULL once closed */
    pid_t pid;
    struct agpy_state *state; /* borrowed: the type keeps the module alive */
};

#define LEDGER(object) ((struct ledger_object *)(object))

/* ---- the handle ---- */

/* The core object, to be given back with release(); NULL with LedgerError when closed.
 */
static struct ag_ledger *
acquire(PyObject *self)
{
    struct ledger_object *object = LEDGER(self);
    if (object->pid != getpid()) { /* the parent's locks mean nothing here */
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

static void
release(PyObject *self)
{
    pthread_rwlock_unlock(&LEDGER(self)->handle);
}

static PyObject *
raise_status(PyObject *self, int status, const struct ag_error *err)
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
        if (object->pid == getpid()) {
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
    static char *names[] = {"path",           "origin",
                            "private",        "key",
                            "ring_bytes",     "max_delay_us",
                            "publish_gap_us", "publish_max_us",
                            "segment_bytes",  NULL};
    PyObject *path = NULL, *private_object = NULL, *key_object = NULL;
    PyObject *private_dir = NULL, *key = NULL, *self = NULL;
    struct ag_ledger *ledger = NULL;
    struct ag_ledger_options options;
    struct ag_error err = {0};
    Py_ssize_t ring_bytes = 0;
    unsigned int max_delay_us = 0, segment_bytes = 0;
    unsigned long long gap_us = 0, max_us = 0;
    int status = AG_OK;
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
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$zOOnIKKI:Ledger", names,
                                     PyUnicode_FSConverter, &path, &options.origin,
                                     &private_object, &key_object, &ring_bytes,
                                     &max_delay_us, &gap_us, &max_us, &segment_bytes) ||
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
    LEDGER(self)->pid = getpid();
    LEDGER(self)->state = state;
exit:
    Py_XDECREF(path);
    Py_XDECREF(private_dir);
    Py_XDECREF(key);
    return self;
}

/* ---- submitting ---- */

PyDoc_STRVAR(
    submit_doc,
    "submit($self, meta, request=None, response=None, *, secret=None)\n--\n\n"
    "Append an entry and return its index; memory only, never waits for a disk.\n\n"
    "meta: bytes of one JSON object. request, response: a Commitment (finished\n"
    "here), or the raw bytes of the body, whose commitment is then made with the\n"
    "UUID in meta's member \"id\" and `secret` (default: the shard's own).\n"
    "LedgerFull: no room in the ring, nothing was appended. LedgerError: poisoned\n"
    "or closed. ValueError: meta is not UTF-8, not {...}, or too large.");

struct submit_args {
    PyObject *meta, *request, *response, *secret; /* borrowed */
};

static int
parse_submit(PyObject *const *args, Py_ssize_t count, PyObject *kwnames,
             struct submit_args *parsed)
{
    static const char *const names[] = {"meta", "request", "response", "secret"};
    PyObject **slots[] = {&parsed->meta, &parsed->request, &parsed->response,
                          &parsed->secret};
    if (count > 3) {
        PyErr_SetString(PyExc_TypeError, "submit takes at most 3 positional arguments");
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        *slots[i] = args[i];
    }
    Py_ssize_t keywords = kwnames != NULL ? PyTuple_GET_SIZE(kwnames) : 0;
    for (Py_ssize_t i = 0; i < keywords; i++) {
        PyObject *name = PyTuple_GET_ITEM(kwnames, i);
        size_t k = 0;
        while (k < 4 && PyUnicode_CompareWithASCIIString(name, names[k]) != 0) {
            k++;
        }
        if (k == 4 || *slots[k] != NULL) {
            PyErr_Format(PyExc_TypeError, "submit got an unexpected argument %R", name);
            return -1;
        }
        *slots[k] = args[count + i];
    }
    if (parsed->meta == NULL || !PyBytes_Check(parsed->meta)) {
        PyErr_SetString(PyExc_TypeError, "meta must be bytes");
        return -1;
    }
    if (parsed->secret == Py_None) {
        parsed->secret = NULL;
    }
    if (parsed->secret != NULL && !PyBytes_Check(parsed->secret)) {
        PyErr_SetString(PyExc_TypeError, "secret must be bytes or None");
        return -1;
    }
    if (parsed->secret != NULL && PyBytes_GET_SIZE(parsed->secret) == 0) {
        agpy_refuse_empty_secret();
        return -1;
    }
    return 0;
}

/* A body given to submit: absent, a commitment to finish, or raw bytes to commit to. */
struct body {
    const void *raw; /* borrowed from the argument */
    size_t raw_n;
    bool present;
    struct ag_commitment commitment;
};

static int
parse_body(struct agpy_state *state, PyObject *object, struct body *body)
{
    memset(body, 0, sizeof(*body));
    if (object == NULL || object == Py_None) {
        return 0;
    }
    body->present = true;
    if (PyBytes_Check(object)) {
        body->raw = PyBytes_AS_STRING(object);
        body->raw_n = (size_t)PyBytes_GET_SIZE(object);
        return 0;
    }
    return agpy_commitment_finish(state, object, &body->commitment);
}

static void
commit_raw(const struct ag_ledger *ledger, PyObject *secret, const uint8_t *id,
           enum ag_role role, struct body *body)
{
    const uint8_t *bytes =
        secret != NULL ? (const uint8_t *)PyBytes_AS_STRING(secret) : NULL;
    size_t n = secret != NULL ? (size_t)PyBytes_GET_SIZE(secret) : 0;
    ag_ledger_commitment(ledger, bytes, n, id, role, &body->commitment);
    (void)ag_commitment_update(&body->commitment, body->raw, body->raw_n);
    ag_commitment_finish(&body->commitment);
}

static PyObject *
ledger_submit(PyObject *self, PyObject *const *args, Py_ssize_t count,
              PyObject *kwnames)
{
    struct submit_args parsed = {0};
    struct body request, response;
    struct ag_error err;
    uint8_t id[AG_UUID_SIZE];
    uint64_t index = 0;
    int status = AG_OK;
    if (parse_submit(args, count, kwnames, &parsed) < 0 ||
        parse_body(LEDGER(self)->state, parsed.request, &request) < 0 ||
        parse_body(LEDGER(self)->state, parsed.response, &response) < 0) {
        return NULL;
    }
    const uint8_t *meta = (const uint8_t *)PyBytes_AS_STRING(parsed.meta);
    size_t meta_n = (size_t)PyBytes_GET_SIZE(parsed.meta);
    if (request.raw != NULL || response.raw != NULL) {
        status = ag_meta_id(meta, meta_n, id, &err);
        if (status != AG_OK) {
            return raise_status(self, status, &err);
        }
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    PyThreadState *detached = NULL;
    if (request.raw_n + response.raw_n >= AG_DETACH_MIN) {
        detached = PyEval_SaveThread();
    }
    if (request.raw != NULL) {
        commit_raw(ledger, parsed.secret, id, AG_ROLE_REQUEST, &request);
    }
    if (response.raw != NULL) {
        commit_raw(ledger, parsed.secret, id, AG_ROLE_RESPONSE, &response);
    }
    status = ag_ledger_submit(
        ledger, meta, meta_n, request.present ? &request.commitment : NULL,
        response.present ? &response.commitment : NULL, &index, &err);
    if (detached != NULL) {
        PyEval_RestoreThread(detached);
    }
    release(self);
    return status == AG_OK ? PyLong_FromUnsignedLongLong(index)
                           : raise_status(self, status, &err);
}

/* ---- commitments ---- */

static int
parse_commitment_args(PyObject *args, PyObject *kwargs, const char *format, uint8_t *id,
                      enum ag_role *role, const char **secret, Py_ssize_t *secret_n)
{
    static char *names[] = {"request_id", "role", "secret", NULL};
    PyObject *id_object = NULL, *role_object = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, format, names, &id_object,
                                     &role_object, secret, secret_n) ||
        agpy_parse_id(id_object, id) < 0 || agpy_parse_role(role_object, role) < 0) {
        return -1;
    }
    if (*secret != NULL && *secret_n == 0) {
        agpy_refuse_empty_secret();
        return -1;
    }
    return 0;
}

/* The commitment that `commitment` and `salt` return a part of. */
static int
make_commitment(PyObject *self, PyObject *args, PyObject *kwargs, const char *format,
                struct ag_commitment *commitment)
{
    uint8_t id[AG_UUID_SIZE];
    enum ag_role role = AG_ROLE_REQUEST;
    const char *secret = NULL;
    Py_ssize_t secret_n = 0;
    if (parse_commitment_args(args, kwargs, format, id, &role, &secret, &secret_n) <
        0) {
        return -1;
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return -1;
    }
    ag_ledger_commitment(ledger, (const uint8_t *)secret, (size_t)secret_n, id, role,
                         commitment);
    release(self);
    return 0;
}

PyDoc_STRVAR(
    commitment_doc,
    "commitment($self, request_id, role, *, secret=None)\n--\n\n"
    "A new Commitment with `secret`, or with the shard's default subject secret.");

static PyObject *
ledger_commitment(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct ag_commitment commitment;
    if (make_commitment(self, args, kwargs, "OO|$z#:commitment", &commitment) < 0) {
        return NULL;
    }
    return agpy_commitment_new(LEDGER(self)->state, &commitment);
}

PyDoc_STRVAR(salt_doc, "salt($self, request_id, role, *, secret=None)\n--\n\n"
                       "The 32-byte salt with which that body's commitment is made.");

static PyObject *
ledger_salt(PyObject *self, PyObject *args, PyObject *kwargs)
{
    struct ag_commitment commitment;
    if (make_commitment(self, args, kwargs, "OO|$z#:salt", &commitment) < 0) {
        return NULL;
    }
    return PyBytes_FromStringAndSize((const char *)commitment.salt, AG_HASH_SIZE);
}

/* ---- stages ---- */

static const char *const stage_names[AG_STAGES] = {"durable", "integrated",
                                                   "published"};

static int
parse_stage(const char *name, enum ag_stage *stage)
{
    for (int i = 0; i < AG_STAGES; i++) {
        if (strcmp(name, stage_names[i]) == 0) {
            *stage = (enum ag_stage)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError,
                 "state must be 'durable', 'integrated' or 'published', not '%.40s'",
                 name);
    return -1;
}

PyDoc_STRVAR(want_doc,
             "want($self, index, state='durable')\n--\n\n"
             "Say that somebody awaits the entry's state: hurry. IndexError.");

static PyObject *
ledger_want(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "state", NULL};
    unsigned long long index = 0;
    const char *state = "durable";
    enum ag_stage stage = AG_DURABLE;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|s:want", names, &index, &state) ||
        parse_stage(state, &stage) < 0) {
        return NULL;
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int status = ag_ledger_want(ledger, index, stage);
    release(self);
    if (status != AG_OK) {
        struct ag_error err;
        (void)ag_fail(&err, status, "entry %llu does not exist", index);
        return raise_status(self, status, &err);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(wait_doc,
             "wait($self, index, state='durable', timeout=None)\n--\n\n"
             "Block until the entry has that state. timeout: seconds.\n\n"
             "TimeoutError, IndexError; LedgerError when the outcome is unknown.");

static PyObject *
ledger_wait(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "state", "timeout", NULL};
    unsigned long long index = 0;
    const char *state = "durable";
    PyObject *timeout = Py_None;
    enum ag_stage stage = AG_DURABLE;
    uint64_t timeout_ns = UINT64_MAX;
    struct ag_error err;
    int status = AG_OK;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|sO:wait", names, &index, &state,
                                     &timeout) ||
        parse_stage(state, &stage) < 0) {
        return NULL;
    }
    if (timeout != Py_None) {
        double seconds = PyFloat_AsDouble(timeout);
        if (seconds == -1.0 && PyErr_Occurred()) {
            return NULL;
        }
        if (!(seconds >= 0 && seconds < 1e9)) {
            PyErr_SetString(PyExc_ValueError, "timeout must be from 0 to 1e9 seconds");
            return NULL;
        }
        timeout_ns = (uint64_t)(seconds * 1e9);
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_wait(ledger, index, stage, timeout_ns, &err);
    Py_END_ALLOW_THREADS
    release(self);
    if (status != AG_OK) {
        return raise_status(self, status, &err);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(drain_doc,
             "drain($self, /)\n--\n\n"
             "Clear fileno(); return (durable, integrated, published) sizes.");

static PyObject *
ledger_drain(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    ag_ledger_drain(ledger);
    unsigned long long durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    unsigned long long integrated = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    unsigned long long published = ag_ledger_stage_size(ledger, AG_PUBLISHED);
    release(self);
    return Py_BuildValue("KKK", durable, integrated, published);
}

PyDoc_STRVAR(
    fileno_doc,
    "fileno($self, /)\n--\n\n"
    "A descriptor that is readable when a state has moved or the log has failed.");

static PyObject *
ledger_fileno(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int fd = ag_ledger_fileno(ledger);
    release(self);
    return PyLong_FromLong(fd);
}

PyDoc_STRVAR(
    room_doc,
    "room($self, /)\n--\n\n"
    "Bytes of ring that entries of any mix of sizes can surely use now; an entry\n"
    "takes its length, rounded up to 8, plus 8.");

static PyObject *
ledger_room(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    size_t room = ag_ledger_room(ledger);
    release(self);
    return PyLong_FromSize_t(room);
}

static PyObject *
ledger_size(PyObject *self, void *closure)
{
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    const enum ag_stage *stage = closure;
    uint64_t size =
        stage != NULL ? ag_ledger_stage_size(ledger, *stage) : ag_ledger_size(ledger);
    release(self);
    return PyLong_FromUnsignedLongLong(size);
}

static Py_ssize_t
ledger_length(PyObject *self)
{
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return -1;
    }
    uint64_t size = ag_ledger_size(ledger);
    release(self);
    return (Py_ssize_t)size;
}

/* ---- reading and proving ---- */

PyDoc_STRVAR(entry_doc,
             "entry($self, index, /)\n--\n\n"
             "The bytes of an integrated entry. May read a file.\n\n"
             "IndexError beyond the end, LedgerError when it is not integrated yet.");

static PyObject *
ledger_entry(PyObject *self, PyObject *object)
{
    uint8_t *entry = NULL;
    size_t n = 0;
    struct ag_error err;
    int status = AG_OK;
    unsigned long long index = PyLong_AsUnsignedLongLong(object);
    if (index == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_entry(ledger, index, &entry, &n, &err);
    Py_END_ALLOW_THREADS
    release(self);
    if (status != AG_OK) {
        return raise_status(self, status, &err);
    }
    PyObject *result = PyBytes_FromStringAndSize((const char *)entry, (Py_ssize_t)n);
    ag_free(entry);
    return result;
}

PyDoc_STRVAR(checkpoint_doc,
             "checkpoint($self, /)\n--\n\n"
             "The last published signed checkpoint; b'' before the first.");

static PyObject *
ledger_checkpoint(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    char note[AG_CHECKPOINT_MAX];
    size_t n = 0;
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    ag_ledger_checkpoint(ledger, note, &n);
    release(self);
    return PyBytes_FromStringAndSize(note, (Py_ssize_t)n);
}

static PyObject *
proof_list(uint8_t (*proof)[AG_HASH_SIZE], size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *hash =
            PyBytes_FromStringAndSize((const char *)proof[i], AG_HASH_SIZE);
        if (hash == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)i, hash);
        }
    }
    return list;
}

/* size given, or the integrated size when it is None */
static int
optional_size(struct ag_ledger *ledger, PyObject *object, uint64_t *size)
{
    if (object == NULL || object == Py_None) {
        *size = ag_ledger_stage_size(ledger, AG_INTEGRATED);
        return 0;
    }
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) {
        return -1;
    }
    *size = value;
    return 0;
}

typedef int (*proof_fn)(struct ag_ledger *ledger, uint64_t first, uint64_t size,
                        uint8_t (*proof)[AG_HASH_SIZE], size_t *count,
                        struct ag_error *err);

static PyObject *
make_proof(PyObject *self, unsigned long long first, PyObject *size_object,
           proof_fn make)
{
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE];
    size_t count = 0;
    uint64_t size = 0;
    struct ag_error err;
    int status = AG_OK;
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    if (optional_size(ledger, size_object, &size) < 0) {
        release(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = make(ledger, first, size, proof, &count, &err);
    Py_END_ALLOW_THREADS
    release(self);
    return status == AG_OK ? proof_list(proof, count)
                           : raise_status(self, status, &err);
}

PyDoc_STRVAR(
    inclusion_doc,
    "inclusion_proof($self, index, size=None)\n--\n\n"
    "RFC 6962 audit path of the entry, leaf to root: list of 32-byte hashes.\n\n"
    "size: tree size, by default the integrated size. IndexError. May read files.");

static PyObject *
ledger_inclusion_proof(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "size", NULL};
    unsigned long long index = 0;
    PyObject *size = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|O:inclusion_proof", names, &index,
                                     &size)) {
        return NULL;
    }
    return make_proof(self, index, size, ag_ledger_inclusion);
}

PyDoc_STRVAR(consistency_doc,
             "consistency_proof($self, old_size, new_size=None)\n--\n\n"
             "RFC 6962 consistency proof between two sizes: list of 32-byte hashes.\n\n"
             "new_size: by default the integrated size. IndexError. May read files.");

static PyObject *
ledger_consistency_proof(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"old_size", "new_size", NULL};
    unsigned long long old_size = 0;
    PyObject *new_size = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|O:consistency_proof", names,
                                     &old_size, &new_size)) {
        return NULL;
    }
    return make_proof(self, old_size, new_size, ag_ledger_consistency);
}

PyDoc_STRVAR(root_doc,
             "root($self, size=None)\n--\n\n"
             "Root of the first `size` entries (default: the integrated size).");

static PyObject *
ledger_root(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"size", NULL};
    uint8_t root[AG_HASH_SIZE];
    PyObject *size_object = NULL;
    uint64_t size = 0;
    struct ag_error err;
    int status = AG_OK;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:root", names, &size_object)) {
        return NULL;
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    if (optional_size(ledger, size_object, &size) < 0) {
        release(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_root(ledger, size, root, &err);
    Py_END_ALLOW_THREADS
    release(self);
    return status == AG_OK ? PyBytes_FromStringAndSize((const char *)root, AG_HASH_SIZE)
                           : raise_status(self, status, &err);
}

PyDoc_STRVAR(
    receipt_doc,
    "receipt($self, index, /)\n--\n\n"
    "The C2SP tlog-proof of a published entry: text that anyone verifies offline.\n\n"
    "IndexError; LedgerError when it is not published yet. May read files.");

static PyObject *
ledger_receipt(PyObject *self, PyObject *object)
{
    char *text = NULL;
    size_t n = 0;
    struct ag_error err;
    int status = AG_OK;
    unsigned long long index = PyLong_AsUnsignedLongLong(object);
    if (index == (unsigned long long)-1 && PyErr_Occurred()) {
        return NULL;
    }
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_receipt(ledger, index, &text, &n, &err);
    Py_END_ALLOW_THREADS
    release(self);
    if (status != AG_OK) {
        return raise_status(self, status, &err);
    }
    PyObject *result = PyBytes_FromStringAndSize(text, (Py_ssize_t)n);
    ag_free(text);
    return result;
}

/* ---- description ---- */

PyDoc_STRVAR(stats_doc,
             "stats($self, /)\n--\n\n"
             "Counters and sizes as a dict; *_ns in nanoseconds. wal: those\n"
             "of the write-ahead log, as WalWriter.stats() has them.");

static PyObject *
ledger_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger_stats s;
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        ag_ledger_stats(ledger, &s);
    Py_END_ALLOW_THREADS
    release(self);
    const struct ag_wal_stats *w = &s.wal;
    PyObject *log = agpy_wal_stats(w);
    if (log == NULL) {
        return NULL;
    }
    return Py_BuildValue(
        "{sKsKsKsK sKsKsKsKsKsz sKsKsK sKsKsKsOsO sKsKszsOsN}", "submitted",
        s.submitted, "durable", s.durable, "integrated", s.integrated, "published",
        s.published, "checkpoints", s.checkpoints, "publish_failures",
        s.publish_failures, "reopens", s.reopens, "replayed", s.replayed, "rewritten",
        s.rewritten, "last_failure",
        s.last_failure.status != AG_OK ? s.last_failure.what : NULL, "commits",
        w->batches, "commit_ns", w->sync_ns_total, "commit_max_ns", w->sync_ns_max,
        "low_water", w->low_water, "live_segments",
        (unsigned long long)w->live_segments, "segment_bytes",
        (unsigned long long)w->segment_bytes, "direct", w->direct ? Py_True : Py_False,
        "no_space", w->no_space ? Py_True : Py_False, "ring_bytes", w->ring_capacity,
        "ring_used", w->ring_used, "ring_mode", w->ring_mode, "ring_lost",
        w->ring_lost ? Py_True : Py_False, "wal", log);
}

static PyObject *
ledger_text(PyObject *self, void *closure)
{
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    const char *text = NULL;
    switch (*(const char *)closure) {
    case 'o':
        text = ag_ledger_origin(ledger);
        break;
    case 'v':
        text = ag_ledger_vkey(ledger);
        break;
    default:
        text = ag_ledger_path(ledger);
        break;
    }
    PyObject *result = PyUnicode_DecodeFSDefault(text);
    release(self);
    return result;
}

static PyObject *
ledger_poisoned(PyObject *self, void *Py_UNUSED(closure))
{
    struct ag_error err;
    struct ag_ledger *ledger = acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int status = ag_ledger_failure(ledger, &err);
    release(self);
    if (status == AG_OK) {
        Py_RETURN_NONE;
    }
    return PyUnicode_FromFormat("%s; in %s", err.what, err.file);
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
        return raise_status(self, status, &err);
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
    if (LEDGER(self)->pid == getpid() &&
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

static PyMethodDef ledger_methods[] = {
    {"submit", AGPY_METHOD(ledger_submit), METH_FASTCALL | METH_KEYWORDS, submit_doc},
    {"commitment", AGPY_METHOD(ledger_commitment), METH_VARARGS | METH_KEYWORDS,
     commitment_doc},
    {"salt", AGPY_METHOD(ledger_salt), METH_VARARGS | METH_KEYWORDS, salt_doc},
    {"want", AGPY_METHOD(ledger_want), METH_VARARGS | METH_KEYWORDS, want_doc},
    {"wait", AGPY_METHOD(ledger_wait), METH_VARARGS | METH_KEYWORDS, wait_doc},
    {"drain", ledger_drain, METH_NOARGS, drain_doc},
    {"fileno", ledger_fileno, METH_NOARGS, fileno_doc},
    {"room", ledger_room, METH_NOARGS, room_doc},
    {"entry", ledger_entry, METH_O, entry_doc},
    {"checkpoint", ledger_checkpoint, METH_NOARGS, checkpoint_doc},
    {"root", AGPY_METHOD(ledger_root), METH_VARARGS | METH_KEYWORDS, root_doc},
    {"inclusion_proof", AGPY_METHOD(ledger_inclusion_proof),
     METH_VARARGS | METH_KEYWORDS, inclusion_doc},
    {"consistency_proof", AGPY_METHOD(ledger_consistency_proof),
     METH_VARARGS | METH_KEYWORDS, consistency_doc},
    {"receipt", ledger_receipt, METH_O, receipt_doc},
    {"stats", ledger_stats, METH_NOARGS, stats_doc},
    {"close", ledger_close, METH_NOARGS, close_doc},
    {"__enter__", ledger_enter, METH_NOARGS, NULL},
    {"__exit__", ledger_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static const enum ag_stage stages[AG_STAGES] = {AG_DURABLE, AG_INTEGRATED,
                                                AG_PUBLISHED};

static PyGetSetDef ledger_getset[] = {
    {"size", ledger_size, NULL, "Entries submitted.", NULL},
    {"durable_size", ledger_size, NULL, "Entries on disk for good.",
     (void *)&stages[0]},
    {"integrated_size", ledger_size, NULL, "Entries in the tree.", (void *)&stages[1]},
    {"published_size", ledger_size, NULL, "Size of the last signed checkpoint.",
     (void *)&stages[2]},
    {"origin", ledger_text, NULL, "The log's name, fixed at its first start.",
     (void *)"o"},
    {"vkey", ledger_text, NULL, "The verifier key that receipts are checked with.",
     (void *)"v"},
    {"path", ledger_text, NULL, "The published folder.", (void *)"p"},
    {"poisoned", ledger_poisoned, NULL, "None, or what stopped the log.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    ledger_doc,
    "Ledger(path, *, origin=None, private=None, key=None, ring_bytes=16 << 20,\n"
    "       max_delay_us=2000, publish_gap_us=100_000, publish_max_us=10_000_000)\n"
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
    {Py_sq_length, ledger_length},
    {0, NULL},
};

PyType_Spec agpy_ledger_spec = {
    .name = "aegis_c.Ledger",
    .basicsize = sizeof(struct ledger_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ledger_slots,
};
