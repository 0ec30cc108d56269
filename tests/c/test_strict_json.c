// threads: none
// links: alloc_fault
/* The strict JSON scan: what it accepts, refuses and says, on every allocation failure
 * as well. */
#include "alloc_fault.h"
#include "check.h"

#include "http/strict_json.h"

static struct ag_json_rules *rules;

static void
make_rules(void)
{
    struct ag_error err;
    ASSERT_EQ(ag_json_rules_new(&rules, &err), AG_OK);
    static const char *const names[][2] = {
        {"", "model"},           {"", "stream"},
        {"messages[]", "role"},  {"messages[]", "content"},
        {"messages[]", "name"},  {"messages[].content[]", "type"},
        {"messages[]", "parts"}, {"a.b", "kind"},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        ASSERT_EQ(ag_json_rules_add(rules, names[i][0], names[i][1], &err), AG_OK);
    }
    static const char *const bad[][2] = {
        {"", ""},      {"", "Model"}, {"", "a.b"}, {"", "\xc3\xa9"}, {"a..b", "c"},
        {"a[].", "c"}, {"A", "c"},    {"a[", "c"}, {"[]b", "B"},     {".a", "c"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ASSERT_EQ(ag_json_rules_add(rules, bad[i][0], bad[i][1], &err), AG_EINVAL);
        ASSERT(err.what[0] != '\0');
    }
}

/* Scans a copy of exactly that size, so that a sanitizer sees a read beyond it. */
static int
scan_exact(const void *body, size_t n, size_t depth, struct ag_json_fault *fault)
{
    uint8_t *copy = malloc(n > 0 ? n : 1);
    ASSERT_NOT_NULL(copy);
    memcpy(copy, body, n);
    int status = ag_json_scan(rules, copy, n, depth, fault);
    free(copy);
    return status;
}

static void
accepts(void)
{
    static const char *const good[] = {
        "{}",
        " \t\r\n{ \n} \n",
        "{\"\":null}",
        "{\"a\":[],\"b\":{},\"c\":[[],{}],\"d\":[1,2,[3]]}",
        "{\"a\":true,\"b\":false,\"c\":null,\"d\":\"\"}",
        "{\"n\":[0,-0,1,-1,0.5,1e5,1E+5,1e-5,-0.0e0,10.25e-300,1e308,0e99999999999]}",
        "{\"n\":[1.7976931348623157e308,1e-99999999999999999999,0.0001e311,123e306]}",
        "{\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\uD83D\\uDE00\\uffff\":\"\\u00e9\"}",
        "{\"\xc3\xa9\":"
        "\"\xe4\xbd\xa0\xf0\x9f\x98\x80\xed\x9f\xbf\xee\x80\x80\xf4\x8f\xbf\xbf\"}",
        "{\"model\":1,\"stream\":2,\"x\":{\"Model\":1,\"MODEL\":2,\"model\":3}}",
        "{\"messages\":[{\"role\":1},{\"role\":1,\"other\":{\"ROLE\":1}}]}",
        "{\"messages\":{\"Role\":1},\"modelx\":1,\"mode\":2,\"Mode\":3}",
        "{\"a\":{\"kind\":1,\"KIND\":2},\"b\":{\"a\":1},\"c\":{\"a\":1}}",
        "{\"a\":[{\"a\":1},{\"a\":1}],\"b\":\"a\",\"c\":\"a\"}",
    };
    struct ag_json_fault fault;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        size_t n = strlen(good[i]);
        int status = scan_exact(good[i], n, 64, &fault);
        if (status != AG_OK) {
            CHECK_FAIL("%s: %s at %zu", good[i], fault.what, fault.offset);
        }
        for (size_t cut = 0; cut < n; cut++) { /* until the last brace it is refused */
            status = scan_exact(good[i], cut, 64, &fault);
            ASSERT(status == AG_EVERIFY || good[i][cut] <= ' ');
            ASSERT(status == AG_OK || fault.offset <= cut);
        }
    }
}

