/* The drivers of losses over sampled classes: gathered rows and logistic terms, with threads and interrupts.
 *
 * The unit of work is a row of the result, so that nothing depends on the number of threads.  Matrices have contiguous
 * rows, `step` bytes apart.
 *
 * A loss goes over tiles of rows: products of gathered rows, biases less shifts, accidental hits, loss and gradient in
 * place, and the gradient of x from the same gathered rows, all while the tile is in the first cache (decision
 * sampled 6 has the times). */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/reduction.h"

typedef struct rows_call {
    csm_call base;
    const csm_row_kernels *kernels;
    const char *x, *w, *start;
    ptrdiff_t x_step, w_step, ids_step, out_step, start_step;
    const int64_t *ids, *offsets, *start_ids;
    const char *g;
    char *out;
    size_t m, d;
    double scale;
} rows_call;

static void begin_rows(rows_call *c, csm_dtype dtype, const csm_table *table, const csm_options *o,
                       csm_fp_environment *saved) {
    memset(c, 0, sizeof *c);
    *saved = csm_fp_enter();
    csm_set_dtype(&c->base, dtype, table);
    c->kernels = &table->rows[dtype];
    c->base.interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *saved};
    c->base.threads = o->threads < 1 ? 1 : o->threads;
}
/* Calls body on `units` units of about `elements` elements each. */
static csm_status run_rows(rows_call *c, size_t units, double elements, csm_body body) {
    const size_t piece = (size_t)((double)CSM_POLL_ELEMENTS / (elements + 1)) + 1;
    const int threads = csm_threads_for((double)units * elements, units / piece + 1, c->base.threads);
    csm_status status = csm_parallel(units, piece, threads, body, c, &c->base.interrupt);
    csm_fp_leave(c->base.interrupt.caller);
    return status;
}

static csm_status dots_body(void *context, size_t begin, size_t end, int thread) {
    const rows_call *c = context;
    (void)thread;
    for (size_t i = begin; i < end; i++)
        c->kernels->dots(c->x + (ptrdiff_t)i * c->x_step, c->w, c->w_step, c->ids + (ptrdiff_t)i * c->ids_step, c->m,
                         c->d, c->out + (ptrdiff_t)i * c->out_step);
    return CSM_OK;
}
csm_status csm_run_row_dots(csm_dtype dtype, const csm_table *table, size_t n, size_t m, size_t d, const void *x,
                            ptrdiff_t x_step, const void *w, ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step,
                            void *out, ptrdiff_t out_step, const csm_options *o) {
    rows_call c;
    csm_fp_environment saved;
    begin_rows(&c, dtype, table, o, &saved);
    c.x = x, c.w = w, c.ids = ids, c.out = out;
    c.x_step = x_step, c.w_step = w_step, c.ids_step = ids_step, c.out_step = out_step;
    c.m = m, c.d = d;
    return run_rows(&c, n, (double)m * (double)(d + 16), dots_body);
}

static csm_status sums_body(void *context, size_t begin, size_t end, int thread) {
    const rows_call *c = context;
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        const size_t first = (size_t)c->offsets[i], m = (size_t)c->offsets[i + 1] - first;
        const int64_t at = c->start_ids ? c->start_ids[i] : (int64_t)i;
        c->kernels->sums(c->g + first * c->base.wide_size, c->w, c->w_step, c->ids + first, m, c->d,
                         c->start && at >= 0 ? c->start + at * c->start_step : NULL,
                         c->out + (ptrdiff_t)i * c->out_step);
    }
    return CSM_OK;
}
csm_status csm_run_row_sums(csm_dtype dtype, const csm_table *table, size_t n, const int64_t *offsets, size_t d,
                            const void *g, const void *w, ptrdiff_t w_step, const int64_t *ids, const void *start,
                            ptrdiff_t start_step, const int64_t *start_ids, void *out, ptrdiff_t out_step,
                            const csm_options *o) {
    rows_call c;
    csm_fp_environment saved;
    begin_rows(&c, dtype, table, o, &saved);
    c.g = g, c.w = w, c.ids = ids, c.out = out, c.offsets = offsets;
    c.start = start, c.start_ids = start_ids;
    c.w_step = w_step, c.out_step = out_step, c.start_step = start_step;
    c.d = d;
    const double mean = n ? (double)(offsets[n] - offsets[0]) / (double)n : 0;
    return run_rows(&c, n, (mean + 1) * (double)(d + 16), sums_body);
}

