/* The kernels of distances to the decision boundaries of a linear layer. */
#ifndef CSM_KERNEL_ADVERSARIAL_JOB_H
#define CSM_KERNEL_ADVERSARIAL_JOB_H

#include "../../vec/standard.h"

typedef enum csm_distance_norm { /* of the perturbation */
                                 CSM_NORM_1,
                                 CSM_NORM_2,
                                 CSM_NORM_INF,
                                 CSM_NORM_OTHER,
} csm_distance_norm;

/* What one class is ahead of another at x. */
typedef struct csm_gap {
    double ahead, ahead_low; /* the difference of the logits, as a pair */
    double need;             /* a lower bound of it; 0 if it may be 0 or less */
    double top;              /* the largest |a_i|, where a is the difference of the weights */
    double distance;         /* a lower bound of need over the dual norm of a; infinite for a = 0 */
} csm_gap;

typedef struct csm_walls {
    const double *low, *high;
} csm_walls;

typedef struct csm_adversarial_kernels {
    /* Of the class with the weights w before the one with `other`; exponent: q of the dual norm, for CSM_NORM_OTHER. */
    void (*gap)(const double *w, const double *other, const double *x, size_t d, double bias, double other_bias,
                csm_distance_norm norm, double exponent, csm_gap *gap);
    /* A lower bound of the norm of the smallest perturbation within the walls that uses up gap->need; scratch: 3 d
     * numbers. */
    double (*reach)(const double *w, const double *other, const double *x, size_t d, const csm_walls *walls,
                    csm_distance_norm norm, const csm_gap *gap, double *scratch);
    /* The dual norm of the difference of two rows of weights, to nearest within a few roundings. */
    double (*norm)(const double *w, const double *other, size_t d, csm_distance_norm norm, double exponent);
    /* A step along the signs of g and the projection: delta = min(max(delta + step sign(g), low), high). */
    void (*climb_f32)(float *delta, const float *g, const float *low, const float *high, float step, size_t n);
    void (*climb_f64)(double *delta, const double *g, const double *low, const double *high, double step, size_t n);
} csm_adversarial_kernels;

#endif
