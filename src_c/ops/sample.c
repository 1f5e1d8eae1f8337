/* Draws from rows of logits: temperature, top-k, top-p, min-p, then the inverse of the cumulative distribution at one
 * uniform number a draw.
 *
 * Without top-k and top-p the classes are in the order of their indices; with them in falling order, lowest index first
 * on ties, as the kernels select them.  Masses are the e' of softmax, equal on every instruction set; sums over blocks
 * are the kernels', within a block or over selected classes they run from the first to the last in double.  So a draw
 * depends on the row, its parameters and its uniform number, and on nothing else.
 *
 * top-p alone does not say how many classes it needs: 64 are selected, then 8 times as many, until their mass suffices.
 */
#include "internal.h"
#include "kernel/scalars.h"

typedef struct buffer {
    char *data;
    size_t size;
} buffer;

/* What a thread computes with. */
typedef struct sample_scratch {
    csm_call call; /* with the temperature of the row */
    buffer row, wide, mass, sums, select, blocks, values;
} sample_scratch;

typedef struct sample_run {
    csm_call base;          /* a: logits, y: indices, b: uniform numbers */
    csm_view temperature, top_k, top_p, min_p;
    const csm_sample_options *options;
    size_t size, rows;
    int direct;
    sample_scratch *scratch; /* of each thread */
} sample_run;

/* A row on its way: logits in `dtype`, whose maximum is finite, and the constants that belong to them. */
typedef struct sample_row {
    const char *x, *given;  /* given: in the caller's dtype, before any transformation; its order decides */
    csm_dtype dtype;
    size_t itemsize;
    const csm_temperature *t;
    csm_block *blocks;
    double n, most; /* n and e' of the maximum */
} sample_row;

enum { PREFIXES_FROM = 8, FIRST = 64, GROWTH = 8 };

static int reserve(buffer *b, size_t size) {
    if (size <= b->size) return 1;
    csm_release(b->data);
    b->data = csm_allocate(csm_rounded(size));
    b->size = b->data ? size : 0;
    return b->data != NULL;
}

static double number(const sample_run *r, const csm_view *v, size_t row) {
    double value;
    memcpy(&value, (const char *)v->data + csm_offset(&r->base.shape, v->strides, row), sizeof value);
    return value;
}

/* e' of k logits, to `mass`, relative to the row's n; their sum to block->hi. */
static void masses(const sample_run *r, const sample_row *row, const char *x, size_t k, char *mass, csm_block *block) {
    const csm_call *c = &r->base;
    c->table->kernels[CSM_OP_softmax][row->dtype].pass1(x, NULL, mass, k, row->t, block);
    const double scale = csm_pow2(block->n - row->n);
    block->hi = (block->hi + block->lo) * scale;
    if (scale == 1) return;
    int some = 0;
    for (size_t i = 0; i < k; i++) {
        csm_wide w = csm_to_wide(c, csm_wide_at(&r->base, mass, i) * scale);
        memcpy(mass + i * c->wide_size, &w, c->wide_size);
        some |= csm_from_wide(c, w) > 0;
    }
    if (!some && block->hi == block->hi) block->hi = 0; /* of masses too small for their type there is none */
}

/* The first i with sum_{l <= i} mass_l > target, else the last that adds to the sum. */
static size_t search(const sample_run *r, const char *mass, size_t k, double target) {
    double sum = 0;
    size_t last = 0;
    for (size_t i = 0; i < k; i++) {
        const double next = sum + csm_wide_at(&r->base, mass, i);
        if (!(next > sum)) continue;
        last = i;
        sum = next;
        if (sum > target) break;
    }
    return last;
}
/* The same from the sums themselves. */
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

static double uniform_at(const sample_run *r, size_t row, size_t draw) {
    double u;
    const csm_call *c = &r->base;
    memcpy(&u, (const char *)c->b.data + csm_offset(&c->shape, c->b.strides, row) + (ptrdiff_t)draw * c->b.axis_stride,
           sizeof u);
    return u;
}
static void put_index(const sample_run *r, size_t row, size_t draw, int64_t index) {
    const csm_call *c = &r->base;
    memcpy((char *)c->y.data + csm_offset(&c->shape, c->y.strides, row) + (ptrdiff_t)draw * c->y.axis_stride, &index,
           sizeof index);
}

