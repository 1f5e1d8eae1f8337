/* The vector functions in plain C, one lane: the specification that every other vec/ header equals bit for bit.
 *
 * v32_* computes in float, v64_* in double; the kernels spell them V(name).  Where x86 and ARM differ, a comment says
 * which behaviour is specified.  Arithmetic rounds once, to nearest even, without flush-to-zero; the bits of a NaN are
 * not specified, and kernels write the canonical one.
 */
#ifndef CSM_VEC_SCALAR_H
#define CSM_VEC_SCALAR_H

#include "half.h"

enum { v32_W = 1, v64_W = 1 };
enum { v32_SIDE = 1, v64_SIDE = 1 }; /* vectors whose exp is computed side by side ... */
enum { v32_STEP = 1, v64_STEP = 1 }; /* ... and in a step of the loop over a row */

typedef float v32_t;
typedef int v32_mask;

INLINE v32_t v32_set(double c) { return (float)c; }
INLINE v32_t v32_zero(void) { return 0; }
INLINE v32_t v32_add(v32_t a, v32_t b) { return a + b; }
INLINE v32_t v32_sub(v32_t a, v32_t b) { return a - b; }
INLINE v32_t v32_mul(v32_t a, v32_t b) { return a * b; }
INLINE v32_t v32_div(v32_t a, v32_t b) { return a / b; }
INLINE v32_t v32_sqrt(v32_t a) { return sqrtf(a); }
INLINE v32_t v32_fma(v32_t a, v32_t b, v32_t c) { return fmaf(a, b, c); }   /* a b + c */
INLINE v32_t v32_fnma(v32_t a, v32_t b, v32_t c) { return fmaf(-a, b, c); } /* c - a b */
/* The larger; the second if they are equal or either is NaN. */
INLINE v32_t v32_max(v32_t a, v32_t b) { return a > b ? a : b; }
INLINE v32_t v32_min(v32_t a, v32_t b) { return a < b ? a : b; }
INLINE v32_mask v32_eq(v32_t a, v32_t b) { return a == b; }
INLINE v32_mask v32_ordered(v32_t a) { return a == a; }
INLINE v32_mask v32_ge(v32_t a, v32_t b) { return a >= b; }
INLINE v32_mask v32_not_le(v32_t a, v32_t b) { return !(a <= b); } /* greater, or either is NaN */
INLINE v32_mask v32_unordered(v32_t a, v32_t b) { return !(a == a && b == b); }
INLINE v32_mask v32_either(v32_mask m, v32_mask n) { return m | n; }
INLINE unsigned v32_bits(v32_mask m) { return (unsigned)m; } /* bit i: lane i */
INLINE v32_t v32_keep(v32_mask m, v32_t a) { return m ? a : 0; }
INLINE v32_t v32_drop(v32_mask m, v32_t a) { return m ? 0 : a; }
INLINE v32_t v32_select(v32_mask m, v32_t a, v32_t b) { return m ? a : b; }
INLINE float v32_top(v32_t a) { return a; } /* largest lane, no lane is NaN */
INLINE double v32_sum_exact(v32_t a) { return a; } /* sum of lanes that are small integers */
/* The low bits of t as the exponent of a power of two. */
INLINE v32_t v32_exponent(v32_t t) {
    uint32_t u;
    memcpy(&u, &t, 4);
    u <<= 23;
    memcpy(&t, &u, 4);
    return t;
}
INLINE v32_t v32_load_f32(const float *p) { return *p; }
INLINE v32_t v32_load_part_f32(const float *p, size_t count, v32_t fill) { return count ? *p : fill; }
INLINE void v32_store_f32(float *p, v32_t a) { *p = a; }
INLINE void v32_store_part_f32(float *p, size_t count, v32_t a) {
    if (count) *p = a;
}
INLINE v32_t v32_load_f16(const uint16_t *p) { return csm_from_f16(*p); }
INLINE v32_t v32_load_part_f16(const uint16_t *p, size_t count, v32_t fill) { return count ? csm_from_f16(*p) : fill; }
INLINE void v32_store_f16(uint16_t *p, v32_t a) { *p = csm_to_f16(a); }
INLINE void v32_store_part_f16(uint16_t *p, size_t count, v32_t a) {
    if (count) *p = csm_to_f16(a);
}
INLINE v32_t v32_load_bf16(const uint16_t *p) { return csm_from_bf16(*p); }
INLINE v32_t v32_load_part_bf16(const uint16_t *p, size_t count, v32_t fill) {
    return count ? csm_from_bf16(*p) : fill;
}
INLINE void v32_store_bf16(uint16_t *p, v32_t a) { *p = csm_to_bf16(a); }
INLINE void v32_store_part_bf16(uint16_t *p, size_t count, v32_t a) {
    if (count) *p = csm_to_bf16(a);
}

typedef double v64_t;
typedef int v64_mask;

