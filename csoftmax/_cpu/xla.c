/* Targets of XLA's foreign function interface, for csoftmax.jax: XLA's buffers into a call of the core. */
#include "xla_frame.h"

/* Brings results, one for each row, back to the buffer, and frees the memory. */
static void return_row_numbers(const matrix *m, row_numbers *numbers) {
    if (!numbers->memory) return;
    for (size_t i = 0; i < m->shape.shape[0]; i++) ((float *)numbers->buffer->data)[i] = (float)numbers->memory[i];
    free(numbers->memory);
}

/* The arrays of (x) -> y or (dy, y) -> dx, all of one dtype.  Results have n elements per row, or (n = 0) as many as
 * x. */
typedef struct operands {
    matrix m;
    csm_view second, y;
} operands;
static int operands_of(const xla_frame *f, int has_second, size_t n, operands *o) {
    if (!matrix_of(f, &o->m)) return 0;
    const matrix *m = &o->m;
    return view_of(m, buffer_of(&f->results, 0), m->kind, n ? n : m->shape.n, &o->y) &&
           (!has_second || view_of(m, buffer_of(&f->arguments, 1), m->kind, m->shape.n, &o->second));
}

/* The last argument, if there is one more than the operands: a temperature for each row. */
static void *run_softmax(xla_frame *f, csm_op op, int has_second, int reduces) {
    void *answer;
    if (!is_execution(f, &answer)) return answer;
    operands o;
    row_numbers temperatures = {0};
    if (!operands_of(f, has_second, reduces, &o)) return wrong(f);
    csm_options options = csm_default_options();
    if (f->arguments.count > 1 + has_second) {
        if (!row_numbers_of(&o.m, buffer_of(&f->arguments, 1 + has_second), 1, &temperatures)) return wrong(f);
        if (!temperatures.view.data) return failed_with(f, CSM_NO_MEMORY);
        options.temperatures = &temperatures.view;
    }
    read_real(f, "temperature", &options.temperature);
    options.threads = threads(f);
    const csm_status status = csm_run_softmax(op, o.m.dtype, csm_current_table(), &o.m.shape, &o.m.x,
                                              has_second ? &o.second : NULL, &o.y, &options);
    free(temperatures.memory);
    return failed_with(f, status);
}
#define TARGET(name, signature, keeps_axis, ...)                                        \
    void *csm_xla_##name(xla_frame *f) {                                                \
        return run_softmax(f, CSM_OP_##name, CSM_INPUTS_##signature == 2, !keeps_axis); \
    }
CSM_OPS(TARGET)
#undef TARGET

/* The last argument, if there is one more than the operands: an alpha for each row; then the gradient has a second
 * result, dL/dalpha of each row. */
static void *run_entmax(xla_frame *f, int backward) {
    void *answer;
    if (!is_execution(f, &answer)) return answer;
    operands o;
    row_numbers alphas = {0}, gradient = {0};
    if (!operands_of(f, backward, 0, &o)) return wrong(f);
    csm_entmax_options options = csm_default_entmax_options();
    const int has_alphas = f->arguments.count > 1 + backward, has_gradient = has_alphas && backward;
    csm_status status = CSM_OK;
    if ((has_alphas && !row_numbers_of(&o.m, buffer_of(&f->arguments, 1 + backward), 1, &alphas)) ||
        (has_gradient && !row_numbers_of(&o.m, buffer_of(&f->results, 1), 1, &gradient))) {
        free(alphas.memory);
        return wrong(f);
    }
    if ((has_alphas && !alphas.view.data) || (has_gradient && !gradient.view.data)) status = CSM_NO_MEMORY;
    options.alphas = has_alphas ? &alphas.view : NULL;
    options.alpha_gradient = has_gradient ? &gradient.view : NULL;
    read_real(f, "alpha", &options.alpha);
    options.threads = threads(f);
    if (status == CSM_OK)
        status = csm_run_entmax(o.m.dtype, csm_current_table(), &o.m.shape, &o.m.x, backward ? &o.second : NULL, &o.y,
                                &options);
    return_row_numbers(&o.m, &gradient);
    free(alphas.memory);
    return failed_with(f, status);
}
void *csm_xla_entmax(xla_frame *f) { return run_entmax(f, 0); }
void *csm_xla_entmax_vjp(xla_frame *f) { return run_entmax(f, 1); }

