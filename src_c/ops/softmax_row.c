/* One row of any length, layout and content: block by block through a unit's pass1, combine, pass2.
 *
 * Ordinary rows are computed directly.  A row whose maximum is infinite or too large for exp's range reduction, and
 * every row of a call with an extreme temperature, is first transformed into the compute type:
 *
 *     |max/T| too large       x - max (exact wherever the result is not 0)
 *     T outside 2^+-60 (500)  x and T times the same power of two
 *     T = 0                   0 at the maxima, -inf elsewhere
 *     T = inf                 0 where x > -inf
 *
 * Rows with NaN or +inf, with only -inf, or without elements get their result from the table in the documentation of
 * csoftmax.softmax.  This is the cold path: it is not optimised for speed.
 */
#include "softmax_row.h"

#include "../kernel/softmax/combine.h"

size_t csm_row_scratch_size(size_t n) {
    return 3 * CSM_BLOCK * sizeof(double) + csm_rounded(csm_block_count(n) * sizeof(csm_block));
}

csm_row_scratch csm_row_scratch_at(char *memory, size_t n) {
    csm_row_scratch s;
    (void)n;
    s.raw_input = memory;
    s.raw_y = s.raw_input + CSM_BLOCK * sizeof(double);
    s.wide = s.raw_y + CSM_BLOCK * sizeof(double);
    s.blocks = (csm_block *)(void *)(s.wide + CSM_BLOCK * sizeof(double));
    return s;
}

/* The state of a row while its blocks are computed. */
typedef struct row_run {
    const csm_softmax_call *call;
    const csm_row_place *place;
    const csm_row_scratch *scratch; /* one for each thread */
    csm_block *blocks;
    csm_row sums;
    int stores_e;                   /* softmax: pass1 leaves e' in the result */
    double max;                     /* of a row that is transformed */
    double fill;                    /* what fill_blocks writes */
    csm_interrupt *interrupt;       /* NULL: the blocks are computed in order and not interrupted */
} row_run;

static size_t length_of(const row_run *r, size_t i) { return csm_block_length(r->call->base.shape.n, i * CSM_BLOCK); }

/* Whether the kernels can read the elements in place. */
static int is_direct(const csm_call *c, const char *data, ptrdiff_t axis) {
    return (axis == (ptrdiff_t)c->itemsize || c->shape.n == 1) && (uintptr_t)data % c->itemsize == 0;
}

/* Block i of an input as contiguous storage.  fills: masked elements are replaced. */
static const char *fetch(const row_run *r, size_t i, const csm_strided *from, char *buffer, int fills) {
    const csm_call *c = &r->call->base;
    const csm_row_place *p = r->place;
    ptrdiff_t begin = (ptrdiff_t)(i * CSM_BLOCK);
    csm_strided x = {from->data + begin * from->axis, 0, from->axis};
    csm_strided mask = {p->where.data ? p->where.data + begin * p->where.axis : NULL, 0, p->where.axis};
    const int is_masked = p->where.data && !p->is_gathered;
    if (!is_masked && is_direct(c, from->data, from->axis)) return x.data;
    csm_gather(buffer, 0, x, 1, length_of(r, i), c->itemsize, fills && !p->is_gathered ? &mask : NULL, &c->absent);
    return buffer;
}

static char *result_block(const row_run *r, size_t i) {
    return r->place->result + (ptrdiff_t)(i * CSM_BLOCK) * r->place->result_axis;
}
static int result_is_direct(const row_run *r) {
    return is_direct(&r->call->base, r->place->result, r->place->result_axis);
}
static void put_block(const row_run *r, size_t i, const char *block) {
    csm_scatter(result_block(r, i), 0, r->place->result_axis, block, 0, 1, length_of(r, i), r->call->base.itemsize);
}

/* Ordinary rows */

static csm_status max_blocks(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_call *c = &r->call->base;
    const csm_row_scratch *s = &r->scratch[thread];
    for (size_t i = begin; i < end; i++)
        r->blocks[i].max = c->table->max[c->dtype](fetch(r, i, &r->place->input, s->raw_input, 1), length_of(r, i));
    return CSM_OK;
}

