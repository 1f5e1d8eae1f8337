/* The driver of the Kullback-Leibler divergence.
 *
 * Contiguous rows are computed in place, all others in scratch; a row is never split.  Rows of more than CSM_BLOCK
 * elements are computed block by block.  Rows beyond exp's range, with an infinite divergence or with extreme
 * temperatures are computed by divergence_row.c.
 */
#include "divergence.h"

#include "../core/extension.h"
#include "../core/options.h"
#include "../core/reduction.h"
#include "../isa/dispatch.h"

enum { KEPT_ELEMENTS = 1 << 18 }; /* longest row whose e' are kept; those of longer ones are computed twice */

typedef struct divergence_call {
    csm_call base;
    csm_view x, y, gradient, weight, upstream, temperatures;
    csm_view order; /* offsets: the rows' indices in C order */
    const csm_divergence_options *options;
    const csm_kl_kernels *kernels;
    size_t rows, inner, group, pitch; /* inner: rows along the last batch axis; group, pitch: of rows in scratch */
    size_t e_size, block_size, wide_size;
    int has_gradient, is_direct; /* is_direct: every array is contiguous along the axis */
    double divisor, log_n;
    double *loss; /* by row, in C order */
    csm_scratch scratch;
} divergence_call;

static char *scratch_of(divergence_call *call, int thread) {
    size_t size = call->e_size + 2 * call->block_size + call->wide_size;
    if (!call->is_direct) size += 3 * call->group * call->pitch;
    return csm_scratch_get(&call->scratch, thread, 0, size);
}

static int is_temperature(const divergence_call *call, double t) {
    return t >= 0 && !(call->has_gradient && (t == 0 || !(t < CSM_INF)));
}
static double temperature_of(const divergence_call *call, size_t row) {
    double t;
    if (!call->options->temperatures) return call->options->temperature;
    memcpy(&t, csm_row_data(&call->base, &call->temperatures, row), sizeof t);
    return t;
}

/* A row of more than one block.  Returns 0, with nothing written, if csm_kl_slow_row is to compute it. */
static int run_long_row(const divergence_call *call, const csm_kl_row_place *p, const csm_scales *s, char *memory) {
    const csm_call *c = &call->base;
    const csm_kl_kernels *kernels = call->kernels;
    const csm_temperature *t = &s->ordinary;
    const size_t n = c->shape.n, count = csm_block_count(n), size = c->itemsize;
    const int is_kept = n <= KEPT_ELEMENTS, waits = !is_kept || p->gradient == p->x || p->gradient == p->y;
    csm_block *blocks_x = (csm_block *)(void *)(memory + call->e_size);
    csm_block *blocks_y = (csm_block *)(void *)(memory + call->e_size + call->block_size);
    /* e'_y may take the place of the gradient, which saves a third of the scratch that is in use. */
    const int shares = !waits && p->gradient && size == c->wide_size;
    char *e_x = memory, *e_y = shares ? p->gradient : memory + call->e_size / 2;
    csm_row sums_x, sums_y;
    csm_kl_row row;
    for (size_t b = 0; b < count; b++) {
        const size_t begin = b * CSM_BLOCK, k = csm_block_length(n, begin), at = is_kept ? begin * c->wide_size : 0;
        kernels->pass1(p->x + begin * size, e_x + at, k, t, &blocks_x[b]);
        kernels->pass1(p->y + begin * size, e_y + at, k, t, &blocks_y[b]);
        if (csm_poll_stops(&p->poll, 2 * k)) return 1;
    }
    csm_combine_log(blocks_x, count, &sums_x);
    csm_combine_log(blocks_y, count, &sums_y);
    if (!csm_is_ordinary(t, sums_x.max) || !csm_is_ordinary(t, sums_y.max)) return 0;
    csm_kl_set(&row, sums_x.max, sums_y.max, sums_x.tail, sums_y.tail, csm_kl_total(&sums_x), csm_kl_total(&sums_y),
               p->factor / t->t);
    csm_kl_balance(&row, p->factor / t->t, csm_is_single(c) ? 30 : 450);
    if (row.is_nan || sums_x.is_nan || sums_y.is_nan) return 0;
    double all = 0;
    enum { LINEAR, EXACT, GRADIENT } pass = LINEAR; /* a gradient that cannot be written at once waits */
    for (;;) {
        char *to = pass == GRADIENT || (pass == LINEAR && !waits) ? p->gradient : NULL;
        csm_pair_sum sum;
        csm_pair_sum_zero(&sum);
        for (size_t b = 0; b < count; b++) {
            const size_t begin = b * CSM_BLOCK, k = csm_block_length(n, begin), at = is_kept ? begin * c->wide_size : 0;
            if (!is_kept) kernels->again(p->x + begin * size, e_x, k, t, &blocks_x[b]);
            if (!is_kept) kernels->again(p->y + begin * size, e_y, k, t, &blocks_y[b]);
            const double part = kernels->pass2(p->x + begin * size, p->y + begin * size, e_x + at, e_y + at,
                                               to ? to + begin * size : NULL, k, t, &row, blocks_x[b].n - sums_x.n,
                                               blocks_y[b].n - sums_y.n, pass == EXACT);
            csm_pair_sum_add(&sum, part, 0);
            if (csm_poll_stops(&p->poll, 2 * k)) return 1;
        }
        if (pass == GRADIENT) return 1;
        all = csm_pair_sum_rounded(&sum);
        if (pass == LINEAR && !csm_kl_is_linear(&row, all, call->log_n)) {
            pass = EXACT;
            for (size_t b = 0; b < count && shares; b++)
                kernels->again(p->y + b * CSM_BLOCK * size, memory + call->e_size / 2 + b * CSM_BLOCK * c->wide_size,
                               csm_block_length(n, b * CSM_BLOCK), t, &blocks_y[b]);
            e_y = memory + call->e_size / 2;
            continue;
        }
        if (csm_kl_is_slow(&row, all, csm_is_single(c)))
            return 0; /* a gradient that has been written is written again */
        *p->loss = p->weight * (all / row.total);
        if (!waits || !p->gradient) return 1;
        pass = GRADIENT;
    }
}

