/* aegis_c.WalWriter: the write-ahead log, one writer per directory.
 *
 * `lock` orders producers among themselves and against close. A method that may wait
 * (sync, drain, stats) counts itself in `users` and works without the lock; close first
 * refuses newcomers, then stops the log, which answers every waiter, then frees it once
 * nobody is left inside. */
#include "agpy.h"

#include <stdatomic.h>
#include <stddef.h>
#include <structmember.h>
#include <time.h>

#include "base/alloc.h"
#include "detach.h"
#include "fork.h"
#include "lock.h"
#include "wal/writer.h"

/* At interpreter exit the disk gets this long; what it does not take stays in the ring,
 * and the next open writes it. */
#define EXIT_FLUSH_NS 5000000000u
struct walwriter_object {
    PyObject_HEAD
    PyObject *weakrefs;
    PyObject *at_exit; /* owned: registered with atexit; holds a weak reference only */
    struct agpy_lock lock;
    struct ag_wal *wal;       /* owned, under lock; NULL when closed */
    bool closing;             /* under lock */
    atomic_int users;         /* threads inside a call without the lock */
    unsigned forks;           /* agpy_fork_count() when it was made */
    struct agpy_state *state; /* borrowed: the type keeps the module alive */
};

#define WALWRITER(object) ((struct walwriter_object *)(object))

static PyObject *
raise_status(struct walwriter_object *self, int status, const struct ag_error *err)
{
    return agpy_raise(self->state, AGPY_WAL, status, err);
}

static PyObject *
raise_closed(struct walwriter_object *self)
{
    struct ag_error err;
    (void)ag_fail(&err, AG_ECLOSED, "the log is closed");
    return raise_status(self, AG_ECLOSED, &err);
}

/* In a forked child the lock may be held for ever by a thread that is not there. */
static bool
is_forked(const struct walwriter_object *self)
{
    return agpy_fork_count() != self->forks;
}

static PyObject *
raise_forked(struct walwriter_object *self)
{
    struct ag_error err;
    (void)ag_fail(&err, AG_EFORKED, "the log belongs to the parent process");
    ag_error_advice(&err, "Open a log of its own in the child");
    return raise_status(self, AG_EFORKED, &err);
}

/* The log for a call without the lock, to be given back with leave(); or NULL with an
 * exception. */
static struct ag_wal *
enter(struct walwriter_object *self)
{
    if (is_forked(self)) {
        raise_forked(self);
        return NULL;
    }
    agpy_lock_acquire(&self->lock);
    struct ag_wal *wal = self->closing ? NULL : self->wal;
    if (wal != NULL) {
        atomic_fetch_add(&self->users, 1);
    }
    agpy_lock_release(&self->lock);
    if (wal == NULL) {
        raise_closed(self);
    }
    return wal;
}

static void
leave(struct walwriter_object *self)
{
    atomic_fetch_sub(&self->users, 1);
}

