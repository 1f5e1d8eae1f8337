/* The vector functions for AVX2 + FMA + F16C: 8 floats or 4 doubles.  scalar.h describes each function. */
#ifndef CSM_VEC_AVX2_H
#define CSM_VEC_AVX2_H

#include <immintrin.h>
#include "half.h"

enum { v32_W = 8, v64_W = 4 };
enum { v32_SIDE = 4, v64_SIDE = 4 }; /* vectors whose exp is computed side by side ... */
enum { v32_STEP = 4, v64_STEP = 4 }; /* ... and in a step of the loop over a row */

/* Loading 8 (4) words from table + 8 - count gives the mask of the first count lanes.  Without the assumption that no
 * count is larger, GCC 16 warns of reads beyond the table (-Warray-bounds). */
static const int32_t csm_first32[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
static const int64_t csm_first64[8] = {-1, -1, -1, -1};
INLINE __m256i csm_mask32(size_t count) {
    CSM_ASSUME(count <= 8);
    return _mm256_loadu_si256((const __m256i *)(csm_first32 + 8 - count));
}
INLINE __m256i csm_mask64(size_t count) {
    CSM_ASSUME(count <= 4);
    return _mm256_loadu_si256((const __m256i *)(csm_first64 + 4 - count));
}

typedef __m256 v32_t;
typedef __m256 v32_mask;

INLINE v32_t v32_set(double c) { return _mm256_set1_ps((float)c); }
INLINE v32_t v32_zero(void) { return _mm256_setzero_ps(); }
INLINE v32_t v32_add(v32_t a, v32_t b) { return _mm256_add_ps(a, b); }
INLINE v32_t v32_sub(v32_t a, v32_t b) { return _mm256_sub_ps(a, b); }
INLINE v32_t v32_mul(v32_t a, v32_t b) { return _mm256_mul_ps(a, b); }
INLINE v32_t v32_div(v32_t a, v32_t b) { return _mm256_div_ps(a, b); }
INLINE v32_t v32_sqrt(v32_t a) { return _mm256_sqrt_ps(a); }
INLINE v32_t v32_fma(v32_t a, v32_t b, v32_t c) { return _mm256_fmadd_ps(a, b, c); }
INLINE v32_t v32_fnma(v32_t a, v32_t b, v32_t c) { return _mm256_fnmadd_ps(a, b, c); }
INLINE v32_t v32_max(v32_t a, v32_t b) { return _mm256_max_ps(a, b); }
INLINE v32_t v32_min(v32_t a, v32_t b) { return _mm256_min_ps(a, b); }
INLINE v32_mask v32_eq(v32_t a, v32_t b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
INLINE v32_mask v32_ordered(v32_t a) { return _mm256_cmp_ps(a, a, _CMP_ORD_Q); }
INLINE v32_mask v32_ge(v32_t a, v32_t b) { return _mm256_cmp_ps(a, b, _CMP_GE_OQ); }
INLINE v32_mask v32_not_le(v32_t a, v32_t b) { return _mm256_cmp_ps(a, b, _CMP_NLE_UQ); }
INLINE v32_mask v32_unordered(v32_t a, v32_t b) { return _mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
INLINE v32_mask v32_either(v32_mask m, v32_mask n) { return _mm256_or_ps(m, n); }
INLINE unsigned v32_bits(v32_mask m) { return (unsigned)_mm256_movemask_ps(m); }
INLINE v32_t v32_keep(v32_mask m, v32_t a) { return _mm256_and_ps(m, a); }
INLINE v32_t v32_drop(v32_mask m, v32_t a) { return _mm256_andnot_ps(m, a); }
INLINE v32_t v32_select(v32_mask m, v32_t a, v32_t b) { return _mm256_blendv_ps(b, a, m); }
INLINE float v32_top(v32_t a) {
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
INLINE double v32_sum_exact(v32_t a) {
    __m128 m = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    m = _mm_add_ps(m, _mm_movehl_ps(m, m));
    return (double)_mm_cvtss_f32(_mm_add_ss(m, _mm_movehdup_ps(m)));
}
INLINE v32_t v32_exponent(v32_t t) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t), 23)); }

