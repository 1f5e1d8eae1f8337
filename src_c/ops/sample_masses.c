/* Drawing: blocks of a row, their masses and their sums.
 *
 * The masses are the e' of softmax, equal on every instruction set.  Logits that are left out are -inf before a kernel
 * sees them, so that the reference of a block is the largest logit that is left.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

csm_status csm_sample_each(csm_sample_row *row, size_t units, size_t piece, csm_body body) {
    csm_sample_call *call = row->call;
    if (!call->is_split) return body(row, 0, units, row->thread);
    return csm_parallel(units, piece, call->base.threads, body, row, &call->base.interrupt);
}
csm_status csm_sample_blocks(csm_sample_row *row, csm_body body) {
    return csm_sample_each(row, csm_block_count(row->count), CSM_SAMPLE_PIECE, body);
}
csm_status csm_sample_in_order(csm_sample_row *row, csm_body body) {
    csm_sample_call *call = row->call;
    const size_t blocks = csm_block_count(row->count);
    if (!call->is_split) return body(row, 0, blocks, row->thread);
    return csm_parallel(blocks, CSM_SAMPLE_PIECE, 1, body, row, &call->base.interrupt);
}

/* Copies k logits from `begin` on. */
static void gather_block(const csm_sample_row *row, size_t begin, size_t k, char *to) {
    const csm_call *c = &row->call->base;
    csm_strided from = row->from, mask = row->mask;
    from.data += (ptrdiff_t)begin * from.axis;
    if (mask.data) mask.data += (ptrdiff_t)begin * mask.axis;
    csm_gather(to, 0, from, 1, k, c->itemsize, &mask, &c->absent);
}
static csm_status copy_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    (void)thread;
    for (size_t b = begin; b < end; b++)
        gather_block(row, b * CSM_BLOCK, csm_block_length(row->count, b * CSM_BLOCK),
                     row->copy + b * CSM_BLOCK * row->call->base.itemsize);
    return CSM_OK;
}
csm_status csm_sample_copy(csm_sample_row *row) {
    row->copy = csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_COPY, row->count * row->call->base.itemsize);
    if (!row->copy) return CSM_NO_MEMORY;
    row->whole = row->copy;
    return csm_sample_blocks(row, copy_body);
}

/* A block of the row as contiguous storage. */
static const char *stored_block(const csm_sample_row *row, size_t b, size_t k, int thread) {
    const csm_call *c = &row->call->base;
    if (row->whole) return row->whole + b * CSM_BLOCK * c->itemsize;
    char *copy = csm_sample_buffer(row->call, thread, CSM_SAMPLE_COPY, CSM_BLOCK * c->itemsize);
    if (copy) gather_block(row, b * CSM_BLOCK, k, copy);
    return copy;
}

/* Leaves out the logits that have been drawn, for each compute type REAL. */
#define LEAVE_OUT(REAL)                                                     \
    static void remove_##REAL(REAL *x, size_t k, const uint64_t *removed) { \
        for (size_t word = 0; word * 64 < k; word++)                        \
            for (uint64_t left = removed[word]; left; left &= left - 1)     \
                x[word * 64 + CSM_LOWEST_BIT(left)] = (REAL)-CSM_INF;       \
    }
LEAVE_OUT(float)
LEAVE_OUT(double)
#undef LEAVE_OUT

/* The interval of a range for all elements from `first` to `last`; 0: it is not the same for all of them. */
static int narrow_bounds(const csm_sample_range *r, int64_t first, int64_t last, double *low, double *high) {
    if (first <= r->last && last > r->last) return 0;
    const double a = last <= r->last ? r->wide_low : r->low, b = last <= r->last ? r->wide_high : r->high;
    *low = a > *low ? a : *low;
    *high = b < *high ? b : *high;
    return 1;
}
/* A block with ends of the set within it is kept in parts, up to the last index of each range. */
static void keep_set(const csm_sample_row *row, char *wide, size_t k, int64_t first) {
    const csm_call *c = &row->call->base;
    const csm_sample_set *s = &row->set;
    const int64_t end = first + (int64_t)k;
    for (int64_t at = first, last; at < end; at = last + 1) {
        double low = -CSM_INF, high = CSM_INF;
        last = end - 1;
        if (s->large.last >= at && s->large.last < last) last = s->large.last;
        if (s->near.last >= at && s->near.last < last) last = s->near.last;
        narrow_bounds(&s->large, at, last, &low, &high);
        narrow_bounds(&s->near, at, last, &low, &high);
        c->table->sample[c->dtype].keep(wide + (size_t)(at - first) * c->wide_size, (size_t)(last + 1 - at), low, high);
    }
}