static csm_status add_body(void *context, size_t begin, size_t end, int thread) {
    const rows_call *c = context;
    enum { AHEAD = 8 };
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        if (i + AHEAD < end) PREFETCH(c->out + c->ids[i + AHEAD] * c->out_step);
        c->kernels->add(c->x + (ptrdiff_t)i * c->x_step, c->scale, c->d, c->out + c->ids[i] * c->out_step);
    }
    return CSM_OK;
}
csm_status csm_run_row_add(csm_dtype dtype, const csm_table *table, size_t n, size_t d, const int64_t *ids,
                           const void *values, ptrdiff_t values_step, double scale, void *w, ptrdiff_t w_step,
                           const csm_options *o) {
    rows_call c;
    csm_fp_environment saved;
    begin_rows(&c, dtype, table, o, &saved);
    c.x = values, c.ids = ids, c.out = w;
    c.x_step = values_step, c.out_step = w_step;
    c.d = d;
    c.scale = scale;
    return run_rows(&c, n, (double)(2 * d + 16), add_body);
}

enum {
    DIGIT = 8, /* bits of a pass of the radix sort */
    DIGITS = 1 << DIGIT,
    TILE_BYTES = 24 << 10,
    MAX_TILE = 64,
    FEW = 16, /* classes of a row */
    GATHERED_BYTES = 16 << 10 /* of a row, at most, that are prefetched while the row before is computed */
};

/* Counting sort: the positions of equal keys, in order, one key after the other. */
csm_status csm_sort_rows(size_t count, const int64_t *keys, size_t bins, int64_t *offsets, int64_t *order) {
    memset(offsets, 0, (bins + 1) * sizeof *offsets);
    for (size_t i = 0; i < count; i++) {
        if (keys[i] < 0 || (size_t)keys[i] >= bins) return CSM_BAD_OPTION;
        offsets[keys[i] + 1]++;
    }
    for (size_t k = 0; k < bins; k++) offsets[k + 1] += offsets[k];
    for (size_t i = 0; i < count; i++) order[offsets[keys[i]]++] = (int64_t)i;
    for (size_t k = bins; k > 0; k--) offsets[k] = offsets[k - 1];
    offsets[0] = 0;
    return CSM_OK;
}

typedef struct keyed {
    uint64_t key;
    int64_t at;
} keyed;

/* Moves the items to `to`, by DIGIT bits of their keys, in order where these are equal. */
static void sort_by_digit(const keyed *from, keyed *to, size_t count, int shift, size_t *begin) {
    for (size_t k = 0, sum = 0; k < DIGITS; k++) {
        const size_t own = begin[k];
        begin[k] = sum;
        sum += own;
    }
    for (size_t i = 0; i < count; i++) to[begin[from[i].key >> shift & (DIGITS - 1)]++] = from[i];
}
csm_status csm_group_rows(size_t count, const int64_t *keys, size_t m, int64_t *rows, int64_t *offsets, int64_t *order,
                          int64_t *source, size_t *found) {
    uint64_t all = 0;
    size_t begin[DIGITS];
    const size_t gathered = count / (m + 1) * m;
    *found = 0;
    offsets[0] = 0;
    if (count > SIZE_MAX / 2 / sizeof(keyed)) return CSM_NO_MEMORY;
    keyed *items = csm_allocate(csm_rounded(2 * count * sizeof *items + 1)), *other = items + count;
    if (!items) return CSM_NO_MEMORY;
    for (size_t i = 0; i < count; i++) {
        items[i] = (keyed){(uint64_t)keys[i], (int64_t)i};
        all |= items[i].key;
    }
    keyed *from = items;
    for (int shift = 0; shift < 64 && all >> shift != 0; shift += DIGIT) {
        keyed *to = from == items ? other : items;
        memset(begin, 0, sizeof begin);
        for (size_t i = 0; i < count; i++) begin[keys[i] >> shift & (DIGITS - 1)]++;
        sort_by_digit(from, to, count, shift, begin);
        from = to;
    }
    for (size_t i = 0; i < count; i++) {
        if (i == 0 || from[i].key != from[i - 1].key) {
            offsets[*found] = (int64_t)i;
            rows[(*found)++] = (int64_t)from[i].key;
        }
        const size_t at = (size_t)from[i].at;
        if (!source) {
            order[i] = (int64_t)at;
            continue;
        }
        const size_t row = at >= gathered           ? at - gathered
                           : gathered <= UINT32_MAX ? (uint32_t)at / (uint32_t)m
                                                    : at / m;
        order[i] = (int64_t)(at >= gathered ? row * (m + 1) + m : at + row);
        source[i] = (int64_t)row;
    }
    offsets[*found] = (int64_t)count;
    csm_release(items);
    return CSM_OK;
}

