/* The driver of sampling: temperature, top-n-sigma, top-k, typical-p, top-p and min-p in a given order, then the
 * inverse of the cumulative distribution at one uniform number for each draw.
 *
 * Each class owns an interval of [0, 1), in the order of the indices, whose length is its probability.  Masses are the
 * e' of softmax, equal on every instruction set.  So a draw depends only on the row, its parameters and its uniform
 * number, and the threads may share the blocks and the draws of a row.
 *
 * A long row is read once for the sums of its blocks; of its e' only those of blocks in which draws land are computed
 * again, so that nothing of its length is stored: (1, 10^8) takes 0.3 of the time of softmax.
 */
#include "sample.h"

#include "../core/options.h"

enum {
    SPLIT_ELEMENTS = 1 << 20 /* shortest row, and fewest draws of a row, that are split however many rows there are */
};

static double number_at(const csm_sample_call *call, const csm_view *v, size_t row) {
    double value;
    memcpy(&value, csm_row_data(&call->base, v, row), sizeof value);
    return value;
}

/* Reads and checks the parameters of a row. */
static csm_status read_parameters(const csm_sample_call *call, csm_sample_row *row) {
    const csm_sample_options *o = &call->options;
    const size_t at = row->index, n = call->base.shape.n;
    row->temperature = o->temperature ? number_at(call, &call->temperature, at) : 1;
    row->top_p = o->top_p ? number_at(call, &call->top_p, at) : 1;
    row->min_p = o->min_p ? number_at(call, &call->min_p, at) : 0;
    row->typical_p = o->typical_p ? number_at(call, &call->typical_p, at) : 1;
    row->top_n_sigma = o->top_n_sigma ? number_at(call, &call->top_n_sigma, at) : CSM_INF;
    row->top_k = n;
    if (o->top_k) {
        int64_t k;
        memcpy(&k, csm_row_data(&call->base, &call->top_k, at), sizeof k);
        if (k < -1) return CSM_BAD_OPTION;
        if (k > 0 && (uint64_t)k < n) row->top_k = (size_t)k;
    }
    if (!(row->temperature >= 0)) return CSM_BAD_TEMPERATURE;
    if (!(row->top_p > 0 && row->top_p <= 1) || !(row->min_p >= 0 && row->min_p <= 1)) return CSM_BAD_OPTION;
    if (!(row->typical_p > 0 && row->typical_p <= 1) || !(row->top_n_sigma >= 0)) return CSM_BAD_OPTION;
    return CSM_OK;
}
static int has_filter(const csm_sample_row *row, csm_filter filter) {
    switch (filter) {
    case CSM_FILTER_TEMPERATURE: return row->temperature != 1;
    case CSM_FILTER_TOP_N_SIGMA: return row->top_n_sigma < CSM_INF;
    case CSM_FILTER_TOP_K: return row->top_k < row->count;
    case CSM_FILTER_TYPICAL_P: return row->typical_p < 1;
    case CSM_FILTER_TOP_P: return row->top_p < 1;
    default: return row->min_p > 0;
    }
}
/* Whether the row has only temperature, top_k, top_p and min_p, in this order.  *is_named: the order of the call has
 * each filter of the row once. */
static int is_usual(const csm_sample_row *row, int *is_named) {
    const csm_sample_call *call = row->call;
    int seen[CSM_FILTER_COUNT] = {0}, previous = -1, is_usual = 1;
    *is_named = 1;
    for (size_t i = 0; i < call->order_count; i++) {
        const csm_filter filter = call->order[i];
        if (!has_filter(row, filter)) continue;
        is_usual =
            is_usual && (int)filter > previous && filter != CSM_FILTER_TOP_N_SIGMA && filter != CSM_FILTER_TYPICAL_P;
        previous = (int)filter;
        seen[filter]++;
    }
    for (int filter = 0; filter < CSM_FILTER_COUNT; filter++)
        if (has_filter(row, (csm_filter)filter) && seen[filter] != 1) *is_named = 0;
    return is_usual;
}

