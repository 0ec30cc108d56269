#include "alloc_fault.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/alloc.h"

static atomic_long live, calls;
static atomic_long fail_in; /* allocations until the one that fails; 0: none */
static atomic_bool fail_all;

/* No test needs more, and a sanitizer ends the program at what malloc would refuse. */
#define SIZE_LIMIT ((size_t)1 << 36)

static bool
must_fail(size_t size)
{
    atomic_fetch_add(&calls, 1);
    if (size > SIZE_LIMIT || atomic_load(&fail_all)) {
        return true;
    }
    long left = atomic_load(&fail_in);
    while (left > 0 && !atomic_compare_exchange_weak(&fail_in, &left, left - 1)) {
    }
    return left == 1;
}

static void *
counted(void *block)
{
    if (block != NULL) {
        atomic_fetch_add(&live, 1);
    }
    return block;
}

void *
ag_alloc(size_t size)
{
    return must_fail(size) ? NULL : counted(malloc(size != 0 ? size : 1));
}

void *
ag_calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) || must_fail(bytes)) {
        return NULL;
    }
    return counted(count != 0 && size != 0 ? calloc(count, size) : calloc(1, 1));
}

void *
ag_realloc(void *block, size_t size)
{
    if (must_fail(size)) {
        return NULL;
    }
    void *moved = realloc(block, size != 0 ? size : 1);
    return block == NULL ? counted(moved) : moved;
}

void
ag_free(void *block)
{
    if (block != NULL) {
        atomic_fetch_sub(&live, 1);
        free(block);
    }
}

void
ag_test_fail_alloc_at(long n)
{
    atomic_store(&fail_in, n);
}

void
ag_test_fail_every_alloc(int on)
{
    atomic_store(&fail_all, on != 0);
}

long
ag_test_live_blocks(void)
{
    return atomic_load(&live);
}

long
ag_test_alloc_calls(void)
{
    return atomic_load(&calls);
}
