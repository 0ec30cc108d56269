#include "base/alloc.h"

#include <stdlib.h>

void *
ag_alloc(size_t size)
{
    return malloc(size != 0 ? size : 1);
}

void *
ag_calloc(size_t count, size_t size)
{
    return count != 0 && size != 0 ? calloc(count, size) : calloc(1, 1);
}

void *
ag_realloc(void *block, size_t size)
{
    return realloc(block, size != 0 ? size : 1);
}

void
ag_free(void *block)
{
    free(block);
}
