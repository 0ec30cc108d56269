#include "hash/sha256.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__SSE2__) && !defined(AG_PORTABLE)
#include <emmintrin.h>
#endif

#include "base/bytes.h"
#include "base/status.h"
#include "hash/sha256_kernel.h"

/* --- the kernel in use --- */

const struct ag_sha256_kernel *const ag_sha256_kernels_built[] = {
    &ag_sha256_portable,
#if defined(AG_SHA256_SHANI)
    &ag_sha256_shani_x1,
    &ag_sha256_shani_x2,
    &ag_sha256_shani_x4,
#endif
};

#define KERNELS (sizeof(ag_sha256_kernels_built) / sizeof(ag_sha256_kernels_built[0]))

const size_t ag_sha256_kernels_count = KERNELS;

/* Until ag_sha256_start this is the portable kernel. Stored once, with release, after
 * the tables that the new kernel reads are complete; loaded with acquire. */
static _Atomic(const struct ag_sha256_kernel *) active = &ag_sha256_portable;

/* Written once, under start_once. */
static pthread_once_t start_once = PTHREAD_ONCE_INIT;
static int start_status;
static bool start_passed[KERNELS];
static double start_ns[KERNELS];

static inline const struct ag_sha256_kernel *
kernel(void)
{
    return atomic_load_explicit(&active, memory_order_acquire);
}

static void
start(void)
{
    ag_sha256_rows_fill();
    const struct ag_sha256_kernel *best = ag_sha256_select(
        ag_sha256_kernels_built, KERNELS, ag_sha256_openssl, start_passed, start_ns);
    if (best == NULL || !start_passed[0]) {
        start_status = AG_ECRYPTO;
        return;
    }
    atomic_store_explicit(&active, best, memory_order_release);
}

int
ag_sha256_start(void)
{
    int failed = pthread_once(&start_once, start);
    return failed != 0 ? AG_ECRYPTO : start_status;
}

size_t
ag_sha256_kernels(struct ag_kernel_info *list, size_t room)
{
    (void)ag_sha256_start();
    for (size_t i = 0; i < KERNELS && i < room; i++) {
        const struct ag_sha256_kernel *one = ag_sha256_kernels_built[i];
        list[i] = (struct ag_kernel_info){.name = one->name,
                                          .runs_here = one->runs_here(),
                                          .passed = start_passed[i],
                                          .active = one == kernel(),
                                          .node_ns = start_ns[i]};
    }
    return KERNELS;
}

int
ag_sha256_run(const char *name, bool leaves, size_t count)
{
    (void)ag_sha256_start();
    for (size_t i = 0; i < KERNELS; i++) {
        if (start_passed[i] && strcmp(ag_sha256_kernels_built[i]->name, name) == 0) {
            ag_sha256_run_kernel(ag_sha256_kernels_built[i], leaves, count);
            return AG_OK;
        }
    }
    return strcmp(name, "openssl") == 0 ? ag_sha256_run_openssl(leaves, count)
                                        : AG_ENOTFOUND;
}

/* --- messages in pieces --- */

void
ag_sha256_init(struct ag_sha256 *ctx)
{
    memcpy(ctx->state, ag_sha256_iv, sizeof(ctx->state));
    ctx->length = 0;
}

void
ag_sha256_update(struct ag_sha256 *ctx, const void *data, size_t n)
{
    const struct ag_sha256_kernel *k = kernel();
    const uint8_t *from = data;
    size_t held = (size_t)(ctx->length & 63);
    if (n == 0) {
        return; /* `data` may be NULL */
    }
    ctx->length += n;
    if (held != 0) {
        size_t take = n < 64 - held ? n : 64 - held;
        memcpy(ctx->block + held, from, take);
        from += take;
        n -= take;
        if (held + take < 64) {
            return;
        }
        k->blocks(ctx->state, ctx->block, 1);
    }
    if (n >= 64) {
        k->blocks(ctx->state, from, n / 64);
        from += n & ~(size_t)63;
        n &= 63;
    }
    if (n > 0) {
        memcpy(ctx->block, from, n);
    }
}

static void
put_digest(const uint32_t state[8], uint8_t out[AG_HASH_SIZE])
{
    for (int i = 0; i < 8; i++) {
        ag_put_u32be(out + 4 * i, state[i]);
    }
}

/* The last one or two blocks of a message, padded; returns how many. */
static size_t
pad(const struct ag_sha256 *ctx, uint8_t to[128])
{
    size_t held = (size_t)(ctx->length & 63), blocks = held < 56 ? 1 : 2;
    memcpy(to, ctx->block, held);
    to[held] = 0x80;
    memset(to + held + 1, 0, 64 * blocks - 9 - held);
    ag_put_u64be(to + 64 * blocks - 8, ctx->length << 3);
    return blocks;
}

