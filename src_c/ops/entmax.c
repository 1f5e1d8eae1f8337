/* The driver of alpha-entmax, its gradient and its Fenchel-Young loss.
 *
 * A contiguous row is computed in place, any other row in scratch; a row is never split.  The buffer for survivors of
 * the kernel's filter grows when a row needs it.  Where rows have an alpha of their own, one with alpha = 1 is a call
 * of softmax, or of its gradient.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/options.h"
#include "../core/reduction.h"
#include "../kernel/entmax/alpha.h"
#include "../kernel/entmax/loss.h"

typedef enum entmax_stage { FORWARD, VJP, LOSS } entmax_stage;

typedef struct entmax_call {
    csm_call base;
    csm_view input; /* x; for a gradient dy */
    csm_view y;     /* for a gradient: the result of the forward function */
    csm_view result, soft_labels, labels, alphas, alpha_gradient, sample_weight;
    csm_view order; /* offsets: the rows' indices in C order */
    entmax_stage stage;
    csm_entmax e; /* of the rows, if these have no alpha of their own */
    const csm_entmax_options *options;
    const csm_entmax_kernels *kernels;
    size_t rows, row_size, soft_size;
    int in_place, has_result; /* in_place: every array is contiguous */
    double divisor; /* of the loss and of the gradient: 1, or for a mean the sum of the factors */
    double *loss;   /* by row, in C order */
    double *factor; /* of the losses of the rows, in C order; NULL: 1 */
    int64_t *label; /* checked copy of the labels, by row in C order, -1: ignored; NULL for soft labels */
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

static double soft_loss(const entmax_call *call, const csm_entmax *e, csm_support *s, const char *x, const char *q) {
    csm_soft_loss l = csm_soft_start();
    for (size_t j = 0; j < call->base.shape.n; j++) {
        const double qj = csm_wide_at(&call->base, q, j);
        if (csm_soft_add(e, s, &l, j, qj)) csm_soft_outside(e, s, &l, qj, csm_element(&call->base, x, j));
        if (csm_support_stops(s, j)) break;
    }
    return csm_soft_end(e, s, &l);
}

/* Rows */

static size_t order_of(const entmax_call *call, size_t row) {
    return (size_t)csm_offset(&call->base.shape, call->order.strides, row);
}
static double number_of(const entmax_call *call, const csm_view *v, size_t row) {
    double value;
    memcpy(&value, csm_row_data(&call->base, v, row), sizeof value);
    return value;
}
/* Whether a row of a loss is read. */
static int takes_part(const entmax_call *call, size_t row) {
    if (call->label && call->label[order_of(call, row)] < 0) return 0;
    return !call->options->sample_weight || number_of(call, &call->sample_weight, row) != 0;
}

static void row_loss(entmax_call *call, const csm_entmax *e, int thread, size_t row, csm_support *s, const char *x,
                     char *gradient, char *copy) {
    const csm_call *c = &call->base;
    const size_t at = order_of(call, row), label = call->label ? (size_t)call->label[at] : 0;
    const char *q = call->label ? NULL : fetch(call, thread, &call->soft_labels, row, c->wide_size, NULL, copy);
    const double weight = call->factor ? call->factor[at] : 1, factor = weight / call->divisor;
    if (!call->label && !q) return;
    if (s->is_nan) call->loss[at] = CSM_NAN;
    else call->loss[at] = q ? soft_loss(call, e, s, x, q) : csm_hard_loss(e, s, label, csm_element(c, x, label));
    if (weight != 1) call->loss[at] = weight == 0 && !s->is_nan ? 0 : weight * call->loss[at];
    if (call->loss[at] != call->loss[at]) call->loss[at] = CSM_NAN;
    if (!call->has_result || s->is_stopped) return;
    /* The gradient may be x, which is not read any more. */
    call->kernels->spread(s, factor, gradient, c->shape.n);
    size_t i = 0;
    for (size_t j = 0; !s->is_nan && q && j < c->shape.n; j++) {
        const double qj = csm_wide_at(c, q, j);
        if (i < s->count && s->index[i] == j) i++;
        else if (qj > 0) csm_put(c, gradient + j * c->itemsize, 0 - qj * factor);
        if (csm_support_stops(s, j)) return;
    }
    if (call->label && !s->is_nan) {
        for (i = 0; i < s->count && s->index[i] != label && !csm_support_stops(s, i);) i++;
        if (i == s->count) csm_put(c, gradient + label * c->itemsize, 0 - factor);
    }
}

