/* The vector functions for AArch64 NEON: 4 floats or 2 doubles.  scalar.h describes each function.
 * FMAX and FMIN propagate NaN, so maximum and minimum are a comparison and a selection, as on x86. */
#ifndef CSM_VEC_NEON_H
#define CSM_VEC_NEON_H

#include <arm_neon.h>
#include "half.h"

enum { v32_W = 4, v64_W = 2 };
enum { v32_SIDE = 4, v64_SIDE = 4 }; /* vectors whose exp is computed side by side ... */
enum { v32_STEP = 8, v64_STEP = 8 }; /* ... and in a step of the loop over a row */

typedef float32x4_t v32_t;
typedef uint32x4_t v32_mask;

INLINE v32_t v32_set(double c) { return vdupq_n_f32((float)c); }
INLINE v32_t v32_zero(void) { return vdupq_n_f32(0); }
INLINE v32_t v32_add(v32_t a, v32_t b) { return vaddq_f32(a, b); }
INLINE v32_t v32_sub(v32_t a, v32_t b) { return vsubq_f32(a, b); }
INLINE v32_t v32_mul(v32_t a, v32_t b) { return vmulq_f32(a, b); }
INLINE v32_t v32_div(v32_t a, v32_t b) { return vdivq_f32(a, b); }
INLINE v32_t v32_sqrt(v32_t a) { return vsqrtq_f32(a); }
INLINE v32_t v32_fma(v32_t a, v32_t b, v32_t c) { return vfmaq_f32(c, a, b); }
INLINE v32_t v32_fnma(v32_t a, v32_t b, v32_t c) { return vfmsq_f32(c, a, b); }
INLINE v32_t v32_max(v32_t a, v32_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE v32_t v32_min(v32_t a, v32_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE v32_mask v32_eq(v32_t a, v32_t b) { return vceqq_f32(a, b); }
INLINE v32_mask v32_ordered(v32_t a) { return vceqq_f32(a, a); }
INLINE v32_mask v32_ge(v32_t a, v32_t b) { return vcgeq_f32(a, b); }
INLINE v32_mask v32_not_le(v32_t a, v32_t b) { return veorq_u32(vcleq_f32(a, b), vdupq_n_u32(~0u)); }
INLINE v32_mask v32_unordered(v32_t a, v32_t b) {
    return veorq_u32(vandq_u32(vceqq_f32(a, a), vceqq_f32(b, b)), vdupq_n_u32(~0u));
}
INLINE v32_mask v32_either(v32_mask m, v32_mask n) { return vorrq_u32(m, n); }
INLINE unsigned v32_bits(v32_mask m) {
    static const uint32_t weight[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(m, vld1q_u32(weight)));
}
INLINE v32_t v32_keep(v32_mask m, v32_t a) { return vreinterpretq_f32_u32(vandq_u32(m, vreinterpretq_u32_f32(a))); }
INLINE v32_t v32_drop(v32_mask m, v32_t a) { return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(a), m)); }
INLINE v32_t v32_select(v32_mask m, v32_t a, v32_t b) { return vbslq_f32(m, a, b); }
INLINE float v32_top(v32_t a) { return vmaxvq_f32(a); }
INLINE double v32_sum_exact(v32_t a) { return (double)vaddvq_f32(a); }
INLINE v32_t v32_exponent(v32_t t) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(t), 23)); }

INLINE v32_t v32_load_f32(const float *p) { return vld1q_f32(p); }
INLINE v32_t v32_load_part_f32(const float *p, size_t count, v32_t fill) {
    float u[4];
    vst1q_f32(u, fill);
    for (size_t i = 0; i < count && i < sizeof u / sizeof *u; i++) u[i] = p[i];
    return vld1q_f32(u);
}
INLINE void v32_store_f32(float *p, v32_t a) { vst1q_f32(p, a); }
INLINE void v32_store_part_f32(float *p, size_t count, v32_t a) {
    float u[4];
    vst1q_f32(u, a);
    for (size_t i = 0; i < count && i < sizeof u / sizeof *u; i++) p[i] = u[i];
}

INLINE uint16x4_t csm_load_part16(const uint16_t *p, size_t count) {
    uint16_t u[4] = {0, 0, 0, 0};
    for (size_t i = 0; i < count && i < sizeof u / sizeof *u; i++) u[i] = p[i];
    return vld1_u16(u);
}
INLINE void csm_store_part16(uint16_t *p, size_t count, uint16x4_t v) {
    uint16_t u[4];
    vst1_u16(u, v);
    for (size_t i = 0; i < count && i < sizeof u / sizeof *u; i++) p[i] = u[i];
}
INLINE v32_t csm_with_fill(v32_t a, size_t count, v32_t fill) {
    float u[4], f[4];
    vst1q_f32(u, a);
    vst1q_f32(f, fill);
    for (size_t i = count; i < 4; i++) u[i] = f[i];
    return vld1q_f32(u);
}

