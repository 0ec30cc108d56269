/* MmrAccumulator: the RFC 6962 tree in memory, as a Python type.
 *
 * One lock per object protects the tree. Entries of more than AG_DETACH_MIN octets are
 * hashed detached; a large one before the lock is taken, so that others go on
 * meanwhile. */
#include "args.h"
#include "detach.h"
#include "fork.h"
#include "lock.h"

#include <string.h>

#include "base/alloc.h"
#include "hash/sha256.h"
#include "log/mmr.h"

/* Entries whose addresses are gathered, attached, before they are hashed, detached:
 * what a list may hold the interpreter for, and 1 MiB. */
#define SPANS_MAX 65536

/* More than a root or a proof ever hashes: a batch that waits, and a node per height.
 */
#define ROOT_OCTETS ((size_t)128 * 64)

typedef struct {
    PyObject_HEAD
    struct agpy_lock lock;
    struct ag_mmr *mmr; /* owned; under lock */
    unsigned forks;     /* agpy_fork_count when it was made */
} MmrObject;

#define MMR(object) ((MmrObject *)(object))

/* --- helpers --- */

static PyObject *
raise_status(MmrObject *self, int status, const struct ag_error *err)
{
    struct agpy_state *state = agpy_state_of_type(Py_TYPE(self));
    return state != NULL ? agpy_raise(state, AGPY_TREE, status, err) : NULL;
}

static PyObject *
raise_no_proofs(MmrObject *self, const char *what)
{
    struct ag_error err;
    ag_fail(&err, AG_ENOTFOUND, "%s needs nodes that proofs=False does not keep", what);
    ag_error_advice(&err, "Use MmrAccumulator(proofs=True)");
    return raise_status(self, AG_ENOTFOUND, &err);
}

/* Takes the lock; -1 with an exception in a forked child. */
static int
mmr_enter(MmrObject *self)
{
    if (self->forks != agpy_fork_count()) {
        struct ag_error err;
        ag_fail(&err, AG_EFORKED,
                "this MmrAccumulator belongs to the parent process; it cannot be used "
                "after fork in the child");
        ag_error_advice(&err, "Pass dump() to the child and load() it there");
        (void)raise_status(self, AG_EFORKED, &err);
        return -1;
    }
    agpy_lock_acquire(&self->lock);
    return 0;
}

static void
mmr_leave(MmrObject *self)
{
    agpy_lock_release(&self->lock);
}

/* An optional size argument: NULL and None stand for the whole tree. *given tells
 * which. -1 with IndexError for a number that no tree can have. */
static int
optional_size(PyObject *value, const char *name, bool *given, uint64_t *size)
{
    *given = value != NULL && value != Py_None;
    return *given ? agpy_u64(value, name, PyExc_IndexError, size) : 0;
}

static PyObject *
raise_beyond(const char *name, uint64_t value, uint64_t size)
{
    return PyErr_Format(PyExc_IndexError, "%s %llu is beyond the tree of %llu leaves",
                        name, (unsigned long long)value, (unsigned long long)size);
}

static MmrObject *
mmr_wrap(PyTypeObject *type, struct ag_mmr *mmr)
{
    MmrObject *self = MMR(type->tp_alloc(type, 0));
    if (self == NULL || agpy_lock_init(&self->lock) < 0) {
        ag_mmr_free(mmr);
        Py_XDECREF(self);
        return NULL;
    }
    self->mmr = mmr; /* takes ownership */
    self->forks = agpy_fork_count();
    return self;
}

/* --- append and extend --- */

PyDoc_STRVAR(mmr_append_doc, "append($self, entry, /)\n--\n\n"
                             "Adds one leaf, SHA-256(0x00 || entry), and returns its "
                             "index. `entry` is bytes of any length.\n\n"
                             "Raises TypeError unless entry is bytes, MemoryError. "
                             "Source: RFC 6962 section 2.1.");

