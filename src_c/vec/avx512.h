/* The vector functions for AVX-512 F, BW, DQ, VL: 16 floats or 8 doubles.  scalar.h describes each function.
 * VSCALEFPS is not used: it rounds subnormal results where the specification multiplies by a power of two. */
#ifndef CSM_VEC_AVX512_H
#define CSM_VEC_AVX512_H

#ifndef CSM_AVX512_EMULATED /* the tests supply the intrinsics themselves where no CPU has them */
#include <immintrin.h>
#endif
#include "half.h"

enum { v32_W = 16, v64_W = 8 };
enum { v32_SIDE = 2, v64_SIDE = 2 }; /* vectors whose exp is computed side by side ... */
enum { v32_STEP = 8, v64_STEP = 8 }; /* ... and in a step of the loop over a row */

INLINE __mmask16 csm_mask32(size_t count) { return (__mmask16)((1u << count) - 1); }
INLINE __mmask8 csm_mask64(size_t count) { return (__mmask8)((1u << count) - 1); }

typedef __m512 v32_t;
typedef __mmask16 v32_mask;

INLINE v32_t v32_set(double c) { return _mm512_set1_ps((float)c); }
INLINE v32_t v32_zero(void) { return _mm512_setzero_ps(); }
INLINE v32_t v32_add(v32_t a, v32_t b) { return _mm512_add_ps(a, b); }
INLINE v32_t v32_sub(v32_t a, v32_t b) { return _mm512_sub_ps(a, b); }
INLINE v32_t v32_mul(v32_t a, v32_t b) { return _mm512_mul_ps(a, b); }
INLINE v32_t v32_div(v32_t a, v32_t b) { return _mm512_div_ps(a, b); }
INLINE v32_t v32_sqrt(v32_t a) { return _mm512_sqrt_ps(a); }
INLINE v32_t v32_fma(v32_t a, v32_t b, v32_t c) { return _mm512_fmadd_ps(a, b, c); }
INLINE v32_t v32_fnma(v32_t a, v32_t b, v32_t c) { return _mm512_fnmadd_ps(a, b, c); }
INLINE v32_t v32_max(v32_t a, v32_t b) { return _mm512_max_ps(a, b); }
INLINE v32_t v32_min(v32_t a, v32_t b) { return _mm512_min_ps(a, b); }
INLINE v32_mask v32_eq(v32_t a, v32_t b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE v32_mask v32_ordered(v32_t a) { return _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q); }
INLINE v32_mask v32_ge(v32_t a, v32_t b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE v32_mask v32_not_le(v32_t a, v32_t b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
INLINE v32_mask v32_unordered(v32_t a, v32_t b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
INLINE v32_mask v32_either(v32_mask m, v32_mask n) { return (v32_mask)(m | n); }
INLINE unsigned v32_bits(v32_mask m) { return m; }
INLINE v32_t v32_keep(v32_mask m, v32_t a) { return _mm512_maskz_mov_ps(m, a); }
INLINE v32_t v32_drop(v32_mask m, v32_t a) { return _mm512_maskz_mov_ps((__mmask16)~m, a); }
INLINE v32_t v32_select(v32_mask m, v32_t a, v32_t b) { return _mm512_mask_blend_ps(m, b, a); }
INLINE __m256 csm_high256(v32_t a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)); }
INLINE float v32_top(v32_t a) {
    __m256 q = _mm256_max_ps(_mm512_castps512_ps256(a), csm_high256(a));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
INLINE double v32_sum_exact(v32_t a) {
    __m256 q = _mm256_add_ps(_mm512_castps512_ps256(a), csm_high256(a));
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(q), _mm256_extractf128_ps(q, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return (double)_mm_cvtss_f32(_mm_add_ss(m, _mm_movehdup_ps(m)));
}
INLINE v32_t v32_exponent(v32_t t) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t), 23)); }

