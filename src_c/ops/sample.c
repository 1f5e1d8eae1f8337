/* The driver of sampling: temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution at one
 * uniform number for each draw.
 *
 * Without top-k and top-p the classes are in the order of their indices; with them in falling order, ties by lowest
 * index, as the kernels select them.  Masses are the e' of softmax, equal on every instruction set.  Sums over blocks
 * are the kernels'; within a block, and over selected classes, they run from the first to the last in double.  So a
 * draw depends only on the row, its parameters and its uniform number.
 *
 * top-p alone does not determine how many classes it needs: 64 are selected, then 8 times as many, until their mass
 * suffices.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../core/selection.h"

enum {
    DRAW_ELEMENTS = 8,   /* cost of a draw */
    PREFIX_DRAWS = 8,    /* with at least this many draws from a row, prefix sums are searched by bisection */
    FIRST_SELECTED = 64, /* number of classes first selected for top-p */
    GROWTH = 8           /* factor by which that number grows if they do not suffice */
};

/* Buffers of a thread. */
enum { ROW, WIDE, MASS, SUMS, SELECT, BLOCKS, VALUES, BUFFERS };

typedef struct sample_call {
    csm_call base;
    csm_view x, indices, uniforms, temperature, top_k, top_p, min_p;
    const csm_sample_options *options;
    size_t draws, rows;
    int is_direct;      /* x is contiguous and has no mask */
    csm_scales *scales; /* one for each thread, for the temperature of its row */
    csm_scratch scratch;
} sample_call;

/* The state of a row while it is drawn from: logits in `dtype`, with a finite maximum, and their constants. */
typedef struct sample_row {
    size_t index;
    int thread;
    const char *x, *given; /* given: in the caller's dtype, before any transformation; it determines the order */
    csm_dtype dtype;
    size_t itemsize;
    const csm_temperature *t;
    csm_block *blocks;
    double n, max_mass; /* n and e' of the maximum */
    double min_p, top_p;
    size_t top_k;
    csm_poll poll;
} sample_row;

static char *buffer(sample_call *call, int thread, int which, size_t size) {
    return csm_scratch_get(&call->scratch, thread, which, size);
}

static double number_at(const sample_call *call, const csm_view *v, size_t row) {
    double value;
    memcpy(&value, csm_row_data(&call->base, v, row), sizeof value);
    return value;
}

/* Writes e' of k logits, relative to the row's n, to `mass`, and their sum to block->hi. */
static void find_masses(const sample_call *call, const sample_row *row, const char *x, size_t k, char *mass,
                        csm_block *block) {
    const csm_call *c = &call->base;
    c->table->kernels[CSM_OP_softmax][row->dtype].pass1(x, NULL, mass, k, row->t, block);
    const double scale = csm_pow2(block->n - row->n);
    block->hi = (block->hi + block->lo) * scale;
    if (scale == 1) return;
    int is_positive = 0;
    for (size_t i = 0; i < k; i++) {
        csm_wide w = csm_to_wide(c, csm_wide_at(c, mass, i) * scale);
        memcpy(mass + i * c->wide_size, &w, c->wide_size);
        is_positive |= csm_from_wide(c, w) > 0;
    }
    if (!is_positive && block->hi == block->hi) block->hi = 0; /* every mass is too small for its type */
}

/* The first i with sum_{l <= i} mass_l > target, else the last that adds to the sum. */
static size_t search_masses(const sample_call *call, const char *mass, size_t k, double target) {
    double sum = 0;
    size_t last = 0;
    for (size_t i = 0; i < k; i++) {
        const double next = sum + csm_wide_at(&call->base, mass, i);
        if (!(next > sum)) continue;
        last = i;
        sum = next;
        if (sum > target) break;
    }
    return last;
}
/* search_masses on prefix sums. */
static size_t search_sums(const double *sums, size_t k, double target) {
    size_t low = 0, high = k; /* the first whose sum is greater, or k */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (sums[middle] > target) high = middle;
        else low = middle + 1;
    }
    if (low < k) return low;
    for (low = k - 1; low > 0 && !(sums[low] > sums[low - 1]);) low--;
    return low;
}

