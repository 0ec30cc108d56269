/* The functions of the tree that need no tree: hashing, verification, kernels. */
#include "args.h"
#include "detach.h"

#include <string.h>

#include "hash/crc32c.h"
#include "hash/sha256.h"
#include "log/proof.h"

#define KERNELS_MAX 16

/* --- hashing --- */

PyDoc_STRVAR(leaf_hash_doc, "leaf_hash($module, entry, /)\n--\n\n"
                            "SHA-256(0x00 || entry), 32 bytes: the hash of a leaf (RFC "
                            "6962 section 2.1). `entry` is bytes of any length.");

static PyObject *
leaf_hash(PyObject *Py_UNUSED(module), PyObject *entry)
{
    if (!PyBytes_Check(entry)) {
        return PyErr_Format(PyExc_TypeError, "entry must be bytes, not %.100s",
                            Py_TYPE(entry)->tp_name);
    }
    const uint8_t *data = (const uint8_t *)PyBytes_AS_STRING(entry);
    size_t n = (size_t)PyBytes_GET_SIZE(entry);
    uint8_t hash[AG_HASH_SIZE];
    AGPY_DETACHED(n, ag_leaf_hash(data, n, hash));
    return PyBytes_FromStringAndSize((const char *)hash, AG_HASH_SIZE);
}

PyDoc_STRVAR(
    node_hash_doc,
    "node_hash($module, left, right, /)\n--\n\n"
    "SHA-256(0x01 || left || right), 32 bytes: the hash of an interior node of "
    "two hashes of 32 bytes (RFC 6962 section 2.1). Raises ValueError for "
    "another length.");

static PyObject *
node_hash(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "node_hash() takes 2 arguments, %zd given",
                            nargs);
    }
    const uint8_t *left = agpy_hash(args[0], "left", PyExc_ValueError);
    const uint8_t *right =
        left != NULL ? agpy_hash(args[1], "right", PyExc_ValueError) : NULL;
    if (right == NULL) {
        return NULL;
    }
    uint8_t hash[AG_HASH_SIZE];
    AGPY_DETACHED((size_t)64, ag_node_hash(left, right, hash));
    return PyBytes_FromStringAndSize((const char *)hash, AG_HASH_SIZE);
}

/* --- verification --- */

/* Turns a ValueError that tells what was wrong with an argument into a
 * VerificationError; other exceptions stay. */
static PyObject *
as_verification_error(struct agpy_state *state)
{
    if (!PyErr_ExceptionMatches(PyExc_ValueError)) {
        return NULL;
    }
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    struct ag_error err;
    PyObject *text = value != NULL ? PyObject_Str(value) : NULL;
    const char *utf8 = text != NULL ? PyUnicode_AsUTF8(text) : NULL;
    if (utf8 != NULL) {
        (void)ag_fail(&err, AG_EVERIFY, "%s", utf8);
        (void)agpy_raise(state, AGPY_TREE, AG_EVERIFY, &err);
    }
    Py_XDECREF(text);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(traceback);
    return NULL;
}

static PyObject *
raise_verify(struct agpy_state *state, const struct ag_error *err)
{
    return agpy_raise(state, AGPY_TREE, AG_EVERIFY, err);
}

static PyObject *
raise_other_root(struct agpy_state *state, const char *what,
                 const uint8_t expected[AG_HASH_SIZE],
                 const uint8_t found[AG_HASH_SIZE])
{
    struct ag_error err;
    char expected_hex[65] = {0}, found_hex[65] = {0};
    ag_hash_hex(expected, expected_hex);
    ag_hash_hex(found, found_hex);
    (void)ag_fail(&err, AG_EVERIFY, "%s", what);
    ag_error_pair(&err, expected_hex, found_hex);
    return raise_verify(state, &err);
}

/* Copies the hashes of a proof that must have `count`. ValueError says what is wrong.
 */
static int
copy_proof(PyObject *proof, size_t count, uint8_t (*out)[AG_HASH_SIZE])
{
    if (PyObject_CheckBuffer(proof) || PyUnicode_Check(proof)) {
        PyErr_Format(PyExc_TypeError, "proof must be a sequence of bytes, not %.100s",
                     Py_TYPE(proof)->tp_name);
        return -1;
    }
    Py_ssize_t given = PySequence_Size(proof);
    if (given < 0) {
        return -1;
    }
    if ((size_t)given != count) {
        PyErr_Format(PyExc_ValueError,
                     "a proof for these numbers has %zu hashes, this one has %zd",
                     count, given);
        return -1;
    }
    for (size_t i = 0; i < count; i++) {
        char name[32];
        (void)snprintf(name, sizeof(name), "proof[%zu]", i);
        PyObject *item = PySequence_GetItem(proof, (Py_ssize_t)i);
        const uint8_t *hash =
            item != NULL ? agpy_hash(item, name, PyExc_ValueError) : NULL;
        if (hash != NULL) {
            memcpy(out[i], hash, AG_HASH_SIZE);
        }
        Py_XDECREF(item);
        if (hash == NULL) {
            return -1;
        }
    }
    return 0;
}

