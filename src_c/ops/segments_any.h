/* The loss of a set of positives, minus the logarithm of their total probability P, and its gradient. */
#ifndef CSM_OPS_SEGMENTS_ANY_H
#define CSM_OPS_SEGMENTS_ANY_H

#include "../core/call.h"

typedef struct csm_any_call {
    const csm_table *table;
    csm_scales scales; /* of double */
    double z_loss, clip_norm, clip_value; /* infinity: none */
} csm_any_call;

/* A row of n > 0 elements in double, which its gradient, times `factor` after clipping, replaces if `gradient`.
 * scratch: n + CSM_BLOCK doubles; blocks: one for each block of n, and one more.  Returns the loss, of sample weight
 * `weight`. */
double csm_any_row(const csm_any_call *, double *x, const unsigned char *is_positive, size_t n, double weight,
                   int gradient, double factor, double *scratch, csm_block *blocks, const csm_poll *);

#endif