static double uniform_at(const sample_call *call, size_t row, size_t draw) {
    double u;
    memcpy(&u, csm_row_data(&call->base, &call->uniforms, row) + (ptrdiff_t)draw * call->uniforms.axis_stride,
           sizeof u);
    return u;
}
static void put_index(const sample_call *call, size_t row, size_t draw, int64_t index) {
    const csm_call *c = &call->base;
    memcpy((char *)call->indices.data + csm_offset(&c->shape, call->indices.strides, row) +
               (ptrdiff_t)draw * call->indices.axis_stride,
           &index, sizeof index);
}

/* Draws from `count` masses, those of the classes 0, 1, ... or of index[0], index[1], ... */
static csm_status draw_from(sample_call *call, const sample_row *row, const char *mass, size_t count,
                            const int64_t *index) {
    const csm_block *blocks = row->blocks;
    const size_t n_blocks = csm_block_count(count);
    double total = 0, *sums = NULL;
    for (size_t b = 0; b < n_blocks; b++) total += blocks[b].hi;
    if (call->draws >= PREFIX_DRAWS) {
        sums = (double *)(void *)buffer(call, row->thread, SUMS, count * sizeof *sums);
        if (!sums) return CSM_NO_MEMORY;
        for (size_t b = 0; b < n_blocks; b++) {
            double sum = 0;
            for (size_t i = b * CSM_BLOCK; i < count && i < (b + 1) * CSM_BLOCK; i++)
                sums[i] = sum += csm_wide_at(&call->base, mass, i);
            if (csm_poll_stops(&row->poll, CSM_BLOCK)) return CSM_INTERRUPTED;
        }
    }
    for (size_t draw = 0; draw < call->draws; draw++) {
        double target = uniform_at(call, row->index, draw) * total, before = 0;
        size_t block = 0, last = 0;
        if (csm_poll_stops(&row->poll, DRAW_ELEMENTS + n_blocks / 4)) return CSM_INTERRUPTED;
        for (; block < n_blocks; block++) {
            if (!(blocks[block].hi > 0)) continue;
            last = block;
            if (before + blocks[block].hi > target) break;
            before += blocks[block].hi;
        }
        if (block == n_blocks) before = total - blocks[block = last].hi;
        const size_t begin = block * CSM_BLOCK, k = csm_block_length(count, begin);
        const size_t at = begin + (sums ? search_sums(sums + begin, k, target - before)
                                        : search_masses(call, mass + begin * call->base.wide_size, k, target - before));
        put_index(call, row->index, draw, index ? index[at] : (int64_t)at);
    }
    return CSM_OK;
}

