/* Built with AG_GIL_TIMES (AEGIS_DEBUG=1, sanitizers): how long each of our calls holds
 * the GIL, from its first instruction to its last, less what it was detached. In other
 * builds this file is empty.
 *
 * Every function of a PyMethodDef table is exchanged for one that takes the time;
 * constructors, attributes and slots are not. Include it before anything that detaches.
 */
#ifndef AGPY_GIL_TIMES_H
#define AGPY_GIL_TIMES_H

#ifdef AG_GIL_TIMES

#include <Python.h>

/* Exchanges the functions of all tables, once a process. Any thread. */
void agpy_gil_times_start(void);

/* {"Ledger.submit": (calls, total ns, longest ns), ...} of what was called so far. */
PyObject *agpy_gil_times(PyObject *module, PyObject *ignored);

PyThreadState *agpy_save_thread(void);
void agpy_restore_thread(PyThreadState *state);

#define PyEval_SaveThread() agpy_save_thread()
#define PyEval_RestoreThread(state) agpy_restore_thread(state)

#endif

#endif
