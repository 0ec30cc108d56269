/* What the ledger type needs of the commitment type. */
#ifndef AGPY_COMMITMENT_TYPE_H
#define AGPY_COMMITMENT_TYPE_H

#include "agpy.h"
#include "log/entry.h"

/* A new Commitment object that holds a copy of `commitment`. */
PyObject *agpy_commitment_new(struct agpy_state *state,
                              const struct ag_commitment *commitment);

/* Finishes the Commitment `object` and copies its state. 0, or -1 with TypeError. */
int agpy_commitment_finish(struct agpy_state *state, PyObject *object,
                           struct ag_commitment *commitment);

/* Parses a request id: UUID text or its 16 octets. 0, or -1 with an exception. */
int agpy_parse_id(PyObject *object, uint8_t id[AG_UUID_SIZE]);

/* Sets ValueError: a commitment with an empty secret can be guessed. */
void agpy_refuse_empty_secret(void);

/* Parses "request" or "response". 0, or -1 with an exception. */
int agpy_parse_role(PyObject *object, enum ag_role *role);

#endif
