/* The driver of cross-entropy: labels, the mean's divisor, the distribution of rows to threads, the sum of the losses.
 *
 *   labels    are copied once and checked; then only the copy is used
 *   divisor   is known before any gradient: it depends only on the labels and the weights
 *   rows      are computed in place if contiguous; any other layout goes through scratch.  A row is never split, so
 *             nothing depends on the number of threads.  Rows longer than CSM_BLOCK are computed block by block; rows
 *             outside the range of exp's reduction (see softmax_row.c) are transformed block by block, twice; rows in
 *             which probabilities underflow whose gradients would not are computed by underflow.h
 *   sum       adds the row losses in double, in a tree over their C order that depends only on their number
 */
#include "cross_entropy_row.h"

#include "../core/extension.h"
#include "../core/labels.h"
#include "../core/reduction.h"
#include "../kernel/cross_entropy/row.h"

typedef csm_cross_entropy_call cross_entropy_call;

static double sample_weight(const cross_entropy_call *call, size_t row) {
    double value = 1;
    if (call->options->sample_weight)
        memcpy(&value, csm_row_data(&call->base, &call->sample_weight, row), sizeof value);
    return value;
}
static size_t order_of(const cross_entropy_call *call, size_t row) {
    return (size_t)csm_offset(&call->base.shape, call->order.strides, row);
}

static char *scratch_of(cross_entropy_call *call, int thread) {
    size_t size = call->e_size + call->block_size + call->wide_size;
    if (!call->is_direct) size += call->group * (call->pitch + (call->is_soft ? call->soft_pitch : 0));
    return csm_scratch_get(&call->scratch, thread, 0, size);
}

/* Computes sum w_j q_j of each row of soft labels. */
static csm_status mass_body(void *context, size_t begin, size_t end, int thread) {
    cross_entropy_call *call = context;
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    char *memory = scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    for (size_t row = begin; row < end; row++) {
        const csm_strided q = csm_row_of(c, &call->soft_labels, row);
        csm_pair_sum sum;
        csm_pair_sum_zero(&sum);
        int is_plain = (uintptr_t)q.data % c->wide_size == 0 && (q.axis == (ptrdiff_t)c->wide_size || n == 1);
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
            if (n <= CSM_BLOCK) call->mass[order_of(call, row)] = hi + lo;
            else csm_pair_sum_add(&sum, hi, lo);
            if (i > 0 && csm_stops(&call->base.interrupt, thread, k)) return CSM_INTERRUPTED;
        }
        if (n > CSM_BLOCK) call->mass[order_of(call, row)] = csm_pair_sum_rounded(&sum);
    }
    return CSM_OK;
}

/* Rows (cross_entropy_row.c) */

/* The end of the rows from `at` on that the kernels of many rows compute. */
static ptrdiff_t end_of_kernel_rows(cross_entropy_call *call, const csm_loss_job *job, ptrdiff_t at, char *memory) {
    const csm_call *c = &call->base;
    csm_loss_input in;
    if (c->shape.n > CSM_BLOCK || call->shard || c->scales.always_transform) return at;
    if (!job->gradient || !call->has_lost) return (ptrdiff_t)job->rows;
    for (; at < (ptrdiff_t)job->rows; at++)
        if (csm_read_loss_input(call, job, at, &in) &&
            csm_has_lost_gradient(call, job->x + at * job->x_step, &in, memory))
            break;
    return at;
}

static void run_contiguous_rows(cross_entropy_call *call, csm_loss_job job, int thread, char *memory) {
    const csm_loss_job all = job;
    ptrdiff_t at = 0, rows = (ptrdiff_t)job.rows;
    while (at < rows) {
        const ptrdiff_t end = end_of_kernel_rows(call, &all, at, memory + call->e_size + call->block_size);
        if (at < end) {
            job.x = all.x + at * all.x_step;
            job.q = all.q ? all.q + at * all.q_step : NULL;
            job.gradient = all.gradient ? all.gradient + at * all.gradient_step : NULL;
            job.label = all.label ? all.label + at * all.order : NULL;
            job.mass = all.mass ? all.mass + at * all.order : NULL;
            job.loss = all.loss + at * all.order;
            job.weight = all.weight ? all.weight + at * all.weight_step : NULL;
            job.upstream = all.upstream ? all.upstream + at * all.upstream_step : NULL;
            job.rows = (size_t)(end - at);
            job.scratch = memory;
            at += (ptrdiff_t)call->kernels->rows(&job);
            if (at == end) continue;
        }
        csm_run_loss_row(call, &all, at++, thread, memory);
    }
}

