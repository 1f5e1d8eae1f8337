/* Cross-entropy from a call to its rows: labels, the mean's divisor, rows to threads, the sum of the losses.
 *
 *   labels    copied once, checked, then used from that copy only
 *   divisor   known before any gradient: it needs the labels alone
 *   rows      contiguous ones in place, any other layout through scratch; one row is never split, so nothing depends
 *             on the number of threads.  Rows longer than CSM_BLOCK go block by block, rows that exp's range reduction
 *             does not take (see row.c) are transformed block by block, twice
 *   sum       row losses in double, in a fixed tree in C order
 */
#include "internal.h"
#include "kernel/loss_row.h"

#include <math.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

typedef struct loss_run {
    csm_call base;             /* a: logits, y: gradient, b: soft labels */
    csm_view order, weight, upstream;
    const csm_loss_options *options;
    const csm_loss_kernels *kernels, *wide_kernels;
    csm_loss_call call, cold;  /* of ordinary and of transformed rows */
    size_t rows, inner, pitch, soft_pitch, group;
    int direct;
    int64_t *labels;
    double *loss, *mass;
    char **memory; /* scratch of each thread */
    size_t e_size, block_size, wide_block; /* its parts: e', blocks, wide block, then packed rows */
    atomic_int bad;
    _Alignas(CSM_ALIGN) char first[2048]; /* for thread 0 where it is enough */
} loss_run;

/* Labels */

static int label_at(const char *p, csm_label_type type, uint64_t *bits) { /* returns whether it is negative */
#define READ(TYPE)               \
    do {                         \
        TYPE v;                  \
        memcpy(&v, p, sizeof v); \
        *bits = (uint64_t)v;     \
        return v < 0;            \
    } while (0)
#define READ_UNSIGNED(TYPE)      \
    do {                         \
        TYPE v;                  \
        memcpy(&v, p, sizeof v); \
        *bits = (uint64_t)v;     \
        return 0;                \
    } while (0)
    switch (type) {
    case CSM_INT8: READ(int8_t);
    case CSM_INT16: READ(int16_t);
    case CSM_INT32: READ(int32_t);
    case CSM_INT64: READ(int64_t);
    case CSM_UINT8: READ_UNSIGNED(uint8_t);
    case CSM_UINT16: READ_UNSIGNED(uint16_t);
    case CSM_UINT32: READ_UNSIGNED(uint32_t);
    case CSM_UINT64: READ_UNSIGNED(uint64_t);
    }
#undef READ
#undef READ_UNSIGNED
    *bits = UINT64_MAX;
    return 1;
}

static csm_status copy_labels(loss_run *r, const csm_shape *shape, csm_loss_options *o) {
    const int flat = shape->ndim == 1; /* no division for each label */
    for (size_t i = 0; i < r->rows; i++) {
        uint64_t bits;
        ptrdiff_t at = flat ? (ptrdiff_t)i * o->labels->strides[0] : csm_offset(shape, o->labels->strides, i);
        int negative = label_at((const char *)o->labels->data + at, o->label_type, &bits);
        if (o->has_ignore && bits == o->ignore) {
            r->labels[i] = -1;
        } else if (negative || bits >= shape->n) {
            o->position = i;
            return CSM_BAD_LABEL;
        } else {
            r->labels[i] = (int64_t)bits;
        }
    }
    return CSM_OK;
}

static double class_weight(const loss_run *r, size_t j) {
    const void *w = r->options->weight;
    if (!w) return 1;
    return r->base.wide_size == 4 ? (double)((const float *)w)[j] : ((const double *)w)[j];
}
static double sample_weight(const loss_run *r, size_t row) {
    double value = 1;
    if (r->options->sample_weight)
        memcpy(&value, (const char *)r->weight.data + csm_offset(&r->base.shape, r->weight.strides, row), sizeof value);
    return value;
}
static size_t order_of(const loss_run *r, size_t row) {
    return (size_t)csm_offset(&r->base.shape, r->order.strides, row);
}

/* Scratch of a thread */