/* (x, y, and optionally a temperature for each row) -> the Kullback-Leibler divergence of each row (float64 for
 * float64, else float32), and the gradient of y if there is a second result. */
void *csm_xla_kl_divergence(xla_frame *f) {
    void *answer;
    if (!is_execution(f, &answer)) return answer;
    matrix m;
    csm_view y, loss, gradient;
    const int has_gradient = f->results.count > 1;
    if (!matrix_of(f, &m)) return wrong(f);
    const int wide = m.kind == XLA_F64;
    if (!view_of(&m, buffer_of(&f->arguments, 1), m.kind, m.shape.n, &y) ||
        !view_of(&m, buffer_of(&f->results, 0), wide ? XLA_F64 : XLA_F32, 1, &loss) ||
        (has_gradient && !view_of(&m, buffer_of(&f->results, 1), m.kind, m.shape.n, &gradient)))
        return wrong(f);
    csm_divergence_options options = csm_default_divergence_options();
    row_numbers temperatures = {0};
    if (f->arguments.count > 2) {
        if (!row_numbers_of(&m, buffer_of(&f->arguments, 2), 1, &temperatures)) return wrong(f);
        if (!temperatures.view.data) return failed_with(f, CSM_NO_MEMORY);
        options.temperatures = &temperatures.view;
    }
    read_real(f, "temperature", &options.temperature);
    options.reduction = CSM_NONE;
    options.threads = threads(f);
    double *each = begin_losses(&loss, wide, m.shape.shape[0]);
    csm_status status = CSM_NO_MEMORY;
    if (each) {
        status = csm_run_divergence(m.dtype, csm_current_table(), &m.shape, &m.x, &y, has_gradient ? &gradient : NULL,
                                    each, &options);
        end_losses(&loss, wide, each, m.shape.shape[0], status);
    }
    free(temperatures.memory);
    return failed_with(f, status);
}

/* (x, int32 labels, -1: ignored, and optionally a temperature for each row) -> the loss of each row (float64 for
 * float64, else float32), and its gradient if there is a second result. */
void *csm_xla_cross_entropy(xla_frame *f) {
    void *answer;
    if (!is_execution(f, &answer)) return answer;
    matrix m;
    csm_view labels, loss, gradient;
    row_numbers temperatures = {0};
    const int has_gradient = f->results.count > 1, has_temperatures = f->arguments.count > 2;
    if (!matrix_of(f, &m)) return wrong(f);
    const int wide = m.kind == XLA_F64;
    if (!view_of(&m, buffer_of(&f->arguments, 1), XLA_S32, 1, &labels) ||
        !view_of(&m, buffer_of(&f->results, 0), wide ? XLA_F64 : XLA_F32, 1, &loss) ||
        (has_gradient && !view_of(&m, buffer_of(&f->results, 1), m.kind, m.shape.n, &gradient)) ||
        (has_temperatures && !row_numbers_of(&m, buffer_of(&f->arguments, 2), 1, &temperatures)))
        return wrong(f);
    if (has_temperatures && !temperatures.view.data) return failed_with(f, CSM_NO_MEMORY);
    csm_loss_options options = csm_default_loss_options();
    options.labels = &labels;
    options.label_type = CSM_INT32;
    options.has_ignore = 1;
    options.ignore = (uint64_t)-1;
    options.temperatures = has_temperatures ? &temperatures.view : NULL;
    read_real(f, "temperature", &options.temperature);
    read_real(f, "label_smoothing", &options.label_smoothing);
    read_real(f, "softcap", &options.softcap);
    read_real(f, "z_loss", &options.z_loss);
    options.reduction = CSM_NONE;
    options.threads = threads(f);
    const size_t rows = m.shape.shape[0];
    double *each = begin_losses(&loss, wide, rows);
    if (!each) {
        free(temperatures.memory);
        return failed_with(f, CSM_NO_MEMORY);
    }
    csm_status status = csm_run_cross_entropy(m.dtype, csm_current_table(), &m.shape, &m.x,
                                              has_gradient ? &gradient : NULL, each, &options);
    end_losses(&loss, wide, each, rows, status);
    free(temperatures.memory);
    return failed_with(f, status);
}

