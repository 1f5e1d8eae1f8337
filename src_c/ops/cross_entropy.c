/* The driver of cross-entropy: labels, the mean's divisor, the distribution of rows to threads, the sum of the losses.
 *
 *   labels    are copied once and checked; then only the copy is used
 *   divisor   is known before any gradient: it depends only on the labels and the weights
 *   rows      are computed in place if contiguous; any other layout goes through scratch.  A row is never split, so
 *             nothing depends on the number of threads.  Rows longer than CSM_BLOCK are computed block by block; rows
 *             outside the range of exp's reduction (see softmax_row.c) are transformed block by block, twice; rows in
 *             which probabilities underflow whose gradients would not are computed by underflow.h
 *   sum       adds the row losses in double, in a tree over their C order that depends only on their number
 *
 * Where rows have temperatures of their own, neighbours of one temperature are computed by a copy of the call with it.
 */
#include "cross_entropy.h"

#include "../core/labels.h"
#include "../core/reduction.h"
#include "../kernel/cross_entropy/underflow.h"

/* Rows */

/* Collects the inputs of a row other than its logits.  Returns whether the row takes part. */
static int read_input(const csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, csm_loss_input *in) {
    *in = (csm_loss_input){.w_label = 1, .upstream = 1, .e_label = -1};
    if (!csm_read_label_and_weight(job, at, in)) return 0;
    if (job->upstream) memcpy(&in->upstream, job->upstream + at * job->upstream_step, sizeof in->upstream);
    if (in->label >= 0) in->mass = in->w_label = csm_class_weight(call, (size_t)in->label);
    else in->mass = job->mass[at * job->order];
    return 1;
}

static void fill_row(const csm_loss_run *call, char *gradient, double value, const csm_poll *poll) {
    const csm_call *c = &call->base;
    csm_wide element;
    if (!gradient) return;
    csm_put(c, &element, value);
    for (size_t j = 0; j < c->shape.n && !csm_poll_at(poll, j); j++)
        memcpy(gradient + j * c->itemsize, &element, c->itemsize);
}

/* Whether the kernels lose the gradient of one of a row's classes; sets the row's maximum in `in`. */
static int has_lost_gradient(const csm_loss_run *call, const char *x, csm_loss_input *in, char *wide) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, count = csm_block_count(n);
    const int single = csm_is_single(c);
    const double upstream = fabs(in->upstream);
    if (!(in->weight * upstream * (in->mass + call->lost_extra) > call->lost_limit) &&
        !(upstream > call->lost_upstream))
        return 0;
    in->max = -CSM_INF;
    for (size_t b = 0; b < count; b++) {
        const double max = c->table->max[c->dtype](x + b * CSM_BLOCK * c->itemsize, csm_block_length(n, b * CSM_BLOCK));
        if (!(max <= in->max)) in->max = max;
    }
    const csm_loss_lost lost = csm_loss_lost_of(&call->loss_call, in, single);
    for (size_t b = 0; b < count && lost.low <= lost.high; b++) {
        const size_t k = csm_block_length(n, b * CSM_BLOCK);
        c->table->widen[c->dtype](x + b * CSM_BLOCK * c->itemsize, wide, k);
        for (size_t j = 0; j < k; j++)
            if (csm_loss_is_lost(lost, csm_wide_at(c, wide, j))) return 1;
    }
    return 0;
}

/* The state of a contiguous row of any length and content while it is computed. */
typedef struct row_state {
    const csm_loss_run *call;
    const csm_loss_call *loss_call; /* for ordinary or for transformed rows */
    const csm_loss_kernels *kernels; /* for ordinary or for transformed rows */
    const char *x, *q;
    char *gradient; /* may be x; NULL: none */
    char *wide, *scratch; /* for a block of the compute type; for e' of a block */
    csm_block *blocks;
    csm_loss_input in;
    csm_loss_row row;
    double max;
    int is_transformed, stores_e; /* stores_e: pass 1 stores e' in the gradient */
    csm_poll poll;
    int is_stopped; /* the call has been interrupted */
} row_state;

/* Asks after block b of a long row. */
static int stops(row_state *s, size_t b) { return (s->is_stopped |= b > 0 && csm_poll_stops(&s->poll, CSM_BLOCK)); }

/* A block of such a row. */
typedef struct loss_block {
    size_t k;
    const char *x;
    char *e, *gradient; /* e: NULL if pass 1 does not store e' in the gradient */
    csm_loss_terms terms;
    int has_terms;
} loss_block;