/* Draws from `count` masses, their classes 0, 1, ... or index[0], index[1], ... */
static csm_status draw_from(const sample_run *r, size_t row, const char *mass, size_t count, const int64_t *index,
                            const csm_block *blocks, sample_scratch *s) {
    const size_t n_blocks = (count + CSM_BLOCK - 1) / CSM_BLOCK;
    double total = 0, *sums = NULL;
    for (size_t b = 0; b < n_blocks; b++) total += blocks[b].hi;
    if (r->size >= PREFIXES_FROM) {
        if (!reserve(&s->sums, count * sizeof *sums)) return CSM_NO_MEMORY;
        sums = (double *)(void *)s->sums.data;
        for (size_t b = 0; b < n_blocks; b++) {
            double sum = 0;
            for (size_t i = b * CSM_BLOCK; i < count && i < (b + 1) * CSM_BLOCK; i++)
                sums[i] = sum += csm_wide_at(&r->base, mass, i);
        }
    }
    for (size_t draw = 0; draw < r->size; draw++) {
        double target = uniform_at(r, row, draw) * total, before = 0;
        size_t block = 0, last = 0;
        for (; block < n_blocks; block++) {
            if (!(blocks[block].hi > 0)) continue;
            last = block;
            if (before + blocks[block].hi > target) break;
            before += blocks[block].hi;
        }
        if (block == n_blocks) before = total - blocks[block = last].hi;
        const size_t begin = block * CSM_BLOCK, k = count - begin < CSM_BLOCK ? count - begin : CSM_BLOCK;
        const size_t at = begin + (sums ? search_sums(sums + begin, k, target - before)
                                        : search(r, mass + begin * r->base.wide_size, k, target - before));
        put_index(r, row, draw, index ? index[at] : (int64_t)at);
    }
    return CSM_OK;
}

/* Sets masses below the least to 0 and their blocks' sums anew. */
static void apply_min(const sample_run *r, char *mass, size_t count, double least, csm_block *blocks) {
    const csm_wide none = csm_to_wide(&r->base, 0);
    for (size_t b = 0; b * CSM_BLOCK < count; b++) {
        double sum = 0;
        for (size_t i = b * CSM_BLOCK; i < count && i < (b + 1) * CSM_BLOCK; i++) {
            const double m = csm_wide_at(&r->base, mass, i);
            if (m >= least) sum += m;
            else memcpy(mass + i * r->base.wide_size, &none, r->base.wide_size);
        }
        blocks[b].hi = sum;
    }
}

static csm_status draw_all(const sample_run *r, size_t at, const sample_row *row, double min_p, sample_scratch *s) {
    const csm_call *c = &r->base;
    const size_t n = c->shape.n, count = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    if (!reserve(&s->mass, n * c->wide_size)) return CSM_NO_MEMORY;
    for (size_t b = 0; b < count; b++) {
        const size_t begin = b * CSM_BLOCK, k = n - begin < CSM_BLOCK ? n - begin : CSM_BLOCK;
        masses(r, row, row->x + begin * row->itemsize, k, s->mass.data + begin * c->wide_size, &row->blocks[b]);
        if (row->blocks[b].hi != row->blocks[b].hi) return CSM_NO_MASS; /* NaN */
    }
    if (min_p > 0) apply_min(r, s->mass.data, n, min_p * row->most, row->blocks);
    return draw_from(r, at, s->mass.data, n, NULL, row->blocks, s);
}

/* Mass of the whole row. */
static double row_mass(const sample_run *r, const sample_row *row) {
    const csm_call *c = &r->base;
    double total = 0, low = 0;
    for (size_t begin = 0; begin < c->shape.n; begin += CSM_BLOCK) {
        const size_t k = c->shape.n - begin < CSM_BLOCK ? c->shape.n - begin : CSM_BLOCK;
        csm_block block;
        c->table->kernels[CSM_OP_softmax][row->dtype].pass1(row->x + begin * row->itemsize, NULL, NULL, k, row->t,
                                                            &block);
        csm_two_sum(&total, &low, (block.hi + block.lo) * csm_pow2(block.n - row->n));
    }
    return total + low;
}