void
ag_sha256_final(struct ag_sha256 *ctx, uint8_t out[AG_HASH_SIZE])
{
    uint8_t last[128];
    size_t blocks = pad(ctx, last);
    kernel()->blocks(ctx->state, last, blocks);
    put_digest(ctx->state, out);
}

/* `blocks` blocks of each of two messages, in step. */
static void
take_two(struct ag_sha256 *a, struct ag_sha256 *b, const uint8_t *from_a,
         const uint8_t *from_b, size_t blocks)
{
    const uint8_t *const data[2] = {from_a, from_b};
    uint32_t states[2][8];
    memcpy(states[0], a->state, sizeof(a->state));
    memcpy(states[1], b->state, sizeof(b->state));
    kernel()->blocks_of_two(states, data, blocks);
    memcpy(a->state, states[0], sizeof(a->state));
    memcpy(b->state, states[1], sizeof(b->state));
}

/* ag_sha256_update of two messages: in step as far as both have whole blocks. */
static void
update_two(struct ag_sha256 *a, struct ag_sha256 *b, struct ag_span from_a,
           struct ag_span from_b)
{
    size_t common = from_a.size < from_b.size ? from_a.size / 64 : from_b.size / 64;
    if (common > 0 && ((a->length | b->length) & 63) == 0) {
        take_two(a, b, from_a.data, from_b.data, common);
        a->length += 64 * common;
        b->length += 64 * common;
    } else {
        common = 0;
    }
    if (from_a.size > 64 * common) {
        ag_sha256_update(a, from_a.data + 64 * common, from_a.size - 64 * common);
    }
    if (from_b.size > 64 * common) {
        ag_sha256_update(b, from_b.data + 64 * common, from_b.size - 64 * common);
    }
}

static void
final_two(struct ag_sha256 *a, struct ag_sha256 *b, uint8_t out[2][AG_HASH_SIZE])
{
    uint8_t last_a[128], last_b[128];
    size_t blocks_a = pad(a, last_a), blocks_b = pad(b, last_b);
    if (blocks_a == blocks_b) {
        take_two(a, b, last_a, last_b, blocks_a);
    } else {
        kernel()->blocks(a->state, last_a, blocks_a);
        kernel()->blocks(b->state, last_b, blocks_b);
    }
    put_digest(a->state, out[0]);
    put_digest(b->state, out[1]);
}

void
ag_sha256(const void *data, size_t n, uint8_t out[AG_HASH_SIZE])
{
    struct ag_sha256 ctx;
    ag_sha256_init(&ctx);
    ag_sha256_update(&ctx, data, n);
    ag_sha256_final(&ctx, out);
}

#if defined(__SSE2__) && !defined(AG_PORTABLE) /* every x86-64 */

/* The octets 0..15 of `x` as hex digits. */
static inline __m128i
hex_digits(__m128i x)
{
    __m128i letter = _mm_cmpgt_epi8(x, _mm_set1_epi8(9));
    x = _mm_add_epi8(x, _mm_set1_epi8('0'));
    return _mm_add_epi8(x, _mm_and_si128(letter, _mm_set1_epi8('a' - '0' - 10)));
}

void
ag_hash_hex(const uint8_t hash[AG_HASH_SIZE], char out[64])
{
    const __m128i low_half = _mm_set1_epi8(15);
    for (int i = 0; i < 2; i++) {
        __m128i x = _mm_loadu_si128((const __m128i *)(hash + 16 * i));
        __m128i high = hex_digits(_mm_and_si128(_mm_srli_epi16(x, 4), low_half));
        __m128i low = hex_digits(_mm_and_si128(x, low_half));
        _mm_storeu_si128((__m128i *)(out + 32 * i), _mm_unpacklo_epi8(high, low));
        _mm_storeu_si128((__m128i *)(out + 32 * i + 16), _mm_unpackhi_epi8(high, low));
    }
}

#else

void
ag_hash_hex(const uint8_t hash[AG_HASH_SIZE], char out[64])
{
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < AG_HASH_SIZE; i++) {
        uint8_t octet = hash[i];
        out[2 * i] = digits[octet >> 4];
        out[2 * i + 1] = digits[octet & 15];
    }
}

#endif

/* --- HMAC --- */

