/* The allocator of a test: counts blocks, fails on demand. A program with the line
 * `links: alloc_fault` has it in place of base/alloc.c. Any thread. */
#ifndef ALLOC_FAULT_H
#define ALLOC_FAULT_H

/* Makes the n-th allocation from now on fail (1: the next one), once. 0: none. */
void ag_test_fail_alloc_at(long n);

/* Makes every allocation fail while on. */
void ag_test_fail_every_alloc(int on);

/* Blocks that were allocated and not yet freed. */
long ag_test_live_blocks(void);

/* Calls that allocated or tried to, since the start. */
long ag_test_alloc_calls(void);

#endif