PyDoc_STRVAR(
    verify_inclusion_doc,
    "verify_inclusion($module, leaf_hash, index, size, root, proof)\n--\n\n"
    "Checks that the leaf with this hash is number `index` of the tree of `size` "
    "leaves with this root: RFC 9162 section 2.1.3.2. Hashes are bytes of length "
    "32, `proof` is a sequence of them, leaf to root; its structure is derived "
    "from index and size alone.\n\n"
    "Returns None. Raises VerificationError for any value that does not hold "
    "(numbers, lengths, roots), TypeError for a wrong type.");

static PyObject *
verify_inclusion(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                 PyObject *kwnames)
{
    static const char *const names[] = {"leaf_hash", "index", "size", "root", "proof"};
    static const struct agpy_signature signature = {"verify_inclusion", 5, 5, 5, names};
    struct agpy_state *state = agpy_state_of_module(module);
    PyObject *given[5];
    uint64_t index, size;
    const uint8_t *leaf, *root;
    if (agpy_unpack(&signature, args, nargs, kwnames, given) < 0) {
        return NULL;
    }
    if ((leaf = agpy_hash(given[0], "leaf_hash", PyExc_ValueError)) == NULL ||
        agpy_u64(given[1], "index", PyExc_ValueError, &index) < 0 ||
        agpy_u64(given[2], "size", PyExc_ValueError, &size) < 0 ||
        (root = agpy_hash(given[3], "root", PyExc_ValueError)) == NULL) {
        return as_verification_error(state);
    }
    struct ag_error err;
    if (index >= size) {
        (void)ag_fail(&err, AG_EVERIFY, "there is no leaf %llu in a tree of %llu",
                      (unsigned long long)index, (unsigned long long)size);
        return raise_verify(state, &err);
    }
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE], found[AG_HASH_SIZE];
    size_t count = ag_inclusion_proof_count(index, size);
    if (copy_proof(given[4], count, proof) < 0) {
        return as_verification_error(state);
    }
    int status;
    AGPY_DETACHED(count * 64,
                  status = ag_inclusion_root(leaf, index, size,
                                             (const uint8_t (*)[AG_HASH_SIZE])proof,
                                             count, found));
    if (status != AG_OK) {
        return agpy_raise(state, AGPY_TREE, status, NULL);
    }
    if (memcmp(found, root, AG_HASH_SIZE) != 0) {
        return raise_other_root(state, "the inclusion proof leads to another root",
                                root, found);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    verify_consistency_doc,
    "verify_consistency($module, old_size, new_size, old_root, new_root, proof)\n--\n\n"
    "Checks that the tree of `old_size` leaves with old_root is the beginning of that "
    "of "
    "`new_size` with new_root: RFC 9162 section 2.1.4.2. Hashes are bytes of length "
    "32, "
    "`proof` is a sequence of them. Equal sizes need equal roots, and every tree "
    "begins "
    "with the empty one, whose root is SHA-256(b\"\"); both with an empty proof.\n\n"
    "Returns None. Raises VerificationError for any value that does not hold (numbers, "
    "lengths, roots), TypeError for a wrong type.");

