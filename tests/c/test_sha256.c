/* SHA-256, HMAC and the kernels: published vectors, every kernel against OpenSSL on
 * random and boundary input, unaligned and at page ends, and the choice of a kernel. */
#include <pthread.h>

#include "base/status.h"
#include "check.h"
#include "guard_pages.h"
#include "hash/sha256_kernel.h"

static uint64_t seed;

static void
fill(uint8_t *to, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        to[i] = (uint8_t)check_random(&seed);
    }
}

static void
from_hex(const char *text, uint8_t *out)
{
    for (size_t i = 0; text[2 * i] != '\0'; i++) {
        unsigned octet;
        ASSERT_EQ(sscanf(text + 2 * i, "%2x", &octet), 1);
        out[i] = (uint8_t)octet;
    }
}

static void
oracle(const void *data, size_t n, uint8_t out[32])
{
    ASSERT_EQ(ag_sha256_openssl(data, n, out), AG_OK);
}

/* --- the public functions --- */

static void
published_vectors(void)
{
    /* FIPS 180-2 appendix B, and the empty message */
    static const struct {
        const char *message, *digest;
    } cases[] = {
        {"", "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
        {"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
        {"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
         "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"},
    };
    uint8_t expected[32], found[32];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        from_hex(cases[i].digest, expected);
        ag_sha256(cases[i].message, strlen(cases[i].message), found);
        ASSERT_EQ_MEM(found, expected, 32);
    }
    static uint8_t million[1000000];
    memset(million, 'a', sizeof(million));
    from_hex("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
             expected);
    ag_sha256(million, sizeof(million), found);
    ASSERT_EQ_MEM(found, expected, 32);
}

static void
hmac_vectors(void)
{
    /* RFC 4231 cases 1, 2, 4 and 6 (a key longer than a block) */
    uint8_t key[131], message[64], expected[32], found[32];
    struct ag_hmac ctx;
    memset(key, 0x0b, 20);
    ag_hmac_init(&ctx, key, 20);
    ag_hmac_update(&ctx, "Hi There", 8);
    ag_hmac_final(&ctx, found);
    from_hex("b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
             expected);
    ASSERT_EQ_MEM(found, expected, 32);
    ag_hmac_init(&ctx, "Jefe", 4);
    ag_hmac_update(&ctx, "what do ya want ", 16);
    ag_hmac_update(&ctx, "for nothing?", 12);
    ag_hmac_final(&ctx, found);
    from_hex("5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
             expected);
    ASSERT_EQ_MEM(found, expected, 32);
    from_hex("0102030405060708090a0b0c0d0e0f10111213141516171819", key);
    memset(message, 0xcd, 50);
    ag_hmac_init(&ctx, key, 25);
    ag_hmac_update(&ctx, message, 50);
    ag_hmac_final(&ctx, found);
    from_hex("82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
             expected);
    ASSERT_EQ_MEM(found, expected, 32);
    memset(key, 0xaa, 131);
    ag_hmac_init(&ctx, key, 131);
    ag_hmac_update(&ctx, "Test Using Larger Than Block-Size Key - Hash Key First", 54);
    ag_hmac_final(&ctx, found);
    from_hex("60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
             expected);
    ASSERT_EQ_MEM(found, expected, 32);
}

static void
message_in_pieces(void)
{
    uint8_t message[700], expected[32], found[32];
    fill(message, sizeof(message));
    for (size_t n = 0; n <= sizeof(message); n += 7) {
        oracle(message, n, expected);
        struct ag_sha256 ctx;
        ag_sha256_init(&ctx);
        for (size_t at = 0; at < n;) {
            size_t take = check_random(&seed) % 150;
            take = take < n - at ? take : n - at;
            ag_sha256_update(&ctx, message + at, take);
            at += take;
        }
        ag_sha256_update(&ctx, NULL, 0);
        ag_sha256_final(&ctx, found);
        ASSERT_EQ_MEM(found, expected, 32);
    }
}

/* Leaves of all lengths, alone and among others of other lengths. */
static void
leaves_of_any_length(const struct ag_sha256_kernel *kernel)
{
    enum { LENGTHS = 420 };
    static uint8_t entries[LENGTHS][LENGTHS], found[LENGTHS * 32];
    struct ag_span spans[LENGTHS];
    uint8_t message[LENGTHS + 1], expected[LENGTHS][32];
    for (size_t n = 0; n < LENGTHS; n++) {
        fill(entries[n], n);
        message[0] = 0x00;
        memcpy(message + 1, entries[n], n);
        oracle(message, n + 1, expected[n]);
        spans[n] = (struct ag_span){n > 0 ? entries[n] : NULL, n};
        ag_sha256_leaves(kernel, &spans[n], 1, found);
        ASSERT_EQ_MEM(found, expected[n], 32);
    }
    for (size_t first = 0; first < LENGTHS; first += 13) {
        ag_sha256_leaves(kernel, spans + first, LENGTHS - first, found);
        ASSERT_EQ_MEM(found, expected[first], 32 * (LENGTHS - first));
    }
    for (int round = 0; round < 500; round++) {
        size_t picked[9];
        struct ag_span mixed[9];
        for (size_t i = 0; i < 9; i++) {
            /* often 32, often about the same number of blocks */
            uint64_t r = check_random(&seed);
            picked[i] = r % 3 == 0 ? 32 : r % 3 == 1 ? 300 + r % 40 : r % LENGTHS;
            mixed[i] = spans[picked[i]];
        }
        ag_sha256_leaves(kernel, mixed, 9, found);
        for (size_t i = 0; i < 9; i++) {
            ASSERT_EQ_MEM(found + 32 * i, expected[picked[i]], 32);
        }
    }
}

static void
leaves_of_one_size(void)
{
    static uint8_t found[70 * 32];
    uint8_t message[131] = {0x00}, one[32];
    for (size_t size = 0; size < 130; size++) {
        for (size_t count = 0; count <= 70; count += count < 10 ? 1 : 60) {
            uint8_t flat[70 * 130];
            fill(flat, size * count);
            ag_leaf_hash_many(flat, size, count, found);
            for (size_t i = 0; i < count; i++) {
                memcpy(message + 1, flat + i * size, size);
                oracle(message, size + 1, one);
                ASSERT_EQ_MEM(found + 32 * i, one, 32);
                ag_leaf_hash(flat + i * size, size, one);
                ASSERT_EQ_MEM(found + 32 * i, one, 32);
            }
        }
    }
}

static void
hex_digits(void)
{
    uint8_t octets[32];
    char text[65] = {0}, expected[65];
    for (int round = 0; round < 300; round++) {
        for (int i = 0; i < 32; i++) {
            octets[i] =
                round < 8 ? (uint8_t)(32 * round + i) : (uint8_t)check_random(&seed);
            (void)snprintf(expected + 2 * i, 3, "%02x", octets[i]);
        }
        ag_hash_hex(octets, text);
        ASSERT_EQ_STR(text, expected);
    }
}

/* --- every kernel --- */

static void
node_by_oracle(const uint8_t *left, const uint8_t *right, uint8_t out[32])
{
    uint8_t message[65] = {0x01};
    memcpy(message + 1, left, 32);
    memcpy(message + 33, right, 32);
    oracle(message, 65, out);
}

static void
leaf_by_oracle(const uint8_t *entry, uint8_t out[32])
{
    uint8_t message[33] = {0x00};
    memcpy(message + 1, entry, 32);
    oracle(message, 33, out);
}

/* Input and output end, or begin, where the memory does; all alignments. */
static void
kernel_at_page_ends(const struct ag_sha256_kernel *kernel)
{
    enum { MOST = 11 };
    struct guard_pages in = guard_pages_make(1), out = guard_pages_make(1);
    uint8_t expected[MOST * 32];
    fill(in.begin, in.page);
    for (size_t shift = 0; shift < 17; shift++) {
        for (size_t count = 0; count <= MOST; count++) {
            uint8_t *places[2][2] = {
                {in.end - 64 * count - shift, out.end - 32 * count - shift},
                {in.begin + shift, out.begin + shift},
            };
            for (int side = 0; side < 2; side++) {
                const uint8_t *from = places[side][0];
                uint8_t *to = places[side][1];
                struct ag_span spans[MOST];
                for (size_t i = 0; i < count; i++) {
                    node_by_oracle(from + 64 * i, from + 64 * i + 32,
                                   expected + 32 * i);
                }
                kernel->nodes(from, count, to);
                ASSERT_EQ_MEM(to, expected, 32 * count);
                for (size_t i = 0; i < count; i++) {
                    leaf_by_oracle(from + 64 * i + 32, expected + 32 * i);
                    spans[i] = (struct ag_span){from + 64 * i + 32, 32};
                }
                kernel->leaves32(spans, count, to);
                ASSERT_EQ_MEM(to, expected, 32 * count);
            }
        }
        uint8_t *left = in.end - 32 - shift, *right = in.begin + shift;
        node_by_oracle(left, right, expected);
        kernel->node(left, right, out.end - 32 - shift);
        ASSERT_EQ_MEM(out.end - 32 - shift, expected, 32);
        node_by_oracle(right, left, expected);
        kernel->node(right, left, out.begin + shift);
        ASSERT_EQ_MEM(out.begin + shift, expected, 32);
    }
    guard_pages_free(&in);
    guard_pages_free(&out);
}

static void
kernel_blocks_at_page_ends(const struct ag_sha256_kernel *kernel)
{
    struct guard_pages in = guard_pages_make(4);
    fill(in.begin, 4 * in.page);
    for (size_t count = 0; count <= 5; count++) {
        for (size_t shift = 0; shift < 17; shift++) {
            const uint8_t *data[AG_SHA256_LANES_MAX];
            uint32_t states[AG_SHA256_LANES_MAX][8], expected[AG_SHA256_LANES_MAX][8];
            uint32_t alone[8], two[2][8];
            for (unsigned i = 0; i < AG_SHA256_LANES_MAX; i++) {
                data[i] = i % 2 == 0 ? in.end - 64 * count - shift - 100 * i / 2
                                     : in.begin + shift + i;
                for (int j = 0; j < 8; j++) {
                    expected[i][j] = states[i][j] = (uint32_t)check_random(&seed);
                }
                ag_sha256_portable.blocks(expected[i], data[i], count);
            }
            memcpy(alone, states[0], sizeof(alone));
            kernel->blocks(alone, data[0], count);
            ASSERT_EQ_MEM(alone, expected[0], 32);
            memcpy(two, states, sizeof(two));
            kernel->blocks_of_two(two, data, count);
            ASSERT_EQ_MEM(two, expected, sizeof(two));
            kernel->blocks_in_step(states, data, count);
            ASSERT_EQ_MEM(states, expected, 32 * kernel->lanes);
        }
    }
    guard_pages_free(&in);
}

static void
kernel_on_random_levels(const struct ag_sha256_kernel *kernel)
{
    static uint8_t children[600 * 64], expected[600 * 32], found[600 * 32];
    for (int round = 0; round < 20; round++) {
        size_t pairs = 1 + check_random(&seed) % 600;
        fill(children, pairs * 64);
        for (size_t i = 0; i < pairs; i++) {
            node_by_oracle(children + 64 * i, children + 64 * i + 32,
                           expected + 32 * i);
        }
        kernel->nodes(children, pairs, found);
        ASSERT_EQ_MEM(found, expected, 32 * pairs);
        kernel->nodes(children, pairs, children); /* in place */
        ASSERT_EQ_MEM(children, expected, 32 * pairs);
    }
    uint8_t left[32], right[32], node[32];
    for (int round = 0; round < 600; round++) { /* all 256 rows, aliased outputs */
        fill(left, 32);
        fill(right, 32);
        right[31] = (uint8_t)round;
        node_by_oracle(left, right, node);
        uint8_t *out = round % 2 == 0 ? left : right;
        kernel->node(left, right, out);
        ASSERT_EQ_MEM(out, node, 32);
    }
}

static void
every_kernel(void)
{
    ag_sha256_rows_fill();
    for (size_t i = 0; i < ag_sha256_kernels_count; i++) {
        const struct ag_sha256_kernel *kernel = ag_sha256_kernels_built[i];
        if (!kernel->runs_here()) {
            fprintf(stderr, "    %s: not on this CPU\n", kernel->name);
            continue;
        }
        fprintf(stderr, "    %s\n", kernel->name);
        ASSERT_EQ(ag_sha256_self_test(kernel, ag_sha256_openssl), AG_OK);
        kernel_at_page_ends(kernel);
        kernel_blocks_at_page_ends(kernel);
        kernel_on_random_levels(kernel);
        leaves_of_any_length(kernel);
    }
}

/* --- the choice --- */

static int wrong_in; /* which function of the bad kernel is wrong */

static void
bad_blocks(uint32_t state[8], const uint8_t *data, size_t count)
{
    ag_sha256_portable.blocks(state, data, count);
    state[7] ^= wrong_in == 0 && count == 3;
}

static void
bad_blocks_in_step(uint32_t (*states)[8], const uint8_t *const *data, size_t count)
{
    ag_sha256_portable.blocks(states[0], data[0], count);
    ag_sha256_portable.blocks(states[1], data[1], count);
    states[1][0] ^= wrong_in == 1;
}

static void
bad_blocks_of_two(uint32_t (*states)[8], const uint8_t *const *data, size_t count)
{
    ag_sha256_portable.blocks_of_two(states, data, count);
    states[1][7] ^= wrong_in == 5;
}

static void
bad_node(const uint8_t *left, const uint8_t *right, uint8_t *out)
{
    uint8_t last = right[31];
    ag_sha256_portable.node(left, right, out);
    out[0] ^= wrong_in == 2 && last == 200; /* one row of 256 */
}

static void
bad_nodes(const uint8_t *children, size_t pairs, uint8_t *out)
{
    ag_sha256_portable.nodes(children, pairs, out);
    if (pairs == 7 && wrong_in == 3) { /* a tail */
        out[32 * 6] ^= 1;
    }
}

static void
bad_leaves32(const struct ag_span *entries, size_t count, uint8_t *out)
{
    ag_sha256_portable.leaves32(entries, count, out);
    if (count > 0 && wrong_in == 4) {
        out[32 * count - 1] ^= 0x80;
    }
}

static bool
yes(void)
{
    return true;
}

static bool
no(void)
{
    return false;
}

static int
failing_oracle(const void *data, size_t n, uint8_t out[32])
{
    (void)data, (void)n, (void)out;
    return AG_ECRYPTO;
}

static void
bad_kernel_is_never_chosen(void)
{
    const struct ag_sha256_kernel bad = {.name = "bad",
                                         .lanes = 2,
                                         .runs_here = yes,
                                         .blocks = bad_blocks,
                                         .blocks_in_step = bad_blocks_in_step,
                                         .blocks_of_two = bad_blocks_of_two,
                                         .node = bad_node,
                                         .nodes = bad_nodes,
                                         .leaves32 = bad_leaves32};
    const struct ag_sha256_kernel absent = {
        .name = "absent", .lanes = 2, .runs_here = no};
    const struct ag_sha256_kernel *list[] = {&bad, &ag_sha256_portable, &absent};
    bool passed[3];
    double ns[3];
    for (wrong_in = 0; wrong_in < 6; wrong_in++) {
        ASSERT_EQ(ag_sha256_self_test(&bad, ag_sha256_openssl), AG_ECRYPTO);
        ASSERT_EQ_PTR(ag_sha256_select(list, 3, ag_sha256_openssl, passed, ns),
                      &ag_sha256_portable);
        ASSERT(!passed[0] && passed[1] && !passed[2]);
        ASSERT(ns[0] == 0 && ns[1] > 0 && ns[2] == 0);
        ASSERT_NULL(ag_sha256_select(list, 1, ag_sha256_openssl, passed, ns));
    }
    ASSERT_EQ(ag_sha256_self_test(&bad, ag_sha256_openssl), AG_OK); /* nothing wrong */
    ASSERT_NULL(ag_sha256_select(list, 3, failing_oracle, passed, ns));
}

static void *
start_and_hash(void *arg)
{
    uint8_t *found = arg;
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    for (int i = 0; i < 200; i++) {
        uint8_t again[AG_HASH_SIZE];
        ASSERT_EQ(ag_node_hash_again(found, found, again), AG_OK);
        ag_node_hash(found, found, found);
        ASSERT_EQ_MEM(again, found, AG_HASH_SIZE);
    }
    return NULL;
}

static void
start_from_many_threads(void)
{
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    uint8_t found[THREADS][32] = {{0}}, expected[32] = {0};
    for (int i = 0; i < 200; i++) {
        node_by_oracle(expected, expected, expected);
    }
    for (int i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_create(&threads[i], NULL, start_and_hash, found[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        ASSERT_EQ(pthread_join(threads[i], NULL), 0);
        ASSERT_EQ_MEM(found[i], expected, 32);
    }
    struct ag_kernel_info list[16];
    size_t count = ag_sha256_kernels(list, 16), active = 0;
    ASSERT_EQ_U(count, ag_sha256_kernels_count);
    for (size_t i = 0; i < count; i++) {
        ASSERT_EQ(list[i].passed, list[i].runs_here);
        ASSERT(!list[i].active || list[i].passed);
        active += list[i].active;
    }
    ASSERT_EQ_U(active, 1);
    ASSERT_EQ_U(ag_sha256_kernels(NULL, 0), count);
    for (size_t i = 0; i < count; i++) {
        int status = list[i].passed ? AG_OK : AG_ENOTFOUND;
        ASSERT_EQ(ag_sha256_run(list[i].name, true, 300), status);
        ASSERT_EQ(ag_sha256_run(list[i].name, false, 300), status);
    }
    ASSERT_EQ(ag_sha256_run("openssl", true, 3), AG_OK);
    ASSERT_EQ(ag_sha256_run("openssl", false, 3), AG_OK);
    ASSERT_EQ(ag_sha256_run("", false, 3), AG_ENOTFOUND);
}

int
main(void)
{
    seed = check_seed(1);
    RUN(published_vectors); /* with the portable kernel: nothing has started yet */
    RUN(message_in_pieces);
    RUN(leaves_of_one_size);
    RUN(every_kernel);
    RUN(bad_kernel_is_never_chosen);
    RUN(start_from_many_threads);
    RUN(published_vectors); /* and with the chosen one */
    RUN(hmac_vectors);
    RUN(hex_digits);
    RUN(message_in_pieces);
    RUN(leaves_of_one_size);
    return 0;
}