/* Segments: the last two arguments are offsets (int32 or int64) and the order of the elements (the same; empty: in
 * order), which all rows share.  A temperature for each segment of each row may come before them. */
typedef struct ragged {
    csm_segments segments;
    int64_t *indptr; /* a copy, or NULL */
} ragged;
static int segments_of(const xla_frame *f, size_t n, ragged *r) {
    const xla_buffer *indptr = buffer_of(&f->arguments, f->arguments.count - 2);
    const xla_buffer *order = buffer_of(&f->arguments, f->arguments.count - 1);
    r->segments = csm_default_segments();
    r->indptr = NULL;
    if (!indptr || !order || indptr->rank != 1 || order->rank != 1 || indptr->dims[0] < 1 ||
        (order->dims[0] != 0 && (size_t)order->dims[0] != n) ||
        (indptr->dtype != XLA_S32 && indptr->dtype != XLA_S64) || (order->dtype != XLA_S32 && order->dtype != XLA_S64))
        return 0;
    const size_t count = (size_t)indptr->dims[0];
    r->segments.count = count - 1;
    r->segments.order = order->dims[0] ? order->data : NULL;
    r->segments.order_bytes = order->dtype == XLA_S32 ? 4 : 8;
    r->segments.indptr = indptr->data;
    if (indptr->dtype == XLA_S64) return 1;
    r->segments.indptr = r->indptr = malloc(count * sizeof *r->indptr);
    for (size_t i = 0; r->indptr && i < count; i++) r->indptr[i] = ((const int32_t *)indptr->data)[i];
    return r->indptr != NULL;
}

static void *run_segments(xla_frame *f, csm_op op, int has_second, int reduces) {
    void *answer;
    if (!is_execution(f, &answer)) return answer;
    operands o;
    ragged r;
    row_numbers temperatures = {0};
    const int has_temperatures = f->arguments.count > 3 + has_second;
    if (!matrix_of(f, &o.m) || !segments_of(f, o.m.shape.n, &r)) return wrong(f);
    if (!operands_of(f, has_second, reduces ? r.segments.count : 0, &o) ||
        (has_temperatures &&
         !row_numbers_of(&o.m, buffer_of(&f->arguments, 1 + has_second), r.segments.count, &temperatures))) {
        free(r.indptr);
        return wrong(f);
    }
    csm_options options = csm_default_options();
    options.temperatures = has_temperatures ? &temperatures.view : NULL;
    read_real(f, "temperature", &options.temperature);
    options.threads = threads(f);
    csm_status status = CSM_NO_MEMORY;
    if (!has_temperatures || temperatures.view.data)
        status = csm_run_segments(op, o.m.dtype, csm_current_table(), &o.m.shape, &r.segments, &o.m.x,
                                  has_second ? &o.second : NULL, &o.y, &options);
    free(temperatures.memory);
    free(r.indptr);
    return failed_with(f, status);
}
#define TARGET(name, signature, keeps_axis, ...)                                         \
    void *csm_xla_segment_##name(xla_frame *f) {                                         \
        return run_segments(f, CSM_OP_##name, CSM_INPUTS_##signature == 2, !keeps_axis); \
    }
CSM_OPS(TARGET)
#undef TARGET