static char *scratch(loss_run *r, int thread) {
    const csm_call *c = &r->base;
    if (!r->memory[thread]) {
        size_t size = r->e_size + r->block_size + r->wide_block;
        if (!r->direct) size += r->group * (r->pitch + (c->has_b ? r->soft_pitch : 0));
        r->memory[thread] = thread == 0 && size <= sizeof r->first ? r->first : csm_allocate(size);
    }
    return r->memory[thread];
}

/* sum w_j q_j of every row of soft labels. */
static csm_status mass_body(void *context, size_t begin, size_t end, int thread) {
    loss_run *r = context;
    const csm_call *c = &r->base;
    char *memory = scratch(r, thread);
    if (!memory) return CSM_NO_MEMORY;
    for (size_t row = begin; row < end; row++) {
        const char *q = (const char *)c->b.data + csm_offset(&c->shape, c->b.strides, row);
        double sum = 0, low = 0;
        int plain =
            (uintptr_t)q % c->wide_size == 0 && (c->b.axis_stride == (ptrdiff_t)c->wide_size || c->shape.n == 1);
        for (size_t i = 0; i < c->shape.n; i += CSM_BLOCK) {
            size_t k = c->shape.n - i < CSM_BLOCK ? c->shape.n - i : CSM_BLOCK;
            const char *part = q + (ptrdiff_t)i * c->b.axis_stride;
            const void *w = r->call.w ? (const char *)r->call.w + i * c->wide_size : NULL;
            double hi, lo;
            if (!plain) {
                csm_strided from = {part, 0, c->b.axis_stride};
                csm_gather(memory, 0, from, 1, k, c->wide_size, NULL, NULL);
                part = memory;
            }
            if (!r->kernels->mass(part, w, k, &hi, &lo)) atomic_store(&r->bad, 1);
            csm_two_sum(&sum, &low, hi);
            low += lo;
        }
        r->mass[order_of(r, row)] = sum + low;
    }
    return CSM_OK;
}

/* Rows */

/* All of a row's but what its logits say.  Returns whether it takes part. */
static int input_of(const loss_run *r, const csm_loss_job *job, ptrdiff_t at, csm_loss_input *in) {
    *in = (csm_loss_input){.w_label = 1, .upstream = 1, .e_label = -1};
    if (!csm_loss_takes(job, at, in)) return 0;
    if (job->upstream) memcpy(&in->upstream, job->upstream + at * job->upstream_step, sizeof in->upstream);
    if (in->label >= 0) in->mass = in->w_label = class_weight(r, (size_t)in->label);
    else in->mass = job->mass[at * job->order];
    return 1;
}

static void fill(const loss_run *r, char *y, double value) {
    const csm_call *c = &r->base;
    csm_wide element;
    if (!y) return;
    csm_put(c, &element, value);
    for (size_t j = 0; j < c->shape.n; j++) memcpy(y + j * c->itemsize, &element, c->itemsize);
}

static double transformed_element(const csm_call *c, double x, double max) {
    csm_wide w = csm_to_wide(c, x);
    csm_transform(c, &w, 1, max);
    return csm_from_wide(c, w);
}

