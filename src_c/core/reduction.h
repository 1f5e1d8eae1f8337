/* Reduction of the losses of rows to one number. */
#ifndef CSM_CORE_REDUCTION_H
#define CSM_CORE_REDUCTION_H

#include <stddef.h>

/* Adds n numbers in a tree whose shape depends only on n. */
double csm_tree_sum(const double *x, size_t n);
/* Makes NaN canonical and, if the compute type is float, rounds to it. */
double csm_finish_loss(double loss, int single);

#endif