/* Computes rows of one temperature that follow each other. */
static void run_contiguous_rows(divergence_call *call, csm_kl_job job, const csm_scales *s, int thread, char *memory,
                                const csm_strided *mask) {
    csm_call *c = &call->base;
    const csm_kl_job all = job;
    for (size_t at = 0; at < all.rows; at++) {
        const ptrdiff_t i = (ptrdiff_t)at;
        csm_kl_row_place p = {.x = all.x + i * all.x_step,
                              .y = all.y + i * all.y_step,
                              .gradient = all.gradient ? all.gradient + i * all.gradient_step : NULL,
                              .loss = all.loss + i * all.order,
                              .poll = csm_poll_of(&c->interrupt, thread)};
        if (mask->data) p.where = (csm_strided){mask->data + i * mask->row, 0, mask->axis};
        if (c->shape.n > 0 && c->shape.n <= CSM_BLOCK && !s->always_transform) {
            job.x = p.x;
            job.y = p.y;
            job.gradient = p.gradient;
            job.loss = p.loss;
            job.weight = all.weight ? all.weight + i * all.weight_step : NULL;
            job.upstream = all.upstream ? all.upstream + i * all.upstream_step : NULL;
            job.rows = all.rows - at;
            job.scratch = memory;
            at += call->kernels->rows(&job);
            if (at == all.rows) return;
            const ptrdiff_t done = (ptrdiff_t)at - i;
            p.x += done * all.x_step;
            p.y += done * all.y_step;
            if (p.gradient) p.gradient += done * all.gradient_step;
            p.loss += done * all.order;
            if (p.where.data) p.where.data += done * mask->row;
        }
        const int is_read = csm_kl_read(&all, (ptrdiff_t)at, &p.weight, &p.factor);
        if (is_read && c->shape.n > CSM_BLOCK && !s->always_transform && run_long_row(call, &p, s, memory)) continue;
        csm_kl_slow_row(c, &p, s, is_read, memory + call->e_size + 2 * call->block_size);
    }
}

static csm_kl_job job_of(divergence_call *call, size_t row, size_t count) {
    const csm_call *c = &call->base;
    const csm_shape *shape = &c->shape;
    csm_kl_job job = {.x = csm_row_data(c, &call->x, row),
                      .y = csm_row_data(c, &call->y, row),
                      .x_step = csm_last_stride(shape, &call->x),
                      .y_step = csm_last_stride(shape, &call->y),
                      .rows = count,
                      .n = shape->n,
                      .log_n = call->log_n,
                      .factor = 1 / call->divisor,
                      .loss = call->loss + csm_offset(shape, call->order.strides, row),
                      .order = csm_last_stride(shape, &call->order)};
    if (call->has_gradient) {
        job.gradient = (char *)call->gradient.data + csm_offset(shape, call->gradient.strides, row);
        job.gradient_step = csm_last_stride(shape, &call->gradient);
    }
    if (call->options->sample_weight) {
        job.weight = csm_row_data(c, &call->weight, row);
        job.weight_step = csm_last_stride(shape, &call->weight);
    }
    if (call->options->upstream) {
        job.upstream = csm_row_data(c, &call->upstream, row);
        job.upstream_step = csm_last_stride(shape, &call->upstream);
    }
    return job;
}