/* A contiguous row of any length and content; y: the gradient, may be x, NULL: none. */
static void any_row(loss_run *r, const csm_loss_job *job, ptrdiff_t at, char *memory) {
    const csm_call *c = &r->base;
    const size_t n = c->shape.n, count = (n + CSM_BLOCK - 1) / CSM_BLOCK, size = c->itemsize;
    const char *x = job->x + at * job->x_step, *q = job->q ? job->q + at * job->q_step : NULL;
    char *y = job->y ? job->y + at * job->y_step : NULL, *wide = memory + r->e_size + r->block_size;
    csm_block *blocks = (csm_block *)(void *)(memory + r->e_size);
    csm_loss_input in;
    double *loss = &job->loss[at * job->order], max = -CSM_INF;

    if (!input_of(r, job, at, &in)) { /* not even read */
        *loss = 0;
        fill(r, y, 0);
        return;
    }
    /* Pass 1 of an ordinary row finds the maximum on its way, unless it would overwrite what may need transforming. */
    const int fused = !c->scales.always_transform && y != x;
    const csm_loss_call *call = &r->call;
    const csm_loss_kernels *kernels = r->kernels;
    int cold = 0, store = y && size == c->wide_size; /* store: pass 1 leaves e' in y */
    csm_loss_row row;
    if (in.label >= 0) in.x_label = csm_element(c, x, (size_t)in.label);
#define BLOCK(b)                                                                                           \
    const size_t k = n - (b) * CSM_BLOCK < CSM_BLOCK ? n - (b) * CSM_BLOCK : CSM_BLOCK;                    \
    const char *part = x + (b) * CSM_BLOCK * size;                                                         \
    const csm_loss_terms given = {q ? q + (b) * CSM_BLOCK * c->wide_size : NULL,                           \
                                  call->w ? (const char *)call->w + (b) * CSM_BLOCK * c->wide_size : NULL, \
                                  1 - call->smoothing, call->smoothing / (double)n};                       \
    const csm_loss_terms *terms = call->soft || call->smoothing != 0 ? &given : NULL;                      \
    if (cold) {                                                                                            \
        c->table->widen[c->dtype](part, wide, k);                                                          \
        csm_transform(c, wide, k, max);                                                                    \
        part = wide;                                                                                       \
    }
    for (size_t b = 0; b < count; b++) {
        BLOCK(b)
        blocks[b].max = c->table->max[c->dtype](part, k);
        if (blocks[b].max > max) max = blocks[b].max;
        if (fused) kernels->pass1(part, store ? y + b * CSM_BLOCK * size : NULL, k, call->t, terms, &blocks[b]);
    }
    int nan = !(max < CSM_INF && max > -CSM_INF);
    in.max = max;
    if (!csm_takes(&c->scales, max)) {
        cold = 1;
        store = 0;
        call = &r->cold;
        kernels = r->wide_kernels;
        if (in.label >= 0) in.x_label = transformed_element(c, in.x_label, max);
    }
    for (size_t b = 0; b < count && !nan && !(fused && !cold); b++) {
        BLOCK(b)
        if (cold) blocks[b].max = c->table->max[c->wide_dtype](wide, k);
        kernels->pass1(part, store ? y + b * CSM_BLOCK * size : NULL, k, call->t, terms, &blocks[b]);
    }
    if (store && in.label >= 0) {
        in.e_label = csm_element(c, y, (size_t)in.label);
        in.n = blocks[(size_t)in.label / CSM_BLOCK].n;
    }
    if (!nan) {
        kernels->sums(call, &in, blocks, count, &row);
        nan = row.is_nan;
    }
    *loss = nan ? CSM_NAN : row.loss;
    if (!y) return;
    if (nan) {
        fill(r, y, CSM_NAN);
        return;
    }
    double shrink = 1;
    if (call->clip_norm < CSM_INF) {
        double squares = 0;
        kernels->factors(call, &in, -1, &row);
        for (size_t b = 0; b < count; b++) {
            BLOCK(b)
            ptrdiff_t place = in.label - (ptrdiff_t)(b * CSM_BLOCK);
            if (in.label < 0 || place < 0 || place >= (ptrdiff_t)k) place = -1;
            squares += kernels->norm(part, store ? y + b * CSM_BLOCK * size : NULL, k, call->t, &blocks[b], &row, terms,
                                     place);
        }
        shrink = csm_loss_shrink(call, &in, &row, squares);
    }
    kernels->factors(call, &in, shrink, &row);
    if (row.is_nan) {
        fill(r, y, CSM_NAN);
        return;
    }
    for (size_t b = 0; b < count; b++) {
        BLOCK(b)
        char *to = y + b * CSM_BLOCK * size;
        kernels->pass2(part, store ? to : NULL, cold ? wide : to, k, call->t, &blocks[b], &row, terms);
        if (cold) c->table->narrow[c->dtype](wide, to, k);
    }
#undef BLOCK
    if (in.label >= 0) csm_put(c, y + (size_t)in.label * size, row.target);
}