/* What the rows of logistic terms of a call have in common. */
typedef struct logistic_rows {
    const csm_logistic_kernels *kernels;
    const csm_logistic_options *options;
    const double *counts, *scale, *upstream;
    size_t m, counts_step, wide_size;
    double *loss, *sums; /* of each row; sums of derivatives, or NULL */
} logistic_rows;

static void run_logistic_row(const logistic_rows *c, void *u, size_t i) {
    const csm_logistic_options *o = c->options;
    const int clips = o->gradient && (o->clip_norm > 0 || o->clip_value > 0);
    csm_logistic_row row = {
        .u = u, .counts = c->counts ? c->counts + i * c->counts_step : NULL, .n = c->m, .wants_sum = c->sums && !clips};
    const double scale = c->scale ? c->scale[i] : 1, upstream = c->upstream ? c->upstream[i] : 1;
    const double inner = scale / o->temperature;
    c->loss[i] = 0;
    if (c->sums) c->sums[i] = 0;
    if (scale == 0) { /* the row takes no part, whatever it holds */
        if (o->gradient) memset(u, 0, (c->m + 1) * c->wide_size);
        return;
    }
    c->kernels->row(&row, o->gradient, clips, clips ? 1 : inner * upstream);
    c->loss[i] = csm_finish_loss(scale * row.loss, c->wide_size == 4);
    if (clips) {
        const double norm = inner * sqrt(row.square);
        const double shrink = o->clip_norm > 0 && norm > o->clip_norm ? o->clip_norm / norm : 1;
        row.sum = c->kernels->clip(u, c->m + 1, inner * shrink, o->clip_value > 0 ? o->clip_value : CSM_INF, upstream);
    }
    if (c->sums && o->gradient) c->sums[i] = row.sum == row.sum ? row.sum : CSM_NAN;
}

static void run_logistic_rows(const logistic_rows *c, char *u, ptrdiff_t step, size_t begin, size_t count) {
    const csm_logistic_options *o = c->options;
    const int clips = o->gradient && (o->clip_norm > 0 || o->clip_value > 0);
    if (c->m >= LOGISTIC_LANES || count < 2 || c->counts || c->scale || clips) {
        for (size_t i = 0; i < count; i++) run_logistic_row(c, u + (ptrdiff_t)i * step, begin + i);
        return;
    }
    for (size_t at = 0, rows; at < count; at += rows) {
        double factors[LOGISTIC_FEW];
        double *loss = c->loss + begin + at, *sums = c->sums ? c->sums + begin + at : NULL;
        rows = count - at < LOGISTIC_FEW ? count - at : LOGISTIC_FEW;
        for (size_t r = 0; r < rows; r++)
            factors[r] = 1 / o->temperature * (c->upstream ? c->upstream[begin + at + r] : 1);
        c->kernels->few(u + (ptrdiff_t)at * step, step, rows, c->m, o->gradient, factors, loss, sums);
        for (size_t r = 0; r < rows; r++) loss[r] = csm_finish_loss(loss[r], c->wide_size == 4);
        for (size_t r = 0; sums && r < rows; r++)
            if (sums[r] != sums[r]) sums[r] = CSM_NAN;
    }
}

typedef struct logistic_call {
    csm_call base;
    logistic_rows rows;
    char *u;
    ptrdiff_t u_step;
} logistic_call;

