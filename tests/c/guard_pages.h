/* A writable page between two that nobody may touch: a read or write one octet outside
 * of a buffer that ends or begins with the page ends the program. */
#ifndef GUARD_PAGES_H
#define GUARD_PAGES_H

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

struct guard_pages {
    uint8_t *map;
    uint8_t *begin, *end; /* of what may be touched */
    size_t page;
};

static inline struct guard_pages
guard_pages_make(size_t pages)
{
    struct guard_pages guard;
    guard.page = (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = guard.page * (pages + 2);
    guard.map = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ASSERT(guard.map != MAP_FAILED);
    guard.begin = guard.map + guard.page;
    guard.end = guard.begin + guard.page * pages;
    ASSERT_EQ(mprotect(guard.begin, guard.page * pages, PROT_READ | PROT_WRITE), 0);
    return guard;
}

static inline void
guard_pages_free(struct guard_pages *guard)
{
    ASSERT_EQ(munmap(guard->map, (size_t)(guard->end - guard->map) + guard->page), 0);
}

#endif