static void contiguous_rows(loss_run *r, csm_loss_job job, char *memory) {
    const csm_call *c = &r->base;
    const csm_loss_job all = job;
    ptrdiff_t at = 0, rows = (ptrdiff_t)job.rows;
    while (at < rows) {
        if (c->shape.n <= CSM_BLOCK && !c->scales.always_transform) {
            job.x = all.x + at * all.x_step;
            job.q = all.q ? all.q + at * all.q_step : NULL;
            job.y = all.y ? all.y + at * all.y_step : NULL;
            job.label = all.label ? all.label + at * all.order : NULL;
            job.mass = all.mass ? all.mass + at * all.order : NULL;
            job.loss = all.loss + at * all.order;
            job.weight = all.weight ? all.weight + at * all.weight_step : NULL;
            job.upstream = all.upstream ? all.upstream + at * all.upstream_step : NULL;
            job.rows = (size_t)(rows - at);
            job.scratch = memory;
            at += (ptrdiff_t)r->kernels->rows(&job);
            if (at == rows) break;
        }
        any_row(r, &all, at++, memory);
    }
}

/* Rows that take part, to their places in scratch: no other is read. */
static void gather_kept(const loss_run *r, const csm_loss_job *job, char *to, size_t pitch, csm_strided from,
                        size_t size) {
    csm_loss_input in;
    for (size_t begin = 0, end; begin < job->rows; begin = end + 1) {
        for (end = begin; end < job->rows && csm_loss_takes(job, (ptrdiff_t)end, &in); end++) {}
        csm_gather(to + begin * pitch, pitch,
                   (csm_strided){from.data + (ptrdiff_t)begin * from.row, from.row, from.axis}, end - begin,
                   r->base.shape.n, size, NULL, NULL);
    }
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    loss_run *r = context;
    const csm_call *c = &r->base;
    const size_t n = c->shape.n;
    char *memory = scratch(r, thread);
    if (!memory) return CSM_NO_MEMORY;
    while (begin < end) {
        size_t left = r->inner - begin % r->inner, count = end - begin < left ? end - begin : left;
        if (!r->direct && count > r->group) count = r->group;
        const size_t order = order_of(r, begin);
        csm_loss_job job = {.call = &r->call,
                            .x = (const char *)c->a.data + csm_offset(&c->shape, c->a.strides, begin),
                            .x_step = csm_last_stride(&c->shape, &c->a),
                            .label = r->labels ? r->labels + order : NULL,
                            .mass = r->mass ? r->mass + order : NULL,
                            .loss = r->loss + order,
                            .order = csm_last_stride(&c->shape, &r->order),
                            .rows = count};
        if (c->has_b) {
            job.q = (const char *)c->b.data + csm_offset(&c->shape, c->b.strides, begin);
            job.q_step = csm_last_stride(&c->shape, &c->b);
        }
        if (r->call.gradient) {
            job.y = (char *)c->y.data + csm_offset(&c->shape, c->y.strides, begin);
            job.y_step = csm_last_stride(&c->shape, &c->y);
        }
        if (r->options->sample_weight) {
            job.weight = (const char *)r->weight.data + csm_offset(&c->shape, r->weight.strides, begin);
            job.weight_step = csm_last_stride(&c->shape, &r->weight);
        }
        if (r->options->upstream) {
            job.upstream = (const char *)r->upstream.data + csm_offset(&c->shape, r->upstream.strides, begin);
            job.upstream_step = csm_last_stride(&c->shape, &r->upstream);
        }
        if (!r->direct) {
            char *x = memory + r->e_size + r->block_size + r->wide_block, *q = x + r->group * r->pitch;
            gather_kept(r, &job, x, r->pitch, (csm_strided){job.x, job.x_step, c->a.axis_stride}, c->itemsize);
            if (c->has_b)
                gather_kept(r, &job, q, r->soft_pitch, (csm_strided){job.q, job.q_step, c->b.axis_stride},
                            c->wide_size);
            csm_loss_job packed = job;
            packed.x = x;
            packed.x_step = (ptrdiff_t)r->pitch;
            if (c->has_b) packed.q = q;
            packed.q_step = (ptrdiff_t)r->soft_pitch;
            if (job.y) packed.y = x;
            packed.y_step = (ptrdiff_t)r->pitch;
            contiguous_rows(r, packed, memory);
            if (job.y) csm_scatter(job.y, job.y_step, c->y.axis_stride, x, r->pitch, count, n, c->itemsize);
        } else {
            contiguous_rows(r, job, memory);
        }
        begin += count;
    }
    return CSM_OK;
}

