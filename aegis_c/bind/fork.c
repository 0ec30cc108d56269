#include "fork.h"

#include <Python.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

/* Changed only in a child between fork and its first instruction of ours. */
static atomic_uint forks;
static pthread_once_t watch_once = PTHREAD_ONCE_INIT;
static int watch_errno;

static void
count_fork(void)
{
    atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
}

static void
watch(void)
{
    watch_errno = pthread_atfork(NULL, NULL, count_fork);
}

int
agpy_fork_watch(void)
{
    int failed = pthread_once(&watch_once, watch);
    errno = failed != 0 ? failed : watch_errno;
    if (errno != 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

unsigned
agpy_fork_count(void)
{
    return atomic_load_explicit(&forks, memory_order_relaxed);
}
