/* One row of any length, layout and content: block by block through a unit's pass1, combine, pass2.
 *
 * Ordinary rows are computed directly.  A row whose maximum is infinite or too large for exp's range reduction, and
 * every row of a call with an extreme temperature, is first transformed into the compute type:
 *
 *     |max/T| too large       x - max (exact wherever the result is not 0), if T is not 1 also as the next line
 *     T outside 2^+-60 (500)  x and T times the same power of two
 *     T = 0                   0 at the maxima, -inf elsewhere
 *     T = inf                 0 where x > -inf
 *
 * Gradients have 1/T as two factors (temperature.c).  For T < 1/4 or T > 2^100 those of floats are computed in double,
 * because no two floats are enough.  Those of doubles with T < 1 whose sum s underflows are computed again with dy
 * times a power of two, which 1/T loses.  In log_softmax, if s p / T can be a number where p underflows, such elements
 * are computed one by one (math/factor.h).
 *
 * Rows with NaN or +inf, with only -inf, or without elements get their result from the table in the documentation of
 * csoftmax.softmax.  This is the cold path: it is not optimised for speed.
 */
#include "softmax_row.h"

#include "../kernel/softmax/combine.h"
#include "../math/factor.h"

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
typedef struct row_state {
    const csm_softmax_call *call;
    const csm_row_place *place;
    const csm_row_scratch *scratch; /* one for each thread */
    csm_block *blocks;
    csm_row sums;
    int stores_e;                   /* softmax: pass1 leaves e' in the result */
    double max;                     /* of a row that is transformed */
    double fill;                    /* the value that fill_blocks writes */
    double lift;                    /* the factor of dy, a power of two that `temperature` lacks */
    csm_temperature temperature;    /* of gradients: the factors of 1/T */
    double exact_below;             /* csm_vjp_exact_below */
    double sum, sum_low;            /* s for those elements */
    csm_interrupt *interrupt;       /* NULL: the blocks are computed in order and not interrupted */
} row_state;

static size_t length_of(const row_state *state, size_t i) {
    return csm_block_length(state->call->base.shape.n, i * CSM_BLOCK);
}

/* Whether the kernels can read the elements in place. */
static int is_direct(const csm_call *c, const char *data, ptrdiff_t axis) {
    return (axis == (ptrdiff_t)c->itemsize || c->shape.n == 1) && (uintptr_t)data % c->itemsize == 0;
}

/* Returns block i of an input as contiguous storage.  fills: masked elements are replaced by c->absent. */
static const char *fetch(const row_state *state, size_t i, const csm_strided *from, char *buffer, int fills) {
    const csm_call *c = &state->call->base;
    const csm_row_place *p = state->place;
    ptrdiff_t begin = (ptrdiff_t)(i * CSM_BLOCK);
    csm_strided x = {from->data + begin * from->axis, 0, from->axis};
    csm_strided mask = {p->where.data ? p->where.data + begin * p->where.axis : NULL, 0, p->where.axis};
    const int is_masked = p->where.data && !p->is_gathered;
    if (!is_masked && is_direct(c, from->data, from->axis)) return x.data;
    csm_gather(buffer, 0, x, 1, length_of(state, i), c->itemsize, fills && !p->is_gathered ? &mask : NULL, &c->absent);
    return buffer;
}

static char *result_block(const row_state *state, size_t i) {
    return state->place->result + (ptrdiff_t)(i * CSM_BLOCK) * state->place->result_axis;
}
static int has_direct_result(const row_state *state) {
    return is_direct(&state->call->base, state->place->result, state->place->result_axis);
}
static void put_block(const row_state *state, size_t i, const char *block) {
    csm_scatter(result_block(state, i), 0, state->place->result_axis, block, 0, 1, length_of(state, i),
                state->call->base.itemsize);
}

/* Ordinary rows */

static csm_status max_blocks(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_call *c = &state->call->base;
    const csm_row_scratch *s = &state->scratch[thread];
    for (size_t i = begin; i < end; i++)
        state->blocks[i].max =
            c->table->max[c->dtype](fetch(state, i, &state->place->input, s->raw_input, 1), length_of(state, i));
    return CSM_OK;
}