static PyObject *
mmr_append(PyObject *object, PyObject *entry)
{
    MmrObject *self = MMR(object);
    if (!PyBytes_Check(entry)) {
        return PyErr_Format(PyExc_TypeError, "entry must be bytes, not %.100s",
                            Py_TYPE(entry)->tp_name);
    }
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(entry);
    size_t n = (size_t)PyBytes_GET_SIZE(entry);
    int status;
    uint64_t index;
    if (agpy_worth_detaching(n)) {
        uint8_t leaf[AG_HASH_SIZE];
        Py_BEGIN_ALLOW_THREADS
            ag_leaf_hash(data, n, leaf);
        Py_END_ALLOW_THREADS
        if (mmr_enter(self) < 0) {
            return NULL;
        }
        index = ag_mmr_size(self->mmr);
        AGPY_DETACHED(ROOT_OCTETS, status = ag_mmr_append_hash(self->mmr, leaf));
    } else {
        if (mmr_enter(self) < 0) {
            return NULL;
        }
        index = ag_mmr_size(self->mmr);
        status = ag_mmr_append(self->mmr, data, n);
    }
    mmr_leave(self);
    return status == AG_OK ? PyLong_FromUnsignedLongLong(index)
                           : raise_status(self, status, NULL);
}

PyDoc_STRVAR(mmr_append_hash_doc,
             "append_hash($self, leaf_hash, /)\n--\n\n"
             "Adds one leaf whose hash is already known, 32 bytes, and returns its "
             "index.\n\nRaises TypeError, ValueError for another length, MemoryError.");

static PyObject *
mmr_append_hash(PyObject *object, PyObject *leaf_hash)
{
    MmrObject *self = MMR(object);
    const uint8_t *leaf = agpy_hash(leaf_hash, "leaf_hash", PyExc_ValueError);
    if (leaf == NULL || mmr_enter(self) < 0) {
        return NULL;
    }
    int status;
    uint64_t index = ag_mmr_size(self->mmr);
    AGPY_DETACHED(ROOT_OCTETS, status = ag_mmr_append_hash(self->mmr, leaf));
    mmr_leave(self);
    return status == AG_OK ? PyLong_FromUnsignedLongLong(index)
                           : raise_status(self, status, NULL);
}

/* Fills spans from items [first, first + count) of a tuple of bytes; returns the octets
 * in them. */
static size_t
gather_spans(PyObject *items, Py_ssize_t first, size_t count, struct ag_span *spans)
{
    size_t octets = 0;
    for (size_t i = 0; i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, first + (Py_ssize_t)i);
        spans[i].data = (const uint8_t *)PyBytes_AS_STRING(item);
        spans[i].size = (size_t)PyBytes_GET_SIZE(item);
        octets += spans[i].size;
    }
    return octets;
}

/* `items` is a tuple of bytes that nobody else can change. */
static PyObject *
extend_items(MmrObject *self, PyObject *items)
{
    size_t count = (size_t)PyTuple_GET_SIZE(items);
    struct ag_span few[64], *many = NULL, *spans = few;
    PyObject *result = NULL;
    if (count > 64) {
        many = spans =
            ag_alloc((count < SPANS_MAX ? count : SPANS_MAX) * sizeof(*many));
        if (many == NULL) {
            PyErr_NoMemory();
            goto exit;
        }
    }
    if (mmr_enter(self) < 0) {
        goto exit;
    }
    uint64_t first = ag_mmr_size(self->mmr);
    int status;
    AGPY_DETACHED(count * 64, status = ag_mmr_reserve(self->mmr, count));
    for (size_t at = 0; status == AG_OK && at < count;) {
        size_t take = count - at < SPANS_MAX ? count - at : SPANS_MAX;
        size_t octets = gather_spans(items, (Py_ssize_t)at, take, spans);
        AGPY_DETACHED(octets, status = ag_mmr_extend(self->mmr, spans, take));
        at += take;
    }
    mmr_leave(self);
    result = status == AG_OK ? PyLong_FromUnsignedLongLong(first)
                             : raise_status(self, status, NULL);
exit:
    ag_free(many);
    return result;
}

