#include "wal_stats.h"

static int
set_item(PyObject *dict, const char *name, PyObject *value)
{
    if (value == NULL) {
        return -1;
    }
    int result = PyDict_SetItemString(dict, name, value);
    Py_DECREF(value);
    return result;
}

static PyObject *
list_of(const uint64_t *values, unsigned n)
{
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (unsigned i = 0; list != NULL && i < n; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(values[i]);
        if (value == NULL) {
            Py_CLEAR(list);
            break;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, value);
    }
    return list;
}

PyObject *
agpy_wal_stats(const struct ag_wal_stats *stats)
{
    PyObject *dict = PyDict_New();
    int failed = dict == NULL;
#define NUMBER(field)                                                                  \
    failed =                                                                           \
        failed ||                                                                      \
        set_item(dict, #field,                                                         \
                 PyLong_FromUnsignedLongLong((unsigned long long)stats->field)) < 0;
#define FLAG(field)                                                                    \
    failed = failed || set_item(dict, #field, PyBool_FromLong(stats->field)) < 0;
    NUMBER(next_seq)
    NUMBER(durable_seq)
    NUMBER(low_water)
    NUMBER(ring_capacity)
    NUMBER(ring_used)
    NUMBER(batches)
    NUMBER(records)
    NUMBER(bytes)
    NUMBER(markers)
    NUMBER(rotations)
    NUMBER(syncs)
    NUMBER(slow_syncs)
    NUMBER(sync_ns_total)
    NUMBER(sync_ns_max)
    NUMBER(sync_ns_first)
    NUMBER(wakes)
    NUMBER(wal_id)
    NUMBER(segment_no)
    NUMBER(segment_bytes)
    NUMBER(epoch)
    NUMBER(chain)
    NUMBER(live_segments)
    NUMBER(disk_free)
    NUMBER(replayed)
    FLAG(poisoned)
    FLAG(direct)
    FLAG(no_space)
    FLAG(recovered_torn)
    FLAG(ring_lost)
#undef NUMBER
#undef FLAG
    failed = failed || set_item(dict, "sync_us",
                                list_of(stats->sync_us, AG_WAL_SYNC_BUCKETS)) < 0;
    failed =
        failed || set_item(dict, "batch_records",
                           list_of(stats->batch_records, AG_WAL_BATCH_BUCKETS)) < 0;
    failed = failed ||
             set_item(dict, "ring_mode", PyUnicode_FromString(stats->ring_mode)) < 0;
    failed =
        failed || set_item(dict, "verdict", PyUnicode_FromString(stats->verdict)) < 0;
    if (failed) {
        Py_CLEAR(dict);
    }
    return dict;
}