static loss_block block_at(const row_state *s, size_t b) {
    const csm_call *c = &s->call->base;
    const csm_loss_call *call = s->loss_call;
    const size_t begin = b * CSM_BLOCK, wide_begin = begin * c->wide_size;
    loss_block p = {.k = csm_block_length(c->shape.n, begin), .x = s->x + begin * c->itemsize};
    p.gradient = s->gradient ? s->gradient + begin * c->itemsize : NULL;
    p.e = s->stores_e ? p.gradient : NULL;
    p.has_terms = call->soft || call->smoothing != 0;
    p.terms = (csm_loss_terms){s->q ? s->q + wide_begin : NULL, call->w ? (const char *)call->w + wide_begin : NULL,
                               1 - call->smoothing, call->smoothing / (double)c->shape.n};
    if (s->is_transformed) {
        c->table->widen[c->dtype](p.x, s->wide, p.k);
        csm_transform(&c->scales, csm_is_single(c), s->wide, p.k, s->max);
        p.x = s->wide;
    }
    return p;
}

/* The weighted distances of a block of a transformed row. */
static double far_of_block(const row_state *s, size_t b, const loss_block *p) {
    const csm_call *c = &s->call->base;
    const char *q = p->terms.q, *w = p->terms.w;
    csm_pair lanes[CSM_FAR_LANES] = {{0, 0}}, sum = {0, 0};
    c->table->widen[c->dtype](s->x + b * CSM_BLOCK * c->itemsize, s->wide, p->k);
    for (size_t j = 0; j < p->k; j++)
        csm_far_add(&lanes[j % CSM_FAR_LANES], &p->terms, q ? csm_wide_at(c, q, j) : 0, w ? csm_wide_at(c, w, j) : 1,
                    s->max, csm_wide_at(c, s->wide, j), c->scales.temperature);
    for (int l = 0; l < CSM_FAR_LANES; l++) csm_far_join(&sum, lanes[l]);
    return csm_far_total(sum);
}

static void run_pass1(row_state *s, size_t b, const loss_block *p) {
    const int sums_terms = p->has_terms && !s->is_transformed;
    s->kernels->pass1(p->x, p->e, p->k, s->loss_call->t, sums_terms ? &p->terms : NULL, &s->blocks[b]);
    if (p->has_terms && s->is_transformed) s->blocks[b].far = far_of_block(s, b, p);
}

/* Computes the maxima, pass 1 of every block, and the row's sums and loss.  Returns 0 if the loss is NaN. */
static int sum_row(row_state *s) {
    const csm_loss_run *call = s->call;
    const csm_call *c = &call->base;
    const size_t count = csm_block_count(c->shape.n);
    csm_loss_input *in = &s->in;
    /* Pass 1 and the search for the maximum share one loop, unless pass 1 could overwrite a row that must be
     * transformed. */
    const int is_fused = !c->scales.always_transform && s->gradient != s->x;
    s->max = -CSM_INF;
    for (size_t b = 0; b < count; b++) {
        const loss_block p = block_at(s, b);
        s->blocks[b].max = c->table->max[c->dtype](p.x, p.k);
        if (s->blocks[b].max > s->max) s->max = s->blocks[b].max;
        if (is_fused) run_pass1(s, b, &p);
        if (stops(s, b)) return 0;
    }
    in->max = s->max;
    if (!csm_fits_range(&c->scales, s->max)) {
        s->is_transformed = 1;
        s->stores_e = 0;
        s->loss_call = &call->transformed_call;
        s->kernels = call->wide_kernels;
        if (in->label >= 0) {
            csm_wide w = csm_to_wide(c, in->x_label);
            csm_transform(&c->scales, csm_is_single(c), &w, 1, s->max);
            in->z_label = csm_from_wide(c, w);
        }
    }
    if (!(s->max < CSM_INF && s->max > -CSM_INF)) return 0;
    for (size_t b = 0; b < count && (!is_fused || s->is_transformed); b++) {
        const loss_block p = block_at(s, b);
        if (s->is_transformed) s->blocks[b].max = c->table->max[c->wide_dtype](p.x, p.k);
        run_pass1(s, b, &p);
        if (stops(s, b)) return 0;
    }
    if (s->stores_e && in->label >= 0) {
        in->e_label = csm_element(c, s->gradient, (size_t)in->label);
        in->n = s->blocks[(size_t)in->label / CSM_BLOCK].n;
    }
    s->kernels->sums(s->loss_call, in, s->blocks, count, &s->row);
    return !s->row.is_nan;
}

