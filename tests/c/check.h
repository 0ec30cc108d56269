/* Assertions for the plain C tests: on in every build, both values printed with file
 * and line, the program ends at once with exit code 1 (a sanitizer reports with its
 * own).
 *
 * A test program is one file tests/c/test_<unit>.c with a main() that calls static test
 * functions through RUN() and returns 0. A first line like
 *     // links: alloc_fault
 * adds tests/c/alloc_fault.c, whose functions then take the place of the core's. */
#ifndef CHECK_H
#define CHECK_H

#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Runs a `static void f(void)` and names it on stderr, so that a crash shows where. */
#define RUN(f) (fprintf(stderr, "  %s\n", #f), f())

#define CHECK_FAIL(...)                                                                \
    do {                                                                               \
        fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, __func__);                  \
        fprintf(stderr, __VA_ARGS__);                                                  \
        fputc('\n', stderr);                                                           \
        exit(1);                                                                       \
    } while (0)

#define ASSERT(condition)                                                              \
    do {                                                                               \
        if (!(condition)) {                                                            \
            CHECK_FAIL("%s does not hold", #condition);                                \
        }                                                                              \
    } while (0)

#define CHECK_COMPARE(type, format, a, op, b)                                          \
    do {                                                                               \
        type check_a = (type)(a);                                                      \
        type check_b = (type)(b);                                                      \
        if (!(check_a op check_b)) {                                                   \
            CHECK_FAIL("%s %s %s, but %" format " and %" format, #a, #op, #b, check_a, \
                       check_b);                                                       \
        }                                                                              \
    } while (0)

/* Signed and unsigned integers; both sides are converted to 64 bits. */
#define ASSERT_EQ(a, b) CHECK_COMPARE(int64_t, PRId64, a, ==, b)
#define ASSERT_NE(a, b) CHECK_COMPARE(int64_t, PRId64, a, !=, b)
#define ASSERT_LT(a, b) CHECK_COMPARE(int64_t, PRId64, a, <, b)
#define ASSERT_LE(a, b) CHECK_COMPARE(int64_t, PRId64, a, <=, b)
#define ASSERT_EQ_U(a, b) CHECK_COMPARE(uint64_t, PRIu64, a, ==, b)
#define ASSERT_NE_U(a, b) CHECK_COMPARE(uint64_t, PRIu64, a, !=, b)
#define ASSERT_LT_U(a, b) CHECK_COMPARE(uint64_t, PRIu64, a, <, b)
#define ASSERT_LE_U(a, b) CHECK_COMPARE(uint64_t, PRIu64, a, <=, b)

/* Pointers; ASSERT_NULL and ASSERT_NOT_NULL take one. */
#define ASSERT_EQ_PTR(a, b) CHECK_COMPARE(const void *, "p", a, ==, b)
#define ASSERT_NULL(p) CHECK_COMPARE(const void *, "p", p, ==, NULL)
#define ASSERT_NOT_NULL(p) CHECK_COMPARE(const void *, "p", p, !=, NULL)

/* Strings; neither side may be NULL. */
#define ASSERT_EQ_STR(a, b)                                                            \
    do {                                                                               \
        const char *check_a = (a);                                                     \
        const char *check_b = (b);                                                     \
        if (strcmp(check_a, check_b) != 0) {                                           \
            CHECK_FAIL("%s == %s, but \"%s\" and \"%s\"", #a, #b, check_a, check_b);   \
        }                                                                              \
    } while (0)

/* Octets; the first difference is printed. */
#define ASSERT_EQ_MEM(a, b, n)                                                         \
    do {                                                                               \
        const uint8_t *check_a = (const uint8_t *)(a);                                 \
        const uint8_t *check_b = (const uint8_t *)(b);                                 \
        size_t check_n = (n);                                                          \
        for (size_t check_i = 0; check_i < check_n; check_i++) {                       \
            if (check_a[check_i] != check_b[check_i]) {                                \
                CHECK_FAIL("%s == %s, but octet %zu of %zu is %02x and %02x", #a, #b,  \
                           check_i, check_n, check_a[check_i], check_b[check_i]);      \
            }                                                                          \
        }                                                                              \
    } while (0)

/* The seed of a randomised test: AEGIS_TEST_SEED when set, else `fallback`. Printed, so
 * that a failure can be repeated. */
static inline uint64_t
check_seed(uint64_t fallback)
{
    const char *text = getenv("AEGIS_TEST_SEED");
    uint64_t seed = text != NULL ? strtoull(text, NULL, 0) : fallback;
    fprintf(stderr, "  AEGIS_TEST_SEED=%" PRIu64 "\n", seed);
    return seed;
}

/* SplitMix64: a small reproducible generator; advances *state. */
static inline uint64_t
check_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
