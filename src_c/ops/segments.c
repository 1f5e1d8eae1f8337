/* The driver of the softmax family over segments.  A unit of work is a chunk of neighbouring segments of some
 * neighbouring rows; there is a path for each kind of layout, and all give the bits of the dense call:
 *
 *   lines     contiguous along the axis, elements in order: the kernel of ragged rows, in place
 *   tiles     rows side by side (an axis that is not the last): a tile for each segment
 *   gathered  any other layout, or a mask: some segments are copied to scratch, and are lines there
 *   split     segments of at least SPLIT_ELEMENTS, at the end: each is split at its blocks over threads
 *
 * Elements that are not in order are copied to scratch before, and their results back, whole rows at a time.
 *
 * Segments that are longer than CSM_BLOCK, empty or not ordinary are computed by softmax_row.c, as such rows are.
 */
#include "segments.h"
#include "softmax_row.h"

#include "../core/options.h"
#include "../isa/dispatch.h"

enum {
    SPLIT_ELEMENTS = 1 << 20, /* as in softmax.c */
    GATHERED_ROWS = 8,
    TILED_ROWS = 128,
    MIN_TILED_ROWS = 8,
    CACHED_BYTES = 8 << 20, /* of the rows that are copied at a time, at least one index of the first axis */
    MOVED_BYTES = 64 << 20, /* the same of rows side by side, whose number should stay */
    NARROW_ROWS = 8 /* of float: half a vector of AVX-512 */
};

typedef struct segments_call {
    csm_softmax_call softmax;
    csm_segments segments; /* in order */
    csm_segment_units units;
    const csm_kernels *tiles; /* those for rows side by side */
    int is_direct, is_tiled;
    size_t longest, split; /* length of the longest segment, and of the shortest one that is split */
    csm_scratch scratch;
} segments_call;

/* A thread's copy of the call, whose n is the length of the segment at hand, and whose temperature is its own. */
typedef struct worker {
    segments_call *call;
    csm_softmax_call softmax;
    int thread;
} worker;

/* Buffers of a thread: that of rows and of tiles; copies of lines. */
enum { ROW_BUFFER, LINES_BUFFER, BUFFERS };

static char *row_scratch(worker *w, size_t n) {
    const size_t tile = w->call->is_tiled ? CSM_TILE_BYTES : 0;
    return csm_scratch_get(&w->call->scratch, w->thread, ROW_BUFFER, csm_row_scratch_size(n) + tile);
}

/* Segments of one row whose elements lie one behind the other. */
typedef struct line {
    size_t row;
    const char *input, *y, *mask; /* of the first of them; mask: one byte for each element, or NULL */
    char *result;
    ptrdiff_t result_step; /* of a reduction */
} line;

static double temperature_of(const segments_call *call, size_t row, size_t segment) {
    const csm_view *v = &call->softmax.temperatures;
    double t;
    memcpy(&t, csm_row_data(&call->softmax.base, v, row) + (ptrdiff_t)segment * v->axis_stride, sizeof t);
    return t;
}

/* Any segment: by softmax_row.c. */
static csm_status run_one(worker *w, const line *l, size_t first, size_t segment) {
    const csm_segments *segments = &w->call->segments;
    const size_t n = csm_segment_length(segments, segment), size = w->softmax.base.itemsize;
    const size_t offset = (size_t)(segments->indptr[segment] - segments->indptr[first]);
    const ptrdiff_t bytes = (ptrdiff_t)(offset * size);
    csm_softmax_call *c = &w->softmax;
    if (n >= w->call->split || (n == 0 && c->keeps_axis)) return CSM_OK;
    char *memory = row_scratch(w, n);
    if (!memory) return CSM_NO_MEMORY;
    const csm_row_scratch s = csm_row_scratch_at(memory, n);
    csm_row_place place = {
        .input = {l->input + bytes, 0, (ptrdiff_t)size}, .result_axis = (ptrdiff_t)size, .is_gathered = 1};
    if (c->is_gradient) place.y = (csm_strided){l->y + bytes, 0, (ptrdiff_t)size};
    if (l->mask) place.where = (csm_strided){l->mask + offset, 0, 1};
    place.result = l->result + (c->keeps_axis ? bytes : (ptrdiff_t)(segment - first) * l->result_step);
    c->base.shape.n = n;
    csm_run_row(c, &place, &s);
    return CSM_OK;
}

