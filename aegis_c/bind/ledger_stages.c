/* Methods of aegis_c.Ledger that tell how far entries are, and what the ledger is. */
#include <inttypes.h>
#include <string.h>

#include "args.h"
#include "ledger_type.h"
#include "wal_stats.h"

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

AGPY_LEDGER_DOC(want, "want($self, index, state='durable')\n--\n\n"
                      "Say that somebody awaits the entry's state: hurry. IndexError.");

PyObject *
agpy_ledger_want(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "state", NULL};
    uint64_t index = 0;
    const char *state = "durable";
    enum ag_stage stage = AG_DURABLE;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|s:want", names, agpy_position,
                                     &index, &state) ||
        parse_stage(state, &stage) < 0) {
        return NULL;
    }
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int status = ag_ledger_want(ledger, index, stage);
    agpy_ledger_release(self);
    if (status != AG_OK) {
        struct ag_error err;
        (void)ag_fail(&err, status, "entry %" PRIu64 " does not exist", index);
        return agpy_ledger_raise(self, status, &err);
    }
    Py_RETURN_NONE;
}

AGPY_LEDGER_DOC(wait,
                "wait($self, index, state='durable', timeout=None)\n--\n\n"
                "Block until the entry has that state. timeout: seconds.\n\n"
                "TimeoutError, IndexError; LedgerError when the outcome is unknown.");

PyObject *
agpy_ledger_wait(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "state", "timeout", NULL};
    uint64_t index = 0;
    const char *state = "durable";
    PyObject *timeout = Py_None;
    enum ag_stage stage = AG_DURABLE;
    uint64_t timeout_ns = UINT64_MAX;
    struct ag_error err;
    int status = AG_OK;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|sO:wait", names, agpy_position,
                                     &index, &state, &timeout) ||
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
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_wait(ledger, index, stage, timeout_ns, &err);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
    if (status != AG_OK) {
        return agpy_ledger_raise(self, status, &err);
    }
    Py_RETURN_NONE;
}

AGPY_LEDGER_DOC(drain,
                "drain($self, /)\n--\n\n"
                "Clear fileno(); return (durable, integrated, published) sizes.");

PyObject *
agpy_ledger_drain(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    ag_ledger_drain(ledger);
    unsigned long long durable = ag_ledger_stage_size(ledger, AG_DURABLE);
    unsigned long long integrated = ag_ledger_stage_size(ledger, AG_INTEGRATED);
    unsigned long long published = ag_ledger_stage_size(ledger, AG_PUBLISHED);
    agpy_ledger_release(self);
    return Py_BuildValue("KKK", durable, integrated, published);
}

AGPY_LEDGER_DOC(
    fileno,
    "fileno($self, /)\n--\n\n"
    "A descriptor that is readable when a state has moved or the log has failed.");

PyObject *
agpy_ledger_fileno(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int fd = ag_ledger_fileno(ledger);
    agpy_ledger_release(self);
    return PyLong_FromLong(fd);
}

AGPY_LEDGER_DOC(
    room,
    "room($self, /)\n--\n\n"
    "Bytes of ring that entries of any mix of sizes can surely use now; an entry\n"
    "takes its length, rounded up to 8, plus 8.");

PyObject *
agpy_ledger_room(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    size_t room = ag_ledger_room(ledger);
    agpy_ledger_release(self);
    return PyLong_FromSize_t(room);
}

PyObject *
agpy_ledger_size(PyObject *self, void *closure)
{
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    const enum ag_stage *stage = closure;
    uint64_t size =
        stage != NULL ? ag_ledger_stage_size(ledger, *stage) : ag_ledger_size(ledger);
    agpy_ledger_release(self);
    return PyLong_FromUnsignedLongLong(size);
}

Py_ssize_t
agpy_ledger_length(PyObject *self)
{
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return -1;
    }
    uint64_t size = ag_ledger_size(ledger);
    agpy_ledger_release(self);
    return (Py_ssize_t)size;
}

/* ---- description ---- */

AGPY_LEDGER_DOC(stats, "stats($self, /)\n--\n\n"
                       "Counters and sizes as a dict; *_ns in nanoseconds. wal: those\n"
                       "of the write-ahead log, as WalWriter.stats() has them.");

PyObject *
agpy_ledger_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct ag_ledger_stats s;
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        ag_ledger_stats(ledger, &s);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
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

PyObject *
agpy_ledger_text(PyObject *self, void *closure)
{
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
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
    agpy_ledger_release(self);
    return result;
}

PyObject *
agpy_ledger_poisoned(PyObject *self, void *Py_UNUSED(closure))
{
    struct ag_error err;
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int status = ag_ledger_failure(ledger, &err);
    agpy_ledger_release(self);
    if (status == AG_OK) {
        Py_RETURN_NONE;
    }
    return PyUnicode_FromFormat("%s; in %s", err.what, err.file);
}