/* Sets for each block: max, the largest |dy| of the classes that take part in a gradient of softmax. */
static csm_status dy_blocks(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_call *c = &state->call->base;
    const csm_row_scratch *s = &state->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        const char *dy = fetch(state, i, &state->place->input, s->raw_input, 0);
        const char *y = fetch(state, i, &state->place->y, s->raw_y, 1);
        state->blocks[i].max = 0;
        for (size_t l = 0; l < length_of(state, i); l++) {
            const double size = csm_wide_at(c, y, l) == 0 ? 0 : fabs(csm_wide_at(c, dy, l)); /* stored as double */
            if (size > state->blocks[i].max) state->blocks[i].max = size;
        }
    }
    return CSM_OK;
}

/* Block i of dy, lifted if the temperature or the row requires it. */
static const char *fetch_lifted(const row_state *state, size_t i, const csm_row_scratch *s) {
    const csm_call *c = &state->call->base;
    const char *dy = fetch(state, i, &state->place->input, s->raw_input, 0);
    double *lifted = (double *)(void *)s->wide;
    if (state->lift == 1) return dy;
    c->table->widen[c->dtype](dy, lifted, length_of(state, i)); /* the compute type is double */
    for (size_t l = 0; l < length_of(state, i); l++) lifted[l] *= state->lift;
    return s->wide;
}

static csm_status pass1_blocks(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_softmax_call *c = state->call;
    const csm_row_scratch *s = &state->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        const char *input =
            c->is_gradient ? fetch_lifted(state, i, s) : fetch(state, i, &state->place->input, s->raw_input, 1);
        const char *y = c->is_gradient ? fetch(state, i, &state->place->y, s->raw_y, 1) : NULL;
        c->kernels->pass1(input, y, state->stores_e ? result_block(state, i) : NULL, length_of(state, i),
                          &state->temperature, &state->blocks[i]);
    }
    return CSM_OK;
}

/* A block of a gradient whose temperature is beyond the range of float. */
static void pass2_in_double(const row_state *state, size_t i, const csm_row_scratch *s) {
    const csm_call *c = &state->call->base;
    const size_t k = length_of(state, i);
    const int log = state->call->op == CSM_OP_log_softmax_vjp;
    float *dy = (float *)(void *)s->wide, *y = dy + CSM_BLOCK;
    c->table->widen[c->dtype](fetch(state, i, &state->place->input, s->raw_input, 0), dy, k);
    c->table->widen[c->dtype](fetch(state, i, &state->place->y, s->raw_y, 1), y, k);
    for (size_t l = 0; l < k; l++) {
        const double t = c->scales.temperature, b = (double)y[l];
        const double dx = b < state->exact_below && b > -CSM_INF
                              ? csm_log_vjp_exact((double)dy[l], b, state->sum, state->sum_low, t)
                              : csm_vjp_in_double((double)dy[l], b, state->sums.hi, state->sums.lo, t, log);
        dy[l] = (float)(dx == dx ? dx : CSM_NAN);
    }
    c->table->narrow[c->dtype](dy, s->raw_input, k);
    put_block(state, i, s->raw_input);
}

/* Computes elements of a block of log_softmax_vjp again. */
static void replace_exactly(const row_state *state, size_t i, const csm_row_scratch *s, char *result) {
    const csm_call *c = &state->call->base;
    const char *dy = fetch(state, i, &state->place->input, s->raw_input, 0);
    const char *y = fetch(state, i, &state->place->y, s->raw_y, 1);
    for (size_t l = 0; l < length_of(state, i); l++) {
        const double b = csm_element(c, y, l);
        if (!(b < state->exact_below && b > -CSM_INF)) continue;
        csm_put(c, result + l * c->itemsize,
                csm_log_vjp_exact(csm_element(c, dy, l), b, state->sum, state->sum_low, c->scales.temperature));
    }
}

static csm_status pass2_blocks(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_softmax_call *c = state->call;
    const csm_row_scratch *s = &state->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        if (csm_is_in_double(c)) {
            pass2_in_double(state, i, s);
            continue;
        }
        const char *input = c->is_gradient    ? fetch_lifted(state, i, s)
                            : state->stores_e ? NULL
                                              : fetch(state, i, &state->place->input, s->raw_input, 1);
        const char *y = c->is_gradient ? fetch(state, i, &state->place->y, s->raw_y, 1) : NULL;
        const int is_exact = state->exact_below > -CSM_INF; /* dy and y are read again, and may be the result */
        char *result = has_direct_result(state) && !is_exact ? result_block(state, i) : s->wide;
        c->kernels->pass2(input, y, result, length_of(state, i), &state->temperature, &state->sums, &state->blocks[i]);
        if (is_exact) replace_exactly(state, i, s, result);
        if (result == s->wide) put_block(state, i, result);
    }
    return CSM_OK;
}

