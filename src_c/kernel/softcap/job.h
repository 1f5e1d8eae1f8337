/* The soft cap of logits, c tanh(x / c): its constants, and the table of its kernels. */
#ifndef CSM_SOFTCAP_JOB_H
#define CSM_SOFTCAP_JOB_H

#include "../../math/pair.h"
#include "../../math/temperature.h"

enum { CSM_SOFTCAP_TERMS_F32 = 6, CSM_SOFTCAP_TERMS_F64 = 14 };

typedef struct csm_softcap {
    double cap, per_square;  /* c and 1 / c^2 */
    double largest_square;   /* the largest x^2 for which tanh is a polynomial */
    double
        terms[CSM_SOFTCAP_TERMS_F64]; /* of that polynomial in x^2, the highest first; in float CSM_SOFTCAP_TERMS_F32 */
    double exponent; /* the constants are those of c 2^-exponent */
    csm_temperature half; /* of exp(-|x| / (c / 2)) */
} csm_softcap;

/* What a kernel has seen.  far: the largest finite |x| that is not small beside c, or 0.  max: of y, without NaN; for
 * fewer elements than a vector it is NaN. */
typedef struct csm_capped {
    double far, max;
} csm_capped;

typedef struct csm_softcap_kernels {
    /* y = c tanh(x / c), and slope, unless it is NULL, its derivative; y and slope have the compute type and do not
     * overlap x. */
    csm_capped (*cap)(const void *x, void *y, void *slope, size_t k, const csm_softcap *);
} csm_softcap_kernels;

/* Logits with another cap than 2^-10 to 2^10, for which the constants are in the range of float, are computed times
 * 2^-exponent.  First what the kernel gets for a logit, then c tanh(x / c) from that and what the kernel gives. */
INLINE double csm_softcap_scaled(const csm_softcap *s, double x, double largest) {
    const double z = csm_times_pow2(x, -s->exponent);
    return x - x != 0 ? x : z > largest ? largest : z < -largest ? -largest : z;
}
INLINE double csm_softcap_unscaled(const csm_softcap *s, double x, double z, double y) {
    return fabs(z) < 0x1p-28 ? x : csm_times_pow2(y, s->exponent); /* x, which z may have lost, rounds to itself */
}

INLINE double csm_capped_gradient_at(const void *g, int is_single, size_t j) {
    return is_single ? (double)((const float *)g)[j] : ((const double *)g)[j];
}
/* Clips the gradient of a row, in the compute type, times the slopes; it contains the factor |k|. */
INLINE void csm_clip_capped(void *g, int is_single, size_t n, double clip_norm, double clip_value, double k) {
    double largest = 0, square = 0, low = 0, shrink = 1;
    for (size_t j = 0; j < n; j++) {
        const double a = fabs(csm_capped_gradient_at(g, is_single, j));
        if (a > largest) largest = a;
    }
    if (largest == 0 || !(largest < CSM_INF)) return; /* zeros, or NaN, which is in every element */
    const double exponent = csm_take_exponent(&largest);
    for (size_t j = 0; j < n && clip_norm > 0; j++) {
        const double a = csm_times_pow2(csm_capped_gradient_at(g, is_single, j), -exponent);
        csm_two_sum(&square, &low, a * a);
    }
    const double norm = csm_times_pow2(sqrt(square + low), exponent);
    if (clip_norm > 0 && norm > clip_norm * k) shrink = clip_norm * k / norm;
    const double clip = clip_value > 0 ? clip_value * k : CSM_INF;
    for (size_t j = 0; j < n; j++) {
        double a = csm_capped_gradient_at(g, is_single, j) * shrink;
        a = a > clip ? clip : a < -clip ? -clip : a;
        if (is_single) ((float *)g)[j] = (float)a;
        else ((double *)g)[j] = a;
    }
}

#endif
