/* Replaces src_c/isa/cpu.c if the avx512 unit is emulated: it is available on every CPU with AVX2 and FMA. */
#include "../../src_c/isa/dispatch.h"

unsigned csm_cpu_features(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? CSM_CPU_AVX2 | CSM_CPU_AVX512 : 0;
}
