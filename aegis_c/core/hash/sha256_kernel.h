/* The seam between SHA-256 and the code that a CPU runs it with: private to core/hash.
 *
 * A kernel is one constant struct. `blocks` is the compression function over whole
 * blocks of one message; the two batch forms hash the fixed shapes of an RFC 6962 tree
 * and exist because several independent short messages hide the latency of one. A wider
 * kernel is one more struct and one more line in the list of sha256.c. */
#ifndef AG_HASH_SHA256_KERNEL_H
#define AG_HASH_SHA256_KERNEL_H

#include <stddef.h>
#include <stdint.h>

struct ag_sha256_kernel {
    const char *name;
    /* Takes `count` blocks of 64 octets into `state`. */
    void (*blocks)(uint32_t state[8], const uint8_t *data, size_t count);
};

extern const uint32_t ag_sha256_k[64];
extern const uint32_t ag_sha256_iv[8];

void ag_sha256_blocks_portable(uint32_t state[8], const uint8_t *data, size_t count);

#endif
