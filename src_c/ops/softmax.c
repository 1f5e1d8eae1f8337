/* From a call to its units of work: one path for each kind of layout, all with the same bits.
 *
 *   rows   contiguous along the axis, n <= CSM_BLOCK          unit: a row
 *   tiles  rows side by side (an axis that is not the last)   unit: a tile of rows
 *   packed any other layout, or a mask                        unit: a group of rows, copied to scratch
 *   small  a few rows, contiguous too                         no unit: at once, before any of this is looked at
 *   long   n > CSM_BLOCK: row by row (row.c); rows that are few or huge are split at their blocks
 */
#include "internal.h"
#include "kernel/scalars.h"

#include <math.h>
#include <stdlib.h>

enum {
    SPLIT = 1 << 20, /* rows from here on are split over threads however many there are */
    SMALL = 2048, /* elements of a call for which finding a path would cost as much as the rows */
    TABLES = 2 * 64 /* bytes a thread of the caller's scratch for the tables of run_call and run_split */
};

static size_t tile_width(const csm_call *c) {
    size_t least = 16, most = CSM_TILE_WIDTH;
    if (c->has_b) { /* no copy of the tile in scratch, but lanes */
        most = c->wide_size == 4 ? CSM_VJP_WIDTH : CSM_VJP_WIDTH / 2;
        least = most / 2;
    }
    size_t width = 256 * 1024 / ((c->shape.n | 1) * c->wide_size) / 16 * 16; /* stays in the second-level cache */
    if (width > most) width = most;
    return width < least ? least : width;
}

typedef enum path { ROWS, TILES, PACKED, LONG } path;

typedef struct work {
    const csm_call *call;
    path path;
    size_t rows;           /* all rows */
    size_t inner, per;     /* rows along the last batch axis; rows in a unit */
    size_t pack_pitch;
    size_t scratch_size;   /* a thread */
    csm_tells tells;
    char **memory;         /* a thread's scratch, allocated when first needed */
} work;

static size_t scratch_size(path p, size_t n, size_t itemsize) {
    size_t size = csm_row_scratch_size(n);
    if (p == TILES) size += CSM_TILE_BYTES;
    if (p == PACKED || p == TILES) size += 2 * csm_pack_pitch(n, itemsize) * csm_pack_rows(n, itemsize);
    if (p == ROWS) size += CSM_BLOCK * sizeof(float);
    return csm_rounded(size);
}

size_t csm_scratch_size(const csm_shape *shape, int threads) {
    size_t most = 0;
    if (shape->n > PTRDIFF_MAX / 64) return 0;
    for (int p = ROWS; p <= LONG; p++)
        for (size_t itemsize = 2; itemsize <= 8; itemsize *= 2) {
            size_t size = scratch_size((path)p, shape->n, itemsize);
            if (size > most && !(p == PACKED && shape->n * itemsize > CSM_PACK_LIMIT)) most = size;
        }
    return (most + TABLES) * (size_t)(threads < 1 ? 1 : threads);
}

static char *scratch(work *w, int thread) {
    if (!w->memory[thread]) w->memory[thread] = csm_allocate(w->scratch_size);
    return w->memory[thread];
}

static csm_one_row row_at(const csm_call *c, size_t row) {
    csm_one_row r;
    memset(&r, 0, sizeof r);
    r.a = csm_row_of(c, &c->a, row);
    if (c->has_b) r.b = csm_row_of(c, &c->b, row);
    r.where = csm_mask_of(c, row);
    r.y = (char *)c->y.data + csm_offset(&c->shape, c->y.strides, row);
    r.y_axis = c->y.axis_stride;
    return r;
}

/* Rows that a unit's `rows` takes, and the exceptional ones among them through row.c.  first: index of the first
 * row in the call, for its mask (NULL when rows are not gathered). */
