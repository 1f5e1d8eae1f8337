/* Functions of single numbers, in plain double arithmetic without contraction, so that every unit and every compiler
 * produces the same bits.  Each function states its error and its range; csm_log1p passes NaN and infinity on. */
#ifndef CSM_MATH_SCALARS_H
#define CSM_MATH_SCALARS_H

#include "../vec/standard.h"

INLINE double csm_double_of(uint64_t u) {
    double d;
    memcpy(&d, &u, 8);
    return d;
}

INLINE uint64_t csm_double_bits(double d) {
    uint64_t u;
    memcpy(&u, &d, 8);
    return u;
}
/* A select without a branch, so that compilers can vectorise loops that use it. */
INLINE double csm_choose(int which, double yes, double no) {
    const uint64_t mask = 0 - (uint64_t)which;
    return csm_double_of((csm_double_bits(yes) & mask) | (csm_double_bits(no) & ~mask));
}
INLINE double csm_magnitude(double x) { return csm_double_of(csm_double_bits(x) & 0x7fffffffffffffffu); }

#define CSM_NAN csm_double_of(0x7ff8000000000000u)
#define CSM_INF csm_double_of(0x7ff0000000000000u)

/* 2^d for an integer d <= 1023, 0 below the normal numbers. */
INLINE double csm_pow2(double d) { return d < -1022 ? 0 : csm_double_of((uint64_t)(int64_t)(d + 1023) << 52); }

/* sum += x, with the rounding error added to low (Knuth 1969). */
INLINE void csm_two_sum(double *sum, double *low, double x) {
    double s = *sum + x, v = s - *sum;
    *low += (*sum - (s - v)) + (x - v);
    *sum = s;
}

/* log(1 + q + q_low), q >= 0, q_low below its last bit; below 1 ULP (sampled with mpmath).
 * 1 + q = 2^k (1 + f) (1 + c), sqrt(1/2) <= 1 + f < sqrt 2; with s = f / (2 + f), z = s^2:
 * log(1 + f) = f - (f^2/2 - s (f^2/2 + z Q(z))), Q a minimax polynomial of 2 (atanh(s)/s - 1) / z, error 5e-16.
 * Tang 1990 (ACM TOMS 16) gives the analysis of this form; the coefficients are our own Remez fit. */
INLINE double csm_log1p(double q, double q_low) {
    const double u = 1 + q, lost = csm_choose(q < 1, q - (u - 1), 1 - (u - q));
    const int near = q < 0x1.a8279ap-2; /* sqrt 2 - 1 */
    /* carries into the exponent from sqrt(1/2) upwards */
    const uint64_t bits = csm_double_bits(u) + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu);
    const double k = csm_choose(near, 0, csm_double_of(bits >> 52 | 0x4330000000000000u) - (0x1p52 + 1023));
    const double f = csm_choose(near, q, csm_double_of((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu) - 1);
    const double c = csm_choose(near, q_low * (1 - q * (1 - q)) /* 1/(1+q), accurately enough */, (lost + q_low) / u);
    double s = f / (2 + f), z = s * s, half = 0.5 * f * f;
    double z2 = z * z, p = fma(0x1.2ba1c7b4cde5ep-3, z, 0x1.39f8622f4f1cbp-3);
    p = fma(p, z2, fma(0x1.7462e3389eed1p-3, z, 0x1.c71c6240657b5p-3));
    p = fma(p, z2, fma(0x1.2492492e74198p-2, z, 0x1.9999999994e37p-2));
    p = fma(p, z, 0x1.5555555555558p-1);
    /* ln 2 = 0x1.62e42feep-1 + 0x1.a39ef35793c76p-33, the first with 21 zero bits: k times it is exact */
    p = k * 0x1.62e42feep-1 - ((half - (s * (half + z * p) + (k * 0x1.a39ef35793c76p-33 + c))) - f);
    return csm_choose(u < CSM_INF, p, u);
}

/* (e^r - 1 - r - r^2/2) / r^3 for |r| <= 0.36, from the fit of exp.inc.h; its 1/2 is 1/2 + 0x1.4p-50. */
INLINE double csm_exp_rest(double r) {
    double r2 = r * r, q = fma(0x1.ad7e35e7d73e4p-26, r, 0x1.28ae790e15635p-22);
    q = fma(q, r2, fma(0x1.71df27c50cf1bp-19, r, 0x1.a01998fd3c442p-16));
    q = fma(q, r2, fma(0x1.a01a01288200bp-13, r, 0x1.6c16c18488a09p-10));
    q = fma(q, r2, fma(0x1.111111112836ep-7, r, 0x1.55555555506eap-5));
    return fma(q, r, 0x1.55555555554f7p-3);
}

