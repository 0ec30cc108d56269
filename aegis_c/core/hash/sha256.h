/* SHA-256 (FIPS 180-4), HMAC-SHA-256 (RFC 2104) and the two hashes of an RFC 6962 tree.
 *
 * Nothing here allocates or fails. The kernel is chosen once, at ag_sha256_start, from
 * those that pass a self-test on this machine. Any thread; contexts belong to one
 * caller at a time. */
#ifndef AG_HASH_SHA256_H
#define AG_HASH_SHA256_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AG_HASH_SIZE 32

/* Tests every kernel of this build against OpenSSL and puts the fastest good one to
 * use. The first call does it, the others return its result: AG_OK, or AG_ECRYPTO when
 * the portable kernel and OpenSSL disagree. */
int ag_sha256_start(void);

struct ag_kernel_info {
    const char *name; /* constant */
    bool runs_here;   /* the CPU has the instructions */
    bool passed;      /* the self-test; a kernel that did not is never used */
    bool active;
    double node_ns; /* per node of a batch, measured at start; 0 unless passed */
};

/* Writes what is known of each kernel, at most `room`, and returns how many there are.
 * Starts what has not been started. */
size_t ag_sha256_kernels(struct ag_kernel_info *list, size_t room);

/* To measure: hashes `count` nodes, or leaves of 32 octets, in batches of 128, with the
 * kernel of that name, or one by one with OpenSSL ("openssl": a fetched digest and one
 * context). AG_ENOTFOUND for a name that there is not or that did not pass. */
int ag_sha256_run(const char *name, bool leaves, size_t count);

/* Octets that lie somewhere. */
struct ag_span {
    const uint8_t *data; /* borrowed; may be NULL when size is 0 */
    size_t size;
};

struct ag_sha256 {
    uint32_t state[8];
    uint64_t length; /* octets taken so far */
    uint8_t block[64];
};

void ag_sha256_init(struct ag_sha256 *ctx);
void ag_sha256_update(struct ag_sha256 *ctx, const void *data, size_t n);
void ag_sha256_final(struct ag_sha256 *ctx, uint8_t out[AG_HASH_SIZE]);
void ag_sha256(const void *data, size_t n, uint8_t out[AG_HASH_SIZE]);

/* A hash as 64 lower-case hex digits, without a NUL. */
void ag_hash_hex(const uint8_t hash[AG_HASH_SIZE], char out[64]);

struct ag_hmac {
    struct ag_sha256 inner, outer;
};

void ag_hmac_init(struct ag_hmac *ctx, const void *key, size_t n);
void ag_hmac_update(struct ag_hmac *ctx, const void *data, size_t n);
void ag_hmac_final(struct ag_hmac *ctx, uint8_t out[AG_HASH_SIZE]);

/* The same of two messages, in step: two thirds of the time of one after the other. */
void ag_hmac_init_two(struct ag_hmac ctx[2], const struct ag_span keys[2]);
void ag_hmac_update_two(struct ag_hmac ctx[2], const struct ag_span data[2]);
void ag_hmac_final_two(struct ag_hmac ctx[2], uint8_t out[2][AG_HASH_SIZE]);

/* RFC 6962 section 2.1. leaf = SHA-256(0x00 || entry), node = SHA-256(0x01 || left ||
 * right); `out` may be the same memory as `left` or `right`. */
void ag_leaf_hash(const void *entry, size_t n, uint8_t out[AG_HASH_SIZE]);
void ag_node_hash(const uint8_t left[AG_HASH_SIZE], const uint8_t right[AG_HASH_SIZE],
                  uint8_t out[AG_HASH_SIZE]);

/* ag_node_hash with another kernel than the rest of the process uses: what is about to
 * be signed is computed a second time with it. AG_ECRYPTO when OpenSSL has to do it and
 * fails. */
int ag_node_hash_again(const uint8_t left[AG_HASH_SIZE],
                       const uint8_t right[AG_HASH_SIZE], uint8_t out[AG_HASH_SIZE]);

/* `count` leaves of `entry_size` octets each, one after the other in `entries`; writes
 * `count` hashes. */
void ag_leaf_hash_many(const uint8_t *entries, size_t entry_size, size_t count,
                       uint8_t *out);

/* The same for entries of any sizes, which lie anywhere. */
void ag_leaf_hash_spans(const struct ag_span *entries, size_t count, uint8_t *out);

/* One level of a tree: hashes `pairs` pairs of adjacent nodes of `children` (64 octets
 * a pair) into `pairs` parents. `out` may be the same memory as `children`. */
void ag_node_hash_level(const uint8_t *children, size_t pairs, uint8_t *out);

#endif