static csm_status draw_selected(const sample_run *r, size_t at, const sample_row *row, size_t top_k, double top_p,
                                double min_p, sample_scratch *s) {
    const csm_call *c = &r->base;
    const size_t n = c->shape.n;
    const double all = top_k == n ? row_mass(r, row) : 0;
    size_t k = top_k < n ? top_k : n < FIRST ? n : FIRST;
    if (all != all) return CSM_NO_MASS; /* NaN */
    for (;;) {
        if (!reserve(&s->select, csm_select_size(n, k, c->wide_size)) || !reserve(&s->mass, k * c->wide_size) ||
            !reserve(&s->values, k * row->itemsize))
            return CSM_NO_MEMORY;
        csm_select chosen = csm_select_at(s->select.data, n, k, c->wide_size);
        c->table->select[c->dtype](row->given, n, k, 0, 1, &chosen);
        for (size_t i = 0; i < k; i++)
            memcpy(s->values.data + i * row->itemsize, row->x + (size_t)chosen.index[i] * row->itemsize, row->itemsize);
        for (size_t begin = 0; begin < k; begin += CSM_BLOCK)
            masses(r, row, s->values.data + begin * row->itemsize, k - begin < CSM_BLOCK ? k - begin : CSM_BLOCK,
                   s->mass.data + begin * c->wide_size, &row->blocks[begin / CSM_BLOCK]);
        if (row->blocks[0].hi != row->blocks[0].hi) return CSM_NO_MASS; /* NaN comes first */
        double total = all, sum = 0;
        for (size_t i = 0; i < k && top_k < n; i++) total += csm_wide_at(&r->base, s->mass.data, i);
        size_t kept = top_p < 1 ? 0 : k;
        while (kept < k && sum < top_p * total) sum += csm_wide_at(&r->base, s->mass.data, kept++);
        if (kept < k || top_k < n || k == n || sum >= top_p * total) {
            apply_min(r, s->mass.data, kept, min_p * row->most, row->blocks);
            return draw_from(r, at, s->mass.data, kept, chosen.index, row->blocks, s);
        }
        k = k > n / GROWTH ? n : k * GROWTH;
    }
}

