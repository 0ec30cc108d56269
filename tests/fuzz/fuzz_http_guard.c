/* libFuzzer target: the request guard. However a connection's bytes are cut, the same
 * messages come through and the same fault is found. */
#include <stdlib.h>
#include <string.h>

#include "http/request_guard.h"

#define MUST(condition)                                                                \
    do {                                                                               \
        if (!(condition)) {                                                            \
            abort();                                                                   \
        }                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

struct seen {
    uint8_t *passed; /* as large as the input */
    size_t size, complete, messages;
};

/* Feeds pieces of `step` octets, each in memory of its own; the guard's last status. */
static int
run(struct ag_guard *guard, const uint8_t *data, size_t n, size_t step,
    struct seen *seen)
{
    int status = AG_OK;
    for (size_t at = 0; at < n && status == AG_OK; at += step) {
        size_t size = n - at < step ? n - at : step, done = 0;
        uint8_t *piece = malloc(size);
        MUST(piece != NULL);
        memcpy(piece, data + at, size);
        while (done < size && status == AG_OK) {
            struct ag_guard_piece out;
            size_t used = 0;
            status = ag_guard_next(guard, piece + done, size - done, &used, &out);
            MUST(status == AG_OK || status == AG_EVERIFY);
            if (status == AG_OK) {
                MUST(used > 0 && used <= size - done);
                MUST(seen->size + out.size <= n);
                memcpy(seen->passed + seen->size, out.data, out.size);
                seen->size += out.size;
                if (out.last) {
                    seen->complete = seen->size;
                    seen->messages++;
                }
            }
            done += used;
        }
        free(piece);
    }
    return status;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const size_t steps[] = {SIZE_MAX / 2, 1, 7};
    struct ag_guard_options options = {1024, 10, n % 2 == 1};
    struct ag_guard first = {0};
    struct seen seen[3] = {{0}};
    int status = AG_OK;
    for (size_t i = 0; i < 3; i++) {
        struct ag_guard guard;
        seen[i].passed = malloc(n > 0 ? n : 1);
        MUST(seen[i].passed != NULL);
        ag_guard_init(&guard, &options);
        int now = run(&guard, data, n, steps[i], &seen[i]);
        ag_guard_clear(&guard);
        if (i == 0) {
            first = guard;
            status = now;
            continue;
        }
        MUST(now == status && guard.fault == first.fault);
        MUST(guard.offset == first.offset && guard.offset <= n);
        MUST(seen[i].messages == seen[0].messages);
        MUST(seen[i].complete == seen[0].complete);
        MUST(memcmp(seen[i].passed, seen[0].passed, seen[0].complete) == 0);
    }
    for (size_t i = 0; i < 3; i++) {
        free(seen[i].passed);
    }
    return 0;
}