/* Closes; 0, or a status with `err`. May be called again after AG_ETIMEDOUT. */
static int
close_handle(struct walwriter_object *self, uint64_t timeout_ns, struct ag_error *err)
{
    int status = AG_OK;
    if (is_forked(self)) {
        struct ag_wal *parents = self->wal;
        self->wal = NULL;
        if (parents != NULL) {
            ag_wal_abandon(parents);
        }
        return AG_OK;
    }
    agpy_lock_acquire(&self->lock);
    struct ag_wal *wal = self->closing ? NULL : self->wal;
    self->closing = true;
    agpy_lock_release(&self->lock);
    if (wal == NULL) {
        return AG_OK;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_stop(wal, timeout_ns, err);
        if (status != AG_ETIMEDOUT) {
            while (atomic_load(&self->users) != 0) {
                struct timespec pause = {.tv_nsec = 100000};
                (void)nanosleep(&pause, NULL);
            }
            struct ag_error again;
            (void)ag_wal_close(wal, UINT64_MAX, &again);
        }
    Py_END_ALLOW_THREADS
    agpy_lock_acquire(&self->lock);
    if (status == AG_ETIMEDOUT) {
        self->closing = false;
    } else {
        self->wal = NULL;
    }
    agpy_lock_release(&self->lock);
    return status;
}

/* ---- the end of the interpreter ---- */

/* The object that a weak reference means, *owned*; NULL when it is gone. */
static PyObject *
referent(PyObject *weak)
{
    PyObject *object = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    (void)PyWeakref_GetRef(weak, &object); /* fails only on what is no weak reference */
#else
    object = PyWeakref_GetObject(weak); /* borrowed */
    if (object == Py_None) {
        object = NULL;
    }
    Py_XINCREF(object);
#endif
    return object;
}

static PyObject *
flush_at_exit(PyObject *weak, PyObject *ignored)
{
    (void)ignored;
    PyObject *object = referent(weak);
    if (object != NULL) {
        struct ag_error err;
        if (close_handle(WALWRITER(object), EXIT_FLUSH_NS, &err) != AG_OK) {
            PySys_WriteStderr("aegis: closing the write-ahead log at exit: %s\n",
                              err.what);
        }
        Py_DECREF(object);
    }
    Py_RETURN_NONE;
}

static PyMethodDef flush_at_exit_def = {"flush_at_exit", flush_at_exit, METH_NOARGS,
                                        NULL};

static int
call_atexit(const char *function, PyObject *argument)
{
    int result = -1;
    PyObject *module = PyImport_ImportModule("atexit");
    if (module != NULL) {
        PyObject *done = PyObject_CallMethod(module, function, "O", argument);
        result = done != NULL ? 0 : -1;
        Py_XDECREF(done);
        Py_DECREF(module);
    }
    return result;
}

static int
register_exit(struct walwriter_object *self)
{
    PyObject *weak = PyWeakref_NewRef((PyObject *)self, NULL);
    if (weak == NULL) {
        return -1;
    }
    self->at_exit = PyCFunction_New(&flush_at_exit_def, weak);
    Py_DECREF(weak);
    return self->at_exit != NULL ? call_atexit("register", self->at_exit) : -1;
}

static void
unregister_exit(struct walwriter_object *self)
{
    if (self->at_exit != NULL) {
        PyObject *kind, *value, *traceback;
        PyErr_Fetch(&kind, &value, &traceback);
        if (call_atexit("unregister", self->at_exit) < 0) {
            PyErr_Clear();
        }
        PyErr_Restore(kind, value, traceback);
        Py_CLEAR(self->at_exit);
    }
}

/* ---- making ---- */

static PyObject *
walwriter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path",       "ring",         "segment_bytes",
                            "ring_bytes", "max_delay_us", "archive",
                            "direct",     "accept_tail",  NULL};
    PyObject *path = NULL, *ring = NULL, *archive = NULL;
    PyObject *ring_object = Py_None, *archive_object = Py_None, *accept = Py_None;
    long long segment_bytes = 16 << 20, ring_bytes = 16 << 20, max_delay_us = 2000;
    unsigned long long accept_at = 0, accept_seq = 0;
    int direct = 1;
    struct walwriter_object *self = NULL;
    struct ag_error err;
    int status = AG_OK;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$OLLLOpO:WalWriter", names,
                                     PyUnicode_FSConverter, &path, &ring_object,
                                     &segment_bytes, &ring_bytes, &max_delay_us,
                                     &archive_object, &direct, &accept)) {
        return NULL;
    }
    if ((ring_object != Py_None && !PyUnicode_FSConverter(ring_object, &ring)) ||
        (archive_object != Py_None &&
         !PyUnicode_FSConverter(archive_object, &archive)) ||
        (accept != Py_None &&
         !PyArg_ParseTuple(accept, "KK:accept_tail", &accept_at, &accept_seq))) {
        goto exit;
    }
    if (segment_bytes <= 0 || segment_bytes > UINT32_MAX || ring_bytes <= 0 ||
        max_delay_us < 0 || max_delay_us > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError,
                        "segment_bytes and ring_bytes must be positive, "
                        "max_delay_us must not be negative");
        goto exit;
    }
    self = (struct walwriter_object *)type->tp_alloc(type, 0);
    if (self == NULL) {
        goto exit;
    }
    self->state = state;
    self->forks = agpy_fork_count();
    if (agpy_fork_watch() < 0 || agpy_lock_init(&self->lock) < 0) {
        Py_CLEAR(self);
        goto exit;
    }
    struct ag_wal_options options = {
        .ring_path = ring != NULL ? PyBytes_AS_STRING(ring) : NULL,
        .archive = archive != NULL ? PyBytes_AS_STRING(archive) : NULL,
        .segment_bytes = (uint32_t)segment_bytes,
        .ring_bytes = (size_t)ring_bytes,
        .max_delay_us = (uint32_t)max_delay_us,
        .buffered = !direct,
        .accept_at = accept_at,
        .accept_seq = accept_seq,
    };
    struct ag_wal *wal = NULL;
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_open(PyBytes_AS_STRING(path), &options, &wal, &err);
    Py_END_ALLOW_THREADS
    self->wal = wal;
    if (status != AG_OK) {
        raise_status(self, status, &err);
        Py_CLEAR(self);
    } else if (register_exit(self) < 0) {
        Py_CLEAR(self);
    }
