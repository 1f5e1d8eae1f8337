/* The driver of the softmax family: divides a call into units of work.  There is a path for each kind of layout; all
 * give the same bits.
 *
 *   rows    contiguous along the axis, n <= CSM_BLOCK               unit: a row
 *   tiles   rows side by side (an axis that is not the last)        unit: a tile of rows
 *   packed  any other layout, or a mask                             unit: a group of rows, copied to scratch
 *   long    n > CSM_BLOCK: row by row (softmax_row.c); few or huge  unit: a row, or none
 *           rows are split at their blocks; shards of rows (shard.c)
 *   small   few elements in contiguous rows                         no unit: computed before a path is chosen
 *
 * Where rows have temperatures of their own, a unit is a row, which takes the path of its layout alone (no tiles), so
 * that it has the bits that it has with this temperature in any other call.
 */
#include "softmax_row.h"

#include "../core/options.h"
#include "../isa/dispatch.h"

#include <stdlib.h>

enum {
    SPLIT_ELEMENTS = 1 << 20, /* rows of at least this length are split over threads however many rows there are */
    SMALL_ELEMENTS = 2048,    /* below this many elements, choosing a path costs as much as computing */
    TILE_CACHE_BYTES = 256 * 1024, /* a tile stays in the second-level cache */
    TABLE_BYTES = 2 * 64 /* of the caller's scratch, for the csm_buffer and the csm_row_scratch of a thread */
};

size_t csm_tile_width(const csm_softmax_call *c) {
    const size_t wide_size = c->base.wide_size;
    size_t min_width = 16, max_width = CSM_TILE_WIDTH;
    if (c->is_gradient) { /* scratch holds lanes, not a copy of the tile */
        max_width = wide_size == 4 ? CSM_VJP_WIDTH : CSM_VJP_WIDTH / 2;
        min_width = max_width / 2;
    }
    size_t width = TILE_CACHE_BYTES / ((c->base.shape.n | 1) * wide_size) / 16 * 16;
    if (width > max_width) width = max_width;
    return width < min_width ? min_width : width;
}

static double temperature_of(const csm_softmax_call *c, size_t row) {
    double t;
    memcpy(&t, csm_row_data(&c->base, &c->temperatures, row), sizeof t);
    return t;
}

typedef enum path { ROWS, TILES, PACKED, LONG } path;

/* A call with its path, and the sizes that depend on the path. */
typedef struct routed_call {
    const csm_softmax_call *call;
    path path;
    size_t rows;           /* all rows */
    size_t inner, per;     /* rows along the last batch axis; rows in a unit */
    size_t pack_pitch;
    size_t scratch_size;   /* bytes per thread */
    csm_prefetch prefetch;
    csm_scratch scratch;
    csm_interrupt *interrupt; /* that of the call */
} routed_call;

static size_t scratch_size(path p, size_t n, size_t itemsize) {
    size_t size = csm_row_scratch_size(n);
    if (p == TILES) size += CSM_TILE_BYTES;
    if (p == PACKED || p == TILES) size += 2 * csm_pack_pitch(n, itemsize) * csm_pack_rows(n, itemsize);
    if (p == ROWS) size += CSM_BLOCK * sizeof(float);
    return csm_rounded(size) + csm_rounded(sizeof(csm_softmax_call)); /* own_body's copy */
}

size_t csm_scratch_size(const csm_shape *shape, int threads) {
    size_t largest = 0;
    if (shape->n > PTRDIFF_MAX / 64) return 0;
    for (int p = ROWS; p <= LONG; p++)
        for (size_t itemsize = 2; itemsize <= 8; itemsize *= 2) {
            size_t size = scratch_size((path)p, shape->n, itemsize);
            if (size > largest && !(p == PACKED && shape->n * itemsize > CSM_PACK_LIMIT_BYTES)) largest = size;
        }
    return (largest + TABLE_BYTES) * (size_t)(threads < 1 ? 1 : threads);
}