/* The first blocks of the inner and the outer hash. */
static void
key_pads(const void *key, size_t n, uint8_t inner[64], uint8_t outer[64])
{
    uint8_t block[64] = {0};
    if (n > sizeof(block)) {
        ag_sha256(key, n, block);
    } else if (n > 0) {
        memcpy(block, key, n);
    }
    for (size_t i = 0; i < sizeof(block); i++) {
        inner[i] = block[i] ^ 0x36;
        outer[i] = block[i] ^ 0x5c;
    }
}

void
ag_hmac_init(struct ag_hmac *ctx, const void *key, size_t n)
{
    uint8_t inner[64], outer[64];
    key_pads(key, n, inner, outer);
    ag_sha256_init(&ctx->inner);
    ag_sha256_init(&ctx->outer);
    update_two(&ctx->inner, &ctx->outer, (struct ag_span){inner, 64},
               (struct ag_span){outer, 64});
}

void
ag_hmac_update(struct ag_hmac *ctx, const void *data, size_t n)
{
    ag_sha256_update(&ctx->inner, data, n);
}

void
ag_hmac_final(struct ag_hmac *ctx, uint8_t out[AG_HASH_SIZE])
{
    uint8_t digest[AG_HASH_SIZE];
    ag_sha256_final(&ctx->inner, digest);
    ag_sha256_update(&ctx->outer, digest, sizeof(digest));
    ag_sha256_final(&ctx->outer, out);
}

void
ag_hmac_init_two(struct ag_hmac ctx[2], const struct ag_span keys[2])
{
    for (int i = 0; i < 2; i++) {
        ag_hmac_init(&ctx[i], keys[i].data, keys[i].size);
    }
}

void
ag_hmac_update_two(struct ag_hmac ctx[2], const struct ag_span data[2])
{
    update_two(&ctx[0].inner, &ctx[1].inner, data[0], data[1]);
}

void
ag_hmac_final_two(struct ag_hmac ctx[2], uint8_t out[2][AG_HASH_SIZE])
{
    uint8_t digests[2][AG_HASH_SIZE];
    final_two(&ctx[0].inner, &ctx[1].inner, digests);
    update_two(&ctx[0].outer, &ctx[1].outer, (struct ag_span){digests[0], AG_HASH_SIZE},
               (struct ag_span){digests[1], AG_HASH_SIZE});
    final_two(&ctx[0].outer, &ctx[1].outer, out);
}

/* --- the two hashes of the tree --- */

/* A leaf as blocks: the prefix octet and the first 63 octets of the entry; whole blocks
 * straight from the entry; the rest with the padding. */
struct leaf {
    size_t blocks;      /* in the middle part */
    size_t tail_blocks; /* 0 when the padding is in the first block */
    uint8_t first[64];
    uint8_t tail[128];
};

static void
leaf_prepare(struct leaf *leaf, const uint8_t *entry, size_t n)
{
    uint64_t bits = ((uint64_t)n + 1) * 8;
    leaf->blocks = 0;
    leaf->tail_blocks = 0;
    leaf->first[0] = 0x00;
    if (n < 63) {
        if (n > 0) {
            memcpy(leaf->first + 1, entry, n);
        }
        leaf->first[1 + n] = 0x80;
        memset(leaf->first + 2 + n, 0, 62 - n);
        if (n <= 54) {
            ag_put_u64be(leaf->first + 56, bits);
        } else {
            memset(leaf->tail, 0, 56);
            ag_put_u64be(leaf->tail + 56, bits);
            leaf->tail_blocks = 1;
        }
        return;
    }
    memcpy(leaf->first + 1, entry, 63);
    leaf->blocks = (n - 63) / 64;
    size_t rest = (n - 63) % 64;
    leaf->tail_blocks = rest <= 55 ? 1 : 2;
    size_t end = 64 * leaf->tail_blocks;
    memcpy(leaf->tail, entry + n - rest, rest);
    leaf->tail[rest] = 0x80;
    memset(leaf->tail + rest + 1, 0, end - rest - 9);
    ag_put_u64be(leaf->tail + end - 8, bits);
}

static void
one_leaf(const struct ag_sha256_kernel *k, const uint8_t *entry, size_t n,
         uint8_t out[AG_HASH_SIZE])
{
    if (n == 32) {
        struct ag_span span = {entry, n};
        k->leaves32(&span, 1, out);
        return;
    }
    struct leaf leaf;
    uint32_t state[8];
    leaf_prepare(&leaf, entry, n);
    memcpy(state, ag_sha256_iv, sizeof(state));
    k->blocks(state, leaf.first, 1);
    if (leaf.blocks > 0) {
        k->blocks(state, entry + 63, leaf.blocks);
    }
    if (leaf.tail_blocks > 0) {
        k->blocks(state, leaf.tail, leaf.tail_blocks);
    }
    put_digest(state, out);
}

