/* The kernels of losses over sampled classes: products with rows that are gathered by number, and the loss of logistic
 * terms. */
#ifndef CSM_SAMPLED_JOB_H
#define CSM_SAMPLED_JOB_H

#include "../../vec/standard.h"

/* Rows of a matrix in storage, `step` bytes apart; g, out and y hold the compute type. */
typedef struct csm_row_kernels {
    /* out_j = x . rows[ids_j], x in storage. */
    void (*dots)(const void *x, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d, void *out);
    /* y = from + sum_j g_j rows[ids_j], terms in the order of j; from: y itself, another row, or NULL: 0. */
    void (*sums)(const void *g, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                 const void *from, void *y);
    /* row += scale v, both in storage. */
    void (*add)(const void *v, double scale, size_t d, void *row);
} csm_row_kernels;

enum { LOGISTIC_LANES = 8, LOGISTIC_FEW = 16 }; /* terms of a vector, rows of one call */

/* A row of logistic terms: softplus(-u_n) of the target, which is the last, and c_j softplus(u_j) of the others. */
typedef struct csm_logistic_row {
    void *u; /* n + 1 numbers of the compute type */
    const double *counts; /* c, or NULL: 1 */
    size_t n;
    double loss; /* result: the sum of the terms */
    double square; /* result: the sum of the squares of their derivatives */
    int wants_sum;
    double sum; /* result with `gradient`, if wanted: the sum of the derivatives times factor */
} csm_logistic_row;
typedef struct csm_logistic_kernels {
    /* With `gradient`, u becomes the derivatives of the terms, each times factor; wants_square: row->square is set. */
    void (*row)(csm_logistic_row *, int gradient, int wants_square, double factor);
    /* At most LOGISTIC_FEW rows, `step` bytes apart, of n + 1 <= LOGISTIC_LANES terms without counts; sums or NULL. */
    void (*few)(void *u, ptrdiff_t step, size_t rows, size_t n, int gradient, const double *factors, double *losses,
                double *sums);
    /* g_j is multiplied by `before`, limited to [-limit, limit], then multiplied by factor; returns their sum. */
    double (*clip)(void *g, size_t n, double before, double limit, double factor);
} csm_logistic_kernels;

#endif