static PyObject *
extend_sequence(MmrObject *self, PyObject *entries)
{
    if (PyObject_CheckBuffer(entries)) {
        return PyErr_Format(
            PyExc_TypeError,
            "entries is one buffer (%.100s): give entry_size, or pass a "
            "sequence of bytes",
            Py_TYPE(entries)->tp_name);
    }
    PyObject *items = PySequence_Tuple(entries); /* our own: nobody can change it */
    if (items == NULL) {
        return NULL;
    }
    PyObject *result = NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items); i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        if (!PyBytes_Check(item)) {
            PyErr_Format(PyExc_TypeError, "entries[%zd] must be bytes, not %.100s", i,
                         Py_TYPE(item)->tp_name);
            goto exit;
        }
    }
    result = extend_items(self, items);
exit:
    Py_DECREF(items);
    return result;
}

static PyObject *
extend_buffer(MmrObject *self, PyObject *entries, PyObject *entry_size)
{
    PyObject *result = NULL;
    Py_buffer view;
    uint64_t each = 0;
    if (agpy_u64(entry_size, "entry_size", PyExc_ValueError, &each) < 0) {
        return NULL;
    }
    if (PyObject_GetBuffer(entries, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    size_t octets = (size_t)view.len;
    if (each == 0 || octets % each != 0) {
        PyErr_Format(PyExc_ValueError,
                     "entry_size %llu does not divide the buffer of %zd bytes",
                     (unsigned long long)each, view.len);
        goto exit;
    }
    if (mmr_enter(self) < 0) {
        goto exit;
    }
    int status;
    uint64_t first = ag_mmr_size(self->mmr);
    AGPY_DETACHED(octets, status = ag_mmr_extend_flat(self->mmr, view.buf, (size_t)each,
                                                      octets / (size_t)each));
    mmr_leave(self);
    result = status == AG_OK ? PyLong_FromUnsignedLongLong(first)
                             : raise_status(self, status, NULL);
exit:
    PyBuffer_Release(&view);
    return result;
}

PyDoc_STRVAR(
    mmr_extend_doc,
    "extend($self, entries, /, *, entry_size=None)\n--\n\n"
    "Adds many leaves, all or none, and returns the index of the first.\n\n"
    "`entries` is an iterable of bytes; or, with entry_size (in bytes, at least "
    "1), one buffer of shape (n * entry_size,) with the entries one after the "
    "other. A writable buffer must not be changed meanwhile: the interpreter is "
    "given to other threads while entries are hashed.\n\n"
    "Raises TypeError, ValueError when entry_size does not divide the buffer, "
    "MemoryError.");

static PyObject *
mmr_extend(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"", "entry_size"};
    static const struct agpy_signature signature = {"extend", 1, 1, 2, names};
    PyObject *given[2];
    if (agpy_unpack(&signature, args, nargs, kwnames, given) < 0) {
        return NULL;
    }
    return given[1] == NULL || given[1] == Py_None
               ? extend_sequence(MMR(object), given[0])
               : extend_buffer(MMR(object), given[0], given[1]);
}

/* --- roots and proofs --- */

PyDoc_STRVAR(
    mmr_root_doc,
    "root($self, size=None)\n--\n\n"
    "The RFC 6962 root, 32 bytes, of the first `size` leaves or of all; "
    "SHA-256(b\"\") of none. O(1) when nothing was added since the last call.\n\n"
    "Raises IndexError beyond the tree, and with proofs=False AegisError for a "
    "size that is neither 0 nor the current one.");

static PyObject *
mmr_root(PyObject *object, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    static const char *const names[] = {"size"};
    static const struct agpy_signature signature = {"root", 1, 0, 1, names};
    MmrObject *self = MMR(object);
    PyObject *given;
    bool sized;
    uint64_t size = 0;
    if (agpy_unpack(&signature, args, nargs, kwnames, &given) < 0 ||
        optional_size(given, "size", &sized, &size) < 0 || mmr_enter(self) < 0) {
        return NULL;
    }
    uint8_t root[AG_HASH_SIZE];
    int status;
    uint64_t held = ag_mmr_size(self->mmr);
    size = sized ? size : held;
    AGPY_DETACHED(ROOT_OCTETS, status = ag_mmr_root_at(self->mmr, size, root));
    mmr_leave(self);
    if (status == AG_ERANGE) {
        return raise_beyond("size", size, held);
    }
    if (status == AG_ENOTFOUND) {
        return raise_no_proofs(self, "the root of an earlier size");
    }
    return PyBytes_FromStringAndSize((const char *)root, AG_HASH_SIZE);
}

PyDoc_STRVAR(mmr_peaks_doc,
             "peaks($self, /)\n--\n\n"
             "The roots of the complete subtrees that the tree consists of, tallest "
             "first: one for each bit set in len(self), 32 bytes each. Hashed together "
             "from the right they give root().");

static PyObject *
mmr_peaks(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    MmrObject *self = MMR(object);
    uint8_t peaks[64][AG_HASH_SIZE];
    size_t count;
    if (mmr_enter(self) < 0) {
        return NULL;
    }
    AGPY_DETACHED(ROOT_OCTETS, count = ag_mmr_peaks(self->mmr, peaks));
    mmr_leave(self);
    return agpy_hash_list((const uint8_t (*)[AG_HASH_SIZE])peaks, count);
}

PyDoc_STRVAR(
    mmr_inclusion_proof_doc,
    "inclusion_proof($self, index, size=None)\n--\n\n"
    "The hashes (32 bytes each, leaf to root) that prove that leaf `index` is in "
    "the tree of the first `size` leaves, or of all: PATH(index, D[size]) of RFC "
    "6962 section 2.1.1.\n\n"
    "Raises IndexError unless index < size <= len(self); AegisError with "
    "proofs=False.");

static PyObject *
mmr_inclusion_proof(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                    PyObject *kwnames)
{
    static const char *const names[] = {"index", "size"};
    static const struct agpy_signature signature = {"inclusion_proof", 2, 1, 2, names};
    MmrObject *self = MMR(object);
    PyObject *given[2];
    bool sized;
    uint64_t index, size = 0;
    if (agpy_unpack(&signature, args, nargs, kwnames, given) < 0 ||
        agpy_u64(given[0], "index", PyExc_IndexError, &index) < 0 ||
        optional_size(given[1], "size", &sized, &size) < 0 || mmr_enter(self) < 0) {
        return NULL;
    }
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE];
    size_t count = 0;
    int status;
    uint64_t held = ag_mmr_size(self->mmr);
    size = sized ? size : held;
    AGPY_DETACHED(ROOT_OCTETS, status = ag_mmr_inclusion_proof(self->mmr, index, size,
                                                               proof, &count));
    mmr_leave(self);
    if (status == AG_ERANGE) {
        return size > held ? raise_beyond("size", size, held)
                           : raise_beyond("index", index, size);
    }
    if (status == AG_ENOTFOUND) {
        return raise_no_proofs(self, "an inclusion proof");
    }
    return agpy_hash_list((const uint8_t (*)[AG_HASH_SIZE])proof, count);
}