char *csm_sample_wide(const csm_sample_row *row, size_t b, int thread) {
    const csm_call *c = &row->call->base;
    const size_t k = csm_block_length(row->count, b * CSM_BLOCK);
    const char *x = stored_block(row, b, k, thread);
    char *wide = csm_sample_buffer(row->call, thread, CSM_SAMPLE_RAW, CSM_BLOCK * c->wide_size);
    if (!x || !wide) return NULL;
    c->table->widen[c->dtype](x, wide, k);
    if (row->set.is_active) keep_set(row, wide, k, (int64_t)(b * CSM_BLOCK));
    if (row->removed) CSM_BY_TYPE(row, remove, wide, k, row->removed + b * CSM_BLOCK / 64);
    return wide;
}
csm_status csm_sample_look_at(const csm_sample_row *row, size_t b, int thread, int masses, csm_sample_look *to) {
    const csm_call *c = &row->call->base;
    const size_t k = csm_block_length(row->count, b * CSM_BLOCK);
    const int64_t first = (int64_t)(b * CSM_BLOCK), last = first + (int64_t)k - 1;
    const double lowest = csm_sample_lowest(row);
    double unused;
    to->interval[0] = lowest;
    to->interval[1] = CSM_INF;
    to->mass = masses ? csm_sample_masses(row, b, thread, &unused) : NULL;
    if (masses && !to->mass) return CSM_NO_MEMORY;
    const int is_even = !row->removed &&
                        narrow_bounds(&row->set.large, first, last, &to->interval[0], &to->interval[1]) &&
                        narrow_bounds(&row->set.near, first, last, &to->interval[0], &to->interval[1]);
    if (is_even && row->whole && c->dtype == c->wide_dtype) {
        to->x = row->whole + b * CSM_BLOCK * c->itemsize;
    } else {
        to->x = csm_sample_wide(row, b, thread);
        if (!is_even) to->interval[0] = lowest;
        if (!is_even) to->interval[1] = CSM_INF;
    }
    if (!to->x) return CSM_NO_MEMORY;
    return csm_stops(&row->call->base.interrupt, thread, k) ? CSM_INTERRUPTED : CSM_OK;
}
const char *csm_sample_fetch(const csm_sample_row *row, size_t b, int thread, csm_dtype *dtype) {
    const csm_call *c = &row->call->base;
    const size_t k = csm_block_length(row->count, b * CSM_BLOCK);
    *dtype = c->dtype;
    if (!row->is_transformed && !row->set.is_active && !row->removed) return stored_block(row, b, k, thread);
    const char *x = csm_sample_wide(row, b, thread);
    *dtype = c->wide_dtype;
    if (!x || !row->is_transformed) return x;
    char *wide = csm_sample_buffer(row->call, thread, CSM_SAMPLE_WIDE, CSM_BLOCK * c->wide_size);
    if (!wide) return NULL;
    memcpy(wide, x, k * c->wide_size);
    csm_transform(row->scales, csm_is_single(c), wide, k, row->max);
    return wide;
}
const csm_temperature *csm_sample_temperature(const csm_sample_row *row) {
    return row->is_transformed ? &row->scales->transformed : &row->scales->ordinary;
}
/* Computes the sums of a block, and its e' if `mass` is not NULL. */
static csm_status sum_block(const csm_sample_row *row, size_t b, char *mass, csm_block *block, int thread) {
    const csm_call *c = &row->call->base;
    csm_dtype dtype;
    const char *x = csm_sample_fetch(row, b, thread, &dtype);
    if (!x) return CSM_NO_MEMORY;
    c->table->kernels[CSM_OP_softmax][dtype].pass1(x, NULL, mass, csm_block_length(row->count, b * CSM_BLOCK),
                                                   csm_sample_temperature(row), block);
    return CSM_OK;
}
csm_status csm_sample_sum_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    csm_status status = CSM_OK;
    for (size_t b = begin; b < end && status == CSM_OK; b++)
        status = sum_block(row, b, row->mass ? row->mass + b * CSM_BLOCK * row->call->base.wide_size : NULL,
                           &row->blocks[b], thread);
    return status;
}

