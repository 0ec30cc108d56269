#include "scratch.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"

static void
make_below(const char *base, char path[256])
{
    (void)snprintf(path, 256, "%s/aegis-c-XXXXXX", base);
    ASSERT_NOT_NULL(mkdtemp(path));
}

void
scratch_make(char path[256])
{
    const char *base = getenv("TMPDIR");
    make_below(base != NULL ? base : "/tmp", path);
}

void
scratch_make_in_memory(char path[256])
{
    make_below("/dev/shm", path);
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    (void)st, (void)type, (void)ftw;
    return remove(path);
}

void
scratch_remove(const char *path)
{
    (void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

char *
scratch_path(char to[512], const char *dir, const char *name)
{
    (void)snprintf(to, 512, "%s/%s", dir, name);
    return to;
}

size_t
scratch_read(const char *path, unsigned char *to, size_t room)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        CHECK_FAIL("cannot read %s", path);
    }
    size_t n = fread(to, 1, room, file);
    (void)fclose(file);
    return n;
}

void
scratch_write(const char *path, const void *from, size_t n)
{
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(from, 1, n, file) != n) {
        CHECK_FAIL("cannot write %s", path);
    }
    (void)fclose(file);
}