PyDoc_STRVAR(
    mmr_consistency_proof_doc,
    "consistency_proof($self, old_size, new_size=None)\n--\n\n"
    "The hashes (32 bytes each) that prove that the first `old_size` leaves are "
    "the beginning of the tree of `new_size`, or of all: PROOF(old_size, "
    "D[new_size]) of RFC 6962 section 2.1.2. Empty when the sizes are equal or "
    "old_size is 0.\n\n"
    "Raises IndexError unless old_size <= new_size <= len(self); AegisError with "
    "proofs=False.");

static PyObject *
mmr_consistency_proof(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                      PyObject *kwnames)
{
    static const char *const names[] = {"old_size", "new_size"};
    static const struct agpy_signature signature = {"consistency_proof", 2, 1, 2,
                                                    names};
    MmrObject *self = MMR(object);
    PyObject *given[2];
    bool sized;
    uint64_t old_size, new_size = 0;
    if (agpy_unpack(&signature, args, nargs, kwnames, given) < 0 ||
        agpy_u64(given[0], "old_size", PyExc_IndexError, &old_size) < 0 ||
        optional_size(given[1], "new_size", &sized, &new_size) < 0 ||
        mmr_enter(self) < 0) {
        return NULL;
    }
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE];
    size_t count = 0;
    int status;
    uint64_t held = ag_mmr_size(self->mmr);
    new_size = sized ? new_size : held;
    AGPY_DETACHED(ROOT_OCTETS, status = ag_mmr_consistency_proof(
                                   self->mmr, old_size, new_size, proof, &count));
    mmr_leave(self);
    if (status == AG_ERANGE) {
        return new_size > held ? raise_beyond("new_size", new_size, held)
                               : raise_beyond("old_size", old_size, new_size);
    }
    if (status == AG_ENOTFOUND) {
        return raise_no_proofs(self, "a consistency proof");
    }
    return agpy_hash_list((const uint8_t (*)[AG_HASH_SIZE])proof, count);
}