/* The factor that clip_norm requires. */
static double clip_factor(row_state *s) {
    const size_t count = csm_block_count(s->call->base.shape.n);
    csm_pair_sum squares;
    if (!(s->loss_call->clip_norm < CSM_INF)) return 1;
    s->kernels->factors(s->loss_call, &s->in, -1, &s->row);
    csm_pair_sum_zero(&squares);
    for (size_t b = 0; b < count; b++) {
        const loss_block p = block_at(s, b);
        ptrdiff_t place = s->in.label - (ptrdiff_t)(b * CSM_BLOCK);
        if (s->in.label < 0 || place < 0 || place >= (ptrdiff_t)p.k) place = -1;
        const double of_block = s->kernels->norm(p.x, p.e, p.k, s->loss_call->t, &s->blocks[b], &s->row,
                                                 p.has_terms ? &p.terms : NULL, place, s->scratch);
        csm_pair_sum_add(&squares, of_block, 0);
        if (stops(s, b)) break;
    }
    return csm_loss_shrink(s->loss_call, &s->in, &s->row, csm_pair_sum_rounded(&squares));
}

static void write_gradient(row_state *s) {
    const csm_call *c = &s->call->base;
    const size_t count = csm_block_count(c->shape.n);
    for (size_t b = 0; b < count; b++) {
        const loss_block p = block_at(s, b);
        char *to = s->is_transformed ? s->wide : p.gradient;
        s->kernels->pass2(p.x, p.e, to, p.k, s->loss_call->t, &s->blocks[b], &s->row, p.has_terms ? &p.terms : NULL,
                          s->scratch);
        if (s->is_transformed) c->table->narrow[c->dtype](s->wide, p.gradient, p.k);
        if (stops(s, b)) return;
    }
    if (s->in.label >= 0) csm_put(c, s->gradient + (size_t)s->in.label * c->itemsize, s->row.target);
}

/* The passes over a row with lost gradients: its sums, its norm, its gradient. */
enum { SUMS, NORM, GRADIENT };
static void pass_over_lost(row_state *s, csm_loss_exact *exact, csm_factor *square, int pass) {
    const csm_call *c = &s->call->base;
    const size_t n = c->shape.n;
    for (size_t b = 0; b < csm_block_count(n) && !s->is_stopped; b++) {
        const size_t begin = b * CSM_BLOCK, k = csm_block_length(n, begin);
        c->table->widen[c->dtype](s->x + begin * c->itemsize, s->wide, k);
        for (size_t j = 0; j < k; j++) {
            const double x = csm_wide_at(c, s->wide, j);
            const int is_label = (ptrdiff_t)(begin + j) == s->in.label;
            if (pass == SUMS) {
                csm_loss_exact_add(exact, x, is_label);
                continue;
            }
            const double q = s->q ? csm_wide_at(c, s->q, begin + j) : is_label;
            const csm_factor g = csm_loss_exact_of_row(exact, x, q, csm_class_weight(s->call, begin + j), is_label);
            if (pass == NORM) *square = csm_factor_add(*square, csm_factor_mul(g, g));
            else csm_put(c, s->gradient + (begin + j) * c->itemsize, csm_loss_exact_result(exact, g));
        }
        s->is_stopped |= csm_poll_stops(&s->poll, 16 * k); /* an element takes some 0.1 us */
    }
}
static void write_lost_gradient(row_state *s) {
    const csm_loss_call *call = &s->call->loss_call;
    csm_loss_exact exact = csm_loss_exact_begin(call, s->max);
    csm_factor square = {{0, 0}, 0};
    pass_over_lost(s, &exact, &square, SUMS);
    csm_loss_exact_factors(call, &s->in, &exact);
    if (call->clip_norm < CSM_INF) {
        pass_over_lost(s, &exact, &square, NORM);
        csm_loss_exact_shrink(call, square, &exact);
    }
    pass_over_lost(s, &exact, &square, GRADIENT);
}

