/* Runs a fuzz target without a fuzzer: on files, and on random inputs.
 * usage: program ROUNDS SEED [FILE...] */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t
next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int
main(int argc, char **argv)
{
    static uint8_t input[1 << 16];
    if (argc < 3) {
        fprintf(stderr, "usage: %s ROUNDS SEED [FILE...]\n", argv[0]);
        return 2;
    }
    for (int i = 3; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        if (file == NULL) {
            perror(argv[i]);
            return 2;
        }
        size_t n = fread(input, 1, sizeof(input), file);
        (void)fclose(file);
        (void)LLVMFuzzerTestOneInput(input, n);
    }
    long rounds = strtol(argv[1], NULL, 0);
    uint64_t state = strtoull(argv[2], NULL, 0);
    for (long round = 0; round < rounds; round++) {
        size_t n = next(&state) % (round % 16 == 0 ? sizeof(input) : 40);
        for (size_t i = 0; i < n; i++) {
            input[i] = (uint8_t)next(&state);
        }
        (void)LLVMFuzzerTestOneInput(input, n);
    }
    printf("%ld inputs and %d files\n", rounds, argc - 3);
    return 0;
}
