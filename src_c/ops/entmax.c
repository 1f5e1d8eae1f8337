/* The driver of alpha-entmax, its gradient and its Fenchel-Young loss.
 *
 * A contiguous row is computed in place, any other row in scratch; a row is never split.  The buffer for survivors of
 * the kernel's filter grows when a row needs it.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/reduction.h"
#include "../kernel/entmax/loss.h"

typedef enum entmax_stage { FORWARD, VJP, LOSS } entmax_stage;

typedef struct entmax_run {
    csm_call base;
    csm_view input; /* x; for a gradient dy */
    csm_view y;     /* for a gradient: the result of the forward function */
    csm_view result, soft_labels, labels;
    csm_view order; /* offsets: the rows' indices in C order */
    entmax_stage stage;
    csm_entmax e;
    const csm_entmax_kernels *kernels;
    size_t rows, row_size, soft_size;
    int in_place, has_result; /* in_place: every array is contiguous */
    double factor; /* of the gradient: 1 / rows for a mean */
    double *loss;  /* by row, in C order */
    size_t *label; /* checked copy of the labels, by row in C order; NULL for soft labels */
    csm_scratch scratch;
} entmax_run;

/* Buffers of a thread: copies of a row (two of the dtype, and its soft labels); the support. */
enum { ROWS_BUFFER, SUPPORT_BUFFER, BUFFERS };
enum { SUPPORT_BYTES = 4 * sizeof(double) + sizeof(size_t), FIRST_SUPPORT = 1024 };

/* Allocates space for at least `capacity` survivors.  Returns 0 without memory. */
static int reserve_support(entmax_run *r, int thread, size_t capacity, csm_support *s) {
    capacity = (capacity + 7) / 8 * 8;
    if (capacity >= SIZE_MAX / 64) return 0;
    char *memory = csm_scratch_get(&r->scratch, thread, SUPPORT_BUFFER, capacity * SUPPORT_BYTES);
    if (!memory) return 0;
    capacity = r->scratch.buffers[thread * BUFFERS + SUPPORT_BUFFER].size / SUPPORT_BYTES;
    *s = (csm_support){.z = (double *)(void *)memory, .capacity = capacity};
    s->z_low = s->z + capacity;
    s->p = s->z_low + capacity;
    s->u = s->p + capacity;
    s->index = (size_t *)(void *)(s->u + capacity);
    return 1;
}

/* A row as contiguous storage, with masked elements -inf (0 in y). */
static const char *fetch(const entmax_run *r, const csm_view *v, size_t row, size_t size, const void *absent,
                         char *copy) {
    const csm_call *c = &r->base;
    const csm_strided x = csm_row_of(c, v, row), mask = csm_mask_of(c, row);
    if (r->in_place) return x.data;
    csm_gather(copy, 0, x, 1, c->shape.n, size, absent ? &mask : NULL, absent);
    return copy;
}

static int is_masked_out(const entmax_run *r, size_t row) {
    const csm_call *c = &r->base;
    const csm_strided mask = csm_mask_of(c, row);
    if (!mask.data) return 0;
    for (size_t j = 0; j < c->shape.n; j++)
        if (mask.data[(ptrdiff_t)j * mask.axis]) return 0;
    return 1;
}

static double soft_loss(const entmax_run *r, csm_support *s, const char *x, const char *q) {
    csm_soft_loss l = csm_soft_start();
    for (size_t j = 0; j < r->base.shape.n; j++) {
        const double qj = csm_wide_at(&r->base, q, j);
        if (csm_soft_add(&r->e, s, &l, j, qj)) l.loss += csm_outside(&r->e, s, qj, csm_element(&r->base, x, j));
    }
    return csm_soft_end(&r->e, s, &l);
}

/* Rows */

static void row_loss(entmax_run *r, size_t row, csm_support *s, const char *x, char *gradient, char *copy) {
    const csm_call *c = &r->base;
    const size_t at = (size_t)csm_offset(&c->shape, r->order.strides, row);
    const size_t label = r->label ? r->label[at] : 0;
    const char *q = r->label ? NULL : fetch(r, &r->soft_labels, row, c->wide_size, NULL, copy);
    if (s->is_nan) r->loss[at] = CSM_NAN;
    else r->loss[at] = q ? soft_loss(r, s, x, q) : csm_hard_loss(&r->e, s, label, csm_element(c, x, label));
    if (r->loss[at] != r->loss[at]) r->loss[at] = CSM_NAN;
    if (!r->has_result) return;
    /* The gradient may be x, which is not read any more. */
    r->kernels->spread(s, r->factor, gradient, c->shape.n);
    size_t i = 0;
    for (size_t j = 0; !s->is_nan && q && j < c->shape.n; j++) {
        const double qj = csm_wide_at(c, q, j);
        if (i < s->count && s->index[i] == j) i++;
        else if (qj > 0) csm_put(c, gradient + j * c->itemsize, -qj * r->factor);
    }
    if (r->label && !s->is_nan) {
        for (i = 0; i < s->count && s->index[i] != label;) i++;
        if (i == s->count) csm_put(c, gradient + label * c->itemsize, -r->factor);
    }
}

