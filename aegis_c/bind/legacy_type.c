/* _LegacyMmrAccumulator and the hash functions of aegis_c.compat: the surface of the
 * module that it replaces, with that module's names and types of errors. */
#include "args.h"
#include "detach.h"
#include "lock.h"

#include <string.h>

#include "hash/sha256.h"
#include "log/legacy_tree.h"

static const char *const scheme_names[] = {
    [AG_LEGACY_V1] = "v1-asciihex",
    [AG_LEGACY_V2] = "v2-binary-domain-separated",
};

typedef struct {
    PyObject_HEAD
    struct agpy_lock lock;
    struct ag_legacy_tree *tree; /* owned; under lock */
} LegacyObject;

#define LEGACY(object) ((LegacyObject *)(object))

static PyObject *
hex_text(const char hex[64])
{
    PyObject *text = PyUnicode_New(64, 127);
    if (text != NULL) {
        memcpy(PyUnicode_1BYTE_DATA(text), hex, 64);
    }
    return text;
}

static const uint8_t *
bytes_argument(PyObject *value, const char *name, size_t *n)
{
    if (!PyBytes_Check(value)) {
        PyErr_Format(PyExc_TypeError, "%s must be bytes, not %.100s", name,
                     Py_TYPE(value)->tp_name);
        return NULL;
    }
    *n = (size_t)PyBytes_GET_SIZE(value);
    return (const uint8_t *)PyBytes_AS_STRING(value);
}

/* --- methods --- */

PyDoc_STRVAR(
    legacy_add_leaf_doc,
    "add_leaf($self, data)\n--\n\n"
    "Adds one leaf and returns the new root as 64 hex digits. Raises TypeError "
    "unless data is bytes.");

static PyObject *
legacy_add_leaf(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                PyObject *kwnames)
{
    static const char *const names[] = {"data"};
    static const struct agpy_signature signature = {"add_leaf", 1, 1, 1, names};
    LegacyObject *self = LEGACY(object);
    PyObject *given;
    size_t n;
    if (agpy_unpack(&signature, args, nargs, kwnames, &given) < 0) {
        return NULL;
    }
    const uint8_t *data = bytes_argument(given, "data", &n);
    if (data == NULL) {
        return NULL;
    }
    char root[64];
    agpy_lock_acquire(&self->lock);
    AGPY_DETACHED(n, (ag_legacy_tree_add(self->tree, data, n),
                      ag_legacy_tree_root(self->tree, root)));
    agpy_lock_release(&self->lock);
    return hex_text(root);
}

PyDoc_STRVAR(legacy_get_root_hash_doc,
             "get_root_hash($self, /)\n--\n\n"
             "The root as 64 hex digits; 64 zeros for the empty tree.");

static PyObject *
legacy_get_root_hash(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    LegacyObject *self = LEGACY(object);
    char root[64];
    agpy_lock_acquire(&self->lock);
    AGPY_DETACHED((size_t)64, ag_legacy_tree_root(self->tree, root));
    agpy_lock_release(&self->lock);
    return hex_text(root);
}

PyDoc_STRVAR(legacy_get_leaf_count_doc, "get_leaf_count($self, /)\n--\n\n"
                                        "How many leaves were added.");

static PyObject *
legacy_get_leaf_count(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    LegacyObject *self = LEGACY(object);
    agpy_lock_acquire(&self->lock);
    uint64_t count = ag_legacy_tree_count(self->tree);
    agpy_lock_release(&self->lock);
    return PyLong_FromUnsignedLongLong(count);
}

static PyObject *
legacy_hash_scheme(PyObject *object, void *Py_UNUSED(closure))
{
    return PyUnicode_FromString(
        scheme_names[ag_legacy_tree_scheme(LEGACY(object)->tree)]);
}

/* --- the type --- */

static PyObject *
legacy_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"hash_scheme", NULL};
    const char *name = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|z:MmrAccumulator", names, &name)) {
        return NULL;
    }
    enum ag_legacy_scheme scheme = AG_LEGACY_V1;
    if (name != NULL && strcmp(name, scheme_names[AG_LEGACY_V1]) != 0) {
        if (strcmp(name, scheme_names[AG_LEGACY_V2]) != 0) {
            return PyErr_Format(PyExc_ValueError,
                                "unknown hash_scheme '%.100s': use '%s' or '%s'", name,
                                scheme_names[AG_LEGACY_V1], scheme_names[AG_LEGACY_V2]);
        }
        scheme = AG_LEGACY_V2;
    }
    LegacyObject *self = LEGACY(type->tp_alloc(type, 0));
    if (self == NULL || agpy_lock_init(&self->lock) < 0) {
        Py_XDECREF(self);
        return NULL;
    }
    if (ag_legacy_tree_new(scheme, &self->tree) != AG_OK) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
