/* Cross-entropy: a call, and what its files share.
 *
 *   cross_entropy.c           the driver: layouts, temperatures, the sum of the losses
 *   cross_entropy_row.c       contiguous rows of any length and content, and the stages of their shards
 *   cross_entropy_softcap.c   rows of logits with a soft cap
 *   cross_entropy_weights.c   masses of soft labels, the mean's divisor, the sum of the class weights
 */
#ifndef CSM_OPS_CROSS_ENTROPY_H
#define CSM_OPS_CROSS_ENTROPY_H

#include "../core/extension.h"
#include "../kernel/cross_entropy/underflow.h"
#include "shard.h"

#include <stdatomic.h>

typedef struct csm_loss_run {
    csm_call base;
    csm_view x, gradient, soft_labels, sample_weight, upstream, temperatures;
    csm_view order; /* offsets: the rows' indices in C order */
    const csm_loss_options *options;
    const csm_shard *shard; /* the call is of a shard of the classes, or NULL */
    const double *given_divisor; /* by the caller, or NULL */
    const csm_loss_kernels *kernels, *wide_kernels;
    csm_loss_call loss_call, transformed_call; /* for ordinary and for transformed rows */
    size_t rows, inner; /* all rows; rows along the last batch axis */
    size_t pitch, soft_pitch, group; /* of rows in scratch */
    size_t itemsize; /* of the caller's logits; base.itemsize is that of the rows that are computed */
    const csm_softcap_kernels *capped; /* of the caller's logits, whose dtype is `stored`; NULL: they have no cap */
    csm_softcap softcap;
    csm_dtype stored;
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

static inline double csm_weight_at(const void *weight, int is_double, size_t j) {
    return is_double ? ((const double *)weight)[j] : (double)((const float *)weight)[j];
}
static inline double csm_class_weight(const csm_loss_run *call, size_t j) {
    return call->options->weight ? csm_weight_at(call->options->weight, !csm_is_single(&call->base), j) : 1;
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

/* The part of a thread's scratch that logits with a soft cap need. */
size_t csm_loss_softcap_size(const csm_loss_run *);

static inline char *csm_loss_scratch_of(csm_loss_run *call, int thread) {
    size_t size = call->e_size + call->block_size + call->wide_size;
    if (call->capped) size += csm_loss_softcap_size(call);
    else if (!call->is_direct) size += call->group * (call->pitch + (call->is_soft ? call->soft_pitch : 0));
    return csm_scratch_get(&call->scratch, thread, 0, size);
}

/* Computes sum w_j q_j of a row of soft labels, with a thread's scratch.  A bad one is noted in the call. */
csm_status csm_find_mass(csm_loss_run *, csm_strided q, int thread, char *memory, double *mass);
/* Computes the masses of rows: a csm_body, whose context is the csm_loss_run. */
csm_status csm_loss_masses(void *context, size_t begin, size_t end, int thread);
/* The number by which the sum of the losses is divided. */
double csm_loss_divisor(csm_loss_run *);
/* The sum of the class weights of the block at `begin` as a pair, compensated. */
void csm_sum_weights(const void *weight, int is_double, size_t begin, size_t k, double *sum, double *low);
/* The sum of the n class weights: compensated within a block, without rounding over blocks. */
double csm_loss_weight_sum(const csm_loss_run *, size_t n);

/* Sets a soft cap of the logits; from here on, the call computes rows of the compute type. */
void csm_loss_set_softcap(csm_loss_run *, double c);
/* How many of its rows are capped together. */
size_t csm_loss_capped_group(const csm_loss_run *);
/* Computes the rows of a job, at most a group, whose logits have a soft cap.  memory: a thread's scratch. */
csm_status csm_loss_capped_rows(csm_loss_run *, const csm_loss_job *, int thread, char *memory);
/* The slope of the cap at element j of a row of the caller. */
csm_factor csm_loss_slope_at(const csm_loss_run *, const char *uncapped, size_t j);
/* Whether slopes of a row, the product of whose factors is given, can underflow where the gradient does not. */
int csm_loss_loses_slope(const csm_loss_run *, double factor, double far);

/* Copies the rows that take part to their places in scratch; no other row is read.  Returns 0 if the call has been
 * interrupted. */
int csm_loss_gather_kept(csm_loss_run *, int thread, const csm_loss_job *, char *to, size_t pitch, csm_strided from,
                         size_t size);
/* Collects the inputs of a row other than its logits.  Returns whether the row takes part. */
int csm_loss_read_input(const csm_loss_run *, const csm_loss_job *, ptrdiff_t at, csm_loss_input *);
/* Sets a call's temperature, whose constants are in base.scales; csm_loss_divide comes after it. */
void csm_loss_set_temperature(csm_loss_call *, double temperature);
static inline int csm_is_loss_temperature(double t) { return t > 0 && t < CSM_INF; }

/* Sets which rows are looked at for gradients that the kernels lose: those with large factors. */
void csm_find_lost_limit(csm_loss_run *);
/* The job of `rows` rows of a job from `at` on. */
csm_loss_job csm_loss_job_at(const csm_loss_job *, ptrdiff_t at, size_t rows, void *scratch);
/* The end of the rows of a job from `at` on that the kernels of many rows compute.  memory: a wide block. */
ptrdiff_t csm_end_of_kernel_rows(csm_loss_run *, const csm_loss_job *, ptrdiff_t at, char *memory);
/* Computes the contiguous rows of a job, or a stage of their shard.  memory: the parts e', blocks and wide block of a
 * thread's scratch. */
void csm_run_loss_rows(csm_loss_run *, const csm_loss_job *, int thread, char *memory);

#endif
