#include "base/process.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

/* A page of its own, which reads as zeros in a forked child; NULL when there is none.
 */
static _Atomic uint64_t *page;
static _Atomic uint64_t given; /* so many numbers, in this line of forks */
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void
make_page(void)
{
    size_t n = (size_t)sysconf(_SC_PAGESIZE);
    void *made =
        mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) {
        return;
    }
    if (madvise(made, n, MADV_WIPEONFORK) != 0) {
        (void)munmap(made, n);
        return;
    }
    page = made;
}

uint64_t
ag_process(void)
{
    (void)pthread_once(&once, make_page);
    if (page == NULL) {
        return (uint64_t)getpid();
    }
    uint64_t number = atomic_load_explicit(page, memory_order_relaxed);
    if (number == 0) {
        uint64_t mine = atomic_fetch_add(&given, 1) + 1;
        /* Of two threads that come first, one gives the number. */
        number = atomic_compare_exchange_strong(page, &number, mine) ? mine : number;
    }
    return number;
}
