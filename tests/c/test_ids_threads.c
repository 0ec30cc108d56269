// links: scratch
/* Looking up ids beside the writer of the column, over the moments in which a tail
 * becomes a run. */
#include <pthread.h>
#include <stdatomic.h>

#include "ids_column.h"

struct reader {
    struct ag_ids *ids;
    atomic_int stop;
    _Atomic uint64_t size;
};

static void *
look_up(void *arg)
{
    struct reader *r = arg;
    uint64_t state = 5;
    while (!atomic_load(&r->stop)) {
        uint64_t size = atomic_load(&r->size);
        struct ag_found found = {0};
        struct ag_error err;
        uint8_t id[AG_UUID_SIZE];
        uint64_t i = size > 0 ? check_random(&state) % size : 0;
        id_of(i, id);
        ASSERT_EQ(ag_ids_find(&r->ids->place, size, id, &source, &found, NULL, &err),
                  AG_OK);
        bool there = size == 0 || ag_ids_is_none(id);
        for (size_t k = 0; k < found.count; k++) {
            there = there || found.index[k] == i;
        }
        ASSERT(there);
        ag_free(found.index);
    }
    return NULL;
}

static void
beside_the_writer(void)
{
    struct ag_ids ids;
    pthread_t thread;
    struct ag_error err;
    open_column(&ids, ag_io_posix(), "beside", VKEY, 0);
    struct reader reader = {.ids = &ids};
    ASSERT_EQ(pthread_create(&thread, NULL, look_up, &reader), 0);
    for (uint64_t size = 0; size < AG_IDS_RUN + 3000; size += 333) {
        grow(&ids, size, 100000);
        atomic_store(&reader.size, size);
        if (ag_ids_mendable(&ids)) {
            ASSERT_EQ(ag_ids_mend(&ids, &source, &err), AG_OK);
            ag_ids_drop_tails(&ids, size);
        }
    }
    atomic_store(&reader.stop, 1);
    ASSERT_EQ(pthread_join(thread, NULL), 0);
    ag_ids_close(&ids);
}

int
main(void)
{
    scratch_make(dir);
    make_ids();
    RUN(beside_the_writer);
    scratch_remove(dir);
    return 0;
}
