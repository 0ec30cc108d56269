// links: alloc_fault
/* The same tests on the guard as machines without SSE2 compile it. */
#undef __SSE2__
#include "../../aegis_c/core/http/request_guard.c"
#include "../../aegis_c/core/http/request_head.c"

#include "test_request_guard.c"