/* Transformed rows */

/* Sets for each block: max; hi = 1 if it holds NaN; count = number of unmasked elements. */
static csm_status inspect_blocks(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_call *c = &state->call->base;
    const csm_row_scratch *s = &state->scratch[thread];
    const csm_strided *where = &state->place->where;
    for (size_t i = begin; i < end; i++) {
        size_t k = length_of(state, i), count = k;
        const char *x = fetch(state, i, &state->place->input, s->raw_input, 1);
        csm_block *block = &state->blocks[i];
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
    row_state *state = context;
    const csm_call *c = &state->call->base;
    const csm_row_scratch *s = &state->scratch[thread];
    const csm_wide fill = csm_to_wide(c, state->fill);
    for (size_t i = begin; i < end; i++) {
        size_t k = length_of(state, i);
        for (size_t l = 0; l < k; l++) memcpy(s->wide + l * c->wide_size, &fill, c->wide_size);
        c->table->narrow[c->dtype](s->wide, s->raw_input, k);
        put_block(state, i, s->raw_input);
    }
    return CSM_OK;
}

static const char *transformed(const row_state *state, size_t i, const csm_row_scratch *s) {
    const csm_call *c = &state->call->base;
    size_t k = length_of(state, i);
    c->table->widen[c->dtype](fetch(state, i, &state->place->input, s->raw_input, 1), s->wide, k);
    csm_transform(&c->scales, csm_is_single(c), s->wide, k, state->max);
    return s->wide;
}

static csm_status pass1_transformed(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_softmax_call *c = state->call;
    for (size_t i = begin; i < end; i++)
        c->wide_kernels->pass1(transformed(state, i, &state->scratch[thread]), NULL, NULL, length_of(state, i),
                               &c->base.scales.transformed, &state->blocks[i]);
    return CSM_OK;
}

static csm_status pass2_transformed(void *context, size_t begin, size_t end, int thread) {
    row_state *state = context;
    const csm_softmax_call *c = state->call;
    const csm_row_scratch *s = &state->scratch[thread];
    for (size_t i = begin; i < end; i++) {
        size_t k = length_of(state, i);
        c->wide_kernels->pass2(transformed(state, i, s), NULL, s->wide, k, &c->base.scales.transformed, &state->sums,
                               &state->blocks[i]);
        c->base.table->narrow[c->base.dtype](s->wide, s->raw_input, k);
        put_block(state, i, s->raw_input);
    }
    return CSM_OK;
}

/* The two ways to process the blocks of a row: in order, or in parallel. */
typedef csm_status (*block_runner)(row_state *, csm_body);
static csm_status run_in_order(row_state *state, csm_body body) {
    return body(state, 0, csm_block_count(state->call->base.shape.n), 0);
}
static csm_status run_in_parallel(row_state *state, csm_body body) {
    const csm_call *c = &state->call->base;
    size_t count = csm_block_count(c->shape.n);
    int threads = csm_threads_for((double)c->shape.n, count, c->threads);
    return csm_parallel(count, 64, threads, body, state, state->interrupt);
}

static double max_of_blocks(const row_state *state) {
    double max = -CSM_INF;
    for (size_t i = 0; i < csm_block_count(state->call->base.shape.n); i++)
        if (state->blocks[i].max > max) max = state->blocks[i].max;
    return max;
}

/* Writes one value: to the whole row, or to the only element of a result without the axis. */
static csm_status fill_row(row_state *state, double value, block_runner process) {
    if (state->call->keeps_axis) {
        state->fill = value;
        return process(state, fill_blocks);
    }
    csm_put(&state->call->base, state->place->result, value);
    return CSM_OK;
}

static csm_status run_transformed_row(row_state *state, block_runner process) {
    const csm_softmax_call *c = state->call;
    const csm_scales *scales = &c->base.scales;
    const size_t count = csm_block_count(c->base.shape.n);
    double nan = 0, kept = 0, fill;
    csm_status status = process(state, inspect_blocks);
    if (status != CSM_OK) return status;
    for (size_t i = 0; i < count; i++) {
        nan += state->blocks[i].hi;
        kept += state->blocks[i].count;
    }
    state->max = max_of_blocks(state);
    if (csm_is_special(c->op, scales->temperature, state->max, nan > 0, kept > 0, &fill))
        return fill_row(state, fill, process);
    status = process(state, pass1_transformed);
    if (status != CSM_OK) return status;
    c->wide_kernels->combine(state->blocks, count, &scales->transformed, &state->sums);
    if (!c->keeps_axis) return fill_row(state, csm_reduced(c->op, scales, state->max, state->sums.tail, 1), process);
    return process(state, pass2_transformed);
}

static void combine_blocks(row_state *state) {
    const csm_softmax_call *c = state->call;
    const size_t count = csm_block_count(c->base.shape.n);
    if (csm_is_in_double(c)) csm_combine_pair(state->blocks, count, 0, &state->sums);
    else c->kernels->combine(state->blocks, count, &state->temperature, &state->sums);
}
static void find_exact_elements(row_state *state) {
    const csm_softmax_call *c = state->call;
    state->sum = state->sums.hi / state->lift;
    state->sum_low = state->sums.lo / state->lift;
    state->exact_below =
        csm_vjp_exact_below(&state->temperature, state->sums.hi, csm_is_single(&c->base), csm_is_in_double(c));
}
/* Finds out how to compute a gradient row that the kernels leave out, once its sum is known. */
static csm_status adapt_gradient(row_state *state, block_runner process) {
    const csm_softmax_call *c = state->call;
    csm_temperature *t = &state->temperature;
    if (c->op == CSM_OP_log_softmax_vjp) {
        find_exact_elements(state);
        return CSM_OK;
    }
    csm_status status = process(state, dy_blocks);
    if (status != CSM_OK) return status;
    const double power = csm_vjp_lift(t, max_of_blocks(state) * state->lift);
    if (power == 1) return CSM_OK;
    state->lift *= power;
    t->inv_t1 /= power;
    status = process(state, pass1_blocks);
    if (status == CSM_OK) combine_blocks(state);
    return status;
}

/* Shards: the sums of the blocks go to a record, and a merged record takes their place. */

/* The constants and kernels of the rows of a shard that are transformed, or of those that are not. */
static const csm_temperature *shard_temperature(const row_state *state, int is_transformed) {
    return is_transformed ? &state->call->base.scales.transformed : &state->temperature;
}

/* Multiplies dy of a gradient of softmax, in the second round, as adapt_gradient does. */
static void lift_gradient(row_state *state, double row_max) {
    const double power = csm_vjp_lift(&state->temperature, row_max * state->lift);
    if (!(row_max == row_max)) return;
    state->lift *= power;
    state->temperature.inv_t1 /= power;
}

static csm_status sum_gradient_shard(row_state *state, csm_record *record, block_runner process) {
    const csm_softmax_call *c = state->call;
    const size_t count = csm_block_count(c->base.shape.n);
    lift_gradient(state, csm_shard_row_max(c->shard, state->place->index));
    csm_status status = process(state, pass1_blocks);
    if (status != CSM_OK) return status;
    record->max = 0;
    for (size_t b = 0; b < count; b++) {
        const double hi = state->blocks[b].hi, lo = state->blocks[b].lo, other = hi - hi == 0 ? lo : hi;
        if (other - other == 0) {
            csm_exact_add(&record->sum, hi, 0, 1);
            csm_exact_add(&record->sum, lo, 0, 1);
        } else {
            record->flags |= other > 0 ? CSM_RECORD_POSITIVE : other < 0 ? CSM_RECORD_NEGATIVE : CSM_RECORD_NAN;
        }
    }
    if (c->op != CSM_OP_softmax_vjp || csm_is_single(&c->base) || !(c->base.scales.ordinary.inv_t1 > 1)) return CSM_OK;
    status = process(state, dy_blocks);
    if (status == CSM_OK && count > 0) record->max = max_of_blocks(state);
    return status;
}

static csm_status sum_shard(row_state *state, csm_record *record, block_runner process) {
    const csm_softmax_call *c = state->call;
    const csm_scales *scales = &c->base.scales;
    const size_t count = csm_block_count(c->base.shape.n), index = state->place->index;
    const double row_max = csm_shard_row_max(c->shard, index);
    const int is_transformed = row_max == row_max, is_log = c->op != CSM_OP_softmax;
    csm_status status = CSM_OK;
    int is_checked = is_transformed || scales->always_transform;
    if (!is_checked) {
        status = process(state, pass1_blocks);
        *record = csm_record_of_blocks(state->blocks, count, is_log);
        for (size_t b = 0; b < count; b++) {
            const csm_block *block = &state->blocks[b];
            is_checked |= !(block->hi - block->hi == 0) || !csm_fits_range(scales, block->max);
        }
    }
    if (status == CSM_OK && is_checked) status = process(state, inspect_blocks); /* sets max again */
    if (status != CSM_OK) return status;
    for (size_t b = 0; b < count; b++) {
        const csm_block *block = &state->blocks[b];
        if (is_checked && block->hi != 0) record->flags |= CSM_RECORD_NAN;
        if (!is_checked || block->count > 0) record->flags |= CSM_RECORD_KEPT;
        if (block->max > record->max) record->max = block->max + 0;
    }
    if (is_transformed) {
        const int64_t flags = record->flags;
        state->max = row_max;
        status = process(state, pass1_transformed);
        if (status != CSM_OK) return status;
        *record = csm_record_of_blocks(state->blocks, count, is_log);
        record->flags = flags | CSM_RECORD_TRANSFORMED;
    }
    double *block_max = c->shard->block_max + index * count;
    for (size_t b = 0; b < count; b++) block_max[b] = state->blocks[b].max;
    return CSM_OK;
}

/* The sums of a row from its merged record: the blocks of the row as one. */
static void combine_record(row_state *state, const csm_record *record, int is_transformed) {
    const csm_softmax_call *c = state->call;
    const csm_temperature *t = shard_temperature(state, is_transformed);
    const csm_wide max = csm_to_wide(&c->base, record->max);
    csm_block block;
    c->wide_kernels->pass1(&max, NULL, NULL, 1, t, &block); /* n and power of the maximum */
    csm_exact_pair(&record->sum, (int64_t)block.n, &block.hi, &block.lo);
    block.count = (double)record->count;
    c->wide_kernels->combine(&block, 1, t, &state->sums);
}

static csm_status finish_gradient_shard(row_state *state, const csm_record *record, block_runner process) {
    const csm_softmax_call *c = state->call;
    csm_block block;
    lift_gradient(state, csm_shard_row_max(c->shard, state->place->index));
    csm_exact_pair(&record->sum, 0, &block.hi, &block.lo);
    const int up = (record->flags & CSM_RECORD_POSITIVE) != 0, down = (record->flags & CSM_RECORD_NEGATIVE) != 0;
    if (record->flags & CSM_RECORD_NAN || (up && down)) block.hi = CSM_NAN;
    else if (up || down) block.hi = up ? CSM_INF : -CSM_INF;
    if (csm_is_in_double(c)) csm_combine_pair(&block, 1, 0, &state->sums);
    else c->kernels->combine(&block, 1, &state->temperature, &state->sums);
    if (c->op == CSM_OP_log_softmax_vjp &&
        !csm_vjp_is_ordinary(&state->temperature, state->sums.hi, 1, csm_is_single(&c->base)))
        find_exact_elements(state);
    return process(state, pass2_blocks);
}

static csm_status finish_shard(row_state *state, const csm_record *record, block_runner process) {
    const csm_softmax_call *c = state->call;
    const csm_call *base = &c->base;
    const size_t count = c->keeps_axis ? csm_block_count(base->shape.n) : 0, index = state->place->index;
    const double row_max = csm_shard_row_max(c->shard, index);
    const int is_transformed = row_max == row_max, nan = (record->flags & CSM_RECORD_NAN) != 0;
    double fill;
    state->max = is_transformed ? row_max : record->max;
    if (!csm_fits_range(&base->scales, state->max) &&
        csm_is_special(c->op, base->scales.temperature, state->max, nan, (record->flags & CSM_RECORD_KEPT) != 0, &fill))
        return fill_row(state, fill, process);
    if (nan) return fill_row(state, CSM_NAN, process);
    combine_record(state, record, is_transformed);
    if (!c->keeps_axis)
        return fill_row(state, csm_reduced(c->op, &base->scales, state->max, state->sums.tail, is_transformed),
                        process);
    for (size_t b = 0; b < count; b++) {
        csm_block *block = &state->blocks[b];
        block->max = c->shard->merged_block_max[index * count + b];
        if (block->max == state->sums.max) state->sums.max = block->max; /* -0, which a record does not hold */
        if (c->op == CSM_OP_softmax)
            csm_restore_block(base, shard_temperature(state, is_transformed), block->max, block);
    }
    state->stores_e = c->shard->from_e && !is_transformed;
    return process(state, is_transformed ? pass2_transformed : pass2_blocks);
}

static csm_status run_shard(row_state *state, block_runner process) {
    const csm_softmax_call *c = state->call;
    const size_t at = state->place->index * CSM_RECORD_WORDS;
    csm_record record;
    if (c->shard->stage == CSM_STAGE_FINISH) {
        record = csm_record_load(c->shard->merged + at);
        return (c->is_gradient ? finish_gradient_shard : finish_shard)(state, &record, process);
    }
    csm_record_clear(&record);
    state->stores_e = c->op == CSM_OP_softmax && c->result.data && c->base.itemsize == c->base.wide_size;
    csm_status status = (c->is_gradient ? sum_gradient_shard : sum_shard)(state, &record, process);
    csm_record_store(&record, c->shard->records + at);
    return status;
}

static csm_status run_row(const csm_softmax_call *c, const csm_row_place *place, const csm_row_scratch *scratch,
                          block_runner process, csm_interrupt *interrupt) {
    row_state state = {
        .call = c, .place = place, .scratch = scratch, .blocks = scratch[0].blocks, .interrupt = interrupt};
    const csm_scales *scales = &c->base.scales;
    csm_status status;
    state.lift = scales->lift;
    state.temperature = scales->ordinary;
    state.exact_below = -CSM_INF;
    if (c->shard) return run_shard(&state, process);
    if (!c->is_gradient && scales->always_transform) return run_transformed_row(&state, process);
    state.stores_e = c->op == CSM_OP_softmax && c->base.itemsize == c->base.wide_size && has_direct_result(&state);
    if (state.stores_e &&
        place->result == place->input.data) { /* pass1 would overwrite a row that must be transformed */
        status = process(&state, max_blocks);
        if (status != CSM_OK) return status;
        if (!csm_fits_range(scales, max_of_blocks(&state))) return run_transformed_row(&state, process);
    }
    status = process(&state, pass1_blocks);
    if (status != CSM_OK) return status;
    if (!c->is_gradient && !csm_fits_range(scales, max_of_blocks(&state))) return run_transformed_row(&state, process);
    combine_blocks(&state);
    if (c->is_gradient && !csm_vjp_is_ordinary(&state.temperature, state.sums.hi, c->op == CSM_OP_log_softmax_vjp,
                                               csm_is_single(&c->base))) {
        status = adapt_gradient(&state, process);
        if (status != CSM_OK) return status;
    }
    if (!c->keeps_axis) {
        const double value = csm_reduced(c->op, scales, state.sums.max, state.sums.tail, 0);
        return fill_row(&state, state.sums.is_nan ? CSM_NAN : value, process);
    }
    return process(&state, pass2_blocks);
}

/* Masked elements keep their value in a row that is NaN. */
static void mask_nan_row(const csm_softmax_call *c, const csm_row_place *place) {
    if (c->shard && c->shard->stage != CSM_STAGE_FINISH) return;
    if (place->is_gathered || !csm_is_masked_nan(c, place->result)) return;
    csm_fill_masked(place->result, place->result_axis, place->where, c->base.shape.n, c->base.itemsize, &c->masked);
}

void csm_run_row(const csm_softmax_call *c, const csm_row_place *place, const csm_row_scratch *scratch) {
    run_row(c, place, scratch, run_in_order, NULL); /* always CSM_OK: nothing fails within a row */
    mask_nan_row(c, place);
}

csm_status csm_run_split_row(csm_softmax_call *c, const csm_row_place *place, const csm_row_scratch *each) {
    csm_status status = run_row(c, place, each, run_in_parallel, &c->base.interrupt);
    if (status == CSM_OK) mask_nan_row(c, place);
    return status;
}