exit:
    Py_XDECREF(path);
    Py_XDECREF(ring);
    Py_XDECREF(archive);
    return (PyObject *)self;
}

static int
walwriter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(WALWRITER(self)->at_exit);
    return 0;
}

static int
walwriter_clear(PyObject *self)
{
    (void)self; /* at_exit is needed to unregister; it cannot be part of a cycle */
    return 0;
}

static void
walwriter_dealloc(PyObject *object)
{
    struct walwriter_object *self = WALWRITER(object);
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->wal != NULL) {
        PyObject *kind, *value, *traceback;
        struct ag_error err;
        PyErr_Fetch(&kind, &value, &traceback);
        if (PyErr_WarnFormat(PyExc_ResourceWarning, 1, "unclosed WalWriter") < 0) {
            PyErr_WriteUnraisable((PyObject *)type);
        }
        (void)close_handle(self, UINT64_MAX, &err);
        PyErr_Restore(kind, value, traceback);
    }
    unregister_exit(self);
    if (self->weakrefs != NULL) {
        PyObject_ClearWeakRefs(object);
    }
    agpy_lock_free(&self->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

/* ---- producing ---- */

PyDoc_STRVAR(
    append_doc,
    "append($self, payload, /)\n--\n\n"
    "Copy payload (bytes, 1 octet to 1 MiB) into the ring; return its sequence\n"
    "number. Never waits for the disk. After it returns, the death of the\n"
    "process loses nothing.\n\n"
    "WalFull: no room, nothing was appended. WalPoisoned, WalError (closed).\n"
    "ValueError: empty or too large.");

static PyObject *
raise_append(struct walwriter_object *self, struct ag_wal *wal, int status, size_t n)
{
    struct ag_error err;
    switch (status) {
    case AG_EINVAL:
        return PyErr_Format(PyExc_ValueError,
                            "payload has %zu bytes: 1 to %zu expected", n,
                            ag_wal_payload_max(wal));
    case AG_EPOISONED:
        (void)ag_wal_failure(wal, &err);
        break;
    case AG_EFULL: {
        struct ag_wal_stats stats;
        ag_wal_stats(wal, &stats);
        (void)ag_fail(&err, AG_EFULL, "no room for %zu bytes in the ring, %zu are free",
                      n, ag_wal_room(wal));
        ag_error_advice(&err, stats.no_space
                                  ? "The disk has no space for the next segment: free "
                                    "some, and the log goes on by itself"
                                  : "Wait for room, or choose a larger ring_bytes");
        break;
    }
    default:
        (void)ag_fail(&err, status, "%s", ag_status_text(status));
        break;
    }
    return raise_status(self, status, &err);
}

static PyObject *
walwriter_append(PyObject *object, PyObject *payload)
{
    struct walwriter_object *self = WALWRITER(object);
    uint64_t seq = 0;
    if (!PyBytes_Check(payload)) {
        PyErr_Format(PyExc_TypeError, "payload must be bytes, not %.200s",
                     Py_TYPE(payload)->tp_name);
        return NULL;
    }
    size_t n = (size_t)PyBytes_GET_SIZE(payload);
    const char *from = PyBytes_AS_STRING(payload);
    if (is_forked(self)) {
        return raise_forked(self);
    }
    agpy_lock_acquire(&self->lock);
    struct ag_wal *wal = self->closing ? NULL : self->wal;
    if (wal == NULL) {
        agpy_lock_release(&self->lock);
        return raise_closed(self);
    }
    int status = AG_OK;
    AGPY_DETACHED(n, status = ag_wal_append(wal, from, n, &seq));
    if (status != AG_OK) {
        atomic_fetch_add(&self->users, 1);
        agpy_lock_release(&self->lock);
        raise_append(self, wal, status, n);
        leave(self);
        return NULL;
    }
    agpy_lock_release(&self->lock);
    return PyLong_FromUnsignedLongLong(seq);
}

static int
parse_number(PyObject *object, uint64_t *number)
{
    unsigned long long value = PyLong_AsUnsignedLongLong(object);
    if (value == (unsigned long long)-1 && PyErr_Occurred()) {
        return -1;
    }
    *number = value;
    return 0;
}

PyDoc_STRVAR(want_doc,
             "want($self, seq, /)\n--\n\n"
             "Somebody awaits seq: flush now instead of gathering. The eventfd "
             "becomes\nreadable when it is durable.");

static PyObject *
walwriter_want(PyObject *object, PyObject *argument)
{
    uint64_t seq;
    if (parse_number(argument, &seq) < 0) {
        return NULL;
    }
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    ag_wal_want(wal, seq);
    leave(WALWRITER(object));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    sync_doc,
    "sync($self, seq=None, timeout=None)\n--\n\n"
    "Wait until seq (default: everything appended so far) is durable, at most\n"
    "timeout seconds; return durable_seq.\n\n"
    "TimeoutError: not yet. WalPoisoned: a write or sync failed, outcome unknown.\n"
    "IndexError: seq was never appended.");

static PyObject *
walwriter_sync(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"seq", "timeout", NULL};
    PyObject *seq_object = Py_None, *timeout_object = Py_None;
    uint64_t seq = 0, timeout_ns = UINT64_MAX;
    struct ag_error err;
    int status;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:sync", names, &seq_object,
                                     &timeout_object) ||
        (seq_object != Py_None && parse_number(seq_object, &seq) < 0)) {
        return NULL;
    }
    if (timeout_object != Py_None) {
        double seconds = PyFloat_AsDouble(timeout_object);
        if (seconds == -1.0 && PyErr_Occurred()) {
            return NULL;
        }
        if (!(seconds >= 0.0)) {
            PyErr_SetString(PyExc_ValueError, "timeout must not be negative");
            return NULL;
        }
        timeout_ns = seconds < 1e9 ? (uint64_t)(seconds * 1e9) : UINT64_MAX;
    }
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    if (seq_object == Py_None) {
        seq = ag_wal_next_seq(wal) - 1;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_sync(wal, seq, timeout_ns, &err);
    Py_END_ALLOW_THREADS
    uint64_t durable = ag_wal_durable(wal);
    leave(WALWRITER(object));
    if (status != AG_OK) {
        return raise_status(WALWRITER(object), status, &err);
    }
    return PyLong_FromUnsignedLongLong(durable);
}

