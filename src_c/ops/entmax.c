/* alpha-entmax, its gradient and its Fenchel-Young loss, from a call to its rows.
 *
 * A row is computed where it lies if it is contiguous, else in scratch; one row is never split.  Room for what survives
 * the kernel's filter grows when a row needs it.
 */
#include "internal.h"
#include "kernel/entmax_loss.h"

typedef enum entmax_job { FORWARD, VJP, LOSS } entmax_job;

typedef struct entmax_run {
    csm_call base; /* a: x or dy; y: the result; b: y of a gradient, or soft labels */
    csm_view order, labels;
    entmax_job job;
    csm_entmax e;
    const csm_entmax_kernels *kernels;
    size_t rows, row_size, soft_size;
    int in_place, gradient; /* in_place: every array is contiguous */
    double factor;   /* of the gradient: 1 / rows for a mean */
    double *loss;    /* by row in C order, like label: a copy, checked, NULL for soft labels */
    size_t *label;
    struct entmax_scratch *scratch; /* of each thread */
} entmax_run;

typedef struct entmax_scratch {
    char *rows;      /* copies of x, y and soft labels */
    char *support;
    size_t capacity;
} entmax_scratch;

static int reserve(entmax_scratch *s, size_t capacity) {
    capacity = (capacity + 7) / 8 * 8;
    if (s->support && capacity <= s->capacity) return 1;
    csm_release(s->support);
    s->support = capacity < SIZE_MAX / 64 ? csm_allocate(capacity * (4 * sizeof(double) + sizeof(size_t))) : NULL;
    s->capacity = capacity;
    return s->support != NULL;
}

static csm_support support_at(const entmax_scratch *s) {
    csm_support t = {.z = (double *)(void *)s->support, .capacity = s->capacity};
    t.z_low = t.z + s->capacity;
    t.p = t.z_low + s->capacity;
    t.u = t.p + s->capacity;
    t.index = (size_t *)(void *)(t.u + s->capacity);
    return t;
}

/* A row as contiguous storage, masked elements -inf (of y: 0). */
static const char *fetch(const entmax_run *r, const csm_view *v, size_t row, size_t size, const void *absent,
                         char *copy) {
    const csm_call *c = &r->base;
    const csm_strided x = csm_row_of(c, v, row), mask = csm_mask_of(c, row);
    if (r->in_place) return x.data;
    csm_gather(copy, 0, x, 1, c->shape.n, size, absent ? &mask : NULL, absent);
    return copy;
}