static csm_status logistic_body(void *context, size_t begin, size_t end, int thread) {
    const logistic_call *c = context;
    (void)thread;
    run_logistic_rows(&c->rows, c->u + (ptrdiff_t)begin * c->u_step, c->u_step, begin, end - begin);
    return CSM_OK;
}
csm_status csm_run_logistic_loss(csm_dtype dtype, const csm_table *table, size_t n, size_t m, void *u, ptrdiff_t u_step,
                                 const double *counts, size_t counts_step, const double *scale, const double *upstream,
                                 double *loss, const csm_logistic_options *o) {
    logistic_call c = {.u = u, .u_step = u_step};
    csm_fp_environment saved = csm_fp_enter();
    csm_set_dtype(&c.base, dtype, table);
    c.rows = (logistic_rows){.kernels = &table->logistic[dtype],
                             .options = o,
                             .counts = counts,
                             .scale = scale,
                             .upstream = upstream,
                             .m = m,
                             .counts_step = counts_step,
                             .wide_size = c.base.wide_size,
                             .loss = loss};
    c.base.interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = saved};
    const double elements = 16 * (double)(m + 1);
    const size_t piece = (size_t)((double)CSM_POLL_ELEMENTS / elements) + 1;
    const int threads = csm_threads_for((double)n * elements, n / piece + 1, o->threads < 1 ? 1 : o->threads);
    csm_status status = o->temperature > 0 && o->temperature < CSM_INF
                            ? csm_parallel(n, piece, threads, logistic_body, &c, &c.base.interrupt)
                            : CSM_BAD_TEMPERATURE;
    csm_fp_leave(c.base.interrupt.caller);
    return status;
}

typedef struct sampled_call {
    csm_call base;
    const csm_sampled_loss *given;
    const csm_row_kernels *kernels, *wide_kernels; /* of storage, and of the compute type */
    logistic_rows logistic;
    size_t tile; /* rows whose logits, and gathered rows, stay in the first cache from the products to the gradient */
} sampled_call;

static char *logits_of(const sampled_call *c, size_t i) {
    return (char *)c->given->u + (ptrdiff_t)i * c->given->u_step;
}

/* Prefetches the rows that row i gathers. */
static void prefetch_rows(const sampled_call *c, size_t i) {
    const csm_sampled_loss *o = c->given;
    const size_t bytes = o->d * c->base.itemsize;
    for (size_t j = o->ids && o->m * bytes <= GATHERED_BYTES ? 0 : o->m; j <= o->m; j++) {
        const int64_t id = j < o->m ? o->ids[i * o->m + j] : o->labels[i];
        for (size_t at = 0; at < bytes; at += 64) PREFETCH((const char *)o->w + id * o->w_step + at);
    }
}

static void put_negative_infinity(const sampled_call *c, char *u, size_t j) {
    const csm_wide infinity = csm_to_wide(&c->base, -CSM_INF);
    memcpy(u + j * c->base.wide_size, &infinity, c->base.wide_size);
}
/* Sets the logits of negatives that are the label of row i to -inf. */
static void mask_hits(const sampled_call *c, char *u, size_t i) {
    const csm_sampled_loss *o = c->given;
    const int64_t label = o->labels[i];
    if (o->ids) {
        for (size_t j = 0; j < o->m; j++)
            if (o->ids[i * o->m + j] == label) put_negative_infinity(c, u, j);
        return;
    }
    size_t low = 0, high = o->m;
    while (low < high) {
        const size_t middle = low + (high - low) / 2;
        if (o->sorted[middle] < label) low = middle + 1;
        else high = middle;
    }
    for (; low < o->m && o->sorted[low] == label; low++)
        put_negative_infinity(c, u, o->order ? (size_t)o->order[low] : low);
}
static void divide(const sampled_call *c, char *u, double by) {
    if (csm_is_single(&c->base))
        for (size_t j = 0; j <= c->given->m; j++) ((float *)(void *)u)[j] /= (float)by;
    else
        for (size_t j = 0; j <= c->given->m; j++) ((double *)(void *)u)[j] /= by;
}

