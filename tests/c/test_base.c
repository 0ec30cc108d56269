// threads: none
/* Status texts, base64 (RFC 4648 vectors) and UTF-8 against slow twins. */
#include <sys/wait.h>
#include <unistd.h>

#include "base/base64.h"
#include "base/process.h"
#include "base/status.h"
#include "base/utf8.h"
#include "check.h"

static void
statuses_have_names(void)
{
    ASSERT_EQ_STR(ag_status_name(AG_OK), "AG_OK");
    ASSERT_EQ_STR(ag_status_name(AG_EROLLBACK), "AG_EROLLBACK");
    ASSERT_EQ_STR(ag_status_name(12345), "AG_EUNKNOWN");
    ASSERT_EQ_STR(ag_status_text(AG_EIO), "input/output error");
}

static void
errors_carry_detail(void)
{
    struct ag_error err;
    ASSERT_EQ(ag_fail_sys(&err, 2, "some/file", "open"), AG_EIO);
    ASSERT_EQ_STR(err.what, "open failed: No such file or directory");
    ASSERT_EQ_STR(err.file, "some/file");
    ASSERT_EQ(err.sys_errno, 2);
    ASSERT_EQ(ag_fail(&err, AG_EINVAL, "value %d", 7), AG_EINVAL);
    ASSERT_EQ_STR(err.what, "value 7");
    ASSERT_EQ_STR(err.file, "");
    ASSERT_EQ_U(err.offset, AG_NO_POSITION);
    ASSERT_EQ(ag_fail(NULL, AG_EINVAL, "nobody listens"), AG_EINVAL);
}

static void
base64_vectors(void)
{
    static const char *const plain[] = {"",     "f",     "fo",    "foo",
                                        "foob", "fooba", "foobar"};
    static const char *const coded[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                        "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    for (size_t i = 0; i < 7; i++) {
        char text[16];
        uint8_t octets[16];
        size_t n = ag_base64_encode(text, (const uint8_t *)plain[i], strlen(plain[i]));
        ASSERT_EQ_U(n, strlen(coded[i]));
        ASSERT_EQ_MEM(text, coded[i], n);
        ASSERT_EQ(ag_base64_decode(octets, &n, coded[i], strlen(coded[i])), AG_OK);
        ASSERT_EQ_U(n, strlen(plain[i]));
        ASSERT_EQ_MEM(octets, plain[i], n);
    }
}

static void
base64_refuses(void)
{
    static const char *const bad[] = {
        "A",    "AB",       "ABC",  "====", "A===",  "AB=C",
        "AB C", "AB==AB==", "Zh==", "Zm9=", "Zm\n=", "Zm-_"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        uint8_t octets[16];
        size_t n = 0;
        if (ag_base64_decode(octets, &n, bad[i], strlen(bad[i])) != AG_EINVAL) {
            CHECK_FAIL("\"%s\" was accepted", bad[i]);
        }
    }
}

/* By decoding each code point, as RFC 3629 section 3 defines it. */
static size_t
valid_prefix_twin(const uint8_t *s, size_t n)
{
    size_t i = 0;
    while (i < n) {
        size_t length = s[i] < 0x80 ? 1 : s[i] >> 5 == 6 ? 2 : s[i] >> 4 == 14 ? 3 : 4;
        if ((length == 4 && s[i] >> 3 != 30) || length > n - i) {
            return i;
        }
        uint32_t c = length == 1 ? s[i] : s[i] & (0x7fu >> length);
        for (size_t k = 1; k < length; k++) {
            if (s[i + k] >> 6 != 2) {
                return i;
            }
            c = c << 6 | (s[i + k] & 0x3f);
        }
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (c < least[length] || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff)) {
            return i;
        }
        i += length;
    }
    return n;
}

static void
utf8_equals_twin(void)
{
    uint64_t state = check_seed(1);
    /* Every sequence of two leading octets, with ends that may be valid. */
    for (unsigned lead = 0; lead < 65536; lead++) {
        uint8_t s[4] = {(uint8_t)(lead >> 8), (uint8_t)lead, 0x80, 0xbf};
        for (size_t n = 1; n <= 4; n++) {
            ASSERT_EQ_U(ag_utf8_valid_prefix(s, n), valid_prefix_twin(s, n));
        }
    }
    for (int round = 0; round < 20000; round++) {
        uint8_t s[40];
        size_t n = check_random(&state) % sizeof(s);
        for (size_t i = 0; i < n; i++) {
            static const uint8_t pool[] = {'a',  0xc3, 0xa9, 0xe2, 0x82, 0xac,
                                           0xf0, 0x9f, 0x98, 0x80, 0xed, 0xa0};
            s[i] = pool[check_random(&state) % sizeof(pool)];
        }
        ASSERT_EQ_U(ag_utf8_valid_prefix(s, n), valid_prefix_twin(s, n));
    }
}

/* What a forked child says, and then a child of it: exit statuses of the two. */
static void
processes_have_numbers_of_their_own(void)
{
    uint64_t here = ag_process();
    ASSERT_NE_U(here, 0);
    ASSERT_EQ_U(ag_process(), here);
    pid_t child = fork();
    if (child == 0) {
        uint64_t there = ag_process();
        pid_t grandchild = there != here && ag_process() == there ? fork() : -1;
        if (grandchild == 0) {
            _exit(ag_process() != here && ag_process() != there ? 0 : 1);
        }
        int status = -1;
        (void)waitpid(grandchild, &status, 0);
        _exit(status == 0 && ag_process() == there ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
    ASSERT_EQ_U(ag_process(), here);
}

int
main(void)
{
    RUN(statuses_have_names);
    RUN(errors_carry_detail);
    RUN(base64_vectors);
    RUN(base64_refuses);
    RUN(utf8_equals_twin);
    RUN(processes_have_numbers_of_their_own);
    return 0;
}