/* Finds the support of a row, growing the buffer if needed.  Returns 0 without memory. */
static int find_support(entmax_run *r, int thread, const char *x, csm_support *s) {
    const size_t n = r->base.shape.n;
    if (!reserve_support(r, thread, n < FIRST_SUPPORT ? n : FIRST_SUPPORT, s)) return 0;
    const size_t wanted = r->kernels->support(x, n, &r->e, s);
    if (wanted <= s->capacity) return 1;
    if (!reserve_support(r, thread, wanted + wanted / 4 < n ? wanted + wanted / 4 : n, s)) return 0;
    r->kernels->support(x, n, &r->e, s);
    return 1;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    entmax_run *r = context;
    const csm_call *c = &r->base;
    const size_t n = c->shape.n, size = c->itemsize;
    const double zero = 0;
    char *first = NULL, *second = NULL, *third = NULL;
    if (!r->in_place) {
        first = csm_scratch_get(&r->scratch, thread, ROWS_BUFFER, 2 * r->row_size + r->soft_size);
        if (!first) return CSM_NO_MEMORY;
        second = first + r->row_size;
        third = second + r->row_size;
    }
    for (size_t row = begin; row < end; row++) {
        const char *input = fetch(r, &r->input, row, size, r->stage == VJP ? NULL : &c->absent, first);
        char *to = r->has_result ? (char *)r->result.data + csm_offset(&c->shape, r->result.strides, row) : NULL;
        char *result = r->in_place ? to : second;
        if (r->stage == VJP) {
            const char *y = fetch(r, &r->y, row, size, &zero, second);
            r->kernels->vjp(input, y, result, n, &r->e);
        } else {
            csm_support s;
            if (!find_support(r, thread, input, &s)) return CSM_NO_MEMORY;
            if (s.is_nan && r->stage == FORWARD && is_masked_out(r, row)) s.is_nan = 0; /* all 0 */
            if (r->stage == FORWARD) r->kernels->spread(&s, 1, result, n);
            else row_loss(r, row, &s, input, result, third);
        }
        if (!r->in_place && to) csm_scatter(to, 0, r->result.axis_stride, result, 0, 1, n, size);
    }
    return CSM_OK;
}

static csm_status run_rows(entmax_run *r, int threads) {
    csm_call *c = &r->base;
    const size_t n = c->shape.n;
    csm_buffer single[BUFFERS];
    c->threads = csm_threads_for((double)r->rows * (double)n, r->rows, threads);
    csm_status status = csm_scratch_begin(&r->scratch, c->threads, BUFFERS, single);
    if (status != CSM_OK) return status;
    status = csm_parallel(r->rows, CSM_PIECE_ELEMENTS / 4 / (n + 1) + 1, c->threads, rows_body, r, &c->interrupt);
    csm_scratch_end(&r->scratch);
    return status;
}

void csm_set_entmax(csm_entmax *e, double alpha, int single) {
    e->single = single;
    e->alpha = alpha;
    e->scale = alpha - 1;
    e->p = 1 / e->scale;
    e->p_low = fma(-e->p, e->scale, 1) / e->scale;
    e->kind = alpha == 2 ? CSM_SPARSEMAX : alpha == 1.5 ? CSM_ENTMAX15 : CSM_ENTMAX_ANY;
}

/* The arrays of a call; NULL if a stage does not have them. */
typedef struct entmax_arrays {
    const csm_view *input, *y, *result, *labels, *soft_labels;
} entmax_arrays;

static csm_status prepare(entmax_run *r, entmax_stage stage, csm_dtype dtype, const csm_table *table,
                          const csm_shape *shape, entmax_arrays a, const csm_entmax_options *o,
                          const csm_fp_environment *caller) {
    csm_call *c = &r->base;
    memset(r, 0, sizeof *r);
    if (!(o->alpha > 1 && o->alpha < CSM_INF)) return CSM_BAD_OPTION;
    csm_set_dtype(c, dtype, table);
    c->has_where = o->where != NULL;
    r->has_result = a.result != NULL;
    r->stage = stage;
    csm_status status =
        csm_lay_out(c, shape, (const csm_view *[]){a.input, a.result, a.y, a.soft_labels, o->where, a.labels, NULL},
                    (csm_view *[]){&r->input, a.result ? &r->result : NULL, a.y ? &r->y : NULL,
                                   a.soft_labels ? &r->soft_labels : NULL, o->where ? &c->where : NULL,
                                   a.labels ? &r->labels : NULL, &r->order},
                    7, &r->rows);
    if (status != CSM_OK) return status;
    csm_set_entmax(&r->e, o->alpha, csm_is_single(c));
    r->kernels = &table->entmax[dtype];
    r->in_place = !c->has_where && csm_contiguous_view(&c->shape, &r->input, c->itemsize, 1) &&
                  (!a.result || csm_contiguous_view(&c->shape, &r->result, c->itemsize, 1)) &&
                  (!a.y || csm_contiguous_view(&c->shape, &r->y, c->itemsize, 1)) &&
                  (!a.soft_labels || csm_contiguous_view(&c->shape, &r->soft_labels, c->wide_size, 1));
    r->row_size = csm_rounded(shape->n * c->itemsize + 1);
    r->soft_size = a.soft_labels ? csm_rounded(shape->n * c->wide_size + 1) : 0;
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){o->interrupt, o->interrupt_context, 0, *caller};
    return CSM_OK;
}

