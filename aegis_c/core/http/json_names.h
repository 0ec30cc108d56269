/* The members of the objects that a scan is inside of: for each one its name, so that a
 * name given twice is noticed. A stack: an object's names lie above its parent's.
 *
 * Up to AG_JSON_FEW names of one object are compared one by one, by their length and
 * first eight octets. With more, the object gets a hash table keyed with a secret, so
 * that neither many names nor chosen ones cost more than a constant each. */
#ifndef AG_HTTP_JSON_NAMES_H
#define AG_HTTP_JSON_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hash/siphash.h"

#define AG_JSON_FEW 16
#define AG_JSON_NAMES_INLINE 64

struct ag_json_member {
    const uint8_t *text; /* borrowed: the body, or where escapes were decoded */
    size_t size;
    uint64_t mark; /* of few: the first octets; of many: the keyed hash */
};

struct ag_json_table; /* of an object with many names */

struct ag_json_names {
    struct ag_json_member *members; /* `few`, or owned */
    size_t count, room;
    struct ag_siphash_key key;
    struct ag_json_member few[AG_JSON_NAMES_INLINE];
};

void ag_json_names_init(struct ag_json_names *names, struct ag_siphash_key key);
void ag_json_names_free(struct ag_json_names *names);

/* Puts a name on the stack. `first` is the number of names below its object, `table`
 * the object's (starts as NULL, freed with ag_json_table_free). `mark`: its first up to
 * eight octets, the rest zero. *twice: the object has that name already. AG_ENOMEM. */
int ag_json_names_push(struct ag_json_names *names, size_t first,
                       struct ag_json_table **table, const uint8_t *text, size_t size,
                       uint64_t mark, bool *twice);

void ag_json_table_free(struct ag_json_table *table); /* NULL is allowed */

#endif