static PyObject *
verify_consistency(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                   PyObject *kwnames)
{
    static const char *const names[] = {"old_size", "new_size", "old_root", "new_root",
                                        "proof"};
    static const struct agpy_signature signature = {"verify_consistency", 5, 5, 5,
                                                    names};
    struct agpy_state *state = agpy_state_of_module(module);
    PyObject *given[5];
    uint64_t old_size, new_size;
    const uint8_t *old_root, *new_root;
    if (agpy_unpack(&signature, args, nargs, kwnames, given) < 0) {
        return NULL;
    }
    if (agpy_u64(given[0], "old_size", PyExc_ValueError, &old_size) < 0 ||
        agpy_u64(given[1], "new_size", PyExc_ValueError, &new_size) < 0 ||
        (old_root = agpy_hash(given[2], "old_root", PyExc_ValueError)) == NULL ||
        (new_root = agpy_hash(given[3], "new_root", PyExc_ValueError)) == NULL) {
        return as_verification_error(state);
    }
    struct ag_error err;
    if (old_size > new_size) {
        (void)ag_fail(&err, AG_EVERIFY, "old_size %llu is more than new_size %llu",
                      (unsigned long long)old_size, (unsigned long long)new_size);
        return raise_verify(state, &err);
    }
    uint8_t proof[AG_PROOF_MAX][AG_HASH_SIZE];
    uint8_t old_found[AG_HASH_SIZE], new_found[AG_HASH_SIZE];
    size_t count = ag_consistency_proof_count(old_size, new_size);
    if (copy_proof(given[4], count, proof) < 0) {
        return as_verification_error(state);
    }
    memcpy(new_found, new_root, AG_HASH_SIZE); /* kept where anything is consistent */
    int status;
    AGPY_DETACHED(count * 128,
                  status = ag_consistency_roots(old_size, new_size, old_root,
                                                (const uint8_t (*)[AG_HASH_SIZE])proof,
                                                count, old_found, new_found));
    if (status != AG_OK) {
        return agpy_raise(state, AGPY_TREE, status, NULL);
    }
    if (memcmp(old_found, old_root, AG_HASH_SIZE) != 0) {
        return raise_other_root(state,
                                "the consistency proof leads to another old root",
                                old_root, old_found);
    }
    if (memcmp(new_found, new_root, AG_HASH_SIZE) != 0) {
        return raise_other_root(state,
                                "the consistency proof leads to another new root",
                                new_root, new_found);
    }
    Py_RETURN_NONE;
}

/* --- kernels --- */

PyDoc_STRVAR(
    kernels_doc,
    "kernels($module, /)\n--\n\n"
    "Which code computes the hashes on this machine:\n"
    "{\"sha256\": name, \"crc32c\": name, \"tested\": {name: {\"runs_here\": "
    "bool, \"passed\": bool, \"node_ns\": float}}}.\n\n"
    "`tested` lists every SHA-256 kernel of this build with the result of its "
    "self-test against OpenSSL and the nanoseconds per node of a batch that were "
    "measured at import. A kernel that did not pass is never used.");

static PyObject *
kernels(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    struct ag_kernel_info list[KERNELS_MAX];
    size_t count = ag_sha256_kernels(list, KERNELS_MAX);
    PyObject *tested = PyDict_New();
    PyObject *result = NULL;
    const char *active = "portable";
    for (size_t i = 0; tested != NULL && i < count && i < KERNELS_MAX; i++) {
        PyObject *one = Py_BuildValue(
            "{s:O,s:O,s:d}", "runs_here", list[i].runs_here ? Py_True : Py_False,
            "passed", list[i].passed ? Py_True : Py_False, "node_ns", list[i].node_ns);
        if (one == NULL || PyDict_SetItemString(tested, list[i].name, one) < 0) {
            Py_CLEAR(tested);
        }
        Py_XDECREF(one);
        active = list[i].active ? list[i].name : active;
    }
    if (tested != NULL) {
        result = Py_BuildValue("{s:s,s:s,s:O}", "sha256", active, "crc32c",
                               ag_crc32c_kernel(), "tested", tested);
    }
    Py_XDECREF(tested);
    return result;
}

PyDoc_STRVAR(
    kernel_run_doc,
    "_kernel_run($module, name, leaves, count, /)\n--\n\n"
    "For benchmarks: hashes `count` nodes, or leaves of 32 bytes, with the kernel "
    "of that name or with \"openssl\". Raises AegisError for an unknown name.");

static PyObject *
kernel_run(PyObject *module, PyObject *args)
{
    struct agpy_state *state = agpy_state_of_module(module);
    const char *name;
    int leaves;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "spn:_kernel_run", &name, &leaves, &count)) {
        return NULL;
    }
    int status = AG_EINVAL;
    if (count >= 0) {
        AGPY_DETACHED((size_t)count * 32,
                      status = ag_sha256_run(name, leaves != 0, (size_t)count));
    }
    if (status != AG_OK) {
        return agpy_raise(state, AGPY_TREE, status, NULL);
    }
    Py_RETURN_NONE;
}

PyMethodDef agpy_tree_methods[] = {
    {"leaf_hash", leaf_hash, METH_O, leaf_hash_doc},
    {"node_hash", AGPY_METHOD(node_hash), METH_FASTCALL, node_hash_doc},
    {"verify_inclusion", AGPY_METHOD(verify_inclusion), METH_FASTCALL | METH_KEYWORDS,
     verify_inclusion_doc},
    {"verify_consistency", AGPY_METHOD(verify_consistency),
     METH_FASTCALL | METH_KEYWORDS, verify_consistency_doc},
    {"kernels", kernels, METH_NOARGS, kernels_doc},
    {"_kernel_run", kernel_run, METH_VARARGS, kernel_run_doc},
    {NULL, NULL, 0, NULL},
};
