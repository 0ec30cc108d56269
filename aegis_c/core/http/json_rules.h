/* Which members of a document are governed: names by the place where they count.
 *
 * A place is a path: "" is the document itself, "messages[]" each element of its member
 * `messages`, "messages[].content[]" each element of their `content`. A tree of nodes,
 * one per place, built once and only read afterwards, so any number of threads may scan
 * with the same rules. */
#ifndef AG_HTTP_JSON_RULES_H
#define AG_HTTP_JSON_RULES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "hash/siphash.h"

#define AG_JSON_NAME_MAX 64 /* octets of a governed name */

struct ag_json_node;

struct ag_json_name {
    uint8_t text[AG_JSON_NAME_MAX];
    size_t size;
    struct ag_json_node *value; /* owned; what the member holds, or NULL */
};

/* One place: as an object it has names, as an array its elements are one place. */
struct ag_json_node {
    struct ag_json_name **slots; /* owned; open addressing, NULL: free */
    size_t mask;                 /* number of slots - 1, a power of two; 0: no slots */
    size_t count;
    struct ag_json_node *elements; /* owned, or NULL */
};

struct ag_json_rules {
    struct ag_json_node document;
    struct ag_siphash_key key; /* random: for the tables of names of a scan */
};

/* New rules that govern nothing. AG_ENOMEM, AG_EIO. */
int ag_json_rules_new(struct ag_json_rules **out, struct ag_error *err);

/* Governs `name` at `path`, and the members that the path itself names. Owner thread,
 * before the first scan. AG_EINVAL: a name must be 1 to AG_JSON_NAME_MAX printable
 * ASCII octets without capitals, '.', '[' and ']'. */
int ag_json_rules_add(struct ag_json_rules *rules, const char *path, const char *name,
                      struct ag_error *err);

void ag_json_rules_free(struct ag_json_rules *rules); /* NULL is allowed */

/* The governed name at `node` that is `text` octet for octet, or NULL. Any thread. */
const struct ag_json_name *ag_json_rules_find(const struct ag_json_node *node,
                                              const uint8_t *text, size_t size);

/* The governed name at `node` that `text` (valid UTF-8) becomes under full Unicode case
 * folding, or NULL; the name itself folds to itself. Any thread. */
const struct ag_json_name *ag_json_rules_find_folded(const struct ag_json_node *node,
                                                     const uint8_t *text, size_t size);

#endif
