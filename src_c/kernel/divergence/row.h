/* The Kullback-Leibler divergence: the scalar work for a row, in double.  divergence.inc.h has the formulas. */
#ifndef CSM_DIVERGENCE_ROW_H
#define CSM_DIVERGENCE_ROW_H

#include "../../math/pair.h"
#include "../softmax/combine.h"
#include "job.h"

/* Sets a row's constants from the sums of both sides, whose tails are known.  factor: of the gradient. */
INLINE void csm_kl_set(csm_kl_row *row, double max_x, double max_y, double tail_x, double tail_y, double total_x,
                       double total_y, double factor) {
    row->max_x = max_x;
    row->max_y = max_y;
    row->offset = tail_y - tail_x;
    row->tails = tail_x + tail_y;
    row->ratio = total_x / total_y;
    row->total = total_x;
    row->exponent = 0;
    row->factor = factor / total_x;
    row->is_nan = !(row->offset - row->offset == 0);
}
/* Moves a power of two out of the factor, unless it is in the middle of the range: then no product is subnormal or
 * infinite on the way. */
INLINE void csm_kl_balance(csm_kl_row *row, double factor, double safe) {
    double mantissa = factor;
    const double exponent = csm_take_exponent(&mantissa);
    if (!(exponent < -safe || exponent > safe)) return;
    row->factor = mantissa / row->total;
    row->exponent = exponent;
}
/* Whether sum p w, which is `sum` / row->total, is accurate enough.  In units of the rounding u, its error is at most
 * 1.5 sum p (|x - m_x| + |y - m_y|) / T, the roundings of w, and 4 sum p |w|, those of p and of the sum; the first sum
 * is at most 2 log n + KL, as an entropy is at most log n, and the second at most KL + 2 / e.  Allowed are
 * 4 sum p |w| (2 + |log p| + |log q|), where -log p and -log q are at least the tails, and sum p |w| is at least KL. */
INLINE int csm_kl_is_linear(const csm_kl_row *row, double sum, double log_n) {
    const double kl = sum / row->total;
    return kl * (4 * (2 + row->tails) - 5.5) >= 3 * log_n + 3;
}
/* Whether the loss of a row is computed by ops/divergence_row.c: it is not finite, or p and q are so close that the
 * squares of the roundings of w, which are u |log p|, would show beside it.  Equal logits have exactly 0. */
INLINE int csm_kl_is_slow(const csm_kl_row *row, double sum, const int single) {
    return !(sum - sum == 0) || (sum != 0 && sum < row->total * (single ? 0x1p-32 : 0x1p-90));
}
INLINE double csm_kl_total(const csm_row *sums) { return fma(sums->count, sums->top, sums->hi + sums->lo); }

/* The factor of the gradient of row number i of a job.  Returns 0 if the row has weight 0, and is not read. */
INLINE int csm_kl_read(const csm_kl_job *job, ptrdiff_t i, double *weight, double *factor) {
    double upstream = 1;
    *weight = 1;
    if (job->weight) memcpy(weight, job->weight + i * job->weight_step, sizeof *weight);
    if (job->upstream) memcpy(&upstream, job->upstream + i * job->upstream_step, sizeof upstream);
    *factor = job->factor * *weight * upstream;
    return *weight != 0;
}

#endif
