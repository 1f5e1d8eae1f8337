/* Drawing: the inverse of the cumulative distribution at one uniform number for each draw.
 *
 * The sum of a block is the kernels', sums over blocks are exact and rounded once (math/exact.h); within a block they
 * run from the first to the last in double.  Few draws add the masses of a block up, many bisect prefix sums: the same
 * classes.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

enum {
    PREFIX_DRAWS = 8, /* with at least this many draws from a row, prefix sums are searched by bisection ... */
    DRAW_ELEMENTS = 2048 /* ... if the draws would search more than the row: half a block each */
};

/* Loops over masses, for each compute type REAL. */
#define LOOPS(REAL)                                                                          \
    /* Adds up masses in order, and stores each sum. */                                      \
    static double prefix_##REAL(const REAL *mass, size_t k, double *sums) {                  \
        double sum = 0;                                                                      \
        for (size_t i = 0; i < k; i++) sums[i] = sum += (double)mass[i];                     \
        return sum;                                                                          \
    }                                                                                        \
    /* The first i with sum_{l <= i} mass_l > target, else the last that adds to the sum. */ \
    static size_t search_##REAL(const REAL *mass, size_t k, double target) {                 \
        double sum = 0;                                                                      \
        size_t last = 0;                                                                     \
        for (size_t i = 0; i < k; i++) {                                                     \
            const double next = sum + (double)mass[i];                                       \
            last = next > sum ? i : last;                                                    \
            sum = next;                                                                      \
            if (sum > target) break;                                                         \
        }                                                                                    \
        return last;                                                                         \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS

size_t csm_sample_find(const csm_sample_row *row, const char *mass, size_t k, double target) {
    return CSM_BY_TYPE(row, search, (uintptr_t)mass, k, target);
}

/* The same on prefix sums.  The bisection has no branches to predict. */
static size_t search_sums(const double *sums, size_t k, double target) {
    size_t low = 0; /* all sums before it are at most the target */
    for (size_t left = k; left > 1; left -= left / 2) low += sums[low + left / 2 - 1] > target ? 0 : left / 2;
    low += !(sums[low] > target);
    if (low < k) return low;
    for (low = k - 1; low > 0 && !(sums[low] > sums[low - 1]);) low--;
    return low;
}

/* Adds a block's mass to the sum of those before it, and returns the sum, rounded. */
static double add_block(csm_exact *sum, double mass) {
    double total, rest;
    csm_exact_add(sum, mass, 0, 1);
    csm_exact_pair(sum, 0, &total, &rest);
    return total;
}
size_t csm_sample_find_block(const csm_block *blocks, size_t count, double target) {
    size_t low = 0;
    for (size_t left = count; left > 1; left -= left / 2) low += blocks[low + left / 2 - 1].lo > target ? 0 : left / 2;
    low += !(blocks[low].lo > target);
    if (low < count) return low;
    for (low = count - 1; low > 0 && !(blocks[low].hi > 0);) low--;
    return low;
}

static csm_status prefix_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        double unused;
        char *mass = csm_sample_masses(row, b, thread, &unused);
        if (!mass) return CSM_NO_MEMORY;
        CSM_BY_TYPE(row, prefix, mass, csm_block_length(row->count, b * CSM_BLOCK), row->sums + b * CSM_BLOCK);
    }
    return CSM_OK;
}

/* The target minus the mass of the blocks before its own: the place of the draw within that block. */
static double rest_of(const csm_sample_row *row, double target, size_t block) {
    const csm_block *blocks = row->blocks;
    const double before = !(row->total > target) ? row->total - blocks[block].hi : block > 0 ? blocks[block - 1].lo : 0;
    return target - before;
}
static csm_status draw_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    const csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t n_blocks = csm_block_count(row->count);
    const char *uniform = csm_row_data(c, &call->uniforms, row->index);
    char *to = (char *)call->indices.data + csm_offset(&c->shape, call->indices.strides, row->index), *mass = NULL;
    size_t computed = n_blocks; /* the block whose masses these are */
    for (size_t draw = begin; draw < end; draw++) {
        double u;
        memcpy(&u, uniform + (ptrdiff_t)draw * call->uniforms.axis_stride, sizeof u);
        const double target = u * row->total;
        const size_t block = csm_sample_find_block(row->blocks, n_blocks, target);
        const double rest = rest_of(row, target, block);
        const size_t first = block * CSM_BLOCK, k = csm_block_length(row->count, first);
        size_t at = first;
        if (row->sums) {
            at += search_sums(row->sums + first, k, rest);
        } else {
            double unused;
            if (block != computed) mass = csm_sample_masses(row, block, thread, &unused);
            if (!mass) return CSM_NO_MEMORY;
            computed = block;
            at += csm_sample_find(row, mass, k, rest);
        }
        const int64_t index = row->classes ? row->classes[at] : (int64_t)at;
        memcpy(to + (ptrdiff_t)draw * call->indices.axis_stride, &index, sizeof index);
    }
    return CSM_OK;
}

