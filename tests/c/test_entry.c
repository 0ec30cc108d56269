// threads: none
/* Salts, commitments, identifiers, and the shape of a finished entry. */
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include "check.h"
#include "log/entry.h"

static const char id_text[] = "01890a5d-ac96-774b-bcce-b302099a8057";
static const uint8_t secret[32] = {1, 2, 3};

static void
openssl_hmac(const void *key, size_t key_n, const void *data, size_t n, uint8_t *out)
{
    unsigned out_n = 0;
    ASSERT_NOT_NULL(HMAC(EVP_sha256(), key, (int)key_n, data, n, out, &out_n));
    ASSERT_EQ(out_n, 32);
}

static void
commitment_equals_openssl(void)
{
    uint8_t id[AG_UUID_SIZE], label[13 + 16 + 8], salt[32], expected[32], body[5000];
    uint64_t state = check_seed(2);
    for (size_t i = 0; i < sizeof(body); i++) {
        body[i] = (uint8_t)check_random(&state);
    }
    ASSERT_EQ(ag_uuid_parse(id_text, 36, id), AG_OK);
    struct ag_hmac taken;
    ag_hmac_init(&taken, secret, sizeof(secret));
    memcpy(label, "aegis/salt/v1", 13);
    memcpy(label + 13, id, 16);
    for (int role = 0; role < 2; role++) {
        memcpy(label + 29, role == 0 ? "request" : "response", 8);
        openssl_hmac(secret, sizeof(secret), label, sizeof(label), salt);
        for (size_t n = 0; n <= sizeof(body); n += 1 + n / 3) {
            struct ag_commitment c;
            ag_commitment_init(&c, &taken, id, (enum ag_role)role);
            ASSERT_EQ_MEM(c.salt, salt, 32);
            for (size_t at = 0; at < n;) {
                size_t piece = 1 + check_random(&state) % 200;
                piece = piece < n - at ? piece : n - at;
                ASSERT_EQ(ag_commitment_update(&c, body + at, piece), AG_OK);
                at += piece;
            }
            ag_commitment_finish(&c);
            ag_commitment_finish(&c);
            openssl_hmac(salt, 32, body, n, expected);
            ASSERT_EQ_MEM(c.digest, expected, 32);
            ASSERT_EQ_U(c.octets, n);
            ASSERT_EQ(ag_commitment_update(&c, body, 1), AG_ECLOSED);
        }
    }
}

/* Both at once: as one after the other, at every end of a block. */
static void
two_commitments(void)
{
    static const size_t sizes[] = {0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 2048, 5000};
    enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };
    uint8_t id[AG_UUID_SIZE], body[2][5000];
    uint64_t state = check_seed(3);
    struct ag_hmac taken;
    ag_hmac_init(&taken, secret, sizeof(secret));
    for (size_t i = 0; i < sizeof(body[0]); i++) {
        body[0][i] = (uint8_t)check_random(&state);
        body[1][i] = (uint8_t)check_random(&state);
    }
    ASSERT_EQ(ag_uuid_parse(id_text, 36, id), AG_OK);
    for (size_t pair = 0; pair < SIZES * SIZES; pair++) {
        const struct ag_span bodies[2] = {{body[0], sizes[pair / SIZES]},
                                          {body[1], sizes[pair % SIZES]}};
        struct ag_commitment c[2], alone;
        ag_commitment_two(c, &taken, id, bodies);
        for (int role = 0; role < 2; role++) {
            ag_commitment_init(&alone, &taken, id, (enum ag_role)role);
            (void)ag_commitment_update(&alone, bodies[role].data, bodies[role].size);
            ag_commitment_finish(&alone);
            ASSERT_EQ_MEM(c[role].salt, alone.salt, 32);
            ASSERT_EQ_MEM(c[role].digest, alone.digest, 32);
            ASSERT_EQ_U(c[role].octets, bodies[role].size);
            ASSERT(c[role].finished);
        }
    }
    const struct ag_span none[2] = {{NULL, 0}, {NULL, 0}};
    struct ag_commitment c[2];
    ag_commitment_two(c, &taken, id, none);
    ASSERT_EQ(ag_commitment_update(&c[0], body, 1), AG_ECLOSED);
}

