/* The functions of the check of a published log (log/audit). */
#include "agpy.h"

#include "log/audit.h"
#include "log/entry_schema.h"

PyDoc_STRVAR(
    audit_tiles_doc,
    "_audit_tiles($module, folder, first, count, /)\n--\n\n"
    "Checks `count` full tiles of level 0 from number `first` on against their entry "
    "bundles: (flags, roots, octets). `flags` has one byte a tile: 0 is in order, else "
    "1 bundle, 2 tile, 4 schema of an entry; `roots` 32 bytes a tile. Runs without the "
    "GIL; for `aegis_c.ledger.fsck`, which explains what is flagged.");

static PyObject *
audit_tiles(PyObject *module, PyObject *args)
{
    struct agpy_state *state = agpy_state_of_module(module);
    PyObject *folder = NULL, *flags = NULL, *roots = NULL, *result = NULL;
    unsigned long long first;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "O&Kn:_audit_tiles", PyUnicode_FSConverter, &folder,
                          &first, &count)) {
        return NULL;
    }
    if (count < 0 || count > PY_SSIZE_T_MAX / AG_HASH_SIZE) {
        PyErr_SetString(PyExc_ValueError, "count is out of range");
        goto exit;
    }
    flags = PyBytes_FromStringAndSize(NULL, count);
    roots = PyBytes_FromStringAndSize(NULL, count * AG_HASH_SIZE);
    if (flags == NULL || roots == NULL) {
        goto exit;
    }
    struct ag_error err;
    const char *path = PyBytes_AS_STRING(folder);
    uint8_t *flags_at = (uint8_t *)PyBytes_AS_STRING(flags);
    uint8_t (*roots_at)[AG_HASH_SIZE] = (void *)PyBytes_AS_STRING(roots);
    uint64_t octets = 0;
    int status;
    Py_BEGIN_ALLOW_THREADS
        status = ag_audit_tiles(ag_io_posix(), path, first, (size_t)count, flags_at,
                                roots_at, &octets, &err);
    Py_END_ALLOW_THREADS
    if (status != AG_OK) {
        (void)agpy_raise(state, AGPY_LEDGER, status, &err);
        goto exit;
    }
    result = Py_BuildValue("OOK", flags, roots, (unsigned long long)octets);
exit:
    Py_XDECREF(folder);
    Py_XDECREF(flags);
    Py_XDECREF(roots);
    return result;
}

PyDoc_STRVAR(
    entry_conforms_doc,
    "_entry_conforms($module, entry, /)\n--\n\n"
    "Whether the bytes of an entry surely have the published schema. False for a fault "
    "and for what only `aegis_c.ledger.verify.parse_entry` can tell.");

static PyObject *
entry_conforms(PyObject *Py_UNUSED(module), PyObject *entry)
{
    if (!PyBytes_Check(entry)) {
        return PyErr_Format(PyExc_TypeError, "entry must be bytes, not %.100s",
                            Py_TYPE(entry)->tp_name);
    }
    return PyBool_FromLong(ag_entry_conforms((const uint8_t *)PyBytes_AS_STRING(entry),
                                             (size_t)PyBytes_GET_SIZE(entry)));
}

PyMethodDef agpy_audit_methods[] = {
    {"_audit_tiles", audit_tiles, METH_VARARGS, audit_tiles_doc},
    {"_entry_conforms", entry_conforms, METH_O, entry_conforms_doc},
    {NULL, NULL, 0, NULL},
};
