/* The blocks of a row, combined in order, and rows whose result needs no sum.
 *
 *   softmax      sum e' = sum over the blocks of S_b 2^(n_b - n), n that of the block with the maximum; 1 / sum e'
 *   log family   the same without the maxima, which are counted: tail = log1p((c - 1) + S'/e'_m)
 *   gradients    s = sum over the blocks of s_b
 *
 * Passes: two over the records of the blocks (gradients: one), none over the row.
 * Accumulators: pairs of doubles; the powers of two are exact, and 0 below the normal numbers.
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
    if (!kept) *fill = op == CSM_OP_softmax ? 0 : -CSM_INF;
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

/* Finds the row's max and n, and clears its sum; the sums of all blocks are then added relative to n, in index
 * order. */
INLINE void csm_combine_sums(const csm_block *blocks, size_t count, csm_row *row) {
    row->max = blocks[0].max;
    row->n = blocks[0].n;
    for (size_t b = 1; b < count; b++)
        if (blocks[b].max > row->max) {
            row->max = blocks[b].max;
            row->n = blocks[b].n;
        }
    row->hi = row->lo = 0;
}

INLINE void csm_combine_softmax(const csm_block *blocks, size_t count, int single, csm_row *row) {
    csm_combine_sums(blocks, count, row);
    for (size_t b = 0; b < count; b++) {
        double scale = csm_pow2(blocks[b].n - row->n);
        csm_two_sum(&row->hi, &row->lo, blocks[b].hi * scale);
        row->lo += blocks[b].lo * scale;
    }
    csm_reciprocal(row->hi, row->lo, single, row);
}

INLINE void csm_combine_quotient(const csm_block *blocks, size_t count, csm_row *row, double *q, double *q_low) {
    double maxima = 0, top = 1, top_low = 0;
    if (count == 1) {
        row->max = blocks->max;
        row->n = blocks->n;
        csm_log_quotient(blocks->count, blocks->hi, blocks->lo, blocks->top, blocks->top_low, row, q, q_low);
        return;
    }
    csm_combine_sums(blocks, count, row);
    for (size_t b = 0; b < count; b++) {
        double scale = csm_pow2(blocks[b].n - row->n);
        csm_two_sum(&row->hi, &row->lo, blocks[b].hi * scale);
        row->lo += blocks[b].lo * scale;
        if (blocks[b].max == row->max) {
            maxima += blocks[b].count;
            top = blocks[b].top;
            top_low = blocks[b].top_low;
        } else {
            csm_two_sum(&row->hi, &row->lo, blocks[b].count * blocks[b].top * scale);
            row->lo += blocks[b].count * blocks[b].top_low * scale;
        }
    }
    csm_log_quotient(maxima, row->hi, row->lo, top, top_low, row, q, q_low);
}
INLINE void csm_combine_log(const csm_block *blocks, size_t count, csm_row *row) {
    double q, q_low;
    csm_combine_quotient(blocks, count, row, &q, &q_low);
    row->tail = csm_log1p(q, q_low);
}

/* For gradients: adds the sums of the blocks as a pair. */
INLINE void csm_combine_pair(const csm_block *blocks, size_t count, int single, csm_row *row) {
    double hi = 0, lo = 0;
    for (size_t b = 0; b < count; b++) {
        csm_two_sum(&hi, &lo, blocks[b].hi);
        lo += blocks[b].lo;
    }
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
