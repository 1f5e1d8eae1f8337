/* The driver of top-k and top-k softmax: distributes rows over threads or, if they are few or long, pieces of rows.
 *
 * A piece yields its k largest elements, and the largest of those are the row's: selection is exact, so nothing depends
 * on how a row is cut.  Pieces also bound the scratch, which grows with the length of a row.
 *
 * Integers of 1 and 2 bytes are widened to int32_t in scratch first.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/options.h"
#include "../core/selection.h"
#include "../kernel/softmax/combine.h"

enum {
    PIECE_ELEMENTS = 1 << 20,     /* length of the longest piece */
    MIN_PIECE_ELEMENTS = 1 << 15, /* and of the shortest */
    PIECE_PER_K = 32              /* minimal length for each of the k elements that a piece yields */
};

/* An element type and its kernel. */
typedef void (*select_kernel)(const void *x, size_t n, size_t k, int smallest, int sorted, csm_select *s);
typedef struct element_type {
    csm_dtype dtype; /* f64 for integers, whose numbers are as wide */
    int is_integer;
    csm_label_type integer;
} element_type;

typedef struct topk_call {
    csm_call base;
    element_type type;
    select_kernel select;
    size_t searched_size; /* bytes of an element that the kernel reads: itemsize, or 4 for shorter integers */
    csm_view x, values, indices, temperatures;
    const csm_topk_options *options;
    size_t k, rows;
    size_t piece, pieces, merged; /* length and number of the pieces of a row; number of their candidates */
    size_t row;                   /* the row whose pieces are being searched */
    size_t select_size, copy_size, values_size, block_size; /* parts of a thread's scratch */
    csm_scratch scratch;
    char *candidates; /* of the pieces: values, then indices */
} topk_call;

static char *scratch_of(topk_call *call, int thread) {
    return csm_scratch_get(&call->scratch, thread, 0,
                           call->select_size + call->copy_size + call->values_size + call->block_size);
}

static csm_strided x_at(const topk_call *call, size_t row, size_t begin) {
    csm_strided x = csm_row_of(&call->base, &call->x, row);
    x.data += (ptrdiff_t)begin * x.axis;
    return x;
}

#define WIDEN(T)                                                                    \
    do {                                                                            \
        if (x.axis == (ptrdiff_t)sizeof(T) && (uintptr_t)x.data % sizeof(T) == 0) { \
            const T *from = (const T *)(const void *)x.data;                        \
            for (size_t i = 0; i < n; i++) to[i] = from[i];                         \
            break;                                                                  \
        }                                                                           \
        for (size_t i = 0; i < n; i++) {                                            \
            T one;                                                                  \
            memcpy(&one, x.data + (ptrdiff_t)i * x.axis, sizeof one);               \
            to[i] = one;                                                            \
        }                                                                           \
    } while (0)
/* Widens integers that are shorter than 4 bytes. */
static void widen_integers(csm_label_type type, csm_strided x, size_t n, int32_t *restrict to) {
    if (type == CSM_INT8) WIDEN(int8_t);
    else if (type == CSM_UINT8) WIDEN(uint8_t);
    else if (type == CSM_INT16) WIDEN(int16_t);
    else WIDEN(uint16_t);
}
#undef WIDEN

/* Returns the elements as aligned contiguous storage of the kernel's type; NULL if the call has been interrupted. */
static const char *fetch(topk_call *call, int thread, csm_strided x, size_t n, char *copy) {
    const size_t size = call->base.itemsize;
    if (size != call->searched_size) {
        for (size_t i = 0; i < n; i += CSM_POLL_ELEMENTS) {
            const size_t k = n - i < CSM_POLL_ELEMENTS ? n - i : CSM_POLL_ELEMENTS;
            widen_integers(call->type.integer, x, k, (int32_t *)(void *)copy + i);
            x.data += (ptrdiff_t)k * x.axis;
            if (n > CSM_POLL_ELEMENTS && csm_stops(&call->base.interrupt, thread, k)) return NULL;
        }
        return copy;
    }
    if ((uintptr_t)x.data % size == 0 && (x.axis == (ptrdiff_t)size || n == 1)) return x.data;
    return csm_gather_row(&call->base, thread, copy, x, n, size, NULL, NULL) ? copy : NULL;
}

