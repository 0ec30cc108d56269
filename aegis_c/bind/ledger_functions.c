#include "ledger_functions.h"

#include "base/alloc.h"
#include "commitment_type.h"
#include "log/ids.h"

PyObject *
agpy_index_list(const uint64_t *index, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(index[i]);
        if (number == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)i, number);
        }
    }
    return list;
}

PyDoc_STRVAR(find_doc,
             "_find_entries($module, path, private, request_id, /)\n--\n\n"
             "Indices of the entries that carry this id and that the published\n"
             "checkpoint of the log at `path` covers, ascending; beside its writer.");

static PyObject *
find_entries(PyObject *module, PyObject *args)
{
    PyObject *path = NULL, *private_dir = NULL, *id_object = NULL, *list = NULL;
    uint8_t id[AG_UUID_SIZE];
    struct ag_found found = {0};
    struct ag_error err;
    int status = AG_OK;
    if (!PyArg_ParseTuple(args, "O&O&O:_find_entries", PyUnicode_FSConverter, &path,
                          PyUnicode_FSConverter, &private_dir, &id_object) ||
        agpy_parse_id(id_object, id) < 0) {
        goto exit;
    }
    Py_BEGIN_ALLOW_THREADS
        status =
            ag_ids_find_published(ag_io_posix(), PyBytes_AS_STRING(path),
                                  PyBytes_AS_STRING(private_dir), id, &found, &err);
    Py_END_ALLOW_THREADS
    list = status == AG_OK
               ? agpy_index_list(found.index, found.count)
               : agpy_raise(agpy_state_of_module(module), AGPY_LEDGER, status, &err);
exit:
    ag_free(found.index);
    Py_XDECREF(path);
    Py_XDECREF(private_dir);
    return list;
}

PyMethodDef agpy_ledger_functions[] = {
    {"_find_entries", find_entries, METH_VARARGS, find_doc},
    {NULL, NULL, 0, NULL},
};
