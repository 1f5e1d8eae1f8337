/* Stands in for src_c/isa/cpu.c where the avx512 unit is an emulation: it is available wherever AVX2 is. */
#include "../../src_c/isa/dispatch.h"

unsigned csm_cpu_features(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? CSM_CPU_AVX2 | CSM_CPU_AVX512 : 0;
}
