/* Whether an entry has the published schema (docs/entry.schema.json), fast.
 *
 * One walk over the octets, in the order in which entries are written. It answers "yes"
 * only when it is certain: strict JSON, no member twice, every rule kept. What is rare
 * or unclear (an escaped name, deep nesting, very long numbers) is a "no" just as a
 * fault is: then ledger/verify.py decides and, where there is a fault, explains it. */
#ifndef AG_LOG_ENTRY_SCHEMA_H
#define AG_LOG_ENTRY_SCHEMA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Any thread; allocates nothing, never fails. */
bool ag_entry_conforms(const uint8_t *entry, size_t n);

#endif