/* log(u + u_low), u > 0 and finite, as a pair, whose low part goes to *log_low.  Error: below 2^-60, or the last digits
 * of the low part. */
static inline double csm_log(double u, double u_low, double *log_low) {
    uint64_t bits;
    double k = 0;
    if (u < 0x1p-900) { /* subnormal numbers too */
        u *= 0x1p200;
        u_low *= 0x1p200;
        k = -200;
    }
    memcpy(&bits, &u, 8);
    bits += 0x3ff0000000000000u - 0x3fe6a09e667f3bcdu; /* as in csm_log1p: u = 2^k f, sqrt(1/2) <= f < sqrt 2 */
    const double f = csm_double_of((bits & 0xfffffffffffffu) + 0x3fe6a09e667f3bcdu);
    k += (double)((int64_t)(bits >> 52) - 1023);
    double below = f, below_low = 0;
    csm_two_sum(&below, &below_low, 1);
    const double above = f - 1, s = above / below, z = s * s, z2 = z * z;
    const double s_low = (fma(-s, below, above) - s * below_low) / below;
    double q = fma(0x1.2ba1c7b4cde5ep-3, z, 0x1.39f8622f4f1cbp-3);
    q = fma(q, z2, fma(0x1.7462e3389eed1p-3, z, 0x1.c71c6240657b5p-3));
    q = fma(q, z2, fma(0x1.2492492e74198p-2, z, 0x1.9999999994e37p-2));
    q = fma(q, z, 0x1.5555555555558p-1);
    double log = k * 0x1.62e42feep-1, low = k * 0x1.a39ef35793c76p-33 + (2 * s_low + s * z * q + u_low / u);
    csm_two_sum(&log, &low, 2 * s);
    const double sum = log + low;
    *log_low = (log - sum) + low;
    return sum;
}
/* e^(w + w_low) - less, where less is 0 or 1. */
static inline double csm_exp_less(double w, double w_low, const int less) {
    if (w < -745.2) return -less;
    if (w > 709.79) return CSM_INF;
    const double n = (w * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    const double near = fma(-n, 0x1.62e42fefa39efp-1, w), rest = w_low - n * 0x1.abc9e3b39803fp-56;
    const double r = near + rest;
    const double t = r + (((near - r) + rest) + r * r * (0.5 + (r * csm_exp_rest(r) + 0x1.4p-50)));
    if (less) return n > 60 ? (t + 1) * csm_pow2(n - 1) * 2 - 1 : t * csm_pow2(n) + (csm_pow2(n) - 1);
    if (n < -1000) return (t * 0x1p-200 + 0x1p-200) * csm_pow2(n + 200);
    return (t + 1) * csm_pow2(n - 1) * 2;
}
/* (u + u_low)^(p + p_low), u > 0: the logarithm as a pair, below 2 ULP of double (sampled with mpmath). */
static inline double csm_pow(double u, double u_low, double p, double p_low) {
    if (!(u < CSM_INF)) return p > 0 ? u : p < 0 ? 0 : 1;
    double low, log = csm_log(u, u_low, &low);
    const double w = log * p;
    return csm_exp_less(w, fma(log, p, -w) + (low * p + log * p_low), 0);
}
/* An element of softmax_vjp, y (dy - s) / T, or of log_softmax_vjp, (dy - s e^y) / T, in double; s = hi + lo.  For
 * types whose range is smaller: no product is subnormal or infinite unless the result is, in the smaller type. */
static inline double csm_vjp_in_double(double dy, double y, double hi, double lo, double t, const int log) {
    if (y == (log ? -CSM_INF : 0)) return 0;
    if (!log) return y * ((dy - hi) - lo) / t;
    const double n = (y * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52, power = n > 1000 ? CSM_INF : csm_pow2(n);
    const double rest = n == 0 ? csm_exp_less(y, 0, 1) : csm_exp_less(y, 0, 0) - power; /* e^y - power */
    return fma(-hi, rest, fma(-lo, power, fma(-hi, power, dy))) / t;
}
/* (v^a - 1) / a, which tends to log(v) as a -> 0. */
static inline double csm_log_deformed(double v, double a) {
    double low, log = csm_log(v, 0, &low);
    const double w = log * a;
    return csm_exp_less(w, fma(log, a, -w) + low * a, 1) / a;
}

#endif
