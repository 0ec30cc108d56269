#include "base/sync.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "base/clock.h"

#if defined(__linux__)
#include <sys/eventfd.h>
#endif

int
ag_cond_init(pthread_cond_t *cond)
{
#if defined(__APPLE__)
    return pthread_cond_init(cond, NULL);
#else
    pthread_condattr_t attributes;
    int result = pthread_condattr_init(&attributes);
    if (result == 0) {
        result = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        if (result == 0) {
            result = pthread_cond_init(cond, &attributes);
        }
        (void)pthread_condattr_destroy(&attributes);
    }
    return result;
#endif
}

void
ag_cond_wait_until(pthread_cond_t *cond, pthread_mutex_t *lock, uint64_t deadline_ns)
{
    if (deadline_ns == UINT64_MAX) {
        (void)pthread_cond_wait(cond, lock);
        return;
    }
#if defined(__APPLE__)
    uint64_t now = ag_clock_ns();
    struct timespec left = ag_clock_at(deadline_ns > now ? deadline_ns - now : 0);
    (void)pthread_cond_timedwait_relative_np(cond, lock, &left);
#else
    struct timespec at = ag_clock_at(deadline_ns);
    (void)pthread_cond_timedwait(cond, lock, &at);
#endif
}

int
ag_wakeup_open(struct ag_wakeup *wakeup)
{
#if defined(__linux__)
    int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    wakeup->read_fd = wakeup->write_fd = fd;
    return fd >= 0 ? 0 : errno;
#else
    int fds[2] = {-1, -1};
    wakeup->read_fd = wakeup->write_fd = -1;
    if (pipe(fds) != 0) {
        return errno;
    }
    for (int i = 0; i < 2; i++) {
        (void)fcntl(fds[i], F_SETFL, O_NONBLOCK);
        (void)fcntl(fds[i], F_SETFD, FD_CLOEXEC);
    }
    wakeup->read_fd = fds[0];
    wakeup->write_fd = fds[1];
    return 0;
#endif
}

void
ag_wakeup_close(struct ag_wakeup *wakeup)
{
    if (wakeup->read_fd >= 0) {
        (void)close(wakeup->read_fd);
    }
    if (wakeup->write_fd >= 0 && wakeup->write_fd != wakeup->read_fd) {
        (void)close(wakeup->write_fd);
    }
    wakeup->read_fd = wakeup->write_fd = -1;
}

void
ag_wakeup_signal(const struct ag_wakeup *wakeup)
{
    uint64_t one = 1;
    ssize_t put = 0;
    do {
        put = write(wakeup->write_fd, &one, sizeof(one));
    } while (put < 0 && errno == EINTR);
}

void
ag_wakeup_clear(const struct ag_wakeup *wakeup)
{
    uint8_t drained[64]; /* an eventfd gives 8 octets and takes any larger buffer */
    ssize_t got = 0;
    do {
        got = read(wakeup->read_fd, drained, sizeof(drained));
    } while ((got < 0 && errno == EINTR) || got == (ssize_t)sizeof(drained));
}
