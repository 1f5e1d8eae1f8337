/* The blocks of a row in any order and grouping: random rows of several blocks, whose records are shared out, added in
 * random orders and merged along random trees, have the sums of the whole row, bit for bit.  Each result of a function
 * follows from these sums and from one block at a time.  Called by test_core.c.
 */
#include "problem.h"

#include "../../src_c/kernel/cross_entropy/row.h"

#include <math.h>

enum { MAX_BLOCKS = 12, TREES = 40, SHAPES = 7 };

static size_t below(size_t n) { return next() % n; }
static double uniform(void) { return next() / 4294967296.0; }
static double normal(void) {
    double sum = -6;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum;
}

/* The sums of some blocks of a row, from which those of the whole row can be merged. */
typedef struct record {
    csm_exact sum, far, mass;
    double max, n, top, top_low, other; /* other: NaN or infinite */
    int64_t count;
} record;

/* Blocks and records of the log family have maxima, which join the sum when a larger maximum appears. */
static record record_of(const csm_block *block, int has_max, int is_log, const csm_temperature *t) {
    record r = {.max = has_max ? block->max : 0, .n = has_max ? block->n : 0};
    csm_exact_zero(&r.sum);
    csm_exact_zero(&r.far);
    csm_exact_zero(&r.mass);
    if (block->hi - block->hi == 0 && block->lo - block->lo == 0) {
        csm_exact_add(&r.sum, block->hi, (int64_t)r.n, 1);
        csm_exact_add(&r.sum, block->lo, (int64_t)r.n, 1);
    } else {
        r.other = block->hi - block->hi == 0 ? block->lo : block->hi;
    }
    if (!is_log) return r;
    r.count = (int64_t)block->count;
    r.top = block->top;
    r.top_low = block->top_low;
    csm_exact_add(&r.far, block->far, 0, 1);
    csm_exact_add_product(&r.far, -csm_reference(block->max, t), block->mass);
    csm_exact_add(&r.mass, block->mass, 0, 1);
    return r;
}
static void maxima_join(record *r) {
    if (r->count == 0 || !(r->max > -INFINITY)) return;
    csm_exact_add(&r->sum, r->top, (int64_t)r->n, r->count);
    csm_exact_add(&r->sum, r->top_low, (int64_t)r->n, r->count);
}
static record merged(record a, record b) {
    if (b.max > a.max) {
        const record c = a;
        a = b;
        b = c;
    }
    if (a.max == b.max) a.count += b.count;
    else maxima_join(&b);
    csm_exact_merge(&a.sum, &b.sum);
    csm_exact_merge(&a.far, &b.far);
    csm_exact_merge(&a.mass, &b.mass);
    a.other += b.other;
    return a;
}
/* One block that stands for all of them. */
static csm_block finished(record r, int is_log) {
    csm_block block = {.max = r.max, .n = r.n, .count = (double)r.count, .top = r.top, .top_low = r.top_low};
    double hi, lo;
    csm_exact_pair(&r.sum, (int64_t)r.n, &block.hi, &block.lo);
    if (r.other != 0) block.hi = r.other;
    if (!is_log) return block;
    csm_exact_pair(&r.mass, 0, &hi, &lo);
    csm_exact_add_product(&r.far, r.max, hi);
    csm_exact_add_product(&r.far, r.max, lo);
    csm_exact_pair(&r.far, 0, &block.far, &lo);
    if (!(block.far > 0)) block.far = 0;
    return block;
}
static record along_a_tree(const csm_block *blocks, size_t count, int has_max, int is_log, const csm_temperature *t) {
    record left[MAX_BLOCKS];
    for (size_t b = 0; b < count; b++) left[b] = record_of(&blocks[b], has_max, is_log, t);
    while (count > 1) {
        const size_t i = below(count);
        const record a = left[i];
        left[i] = left[--count];
        const size_t j = below(count);
        left[j] = merged(a, left[j]);
    }
    return left[0];
}