static csm_status run_rows(work *w, csm_rows_job job, int thread, const csm_strided *where) {
    const csm_call *c = w->call;
    size_t at = 0, rows = job.rows;
    const char *a = job.a, *b = job.b;
    char *y = job.y;
    while (at < rows) {
        job.a = a + (ptrdiff_t)at * job.a_step;
        job.b = c->has_b ? b + (ptrdiff_t)at * job.b_step : NULL;
        job.y = y + (ptrdiff_t)at * job.y_step;
        job.rows = rows - at;
        if (c->shape.n <= CSM_BLOCK && !(c->forward && c->scales.always_transform)) {
            size_t done = c->kernels->rows(&job);
            at += done;
            if (at == rows) break;
            job.a += (ptrdiff_t)done * job.a_step;
            job.y += (ptrdiff_t)done * job.y_step;
        }
        char *memory = scratch(w, thread);
        if (!memory) return CSM_NO_MEMORY;
        csm_row_scratch s = csm_row_scratch_at(memory, c->shape.n);
        csm_one_row row = {.a = {job.a, 0, (ptrdiff_t)c->itemsize},
                           .b = {job.b, 0, (ptrdiff_t)c->itemsize},
                           .y = job.y,
                           .y_axis = (ptrdiff_t)c->itemsize,
                           .gathered = 1};
        if (where) row.where = (csm_strided){where->data + (ptrdiff_t)at * where->row, 0, where->axis};
        csm_row_any(c, &row, &s);
        at++;
    }
    return CSM_OK;
}

/* A group of neighbouring rows through scratch. */
static csm_status run_packed(work *w, size_t row, size_t rows, int thread) {
    const csm_call *c = w->call;
    const size_t n = c->shape.n, size = c->itemsize, pitch = w->pack_pitch;
    char *memory = scratch(w, thread);
    if (!memory) return CSM_NO_MEMORY;
    char *a = memory + csm_row_scratch_size(n), *b = a + pitch * csm_pack_rows(n, size);
    csm_one_row r = row_at(c, row);
    for (size_t done = 0; done < rows;) {
        size_t most = csm_pack_rows(n, size), count = rows - done < most ? rows - done : most;
        ptrdiff_t skip = (ptrdiff_t)done;
        ptrdiff_t steps[4] = {csm_last_stride(&c->shape, &c->a), csm_last_stride(&c->shape, &c->b),
                              csm_last_stride(&c->shape, &c->y), csm_last_stride(&c->shape, &c->where)};
        csm_strided from_a = {r.a.data + skip * steps[0], steps[0], r.a.axis};
        csm_strided from_b = {c->has_b ? r.b.data + skip * steps[1] : NULL, steps[1], r.b.axis};
        csm_strided mask = {c->has_where ? r.where.data + skip * steps[3] : NULL, steps[3], r.where.axis};
        char *y = r.y + skip * steps[2];
        csm_gather(a, pitch, from_a, count, n, size, c->forward ? &mask : NULL, &c->absent);
        if (c->has_b) csm_gather(b, pitch, from_b, count, n, size, &mask, &c->absent);
        csm_rows_job job = {.a = a,
                            .b = b,
                            .y = a,
                            .a_step = (ptrdiff_t)pitch,
                            .b_step = (ptrdiff_t)pitch,
                            .y_step = (ptrdiff_t)pitch,
                            .rows = count,
                            .n = n,
                            .temperature = &c->scales.ordinary,
                            .scratch = memory};
        csm_status status = run_rows(w, job, thread, c->has_where ? &mask : NULL);
        if (status != CSM_OK) return status;
        csm_scatter(y, steps[2], r.y_axis, a, pitch, count, c->keeps_axis ? n : 1, size);
        done += count;
    }
    return CSM_OK;
}

/* The maximal run of rows from `row` on along the last batch axis, at most `end`. */
static size_t run_length(const work *w, size_t row, size_t end) {
    size_t left = w->inner - row % w->inner;
    return end - row < left ? end - row : left;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    work *w = context;
    const csm_call *c = w->call;
    while (begin < end) {
        size_t count = run_length(w, begin, end);
        csm_one_row r = row_at(c, begin);
        csm_rows_job job = {.a = r.a.data,
                            .b = r.b.data,
                            .y = r.y,
                            .a_step = csm_last_stride(&c->shape, &c->a),
                            .b_step = csm_last_stride(&c->shape, &c->b),
                            .y_step = csm_last_stride(&c->shape, &c->y),
                            .rows = count,
                            .n = c->shape.n,
                            .temperature = &c->scales.ordinary,
                            .tells = w->tells};
        if (c->itemsize != c->wide_size && c->op == CSM_OP_softmax && !(job.scratch = scratch(w, thread)))
            return CSM_NO_MEMORY;
        csm_status status = run_rows(w, job, thread, NULL);
        if (status != CSM_OK) return status;
        begin += count;
    }
    return CSM_OK;
}