static char *scratch_of(routed_call *routed, int thread) {
    return csm_scratch_get(&routed->scratch, thread, 0, routed->scratch_size);
}

static csm_row_place place_row(const csm_softmax_call *c, size_t row) {
    csm_row_place p;
    memset(&p, 0, sizeof p);
    p.input = csm_row_of(&c->base, &c->input, row);
    if (c->is_gradient) p.y = csm_row_of(&c->base, &c->y, row);
    p.where = csm_mask_of(&c->base, row);
    p.result = (char *)c->result.data + csm_offset(&c->base.shape, c->result.strides, row);
    p.result_axis = c->result.axis_stride;
    if (c->shard) p.index = (size_t)csm_offset(&c->base.shape, c->order.strides, row);
    return p;
}

/* Computes rows with a kernel, and the exceptional ones among them with softmax_row.c.  where: the mask of the first
 * row if rows have been gathered, else NULL. */
static csm_status run_rows(routed_call *routed, csm_rows_job job, int thread, const csm_strided *where) {
    const csm_softmax_call *c = routed->call;
    const csm_rows_job all = job;
    const size_t n = c->base.shape.n;
    size_t at = 0;
    while (at < all.rows) {
        job.input = all.input + (ptrdiff_t)at * all.input_step;
        job.y = c->is_gradient ? all.y + (ptrdiff_t)at * all.y_step : NULL;
        job.result = all.result + (ptrdiff_t)at * all.result_step;
        job.rows = all.rows - at;
        if (n <= CSM_BLOCK && csm_is_for_kernels(c)) {
            size_t done = c->kernels->rows(&job);
            at += done;
            if (at == all.rows) break;
            job.input += (ptrdiff_t)done * job.input_step;
            job.result += (ptrdiff_t)done * job.result_step;
            if (c->is_gradient) job.y += (ptrdiff_t)done * job.y_step;
        }
        char *memory = scratch_of(routed, thread);
        if (!memory) return CSM_NO_MEMORY;
        const ptrdiff_t itemsize = (ptrdiff_t)c->base.itemsize;
        csm_row_scratch s = csm_row_scratch_at(memory, n);
        csm_row_place place = {.input = {job.input, 0, itemsize},
                               .y = {job.y, 0, itemsize},
                               .result = job.result,
                               .result_axis = itemsize,
                               .is_gathered = 1};
        if (where) place.where = (csm_strided){where->data + (ptrdiff_t)at * where->row, 0, where->axis};
        csm_run_row(c, &place, &s);
        at++;
    }
    return CSM_OK;
}

/* Computes a unit of neighbouring rows through scratch, group by group. */
static csm_status run_packed(routed_call *routed, size_t row, size_t rows, int thread) {
    const csm_softmax_call *c = routed->call;
    const csm_shape *shape = &c->base.shape;
    const size_t n = shape->n, size = c->base.itemsize, pitch = routed->pack_pitch;
    char *memory = scratch_of(routed, thread);
    if (!memory) return CSM_NO_MEMORY;
    char *input = memory + csm_row_scratch_size(n), *y = input + pitch * csm_pack_rows(n, size);
    const csm_row_place first = place_row(c, row);
    for (size_t done = 0; done < rows;) {
        size_t max_rows = csm_pack_rows(n, size), count = rows - done < max_rows ? rows - done : max_rows;
        ptrdiff_t skip = (ptrdiff_t)done, result_step = csm_last_stride(shape, &c->result);
        csm_strided from = {first.input.data, csm_last_stride(shape, &c->input), first.input.axis};
        csm_strided from_y = {first.y.data, csm_last_stride(shape, &c->y), first.y.axis};
        csm_strided mask = {first.where.data, csm_last_stride(shape, &c->base.where), first.where.axis};
        from.data += skip * from.row;
        if (c->is_gradient) from_y.data += skip * from_y.row;
        if (c->base.has_where) mask.data += skip * mask.row;
        csm_gather(input, pitch, from, count, n, size, c->is_gradient ? NULL : &mask, &c->base.absent);
        if (c->is_gradient) csm_gather(y, pitch, from_y, count, n, size, &mask, &c->base.absent);
        csm_rows_job job = {.input = input,
                            .y = y,
                            .result = input,
                            .input_step = (ptrdiff_t)pitch,
                            .y_step = (ptrdiff_t)pitch,
                            .result_step = (ptrdiff_t)pitch,
                            .rows = count,
                            .n = n,
                            .temperature = &c->base.scales.ordinary,
                            .scratch = memory};
        csm_status status = run_rows(routed, job, thread, c->base.has_where ? &mask : NULL);
        if (status != CSM_OK) return status;
        for (size_t r = 0; r < count && c->base.has_where; r++) {
            const csm_strided row_mask = {mask.data + (ptrdiff_t)r * mask.row, 0, mask.axis};
            if (csm_is_masked_nan(c, input + r * pitch))
                csm_fill_masked(input + r * pitch, (ptrdiff_t)size, row_mask, n, size, &c->masked);
        }
        csm_scatter(first.result + skip * result_step, result_step, first.result_axis, input, pitch, count,
                    c->keeps_axis ? n : 1, size);
        done += count;
    }
    return CSM_OK;
}

