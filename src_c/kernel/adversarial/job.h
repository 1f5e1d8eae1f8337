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
} csm_adversarial_kernels;

enum { CSM_CLIMB_BYTES = 128 }; /* of a number of all rows of a block: 16 doubles or 32 floats */

/* The rows of a call; arrays of the compute type unless they say otherwise. */
typedef struct csm_climb_rows {
    const void *x;              /* (n, d) */
    const void *bias, *start;   /* (classes) and (n, d), or NULL: 0 */
    const int64_t *labels;
    const double *low, *high;   /* walls, or NULL for none */
    size_t low_step, high_step; /* d: each row has its own; 0: one row for all */
    void *delta;                /* (n, d): the result */
} csm_climb_rows;

/* A block of rows, and its layer.  Scratch has CSM_CLIMB_BYTES for each feature or class. */
typedef struct csm_climb_block {
    size_t classes, d;
    const void *w, *scaled; /* (classes, d); w times a power of two for which no gradient overflows, or w itself */
    double step, eps;
    csm_distance_norm norm; /* 1, 2 or infinity */
    void *delta;            /* d: the perturbations */
    void *low, *high;       /* d: their limits; NULL: none */
    void *g;                /* d: gradients; NULL for the inf-norm */
    void *label_weights;    /* d: the row of `scaled` of each label */
    void *fixed, *logits;   /* classes: logits without perturbation; of the step, and then their gradients */
    void *label;            /* 1 */
} csm_climb_block;

typedef struct csm_climb_kernels {
    /* A step along the signs of g for n numbers: delta = min(max(delta + step sign(g), low), high). */
    void (*numbers)(void *delta, const void *g, const void *low, const void *high, double step, size_t n);
    void (*begin)(const csm_climb_block *, const csm_climb_rows *, size_t first, size_t count);
    void (*step)(const csm_climb_block *);
    void (*end)(const csm_climb_block *, const csm_climb_rows *, size_t first, size_t count);
} csm_climb_kernels;

#endif