INLINE v32_t csm_widen_f16(uint16x4_t h) { return vcvt_f32_f16(vreinterpret_f16_u16(h)); }
INLINE uint16x4_t csm_narrow_f16(v32_t a) {
    return vbsl_u16(vmovn_u32(v32_ordered(a)), vreinterpret_u16_f16(vcvt_f16_f32(a)), vdup_n_u16(0x7e00));
}
INLINE v32_t v32_load_f16(const uint16_t *p) { return csm_widen_f16(vld1_u16(p)); }
INLINE v32_t v32_load_part_f16(const uint16_t *p, size_t count, v32_t fill) {
    return csm_with_fill(csm_widen_f16(csm_load_part16(p, count)), count, fill);
}
INLINE void v32_store_f16(uint16_t *p, v32_t a) { vst1_u16(p, csm_narrow_f16(a)); }
INLINE void v32_store_part_f16(uint16_t *p, size_t count, v32_t a) { csm_store_part16(p, count, csm_narrow_f16(a)); }

INLINE v32_t csm_widen_bf16(uint16x4_t h) { return vreinterpretq_f32_u32(vshll_n_u16(h, 16)); }
INLINE uint16x4_t csm_narrow_bf16(v32_t a) {
    uint32x4_t u = vreinterpretq_u32_f32(a);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint16x4_t h = vshrn_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    return vbsl_u16(vmovn_u32(v32_ordered(a)), h, vdup_n_u16(0x7fc0));
}
INLINE v32_t v32_load_bf16(const uint16_t *p) { return csm_widen_bf16(vld1_u16(p)); }
INLINE v32_t v32_load_part_bf16(const uint16_t *p, size_t count, v32_t fill) {
    return csm_with_fill(csm_widen_bf16(csm_load_part16(p, count)), count, fill);
}
INLINE void v32_store_bf16(uint16_t *p, v32_t a) { vst1_u16(p, csm_narrow_bf16(a)); }
INLINE void v32_store_part_bf16(uint16_t *p, size_t count, v32_t a) { csm_store_part16(p, count, csm_narrow_bf16(a)); }

typedef float64x2_t v64_t;
typedef uint64x2_t v64_mask;

INLINE v64_t v64_set(double c) { return vdupq_n_f64(c); }
INLINE v64_t v64_zero(void) { return vdupq_n_f64(0); }
INLINE v64_t v64_add(v64_t a, v64_t b) { return vaddq_f64(a, b); }
INLINE v64_t v64_sub(v64_t a, v64_t b) { return vsubq_f64(a, b); }
INLINE v64_t v64_mul(v64_t a, v64_t b) { return vmulq_f64(a, b); }
INLINE v64_t v64_div(v64_t a, v64_t b) { return vdivq_f64(a, b); }
INLINE v64_t v64_sqrt(v64_t a) { return vsqrtq_f64(a); }
INLINE double v64_tree(const v64_t a[4]) { return vaddvq_f64(vaddq_f64(vaddq_f64(a[0], a[2]), vaddq_f64(a[1], a[3]))); }
INLINE v64_t v64_fma(v64_t a, v64_t b, v64_t c) { return vfmaq_f64(c, a, b); }
INLINE v64_t v64_fnma(v64_t a, v64_t b, v64_t c) { return vfmsq_f64(c, a, b); }
INLINE v64_t v64_max(v64_t a, v64_t b) { return vbslq_f64(vcgtq_f64(a, b), a, b); }
INLINE v64_t v64_min(v64_t a, v64_t b) { return vbslq_f64(vcltq_f64(a, b), a, b); }
INLINE v64_mask v64_eq(v64_t a, v64_t b) { return vceqq_f64(a, b); }
INLINE v64_mask v64_ordered(v64_t a) { return vceqq_f64(a, a); }
INLINE v64_mask v64_ge(v64_t a, v64_t b) { return vcgeq_f64(a, b); }
INLINE v64_mask v64_not_le(v64_t a, v64_t b) { return veorq_u64(vcleq_f64(a, b), vdupq_n_u64(~(uint64_t)0)); }
INLINE v64_mask v64_unordered(v64_t a, v64_t b) {
    return veorq_u64(vandq_u64(vceqq_f64(a, a), vceqq_f64(b, b)), vdupq_n_u64(~(uint64_t)0));
}
INLINE v64_mask v64_either(v64_mask m, v64_mask n) { return vorrq_u64(m, n); }
INLINE unsigned v64_bits(v64_mask m) { return (unsigned)((vgetq_lane_u64(m, 0) & 1) | (vgetq_lane_u64(m, 1) & 2)); }
INLINE v64_t v64_keep(v64_mask m, v64_t a) { return vreinterpretq_f64_u64(vandq_u64(m, vreinterpretq_u64_f64(a))); }
INLINE v64_t v64_drop(v64_mask m, v64_t a) { return vreinterpretq_f64_u64(vbicq_u64(vreinterpretq_u64_f64(a), m)); }
INLINE v64_t v64_select(v64_mask m, v64_t a, v64_t b) { return vbslq_f64(m, a, b); }
INLINE double v64_top(v64_t a) { return vmaxvq_f64(a); }
INLINE double v64_sum_exact(v64_t a) { return vaddvq_f64(a); }
INLINE v64_t v64_exponent(v64_t t) { return vreinterpretq_f64_u64(vshlq_n_u64(vreinterpretq_u64_f64(t), 52)); }
INLINE v64_t v64_load_f64(const double *p) { return vld1q_f64(p); }
INLINE v64_t v64_load_part_f64(const double *p, size_t count, v64_t fill) {
    return count ? vsetq_lane_f64(*p, fill, 0) : fill;
}
INLINE void v64_store_f64(double *p, v64_t a) { vst1q_f64(p, a); }
INLINE void v64_store_part_f64(double *p, size_t count, v64_t a) {
    if (count) *p = vgetq_lane_f64(a, 0);
}

