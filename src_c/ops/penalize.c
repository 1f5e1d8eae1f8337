/* Penalties for tokens that have been seen, and biases.
 *
 * For a class seen c > 0 times among the valid tokens of its row, with repetition theta, presence p and frequency f:
 *     x > 0: x / theta, else x theta;   then x - p - f c;   then, for every class, x + bias.
 *
 * Passes: none over a row that is penalised in place, unless there is a bias for all classes; else one, which copies
 * it.  Tokens are counted in a table of at least four times their number, and the logits of those seen are read one
 * after the other, so that the reads of a row do not wait for each other.
 * Arithmetic: double, rounded once (half types: through float).  NaN stays NaN; other classes keep their bits.
 * Measured error: 0.5 ULP, and for float64 that of up to five operations in units of their largest number.
 * 500 tokens in each of 64 rows of 128256 floats, in place: docs/decisions/sample.md.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/options.h"

enum { TABLE, CLASSES, COUNTS, STORED, WIDE, VALUES, BLOCK, BUFFERS };

typedef struct penalize_call {
    csm_call base;
    csm_view x, y, tokens, lengths, repetition, presence, frequency, bias;
    csm_penalize_options options;
    size_t count, rows; /* count: tokens of a row */
    int in_place, x_is_direct, y_is_direct;
    csm_scratch scratch;
} penalize_call;

/* The classes that have been seen, and a table of their numbers: EMPTY, or the index of a class. */
#define EMPTY UINT32_MAX
typedef struct seen {
    uint32_t *table;
    size_t size; /* a power of two */
    int64_t *classes;
    double *counts;
    size_t count;
} seen;

static double parameter(const penalize_call *call, const csm_view *given, const csm_view *v, size_t row,
                        double otherwise) {
    double value = otherwise;
    if (given) memcpy(&value, csm_row_data(&call->base, v, row), sizeof value);
    return value;
}
static char *buffer(penalize_call *call, int thread, int which, size_t size) {
    return csm_scratch_get(&call->scratch, thread, which, size);
}
/* The place of a class in the table: its own, or an empty one. */
static size_t place_of(const seen *s, int64_t class) {
    size_t at = (size_t)((uint64_t)class * 0x9e3779b97f4a7c15u >> 20) & (s->size - 1);
    while (s->table[at] != EMPTY && s->classes[s->table[at]] != class) at = (at + 1) & (s->size - 1);
    return at;
}

/* Counts the valid tokens of a row, and lists their classes, whose logits are fetched ahead. */
static csm_status count_tokens(penalize_call *call, size_t row, int thread, seen *s) {
    const csm_call *c = &call->base;
    const char *tokens = csm_row_data(c, &call->tokens, row);
    const csm_strided from = csm_row_of(c, &call->x, row);
    const csm_poll poll = csm_poll_of(&call->base.interrupt, thread);
    size_t length = call->count;
    if (call->options.lengths) {
        int64_t given;
        memcpy(&given, csm_row_data(c, &call->lengths, row), sizeof given);
        if (given < 0 || (uint64_t)given > length) return CSM_BAD_OPTION;
        length = (size_t)given;
    }
    memset(s->table, -1, s->size * sizeof *s->table);
    s->count = 0;
    for (size_t i = 0; i < length; i++) {
        int64_t token;
        memcpy(&token, tokens + (ptrdiff_t)i * call->tokens.axis_stride, sizeof token);
        if (csm_poll_at(&poll, i)) return CSM_INTERRUPTED;
        if (token < 0 || (uint64_t)token >= c->shape.n) continue; /* padding */
        const size_t at = place_of(s, token);
        if (s->table[at] == EMPTY) {
            PREFETCH(from.data + (ptrdiff_t)token * from.axis);
            s->table[at] = (uint32_t)s->count;
            s->classes[s->count] = token;
            s->counts[s->count++] = 0;
        }
        s->counts[s->table[at]] += 1;
    }
    return CSM_OK;
}

