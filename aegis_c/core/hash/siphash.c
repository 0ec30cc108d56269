#include "hash/siphash.h"

#include "base/bytes.h"

struct state {
    uint64_t v0, v1, v2, v3;
};

static inline uint64_t
rotate(uint64_t x, unsigned n)
{
    return x << n | x >> (64 - n);
}

static inline void
round_of(struct state *s)
{
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = rotate(s->v1, 13) ^ s->v0;
    s->v3 = rotate(s->v3, 16) ^ s->v2;
    s->v0 = rotate(s->v0, 32);
    s->v2 += s->v1;
    s->v0 += s->v3;
    s->v1 = rotate(s->v1, 17) ^ s->v2;
    s->v3 = rotate(s->v3, 21) ^ s->v0;
    s->v2 = rotate(s->v2, 32);
}

uint64_t
ag_siphash13(struct ag_siphash_key key, const void *bytes, size_t n)
{
    const uint8_t *next = bytes;
    struct state s = {
        key.k0 ^ UINT64_C(0x736f6d6570736575), key.k1 ^ UINT64_C(0x646f72616e646f6d),
        key.k0 ^ UINT64_C(0x6c7967656e657261), key.k1 ^ UINT64_C(0x7465646279746573)};
    uint64_t last = (uint64_t)n << 56;
    for (size_t words = n / 8; words > 0; words--, next += 8) {
        uint64_t m = ag_get_u64le(next);
        s.v3 ^= m;
        round_of(&s);
        s.v0 ^= m;
    }
    for (size_t i = 0; i < n % 8; i++) {
        last |= (uint64_t)next[i] << (8 * i);
    }
    s.v3 ^= last;
    round_of(&s);
    s.v0 ^= last;
    s.v2 ^= 0xff;
    round_of(&s);
    round_of(&s);
    round_of(&s);
    return s.v0 ^ s.v1 ^ s.v2 ^ s.v3;
}
