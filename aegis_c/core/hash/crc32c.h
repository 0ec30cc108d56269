/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): SSE4.2 where the CPU has it, else
 * tables. Any thread. */
#ifndef AG_HASH_CRC32C_H
#define AG_HASH_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC of the octets that `crc` covers followed by `data`; start with 0. */
uint32_t ag_crc32c(uint32_t crc, const void *data, size_t n);

/* The same by tables alone, to compare with; and the name of what ag_crc32c runs. */
uint32_t ag_crc32c_portable(uint32_t crc, const void *data, size_t n);
const char *ag_crc32c_kernel(void);

/* Stored CRCs are masked, because payloads may themselves hold CRCs. */
static inline uint32_t
ag_crc32c_mask(uint32_t crc)
{
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

#endif
