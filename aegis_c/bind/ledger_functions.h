/* Module functions about a ledger that belongs to another process, and what they share
 * with the type. */
#ifndef AGPY_LEDGER_FUNCTIONS_H
#define AGPY_LEDGER_FUNCTIONS_H

#include "agpy.h"

/* A new list of `count` int; `index` may be NULL when count is 0. */
PyObject *agpy_index_list(const uint64_t *index, size_t count);

#endif