INLINE v32_t v32_load_f32(const float *p) { return _mm512_loadu_ps(p); }
INLINE v32_t v32_load_part_f32(const float *p, size_t count, v32_t fill) {
    return _mm512_mask_loadu_ps(fill, csm_mask32(count), p);
}
INLINE void v32_store_f32(float *p, v32_t a) { _mm512_storeu_ps(p, a); }
INLINE void v32_store_part_f32(float *p, size_t count, v32_t a) { _mm512_mask_storeu_ps(p, csm_mask32(count), a); }

INLINE __m256i csm_load_part16(const uint16_t *p, size_t count) {
    return _mm256_maskz_loadu_epi16(csm_mask32(count), p);
}
INLINE void csm_store_part16(uint16_t *p, size_t count, __m256i v) {
    _mm256_mask_storeu_epi16(p, csm_mask32(count), v);
}
INLINE v32_t csm_with_fill(v32_t a, size_t count, v32_t fill) {
    return _mm512_mask_blend_ps(csm_mask32(count), fill, a);
}

INLINE __m256i csm_narrow_f16(v32_t a) {
    __m256i h = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm256_mask_blend_epi16(v32_ordered(a), _mm256_set1_epi16(0x7e00), h);
}
INLINE v32_t v32_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE v32_t v32_load_part_f16(const uint16_t *p, size_t count, v32_t fill) {
    return csm_with_fill(_mm512_cvtph_ps(csm_load_part16(p, count)), count, fill);
}
INLINE void v32_store_f16(uint16_t *p, v32_t a) { _mm256_storeu_si256((__m256i *)p, csm_narrow_f16(a)); }
INLINE void v32_store_part_f16(uint16_t *p, size_t count, v32_t a) { csm_store_part16(p, count, csm_narrow_f16(a)); }