/* Finds the support of a row, growing the buffer if needed.  Returns 0 without memory. */
static int find_support(entmax_call *call, const csm_entmax *e, int thread, const char *x, csm_support *s) {
    const size_t n = call->base.shape.n;
    if (!reserve_support(call, thread, n < FIRST_SUPPORT ? n : FIRST_SUPPORT, s)) return 0;
    const size_t wanted = call->kernels->support(x, n, e, s);
    if (wanted <= s->capacity || s->is_stopped) return 1;
    if (!reserve_support(call, thread, wanted + wanted / 4 < n ? wanted + wanted / 4 : n, s)) return 0;
    call->kernels->support(x, n, e, s);
    return 1;
}

/* dL/dalpha of a row from contiguous dy and y, as the kernels compute dx, element by element. */
static double alpha_gradient(const entmax_call *call, const csm_entmax *e, const char *dy, const char *y,
                             const csm_poll *poll) {
    enum { PART = 64 };
    const csm_call *c = &call->base;
    csm_wide wide_y[PART], wide_dy[PART]; /* large enough for either compute type */
    csm_entmax_vjp v = csm_vjp_start();
    csm_alpha_sums sums = csm_alpha_start();
    for (csm_alpha_pass pass = csm_alpha_first(e); pass != CSM_ALPHA_END; pass = csm_alpha_next(&v, e, pass)) {
        for (size_t i = 0; i < c->shape.n; i += PART) {
            const size_t k = c->shape.n - i < PART ? c->shape.n - i : PART;
            if (i > 0 && csm_poll_stops(poll, PART)) return 0;
            c->table->widen[c->dtype](y + i * c->itemsize, wide_y, k);
            c->table->widen[c->dtype](dy + i * c->itemsize, wide_dy, k);
            for (size_t j = 0; j < k; j++) {
                const double yj = csm_wide_at(c, (const char *)wide_y, j);
                if (!(yj <= 0)) csm_alpha_visit(pass, &v, e, &sums, yj, csm_wide_at(c, (const char *)wide_dy, j));
            }
        }
    }
    return csm_alpha_end(&v, &sums);
}

/* A row with alpha = 1: softmax, or its gradient. */
static csm_status run_limit(entmax_call *call, size_t row, const csm_poll *poll) {
    const csm_call *c = &call->base;
    const csm_shape shape = {.n = c->shape.n};
    csm_view input = {0}, y = {0}, result = {0}, mask = {0};
    csm_options o = csm_default_options();
    input.data = (void *)(uintptr_t)csm_row_data(c, &call->input, row);
    input.axis_stride = call->input.axis_stride;
    result.data = (void *)(uintptr_t)csm_row_data(c, &call->result, row);
    result.axis_stride = call->result.axis_stride;
    o.interrupt = csm_stops_inner;
    o.interrupt_context = (void *)(uintptr_t)poll;
    if (c->has_where) {
        mask.data = (void *)(uintptr_t)csm_row_data(c, &c->where, row);
        mask.axis_stride = c->where.axis_stride;
        o.where = &mask;
    }
    if (call->stage == FORWARD)
        return csm_run_softmax(CSM_OP_softmax, c->dtype, c->table, &shape, &input, NULL, &result, &o);
    y.data = (void *)(uintptr_t)csm_row_data(c, &call->y, row);
    y.axis_stride = call->y.axis_stride;
    return csm_run_softmax(CSM_OP_softmax_vjp, c->dtype, c->table, &shape, &input, &y, &result, &o);
}

/* The buffers of a thread for rows that are not contiguous. */
typedef struct row_buffers {
    char *first, *second, *third;
} row_buffers;

