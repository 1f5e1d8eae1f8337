/* A call's temperature: the constants of z = x / T, and the transformation of rows beyond their range. */
#include "temperature.h"

#include "extension.h"

/* Computes the constants for a compute type, and the largest maximum of an ordinary row. */
static void set_temperature(csm_temperature *t, double value, int single) {
    const double ln2 = 0x1.62e42fefa39efp-1, ln2_low = 0x1.abc9e3b39803fp-56, log2e = 0x1.71547652b82fep+0;
    t->t = value;
    t->tempered = value != 1;
    t->inv_t = single ? (double)(float)(1 / value) : 1 / value;
    t->inv_t_low = single ? (double)(float)(1 / value - t->inv_t) : fma(-t->inv_t, value, 1) / value;
    if (single) {
        t->log2e = (double)(float)(log2e / value);
        t->ln2_hi = t->tempered ? (double)(float)(ln2 * value) : 0x1.62e430p-1;
        t->ln2_lo = t->tempered ? (double)(float)(ln2 * value - t->ln2_hi) : -0x1.05c610p-29;
    } else {
        t->log2e = log2e / value;
        t->ln2_hi = ln2 * value;
        t->ln2_lo = fma(ln2, value, -t->ln2_hi) + ln2_low * value;
    }
    t->limit = (single ? 1e6 : 0x1p45) * value;
    t->reference_limit = (single ? 0x1p21 : 0x1p46) * value;
    /* In y T^-1 (dy - s) the factor below 1 comes last: y may be subnormal where y (dy - s) is not. */
    t->inv_t1 = value > 1 ? 1 : t->inv_t;
    t->inv_t2 = value > 1 ? t->inv_t : 1;
}

void csm_set_scales(csm_scales *s, double temperature, int single) {
    const double t = temperature, range = single ? 0x1p60 : 0x1p500;
    s->temperature = t;
    s->scale1 = s->scale2 = 1;
    s->always_transform = !(t >= 1 / range && t <= range);
    set_temperature(&s->ordinary, s->always_transform ? 1 : t, single);
    s->transformed = s->ordinary;
    if (!s->always_transform || t == 0 || !(t < CSM_INF)) return;
    int k, k1;
    double mantissa = 2 * frexp(t, &k); /* T = mantissa 2^k */
    k--;
    const int max_exponent = single ? 170 : 2100; /* beyond it the result is the limit, for any data */
    if (k < -max_exponent) k = -max_exponent;
    if (k > max_exponent) k = max_exponent;
    k1 = -k / 2;
    s->scale1 = ldexp(1, k1);
    s->scale2 = ldexp(1, -k - k1);
    set_temperature(&s->transformed, mantissa, single);
    /* |max / T| is compared with the limit for untransformed data; gradients multiply by 1/T. */
    s->ordinary.limit = (single ? 1e6 : 0x1p45) * t;
    s->ordinary.inv_t1 = s->scale1 / mantissa;
    if (single) s->ordinary.inv_t1 = (double)(float)s->ordinary.inv_t1;
    s->ordinary.inv_t2 = s->scale2;
}

#define TRANSFORM(REAL)                                                                 \
    do {                                                                                \
        REAL *x = wide;                                                                 \
        for (size_t l = 0; l < k; l++) x[l] = CSM_TRANSFORMED(REAL, x[l], scales, max); \
    } while (0)

void csm_transform(const csm_scales *scales, int single, void *wide, size_t k, double max) {
    if (single) TRANSFORM(float);
    else TRANSFORM(double);
}