/* Units of tiles and packed groups do not cross the end of the last batch axis. */
static csm_status groups_body(void *context, size_t begin, size_t end, int thread) {
    work *w = context;
    const csm_call *c = w->call;
    size_t each = (w->inner + w->per - 1) / w->per;
    for (size_t unit = begin; unit < end; unit++) {
        size_t inner = unit % each * w->per, row = unit / each * w->inner + inner;
        size_t count = w->inner - inner < w->per ? w->inner - inner : w->per;
        if (w->path == TILES) {
            char *memory = scratch(w, thread);
            if (!memory) return CSM_NO_MEMORY;
            csm_one_row r = row_at(c, row);
            csm_tile_job job = {.a = r.a.data,
                                .y = r.y,
                                .b = r.b.data,
                                .a_step = r.a.axis,
                                .b_step = r.b.axis,
                                .y_step = r.y_axis,
                                .n = c->shape.n,
                                .width = count,
                                .temperature = &c->scales.ordinary,
                                .scratch = memory + w->scratch_size - CSM_TILE_BYTES};
            if (c->kernels->tile(&job)) continue;
        }
        csm_status status = run_packed(w, row, count, thread);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static csm_status long_body(void *context, size_t begin, size_t end, int thread) {
    work *w = context;
    char *memory = scratch(w, thread);
    if (!memory) return CSM_NO_MEMORY;
    csm_row_scratch s = csm_row_scratch_at(memory, w->call->shape.n);
    for (; begin < end; begin++) {
        csm_one_row row = row_at(w->call, begin);
        csm_row_any(w->call, &row, &s);
    }
    return CSM_OK;
}

_Static_assert(sizeof(csm_row_scratch) <= TABLES / 2 && sizeof(char *) <= TABLES / 2, "TABLES");
static csm_status run_split(work *w, csm_call *c) {
    csm_row_scratch *each = c->scratch ? (csm_row_scratch *)(void *)(c->scratch + c->threads * (TABLES / 2))
                                       : malloc((size_t)c->threads * sizeof *each);
    csm_status status = each ? CSM_OK : CSM_NO_MEMORY;
    for (int i = 0; status == CSM_OK && i < c->threads; i++) {
        char *memory = scratch(w, i);
        if (memory) each[i] = csm_row_scratch_at(memory, c->shape.n);
        else status = CSM_NO_MEMORY;
    }
    for (size_t i = 0; status == CSM_OK && i < w->rows; i++) {
        csm_one_row row = row_at(c, i);
        status = csm_row_split(c, &row, each);
    }
    if (!c->scratch) free(each);
    return status;
}

/* Neighbouring rows are neighbours in memory, and all elements are aligned. */
static int side_by_side(const csm_shape *shape, const csm_view *v, size_t size, int has_axis) {
    uintptr_t bits = (uintptr_t)v->data;
    if (has_axis) bits |= (uintptr_t)v->axis_stride;
    for (size_t i = 0; i < shape->ndim; i++) bits |= (uintptr_t)v->strides[i];
    return bits % size == 0 && csm_last_stride(shape, v) == (ptrdiff_t)size;
}

static path choose(const csm_call *c, size_t rows, size_t inner) {
    const size_t n = c->shape.n, size = c->itemsize;
    int plain = !c->has_where && csm_contiguous_view(&c->shape, &c->a, size, 1) &&
                (!c->has_b || csm_contiguous_view(&c->shape, &c->b, size, 1)) &&
                csm_contiguous_view(&c->shape, &c->y, size, c->keeps_axis);
    if (n > CSM_BLOCK) {
        if (!plain && n * size <= CSM_PACK_LIMIT / 8 && rows > 1) return PACKED;
        return LONG;
    }
    if (plain) return ROWS;
    if (!c->has_where && c->kernels->tile && n > 0 && inner >= 8 && side_by_side(&c->shape, &c->a, size, 1) &&
        side_by_side(&c->shape, &c->y, size, c->keeps_axis) && (!c->has_b || side_by_side(&c->shape, &c->b, size, 1)) &&
        !(c->forward && c->scales.always_transform))
        return TILES;
    return PACKED;
}

static csm_status run_call(csm_call *c, int threads) {
    const size_t n = c->shape.n;
    size_t rows = 1, inner = c->shape.ndim ? c->shape.shape[c->shape.ndim - 1] : 1;
    for (size_t i = 0; i < c->shape.ndim; i++) rows *= c->shape.shape[i];
    if (threads < 1) threads = 1;

    path p = choose(c, rows, inner);
    double elements = (double)rows * (double)n;
    int split = p == LONG && (n >= SPLIT || rows < (size_t)threads);
    size_t per = 1, units = rows;
    if (p == TILES) per = tile_width(c);
    if (p == PACKED) per = csm_pack_rows(n, c->itemsize);
    if (p == TILES || p == PACKED) {
        if (p == TILES && threads > 1) /* at least one tile for each thread */
            while (per > 16 && rows / inner * ((inner + per - 1) / per) < (size_t)threads) per /= 2;
        per = per > 16 ? per / 16 * 16 : per;
        if (per > inner) per = inner;
        units = rows / inner * ((inner + per - 1) / per);
    }
    c->threads = split ? csm_threads_for((double)n, n / CSM_BLOCK, threads) : csm_threads_for(elements, units, threads);
    char *one = NULL, **memory = &one;
    if (c->scratch) {
        char *parts = c->scratch + c->threads * TABLES;
        memory = (char **)(void *)c->scratch;
        for (int i = 0; i < c->threads; i++) memory[i] = parts + (size_t)i * (c->scratch_each - TABLES);
    } else if (c->threads > 1 && !(memory = calloc((size_t)c->threads, sizeof *memory))) {
        return CSM_NO_MEMORY;
    }
    work w = {.call = c,
              .path = p,
              .rows = rows,
              .inner = inner,
              .per = per,
              .pack_pitch = csm_pack_pitch(n, c->itemsize),
              .scratch_size = scratch_size(p, n, c->itemsize),
              .tells = csm_tells_of(2 * elements * (double)c->itemsize),
              .memory = memory};

    static csm_status (*const bodies[])(void *, size_t, size_t, int) = {rows_body, groups_body, groups_body, long_body};
    csm_status status;
    if (split) c->interrupt.last = c->interrupt.check ? csm_now() : 0; /* many short regions */
    if (split) status = run_split(&w, c);
    else status = csm_parallel(units, CSM_PIECE / (per * n + 1) + 1, c->threads, bodies[p], &w, &c->interrupt);

    if (!c->scratch)
        for (int i = 0; i < c->threads; i++) csm_release(memory[i]);
    if (memory != &one && !c->scratch) free(memory);
    return status;
}

void csm_set_dtype(csm_call *c, csm_dtype dtype, const csm_table *table) {
#define SIZE(name, storage, compute) sizeof(storage),
#define WIDE(name, storage, compute) CSM_DTYPE_##compute,
    static const size_t sizes[] = {CSM_DTYPES(SIZE)};
    static const csm_dtype wide[] = {CSM_DTYPES(WIDE)};
#undef SIZE
#undef WIDE
    c->table = table;
    c->dtype = dtype;
    c->wide_dtype = wide[dtype];
    c->itemsize = sizes[dtype];
    c->wide_size = sizes[c->wide_dtype];
}

/* Constants of z = x / T for the compute type, and whether rows can take the ordinary path with them. */
static void set_temperature(csm_temperature *t, double value, int single) {
    const double ln2 = 0x1.62e42fefa39efp-1, ln2_low = 0x1.abc9e3b39803fp-56, log2e = 0x1.71547652b82fep+0;
    t->t = value;
    t->tempered = value != 1;
    t->inv_t = single ? (double)(float)(1 / value) : 1 / value;
    t->inv_t_low = single ? (double)(float)(1 / value - t->inv_t) : fma(-t->inv_t, value, 1) / value;
    if (single) {
        t->log2e = (double)(float)(log2e / value);
        t->ln2_hi = t->tempered ? (double)(float)(ln2 * value) : 0x1.62e430p-1;
        t->ln2_lo = t->tempered ? (double)(float)(ln2 * value - t->ln2_hi) : -0x1.05c610p-29;
    } else {
        t->log2e = log2e / value;
        t->ln2_hi = ln2 * value;
        t->ln2_lo = fma(ln2, value, -t->ln2_hi) + ln2_low * value;
    }
    t->limit = (single ? 1e6 : 0x1p45) * value;
    t->reference_limit = (single ? 0x1p21 : 0x1p46) * value;
    /* y T^-1 (dy - s): last what is less than 1, for y may be subnormal and y (dy - s) not */
    t->inv_t1 = value > 1 ? 1 : t->inv_t;
    t->inv_t2 = value > 1 ? t->inv_t : 1;
}

void csm_set_scales(csm_scales *s, double temperature, int single) {
    const double t = temperature, range = single ? 0x1p60 : 0x1p500;
    s->temperature = t;
    s->scale1 = s->scale2 = 1;
    s->always_transform = !(t >= 1 / range && t <= range);
    set_temperature(&s->ordinary, s->always_transform ? 1 : t, single);
    s->transformed = s->ordinary;
    if (!s->always_transform || t == 0 || !(t < CSM_INF)) return;
    int k, k1;
    double mantissa = 2 * frexp(t, &k); /* T = mantissa 2^k */
    k--;
    /* beyond this the result is the limit, whatever the data */
    const int most = single ? 170 : 2100;
    if (k < -most) k = -most;
    if (k > most) k = most;
    k1 = -k / 2;
    s->scale1 = ldexp(1, k1);
    s->scale2 = ldexp(1, -k - k1);
    set_temperature(&s->transformed, mantissa, single);
    /* |max / T| against the limit is decided on the data as they are; gradients multiply by 1/T */
    s->ordinary.limit = (single ? 1e6 : 0x1p45) * t;
    s->ordinary.inv_t1 = s->scale1 / mantissa;
    if (single) s->ordinary.inv_t1 = (double)(float)s->ordinary.inv_t1;
    s->ordinary.inv_t2 = s->scale2;
}

/* A small call whose rows are contiguous, without anything but kernels->rows around them; returns how many are done. */
static size_t run_small(const csm_call *c, const csm_shape *shape, const csm_view *a, const csm_view *b,
                        const csm_view *y) {
    const size_t size = c->itemsize, rows = shape->ndim ? shape->shape[0] : 1;
    if (shape->ndim > 1 || shape->n == 0 || rows * shape->n >= SMALL || c->has_where || c->scratch ||
        (c->forward && c->scales.always_transform) || (c->op == CSM_OP_softmax && size != c->wide_size) ||
        !csm_contiguous_view(shape, a, size, 1) || (c->has_b && !csm_contiguous_view(shape, b, size, 1)) ||
        !csm_contiguous_view(shape, y, size, c->keeps_axis))
        return 0;
    csm_rows_job job = {.a = a->data, .y = y->data, .rows = rows, .n = shape->n, .temperature = &c->scales.ordinary};
    if (c->has_b) job.b = b->data;
    if (shape->ndim) {
        job.a_step = a->strides[0];
        job.y_step = y->strides[0];
        if (c->has_b) job.b_step = b->strides[0];
    }
    return c->kernels->rows(&job);
}

static csm_status run(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *a,
                      const csm_view *b, const csm_view *y, const csm_options *options, csm_fp_environment *caller) {
    static const csm_options defaults = CSM_OPTIONS_INIT;
#define BINARY(name, binary, keeps) binary,
#define KEEPS(name, binary, keeps) keeps,
    static const char binary[] = {CSM_OPS(BINARY)}, keeps[] = {CSM_OPS(KEEPS)};
#undef BINARY
#undef KEEPS
    csm_call c;
    if (!options) options = &defaults;
    if (shape->ndim > CSM_MAX_NDIM) return CSM_BAD_SHAPE;
    c.op = op;
    csm_set_dtype(&c, dtype, table);
    c.kernels = &table->kernels[op][dtype];
    c.wide_kernels = &table->kernels[op][c.wide_dtype];
    c.has_b = binary[op];
    c.forward = !binary[op];
    c.keeps_axis = keeps[op];
    c.has_where = options->where != NULL;
    const double t = options->temperature;
    if (!(t >= 0) || (!c.forward && (t == 0 || !(t < CSM_INF)))) return CSM_BAD_TEMPERATURE;
    size_t elements = c.itemsize;
    for (size_t i = 0; i < shape->ndim; i++) {
        if (shape->shape[i] == 0) return CSM_OK;
        if (elements > PTRDIFF_MAX / shape->shape[i]) return CSM_BAD_SHAPE;
        elements *= shape->shape[i];
    }
    if (shape->n != 0 && elements > PTRDIFF_MAX / shape->n) return CSM_BAD_SHAPE;
    if (shape->n == 0 && c.keeps_axis) return CSM_OK;

    c.scratch = options->scratch;
    csm_set_scales(&c.scales, t, c.wide_size == 4);
    const size_t done = run_small(&c, shape, a, b, y);
    if (done > 0 && done == (shape->ndim ? shape->shape[0] : 1)) return CSM_OK;

    /* only as much of the views as there are axes: they are long */
    c.shape.n = shape->n;
    c.shape.ndim = shape->ndim;
    csm_view *views[4];
    const csm_view *given[4] = {a, y, b, options->where};
    int count = 0;
    csm_view *all[4] = {&c.a, &c.y, &c.b, &c.where};
    const int used[4] = {1, 1, c.has_b, c.has_where};
    for (int v = 0; v < 4; v++) {
        if (!used[v]) continue;
        all[v]->data = given[v]->data;
        all[v]->axis_stride = given[v]->axis_stride;
        for (size_t i = 0; i < shape->ndim; i++) all[v]->strides[i] = given[v]->strides[i];
        if (done) all[v]->data = (char *)all[v]->data + (ptrdiff_t)done * all[v]->strides[0];
        views[count++] = all[v];
    }
    for (size_t i = 0; i < shape->ndim; i++) c.shape.shape[i] = shape->shape[i];
    if (done) c.shape.shape[0] -= done;
    csm_collapse(&c.shape, views, count);

    const float no_class_f32 = -(float)CSM_INF;
    const double no_class_f64 = -CSM_INF;
    c.absent = 0; /* softmax_vjp: y = 0; elsewhere -inf */
    if (op != CSM_OP_softmax_vjp) {
        if (dtype == CSM_DTYPE_f32) memcpy(&c.absent, &no_class_f32, 4);
        else if (dtype == CSM_DTYPE_f64) memcpy(&c.absent, &no_class_f64, 8);
        else {
            uint16_t h = dtype == CSM_DTYPE_f16 ? 0xfc00 : 0xff80;
            memcpy(&c.absent, &h, 2);
        }
    }
    c.interrupt = (csm_interrupt){options->interrupt, options->interrupt_context, 0, *caller};
    c.threads = 1;
    if (c.scratch) {
        c.scratch_each = csm_scratch_size(shape, 1);
        size_t threads = options->threads < 1 ? 1 : (size_t)options->threads;
        if (options->scratch_size / threads < c.scratch_each) return CSM_SMALL_SCRATCH;
    }
    csm_status status = run_call(&c, options->threads);
    *caller = c.interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run(csm_op op, csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *a,
                   const csm_view *b, const csm_view *y, const csm_options *options) {
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run(op, dtype, table, shape, a, b, y, options, &saved);
    csm_fp_leave(saved);
    return status;
}