void
ag_leaf_hash(const void *entry, size_t n, uint8_t out[AG_HASH_SIZE])
{
    one_leaf(kernel(), entry, n, out);
}

/* `lanes` leaves in step as far as all of them have blocks; what one has more than the
 * shortest is done alone. */
static void
leaves_in_step(const struct ag_sha256_kernel *k, const struct ag_span *entries,
               uint8_t *out)
{
    struct leaf leaves[AG_SHA256_LANES_MAX];
    uint32_t states[AG_SHA256_LANES_MAX][8];
    const uint8_t *data[AG_SHA256_LANES_MAX] = {NULL};
    size_t common = SIZE_MAX, tail = SIZE_MAX;
    bool even = true;
    for (unsigned i = 0; i < k->lanes; i++) {
        leaf_prepare(&leaves[i], entries[i].data, entries[i].size);
        memcpy(states[i], ag_sha256_iv, sizeof(states[i]));
        data[i] = leaves[i].first;
        even = even && leaves[i].blocks == leaves[0].blocks;
        common = leaves[i].blocks < common ? leaves[i].blocks : common;
        tail = leaves[i].tail_blocks < tail ? leaves[i].tail_blocks : tail;
    }
    k->blocks_in_step(states, data, 1);
    if (common > 0) {
        for (unsigned i = 0; i < k->lanes; i++) {
            data[i] = entries[i].data + 63;
        }
        k->blocks_in_step(states, data, common);
    }
    if (even && tail > 0) {
        for (unsigned i = 0; i < k->lanes; i++) {
            data[i] = leaves[i].tail;
        }
        k->blocks_in_step(states, data, tail);
    } else {
        tail = 0;
    }
    for (unsigned i = 0; i < k->lanes; i++) {
        if (leaves[i].blocks > common) {
            k->blocks(states[i], entries[i].data + 63 + 64 * common,
                      leaves[i].blocks - common);
        }
        if (leaves[i].tail_blocks > tail) {
            k->blocks(states[i], leaves[i].tail + 64 * tail,
                      leaves[i].tail_blocks - tail);
        }
        put_digest(states[i], out + i * AG_HASH_SIZE);
    }
}

void
ag_sha256_leaves(const struct ag_sha256_kernel *k, const struct ag_span *entries,
                 size_t count, uint8_t *out)
{
    while (count > 0) {
        size_t run = 0;
        while (run < count && entries[run].size == 32) {
            run++;
        }
        if (run > 0) {
            k->leaves32(entries, run, out);
        } else if (count >= k->lanes && k->lanes > 1) {
            run = k->lanes;
            leaves_in_step(k, entries, out);
        } else {
            run = 1;
            one_leaf(k, entries[0].data, entries[0].size, out);
        }
        entries += run;
        count -= run;
        out += run * AG_HASH_SIZE;
    }
}

void
ag_leaf_hash_spans(const struct ag_span *entries, size_t count, uint8_t *out)
{
    ag_sha256_leaves(kernel(), entries, count, out);
}

void
ag_leaf_hash_many(const uint8_t *entries, size_t entry_size, size_t count, uint8_t *out)
{
    struct ag_span spans[64];
    while (count > 0) {
        size_t take = count < 64 ? count : 64;
        for (size_t i = 0; i < take; i++) {
            spans[i] = (struct ag_span){entries + i * entry_size, entry_size};
        }
        ag_leaf_hash_spans(spans, take, out);
        entries += take * entry_size;
        count -= take;
        out += take * AG_HASH_SIZE;
    }
}

void
ag_node_hash(const uint8_t left[AG_HASH_SIZE], const uint8_t right[AG_HASH_SIZE],
             uint8_t out[AG_HASH_SIZE])
{
    kernel()->node(left, right, out);
}

int
ag_node_hash_again(const uint8_t left[AG_HASH_SIZE], const uint8_t right[AG_HASH_SIZE],
                   uint8_t out[AG_HASH_SIZE])
{
    if (kernel() != &ag_sha256_portable) {
        ag_sha256_portable.node(left, right, out);
        return AG_OK;
    }
    uint8_t octets[1 + 2 * AG_HASH_SIZE] = {0x01};
    memcpy(octets + 1, left, AG_HASH_SIZE);
    memcpy(octets + 1 + AG_HASH_SIZE, right, AG_HASH_SIZE);
    return ag_sha256_openssl(octets, sizeof(octets), out);
}

void
ag_node_hash_level(const uint8_t *children, size_t pairs, uint8_t *out)
{
    kernel()->nodes(children, pairs, out);
}
