/* libFuzzer target of what reads other people's bytes in a log: the first octet chooses
 * between a signed note and an entry.
 * clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iaegis_c/core \
 *     tests/fuzz/fuzz_log.c $(find aegis_c/core -name '*.c') -lcrypto -pthread */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "log/entry.h"
#include "log/entry_schema.h"
#include "log/note.h"

#define MUST(condition)                                                                \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);            \
            abort();                                                                   \
        }                                                                              \
    } while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static struct ag_signer *signer;

static void
start(void)
{
    char folder[] = "/tmp/fuzz_log.XXXXXX", path[64];
    MUST(mkdtemp(folder) != NULL);
    (void)snprintf(path, sizeof(path), "%s/log.key", folder);
    MUST(ag_signer_open(ag_io_posix(), path, "fuzz.example/w0", 1, &signer, NULL) == 0);
    MUST(unlink(path) == 0 && rmdir(folder) == 0);
}

/* A note as it comes; and the input put in place of a part of a good one. What is
 * accepted must be signed: nobody here has the key but the note that it began as. */
static void
fuzz_note(const uint8_t *data, size_t n)
{
    static const uint8_t root[AG_HASH_SIZE] = {7};
    char good[AG_CHECKPOINT_MAX], note[AG_CHECKPOINT_MAX + 4096];
    struct ag_error err;
    uint64_t size = 0;
    uint8_t found[AG_HASH_SIZE];
    size_t good_n = 0;
    int status = ag_checkpoint_open(signer, (const char *)data, n, &size, found, &err);
    MUST(status == AG_ECORRUPT || status == AG_EFOREIGN || status == AG_EVERIFY);
    MUST(ag_checkpoint_sign(signer, 300, root, good, &good_n, &err) == AG_OK);
    if (n < 2 || n > 4096) {
        return;
    }
    size_t at = (size_t)data[0] * good_n / 256, cut = data[1] % 8;
    size_t rest = at + cut < good_n ? good_n - at - cut : 0;
    memcpy(note, good, at);
    memcpy(note + at, data + 2, n - 2);
    memcpy(note + at + n - 2, good + good_n - rest, rest);
    status = ag_checkpoint_open(signer, note, at + n - 2 + rest, &size, found, &err);
    if (status == AG_OK) { /* at most a signature of somebody else was added */
        MUST(size == 300 && memcmp(found, root, sizeof(root)) == 0);
    } else {
        MUST(status == AG_ECORRUPT || status == AG_EFOREIGN || status == AG_EVERIFY);
        MUST(err.status == status && err.what[0] != '\0');
    }
}

/* What conforms is UTF-8 in the shape {...}, with a UUID that another unit finds. */
static void
fuzz_entry(const uint8_t *data, size_t n)
{
    uint8_t id[AG_UUID_SIZE];
    uint8_t *copy = malloc(n > 0 ? n : 1);
    MUST(copy != NULL);
    memcpy(copy, data, n);
    if (ag_entry_conforms(copy, n)) {
        struct ag_error err;
        size_t start_at = 0;
        while (copy[start_at] != '{') {
            start_at++;
        }
        int status = ag_meta_check(copy + start_at, n - start_at, &err);
        MUST(status == AG_OK || status == AG_ETOOBIG);
        MUST(ag_meta_id(copy, n, id, &err) == AG_OK);
    }
    free(copy);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    if (signer == NULL) {
        start();
    }
    if (n > 0 && (data[0] & 1) != 0) {
        fuzz_note(data + 1, n - 1);
    } else if (n > 0) {
        fuzz_entry(data + 1, n - 1);
    }
    return 0;
}
