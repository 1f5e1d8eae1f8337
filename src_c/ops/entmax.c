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

typedef struct entmax_call {
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
} entmax_call;

/* Buffers of a thread: copies of a row (two of the dtype, and its soft labels); the support. */
enum { ROWS_BUFFER, SUPPORT_BUFFER, BUFFERS };
enum { SUPPORT_BYTES = 4 * sizeof(double) + sizeof(size_t), FIRST_SUPPORT = 1024 };

/* Allocates space for at least `capacity` survivors.  Returns 0 without memory. */
static int reserve_support(entmax_call *call, int thread, size_t capacity, csm_support *s) {
    capacity = (capacity + 7) / 8 * 8;
    if (capacity >= SIZE_MAX / 64) return 0;
    char *memory = csm_scratch_get(&call->scratch, thread, SUPPORT_BUFFER, capacity * SUPPORT_BYTES);
    if (!memory) return 0;
    capacity = call->scratch.buffers[thread * BUFFERS + SUPPORT_BUFFER].size / SUPPORT_BYTES;
    *s = (csm_support){
        .z = (double *)(void *)memory, .capacity = capacity, .poll = csm_poll_of(&call->base.interrupt, thread)};
    s->z_low = s->z + capacity;
    s->p = s->z_low + capacity;
    s->u = s->p + capacity;
    s->index = (size_t *)(void *)(s->u + capacity);
    return 1;
}

/* Returns a row as contiguous storage, in which masked elements are -inf (0 in y); NULL if the call has been
 * interrupted. */
static const char *fetch(entmax_call *call, int thread, const csm_view *v, size_t row, size_t size, const void *absent,
                         char *copy) {
    csm_call *c = &call->base;
    const csm_strided x = csm_row_of(c, v, row), mask = csm_mask_of(c, row);
    if (call->in_place) return x.data;
    return csm_gather_row(c, thread, copy, x, c->shape.n, size, absent ? &mask : NULL, absent) ? copy : NULL;
}

static int is_masked_out(entmax_call *call, size_t row, csm_support *s) {
    const csm_call *c = &call->base;
    const csm_strided mask = csm_mask_of(c, row);
    if (!mask.data) return 0;
    for (size_t j = 0; j < c->shape.n; j++)
        if (mask.data[(ptrdiff_t)j * mask.axis] || csm_support_stops(s, j)) return 0;
    return 1;
}

static double soft_loss(const entmax_call *call, csm_support *s, const char *x, const char *q) {
    csm_soft_loss l = csm_soft_start();
    for (size_t j = 0; j < call->base.shape.n; j++) {
        const double qj = csm_wide_at(&call->base, q, j);
        if (csm_soft_add(&call->e, s, &l, j, qj)) csm_soft_outside(&call->e, s, &l, qj, csm_element(&call->base, x, j));
        if (csm_support_stops(s, j)) break;
    }
    return csm_soft_end(&call->e, s, &l);
}

/* Rows */

static void row_loss(entmax_call *call, int thread, size_t row, csm_support *s, const char *x, char *gradient,
                     char *copy) {
    const csm_call *c = &call->base;
    const size_t at = (size_t)csm_offset(&c->shape, call->order.strides, row);
    const size_t label = call->label ? call->label[at] : 0;
    const char *q = call->label ? NULL : fetch(call, thread, &call->soft_labels, row, c->wide_size, NULL, copy);
    if (!call->label && !q) return;
    if (s->is_nan) call->loss[at] = CSM_NAN;
    else call->loss[at] = q ? soft_loss(call, s, x, q) : csm_hard_loss(&call->e, s, label, csm_element(c, x, label));
    if (call->loss[at] != call->loss[at]) call->loss[at] = CSM_NAN;
    if (!call->has_result || s->is_stopped) return;
    /* The gradient may be x, which is not read any more. */
    call->kernels->spread(s, call->factor, gradient, c->shape.n);
    size_t i = 0;
    for (size_t j = 0; !s->is_nan && q && j < c->shape.n; j++) {
        const double qj = csm_wide_at(c, q, j);
        if (i < s->count && s->index[i] == j) i++;
        else if (qj > 0) csm_put(c, gradient + j * c->itemsize, -qj * call->factor);
        if (csm_support_stops(s, j)) return;
    }
    if (call->label && !s->is_nan) {
        for (i = 0; i < s->count && s->index[i] != label && !csm_support_stops(s, i);) i++;
        if (i == s->count) csm_put(c, gradient + label * c->itemsize, -call->factor);
    }
}