static void run_row(csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, int thread, char *memory) {
    csm_call *c = &call->base;
    row_state s = {.call = call,
                   .loss_call = &call->loss_call,
                   .kernels = call->kernels,
                   .x = job->x + at * job->x_step,
                   .q = job->q ? job->q + at * job->q_step : NULL,
                   .gradient = job->gradient ? job->gradient + at * job->gradient_step : NULL,
                   .wide = memory + call->e_size + call->block_size,
                   .scratch = memory,
                   .blocks = (csm_block *)(void *)(memory + call->e_size),
                   .poll = csm_poll_of(&c->interrupt, thread)};
    double *loss = &job->loss[at * job->order];
    if (!read_input(call, job, at, &s.in)) { /* the logits are not read */
        *loss = 0;
        fill_row(call, s.gradient, 0, &s.poll);
        return;
    }
    const int has_lost = s.gradient && call->has_lost && has_lost_gradient(call, s.x, &s.in, s.wide);
    s.stores_e = s.gradient && !has_lost && c->itemsize == c->wide_size;
    if (s.in.label >= 0) s.in.x_label = s.in.z_label = csm_element(c, s.x, (size_t)s.in.label);
    const int is_number = sum_row(&s);
    *loss = is_number ? s.row.loss : CSM_NAN;
    if (!s.gradient || s.is_stopped) return;
    if (is_number && has_lost) {
        write_lost_gradient(&s);
        return;
    }
    if (is_number) s.kernels->factors(s.loss_call, &s.in, clip_factor(&s), &s.row);
    if (!is_number || s.row.is_nan) fill_row(call, s.gradient, CSM_NAN, &s.poll);
    else write_gradient(&s);
}

/* The end of the rows from `at` on that the kernels of many rows compute. */
static ptrdiff_t end_of_kernel_rows(csm_loss_run *call, const csm_loss_job *job, ptrdiff_t at, char *memory) {
    const csm_call *c = &call->base;
    csm_loss_input in;
    if (c->shape.n > CSM_BLOCK || c->scales.always_transform) return at;
    if (!job->gradient || !call->has_lost) return (ptrdiff_t)job->rows;
    for (; at < (ptrdiff_t)job->rows; at++)
        if (read_input(call, job, at, &in) && has_lost_gradient(call, job->x + at * job->x_step, &in, memory)) break;
    return at;
}

/* The job of the rows from `at` on, `rows` of them. */
static csm_loss_job job_at(const csm_loss_job *all, ptrdiff_t at, size_t rows, void *scratch) {
    csm_loss_job job = *all;
    job.x = all->x + at * all->x_step;
    job.q = all->q ? all->q + at * all->q_step : NULL;
    job.gradient = all->gradient ? all->gradient + at * all->gradient_step : NULL;
    job.label = all->label ? all->label + at * all->order : NULL;
    job.mass = all->mass ? all->mass + at * all->order : NULL;
    job.loss = all->loss + at * all->order;
    job.weight = all->weight ? all->weight + at * all->weight_step : NULL;
    job.upstream = all->upstream ? all->upstream + at * all->upstream_step : NULL;
    job.rows = rows;
    job.scratch = scratch;
    return job;
}

static void run_contiguous_rows(csm_loss_run *call, const csm_loss_job *all, int thread, char *memory) {
    ptrdiff_t at = 0, rows = (ptrdiff_t)all->rows;
    while (at < rows) {
        const ptrdiff_t end = end_of_kernel_rows(call, all, at, memory + call->e_size + call->block_size);
        if (at < end) {
            const csm_loss_job job = job_at(all, at, (size_t)(end - at), memory);
            at += (ptrdiff_t)call->kernels->rows(&job);
            if (at == end) continue;
        }
        run_row(call, all, at++, thread, memory);
    }
}

/* Copies the rows that take part to their places in scratch; no other row is read.  Returns 0 if the call has been
 * interrupted. */
