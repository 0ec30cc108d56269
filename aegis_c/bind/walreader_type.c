/* aegis_c.WalReader: records out of the files of a log, beside a live writer. */
#include "agpy.h"

#include "base/alloc.h"
#include "lock.h"
#include "wal/reader.h"
#include "wal/salvage.h"

struct walreader_object {
    PyObject_HEAD
    struct agpy_lock lock;
    struct ag_wal_reader *reader; /* owned, under lock; NULL when closed */
    PyObject *path;               /* owned, bytes */
    struct agpy_state *state;     /* borrowed: the type keeps the module alive */
};

#define WALREADER(object) ((struct walreader_object *)(object))

static PyObject *
walreader_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"path", "from_seq", "archived", "archive", NULL};
    PyObject *path = NULL, *archive = NULL, *archive_object = Py_None;
    unsigned long long from_seq = 0;
    int archived = 0, status = AG_OK;
    struct ag_error err;
    struct walreader_object *self = NULL;
    struct ag_wal_reader *reader = NULL;
    struct agpy_state *state = agpy_state_of_type(type);
    if (state == NULL ||
        !PyArg_ParseTupleAndKeywords(args, kwargs, "O&|$KpO:WalReader", names,
                                     PyUnicode_FSConverter, &path, &from_seq, &archived,
                                     &archive_object) ||
        (archive_object != Py_None &&
         !PyUnicode_FSConverter(archive_object, &archive))) {
        goto exit;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_reader_open(ag_io_posix(), PyBytes_AS_STRING(path),
                                    archive != NULL ? PyBytes_AS_STRING(archive) : NULL,
                                    from_seq, archived != 0, &reader, &err);
    Py_END_ALLOW_THREADS
    if (status != AG_OK) {
        agpy_raise(state, AGPY_WAL, status, &err);
        goto exit;
    }
    self = (struct walreader_object *)type->tp_alloc(type, 0);
    if (self == NULL || agpy_lock_init(&self->lock) < 0) {
        ag_wal_reader_close(reader);
        Py_CLEAR(self);
        goto exit;
    }
    self->reader = reader; /* transferred */
    self->path = Py_NewRef(path);
    self->state = state;
exit:
    Py_XDECREF(path);
    Py_XDECREF(archive);
    return (PyObject *)self;
}

