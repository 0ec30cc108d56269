/* libFuzzer target of ag_entry_head, which reads what the ledger itself must know out
 * of any bytes that a caller submits: what comes first counts, whatever follows it;
 * what is found is what ag_meta_id finds; and nothing is read beyond the entry.
 * clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iaegis_c/core \
 *     tests/fuzz/fuzz_entry_head.c $(find aegis_c/core -name '*.c') -lcrypto -pthread
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "log/entry.h"

#define MUST(condition)                                                                \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
            abort();                                                                   \
        }                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* In a block of just this size, so that a look beyond its end is seen. */
static void
read_head(const uint8_t *data, size_t n, struct ag_entry_head *head)
{
    uint8_t *copy = malloc(n > 0 ? n : 1);
    MUST(copy != NULL);
    memcpy(copy, data, n);
    ag_entry_head(copy, n, head);
    free(copy);
}

static void
as_it_comes(const uint8_t *data, size_t n)
{
    static const uint8_t none[AG_UUID_SIZE];
    struct ag_entry_head head;
    uint8_t id[AG_UUID_SIZE];
    read_head(data, n, &head);
    MUST(head.kind == AG_KIND_OTHER || head.kind == AG_KIND_INTENT ||
         head.kind == AG_KIND_SETTLE);
    if (ag_meta_id(data, n, id, NULL) == AG_OK) {
        MUST(memcmp(id, head.id, AG_UUID_SIZE) == 0);
    } else {
        MUST(memcmp(none, head.id, AG_UUID_SIZE) == 0);
    }
}

/* Behind members that are in order. */
static void
behind_a_head(const uint8_t *data, size_t n)
{
    static const char start[] = "{\"kind\":\"settle\",\"id\":"
                                "\"01020304-0506-0708-090a-0b0c0d0e0f10\",\"of\":77,";
    struct ag_entry_head head;
    size_t start_n = sizeof(start) - 1;
    uint8_t *entry = malloc(start_n + n);
    MUST(entry != NULL);
    memcpy(entry, start, start_n);
    memcpy(entry + start_n, data, n);
    read_head(entry, start_n + n, &head);
    MUST(head.kind == AG_KIND_SETTLE && head.of == 77);
    for (unsigned i = 0; i < AG_UUID_SIZE; i++) {
        MUST(head.id[i] == i + 1);
    }
    free(entry);
}

/* Within a value that is nested, the same members are not those of the entry. */
static void
inside_a_value(const uint8_t *data, size_t n)
{
    struct ag_entry_head head;
    uint8_t entry[600];
    size_t at = 0;
    static const char start[] = "{\"usage\":[\"";
    static const char end[] = "\",{\"kind\":\"intent\",\"of\":3}]}";
    if (n > 256) {
        return;
    }
    memcpy(entry, start, sizeof(start) - 1);
    at = sizeof(start) - 1;
    for (size_t i = 0; i < n; i++) { /* any text, as a JSON string has it */
        if (data[i] == '"' || data[i] == '\\') {
            entry[at++] = '\\';
        }
        entry[at++] = data[i];
    }
    memcpy(entry + at, end, sizeof(end) - 1);
    read_head(entry, at + sizeof(end) - 1, &head);
    MUST(head.kind == AG_KIND_OTHER && head.of == UINT64_MAX);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    as_it_comes(data, n);
    behind_a_head(data, n);
    inside_a_value(data, n);
    return 0;
}
