// threads: none
/* Proofs against RFC 6962 by recursion, and the golden vectors. */
#include "base/status.h"
#include "check.h"
#include "log/proof.h"

#define LEAVES 300

typedef uint8_t hash[AG_HASH_SIZE];

static uint64_t seed;
static hash leaves[LEAVES];
static long asked; /* nodes that were asked for */

/* MTH(D[first:first+n]) of RFC 6962 section 2.1. */
static void
slow_root(uint64_t first, uint64_t n, hash out)
{
    if (n == 0) {
        ag_sha256(NULL, 0, out);
    } else if (n == 1) {
        memcpy(out, leaves[first], AG_HASH_SIZE);
    } else {
        uint64_t k = 1;
        while (2 * k < n) {
            k *= 2;
        }
        hash left, right;
        slow_root(first, k, left);
        slow_root(first + k, n - k, right);
        ag_node_hash(left, right, out);
    }
}

static uint64_t size_now; /* of the tree that a call may ask for nodes of */

static int
slow_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    (void)ctx;
    ASSERT_LE_U((index + 1) << height, size_now); /* lies wholly inside */
    asked++;
    slow_root(index << height, (uint64_t)1 << height, out);
    return AG_OK;
}

static int
failing_node(void *ctx, unsigned height, uint64_t index, uint8_t out[AG_HASH_SIZE])
{
    long *left = ctx;
    return --*left == 0 ? AG_EIO : slow_node(NULL, height, index, out);
}

static const uint8_t (*as_const(uint8_t (*proof)[AG_HASH_SIZE]))
    [AG_HASH_SIZE] { return (const uint8_t (*)[AG_HASH_SIZE])proof; }

static void make_leaves(void)
{
    for (uint64_t i = 0; i < LEAVES; i++) {
        ag_leaf_hash(&i, sizeof(i), leaves[i]);
    }
}

static void
roots(void)
{
    hash expected, found;
    for (uint64_t n = 0; n <= LEAVES; n++) {
        size_now = n;
        slow_root(0, n, expected);
        ASSERT_EQ(ag_tree_root(n, slow_node, NULL, found), AG_OK);
        ASSERT_EQ_MEM(found, expected, AG_HASH_SIZE);
    }
}

static void
inclusion(void)
{
    hash proof[AG_PROOF_MAX], root;
    for (uint64_t n = 1; n <= LEAVES; n += n < 70 ? 1 : 23) {
        size_now = n;
        slow_root(0, n, root);
        for (uint64_t i = 0; i < n; i++) {
            size_t count = 99;
            ASSERT_EQ(ag_inclusion_proof(i, n, slow_node, NULL, proof, &count), AG_OK);
            ASSERT_EQ_U(count, ag_inclusion_proof_count(i, n));
            ASSERT_EQ(
                ag_verify_inclusion(leaves[i], i, n, root, as_const(proof), count),
                AG_OK);
            if (count > 0) {
                size_t which = check_random(&seed) % count;
                proof[which][check_random(&seed) % 32] ^=
                    (uint8_t)(1 << check_random(&seed) % 8);
                ASSERT_EQ(
                    ag_verify_inclusion(leaves[i], i, n, root, as_const(proof), count),
                    AG_EVERIFY);
            }
        }
        size_t count = 99;
        ASSERT_EQ(ag_inclusion_proof(n, n, slow_node, NULL, proof, &count), AG_ERANGE);
        ASSERT_EQ_U(count, 99);
    }
    ASSERT_EQ(ag_inclusion_proof(0, 0, slow_node, NULL, proof, &(size_t){0}),
              AG_ERANGE);
}

static void
consistency(void)
{
    hash proof[AG_PROOF_MAX], old_root, new_root;
    for (uint64_t n = 0; n <= LEAVES; n += n < 70 ? 1 : 23) {
        size_now = n;
        slow_root(0, n, new_root);
        for (uint64_t m = 0; m <= n; m++) {
            size_t count = 99;
            slow_root(0, m, old_root);
            ASSERT_EQ(ag_consistency_proof(m, n, slow_node, NULL, proof, &count),
                      AG_OK);
            ASSERT_EQ_U(count, ag_consistency_proof_count(m, n));
            ASSERT_EQ(
                ag_verify_consistency(m, n, old_root, new_root, as_const(proof), count),
                AG_OK);
            if (count > 0) {
                size_t which = check_random(&seed) % count;
                proof[which][check_random(&seed) % 32] ^=
                    (uint8_t)(1 << check_random(&seed) % 8);
                ASSERT_EQ(ag_verify_consistency(m, n, old_root, new_root,
                                                as_const(proof), count),
                          AG_EVERIFY);
            }
        }
        ASSERT_EQ(ag_consistency_proof(n + 1, n, slow_node, NULL, proof, &(size_t){0}),
                  AG_ERANGE);
    }
}

