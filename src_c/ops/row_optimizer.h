/* Steps of a row optimiser on single rows, for drivers that compute the gradient of a row just before its step. */
#ifndef CSM_OPS_ROW_OPTIMIZER_H
#define CSM_OPS_ROW_OPTIMIZER_H

#include "../core/call.h"
#include "../core/extension.h"

/* The steps of one thread on the rows of one array. */
typedef struct csm_row_stepper {
    const csm_optimizer_kernels *kernels;
    const csm_row_update *update;
    size_t wide_size;
    double inverse; /* of the number of elements where that is a power of two, else 0 */
    csm_row_step step;
    int64_t known; /* steps of step.decay */
} csm_row_stepper;

/* update: all but rows, g and count.  The rows of w are contiguous and aligned. */
void csm_row_stepper_begin(csm_row_stepper *, csm_dtype, const csm_table *, const csm_row_update *update);
/* g: the row's gradient, in the compute type; NULL: only the decay that is due.  w: the row, or a copy of it. */
void csm_row_stepper_take(csm_row_stepper *, size_t row, const void *g, void *w);

#endif