static csm_status draw_row(csm_sample_call *call, size_t at, int thread) {
    const csm_call *c = &call->base;
    const csm_sample_options *o = &call->options;
    csm_scales *scales = &call->scales[thread];
    const size_t n = c->shape.n;
    csm_sample_row row = {.call = call, .index = at, .thread = thread, .count = n, .scales = scales};
    int is_named;
    csm_sample_clear_set(&row.set);
    csm_status status = read_parameters(call, &row);
    if (status != CSM_OK) return status;
    const int usual = is_usual(&row, &is_named);
    if (!is_named) return CSM_BAD_OPTION;
    if (!(scales->temperature == row.temperature)) csm_set_scales(scales, row.temperature, csm_is_single(c));
    const size_t n_blocks = csm_block_count(call->shard ? call->shard->classes : n);
    row.blocks = (csm_block *)(void *)csm_sample_buffer(call, thread, CSM_SAMPLE_BLOCKS, n_blocks * sizeof *row.blocks);
    if (!row.blocks) return CSM_NO_MEMORY;
    row.from = csm_row_of(c, &call->x, at);
    row.mask = csm_mask_of(c, at);
    if (call->is_direct) row.whole = row.from.data;
    if (call->shard) return csm_sample_shard_row(&row);
    if (usual && row.temperature == 0) row.top_k = 1;
    const int selects = usual && (row.top_k < n || row.top_p < 1);
    if (!call->is_direct && (selects || n <= CSM_SAMPLE_KEPT_ELEMENTS)) status = csm_sample_copy(&row);
    if (status == CSM_OK && !usual) status = csm_sample_filter(&row);
    if (status == CSM_OK) status = selects ? csm_sample_selected(&row) : csm_sample_sum_all(&row);
    if (status == CSM_OK) status = o->without_replacement ? csm_sample_take(&row) : csm_sample_draw(&row);
    if (status == CSM_OK && (o->log_prob || o->raw_log_prob)) status = csm_sample_log_probs(&row);
    return status;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_call *call = context;
    for (size_t row = begin; row < end; row++) {
        csm_status status = draw_row(call, row, thread);
        if (status != CSM_OK) return status;
        if (csm_stops(&call->base.interrupt, thread, call->base.shape.n + call->draws)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
static csm_status draw_split_rows(csm_sample_call *call) {
    csm_status status = CSM_OK;
    call->base.interrupt.last = call->base.interrupt.check ? csm_now() : 0; /* many short regions */
    for (size_t row = 0; row < call->rows && status == CSM_OK; row++) status = draw_row(call, row, 0);
    return status;
}

/* Decides whether the threads share each row: rows that are fewer than the threads they can use, and long ones, within
 * which an interrupt is looked for. */
static void choose_threads(csm_sample_call *call, int threads) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n, longest = n > call->draws ? n : call->draws;
    const int of_row = csm_threads_for((double)longest, longest / CSM_BLOCK + 1, threads);
    call->is_split = longest >= SPLIT_ELEMENTS || (size_t)of_row > call->rows;
    c->threads = call->is_split
                     ? of_row
                     : csm_threads_for((double)call->rows * ((double)n + (double)call->draws), call->rows, threads);
}

/* Copies the options, and checks what does not depend on the rows. */
static csm_status copy_options(csm_sample_call *call, const csm_sample_options *given) {
    csm_sample_options *o = &call->options;
    *o = csm_default_sample_options();
    *o = *(const csm_sample_options *)csm_known_options(o, sizeof *o, given);
    call->order_count = o->order ? o->order_count : CSM_FILTER_COUNT;
    for (size_t i = 0; i < call->order_count; i++) {
        if (i == CSM_FILTER_COUNT) return CSM_BAD_OPTION;
        call->order[i] = o->order ? o->order[i] : (csm_filter)i;
        if ((unsigned)call->order[i] >= CSM_FILTER_COUNT) return CSM_BAD_OPTION;
    }
    return CSM_OK;
}
static csm_status run_sample(csm_sample_call *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                             const csm_view *x, size_t draws, const csm_view *uniform, const csm_view *indices,
                             csm_fp_environment *caller) {
    csm_call *c = &call->base;
    const csm_sample_options *o = &call->options;
    csm_set_dtype(c, dtype, table);
    const csm_view *given[] = {x,        indices,  uniform,      o->where,       o->temperature, o->top_k,
                               o->top_p, o->min_p, o->typical_p, o->top_n_sigma, o->log_prob,    o->raw_log_prob};
    csm_view *to[] = {&call->x,           &call->indices,     &call->uniforms, &c->where,
                      &call->temperature, &call->top_k,       &call->top_p,    &call->min_p,
                      &call->typical_p,   &call->top_n_sigma, &call->log_prob, &call->raw_log_prob};
    const int count = sizeof given / sizeof *given;
    for (int i = 0; i < count; i++) to[i] = given[i] ? to[i] : NULL;
    csm_status status = csm_lay_out(c, shape, given, to, count, &call->rows);
    if (status != CSM_OK || call->rows == 0 || draws == 0) return status;
    if (shape->n == 0) return CSM_NO_MASS;
    c->has_where = o->where != NULL;
    call->draws = draws;
    call->is_direct = !c->has_where && csm_is_contiguous(&c->shape, &call->x, c->itemsize, 1);
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    choose_threads(call, o->threads < 1 ? 1 : o->threads);
    csm_set_scales(&call->unit, 1, csm_is_single(c));
    csm_buffer single[CSM_SAMPLE_BUFFERS];
    status = csm_scratch_begin(&call->scratch, c->threads, CSM_SAMPLE_BUFFERS, single);
    if (status != CSM_OK) return status;
    call->scales = csm_allocate((size_t)c->threads * sizeof *call->scales);
    for (int i = 0; call->scales && i < c->threads; i++) call->scales[i] = call->unit;
    if (!call->scales) status = CSM_NO_MEMORY;
    else if (call->is_split) status = draw_split_rows(call);
    else
        status = csm_parallel(call->rows, CSM_PIECE_ELEMENTS / 4 / (shape->n + 1) + 1, c->threads, rows_body, call,
                              &c->interrupt);
    csm_release(call->scales);
    csm_scratch_end(&call->scratch);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_sample_shard(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                                size_t draws, const csm_view *uniform, const csm_view *indices,
                                const csm_sample_options *options, const csm_sample_shard *shard) {
    csm_fp_environment saved = csm_fp_enter();
    csm_sample_call *call = csm_allocate(sizeof *call); /* its views are too large for a small stack */
    csm_status status = CSM_NO_MEMORY;
    if (call) {
        memset(call, 0, sizeof *call);
        call->shard = shard;
        status = copy_options(call, options);
        if (status == CSM_OK) status = run_sample(call, dtype, table, shape, x, draws, uniform, indices, &saved);
    }
    csm_release(call);
    csm_fp_leave(saved);
    return status;
}
csm_status csm_run_sample(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                          size_t draws, const csm_view *uniform, const csm_view *indices,
                          const csm_sample_options *options) {
    return csm_run_sample_shard(dtype, table, shape, x, draws, uniform, indices, options, NULL);
}

#define SAMPLE(suffix, storage, compute)                                                                             \
    csm_status csm_sample_##suffix(const csm_shape *shape, const csm_view *x, size_t draws, const csm_view *uniform, \
                                   const csm_view *indices, const csm_sample_options *o) {                           \
        return csm_run_sample(CSM_DTYPE_##suffix, csm_current_table(), shape, x, draws, uniform, indices, o);        \
    }
CSM_DTYPES(SAMPLE)
