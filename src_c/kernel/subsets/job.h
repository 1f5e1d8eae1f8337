/* The kernels of subsets of a fixed size: probabilities of single elements, and the recurrence over elements. */
#ifndef CSM_SUBSETS_JOB_H
#define CSM_SUBSETS_JOB_H

#include "../../vec/standard.h"

typedef struct csm_subset_kernels {
    /* p and q = 1 / (1 + e^-a) and 1 / (1 + e^a), a = x + shift.  Returns the sum of p; *spread: that of p q. */
    double (*sigmoids)(const double *x, double shift, size_t n, double *p, double *q, double *spread);
    /* The sum of log(1 + e^-|x + shift|). */
    double (*logs)(const double *x, double shift, size_t n);
    /* to[j] = from[j] q + from[j - 1] p for j < n; the arrays do not overlap. */
    void (*step)(const double *from, double *to, size_t n, double p, double q);
} csm_subset_kernels;

#endif