PyDoc_STRVAR(fileno_doc, "fileno($self)\n--\n\n"
                         "The eventfd, for loop.add_reader; it stays the log's own.");

static PyObject *
walwriter_fileno(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    int fd = ag_wal_fileno(wal);
    leave(WALWRITER(object));
    return PyLong_FromLong(fd);
}

PyDoc_STRVAR(drain_doc, "drain($self)\n--\n\n"
                        "Clear the eventfd and return durable_seq.");

static PyObject *
walwriter_drain(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    uint64_t durable = ag_wal_drain(wal);
    leave(WALWRITER(object));
    return PyLong_FromUnsignedLongLong(durable);
}

PyDoc_STRVAR(room_doc,
             "room($self)\n--\n\n"
             "Free bytes of the ring; a payload takes 16 more than its length "
             "padded to 8.");

static PyObject *
walwriter_room(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    size_t room = ag_wal_room(wal);
    leave(WALWRITER(object));
    return PyLong_FromSize_t(room);
}

PyDoc_STRVAR(
    want_room_doc,
    "want_room($self, n, /)\n--\n\n"
    "True when the ring has n free bytes (or never can have); else the eventfd\n"
    "becomes readable once it has.");

static PyObject *
walwriter_want_room(PyObject *object, PyObject *argument)
{
    uint64_t n;
    if (parse_number(argument, &n) < 0) {
        return NULL;
    }
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    bool there = ag_wal_want_room(wal, (size_t)n);
    leave(WALWRITER(object));
    return PyBool_FromLong(there);
}