/* A row of one of SHAPES kinds: normal, tied, flat, one class ahead of equal ones, falling from block to block, one
 * block far below, NaN or infinite. */
static void fill(int dtype, int shape, char *x, size_t n) {
    static const double scales[] = {0.1, 1, 5, 20}, steps[] = {1, 17, 40, 90}, specials[] = {NAN, -INFINITY, INFINITY};
    const double scale = scales[below(4)], step = steps[below(4)], level = normal() * 10, gap = uniform() * 60;
    const size_t at = below(n), low = below(n / CSM_BLOCK + 1);
    for (size_t j = 0; j < n; j++) {
        const size_t block = j / CSM_BLOCK;
        double v = shape == 1 || shape == 6   ? (double)below(9) - 4
                   : shape == 2 || shape == 3 ? level
                                              : normal() * scale;
        if (shape == 3 && j == at) v += gap;
        if (shape == 4) v -= (double)block * step;
        if (shape == 5 && block == low) v -= 400;
        put(dtype, x, j, v);
    }
    if (shape == 6) put(dtype, x, at, specials[below(3)]);
}

static int same(const void *a, const void *b, size_t size) { return memcmp(a, b, size) == 0; }
static int same_number(double a, double b) { return (a != a && b != b) || same(&a, &b, sizeof a); }
static int same_row(const csm_row *a, const csm_row *b, int op) {
    if (a->is_nan != b->is_nan) return 0;
    if (a->is_nan) return 1;
    if (op == CSM_OP_softmax) return same_number(a->r, b->r) && same_number(a->r_low, b->r_low) && a->n == b->n;
    if (has_b[op]) return same_number(a->hi, b->hi) && same_number(a->lo, b->lo);
    return same_number(a->tail, b->tail) && a->max == b->max;
}

/* One row, in `trees` random orders. */
static void test_row(int op, int dtype, int shape, size_t n, double temperature, int trees, char *x, char *y) {
    const csm_table *table = csm_current_table();
    const csm_kernels *kernels = &table->kernels[op][dtype];
    const size_t count = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    const int is_log = !has_b[op] && op != CSM_OP_softmax, single = dtype != CSM_DTYPE_f64;
    csm_block blocks[MAX_BLOCKS];
    csm_scales scales;
    csm_row whole = {0}, row = {0};
    memset(blocks, 0, sizeof blocks);
    csm_set_scales(&scales, temperature, single);
    for (size_t b = 0; b < count; b++) {
        const size_t begin = b * CSM_BLOCK, k = n - begin < CSM_BLOCK ? n - begin : CSM_BLOCK;
        kernels->pass1(x + begin * sizes_of[dtype], has_b[op] ? y + begin * sizes_of[dtype] : NULL, NULL, k,
                       &scales.ordinary, &blocks[b]);
    }
    kernels->combine(blocks, count, &scales.ordinary, &whole);
    for (int i = 0; i < trees; i++) {
        if (op == CSM_OP_entropy) { /* its distances are to the row's maximum: blocks in any order, but all at once */
            for (size_t b = count; b > 1; b--) {
                const size_t at = below(b);
                const csm_block last = blocks[b - 1];
                blocks[b - 1] = blocks[at];
                blocks[at] = last;
            }
            kernels->combine(blocks, count, &scales.ordinary, &row);
        } else {
            const record all = along_a_tree(blocks, count, !has_b[op], is_log, &scales.ordinary);
            const csm_block block = finished(all, is_log);
            kernels->combine(&block, 1, &scales.ordinary, &row);
        }
        if (!check(same_row(&whole, &row, op), "%s_%s: %zu elements of kind %d, T %g: sums along a tree differ",
                   ops[op], dtypes[dtype], n, shape, temperature))
            return;
    }
}