static void
refuses(void)
{
#define BODY(text) text, sizeof(text) - 1
    static const struct {
        const char *body;
        size_t n;
        enum ag_json_code code;
        size_t offset;
        const char *path;
    } bad[] = {
        {BODY(""), AG_JSON_SYNTAX, 0, ""},
        {BODY("  "), AG_JSON_SYNTAX, 2, ""},
        {BODY("[]"), AG_JSON_SYNTAX, 0, ""},
        {BODY("null"), AG_JSON_SYNTAX, 0, ""},
        {BODY("{} {}"), AG_JSON_SYNTAX, 3, ""},
        {BODY("{}\0"), AG_JSON_SYNTAX, 2, ""},
        {BODY("\xef\xbb\xbf{}"), AG_JSON_SYNTAX, 0, ""},
        {BODY("\xff\xfe{\0"), AG_JSON_UTF8, 0, ""},
        {BODY("{\"a\":1,}"), AG_JSON_SYNTAX, 7, "a"},
        {BODY("{,\"a\":1}"), AG_JSON_SYNTAX, 1, ""},
        {BODY("{\"a\" 1}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{a:1}"), AG_JSON_SYNTAX, 1, ""},
        {BODY("{\"a\":[1,]}"), AG_JSON_SYNTAX, 8, "a[1]"},
        {BODY("{\"a\":[1 2]}"), AG_JSON_SYNTAX, 8, "a[0]"},
        {BODY("{\"a\":[1}}"), AG_JSON_SYNTAX, 7, "a[0]"},
        {BODY("{\"a\":1]"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":NaN}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":-Infinity}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":nul}"), AG_JSON_SYNTAX, 8, "a"},
        {BODY("{\"a\":truest}"), AG_JSON_SYNTAX, 9, "a"},
        {BODY("{\"a\":+1}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":.5}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":1.}"), AG_JSON_SYNTAX, 7, "a"},
        {BODY("{\"a\":1e}"), AG_JSON_SYNTAX, 7, "a"},
        {BODY("{\"a\":1e+}"), AG_JSON_SYNTAX, 8, "a"},
        {BODY("{\"a\":-}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":00}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":-01.5}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":0x10}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":1e309}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":-1e999999999999999999999}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":1.79769313486231581e308}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":0.000018e313}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":\"\n\"}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":\"\0\"}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":\"\x1f\"}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":\"\\x\"}"), AG_JSON_SYNTAX, 7, "a"},
        {BODY("{\"a\":\"\\u12g4\"}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":\"\\ud800\"}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":\"\\ud800\\ud800\"}"), AG_JSON_SYNTAX, 6, "a"},
        {BODY("{\"a\":\"x\\uDC00\"}"), AG_JSON_SYNTAX, 7, "a"},
        {BODY("{\"\\udead\":1}"), AG_JSON_SYNTAX, 2, ""},
        {BODY("{\"a\":\"\x80\"}"), AG_JSON_UTF8, 6, "a"},
        {BODY("{\"a\":\"\xc0\xaf\"}"), AG_JSON_UTF8, 6, "a"},
        {BODY("{\"a\":\"\xed\xa0\x80\"}"), AG_JSON_UTF8, 6, "a"},
        {BODY("{\"a\":\"\xe4\xbd\"}"), AG_JSON_UTF8, 6, "a"},
        {BODY("{\"a\":\"\xf4\x90\x80\x80\"}"), AG_JSON_UTF8, 6, "a"},
        {BODY("{\"a\":\"\xf8\x88\x80\x80\x80\"}"), AG_JSON_UTF8, 6, "a"},
        {BODY("{\"a\":\xff}"), AG_JSON_UTF8, 5, "a"},
        {BODY("{\"a\":\xc3\xa9}"), AG_JSON_SYNTAX, 5, "a"},
        {BODY("{\"a\":1,\"a\":2}"), AG_JSON_DUPLICATE, 7, "a"},
        {BODY("{\"\":1,\"\":2}"), AG_JSON_DUPLICATE, 6, ""},
        {BODY("{\"a\":1,\"\\u0061\":2}"), AG_JSON_DUPLICATE, 7, "a"},
        {BODY("{\"\\ud83d\\ude00\":1,\"\xf0\x9f\x98\x80\":2}"), AG_JSON_DUPLICATE, 18,
         "\xf0\x9f\x98\x80"},
        {BODY("{\"a\\/b\":1,\"a/b\":2}"), AG_JSON_DUPLICATE, 10, "a/b"},
        {BODY("{\"x\":[0,{\"y\":{\"a\":{},\"a\":1}}]}"), AG_JSON_DUPLICATE, 21,
         "x[1].y.a"},
        {BODY("{\"12345678a\":1,\"12345678b\":1,\"12345678a\":1}"), AG_JSON_DUPLICATE,
         29, "12345678a"},
        {BODY("{\"Model\":1}"), AG_JSON_AMBIGUOUS, 1, "model"},
        {BODY("{\"\xc5\xbftream\":1}"), AG_JSON_AMBIGUOUS, 1, "stream"},
        {BODY("{\"\xef\xac\x86ream\":1}"), AG_JSON_AMBIGUOUS, 1, "stream"},
        {BODY("{\"MESSAGES\":1}"), AG_JSON_AMBIGUOUS, 1, "messages"},
        {BODY("{\"A\":1}"), AG_JSON_AMBIGUOUS, 1, "a"},
        {BODY("{\"a\":{\"b\":{\"\xe2\x84\xaaind\":1}}}"), AG_JSON_AMBIGUOUS, 11,
         "a.b.kind"},
        {BODY("{\"messages\":[{},{\"Rol\\u0045\":1}]}"), AG_JSON_AMBIGUOUS, 17,
         "messages[1].role"},
        {BODY("{\"messages\":[{\"content\":[{\"Type\":1}]}]}"), AG_JSON_AMBIGUOUS, 26,
         "messages[0].content[0].type"},
        {BODY("{\"a\":[[[[[[[1]]]]]]]}"), AG_JSON_DEEP, 11, "a[0][0][0][0][0][0]"},
        {BODY("{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{}"), AG_JSON_DEEP, 35,
         "a.a.a.a.a.a.a"},
    };