INLINE v64_t v64_set(double c) { return c; }
INLINE v64_t v64_zero(void) { return 0; }
INLINE v64_t v64_add(v64_t a, v64_t b) { return a + b; }
INLINE v64_t v64_sub(v64_t a, v64_t b) { return a - b; }
INLINE v64_t v64_mul(v64_t a, v64_t b) { return a * b; }
INLINE v64_t v64_div(v64_t a, v64_t b) { return a / b; }
INLINE v64_t v64_sqrt(v64_t a) { return sqrt(a); }
/* The eight lanes of 8 / W vectors as ((0+4) + (2+6)) + ((1+5) + (3+7)). */
INLINE double v64_tree(const v64_t a[8]) { return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7])); }
INLINE v64_t v64_fma(v64_t a, v64_t b, v64_t c) { return fma(a, b, c); }
INLINE v64_t v64_fnma(v64_t a, v64_t b, v64_t c) { return fma(-a, b, c); }
INLINE v64_t v64_max(v64_t a, v64_t b) { return a > b ? a : b; }
INLINE v64_t v64_min(v64_t a, v64_t b) { return a < b ? a : b; }
INLINE v64_mask v64_eq(v64_t a, v64_t b) { return a == b; }
INLINE v64_mask v64_ordered(v64_t a) { return a == a; }
INLINE v64_mask v64_ge(v64_t a, v64_t b) { return a >= b; }
INLINE v64_mask v64_not_le(v64_t a, v64_t b) { return !(a <= b); }
INLINE v64_mask v64_unordered(v64_t a, v64_t b) { return !(a == a && b == b); }
INLINE v64_mask v64_either(v64_mask m, v64_mask n) { return m | n; }
INLINE unsigned v64_bits(v64_mask m) { return (unsigned)m; }
INLINE v64_t v64_keep(v64_mask m, v64_t a) { return m ? a : 0; }
INLINE v64_t v64_drop(v64_mask m, v64_t a) { return m ? 0 : a; }
INLINE v64_t v64_select(v64_mask m, v64_t a, v64_t b) { return m ? a : b; }
INLINE double v64_top(v64_t a) { return a; }
INLINE double v64_sum_exact(v64_t a) { return a; }
INLINE v64_t v64_exponent(v64_t t) {
    uint64_t u;
    memcpy(&u, &t, 8);
    u <<= 52;
    memcpy(&t, &u, 8);
    return t;
}
INLINE v64_t v64_load_f64(const double *p) { return *p; }
INLINE v64_t v64_load_part_f64(const double *p, size_t count, v64_t fill) { return count ? *p : fill; }
INLINE void v64_store_f64(double *p, v64_t a) { *p = a; }
INLINE void v64_store_part_f64(double *p, size_t count, v64_t a) {
    if (count) *p = a;
}

/* Integers: int64_t as a lane. */
enum { i64_W = 1 };
typedef int64_t i64_t;
typedef int i64_mask;
INLINE i64_t i64_set(int64_t c) { return c; }
INLINE i64_t i64_zero(void) { return 0; }
INLINE i64_t i64_add(i64_t a, i64_t b) { return a + b; }
INLINE i64_t i64_max(i64_t a, i64_t b) { return a > b ? a : b; }
INLINE i64_t i64_min(i64_t a, i64_t b) { return a < b ? a : b; }
INLINE i64_mask i64_ge(i64_t a, i64_t b) { return a >= b; }
INLINE i64_mask i64_not_le(i64_t a, i64_t b) { return a > b; }
INLINE unsigned i64_bits(i64_mask m) { return (unsigned)m; }
INLINE i64_t i64_keep(i64_mask m, i64_t a) { return m ? a : 0; }
INLINE i64_t i64_select(i64_mask m, i64_t a, i64_t b) { return m ? a : b; }
INLINE i64_t i64_reverse(i64_t a) { return ~a; } /* the opposite order */
INLINE i64_t i64_flip(i64_t a) { return a ^ INT64_MIN; } /* the order of uint64_t */
INLINE int64_t i64_top(i64_t a) { return a; }
INLINE int64_t i64_sum_exact(i64_t a) { return a; }
INLINE i64_t i64_load(const int64_t *p) { return *p; }
INLINE i64_t i64_load_i32(const int32_t *p) { return *p; }
INLINE i64_t i64_load_u32(const uint32_t *p) { return *p; }
INLINE void i64_store(int64_t *p, i64_t a) { *p = a; }

/* The lanes of a as float64, in order. */
INLINE void v32_widen(v32_t a, v64_t out[1]) { out[0] = (double)a; }
INLINE v32_t v32_narrow(const v64_t a[1]) { return (float)a[0]; } /* and back */

/* W rows at once: the largest lane of each row; the tree of v64_tree for each row of float64 sums. */
INLINE v32_t v32_splat(const float *p) { return *p; }
INLINE v32_t v32_tops(const v32_t rows[1]) { return rows[0]; }
INLINE void v32_trees(const v64_t rows[1][8], v64_t out[1]) { out[0] = v64_tree(rows[0]); }

#endif
