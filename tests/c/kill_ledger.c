// links: io_fault ledger_rig scratch
/* Death of the process (SIGKILL) at every I/O call of a ledger: of the first start, and
 * of opening, publishing and closing a log that grows from one death to the next. What
 * submit returned is there at the next open, in its place, and what was published still
 * holds. (Not under a sanitizer, with which a fork takes long: see tests/crash.py.) */
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "io_fault.h"
#include "ledger_rig.h"
#include "scratch.h"

/* What the child knew when it died; shared with it. */
struct told {
    _Atomic uint64_t submitted, published;
    _Atomic long calls;
};

static struct told *told;

/* The life of a child, which dies at the call of that number. */
static void
live(const char *name, long dies_at)
{
    static struct io_fault fault;
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    io_fault_init(&fault);
    fault.fail_at = dies_at;
    fault.fail_for = 1;
    fault.fail_errno = IO_FAULT_KILL;
    ASSERT_EQ(try_open(name, &fault.table, NULL, &ledger, &err), AG_OK);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 4; i++) {
            uint64_t index = 0;
            uint64_t next = atomic_load(&told->submitted);
            ASSERT_EQ(submit(ledger, next, &index, &err), AG_OK);
            ASSERT_EQ_U(index, next);
            atomic_store(&told->submitted, next + 1);
        }
        wait_published(ledger, atomic_load(&told->submitted));
        atomic_store(&told->published, atomic_load(&told->submitted));
    }
    close_ledger(ledger);
    atomic_store(&told->calls, fault.calls);
}

/* False when it came to its own end. */
static bool
dies(const char *name, long at)
{
    int status = 0;
    pid_t child = fork();
    if (child == 0) {
        live(name, at);
        _exit(0);
    }
    ASSERT_EQ(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
        ASSERT_EQ(WTERMSIG(status), SIGKILL);
        return true;
    }
    ASSERT_EQ(status, 0);
    return false;
}

/* Opens what it left. Death between the end of submit and its note counts for one. */
static void
check_left(const char *name, bool closely)
{
    struct ag_ledger *ledger = open_ledger(name);
    uint64_t size = ag_ledger_size(ledger);
    ASSERT_LE_U(told->submitted, size);
    ASSERT_LE_U(size, told->submitted + 1);
    told->submitted = size;
    check_entries(ledger, size);
    if (told->published > 0) {
        uint8_t root[AG_HASH_SIZE], expected[AG_HASH_SIZE];
        struct ag_error err;
        ASSERT_LE_U(told->published, ag_ledger_stage_size(ledger, AG_PUBLISHED));
        ASSERT_EQ(ag_ledger_root(ledger, told->published, root, &err), AG_OK);
        slow_root(0, told->published, expected);
        ASSERT_EQ_MEM(root, expected, AG_HASH_SIZE);
    }
    if (closely && size > 0) {
        check_proofs(ledger, size, 1 + size / 20);
    }
    close_ledger(ledger);
}

static void
first_start(void)
{
    long at = 0;
    do {
        char name[40];
        (void)snprintf(name, sizeof(name), "first-%ld", ++at);
        told->submitted = told->published = 0;
        if (!dies(name, at)) {
            break;
        }
        check_left(name, false);
        drop(name);
    } while (told->submitted <= 1); /* the rest is the same at every start */
    fprintf(stderr, "    %ld deaths\n", at);
    ASSERT_LT(20, at);
}

static void
one_log(void)
{
    long at = 0;
    told->submitted = told->published = told->calls = 0;
    while (dies("log", ++at)) {
        check_left("log", at % 16 == 0);
    }
    fprintf(stderr, "    %ld deaths, %" PRIu64 " entries\n", at - 1, told->submitted);
    ASSERT_LT(told->calls, at); /* it came to its end since there was no such call */
    check_left("log", true);
}

int
main(void)
{
    told = mmap(NULL, sizeof(*told), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                -1, 0);
    ASSERT(told != MAP_FAILED);
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make_in_memory(dir);
    RUN(first_start);
    RUN(one_log);
    scratch_remove(dir);
    (void)munmap(told, sizeof(*told));
    return 0;
}
