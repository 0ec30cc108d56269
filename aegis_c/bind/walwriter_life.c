/* The life of a WalWriter: making, reopening, closing, the end of the interpreter. */
#include "walwriter.h"

#include <time.h>

#include "args.h"
#include "base/clock.h"
#include "fork.h"

/* At interpreter exit the disk gets this long; what it does not take stays in the ring,
 * and the next open writes it. */
#define EXIT_FLUSH_NS 5000000000u

PyObject *
agpy_walwriter_raise(struct walwriter_object *self, int status,
                     const struct ag_error *err)
{
    return agpy_raise(self->state, AGPY_WAL, status, err);
}

PyObject *
agpy_walwriter_raise_closed(struct walwriter_object *self)
{
    struct ag_error err;
    (void)ag_fail(&err, AG_ECLOSED, "the log is closed");
    ag_error_file(&err, PyBytes_AS_STRING(self->path), AG_NO_POSITION);
    ag_error_advice(&err, "Make a new WalWriter of that directory to go on");
    return agpy_walwriter_raise(self, AG_ECLOSED, &err);
}

bool
agpy_walwriter_is_forked(const struct walwriter_object *self)
{
    return agpy_fork_count() != self->forks;
}

PyObject *
agpy_walwriter_raise_forked(struct walwriter_object *self)
{
    struct ag_error err;
    (void)ag_fail(&err, AG_EFORKED, "the log belongs to the parent process");
    ag_error_file(&err, PyBytes_AS_STRING(self->path), AG_NO_POSITION);
    ag_error_advice(&err, "Open a log of its own in the child");
    return agpy_walwriter_raise(self, AG_EFORKED, &err);
}

struct ag_wal *
agpy_walwriter_enter(struct walwriter_object *self)
{
    if (agpy_walwriter_is_forked(self)) {
        agpy_walwriter_raise_forked(self);
        return NULL;
    }
    agpy_lock_acquire(&self->lock);
    struct ag_wal *wal = self->closing ? NULL : self->wal;
    if (wal != NULL) {
        atomic_fetch_add(&self->users, 1);
    }
    agpy_lock_release(&self->lock);
    if (wal == NULL) {
        agpy_walwriter_raise_closed(self);
    }
    return wal;
}

void
agpy_walwriter_leave(struct walwriter_object *self)
{
    atomic_fetch_sub(&self->users, 1);
}

int
agpy_walwriter_timeout(PyObject *object, uint64_t *ns)
{
    *ns = UINT64_MAX;
    if (object == Py_None) {
        return 0;
    }
    double seconds = PyFloat_AsDouble(object);
    if (seconds == -1.0 && PyErr_Occurred()) {
        return -1;
    }
    if (!(seconds >= 0.0)) {
        PyErr_SetString(PyExc_ValueError, "timeout must not be negative");
        return -1;
    }
    *ns = seconds < 1e9 ? (uint64_t)(seconds * 1e9) : UINT64_MAX;
    return 0;
}

/* ---- reopening and closing ---- */

static void
pause_detached(void)
{
    struct timespec pause = {.tv_nsec = 100000};
    (void)nanosleep(&pause, NULL);
}

/* 1: the caller mends now; 0: somebody else does, try again; -1: closed. */
static int
begin_mending(struct walwriter_object *self)
{
    agpy_lock_acquire(&self->lock);
    int begun = self->closing || self->wal == NULL ? -1 : !self->mending;
    if (begun == 1) {
        self->mending = true;
    }
    agpy_lock_release(&self->lock);
    return begun;
}

