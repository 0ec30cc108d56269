// threads: none
/* The legacy accumulators: published roots, and a twin that keeps every leaf.
 * links: alloc_fault */
#include "alloc_fault.h"
#include "base/status.h"
#include "check.h"
#include "hash/sha256.h"
#include "log/legacy_tree.h"

static void
published_roots(void)
{
    static const char *const expected[2][3] = {
        {"b7a84d0ef75f3165fa7f4b17e764e9456843f8a0dff30ef8dd7f70516bd2e883",
         "77b451fbe119447f3a75cb9c4844284965822bed15a68df43c07bf5e66ce9140",
         "1da276a388c713ff3ec7158d1df871e8b669be900259b41c2b612981249009f2"},
        {"6df17a931b8eec697fae2d7cb8f7c3b92b5572060051b827c55966993f61122c",
         "919126b01d2b59e4682b49a0ea5448d65a10c70ef5a54b9d216e93bc9e256094",
         "4e73aac8abb71c8846a8a02f1537a0c9f9a71329a023f090f6c15f65d1257e12"},
    };
    for (int scheme = 0; scheme < 2; scheme++) {
        struct ag_legacy_tree *tree = NULL;
        char root[65] = {0}, zeros[65] = {0};
        ASSERT_EQ(ag_legacy_tree_new((enum ag_legacy_scheme)scheme, &tree), AG_OK);
        ASSERT_EQ((int)ag_legacy_tree_scheme(tree), scheme);
        memset(zeros, '0', 64);
        ag_legacy_tree_root(tree, root);
        ASSERT_EQ_STR(root, zeros);
        for (int i = 0; i < 3; i++) {
            const char leaf[] = {'l', 'e', 'a', 'f', (char)('0' + i)};
            ag_legacy_tree_add(tree, leaf, sizeof(leaf));
            ag_legacy_tree_root(tree, root);
            ASSERT_EQ_STR(root, expected[scheme][i]);
            ASSERT_EQ_U(ag_legacy_tree_count(tree), i + 1);
        }
        ag_legacy_tree_free(tree);
    }
}

/* The complete subtree over `n` leaves, a power of two, from leaf `first`. */
static size_t
slow_subtree(enum ag_legacy_scheme scheme, uint64_t first, uint64_t n, uint8_t out[64])
{
    uint8_t message[130], digest[32];
    size_t used = 0;
    if (n == 1) {
        if (scheme == AG_LEGACY_V2) {
            message[used++] = 0;
        }
        memcpy(message + used, &first, sizeof(first)); /* the data of the leaf */
        used += sizeof(first);
    } else {
        if (scheme == AG_LEGACY_V2) {
            message[used++] = 1;
        }
        used += slow_subtree(scheme, first, n / 2, message + used);
        used += slow_subtree(scheme, first + n / 2, n / 2, message + used);
    }
    ag_sha256(message, used, digest);
    if (scheme == AG_LEGACY_V2) {
        memcpy(out, digest, 32);
        return 32;
    }
    for (int i = 0; i < 32; i++) {
        char two[3];
        (void)snprintf(two, sizeof(two), "%02x", digest[i]);
        memcpy(out + 2 * i, two, 2);
    }
    return 64;
}

static void
slow_root(enum ag_legacy_scheme scheme, uint64_t n, char out[65])
{
    uint8_t message[1 + 64 * 64], digest[32];
    size_t used = 0;
    uint64_t first = 0;
    if (scheme == AG_LEGACY_V2) {
        message[used++] = 2;
    }
    for (int h = 63; h >= 0; h--) {
        uint64_t width = (uint64_t)1 << h;
        if ((n & width) != 0) {
            used += slow_subtree(scheme, first, width, message + used);
            first += width;
        }
    }
    ag_sha256(message, used, digest);
    for (int i = 0; i < 32; i++) {
        (void)snprintf(out + 2 * i, 3, "%02x", digest[i]);
    }
}

static void
every_size(void)
{
    for (int scheme = 0; scheme < 2; scheme++) {
        struct ag_legacy_tree *tree = NULL;
        ASSERT_EQ(ag_legacy_tree_new((enum ag_legacy_scheme)scheme, &tree), AG_OK);
        long calls = ag_test_alloc_calls();
        for (uint64_t n = 1; n <= 600; n++) {
            char root[65] = {0}, expected[65];
            uint64_t leaf = n - 1;
            ag_legacy_tree_add(tree, &leaf, sizeof(leaf));
            if (n < 70 || n % 17 == 0 || (n & (n - 1)) == 0) {
                ag_legacy_tree_root(tree, root);
                slow_root((enum ag_legacy_scheme)scheme, n, expected);
                ASSERT_EQ_STR(root, expected);
            }
        }
        ASSERT_EQ(ag_test_alloc_calls(), calls);
        ag_legacy_tree_free(tree);
    }
    struct ag_legacy_tree *none = NULL;
    ag_test_fail_alloc_at(1);
    ASSERT_EQ(ag_legacy_tree_new(AG_LEGACY_V1, &none), AG_ENOMEM);
    ASSERT_EQ(ag_test_live_blocks(), 0);
}

int
main(void)
{
    RUN(published_roots); /* with the portable kernel */
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    RUN(published_roots);
    RUN(every_size);
    return 0;
}