INLINE v32_t v32_load_f32(const float *p) { return _mm256_loadu_ps(p); }
INLINE v32_t v32_load_part_f32(const float *p, size_t count, v32_t fill) {
    __m256i m = csm_mask32(count);
    return _mm256_blendv_ps(fill, _mm256_maskload_ps(p, m), _mm256_castsi256_ps(m));
}
INLINE void v32_store_f32(float *p, v32_t a) { _mm256_storeu_ps(p, a); }
/* Not vmaskmovps: its store form is microcoded on Zen. */
INLINE void v32_store_part_f32(float *p, size_t count, v32_t a) {
    __m128 h = _mm256_castps256_ps128(a);
    if (count & 4) {
        _mm_storeu_ps(p, h);
        h = _mm256_extractf128_ps(a, 1);
        p += 4;
    }
    if (count & 2) {
        _mm_storel_pi((__m64 *)p, h);
        h = _mm_movehl_ps(h, h);
        p += 2;
    }
    if (count & 1) _mm_store_ss(p, h);
}

/* Eight half words: the first count of them from memory, the rest 0. */
INLINE __m128i csm_load_part16(const uint16_t *p, size_t count) {
    union {
        uint16_t h[8];
        __m128i v;
    } u;
    u.v = _mm_setzero_si128();
    for (size_t i = 0; i < count && i < 8; i++) u.h[i] = p[i];
    return u.v;
}
INLINE void csm_store_part16(uint16_t *p, size_t count, __m128i v) {
    if (count & 4) {
        _mm_storel_epi64((__m128i *)p, v);
        v = _mm_unpackhi_epi64(v, v);
        p += 4;
    }
    if (count & 2) {
        int32_t two = _mm_cvtsi128_si32(v);
        memcpy(p, &two, 4);
        v = _mm_srli_si128(v, 4);
        p += 2;
    }
    if (count & 1) *p = (uint16_t)_mm_cvtsi128_si32(v);
}
INLINE v32_t csm_with_fill(v32_t a, size_t count, v32_t fill) {
    return _mm256_blendv_ps(fill, a, _mm256_castsi256_ps(csm_mask32(count)));
}

INLINE __m128i csm_narrow_f16(v32_t a) {
    __m128i h = _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    /* canonical NaN: where a is unordered, 0x7e00 */
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    __m128i n = _mm_packs_epi32(_mm256_castsi256_si128(nan), _mm256_extracti128_si256(nan, 1));
    return _mm_blendv_epi8(h, _mm_set1_epi16(0x7e00), n);
}
INLINE v32_t v32_load_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE v32_t v32_load_part_f16(const uint16_t *p, size_t count, v32_t fill) {
    return csm_with_fill(_mm256_cvtph_ps(csm_load_part16(p, count)), count, fill);
}
INLINE void v32_store_f16(uint16_t *p, v32_t a) { _mm_storeu_si128((__m128i *)p, csm_narrow_f16(a)); }
INLINE void v32_store_part_f16(uint16_t *p, size_t count, v32_t a) { csm_store_part16(p, count, csm_narrow_f16(a)); }