/* Copies the rows that take part to their places in scratch; no other row is read.  Returns 0 if the call has been
 * interrupted. */
static int gather_kept(cross_entropy_call *call, int thread, const csm_loss_job *job, char *to, size_t pitch,
                       csm_strided from, size_t size) {
    const size_t n = call->base.shape.n;
    csm_loss_input in;
    for (size_t begin = 0, end; begin < job->rows; begin = end + 1) {
        for (end = begin; end < job->rows && csm_read_label_and_weight(job, (ptrdiff_t)end, &in); end++) {}
        const csm_strided x = {from.data + (ptrdiff_t)begin * from.row, from.row, from.axis};
        if (end - begin != 1) csm_gather(to + begin * pitch, pitch, x, end - begin, n, size, NULL, NULL);
        else if (!csm_gather_row(&call->base, thread, to + begin * pitch, x, n, size, NULL, NULL)) return 0;
    }
    return 1;
}

/* The job of `count` rows starting at `row`, along the last batch axis. */
static csm_loss_job job_of(cross_entropy_call *call, size_t row, size_t count) {
    const csm_call *c = &call->base;
    const csm_shape *shape = &c->shape;
    const size_t order = order_of(call, row);
    csm_loss_job job = {.call = &call->loss_call,
                        .x = csm_row_data(c, &call->x, row),
                        .x_step = csm_last_stride(shape, &call->x),
                        .label = call->labels ? call->labels + order : NULL,
                        .mass = call->mass ? call->mass + order : NULL,
                        .loss = call->loss + order,
                        .order = csm_last_stride(shape, &call->order),
                        .rows = count};
    if (call->is_soft) {
        job.q = csm_row_data(c, &call->soft_labels, row);
        job.q_step = csm_last_stride(shape, &call->soft_labels);
    }
    if (call->loss_call.gradient) {
        job.gradient = (char *)call->gradient.data + csm_offset(shape, call->gradient.strides, row);
        job.gradient_step = csm_last_stride(shape, &call->gradient);
    }
    if (call->options->sample_weight) {
        job.weight = csm_row_data(c, &call->sample_weight, row);
        job.weight_step = csm_last_stride(shape, &call->sample_weight);
    }
    if (call->options->upstream) {
        job.upstream = csm_row_data(c, &call->upstream, row);
        job.upstream_step = csm_last_stride(shape, &call->upstream);
    }
    return job;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    cross_entropy_call *call = context;
    const csm_call *c = &call->base;
    char *memory = scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    while (begin < end) {
        size_t left = call->inner - begin % call->inner, count = end - begin < left ? end - begin : left;
        if (!call->is_direct && count > call->group) count = call->group;
        const csm_loss_job job = job_of(call, begin, count);
        if (call->is_direct) {
            run_contiguous_rows(call, job, thread, memory);
        } else {
            char *x = memory + call->e_size + call->block_size + call->wide_size, *q = x + call->group * call->pitch;
            const csm_strided from = {job.x, job.x_step, call->x.axis_stride};
            const csm_strided from_q = {job.q, job.q_step, call->soft_labels.axis_stride};
            if (!gather_kept(call, thread, &job, x, call->pitch, from, c->itemsize)) return CSM_INTERRUPTED;
            if (call->is_soft && !gather_kept(call, thread, &job, q, call->soft_pitch, from_q, c->wide_size))
                return CSM_INTERRUPTED;
            csm_loss_job packed = job;
            packed.x = x;
            packed.x_step = (ptrdiff_t)call->pitch;
            if (call->is_soft) packed.q = q;
            packed.q_step = (ptrdiff_t)call->soft_pitch;
            if (job.gradient) packed.gradient = x;
            packed.gradient_step = (ptrdiff_t)call->pitch;
            run_contiguous_rows(call, packed, thread, memory);
            if (job.gradient && count == 1) {
                if (!csm_scatter_row(&call->base, thread, job.gradient, call->gradient.axis_stride, x, c->shape.n,
                                     c->itemsize))
                    return CSM_INTERRUPTED;
            } else if (job.gradient) {
                csm_scatter(job.gradient, job.gradient_step, call->gradient.axis_stride, x, call->pitch, count,
                            c->shape.n, c->itemsize);
            }
        }
        begin += count;
    }
    return CSM_OK;
}

