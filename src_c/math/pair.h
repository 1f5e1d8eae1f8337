/* Unevaluated sums of two doubles, and numbers split into mantissa and exponent.  Products and quotients are accurate
 * to about 2^-100; NaN passes through every function. */
#ifndef CSM_MATH_PAIR_H
#define CSM_MATH_PAIR_H

#include "scalars.h"

typedef struct csm_pair {
    double hi, lo;
} csm_pair;

INLINE csm_pair csm_pair_of(double hi, double lo) {
    csm_pair p = {hi, lo};
    return p;
}
/* Products and quotients to about 2^-100 (Dekker 1971), of numbers in the middle of the range. */
INLINE csm_pair csm_pair_mul(csm_pair a, csm_pair b) {
    double p = a.hi * b.hi, low = fma(a.hi, b.hi, -p) + (a.hi * b.lo + a.lo * b.hi), s = p + low;
    return csm_pair_of(s, low - (s - p));
}
INLINE csm_pair csm_pair_div(csm_pair a, csm_pair b) {
    double q = a.hi / b.hi, low = (fma(-q, b.hi, a.hi) + (a.lo - q * b.lo)) / b.hi, s = q + low;
    return csm_pair_of(s, low - (s - q));
}
/* Scales x to 1 <= |x| < 2 and returns the exponent.  Infinity becomes 1 with a large exponent; 0 and NaN are left
 * unchanged. */
INLINE double csm_take_exponent(double *x) {
    uint64_t bits;
    double e = 0;
    if (*x == 0 || *x != *x) return 0;
    if (*x < 0x1p-1022 && *x > -0x1p-1022) {
        *x *= 0x1p600;
        e = -600;
    }
    memcpy(&bits, x, 8);
    e += (double)((int64_t)(bits >> 52 & 0x7ff) - 1023);
    if (!(*x - *x == 0)) e = 100000;
    bits = (bits & 0x800fffffffffffffu) | 0x3ff0000000000000u;
    memcpy(x, &bits, 8);
    return e;
}
INLINE double csm_times_pow2(double x, double e) { /* e: an integer of any size */
    double half;
    e = e < -2200 ? -2200 : e > 2046 ? 2046 : e;
    half = (e * 0.5 + 0x1.8p52) - 0x1.8p52;
    return x * csm_pow2(half < -1022 ? -1022 : half) * csm_pow2(e - half < -1022 ? -1022 : e - half);
}

/* 1 / x, x > 0, as a pair near 1, times 2^exponent. */
INLINE csm_pair csm_pair_reciprocal(double x, double *exponent) {
    *exponent = -csm_take_exponent(&x);
    return csm_pair_div(csm_pair_of(1, 0), csm_pair_of(x, 0));
}

#endif
