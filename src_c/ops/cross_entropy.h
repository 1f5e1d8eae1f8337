/* Cross-entropy: a call, and what its files share.
 *
 *   cross_entropy.c           the driver: layouts, temperatures, the sum of the losses
 *   cross_entropy_row.c       contiguous rows of any length and content
 *   cross_entropy_weights.c   masses of soft labels, the mean's divisor, the sum of the class weights
 */
#ifndef CSM_OPS_CROSS_ENTROPY_H
#define CSM_OPS_CROSS_ENTROPY_H

#include "../core/call.h"
#include "../core/extension.h"
#include "../kernel/cross_entropy/underflow.h"

#include <stdatomic.h>

typedef struct csm_loss_run {
    csm_call base;
    csm_view x, gradient, soft_labels, sample_weight, upstream, temperatures;
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
    double divisor; /* of the mean, else 1 */
    int64_t *labels;
    double *loss, *mass;
    size_t e_size, block_size, wide_size; /* parts of a thread's scratch: e', blocks, a wide block; then packed rows */
    csm_scratch scratch;
    atomic_int has_bad_label;
} csm_loss_run;

static inline double csm_class_weight(const csm_loss_run *call, size_t j) {
    const void *w = call->options->weight;
    if (!w) return 1;
    return csm_is_single(&call->base) ? (double)((const float *)w)[j] : ((const double *)w)[j];
}
static inline double csm_sample_weight(const csm_loss_run *call, size_t row) {
    double value = 1;
    if (call->options->sample_weight)
        memcpy(&value, csm_row_data(&call->base, &call->sample_weight, row), sizeof value);
    return value;
}
static inline size_t csm_order_of(const csm_loss_run *call, size_t row) {
    return (size_t)csm_offset(&call->base.shape, call->order.strides, row);
}

static inline char *csm_loss_scratch_of(csm_loss_run *call, int thread) {
    size_t size = call->e_size + call->block_size + call->wide_size;
    if (!call->is_direct) size += call->group * (call->pitch + (call->is_soft ? call->soft_pitch : 0));
    return csm_scratch_get(&call->scratch, thread, 0, size);
}

/* Computes sum w_j q_j of a row of soft labels, with a thread's scratch.  A bad one is noted in the call. */
csm_status csm_find_mass(csm_loss_run *, csm_strided q, int thread, char *memory, double *mass);
/* Computes the masses of rows: a csm_body, whose context is the csm_loss_run. */
csm_status csm_loss_masses(void *context, size_t begin, size_t end, int thread);
/* The number by which the sum of the losses is divided. */
double csm_loss_divisor(csm_loss_run *);
/* The sum of the n class weights: compensated within a block, without rounding over blocks. */
double csm_loss_weight_sum(const csm_loss_run *, size_t n);

/* Sets a call's temperature, whose constants are in base.scales; csm_loss_divide comes after it. */
void csm_loss_set_temperature(csm_loss_call *, double temperature);
static inline int csm_is_loss_temperature(double t) { return t > 0 && t < CSM_INF; }

/* Sets which rows are looked at for gradients that the kernels lose: those with large factors. */
void csm_find_lost_limit(csm_loss_run *);
/* The job of `rows` rows of a job from `at` on. */
csm_loss_job csm_loss_job_at(const csm_loss_job *, ptrdiff_t at, size_t rows, void *scratch);
/* The end of the rows of a job from `at` on that the kernels of many rows compute.  memory: a wide block. */
ptrdiff_t csm_end_of_kernel_rows(csm_loss_run *, const csm_loss_job *, ptrdiff_t at, char *memory);
/* Computes the contiguous rows of a job.  memory: the parts e', blocks and wide block of a thread's scratch. */
void csm_run_loss_rows(csm_loss_run *, const csm_loss_job *, int thread, char *memory);

#endif
