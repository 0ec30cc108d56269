/* The ring with a call after each of its stores; takes the place of the core's. */
#define AG_RING_TRACE
#include "wal/ring.c"