static csm_status draw_row(const sample_run *r, size_t at, sample_scratch *s) {
    const csm_call *c = &r->base;
    csm_call *own = &s->call;
    const size_t n = c->shape.n;
    const csm_sample_options *o = r->options;
    const double t = o->temperature ? number(r, &r->temperature, at) : 1;
    const double top_p = o->top_p ? number(r, &r->top_p, at) : 1, min_p = o->min_p ? number(r, &r->min_p, at) : 0;
    size_t top_k = n;
    if (o->top_k) {
        int64_t k;
        memcpy(&k, (const char *)r->top_k.data + csm_offset(&c->shape, r->top_k.strides, at), sizeof k);
        if (k < 1) return CSM_BAD_OPTION;
        if ((uint64_t)k < n) top_k = (size_t)k;
    }
    if (!(t >= 0)) return CSM_BAD_TEMPERATURE;
    if (!(top_p > 0 && top_p <= 1) || !(min_p >= 0 && min_p <= 1)) return CSM_BAD_OPTION;

    const csm_strided from = csm_row_of(c, &c->a, at);
    const char *x = from.data;
    if (!r->direct) {
        const csm_strided mask = csm_mask_of(c, at);
        if (!reserve(&s->row, n * c->itemsize)) return CSM_NO_MEMORY;
        csm_gather(s->row.data, 0, from, 1, n, c->itemsize, &mask, &c->absent);
        x = s->row.data;
    }
    if (!reserve(&s->blocks, (n / CSM_BLOCK + 1) * sizeof(csm_block))) return CSM_NO_MEMORY;
    sample_row row = {.x = x, .given = x, .dtype = c->dtype, .itemsize = c->itemsize, .t = &own->scales.ordinary};
    row.blocks = (csm_block *)(void *)s->blocks.data;
    double max = c->table->max[c->dtype](x, n);
    if (!(max > -CSM_INF && max < CSM_INF)) return CSM_NO_MASS;
    if (!(own->scales.temperature == t)) csm_set_scales(&own->scales, t, own->wide_size == 4);
    if (!csm_takes(&own->scales, max)) {
        if (!reserve(&s->wide, n * c->wide_size)) return CSM_NO_MEMORY;
        c->table->widen[c->dtype](x, s->wide.data, n);
        for (size_t i = 0; i < n; i++) /* T = 0 would lose it */
            if (csm_wide_at(&r->base, s->wide.data, i) != csm_wide_at(&r->base, s->wide.data, i)) return CSM_NO_MASS;
        csm_transform(own, s->wide.data, n, max);
        row.x = s->wide.data;
        row.dtype = c->wide_dtype;
        row.itemsize = c->wide_size;
        row.t = &own->scales.transformed;
        max = c->table->max[c->wide_dtype](row.x, n);
    }
    const csm_wide highest = csm_to_wide(c, max);
    csm_wide first;
    csm_block top;
    c->table->kernels[CSM_OP_softmax][c->wide_dtype].pass1(&highest, NULL, &first, 1, row.t, &top);
    row.n = top.n;
    row.most = csm_from_wide(c, first);
    if (t == 0) top_k = 1;
    if (top_k < n || top_p < 1) return draw_selected(r, at, &row, top_k, top_p, min_p, s);
    return draw_all(r, at, &row, min_p, s);
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    const sample_run *r = context;
    for (size_t row = begin; row < end; row++) {
        csm_status status = draw_row(r, row, &r->scratch[thread]);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

static csm_status run(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x, size_t size,
                      const csm_view *uniform, const csm_view *indices, const csm_sample_options *o,
                      csm_fp_environment *caller) {
    sample_run r;
    csm_call *c = &r.base;
    memset(&r, 0, sizeof r);
    csm_set_dtype(c, dtype, table);
    csm_status status = csm_lay_out(
        c, shape, (const csm_view *[]){x, indices, uniform, o->where, o->temperature, o->top_k, o->top_p, o->min_p},
        (csm_view *[]){&c->a, &c->y, &c->b, o->where ? &c->where : NULL, o->temperature ? &r.temperature : NULL,
                       o->top_k ? &r.top_k : NULL, o->top_p ? &r.top_p : NULL, o->min_p ? &r.min_p : NULL},
        8, &r.rows);
    if (status != CSM_OK || r.rows == 0 || size == 0) return status;
    if (shape->n == 0) return CSM_NO_MASS;
    c->has_where = o->where != NULL;
    r.options = o;
    r.size = size;
    r.direct = !c->has_where && csm_contiguous_view(&c->shape, &c->a, c->itemsize, 1);
    csm_put(c, &c->absent, -CSM_INF);
    c->interrupt = (csm_interrupt){o->interrupt, o->interrupt_context, 0, *caller};
    c->threads = csm_threads_for((double)r.rows * (double)shape->n, r.rows, o->threads < 1 ? 1 : o->threads);
    r.scratch = csm_allocate((size_t)c->threads * sizeof *r.scratch);
    if (!r.scratch) return CSM_NO_MEMORY;
    memset(r.scratch, 0, (size_t)c->threads * sizeof *r.scratch);
    for (int i = 0; i < c->threads; i++) {
        csm_call *own = &r.scratch[i].call;
        csm_set_dtype(own, dtype, table);
        own->forward = 1;
        csm_set_scales(&own->scales, 1, own->wide_size == 4);
    }
    status = csm_parallel(r.rows, CSM_PIECE / 4 / (shape->n + 1) + 1, c->threads, rows_body, &r, &c->interrupt);
    for (int i = 0; i < c->threads; i++) {
        sample_scratch *s = &r.scratch[i];
        buffer *const buffers[] = {&s->row, &s->wide, &s->mass, &s->sums, &s->select, &s->blocks, &s->values};
        for (size_t b = 0; b < sizeof buffers / sizeof *buffers; b++) csm_release(buffers[b]->data);
    }
    csm_release(r.scratch);
    *caller = c->interrupt.caller; /* the callback may have changed it */
    return status;
}

csm_status csm_run_sample(csm_dtype dtype, const csm_table *table, const csm_shape *shape, const csm_view *x,
                          size_t size, const csm_view *uniform, const csm_view *indices,
                          const csm_sample_options *options) {
    const csm_sample_options defaults = csm_default_sample_options();
    csm_fp_environment saved = csm_fp_enter();
    csm_status status = run(dtype, table, shape, x, size, uniform, indices, options ? options : &defaults, &saved);
    csm_fp_leave(saved);
    return status;
}
