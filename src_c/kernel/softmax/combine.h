/* The blocks of a row, combined without rounding and in any order (exact.h), and rows whose result needs no sum.
 *
 *   softmax      sum e' = sum over the blocks of S_b 2^(n_b - n), n that of the block with the maximum; 1 / sum e'
 *   log family   the same without the maxima, which are counted: tail = log1p((c - 1) + S'/e'_m)
 *   entropy      the tail, plus the weighted distances to the row's maximum
 *   gradients    s = sum over the blocks of s_b
 *
 * Passes: two over the records of the blocks (gradients: one), none over the row.
 * Accumulators: integers in fixed bins, of which at least 113 bits from the leading one count; the result is a pair of
 * doubles.  A row of one block keeps its pair as it is.
 * NaN: a sum that is NaN makes the row NaN (is_nan).  A row beyond exp's range that has NaN, an infinite maximum or no
 * element gets its result from csm_is_special.
 * Measured error: forward.inc.h, vjp.inc.h and loss.inc.h, whose results contain that of the combination.
 */
#ifndef CSM_SOFTMAX_COMBINE_H
#define CSM_SOFTMAX_COMBINE_H

#include "../../math/block.h"
#include "../../math/temperature.h"
#include "../../registry.h"

/* Whether the result of a row needs no sum and is `fill` everywhere.  nan: the row holds NaN; kept: at least one
 * element takes part. */
INLINE int csm_is_special(csm_op op, double temperature, double max, int nan, int kept, double *fill) {
    const int lse = op == CSM_OP_logsumexp;
    *fill = CSM_NAN;
    if (!kept) *fill = op == CSM_OP_softmax || op == CSM_OP_entropy ? 0 : -CSM_INF;
    else if (nan) return 1;
    else if (max == CSM_INF || max == -CSM_INF) *fill = lse ? max : CSM_NAN;
    else if (lse && temperature == 0 && max != 0) *fill = max > 0 ? CSM_INF : -CSM_INF;
    else return 0;
    return 1;
}
/* The log-sum-exp of a row from its maximum and tail.  transformed: the tail is already that of x/T. */
INLINE double csm_lse(const csm_scales *s, double max, double tail, int transformed) {
    if (transformed && (s->temperature == 0 || !(s->temperature < CSM_INF))) return tail;
    return max / s->temperature + tail;
}
/* The result of a row that is one number: the tail that `combine` has left, but for a log-sum-exp. */
INLINE double csm_reduced(csm_op op, const csm_scales *s, double max, double tail, int transformed) {
    return op == CSM_OP_logsumexp ? csm_lse(s, max, tail, transformed) : tail;
}

/* Finds the row's max and n. */
INLINE void csm_find_reference(const csm_block *blocks, size_t count, csm_row *row) {
    row->max = blocks[0].max;
    row->n = blocks[0].n;
    for (size_t b = 1; b < count; b++)
        if (blocks[b].max > row->max) {
            row->max = blocks[b].max;
            row->n = blocks[b].n;
        }
}
/* Adds a block's sum of e', times 2^n of the block.  Returns 0, with nothing added, if it is NaN. */
INLINE int csm_exact_add_block(csm_exact *sum, const csm_block *block) {
    if (!(block->hi - block->hi == 0)) return 0;
    csm_exact_add(sum, block->hi, (int64_t)block->n, 1);
    csm_exact_add(sum, block->lo, (int64_t)block->n, 1);
    return 1;
}

INLINE void csm_combine_softmax(const csm_block *blocks, size_t count, int single, csm_row *row) {
    csm_find_reference(blocks, count, row);
    row->hi = blocks->hi;
    row->lo = blocks->lo;
    if (count > 1) {
        csm_exact sum;
        int is_number = 1;
        csm_exact_zero(&sum);
        for (size_t b = 0; b < count; b++) is_number &= csm_exact_add_block(&sum, &blocks[b]);
        csm_exact_pair(&sum, (int64_t)row->n, &row->hi, &row->lo);
        if (!is_number) row->hi = CSM_NAN;
    }
    csm_reciprocal(row->hi, row->lo, single, row);
}