static int gather_kept(csm_loss_run *call, int thread, const csm_loss_job *job, char *to, size_t pitch,
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
    csm_loss_run *call = context;
    const csm_call *c = &call->base;
    char *memory = csm_loss_scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    while (begin < end) {
        size_t left = call->inner - begin % call->inner, count = end - begin < left ? end - begin : left;
        if (!call->is_direct && count > call->group) count = call->group;
        const csm_loss_job job = job_of(call, begin, count);
        if (call->is_direct) {
            run_contiguous_rows(call, &job, thread, memory);
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
            run_contiguous_rows(call, &packed, thread, memory);
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

/* Sets which rows are looked at for gradients that the kernels lose: those with large factors. */
static void find_lost_limit(csm_loss_run *call) {
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

static void set_temperature(csm_loss_call *c, double temperature) {
    const csm_pair per = csm_pair_reciprocal(temperature, &c->t_exponent);
    c->temperature = temperature;
    c->per_t = per.hi;
    c->per_t_low = per.lo;
}

/* Sets what depends on the divisor and on the temperature; the constants of the temperature are in base.scales. */
static void finish_constants(csm_loss_run *call, double divisor) {
    csm_loss_divide(&call->loss_call, divisor);
    find_lost_limit(call);
    call->loss_call.t = &call->base.scales.ordinary;
    call->transformed_call = call->loss_call;
    call->transformed_call.t = &call->base.scales.transformed;
}

static double temperature_of(const csm_loss_run *call, size_t row) {
    double t;
    memcpy(&t, csm_row_data(&call->base, &call->temperatures, row), sizeof t);
    return t;
}
static int is_temperature(double t) { return t > 0 && t < CSM_INF; }

/* Contiguous rows from `begin` on, along the last batch axis: the kernel computes them by their temperatures,
 * neighbours of the same one together.  Returns how many it has done before one that the kernels do not compute, or
 * whose temperature is not usual. */
static size_t run_usual(csm_loss_run *own, size_t begin, size_t count, char *memory) {
    enum { TOGETHER = 16 };
    const csm_loss_job all = job_of(own, begin, count);
    double numbers[TOGETHER];
    csm_temperature constants[TOGETHER];
    if (own->base.shape.n > CSM_BLOCK || !own->is_direct) return 0;
    own->base.scales.always_transform = 0;
    set_temperature(&own->loss_call, 1);
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
            set_temperature(&own->loss_call, numbers[i]);
            own->loss_call.t = &constants[i];
            own->loss_call.simple = is_simple && numbers[i] == 1;
            find_lost_limit(own);
            csm_loss_job job = job_at(&all, (ptrdiff_t)(at + i), same, memory);
            job.rows = (size_t)end_of_kernel_rows(own, &job, 0, memory + own->e_size + own->block_size);
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
        set_temperature(&own.loss_call, t);
        finish_constants(&own, call->divisor);
        status = rows_body(&own, begin, stop, thread);
        begin = stop;
    }
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
                               .clip_norm = o->clip_norm > 0 ? o->clip_norm : CSM_INF,
                               .clip_value = o->clip_value > 0 ? o->clip_value : CSM_INF,
                               .soft = o->soft != NULL,
                               .gradient = gradient};
    set_temperature(&constants, o->temperature);
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
        if (axis == (ptrdiff_t)c->itemsize) memset(to, 0, c->shape.n * c->itemsize);
        else
            for (size_t j = 0; j < c->shape.n; j++) memset(to + (ptrdiff_t)j * axis, 0, c->itemsize);
    }
    return CSM_OK;
}

static csm_status compute(csm_loss_run *call, const csm_shape *shape, csm_loss_options *o, int threads, double *loss) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_status status = CSM_OK;
    if (call->labels) status = csm_read_labels(shape, o, call->rows, call->labels);
    if (status != CSM_OK) return status;
    c->threads = csm_threads_for((double)call->rows * (double)n, call->rows, threads);
    const size_t piece = CSM_PIECE_ELEMENTS / (n + 1) + 1;
    if (call->is_soft && n > 0) {
        status = csm_parallel(call->rows, piece, c->threads, csm_loss_masses, call, &c->interrupt);
        if (status != CSM_OK) return status;
        if (atomic_load(&call->has_bad_label)) return CSM_BAD_LABEL;
    }
    const double divisor = call->divisor = csm_loss_divisor(call);
    finish_constants(call, divisor);
    if (csm_loss_is_empty(&call->loss_call)) {
        *loss = CSM_NAN;
        if (!call->loss_call.gradient || n == 0) return CSM_OK;
        return csm_parallel(call->rows, piece, c->threads, clear_body, call, &c->interrupt);
    }
    if (n > 0) {
        csm_body body = o->temperatures ? own_body : rows_body;
        status = csm_parallel(call->rows, piece, c->threads, body, call, &c->interrupt);
        if (status != CSM_OK) return status;
    }
    for (size_t i = 0; n == 0 && i < call->rows; i++) /* lse = -inf; all labels are ignored, or soft */
        call->loss[csm_order_of(call, i)] =
            call->is_soft && o->z_loss > 0 && csm_sample_weight(call, i) != 0 ? CSM_INF : 0;
    /* Rounded here, where the caller's rounding mode is not in effect. */
    if (o->reduction != CSM_NONE)
        *loss = csm_finish_loss(csm_tree_sum(call->loss, call->rows) / divisor, csm_is_single(c));
    for (size_t i = 0; o->reduction == CSM_NONE && csm_is_single(c) && i < call->rows; i++)
        loss[i] = (double)(float)loss[i];
    return CSM_OK;
}

