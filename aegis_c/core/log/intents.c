#include "log/intents.h"

#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/status.h"

#define ROOM_FIRST 64u

int
ag_intents_reserve(struct ag_intents *intents)
{
    if (intents->count < intents->room) {
        return AG_OK;
    }
    size_t room = intents->room == 0 ? ROOM_FIRST : 2 * intents->room, bytes;
    uint64_t *larger = ag_mul_size(room, sizeof(*larger), &bytes)
                           ? ag_realloc(intents->index, bytes)
                           : NULL;
    if (larger == NULL) {
        return AG_ENOMEM;
    }
    intents->index = larger;
    intents->room = room;
    return AG_OK;
}

/* Where `index` is, or would be. */
static size_t
place_of(const struct ag_intents *intents, uint64_t index)
{
    size_t low = 0, high = intents->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (intents->index[middle] < index) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

void
ag_intents_take(struct ag_intents *intents, uint64_t index,
                const struct ag_entry_head *head)
{
    if (head->kind == AG_KIND_INTENT) {
        intents->index[intents->count++] = index;
    } else if (head->kind == AG_KIND_SETTLE && head->of < index) {
        size_t at = place_of(intents, head->of);
        if (at < intents->count && intents->index[at] == head->of) {
            intents->count--;
            memmove(intents->index + at, intents->index + at + 1,
                    (intents->count - at) * sizeof(*intents->index));
        }
    }
}

int
ag_intents_copy(const struct ag_intents *intents, struct ag_intents *to)
{
    if (intents->count == 0) {
        return AG_OK;
    }
    to->index = ag_alloc(intents->count * sizeof(*to->index));
    if (to->index == NULL) {
        return AG_ENOMEM;
    }
    memcpy(to->index, intents->index, intents->count * sizeof(*to->index));
    to->count = to->room = intents->count;
    return AG_OK;
}

void
ag_intents_free(struct ag_intents *intents)
{
    ag_free(intents->index);
    memset(intents, 0, sizeof(*intents));
}
