/* The avx512 unit: every kernel with the vector functions of vec/avx512.h. */
#define CSM_UNIT avx512
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) || defined(CSM_AVX512_EMULATED)
#include "../vec/avx512.h"
#include "../kernel/unit.inc.h"
#else
#include "../kernel/table.h"
const csm_table *const csm_table_avx512 = NULL; /* built for another architecture */
#endif
