/* The seam between SHA-256 and the code that a CPU runs it with: private to core/hash.
 *
 * A kernel is one constant struct. `blocks` is the compression function over whole
 * blocks of one message; the others take several independent messages at once, because
 * that hides the latency of one. A wider kernel is one more struct and one more line in
 * ag_sha256_kernels_built; it is only ever used where it passed its self-test. */
#ifndef AG_HASH_SHA256_KERNEL_H
#define AG_HASH_SHA256_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "hash/sha256.h"

struct ag_sha256_kernel {
    const char *name;
    unsigned lanes; /* messages that it takes in step, at most AG_SHA256_LANES_MAX */
    bool (*runs_here)(void);
    /* Takes `count` blocks of 64 octets into `state`. */
    void (*blocks)(uint32_t state[8], const uint8_t *data, size_t count);
    /* The same for `lanes` messages in step: `count` blocks of each. */
    void (*blocks_in_step)(uint32_t (*states)[8], const uint8_t *const *data,
                           size_t count);
    /* The same for two messages: in step where that is faster, else one by one. */
    void (*blocks_of_two)(uint32_t (*states)[8], const uint8_t *const *data,
                          size_t count);
    /* RFC 6962 node of two children that lie anywhere; `out` may be one of them. */
    void (*node)(const uint8_t *left, const uint8_t *right, uint8_t *out);
    /* Nodes of adjacent pairs of children; `out` may be `children`. */
    void (*nodes)(const uint8_t *children, size_t pairs, uint8_t *out);
    /* RFC 6962 leaves of entries that are 32 octets each. */
    void (*leaves32)(const struct ag_span *entries, size_t count, uint8_t *out);
};

#define AG_SHA256_LANES_MAX 4

/* AG_PORTABLE, defined by whoever builds, leaves out what only some CPUs have. */
#if defined(__x86_64__) && !defined(AG_PORTABLE)
#define AG_SHA256_SHANI
#endif

extern const uint32_t ag_sha256_k[64];
extern const uint32_t ag_sha256_iv[8];

/* W + K of the second block of a node, by its only variable octet: the last one of the
 * right child. Filled by ag_sha256_rows_fill, before any kernel that reads it runs. */
extern uint32_t ag_sha256_rows[256][64];
void ag_sha256_rows_fill(void);

/* All kernels of this build, narrowest first; the first is the portable one. */
extern const struct ag_sha256_kernel *const ag_sha256_kernels_built[];
extern const size_t ag_sha256_kernels_count;

/* Digests that do not come from us; 0 or a negative status. */
typedef int (*ag_sha256_oracle)(const void *data, size_t n, uint8_t out[32]);
int ag_sha256_openssl(const void *data, size_t n, uint8_t out[32]);

/* Compares every function of a kernel with the oracle, at all block boundaries, on
 * unaligned data and with all 256 rows: AG_OK, AG_ECRYPTO when a digest differs or the
 * oracle fails. */
int ag_sha256_self_test(const struct ag_sha256_kernel *kernel, ag_sha256_oracle oracle);

/* The fastest of `count` kernels, of those that run here and pass: narrower wins unless
 * the wider one is measured to be faster. NULL when none passes. `passed[i]` and
 * `ns[i]` (per node of a batch) are written for each. */
const struct ag_sha256_kernel *
ag_sha256_select(const struct ag_sha256_kernel *const *kernels, size_t count,
                 ag_sha256_oracle oracle, bool *passed, double *ns);

/* ag_leaf_hash_spans with this kernel. */
void ag_sha256_leaves(const struct ag_sha256_kernel *kernel,
                      const struct ag_span *entries, size_t count, uint8_t *out);

/* The work of ag_sha256_run. */
void ag_sha256_run_kernel(const struct ag_sha256_kernel *kernel, bool leaves,
                          size_t count);
int ag_sha256_run_openssl(bool leaves, size_t count);

extern const struct ag_sha256_kernel ag_sha256_portable;
#if defined(AG_SHA256_SHANI)
extern const struct ag_sha256_kernel ag_sha256_shani_x1;
extern const struct ag_sha256_kernel ag_sha256_shani_x2;
extern const struct ag_sha256_kernel ag_sha256_shani_x4;
#endif

#endif
