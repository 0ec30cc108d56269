// threads: none
// links: alloc_fault
/* The same tests on the scan as machines without SSE2 compile it. */
#undef __SSE2__
#include "../../aegis_c/core/http/strict_json.c"

#include "test_strict_json.c"