void csm_sample_add_blocks(csm_sample_row *row) {
    csm_block *blocks = row->blocks;
    const size_t n_blocks = csm_block_count(row->count);
    csm_exact sum;
    csm_exact_zero(&sum);
    if (n_blocks == 1) blocks->lo = blocks->hi;
    else
        for (size_t b = 0; b < n_blocks; b++) blocks[b].lo = add_block(&sum, blocks[b].hi);
    row->total = blocks[n_blocks - 1].lo;
}

csm_status csm_sample_draw(csm_sample_row *row) {
    csm_sample_call *call = row->call;
    csm_sample_add_blocks(row);
    row->sums = NULL;
    if (call->draws >= PREFIX_DRAWS && call->draws >= row->count / DRAW_ELEMENTS) {
        const size_t size = row->count * sizeof(double);
        row->sums = (double *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_SUMS, size);
        if (!row->sums) return CSM_NO_MEMORY;
        csm_status status = csm_sample_blocks(row, prefix_body);
        if (status != CSM_OK) return status;
    }
    return csm_sample_each(row, call->draws, row->sums ? CSM_BLOCK / 4 : 1, draw_body);
}

/* The target of a draw. */
static double target_of(const csm_sample_row *row, size_t draw) {
    const csm_view *v = &row->call->uniforms;
    double u;
    memcpy(&u, csm_row_data(&row->call->base, v, row->index) + (ptrdiff_t)draw * v->axis_stride, sizeof u);
    return u * row->total;
}
static void write_draw(const csm_sample_row *row, size_t draw, int64_t index) {
    const csm_view *v = &row->call->indices;
    char *to = (char *)v->data + csm_offset(&row->call->base.shape, v->strides, row->index);
    memcpy(to + (ptrdiff_t)draw * v->axis_stride, &index, sizeof index);
}
csm_status csm_sample_draw_shard(csm_sample_row *row, size_t first) {
    csm_sample_call *call = row->call;
    const size_t n_blocks = csm_block_count(call->shard->classes), own = csm_block_count(row->count);
    double *sums = (double *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_SUMS, CSM_BLOCK * sizeof(double));
    if (!sums) return CSM_NO_MEMORY;
    for (size_t draw = 0, end; draw < call->draws; draw = end) {
        const size_t block = csm_sample_find_block(row->blocks, n_blocks, target_of(row, draw));
        const int is_own = block >= first && block - first < own;
        for (end = draw + 1; end < call->draws; end++)
            if (csm_sample_find_block(row->blocks, n_blocks, target_of(row, end)) != block) break;
        const size_t k = is_own ? csm_block_length(row->count, (block - first) * CSM_BLOCK) : 0;
        const int is_bisected = is_own && end - draw >= PREFIX_DRAWS;
        double unused;
        char *mass = is_own ? csm_sample_masses(row, block - first, row->thread, &unused) : NULL;
        if (is_own && !mass) return CSM_NO_MEMORY;
        if (is_bisected) CSM_BY_TYPE(row, prefix, mass, k, sums);
        for (size_t i = draw; i < end; i++) {
            const double rest = rest_of(row, target_of(row, i), block);
            const size_t at = !is_own       ? 0
                              : is_bisected ? search_sums(sums, k, rest)
                                            : csm_sample_find(row, mass, k, rest);
            write_draw(row, i, is_own ? (int64_t)(block * CSM_BLOCK + at) : -1);
        }
        if (csm_stops(&call->base.interrupt, row->thread, k)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}