INLINE v32_t csm_widen_bf16(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
INLINE __m128i csm_narrow_bf16(v32_t a) {
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i h = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    h = _mm256_blendv_epi8(h, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
}
INLINE v32_t v32_load_bf16(const uint16_t *p) { return csm_widen_bf16(_mm_loadu_si128((const __m128i *)p)); }
INLINE v32_t v32_load_part_bf16(const uint16_t *p, size_t count, v32_t fill) {
    return csm_with_fill(csm_widen_bf16(csm_load_part16(p, count)), count, fill);
}
INLINE void v32_store_bf16(uint16_t *p, v32_t a) { _mm_storeu_si128((__m128i *)p, csm_narrow_bf16(a)); }
INLINE void v32_store_part_bf16(uint16_t *p, size_t count, v32_t a) { csm_store_part16(p, count, csm_narrow_bf16(a)); }

typedef __m256d v64_t;
typedef __m256d v64_mask;

INLINE v64_t v64_set(double c) { return _mm256_set1_pd(c); }
INLINE v64_t v64_zero(void) { return _mm256_setzero_pd(); }
INLINE v64_t v64_add(v64_t a, v64_t b) { return _mm256_add_pd(a, b); }
INLINE v64_t v64_sub(v64_t a, v64_t b) { return _mm256_sub_pd(a, b); }
INLINE v64_t v64_mul(v64_t a, v64_t b) { return _mm256_mul_pd(a, b); }
INLINE v64_t v64_div(v64_t a, v64_t b) { return _mm256_div_pd(a, b); }
INLINE v64_t v64_sqrt(v64_t a) { return _mm256_sqrt_pd(a); }
INLINE double v64_tree(const v64_t a[2]) {
    __m256d s = _mm256_add_pd(a[0], a[1]);
    __m128d t = _mm_add_pd(_mm256_castpd256_pd128(s), _mm256_extractf128_pd(s, 1));
    return _mm_cvtsd_f64(_mm_add_sd(t, _mm_unpackhi_pd(t, t)));
}
INLINE v64_t v64_fma(v64_t a, v64_t b, v64_t c) { return _mm256_fmadd_pd(a, b, c); }
INLINE v64_t v64_fnma(v64_t a, v64_t b, v64_t c) { return _mm256_fnmadd_pd(a, b, c); }
INLINE v64_t v64_max(v64_t a, v64_t b) { return _mm256_max_pd(a, b); }
INLINE v64_t v64_min(v64_t a, v64_t b) { return _mm256_min_pd(a, b); }
INLINE v64_mask v64_eq(v64_t a, v64_t b) { return _mm256_cmp_pd(a, b, _CMP_EQ_OQ); }
INLINE v64_mask v64_ordered(v64_t a) { return _mm256_cmp_pd(a, a, _CMP_ORD_Q); }
INLINE v64_mask v64_ge(v64_t a, v64_t b) { return _mm256_cmp_pd(a, b, _CMP_GE_OQ); }
INLINE v64_mask v64_not_le(v64_t a, v64_t b) { return _mm256_cmp_pd(a, b, _CMP_NLE_UQ); }
INLINE v64_mask v64_unordered(v64_t a, v64_t b) { return _mm256_cmp_pd(a, b, _CMP_UNORD_Q); }
INLINE v64_mask v64_either(v64_mask m, v64_mask n) { return _mm256_or_pd(m, n); }
INLINE unsigned v64_bits(v64_mask m) { return (unsigned)_mm256_movemask_pd(m); }
INLINE v64_t v64_keep(v64_mask m, v64_t a) { return _mm256_and_pd(m, a); }
INLINE v64_t v64_drop(v64_mask m, v64_t a) { return _mm256_andnot_pd(m, a); }
INLINE v64_t v64_select(v64_mask m, v64_t a, v64_t b) { return _mm256_blendv_pd(b, a, m); }
INLINE double v64_top(v64_t a) {
    __m128d m = _mm_max_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_max_sd(m, _mm_unpackhi_pd(m, m)));
}
INLINE double v64_sum_exact(v64_t a) {
    __m128d m = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(m, _mm_unpackhi_pd(m, m)));
}
INLINE v64_t v64_exponent(v64_t t) { return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_castpd_si256(t), 52)); }
INLINE v64_t v64_load_f64(const double *p) { return _mm256_loadu_pd(p); }
INLINE v64_t v64_load_part_f64(const double *p, size_t count, v64_t fill) {
    __m256i m = csm_mask64(count);
    return _mm256_blendv_pd(fill, _mm256_maskload_pd(p, m), _mm256_castsi256_pd(m));
}
INLINE void v64_store_f64(double *p, v64_t a) { _mm256_storeu_pd(p, a); }
INLINE void v64_store_part_f64(double *p, size_t count, v64_t a) {
    __m128d h = _mm256_castpd256_pd128(a);
    if (count & 2) {
        _mm_storeu_pd(p, h);
        h = _mm256_extractf128_pd(a, 1);
        p += 2;
    }
    if (count & 1) _mm_store_sd(p, h);
}