static void
identifiers(void)
{
    static const char *const bad[] = {
        "01890a5dac96774bbcceb302099a8057",      "01890a5d-ac96-774b-bcce-b302099a805",
        "01890a5d-ac96-774b-bcce-b302099a805g",  "01890a5d-ac96-774b-bcceb-302099a8057",
        "01890a5d-ac96-774b-bcce-b302099a80570", ""};
    uint8_t id[AG_UUID_SIZE], upper[AG_UUID_SIZE];
    ASSERT_EQ(ag_uuid_parse(id_text, 36, id), AG_OK);
    ASSERT_EQ(id[0], 0x01);
    ASSERT_EQ(id[15], 0x57);
    ASSERT_EQ(ag_uuid_parse("01890A5D-AC96-774B-BCCE-B302099A8057", 36, upper), AG_OK);
    ASSERT_EQ_MEM(id, upper, AG_UUID_SIZE);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ASSERT_EQ(ag_uuid_parse(bad[i], strlen(bad[i]), id), AG_EINVAL);
    }
}

static int
meta_id(const char *meta, uint8_t id[AG_UUID_SIZE])
{
    struct ag_error err;
    return ag_meta_id((const uint8_t *)meta, strlen(meta), id, &err);
}

static void
identifier_of_an_entry(void)
{
    static const char *const good[] = {
        "{\"id\":\"01890a5d-ac96-774b-bcce-b302099a8057\"}",
        "{\"v\":1, \"x\":{\"id\":\"no\"}, \"id\" : "
        "\"01890a5d-ac96-774b-bcce-b302099a8057\"}",
        "{\"k\":\"\\\"id\\\":\",\"id\":\"01890a5d-ac96-774b-bcce-b302099a8057\",\"z\":["
        "1]}",
        "{\"list\":[\"id\",{\"id\":7}],\"id\":\"01890a5d-ac96-774b-bcce-"
        "b302099a8057\"}"};
    static const char *const bad[] = {
        "{}",
        "{\"id\":7}",
        "{\"id\":\"short\"}",
        "{\"x\":\"id\"}",
        "{\"id\"",
        "{\"id\":\"",
        "{\"x\":{\"id\":\"01890a5d-ac96-774b-bcce-b302099a8057\"}}",
        "{\"id\":\"01890a5d-ac96-774b-bcce-b302099a8057",
        "{\"id",
        "\\"};
    uint8_t expected[AG_UUID_SIZE], id[AG_UUID_SIZE];
    ASSERT_EQ(ag_uuid_parse(id_text, 36, expected), AG_OK);
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ASSERT_EQ(meta_id(good[i], id), AG_OK);
        ASSERT_EQ_MEM(id, expected, AG_UUID_SIZE);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ASSERT_EQ(meta_id(bad[i], id), AG_EINVAL);
    }
}

static int
check_meta(const char *meta)
{
    struct ag_error err;
    return ag_meta_check((const uint8_t *)meta, strlen(meta), &err);
}

static void
meta_is_checked(void)
{
    static char large[AG_ENTRY_MAX + 1];
    struct ag_error err;
    ASSERT_EQ(check_meta("{}"), AG_OK);
    ASSERT_EQ(check_meta("{\"a\":1}\n"), AG_OK);
    ASSERT_EQ(check_meta(""), AG_EINVAL);
    ASSERT_EQ(check_meta("{"), AG_EINVAL);
    ASSERT_EQ(check_meta("[1]"), AG_EINVAL);
    ASSERT_EQ(check_meta(" {}"), AG_EINVAL);
    ASSERT_EQ(check_meta("{} x"), AG_EINVAL);
    ASSERT_EQ(check_meta("{\"a\":\"\xff\"}"), AG_EINVAL);
    memset(large, ' ', sizeof(large));
    large[0] = '{';
    size_t most = AG_ENTRY_MAX - AG_ENTRY_TAIL_MAX;
    large[most - 1] = '}';
    ASSERT_EQ(ag_meta_check((uint8_t *)large, most, &err), AG_OK);
    large[most - 1] = ' ';
    large[most] = '}';
    ASSERT_EQ(ag_meta_check((uint8_t *)large, most + 1, &err), AG_ETOOBIG);
}

