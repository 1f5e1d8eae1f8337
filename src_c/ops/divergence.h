/* One row of the Kullback-Leibler divergence, of any length and content. */
#ifndef CSM_OPS_DIVERGENCE_H
#define CSM_OPS_DIVERGENCE_H

#include "../core/call.h"
#include "../kernel/divergence/row.h"

/* A contiguous row, in which masked elements are -inf. */
typedef struct csm_kl_row_place {
    const char *x, *y;
    char *gradient;    /* may be x or y; NULL: none */
    csm_strided where; /* data NULL: all elements take part */
    double *loss;
    double weight, factor; /* factor: of the gradient, without 1 / T */
    csm_poll poll;
} csm_kl_row_place;

/* Computes a row in double, element by element.  is_read: otherwise it has weight 0.  wide: two blocks of the compute
 * type. */
void csm_kl_slow_row(const csm_call *, const csm_kl_row_place *, const csm_scales *, int is_read, char *wide);

#endif