/* e' of one number of the compute type, and its n. */
static double mass_of(const csm_sample_row *row, csm_wide x, double *n) {
    const csm_call *c = &row->call->base;
    csm_wide e;
    csm_block block;
    c->table->kernels[CSM_OP_softmax][c->wide_dtype].pass1(&x, NULL, &e, 1, csm_sample_temperature(row), &block);
    *n = block.n;
    return csm_from_wide(c, e);
}
double csm_sample_mass_of(const csm_sample_row *row, double x) {
    const csm_call *c = &row->call->base;
    double n;
    csm_wide wide = csm_to_wide(c, x);
    if (row->is_transformed) csm_transform(row->scales, csm_is_single(c), &wide, 1, row->max);
    const double mass = mass_of(row, wide, &n);
    return csm_from_wide(c, csm_to_wide(c, mass * csm_pow2(n - row->n)));
}
csm_status csm_sample_set_max(csm_sample_row *row, double max) {
    const csm_call *c = &row->call->base;
    csm_wide highest = csm_to_wide(c, max);
    row->max = row->highest = max;
    if (!(max > -CSM_INF && max < CSM_INF)) return CSM_NO_MASS;
    row->is_transformed = !csm_fits_range(row->scales, max);
    if (row->is_transformed) csm_transform(row->scales, csm_is_single(c), &highest, 1, max);
    row->max_mass = mass_of(row, highest, &row->n);
    return CSM_OK;
}

/* Loops over masses, for each compute type REAL. */
#define LOOPS(REAL)                                                                                                 \
    /* Multiplies masses by a power of two below those of the compute type; returns whether one of them is left. */ \
    static int scale_down_##REAL(REAL *mass, size_t k, double scale) {                                              \
        REAL largest = 0;                                                                                           \
        for (size_t i = 0; i < k; i++) {                                                                            \
            mass[i] = (REAL)((double)mass[i] * scale);                                                              \
            largest = mass[i] > largest ? mass[i] : largest;                                                        \
        }                                                                                                           \
        return largest > 0;                                                                                         \
    }                                                                                                               \
    /* Sets masses below the threshold to 0, and returns the sum of the others. */                                  \
    static double filter_##REAL(REAL *mass, size_t k, double threshold) {                                           \
        double sum = 0;                                                                                             \
        for (size_t i = 0; i < k; i++) {                                                                            \
            mass[i] = (double)mass[i] >= threshold ? mass[i] : 0;                                                   \
            sum += (double)mass[i];                                                                                 \
        }                                                                                                           \
        return sum;                                                                                                 \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS
/* Multiplies masses by a power of two; returns whether one of them is left. */
static int scale_masses(const csm_sample_row *row, char *mass, size_t k, double scale) {
    const csm_call *c = &row->call->base;
    if (csm_is_single(c) && scale < 0x1p-126) return CSM_BY_TYPE(row, scale_down, mass, k, scale);
    return c->table->sample[c->dtype].scale(mass, k, scale);
}
void csm_sample_weigh_numbers(const csm_sample_row *row, char *x, size_t k, char *mass) {
    const csm_call *c = &row->call->base;
    csm_block block;
    if (row->is_transformed) csm_transform(row->scales, csm_is_single(c), x, k, row->max);
    c->table->kernels[CSM_OP_softmax][c->wide_dtype].pass1(x, NULL, mass, k, csm_sample_temperature(row), &block);
    const double scale = csm_pow2(block.n - row->n);
    if (scale != 1) scale_masses(row, mass, k, scale);
}
csm_status csm_sample_sum(csm_sample_row *row) {
    row->is_transformed = 0;
    csm_status status = csm_sample_blocks(row, csm_sample_sum_body);
    double max = -CSM_INF;
    if (status != CSM_OK) return status;
    for (size_t b = 0; b < csm_block_count(row->count); b++) max = row->blocks[b].max > max ? row->blocks[b].max : max;
    status = csm_sample_set_max(row, max);
    if (status == CSM_OK && row->is_transformed) status = csm_sample_blocks(row, csm_sample_sum_body);
    for (size_t b = 0; b < csm_block_count(row->count) && status == CSM_OK; b++)
        if (row->blocks[b].hi != row->blocks[b].hi) status = CSM_NO_MASS; /* NaN */
    return status;
}
csm_status csm_sample_scale_body(void *context, size_t begin, size_t end, int thread) {
    const csm_sample_row *row = context;
    const csm_call *c = &row->call->base;
    (void)thread;
    for (size_t b = begin; b < end; b++) {
        csm_block *block = &row->blocks[b];
        const double scale = csm_pow2(block->n - row->n);
        block->hi = (block->hi + block->lo) * scale;
        if (scale == 1) continue;
        int is_positive = 1;
        double n;
        if (row->mass)
            is_positive = scale_masses(row, row->mass + b * CSM_BLOCK * c->wide_size,
                                       csm_block_length(row->count, b * CSM_BLOCK), scale);
        else if (scale < 0x1p-64) /* else the block's largest e' stays far from 0 */
            is_positive = csm_from_wide(c, csm_to_wide(c, mass_of(row, csm_to_wide(c, block->max), &n) * scale)) > 0;
        if (!is_positive) block->hi = 0;
    }
    return CSM_OK;
}

