// threads: none
/* The same tests on the check as machines without SSE2 compile it. */
#undef __SSE2__
#include "../../aegis_c/core/log/entry_pattern.c"
#include "../../aegis_c/core/log/entry_schema.c"

#include "test_entry_schema.c"