enum { i64_W = 2 };
typedef int64x2_t i64_t;
typedef uint64x2_t i64_mask;
INLINE i64_t i64_set(int64_t c) { return vdupq_n_s64(c); }
INLINE i64_t i64_zero(void) { return vdupq_n_s64(0); }
INLINE i64_t i64_add(i64_t a, i64_t b) { return vaddq_s64(a, b); }
INLINE i64_mask i64_ge(i64_t a, i64_t b) { return vcgeq_s64(a, b); }
INLINE i64_mask i64_not_le(i64_t a, i64_t b) { return vcgtq_s64(a, b); }
INLINE unsigned i64_bits(i64_mask m) { return (unsigned)((vgetq_lane_u64(m, 0) & 1) | (vgetq_lane_u64(m, 1) & 2)); }
INLINE i64_t i64_keep(i64_mask m, i64_t a) { return vandq_s64(vreinterpretq_s64_u64(m), a); }
INLINE i64_t i64_select(i64_mask m, i64_t a, i64_t b) { return vbslq_s64(m, a, b); }
INLINE i64_t i64_max(i64_t a, i64_t b) { return vbslq_s64(vcgtq_s64(a, b), a, b); }
INLINE i64_t i64_min(i64_t a, i64_t b) { return vbslq_s64(vcgtq_s64(a, b), b, a); }
INLINE i64_t i64_reverse(i64_t a) { return veorq_s64(a, vdupq_n_s64(-1)); }
INLINE i64_t i64_flip(i64_t a) { return veorq_s64(a, vdupq_n_s64(INT64_MIN)); }
INLINE i64_t i64_load(const int64_t *p) { return vld1q_s64(p); }
INLINE i64_t i64_load_i32(const int32_t *p) { return vmovl_s32(vld1_s32(p)); }
INLINE i64_t i64_load_u32(const uint32_t *p) { return vreinterpretq_s64_u64(vmovl_u32(vld1_u32(p))); }
INLINE void i64_store(int64_t *p, i64_t a) { vst1q_s64(p, a); }
INLINE int64_t i64_top(i64_t a) {
    const int64_t x = vgetq_lane_s64(a, 0), y = vgetq_lane_s64(a, 1);
    return x > y ? x : y;
}
INLINE int64_t i64_sum_exact(i64_t a) { return vaddvq_s64(a); }

INLINE void v32_widen(v32_t a, v64_t out[2]) {
    out[0] = vcvt_f64_f32(vget_low_f32(a));
    out[1] = vcvt_high_f64_f32(a);
}
INLINE v32_t v32_narrow(const v64_t a[2]) { return vcvt_high_f32_f64(vcvt_f32_f64(a[0]), a[1]); }

INLINE v32_t v32_splat(const float *p) { return vld1q_dup_f32(p); }
INLINE v32_t v32_tops(const v32_t r[4]) { return vpmaxq_f32(vpmaxq_f32(r[0], r[1]), vpmaxq_f32(r[2], r[3])); }
INLINE float64x2_t csm_tree_half(const v64_t a[4]) { return vaddq_f64(vaddq_f64(a[0], a[2]), vaddq_f64(a[1], a[3])); }
INLINE void v32_trees(const v64_t rows[4][4], v64_t out[2]) {
    for (int i = 0; i < 2; i++) out[i] = vpaddq_f64(csm_tree_half(rows[2 * i]), csm_tree_half(rows[2 * i + 1]));
}

#endif