static csm_status pass1_blocks(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_softmax_call *c = r->call;
    const csm_row_scratch *s = &r->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        const char *input = fetch(r, i, &r->place->input, s->raw_input, !c->is_gradient);
        const char *y = c->is_gradient ? fetch(r, i, &r->place->y, s->raw_y, 1) : NULL;
        c->kernels->pass1(input, y, r->stores_e ? result_block(r, i) : NULL, length_of(r, i), &c->base.scales.ordinary,
                          &r->blocks[i]);
    }
    return CSM_OK;
}

static csm_status pass2_blocks(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_softmax_call *c = r->call;
    const csm_row_scratch *s = &r->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        const char *input = r->stores_e ? NULL : fetch(r, i, &r->place->input, s->raw_input, !c->is_gradient);
        const char *y = c->is_gradient ? fetch(r, i, &r->place->y, s->raw_y, 1) : NULL;
        char *result = result_is_direct(r) ? result_block(r, i) : s->wide;
        c->kernels->pass2(input, y, result, length_of(r, i), &c->base.scales.ordinary, &r->sums, &r->blocks[i]);
        if (result == s->wide) put_block(r, i, result);
    }
    return CSM_OK;
}

/* Transformed rows */

/* Sets for each block: max; hi = 1 if it holds NaN; count = number of unmasked elements. */
static csm_status inspect_blocks(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_call *c = &r->call->base;
    const csm_row_scratch *s = &r->scratch[thread];
    const csm_strided *where = &r->place->where;
    for (size_t i = begin; i < end; i++) {
        size_t k = length_of(r, i), count = k;
        const char *x = fetch(r, i, &r->place->input, s->raw_input, 1);
        csm_block *block = &r->blocks[i];
        block->max = c->table->max[c->dtype](x, k);
        c->table->widen[c->dtype](x, s->wide, k);
        block->hi = 0;
        for (size_t l = 0; l < k; l++)
            if (csm_wide_at(c, s->wide, l) != csm_wide_at(c, s->wide, l)) block->hi = 1;
        if (where->data) {
            const char *m = where->data + (ptrdiff_t)(i * CSM_BLOCK) * where->axis;
            count = 0;
            for (size_t l = 0; l < k; l++) count += m[(ptrdiff_t)l * where->axis] != 0;
        }
        block->count = (double)count;
    }
    return CSM_OK;
}

static csm_status fill_blocks(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_call *c = &r->call->base;
    const csm_row_scratch *s = &r->scratch[thread];
    const csm_wide fill = csm_to_wide(c, r->fill);
    for (size_t i = begin; i < end; i++) {
        size_t k = length_of(r, i);
        for (size_t l = 0; l < k; l++) memcpy(s->wide + l * c->wide_size, &fill, c->wide_size);
        c->table->narrow[c->dtype](s->wide, s->raw_input, k);
        put_block(r, i, s->raw_input);
    }
    return CSM_OK;
}

static const char *transformed(const row_run *r, size_t i, const csm_row_scratch *s) {
    const csm_call *c = &r->call->base;
    size_t k = length_of(r, i);
    c->table->widen[c->dtype](fetch(r, i, &r->place->input, s->raw_input, 1), s->wide, k);
    csm_transform(&c->scales, csm_is_single(c), s->wide, k, r->max);
    return s->wide;
}

static csm_status pass1_transformed(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_softmax_call *c = r->call;
    for (size_t i = begin; i < end; i++)
        c->wide_kernels->pass1(transformed(r, i, &r->scratch[thread]), NULL, NULL, length_of(r, i),
                               &c->base.scales.transformed, &r->blocks[i]);
    return CSM_OK;
}

static csm_status pass2_transformed(void *context, size_t begin, size_t end, int thread) {
    row_run *r = context;
    const csm_softmax_call *c = r->call;
    const csm_row_scratch *s = &r->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        size_t k = length_of(r, i);
        c->wide_kernels->pass2(transformed(r, i, s), NULL, s->wide, k, &c->base.scales.transformed, &r->sums,
                               &r->blocks[i]);
        c->base.table->narrow[c->base.dtype](s->wide, s->raw_input, k);
        put_block(r, i, s->raw_input);
    }
    return CSM_OK;
}