/* The classes of row i and its label: one call of a kernel for few of them. */
static const int64_t *join(const csm_sampled_loss *o, size_t i, int64_t *joined) {
    for (size_t j = 0; j < o->m; j++) joined[j] = o->ids[i * o->m + j];
    joined[o->m] = o->labels[i];
    return joined;
}
/* The logits of row i: products, biases less shifts, accidental hits. */
static void finish_logits(const sampled_call *c, size_t i) {
    const csm_sampled_loss *o = c->given;
    char *u = logits_of(c, i), *label = u + o->m * c->base.wide_size;
    const char *x = (const char *)o->x + (ptrdiff_t)i * o->x_step;
    int64_t joined[FEW];
    if (o->ids && o->m < FEW) {
        c->kernels->dots(x, o->w, o->w_step, join(o, i, joined), o->m + 1, o->d, u);
    } else {
        if (o->ids) c->kernels->dots(x, o->w, o->w_step, o->ids + i * o->m, o->m, o->d, u);
        c->kernels->dots(x, o->w, o->w_step, o->labels + i, 1, o->d, label);
    }
    if (o->terms) c->wide_kernels->add((const char *)o->terms + (ptrdiff_t)i * o->terms_step, 1, o->m, u);
    if (o->label_terms) c->wide_kernels->add((const char *)o->label_terms + i * c->base.wide_size, 1, 1, label);
    if (o->masks_hits) mask_hits(c, u, i);
}
/* Cross-entropy of `count` rows, a call within this one. */
static csm_status run_softmax_rows(sampled_call *c, size_t begin, size_t count, int thread) {
    const csm_sampled_loss *o = c->given;
    const ptrdiff_t size = (ptrdiff_t)c->base.wide_size;
    csm_poll poll = csm_poll_of(&c->base.interrupt, thread);
    csm_loss_options inner = csm_default_loss_options();
    int64_t last = (int64_t)o->m;
    const csm_shape shape = {.n = o->m + 1, .ndim = 1, .shape = {count}};
    const csm_view x = {logits_of(c, begin), size, {o->u_step}}, label = {&last, 0, {0}};
    const csm_view scale = {(void *)(uintptr_t)(o->scale ? o->scale + begin : NULL), 0, {sizeof(double)}};
    const csm_view upstream = {(void *)(uintptr_t)(o->upstream ? o->upstream + begin : NULL), 0, {sizeof(double)}};
    inner.labels = &label;
    inner.label_type = CSM_INT64;
    inner.sample_weight = o->scale ? &scale : NULL;
    inner.upstream = o->upstream ? &upstream : NULL;
    inner.temperature = o->options.temperature;
    inner.clip_norm = o->options.clip_norm;
    inner.clip_value = o->options.clip_value;
    inner.reduction = CSM_NONE;
    inner.threads = 1;
    inner.interrupt = csm_stops_inner;
    inner.interrupt_context = &poll;
    return csm_run_cross_entropy(c->base.wide_dtype, c->base.table, &shape, &x, o->options.gradient ? &x : NULL,
                                 o->loss + begin, &inner);
}
static csm_status sampled_body(void *context, size_t begin, size_t end, int thread) {
    sampled_call *c = context;
    const csm_sampled_loss *o = c->given;
    for (size_t count; begin < end; begin += count) {
        count = end - begin < c->tile ? end - begin : c->tile;
        for (size_t i = begin; i < begin + count; i++) {
            if (i + c->tile < o->n) prefetch_rows(c, i + c->tile);
            finish_logits(c, i);
            if (!o->is_softmax && o->options.temperature != 1) divide(c, logits_of(c, i), o->options.temperature);
        }
        if (!o->is_softmax) run_logistic_rows(&c->logistic, logits_of(c, begin), o->u_step, begin, count);
        if (o->is_softmax) {
            const csm_status status = run_softmax_rows(c, begin, count, thread);
            if (status != CSM_OK) return status;
        }
        if (!o->grad_x) continue;
        for (size_t i = begin; i < begin + count; i++) {
            const char *g = logits_of(c, i);
            char *to = (char *)o->grad_x + (ptrdiff_t)i * o->grad_x_step;
            int64_t joined[FEW];
            if (o->m < FEW) {
                c->kernels->sums(g, o->w, o->w_step, join(o, i, joined), o->m + 1, o->d, NULL, to);
                continue;
            }
            c->kernels->sums(g, o->w, o->w_step, o->ids + i * o->m, o->m, o->d, NULL, to);
            c->kernels->sums(g + o->m * c->base.wide_size, o->w, o->w_step, o->labels + i, 1, o->d, to, to);
        }
    }
    return CSM_OK;
}
csm_status csm_run_sampled_loss(csm_dtype dtype, const csm_table *table, const csm_sampled_loss *o) {
    if (!(o->options.temperature > 0 && o->options.temperature < CSM_INF)) return CSM_BAD_TEMPERATURE;
    sampled_call c = {.given = o};
    csm_fp_environment saved = csm_fp_enter();
    csm_set_dtype(&c.base, dtype, table);
    c.kernels = &table->rows[dtype];
    c.wide_kernels = &table->rows[c.base.wide_dtype];
    c.logistic = (logistic_rows){.kernels = &table->logistic[dtype],
                                 .options = &o->options,
                                 .counts = o->counts,
                                 .scale = o->scale,
                                 .upstream = o->upstream,
                                 .m = o->m,
                                 .counts_step = o->counts_step,
                                 .wide_size = c.base.wide_size,
                                 .loss = o->loss,
                                 .sums = o->sums};
    c.base.interrupt =
        (csm_interrupt){.check = o->options.interrupt, .context = o->options.interrupt_context, .caller = saved};
    const double width = (double)(o->m + 1), each = (double)o->d * (double)c.base.itemsize;
    const double bytes = width * ((double)c.base.wide_size + (o->ids ? each : 0));
    c.tile = bytes < TILE_BYTES ? (size_t)(TILE_BYTES / (bytes + 1)) + 1 : 1;
    if (c.tile > MAX_TILE) c.tile = MAX_TILE;
    const double elements = 16 * width + (o->ids ? 2 * width : 1) * (double)o->d;
    const size_t pieces = (size_t)((double)CSM_POLL_ELEMENTS / (elements * (double)c.tile + 1)) + 1;
    const int wanted = o->options.threads < 1 ? 1 : o->options.threads;
    const int threads = csm_threads_for((double)o->n * elements, o->n / (pieces * c.tile) + 1, wanted);
    csm_status status = csm_parallel(o->n, pieces * c.tile, threads, sampled_body, &c, &c.base.interrupt);
    csm_fp_leave(c.base.interrupt.caller);
    return status;
}

