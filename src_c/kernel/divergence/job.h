/* The arguments of the kernels of the Kullback-Leibler divergence, and the table of the kernels. */
#ifndef CSM_DIVERGENCE_JOB_H
#define CSM_DIVERGENCE_JOB_H

#include "../../math/block.h"
#include "../../math/temperature.h"

/* The constants of a row.  With u = (x - max_x) / T and v = (y - max_y) / T, log p_j - log q_j = u_j - v_j + offset;
 * q_j is e'_y ratio and p_j is e'_x, both times 1 / total; the gradient is (e'_y ratio - e'_x) factor 2^exponent. */
typedef struct csm_kl_row {
    double max_x, max_y, offset, tails, ratio, total, factor, exponent; /* tails: their sum */
    int is_nan;
} csm_kl_row;

/* Contiguous rows of at most CSM_BLOCK elements. */
typedef struct csm_kl_job {
    const char *x, *y;
    char *gradient; /* may be x or y; NULL: none */
    ptrdiff_t x_step, y_step, gradient_step; /* bytes between rows */
    size_t rows, n;
    double log_n;
    const csm_temperature *t;
    double factor;                /* of every row's gradient, without 1 / T */
    const char *weight, *upstream; /* double; NULL: 1 */
    ptrdiff_t weight_step, upstream_step;
    double *loss;
    ptrdiff_t order; /* elements between the losses of two rows */
    void *scratch;   /* 2 csm_loss_scratch elements of the compute type */
} csm_kl_job;

typedef struct csm_kl_kernels {
    /* Computes rows in order and returns how many it has done; the next one is not ordinary, or its loss is not finite,
     * and it has been neither changed nor written. */
    size_t (*rows)(const csm_kl_job *);
    /* The sums of a block; stores e'. */
    void (*pass1)(const void *x, void *e, size_t k, const csm_temperature *, csm_block *);
    /* e' of a block again. */
    void (*again)(const void *x, void *e, size_t k, const csm_temperature *, const csm_block *);
    /* Returns the divergence of a block times row->total, exact: from terms of one sign; else writes its gradient,
     * unless that is NULL. */
    double (*pass2)(const void *x, const void *y, const void *e_x, const void *e_y, void *gradient, size_t k,
                    const csm_temperature *, const csm_kl_row *, double shift_x, double shift_y, int exact);
} csm_kl_kernels;

#endif
