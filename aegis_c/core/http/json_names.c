#include "http/json_names.h"

#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "base/status.h"

struct ag_json_table {
    size_t mask; /* number of slots - 1, a power of two */
    size_t used;
    uint32_t slots[]; /* 0: free, else index in the object + 1 */
};

void
ag_json_names_init(struct ag_json_names *names, struct ag_siphash_key key)
{
    names->members = names->few;
    names->count = 0;
    names->room = AG_JSON_NAMES_INLINE;
    names->key = key;
}

void
ag_json_names_free(struct ag_json_names *names)
{
    if (names->members != names->few) {
        ag_free(names->members);
    }
}

void
ag_json_table_free(struct ag_json_table *table)
{
    ag_free(table);
}

static int
names_grow(struct ag_json_names *names)
{
    size_t bytes;
    if (!ag_mul_size(names->room, 2 * sizeof(*names->members), &bytes)) {
        return AG_ENOMEM;
    }
    struct ag_json_member *old = names->members != names->few ? names->members : NULL;
    struct ag_json_member *larger = ag_realloc(old, bytes);
    if (larger == NULL) {
        return AG_ENOMEM;
    }
    if (old == NULL) {
        memcpy(larger, names->few, sizeof(names->few));
    }
    names->members = larger;
    names->room *= 2;
    return AG_OK;
}

static bool
is_same(const struct ag_json_member *a, const struct ag_json_member *b)
{
    return a->mark == b->mark && a->size == b->size &&
           memcmp(a->text, b->text, a->size) == 0;
}

/* Puts the object's member number `index` into the table, which has room. True when an
 * equal one is there. */
static bool
table_put(struct ag_json_table *table, const struct ag_json_member *object,
          size_t index)
{
    size_t slot = object[index].mark & table->mask;
    while (table->slots[slot] != 0) {
        if (is_same(&object[table->slots[slot] - 1], &object[index])) {
            return true;
        }
        slot = (slot + 1) & table->mask;
    }
    table->slots[slot] = (uint32_t)(index + 1);
    table->used++;
    return false;
}

/* A table of twice the size, or the first, with `count` members of the object in it. */
static int
table_grow(struct ag_json_table **table, const struct ag_json_member *object,
           size_t count)
{
    size_t slots = *table != NULL ? 2 * ((*table)->mask + 1) : 4 * AG_JSON_FEW;
    size_t bytes;
    if (count >= UINT32_MAX || !ag_mul_size(slots, sizeof(uint32_t), &bytes) ||
        !ag_add_size(bytes, sizeof(struct ag_json_table), &bytes)) {
        return AG_ENOMEM;
    }
    struct ag_json_table *larger = ag_calloc(1, bytes);
    if (larger == NULL) {
        return AG_ENOMEM;
    }
    larger->mask = slots - 1;
    for (size_t i = 0; i < count; i++) {
        (void)table_put(larger, object, i);
    }
    ag_free(*table);
    *table = larger;
    return AG_OK;
}

int
ag_json_names_push(struct ag_json_names *names, size_t first,
                   struct ag_json_table **table, const uint8_t *text, size_t size,
                   uint64_t mark, bool *twice)
{
    if (names->count == names->room && names_grow(names) != AG_OK) {
        return AG_ENOMEM;
    }
    struct ag_json_member *object = names->members + first;
    size_t index = names->count++ - first;
    struct ag_json_member *member = object + index;
    *member = (struct ag_json_member){text, size, mark};
    *twice = false;
    if (index < AG_JSON_FEW) {
        for (size_t i = 0; i < index; i++) {
            if (is_same(&object[i], member)) {
                *twice = true;
                return AG_OK;
            }
        }
        return AG_OK;
    }
    if (*table == NULL) { /* the names so far get their hashes */
        for (size_t i = 0; i < index; i++) {
            object[i].mark = ag_siphash13(names->key, object[i].text, object[i].size);
        }
    }
    if ((*table == NULL || 2 * (*table)->used > (*table)->mask) &&
        table_grow(table, object, index) != AG_OK) {
        return AG_ENOMEM;
    }
    member->mark = ag_siphash13(names->key, text, size);
    *twice = table_put(*table, object, index);
    return AG_OK;
}