#undef BODY
    struct ag_json_fault fault;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        memset(&fault, 0xaa, sizeof(fault));
        int status = scan_exact(bad[i].body, bad[i].n, 7, &fault);
        if (status != AG_EVERIFY || fault.code != bad[i].code ||
            fault.offset != bad[i].offset || strcmp(fault.path, bad[i].path) != 0) {
            CHECK_FAIL("%s: status %d, %s (%s) at %zu in '%s'", bad[i].body, status,
                       ag_json_code_text(fault.code), fault.what, fault.offset,
                       fault.path);
        }
    }
}

/* Every position of a special octet relative to the vectors, and of the body's end. */
static void
strings_of_every_length(void)
{
    static const char specials[] = {'"', '\\', '\n', '\x7f', (char)0xc3, (char)0xff};
    char body[160];
    struct ag_json_fault fault;
    for (size_t n = 0; n < 70; n++) {
        for (size_t at = 0; at <= n; at++) {
            for (size_t k = 0; k < sizeof(specials); k++) {
                memcpy(body, "{\"a\":\"", 6);
                memset(body + 6, 'x', n);
                memcpy(body + 6 + n, "\"}", 2);
                if (at < n) {
                    body[6 + at] = specials[k];
                }
                int status = scan_exact(body, n + 8, 2, &fault);
                bool fine = at == n || specials[k] == 0x7f;
                ASSERT_EQ(status, fine ? AG_OK : AG_EVERIFY);
                if (!fine) {
                    size_t offset = 6 + at;
                    if (specials[k] == '"') {
                        offset += 1; /* ends the string: what follows is the fault */
                    } else if (specials[k] == '\\') {
                        offset =
                            at + 1 < n ? offset + 1 : n + 8; /* escapes the quote */
                    }
                    ASSERT_EQ_U(fault.offset, offset);
                }
            }
        }
    }
}

/* A body with `members` members, the one number `again` (counted from 0) given twice at
 * the end when it is one of them. */
static char *
wide(size_t members, size_t again, size_t *n)
{
    char *body = malloc(members * 24 + 64);
    ASSERT_NOT_NULL(body);
    size_t used = 0;
    body[used++] = '{';
    for (size_t i = 0; i <= members; i++) {
        size_t name = i < members ? i : again;
        if (i == members && again >= members) {
            break;
        }
        used += (size_t)sprintf(body + used, "%s\"%s%zu\":0", i > 0 ? "," : "",
                                name % 3 == 0 ? "a long prefix " : "", name);
    }
    body[used++] = '}';
    *n = used;
    return body;
}