/* (x, int32 labels, -1: ignored, and as above) -> the loss of each segment and its gradient, as of rows. */
void *csm_xla_segment_cross_entropy(xla_frame *f) {
    void *answer;
    if (!is_execution(f, &answer)) return answer;
    matrix m;
    ragged r;
    csm_view labels, loss, gradient;
    row_numbers temperatures = {0};
    const int has_gradient = f->results.count > 1, has_temperatures = f->arguments.count > 4;
    if (!matrix_of(f, &m) || !segments_of(f, m.shape.n, &r)) return wrong(f);
    const int wide = m.kind == XLA_F64;
    const size_t numbers = m.shape.shape[0] * r.segments.count;
    if (!view_of(&m, buffer_of(&f->arguments, 1), XLA_S32, r.segments.count, &labels) ||
        !view_of(&m, buffer_of(&f->results, 0), wide ? XLA_F64 : XLA_F32, r.segments.count, &loss) ||
        (has_gradient && !view_of(&m, buffer_of(&f->results, 1), m.kind, m.shape.n, &gradient)) ||
        (has_temperatures && !row_numbers_of(&m, buffer_of(&f->arguments, 2), r.segments.count, &temperatures))) {
        free(r.indptr);
        return wrong(f);
    }
    csm_loss_options options = csm_default_loss_options();
    options.labels = &labels;
    options.label_type = CSM_INT32;
    options.has_ignore = 1;
    options.ignore = (uint64_t)-1;
    options.temperatures = has_temperatures ? &temperatures.view : NULL;
    read_real(f, "temperature", &options.temperature);
    read_real(f, "label_smoothing", &options.label_smoothing);
    read_real(f, "z_loss", &options.z_loss);
    options.reduction = CSM_NONE;
    options.threads = threads(f);
    double total, *each = malloc((numbers | 1) * sizeof(double));
    csm_status status = CSM_NO_MEMORY;
    if (each && (!has_temperatures || temperatures.view.data)) {
        const csm_view losses = csm_contiguous(&m.shape, r.segments.count, each, sizeof(double));
        status = csm_run_segment_loss(m.dtype, csm_current_table(), &m.shape, &r.segments, &m.x,
                                      has_gradient ? &gradient : NULL, &losses, &total, &options);
    }
    for (size_t i = 0; status == CSM_OK && i < numbers; i++) {
        if (wide) ((double *)loss.data)[i] = each[i];
        else ((float *)loss.data)[i] = (float)each[i];
    }
    free(each);
    free(temperatures.memory);
    free(r.indptr);
    return failed_with(f, status);
}

/* Linear-chain CRF: (emissions, int32 labels with -1 for unknown ones, transitions, start, end, int32 mask) -> the loss
 * of each sequence; with a factor for each sequence as the last argument -> the gradients of the sum of factor times
 * loss: those of the emissions, transitions, start and end.  Parameters may be float beside half types, or double. */
typedef struct chain {
    size_t count, length, tags;
    int kind, wide; /* XLA's codes of the dtypes of emissions and of losses */
    csm_dtype dtype;
    void *memory;
    double *numbers, *losses, *gradients; /* parameters; one a sequence; as many as parameters */
    csm_crf_options o;
} chain;

static size_t elements_of(const xla_buffer *b) {
    size_t count = 1;
    for (int64_t i = 0; i < b->rank; i++) count *= (size_t)b->dims[i];
    return count;
}
static int is_array(const xla_buffer *b, int kind, size_t count) {
    return b && (kind ? b->dtype == kind : b->dtype == XLA_F32 || b->dtype == XLA_F64) && elements_of(b) == count;
}
static void read_numbers(const xla_buffer *b, double *to) {
    for (size_t i = 0; i < elements_of(b); i++)
        to[i] = b->dtype == XLA_F64 ? ((const double *)b->data)[i] : (double)((const float *)b->data)[i];
}
static void write_numbers(const double *from, const xla_buffer *b) {
    for (size_t i = 0; i < elements_of(b); i++) {
        if (b->dtype == XLA_F64) ((double *)b->data)[i] = from[i];
        else ((float *)b->data)[i] = (float)from[i];
    }
}

