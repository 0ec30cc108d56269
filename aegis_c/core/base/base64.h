/* Standard base64 with padding (RFC 4648 section 4). Any thread. */
#ifndef AG_BASE_BASE64_H
#define AG_BASE_BASE64_H

#include <stddef.h>
#include <stdint.h>

/* Characters that n octets need, without a NUL. */
#define AG_BASE64_SIZE(n) (((n) + 2) / 3 * 4)

/* Writes AG_BASE64_SIZE(n) characters and no NUL; returns their number. */
size_t ag_base64_encode(char *to, const uint8_t *from, size_t n);

/* Strict: padded, no white space, unused bits zero. Writes at most n / 4 * 3 octets.
 * AG_OK or AG_EINVAL. */
int ag_base64_decode(uint8_t *to, size_t *to_n, const char *from, size_t n);

#endif
