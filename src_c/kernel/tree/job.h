/* The kernels of binary trees of logistic decisions. */
#ifndef CSM_TREE_JOB_H
#define CSM_TREE_JOB_H

#include "../../vec/standard.h"

typedef struct csm_tree_kernels {
    /* Of decisions with the logits z, which went to the side `codes` (1: that of sigma(z)): the loss of each, and its
     * derivative by z. */
    void (*terms)(const double *z, const uint8_t *codes, size_t n, double *loss, double *slope);
    /* Log-probabilities of both sides: log sigma(-z) and log sigma(z). */
    void (*sides)(const double *z, size_t n, double *left, double *right);
} csm_tree_kernels;

enum { CSM_TREE_PART = 128 }; /* the largest n: callers keep the arrays on their stack */

#endif