static csm_status run_vjp_row(entmax_call *call, const csm_entmax *e, size_t row, int thread, const row_buffers *b,
                              char *result, const csm_poll *poll) {
    csm_call *c = &call->base;
    const double zero = 0;
    const char *input = fetch(call, thread, &call->input, row, c->itemsize, NULL, b->first);
    const char *y = input ? fetch(call, thread, &call->y, row, c->itemsize, &zero, b->second) : NULL;
    if (!y) return CSM_INTERRUPTED;
    if (call->options->alpha_gradient) {
        const double gradient = alpha_gradient(call, e, input, y, poll);
        memcpy((char *)call->alpha_gradient.data + csm_offset(&c->shape, call->alpha_gradient.strides, row), &gradient,
               sizeof gradient);
    }
    if (e->scale > 0) call->kernels->vjp(input, y, result, c->shape.n, e, poll);
    return CSM_OK;
}

static csm_status run_forward_row(entmax_call *call, const csm_entmax *e, size_t row, int thread, const row_buffers *b,
                                  char *result) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n, size = c->itemsize;
    const uint64_t none = 0;
    const char *input = fetch(call, thread, &call->input, row, size, &c->absent, b->first);
    csm_support s;
    if (!input) return CSM_INTERRUPTED;
    if (!find_support(call, e, thread, input, &s)) return CSM_NO_MEMORY;
    if (s.is_stopped) return CSM_INTERRUPTED;
    if (call->stage == LOSS) {
        row_loss(call, e, thread, row, &s, input, result, b->third);
    } else {
        if (s.is_nan && is_masked_out(call, row, &s)) s.is_nan = 0; /* all 0 */
        call->kernels->spread(&s, 1, result, n);
        if (s.is_nan && c->has_where) csm_fill_masked(result, (ptrdiff_t)size, csm_mask_of(c, row), n, size, &none);
    }
    return s.is_stopped ? CSM_INTERRUPTED : CSM_OK;
}