/* The call */

static int is_fraction(double x) { return x >= 0 && x <= 1; }

/* The constants that the rows of a call have in common, except the mean's divisor, the temperature's constants and the
 * sum of the weights. */
csm_loss_call csm_loss_call_of(const csm_loss_options *o, size_t n, int gradient) {
    csm_loss_call constants = {.n = n,
                               .temperature = o->temperature,
                               .w = o->weight,
                               .weight_sum = (double)n,
                               .smoothing = o->label_smoothing,
                               .z_loss = o->z_loss,
                               .clip_norm = o->clip_norm > 0 ? o->clip_norm : CSM_INF,
                               .clip_value = o->clip_value > 0 ? o->clip_value : CSM_INF,
                               .soft = o->soft != NULL,
                               .gradient = gradient};
    const csm_pair per = csm_pair_reciprocal(o->temperature, &constants.t_exponent);
    constants.per_t = per.hi;
    constants.per_t_low = per.lo;
    return constants;
}

/* The number by which the sum of the losses is divided. */
static double find_divisor(cross_entropy_call *call) {
    const csm_loss_options *o = call->options;
    if (call->divisor) return *call->divisor;
    if (o->reduction != CSM_MEAN) return 1;
    if (call->labels && !o->weight && !o->sample_weight) {
        size_t kept = 0;
        for (size_t i = 0; i < call->rows; i++) kept += call->labels[i] >= 0;
        return (double)kept;
    }
    for (size_t i = 0; i < call->rows; i++) { /* the array of losses, which is not yet in use, holds the terms */
        size_t at = order_of(call, i);
        double s = sample_weight(call, i);
        if (call->labels)
            call->loss[at] = call->labels[at] < 0 ? 0 : s * csm_class_weight(call, (size_t)call->labels[at]);
        else call->loss[at] = call->base.shape.n == 0 ? 0 : s * call->mass[at];
    }
    return csm_tree_sum(call->loss, call->rows);
}

/* Writes 0 to the gradients of rows. */
static csm_status clear_body(void *context, size_t begin, size_t end, int thread) {
    const cross_entropy_call *call = context;
    const csm_call *c = &call->base;
    const ptrdiff_t axis = call->gradient.axis_stride;
    (void)thread;
    for (; begin < end; begin++) {
        char *to = (char *)call->gradient.data + csm_offset(&c->shape, call->gradient.strides, begin);
        if (axis == (ptrdiff_t)c->itemsize) memset(to, 0, c->shape.n * c->itemsize);
        else
            for (size_t j = 0; j < c->shape.n; j++) memset(to + (ptrdiff_t)j * axis, 0, c->itemsize);
    }
    return CSM_OK;
}

/* Sets which rows are looked at for gradients that the kernels lose: those with large factors. */
static void find_lost_limit(cross_entropy_call *call) {
    const csm_loss_call *c = &call->loss_call;
    const csm_loss_options *o = call->options;
    const int single = csm_is_single(&call->base);
    const double of_max = call->base.scales.always_transform ? CSM_INF : (single ? 1e6 : 0x1p45) + 64;
    if (c->n == 0) return;
    call->lost_extra = c->smoothing / (double)c->n * c->weight_sum + (c->z_loss != 0 ? 2 * c->z_loss * of_max : 0);
    call->lost_limit = csm_times_pow2(single ? 0x1p20 : 0x1p210, -c->t_exponent - c->divisor_exponent);
    call->lost_upstream = c->clip_value < CSM_INF ? csm_times_pow2(4, -c->divisor_exponent) : CSM_INF;
    call->has_lost = c->gradient && (call->is_soft || o->weight || o->sample_weight || o->upstream ||
                                     1 + call->lost_extra > call->lost_limit || 1 > call->lost_upstream);
}