/* Without a branch, which signs would mislead: a quotient by 1 and a product with 1 are exact.  Compilers make a branch
 * of conditional expressions here. */
static void penalize_values(double *values, size_t k, const double *counts, double repetition, double presence,
                            double frequency) {
    const double by[] = {1, repetition}, times[] = {repetition, 1};
    for (size_t i = 0; i < k; i++) {
        const int is_positive = values[i] > 0;
        values[i] = values[i] / by[is_positive] * times[is_positive] - presence - frequency * counts[i];
    }
}

#define LOOPS(REAL)                                                               \
    static void to_double_##REAL(const REAL *x, size_t k, double *to) {           \
        for (size_t i = 0; i < k; i++) to[i] = (double)x[i];                      \
    }                                                                             \
    static void from_double_##REAL(REAL *to, size_t k, const double *x) {         \
        for (size_t i = 0; i < k; i++) to[i] = (REAL)x[i];                        \
    }                                                                             \
    static void add_##REAL(REAL *x, size_t k, const char *bias, ptrdiff_t step) { \
        for (size_t i = 0; i < k; i++) {                                          \
            double more;                                                          \
            memcpy(&more, bias + (ptrdiff_t)i * step, sizeof more);               \
            x[i] = (REAL)((double)x[i] + more);                                   \
        }                                                                         \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS
#define BY_TYPE(c, function, x, ...)                                        \
    (csm_is_single(c) ? function##_float((float *)(void *)(x), __VA_ARGS__) \
                      : function##_double((double *)(void *)(x), __VA_ARGS__))

static void copy_number(char *to, const char *from, size_t size) {
    if (size == 2) memcpy(to, from, 2);
    else if (size == 4) memcpy(to, from, 4);
    else memcpy(to, from, 8);
}
static double bias_at(const penalize_call *call, size_t row, int64_t class) {
    double value;
    memcpy(&value, csm_row_data(&call->base, &call->bias, row) + (ptrdiff_t)class * call->bias.axis_stride,
           sizeof value);
    return value;
}

/* Copies a row, with the bias of all classes if there is one. */
static csm_status copy_row(penalize_call *call, size_t row, int thread) {
    const csm_call *c = &call->base;
    const csm_strided from = csm_row_of(c, &call->x, row);
    char *to = (char *)call->y.data + csm_offset(&c->shape, call->y.strides, row);
    const int has_bias = call->options.bias != NULL;
    if (call->in_place && !has_bias) return CSM_OK;
    char *stored = buffer(call, thread, STORED, CSM_BLOCK * sizeof(double));
    char *wide = buffer(call, thread, BLOCK, CSM_BLOCK * sizeof(double));
    if (!stored || !wide) return CSM_NO_MEMORY;
    for (size_t begin = 0; begin < c->shape.n; begin += CSM_BLOCK) {
        const size_t k = csm_block_length(c->shape.n, begin);
        const csm_strided x = {from.data + (ptrdiff_t)begin * from.axis, 0, from.axis};
        char *y = to + (ptrdiff_t)begin * call->y.axis_stride;
        const char *block = call->x_is_direct ? x.data : stored;
        if (!call->x_is_direct) csm_gather(stored, 0, x, 1, k, c->itemsize, NULL, NULL);
        if (has_bias) {
            c->table->widen[c->dtype](block, wide, k);
            BY_TYPE(c, add, wide, k, csm_row_data(c, &call->bias, row) + (ptrdiff_t)begin * call->bias.axis_stride,
                    call->bias.axis_stride);
            c->table->narrow[c->dtype](wide, stored, k);
            block = stored;
        }
        if (call->y_is_direct) memcpy(y, block, k * c->itemsize);
        else csm_scatter(y, 0, call->y.axis_stride, block, 0, 1, k, c->itemsize);
        if (csm_stops(&call->base.interrupt, thread, k)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* The biases of single classes: added to the values of those that have been seen, and written for all others. */
static csm_status add_biases(penalize_call *call, size_t row, const seen *s, double *values, int thread) {
    const csm_call *c = &call->base;
    const csm_penalize_options *o = &call->options;
    const csm_poll poll = csm_poll_of(&call->base.interrupt, thread);
    const csm_strided from = csm_row_of(c, &call->x, row);
    char *to = (char *)call->y.data + csm_offset(&c->shape, call->y.strides, row);
    for (size_t i = 0; i < o->biases; i++) {
        const int64_t class = o->bias_classes[i];
        const size_t at = place_of(s, class);
        if (csm_poll_at(&poll, i)) return CSM_INTERRUPTED;
        if (s->table[at] != EMPTY) {
            values[s->table[at]] += o->bias_values[i];
        } else {
            uint64_t x, y;
            copy_number((char *)&x, from.data + (ptrdiff_t)class * from.axis, c->itemsize);
            csm_put(c, &y, csm_element(c, (const char *)&x, 0) + o->bias_values[i]);
            copy_number(to + (ptrdiff_t)class * call->y.axis_stride, (const char *)&y, c->itemsize);
        }
    }
    return CSM_OK;
}

static csm_status penalize_row(penalize_call *call, size_t row, int thread) {
    const csm_call *c = &call->base;
    const csm_penalize_options *o = &call->options;
    const size_t most = call->count < c->shape.n ? call->count : c->shape.n;
    const double repetition = parameter(call, o->repetition, &call->repetition, row, 1);
    const double presence = parameter(call, o->presence, &call->presence, row, 0);
    const double frequency = parameter(call, o->frequency, &call->frequency, row, 0);
    const csm_strided from = csm_row_of(c, &call->x, row);
    char *to = (char *)call->y.data + csm_offset(&c->shape, call->y.strides, row);
    size_t wanted = 2 * most > 2 * CSM_BLOCK ? 2 * most : 2 * CSM_BLOCK; /* copy_row needs a block */
    seen s = {.size = 4};
    while (s.size < 4 * most) s.size *= 2;
    s.table = (uint32_t *)(void *)buffer(call, thread, TABLE, s.size * sizeof *s.table);
    s.classes = (int64_t *)(void *)buffer(call, thread, CLASSES, (most + 1) * sizeof *s.classes);
    s.counts = (double *)(void *)buffer(call, thread, COUNTS, (most + 1) * sizeof *s.counts);
    double *values = (double *)(void *)buffer(call, thread, VALUES, (most + 1) * sizeof *values);
    char *stored = buffer(call, thread, STORED, wanted * sizeof(double));
    char *wide = buffer(call, thread, WIDE, (most + 1) * sizeof(double));
    if (!s.table || !s.classes || !s.counts || !values || !stored || !wide || most >= EMPTY) return CSM_NO_MEMORY;
    if (!(repetition > 0 && repetition < INFINITY) || !(presence - presence == 0) || !(frequency - frequency == 0))
        return CSM_BAD_OPTION;
    csm_status status = count_tokens(call, row, thread, &s);
    if (status != CSM_OK) return status;
    const size_t k = s.count;
    for (size_t i = 0; i < k; i++)
        copy_number(stored + i * c->itemsize, from.data + (ptrdiff_t)s.classes[i] * from.axis, c->itemsize);
    c->table->widen[c->dtype](stored, wide, k);
    BY_TYPE(c, to_double, wide, k, values);
    penalize_values(values, k, s.counts, repetition, presence, frequency);
    for (size_t i = 0; o->bias && i < k; i++) values[i] += bias_at(call, row, s.classes[i]);
    status = copy_row(call, row, thread);
    if (status == CSM_OK) status = add_biases(call, row, &s, values, thread);
    if (status != CSM_OK) return status;
    BY_TYPE(c, from_double, wide, k, values);
    c->table->narrow[c->dtype](wide, stored, k);
    for (size_t i = 0; i < k; i++)
        copy_number(to + (ptrdiff_t)s.classes[i] * call->y.axis_stride, stored + i * c->itemsize, c->itemsize);
    return CSM_OK;
}
static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    penalize_call *call = context;
    for (size_t row = begin; row < end; row++) {
        csm_status status = penalize_row(call, row, thread);
        if (status != CSM_OK) return status;
        if (csm_stops(&call->base.interrupt, thread, call->count + call->options.biases)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

static int is_same_view(const csm_shape *shape, const csm_view *x, const csm_view *y) {
    int same = x->data == y->data && (x->axis_stride == y->axis_stride || shape->n == 1);
    for (size_t i = 0; i < shape->ndim; i++) same = same && x->strides[i] == y->strides[i];
    return same;
}
static csm_status check_biases(const csm_penalize_options *o, size_t n) {
    for (size_t i = 0; i < o->biases; i++)
        if (o->bias_classes[i] < 0 || (uint64_t)o->bias_classes[i] >= n) return CSM_BAD_OPTION;
    return CSM_OK;
}

static csm_status run_penalize(penalize_call *call, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                               const csm_view *x, const csm_view *y, size_t count, const csm_view *tokens,
                               csm_fp_environment *caller) {
    csm_call *c = &call->base;
    const csm_penalize_options *o = &call->options;
    csm_set_dtype(c, dtype, table);
    const csm_view *given[] = {x, y, tokens, o->lengths, o->repetition, o->presence, o->frequency, o->bias};
    csm_view *to[] = {&call->x,          &call->y,        &call->tokens,    &call->lengths,
                      &call->repetition, &call->presence, &call->frequency, &call->bias};
    for (int i = 0; i < 8; i++) to[i] = given[i] ? to[i] : NULL;
    csm_status status = csm_lay_out(c, shape, given, to, 8, &call->rows);
    if (status != CSM_OK || call->rows == 0 || shape->n == 0) return status;
    status = check_biases(o, shape->n);
    if (status != CSM_OK) return status;
    call->count = tokens ? count : 0;
    call->in_place = is_same_view(&c->shape, &call->x, &call->y);
    call->x_is_direct = csm_is_contiguous(&c->shape, &call->x, c->itemsize, 1);
    call->y_is_direct = csm_is_contiguous(&c->shape, &call->y, c->itemsize, 1);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    const size_t each = 8 * (call->count + o->biases) + (call->in_place && !o->bias ? 0 : shape->n);
    c->threads = csm_threads_for((double)call->rows * (double)each, call->rows, o->threads < 1 ? 1 : o->threads);
    csm_buffer single[BUFFERS];
    status = csm_scratch_begin(&call->scratch, c->threads, BUFFERS, single);
    if (status != CSM_OK) return status;
    status =
        csm_parallel(call->rows, CSM_PIECE_ELEMENTS / 4 / (each + 1) + 1, c->threads, rows_body, call, &c->interrupt);
    csm_scratch_end(&call->scratch);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_penalize(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                            const csm_view *y, size_t count, const csm_view *tokens,
                            const csm_penalize_options *options) {
    csm_fp_environment saved = csm_fp_enter();
    penalize_call *call = csm_allocate(sizeof *call); /* its views are too large for a small stack */
    csm_status status = CSM_NO_MEMORY;
    if (call) {
        memset(call, 0, sizeof *call);
        call->options = csm_default_penalize_options();
        call->options = *(const csm_penalize_options *)csm_known_options(&call->options, sizeof call->options, options);
        status = run_penalize(call, dtype, table, shape, x, y, count, tokens, &saved);
    }
    csm_release(call);
    csm_fp_leave(saved);
    return status;
}

#define PENALIZE(suffix, storage, compute)                                                                       \
    csm_status csm_penalize_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *y, size_t count, \
                                     const csm_view *tokens, const csm_penalize_options *o) {                    \
        return csm_run_penalize(CSM_DTYPE_##suffix, csm_current_table(), shape, x, y, count, tokens, o);         \
    }
CSM_DTYPES(PENALIZE)
