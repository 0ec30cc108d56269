/* SipHash-1-3 (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012; one
 * round a word and three at the end, as in the hash tables of CPython and Rust). Keyed:
 * who does not know the key cannot choose inputs that collide. Any thread. */
#ifndef AG_HASH_SIPHASH_H
#define AG_HASH_SIPHASH_H

#include <stddef.h>
#include <stdint.h>

struct ag_siphash_key {
    uint64_t k0, k1;
};

uint64_t ag_siphash13(struct ag_siphash_key key, const void *bytes, size_t n);

#endif