static csm_status compute(cross_entropy_call *call, const csm_shape *shape, csm_loss_options *o, int threads,
                          double *loss) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_status status = CSM_OK;
    if (call->labels) {
        csm_shape checked = *shape;
        if (call->shard) checked.n = SIZE_MAX; /* the label of a row is a class of any shard */
        status = csm_read_labels(&checked, o, call->rows, call->labels);
    }
    if (status != CSM_OK) return status;
    c->threads = csm_threads_for((double)call->rows * (double)n, call->rows, threads);
    const size_t piece = CSM_PIECE_ELEMENTS / (n + 1) + 1;
    if (call->is_soft && n > 0 && !call->shard) {
        status = csm_parallel(call->rows, piece, c->threads, mass_body, call, &c->interrupt);
        if (status != CSM_OK) return status;
        if (atomic_load(&call->has_bad_label)) return CSM_BAD_LABEL;
    }
    const double divisor = find_divisor(call);
    csm_loss_divide(&call->loss_call, divisor);
    if (csm_loss_is_empty(&call->loss_call)) {
        if (loss) *loss = CSM_NAN;
        if (!call->gradient.data || n == 0) return CSM_OK;
        return csm_parallel(call->rows, piece, c->threads, clear_body, call, &c->interrupt);
    }
    find_lost_limit(call);
    if (call->shard && call->shard->stage == CSM_STAGE_LOST && !call->has_lost) return CSM_OK;
    call->transformed_call = call->loss_call;
    call->transformed_call.t = &c->scales.transformed;
    if (n > 0 || call->shard) {
        status = csm_parallel(call->rows, piece, c->threads, rows_body, call, &c->interrupt);
        if (status != CSM_OK) return status;
    }
    if (call->shard) return atomic_load(&call->has_bad_label) ? CSM_BAD_LABEL : CSM_OK;
    for (size_t i = 0; n == 0 && i < call->rows; i++) /* lse = -inf; all labels are ignored, or soft */
        call->loss[order_of(call, i)] = call->is_soft && o->z_loss > 0 && sample_weight(call, i) != 0 ? CSM_INF : 0;
    /* Rounded here, where the caller's rounding mode is not in effect. */
    if (o->reduction != CSM_NONE)
        *loss = csm_finish_loss(csm_tree_sum(call->loss, call->rows) / divisor, csm_is_single(c));
    for (size_t i = 0; !call->divisor && o->reduction == CSM_NONE && csm_is_single(c) && i < call->rows; i++)
        loss[i] = (double)(float)loss[i];
    return CSM_OK;
}

/* The sum of the class weights: compensated within a block, without rounding over blocks. */
static double sum_of_weights(const cross_entropy_call *call, size_t n) {
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

static csm_status prepare(cross_entropy_call *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                          const csm_view *x, const csm_view *gradient, csm_loss_options *o,
                          const csm_fp_environment *caller) {
    csm_call *c = &call->base;
    const size_t n = shape->n;
    if (!(o->temperature > 0 && o->temperature < CSM_INF)) return CSM_BAD_TEMPERATURE;
    if (!is_fraction(o->label_smoothing) || !(o->z_loss >= 0 && o->z_loss < CSM_INF) || !(o->clip_norm >= 0) ||
        !(o->clip_value >= 0) || !o->labels == !o->soft || (unsigned)o->reduction > CSM_MEAN)
        return CSM_BAD_OPTION;
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, NULL, gradient, o->soft, o->sample_weight, o->upstream},
        (csm_view *[]){&call->x, &call->order, gradient ? &call->gradient : NULL, o->soft ? &call->soft_labels : NULL,
                       o->sample_weight ? &call->sample_weight : NULL, o->upstream ? &call->upstream : NULL},
        6, &call->rows);
    if (status != CSM_OK) return status;
    csm_set_dtype(c, dtype, table);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    csm_set_scales(&c->scales, o->temperature, csm_is_single(c));
    call->options = o;
    call->is_soft = o->soft != NULL;
    call->kernels = &table->loss[dtype];
    call->wide_kernels = &table->loss[c->wide_dtype];
    double weight_sum = (double)n;
    if (call->shard) weight_sum = call->shard->options->weight_sum;
    else if (o->weight) weight_sum = sum_of_weights(call, n);
    call->loss_call = csm_loss_call_of(o, n, gradient != NULL);
    if (call->shard) {
        call->loss_call.n = call->shard->options->classes;
        call->loss_call.gradient |= call->shard->stage == CSM_STAGE_SQUARES || call->shard->stage == CSM_STAGE_LOST;
    }
    call->loss_call.t = &c->scales.ordinary;
    call->loss_call.weight_sum = weight_sum;
    call->inner = c->shape.ndim ? c->shape.shape[c->shape.ndim - 1] : 1;
    call->is_direct = csm_is_contiguous(&c->shape, &call->x, c->itemsize, 1) &&
                      (!gradient || csm_is_contiguous(&c->shape, &call->gradient, c->itemsize, 1)) &&
                      (!call->is_soft || csm_is_contiguous(&c->shape, &call->soft_labels, c->wide_size, 1));
    call->pitch = csm_pack_pitch(n, c->itemsize);
    call->soft_pitch = csm_pack_pitch(n, c->wide_size);
    call->group = csm_pack_rows(n, c->itemsize);
    const size_t block = n < CSM_BLOCK ? n : CSM_BLOCK;
    const int is_grouped = csm_is_single(c) && gradient;
    call->e_size = csm_rounded((is_grouped ? csm_loss_scratch(block, call->rows) : block + 16) * c->wide_size);
    call->wide_size = csm_rounded(block * c->wide_size);
    call->block_size = csm_rounded((csm_block_count(n) + 1) * sizeof(csm_block));
    return CSM_OK;
}