static csm_status prepare(csm_loss_run *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                          const csm_view *x, const csm_view *gradient, csm_loss_options *o,
                          const csm_fp_environment *caller) {
    csm_call *c = &call->base;
    const size_t n = shape->n;
    if (!o->temperatures && !is_temperature(o->temperature)) return CSM_BAD_TEMPERATURE;
    if (!is_fraction(o->label_smoothing) || !(o->z_loss >= 0 && o->z_loss < CSM_INF) || !(o->clip_norm >= 0) ||
        !(o->clip_value >= 0) || !o->labels == !o->soft || (unsigned)o->reduction > CSM_MEAN)
        return CSM_BAD_OPTION;
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, NULL, gradient, o->soft, o->sample_weight, o->upstream, o->temperatures},
        (csm_view *[]){&call->x, &call->order, gradient ? &call->gradient : NULL, o->soft ? &call->soft_labels : NULL,
                       o->sample_weight ? &call->sample_weight : NULL, o->upstream ? &call->upstream : NULL,
                       o->temperatures ? &call->temperatures : NULL},
        7, &call->rows);
    if (status != CSM_OK) return status;
    for (size_t i = 0; o->temperatures && i < call->rows; i++)
        if (!is_temperature(temperature_of(call, i))) return CSM_BAD_TEMPERATURE;
    csm_set_dtype(c, dtype, table);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    csm_set_scales(&c->scales, o->temperatures ? 1 : o->temperature, csm_is_single(c));
    call->options = o;
    call->is_soft = o->soft != NULL;
    call->kernels = &table->loss[dtype];
    call->wide_kernels = &table->loss[c->wide_dtype];
    double weight_sum = (double)n;
    if (o->weight) weight_sum = csm_loss_weight_sum(call, n);
    call->loss_call = csm_loss_call_of(o, n, gradient != NULL);
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
                                    const csm_view *gradient, double *loss, csm_loss_options *o,
                                    csm_fp_environment *caller) {
    enum { STACK_BYTES = 1024, STACK_SCRATCH_BYTES = 2048 }; /* small calls allocate nothing */
    _Alignas(CSM_ALIGN) char stack[STACK_BYTES], stack_scratch[STACK_SCRATCH_BYTES];
    csm_buffer single;
    csm_loss_run call;
    memset(&call, 0, sizeof call);
    csm_status status = prepare(&call, dtype, table, shape, x, gradient, o, caller);
    if (status != CSM_OK) return status;
    int threads = o->threads < 1 ? 1 : o->threads;
    if ((size_t)threads > call.rows) threads = call.rows ? (int)call.rows : 1;
    const size_t labels_size = csm_rounded(call.rows * (o->labels ? sizeof(int64_t) : sizeof(double)));
    const size_t loss_size = o->reduction == CSM_NONE ? 0 : csm_rounded(call.rows * sizeof(double));
    char *memory = labels_size + loss_size <= sizeof stack ? stack : csm_allocate(labels_size + loss_size);
    if (!memory) return CSM_NO_MEMORY;
    if (o->labels) call.labels = (int64_t *)(void *)memory;
    else call.mass = (double *)(void *)memory;
    call.loss = o->reduction == CSM_NONE ? loss : (double *)(void *)(memory + labels_size);
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

csm_status csm_run_cross_entropy(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                                 const csm_view *gradient, double *loss, csm_loss_options *o) {
    if (!o) return CSM_BAD_OPTION; /* labels are required */
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run_cross_entropy(dtype, table, shape, x, gradient, loss, o, &saved);
    csm_fp_leave(saved);
    return status;
}

#define CROSS_ENTROPY(suffix, storage, compute)                                                                \
    csm_status csm_cross_entropy_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *gradient, \
                                          double *loss, csm_loss_options *o) {                                 \
        return csm_run_cross_entropy(CSM_DTYPE_##suffix, csm_current_table(), shape, x, gradient, loss, o);    \
    }
CSM_DTYPES(CROSS_ENTROPY)