/* The call */

static int fraction(double x) { return x >= 0 && x <= 1; }

/* What a call has in common but for the mean's divisor, the temperature's constants and the sum of weights. */
csm_loss_call csm_loss_call_of(const csm_loss_options *o, size_t n, int gradient) {
    csm_loss_call call = {.n = n,
                          .temperature = o->temperature,
                          .w = o->weight,
                          .weight_sum = (double)n,
                          .smoothing = o->label_smoothing,
                          .z_loss = o->z_loss,
                          .clip_norm = o->clip_norm > 0 ? o->clip_norm : CSM_INF,
                          .clip_value = o->clip_value > 0 ? o->clip_value : CSM_INF,
                          .soft = o->soft != NULL,
                          .gradient = gradient};
    const csm_pair per = csm_pair_reciprocal(o->temperature, &call.t_exponent);
    call.per_t = per.hi;
    call.per_t_low = per.lo;
    return call;
}

static csm_status compute(loss_run *r, const csm_shape *shape, csm_loss_options *o, int threads, double *loss) {
    csm_call *c = &r->base;
    const size_t n = c->shape.n;
    csm_status status = CSM_OK;
    if (r->labels) status = copy_labels(r, shape, o);
    if (status != CSM_OK) return status;
    c->threads = csm_threads_for((double)r->rows * (double)n, r->rows, threads);
    const size_t piece = CSM_PIECE / (n + 1) + 1;
    if (c->has_b && n > 0) {
        status = csm_parallel(r->rows, piece, c->threads, mass_body, r, &c->interrupt);
        if (status != CSM_OK) return status;
        if (atomic_load(&r->bad)) return CSM_BAD_LABEL;
    }
    double divisor = 1;
    if (o->reduction == CSM_MEAN && r->labels && !o->weight && !o->sample_weight) {
        size_t kept = 0;
        for (size_t i = 0; i < r->rows; i++) kept += r->labels[i] >= 0;
        divisor = (double)kept;
    } else if (o->reduction == CSM_MEAN) {
        for (size_t i = 0; i < r->rows; i++) { /* loss is free to hold the terms */
            size_t at = order_of(r, i);
            double s = sample_weight(r, i);
            if (r->labels) r->loss[at] = r->labels[at] < 0 ? 0 : s * class_weight(r, (size_t)r->labels[at]);
            else r->loss[at] = n == 0 ? 0 : s * r->mass[at];
        }
        divisor = csm_tree_sum(r->loss, r->rows);
    }
    csm_loss_divide(&r->call, divisor);
    r->cold = r->call;
    r->cold.t = &c->scales.transformed;
    if (n > 0) {
        status = csm_parallel(r->rows, piece, c->threads, rows_body, r, &c->interrupt);
        if (status != CSM_OK) return status;
    }
    for (size_t i = 0; n == 0 && i < r->rows; i++) /* no class, lse = -inf: all labels are ignored, or soft */
        r->loss[order_of(r, i)] = c->has_b && o->z_loss > 0 && sample_weight(r, i) != 0 ? CSM_INF : 0;
    if (o->reduction != CSM_NONE) {
        *loss = csm_tree_sum(r->loss, r->rows) / divisor;
        if (*loss != *loss) *loss = CSM_NAN;
    }
    for (size_t i = 0; c->wide_size == 4 && i < (o->reduction == CSM_NONE ? r->rows : 1); i++)
        loss[i] = (double)(float)loss[i]; /* here, where the caller's rounding mode is not in force */
    return CSM_OK;
}

