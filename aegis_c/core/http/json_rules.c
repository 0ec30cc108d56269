#include "http/json_rules.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"

#define FIRST_SLOTS 8

/* FNV-1a: the names are ours, so nobody can choose ones that collide. */
static size_t
slot_of(const struct ag_json_node *node, const uint8_t *text, size_t size)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < size; i++) {
        h = (h ^ text[i]) * 16777619u;
    }
    return (h ^ h >> 15) & node->mask;
}

static size_t
probe(const struct ag_json_node *node, const uint8_t *text, size_t size)
{
    size_t i = slot_of(node, text, size);
    while (node->slots[i] != NULL && (node->slots[i]->size != size ||
                                      memcmp(node->slots[i]->text, text, size) != 0)) {
        i = (i + 1) & node->mask;
    }
    return i;
}

const struct ag_json_name *
ag_json_rules_find(const struct ag_json_node *node, const uint8_t *text, size_t size)
{
    if (node->count == 0 || size > AG_JSON_NAME_MAX) {
        return NULL;
    }
    return node->slots[probe(node, text, size)];
}

/* Every code point outside ASCII whose full case folding is ASCII alone. */
static const struct {
    uint8_t octets[4];
    char folded[4];
} foldings[] = {
    {"\xc3\x9f", "ss"},      /* U+00DF sharp s */
    {"\xc5\xbf", "s"},       /* U+017F long s */
    {"\xe1\xba\x9e", "ss"},  /* U+1E9E capital sharp s */
    {"\xe2\x84\xaa", "k"},   /* U+212A Kelvin sign */
    {"\xef\xac\x80", "ff"},  /* U+FB00 to U+FB06: ligatures */
    {"\xef\xac\x81", "fi"},  /* */
    {"\xef\xac\x82", "fl"},  /* */
    {"\xef\xac\x83", "ffi"}, /* */
    {"\xef\xac\x84", "ffl"}, /* */
    {"\xef\xac\x85", "st"},  /* */
    {"\xef\xac\x86", "st"},  /* */
};

/* The folding of the character at `text`, or NULL when it is not ASCII; *used octets.
 */
static const char *
folding_of(const uint8_t *text, size_t size, size_t *used)
{
    for (size_t i = 0; i < sizeof(foldings) / sizeof(foldings[0]); i++) {
        size_t n = foldings[i].octets[2] != 0 ? 3 : 2;
        if (n <= size && memcmp(foldings[i].octets, text, n) == 0) {
            *used = n;
            return foldings[i].folded;
        }
    }
    return NULL;
}

const struct ag_json_name *
ag_json_rules_find_folded(const struct ag_json_node *node, const uint8_t *text,
                          size_t size)
{
    uint8_t folded[AG_JSON_NAME_MAX];
    size_t n = 0, i = 0;
    while (i < size) {
        char one[2] = {(char)text[i], '\0'};
        const char *to = one;
        size_t used = 1;
        if (text[i] >= 'A' && text[i] <= 'Z') {
            one[0] = (char)(text[i] | 0x20);
        } else if (text[i] >= 0x80) {
            to = folding_of(text + i, size - i, &used);
        }
        if (to == NULL || to[0] == '\0' || n + strlen(to) > sizeof(folded)) {
            return NULL;
        }
        for (; *to != '\0'; to++) {
            folded[n++] = (uint8_t)*to;
        }
        i += used;
    }
    return ag_json_rules_find(node, folded, n);
}

/* Twice as many slots, or the first. AG_ENOMEM changes nothing. */
static int
node_grow(struct ag_json_node *node)
{
    size_t slots = node->mask != 0 ? 2 * (node->mask + 1) : FIRST_SLOTS;
    struct ag_json_node larger = *node;
    larger.mask = slots - 1;
    larger.slots = ag_calloc(slots, sizeof(*larger.slots));
    if (larger.slots == NULL) {
        return AG_ENOMEM;
    }
    for (size_t i = 0; node->mask != 0 && i <= node->mask; i++) {
        struct ag_json_name *name = node->slots[i];
        if (name != NULL) {
            larger.slots[probe(&larger, name->text, name->size)] = name;
        }
    }
    ag_free(node->slots);
    *node = larger;
    return AG_OK;
}

