/* The drivers of losses over sampled classes: gathered rows and logistic terms, with threads and interrupts.
 *
 * The unit of work is a row of the result, so that nothing depends on the number of threads.  Matrices have contiguous
 * rows, `step` bytes apart. */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/reduction.h"

typedef struct rows_call {
    csm_call base;
    const csm_row_kernels *kernels;
    const char *x, *w;
    ptrdiff_t x_step, w_step, ids_step, out_step;
    const int64_t *ids, *offsets;
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
        c->kernels->sums(c->g + first * c->base.wide_size, c->w, c->w_step, c->ids + first, m, c->d,
                         c->out + (ptrdiff_t)i * c->out_step);
    }
    return CSM_OK;
}
csm_status csm_run_row_sums(csm_dtype dtype, const csm_table *table, size_t n, const int64_t *offsets, size_t d,
                            const void *g, const void *w, ptrdiff_t w_step, const int64_t *ids, void *out,
                            ptrdiff_t out_step, const csm_options *o) {
    rows_call c;
    csm_fp_environment saved;
    begin_rows(&c, dtype, table, o, &saved);
    c.g = g, c.w = w, c.ids = ids, c.out = out, c.offsets = offsets;
    c.w_step = w_step, c.out_step = out_step;
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

typedef struct logistic_call {
    csm_call base;
    const csm_logistic_kernels *kernels;
    char *u;
    ptrdiff_t u_step, counts_step;
    const double *counts, *scale, *upstream;
    double *loss;
    size_t m;
    const csm_logistic_options *options;
} logistic_call;

static csm_status logistic_body(void *context, size_t begin, size_t end, int thread) {
    const logistic_call *c = context;
    const csm_logistic_options *o = c->options;
    const int clips = o->gradient && (o->clip_norm > 0 || o->clip_value > 0);
    (void)thread;
    for (size_t i = begin; i < end; i++) {
        csm_logistic_row row = {c->u + (ptrdiff_t)i * c->u_step,
                                c->counts ? c->counts + i * (size_t)c->counts_step : NULL, c->m, 0, 0};
        const double scale = c->scale ? c->scale[i] : 1, upstream = c->upstream ? c->upstream[i] : 1;
        const double inner = scale / o->temperature;
        c->loss[i] = 0;
        if (scale == 0) { /* the row takes no part, whatever it holds */
            if (o->gradient) memset(row.u, 0, (c->m + 1) * c->base.wide_size);
            continue;
        }
        c->kernels->row(&row, o->gradient, clips, clips ? 1 : inner * upstream);
        c->loss[i] = csm_finish_loss(scale * row.loss, c->base.wide_size == 4);
        if (!clips) continue;
        const double norm = inner * sqrt(row.square);
        const double shrink = o->clip_norm > 0 && norm > o->clip_norm ? o->clip_norm / norm : 1;
        c->kernels->clip(row.u, c->m + 1, inner * shrink, o->clip_value > 0 ? o->clip_value : CSM_INF, upstream);
    }
    return CSM_OK;
}
csm_status csm_run_logistic_loss(csm_dtype dtype, const csm_table *table, size_t n, size_t m, void *u, ptrdiff_t u_step,
                                 const double *counts, size_t counts_step, const double *scale, const double *upstream,
                                 double *loss, const csm_logistic_options *o) {
    logistic_call c = {.u = u, .u_step = u_step, .counts = counts, .counts_step = (ptrdiff_t)counts_step};
    csm_fp_environment saved = csm_fp_enter();
    csm_set_dtype(&c.base, dtype, table);
    c.kernels = &table->logistic[dtype];
    c.scale = scale, c.upstream = upstream, c.loss = loss, c.m = m, c.options = o;
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
                                out_step, options ? options : &defaults);                                              \
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