/* Rows through scratch: x, y and the gradient. */
static void run_packed_rows(divergence_call *call, csm_kl_job job, const csm_scales *s, int thread, char *memory,
                            csm_strided mask) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, size = c->itemsize, pitch = call->pitch;
    char *x = memory + call->e_size + 2 * call->block_size + call->wide_size, *y = x + call->group * pitch;
    char *gradient = y + call->group * pitch;
    csm_kl_job packed = job;
    csm_gather(x, pitch, (csm_strided){job.x, job.x_step, call->x.axis_stride}, job.rows, n, size,
               mask.data ? &mask : NULL, &c->absent);
    csm_gather(y, pitch, (csm_strided){job.y, job.y_step, call->y.axis_stride}, job.rows, n, size,
               mask.data ? &mask : NULL, &c->absent);
    packed.x = x;
    packed.y = y;
    packed.x_step = packed.y_step = packed.gradient_step = (ptrdiff_t)pitch;
    if (job.gradient) packed.gradient = gradient;
    run_contiguous_rows(call, packed, s, thread, memory, &mask);
    if (job.gradient)
        csm_scatter(job.gradient, job.gradient_step, call->gradient.axis_stride, gradient, pitch, job.rows, n, size);
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    divergence_call *call = context;
    const csm_call *c = &call->base;
    char *memory = scratch_of(call, thread);
    csm_scales scales = c->scales;
    if (!memory) return CSM_NO_MEMORY;
    while (begin < end) {
        size_t left = call->inner - begin % call->inner, count = end - begin < left ? end - begin : left;
        if (!call->is_direct && count > call->group) count = call->group;
        if (call->options->temperatures) {
            const double t = temperature_of(call, begin);
            size_t same = 1; /* neighbours of the same temperature go together */
            while (same < count && temperature_of(call, begin + same) == t) same++;
            count = same;
            csm_set_scales(&scales, t, csm_is_single(c));
        }
        csm_kl_job job = job_of(call, begin, count);
        csm_strided mask = csm_mask_of(c, begin);
        if (c->has_where) mask.row = csm_last_stride(&c->shape, &c->where);
        job.t = &scales.ordinary;
        if (call->is_direct) run_contiguous_rows(call, job, &scales, thread, memory, &mask);
        else run_packed_rows(call, job, &scales, thread, memory, mask);
        begin += count;
    }
    return CSM_OK;
}

/* The divisor of a mean: the sum of the weights. */
static double find_divisor(divergence_call *call) {
    if (call->options->reduction != CSM_MEAN) return 1;
    if (!call->options->sample_weight) return (double)call->rows;
    for (size_t i = 0; i < call->rows; i++)
        memcpy(&call->loss[csm_offset(&call->base.shape, call->order.strides, i)],
               csm_row_data(&call->base, &call->weight, i), sizeof(double));
    return csm_tree_sum(call->loss, call->rows);
}

/* Writes 0 to all gradients. */
static void clear(const divergence_call *call) {
    const csm_call *c = &call->base;
    for (size_t row = 0; row < call->rows && call->has_gradient; row++) {
        char *to = (char *)call->gradient.data + csm_offset(&c->shape, call->gradient.strides, row);
        for (size_t j = 0; j < c->shape.n; j++) memset(to + (ptrdiff_t)j * call->gradient.axis_stride, 0, c->itemsize);
    }
}

static csm_status compute(divergence_call *call, int threads, double *loss) {
    csm_call *c = &call->base;
    const csm_divergence_options *o = call->options;
    call->divisor = find_divisor(call);
    if (call->divisor == 0) {
        clear(call);
        *loss = CSM_NAN;
        return CSM_OK;
    }
    const size_t n = c->shape.n, piece = CSM_PIECE_ELEMENTS / (2 * n + 1) + 1;
    c->threads = csm_threads_for(2 * (double)call->rows * (double)n, call->rows, threads);
    const csm_status status = csm_parallel(call->rows, piece, c->threads, rows_body, call, &c->interrupt);
    if (status != CSM_OK) return status;
    if (o->reduction != CSM_NONE)
        *loss = csm_finish_loss(csm_tree_sum(call->loss, call->rows) / call->divisor, csm_is_single(c));
    for (size_t i = 0; o->reduction == CSM_NONE && csm_is_single(c) && i < call->rows; i++)
        loss[i] = (double)(float)loss[i];
    return CSM_OK;
}

