#include "hash/sha256.h"

#include <string.h>

#include "base/bytes.h"
#include "hash/sha256_kernel.h"

void
ag_sha256_init(struct ag_sha256 *ctx)
{
    memcpy(ctx->state, ag_sha256_iv, sizeof(ctx->state));
    ctx->length = 0;
}

void
ag_sha256_update(struct ag_sha256 *ctx, const void *data, size_t n)
{
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
        ag_sha256_blocks_portable(ctx->state, ctx->block, 1);
    }
    ag_sha256_blocks_portable(ctx->state, from, n / 64);
    from += n & ~(size_t)63;
    if ((n & 63) != 0) {
        memcpy(ctx->block, from, n & 63);
    }
}

void
ag_sha256_final(struct ag_sha256 *ctx, uint8_t out[AG_HASH_SIZE])
{
    size_t held = (size_t)(ctx->length & 63);
    ctx->block[held++] = 0x80;
    if (held > 56) {
        memset(ctx->block + held, 0, 64 - held);
        ag_sha256_blocks_portable(ctx->state, ctx->block, 1);
        held = 0;
    }
    memset(ctx->block + held, 0, 56 - held);
    ag_put_u64be(ctx->block + 56, ctx->length << 3);
    ag_sha256_blocks_portable(ctx->state, ctx->block, 1);
    for (int i = 0; i < 8; i++) {
        ag_put_u32be(out + 4 * i, ctx->state[i]);
    }
}

void
ag_sha256(const void *data, size_t n, uint8_t out[AG_HASH_SIZE])
{
    struct ag_sha256 ctx;
    ag_sha256_init(&ctx);
    ag_sha256_update(&ctx, data, n);
    ag_sha256_final(&ctx, out);
}

void
ag_hmac_init(struct ag_hmac *ctx, const void *key, size_t n)
{
    uint8_t pad[64] = {0};
    if (n > sizeof(pad)) {
        ag_sha256(key, n, pad);
    } else if (n > 0) {
        memcpy(pad, key, n);
    }
    for (size_t i = 0; i < sizeof(pad); i++) {
        pad[i] ^= 0x36;
    }
    ag_sha256_init(&ctx->inner);
    ag_sha256_update(&ctx->inner, pad, sizeof(pad));
    for (size_t i = 0; i < sizeof(pad); i++) {
        pad[i] ^= 0x36 ^ 0x5c;
    }
    ag_sha256_init(&ctx->outer);
    ag_sha256_update(&ctx->outer, pad, sizeof(pad));
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
ag_leaf_hash(const void *entry, size_t n, uint8_t out[AG_HASH_SIZE])
{
    struct ag_sha256 ctx;
    ag_sha256_init(&ctx);
    ag_sha256_update(&ctx, "\x00", 1);
    ag_sha256_update(&ctx, entry, n);
    ag_sha256_final(&ctx, out);
}

void
ag_node_hash(const uint8_t left[AG_HASH_SIZE], const uint8_t right[AG_HASH_SIZE],
             uint8_t out[AG_HASH_SIZE])
{
    struct ag_sha256 ctx;
    ag_sha256_init(&ctx);
    ag_sha256_update(&ctx, "\x01", 1);
    ag_sha256_update(&ctx, left, AG_HASH_SIZE);
    ag_sha256_update(&ctx, right, AG_HASH_SIZE);
    ag_sha256_final(&ctx, out);
}

void
ag_leaf_hash_many(const uint8_t *entries, size_t entry_size, size_t count, uint8_t *out)
{
    for (size_t i = 0; i < count; i++) {
        ag_leaf_hash(entries + i * entry_size, entry_size, out + i * AG_HASH_SIZE);
    }
}

void
ag_node_hash_level(const uint8_t *children, size_t pairs, uint8_t *out)
{
    for (size_t i = 0; i < pairs; i++) {
        const uint8_t *pair = children + 2 * i * AG_HASH_SIZE;
        ag_node_hash(pair, pair + AG_HASH_SIZE, out + i * AG_HASH_SIZE);
    }
}