static void
finished_entry(void)
{
    static const struct {
        const char *meta;
        int bodies; /* 1 request, 2 response */
        const char *entry;
    } cases[] = {
        {"{}", 0, "{}"},
        {"{ }\n", 0, "{ }"},
        {"{\"a\":1}", 0, "{\"a\":1}"},
        {"{}", 1,
         "{\"request\":{\"bytes\":0,\"commitment\":"
         "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}}"},
        {"{\"a\":1}", 3,
         "{\"a\":1,\"request\":{\"bytes\":0,\"commitment\":"
         "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"},\"response\":{\"bytes\":0,"
         "\"commitment\":\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}}"},
        {"{}", 2,
         "{\"response\":{\"bytes\":0,\"commitment\":"
         "\"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"}}"},
    };
    struct ag_commitment zero, huge;
    memset(&zero, 0, sizeof(zero));
    huge = zero;
    huge.octets = UINT64_MAX;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char entry[1024], tail[AG_ENTRY_TAIL_MAX];
        bool is_empty = false;
        size_t n = ag_meta_body((const uint8_t *)cases[i].meta, strlen(cases[i].meta),
                                &is_empty);
        memcpy(entry, cases[i].meta, n);
        size_t tail_n = ag_entry_tail(is_empty, cases[i].bodies & 1 ? &zero : NULL,
                                      cases[i].bodies & 2 ? &zero : NULL, tail);
        memcpy(entry + n, tail, tail_n);
        entry[n + tail_n] = '\0';
        ASSERT_EQ_STR(entry, cases[i].entry);
    }
    char tail[AG_ENTRY_TAIL_MAX];
    ASSERT_LE_U(ag_entry_tail(false, &huge, &huge, tail), AG_ENTRY_TAIL_MAX);
}

static void
check_head(const char *text, const char *id, enum ag_kind kind, uint64_t of)
{
    struct ag_entry_head head;
    uint8_t expected[AG_UUID_SIZE] = {0};
    size_t n = strlen(text);
    uint8_t *copy = malloc(n != 0 ? n : 1); /* without a NUL: a read past it is seen */
    ASSERT_NOT_NULL(copy);
    memcpy(copy, text, n);
    ag_entry_head(copy, n, &head);
    free(copy);
    if (id != NULL) {
        ASSERT_EQ(ag_uuid_parse(id, AG_UUID_TEXT, expected), AG_OK);
    }
    ASSERT_EQ_MEM(head.id, expected, AG_UUID_SIZE);
    ASSERT_EQ(head.kind, kind);
    ASSERT_EQ_U(head.of, of);
}

static void
heads(void)
{
#define U "01234567-89ab-7def-8123-456789abcdef"
    check_head("{\"v\":1,\"kind\":\"settle\",\"id\":\"" U "\",\"of\":12}", U,
               AG_KIND_SETTLE, 12);
    check_head("{ \"of\" : 0 , \"id\" :\"" U "\",\"kind\"\n:\"settle\"}", U,
               AG_KIND_SETTLE, 0);
    check_head("{\"kind\":\"intent\",\"a\":{\"id\":\"" U "\"}}", NULL, AG_KIND_INTENT,
               UINT64_MAX);
    check_head("{\"x\":\"\\\"id\\\":\",\"id\":\"" U "\",\"id\":\"x\"}", U,
               AG_KIND_OTHER, UINT64_MAX);
    check_head("{\"kind\":\"settle\",\"id\":7,\"of\":-1}", NULL, AG_KIND_SETTLE,
               UINT64_MAX);
    check_head("{\"kind\":\"settle\",\"id\":7,\"of\":99999999999999999999}", NULL,
               AG_KIND_SETTLE, UINT64_MAX);
    check_head("{\"kind\":[\"intent\"],\"id\":[]}", NULL, AG_KIND_OTHER, UINT64_MAX);
    const char *whole = "{\"kind\":\"settle\",\"id\":\"" U "\",\"of\":12}";
    for (size_t n = 0; n < strlen(whole);
         n++) { /* cut anywhere: no read past the end */
        struct ag_entry_head head;
        uint8_t *copy = malloc(n + 1);
        ASSERT_NOT_NULL(copy);
        uint8_t *exact = realloc(copy, n != 0 ? n : 1);
        ASSERT_NOT_NULL(exact);
        memcpy(exact, whole, n);
        ag_entry_head(exact, n, &head);
        free(exact);
    }
#undef U
}

int
main(void)
{
    RUN(commitment_equals_openssl);
    RUN(two_commitments);
    RUN(identifiers);
    RUN(identifier_of_an_entry);
    RUN(meta_is_checked);
    RUN(finished_entry);
    RUN(heads);
    return 0;
}