/* Copies the elements of x at the indices to `to`.  Returns 0 if the call has been interrupted. */
static int pick(const topk_call *call, csm_strided x, const int64_t *index, size_t k, char *to, const csm_poll *poll) {
    const size_t size = call->base.itemsize;
    for (size_t i = 0; i < k; i++) {
        const char *at = x.data + (ptrdiff_t)index[i] * x.axis;
        if (size == 4) memcpy(to + 4 * i, at, 4);
        else if (size == 8) memcpy(to + 8 * i, at, 8);
        else if (size == 2) memcpy(to + 2 * i, at, 2);
        else to[i] = *at;
        if (csm_poll_at(poll, i)) return 0;
    }
    return 1;
}

/* Sums e' of a row as softmax does, with the block maxima that the selection has found.  Returns 0 if the call has
 * been interrupted. */
static int sum_row(const topk_call *call, const csm_temperature *t, const char *row, const csm_select *s,
                   csm_block *blocks, csm_row *sums) {
    const csm_call *c = &call->base;
    const csm_kernels *softmax = &c->table->kernels[CSM_OP_softmax][c->dtype];
    const size_t n = c->shape.n, count = csm_block_count(n);
    for (size_t b = 0; b < count; b++) {
        const size_t begin = b * CSM_BLOCK, k = csm_block_length(n, begin);
        const char *x = row + begin * c->itemsize;
        if (b > 0 && csm_poll_stops(&s->poll, CSM_BLOCK)) return 0;
        if (s->maxima == 0) {
            softmax->pass1(x, NULL, NULL, k, t, &blocks[b]);
            continue;
        }
        const size_t first = begin / CSM_SELECT_GROUP, rest = s->maxima - first;
        blocks[b].max = c->table->max[c->wide_dtype]((const char *)s->level + first * c->wide_size,
                                                     b + 1 < count ? CSM_BLOCK / CSM_SELECT_GROUP : rest);
        c->table->softmax_sum[c->dtype](x, k, t, &blocks[b]);
    }
    softmax->combine(blocks, count, t, sums);
    return 1;
}

/* The options of a call of softmax within this one. */
static csm_options inner_options(double temperature, csm_poll *poll, int threads) {
    csm_options o = csm_default_options();
    o.temperature = temperature;
    o.threads = threads;
    o.interrupt = csm_stops_inner;
    o.interrupt_context = poll;
    return o;
}

/* Replaces the values by their probabilities in the softmax of the whole row: from the row's sums or, for rows that
 * softmax treats as exceptional, from the softmax of the row itself. */
static csm_status full_softmax(const topk_call *call, const csm_scales *scales, csm_strided x, const char *row,
                               csm_select *s, char *values, csm_block *blocks, int threads) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    csm_row sums;
    if (row && !sum_row(call, &scales->ordinary, row, s, blocks, &sums)) return CSM_INTERRUPTED;
    if (row && csm_fits_range(scales, sums.max)) {
        const csm_block top = {.max = sums.max, .n = sums.n};
        for (size_t i = 0; i < call->k; i += CSM_BLOCK) {
            char *part = values + i * c->itemsize;
            if (i > 0 && csm_poll_stops(&s->poll, CSM_BLOCK)) return CSM_INTERRUPTED;
            c->table->kernels[CSM_OP_softmax][c->dtype].pass2(part, NULL, part, csm_block_length(call->k, i),
                                                              &scales->ordinary, &sums, &top);
        }
        return CSM_OK;
    }
    char *all = csm_allocate(n * c->itemsize);
    if (!all) return CSM_NO_MEMORY;
    const csm_shape shape = {.n = n};
    csm_view from = {(void *)(uintptr_t)x.data, x.axis, {0}}, to = {all, (ptrdiff_t)c->itemsize, {0}};
    csm_options o = inner_options(scales->temperature, &s->poll, threads);
    csm_status status = csm_run_softmax(CSM_OP_softmax, c->dtype, c->table, &shape, &from, NULL, &to, &o);
    csm_strided y = {all, 0, (ptrdiff_t)c->itemsize};
    if (status == CSM_OK && !pick(call, y, s->index, call->k, values, &s->poll)) status = CSM_INTERRUPTED;
    csm_release(all);
    return status;
}

/* Writes the selected elements in order: values (NaN canonical) or probabilities, and indices.  whole: the row as
 * contiguous storage, or NULL if it was searched in pieces. */
