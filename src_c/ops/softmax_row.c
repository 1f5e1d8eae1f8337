/* One row of any length, layout and content: block by block through a unit's pass1, combine, pass2.
 *
 * Ordinary rows go through as they are.  A row whose maximum is infinite or too large for exp's range reduction,
 * and every row of a call with an extreme temperature, is transformed first, into the compute type:
 *
 *     |max/T| too large       x - max (exact wherever the result is not 0)
 *     T outside 2^+-60 (500)  times a power of two, T by the same
 *     T = 0                   0 at the maxima, -inf elsewhere
 *     T = inf                 0 where x > -inf
 *
 * and rows that hold NaN, +inf, nothing but -inf, or nothing at all get their result from the table in
 * csoftmax.softmax's documentation.  This is the cold path; speed is not its aim.
 */
#include "internal.h"
#include "kernel/scalars.h"

static size_t blocks_of(size_t n) { return (n + CSM_BLOCK - 1) / CSM_BLOCK; }

size_t csm_row_scratch_size(size_t n) {
    return 3 * CSM_BLOCK * sizeof(double) + csm_rounded(blocks_of(n) * sizeof(csm_block));
}

csm_row_scratch csm_row_scratch_at(char *memory, size_t n) {
    csm_row_scratch s;
    (void)n;
    s.raw_a = memory;
    s.raw_b = s.raw_a + CSM_BLOCK * sizeof(double);
    s.wide = s.raw_b + CSM_BLOCK * sizeof(double);
    s.blocks = (csm_block *)(void *)(s.wide + CSM_BLOCK * sizeof(double));
    return s;
}

/* Work on one row, as the block functions below see it. */
typedef struct job {
    const csm_call *call;
    const csm_one_row *row;
    const csm_row_scratch *scratch; /* one a thread */
    csm_block *blocks;
    csm_row sums;
    int store;                      /* softmax: pass1 leaves e' in y */
    double max;                     /* of a row that is transformed */
    csm_interrupt *interrupt;       /* NULL: in order, not interrupted */
    double fill;
} job;

static size_t block_length(const job *j, size_t i) {
    size_t begin = i * CSM_BLOCK, n = j->call->shape.n;
    return n - begin < CSM_BLOCK ? n - begin : CSM_BLOCK;
}

static int direct(const csm_call *c, const csm_one_row *r, const char *data, ptrdiff_t axis) {
    int masked = r->where.data && !r->gathered;
    return !masked && (axis == (ptrdiff_t)c->itemsize || c->shape.n == 1) && (uintptr_t)data % c->itemsize == 0;
}

/* Block i of an input as contiguous storage; `which` gets the mask's filler. */
static const char *fetch(const job *j, size_t i, const csm_strided *from, char *buffer, int filled) {
    const csm_call *c = j->call;
    const csm_one_row *r = j->row;
    ptrdiff_t begin = (ptrdiff_t)(i * CSM_BLOCK);
    csm_strided x = {from->data + begin * from->axis, 0, from->axis};
    csm_strided mask = {r->where.data ? r->where.data + begin * r->where.axis : NULL, 0, r->where.axis};
    if (direct(c, r, from->data, from->axis)) return x.data;
    csm_gather(buffer, 0, x, 1, block_length(j, i), c->itemsize, filled && !r->gathered ? &mask : NULL, &c->absent);
    return buffer;
}

static char *y_block(const job *j, size_t i) { return j->row->y + (ptrdiff_t)(i * CSM_BLOCK) * j->row->y_axis; }
static int y_direct(const job *j) {
    const csm_call *c = j->call;
    return (uintptr_t)j->row->y % c->itemsize == 0 && (j->row->y_axis == (ptrdiff_t)c->itemsize || c->shape.n == 1);
}
static void put(const job *j, size_t i, const char *block) {
    csm_scatter(y_block(j, i), 0, j->row->y_axis, block, 0, 1, block_length(j, i), j->call->itemsize);
}

/* Ordinary rows */

static csm_status max_blocks(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_row_scratch *s = &j->scratch[thread];
    for (size_t i = begin; i < end; i++)
        j->blocks[i].max =
            j->call->table->max[j->call->dtype](fetch(j, i, &j->row->a, s->raw_a, 1), block_length(j, i));
    return CSM_OK;
}

