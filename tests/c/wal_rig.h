/* A log with its threads on real files, under an I/O table that fails, stalls, shortens
 * or kills on order. One at a time. */
#ifndef WAL_RIG_H
#define WAL_RIG_H

#include <stdatomic.h>
#include <stdbool.h>

#include "wal/writer.h"

#define FDS 1024

enum kind { OPEN, CLOSE, READ, WRITE, SYNC, NAME };

/* What the table does. */
struct wal_fault {
    _Atomic long calls, at; /* the at-th call (of any kind) fails */
    _Atomic int error;      /* with this; -1: short write; -2: SIGKILL */
    _Atomic bool lasting;   /* and so do all later ones of its kind */
    _Atomic int lasting_kind;
    _Atomic bool no_space; /* segments cannot be made */
    _Atomic bool stall;    /* fdatasync waits */
    _Atomic bool failed_fd[FDS];
    _Atomic long repeated; /* syncs or writes on a descriptor whose sync failed */
    _Atomic bool hit;
    _Atomic int hit_kind;
};
extern struct wal_fault fault;

extern char folder[256], log_path[512], ring_path[512];
/* How long append waits for a disk that may never answer. */
extern uint64_t patience_ns;

void fault_clear(void);
/* New paths below `folder` (made by scratch_make), and a table without faults. */
void setup(const char *name);
/* Removes the log and its ring. */
void forget(void);
struct ag_wal_options options(void);

struct ag_wal *open_log(void);
void close_log(struct ag_wal *wal);
/* The payload that a sequence number has, at most 3000 octets. */
uint32_t payload_of(uint64_t seq, uint8_t *to);
/* Appends the payload of that number, waiting for room. */
int append(struct ag_wal *wal, uint64_t expected);
/* Every record from 1 on, whole and in order; returns the last. */
uint64_t check_records(void);

#endif
