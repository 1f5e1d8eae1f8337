/* The CPU features that the operating system allows: from CPUID and XGETBV on x86, fixed on AArch64. */
#include "dispatch.h"

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
static void cpuid(unsigned leaf, unsigned sub, unsigned r[4]) { __cpuidex((int *)r, (int)leaf, (int)sub); }
static uint64_t xgetbv(void) { return _xgetbv(0); }
#else
#include <cpuid.h>
static void cpuid(unsigned leaf, unsigned sub, unsigned r[4]) { __cpuid_count(leaf, sub, r[0], r[1], r[2], r[3]); }
static uint64_t xgetbv(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif
unsigned csm_cpu_features(void) {
    unsigned r[4], features = 0;
    cpuid(0, 0, r);
    const int is_amd = r[1] == 0x68747541 && r[3] == 0x69746e65 && r[2] == 0x444d4163; /* AuthenticAMD */
    if (r[0] < 7) return 0;
    cpuid(1, 0, r);
    const int is_zen_3_or_4 = is_amd && (r[0] >> 8 & 15) + (r[0] >> 20 & 255) == 0x19;
    const unsigned need = 1u << 12 /* FMA */ | 1u << 27 /* OSXSAVE */ | 1u << 28 /* AVX */ | 1u << 29; /* F16C */
    if ((r[2] & need) != need) return features;
    uint64_t state = xgetbv(); /* the registers that the system saves */
    cpuid(7, 0, r);
    if ((state & 0x6) == 0x6 && (r[1] & 1u << 5)) features |= CSM_CPU_AVX2;
    const unsigned wide = 1u << 16 /* F */ | 1u << 17 /* DQ */ | 1u << 30 /* BW */ | 1u << 31; /* VL */
    if ((state & 0xe6) == 0xe6 && (r[1] & wide) == wide) features |= CSM_CPU_AVX512;
    if (features & CSM_CPU_AVX512 && (r[2] & 1u << 11)) features |= CSM_CPU_VNNI;
    if (is_zen_3_or_4 && (r[1] & 1u << 16)) features |= CSM_CPU_FETCHES; /* AVX-512: Zen 4 */
    return features;
}
#elif defined(__aarch64__) || defined(_M_ARM64)
unsigned csm_cpu_features(void) { return CSM_CPU_NEON; } /* NEON is part of AArch64 */
#else
unsigned csm_cpu_features(void) { return 0; }
#endif
