/* float16 and bfloat16 to float32 and back, round to nearest even, in integer arithmetic.  NaN becomes the
 * canonical quiet NaN on the way to a half type (F16C and NEON would keep payloads). */
#ifndef CSM_VEC_HALF_H
#define CSM_VEC_HALF_H

#include "standard.h"

INLINE float csm_float_of(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
INLINE uint32_t csm_bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

#if defined(__CUDA_ARCH__) /* single instructions; conversion to bfloat16 would need sm_80 */
INLINE float csm_from_f16(uint16_t h) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}
INLINE uint16_t csm_to_f16(float f) {
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return f == f ? h : 0x7e00;
}
#else
INLINE float csm_from_f16(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return csm_float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0));
    if (rest < 0x400) { /* subnormal: rest 2^-24, exact */
        float f = (float)rest * 0x1p-24f;
        return sign ? -f : f;
    }
    return csm_float_of(sign | ((rest << 13) + 0x38000000));
}

INLINE uint16_t csm_to_f16(float f) {
    uint32_t u = csm_bits_of(f), sign = u >> 16 & 0x8000, rest = u & 0x7fffffff;
    if (rest > 0x7f800000) return 0x7e00;
    if (rest >= 0x47800000) return (uint16_t)(sign | 0x7c00); /* >= 65536, inf */
    if (rest < 0x38800000) { /* below 2^-14: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
        uint32_t v = csm_bits_of(csm_float_of(rest) + 0.5f);
        return (uint16_t)(sign | (v - 0x3f000000));
    }
    rest += 0xfff + (rest >> 13 & 1); /* may carry into the exponent, up to inf, as it should */
    return (uint16_t)(sign | ((rest - 0x38000000) >> 13));
}
#endif

INLINE float csm_from_bf16(uint16_t h) { return csm_float_of((uint32_t)h << 16); }

INLINE uint16_t csm_to_bf16(float f) {
    uint32_t u = csm_bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

#endif
