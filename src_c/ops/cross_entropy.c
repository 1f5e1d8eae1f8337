/* The driver of cross-entropy: labels, the mean's divisor, the distribution of rows to threads, the sum of the losses.
 *
 *   labels    are copied once and checked; then only the copy is used
 *   divisor   is known before any gradient: it depends only on the labels and the weights
 *   rows      are computed in place if contiguous (cross_entropy_row.c); any other layout goes through scratch.  A row
 *             is never split, so nothing depends on the number of threads
 *   sum       adds the row losses in double, in a tree over their C order that depends only on their number
 *
 * Where rows have temperatures of their own, neighbours of one temperature are computed by a copy of the call with it.
 */
#include "cross_entropy.h"

#include "../core/labels.h"
#include "../core/options.h"
#include "../core/reduction.h"

/* Rows */

int csm_loss_gather_kept(csm_loss_run *call, int thread, const csm_loss_job *job, char *to, size_t pitch,
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
static csm_loss_job job_of(csm_loss_run *call, size_t row, size_t count) {
    const csm_call *c = &call->base;
    const csm_shape *shape = &c->shape;
    const size_t order = csm_order_of(call, row);
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
    if (call->gradient.data) {
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
    csm_loss_run *call = context;
    const csm_call *c = &call->base;
    char *memory = csm_loss_scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    while (begin < end) {
        size_t left = call->inner - begin % call->inner, count = end - begin < left ? end - begin : left;
        if (!call->is_direct && count > call->group) count = call->group;
        const csm_loss_job job = job_of(call, begin, count);
        if (call->capped) {
            const csm_status status = csm_loss_capped_rows(call, &job, thread, memory);
            if (status != CSM_OK) return status;
        } else if (call->is_direct) {
            csm_run_loss_rows(call, &job, thread, memory);
        } else {
            char *x = memory + call->e_size + call->block_size + call->wide_size, *q = x + call->group * call->pitch;
            const csm_strided from = {job.x, job.x_step, call->x.axis_stride};
            const csm_strided from_q = {job.q, job.q_step, call->soft_labels.axis_stride};
            if (!csm_loss_gather_kept(call, thread, &job, x, call->pitch, from, c->itemsize)) return CSM_INTERRUPTED;
            if (call->is_soft && !csm_loss_gather_kept(call, thread, &job, q, call->soft_pitch, from_q, c->wide_size))
                return CSM_INTERRUPTED;
            csm_loss_job packed = job;
            packed.x = x;
            packed.x_step = (ptrdiff_t)call->pitch;
            if (call->is_soft) packed.q = q;
            packed.q_step = (ptrdiff_t)call->soft_pitch;
            if (job.gradient) packed.gradient = x;
            packed.gradient_step = (ptrdiff_t)call->pitch;
            csm_run_loss_rows(call, &packed, thread, memory);
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

void csm_loss_set_temperature(csm_loss_call *c, double temperature) {
    const csm_pair per = csm_pair_reciprocal(temperature, &c->t_exponent);
    c->temperature = temperature;
    c->per_t = per.hi;
    c->per_t_low = per.lo;
}

/* Sets what depends on the divisor and on the temperature; the constants of the temperature are in base.scales. */
static void finish_constants(csm_loss_run *call, double divisor) {
    csm_loss_divide(&call->loss_call, divisor);
    csm_find_lost_limit(call);
    call->loss_call.t = &call->base.scales.ordinary;
    call->transformed_call = call->loss_call;
    call->transformed_call.t = &call->base.scales.transformed;
}

static double temperature_of(const csm_loss_run *call, size_t row) {
    double t;
    memcpy(&t, csm_row_data(&call->base, &call->temperatures, row), sizeof t);
    return t;
}

/* Contiguous rows from `begin` on, along the last batch axis: the kernel computes them by their temperatures,
 * neighbours of the same one together.  Returns how many it has done before one that the kernels do not compute, or
 * whose temperature is not usual. */
static size_t run_usual(csm_loss_run *own, size_t begin, size_t count, char *memory) {
    enum { TOGETHER = 16 };
    const csm_loss_job all = job_of(own, begin, count);
    double numbers[TOGETHER];
    csm_temperature constants[TOGETHER];
    if (own->base.shape.n > CSM_BLOCK || !own->is_direct || own->shard) return 0;
    own->base.scales.always_transform = 0;
    csm_loss_set_temperature(&own->loss_call, 1);
    csm_loss_divide(&own->loss_call, own->divisor);
    const int is_simple = own->loss_call.simple;
    for (size_t at = 0, rows; at < count; at += rows) {
        const size_t wanted = count - at < TOGETHER ? count - at : TOGETHER;
        for (rows = 0; rows < wanted; rows++) {
            numbers[rows] = temperature_of(own, begin + at + rows);
            if (!csm_is_usual_temperature(numbers[rows], all.gradient != NULL)) break;
        }
        if (rows == 0) return at;
        csm_set_ordinary(constants, numbers, rows, csm_is_single(&own->base));
        for (size_t i = 0, same; i < rows; i += same) {
            same = csm_count_same(numbers + i, rows - i);
            csm_loss_set_temperature(&own->loss_call, numbers[i]);
            own->loss_call.t = &constants[i];
            own->loss_call.simple = is_simple && numbers[i] == 1;
            csm_find_lost_limit(own);
            csm_loss_job job = csm_loss_job_at(&all, (ptrdiff_t)(at + i), same, memory);
            job.rows = (size_t)csm_end_of_kernel_rows(own, &job, 0, memory + own->e_size + own->block_size);
            const size_t done = job.rows ? own->kernels->rows(&job) : 0;
            if (done < same) return at + i + done;
        }
    }
    return count;
}

/* Rows with temperatures of their own. */
static csm_status own_body(void *context, size_t begin, size_t end, int thread) {
    csm_loss_run *call = context, own;
    csm_status status = CSM_OK;
    char *memory = csm_loss_scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    memcpy(&own, call, sizeof own);
    own.base.interrupt.original = &call->base.interrupt;
    while (begin < end && status == CSM_OK) {
        const size_t left = call->inner - begin % call->inner, last = end - begin < left ? end : begin + left;
        begin += run_usual(&own, begin, last - begin, memory);
        if (begin == last) continue;
        const double t = temperature_of(call, begin);
        size_t stop = begin + 1; /* neighbours of the same temperature go together */
        while (stop < last && temperature_of(call, stop) == t) stop++;
        csm_set_scales(&own.base.scales, t, csm_is_single(&own.base));
        csm_loss_set_temperature(&own.loss_call, t);
        finish_constants(&own, call->divisor);
        status = rows_body(&own, begin, stop, thread);
        begin = stop;
    }
    if (atomic_load(&own.has_bad_label)) atomic_store(&call->has_bad_label, 1);
    return status;
}

/* The call */

static int is_fraction(double x) { return x >= 0 && x <= 1; }

/* The constants that the rows of a call have in common, except the mean's divisor, the temperature's constants and the
 * sum of the weights. */
csm_loss_call csm_loss_call_of(const csm_loss_options *o, size_t n, int gradient) {
    csm_loss_call constants = {.n = n,
                               .w = o->weight,
                               .weight_sum = (double)n,
                               .smoothing = o->label_smoothing,
                               .z_loss = o->z_loss,
                               .clip_norm = o->clip_norm > 0 && o->softcap == 0 ? o->clip_norm : CSM_INF,
                               .clip_value = o->clip_value > 0 && o->softcap == 0 ? o->clip_value : CSM_INF,
                               .soft = o->soft != NULL,
                               .gradient = gradient};
    csm_loss_set_temperature(&constants, o->temperature);
    return constants;
}

/* Writes 0 to the gradients of rows. */
static csm_status clear_body(void *context, size_t begin, size_t end, int thread) {
    const csm_loss_run *call = context;
    const csm_call *c = &call->base;
    const ptrdiff_t axis = call->gradient.axis_stride;
    (void)thread;
    for (; begin < end; begin++) {
        char *to = (char *)call->gradient.data + csm_offset(&c->shape, call->gradient.strides, begin);
        if (axis == (ptrdiff_t)call->itemsize) memset(to, 0, c->shape.n * call->itemsize);
        else
            for (size_t j = 0; j < c->shape.n; j++) memset(to + (ptrdiff_t)j * axis, 0, call->itemsize);
    }
    return CSM_OK;
}

static csm_status compute(csm_loss_run *call, const csm_shape *shape, csm_loss_options *o, int threads, double *loss) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_status status = CSM_OK;
    if (call->labels) {
        csm_shape of_all; /* the label of a row is a class of any shard */
        if (call->shard) {
            of_all = *shape;
            of_all.n = SIZE_MAX;
        }
        status = csm_read_labels(call->shard ? &of_all : shape, o, call->rows, call->labels);
    }
    if (status != CSM_OK) return status;
    c->threads = csm_threads_for((double)call->rows * (double)n, call->rows, threads);
    const size_t piece = CSM_PIECE_ELEMENTS / (n + 1) + 1;
    if (call->is_soft && n > 0 && !call->shard) {
        status = csm_parallel(call->rows, piece, c->threads, csm_loss_masses, call, &c->interrupt);
        if (status != CSM_OK) return status;
        if (atomic_load(&call->has_bad_label)) return CSM_BAD_LABEL;
    }
    const double divisor = call->divisor = csm_loss_divisor(call);
    finish_constants(call, divisor);
    if (csm_loss_is_empty(&call->loss_call)) {
        if (loss) *loss = CSM_NAN;
        if (!call->gradient.data || n == 0) return CSM_OK;
        return csm_parallel(call->rows, piece, c->threads, clear_body, call, &c->interrupt);
    }
    if (call->shard && call->shard->stage == CSM_STAGE_LOST && !call->has_lost && !o->temperatures) return CSM_OK;
    if (n > 0 || call->shard) {
        csm_body body = o->temperatures ? own_body : rows_body;
        status = csm_parallel(call->rows, piece, c->threads, body, call, &c->interrupt);
        if (status != CSM_OK) return status;
    }
    if (call->shard) return atomic_load(&call->has_bad_label) ? CSM_BAD_LABEL : CSM_OK;
    for (size_t i = 0; n == 0 && i < call->rows; i++) /* lse = -inf; all labels are ignored, or soft */
        call->loss[csm_order_of(call, i)] =
            call->is_soft && o->z_loss > 0 && csm_sample_weight(call, i) != 0 ? CSM_INF : 0;
    /* Rounded here, where the caller's rounding mode is not in effect. */
    if (o->reduction != CSM_NONE)
        *loss = csm_finish_loss(csm_tree_sum(call->loss, call->rows) / divisor, csm_is_single(c));
    for (size_t i = 0; !call->given_divisor && o->reduction == CSM_NONE && csm_is_single(c) && i < call->rows; i++)
        loss[i] = (double)(float)loss[i];
    return CSM_OK;
}

static csm_status prepare(csm_loss_run *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                          const csm_view *x, const csm_view *gradient, csm_loss_options *o,
                          const csm_fp_environment *caller) {
    csm_call *c = &call->base;
    const size_t n = shape->n;
    if (!o->temperatures && !csm_is_loss_temperature(o->temperature)) return CSM_BAD_TEMPERATURE;
    if (!is_fraction(o->label_smoothing) || !(o->z_loss >= 0 && o->z_loss < CSM_INF) || !(o->clip_norm >= 0) ||
        !(o->clip_value >= 0) || !(o->softcap >= 0 && o->softcap < CSM_INF) || !o->labels == !o->soft || o->positives ||
        (unsigned)o->reduction > CSM_MEAN)
        return CSM_BAD_OPTION;
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, NULL, gradient, o->soft, o->sample_weight, o->upstream, o->temperatures},
        (csm_view *[]){&call->x, &call->order, gradient ? &call->gradient : NULL, o->soft ? &call->soft_labels : NULL,
                       o->sample_weight ? &call->sample_weight : NULL, o->upstream ? &call->upstream : NULL,
                       o->temperatures ? &call->temperatures : NULL},
        7, &call->rows);
    if (status != CSM_OK) return status;
    for (size_t i = 0; o->temperatures && i < call->rows; i++)
        if (!csm_is_loss_temperature(temperature_of(call, i))) return CSM_BAD_TEMPERATURE;
    csm_set_dtype(c, dtype, table);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    csm_set_scales(&c->scales, o->temperatures ? 1 : o->temperature, csm_is_single(c));
    call->options = o;
    call->is_soft = o->soft != NULL;
    call->kernels = &table->loss[dtype];
    call->wide_kernels = &table->loss[c->wide_dtype];
    call->itemsize = c->itemsize;
    if (o->softcap != 0) csm_loss_set_softcap(call, o->softcap);
    double weight_sum = (double)n;
    if (call->shard) weight_sum = call->shard->options->weight_sum;
    else if (o->weight) weight_sum = csm_loss_weight_sum(call, n);
    call->loss_call = csm_loss_call_of(o, n, gradient != NULL);
    if (call->shard) {
        call->loss_call.n = call->shard->options->classes;
        call->loss_call.gradient |= call->shard->stage == CSM_STAGE_SQUARES || call->shard->stage == CSM_STAGE_LOST;
    }
    call->loss_call.weight_sum = weight_sum;
    call->inner = c->shape.ndim ? c->shape.shape[c->shape.ndim - 1] : 1;
    call->is_direct = !call->capped && csm_is_contiguous(&c->shape, &call->x, c->itemsize, 1) &&
                      (!gradient || csm_is_contiguous(&c->shape, &call->gradient, c->itemsize, 1)) &&
                      (!call->is_soft || csm_is_contiguous(&c->shape, &call->soft_labels, c->wide_size, 1));
    call->pitch = csm_pack_pitch(n, c->itemsize);
    call->soft_pitch = csm_pack_pitch(n, c->wide_size);
    call->group = call->capped ? csm_loss_capped_group(call) : csm_pack_rows(n, c->itemsize);
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
    csm_loss_run call;
    memset(&call, 0, sizeof call);
    if (shard) {
        call.given_divisor = &shard->options->divisor;
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
    csm_loss_options known = csm_default_loss_options(), *used = csm_known_options(&known, sizeof known, o);
    csm_status status = csm_run_loss_shard(dtype, table, shape, x, gradient, loss, used, NULL);
    o->position = used->position;
    return status;
}

#define CROSS_ENTROPY(suffix, storage, compute)                                                                \
    csm_status csm_cross_entropy_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *gradient, \
                                          double *loss, csm_loss_options *o) {                                 \
        return csm_run_cross_entropy(CSM_DTYPE_##suffix, csm_current_table(), shape, x, gradient, loss, o);    \
    }
CSM_DTYPES(CROSS_ENTROPY)
