// threads: none
// links: io_fault scratch
/* Log keys and signed checkpoints: made, read back, and every flipped bit refused. */
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <sys/stat.h>

#include "check.h"
#include "io_fault.h"
#include "log/note.h"
#include "scratch.h"

static char dir[256];
static const char origin[] = "example.org/log/w0";

static struct ag_signer *
signer_at(const char *name, const char *for_origin, int create)
{
    char path[512];
    struct ag_error err;
    struct ag_signer *signer = NULL;
    int status = ag_signer_open(ag_io_posix(), scratch_path(path, dir, name),
                                for_origin, create, &signer, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s", ag_status_name(status), err.what);
    }
    return signer;
}

static void
signs_and_opens(void)
{
    struct ag_signer *signer = signer_at("key", origin, 1);
    struct ag_signer *again = signer_at("key", origin, 0);
    struct ag_signer *other = signer_at("other", origin, 1);
    struct ag_signer *elsewhere = signer_at("key", "example.org/log/w1", 0);
    struct ag_error err;
    char note[AG_CHECKPOINT_MAX], path[512];
    uint8_t root[32], read_root[32];
    uint64_t size = 0;
    size_t n = 0;
    struct stat st;
    ASSERT_EQ(stat(scratch_path(path, dir, "key"), &st), 0);
    ASSERT_EQ(st.st_mode & 07777, 0600);
    ASSERT_EQ_STR(ag_signer_vkey(signer), ag_signer_vkey(again));
    ASSERT_EQ(strncmp(ag_signer_vkey(signer), "example.org/log/w0+", 19), 0);
    memset(root, 7, sizeof(root));
    ASSERT_EQ(ag_checkpoint_sign(signer, 70000, root, note, &n, &err), AG_OK);
    ASSERT_EQ_U(n, strlen(note));
    ASSERT_EQ(strncmp(note,
                      "example.org/log/w0\n70000\n"
                      "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\n\n"
                      "\xe2\x80\x94 example.org/log/w0 ",
                      70),
              0);
    ASSERT_EQ(ag_checkpoint_open(again, note, n, &size, read_root, &err), AG_OK);
    ASSERT_EQ_U(size, 70000);
    ASSERT_EQ_MEM(read_root, root, 32);
    ASSERT_EQ(ag_checkpoint_open(other, note, n, &size, read_root, &err), AG_EFOREIGN);
    ASSERT_EQ(ag_checkpoint_open(elsewhere, note, n, &size, read_root, &err),
              AG_EFOREIGN);
    for (size_t i = 0; i < n; i++) {
        for (int bit = 0; bit < 8; bit++) {
            note[i] ^= (char)(1 << bit);
            ASSERT_NE(ag_checkpoint_open(signer, note, n, &size, read_root, &err),
                      AG_OK);
            note[i] ^= (char)(1 << bit);
        }
    }
    for (size_t shorter = 0; shorter < n; shorter++) {
        ASSERT_NE(ag_checkpoint_open(signer, note, shorter, &size, read_root, &err),
                  AG_OK);
    }
    ag_signer_free(elsewhere);
    ag_signer_free(other);
    ag_signer_free(again);
    ag_signer_free(signer);
}

static void
other_signatures_are_ignored(void)
{
    struct ag_signer *signer = signer_at("key", origin, 0);
    struct ag_error err;
    char note[AG_CHECKPOINT_MAX], more[2 * AG_CHECKPOINT_MAX];
    uint8_t root[32] = {0};
    uint64_t size = 0;
    size_t n = 0;
    ASSERT_EQ(ag_checkpoint_sign(signer, 0, root, note, &n, &err), AG_OK);
    int more_n = snprintf(more, sizeof(more),
                          "%s\xe2\x80\x94 witness.example AAAAAAECAwQF\n", note);
    ASSERT_EQ(ag_checkpoint_open(signer, more, (size_t)more_n, &size, root, &err),
              AG_OK);
    more_n = snprintf(more, sizeof(more), "%sno signature\n", note);
    ASSERT_EQ(ag_checkpoint_open(signer, more, (size_t)more_n, &size, root, &err),
              AG_ECORRUPT);
    ag_signer_free(signer);
}

static void
keys_are_refused(void)
{
    struct ag_error err;
    struct ag_signer *signer = NULL;
    char path[512];
    const struct ag_io *io = ag_io_posix();
    scratch_path(path, dir, "missing");
    ASSERT_EQ(ag_signer_open(io, path, origin, 0, &signer, &err), AG_ENOTFOUND);
    scratch_write(path, "not a key\n", 10);
    ASSERT_EQ(chmod(path, 0600), 0);
    ASSERT_EQ(ag_signer_open(io, path, origin, 1, &signer, &err), AG_ECORRUPT);
    ASSERT_EQ_STR(err.file, path);
    scratch_path(path, dir, "key");
    ASSERT_EQ(chmod(path, 0620), 0);
    ASSERT_EQ(ag_signer_open(io, path, origin, 0, &signer, &err), AG_EPERM);
    ASSERT_EQ(chmod(path, 0600), 0);
    ASSERT_EQ(ag_origin_check("", &err), AG_EINVAL);
    ASSERT_EQ(ag_origin_check("a b", &err), AG_EINVAL);
    ASSERT_EQ(ag_origin_check("a+b", &err), AG_EINVAL);
    ASSERT_EQ(ag_origin_check("a\nb", &err), AG_EINVAL);
}

/* Every I/O call of making a key fails once: an error, no half key, no leak. */
static void
key_survives_faults(void)
{
    for (long at = 1;; at++) {
        struct io_fault fault;
        struct ag_error err;
        struct ag_signer *signer = NULL;
        char name[32], path[512];
        io_fault_init(&fault);
        fault.fail_at = at;
        fault.fail_for = 1;
        fault.fail_errno = 5;
        (void)snprintf(name, sizeof(name), "key%ld", at);
        int status = ag_signer_open(&fault.table, scratch_path(path, dir, name), origin,
                                    1, &signer, &err);
        ag_signer_free(signer);
        ag_signer_free(signer_at(name, origin, 1)); /* whole, or made anew */
        if (fault.calls < at) {
            ASSERT_EQ(status, AG_OK);
            break;
        }
    }
}

/* An encrypted key is refused; nobody is asked for its passphrase, which would be a
 * server that hangs at a terminal. */
static void
nobody_is_asked_for_a_passphrase(void)
{
    char path[512], answer[512];
    struct ag_signer *signer = NULL;
    struct ag_error err;
    EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "ED25519");
    FILE *file = fopen(scratch_path(path, dir, "encrypted"), "wb");
    ASSERT(key != NULL && file != NULL);
    ASSERT_EQ(chmod(path, 0600), 0);
    ASSERT_EQ(PEM_write_PrivateKey(file, key, EVP_aes_256_cbc(),
                                   (const unsigned char *)"password", 8, NULL, NULL),
              1);
    ASSERT_EQ(fclose(file), 0);
    EVP_PKEY_free(key);
    scratch_write(scratch_path(answer, dir, "answer"), "password\n", 9);
    ASSERT_NOT_NULL(freopen(answer, "rb", stdin));
    ASSERT_EQ(ag_signer_open(ag_io_posix(), path, origin, 0, &signer, &err),
              AG_ECORRUPT);
    ASSERT_EQ_STR(err.file, path);
}

int
main(void)
{
    scratch_make(dir);
    RUN(signs_and_opens);
    RUN(other_signatures_are_ignored);
    RUN(keys_are_refused);
    RUN(nobody_is_asked_for_a_passphrase);
    RUN(key_survives_faults);
    scratch_remove(dir);
    return 0;
}
