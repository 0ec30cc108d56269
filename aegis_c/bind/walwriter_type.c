/* aegis_c.WalWriter: the write-ahead log, one writer per directory. Making, reopening
 * and closing are in walwriter_life.c. */
#include "walwriter.h"

#include <stddef.h>
#include <structmember.h>

#include "args.h"
#include "base/alloc.h"
#include "detach.h"
#include "wal_stats.h"

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
        if (ag_wal_failure(wal, &err) == AG_OK) { /* mended meanwhile */
            (void)ag_fail(&err, status, "the log was being reopened");
            ag_error_advice(&err, "It is open again: append again");
        }
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
    return agpy_walwriter_raise(self, status, &err);
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
    if (agpy_walwriter_is_forked(self)) {
        return agpy_walwriter_raise_forked(self);
    }
    agpy_lock_acquire(&self->lock);
    struct ag_wal *wal = self->closing ? NULL : self->wal;
    if (wal == NULL) {
        agpy_lock_release(&self->lock);
        return agpy_walwriter_raise_closed(self);
    }
    int status = AG_OK;
    AGPY_DETACHED(n, status = ag_wal_append(wal, from, n, &seq));
    if (status != AG_OK) {
        atomic_fetch_add(&self->users, 1);
        agpy_lock_release(&self->lock);
        raise_append(self, wal, status, n);
        agpy_walwriter_leave(self);
        return NULL;
    }
    agpy_lock_release(&self->lock);
    return PyLong_FromUnsignedLongLong(seq);
}

PyDoc_STRVAR(want_doc,
             "want($self, seq, /)\n--\n\n"
             "Somebody awaits seq: flush now instead of gathering. The eventfd "
             "becomes\nreadable when it is durable.");

static PyObject *
walwriter_want(PyObject *object, PyObject *argument)
{
    uint64_t seq;
    if (!agpy_position(argument, &seq)) {
        return NULL;
    }
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    ag_wal_want(wal, seq);
    agpy_walwriter_leave(WALWRITER(object));
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
        (seq_object != Py_None && !agpy_position(seq_object, &seq)) ||
        agpy_walwriter_timeout(timeout_object, &timeout_ns) < 0) {
        return NULL;
    }
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
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
    agpy_walwriter_leave(WALWRITER(object));
    if (status != AG_OK) {
        return agpy_walwriter_raise(WALWRITER(object), status, &err);
    }
    return PyLong_FromUnsignedLongLong(durable);
}

PyDoc_STRVAR(fileno_doc, "fileno($self)\n--\n\n"
                         "The eventfd, for loop.add_reader; it stays the log's own.");

static PyObject *
walwriter_fileno(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    int fd = ag_wal_fileno(wal);
    agpy_walwriter_leave(WALWRITER(object));
    return PyLong_FromLong(fd);
}

PyDoc_STRVAR(drain_doc, "drain($self)\n--\n\n"
                        "Clear the eventfd and return durable_seq.");

static PyObject *
walwriter_drain(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    uint64_t durable = ag_wal_drain(wal);
    agpy_walwriter_leave(WALWRITER(object));
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
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    size_t room = ag_wal_room(wal);
    agpy_walwriter_leave(WALWRITER(object));
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
    if (!agpy_position(argument, &n)) {
        return NULL;
    }
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    bool there = ag_wal_want_room(wal, (size_t)n);
    agpy_walwriter_leave(WALWRITER(object));
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
        !agpy_position(seq_object, &seq)) {
        return NULL;
    }
    if (blob_n > (Py_ssize_t)AG_WAL_BLOB_MAX) {
        return PyErr_Format(PyExc_ValueError, "blob has %zd bytes: at most %u expected",
                            blob_n, AG_WAL_BLOB_MAX);
    }
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_set_low_water(wal, seq, blob, (uint32_t)blob_n, &err);
    Py_END_ALLOW_THREADS
    agpy_walwriter_leave(WALWRITER(object));
    if (status != AG_OK) {
        return agpy_walwriter_raise(WALWRITER(object), status, &err);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    reopen_doc,
    "reopen($self)\n--\n\n"
    "After WalPoisoned: recover on a new segment and write again everything that\n"
    "was appended and is not durable. Does nothing when the log is healthy.");

/* ---- looking ---- */

PyDoc_STRVAR(
    stats_doc,
    "stats($self)\n--\n\n"
    "Numbers about the log as a dict. sync_us: list of counts, item k counts writes\n"
    "with sync of less than 2**k microseconds (the last one all others);\n"
    "batch_records likewise. ring_mode: 'tmpfs' or 'disk'. verdict, of the last\n"
    "recovery: 'new', 'clean', 'whole', 'torn' or 'accepted'; recovery: lines about\n"
    "it. disk_free is some seconds old.");

static PyObject *
walwriter_stats(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    struct ag_wal_stats stats;
    char notes[AG_WAL_NOTES];
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    ag_wal_stats(wal, &stats);
    ag_wal_notes(wal, notes);
    agpy_walwriter_leave(WALWRITER(object));
    PyObject *dict = agpy_wal_stats(&stats);
    PyObject *text = dict != NULL ? PyUnicode_DecodeFSDefault(notes) : NULL;
    PyObject *lines = text != NULL ? PyUnicode_Splitlines(text, 0) : NULL;
    if (lines == NULL || PyDict_SetItemString(dict, "recovery", lines) < 0) {
        Py_CLEAR(dict);
    }
    Py_XDECREF(lines);
    Py_XDECREF(text);
    return dict;
}

static PyObject *
walwriter_durable_seq(PyObject *object, void *ignored)
{
    (void)ignored;
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    uint64_t durable = ag_wal_durable(wal);
    agpy_walwriter_leave(WALWRITER(object));
    return PyLong_FromUnsignedLongLong(durable);
}

static PyObject *
walwriter_poisoned(PyObject *object, void *ignored)
{
    (void)ignored;
    struct ag_error err;
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    int status = ag_wal_failure(wal, &err);
    agpy_walwriter_leave(WALWRITER(object));
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
    struct ag_wal *wal = agpy_walwriter_enter(WALWRITER(object));
    if (wal == NULL) {
        return NULL;
    }
    int status;
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_low_water(wal, &seq, &blob, &n);
    Py_END_ALLOW_THREADS
    agpy_walwriter_leave(WALWRITER(object));
    if (status != AG_OK) {
        return agpy_walwriter_raise(WALWRITER(object), status, NULL);
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
    if (agpy_walwriter_is_forked(self)) {
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
    PyObject *result = none != NULL ? agpy_walwriter_close(object, none, NULL) : NULL;
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
    {"reopen", agpy_walwriter_reopen, METH_NOARGS, reopen_doc},
    {"stats", walwriter_stats, METH_NOARGS, stats_doc},
    {"close", AGPY_METHOD(agpy_walwriter_close), METH_VARARGS | METH_KEYWORDS,
     close_doc},
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
    {Py_tp_new, agpy_walwriter_new},
    {Py_tp_dealloc, agpy_walwriter_dealloc},
    {Py_tp_traverse, agpy_walwriter_traverse},
    {Py_tp_clear, agpy_walwriter_clear},
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
