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

static csm_status draw_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    const csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const csm_block *blocks = row->blocks;
    const size_t n_blocks = csm_block_count(row->count);
    const double total = row->total;
    const char *uniform = csm_row_data(c, &call->uniforms, row->index);
    char *to = (char *)call->indices.data + csm_offset(&c->shape, call->indices.strides, row->index), *mass = NULL;
    size_t computed = n_blocks; /* the block whose masses these are */
    for (size_t draw = begin; draw < end; draw++) {
        double u;
        memcpy(&u, uniform + (ptrdiff_t)draw * call->uniforms.axis_stride, sizeof u);
        const double target = u * total;
        const size_t block = csm_sample_find_block(blocks, n_blocks, target);
        const double before = !(total > target) ? total - blocks[block].hi : block > 0 ? blocks[block - 1].lo : 0;
        const size_t first = block * CSM_BLOCK, k = csm_block_length(row->count, first);
        size_t at = first;
        if (row->sums) {
            at += search_sums(row->sums + first, k, target - before);
        } else {
            double unused;
            if (block != computed) mass = csm_sample_masses(row, block, thread, &unused);
            if (!mass) return CSM_NO_MEMORY;
            computed = block;
            at += csm_sample_find(row, mass, k, target - before);
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
