/* A call's temperature: the constants of z = x / T, and the transformation of rows beyond their range. */
#include "temperature.h"

#include "extension.h"

/* Computes the constants for a compute type, and the largest maximum of an ordinary row. */
static inline void set_temperature(csm_temperature *t, double value, int single) {
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
    t->distance = value;
    /* In y T^-1 (dy - s) the factor below 1 comes last: y may be subnormal where y (dy - s) is not. */
    t->inv_t1 = value > 1 ? 1 : t->inv_t;
    t->inv_t2 = value > 1 ? t->inv_t : 1;
}

void csm_set_ordinary(csm_temperature *t, const double *temperatures, size_t count, int single) {
    if (single)
        for (size_t i = 0; i < count; i++) set_temperature(&t[i], temperatures[i], 1);
    else
        for (size_t i = 0; i < count; i++) set_temperature(&t[i], temperatures[i], 0);
}

/* Makes the transformed rows those of x / 2 and T / 2; as only powers of two differ, the bits are those of x and T. */
static void halve(csm_scales *s) {
    csm_temperature *t = &s->transformed;
    s->scale0 = 0.5;
    t->t *= 0.5;
    t->ln2_hi *= 0.5;
    t->ln2_lo *= 0.5;
    t->log2e *= 2;
    t->inv_t *= 2;
    t->inv_t_low *= 2;
    t->limit *= 0.5;
    t->reference_limit *= 0.5;
}

/* Sets the two factors of 1/T for gradients of an extreme T = mantissa 2^k, 1 <= mantissa < 2, so that y (dy - s) / T,
 * computed in their order, is subnormal or infinite on the way only if the result is: the factor above 1 comes first,
 * as far as its range goes, the factor below 1 last. */
static void set_reciprocal(csm_temperature *t, double mantissa, int k) {
    const int up = -k > 1000 ? 1000 : -k;
    t->inv_t1 = k < 0 ? ldexp(1, up) / mantissa : k > 1000 ? 1 / mantissa : 1;
    t->inv_t2 = k < 0 ? ldexp(1, -k - up) : k > 1000 ? ldexp(1, -k) : 1 / ldexp(mantissa, k);
}

void csm_set_scales(csm_scales *s, double temperature, int single) {
    const double t = temperature, range = single ? 0x1p60 : 0x1p500;
    s->temperature = t;
    s->scale0 = s->scale1 = s->scale2 = s->lift = 1;
    s->always_transform = !(t >= 1 / range && t <= range);
    set_temperature(&s->ordinary, s->always_transform ? 1 : t, single);
    s->transformed = s->ordinary;
    s->transformed.distance = 1;
    if (t == 0 || t == 1 || !(t < CSM_INF)) return;
    /* For T > 1, x is halved before max is subtracted, so that x - max cannot overflow where the result does not. */
    if (!s->always_transform) {
        if (t > 1) halve(s);
        return;
    }
    /* T = mantissa 2^k, 1/2 <= mantissa < 1: what is transformed is not larger than x / T. */
    int k;
    const double mantissa = frexp(t, &k);
    const int power = k > 0 ? 1 - k : -k;
    s->scale0 = k > 0 ? 0.5 : 1;
    s->scale1 = ldexp(1, power / 2);
    s->scale2 = ldexp(1, power - power / 2);
    set_temperature(&s->transformed, mantissa, single);
    s->transformed.distance = 1;
    s->ordinary.limit = (single ? 1e6 : 0x1p45) * t; /* |max / T| is compared with the limit for untransformed data */
    /* With such a T the gradient is finite only where |y dy| < 2^224, and a dy that overflows here, of more than 2^724,
     * belongs to a y below 2^-500. */
    if (!single && t < 0x1p-800) s->lift = 0x1p300;
    set_reciprocal(&s->ordinary, 2 * mantissa, k - 1 + (s->lift != 1 ? 300 : 0));
}

void csm_transform(const csm_scales *scales, int single, void *wide, size_t k, double max) {
    float *x = wide;
    double *y = wide;
    for (size_t l = 0; l < k && single; l++) x[l] = (float)csm_transformed(scales, (double)x[l], max);
    for (size_t l = 0; l < k && !single; l++) y[l] = csm_transformed(scales, y[l], max);
}
