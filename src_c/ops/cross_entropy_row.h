/* One row of cross-entropy, of any length and content, contiguous along the axis. */
#ifndef CSM_OPS_CROSS_ENTROPY_ROW_H
#define CSM_OPS_CROSS_ENTROPY_ROW_H

#include "shard.h"

#include <stdatomic.h>

typedef struct csm_cross_entropy_call {
    csm_call base;
    csm_view x, gradient, soft_labels, sample_weight, upstream;
    csm_view order; /* offsets: the rows' indices in C order */
    const csm_loss_options *options;
    const csm_shard *shard; /* the call is of a shard of the classes, or NULL */
    const double *divisor;  /* that the caller gives, or NULL */
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

static inline double csm_weight_at(const void *weight, int is_double, size_t j) {
    return is_double ? ((const double *)weight)[j] : (double)((const float *)weight)[j];
}
static inline double csm_class_weight(const csm_cross_entropy_call *call, size_t j) {
    return call->options->weight ? csm_weight_at(call->options->weight, !csm_is_single(&call->base), j) : 1;
}
/* The sum of the class weights of the block at `begin` as a pair, compensated. */
void csm_sum_weights(const void *weight, int is_double, size_t begin, size_t k, double *sum, double *low);

/* Collects the inputs of a row other than its logits.  Returns whether the row takes part. */
int csm_read_loss_input(const csm_cross_entropy_call *, const csm_loss_job *, ptrdiff_t at, csm_loss_input *);
/* Whether the kernels lose the gradient of one of a row's classes; sets the row's maximum in the input.  wide: a block
 * of the compute type. */
int csm_has_lost_gradient(const csm_cross_entropy_call *, const char *x, csm_loss_input *, char *wide);
/* Computes a row of the job, or a stage of a shard of it. */
void csm_run_loss_row(csm_cross_entropy_call *, const csm_loss_job *, ptrdiff_t at, int thread, char *memory);

#endif
