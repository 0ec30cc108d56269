/* A temporary folder of one test, removed with all that is in it. */
#ifndef SCRATCH_H
#define SCRATCH_H

#include <stddef.h>

/* Makes a new folder and writes its path (256 octets). Ends the program on failure. */
void scratch_make(char path[256]);
/* The same on a tmpfs, where a sync takes no time: where the log's rings are. */
void scratch_make_in_memory(char path[256]);
void scratch_remove(const char *path);

/* "<dir>/<name>" into to (512 octets); returns it. */
char *scratch_path(char to[512], const char *dir, const char *name);

/* Whole files; end the program on failure. */
size_t scratch_read(const char *path, unsigned char *to, size_t room);
void scratch_write(const char *path, const void *from, size_t n);

#endif