/* Sets masses below min_p times the largest to 0, and returns the sum of the others.  The masses of a block of floats
 * are multiples of the last bit of the smallest one, and their sum is less than 2^53 of them. */
static double apply_min_p(const csm_sample_row *row, char *mass, size_t k) {
    const double threshold = row->min_p * row->max_mass;
    if (csm_is_single(&row->call->base) && row->min_p >= 0x1p-16)
        return row->call->base.table->sample[row->call->base.dtype].filter(mass, k, csm_sample_least(row, threshold));
    return CSM_BY_TYPE(row, filter, mass, k, threshold);
}
char *csm_sample_masses(const csm_sample_row *row, size_t b, int thread, double *sum) {
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t k = csm_block_length(row->count, b * CSM_BLOCK);
    csm_block block;
    if (row->mass) return row->mass + b * CSM_BLOCK * c->wide_size;
    char *mass = csm_sample_buffer(call, thread, CSM_SAMPLE_MASS, CSM_BLOCK * c->wide_size);
    if (!mass || sum_block(row, b, mass, &block, thread) != CSM_OK) return NULL;
    const double scale = csm_pow2(block.n - row->n);
    if (scale != 1) scale_masses(row, mass, k, scale);
    if (row->min_p > 0) *sum = apply_min_p(row, mass, k);
    return mass;
}
csm_status csm_sample_min_p_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_row *row = context;
    for (size_t b = begin; b < end; b++) {
        double sum = 0;
        char *mass = csm_sample_masses(row, b, thread, &sum);
        if (!mass) return CSM_NO_MEMORY;
        row->blocks[b].hi = row->mass ? apply_min_p(row, mass, csm_block_length(row->count, b * CSM_BLOCK)) : sum;
    }
    return CSM_OK;
}

double csm_sample_mass(const csm_sample_row *row) {
    csm_exact sum;
    double total, rest;
    csm_exact_zero(&sum);
    for (size_t b = 0; b < csm_block_count(row->count); b++) csm_exact_add_block(&sum, &row->blocks[b]);
    csm_exact_pair(&sum, (int64_t)row->n, &total, &rest);
    return total;
}

csm_status csm_sample_weigh(csm_sample_row *row, double *total) {
    const size_t size = row->count * row->call->base.wide_size;
    row->mass = NULL;
    if (row->count <= CSM_SAMPLE_WEIGHED_ELEMENTS) {
        row->mass = csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_WEIGHED, size);
        if (!row->mass) return CSM_NO_MEMORY;
    }
    csm_status status = csm_sample_sum(row);
    if (status != CSM_OK) return status;
    *total = csm_sample_mass(row);
    return row->mass ? csm_sample_blocks(row, csm_sample_scale_body) : CSM_OK;
}

csm_status csm_sample_sum_all(csm_sample_row *row) {
    const csm_call *c = &row->call->base;
    row->mass = NULL;
    if (row->count <= CSM_SAMPLE_KEPT_ELEMENTS) {
        row->mass = csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_MASS, row->count * c->wide_size);
        if (!row->mass) return CSM_NO_MEMORY;
    }
    csm_status status = csm_sample_sum(row);
    if (status == CSM_OK) status = csm_sample_blocks(row, csm_sample_scale_body);
    if (status == CSM_OK && row->min_p > 0) status = csm_sample_blocks(row, csm_sample_min_p_body);
    return status;
}