/* The maxima of a block whose maximum is below the row's are terms of the row's sum like any other element.  Each is
 * cut into pieces by itself and counted, so that ties in different blocks add up as those of one block do. */
INLINE void csm_exact_add_maxima(csm_exact *sum, const csm_block *block) {
    if (!(block->max > -CSM_INF)) return;
    csm_exact_add(sum, block->top, (int64_t)block->n, (int64_t)block->count);
    csm_exact_add(sum, block->top_low, (int64_t)block->n, (int64_t)block->count);
}
INLINE void csm_combine_quotient(const csm_block *blocks, size_t count, csm_row *row, double *q, double *q_low) {
    double maxima = 0, top = 1, top_low = 0;
    csm_find_reference(blocks, count, row);
    if (count == 1) {
        csm_log_quotient(blocks->count, blocks->hi, blocks->lo, blocks->top, blocks->top_low, row, q, q_low);
        return;
    }
    csm_exact sum;
    int is_number = 1;
    csm_exact_zero(&sum);
    for (size_t b = 0; b < count; b++) {
        const csm_block *block = &blocks[b];
        is_number &= csm_exact_add_block(&sum, block);
        if (block->max == row->max) {
            maxima += block->count;
            top = block->top;
            top_low = block->top_low;
        } else {
            csm_exact_add_maxima(&sum, block);
        }
    }
    csm_exact_pair(&sum, (int64_t)row->n, &row->hi, &row->lo);
    if (!is_number) row->hi = CSM_NAN;
    csm_log_quotient(maxima, row->hi, row->lo, top, top_low, row, q, q_low);
}
INLINE void csm_combine_log(const csm_block *blocks, size_t count, csm_row *row) {
    double q, q_low;
    csm_combine_quotient(blocks, count, row, &q, &q_low);
    row->tail = csm_log1p(q, q_low);
}
/* Each block's distances are to its own maximum: those to the row's are larger by the difference, times the block's sum
 * of e'.  No term is negative. */
INLINE void csm_combine_entropy(const csm_block *blocks, size_t count, const csm_temperature *t, const int single,
                                csm_row *row) {
    double far = blocks->far, low;
    csm_combine_log(blocks, count, row);
    if (count > 1) {
        csm_exact sum;
        csm_exact_zero(&sum);
        for (size_t b = 0; b < count && !row->is_nan; b++) {
            const csm_block *block = &blocks[b];
            if (!(block->max > -CSM_INF)) continue;
            const double distance = (csm_reference(row->max, t) - csm_reference(block->max, t)) * csm_distance_scale(t);
            const double all = fma(block->count, block->top, block->hi + block->lo);
            csm_exact_add(&sum, fma(distance, all, block->far), (int64_t)block->n, 1);
        }
        csm_exact_pair(&sum, (int64_t)row->n, &far, &low);
    }
    row->tail = csm_entropy(row, far, t, single);
}

/* For gradients: adds the sums of the blocks as a pair. */
INLINE void csm_combine_pair(const csm_block *blocks, size_t count, int single, csm_row *row) {
    double hi = blocks->hi, lo = blocks->lo;
    if (count > 1) {
        csm_pair_sum sum;
        csm_pair_sum_zero(&sum);
        for (size_t b = 0; b < count; b++) csm_pair_sum_add(&sum, blocks[b].hi, blocks[b].lo);
        csm_pair_sum_total(&sum, &hi, &lo);
    }
    hi += 0; /* never -0 */
    if (!(lo - lo == 0)) lo = 0; /* hi is infinite or NaN */
    if (single) {
        row->hi = (double)(float)(hi + lo);
        row->lo = row->hi - row->hi == 0 ? (double)(float)((hi - row->hi) + lo) : 0;
    } else {
        row->hi = hi + lo;
        row->lo = row->hi - row->hi == 0 ? (hi - row->hi) + lo : 0;
    }
}

#endif