/* Sets masses below min_p times the largest to 0, and recomputes the sums of the blocks. */
static csm_status apply_min_p(const sample_call *call, const sample_row *row, char *mass, size_t count) {
    const csm_wide none = csm_to_wide(&call->base, 0);
    const double threshold = row->min_p * row->max_mass;
    for (size_t b = 0; b * CSM_BLOCK < count; b++) {
        double sum = 0;
        for (size_t i = b * CSM_BLOCK; i < count && i < (b + 1) * CSM_BLOCK; i++) {
            const double m = csm_wide_at(&call->base, mass, i);
            if (m >= threshold) sum += m;
            else memcpy(mass + i * call->base.wide_size, &none, call->base.wide_size);
        }
        row->blocks[b].hi = sum;
        if (b > 0 && csm_poll_stops(&row->poll, CSM_BLOCK)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

static csm_status draw_all(sample_call *call, const sample_row *row) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    char *mass = buffer(call, row->thread, MASS, n * c->wide_size);
    if (!mass) return CSM_NO_MEMORY;
    for (size_t b = 0; b < csm_block_count(n); b++) {
        const size_t begin = b * CSM_BLOCK, k = csm_block_length(n, begin);
        find_masses(call, row, row->x + begin * row->itemsize, k, mass + begin * c->wide_size, &row->blocks[b]);
        if (row->blocks[b].hi != row->blocks[b].hi) return CSM_NO_MASS; /* NaN */
        if (b > 0 && csm_poll_stops(&row->poll, CSM_BLOCK)) return CSM_INTERRUPTED;
    }
    csm_status status = row->min_p > 0 ? apply_min_p(call, row, mass, n) : CSM_OK;
    return status == CSM_OK ? draw_from(call, row, mass, n, NULL) : status;
}

/* The mass of a whole row; without meaning if the call has been interrupted. */
static double row_mass(const sample_call *call, const sample_row *row) {
    const csm_call *c = &call->base;
    double total = 0, low = 0;
    for (size_t begin = 0; begin < c->shape.n; begin += CSM_BLOCK) {
        csm_block block;
        c->table->kernels[CSM_OP_softmax][row->dtype].pass1(row->x + begin * row->itemsize, NULL, NULL,
                                                            csm_block_length(c->shape.n, begin), row->t, &block);
        csm_two_sum(&total, &low, (block.hi + block.lo) * csm_pow2(block.n - row->n));
        if (begin > 0 && csm_poll_stops(&row->poll, CSM_BLOCK)) break;
    }
    return total + low;
}

static csm_status draw_selected(sample_call *call, const sample_row *row) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, top_k = row->top_k;
    const double top_p = row->top_p, all = top_k == n ? row_mass(call, row) : 0;
    size_t k = top_k < n ? top_k : n < FIRST_SELECTED ? n : FIRST_SELECTED;
    if (all != all) return CSM_NO_MASS; /* NaN */
    for (;;) {
        char *memory = buffer(call, row->thread, SELECT, csm_select_size(n, k, c->wide_size));
        char *mass = buffer(call, row->thread, MASS, k * c->wide_size);
        char *values = buffer(call, row->thread, VALUES, k * row->itemsize);
        if (!memory || !mass || !values) return CSM_NO_MEMORY;
        csm_select chosen = csm_select_at(memory, n, k, c->wide_size, row->poll);
        c->table->select[c->dtype](row->given, n, k, 0, 1, &chosen);
        if (chosen.is_stopped) return CSM_INTERRUPTED;
        for (size_t i = 0; i < k; i++) {
            memcpy(values + i * row->itemsize, row->x + (size_t)chosen.index[i] * row->itemsize, row->itemsize);
            if (csm_poll_at(&row->poll, i)) return CSM_INTERRUPTED;
        }
        for (size_t begin = 0; begin < k; begin += CSM_BLOCK) {
            find_masses(call, row, values + begin * row->itemsize, csm_block_length(k, begin),
                        mass + begin * c->wide_size, &row->blocks[begin / CSM_BLOCK]);
            if (begin > 0 && csm_poll_stops(&row->poll, CSM_BLOCK)) return CSM_INTERRUPTED;
        }
        if (row->blocks[0].hi != row->blocks[0].hi) return CSM_NO_MASS; /* NaN comes first */
        double total = all, sum = 0;
        for (size_t i = 0; i < k && top_k < n; i++) {
            total += csm_wide_at(c, mass, i);
            if (csm_poll_at(&row->poll, i)) return CSM_INTERRUPTED;
        }
        size_t kept = top_p < 1 ? 0 : k;
        while (kept < k && sum < top_p * total) {
            sum += csm_wide_at(c, mass, kept++);
            if (csm_poll_at(&row->poll, kept)) return CSM_INTERRUPTED;
        }
        if (kept < k || top_k < n || k == n || sum >= top_p * total) {
            csm_status status = apply_min_p(call, row, mass, kept);
            return status == CSM_OK ? draw_from(call, row, mass, kept, chosen.index) : status;
        }
        k = k > n / GROWTH ? n : k * GROWTH;
    }
}

/* Reads and checks the parameters of a row. */
static csm_status read_parameters(const sample_call *call, sample_row *row, double *temperature) {
    const csm_sample_options *o = call->options;
    const size_t at = row->index, n = call->base.shape.n;
    *temperature = o->temperature ? number_at(call, &call->temperature, at) : 1;
    row->top_p = o->top_p ? number_at(call, &call->top_p, at) : 1;
    row->min_p = o->min_p ? number_at(call, &call->min_p, at) : 0;
    row->top_k = n;
    if (o->top_k) {
        int64_t k;
        memcpy(&k, csm_row_data(&call->base, &call->top_k, at), sizeof k);
        if (k < 1) return CSM_BAD_OPTION;
        if ((uint64_t)k < n) row->top_k = (size_t)k;
    }
    if (!(*temperature >= 0)) return CSM_BAD_TEMPERATURE;
    if (!(row->top_p > 0 && row->top_p <= 1) || !(row->min_p >= 0 && row->min_p <= 1)) return CSM_BAD_OPTION;
    if (*temperature == 0) row->top_k = 1;
    return CSM_OK;
}

static csm_status find_max(const sample_call *call, const sample_row *row, csm_dtype dtype, size_t size, double *max) {
    const csm_call *c = &call->base;
    *max = -CSM_INF;
    for (size_t begin = 0; begin < c->shape.n; begin += CSM_BLOCK) {
        const double part = c->table->max[dtype](row->x + begin * size, csm_block_length(c->shape.n, begin));
        if (part > *max || begin == 0) *max = part;
        if (begin > 0 && csm_poll_stops(&row->poll, CSM_BLOCK)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* Transforms a row beyond exp's range reduction. */
static csm_status transform_row(sample_call *call, sample_row *row, const csm_scales *scales, double *max) {
    const csm_call *c = &call->base;
    const size_t n = c->shape.n;
    char *wide = buffer(call, row->thread, WIDE, n * c->wide_size);
    if (!wide) return CSM_NO_MEMORY;
    for (size_t begin = 0; begin < n; begin += CSM_BLOCK) {
        const size_t end = begin + csm_block_length(n, begin);
        char *part = wide + begin * c->wide_size;
        c->table->widen[c->dtype](row->given + begin * c->itemsize, part, end - begin);
        for (size_t i = begin; i < end; i++) /* the transformation of T = 0 would lose NaN */
            if (csm_wide_at(c, wide, i) != csm_wide_at(c, wide, i)) return CSM_NO_MASS;
        csm_transform(scales, csm_is_single(c), part, end - begin, *max);
        if (begin > 0 && csm_poll_stops(&row->poll, 2 * CSM_BLOCK)) return CSM_INTERRUPTED;
    }
    row->x = wide;
    row->dtype = c->wide_dtype;
    row->itemsize = c->wide_size;
    row->t = &scales->transformed;
    return find_max(call, row, c->wide_dtype, c->wide_size, max);
}

static csm_status draw_row(sample_call *call, size_t at, int thread) {
    csm_call *c = &call->base;
    csm_scales *scales = &call->scales[thread];
    const size_t n = c->shape.n;
    sample_row row = {
        .index = at, .thread = thread, .dtype = c->dtype, .itemsize = c->itemsize, .t = &scales->ordinary,
        .poll = csm_poll_of(&c->interrupt, thread)};
    double temperature;
    csm_status status = read_parameters(call, &row, &temperature);
    if (status != CSM_OK) return status;

    const csm_strided from = csm_row_of(c, &call->x, at);
    row.x = from.data;
    if (!call->is_direct) {
        const csm_strided mask = csm_mask_of(c, at);
        char *copy = buffer(call, thread, ROW, n * c->itemsize);
        if (!copy) return CSM_NO_MEMORY;
        if (!csm_gather_row(c, thread, copy, from, n, c->itemsize, &mask, &c->absent)) return CSM_INTERRUPTED;
        row.x = copy;
    }
    row.given = row.x;
    row.blocks = (csm_block *)(void *)buffer(call, thread, BLOCKS, (n / CSM_BLOCK + 1) * sizeof(csm_block));
    if (!row.blocks) return CSM_NO_MEMORY;
    double max;
    status = find_max(call, &row, c->dtype, c->itemsize, &max);
    if (status != CSM_OK) return status;
    if (!(max > -CSM_INF && max < CSM_INF)) return CSM_NO_MASS;
    if (!(scales->temperature == temperature)) csm_set_scales(scales, temperature, csm_is_single(c));
    if (!csm_fits_range(scales, max)) status = transform_row(call, &row, scales, &max);
    if (status != CSM_OK) return status;

    const csm_wide highest = csm_to_wide(c, max);
    csm_wide e;
    csm_block top;
    c->table->kernels[CSM_OP_softmax][c->wide_dtype].pass1(&highest, NULL, &e, 1, row.t, &top);
    row.n = top.n;
    row.max_mass = csm_from_wide(c, e);
    return row.top_k < n || row.top_p < 1 ? draw_selected(call, &row) : draw_all(call, &row);
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    sample_call *call = context;
    for (size_t row = begin; row < end; row++) {
        csm_status status = draw_row(call, row, thread);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static csm_status run_sample(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                             size_t draws, const csm_view *uniform, const csm_view *indices,
                             const csm_sample_options *o, csm_fp_environment *caller) {
    sample_call call;
    csm_call *c = &call.base;
    memset(&call, 0, sizeof call);
    csm_set_dtype(c, dtype, table);
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, indices, uniform, o->where, o->temperature, o->top_k, o->top_p, o->min_p},
        (csm_view *[]){&call.x, &call.indices, &call.uniforms, o->where ? &c->where : NULL,
                       o->temperature ? &call.temperature : NULL, o->top_k ? &call.top_k : NULL,
                       o->top_p ? &call.top_p : NULL, o->min_p ? &call.min_p : NULL},
        8, &call.rows);
    if (status != CSM_OK || call.rows == 0 || draws == 0) return status;
    if (shape->n == 0) return CSM_NO_MASS;
    c->has_where = o->where != NULL;
    call.options = o;
    call.draws = draws;
    call.is_direct = !c->has_where && csm_is_contiguous(&c->shape, &call.x, c->itemsize, 1);
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = *caller};
    c->threads = csm_threads_for((double)call.rows * (double)shape->n, call.rows, o->threads < 1 ? 1 : o->threads);
    csm_buffer single[BUFFERS];
    status = csm_scratch_begin(&call.scratch, c->threads, BUFFERS, single);
    if (status != CSM_OK) return status;
    call.scales = csm_allocate((size_t)c->threads * sizeof *call.scales);
    for (int i = 0; call.scales && i < c->threads; i++) csm_set_scales(&call.scales[i], 1, csm_is_single(c));
    if (!call.scales) status = CSM_NO_MEMORY;
    else
        status = csm_parallel(call.rows, CSM_PIECE_ELEMENTS / 4 / (shape->n + 1) + 1, c->threads, rows_body, &call,
                              &c->interrupt);
    csm_release(call.scales);
    csm_scratch_end(&call.scratch);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_sample(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                          size_t draws, const csm_view *uniform, const csm_view *indices,
                          const csm_sample_options *options) {
    const csm_sample_options defaults = csm_default_sample_options();
    csm_fp_environment saved = csm_fp_enter();
    csm_status status =
        run_sample(dtype, table, shape, x, draws, uniform, indices, options ? options : &defaults, &saved);
    csm_fp_leave(saved);
    return status;
}

#define SAMPLE(suffix, storage, compute)                                                                             \
    csm_status csm_sample_##suffix(const csm_shape *shape, const csm_view *x, size_t draws, const csm_view *uniform, \
                                   const csm_view *indices, const csm_sample_options *o) {                           \
        return csm_run_sample(CSM_DTYPE_##suffix, csm_current_table(), shape, x, draws, uniform, indices, o);        \
    }
CSM_DTYPES(SAMPLE)