enum { i64_W = 4 };
typedef __m256i i64_t;
typedef __m256i i64_mask;
INLINE i64_t i64_set(int64_t c) { return _mm256_set1_epi64x(c); }
INLINE i64_t i64_zero(void) { return _mm256_setzero_si256(); }
INLINE i64_t i64_add(i64_t a, i64_t b) { return _mm256_add_epi64(a, b); }
INLINE i64_mask i64_not_le(i64_t a, i64_t b) { return _mm256_cmpgt_epi64(a, b); }
INLINE i64_mask i64_ge(i64_t a, i64_t b) { return _mm256_or_si256(_mm256_cmpgt_epi64(a, b), _mm256_cmpeq_epi64(a, b)); }
INLINE unsigned i64_bits(i64_mask m) { return (unsigned)_mm256_movemask_pd(_mm256_castsi256_pd(m)); }
INLINE i64_t i64_keep(i64_mask m, i64_t a) { return _mm256_and_si256(m, a); }
INLINE i64_t i64_select(i64_mask m, i64_t a, i64_t b) { return _mm256_blendv_epi8(b, a, m); }
INLINE i64_t i64_max(i64_t a, i64_t b) { return i64_select(_mm256_cmpgt_epi64(a, b), a, b); }
INLINE i64_t i64_min(i64_t a, i64_t b) { return i64_select(_mm256_cmpgt_epi64(a, b), b, a); }
INLINE i64_t i64_reverse(i64_t a) { return _mm256_xor_si256(a, _mm256_set1_epi64x(-1)); }
INLINE i64_t i64_flip(i64_t a) { return _mm256_xor_si256(a, _mm256_set1_epi64x(INT64_MIN)); }
INLINE i64_t i64_load(const int64_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
INLINE i64_t i64_load_i32(const int32_t *p) {
    return _mm256_cvtepi32_epi64(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE i64_t i64_load_u32(const uint32_t *p) {
    return _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i *)(const void *)p));
}
INLINE void i64_store(int64_t *p, i64_t a) { _mm256_storeu_si256((__m256i *)(void *)p, a); }
INLINE int64_t i64_top(i64_t a) {
    int64_t lane[4];
    i64_store(lane, a);
    for (int i = 1; i < 4; i++) lane[0] = lane[i] > lane[0] ? lane[i] : lane[0];
    return lane[0];
}
INLINE int64_t i64_sum_exact(i64_t a) {
    int64_t lane[4];
    i64_store(lane, a);
    return (lane[0] + lane[1]) + (lane[2] + lane[3]);
}

INLINE void v32_widen(v32_t a, v64_t out[2]) {
    out[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(a));
    out[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(a, 1));
}
INLINE v32_t v32_narrow(const v64_t a[2]) { return _mm256_set_m128(_mm256_cvtpd_ps(a[1]), _mm256_cvtpd_ps(a[0])); }

INLINE v32_t v32_splat(const float *p) { return _mm256_broadcast_ss(p); }
INLINE v32_t csm_tops4(v32_t a, v32_t b, v32_t c, v32_t d) { /* a b c d of each half */
    __m256d ab = _mm256_castps_pd(_mm256_max_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b)));
    __m256d cd = _mm256_castps_pd(_mm256_max_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d)));
    return _mm256_max_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)), _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)));
}
INLINE v32_t v32_tops(const v32_t r[8]) {
    v32_t p = csm_tops4(r[0], r[1], r[2], r[3]), q = csm_tops4(r[4], r[5], r[6], r[7]);
    return _mm256_max_ps(_mm256_permute2f128_ps(p, q, 0x20), _mm256_permute2f128_ps(p, q, 0x31));
}
INLINE __m256d csm_tree_pair(const v64_t a[2], const v64_t b[2]) {
    __m256d x = _mm256_add_pd(a[0], a[1]), y = _mm256_add_pd(b[0], b[1]);
    return _mm256_add_pd(_mm256_permute2f128_pd(x, y, 0x20), _mm256_permute2f128_pd(x, y, 0x31));
}
INLINE void v32_trees(const v64_t rows[8][2], v64_t out[2]) {
    for (int i = 0; i < 2; i++) {
        __m256d x = csm_tree_pair(rows[4 * i], rows[4 * i + 2]), y = csm_tree_pair(rows[4 * i + 1], rows[4 * i + 3]);
        out[i] = _mm256_add_pd(_mm256_unpacklo_pd(x, y), _mm256_unpackhi_pd(x, y));
    }
}

#endif