/* Writes what a row that takes no part contributes. */
static int clear_row(entmax_call *call, size_t row, char *to, const csm_poll *poll) {
    call->loss[order_of(call, row)] = 0;
    for (size_t j = 0; to && j < call->base.shape.n; j++) {
        memset(to + (ptrdiff_t)j * call->result.axis_stride, 0, call->base.itemsize);
        if (csm_poll_at(poll, j)) return 0;
    }
    return 1;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    entmax_call *call = context;
    csm_call *c = &call->base;
    const csm_poll poll = csm_poll_of(&c->interrupt, thread);
    csm_entmax e = call->e;
    row_buffers b = {NULL, NULL, NULL};
    if (!call->in_place) {
        b.first = csm_scratch_get(&call->scratch, thread, ROWS_BUFFER, 2 * call->row_size + call->soft_size);
        if (!b.first) return CSM_NO_MEMORY;
        b.second = b.first + call->row_size;
        b.third = b.second + call->row_size;
    }
    for (size_t row = begin; row < end; row++) {
        char *to =
            call->has_result ? (char *)call->result.data + csm_offset(&c->shape, call->result.strides, row) : NULL;
        char *result = call->in_place ? to : b.second;
        csm_status status = CSM_OK;
        if (call->options->alphas) csm_set_entmax(&e, number_of(call, &call->alphas, row), csm_is_single(c));
        if (call->stage == LOSS && (call->divisor == 0 || !takes_part(call, row))) {
            if (!clear_row(call, row, to, &poll)) return CSM_INTERRUPTED;
            continue;
        }
        if (call->stage == VJP) status = run_vjp_row(call, &e, row, thread, &b, result, &poll);
        else if (e.scale > 0) status = run_forward_row(call, &e, row, thread, &b, result);
        if (status == CSM_OK && e.scale == 0) {
            status = run_limit(call, row, &poll);
        } else if (status == CSM_OK && !call->in_place && to &&
                   !csm_scatter_row(c, thread, to, call->result.axis_stride, result, c->shape.n, c->itemsize)) {
            status = CSM_INTERRUPTED;
        }
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static csm_status run_rows(entmax_call *call) {
    csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_buffer single[BUFFERS];
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

static int is_alpha(double alpha, double least) { return alpha >= least && alpha < CSM_INF; }

static csm_status prepare(entmax_call *call, entmax_stage stage, csm_dtype dtype, const csm_table *table,
                          const csm_shape *shape, entmax_arrays a, const csm_entmax_options *o,
                          const csm_fp_environment *caller) {
    csm_call *c = &call->base;
    memset(call, 0, sizeof *call);
    if (!o->alphas && !(o->alpha > 1 && is_alpha(o->alpha, 1))) return CSM_BAD_OPTION;
    csm_set_dtype(c, dtype, table);
    c->has_where = o->where != NULL;
    call->has_result = a.result != NULL;
    call->stage = stage;
    call->options = o;
    csm_status status =
        csm_lay_out(c, shape,
                    (const csm_view *[]){a.input, a.result, a.y, a.soft_labels, o->where, a.labels, NULL, o->alphas,
                                         o->alpha_gradient, o->sample_weight},
                    (csm_view *[]){&call->input, a.result ? &call->result : NULL, a.y ? &call->y : NULL,
                                   a.soft_labels ? &call->soft_labels : NULL, o->where ? &c->where : NULL,
                                   a.labels ? &call->labels : NULL, &call->order, o->alphas ? &call->alphas : NULL,
                                   o->alpha_gradient ? &call->alpha_gradient : NULL,
                                   o->sample_weight ? &call->sample_weight : NULL},
                    10, &call->rows);
    if (status != CSM_OK) return status;
    for (size_t i = 0; o->alphas && i < call->rows; i++) {
        const double alpha = number_of(call, &call->alphas, i);
        if (!is_alpha(alpha, 1) || (stage == LOSS && alpha == 1)) return CSM_BAD_OPTION;
    }
    csm_set_entmax(&call->e, o->alphas ? 2 : o->alpha, csm_is_single(c));
    call->kernels = &table->entmax[dtype];
    call->in_place = !c->has_where && csm_is_contiguous(&c->shape, &call->input, c->itemsize, 1) &&
                     (!a.result || csm_is_contiguous(&c->shape, &call->result, c->itemsize, 1)) &&
                     (!a.y || csm_is_contiguous(&c->shape, &call->y, c->itemsize, 1)) &&
                     (!a.soft_labels || csm_is_contiguous(&c->shape, &call->soft_labels, c->wide_size, 1));
    call->row_size = csm_rounded(shape->n * c->itemsize + 1);
    call->soft_size = a.soft_labels ? csm_rounded(shape->n * c->wide_size + 1) : 0;
    csm_put(c, &c->absent, -CSM_INF);
    c->threads = csm_threads_for((double)call->rows * (double)shape->n, call->rows, o->threads < 1 ? 1 : o->threads);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    return CSM_OK;
}

csm_status csm_run_entmax(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *input,
                          const csm_view *y, const csm_view *result, const csm_entmax_options *o) {
    csm_entmax_options known = csm_default_entmax_options();
    entmax_call call;
    o = csm_known_options(&known, sizeof known, o);
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = prepare(&call, y ? VJP : FORWARD, dtype, table, shape,
                                (entmax_arrays){.input = input, .y = y, .result = result}, o, &saved);
    if (status == CSM_OK && call.rows > 0 && shape->n > 0) {
        status = run_rows(&call);
        saved = call.base.interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}

/* Copies the labels and checks the copy, before anything is written. */
static csm_status read_labels(entmax_call *call, size_t n) {
    const csm_entmax_options *o = call->options;
    for (size_t i = 0; i < call->rows; i++) {
        int64_t label;
        memcpy(&label, csm_row_data(&call->base, &call->labels, i), sizeof label);
        const int is_ignored = o->has_ignore && label == o->ignore;
        if (!is_ignored && (label < 0 || (uint64_t)label >= n)) return CSM_BAD_LABEL;
        call->label[order_of(call, i)] = is_ignored ? -1 : label;
    }
    return CSM_OK;
}

static double class_weight(const entmax_call *call, size_t j) {
    const void *w = call->options->weight;
    if (!w) return 1;
    return csm_is_single(&call->base) ? (double)((const float *)w)[j] : ((const double *)w)[j];
}

/* sum w_j q_j of the soft labels of a row, compensated; 0 if the call has been interrupted. */
static double mass_of_row(const entmax_call *call, size_t row, const csm_poll *poll) {
    enum { LANES = 4 };
    const csm_call *c = &call->base;
    const csm_strided q = csm_row_of(c, &call->soft_labels, row);
    double sum[LANES] = {0}, low[LANES] = {0};
    for (size_t j = 0; j < c->shape.n && !csm_poll_at(poll, j); j++) {
        csm_wide qj;
        memcpy(&qj, q.data + (ptrdiff_t)j * q.axis, c->wide_size);
        csm_two_sum(&sum[j % LANES], &low[j % LANES], class_weight(call, j) * csm_from_wide(c, qj));
    }
    for (int l = 1; l < LANES; l++) {
        csm_two_sum(&sum[0], &low[0], sum[l]);
        low[0] += low[l];
    }
    return sum[0] + low[0];
}

/* Sets the factors of the rows' losses, whose labels have been read. */
static csm_status factors_body(void *context, size_t begin, size_t end, int thread) {
    entmax_call *call = context;
    const csm_poll poll = csm_poll_of(&call->base.interrupt, thread);
    for (size_t i = begin; i < end; i++) {
        const size_t at = order_of(call, i);
        double factor = call->options->sample_weight ? number_of(call, &call->sample_weight, i) : 1;
        if (!takes_part(call, i)) factor = 0;
        else factor *= call->label ? class_weight(call, (size_t)call->label[at]) : mass_of_row(call, i, &poll);
        call->factor[at] = factor;
    }
    return CSM_OK;
}

static csm_status compute_loss(entmax_call *call, const csm_shape *shape, double *loss) {
    const csm_entmax_options *o = call->options;
    const size_t rows = call->rows, n = shape->n;
    const int single = csm_is_single(&call->base);
    csm_status status = call->label ? read_labels(call, n) : CSM_OK;
    call->divisor = o->reduction == CSM_MEAN ? (double)rows : 1;
    if (status == CSM_OK && call->factor)
        status = csm_parallel(rows, CSM_PIECE_ELEMENTS / (n + 1) + 1, call->base.threads, factors_body, call,
                              &call->base.interrupt);
    if (status != CSM_OK) return status;
    if (call->factor && o->reduction == CSM_MEAN) call->divisor = csm_tree_sum(call->factor, rows);
    for (size_t i = 0; i < rows && n == 0; i++) /* soft labels, no class */
        call->loss[order_of(call, i)] = takes_part(call, i) ? CSM_NAN : 0;
    if (rows > 0 && n > 0) status = run_rows(call);
    if (status != CSM_OK) return status;
    if (o->reduction != CSM_NONE) {
        const double sum = csm_tree_sum(call->loss, rows), divisor = call->divisor;
        *loss = csm_finish_loss(divisor == 0 ? CSM_NAN : divisor == 1 ? sum : sum / divisor, single);
    }
    for (size_t i = 0; o->reduction == CSM_NONE && single && i < rows; i++) loss[i] = (double)(float)loss[i];
    return CSM_OK;
}

static csm_status run_loss(entmax_call *call, const csm_shape *shape, double *loss) {
    const csm_entmax_options *o = call->options;
    const int is_reduced = o->reduction != CSM_NONE, is_hard = call->labels.data != NULL;
    const int has_factor = !is_hard || o->weight || o->sample_weight || o->has_ignore;
    const size_t each = (call->rows + 1) * sizeof(double);
    char *memory = csm_allocate(3 * each);
    if (!memory) return CSM_NO_MEMORY;
    call->label = is_hard ? (int64_t *)(void *)memory : NULL;
    call->factor = has_factor ? (double *)(void *)(memory + each) : NULL;
    call->loss = is_reduced ? (double *)(void *)(memory + 2 * each) : loss;
    const csm_status status = compute_loss(call, shape, loss);
    csm_release(memory);
    return status;
}

csm_status csm_run_entmax_loss(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                               const csm_view *labels, const csm_view *soft, const csm_view *gradient, double *loss,
                               const csm_entmax_options *o) {
    csm_entmax_options known = csm_default_entmax_options();
    entmax_call call;
    o = csm_known_options(&known, sizeof known, o);
    if (!labels == !soft || (unsigned)o->reduction > CSM_MEAN) return CSM_BAD_OPTION;
    csm_fp_environment saved = csm_fp_enter();
    const entmax_arrays arrays = {.input = x, .result = gradient, .labels = labels, .soft_labels = soft};
    csm_status status = prepare(&call, LOSS, dtype, table, shape, arrays, o, &saved);
    if (status == CSM_OK) {
        status = run_loss(&call, shape, loss);
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