PyDoc_STRVAR(
    release_doc,
    "release($self, seq, blob=b'', /)\n--\n\n"
    "Set the low-water mark: records up to seq (durable) need no recovery any\n"
    "more; whole segments below it move to the archive. blob is kept with the\n"
    "mark. Waits for the disk.");

static PyObject *
walwriter_release(PyObject *object, PyObject *args)
{
    PyObject *seq_object = NULL;
    const char *blob = "";
    Py_ssize_t blob_n = 0;
    uint64_t seq = 0;
    struct ag_error err;
    int status;
    if (!PyArg_ParseTuple(args, "O|y#:release", &seq_object, &blob, &blob_n) ||
        parse_number(seq_object, &seq) < 0) {
        return NULL;
    }
    if (blob_n > (Py_ssize_t)AG_WAL_BLOB_MAX) {
        return PyErr_Format(PyExc_ValueError, "blob has %zd bytes: at most %u expected",
                            blob_n, AG_WAL_BLOB_MAX);
    }
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_set_low_water(wal, seq, blob, (uint32_t)blob_n, &err);
    Py_END_ALLOW_THREADS
    leave(WALWRITER(object));
    if (status != AG_OK) {
        return raise_status(WALWRITER(object), status, &err);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    reopen_doc,
    "reopen($self)\n--\n\n"
    "After WalPoisoned: recover on a new segment and write again everything that\n"
    "was appended and is not durable. Does nothing when the log is healthy.");

static PyObject *
walwriter_reopen(PyObject *object, PyObject *ignored)
{
    struct walwriter_object *self = WALWRITER(object);
    struct ag_error err;
    int status = AG_ECLOSED;
    (void)ignored;
    if (is_forked(self)) {
        return raise_forked(self);
    }
    agpy_lock_acquire(&self->lock);
    if (self->wal != NULL && !self->closing) {
        Py_BEGIN_ALLOW_THREADS
            status = ag_wal_reopen(self->wal, &err);
        Py_END_ALLOW_THREADS
    } else {
        (void)ag_fail(&err, AG_ECLOSED, "the log is closed");
    }
    agpy_lock_release(&self->lock);
    if (status != AG_OK) {
        return raise_status(self, status, &err);
    }
    Py_RETURN_NONE;
}

/* ---- looking ---- */

static int
set_item(PyObject *dict, const char *name, PyObject *value)
{
    if (value == NULL) {
        return -1;
    }
    int result = PyDict_SetItemString(dict, name, value);
    Py_DECREF(value);
    return result;
}

static PyObject *
list_of(const uint64_t *values, unsigned n)
{
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (unsigned i = 0; list != NULL && i < n; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(values[i]);
        if (value == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, value);
    }
    return list;
}

PyDoc_STRVAR(
    stats_doc,
    "stats($self)\n--\n\n"
    "Numbers about the log as a dict. sync_us: list of counts, item k counts writes\n"
    "with sync of less than 2**k microseconds (the last one all others);\n"
    "batch_records likewise. ring_mode: 'tmpfs' or 'disk'. recovery: lines about the\n"
    "last recovery.");

static PyObject *
walwriter_stats(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal_stats stats;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    ag_wal_stats(wal, &stats);
    PyObject *dict = PyDict_New();
    int failed = dict == NULL;
#define NUMBER(field)                                                                  \
    failed =                                                                           \
        failed ||                                                                      \
        set_item(dict, #field,                                                         \
                 PyLong_FromUnsignedLongLong((unsigned long long)stats.field)) < 0;
#define FLAG(field)                                                                    \
    failed = failed || set_item(dict, #field, PyBool_FromLong(stats.field)) < 0;
    NUMBER(next_seq)
    NUMBER(durable_seq)
    NUMBER(low_water)
    NUMBER(ring_capacity)
    NUMBER(ring_used)
    NUMBER(batches)
    NUMBER(records)
    NUMBER(bytes)
    NUMBER(markers)
    NUMBER(rotations)
    NUMBER(syncs)
    NUMBER(slow_syncs)
    NUMBER(sync_ns_total)
    NUMBER(sync_ns_max)
    NUMBER(sync_ns_first)
    NUMBER(wakes)
    NUMBER(wal_id)
    NUMBER(segment_no)
    NUMBER(segment_bytes)
    NUMBER(epoch)
    NUMBER(chain)
    NUMBER(live_segments)
    NUMBER(replayed)
    FLAG(poisoned)
    FLAG(direct)
    FLAG(no_space)
    FLAG(recovered_torn)
    FLAG(ring_lost)
#undef NUMBER
#undef FLAG
    failed = failed ||
             set_item(dict, "sync_us", list_of(stats.sync_us, AG_WAL_SYNC_BUCKETS)) < 0;
    failed = failed || set_item(dict, "batch_records",
                                list_of(stats.batch_records, AG_WAL_BATCH_BUCKETS)) < 0;
    failed = failed ||
             set_item(dict, "ring_mode", PyUnicode_FromString(stats.ring_mode)) < 0;
    if (!failed) {
        PyObject *text = PyUnicode_DecodeFSDefault(ag_wal_notes(wal));
        PyObject *lines = text != NULL ? PyUnicode_Splitlines(text, 0) : NULL;
        Py_XDECREF(text);
        failed = set_item(dict, "recovery", lines) < 0;
    }
    leave(WALWRITER(object));
    if (failed) {
        Py_CLEAR(dict);
    }
    return dict;
}

static PyObject *
walwriter_durable_seq(PyObject *object, void *ignored)
{
    (void)ignored;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    uint64_t durable = ag_wal_durable(wal);
    leave(WALWRITER(object));
    return PyLong_FromUnsignedLongLong(durable);
}

static PyObject *
walwriter_poisoned(PyObject *object, void *ignored)
{
    (void)ignored;
    struct ag_error err;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    int status = ag_wal_failure(wal, &err);
    leave(WALWRITER(object));
    if (status == AG_OK) {
        Py_RETURN_NONE;
    }
    return PyUnicode_FromFormat("%s; in %s", err.what, err.file);
}

static PyObject *
walwriter_mark_state(PyObject *object, void *ignored)
{
    (void)ignored;
    uint64_t seq = 0;
    uint8_t *blob = NULL;
    uint32_t n = 0;
    struct ag_wal *wal = enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    int status = ag_wal_low_water(wal, &seq, &blob, &n);
    leave(WALWRITER(object));
    if (status != AG_OK) {
        return raise_status(WALWRITER(object), status, NULL);
    }
    PyObject *result = Py_BuildValue("(Ky#)", (unsigned long long)seq,
                                     (const char *)blob, (Py_ssize_t)n);
    ag_free(blob);
    return result;
}

static PyObject *
walwriter_closed(PyObject *object, void *ignored)
{
    (void)ignored;
    struct walwriter_object *self = WALWRITER(object);
    if (is_forked(self)) {
        return PyBool_FromLong(self->wal == NULL);
    }
    agpy_lock_acquire(&self->lock);
    bool closed = self->closing || self->wal == NULL;
    agpy_lock_release(&self->lock);
    return PyBool_FromLong(closed);
}

/* ---- closing ---- */

PyDoc_STRVAR(
    close_doc,
    "close($self, timeout=None)\n--\n\n"
    "Flush everything, end the threads, free the ring. May be called again.\n\n"
    "TimeoutError: the disk did not take everything in `timeout` seconds; it goes\n"
    "on, call close again. WalPoisoned: what was not durable stays in the ring,\n"
    "and the next open writes it.");

static PyObject *
walwriter_close(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    uint64_t timeout_ns = UINT64_MAX;
    struct ag_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:close", names, &timeout)) {
        return NULL;
    }
    if (timeout != Py_None) {
        double seconds = PyFloat_AsDouble(timeout);
        if (seconds == -1.0 && PyErr_Occurred()) {
            return NULL;
        }
        if (!(seconds >= 0.0)) {
            PyErr_SetString(PyExc_ValueError, "timeout must not be negative");
            return NULL;
        }
        timeout_ns = seconds < 1e9 ? (uint64_t)(seconds * 1e9) : UINT64_MAX;
    }
    int status = close_handle(WALWRITER(object), timeout_ns, &err);
    if (status == AG_ETIMEDOUT) {
        return raise_status(WALWRITER(object), status, &err);
    }
    unregister_exit(WALWRITER(object));
    if (status != AG_OK) {
        return raise_status(WALWRITER(object), status, &err);
    }
    Py_RETURN_NONE;
}

static PyObject *
walwriter_enter(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return Py_NewRef(object);
}

static PyObject *
walwriter_exit(PyObject *object, PyObject *args)
{
    (void)args;
    PyObject *none = PyTuple_New(0);
    PyObject *result = none != NULL ? walwriter_close(object, none, NULL) : NULL;
    Py_XDECREF(none);
    return result;
}

static PyMethodDef walwriter_methods[] = {
    {"append", walwriter_append, METH_O, append_doc},
    {"want", walwriter_want, METH_O, want_doc},
    {"sync", AGPY_METHOD(walwriter_sync), METH_VARARGS | METH_KEYWORDS, sync_doc},
    {"fileno", walwriter_fileno, METH_NOARGS, fileno_doc},
    {"drain", walwriter_drain, METH_NOARGS, drain_doc},
    {"room", walwriter_room, METH_NOARGS, room_doc},
    {"want_room", walwriter_want_room, METH_O, want_room_doc},
    {"release", walwriter_release, METH_VARARGS, release_doc},
    {"reopen", walwriter_reopen, METH_NOARGS, reopen_doc},
    {"stats", walwriter_stats, METH_NOARGS, stats_doc},
    {"close", AGPY_METHOD(walwriter_close), METH_VARARGS | METH_KEYWORDS, close_doc},
    {"__enter__", walwriter_enter, METH_NOARGS, NULL},
    {"__exit__", walwriter_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef walwriter_getset[] = {
    {"durable_seq", walwriter_durable_seq, NULL,
     PyDoc_STR("Everything up to this sequence number survives power loss."), NULL},
    {"low_water", walwriter_mark_state, NULL,
     PyDoc_STR("(sequence number, blob) of the low-water mark."), NULL},
    {"poisoned", walwriter_poisoned, NULL,
     PyDoc_STR("What went wrong, or None while the log is healthy."), NULL},
    {"closed", walwriter_closed, NULL, PyDoc_STR("Whether close() was called."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef walwriter_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(struct walwriter_object, weakrefs),
     READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

PyDoc_STRVAR(
    walwriter_doc,
    "WalWriter(path, *, ring=None, segment_bytes=16777216, ring_bytes=16777216,\n"
    "          max_delay_us=2000, archive=None, direct=True, accept_tail=None)\n--\n\n"
    "The write-ahead log in directory `path`; one writer per directory.\n\n"
    "ring: file of the ring (default: in tmpfs, derived from path). max_delay_us: how\n"
    "long records are gathered while nobody waits. archive: where segments below the\n"
    "low-water mark go (default: path/archive). direct: use O_DIRECT where possible.\n"
    "accept_tail: (offset, seq) as `aegis-c wal verify` names them, to go on without\n"
    "what follows in a damaged last segment.\n\n"
    "WalLocked: another writer. WalCorruption: damage; nothing was changed; file,\n"
    "offset, seq, expected, found and advice say more. WalError: no permission, no\n"
    "tmpfs, no space.");

static PyType_Slot walwriter_slots[] = {
    {Py_tp_doc, (void *)walwriter_doc},
    {Py_tp_new, walwriter_new},
    {Py_tp_dealloc, walwriter_dealloc},
    {Py_tp_traverse, walwriter_traverse},
    {Py_tp_clear, walwriter_clear},
    {Py_tp_methods, walwriter_methods},
    {Py_tp_getset, walwriter_getset},
    {Py_tp_members, walwriter_members},
    {0, NULL},
};

PyType_Spec agpy_walwriter_spec = {
    .name = "aegis_c.WalWriter",
    .basicsize = sizeof(struct walwriter_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = walwriter_slots,
};
