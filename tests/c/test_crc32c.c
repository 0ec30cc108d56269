// threads: none
/* CRC-32C against a bit-by-bit twin, in pieces, unaligned and at page ends. */
#include <stdbool.h>

#include "check.h"
#include "guard_pages.h"
#include "hash/crc32c.h"

static uint64_t seed;

static uint32_t
slow_crc(uint32_t crc, const uint8_t *from, size_t n)
{
    crc = ~crc;
    for (size_t i = 0; i < n; i++) {
        crc ^= from[i];
        for (int bit = 0; bit < 8; bit++) {
            crc = crc >> 1 ^ (0x82f63b78u & (0u - (crc & 1)));
        }
    }
    return ~crc;
}

static void
published_vectors(void)
{
    /* RFC 3720 appendix B.4 */
    uint8_t data[32];
    ASSERT_EQ_U(ag_crc32c(0, "123456789", 9), 0xe3069283);
    memset(data, 0, sizeof(data));
    ASSERT_EQ_U(ag_crc32c(0, data, 32), 0x8a9136aa);
    memset(data, 0xff, sizeof(data));
    ASSERT_EQ_U(ag_crc32c(0, data, 32), 0x62a8ab43);
    for (int i = 0; i < 32; i++) {
        data[i] = (uint8_t)i;
    }
    ASSERT_EQ_U(ag_crc32c(0, data, 32), 0x46dd794e);
    ASSERT_EQ_U(ag_crc32c(0, NULL, 0), 0);
    ASSERT_EQ_U(ag_crc32c(0x12345678, NULL, 0), 0x12345678);
    ASSERT_EQ_U(ag_crc32c_mask(0), 0xa282ead8);
}

static void
all_lengths_at_page_ends(void)
{
    struct guard_pages guard = guard_pages_make(3);
    size_t most = 3 * guard.page;
    for (size_t i = 0; i < most; i++) {
        guard.begin[i] = (uint8_t)check_random(&seed);
    }
    for (size_t n = 0; n <= most; n += n < 1300 ? 1 : 97) {
        uint32_t begin = (uint32_t)check_random(&seed);
        const uint8_t *last = guard.end - n;
        uint32_t expected = slow_crc(begin, last, n);
        ASSERT_EQ_U(ag_crc32c(begin, last, n), expected);
        ASSERT_EQ_U(ag_crc32c_portable(begin, last, n), expected);
        ASSERT_EQ_U(ag_crc32c(begin, guard.begin, n), slow_crc(begin, guard.begin, n));
    }
    guard_pages_free(&guard);
}

static void
in_pieces(void)
{
    uint8_t data[9000];
    for (size_t i = 0; i < sizeof(data); i++) {
        data[i] = (uint8_t)check_random(&seed);
    }
    for (int round = 0; round < 200; round++) {
        size_t from = check_random(&seed) % 64, cut = check_random(&seed) % 8000;
        size_t n = cut + check_random(&seed) % (sizeof(data) - from - cut);
        uint32_t whole = ag_crc32c(0, data + from, n);
        uint32_t first = ag_crc32c(0, data + from, cut);
        ASSERT_EQ_U(ag_crc32c(first, data + from + cut, n - cut), whole);
    }
}

/* A wrong fast kernel would not be used, so the others would not see it. */
static void
the_fast_kernel_runs_where_it_can(void)
{
    bool can = false;
#if defined(__x86_64__) && !defined(AG_PORTABLE)
    can = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
#endif
    ASSERT_EQ_STR(ag_crc32c_kernel(), can ? "sse4.2 x3" : "portable");
}

int
main(void)
{
    seed = check_seed(1);
    RUN(published_vectors);
    RUN(all_lengths_at_page_ends);
    RUN(in_pieces);
    RUN(the_fast_kernel_runs_where_it_can);
    return 0;
}