static csm_status pass1_blocks(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_call *c = j->call;
    const csm_row_scratch *s = &j->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        const char *a = fetch(j, i, &j->row->a, s->raw_a, c->forward);
        const char *b = c->has_b ? fetch(j, i, &j->row->b, s->raw_b, 1) : NULL;
        c->kernels->pass1(a, b, j->store ? y_block(j, i) : NULL, block_length(j, i), &c->scales.ordinary,
                          &j->blocks[i]);
    }
    return CSM_OK;
}

static csm_status pass2_blocks(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_call *c = j->call;
    const csm_row_scratch *s = &j->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        const char *a = j->store ? NULL : fetch(j, i, &j->row->a, s->raw_a, c->forward);
        const char *b = c->has_b ? fetch(j, i, &j->row->b, s->raw_b, 1) : NULL;
        char *y = y_direct(j) ? y_block(j, i) : s->wide;
        c->kernels->pass2(a, b, y, block_length(j, i), &c->scales.ordinary, &j->sums, &j->blocks[i]);
        if (y == s->wide) put(j, i, y);
    }
    return CSM_OK;
}

/* Transformed rows */

static double value_at(const job *j, const char *wide, size_t i) {
    return j->call->wide_size == 4 ? (double)((const float *)(const void *)wide)[i]
                                   : ((const double *)(const void *)wide)[i];
}

/* max, hi = 1 where the block holds NaN, count = elements that take part */
static csm_status inspect_blocks(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_call *c = j->call;
    const csm_row_scratch *s = &j->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        size_t k = block_length(j, i), count = k;
        const char *a = fetch(j, i, &j->row->a, s->raw_a, 1);
        csm_block *block = &j->blocks[i];
        block->max = c->table->max[c->dtype](a, k);
        c->table->widen[c->dtype](a, s->wide, k);
        block->hi = 0;
        for (size_t l = 0; l < k; l++)
            if (value_at(j, s->wide, l) != value_at(j, s->wide, l)) block->hi = 1;
        if (j->row->where.data) {
            const char *m = j->row->where.data + (ptrdiff_t)(i * CSM_BLOCK) * j->row->where.axis;
            count = 0;
            for (size_t l = 0; l < k; l++) count += m[(ptrdiff_t)l * j->row->where.axis] != 0;
        }
        block->count = (double)count;
    }
    return CSM_OK;
}

static csm_status fill_blocks(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_call *c = j->call;
    const csm_row_scratch *s = &j->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        size_t k = block_length(j, i);
        for (size_t l = 0; l < k; l++) {
            if (c->wide_size == 4) ((float *)(void *)s->wide)[l] = (float)j->fill;
            else ((double *)(void *)s->wide)[l] = j->fill;
        }
        c->table->narrow[c->dtype](s->wide, s->raw_a, k);
        put(j, i, s->raw_a);
    }
    return CSM_OK;
}

#define TRANSFORM(REAL)                                                                     \
    do {                                                                                    \
        REAL *x = wide;                                                                     \
        for (size_t l = 0; l < k; l++) x[l] = CSM_TRANSFORMED(REAL, x[l], &c->scales, max); \
    } while (0)

void csm_transform(const csm_call *c, void *wide, size_t k, double max) {
    if (c->wide_size == 4) TRANSFORM(float);
    else TRANSFORM(double);
}

static const char *transformed(const job *j, size_t i, const csm_row_scratch *s) {
    const csm_call *c = j->call;
    size_t k = block_length(j, i);
    c->table->widen[c->dtype](fetch(j, i, &j->row->a, s->raw_a, 1), s->wide, k);
    csm_transform(c, s->wide, k, j->max);
    return s->wide;
}

static csm_status pass1_transformed(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_call *c = j->call;
    for (size_t i = begin; i < end; i++)
        c->wide_kernels->pass1(transformed(j, i, &j->scratch[thread]), NULL, NULL, block_length(j, i),
                               &c->scales.transformed, &j->blocks[i]);
    return CSM_OK;
}