INLINE v32_t csm_widen_bf16(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
INLINE __m256i csm_narrow_bf16(v32_t a) {
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i h = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    h = _mm512_mask_blend_epi32(v32_ordered(a), _mm512_set1_epi32(0x7fc0), h);
    return _mm512_cvtepi32_epi16(h);
}
INLINE v32_t v32_load_bf16(const uint16_t *p) { return csm_widen_bf16(_mm256_loadu_si256((const __m256i *)p)); }
INLINE v32_t v32_load_part_bf16(const uint16_t *p, size_t count, v32_t fill) {
    return csm_with_fill(csm_widen_bf16(csm_load_part16(p, count)), count, fill);
}
INLINE void v32_store_bf16(uint16_t *p, v32_t a) { _mm256_storeu_si256((__m256i *)p, csm_narrow_bf16(a)); }
INLINE void v32_store_part_bf16(uint16_t *p, size_t count, v32_t a) { csm_store_part16(p, count, csm_narrow_bf16(a)); }

typedef __m512d v64_t;
typedef __mmask8 v64_mask;

INLINE v64_t v64_set(double c) { return _mm512_set1_pd(c); }
INLINE v64_t v64_zero(void) { return _mm512_setzero_pd(); }
INLINE v64_t v64_add(v64_t a, v64_t b) { return _mm512_add_pd(a, b); }
INLINE v64_t v64_sub(v64_t a, v64_t b) { return _mm512_sub_pd(a, b); }
INLINE v64_t v64_mul(v64_t a, v64_t b) { return _mm512_mul_pd(a, b); }
INLINE v64_t v64_div(v64_t a, v64_t b) { return _mm512_div_pd(a, b); }
INLINE v64_t v64_sqrt(v64_t a) { return _mm512_sqrt_pd(a); }
INLINE double v64_tree(const v64_t a[1]) {
    __m256d s = _mm256_add_pd(_mm512_castpd512_pd256(a[0]), _mm512_extractf64x4_pd(a[0], 1));
    __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
}
INLINE v64_t v64_fma(v64_t a, v64_t b, v64_t c) { return _mm512_fmadd_pd(a, b, c); }
INLINE v64_t v64_fnma(v64_t a, v64_t b, v64_t c) { return _mm512_fnmadd_pd(a, b, c); }
INLINE v64_t v64_max(v64_t a, v64_t b) { return _mm512_max_pd(a, b); }
INLINE v64_t v64_min(v64_t a, v64_t b) { return _mm512_min_pd(a, b); }
INLINE v64_mask v64_eq(v64_t a, v64_t b) { return _mm512_cmp_pd_mask(a, b, _CMP_EQ_OQ); }
INLINE v64_mask v64_ordered(v64_t a) { return _mm512_cmp_pd_mask(a, a, _CMP_ORD_Q); }
INLINE v64_mask v64_ge(v64_t a, v64_t b) { return _mm512_cmp_pd_mask(a, b, _CMP_GE_OQ); }
INLINE v64_mask v64_not_le(v64_t a, v64_t b) { return _mm512_cmp_pd_mask(a, b, _CMP_NLE_UQ); }
INLINE v64_mask v64_unordered(v64_t a, v64_t b) { return _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q); }
INLINE v64_mask v64_either(v64_mask m, v64_mask n) { return (v64_mask)(m | n); }
INLINE unsigned v64_bits(v64_mask m) { return m; }
INLINE v64_t v64_keep(v64_mask m, v64_t a) { return _mm512_maskz_mov_pd(m, a); }
INLINE v64_t v64_drop(v64_mask m, v64_t a) { return _mm512_maskz_mov_pd((__mmask8)~m, a); }
INLINE v64_t v64_select(v64_mask m, v64_t a, v64_t b) { return _mm512_mask_blend_pd(m, b, a); }
INLINE double v64_top(v64_t a) {
    __m256d q = _mm256_max_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d m = _mm_max_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
    return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
}
INLINE double v64_sum_exact(v64_t a) {
    __m256d q = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d m = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
    return _mm_cvtsd_f64(_mm_add_sd(m, _mm_unpackhi_pd(m, m)));
}
INLINE v64_t v64_exponent(v64_t t) { return _mm512_castsi512_pd(_mm512_slli_epi64(_mm512_castpd_si512(t), 52)); }
INLINE v64_t v64_load_f64(const double *p) { return _mm512_loadu_pd(p); }
INLINE v64_t v64_load_part_f64(const double *p, size_t count, v64_t fill) {
    return _mm512_mask_loadu_pd(fill, csm_mask64(count), p);
}
INLINE void v64_store_f64(double *p, v64_t a) { _mm512_storeu_pd(p, a); }
INLINE void v64_store_part_f64(double *p, size_t count, v64_t a) { _mm512_mask_storeu_pd(p, csm_mask64(count), a); }