static int
walreader_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static void
walreader_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    ag_wal_reader_close(WALREADER(object)->reader);
    Py_XDECREF(WALREADER(object)->path);
    agpy_lock_free(&WALREADER(object)->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *
walreader_next(PyObject *object)
{
    struct walreader_object *self = WALREADER(object);
    const uint8_t *payload = NULL;
    uint64_t seq = 0;
    uint32_t n = 0;
    struct ag_error err;
    int got;
    PyObject *item = NULL;
    agpy_lock_acquire(&self->lock);
    if (self->reader == NULL) {
        agpy_lock_release(&self->lock);
        (void)ag_fail(&err, AG_ECLOSED, "the reader is closed");
        return agpy_raise(self->state, AGPY_WAL, AG_ECLOSED, &err);
    }
    Py_BEGIN_ALLOW_THREADS
        got = ag_wal_reader_next(self->reader, &seq, &payload, &n, &err);
    Py_END_ALLOW_THREADS
    if (got == 1) {
        item = Py_BuildValue("(Ky#)", (unsigned long long)seq, (const char *)payload,
                             (Py_ssize_t)n);
    }
    agpy_lock_release(&self->lock);
    if (got < 0) {
        return agpy_raise(self->state, AGPY_WAL, got, &err);
    }
    return item; /* NULL without an exception: the end, for now */
}

static PyObject *
segment_dict(const struct ag_wal_segment_info *info)
{
    return Py_BuildValue("{s:I,s:I,s:K,s:K,s:K}", "segment", info->segment_no, "epoch",
                         info->epoch, "first_seq", (unsigned long long)info->first_seq,
                         "last_seq", (unsigned long long)info->last_seq, "valid_bytes",
                         (unsigned long long)info->valid_len);
}

PyDoc_STRVAR(
    verify_doc,
    "verify($type, path, /)\n--\n\n"
    "Check the whole live log, read only, beside a live writer or not. Returns a dict\n"
    "(live, segments, records, last_seq, torn, clean_close, low_water, wal_id, bytes,\n"
    "notes); raises WalCorruption with file, offset, seq, expected, found, advice.");

static PyObject *
walreader_verify(PyObject *type, PyObject *argument)
{
    PyObject *path = NULL, *segments = NULL, *result = NULL, *notes = NULL;
    struct ag_wal_recovery recovery;
    struct ag_error err;
    bool live = false;
    int status;
    struct agpy_state *state = agpy_state_of_type((PyTypeObject *)type);
    if (state == NULL || !PyUnicode_FSConverter(argument, &path)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_wal_verify(ag_io_posix(), PyBytes_AS_STRING(path), &recovery, &live,
                               &err);
    Py_END_ALLOW_THREADS
    Py_DECREF(path);
    if (status != AG_OK) {
        agpy_raise(state, AGPY_WAL, status, &err);
        goto exit;
    }
    segments = PyList_New(0);
    notes = PyUnicode_DecodeFSDefault(recovery.notes);
    for (size_t i = 0; segments != NULL && i < recovery.count; i++) {
        PyObject *item = segment_dict(&recovery.segments[i]);
        if (item == NULL || PyList_Append(segments, item) < 0) {
            Py_CLEAR(segments);
        }
        Py_XDECREF(item);
    }
    if (segments != NULL && notes != NULL) {
        result = Py_BuildValue("{s:O,s:O,s:K,s:K,s:O,s:O,s:K,s:K,s:I,s:K,s:O}", "live",
                               live ? Py_True : Py_False, "segments", segments,
                               "records", (unsigned long long)recovery.records,
                               "last_seq", (unsigned long long)recovery.last_seq,
                               "torn", recovery.torn ? Py_True : Py_False,
                               "clean_close", recovery.clean_close ? Py_True : Py_False,
                               "low_water", (unsigned long long)recovery.log.low_water,
                               "wal_id", (unsigned long long)recovery.log.wal_id,
                               "segment_bytes", recovery.log.segment_bytes, "bytes",
                               (unsigned long long)recovery.bytes_read, "notes", notes);
    }
exit:
    Py_XDECREF(segments);
    Py_XDECREF(notes);
    ag_wal_recovery_free(&recovery);
    return result;
}

static int
collect(void *ctx, uint64_t offset, uint64_t seq, const uint8_t *payload, uint32_t n)
{
    PyObject *item =
        Py_BuildValue("(KKy#)", (unsigned long long)offset, (unsigned long long)seq,
                      (const char *)payload, (Py_ssize_t)n);
    int result = item != NULL ? PyList_Append(ctx, item) : -1;
    Py_XDECREF(item);
    return result;
}

PyDoc_STRVAR(
    salvage_doc,
    "salvage($type, data, segment, wal_id=0, /)\n--\n\n"
    "Every whole record in the bytes of segment number `segment` of log wal_id\n"
    "(0: any), holes or not: a list of (offset of the batch, seq, payload).");

static PyObject *
walreader_salvage(PyObject *type, PyObject *args)
{
    const char *data = NULL;
    Py_ssize_t n = 0;
    unsigned int segment = 0;
    unsigned long long wal_id = 0;
    (void)type;
    if (!PyArg_ParseTuple(args, "y#I|K:salvage", &data, &n, &segment, &wal_id)) {
        return NULL;
    }
    uint8_t *copy = ag_alloc((size_t)n);
    if (copy == NULL) {
        return PyErr_NoMemory();
    }
    memcpy(copy, data, (size_t)n);
    PyObject *list = PyList_New(0);
    if (list != NULL &&
        ag_wal_salvage(copy, (size_t)n, wal_id, segment, collect, list) != 0) {
        Py_CLEAR(list);
    }
    ag_free(copy);
    return list;
}

static PyObject *
walreader_close(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    agpy_lock_acquire(&WALREADER(object)->lock);
    ag_wal_reader_close(WALREADER(object)->reader);
    WALREADER(object)->reader = NULL;
    agpy_lock_release(&WALREADER(object)->lock);
    Py_RETURN_NONE;
}

static PyObject *
walreader_enter(PyObject *object, PyObject *ignored)
{
    (void)ignored;
    return Py_NewRef(object);
}

static PyObject *
walreader_exit(PyObject *object, PyObject *args)
{
    (void)args;
    return walreader_close(object, NULL);
}

static PyMethodDef walreader_methods[] = {
    {"verify", walreader_verify, METH_O | METH_CLASS, verify_doc},
    {"salvage", walreader_salvage, METH_VARARGS | METH_CLASS, salvage_doc},
    {"close", walreader_close, METH_NOARGS,
     PyDoc_STR("close($self)\n--\n\nClose the files. May be called again.")},
    {"__enter__", walreader_enter, METH_NOARGS, NULL},
    {"__exit__", walreader_exit, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(
    walreader_doc,
    "WalReader(path, *, from_seq=0, archived=False, archive=None)\n--\n\n"
    "Iterator over (seq, payload) of the log in directory `path`, from from_seq on.\n\n"
    "At the end it stops, and goes on when iterated again after a live writer has\n"
    "added more. archived: read the segments in the archive as well. WalError: no log\n"
    "there; IndexError: from_seq lies before the first segment; WalCorruption.");

static PyType_Slot walreader_slots[] = {
    {Py_tp_doc, (void *)walreader_doc}, {Py_tp_new, walreader_new},
    {Py_tp_dealloc, walreader_dealloc}, {Py_tp_traverse, walreader_traverse},
    {Py_tp_iter, PyObject_SelfIter},    {Py_tp_iternext, walreader_next},
    {Py_tp_methods, walreader_methods}, {0, NULL},
};

PyType_Spec agpy_walreader_spec = {
    .name = "aegis_c.WalReader",
    .basicsize = sizeof(struct walreader_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = walreader_slots,
};
