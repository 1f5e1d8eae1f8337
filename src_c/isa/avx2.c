/* The avx2 unit: every kernel with the vector functions of vec/avx2.h. */
#define CSM_UNIT avx2
#if defined(__AVX2__) && defined(__FMA__)
#include "../vec/avx2.h"
#include "../kernel/unit.inc.h"
#else
#include "../kernel/table.h"
const csm_table *const csm_table_avx2 = NULL; /* built for another architecture */
#endif
