// links: ledger_rig scratch
/* What a ledger refuses to open, and what it says then; nothing is changed by it. */
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "check.h"
#include "ledger_rig.h"
#include "scratch.h"

static void
logs_that_are_refused(void)
{
    char path[512];
    struct ag_ledger *ledger = NULL;

    make_small("rollback", 0); /* the log of an earlier time, the rest of today */
    copy_over("rollback/private/w0/wal", "earlier");
    ledger = open_ledger("rollback");
    fill(ledger, 20, 30);
    close_ledger(ledger);
    copy_over("earlier", "rollback/private/w0/wal");
    refuses("rollback", AG_EROLLBACK, "private/w0/checkpoint");

    make_small("lost", 0);
    drop("lost/private/w0/wal");
    refuses("lost", AG_EROLLBACK, "private/w0/checkpoint");
    ASSERT_EQ(access(file_of(path, "lost", "private/w0/wal"), F_OK), -1);

    make_small("exchanged", 0); /* same length, other entries */
    make_small("donor", 1000);
    copy_over("donor/private/w0/wal", "exchanged/private/w0/wal");
    refuses("exchanged", AG_EROLLBACK, "ledger/w0/checkpoint");

    make_small("damaged", 0);
    flip(file_of(path, "damaged", "private/w0/wal/wal-0000000000000001.seg"),
         4096 + 100);
    refuses("damaged", AG_ECORRUPT, "private/w0/wal/wal-0000000000000001.seg");
}

static void
checkpoints_that_are_refused(void)
{
    make_small("foreign", 0);
    copy_over("donor/private/w0/checkpoint", "foreign/private/w0/checkpoint");
    refuses("foreign", AG_EFOREIGN, "private/w0/checkpoint");

    make_small("note", 0);
    char path[512];
    flip(file_of(path, "note", "ledger/w0/checkpoint"), 40); /* in the root */
    refuses("note", AG_EVERIFY, "ledger/w0/checkpoint");
}

static void
folders_that_are_refused(void)
{
    struct ag_error err;
    char path[512];
    struct ag_ledger *ledger = NULL, *second = NULL;

    make_small("halfcopied", 0);
    drop("halfcopied/private");
    refuses("halfcopied", AG_EFOREIGN, "ledger/w0/checkpoint");
    ASSERT_EQ(access(file_of(path, "halfcopied", "private"), F_OK), -1);

    make_small("noidentity", 0);
    drop("noidentity/private/w0/identity");
    refuses("noidentity", AG_EFOREIGN, "private/w0/wal/LOG");

    make_small("badidentity", 0);
    scratch_write(file_of(path, "badidentity", "private/w0/identity"),
                  "aegis ledger 1\norigin x\n", 24);
    refuses("badidentity", AG_ECORRUPT, "private/w0/identity");

    make_small("origin", 0);
    ASSERT_EQ(try_open("origin", NULL, "example.org/another", &ledger, &err),
              AG_EFOREIGN);

    ledger = open_ledger("locked");
    ASSERT_EQ(try_open("locked", NULL, NULL, &second, &err), AG_ELOCKED);
    close_ledger(ledger);
}

static void
keys_that_are_refused(void)
{
    char path[512];
    make_small("nokey", 0);
    drop("nokey/private/w0/log.key");
    refuses("nokey", AG_ENOTFOUND, "private/w0/log.key");

    make_small("otherkey", 0);
    copy_over("donor/private/w0/log.key", "otherkey/private/w0/log.key");
    refuses("otherkey", AG_EFOREIGN, "private/w0/log.key");

    make_small("openkey", 0);
    ASSERT_EQ(chmod(file_of(path, "openkey", "private/w0/log.key"), 0666), 0);
    refuses("openkey", AG_EPERM, "private/w0/log.key");

    if (geteuid() == 0) { /* a secret that root has mounted for others */
        struct ag_ledger *ledger = NULL;
        make_small("mounted", 0);
        ASSERT_EQ(chmod(file_of(path, "mounted", "private/w0/log.key"), 0644), 0);
        ledger = open_ledger("mounted");
        close_ledger(ledger);
        ASSERT_EQ(chown(path, 1, (gid_t)-1), 0);
        refuses("mounted", AG_EPERM, "private/w0/log.key");
    }

    make_small("secret", 0);
    scratch_write(file_of(path, "secret", "private/w0/subject.secret"), "short", 5);
    refuses("secret", AG_ECORRUPT, "private/w0/subject.secret");
}

