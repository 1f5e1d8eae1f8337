/* The arguments of the kernels of row optimisers, and the table of the kernels. */
#ifndef CSM_ROW_OPTIMIZER_JOB_H
#define CSM_ROW_OPTIMIZER_JOB_H

#include "../../vec/standard.h"

typedef enum csm_optimizer_kind { CSM_SGD, CSM_ROWWISE_ADAGRAD, CSM_ADAGRAD, CSM_ADAM } csm_optimizer_kind;

#define CSM_ADAGRAD_START 1e-8 /* of a sum of squares; the arrays of the sums begin at 0, so that no page is touched */
#define CSM_ADAM_FIRST 0.9 /* decay of the mean of gradients, and of their squares */
#define CSM_ADAM_SECOND 0.999
#define CSM_ADAM_EPSILON 1e-8

/* The constants of a step of one row. */
typedef struct csm_row_step {
    double decay; /* of the weights */
    double rate; /* factor of the direction */
    double root; /* Adam: factor of the root of the mean square */
} csm_row_step;

/* w: n elements of storage; g, state and second: n elements of the compute type. */
typedef struct csm_optimizer_kernels {
    double (*squares)(const void *g, size_t n); /* sum of g^2 */
    void (*descend)(void *w, const void *g, size_t n, const csm_row_step *);
    void (*adagrad)(void *w, const void *g, void *state, size_t n, const csm_row_step *);
    void (*adam)(void *w, const void *g, void *state, void *second, size_t n, const csm_row_step *);
    void (*decay)(void *w, size_t n, const csm_row_step *);
} csm_optimizer_kernels;

#endif
