/* The neon unit: every kernel with the vector functions of vec/neon.h. */
#define CSM_UNIT neon
#if defined(__aarch64__) || defined(_M_ARM64)
#include "../vec/neon.h"
#include "../kernel/unit.inc.h"
#else
#include "../kernel/table.h"
const csm_table *const csm_table_neon = NULL; /* built for another architecture */
#endif