/* Number of rows from `row` to the end of the last batch axis, or to `end` if that comes first. */
static size_t rows_to_end(const routed_call *routed, size_t row, size_t end) {
    size_t left = routed->inner - row % routed->inner;
    return end - row < left ? end - row : left;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    routed_call *routed = context;
    const csm_softmax_call *c = routed->call;
    const csm_shape *shape = &c->base.shape;
    while (begin < end) {
        size_t count = rows_to_end(routed, begin, end);
        csm_row_place p = place_row(c, begin);
        csm_rows_job job = {.input = p.input.data,
                            .y = p.y.data,
                            .result = p.result,
                            .input_step = csm_last_stride(shape, &c->input),
                            .y_step = csm_last_stride(shape, &c->y),
                            .result_step = csm_last_stride(shape, &c->result),
                            .rows = count,
                            .n = shape->n,
                            .temperature = &c->base.scales.ordinary,
                            .prefetch = routed->prefetch};
        if (c->base.itemsize != c->base.wide_size && c->op == CSM_OP_softmax &&
            !(job.scratch = scratch_of(routed, thread)))
            return CSM_NO_MEMORY;
        csm_status status = run_rows(routed, job, thread, NULL);
        if (status != CSM_OK) return status;
        begin += count;
    }
    return CSM_OK;
}