/* --- dump and load --- */

PyDoc_STRVAR(mmr_dump_doc,
             "dump($self, /)\n--\n\n"
             "The tree as bytes that load() reads: a header with version and size, the "
             "leaf hashes (with proofs=False the peaks), and a SHA-256 of it all. The "
             "entries themselves are not kept.");

static PyObject *
mmr_dump(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    MmrObject *self = MMR(object);
    if (mmr_enter(self) < 0) {
        return NULL;
    }
    size_t size = ag_mmr_dump_size(self->mmr);
    /* allocates a plain block: runs no code of Python's under the lock */
    PyObject *dump = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (dump != NULL) {
        uint8_t *out = (uint8_t *)PyBytes_AS_STRING(dump); /* nobody else has it yet */
        AGPY_DETACHED(size + ROOT_OCTETS, ag_mmr_dump(self->mmr, out));
    }
    mmr_leave(self);
    return dump;
}

PyDoc_STRVAR(
    mmr_load_doc,
    "load($type, data, /)\n--\n\n"
    "The tree whose dump() gave `data`. Everything is checked.\n\n"
    "Raises TypeError unless data is bytes, AegisError for data that is damaged "
    "or of an unknown version, MemoryError.");

static PyObject *
mmr_load(PyObject *type, PyObject *data)
{
    if (!PyBytes_Check(data)) {
        return PyErr_Format(PyExc_TypeError, "data must be bytes, not %.100s",
                            Py_TYPE(data)->tp_name);
    }
    const uint8_t *dump = (const uint8_t *)PyBytes_AS_STRING(data);
    size_t n = (size_t)PyBytes_GET_SIZE(data);
    struct ag_mmr *mmr = NULL;
    struct ag_error err;
    int status;
    AGPY_DETACHED(n, status = ag_mmr_load(dump, n, &mmr, &err));
    if (status != AG_OK) {
        struct agpy_state *state = agpy_state_of_type((PyTypeObject *)type);
        return state != NULL ? agpy_raise(state, AGPY_TREE, status, &err) : NULL;
    }
    return (PyObject *)mmr_wrap((PyTypeObject *)type, mmr); // takes ownership
}

/* --- the type --- */