static csm_status run_cross_entropy(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                                    const csm_view *gradient, double *loss, csm_loss_options *o, const csm_shard *shard,
                                    csm_fp_environment *caller) {
    enum { STACK_BYTES = 1024, STACK_SCRATCH_BYTES = 2048 }; /* small calls allocate nothing */
    _Alignas(CSM_ALIGN) char stack[STACK_BYTES], stack_scratch[STACK_SCRATCH_BYTES];
    csm_buffer single;
    cross_entropy_call call;
    memset(&call, 0, sizeof call);
    if (shard) {
        call.divisor = &shard->options->divisor;
        if (shard->stage != CSM_STAGE_WHOLE) call.shard = shard;
    }
    csm_status status = prepare(&call, dtype, table, shape, x, gradient, o, caller);
    if (status != CSM_OK) return status;
    int threads = o->threads < 1 ? 1 : o->threads;
    if ((size_t)threads > call.rows) threads = call.rows ? (int)call.rows : 1;
    const size_t labels_size = csm_rounded(call.rows * (o->labels ? sizeof(int64_t) : sizeof(double)));
    const int keeps_rows = o->reduction == CSM_NONE && loss;
    const size_t loss_size = keeps_rows ? 0 : csm_rounded(call.rows * sizeof(double));
    char *memory = labels_size + loss_size <= sizeof stack ? stack : csm_allocate(labels_size + loss_size);
    if (!memory) return CSM_NO_MEMORY;
    if (o->labels) call.labels = (int64_t *)(void *)memory;
    else call.mass = (double *)(void *)memory;
    call.loss = keeps_rows ? loss : (double *)(void *)(memory + labels_size);
    status = csm_scratch_begin(&call.scratch, threads, 1, &single);
    if (status == CSM_OK) {
        csm_scratch_lend(&call.scratch, 0, 0, stack_scratch, sizeof stack_scratch);
        status = compute(&call, shape, o, threads, loss);
        csm_scratch_end(&call.scratch);
    }
    if (memory != stack) csm_release(memory);
    *caller = call.base.interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_loss_shard(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                              const csm_view *gradient, double *loss, csm_loss_options *o, const csm_shard *shard) {
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run_cross_entropy(dtype, table, shape, x, gradient, loss, o, shard, &saved);
    csm_fp_leave(saved);
    return status;
}
csm_status csm_run_cross_entropy(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                                 const csm_view *gradient, double *loss, csm_loss_options *o) {
    if (!o) return CSM_BAD_OPTION; /* labels are required */
    return csm_run_loss_shard(dtype, table, shape, x, gradient, loss, o, NULL);
}

#define CROSS_ENTROPY(suffix, storage, compute)                                                                \
    csm_status csm_cross_entropy_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *gradient, \
                                          double *loss, csm_loss_options *o) {                                 \
        return csm_run_cross_entropy(CSM_DTYPE_##suffix, csm_current_table(), shape, x, gradient, loss, o);    \
    }
CSM_DTYPES(CROSS_ENTROPY)
