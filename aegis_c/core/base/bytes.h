/* Fixed-width integers to and from octets, and checked size arithmetic. */
#ifndef AG_BASE_BYTES_H
#define AG_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void
ag_put_u16be(uint8_t *to, uint16_t v)
{
    to[0] = (uint8_t)(v >> 8);
    to[1] = (uint8_t)v;
}

static inline uint16_t
ag_get_u16be(const uint8_t *from)
{
    return (uint16_t)((uint16_t)(from[0] << 8) | from[1]);
}

static inline void
ag_put_u32be(uint8_t *to, uint32_t v)
{
    to[0] = (uint8_t)(v >> 24);
    to[1] = (uint8_t)(v >> 16);
    to[2] = (uint8_t)(v >> 8);
    to[3] = (uint8_t)v;
}

static inline uint32_t
ag_get_u32be(const uint8_t *from)
{
    return (uint32_t)from[0] << 24 | (uint32_t)from[1] << 16 | (uint32_t)from[2] << 8 |
           (uint32_t)from[3];
}

static inline void
ag_put_u64be(uint8_t *to, uint64_t v)
{
    ag_put_u32be(to, (uint32_t)(v >> 32));
    ag_put_u32be(to + 4, (uint32_t)v);
}

static inline void
ag_put_u16le(uint8_t *to, uint16_t v)
{
    to[0] = (uint8_t)v;
    to[1] = (uint8_t)(v >> 8);
}

static inline uint16_t
ag_get_u16le(const uint8_t *from)
{
    return (uint16_t)(from[0] | (uint16_t)(from[1] << 8));
}

static inline void
ag_put_u32le(uint8_t *to, uint32_t v)
{
    to[0] = (uint8_t)v;
    to[1] = (uint8_t)(v >> 8);
    to[2] = (uint8_t)(v >> 16);
    to[3] = (uint8_t)(v >> 24);
}

static inline uint32_t
ag_get_u32le(const uint8_t *from)
{
    return (uint32_t)from[3] << 24 | (uint32_t)from[2] << 16 | (uint32_t)from[1] << 8 |
           (uint32_t)from[0];
}

static inline void
ag_put_u64le(uint8_t *to, uint64_t v)
{
    ag_put_u32le(to, (uint32_t)v);
    ag_put_u32le(to + 4, (uint32_t)(v >> 32));
}

static inline uint64_t
ag_get_u64le(const uint8_t *from)
{
    return (uint64_t)ag_get_u32le(from + 4) << 32 | ag_get_u32le(from);
}

/* True and *sum = a + b when it fits, else false and *sum is unspecified. */
static inline bool
ag_add_size(size_t a, size_t b, size_t *sum)
{
    return !__builtin_add_overflow(a, b, sum);
}

static inline bool
ag_mul_size(size_t a, size_t b, size_t *product)
{
    return !__builtin_mul_overflow(a, b, product);
}

#endif