static csm_status run(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                      const csm_view *gradient, double *loss, csm_loss_options *o, csm_fp_environment *caller) {
    loss_run r;
    csm_call *c = &r.base;
    memset(&r, 0, offsetof(loss_run, first));
    const size_t n = shape->n;
    if (!(o->temperature > 0 && o->temperature < CSM_INF)) return CSM_BAD_TEMPERATURE;
    if (!fraction(o->label_smoothing) || !(o->z_loss >= 0 && o->z_loss < CSM_INF) || !(o->clip_norm >= 0) ||
        !(o->clip_value >= 0) || !o->labels == !o->soft || (unsigned)o->reduction > CSM_MEAN)
        return CSM_BAD_OPTION;
    csm_status status =
        csm_lay_out(c, shape, (const csm_view *[]){x, NULL, gradient, o->soft, o->sample_weight, o->upstream},
                    (csm_view *[]){&c->a, &r.order, gradient ? &c->y : NULL, o->soft ? &c->b : NULL,
                                   o->sample_weight ? &r.weight : NULL, o->upstream ? &r.upstream : NULL},
                    6, &r.rows);
    if (status != CSM_OK) return status;
    const size_t rows = r.rows;

    csm_set_dtype(c, dtype, table);
    c->forward = 1;
    c->has_b = o->soft != NULL;
    c->interrupt = (csm_interrupt){o->interrupt, o->interrupt_context, 0, *caller};
    csm_set_scales(&c->scales, o->temperature, c->wide_size == 4);
    r.options = o;
    r.kernels = &table->loss[dtype];
    r.wide_kernels = &table->loss[c->wide_dtype];
    double weight_sum = (double)n;
    if (o->weight) {
        double low = 0;
        weight_sum = 0;
        for (size_t j = 0; j < n; j++) csm_two_sum(&weight_sum, &low, class_weight(&r, j));
        weight_sum += low;
    }
    r.call = csm_loss_call_of(o, n, gradient != NULL);
    r.call.t = &c->scales.ordinary;
    r.call.weight_sum = weight_sum;
    r.inner = c->shape.ndim ? c->shape.shape[c->shape.ndim - 1] : 1;
    r.direct = csm_contiguous_view(&c->shape, &c->a, c->itemsize, 1) &&
               (!gradient || csm_contiguous_view(&c->shape, &c->y, c->itemsize, 1)) &&
               (!c->has_b || csm_contiguous_view(&c->shape, &c->b, c->wide_size, 1));
    r.pitch = csm_pack_pitch(n, c->itemsize);
    r.soft_pitch = csm_pack_pitch(n, c->wide_size);
    r.group = csm_pack_rows(n, c->itemsize);
    const size_t block = n < CSM_BLOCK ? n : CSM_BLOCK;
    r.e_size = csm_rounded((block + 16) * c->wide_size);
    r.wide_block = csm_rounded(block * c->wide_size);
    r.block_size = csm_rounded(((n + CSM_BLOCK - 1) / CSM_BLOCK + 1) * sizeof(csm_block));

    int threads = o->threads < 1 ? 1 : o->threads;
    if ((size_t)threads > rows) threads = rows ? (int)rows : 1;
    const size_t labels_size = csm_rounded(o->labels ? rows * sizeof(int64_t) : rows * sizeof(double));
    const size_t loss_size = o->reduction == CSM_NONE ? 0 : csm_rounded(rows * sizeof(double));
    const size_t memory_size = csm_rounded((size_t)threads * sizeof(char *));
    _Alignas(CSM_ALIGN) char stack[1024];
    char *memory = stack;
    if (labels_size + loss_size + memory_size > sizeof stack) {
        memory = csm_allocate(labels_size + loss_size + memory_size);
        if (!memory) return CSM_NO_MEMORY;
    }
    r.memory = (char **)(void *)memory;
    memset(r.memory, 0, memory_size);
    if (o->labels) r.labels = (int64_t *)(void *)(memory + memory_size);
    else r.mass = (double *)(void *)(memory + memory_size);
    r.loss = o->reduction == CSM_NONE ? loss : (double *)(void *)(memory + memory_size + labels_size);
    status = compute(&r, shape, o, threads, loss);
    for (int i = 0; i < threads; i++)
        if (r.memory[i] != r.first) csm_release(r.memory[i]);
    if (memory != stack) csm_release(memory);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_loss(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                        const csm_view *gradient, double *loss, csm_loss_options *o) {
    if (!o) return CSM_BAD_OPTION; /* there must be labels */
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run(dtype, table, shape, x, gradient, loss, o, &saved);
    csm_fp_leave(saved);
    return status;
}
