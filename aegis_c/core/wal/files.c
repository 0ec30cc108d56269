#include "wal/files.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/bytes.h"
#include "wal/format.h"

uint8_t *
ag_wal_buffer(size_t n)
{
    /* The pointer that ag_alloc gave lies just before the aligned part. */
    size_t size;
    if (!ag_add_size(n, AG_WAL_BLOCK + sizeof(void *), &size)) {
        return NULL;
    }
    uint8_t *block = ag_alloc(size);
    if (block == NULL) {
        return NULL;
    }
    uintptr_t start = (uintptr_t)block + sizeof(void *) + AG_WAL_BLOCK - 1;
    uint8_t *aligned = block + (start / AG_WAL_BLOCK * AG_WAL_BLOCK - (uintptr_t)block);
    memcpy(aligned - sizeof(void *), &block, sizeof(void *));
    return aligned;
}

void
ag_wal_buffer_free(uint8_t *buffer)
{
    if (buffer != NULL) {
        uint8_t *block;
        memcpy(&block, buffer - sizeof(void *), sizeof(void *));
        ag_free(block);
    }
}

int
ag_wal_path(char *to, const char *dir, const char *name, struct ag_error *err)
{
    int n = snprintf(to, AG_WAL_PATH, "%s/%s", dir, name);
    if (n < 0 || n >= AG_WAL_PATH) {
        return ag_fail_sys(err, ENAMETOOLONG, dir, "open");
    }
    return AG_OK;
}

int
ag_wal_segment_path(char *to, const char *dir, uint32_t segment_no,
                    struct ag_error *err)
{
    char name[40];
    (void)snprintf(name, sizeof(name), "wal-%016" PRIx32 ".seg", segment_no);
    return ag_wal_path(to, dir, name, err);
}

uint32_t
ag_wal_segment_number(const char *name)
{
    if (strlen(name) != 24 || memcmp(name, "wal-", 4) != 0 ||
        memcmp(name + 20, ".seg", 4) != 0) {
        return 0;
    }
    uint64_t number = 0;
    for (int i = 4; i < 20; i++) {
        char c = name[i];
        uint64_t digit = 0;
        if (c >= '0' && c <= '9') {
            digit = (uint64_t)(c - '0');
        } else if (c >= 'a' && c <= 'f') {
            digit = (uint64_t)(c - 'a') + 10;
        } else {
            return 0;
        }
        number = number << 4 | digit;
    }
    return number <= UINT32_MAX ? (uint32_t)number : 0;
}