PyObject *
agpy_walwriter_reopen(PyObject *object, PyObject *ignored)
{
    struct walwriter_object *self = WALWRITER(object);
    struct ag_error err;
    int status, begun;
    (void)ignored;
    if (agpy_walwriter_is_forked(self)) {
        return agpy_walwriter_raise_forked(self);
    }
    while ((begun = begin_mending(self)) == 0) {
        Py_BEGIN_ALLOW_THREADS
            pause_detached();
        Py_END_ALLOW_THREADS
    }
    if (begun < 0) {
        return agpy_walwriter_raise_closed(self);
    }
    /* Without the lock: an append meanwhile is refused at once, it does not wait for
     * the disk. Close waits for the end. */
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_reopen(self->wal, &err);
        atomic_store(&self->mending, false);
    Py_END_ALLOW_THREADS
    if (status != AG_OK) {
        return agpy_walwriter_raise(self, status, &err);
    }
    Py_RETURN_NONE;
}

/* Stops and frees the log, once no reopen runs and nobody is inside. */
static int
close_detached(struct walwriter_object *self, struct ag_wal *wal, uint64_t timeout_ns,
               struct ag_error *err)
{
    uint64_t now = ag_clock_ns();
    uint64_t until = timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
    struct ag_error again;
    while (atomic_load(&self->mending)) {
        if (ag_clock_ns() >= until) {
            return ag_fail(err, AG_ETIMEDOUT, "the log is being reopened");
        }
        pause_detached();
    }
    now = ag_clock_ns();
    int status = ag_wal_stop(wal, until > now ? until - now : 0, err);
    while (status != AG_ETIMEDOUT && atomic_load(&self->users) != 0) {
        if (ag_clock_ns() >= until) {
            status = ag_fail(err, AG_ETIMEDOUT, "another thread still uses the log");
        }
        pause_detached();
    }
    if (status != AG_ETIMEDOUT) {
        (void)ag_wal_close(wal, UINT64_MAX, &again);
    }
    return status;
}

/* Closes; 0, or a status with `err`. May be called again after AG_ETIMEDOUT. */
static int
close_handle(struct walwriter_object *self, uint64_t timeout_ns, struct ag_error *err)
{
    int status;
    if (agpy_walwriter_is_forked(self)) {
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
        status = close_detached(self, wal, timeout_ns, err);
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
            WALWRITER(object)->left = WALWRITER(object)->wal != NULL;
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

PyObject *
agpy_walwriter_close(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    uint64_t timeout_ns;
    struct ag_error err;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:close", names, &timeout) ||
        agpy_walwriter_timeout(timeout, &timeout_ns) < 0) {
        return NULL;
    }
    int status = close_handle(WALWRITER(object), timeout_ns, &err);
    if (status == AG_ETIMEDOUT) {
        return agpy_walwriter_raise(WALWRITER(object), status, &err);
    }
    unregister_exit(WALWRITER(object));
    if (status != AG_OK) {
        return agpy_walwriter_raise(WALWRITER(object), status, &err);
    }
    Py_RETURN_NONE;
}

/* ---- making ---- */

PyObject *
agpy_walwriter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path",       "ring",         "segment_bytes",
                            "ring_bytes", "max_delay_us", "archive",
                            "direct",     "accept_tail",  NULL};
    PyObject *path = NULL, *ring = NULL, *archive = NULL;
    PyObject *ring_object = Py_None, *archive_object = Py_None, *accept = Py_None;
    long long segment_bytes = 16 << 20, ring_bytes = 16 << 20, max_delay_us = 2000;
    uint64_t accept_at = 0, accept_seq = 0;
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
         !PyArg_ParseTuple(accept, "O&O&:accept_tail", agpy_position, &accept_at,
                           agpy_position, &accept_seq))) {
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
    self->path = Py_NewRef(path);
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
        agpy_walwriter_raise(self, status, &err);
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

int
agpy_walwriter_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(WALWRITER(self)->at_exit);
    return 0;
}

int
agpy_walwriter_clear(PyObject *self)
{
    (void)self; /* at_exit is needed to unregister; it cannot be part of a cycle */
    return 0;
}

void
agpy_walwriter_dealloc(PyObject *object)
{
    struct walwriter_object *self = WALWRITER(object);
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (self->wal != NULL && !self->left) {
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
    Py_CLEAR(self->path);
    type->tp_free(object);
    Py_DECREF(type);
}
