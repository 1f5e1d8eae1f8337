/* Numbers of any magnitude: a pair of doubles and an exponent.  For rows whose intermediate results leave the range of
 * double and whose result does not, which are rare: an operation takes about 10 ns.  Sums, products and quotients are
 * accurate to about 2^-100.  Finite numbers only; what is too large for the result becomes infinite in
 * csm_factor_rounded.
 */
#ifndef CSM_MATH_FACTOR_H
#define CSM_MATH_FACTOR_H

#include "pair.h"

/* m 2^e. */
typedef struct csm_factor {
    csm_pair m;
    double e;
} csm_factor;

/* A number with its mantissa between 1 and 2; 0: all members are 0. */
INLINE csm_factor csm_factor_of(csm_pair m, double e) {
    csm_factor f = {m, 0};
    if (m.hi == 0) return f;
    const double exponent = csm_take_exponent(&f.m.hi);
    f.m.lo = csm_times_pow2(m.lo, -exponent);
    f.e = e + exponent;
    return f;
}
INLINE csm_factor csm_factor_of_number(double x) { return csm_factor_of(csm_pair_of(x, 0), 0); }
INLINE csm_factor csm_factor_mul(csm_factor a, csm_factor b) {
    return csm_factor_of(csm_pair_mul(a.m, b.m), a.e + b.e);
}
INLINE csm_factor csm_factor_div(csm_factor a, csm_factor b) {
    return csm_factor_of(csm_pair_div(a.m, b.m), a.e - b.e);
}
INLINE csm_factor csm_factor_minus(csm_factor a) {
    a.m.hi = -a.m.hi;
    a.m.lo = -a.m.lo;
    return a;
}
INLINE csm_factor csm_factor_add(csm_factor a, csm_factor b) {
    if (a.m.hi == 0) return b;
    if (b.m.hi == 0) return a;
    if (a.e < b.e) {
        const csm_factor c = a;
        a = b;
        b = c;
    }
    if (b.e - a.e < -250) return a; /* below the last digit of a pair */
    const double power = csm_pow2(b.e - a.e);
    double hi = a.m.hi, lo = a.m.lo + b.m.lo * power;
    csm_two_sum(&hi, &lo, b.m.hi * power);
    const double sum = hi + lo;
    return csm_factor_of(csm_pair_of(sum, (hi - sum) + lo), a.e);
}
INLINE double csm_factor_rounded(csm_factor a) { return csm_times_pow2(a.m.hi, a.e); }
/* Whether |a| > |b|. */
INLINE int csm_factor_exceeds(csm_factor a, csm_factor b) {
    if (a.m.hi == 0 || b.m.hi == 0) return a.m.hi != 0;
    return a.e != b.e ? a.e > b.e : fabs(a.m.hi) > fabs(b.m.hi);
}

/* exp((x - max) / T); error: below 1 ULP of double, near 1 of the difference from 1. */
INLINE csm_factor csm_factor_exp(double x, double max, csm_factor t) {
    const csm_factor d = csm_factor_add(csm_factor_of_number(x), csm_factor_minus(csm_factor_of_number(max)));
    const csm_factor z = csm_factor_div(d, t), one = csm_factor_of_number(1), nothing = {{0, 0}, 0};
    const csm_factor infinite = {{1, 0}, 100000};
    if (!(x > -CSM_INF) || (z.m.hi < 0 && z.e > 14)) return nothing;
    if (z.m.hi > 0 && z.e > 14) return infinite;
    if (z.m.hi == 0 || z.e < -200) return one;
    const double hi = csm_times_pow2(z.m.hi, z.e), n = (hi * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    const double near = fma(-n, 0x1.62e42fefa39efp-1, hi);
    const double rest = csm_times_pow2(z.m.lo, z.e) - n * 0x1.abc9e3b39803fp-56, r = near + rest;
    const double more = r + (((near - r) + rest) + r * r * (0.5 + (r * csm_exp_rest(r) + 0x1.4p-50)));
    double sum = 1, low = 0;
    csm_two_sum(&sum, &low, more);
    return csm_factor_of(csm_pair_of(sum, low), n);
}

/* An element of log_softmax_vjp, (dy - s e^y) / T, s = hi + lo. */
static inline double csm_log_vjp_exact(double dy, double y, double hi, double lo, double t) {
    const csm_factor s = csm_factor_add(csm_factor_of_number(hi), csm_factor_of_number(lo));
    const csm_factor product = csm_factor_mul(s, csm_factor_exp(y, 0, csm_factor_of_number(1)));
    const csm_factor d = csm_factor_add(csm_factor_of_number(dy), csm_factor_minus(product));
    return 0 + csm_factor_rounded(csm_factor_div(d, csm_factor_of_number(t))); /* no -0 */
}

#endif
