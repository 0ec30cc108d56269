/* What the binding files share: the module state, error raising, and the list of types.
 * This directory is the only one that includes Python.h. */
#ifndef AGPY_H
#define AGPY_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "base/status.h"
#include "gil_times.h"

/* Exceptions: state field, Python name, base (a state field, or NULL for Exception). */
#define AGPY_EXCEPTIONS(X)                                                             \
    X(aegis_error, "AegisError", NULL, "Base of every error of this package.")         \
    X(wal_error, "WalError", aegis_error, "The write-ahead log cannot go on.")         \
    X(wal_corruption, "WalCorruption", wal_error,                                      \
      "Damaged log; file, offset, seq, expected, found and advice say where.")         \
    X(wal_poisoned, "WalPoisoned", wal_error,                                          \
      "A write or sync failed: the outcome of unacknowledged records is unknown.")     \
    X(wal_full, "WalFull", wal_error, "No room in the ring; try again later.")         \
    X(wal_locked, "WalLocked", wal_error, "Another writer holds the log.")             \
    X(ledger_error, "LedgerError", aegis_error,                                        \
      "The ledger cannot do what was asked.")                                          \
    X(ledger_full, "LedgerFull", ledger_error,                                         \
      "No room in the ring; try again later.")                                         \
    X(verification_error, "VerificationError", aegis_error,                            \
      "A proof, signature or commitment does not hold.")                               \
    X(limit_error, "LimitError", aegis_error, "A limiter cannot do what was asked.")   \
    X(json_error, "JsonError", aegis_error,                                            \
      "A body is refused; code says why, offset and member where.")

/* Types: state field, spec defined in that type's file. */
#define AGPY_TYPES(X)                                                                  \
    X(commitment_type, agpy_commitment_spec)                                           \
    X(ledger_type, agpy_ledger_spec)                                                   \
    X(ratelimiter_type, agpy_ratelimiter_spec)                                         \
    X(limit_type, agpy_limit_spec)                                                     \
    X(plan_type, agpy_plan_spec)                                                       \
    X(decision_type, agpy_decision_spec)                                               \
    X(reservation_type, agpy_reservation_spec)                                         \
    X(concurrency_type, agpy_concurrency_spec)                                         \
    X(jsonscanner_type, agpy_jsonscanner_spec)                                         \
    X(requestguard_type, agpy_requestguard_spec)                                       \
    X(mmr_type, agpy_mmr_spec)                                                         \
    X(walwriter_type, agpy_walwriter_spec)                                             \
    X(walreader_type, agpy_walreader_spec)                                             \
    X(loopwatch_type, agpy_loopwatch_spec)                                             \
    X(handover_type, agpy_handover_spec)                                               \
    X(legacy_type, agpy_legacy_spec)                                                   \
    X(baselines_type, agpy_baselines_spec)                                             \
    X(analysis_type, agpy_analysis_spec)

/* Tables of module functions, one per file that has some. */
#define AGPY_FUNCTIONS(X)                                                              \
    X(agpy_tree_methods)                                                               \
    X(agpy_legacy_methods)                                                             \
    X(agpy_audit_methods) X(agpy_ledger_functions) X(agpy_entropy_functions)

struct agpy_state {
#define AGPY_FIELD(field, ...) PyObject *field;
    AGPY_EXCEPTIONS(AGPY_FIELD)
    AGPY_TYPES(AGPY_FIELD)
#undef AGPY_FIELD
};

#define AGPY_DECLARE_SPEC(field, spec) extern PyType_Spec spec;
AGPY_TYPES(AGPY_DECLARE_SPEC)
#undef AGPY_DECLARE_SPEC
#define AGPY_DECLARE_TABLE(table) extern PyMethodDef table[];
AGPY_FUNCTIONS(AGPY_DECLARE_TABLE)
#undef AGPY_DECLARE_TABLE

/* State of the module that made `type`, or NULL with an exception. */
struct agpy_state *agpy_state_of_type(PyTypeObject *type);
/* State of the module object that module functions get as their first argument. */
struct agpy_state *agpy_state_of_module(PyObject *module);

/* Which family of exceptions a status becomes. */
enum agpy_family { AGPY_TREE, AGPY_WAL, AGPY_LEDGER, AGPY_LIMIT };

/* Raises the exception that `status` stands for and returns NULL. AG_EINVAL is
 * ValueError, AG_ERANGE IndexError, AG_ENOMEM MemoryError, AG_ETIMEDOUT TimeoutError,
 * AG_EVERIFY VerificationError; the rest belongs to the family. `err` may be NULL; what
 * it holds becomes the message and the attributes file, offset, index, expected, found,
 * advice of the exception (None where they do not apply). */
PyObject *agpy_raise(struct agpy_state *state, enum agpy_family family, int status,
                     const struct ag_error *err);

/* Sets those attributes on an exception of ours. 0, or -1 with an exception. */
int agpy_describe(PyObject *exception, const struct ag_error *err);

/* Calls that hash fewer octets than this keep the GIL: releasing and taking it again
 * costs 21-31 ns alone, but up to a switch interval (5 ms) beside a busy Python thread,
 * and this much hashing takes about 10 us. Built as 0, every call detaches. */
#ifndef AG_DETACH_MIN
#define AG_DETACH_MIN 16384
#endif

/* Casts a METH_FASTCALL function for a PyMethodDef without a compiler warning. */
#define AGPY_METHOD(f) ((PyCFunction)(void (*)(void))(f))

#endif