static csm_status prepare(divergence_call *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                          const csm_view *x, const csm_view *y, const csm_view *gradient,
                          const csm_divergence_options *o, const csm_fp_environment *caller) {
    csm_call *c = &call->base;
    const size_t n = shape->n;
    call->options = o;
    call->has_gradient = gradient != NULL;
    if ((unsigned)o->reduction > CSM_MEAN) return CSM_BAD_OPTION;
    if (!o->temperatures && !is_temperature(call, o->temperature)) return CSM_BAD_TEMPERATURE;
    c->has_where = o->where != NULL;
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, y, gradient, o->where, o->sample_weight, o->upstream, o->temperatures, NULL},
        (csm_view *[]){&call->x, &call->y, gradient ? &call->gradient : NULL, o->where ? &c->where : NULL,
                       o->sample_weight ? &call->weight : NULL, o->upstream ? &call->upstream : NULL,
                       o->temperatures ? &call->temperatures : NULL, &call->order},
        8, &call->rows);
    if (status != CSM_OK) return status;
    for (size_t i = 0; o->temperatures && i < call->rows; i++)
        if (!is_temperature(call, temperature_of(call, i))) return CSM_BAD_TEMPERATURE;
    csm_set_dtype(c, dtype, table);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    csm_set_scales(&c->scales, o->temperatures ? 1 : o->temperature, csm_is_single(c));
    csm_put(c, &c->absent, -CSM_INF);
    call->kernels = &table->divergence[dtype];
    call->log_n = csm_log1p(n > 1 ? (double)(n - 1) : 0, 0);
    call->inner = c->shape.ndim ? c->shape.shape[c->shape.ndim - 1] : 1;
    call->is_direct = !c->has_where && csm_is_contiguous(&c->shape, &call->x, c->itemsize, 1) &&
                      csm_is_contiguous(&c->shape, &call->y, c->itemsize, 1) &&
                      (!gradient || csm_is_contiguous(&c->shape, &call->gradient, c->itemsize, 1));
    call->pitch = csm_pack_pitch(n, c->itemsize);
    call->group = csm_pack_rows(n, c->itemsize);
    const size_t kept = n <= CSM_BLOCK ? csm_loss_scratch(n, csm_is_single(c) ? call->rows : 1)
                                       : (n <= KEPT_ELEMENTS ? n : CSM_BLOCK) + 16;
    call->e_size = 2 * csm_rounded(kept * c->wide_size);
    call->block_size = csm_rounded((csm_block_count(n) + 1) * sizeof(csm_block));
    call->wide_size = 2 * csm_rounded((n < CSM_BLOCK ? n : CSM_BLOCK) * c->wide_size);
    return CSM_OK;
}

static csm_status run_divergence(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                                 const csm_view *y, const csm_view *gradient, double *loss,
                                 const csm_divergence_options *o, csm_fp_environment *caller) {
    enum { STACK_BYTES = 512, STACK_SCRATCH_BYTES = 4096 }; /* small calls allocate nothing */
    _Alignas(CSM_ALIGN) char stack[STACK_BYTES], stack_scratch[STACK_SCRATCH_BYTES];
    csm_buffer single;
    divergence_call call;
    memset(&call, 0, sizeof call);
    csm_status status = prepare(&call, dtype, table, shape, x, y, gradient, o, caller);
    if (status != CSM_OK) return status;
    int threads = o->threads < 1 ? 1 : o->threads;
    if ((size_t)threads > call.rows) threads = call.rows ? (int)call.rows : 1;
    const size_t size = o->reduction == CSM_NONE ? 0 : call.rows * sizeof(double);
    char *memory = size <= sizeof stack ? stack : csm_allocate(size);
    if (!memory) return CSM_NO_MEMORY;
    call.loss = o->reduction == CSM_NONE ? loss : (double *)(void *)memory;
    status = csm_scratch_begin(&call.scratch, threads, 1, &single);
    if (status == CSM_OK) {
        csm_scratch_lend(&call.scratch, 0, 0, stack_scratch, sizeof stack_scratch);
        status = compute(&call, threads, loss);
        csm_scratch_end(&call.scratch);
    }
    if (memory != stack) csm_release(memory);
    *caller = call.base.interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_divergence(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                              const csm_view *y, const csm_view *gradient, double *loss,
                              const csm_divergence_options *o) {
    csm_divergence_options known = csm_default_divergence_options();
    o = csm_known_options(&known, sizeof known, o);
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run_divergence(dtype, table, shape, x, y, gradient, loss, o, &saved);
    csm_fp_leave(saved);
    return status;
}

#define DIVERGENCE(suffix, storage, compute)                                                                         \
    csm_status csm_kl_divergence_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *y,              \
                                          const csm_view *gradient, double *loss, const csm_divergence_options *o) { \
        return csm_run_divergence(CSM_DTYPE_##suffix, csm_current_table(), shape, x, y, gradient, loss, o);          \
    }
CSM_DTYPES(DIVERGENCE)
