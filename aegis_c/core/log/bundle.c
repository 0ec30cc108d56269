#include "log/bundle.h"

#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"

int
ag_bundle_add(struct ag_bundle *bundle, const uint8_t *entry, size_t n)
{
    size_t needed = bundle->used + 2 + n;
    if (needed > bundle->room) {
        size_t room = needed + needed / 2;
        uint8_t *larger = ag_realloc(bundle->bytes, room);
        if (larger == NULL) {
            return AG_ENOMEM;
        }
        bundle->bytes = larger;
        bundle->room = room;
    }
    bundle->start[bundle->count++] = bundle->used;
    ag_put_u16be(bundle->bytes + bundle->used, (uint16_t)n);
    memcpy(bundle->bytes + bundle->used + 2, entry, n);
    bundle->used = needed;
    return AG_OK;
}

void
ag_bundle_drop_last(struct ag_bundle *bundle)
{
    bundle->used = bundle->start[--bundle->count];
}

int
ag_bundle_next(const uint8_t *bytes, size_t n, size_t *offset, const uint8_t **entry,
               size_t *entry_n, struct ag_error *err)
{
    size_t left = n - *offset;
    size_t length = left >= 2 ? ag_get_u16be(bytes + *offset) : 0;
    if (left < 2 || left - 2 < length) {
        return ag_fail(err, AG_ECORRUPT, "entry bundle ends early, at byte %zu",
                       *offset);
    }
    *entry = bytes + *offset + 2;
    *entry_n = length;
    *offset += 2 + length;
    return AG_OK;
}

int
ag_bundle_check(const uint8_t *bytes, size_t n, size_t first, size_t count,
                const uint8_t *hashes, size_t *bad)
{
    size_t offset = 0;
    for (size_t i = 0; i < first + count; i++) {
        const uint8_t *entry = NULL;
        uint8_t leaf[AG_HASH_SIZE];
        size_t entry_n = 0;
        *bad = i > first ? i : first;
        if (ag_bundle_next(bytes, n, &offset, &entry, &entry_n, NULL) != AG_OK) {
            return AG_ECORRUPT;
        }
        if (i >= first) {
            ag_leaf_hash(entry, entry_n, leaf);
            if (memcmp(leaf, hashes + (i - first) * AG_HASH_SIZE, AG_HASH_SIZE) != 0) {
                return AG_ECORRUPT;
            }
        }
    }
    return AG_OK;
}
