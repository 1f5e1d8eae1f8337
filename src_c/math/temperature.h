/* Constants of z = x / T, and the range of rows that they are valid for. */
#ifndef CSM_MATH_TEMPERATURE_H
#define CSM_MATH_TEMPERATURE_H

#include "scalars.h"

/* Constants of z = x / T for one compute type; every value is already rounded to that type. */
typedef struct csm_temperature {
    double t;                     /* T of the constants; 1 if rows are transformed first */
    int tempered;                 /* t != 1: r needs the factor 1/T */
    double log2e, ln2_hi, ln2_lo; /* log2(e)/T and the pair T ln 2 */
    double inv_t, inv_t_low;      /* 1/T rounded, and the rounding error */
    double inv_t1, inv_t2;        /* 1/T as a product of two factors that neither overflow nor underflow */
    double limit;                 /* rows with |max| <= limit take the ordinary path (NaN and infinity do not) */
    double reference_limit;       /* the reference maximum of a block is clamped to this */
    double distance;              /* T in the units of a loss's weighted distances; 1 in rows that are transformed */
} csm_temperature;

/* A call's temperature: constants for ordinary rows, and for rows that are transformed first (ops/softmax_row.c): x, or
 * x minus the maximum, times scale0, scale1 and scale2, powers of two. */
typedef struct csm_scales {
    double temperature, scale0, scale1, scale2;
    double lift; /* of dy in gradients, a power of two that 1/T does not contain: for T so small that dy is subnormal */
    csm_temperature ordinary, transformed;
    int always_transform; /* T is 0, infinite or outside the range of `ordinary` */
} csm_scales;

/* Whether gradients of floats are computed in double: float has too little range for the factors of 1/T, or a
 * probability that is subnormal in float, times 1/T, shows its rounding. */
INLINE int csm_exceeds_float(const csm_scales *s) { return !(s->temperature >= 0.25 && s->temperature <= 0x1p100); }

/* The power of two by which a gradient of log_softmax is lifted before it is multiplied by the rest of 1/T: at most 1/T
 * for T < 1; below 1 where 1/T itself would be subnormal. */
INLINE double csm_lift_of(const csm_temperature *t) {
    if (!(t->inv_t1 >= 1)) return 0x1p-100;
    return csm_double_of(csm_double_bits(t->inv_t1) & 0x7ff0000000000000u);
}
/* Whether the kernels of gradients compute a row, given its sum s.  Log: not if s p / T can be a number where p
 * underflows with the bias of e^y, or if s overflows with the lift.  Softmax of doubles with T < 1: not if s underflows
 * where s / T does not. */
INLINE int csm_vjp_is_ordinary(const csm_temperature *t, double s, const int log, const int single) {
    if (log) return !(fabs(s) * (t->inv_t1 * t->inv_t2) >= (single ? 0x1p36 : 0x1p440)) || !(s - s == 0);
    return single || !(t->inv_t1 > 1) || !(fabs(s) < 0x1p-900);
}
/* In a row of log_softmax: elements with a y below this are computed by csm_log_vjp_exact.  in_double: elements of
 * floats are computed by csm_vjp_in_double. */
INLINE double csm_vjp_exact_below(const csm_temperature *t, double s, const int single, const int in_double) {
    const double largest = fabs(s) * (t->inv_t1 * t->inv_t2);
    if (csm_vjp_is_ordinary(t, s, 1, single)) return -CSM_INF;
    if (single) return !in_double ? -125 : largest >= 0x1p850 ? -690 : -CSM_INF;
    return t->inv_t1 > 1 && largest >= 0x1p1000 ? CSM_INF : -1045;
}
/* The power of two, at most 1/T, for the dy of such a row of softmax, so that the largest |dy| does not overflow. */
INLINE double csm_vjp_lift(const csm_temperature *t, double max) {
    const double power = csm_lift_of(t), limit = 0x1p1000 / max; /* infinite for 0 */
    const double lift = limit < power ? csm_double_of(csm_double_bits(limit) & 0x7ff0000000000000u) : power;
    return max > 0 && lift > 1 ? lift : 1;
}

/* The power of two by which an entropy's distances m - x are multiplied, so that they are near (m - x) / T: the rest of
 * the division comes after the sum. */
INLINE double csm_distance_scale(const csm_temperature *t) {
    return csm_double_of(0x7fe0000000000000u - (csm_double_bits(t->t) & 0x7ff0000000000000u));
}

/* The maximum of a block, clamped if it is infinite or far outside the ordinary range. */
INLINE double csm_reference(double max, const csm_temperature *t) {
    return max > t->reference_limit ? t->reference_limit : max < -t->reference_limit ? -t->reference_limit : max;
}

/* Whether exp's range reduction works for a row with this maximum without a transformation; false for NaN and
 * infinity. */
INLINE int csm_is_ordinary(const csm_temperature *t, double max) { return max <= t->limit && max >= -t->limit; }
INLINE int csm_fits_range(const csm_scales *s, double max) {
    return !s->always_transform && csm_is_ordinary(&s->ordinary, max);
}

/* x of any other row, transformed as the table in ops/softmax_row.c says.  max: the row's maximum.  In double for every
 * type: in float, neither the scales nor x - max would have enough range. */
INLINE double csm_transformed(const csm_scales *s, double x, double max) {
    if (s->temperature == 0) return x == max ? 0 : x < max ? -CSM_INF : x;
    if (!(s->temperature < CSM_INF)) return x > -CSM_INF ? 0 : x;
    const double reference = csm_is_ordinary(&s->ordinary, max) ? 0 : max * s->scale0;
    return (x * s->scale0 - reference) * s->scale1 * s->scale2;
}

#endif