/* A source of nodes that fails at any point ends the call with its status. */
static void
node_failures_are_passed_on(void)
{
    hash proof[AG_PROOF_MAX], root;
    size_t count = 99;
    size_now = 299;
    for (long at = 1;; at++) {
        long left = at;
        int status = ag_tree_root(299, failing_node, &left, root);
        left = at;
        int included = ag_inclusion_proof(5, 299, failing_node, &left, proof, &count);
        left = at;
        int consistent =
            ag_consistency_proof(77, 299, failing_node, &left, proof, &count);
        if (status == AG_OK && included == AG_OK && consistent == AG_OK) {
            ASSERT_LT(4, at);
            break;
        }
        ASSERT(status == AG_OK || status == AG_EIO);
        ASSERT(included == AG_OK || included == AG_EIO);
        ASSERT(consistent == AG_OK || consistent == AG_EIO);
    }
}

/* --- the golden vectors --- */

static void
read_hex(const char *word, uint8_t *out, size_t *n)
{
    *n = 0;
    for (; word[0] != '-' && word[2 * *n] != '\0'; (*n)++) {
        unsigned octet;
        ASSERT_EQ(sscanf(word + 2 * *n, "%2x", &octet), 1);
        out[*n] = (uint8_t)octet;
    }
}

static char *
next_word(void)
{
    char *word = strtok(NULL, " \n");
    ASSERT_NOT_NULL(word);
    return word;
}

static uint64_t
next_number(void)
{
    return strtoull(next_word(), NULL, 10);
}

static void
next_hash(hash out)
{
    size_t n;
    read_hex(next_word(), out, &n);
    ASSERT_EQ_U(n, AG_HASH_SIZE);
}

static void
check_proof_line(bool inclusion_line)
{
    static hash proof[200];
    hash first, second;
    bool good = strcmp(next_word(), "ok") == 0;
    uint64_t a = next_number(), b = next_number();
    next_hash(first);
    next_hash(second);
    size_t count = (size_t)next_number();
    ASSERT_LE_U(count, 200);
    for (size_t i = 0; i < count; i++) {
        next_hash(proof[i]);
    }
    int status =
        inclusion_line
            ? ag_verify_inclusion(first, a, b, second, as_const(proof), count)
            : ag_verify_consistency(a, b, first, second, as_const(proof), count);
    if (good) {
        ASSERT_EQ(status, AG_OK);
    } else {
        ASSERT_EQ(status, a > b || (inclusion_line && a == b) ? AG_ERANGE : AG_EVERIFY);
    }
}

static void
golden_vectors(void)
{
    static char line[1 << 16];
    uint8_t octets[256];
    hash expected, found, left, right;
    size_t entries = 0, lines = 0, n;
    FILE *file = fopen("tests/vectors/tree.txt", "r");
    ASSERT_NOT_NULL(file);
    while (fgets(line, sizeof(line), file) != NULL) {
        if (line[0] == '#') {
            continue;
        }
        lines++;
        const char *kind = strtok(line, " \n");
        if (strcmp(kind, "leaf") == 0) {
            read_hex(next_word(), octets, &n);
            next_hash(expected);
            ag_leaf_hash(octets, n, found);
            ASSERT_EQ_MEM(found, expected, AG_HASH_SIZE);
        } else if (strcmp(kind, "node") == 0) {
            next_hash(left);
            next_hash(right);
            next_hash(expected);
            ag_node_hash(left, right, found);
            ASSERT_EQ_MEM(found, expected, AG_HASH_SIZE);
        } else if (strcmp(kind, "entry") == 0) {
            read_hex(next_word(), octets, &n);
            ag_leaf_hash(octets, n, leaves[entries++]);
        } else if (strcmp(kind, "root") == 0) {
            size_now = next_number();
            next_hash(expected);
            ASSERT_EQ(ag_tree_root(size_now, slow_node, NULL, found), AG_OK);
            ASSERT_EQ_MEM(found, expected, AG_HASH_SIZE);
        } else {
            check_proof_line(strcmp(kind, "inclusion") == 0);
        }
    }
    ASSERT_EQ(fclose(file), 0);
    ASSERT_LT_U(800, lines);
    make_leaves();
}

int
main(void)
{
    seed = check_seed(1);
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    make_leaves();
    RUN(roots);
    RUN(inclusion);
    RUN(consistency);
    RUN(node_failures_are_passed_on);
    RUN(golden_vectors);
    ASSERT_LT(0, asked);
    return 0;
}