static csm_status write_row(topk_call *call, const csm_scales *scales, size_t row, const char *whole, csm_select *s,
                            char *memory, int threads) {
    csm_call *c = &call->base;
    const size_t size = c->itemsize;
    char *values = memory + call->select_size + call->copy_size, *wide = values + csm_rounded(call->k * size);
    csm_strided x = x_at(call, row, 0);
    csm_status status = CSM_OK;
    if (s->is_stopped || !pick(call, x, s->index, call->k, values, &s->poll)) return CSM_INTERRUPTED;
    if (call->options->normalize == CSM_TOPK_FULL) {
        csm_block *blocks = (csm_block *)(void *)(memory + call->select_size + call->copy_size + call->values_size);
        status = full_softmax(call, scales, x, whole, s, values, blocks, threads);
    } else if (call->options->normalize == CSM_TOPK_SOFTMAX) {
        const csm_shape shape = {.n = call->k};
        csm_view view = {values, (ptrdiff_t)size, {0}};
        csm_options o = inner_options(scales->temperature, &s->poll, 1);
        status = csm_run_softmax(CSM_OP_softmax, c->dtype, c->table, &shape, &view, NULL, &view, &o);
    } else if (!call->type.is_integer) {
        for (size_t i = 0; i < call->k; i += CSM_POLL_STEP) {
            const size_t k = call->k - i < CSM_POLL_STEP ? call->k - i : CSM_POLL_STEP;
            c->table->widen[c->dtype](values + i * size, wide, k);
            c->table->narrow[c->dtype](wide, values + i * size, k);
            if (i > 0 && csm_poll_stops(&s->poll, k)) return CSM_INTERRUPTED;
        }
    }
    if (status != CSM_OK) return status;
    char *to = (char *)call->values.data + csm_offset(&c->shape, call->values.strides, row);
    char *to_indices = (char *)call->indices.data + csm_offset(&c->shape, call->indices.strides, row);
    for (size_t i = 0; size == 1 && i < call->k; i++) {
        to[(ptrdiff_t)i * call->values.axis_stride] = values[i];
        if (csm_poll_at(&s->poll, i)) return CSM_INTERRUPTED;
    }
    if (size > 1 && !csm_scatter_row(c, s->poll.thread, to, call->values.axis_stride, values, call->k, size))
        return CSM_INTERRUPTED;
    const int is_done = csm_scatter_row(c, s->poll.thread, to_indices, call->indices.axis_stride,
                                        (const char *)s->index, call->k, sizeof *s->index);
    return is_done ? CSM_OK : CSM_INTERRUPTED;
}