static struct ag_ledger *
accept(const char *name)
{
    char folder[512];
    struct ag_ledger *ledger = NULL;
    struct ag_error err;
    struct ag_ledger_options options =
        ledger_options(scratch_path(folder, dir, name), NULL);
    options.accept_rollback = true;
    int status = ag_ledger_open(&options, &ledger, &err);
    if (status != AG_OK) {
        CHECK_FAIL("%s: %s %s", name, err.what, err.file);
    }
    return ledger;
}

static const struct {
    const char *name;
    int status;
} never[] = {{"damaged", AG_ECORRUPT},
             {"foreign", AG_EFOREIGN},
             {"nokey", AG_ENOTFOUND},
             {"noidentity", AG_EFOREIGN}};

/* By decision an older log, or another one, goes on: what was signed before is passed
 * over, and the next checkpoint takes its place in both folders. */
static void
accepted_rollback(void)
{
    struct ag_error err;
    char path[512], note[AG_CHECKPOINT_MAX];
    uint8_t before[AG_CHECKPOINT_MAX], after[AG_CHECKPOINT_MAX], *entry = NULL;
    uint64_t index = 0;
    size_t n = 0;

    struct ag_ledger *ledger = accept("rollback"); /* 20 of 30 entries */
    ASSERT_EQ_U(ag_ledger_size(ledger), 20);
    ASSERT_EQ_U(ag_ledger_stage_size(ledger, AG_PUBLISHED), 0); /* not signed yet */
    ag_ledger_checkpoint(ledger, note, &n);
    ASSERT_EQ_U(n, 0);
    ASSERT_EQ(submit(ledger, 70, &index, &err), AG_OK); /* another history from here */
    ASSERT_EQ_U(index, 20);
    wait_published(ledger, 21);
    close_ledger(ledger);
    n = scratch_read(file_of(path, "rollback", "private/w0/checkpoint"), before,
                     sizeof(before));
    ASSERT_EQ_U(scratch_read(file_of(path, "rollback", "ledger/w0/checkpoint"), after,
                             sizeof(after)),
                n);
    ASSERT_EQ_MEM(before, after, n);
    ledger = open_ledger("rollback"); /* without a decision */
    ASSERT_EQ_U(ag_ledger_stage_size(ledger, AG_PUBLISHED), 21);
    check_entries(ledger, 20);
    close_ledger(ledger);

    ledger = accept("exchanged"); /* as long as what was signed, but another */
    ASSERT_EQ(ag_ledger_entry(ledger, 0, &entry, &n, &err), AG_OK);
    char expected[ENTRY_ROOM];
    ASSERT_EQ_U(n, make_entry(1000, expected));
    ASSERT_EQ_MEM(entry, expected, n);
    ag_free(entry);
    close_ledger(ledger);
    close_ledger(open_ledger("exchanged"));

    /* It is no decision about anything else. */
    for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
        char folder[512];
        struct ag_ledger_options options =
            ledger_options(scratch_path(folder, dir, never[i].name), NULL);
        options.accept_rollback = true;
        ASSERT_EQ(ag_ledger_open(&options, &ledger, &err), never[i].status);
    }
}

int
main(void)
{
    ASSERT_EQ(ag_sha256_start(), AG_OK);
    scratch_make_in_memory(dir);
    RUN(logs_that_are_refused);
    RUN(checkpoints_that_are_refused);
    RUN(folders_that_are_refused);
    RUN(keys_that_are_refused);
    RUN(accepted_rollback); /* of logs that were refused above */
    scratch_remove(dir);
    return 0;
}
