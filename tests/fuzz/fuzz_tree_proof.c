/* libFuzzer target; see tree_targets.h.
 * clang -g -O1 -fsanitize=fuzzer,address,undefined -D_GNU_SOURCE -Iaegis_c/core \
 *     tests/fuzz/fuzz_tree_proof.c $(find aegis_c/core -name '*.c') -lcrypto -pthread
 */
#include "tree_targets.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    fuzz_proof(data, n);
    return 0;
}
