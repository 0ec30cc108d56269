/* Methods of aegis_c.Ledger that read entries and make proofs. All may read files, so
 * they run without the GIL. */
#include "args.h"
#include "base/alloc.h"
#include "commitment_type.h"
#include "ledger_functions.h"
#include "ledger_type.h"

/* ---- entries ---- */

AGPY_LEDGER_DOC(
    entry, "entry($self, index, /)\n--\n\n"
           "The bytes of an integrated entry. May read a file.\n\n"
           "IndexError beyond the end, LedgerError when it is not integrated yet.");

PyObject *
agpy_ledger_entry(PyObject *self, PyObject *object)
{
    uint8_t *entry = NULL;
    size_t n = 0;
    uint64_t index = 0;
    struct ag_error err;
    int status = AG_OK;
    if (!agpy_position(object, &index)) {
        return NULL;
    }
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_entry(ledger, index, &entry, &n, &err);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
    if (status != AG_OK) {
        return agpy_ledger_raise(self, status, &err);
    }
    PyObject *result = PyBytes_FromStringAndSize((const char *)entry, (Py_ssize_t)n);
    ag_free(entry);
    return result;
}

AGPY_LEDGER_DOC(find,
                "find($self, request_id, /)\n--\n\n"
                "Indices of the entries that carry this id, ascending, submitted\n"
                "ones included; [] for an unknown id. May read files.");

PyObject *
agpy_ledger_find(PyObject *self, PyObject *object)
{
    uint8_t id[AG_UUID_SIZE];
    struct ag_found found = {0};
    struct ag_error err;
    int status = AG_OK;
    if (agpy_parse_id(object, id) < 0) {
        return NULL;
    }
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_find(ledger, id, &found, &err);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
    PyObject *list = status == AG_OK ? agpy_index_list(found.index, found.count)
                                     : agpy_ledger_raise(self, status, &err);
    ag_free(found.index);
    return list;
}

AGPY_LEDGER_DOC(
    open_intents,
    "open_intents($self, /)\n--\n\n"
    "Indices of the intents that had no settle when the ledger was opened.");

PyObject *
agpy_ledger_open_intents(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    uint64_t *index = NULL;
    size_t count = 0;
    struct ag_error err;
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    int status = ag_ledger_open_intents(ledger, &index, &count, &err);
    agpy_ledger_release(self);
    if (status != AG_OK) {
        return agpy_ledger_raise(self, status, &err);
    }
    PyObject *list = agpy_index_list(index, count);
    ag_free(index);
    return list;
}

AGPY_LEDGER_DOC(checkpoint,
                "checkpoint($self, /)\n--\n\n"
                "The last published signed checkpoint; b'' before the first.");

PyObject *
agpy_ledger_checkpoint(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    char note[AG_CHECKPOINT_MAX];
    size_t n = 0;
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    ag_ledger_checkpoint(ledger, note, &n);
    agpy_ledger_release(self);
    return PyBytes_FromStringAndSize(note, (Py_ssize_t)n);
}

/* ---- proofs ---- */

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
    return agpy_position(object, size) ? 0 : -1;
}

typedef int (*proof_fn)(struct ag_ledger *ledger, uint64_t first, uint64_t size,
                        uint8_t (*proof)[AG_HASH_SIZE], size_t *count,
                        struct ag_error *err);

static PyObject *
make_proof(PyObject *self, uint64_t first, PyObject *size_object, proof_fn make)
{
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE];
    size_t count = 0;
    uint64_t size = 0;
    struct ag_error err;
    int status = AG_OK;
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    if (optional_size(ledger, size_object, &size) < 0) {
        agpy_ledger_release(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = make(ledger, first, size, proof, &count, &err);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
    return status == AG_OK ? proof_list(proof, count)
                           : agpy_ledger_raise(self, status, &err);
}

AGPY_LEDGER_DOC(
    inclusion_proof,
    "inclusion_proof($self, index, size=None)\n--\n\n"
    "RFC 6962 audit path of the entry, leaf to root: list of 32-byte hashes.\n\n"
    "size: tree size, by default the integrated size. IndexError. May read files.");

PyObject *
agpy_ledger_inclusion_proof(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"index", "size", NULL};
    uint64_t index = 0;
    PyObject *size = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O:inclusion_proof", names,
                                     agpy_position, &index, &size)) {
        return NULL;
    }
    return make_proof(self, index, size, ag_ledger_inclusion);
}

AGPY_LEDGER_DOC(
    consistency_proof,
    "consistency_proof($self, old_size, new_size=None)\n--\n\n"
    "RFC 6962 consistency proof between two sizes: list of 32-byte hashes.\n\n"
    "new_size: by default the integrated size. IndexError. May read files.");

PyObject *
agpy_ledger_consistency_proof(PyObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"old_size", "new_size", NULL};
    uint64_t old_size = 0;
    PyObject *new_size = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&|O:consistency_proof", names,
                                     agpy_position, &old_size, &new_size)) {
        return NULL;
    }
    return make_proof(self, old_size, new_size, ag_ledger_consistency);
}

AGPY_LEDGER_DOC(root,
                "root($self, size=None)\n--\n\n"
                "Root of the first `size` entries (default: the integrated size).");

PyObject *
agpy_ledger_root(PyObject *self, PyObject *args, PyObject *kwargs)
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
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    if (optional_size(ledger, size_object, &size) < 0) {
        agpy_ledger_release(self);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_root(ledger, size, root, &err);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
    return status == AG_OK ? PyBytes_FromStringAndSize((const char *)root, AG_HASH_SIZE)
                           : agpy_ledger_raise(self, status, &err);
}

AGPY_LEDGER_DOC(
    receipt,
    "receipt($self, index, /)\n--\n\n"
    "The C2SP tlog-proof of a published entry: text that anyone verifies offline.\n\n"
    "IndexError; LedgerError when it is not published yet. May read files.");

PyObject *
agpy_ledger_receipt(PyObject *self, PyObject *object)
{
    char *text = NULL;
    size_t n = 0;
    uint64_t index = 0;
    struct ag_error err;
    int status = AG_OK;
    if (!agpy_position(object, &index)) {
        return NULL;
    }
    struct ag_ledger *ledger = agpy_ledger_acquire(self);
    if (ledger == NULL) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
        status = ag_ledger_receipt(ledger, index, &text, &n, &err);
    Py_END_ALLOW_THREADS
    agpy_ledger_release(self);
    if (status != AG_OK) {
        return agpy_ledger_raise(self, status, &err);
    }
    PyObject *result = PyBytes_FromStringAndSize(text, (Py_ssize_t)n);
    ag_free(text);
    return result;
}