static int shape_of_chain(const xla_frame *f, chain *c) {
    const xla_buffer *x = buffer_of(&f->arguments, 0);
    if (!x || x->rank < 2 || !dtype_of(x->dtype, &c->dtype)) return 0;
    c->kind = x->dtype;
    c->wide = x->dtype == XLA_F64 ? XLA_F64 : XLA_F32;
    c->tags = (size_t)x->dims[x->rank - 1];
    c->length = (size_t)x->dims[x->rank - 2];
    c->count = 1;
    for (int64_t i = 0; i < x->rank - 2; i++) c->count *= (size_t)x->dims[i];
    const size_t positions = c->count * c->length;
    return is_array(buffer_of(&f->arguments, 1), XLA_S32, positions) &&
           is_array(buffer_of(&f->arguments, 2), 0, c->tags * c->tags) &&
           is_array(buffer_of(&f->arguments, 3), 0, c->tags) && is_array(buffer_of(&f->arguments, 4), 0, c->tags) &&
           is_array(buffer_of(&f->arguments, 5), XLA_S32, positions);
}
/* Copies what the core reads in other types; returns 0 if there is no memory. */
static int read_chain(const xla_frame *f, chain *c) {
    const size_t positions = c->count * c->length, parameters = c->tags * c->tags + 2 * c->tags;
    const int32_t *labels = buffer_of(&f->arguments, 1)->data, *kept = buffer_of(&f->arguments, 5)->data;
    c->memory =
        malloc((2 * parameters + 2 * c->count + 1) * sizeof(double) + (2 * positions + c->count + 1) * sizeof(int64_t));
    if (!c->memory) return 0;
    c->numbers = c->memory;
    c->gradients = c->numbers + parameters;
    c->losses = c->gradients + parameters;
    double *factors = c->losses + c->count;
    int64_t *offsets = (int64_t *)(void *)(factors + c->count + 1), *rows = offsets + c->count + 1;
    int64_t *copied = rows + positions, used = 0;
    for (size_t i = 0; i < c->count; i++) {
        offsets[i] = used;
        for (size_t p = i * c->length; p < (i + 1) * c->length; p++) {
            copied[p] = labels[p];
            if (kept[p]) rows[used++] = (int64_t)p;
        }
    }
    offsets[c->count] = used;
    read_numbers(buffer_of(&f->arguments, 2), c->numbers);
    read_numbers(buffer_of(&f->arguments, 3), c->numbers + c->tags * c->tags);
    read_numbers(buffer_of(&f->arguments, 4), c->numbers + c->tags * c->tags + c->tags);
    c->o = csm_default_crf_options();
    c->o.sequences = c->count;
    c->o.tags = c->tags;
    c->o.offsets = offsets;
    c->o.rows = rows;
    c->o.transitions = c->numbers;
    c->o.start = c->numbers + c->tags * c->tags;
    c->o.end = c->o.start + c->tags;
    c->o.labels = copied;
    c->o.has_ignore = 1;
    c->o.ignore = -1;
    c->o.reduction = CSM_CRF_NONE;
    c->o.upstream = f->arguments.count > 6 ? factors : NULL;
    if (f->arguments.count > 6) read_numbers(buffer_of(&f->arguments, 6), factors);
    c->o.threads = threads(f);
    return 1;
}
static csm_status run_chain(const xla_frame *f, chain *c) {
    return csm_run_crf(c->dtype, CSM_CRF_LOSS, csm_current_table(), buffer_of(&f->arguments, 0)->data, &c->o);
}

void *csm_xla_crf(xla_frame *f) {
    void *answer;
    chain c;
    if (!is_execution(f, &answer)) return answer;
    if (!shape_of_chain(f, &c) || !is_array(buffer_of(&f->results, 0), c.wide, c.count)) return wrong(f);
    if (!read_chain(f, &c)) return failed_with(f, CSM_NO_MEMORY);
    c.o.result = c.losses;
    csm_status status = run_chain(f, &c);
    if (status == CSM_OK) write_numbers(c.losses, buffer_of(&f->results, 0));
    free(c.memory);
    return failed_with(f, status);
}
void *csm_xla_crf_vjp(xla_frame *f) {
    void *answer;
    chain c;
    if (!is_execution(f, &answer)) return answer;
    if (!shape_of_chain(f, &c) || !is_array(buffer_of(&f->arguments, 6), c.wide, c.count)) return wrong(f);
    const xla_buffer *grad = buffer_of(&f->results, 0), *transitions = buffer_of(&f->results, 1);
    const xla_buffer *start = buffer_of(&f->results, 2), *end = buffer_of(&f->results, 3);
    if (!is_array(grad, c.kind, c.count * c.length * c.tags) || !is_array(transitions, 0, c.tags * c.tags) ||
        !is_array(start, 0, c.tags) || !is_array(end, 0, c.tags))
        return wrong(f);
    if (!read_chain(f, &c)) return failed_with(f, CSM_NO_MEMORY);
    memset(grad->data, 0, c.count * c.length * c.tags * itemsize_of(c.kind)); /* rows that take no part */
    c.o.by_tag = grad->data;
    c.o.grad_transitions = c.gradients;
    c.o.grad_start = c.gradients + c.tags * c.tags;
    c.o.grad_end = c.o.grad_start + c.tags;
    csm_status status = run_chain(f, &c);
    if (status == CSM_OK) {
        write_numbers(c.o.grad_transitions, transitions);
        write_numbers(c.o.grad_start, start);
        write_numbers(c.o.grad_end, end);
    }
    free(c.memory);
    return failed_with(f, status);
}
