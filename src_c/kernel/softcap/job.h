/* The soft cap of logits, c tanh(x / c): its constants, and the table of its kernels. */
#ifndef CSM_SOFTCAP_JOB_H
#define CSM_SOFTCAP_JOB_H

#include "../../math/temperature.h"

/* The caps for which the constants below are in the range of float: 2^-10 to 2^10.  Logits with another cap are
 * multiplied by a power of two first. */
#define CSM_SOFTCAP_LEAST 0x1p-10
#define CSM_SOFTCAP_LARGEST 0x1p10

enum { CSM_SOFTCAP_TERMS_F32 = 6, CSM_SOFTCAP_TERMS_F64 = 14 };

typedef struct csm_softcap {
    double cap, per_square;  /* c and 1 / c^2 */
    double largest_square;   /* the largest x^2 for which tanh is a polynomial */
    double
        terms[CSM_SOFTCAP_TERMS_F64]; /* of that polynomial in x^2, the highest first; in float CSM_SOFTCAP_TERMS_F32 */
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

/* Sets the constants of a cap in the range above, but for `half`.
 *
 * (tanh(u) / u - 1) / u^2 is a polynomial in u^2 up to |u| = 0.95, minimax for the relative error of tanh: 2^-25.0 in
 * float, 2^-54.5 in double.  Powers of 1 / c^2 are in its coefficients, which spares a multiplication of each x. */
static inline void csm_softcap_set(csm_softcap *s, double cap, int is_single) {
    static const double f32[CSM_SOFTCAP_TERMS_F32] = {-0x1.5554c94a7ddbfp-2, 0x1.10f8e83810453p-3,
                                                      -0x1.b748c13ba33dfp-5, 0x1.5256dfb94bffbp-6,
                                                      -0x1.ae35509b0acd1p-8, 0x1.346ea03226c74p-10};
    static const double f64[CSM_SOFTCAP_TERMS_F64] = {
        -0x1.555555555547bp-2,  0x1.1111111106429p-3,  -0x1.ba1ba1b4185c9p-5,  0x1.664f47a98e69fp-6,
        -0x1.226e231f13ebap-7,  0x1.d6d1d22de00d8p-9,  -0x1.7d90375dbe7f1p-10, 0x1.34d5211b107adp-11,
        -0x1.f069df925ab50p-13, 0x1.84004f67ebd72p-14, -0x1.17cbe996f7ba4p-15, 0x1.51047fa91ba1cp-17,
        -0x1.1f90627f8f441p-19, 0x1.f3886891f4f42p-23};
    const int count = is_single ? CSM_SOFTCAP_TERMS_F32 : CSM_SOFTCAP_TERMS_F64;
    double power = 1;
    s->cap = cap;
    s->per_square = 1 / (cap * cap);
    s->largest_square = 0x1.ce147ap-1 * (cap * cap);
    for (int i = 0; i < count; i++) {
        power *= s->per_square;
        s->terms[count - 1 - i] = (is_single ? f32[i] : f64[i]) * power;
    }
}

#endif
