/* What the files about analysed replies share. */
#ifndef ANALYSIS_TYPE_H
#define ANALYSIS_TYPE_H

#include "agpy.h"
#include "text/findings.h"

/* The core's object inside of a Baselines, borrowed; NULL with TypeError, or
 * RuntimeError in the child of a fork. */
struct ag_baselines *agpy_baselines(struct agpy_state *state, PyObject *object);

/* The analysis of an ended reply as a new dict. */
PyObject *agpy_analysis_result(const struct ag_analysis *a,
                               const struct ag_finding *findings, size_t n);

#endif