/* The two ways to process the blocks of a row: in order, or in parallel. */
typedef csm_status (*block_runner)(row_run *, csm_body);
static csm_status run_in_order(row_run *r, csm_body body) {
    return body(r, 0, csm_block_count(r->call->base.shape.n), 0);
}
static csm_status run_in_parallel(row_run *r, csm_body body) {
    const csm_call *c = &r->call->base;
    size_t count = csm_block_count(c->shape.n);
    int threads = csm_threads_for((double)c->shape.n, count, c->threads);
    return csm_parallel(count, 64, threads, body, r, r->interrupt);
}

static double max_of_blocks(const row_run *r) {
    double max = -CSM_INF;
    for (size_t i = 0; i < csm_block_count(r->call->base.shape.n); i++)
        if (r->blocks[i].max > max) max = r->blocks[i].max;
    return max;
}

/* Writes one value: to the whole row, or to the only element of a result without the axis. */
static csm_status fill_row(row_run *r, double value, block_runner run) {
    if (r->call->keeps_axis) {
        r->fill = value;
        return run(r, fill_blocks);
    }
    csm_put(&r->call->base, r->place->result, value);
    return CSM_OK;
}

static csm_status run_transformed_row(row_run *r, block_runner run) {
    const csm_softmax_call *c = r->call;
    const csm_scales *scales = &c->base.scales;
    const size_t count = csm_block_count(c->base.shape.n);
    double nan = 0, kept = 0, fill;
    csm_status status = run(r, inspect_blocks);
    if (status != CSM_OK) return status;
    for (size_t i = 0; i < count; i++) {
        nan += r->blocks[i].hi;
        kept += r->blocks[i].count;
    }
    r->max = max_of_blocks(r);
    if (csm_is_special(c->op, scales->temperature, r->max, nan > 0, kept > 0, &fill)) return fill_row(r, fill, run);
    status = run(r, pass1_transformed);
    if (status != CSM_OK) return status;
    c->wide_kernels->combine(r->blocks, count, &scales->transformed, &r->sums);
    if (!c->keeps_axis) return fill_row(r, csm_reduced(c->op, scales, r->max, r->sums.tail, 1), run);
    return run(r, pass2_transformed);
}

static csm_status run_row(const csm_softmax_call *c, const csm_row_place *place, const csm_row_scratch *scratch,
                          block_runner run, csm_interrupt *interrupt) {
    row_run r = {.call = c, .place = place, .scratch = scratch, .blocks = scratch[0].blocks, .interrupt = interrupt};
    const csm_scales *scales = &c->base.scales;
    csm_status status;
    if (!c->is_gradient && scales->always_transform) return run_transformed_row(&r, run);
    r.stores_e = c->op == CSM_OP_softmax && c->base.itemsize == c->base.wide_size && result_is_direct(&r);
    if (r.stores_e && place->result == place->input.data) { /* pass1 would overwrite a row that must be transformed */
        status = run(&r, max_blocks);
        if (status != CSM_OK) return status;
        if (!csm_fits_range(scales, max_of_blocks(&r))) return run_transformed_row(&r, run);
    }
    status = run(&r, pass1_blocks);
    if (status != CSM_OK) return status;
    if (!c->is_gradient && !csm_fits_range(scales, max_of_blocks(&r))) return run_transformed_row(&r, run);
    c->kernels->combine(r.blocks, csm_block_count(c->base.shape.n), &scales->ordinary, &r.sums);
    if (!c->keeps_axis) {
        const double value = csm_reduced(c->op, scales, r.sums.max, r.sums.tail, 0);
        return fill_row(&r, r.sums.is_nan ? CSM_NAN : value, run);
    }
    return run(&r, pass2_blocks);
}

void csm_run_row(const csm_softmax_call *c, const csm_row_place *place, const csm_row_scratch *scratch) {
    run_row(c, place, scratch, run_in_order, NULL); /* always CSM_OK: nothing fails within a row */
}

csm_status csm_run_split_row(csm_softmax_call *c, const csm_row_place *place, const csm_row_scratch *each) {
    return run_row(c, place, each, run_in_parallel, &c->base.interrupt);
}