static int none_left(const entmax_run *r, size_t row) {
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

static void row_loss(entmax_run *r, size_t row, csm_support *s, const char *x, char *y, char *copy) {
    const csm_call *c = &r->base;
    const size_t at = (size_t)csm_offset(&c->shape, r->order.strides, row);
    const size_t label = r->label ? r->label[at] : 0;
    const char *q = r->label ? NULL : fetch(r, &c->b, row, c->wide_size, NULL, copy);
    if (s->is_nan) r->loss[at] = CSM_NAN;
    else r->loss[at] = q ? soft_loss(r, s, x, q) : csm_hard_loss(&r->e, s, label, csm_element(c, x, label));
    if (r->loss[at] != r->loss[at]) r->loss[at] = CSM_NAN;
    if (!r->gradient) return;
    /* y may be x; and q of other places is needed once more */
    r->kernels->spread(s, r->factor, y, c->shape.n);
    size_t i = 0;
    for (size_t j = 0; !s->is_nan && q && j < c->shape.n; j++) {
        const double qj = csm_wide_at(&r->base, q, j);
        if (i < s->count && s->index[i] == j) i++;
        else if (qj > 0) csm_put(c, y + j * c->itemsize, -qj * r->factor);
    }
    if (r->label && !s->is_nan) {
        for (i = 0; i < s->count && s->index[i] != label;) i++;
        if (i == s->count) csm_put(c, y + label * c->itemsize, -r->factor);
    }
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    entmax_run *r = context;
    const csm_call *c = &r->base;
    const size_t n = c->shape.n, size = c->itemsize;
    entmax_scratch *scratch = &r->scratch[thread];
    const double zero = 0;
    if (!r->in_place && !scratch->rows && !(scratch->rows = csm_allocate(2 * r->row_size + r->soft_size)))
        return CSM_NO_MEMORY;
    char *second = r->in_place ? NULL : scratch->rows + r->row_size, *third = second ? second + r->row_size : NULL;
    if (r->job != VJP && !reserve(scratch, n < 1024 ? n : 1024)) return CSM_NO_MEMORY;
    for (size_t row = begin; row < end; row++) {
        const char *x = fetch(r, &c->a, row, size, r->job == VJP ? NULL : &c->absent, scratch->rows);
        char *to = r->job == LOSS && !r->gradient ? NULL : (char *)c->y.data + csm_offset(&c->shape, c->y.strides, row);
        char *y = r->in_place ? to : second;
        if (r->job == VJP) {
            const char *p = fetch(r, &c->b, row, size, &zero, second);
            r->kernels->vjp(x, p, y, n, &r->e);
        } else {
            csm_support s = support_at(scratch);
            const size_t wanted = r->kernels->support(x, n, &r->e, &s);
            if (wanted > s.capacity) {
                if (!reserve(scratch, wanted + wanted / 4 < n ? wanted + wanted / 4 : n)) return CSM_NO_MEMORY;
                s = support_at(scratch);
                r->kernels->support(x, n, &r->e, &s);
            }
            if (s.is_nan && r->job == FORWARD && none_left(r, row)) s.is_nan = 0; /* all 0 */
            if (r->job == FORWARD) r->kernels->spread(&s, 1, y, n);
            else row_loss(r, row, &s, x, y, third);
        }
        if (!r->in_place && to) csm_scatter(to, 0, c->y.axis_stride, y, 0, 1, n, size);
    }
    return CSM_OK;
}

static csm_status each_row(entmax_run *r, int threads) {
    csm_call *c = &r->base;
    const size_t n = c->shape.n;
    c->threads = csm_threads_for((double)r->rows * (double)n, r->rows, threads);
    entmax_scratch one = {NULL, NULL, 0};
    r->scratch = c->threads > 1 ? csm_allocate((size_t)c->threads * sizeof one) : &one;
    if (!r->scratch) return CSM_NO_MEMORY;
    for (int i = 0; i < c->threads; i++) r->scratch[i] = one;
    csm_status status = csm_parallel(r->rows, CSM_PIECE / 4 / (n + 1) + 1, c->threads, rows_body, r, &c->interrupt);
    for (int i = 0; i < c->threads; i++) {
        csm_release(r->scratch[i].rows);
        csm_release(r->scratch[i].support);
    }
    if (r->scratch != &one) csm_release(r->scratch);
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

/* What all three have in common.  labels or soft, and gradient: of the loss. */
static csm_status prepare(entmax_run *r, entmax_job job, csm_dtype dtype, const csm_table *table,
                          const csm_shape *shape, const csm_view *a, const csm_view *b, const csm_view *labels,
                          const csm_view *y, const csm_entmax_options *o, const csm_fp_environment *caller) {
    csm_call *c = &r->base;
    memset(r, 0, sizeof *r);
    if (!(o->alpha > 1 && o->alpha < CSM_INF)) return CSM_BAD_OPTION;
    csm_set_dtype(c, dtype, table);
    c->has_where = o->where != NULL;
    c->has_b = b != NULL;
    r->gradient = y != NULL;
    r->job = job;
    csm_status status = csm_lay_out(c, shape, (const csm_view *[]){a, y, b, o->where, labels, NULL},
                                    (csm_view *[]){&c->a, y ? &c->y : NULL, b ? &c->b : NULL,
                                                   o->where ? &c->where : NULL, labels ? &r->labels : NULL, &r->order},
                                    6, &r->rows);
    if (status != CSM_OK) return status;
    csm_set_entmax(&r->e, o->alpha, c->wide_size == 4);
    r->kernels = &table->entmax[dtype];
    const size_t b_size = job == LOSS ? c->wide_size : c->itemsize;
    r->in_place = !c->has_where && csm_contiguous_view(&c->shape, &c->a, c->itemsize, 1) &&
                  (!y || csm_contiguous_view(&c->shape, &c->y, c->itemsize, 1)) &&
                  (!b || csm_contiguous_view(&c->shape, &c->b, b_size, 1));
    r->row_size = csm_rounded(shape->n * c->itemsize + 1);
    r->soft_size = job == LOSS && b ? csm_rounded(shape->n * c->wide_size + 1) : 0;
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){o->interrupt, o->interrupt_context, 0, *caller};
    return CSM_OK;
}

csm_status csm_run_entmax(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *a,
                          const csm_view *b, const csm_view *y, const csm_entmax_options *o) {
    const csm_entmax_options defaults = csm_default_entmax_options();
    entmax_run r;
    if (!o) o = &defaults;
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = prepare(&r, b ? VJP : FORWARD, dtype, table, shape, a, b, NULL, y, o, &saved);
    if (status == CSM_OK && r.rows > 0 && shape->n > 0) {
        status = each_row(&r, o->threads < 1 ? 1 : o->threads);
        saved = r.base.interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}

static csm_status run_loss(entmax_run *r, const csm_shape *shape, double *loss, const csm_entmax_options *o) {
    const size_t rows = r->rows, n = shape->n;
    r->factor = o->reduction == CSM_MEAN ? 1 / (double)rows : 1;
    csm_status status = CSM_OK;
    if (r->labels.data && !(r->label = csm_allocate((rows + 1) * sizeof *r->label))) return CSM_NO_MEMORY;
    for (size_t i = 0; i < rows && r->label; i++) { /* before anything is written */
        const size_t at = (size_t)csm_offset(&r->base.shape, r->order.strides, i);
        int64_t label;
        memcpy(&label, csm_row_of(&r->base, &r->labels, i).data, sizeof label);
        r->label[at] = (size_t)label;
        if (label < 0 || (uint64_t)label >= n) status = CSM_BAD_LABEL;
    }
    r->loss = o->reduction == CSM_NONE ? loss : csm_allocate((rows + 1) * sizeof *loss);
    if (!r->loss) status = CSM_NO_MEMORY;
    for (size_t i = 0; i < rows && n == 0 && status == CSM_OK; i++) r->loss[i] = CSM_NAN; /* soft labels, no class */
    if (rows > 0 && n > 0 && status == CSM_OK) status = each_row(r, o->threads < 1 ? 1 : o->threads);
    csm_release(r->label);
    if (status != CSM_OK) {
        if (o->reduction != CSM_NONE) csm_release(r->loss);
        return status;
    }
    if (o->reduction != CSM_NONE) {
        *loss = csm_tree_sum(r->loss, rows);
        if (o->reduction == CSM_MEAN) *loss /= (double)rows;
        if (*loss != *loss) *loss = CSM_NAN;
        csm_release(r->loss);
    }
    for (size_t i = 0; r->base.wide_size == 4 && i < (o->reduction == CSM_NONE ? rows : 1); i++)
        loss[i] = (double)(float)loss[i];
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
    csm_status status = prepare(&r, LOSS, dtype, table, shape, x, soft, labels, gradient, o, &saved);
    if (status == CSM_OK) {
        status = run_loss(&r, shape, loss, o);
        saved = r.base.interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}