static bool
is_name(const char *text, size_t size)
{
    if (size == 0 || size > AG_JSON_NAME_MAX) {
        return false;
    }
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c <= ' ' || c >= 0x7f || (c >= 'A' && c <= 'Z') || strchr(".[]", c)) {
            return false;
        }
    }
    return true;
}

/* The name at `node`, made when it is not there. */
static int
node_name(struct ag_json_node *node, const char *text, size_t size,
          struct ag_json_name **out, struct ag_error *err)
{
    if (!is_name(text, size)) {
        return ag_fail(err, AG_EINVAL,
                       "governed names and paths are made of 1 to %d printable ASCII "
                       "characters without capitals, not '%.*s'",
                       AG_JSON_NAME_MAX, (int)(size < 80 ? size : 80), text);
    }
    const uint8_t *octets = (const uint8_t *)text;
    if (4 * node->count >= node->mask && node_grow(node) != AG_OK) {
        return ag_fail(err, AG_ENOMEM, "out of memory");
    }
    size_t slot = probe(node, octets, size);
    if (node->slots[slot] == NULL) {
        struct ag_json_name *name = ag_calloc(1, sizeof(*name));
        if (name == NULL) {
            return ag_fail(err, AG_ENOMEM, "out of memory");
        }
        memcpy(name->text, text, size);
        name->size = size;
        node->slots[slot] = name; /* takes ownership */
        node->count++;
    }
    *out = node->slots[slot];
    return AG_OK;
}

static int
make_node(struct ag_json_node **place, struct ag_error *err)
{
    if (*place == NULL) {
        *place = ag_calloc(1, sizeof(**place));
        if (*place == NULL) {
            return ag_fail(err, AG_ENOMEM, "out of memory");
        }
    }
    return AG_OK;
}

int
ag_json_rules_add(struct ag_json_rules *rules, const char *path, const char *name,
                  struct ag_error *err)
{
    struct ag_json_node *node = &rules->document;
    struct ag_json_name *member = NULL;
    int status = AG_OK;
    const char *at = path;
    while (*at != '\0') {
        if (strncmp(at, "[]", 2) == 0) {
            status = make_node(&node->elements, err);
            node = node->elements;
            at += 2;
            at += *at == '.' && at[1] != '\0' && at[1] != '[';
        } else {
            size_t size = strcspn(at, ".[");
            status = node_name(node, at, size, &member, err);
            if (status == AG_OK) {
                status = make_node(&member->value, err);
                node = member->value;
            }
            at += size;
            at += *at == '.' && at[1] != '\0' && at[1] != '[';
        }
        if (status != AG_OK) {
            return status;
        }
    }
    return node_name(node, name, strlen(name), &member, err);
}

int
ag_json_rules_new(struct ag_json_rules **out, struct ag_error *err)
{
    struct ag_json_rules *rules = ag_calloc(1, sizeof(*rules));
    if (rules == NULL) {
        return ag_fail(err, AG_ENOMEM, "out of memory");
    }
    if (getrandom(&rules->key, sizeof(rules->key), 0) != sizeof(rules->key)) {
        int status = ag_fail_sys(err, errno, "", "getrandom");
        ag_free(rules);
        return status;
    }
    *out = rules;
    return AG_OK;
}

/* Paths are as deep as the caller wrote them, so this recursion is as well. */
static void
node_clear(struct ag_json_node *node)
{
    for (size_t i = 0; node->mask != 0 && i <= node->mask; i++) {
        struct ag_json_name *name = node->slots[i];
        if (name != NULL && name->value != NULL) {
            node_clear(name->value);
            ag_free(name->value);
        }
        ag_free(name);
    }
    ag_free(node->slots);
    if (node->elements != NULL) {
        node_clear(node->elements);
        ag_free(node->elements);
    }
}

void
ag_json_rules_free(struct ag_json_rules *rules)
{
    if (rules != NULL) {
        node_clear(&rules->document);
        ag_free(rules);
    }
}
