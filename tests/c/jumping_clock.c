/* A clock that an operator, or a broken time server, sets while a program runs: preload
 * it (LD_PRELOAD), and CLOCK_REALTIME is off by what the file that JUMPING_CLOCK names
 * holds, a 64-bit number of seconds. Other clocks are the real ones. Used by
 * tests/chaos.py. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;

__attribute__((constructor)) static void
map_offset(void)
{
    const char *path = getenv("JUMPING_CLOCK");
    int fd = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    void *map =
        fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
    if (fd >= 0) {
        (void)close(fd);
    }
    if (map != MAP_FAILED) {
        offset = map;
    }
}

int
clock_gettime(clockid_t clock, struct timespec *to)
{
    int status = (int)syscall(SYS_clock_gettime, clock, to);
    if (status == 0 && clock == CLOCK_REALTIME && offset != NULL) {
        to->tv_sec += *offset;
    }
    return status;
}

int
gettimeofday(struct timeval *restrict to, void *restrict zone)
{
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);
    (void)zone;
    if (status == 0) {
        *to = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    }
    return status;
}

time_t
time(time_t *to)
{
    struct timespec now = {0};
    (void)clock_gettime(CLOCK_REALTIME, &now);
    if (to != NULL) {
        *to = now.tv_sec;
    }
    return now.tv_sec;
}
