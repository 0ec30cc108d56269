/* libFuzzer target: the strict JSON scan. Any bytes are accepted or refused with a
 * fault inside the body; what is accepted is refused as soon as its last octets are
 * cut. */
#include <stdlib.h>
#include <string.h>

#include "http/strict_json.h"

#define MUST(condition)                                                                \
    do {                                                                               \
        if (!(condition)) {                                                            \
            abort();                                                                   \
        }                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static int
scan(const struct ag_json_rules *rules, const uint8_t *data, size_t n, size_t depth)
{
    struct ag_json_fault fault;
    uint8_t *body = malloc(n > 0 ? n : 1); /* exact, so that a read beyond it shows */
    MUST(body != NULL);
    memcpy(body, data, n);
    int status = ag_json_scan(rules, body, n, depth, &fault);
    MUST(status == AG_OK || status == AG_EVERIFY);
    if (status == AG_EVERIFY) {
        MUST(fault.offset <= n && fault.what != NULL);
        MUST(memchr(fault.path, '\0', sizeof(fault.path)) != NULL);
        MUST(memchr(fault.name, '\0', sizeof(fault.name)) != NULL);
        MUST(ag_json_code_text(fault.code) != NULL);
    }
    free(body);
    return status;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct ag_json_rules *rules = NULL;
    MUST(ag_json_rules_new(&rules, NULL) == AG_OK);
    MUST(ag_json_rules_add(rules, "", "model", NULL) == AG_OK);
    MUST(ag_json_rules_add(rules, "messages[].content[]", "type", NULL) == AG_OK);
    if (scan(rules, data, n, AG_JSON_DEPTH_MAX) == AG_OK) {
        size_t end = n;
        while (data[end - 1] != '}') {
            end--;
        }
        MUST(scan(rules, data, end, AG_JSON_DEPTH_MAX) == AG_OK);
        MUST(scan(rules, data, end - 1, AG_JSON_DEPTH_MAX) == AG_EVERIFY);
    }
    (void)scan(rules, data, n, 2);
    ag_json_rules_free(rules);
    return 0;
}
