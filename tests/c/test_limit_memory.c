// threads: none
// links: alloc_fault scratch
/* Every allocation of the limiters fails once: AG_ENOMEM, nothing lost, nothing left.
 */
#include "alloc_fault.h"
#include "check.h"
#include "limit/concurrency.h"
#include "limit/limit.h"
#include "scratch.h"

static char path[512];

/* Opens, with the time of another boot when `moment` is given; the status. */
static int
open_limits(const struct ag_moment *moment)
{
    struct ag_table *t = NULL;
    struct ag_error err;
    struct ag_table_options options = {.path = path, .slots = 64, .now = moment};
    int status = ag_table_open(&options, &t, &err);
    if (status == AG_OK) {
        ag_table_close(t);
    }
    return status;
}

static void
table(void)
{
    const struct ag_moment boots[] = {{{1}, 1, 1}, {{2}, 2, 2}};
    for (int again = 0; again < 2; again++) { /* a new file, then one to be re-based */
        long failures = 0;
        for (;; failures++) {
            ag_test_fail_alloc_at(failures + 1);
            int status = open_limits(&boots[again]);
            ag_test_fail_alloc_at(0);
            ASSERT_EQ(ag_test_live_blocks(), 0);
            if (status == AG_OK) {
                break;
            }
            ASSERT_EQ(status, AG_ENOMEM);
        }
        ASSERT_EQ(failures, again == 0 ? 3 : 4);
    }
}

static void
concurrency(void)
{
    struct ag_concurrency_options options = {.slots = 16, .workers = 1};
    struct ag_concurrency *c = NULL;
    struct ag_error err;
    int64_t lease = -1;
    ag_test_fail_alloc_at(1);
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_ENOMEM);
    ag_test_fail_alloc_at(0);
    ASSERT_EQ(ag_concurrency_open(&options, &c, &err), AG_OK);
    uint64_t tag = ag_concurrency_tag(c, "k", 1);
    ag_test_fail_every_alloc(1);
    ASSERT_EQ(ag_concurrency_enter(c, tag, 100, &lease, &err), AG_ENOMEM);
    ASSERT_EQ_U(ag_concurrency_count(c, tag), 0);
    ag_test_fail_every_alloc(0);
    for (int i = 0; i < 64; i++) {
        ASSERT_EQ(ag_concurrency_enter(c, tag, 100, &lease, &err), AG_OK);
        ASSERT_LT(0, lease);
    }
    ag_test_fail_every_alloc(1); /* the block of leases is full */
    int64_t none = -1;
    ASSERT_EQ(ag_concurrency_enter(c, tag, 100, &none, &err), AG_ENOMEM);
    ASSERT_EQ_U(ag_concurrency_count(c, tag), 64);
    ASSERT(ag_concurrency_leave(c, lease));
    ag_test_fail_every_alloc(0);
    ag_concurrency_close(c);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

int
main(void)
{
    char dir[256];
    scratch_make(dir);
    (void)scratch_path(path, dir, "table");
    RUN(table);
    RUN(concurrency);
    scratch_remove(dir);
    return 0;
}