csm_status csm_run_entmax(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *input,
                          const csm_view *y, const csm_view *result, const csm_entmax_options *o) {
    const csm_entmax_options defaults = csm_default_entmax_options();
    entmax_run r;
    if (!o) o = &defaults;
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = prepare(&r, y ? VJP : FORWARD, dtype, table, shape,
                                (entmax_arrays){.input = input, .y = y, .result = result}, o, &saved);
    if (status == CSM_OK && r.rows > 0 && shape->n > 0) {
        status = run_rows(&r, o->threads < 1 ? 1 : o->threads);
        saved = r.base.interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}

/* Copies the labels and checks the copy, before anything is written. */
static csm_status read_labels(entmax_run *r, size_t n) {
    csm_status status = CSM_OK;
    if (!(r->label = csm_allocate((r->rows + 1) * sizeof *r->label))) return CSM_NO_MEMORY;
    for (size_t i = 0; i < r->rows; i++) {
        const size_t at = (size_t)csm_offset(&r->base.shape, r->order.strides, i);
        int64_t label;
        memcpy(&label, csm_row_data(&r->base, &r->labels, i), sizeof label);
        r->label[at] = (size_t)label;
        if (label < 0 || (uint64_t)label >= n) status = CSM_BAD_LABEL;
    }
    return status;
}

static csm_status run_loss(entmax_run *r, const csm_shape *shape, double *loss, const csm_entmax_options *o) {
    const size_t rows = r->rows, n = shape->n;
    const int is_reduced = o->reduction != CSM_NONE, single = csm_is_single(&r->base);
    r->factor = o->reduction == CSM_MEAN ? 1 / (double)rows : 1;
    csm_status status = r->labels.data ? read_labels(r, n) : CSM_OK;
    r->loss = is_reduced ? csm_allocate((rows + 1) * sizeof *loss) : loss;
    if (!r->loss) status = CSM_NO_MEMORY;
    for (size_t i = 0; i < rows && n == 0 && status == CSM_OK; i++) r->loss[i] = CSM_NAN; /* soft labels, no class */
    if (rows > 0 && n > 0 && status == CSM_OK) status = run_rows(r, o->threads < 1 ? 1 : o->threads);
    csm_release(r->label);
    if (status == CSM_OK && is_reduced) {
        const double sum = csm_tree_sum(r->loss, rows);
        *loss = csm_finish_loss(o->reduction == CSM_MEAN ? sum / (double)rows : sum, single);
    }
    for (size_t i = 0; status == CSM_OK && !is_reduced && single && i < rows; i++) loss[i] = (double)(float)loss[i];
    if (is_reduced) csm_release(r->loss);
    return status;
}

csm_status csm_run_entmax_loss(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                               const csm_view *labels, const csm_view *soft, const csm_view *gradient, double *loss,
                               const csm_entmax_options *o) {
    const csm_entmax_options defaults = csm_default_entmax_options();
    entmax_run r;
    if (!o) o = &defaults;
    if (!labels == !soft || (unsigned)o->reduction > CSM_MEAN) return CSM_BAD_OPTION;
    csm_fp_environment saved = csm_fp_enter();
    const entmax_arrays arrays = {.input = x, .result = gradient, .labels = labels, .soft_labels = soft};
    csm_status status = prepare(&r, LOSS, dtype, table, shape, arrays, o, &saved);
    if (status == CSM_OK) {
        status = run_loss(&r, shape, loss, o);
        saved = r.base.interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}

#define ENTMAX(suffix, storage, compute)                                                                            \
    csm_status csm_entmax_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *y,                    \
                                   const csm_entmax_options *o) {                                                   \
        return csm_run_entmax(CSM_DTYPE_##suffix, csm_current_table(), shape, x, NULL, y, o);                       \
    }                                                                                                               \
    csm_status csm_entmax_vjp_##suffix(const csm_shape *shape, const csm_view *dy, const csm_view *y,               \
                                       const csm_view *dx, const csm_entmax_options *o) {                           \
        return csm_run_entmax(CSM_DTYPE_##suffix, csm_current_table(), shape, dy, y, dx, o);                        \
    }                                                                                                               \
    csm_status csm_entmax_loss_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *labels,          \
                                        const csm_view *soft, const csm_view *gradient, double *loss,               \
                                        const csm_entmax_options *o) {                                              \
        return csm_run_entmax_loss(CSM_DTYPE_##suffix, csm_current_table(), shape, x, labels, soft, gradient, loss, \
                                   o);                                                                              \
    }
CSM_DTYPES(ENTMAX)