static PyObject *
mmr_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"proofs", NULL};
    int proofs = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:MmrAccumulator", names,
                                     &proofs)) {
        return NULL;
    }
    struct ag_mmr *mmr = NULL;
    if (ag_mmr_new(proofs != 0, &mmr) != AG_OK) {
        return PyErr_NoMemory();
    }
    return (PyObject *)mmr_wrap(type, mmr); // takes ownership
}

static void
mmr_dealloc(PyObject *object)
{
    MmrObject *self = MMR(object);
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    ag_mmr_free(self->mmr);
    agpy_lock_free(&self->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

static int
mmr_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    return 0;
}

static Py_ssize_t
mmr_length(PyObject *object)
{
    MmrObject *self = MMR(object);
    if (mmr_enter(self) < 0) {
        return -1;
    }
    uint64_t size = ag_mmr_size(self->mmr);
    mmr_leave(self);
    return (Py_ssize_t)size; /* the core keeps it below 2^63 */
}

PyDoc_STRVAR(mmr_sizeof_doc, "__sizeof__($self, /)\n--\n\n"
                             "Size of the object with its tree, in bytes.");

static PyObject *
mmr_sizeof(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    MmrObject *self = MMR(object);
    if (mmr_enter(self) < 0) {
        return NULL;
    }
    size_t memory = ag_mmr_memory(self->mmr);
    mmr_leave(self);
    return PyLong_FromSize_t(memory + (size_t)Py_TYPE(object)->tp_basicsize);
}

static PyObject *
mmr_proofs(PyObject *object, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(ag_mmr_keeps_proofs(MMR(object)->mmr)); /* never changes */
}

static PyMethodDef mmr_methods[] = {
    {"append", mmr_append, METH_O, mmr_append_doc},
    {"append_hash", mmr_append_hash, METH_O, mmr_append_hash_doc},
    {"extend", AGPY_METHOD(mmr_extend), METH_FASTCALL | METH_KEYWORDS, mmr_extend_doc},
    {"root", AGPY_METHOD(mmr_root), METH_FASTCALL | METH_KEYWORDS, mmr_root_doc},
    {"peaks", mmr_peaks, METH_NOARGS, mmr_peaks_doc},
    {"inclusion_proof", AGPY_METHOD(mmr_inclusion_proof), METH_FASTCALL | METH_KEYWORDS,
     mmr_inclusion_proof_doc},
    {"consistency_proof", AGPY_METHOD(mmr_consistency_proof),
     METH_FASTCALL | METH_KEYWORDS, mmr_consistency_proof_doc},
    {"dump", mmr_dump, METH_NOARGS, mmr_dump_doc},
    {"load", mmr_load, METH_O | METH_CLASS, mmr_load_doc},
    {"__sizeof__", mmr_sizeof, METH_NOARGS, mmr_sizeof_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef mmr_properties[] = {
    {"proofs", mmr_proofs, NULL, "Whether all nodes are kept; bool.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    mmr_doc,
    "MmrAccumulator(*, proofs=True)\n--\n\n"
    "An append-only Merkle tree in memory (RFC 6962 section 2.1).\n\n"
    "It keeps hashes, not entries: 64 bytes a leaf. proofs=False keeps only the "
    "peaks, O(log n): such a tree knows its current root alone, and adding to it "
    "allocates nothing. Safe to share between threads; in a forked child it "
    "refuses with AegisError.");

static PyType_Slot mmr_slots[] = {
    {Py_tp_doc, (void *)mmr_doc}, {Py_tp_new, mmr_new},
    {Py_tp_dealloc, mmr_dealloc}, {Py_tp_traverse, mmr_traverse},
    {Py_tp_methods, mmr_methods}, {Py_tp_getset, mmr_properties},
    {Py_sq_length, mmr_length},   {0, NULL},
};

PyType_Spec agpy_mmr_spec = {
    .name = "aegis_c.MmrAccumulator",
    .basicsize = sizeof(MmrObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = mmr_slots,
};
