/* Cross-entropy: masses of soft labels, the divisor of a mean, and the sum of the class weights. */
#include "cross_entropy.h"

#include "../core/reduction.h"

csm_status csm_find_mass(csm_loss_run *call, csm_strided q, int thread, char *memory, double *mass) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_pair_sum sum;
    csm_pair_sum_zero(&sum);
    int is_plain = (uintptr_t)q.data % c->wide_size == 0 && (q.axis == (ptrdiff_t)c->wide_size || n == 1);
    *mass = 0;
    for (size_t i = 0; i < n; i += CSM_BLOCK) {
        size_t k = csm_block_length(n, i);
        const char *part = q.data + (ptrdiff_t)i * q.axis;
        const void *w = call->loss_call.w ? (const char *)call->loss_call.w + i * c->wide_size : NULL;
        double hi, lo;
        if (!is_plain) {
            csm_strided from = {part, 0, q.axis};
            csm_gather(memory, 0, from, 1, k, c->wide_size, NULL, NULL);
            part = memory;
        }
        if (!call->kernels->mass(part, w, k, &hi, &lo)) atomic_store(&call->has_bad_label, 1);
        if (n <= CSM_BLOCK) *mass = hi + lo;
        else csm_pair_sum_add(&sum, hi, lo);
        if (i > 0 && csm_stops(&call->base.interrupt, thread, k)) return CSM_INTERRUPTED;
    }
    if (n > CSM_BLOCK) *mass = csm_pair_sum_rounded(&sum);
    return CSM_OK;
}

csm_status csm_loss_masses(void *context, size_t begin, size_t end, int thread) {
    csm_loss_run *call = context;
    char *memory = csm_loss_scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    for (size_t row = begin; row < end; row++) {
        const csm_strided q = csm_row_of(&call->base, &call->soft_labels, row);
        const csm_status status = csm_find_mass(call, q, thread, memory, &call->mass[csm_order_of(call, row)]);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

double csm_loss_divisor(csm_loss_run *call) {
    const csm_loss_options *o = call->options;
    if (call->given_divisor) return *call->given_divisor;
    if (o->reduction != CSM_MEAN) return 1;
    if (call->labels && !o->weight && !o->sample_weight) {
        size_t kept = 0;
        for (size_t i = 0; i < call->rows; i++) kept += call->labels[i] >= 0;
        return (double)kept;
    }
    for (size_t i = 0; i < call->rows; i++) { /* the array of losses, which is not yet in use, holds the terms */
        size_t at = csm_order_of(call, i);
        double s = csm_sample_weight(call, i);
        if (call->labels)
            call->loss[at] = call->labels[at] < 0 ? 0 : s * csm_class_weight(call, (size_t)call->labels[at]);
        else call->loss[at] = call->base.shape.n == 0 ? 0 : s * call->mass[at];
    }
    return csm_tree_sum(call->loss, call->rows);
}

void csm_sum_weights(const void *weight, int is_double, size_t begin, size_t k, double *sum, double *low) {
    *sum = *low = 0;
    for (size_t j = begin; j < begin + k; j++) csm_two_sum(sum, low, csm_weight_at(weight, is_double, j));
}

double csm_loss_weight_sum(const csm_loss_run *call, size_t n) {
    csm_pair_sum all;
    csm_pair_sum_zero(&all);
    for (size_t begin = 0; begin < n; begin += CSM_BLOCK) {
        const size_t k = csm_block_length(n, begin);
        double sum, low;
        csm_sum_weights(call->options->weight, !csm_is_single(&call->base), begin, k, &sum, &low);
        if (k == n) return sum + low;
        csm_pair_sum_add(&all, sum, low);
    }
    return csm_pair_sum_rounded(&all);
}
