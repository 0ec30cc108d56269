/* The allocator seam. All of the core allocates through these four functions; a test
 * program links tests/c/alloc_fault.c in place of alloc.c to count live blocks and to
 * make the n-th allocation fail. Any thread. NULL means out of memory; size 0 is
 * rounded up to 1, so that NULL never means anything else. */
#ifndef AG_BASE_ALLOC_H
#define AG_BASE_ALLOC_H

#include <stddef.h>

void *ag_alloc(size_t size);
void *ag_calloc(size_t count, size_t size); /* zeroed; checks the multiplication */
void *ag_realloc(void *block, size_t size); /* on failure `block` stays valid */
void ag_free(void *block);                  /* NULL is allowed */

#endif
