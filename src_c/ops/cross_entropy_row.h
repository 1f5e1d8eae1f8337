/* Rows of cross-entropy of any length and content, once their labels and the divisor of the mean are known. */
#ifndef CSM_OPS_CROSS_ENTROPY_ROW_H
#define CSM_OPS_CROSS_ENTROPY_ROW_H

#include "../core/call.h"
#include "../kernel/cross_entropy/underflow.h"

#include <stdatomic.h>

typedef struct csm_cross_entropy_call {
    csm_call base;
    csm_view x, gradient, soft_labels, sample_weight, upstream;
    csm_view order; /* offsets: the rows' indices in C order */
    const csm_loss_options *options;
    const csm_loss_kernels *kernels, *wide_kernels;
    csm_loss_call loss_call, transformed_call; /* for ordinary and for transformed rows */
    size_t rows, inner; /* all rows; rows along the last batch axis */
    size_t pitch, soft_pitch, group; /* of rows in scratch */
    int is_soft, is_direct; /* is_direct: every array is contiguous along the axis */
    int has_lost; /* whether rows can have gradients that the kernels lose */
    double lost_extra, lost_limit, lost_upstream; /* those rows: weight |upstream| (mass + extra) > limit, or, where
                                                     clip_value comes before upstream, |upstream| > lost_upstream */
    int64_t *labels;
    double *loss, *mass;
    size_t e_size, block_size, wide_size; /* parts of a thread's scratch: e', blocks, a wide block; then packed rows */
    csm_scratch scratch;
    atomic_int has_bad_label;
} csm_cross_entropy_call;

static inline double csm_class_weight(const csm_cross_entropy_call *call, size_t j) {
    const void *w = call->options->weight;
    if (!w) return 1;
    return csm_is_single(&call->base) ? (double)((const float *)w)[j] : ((const double *)w)[j];
}

/* Computes sum w_j q_j of a row of soft labels, with a thread's scratch.  A bad one is noted in the call. */
csm_status csm_find_mass(csm_cross_entropy_call *, csm_strided q, int thread, char *memory, double *mass);
/* Sets which rows are looked at for gradients that the kernels lose: those with large factors. */
void csm_find_lost_limit(csm_cross_entropy_call *);
/* Computes the contiguous rows of a job.  memory: the parts e', blocks and wide block of a thread's scratch. */
void csm_run_loss_rows(csm_cross_entropy_call *, csm_loss_job, int thread, char *memory);

#endif