static void
many_members(void)
{
    struct ag_json_fault fault;
    for (size_t members = 1; members < 140; members++) {
        size_t n;
        char *body = wide(members, members, &n);
        ASSERT_EQ(scan_exact(body, n, 64, &fault), AG_OK);
        free(body);
        for (size_t again = 0; again < members; again++) {
            body = wide(members, again, &n);
            ASSERT_EQ(scan_exact(body, n, 64, &fault), AG_EVERIFY);
            ASSERT_EQ(fault.code, AG_JSON_DUPLICATE);
            free(body);
        }
    }
    size_t n;
    char *body = wide(100000, 77777, &n);
    ASSERT_EQ(scan_exact(body, n, 64, &fault), AG_EVERIFY);
    ASSERT_EQ(fault.code, AG_JSON_DUPLICATE);
    ASSERT_EQ_STR(fault.path, "77777");
    free(body);
}

static void
long_paths_are_cut(void)
{
    char body[4096];
    struct ag_json_fault fault;
    size_t n = 0;
    for (int i = 0; i < 20; i++) {
        body[n++] = '{';
        body[n++] = '"';
        for (int k = 0; k < 40; k++) {
            memcpy(body + n, "\xc3\xa9", 2);
            n += 2;
        }
        memcpy(body + n, "\":", 2);
        n += 2;
    }
    ASSERT_EQ(scan_exact(body, n, 64, &fault), AG_EVERIFY);
    ASSERT_LT_U(strlen(fault.path), AG_JSON_PATH_MAX);
    ASSERT_EQ_STR(fault.path + strlen(fault.path) - 3, "...");
    ASSERT_EQ(scan_exact("{\"\\u0000\\u001f\":1,\"\\u0000\\u001f\":1}", 34, 64, &fault),
              AG_EVERIFY);
    ASSERT_EQ_STR(fault.name, "??");
}

static void
every_allocation_can_fail(void)
{
    struct ag_json_fault fault;
    size_t n;
    char *body = malloc(20000);
    ASSERT_NOT_NULL(body);
    size_t inner_n;
    char *inner = wide(300, 300, &inner_n);
    n = (size_t)sprintf(body, "{\"a\\n\":%.*s,\"b\":[%.*s]}", (int)inner_n, inner,
                        (int)inner_n, inner);
    long before = ag_test_live_blocks();
    long calls = ag_test_alloc_calls();
    ASSERT_EQ(ag_json_scan(rules, (uint8_t *)body, n, 64, &fault), AG_OK);
    calls = ag_test_alloc_calls() - calls;
    ASSERT_LT(4, calls);
    for (long i = 1; i <= calls; i++) {
        ag_test_fail_alloc_at(i);
        ASSERT_EQ(ag_json_scan(rules, (uint8_t *)body, n, 64, &fault), AG_ENOMEM);
        ASSERT_EQ(ag_test_live_blocks(), before);
    }
    ag_test_fail_alloc_at(0);
    free(inner);
    free(body);

    calls = ag_test_alloc_calls();
    const char *plain =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"u\",\"content\":\"x\"}]}";
    ASSERT_EQ(ag_json_scan(rules, (const uint8_t *)plain, strlen(plain), 64, &fault),
              AG_OK);
    ASSERT_EQ(ag_test_alloc_calls(), calls); /* an ordinary body needs none */

    struct ag_json_rules *other = NULL;
    struct ag_error err;
    for (long i = 1;; i++) {
        ag_test_fail_alloc_at(i);
        int status = ag_json_rules_new(&other, &err);
        for (int k = 0; k < 20 && status == AG_OK; k++) {
            char name[] = {(char)('a' + k), '\0'};
            status =
                ag_json_rules_add(other, k % 2 == 0 ? "a[].b" : "x[][]", name, &err);
        }
        ag_json_rules_free(other);
        other = NULL;
        ASSERT_EQ(ag_test_live_blocks(), before);
        if (status == AG_OK) {
            break;
        }
        ASSERT_EQ(status, AG_ENOMEM);
    }
    ag_test_fail_alloc_at(0);
}

int
main(void)
{
    make_rules();
    RUN(accepts);
    RUN(refuses);
    RUN(strings_of_every_length);
    RUN(many_members);
    RUN(long_paths_are_cut);
    RUN(every_allocation_can_fail);
    ag_json_rules_free(rules);
    ASSERT_EQ(ag_test_live_blocks(), 0);
    return 0;
}