/* Gradients have no kernel for ragged rows: equal neighbours are one job. */
static csm_status run_gradients(worker *w, const line *l, size_t first, size_t begin, size_t end) {
    const csm_segments *s = &w->call->segments;
    const csm_softmax_call *c = &w->softmax;
    while (begin < end) {
        const size_t n = csm_segment_length(s, begin);
        size_t stop = begin + 1;
        while (stop < end && csm_segment_length(s, stop) == n) stop++;
        if (n == 0) begin = stop;
        if (n == 0) continue;
        size_t done = 0;
        if (n <= CSM_BLOCK && csm_is_for_kernels(c)) {
            const ptrdiff_t step = (ptrdiff_t)(n * c->base.itemsize);
            const size_t at = (size_t)(s->indptr[begin] - s->indptr[first]) * c->base.itemsize;
            const csm_rows_job job = {.input = l->input + at,
                                      .y = l->y + at,
                                      .result = l->result + at,
                                      .input_step = step,
                                      .y_step = step,
                                      .result_step = step,
                                      .rows = stop - begin,
                                      .n = n,
                                      .temperature = &c->base.scales.ordinary};
            done = c->kernels->rows(&job);
        }
        begin += done;
        if (begin == stop) continue;
        const csm_status status = run_one(w, l, first, begin++);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

/* Segments of one temperature. */
static csm_status run_even(worker *w, const line *l, size_t first, size_t begin, size_t end) {
    const csm_segments *s = &w->call->segments;
    const csm_softmax_call *c = &w->softmax;
    uint32_t left[CSM_RAGGED_ROWS];
    csm_status status = CSM_OK;
    if (c->is_gradient) return run_gradients(w, l, first, begin, end);
    while (begin < end && status == CSM_OK) {
        char *memory = row_scratch(w, 0); /* anew: a long row has the same buffer, which grows for it */
        if (!memory) return CSM_NO_MEMORY;
        const size_t bytes = (size_t)(s->indptr[begin] - s->indptr[first]) * c->base.itemsize;
        const csm_ragged_job job = {
            .input = l->input + bytes,
            .result = l->result + (c->keeps_axis ? (ptrdiff_t)bytes : (ptrdiff_t)(begin - first) * l->result_step),
            .result_step = l->result_step,
            .indptr = s->indptr + begin,
            .count = end - begin < CSM_RAGGED_ROWS ? end - begin : CSM_RAGGED_ROWS,
            .temperature = &c->base.scales.ordinary,
            .scratch = memory};
        const int is_for_kernel = csm_is_for_kernels(c);
        const size_t count = is_for_kernel ? c->kernels->ragged(&job, left) : job.count;
        for (size_t i = 0; i < count && status == CSM_OK; i++)
            status = run_one(w, l, first, begin + (is_for_kernel ? left[i] : i));
        begin += job.count;
    }
    return status;
}

static csm_status run_line(worker *w, const line *l, size_t begin, size_t end) {
    const size_t first = begin;
    csm_status status = CSM_OK;
    if (!w->softmax.has_temperatures) return run_even(w, l, first, begin, end);
    while (begin < end && status == CSM_OK) {
        const double t = temperature_of(w->call, l->row, begin);
        size_t stop = begin + 1;
        while (stop < end && temperature_of(w->call, l->row, stop) == t) stop++;
        csm_take_temperature(&w->softmax, t);
        status = run_even(w, l, first, begin, stop);
        begin = stop;
    }
    return status;
}

/* The first element of rows from `row` on. */
static csm_strided rows_of(const csm_call *c, const csm_view *v, size_t row) {
    return (csm_strided){csm_row_data(c, v, row), csm_last_stride(&c->shape, v), v->axis_stride};
}

/* Copies segments to scratch, computes them there, and copies their results back. */
static csm_status run_gathered(worker *w, size_t row, size_t rows, size_t begin, size_t end) {
    const csm_softmax_call *c = &w->call->softmax;
    const csm_call *base = &c->base;
    const csm_segments *s = &w->call->segments;
    const size_t at = (size_t)s->indptr[begin], k = (size_t)s->indptr[end] - at, size = base->itemsize;
    const size_t pitch = csm_pack_pitch(k, size), mask_pitch = csm_rounded(k + 1);
    const size_t result_pitch = c->keeps_axis ? 0 : csm_rounded((end - begin) * size);
    if (k == 0 && c->keeps_axis) return CSM_OK;
    char *input = csm_scratch_get(&w->call->scratch, w->thread, LINES_BUFFER,
                                  rows * ((1 + (size_t)c->is_gradient) * pitch + mask_pitch + result_pitch));
    if (!input) return CSM_NO_MEMORY;
    char *y = input + rows * pitch, *mask = y + (c->is_gradient ? rows * pitch : 0);
    char *result = c->keeps_axis ? input : mask + rows * mask_pitch;
    csm_gather_ordered(input, pitch, rows_of(base, &c->input, row), rows, s, at, k, size);
    if (c->is_gradient) csm_gather_ordered(y, pitch, rows_of(base, &c->y, row), rows, s, at, k, size);
    if (base->has_where) csm_gather_ordered(mask, mask_pitch, rows_of(base, &base->where, row), rows, s, at, k, 1);
    for (size_t r = 0; r < rows; r++) {
        const csm_strided m = {mask + r * mask_pitch, 0, 1};
        char *masked = (c->is_gradient ? y : input) + r * pitch;
        line l = {.row = row + r, .input = input + r * pitch, .result_step = (ptrdiff_t)size};
        l.result = result + r * (c->keeps_axis ? pitch : result_pitch);
        if (c->is_gradient) l.y = masked;
        if (base->has_where) {
            csm_fill_masked(masked, (ptrdiff_t)size, m, k, size, &base->absent);
            l.mask = m.data;
        }
        const csm_status status = run_line(w, &l, begin, end);
        if (status != CSM_OK) return status;
        for (size_t i = begin; i < end && base->has_where; i++) {
            const size_t n = csm_segment_length(s, i), from = (size_t)s->indptr[i] - at;
            if (n && csm_is_masked_nan(c, l.result + from * size))
                csm_fill_masked(l.result + from * size, (ptrdiff_t)size, (csm_strided){m.data + from, 0, 1}, n, size,
                                &c->masked);
        }
    }
    char *to = (char *)c->result.data + csm_offset(&base->shape, c->result.strides, row);
    const ptrdiff_t step = csm_last_stride(&base->shape, &c->result), axis = c->result.axis_stride;
    if (c->keeps_axis) csm_scatter(to + (ptrdiff_t)at * axis, step, axis, result, pitch, rows, k, size);
    else csm_scatter(to + (ptrdiff_t)begin * axis, step, axis, result, result_pitch, rows, end - begin, size);
    return CSM_OK;
}

static csm_status gather_all(worker *w, size_t row, size_t rows, size_t begin, size_t end) {
    const csm_segments *s = &w->call->segments;
    csm_status status = CSM_OK;
    while (begin < end && status == CSM_OK) {
        const size_t stop = csm_segment_gather_end(s, begin, end, rows);
        if (csm_segment_length(s, begin) < w->call->split) status = run_gathered(w, row, rows, begin, stop);
        begin = stop;
    }
    return status;
}

/* A segment of rows side by side, as tiles; what these leave is gathered. */
static csm_status run_tiles(worker *w, size_t row, size_t rows, size_t segment) {
    csm_softmax_call *c = &w->softmax;
    const csm_segments *s = &w->call->segments;
    const size_t n = csm_segment_length(s, segment);
    if (n >= w->call->split) return CSM_OK;
    if (n == 0 || n > CSM_BLOCK) return gather_all(w, row, rows, segment, segment + 1);
    c->base.shape.n = n;
    const size_t width = csm_tile_width(c);
    for (size_t r = 0; r < rows; r += width) {
        char *memory = row_scratch(w, 0); /* anew: rows that are gathered have the same buffer */
        if (!memory) return CSM_NO_MEMORY;
        const ptrdiff_t first = (ptrdiff_t)s->indptr[segment], at = c->keeps_axis ? first : (ptrdiff_t)segment;
        csm_tile_job job = {.input = csm_row_data(&c->base, &c->input, row + r) + first * c->input.axis_stride,
                            .result = (char *)c->result.data + csm_offset(&c->base.shape, c->result.strides, row + r) +
                                      at * c->result.axis_stride,
                            .input_step = c->input.axis_stride,
                            .result_step = c->result.axis_stride,
                            .n = n,
                            .width = rows - r < width ? rows - r : width,
                            .temperature = &c->base.scales.ordinary,
                            .scratch = memory + csm_row_scratch_size(0)};
        if (c->is_gradient) {
            job.y = csm_row_data(&c->base, &c->y, row + r) + first * c->y.axis_stride;
            job.y_step = c->y.axis_stride;
        }
        if (w->call->tiles->tile(&job)) continue;
        const csm_status status = run_gathered(w, row + r, job.width, segment, segment + 1);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

/* Segments whose rows lie side by side. */
static csm_status run_side_by_side(worker *w, const csm_segment_unit *u) {
    const segments_call *call = w->call;
    const csm_softmax_call *c = &call->softmax;
    const csm_segments *s = &call->segments;
    uint32_t left[CSM_RAGGED_ROWS];
    csm_status status = CSM_OK;
    for (size_t begin = u->begin; begin < u->end && status == CSM_OK; begin += CSM_RAGGED_ROWS) {
        const ptrdiff_t first = (ptrdiff_t)s->indptr[begin];
        const ptrdiff_t to = (c->keeps_axis ? first : (ptrdiff_t)begin) * c->result.axis_stride;
        const csm_ragged_tiles_job job = {
            .input = csm_row_data(&c->base, &c->input, u->row) + first * c->input.axis_stride,
            .result = (char *)c->result.data + csm_offset(&c->base.shape, c->result.strides, u->row) + to,
            .input_step = c->input.axis_stride,
            .result_step = c->result.axis_stride,
            .indptr = s->indptr + begin,
            .count = u->end - begin < CSM_RAGGED_ROWS ? u->end - begin : CSM_RAGGED_ROWS,
            .width = u->rows,
            .temperature = &c->base.scales.ordinary};
        const int has_kernel = call->tiles->ragged_tiles != NULL;
        const size_t count = has_kernel ? call->tiles->ragged_tiles(&job, left) : job.count;
        for (size_t i = 0; i < count && status == CSM_OK; i++)
            status = run_tiles(w, u->row, u->rows, begin + (has_kernel ? left[i] : i));
    }
    return status;
}

/* Segments of rows whose elements lie one behind the other. */
static csm_status run_direct(worker *w, const csm_segment_unit *u) {
    const csm_softmax_call *c = &w->call->softmax;
    const ptrdiff_t size = (ptrdiff_t)c->base.itemsize, first = (ptrdiff_t)w->call->segments.indptr[u->begin];
    csm_status status = CSM_OK;
    for (size_t row = u->row; row < u->row + u->rows && status == CSM_OK; row++) {
        line l = {.row = row, .input = csm_row_data(&c->base, &c->input, row) + first * size};
        if (c->is_gradient) l.y = csm_row_data(&c->base, &c->y, row) + first * size;
        l.result = (char *)c->result.data + csm_offset(&c->base.shape, c->result.strides, row);
        l.result += c->keeps_axis ? first * size : (ptrdiff_t)u->begin * c->result.axis_stride;
        l.result_step = c->result.axis_stride;
        status = run_line(w, &l, u->begin, u->end);
    }
    return status;
}

static csm_status units_body(void *context, size_t begin, size_t end, int thread) {
    segments_call *call = context;
    worker w = {.call = call, .thread = thread};
    memcpy(&w.softmax, &call->softmax, sizeof w.softmax);
    csm_status status = CSM_OK;
    for (; begin < end && status == CSM_OK; begin++) {
        const csm_segment_unit u = csm_segment_unit_at(&call->units, begin);
        if (u.begin == u.end) continue;
        if (call->is_direct) status = run_direct(&w, &u);
        else if (call->is_tiled) status = run_side_by_side(&w, &u);
        else status = gather_all(&w, u.row, u.rows, u.begin, u.end);
    }
    return status;
}

/* A segment that is split over threads. */
static csm_status run_split_segment(segments_call *call, csm_softmax_call *c, size_t row, size_t segment,
                                    const csm_row_scratch *each) {
    const csm_call *base = &call->softmax.base;
    const size_t at = (size_t)call->segments.indptr[segment];
    const csm_view *const views[3] = {&c->input, c->is_gradient ? &c->y : NULL, base->has_where ? &base->where : NULL};
    csm_strided from[3] = {{NULL, 0, 0}, {NULL, 0, 0}, {NULL, 0, 0}};
    c->base.shape.n = csm_segment_length(&call->segments, segment);
    for (int v = 0; v < 3; v++) {
        if (!views[v]) continue;
        const csm_strided x = rows_of(base, views[v], row);
        from[v] = (csm_strided){x.data + (ptrdiff_t)at * x.axis, 0, x.axis};
    }
    csm_row_place place = {.input = from[0], .y = from[1], .where = from[2], .result_axis = c->result.axis_stride};
    place.result = (char *)c->result.data + csm_offset(&base->shape, c->result.strides, row) +
                   (ptrdiff_t)(c->keeps_axis ? at : segment) * c->result.axis_stride;
    return csm_run_split_row(c, &place, each);
}

static csm_status run_split(segments_call *call, int threads) {
    csm_softmax_call c;
    memcpy(&c, &call->softmax, sizeof c);
    c.base.threads = threads;
    csm_row_scratch *each = csm_allocate((size_t)threads * sizeof *each);
    const size_t size = csm_row_scratch_size(call->longest);
    char *memory = csm_allocate((size_t)threads * size);
    csm_status status = each && memory ? CSM_OK : CSM_NO_MEMORY;
    for (int i = 0; i < threads && status == CSM_OK; i++)
        each[i] = csm_row_scratch_at(memory + (size_t)i * size, call->longest);
    for (size_t s = 0; s < call->segments.count && status == CSM_OK; s++) {
        if (csm_segment_length(&call->segments, s) < call->split) continue;
        for (size_t row = 0; row < call->units.rows && status == CSM_OK; row++) {
            if (c.has_temperatures) csm_take_temperature(&c, temperature_of(call, row, s));
            status = run_split_segment(call, &c, row, s, each);
        }
    }
    csm_release(each);
    csm_release(memory);
    atomic_store(&call->softmax.base.interrupt.is_stopped, atomic_load(&c.base.interrupt.is_stopped));
    call->softmax.base.interrupt.caller = c.base.interrupt.caller;
    return status;
}

static void choose_path(segments_call *call, size_t rows) {
    const csm_softmax_call *c = &call->softmax;
    const csm_shape *shape = &c->base.shape;
    const size_t size = c->base.itemsize, inner = shape->ndim ? shape->shape[shape->ndim - 1] : 1;
    const int is_plain = !c->base.has_where && (c->keeps_axis || c->result.axis_stride % (ptrdiff_t)size == 0);
    call->is_direct = is_plain && csm_is_contiguous(shape, &c->input, size, 1) &&
                      (!c->is_gradient || csm_is_contiguous(shape, &c->y, size, 1)) &&
                      csm_is_contiguous(shape, &c->result, size, c->keeps_axis);
    call->is_tiled = is_plain && !call->is_direct && !c->has_temperatures && c->kernels->tile &&
                     inner >= MIN_TILED_ROWS && csm_is_for_kernels(c) &&
                     csm_is_side_by_side(shape, &c->input, size, 1) &&
                     csm_is_side_by_side(shape, &c->result, size, 1) &&
                     (!c->is_gradient || csm_is_side_by_side(shape, &c->y, size, 1));
    const int is_packed = c->op == CSM_OP_softmax && size == 4 && inner == NARROW_ROWS &&
                          !c->base.scales.ordinary.tempered && c->input.axis_stride == 4 * NARROW_ROWS &&
                          c->result.axis_stride == 4 * NARROW_ROWS;
    const int is_narrow = csm_is_single(&c->base) && inner <= NARROW_ROWS && !is_packed;
    call->tiles = &(is_narrow ? csm_half_table(c->base.table) : c->base.table)->kernels[c->op][c->base.dtype];
    const size_t per = call->is_tiled ? TILED_ROWS : call->is_direct ? 1 : GATHERED_ROWS;
    csm_segment_divide(&call->units, &call->segments, shape, rows, per);
}

static csm_status run_call(segments_call *call, size_t rows, int threads) {
    csm_call *base = &call->softmax.base;
    const csm_segments *s = &call->segments;
    const double elements = (double)rows * (double)(s->indptr[s->count] - s->indptr[0]);
    csm_buffer single[BUFFERS];
    choose_path(call, rows);
    const size_t units = csm_segment_unit_count(&call->units);
    call->split = units < (size_t)threads ? CSM_BLOCK + 1 : SPLIT_ELEMENTS;
    base->threads = csm_threads_for(elements, units, threads);
    csm_status status = CSM_OK;
    if (call->softmax.keeps_axis) {
        const uint64_t zero = 0;
        status = csm_fill_outside(base, &call->softmax.result, s, rows,
                                  call->softmax.is_gradient ? &zero : &call->softmax.masked);
    }
    if (status == CSM_OK && units) {
        status = csm_scratch_begin(&call->scratch, base->threads, BUFFERS, single);
        if (status != CSM_OK) return status;
        status = csm_parallel(units, CSM_PIECE_ELEMENTS / CSM_CHUNK_ELEMENTS, base->threads, units_body, call,
                              &base->interrupt);
        csm_scratch_end(&call->scratch);
    }
    if (status == CSM_OK && call->longest >= call->split) status = run_split(call, threads);
    return status;
}

/* Memory of a view whose elements are in the order of the segments: rows side by side if they are so in the input, else
 * one behind the other.  *bytes: its size. */
static void lay_out_moved(const csm_shape *shape, csm_view *moved, int is_side_by_side, size_t rows, size_t size,
                          size_t *bytes) {
    const size_t inner = is_side_by_side ? shape->shape[shape->ndim - 1] : 1;
    size_t step = inner * size;
    moved->axis_stride = (ptrdiff_t)step;
    step *= shape->n;
    for (size_t i = shape->ndim; i-- > 0;) {
        const int is_inner = is_side_by_side && i == shape->ndim - 1;
        moved->strides[i] = (ptrdiff_t)(is_inner ? size : step);
        if (!is_inner) step *= shape->shape[i];
    }
    *bytes = csm_rounded(rows * shape->n * size);
}

/* Copies elements to scratch in the order of the segments, computes these there, and copies the results back.  The
 * lines of a target that is written in random order are brought to the cache by writing to them one after the other:
 * 10^6 floats took 1.25 instead of 1.5 ms to copy and to copy back. */
static csm_status run_moved(segments_call *call, const csm_segments *given, size_t rows, int is_side_by_side,
                            int threads) {
    csm_softmax_call *c = &call->softmax;
    csm_call *base = &c->base;
    csm_view *const views[3] = {&c->input, c->is_gradient ? &c->y : NULL, base->has_where ? &base->where : NULL};
    csm_view moved[3], result;
    size_t bytes[3], size = 0;
    csm_status status = CSM_OK;
    for (int v = 0; v < 3; v++) {
        if (!views[v]) continue;
        lay_out_moved(&base->shape, &moved[v], is_side_by_side, rows, v == 2 ? 1 : base->itemsize, &bytes[v]);
        size += bytes[v];
    }
    char *memory = csm_allocate_huge(size + 1), *at = memory;
    if (!memory) return CSM_NO_MEMORY;
    csm_copy_view(&result, &c->result, base->shape.ndim);
    for (int v = 0; v < 3 && status == CSM_OK; v++) {
        if (!views[v]) continue;
        moved[v].data = at;
        at += bytes[v];
        if (csm_segment_places(given) && bytes[v] <= CACHED_BYTES) memset(moved[v].data, 0, bytes[v]);
        status = csm_segment_move(base, &moved[v], views[v], given, 1, rows, v == 2 ? 1 : base->itemsize, threads);
        csm_copy_view(views[v], &moved[v], base->shape.ndim);
    }
    if (c->keeps_axis) csm_copy_view(&c->result, &moved[0], base->shape.ndim);
    if (status == CSM_OK) status = run_call(call, rows, threads);
    if (status == CSM_OK && c->keeps_axis)
        status = csm_segment_move(base, &result, &moved[0], given, 0, rows, base->itemsize, threads);
    csm_release(memory);
    return status;
}

/* Moves as many indices of the first batch axis at a time as their bytes allow. */
static csm_status run_unordered(segments_call *call, const csm_segments *given, size_t rows, int threads) {
    csm_softmax_call *c = &call->softmax;
    csm_shape *shape = &c->base.shape;
    csm_view *const views[5] = {&c->input, &c->result, c->is_gradient ? &c->y : NULL,
                                c->base.has_where ? &c->base.where : NULL,
                                c->has_temperatures ? &c->temperatures : NULL};
    csm_view whole[5];
    const size_t length = shape->ndim ? shape->shape[0] : 1, per_index = rows / length;
    const size_t bytes = per_index * shape->n * c->base.itemsize;
    const int is_side_by_side = csm_is_side_by_side(shape, &c->input, c->base.itemsize, 1);
    const size_t limit = is_side_by_side && shape->ndim == 1 ? MOVED_BYTES : CACHED_BYTES;
    const size_t most = bytes < limit ? limit / (bytes + 1) : 1;
    csm_status status = CSM_OK;
    if (most >= length) return run_moved(call, given, rows, is_side_by_side, threads);
    for (int v = 0; v < 5; v++)
        if (views[v]) csm_copy_view(&whole[v], views[v], shape->ndim);
    for (size_t i = 0; i < length && status == CSM_OK; i += most) {
        shape->shape[0] = length - i < most ? length - i : most;
        for (int v = 0; v < 5; v++) {
            if (!views[v]) continue;
            csm_copy_view(views[v], &whole[v], shape->ndim);
            views[v]->data = (char *)views[v]->data + (ptrdiff_t)i * views[v]->strides[0];
        }
        status = run_moved(call, given, per_index * shape->shape[0], is_side_by_side, threads);
    }
    return status;
}

static csm_status run_segments(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                               const csm_segments *segments, const csm_view *input, const csm_view *y,
                               const csm_view *result, const csm_options *options, csm_fp_environment *caller) {
    csm_options known = CSM_OPTIONS_INIT;
    segments_call call;
    csm_softmax_call *c = &call.softmax;
    csm_call *base = &c->base;
    size_t rows;
    options = csm_known_options(&known, sizeof known, options);
    csm_status status = csm_begin_softmax(c, op, dtype, table, options);
    if (status != CSM_OK) return status;
    if (!csm_check_segments(segments, shape->n, &call.longest)) return CSM_BAD_OPTION;
    call.segments = csm_default_segments();
    call.segments.count = segments->count;
    call.segments.indptr = segments->indptr;
    status = csm_lay_out(base, shape, (const csm_view *[]){input, result, y, options->where, options->temperatures},
                         (csm_view *[]){&c->input, &c->result, c->is_gradient ? &c->y : NULL,
                                        base->has_where ? &base->where : NULL,
                                        c->has_temperatures ? &c->temperatures : NULL},
                         5, &rows);
    if (status != CSM_OK || rows == 0) return status;
    for (size_t row = 0; row < rows && c->has_temperatures; row++)
        for (size_t i = 0; i < segments->count; i++)
            if (!csm_is_temperature(c, temperature_of(&call, row, i))) return CSM_BAD_TEMPERATURE;
    csm_finish_softmax(c, options, caller);
    const int threads = options->threads < 1 ? 1 : options->threads;
    if (segments->order || csm_segment_places(segments)) status = run_unordered(&call, segments, rows, threads);
    else status = run_call(&call, rows, threads);
    *caller = base->interrupt.caller; /* the callback may have changed it */
    return status;
}

/* A view of the segments as rows, where all of them have n elements: the rows are one more batch axis. */
static const csm_view *as_rows(csm_view *rows, const csm_view *v, size_t ndim, size_t n, int has_axis) {
    if (!v) return NULL;
    csm_copy_view(rows, v, ndim);
    rows->strides[ndim] = has_axis ? (ptrdiff_t)n * v->axis_stride : v->axis_stride;
    return rows;
}

/* Segments of one length that are all of a contiguous axis are rows of a dense call.  The first length times their
 * number tells most others apart without reading offsets.  Returns 0, with nothing done, if they are not. */
static int run_as_rows(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                       const csm_segments *s, const csm_view *input, const csm_view *y, const csm_view *result,
                       const csm_options *options, csm_status *status) {
    const size_t count = s && s->indptr && !s->order && !csm_segment_places(s) ? s->count : 0;
    csm_options o = CSM_OPTIONS_INIT;
    csm_call base;
    options = csm_known_options(&o, sizeof o, options);
    if (count == 0 || s->indptr[0] != 0 || s->indptr[1] <= 0 || shape->ndim >= CSM_MAX_NDIM) return 0;
    const size_t n = (size_t)s->indptr[1];
    if (n > shape->n / count || n * count != shape->n || options->scratch) return 0;
    csm_set_dtype(&base, dtype, table);
    if (input->axis_stride != (ptrdiff_t)base.itemsize) return 0;
    int64_t differ = 0;
    for (size_t i = 0; i < count; i++) differ |= (s->indptr[i + 1] - s->indptr[i]) ^ s->indptr[1];
    if (differ) return 0;
    csm_shape rows = *shape;
    csm_view x, other, to, where, temperatures;
    o = *options;
    rows.n = n;
    rows.shape[rows.ndim++] = count;
    o.where = as_rows(&where, o.where, shape->ndim, n, 1);
    o.temperatures = as_rows(&temperatures, o.temperatures, shape->ndim, n, 0);
    *status = csm_run_softmax(op, dtype, table, &rows, as_rows(&x, input, shape->ndim, n, 1),
                              as_rows(&other, y, shape->ndim, n, 1),
                              as_rows(&to, result, shape->ndim, n, op != CSM_OP_logsumexp), &o);
    return 1;
}

csm_status csm_run_segments(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                            const csm_segments *segments, const csm_view *input, const csm_view *y,
                            const csm_view *result, const csm_options *options) {
    csm_status status;
    if (run_as_rows(op, dtype, table, shape, segments, input, y, result, options, &status)) return status;
    csm_fp_environment saved = csm_fp_enter();
    status = run_segments(op, dtype, table, shape, segments, input, y, result, options, &saved);
    csm_fp_leave(saved);
    return status;
}

/* The functions of csoftmax.h */

#define UNARY(suffix, storage, compute, op)                                                                            \
    csm_status csm_segment_##op##_##suffix(const csm_shape *shape, const csm_segments *segments, const csm_view *x,    \
                                           const csm_view *y, const csm_options *o) {                                  \
        return csm_run_segments(CSM_OP_##op, CSM_DTYPE_##suffix, csm_current_table(), shape, segments, x, NULL, y, o); \
    }
#define BINARY(suffix, storage, compute, op)                                                                          \
    csm_status csm_segment_##op##_##suffix(const csm_shape *shape, const csm_segments *segments, const csm_view *dy,  \
                                           const csm_view *y, const csm_view *dx, const csm_options *o) {             \
        return csm_run_segments(CSM_OP_##op, CSM_DTYPE_##suffix, csm_current_table(), shape, segments, dy, y, dx, o); \
    }
CSM_DTYPES_WITH(UNARY, softmax)
CSM_DTYPES_WITH(UNARY, log_softmax)
CSM_DTYPES_WITH(UNARY, logsumexp)
CSM_DTYPES_WITH(BINARY, softmax_vjp)
CSM_DTYPES_WITH(BINARY, log_softmax_vjp)
