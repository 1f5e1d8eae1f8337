/* The kernels of g-softmax: products with the similarities of classes, and with a triangular factor of them. */
#ifndef CSM_GEOMETRIC_JOB_H
#define CSM_GEOMETRIC_JOB_H

#include "../../vec/standard.h"

enum { CSM_GEOMETRIC_LANES = 8 }; /* rows of similarities are padded to a multiple of this, on every instruction set */

typedef struct csm_geometric_kernels {
    double (*dot)(const double *a, const double *b, size_t n);
    void (*subtract)(double *y, double a, const double *x, size_t n); /* y -= a x */
    /* y = sum of w[k] times row rows[k] of a matrix; pitch: of its rows, and the length of y. */
    void (*combine)(const double *matrix, size_t pitch, const size_t *rows, const double *w, size_t count, double *y);
} csm_geometric_kernels;

#endif