static double temperature_of(const topk_call *call, size_t row) {
    double t;
    memcpy(&t, csm_row_data(&call->base, &call->temperatures, row), sizeof t);
    return t;
}
/* The scales of a row; *own holds those of the row before, if rows have temperatures of their own. */
static const csm_scales *scales_of(const topk_call *call, size_t row, csm_scales *own) {
    if (!call->options->temperatures) return &call->base.scales;
    if (temperature_of(call, row) != own->temperature)
        csm_set_scales(own, temperature_of(call, row), csm_is_single(&call->base));
    return own;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    topk_call *call = context;
    csm_scales own = {.temperature = CSM_NAN}; /* not yet set */
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    char *memory = scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    for (size_t row = begin; row < end; row++) {
        csm_select s = csm_select_at(memory, n, call->k, c->wide_size, csm_poll_of(&call->base.interrupt, thread));
        const char *x = fetch(call, thread, x_at(call, row, 0), n, memory + call->select_size);
        if (!x) return CSM_INTERRUPTED;
        call->select(x, n, call->k, call->options->smallest, !call->options->unsorted, &s);
        csm_status status = write_row(call, scales_of(call, row, &own), row, x, &s, memory, 1);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static int64_t *candidate_indices(const topk_call *call) {
    return (int64_t *)(void *)(call->candidates + csm_rounded(call->merged * call->searched_size));
}

/* Writes the k largest elements of each piece of a row to call->candidates. */
static csm_status pieces_body(void *context, size_t begin, size_t end, int thread) {
    topk_call *call = context;
    const csm_call *c = &call->base;
    char *memory = scratch_of(call, thread);
    if (!memory) return CSM_NO_MEMORY;
    int64_t *indices = candidate_indices(call);
    for (size_t p = begin; p < end; p++) {
        const size_t first = p * call->piece, n = c->shape.n - first < call->piece ? c->shape.n - first : call->piece;
        const size_t k = n < call->k ? n : call->k, at = p * call->k;
        csm_select s = csm_select_at(memory, n, k, c->wide_size, csm_poll_of(&call->base.interrupt, thread));
        csm_strided from = x_at(call, call->row, first);
        const char *x = fetch(call, thread, from, n, memory + call->select_size);
        if (!x) return CSM_INTERRUPTED;
        call->select(x, n, k, call->options->smallest, 1, &s);
        if (s.is_stopped) return CSM_INTERRUPTED;
        char *to = call->candidates + at * call->searched_size;
        for (size_t i = 0; i < k; i++)
            memcpy(to + i * call->searched_size, x + (size_t)s.index[i] * call->searched_size, call->searched_size);
        for (size_t i = 0; i < k; i++) indices[at + i] = s.index[i] + (int64_t)first;
    }
    return CSM_OK;
}

static csm_status merge_row(topk_call *call) {
    const csm_call *c = &call->base;
    const int64_t *indices = candidate_indices(call);
    csm_scales own = {.temperature = CSM_NAN};
    char *memory = scratch_of(call, 0);
    if (!memory) return CSM_NO_MEMORY;
    csm_select s = csm_select_at(memory, call->merged, call->k, c->wide_size, csm_poll_of(&call->base.interrupt, 0));
    call->select(call->candidates, call->merged, call->k, call->options->smallest, 1, &s);
    for (size_t i = 0; i < call->k && !s.is_stopped; i++) s.index[i] = indices[s.index[i]];
    return write_row(call, scales_of(call, call->row, &own), call->row, NULL, &s, memory, c->threads);
}

/* Cuts few or very long rows into pieces, unless k is so large that most elements would be candidates. */
static void choose_pieces(topk_call *call, int threads) {
    const size_t n = call->base.shape.n;
    size_t longest = PIECE_ELEMENTS;
    call->pieces = 1;
    if (call->rows < (size_t)threads && n / (size_t)threads < longest) longest = n / (size_t)threads + 1;
    if (longest < MIN_PIECE_ELEMENTS) longest = MIN_PIECE_ELEMENTS;
    if (call->k > longest / PIECE_PER_K) longest = call->k > n / PIECE_PER_K ? n : PIECE_PER_K * call->k;
    call->piece = n;
    if (n <= longest || call->options->normalize == CSM_TOPK_FULL) return;
    call->pieces = (n + longest - 1) / longest;
    call->piece = (n + call->pieces - 1) / call->pieces;
    call->pieces = (n + call->piece - 1) / call->piece;
    const size_t last = n - (call->pieces - 1) * call->piece;
    call->merged = (call->pieces - 1) * call->k + (last < call->k ? last : call->k);
}

static csm_status run_pieces(topk_call *call) {
    csm_call *c = &call->base;
    csm_status status = CSM_OK;
    call->candidates = csm_allocate(csm_rounded(call->merged * call->searched_size) + call->merged * sizeof(int64_t));
    if (!call->candidates) return CSM_NO_MEMORY;
    c->interrupt.last = c->interrupt.check ? csm_now() : 0; /* many short regions: the clock runs across them */
    for (call->row = 0; call->row < call->rows && status == CSM_OK; call->row++) {
        status = csm_parallel(call->pieces, 1, c->threads, pieces_body, call, &c->interrupt);
        if (status == CSM_OK) status = merge_row(call);
    }
    csm_release(call->candidates);
    return status;
}

/* Sets the type of a call, the sizes that depend on it, and its kernel. */
static void set_type(topk_call *call, element_type type, const csm_table *table) {
    static const size_t sizes[] = {1, 2, 4, 8, 1, 2, 4, 8}; /* in the order of csm_label_type */
    csm_call *c = &call->base;
    call->type = type;
    csm_set_dtype(c, type.dtype, table);
    if (type.is_integer) c->itemsize = sizes[type.integer];
    call->searched_size = c->itemsize < 4 && type.is_integer ? 4 : c->itemsize;
    const int kernel = type.integer == CSM_UINT32   ? 1
                       : type.integer == CSM_INT64  ? 2
                       : type.integer == CSM_UINT64 ? 3
                                                    : 0;
    call->select = type.is_integer ? table->select_integer[kernel] : table->select[type.dtype];
}

static csm_status run_topk(element_type type, const csm_table *table, const csm_shape *shape, const csm_view *x,
                           size_t k, const csm_view *values, const csm_view *indices, const csm_topk_options *o,
                           csm_fp_environment *caller) {
    topk_call call;
    csm_call *c = &call.base;
    memset(&call, 0, sizeof call);
    if (k > shape->n || (unsigned)o->normalize > CSM_TOPK_FULL || (o->normalize && o->smallest)) return CSM_BAD_OPTION;
    if (!o->temperatures && !(o->temperature >= 0)) return CSM_BAD_TEMPERATURE;
    if (type.is_integer && (o->normalize || (unsigned)type.integer > CSM_UINT64)) return CSM_BAD_OPTION;
    set_type(&call, type, table);
    csm_status status =
        csm_lay_out(c, shape, (const csm_view *[]){x, values, indices, o->temperatures},
                    (csm_view *[]){&call.x, &call.values, &call.indices, o->temperatures ? &call.temperatures : NULL},
                    4, &call.rows);
    if (status != CSM_OK) return status;
    for (size_t i = 0; o->temperatures && i < call.rows; i++)
        if (!(temperature_of(&call, i) >= 0)) return CSM_BAD_TEMPERATURE;
    if (call.rows == 0 || k == 0) return status;
    csm_set_scales(&c->scales, o->temperatures ? 1 : o->temperature, csm_is_single(c));
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    call.options = o;
    call.k = k;
    const size_t n = shape->n;
    const int threads = o->threads < 1 ? 1 : o->threads;
    choose_pieces(&call, threads);
    call.select_size = csm_select_size(call.piece, k < call.piece ? k : call.piece, c->wide_size);
    if (call.pieces > 1) {
        size_t merge = csm_select_size(call.merged, k, c->wide_size);
        if (merge > call.select_size) call.select_size = merge;
    }
    const int is_direct = call.searched_size == c->itemsize && csm_is_contiguous(&c->shape, &call.x, c->itemsize, 1);
    call.copy_size = is_direct ? 0 : csm_rounded(call.piece * call.searched_size);
    call.values_size = csm_rounded(k * c->itemsize) + csm_rounded(k * c->wide_size);
    call.block_size = o->normalize == CSM_TOPK_FULL ? csm_rounded((n / CSM_BLOCK + 1) * sizeof(csm_block)) : 0;
    const double elements = call.pieces > 1 ? (double)n : (double)call.rows * (double)n;
    c->threads = csm_threads_for(elements, call.pieces > 1 ? call.pieces : call.rows, threads);

    csm_buffer single;
    status = csm_scratch_begin(&call.scratch, c->threads, 1, &single);
    if (status != CSM_OK) return status;
    if (call.pieces > 1) status = run_pieces(&call);
    else
        status = csm_parallel(call.rows, CSM_PIECE_ELEMENTS / (n + 1) + 1, c->threads, rows_body, &call, &c->interrupt);
    csm_scratch_end(&call.scratch);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

static csm_status run_type(element_type type, const csm_table *table, const csm_shape *shape, const csm_view *x,
                           size_t k, const csm_view *values, const csm_view *indices, const csm_topk_options *options) {
    csm_topk_options known = csm_default_topk_options();
    options = csm_known_options(&known, sizeof known, options);
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run_topk(type, table, shape, x, k, values, indices, options, &saved);
    csm_fp_leave(saved);
    return status;
}

csm_status csm_run_topk(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x, size_t k,
                        const csm_view *values, const csm_view *indices, const csm_topk_options *options) {
    return run_type((element_type){.dtype = dtype}, table, shape, x, k, values, indices, options);
}
csm_status csm_run_topk_integer(csm_label_type integer, const csm_table *table, const csm_shape *shape,
                                const csm_view *x, size_t k, const csm_view *values, const csm_view *indices,
                                const csm_topk_options *options) {
    const element_type type = {.dtype = CSM_DTYPE_f64, .is_integer = 1, .integer = integer};
    return run_type(type, table, shape, x, k, values, indices, options);
}
csm_status csm_topk_integer(csm_label_type type, const csm_shape *shape, const csm_view *x, size_t k,
                            const csm_view *values, const csm_view *indices, const csm_topk_options *options) {
    return csm_run_topk_integer(type, csm_current_table(), shape, x, k, values, indices, options);
}

#define TOPK(suffix, storage, compute)                                                                        \
    csm_status csm_topk_##suffix(const csm_shape *shape, const csm_view *x, size_t k, const csm_view *values, \
                                 const csm_view *indices, const csm_topk_options *o) {                        \
        return csm_run_topk(CSM_DTYPE_##suffix, csm_current_table(), shape, x, k, values, indices, o);        \
    }
CSM_DTYPES(TOPK)