enum { i64_W = 8 };
typedef __m512i i64_t;
typedef __mmask8 i64_mask;
INLINE i64_t i64_set(int64_t c) { return _mm512_set1_epi64(c); }
INLINE i64_t i64_zero(void) { return _mm512_setzero_si512(); }
INLINE i64_t i64_add(i64_t a, i64_t b) { return _mm512_add_epi64(a, b); }
INLINE i64_t i64_max(i64_t a, i64_t b) { return _mm512_max_epi64(a, b); }
INLINE i64_t i64_min(i64_t a, i64_t b) { return _mm512_min_epi64(a, b); }
INLINE i64_mask i64_ge(i64_t a, i64_t b) { return _mm512_cmp_epi64_mask(a, b, _MM_CMPINT_NLT); }
INLINE i64_mask i64_not_le(i64_t a, i64_t b) { return _mm512_cmp_epi64_mask(a, b, _MM_CMPINT_NLE); }
INLINE unsigned i64_bits(i64_mask m) { return m; }
INLINE i64_t i64_keep(i64_mask m, i64_t a) { return _mm512_maskz_mov_epi64(m, a); }
INLINE i64_t i64_select(i64_mask m, i64_t a, i64_t b) { return _mm512_mask_blend_epi64(m, b, a); }
INLINE i64_t i64_reverse(i64_t a) { return _mm512_xor_si512(a, _mm512_set1_epi64(-1)); }
INLINE i64_t i64_flip(i64_t a) { return _mm512_xor_si512(a, _mm512_set1_epi64(INT64_MIN)); }
INLINE i64_t i64_load(const int64_t *p) { return _mm512_loadu_si512(p); }
INLINE i64_t i64_load_i32(const int32_t *p) {
    return _mm512_cvtepi32_epi64(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE i64_t i64_load_u32(const uint32_t *p) {
    return _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
INLINE void i64_store(int64_t *p, i64_t a) { _mm512_storeu_si512(p, a); }
INLINE int64_t i64_top(i64_t a) {
    int64_t lane[8];
    i64_store(lane, a);
    for (int i = 1; i < 8; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    return lane[0];
}
INLINE int64_t i64_sum_exact(i64_t a) {
    int64_t lane[8], sum = 0;
    i64_store(lane, a);
    for (int i = 0; i < 8; i++) sum += lane[i];
    return sum;
}

INLINE void v32_widen(v32_t a, v64_t out[2]) {
    out[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(a));
    out[1] = _mm512_cvtps_pd(csm_high256(a));
}
INLINE v32_t v32_narrow(const v64_t a[2]) {
    __m512d low = _mm512_castps_pd(_mm512_castps256_ps512(_mm512_cvtpd_ps(a[0])));
    return _mm512_castpd_ps(_mm512_insertf64x4(low, _mm256_castps_pd(_mm512_cvtpd_ps(a[1])), 1));
}

INLINE v32_t v32_splat(const float *p) { return _mm512_set1_ps(*p); }
INLINE v32_t csm_tops4(v32_t a, v32_t b, v32_t c, v32_t d) { /* a b c d of each quarter */
    __m512d ab = _mm512_castps_pd(_mm512_max_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
    __m512d cd = _mm512_castps_pd(_mm512_max_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
    return _mm512_max_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)), _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)));
}
INLINE v32_t v32_tops(const v32_t r[16]) {
    v32_t p = csm_tops4(r[0], r[1], r[2], r[3]), q = csm_tops4(r[4], r[5], r[6], r[7]);
    v32_t u = csm_tops4(r[8], r[9], r[10], r[11]), v = csm_tops4(r[12], r[13], r[14], r[15]);
    v32_t pq = _mm512_max_ps(_mm512_shuffle_f32x4(p, q, 0x44), _mm512_shuffle_f32x4(p, q, 0xee));
    v32_t uv = _mm512_max_ps(_mm512_shuffle_f32x4(u, v, 0x44), _mm512_shuffle_f32x4(u, v, 0xee));
    return _mm512_max_ps(_mm512_shuffle_f32x4(pq, uv, 0x88), _mm512_shuffle_f32x4(pq, uv, 0xdd));
}
INLINE v64_t csm_tree4(v64_t a, v64_t b, v64_t c, v64_t d) { /* two numbers per row */
    v64_t ab = _mm512_add_pd(_mm512_shuffle_f64x2(a, b, 0x44), _mm512_shuffle_f64x2(a, b, 0xee));
    v64_t cd = _mm512_add_pd(_mm512_shuffle_f64x2(c, d, 0x44), _mm512_shuffle_f64x2(c, d, 0xee));
    return _mm512_add_pd(_mm512_shuffle_f64x2(ab, cd, 0x88), _mm512_shuffle_f64x2(ab, cd, 0xdd));
}
INLINE void v32_trees(const v64_t rows[16][1], v64_t out[2]) {
    for (int i = 0; i < 2; i++) {
        const v64_t(*r)[1] = rows + 8 * i;
        v64_t x = csm_tree4(r[0][0], r[2][0], r[4][0], r[6][0]), y = csm_tree4(r[1][0], r[3][0], r[5][0], r[7][0]);
        out[i] = _mm512_add_pd(_mm512_unpacklo_pd(x, y), _mm512_unpackhi_pd(x, y));
    }
}

#endif