/* Finds the support of a row, growing the buffer if needed.  Returns 0 without memory. */
static int find_support(entmax_call *call, int thread, const char *x, csm_support *s) {
    const size_t n = call->base.shape.n;
    if (!reserve_support(call, thread, n < FIRST_SUPPORT ? n : FIRST_SUPPORT, s)) return 0;
    const size_t wanted = call->kernels->support(x, n, &call->e, s);
    if (wanted <= s->capacity || s->is_stopped) return 1;
    if (!reserve_support(call, thread, wanted + wanted / 4 < n ? wanted + wanted / 4 : n, s)) return 0;
    call->kernels->support(x, n, &call->e, s);
    return 1;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    entmax_call *call = context;
    csm_call *c = &call->base;
    const size_t n = c->shape.n, size = c->itemsize;
    const double zero = 0;
    const uint64_t none = 0;
    const csm_poll poll = csm_poll_of(&c->interrupt, thread);
    char *first = NULL, *second = NULL, *third = NULL;
    if (!call->in_place) {
        first = csm_scratch_get(&call->scratch, thread, ROWS_BUFFER, 2 * call->row_size + call->soft_size);
        if (!first) return CSM_NO_MEMORY;
        second = first + call->row_size;
        third = second + call->row_size;
    }
    for (size_t row = begin; row < end; row++) {
        const char *input = fetch(call, thread, &call->input, row, size, call->stage == VJP ? NULL : &c->absent, first);
        if (!input) return CSM_INTERRUPTED;
        char *to =
            call->has_result ? (char *)call->result.data + csm_offset(&c->shape, call->result.strides, row) : NULL;
        char *result = call->in_place ? to : second;
        if (call->stage == VJP) {
            const char *y = fetch(call, thread, &call->y, row, size, &zero, second);
            if (!y) return CSM_INTERRUPTED;
            call->kernels->vjp(input, y, result, n, &call->e, &poll);
        } else {
            csm_support s;
            if (!find_support(call, thread, input, &s)) return CSM_NO_MEMORY;
            if (s.is_stopped) return CSM_INTERRUPTED;
            if (s.is_nan && call->stage == FORWARD && is_masked_out(call, row, &s)) s.is_nan = 0; /* all 0 */
            if (call->stage == FORWARD) call->kernels->spread(&s, 1, result, n);
            if (call->stage == FORWARD && s.is_nan && c->has_where)
                csm_fill_masked(result, (ptrdiff_t)size, csm_mask_of(c, row), n, size, &none);
            if (call->stage != FORWARD) row_loss(call, thread, row, &s, input, result, third);
            if (s.is_stopped) return CSM_INTERRUPTED;
        }
        if (!call->in_place && to && !csm_scatter_row(c, thread, to, call->result.axis_stride, result, n, size))
            return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

static csm_status run_rows(entmax_call *call, int threads) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_buffer single[BUFFERS];
    c->threads = csm_threads_for((double)call->rows * (double)n, call->rows, threads);
    csm_status status = csm_scratch_begin(&call->scratch, c->threads, BUFFERS, single);
    if (status != CSM_OK) return status;
    status = csm_parallel(call->rows, CSM_PIECE_ELEMENTS / 4 / (n + 1) + 1, c->threads, rows_body, call, &c->interrupt);
    csm_scratch_end(&call->scratch);
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

static csm_status prepare(entmax_call *call, entmax_stage stage, csm_dtype dtype, const csm_table *table,
                          const csm_shape *shape, entmax_arrays a, const csm_entmax_options *o,
                          const csm_fp_environment *caller) {
    csm_call *c = &call->base;
    memset(call, 0, sizeof *call);
    if (!(o->alpha > 1 && o->alpha < CSM_INF)) return CSM_BAD_OPTION;
    csm_set_dtype(c, dtype, table);
    c->has_where = o->where != NULL;
    call->has_result = a.result != NULL;
    call->stage = stage;
    csm_status status =
        csm_lay_out(c, shape, (const csm_view *[]){a.input, a.result, a.y, a.soft_labels, o->where, a.labels, NULL},
                    (csm_view *[]){&call->input, a.result ? &call->result : NULL, a.y ? &call->y : NULL,
                                   a.soft_labels ? &call->soft_labels : NULL, o->where ? &c->where : NULL,
                                   a.labels ? &call->labels : NULL, &call->order},
                    7, &call->rows);
    if (status != CSM_OK) return status;
    csm_set_entmax(&call->e, o->alpha, csm_is_single(c));
    call->kernels = &table->entmax[dtype];
    call->in_place = !c->has_where && csm_is_contiguous(&c->shape, &call->input, c->itemsize, 1) &&
                     (!a.result || csm_is_contiguous(&c->shape, &call->result, c->itemsize, 1)) &&
                     (!a.y || csm_is_contiguous(&c->shape, &call->y, c->itemsize, 1)) &&
                     (!a.soft_labels || csm_is_contiguous(&c->shape, &call->soft_labels, c->wide_size, 1));
    call->row_size = csm_rounded(shape->n * c->itemsize + 1);
    call->soft_size = a.soft_labels ? csm_rounded(shape->n * c->wide_size + 1) : 0;
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    return CSM_OK;
}

csm_status csm_run_entmax(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *input,
                          const csm_view *y, const csm_view *result, const csm_entmax_options *o) {
    const csm_entmax_options defaults = csm_default_entmax_options();
    entmax_call call;
    if (!o) o = &defaults;
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = prepare(&call, y ? VJP : FORWARD, dtype, table, shape,
                                (entmax_arrays){.input = input, .y = y, .result = result}, o, &saved);
    if (status == CSM_OK && call.rows > 0 && shape->n > 0) {
        status = run_rows(&call, o->threads < 1 ? 1 : o->threads);
        saved = call.base.interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}

/* Copies the labels and checks the copy, before anything is written. */
static csm_status read_labels(entmax_call *call, size_t n) {
    csm_status status = CSM_OK;
    if (!(call->label = csm_allocate((call->rows + 1) * sizeof *call->label))) return CSM_NO_MEMORY;
    for (size_t i = 0; i < call->rows; i++) {
        const size_t at = (size_t)csm_offset(&call->base.shape, call->order.strides, i);
        int64_t label;
        memcpy(&label, csm_row_data(&call->base, &call->labels, i), sizeof label);
        call->label[at] = (size_t)label;
        if (label < 0 || (uint64_t)label >= n) status = CSM_BAD_LABEL;
    }
    return status;
}

static csm_status run_loss(entmax_call *call, const csm_shape *shape, double *loss, const csm_entmax_options *o) {
    const size_t rows = call->rows, n = shape->n;
    const int is_reduced = o->reduction != CSM_NONE, single = csm_is_single(&call->base);
    call->factor = o->reduction == CSM_MEAN ? 1 / (double)rows : 1;
    csm_status status = call->labels.data ? read_labels(call, n) : CSM_OK;
    call->loss = is_reduced ? csm_allocate((rows + 1) * sizeof *loss) : loss;
    if (!call->loss) status = CSM_NO_MEMORY;
    for (size_t i = 0; i < rows && n == 0 && status == CSM_OK; i++) call->loss[i] = CSM_NAN; /* soft labels, no class */
    if (rows > 0 && n > 0 && status == CSM_OK) status = run_rows(call, o->threads < 1 ? 1 : o->threads);
    csm_release(call->label);
    if (status == CSM_OK && is_reduced) {
        const double sum = csm_tree_sum(call->loss, rows);
        *loss = csm_finish_loss(o->reduction == CSM_MEAN ? sum / (double)rows : sum, single);
    }
    for (size_t i = 0; status == CSM_OK && !is_reduced && single && i < rows; i++) loss[i] = (double)(float)loss[i];
    if (is_reduced) csm_release(call->loss);
    return status;
}

csm_status csm_run_entmax_loss(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                               const csm_view *labels, const csm_view *soft, const csm_view *gradient, double *loss,
                               const csm_entmax_options *o) {
    const csm_entmax_options defaults = csm_default_entmax_options();
    entmax_call call;
    if (!o) o = &defaults;
    if (!labels == !soft || (unsigned)o->reduction > CSM_MEAN) return CSM_BAD_OPTION;
    csm_fp_environment saved = csm_fp_enter();
    const entmax_arrays arrays = {.input = x, .result = gradient, .labels = labels, .soft_labels = soft};
    csm_status status = prepare(&call, LOSS, dtype, table, shape, arrays, o, &saved);
    if (status == CSM_OK) {
        status = run_loss(&call, shape, loss, o);
        saved = call.base.interrupt.caller; /* the callback may have changed it */
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