legacy_dealloc(PyObject *object)
{
    LegacyObject *self = LEGACY(object);
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    ag_legacy_tree_free(self->tree);
    agpy_lock_free(&self->lock);
    type->tp_free(object);
    Py_DECREF(type);
}

static int
legacy_traverse(PyObject *object, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(object));
    return 0;
}

static PyMethodDef legacy_methods[] = {
    {"add_leaf", AGPY_METHOD(legacy_add_leaf), METH_FASTCALL | METH_KEYWORDS,
     legacy_add_leaf_doc},
    {"get_root_hash", legacy_get_root_hash, METH_NOARGS, legacy_get_root_hash_doc},
    {"get_leaf_count", legacy_get_leaf_count, METH_NOARGS, legacy_get_leaf_count_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef legacy_properties[] = {
    {"hash_scheme", legacy_hash_scheme, NULL, "The name of the hash scheme; str.",
     NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(legacy_doc,
             "_LegacyMmrAccumulator(hash_scheme=None)\n--\n\n"
             "The accumulator of aegis_c.compat. hash_scheme is \"v1-asciihex\" (also "
             "when None) or \"v2-binary-domain-separated\", else ValueError. Its roots "
             "are not those of RFC 6962: new logs use MmrAccumulator.");

static PyType_Slot legacy_slots[] = {
    {Py_tp_doc, (void *)legacy_doc},
    {Py_tp_new, legacy_new},
    {Py_tp_dealloc, legacy_dealloc},
    {Py_tp_traverse, legacy_traverse},
    {Py_tp_methods, legacy_methods},
    {Py_tp_getset, legacy_properties},
    {0, NULL},
};

PyType_Spec agpy_legacy_spec = {
    .name = "aegis_c._LegacyMmrAccumulator",
    .basicsize = sizeof(LegacyObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = legacy_slots,
};

/* --- functions --- */

PyDoc_STRVAR(sha256_hex_doc, "_sha256_hex($module, data, /)\n--\n\n"
                             "SHA-256 of bytes as 64 hex digits.");

static PyObject *
sha256_hex(PyObject *Py_UNUSED(module), PyObject *value)
{
    size_t n;
    const uint8_t *data = bytes_argument(value, "data", &n);
    if (data == NULL) {
        return NULL;
    }
    uint8_t digest[AG_HASH_SIZE];
    char hex[64];
    AGPY_DETACHED(n, ag_sha256(data, n, digest));
    ag_hash_hex(digest, hex);
    return hex_text(hex);
}

PyDoc_STRVAR(hmac_sha256_doc,
             "_hmac_sha256($module, key, message, /)\n--\n\n"
             "HMAC-SHA-256 of bytes under a key of bytes, 32 bytes (RFC "
             "2104).");

static PyObject *
hmac_sha256(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        return PyErr_Format(PyExc_TypeError, "hmac_sign() takes 2 arguments, %zd given",
                            nargs);
    }
    size_t key_size, size;
    const uint8_t *key = bytes_argument(args[0], "key", &key_size);
    const uint8_t *message =
        key != NULL ? bytes_argument(args[1], "message", &size) : NULL;
    if (message == NULL) {
        return NULL;
    }
    struct ag_hmac ctx;
    uint8_t digest[AG_HASH_SIZE];
    AGPY_DETACHED(key_size + size,
                  (ag_hmac_init(&ctx, key, key_size),
                   ag_hmac_update(&ctx, message, size), ag_hmac_final(&ctx, digest)));
    return PyBytes_FromStringAndSize((const char *)digest, AG_HASH_SIZE);
}

PyMethodDef agpy_legacy_methods[] = {
    {"_sha256_hex", sha256_hex, METH_O, sha256_hex_doc},
    {"_hmac_sha256", AGPY_METHOD(hmac_sha256), METH_FASTCALL, hmac_sha256_doc},
    {NULL, NULL, 0, NULL},
};