#define ROWS(suffix, storage, compute)                                                                                 \
    csm_status csm_row_dots_##suffix(size_t n, size_t m, size_t d, const storage *x, ptrdiff_t x_step,                 \
                                     const storage *w, ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step,       \
                                     csm_real_##compute *out, ptrdiff_t out_step, const csm_options *options) {        \
        const csm_options defaults = csm_default_options();                                                            \
        return csm_run_row_dots(CSM_DTYPE_##suffix, csm_current_table(), n, m, d, x, x_step, w, w_step, ids, ids_step, \
                                out, out_step, options ? options : &defaults);                                         \
    }                                                                                                                  \
    csm_status csm_row_sums_##suffix(size_t n, const int64_t *offsets, size_t d, const csm_real_##compute *g,          \
                                     const storage *w, ptrdiff_t w_step, const int64_t *ids, csm_real_##compute *out,  \
                                     ptrdiff_t out_step, const csm_options *options) {                                 \
        const csm_options defaults = csm_default_options();                                                            \
        return csm_run_row_sums(CSM_DTYPE_##suffix, csm_current_table(), n, offsets, d, g, w, w_step, ids, out,        \
                                out_step, NULL, out, out_step, options ? options : &defaults);                         \
    }                                                                                                                  \
    csm_status csm_row_add_##suffix(size_t n, size_t d, const int64_t *ids, const storage *values,                     \
                                    ptrdiff_t values_step, double scale, storage *w, ptrdiff_t w_step,                 \
                                    const csm_options *options) {                                                      \
        const csm_options defaults = csm_default_options();                                                            \
        return csm_run_row_add(CSM_DTYPE_##suffix, csm_current_table(), n, d, ids, values, values_step, scale, w,      \
                               w_step, options ? options : &defaults);                                                 \
    }
typedef float csm_real_f32;
typedef double csm_real_f64;
CSM_DTYPES(ROWS)

csm_status csm_logistic_loss_f32(size_t n, size_t m, float *u, ptrdiff_t u_step, const double *counts,
                                 size_t counts_step, const double *scale, const double *upstream, double *loss,
                                 const csm_logistic_options *options) {
    const csm_logistic_options defaults = csm_default_logistic_options();
    return csm_run_logistic_loss(CSM_DTYPE_f32, csm_current_table(), n, m, u, u_step, counts, counts_step, scale,
                                 upstream, loss, options ? options : &defaults);
}
csm_status csm_logistic_loss_f64(size_t n, size_t m, double *u, ptrdiff_t u_step, const double *counts,
                                 size_t counts_step, const double *scale, const double *upstream, double *loss,
                                 const csm_logistic_options *options) {
    const csm_logistic_options defaults = csm_default_logistic_options();
    return csm_run_logistic_loss(CSM_DTYPE_f64, csm_current_table(), n, m, u, u_step, counts, counts_step, scale,
                                 upstream, loss, options ? options : &defaults);
}