/* The same for the sums and the loss of cross-entropy, with smoothing and class weights. */
static void test_loss_row(int dtype, int shape, size_t n, int trees, char *x, char *w) {
    const csm_table *table = csm_current_table();
    const csm_loss_kernels *kernels = &table->loss[dtype];
    const size_t count = (n + CSM_BLOCK - 1) / CSM_BLOCK, wide = dtype == CSM_DTYPE_f64 ? 8 : 4;
    const int wide_dtype = dtype == CSM_DTYPE_f64 ? CSM_DTYPE_f64 : CSM_DTYPE_f32;
    csm_block blocks[MAX_BLOCKS];
    csm_loss_options options = csm_default_loss_options();
    csm_scales scales;
    csm_loss_row whole, row;
    options.label_smoothing = 0.1;
    options.weight = w;
    csm_loss_call loss = csm_loss_call_of(&options, n, 1);
    csm_set_scales(&scales, 1, dtype != CSM_DTYPE_f64);
    loss.t = &scales.ordinary;
    for (size_t j = 0; j < n; j++) put(wide_dtype, w, j, uniform());
    for (size_t b = 0; b < count; b++) {
        const size_t begin = b * CSM_BLOCK, k = n - begin < CSM_BLOCK ? n - begin : CSM_BLOCK;
        const csm_loss_terms terms = {NULL, w + begin * wide, 0.9, 0.1 / (double)n};
        blocks[b].max = table->max[dtype](x + begin * sizes_of[dtype], k);
        kernels->pass1(x + begin * sizes_of[dtype], NULL, k, loss.t, &terms, &blocks[b]);
    }
    const size_t label = below(n);
    csm_loss_input in = {.label = (ptrdiff_t)label,
                         .x_label = get(dtype, x, label),
                         .w_label = get(wide_dtype, w, label),
                         .weight = 1,
                         .upstream = 1,
                         .e_label = -1};
    in.mass = in.w_label;
    kernels->sums(&loss, &in, blocks, count, &whole);
    for (int i = 0; i < trees; i++) {
        const csm_block block = finished(along_a_tree(blocks, count, 1, 1, loss.t), 1);
        kernels->sums(&loss, &in, &block, 1, &row);
        const int ok = same_row(&whole.sums, &row.sums, CSM_OP_log_softmax) && same_number(whole.loss, row.loss) &&
                       (whole.is_nan || (same_number(whole.total, row.total) && same_number(whole.others, row.others)));
        if (!check(ok, "cross_entropy_%s: %zu elements of kind %d: sums along a tree differ", dtypes[dtype], n, shape))
            return;
    }
}

/* 7 kinds of rows, 4 dtypes, 6 functions, 40 trees: 6,720 merged rows a round, 201,600 in all. */
void test_blocks(size_t every) {
    enum { LENGTH = MAX_BLOCKS * CSM_BLOCK, ROUNDS = 30 };
    static const double temperatures[] = {1, 1, 0.7, 2.5};
    char *x = need(LENGTH * 8), *y = need(LENGTH * 8);
    seed(2026);
    for (int round = 0; round < ROUNDS; round++)
        for (int shape = 0; shape < SHAPES; shape++)
            for (int dtype = 0; dtype < CSM_DTYPE_COUNT; dtype++) {
                const size_t n = CSM_BLOCK + 1 + below(LENGTH - CSM_BLOCK - 1);
                const double temperature = temperatures[below(4)];
                if (below(every)) continue; /* not every k-th: that could be one dtype only */
                use(isas[below((size_t)isa_count)]);
                fill(dtype, shape, x, n);
                for (size_t j = 0; j < n; j++) put(dtype, y, j, uniform());
                for (int op = 0; op < CSM_OP_COUNT; op++) {
                    const int infinite = shape == 6 && !has_b[op]; /* left to ops/softmax_row.c, but for NaN */
                    const double max = csm_current_table()->max[dtype](x, n);
                    if (infinite && !(max < INFINITY)) continue;
                    test_row(op, dtype, shape, n, has_b[op] ? 1 : temperature, TREES, x, y);
                }
                if (shape < 6) test_loss_row(dtype, shape, n, TREES, x, y);
            }
    free(x);
    free(y);
}