static csm_status pass2_transformed(void *context, size_t begin, size_t end, int thread) {
    job *j = context;
    const csm_call *c = j->call;
    const csm_row_scratch *s = &j->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        size_t k = block_length(j, i);
        c->wide_kernels->pass2(transformed(j, i, s), NULL, s->wide, k, &c->scales.transformed, &j->sums, &j->blocks[i]);
        c->table->narrow[c->dtype](s->wide, s->raw_a, k);
        put(j, i, s->raw_a);
    }
    return CSM_OK;
}

/* The two ways of running over the blocks of a row: in order, or handed to threads. */
typedef csm_status (*runner)(job *, csm_body);
static csm_status in_order(job *j, csm_body body) { return body(j, 0, blocks_of(j->call->shape.n), 0); }
static csm_status in_parallel(job *j, csm_body body) {
    size_t count = blocks_of(j->call->shape.n);
    int threads = csm_threads_for((double)j->call->shape.n, count, j->call->threads);
    return csm_parallel(count, 64, threads, body, j, j->interrupt);
}

static double block_max(const job *j) {
    double max = -CSM_INF;
    for (size_t i = 0; i < blocks_of(j->call->shape.n); i++)
        if (j->blocks[i].max > max) max = j->blocks[i].max;
    return max;
}

/* One value for a log-sum-exp, the whole row else. */
static csm_status fill_row(job *j, double value, runner run) {
    const csm_call *c = j->call;
    if (c->keeps_axis) {
        j->fill = value;
        return run(j, fill_blocks);
    }
    csm_put(c, j->row->y, value);
    return CSM_OK;
}

static csm_status row_transformed(job *j, runner run) {
    const csm_call *c = j->call;
    double nan = 0, kept = 0, fill;
    csm_status status = run(j, inspect_blocks);
    if (status != CSM_OK) return status;
    for (size_t i = 0; i < blocks_of(c->shape.n); i++) {
        nan += j->blocks[i].hi;
        kept += j->blocks[i].count;
    }
    j->max = block_max(j);
    if (csm_is_special(c->op, c->scales.temperature, j->max, nan > 0, kept > 0, &fill)) return fill_row(j, fill, run);
    status = run(j, pass1_transformed);
    if (status != CSM_OK) return status;
    c->wide_kernels->combine(j->blocks, blocks_of(c->shape.n), &c->scales.transformed, &j->sums);
    if (!c->keeps_axis) return fill_row(j, csm_lse(&c->scales, j->max, j->sums.tail, 1), run);
    return run(j, pass2_transformed);
}

static csm_status run_row(const csm_call *c, const csm_one_row *row, const csm_row_scratch *scratch, runner run,
                          csm_interrupt *interrupt) {
    job j = {.call = c, .row = row, .scratch = scratch, .blocks = scratch[0].blocks, .interrupt = interrupt};
    csm_status status;
    if (c->forward && c->scales.always_transform) return row_transformed(&j, run);
    j.store = c->op == CSM_OP_softmax && c->itemsize == c->wide_size && y_direct(&j);
    if (j.store && row->y == row->a.data) { /* pass1 would overwrite a row that must be transformed */
        status = run(&j, max_blocks);
        if (status != CSM_OK) return status;
        if (!csm_takes(&c->scales, block_max(&j))) return row_transformed(&j, run);
    }
    status = run(&j, pass1_blocks);
    if (status != CSM_OK) return status;
    if (c->forward && !csm_takes(&c->scales, block_max(&j))) return row_transformed(&j, run);
    c->kernels->combine(j.blocks, blocks_of(c->shape.n), &c->scales.ordinary, &j.sums);
    if (!c->keeps_axis)
        return fill_row(&j, j.sums.is_nan ? CSM_NAN : csm_lse(&c->scales, j.sums.max, j.sums.tail, 0), run);
    return run(&j, pass2_blocks);
}

void csm_row_any(const csm_call *c, const csm_one_row *row, const csm_row_scratch *scratch) {
    run_row(c, row, scratch, in_order, NULL); /* in_order always returns CSM_OK: nothing in a row can fail */
}

csm_status csm_row_split(csm_call *c, const csm_one_row *row, csm_row_scratch *each) {
    return run_row(c, row, each, in_parallel, &c->interrupt);
}