/* Tiles and packed groups: a unit does not cross the end of the last batch axis. */
static csm_status groups_body(void *context, size_t begin, size_t end, int thread) {
    routed_call *routed = context;
    const csm_softmax_call *c = routed->call;
    size_t units = (routed->inner + routed->per - 1) / routed->per; /* along the last batch axis */
    for (size_t unit = begin; unit < end; unit++) {
        size_t inner = unit % units * routed->per, row = unit / units * routed->inner + inner;
        size_t count = routed->inner - inner < routed->per ? routed->inner - inner : routed->per;
        if (routed->path == TILES) {
            char *memory = scratch_of(routed, thread);
            if (!memory) return CSM_NO_MEMORY;
            csm_row_place p = place_row(c, row);
            csm_tile_job job = {.input = p.input.data,
                                .y = p.y.data,
                                .result = p.result,
                                .input_step = p.input.axis,
                                .y_step = p.y.axis,
                                .result_step = p.result_axis,
                                .n = c->base.shape.n,
                                .width = count,
                                .temperature = &c->base.scales.ordinary,
                                .scratch = memory + routed->scratch_size - CSM_TILE_BYTES};
            if (c->kernels->tile(&job)) continue;
        }
        csm_status status = run_packed(routed, row, count, thread);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static csm_status long_body(void *context, size_t begin, size_t end, int thread) {
    routed_call *routed = context;
    char *memory = scratch_of(routed, thread);
    if (!memory) return CSM_NO_MEMORY;
    csm_row_scratch s = csm_row_scratch_at(memory, routed->call->base.shape.n);
    for (; begin < end; begin++) {
        csm_row_place place = place_row(routed->call, begin);
        csm_run_row(routed->call, &place, &s);
    }
    return CSM_OK;
}

/* Computes rows [begin, stop) of one temperature as a call of few rows. */
static csm_status run_own(routed_call *mine, size_t begin, size_t stop, int thread) {
    if (mine->path == LONG) return long_body(mine, begin, stop, thread);
    if (mine->path == ROWS) return rows_body(mine, begin, stop, thread);
    return run_packed(mine, begin, stop - begin, thread);
}

/* Contiguous rows from `begin` on, which do not cross the end of the last batch axis: the kernel computes them by
 * their temperatures, neighbours of the same one together.  Returns how many it has done before one that is not
 * ordinary, or whose temperature is not usual. */
static size_t run_usual(const routed_call *routed, size_t begin, size_t count, char *scratch) {
    enum { TOGETHER = 16, MIN_SAME = 8 }; /* MIN_SAME: of short rows, for which a kernel with one temperature pays */
    const csm_softmax_call *c = routed->call;
    const csm_shape *shape = &c->base.shape;
    const int is_short = c->op == CSM_OP_softmax && csm_is_single(&c->base) && shape->n <= CSM_SHORT_ROW;
    const csm_row_place p = place_row(c, begin);
    const char *t = csm_row_data(&c->base, &c->temperatures, begin);
    const ptrdiff_t t_step = csm_last_stride(shape, &c->temperatures);
    double numbers[TOGETHER];
    csm_temperature constants[TOGETHER];
    csm_rows_job job = {.input = p.input.data,
                        .y = p.y.data,
                        .result = p.result,
                        .input_step = csm_last_stride(shape, &c->input),
                        .y_step = csm_last_stride(shape, &c->y),
                        .result_step = csm_last_stride(shape, &c->result),
                        .n = shape->n,
                        .scratch = scratch,
                        .prefetch = routed->prefetch};
    for (size_t at = 0, rows; at < count; at += rows) {
        const size_t wanted = count - at < TOGETHER ? count - at : TOGETHER;
        for (rows = 0; rows < wanted; rows++) {
            memcpy(&numbers[rows], t + (ptrdiff_t)(at + rows) * t_step, sizeof numbers[rows]);
            if (!csm_is_usual_temperature(numbers[rows], c->is_gradient)) break;
        }
        if (rows == 0) return at;
        csm_set_ordinary(constants, numbers, rows, csm_is_single(&c->base));
        for (size_t i = 0; i < rows; i += job.rows) {
            job.rows = csm_count_same(numbers + i, rows - i);
            job.temperature = &constants[i];
            job.has_temperatures = is_short && job.rows < MIN_SAME;
            if (job.has_temperatures) job.rows = rows - i;
            const size_t done = c->kernels->rows(&job);
            if (done < job.rows) return at + i + done;
            job.input += (ptrdiff_t)done * job.input_step;
            job.result += (ptrdiff_t)done * job.result_step;
            if (c->is_gradient) job.y += (ptrdiff_t)done * job.y_step;
        }
    }
    return count;
}

/* Rows with temperatures of their own: each is computed as a call of few rows, by a copy of the call. */
static csm_status own_body(void *context, size_t begin, size_t end, int thread) {
    routed_call *routed = context, mine = *routed;
    char *memory = scratch_of(routed, thread);
    if (!memory) return CSM_NO_MEMORY;
    const size_t before = routed->scratch_size - csm_rounded(sizeof(csm_softmax_call));
    csm_softmax_call *own = (csm_softmax_call *)(void *)(memory + before);
    memcpy(own, routed->call, sizeof *own);
    own->base.interrupt.original = routed->interrupt;
    mine.call = own;
    csm_status status = CSM_OK;
    while (begin < end && status == CSM_OK) {
        const size_t last = begin + rows_to_end(routed, begin, end);
        if (routed->path == ROWS) begin += run_usual(routed, begin, last - begin, memory);
        if (begin == last) continue;
        csm_take_temperature(own, temperature_of(own, begin));
        const double t = own->base.scales.temperature;
        size_t stop = begin + 1; /* neighbours of the same temperature go together */
        while (stop < last && temperature_of(own, stop) == t) stop++;
        status = run_own(&mine, begin, stop, thread);
        begin = stop;
    }
    return status;
}

_Static_assert(sizeof(csm_row_scratch) <= TABLE_BYTES / 2 && sizeof(csm_buffer) <= TABLE_BYTES / 2, "TABLE_BYTES");
static csm_status run_split(routed_call *routed, csm_softmax_call *c) {
    const size_t threads = (size_t)c->base.threads;
    csm_row_scratch *each = c->given_scratch
                                ? (csm_row_scratch *)(void *)(c->given_scratch + threads * (TABLE_BYTES / 2))
                                : csm_allocate(threads * sizeof *each);
    csm_status status = each ? CSM_OK : CSM_NO_MEMORY;
    for (size_t i = 0; status == CSM_OK && i < threads; i++) {
        char *memory = scratch_of(routed, (int)i);
        if (memory) each[i] = csm_row_scratch_at(memory, c->base.shape.n);
        else status = CSM_NO_MEMORY;
    }
    for (size_t i = 0; status == CSM_OK && i < routed->rows; i++) {
        csm_row_place place = place_row(c, i);
        if (c->has_temperatures) csm_take_temperature(c, temperature_of(c, i));
        status = csm_run_split_row(c, &place, each);
    }
    if (!c->given_scratch) csm_release(each);
    return status;
}

static path choose_path(const csm_softmax_call *c, size_t rows, size_t inner) {
    const csm_shape *shape = &c->base.shape;
    const size_t n = shape->n, size = c->base.itemsize;
    if (c->shard) return LONG;
    int plain = !c->base.has_where && csm_is_contiguous(shape, &c->input, size, 1) &&
                (!c->is_gradient || csm_is_contiguous(shape, &c->y, size, 1)) &&
                csm_is_contiguous(shape, &c->result, size, c->keeps_axis);
    if (n > CSM_BLOCK) {
        if (!plain && n * size <= CSM_PACK_LIMIT_BYTES / 8 && rows > 1) return PACKED;
        return LONG;
    }
    if (plain) return ROWS;
    if (!c->base.has_where && !c->has_temperatures && c->kernels->tile && n > 0 && inner >= 8 &&
        csm_is_side_by_side(shape, &c->input, size, 1) && csm_is_side_by_side(shape, &c->result, size, c->keeps_axis) &&
        csm_is_for_kernels(c) && (!c->is_gradient || csm_is_side_by_side(shape, &c->y, size, 1)))
        return TILES;
    return PACKED;
}

static csm_status run_call(csm_softmax_call *c, int threads) {
    csm_call *base = &c->base;
    const size_t n = base->shape.n;
    size_t rows = 1, inner = base->shape.ndim ? base->shape.shape[base->shape.ndim - 1] : 1;
    for (size_t i = 0; i < base->shape.ndim; i++) rows *= base->shape.shape[i];
    if (threads < 1) threads = 1;

    path p = choose_path(c, rows, inner);
    double elements = (double)rows * (double)n;
    int split = p == LONG && (n >= SPLIT_ELEMENTS || rows < (size_t)threads);
    size_t per = 1, units = rows;
    if (p == TILES) per = csm_tile_width(c);
    if (p == PACKED) per = csm_pack_rows(n, base->itemsize);
    if (c->has_temperatures) per = 1;
    else if (p == TILES || p == PACKED) {
        if (p == TILES && threads > 1) /* at least one tile for each thread */
            while (per > 16 && rows / inner * ((inner + per - 1) / per) < (size_t)threads) per /= 2;
        per = per > 16 ? per / 16 * 16 : per;
        if (per > inner) per = inner;
        units = rows / inner * ((inner + per - 1) / per);
    }
    base->threads =
        split ? csm_threads_for((double)n, n / CSM_BLOCK, threads) : csm_threads_for(elements, units, threads);
    routed_call routed = {.call = c,
                          .path = p,
                          .rows = rows,
                          .inner = inner,
                          .per = per,
                          .pack_pitch = csm_pack_pitch(n, base->itemsize),
                          .scratch_size = scratch_size(p, n, base->itemsize),
                          .prefetch = csm_prefetch_for(2 * elements * (double)base->itemsize),
                          .interrupt = &base->interrupt};
    csm_buffer single;
    csm_status status = CSM_OK;
    if (c->given_scratch) {
        char *parts = c->given_scratch + base->threads * TABLE_BYTES;
        const size_t each = c->given_size - TABLE_BYTES;
        csm_scratch_begin_in(&routed.scratch, base->threads, 1, (csm_buffer *)(void *)c->given_scratch);
        for (int i = 0; i < base->threads; i++) csm_scratch_lend(&routed.scratch, i, 0, parts + (size_t)i * each, each);
    } else {
        status = csm_scratch_begin(&routed.scratch, base->threads, 1, &single);
    }
    if (status != CSM_OK) return status;

    static csm_status (*const bodies[])(void *, size_t, size_t, int) = {rows_body, groups_body, groups_body, long_body};
    if (split)
        base->interrupt.last =
            base->interrupt.check ? csm_now() : 0; /* many short regions: the clock runs across them */
    if (split) status = run_split(&routed, c);
    else
        status = csm_parallel(units, CSM_PIECE_ELEMENTS / (per * n + 1) + 1, base->threads,
                              c->has_temperatures ? own_body : bodies[p], &routed, &base->interrupt);
    csm_scratch_end(&routed.scratch);
    return status;
}

/* Computes a small call with contiguous rows by kernels->rows alone.  Returns the number of rows computed. */
static size_t run_small(const csm_softmax_call *c, const csm_shape *shape, const csm_view *input, const csm_view *y,
                        const csm_view *result) {
    const size_t size = c->base.itemsize, rows = shape->ndim ? shape->shape[0] : 1;
    if (shape->ndim > 1 || shape->n == 0 || c->shard || c->has_temperatures || rows * shape->n >= SMALL_ELEMENTS ||
        c->base.has_where || c->given_scratch || !csm_is_for_kernels(c) ||
        (c->op == CSM_OP_softmax && size != c->base.wide_size) || !csm_is_contiguous(shape, input, size, 1) ||
        (c->is_gradient && !csm_is_contiguous(shape, y, size, 1)) ||
        !csm_is_contiguous(shape, result, size, c->keeps_axis))
        return 0;
    csm_rows_job job = {.input = input->data,
                        .result = result->data,
                        .rows = rows,
                        .n = shape->n,
                        .temperature = &c->base.scales.ordinary};
    if (c->is_gradient) job.y = y->data;
    if (shape->ndim) {
        job.input_step = input->strides[0];
        job.result_step = result->strides[0];
        if (c->is_gradient) job.y_step = y->strides[0];
    }
    return c->kernels->rows(&job);
}

/* Storage bits of a masked element: y = 0 for softmax_vjp, -inf elsewhere. */
static uint64_t absent_bits(csm_op op, csm_dtype dtype) {
    const float no_class_f32 = -(float)CSM_INF;
    const double no_class_f64 = -CSM_INF;
    uint64_t bits = 0;
    if (op == CSM_OP_softmax_vjp) return 0;
    if (dtype == CSM_DTYPE_f32) memcpy(&bits, &no_class_f32, 4);
    else if (dtype == CSM_DTYPE_f64) memcpy(&bits, &no_class_f64, 8);
    else {
        uint16_t h = dtype == CSM_DTYPE_f16 ? 0xfc00 : 0xff80;
        memcpy(&bits, &h, 2);
    }
    return bits;
}

/* Returns CSM_OK if the shape is valid, and sets *done if there is nothing to compute. */
static csm_status check_shape(const csm_shape *shape, size_t itemsize, int keeps_axis, int *done) {
    size_t elements = itemsize;
    *done = 1;
    for (size_t i = 0; i < shape->ndim; i++) {
        if (shape->shape[i] == 0) return CSM_OK;
        if (elements > PTRDIFF_MAX / shape->shape[i]) return CSM_BAD_SHAPE;
        elements *= shape->shape[i];
    }
    if (shape->n != 0 && elements > PTRDIFF_MAX / shape->n) return CSM_BAD_SHAPE;
    *done = shape->n == 0 && keeps_axis;
    return CSM_OK;
}

csm_status csm_begin_softmax(csm_softmax_call *c, csm_op op, csm_dtype dtype, const csm_table *table,
                             const csm_options *options) {
#define IS_GRADIENT(name, signature, keeps_axis, pass1, combine) CSM_INPUTS_##signature == 2,
#define KEEPS_AXIS(name, signature, keeps_axis, pass1, combine) keeps_axis,
    static const char is_gradient[] = {CSM_OPS(IS_GRADIENT)}, keeps_axis[] = {CSM_OPS(KEEPS_AXIS)};
#undef IS_GRADIENT
#undef KEEPS_AXIS
    csm_call *base = &c->base;
    csm_set_dtype(base, dtype, table);
    c->op = op;
    c->kernels = &table->kernels[op][dtype];
    c->wide_kernels = &table->kernels[op][base->wide_dtype];
    c->is_gradient = is_gradient[op];
    c->keeps_axis = keeps_axis[op];
    c->given_scratch = options->scratch;
    c->shard = NULL;
    base->has_where = options->where != NULL;
    c->has_temperatures = options->temperatures != NULL;
    const double t = c->has_temperatures ? 1 : options->temperature;
    if (!csm_is_temperature(c, t)) return CSM_BAD_TEMPERATURE;
    csm_set_scales(&base->scales, t, csm_is_single(base));
    return CSM_OK;
}

void csm_finish_softmax(csm_softmax_call *c, const csm_options *options, const csm_fp_environment *caller) {
    csm_call *base = &c->base;
    base->absent = absent_bits(c->op, base->dtype);
    c->masked = c->op == CSM_OP_softmax ? 0 : base->absent;
    c->nan = 0;
    csm_put(base, &c->nan, CSM_NAN);
    base->interrupt =
        (csm_interrupt){.check = options->interrupt, .context = options->interrupt_context, .caller = *caller};
    base->threads = 1;
}

static csm_status run_softmax(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                              const csm_view *input, const csm_view *y, const csm_view *result,
                              const csm_options *options, const csm_shard *shard, csm_fp_environment *caller) {
    csm_options known = CSM_OPTIONS_INIT;
    csm_softmax_call c;
    csm_call *base = &c.base;
    options = csm_known_options(&known, sizeof known, options);
    if (shape->ndim > CSM_MAX_NDIM) return CSM_BAD_SHAPE;
    int nothing;
    csm_status status = csm_begin_softmax(&c, op, dtype, table, options);
    if (status == CSM_OK) status = check_shape(shape, base->itemsize, c.keeps_axis, &nothing);
    if (status != CSM_OK || nothing) return status;
    c.shard = shard;
    const size_t done = run_small(&c, shape, input, y, result);
    if (done > 0 && done == (shape->ndim ? shape->shape[0] : 1)) return CSM_OK;

    base->shape.n = shape->n;
    base->shape.ndim = shape->ndim;
    for (size_t i = 0; i < shape->ndim; i++) base->shape.shape[i] = shape->shape[i];
    if (done) base->shape.shape[0] -= done;
    csm_view *const all[6] = {&c.input, &c.result, &c.y, &base->where, &c.temperatures, &c.order};
    const csm_view *const given[6] = {input, result, y, options->where, options->temperatures, &c.order};
    const int is_used[6] = {input != NULL,   result != NULL,     c.is_gradient,
                            base->has_where, c.has_temperatures, shard != NULL};
    csm_view *used[6];
    int count = 0;
    if (shard) c.order = csm_contiguous(shape, 1, NULL, 1);
    if (!input) c.input = c.order; /* neither is read or written */
    if (!result) c.result = c.order;
    for (int v = 0; v < 6; v++) {
        if (!is_used[v]) continue;
        csm_copy_view(all[v], given[v], shape->ndim);
        if (done) all[v]->data = (char *)all[v]->data + (ptrdiff_t)done * all[v]->strides[0];
        used[count++] = all[v];
    }
    csm_collapse(&base->shape, used, count);
    if (c.has_temperatures) {
        size_t rows = 1;
        for (size_t i = 0; i < base->shape.ndim; i++) rows *= base->shape.shape[i];
        for (size_t i = 0; i < rows; i++)
            if (!csm_is_temperature(&c, temperature_of(&c, i))) return CSM_BAD_TEMPERATURE;
    }

    csm_finish_softmax(&c, options, caller);
    if (c.given_scratch) {
        c.given_size = csm_scratch_size(shape, 1);
        size_t threads = options->threads < 1 ? 1 : (size_t)options->threads;
        if (options->scratch_size / threads < c.given_size) return CSM_SMALL_SCRATCH;
    }
    status = run_call(&c, options->threads);
    *caller = base->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_softmax_shard(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                                 const csm_view *input, const csm_view *y, const csm_view *result,
                                 const csm_options *options, const csm_shard *shard) {
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run_softmax(op, dtype, table, shape, input, y, result, options, shard, &saved);
    csm_fp_leave(saved);
    return status;
}
csm_status csm_run_softmax(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                           const csm_view *input, const csm_view *y, const csm_view *result,
                           const csm_options *options) {
    return csm_run_softmax_shard(op, dtype, table, shape, input, y, result, options, NULL);
}

/* The functions of csoftmax.h */

#define UNARY(suffix, storage, compute, op)                                                                         \
    csm_status csm_##op##_##suffix(const csm_shape *shape, const csm_view *x, const csm_view *y,                    \
                                   const csm_options *o) {                                                          \
        return csm_run_softmax(CSM_OP_##op, CSM_DTYPE_##suffix, csm_current_table(), shape, x, NULL, y, o);         \
    }                                                                                                               \
    csm_status csm_##op##_rows_##suffix(const storage *x, ptrdiff_t x_step, storage *y, ptrdiff_t y_step, size_t n, \
                                        size_t begin, size_t end, double temperature) {                             \
        if (end < begin) return CSM_BAD_SHAPE;                                                                      \
        csm_shape shape = {.n = n, .ndim = 1, .shape = {end - begin}};                                              \
        const ptrdiff_t size = (ptrdiff_t)sizeof *x, first = (ptrdiff_t)begin;                                      \
        csm_view from = {.data = (void *)(uintptr_t)(x + first * x_step), .axis_stride = size};                     \
        csm_view to = {.data = y + first * y_step, .axis_stride = size};                                            \
        from.strides[0] = x_step * size;                                                                            \
        to.strides[0] = y_step * size;                                                                              \
        csm_options options = CSM_OPTIONS_INIT;                                                                     \
        options.temperature = temperature;                                                                          \
        return csm_##op##_##suffix(&shape, &from, &to, &options);                                                   \
    }
#define BINARY(suffix, storage, compute, op)                                                                          \
    csm_status csm_##op##_##suffix(const csm_shape *shape, const csm_view *dy, const csm_view *y, const csm_view *dx, \
                                   const csm_options *o) {                                                            \
        return csm_run_softmax(CSM_OP_##op, CSM_DTYPE_##suffix, csm_current_table(), shape, dy, y, dx, o);            \
    }
#define ENTRIES(op, signature, keeps_axis, pass1, combine) CSM_DTYPES_WITH(signature, op)
CSM_OPS(ENTRIES)
