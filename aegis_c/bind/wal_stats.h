/* The numbers of a log as a dict, for WalWriter.stats() and Ledger.stats(). */
#ifndef AGPY_WAL_STATS_H
#define AGPY_WAL_STATS_H

#include "agpy.h"
#include "wal/writer.h"

/* A new dict with one item per member of the struct; NULL with an exception. */
PyObject *agpy_wal_stats(const struct ag_wal_stats *stats);

#endif
