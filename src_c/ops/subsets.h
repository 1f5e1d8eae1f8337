/* Sums over all subsets of k of n numbers, for one row: subset_logsumexp, subset_marginals, tied places of rankings. */
#ifndef CSM_OPS_SUBSETS_H
#define CSM_OPS_SUBSETS_H

#include "../core/extension.h"
#include "../core/parallel.h"
#include "../core/scratch.h"

/* Numbers of scratch that a row of n numbers and subsets of k need, or 0 if they are too many. */
size_t csm_subset_scratch(size_t n, size_t k, int marginals);

typedef struct csm_subset_row {
    const csm_table *table;
    csm_poll poll;
    double *scratch;
    const double *x; /* finite */
    size_t n, k; /* 0 < k < n */
    double *taken; /* result, or NULL: the probability that a subset has the element */
    double *left; /* result, or NULL: that it has not; both or neither */
    double log_sum; /* result: log of the sum over subsets of e^(sum of their x) */
    double shift; /* result: the lambda of the row, and log F(n, k) */
    double log_f;
} csm_subset_row;
/* Returns 0 if the call has been interrupted. */
int csm_subset_run(csm_subset_row *);

#endif
