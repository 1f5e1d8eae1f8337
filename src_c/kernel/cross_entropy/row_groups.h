/* The scalar computations for a row (row.h, block.h), for a group of rows: as many rows of floats as a vector has lanes
 * or, for the logarithms of losses, CSM_PENDING rows of any type.  The loops over rows are plain C without branches,
 * which compilers vectorise.  Each row has the bits that it has on its own, and therefore the same error (ACCURACY.md).
 * Everything is in double.  A sum that is NaN makes its row's tail and loss NaN and affects no other row.
 */
#ifndef CSM_CROSS_ENTROPY_ROW_GROUPS_H
#define CSM_CROSS_ENTROPY_ROW_GROUPS_H

#include "row.h"

/* In: maximum, its n, sum of e' without the maxima, number of maxima; for entropies also sum e' (max - x).  Out: e' of
 * a maximum, log(sum e^(x - max)) or the entropy. */
typedef struct csm_tails {
    double max[v32_W], n[v32_W], sum[v32_W], count[v32_W], far[v32_W], top[v32_W], tail[v32_W];
} csm_tails;

INLINE void csm_find_tails_at(csm_tails *s, double t, double bias) {
    SIMD
    for (int r = 0; r < v32_W; r++) {
        csm_block block;
        csm_row row;
        block.n = s->n[r];
        csm_top(s->max[r], t, bias, 1, &block);
        csm_log_tail(s->count[r], s->sum[r], 0, block.top, 0, &row);
        s->top[r] = block.top;
        s->tail[r] = row.tail;
    }
}

static NOINLINE void csm_find_tails(csm_tails *s, double t, double bias) {
    if (t == 1) csm_find_tails_at(s, 1, bias);
    else csm_find_tails_at(s, t, bias);
}

static NOINLINE void csm_find_entropies(csm_tails *s, const csm_temperature *t) {
    SIMD
    for (int r = 0; r < v32_W; r++)
        s->tail[r] = csm_entropy_of(s->tail[r], s->far[r], fma(s->count[r], s->top[r], s->sum[r]), t);
}

/* In: the label's logit and e'.  Out: the results of csm_loss_sums and csm_loss_factors for a `simple` call. */
typedef struct csm_simple_losses {
    double x_label[v32_W], e_label[v32_W], loss[v32_W], target[v32_W];
    float f[v32_W], f_low[v32_W];
} csm_simple_losses;

static NOINLINE void csm_find_losses(const csm_loss_call *c, const csm_tails *s, csm_simple_losses *l) {
    const double a = csm_loss_share(c);
    SIMD
    for (int r = 0; r < v32_W; r++) {
        double total = s->sum[r], total_low = 0;
        csm_loss_total(&total, &total_low, s->count[r], s->top[r], 0);
        const double without = (total - l->e_label[r]) + total_low, ties = s->sum[r] + (s->count[r] - 1) * s->top[r];
        const double others = csm_choose(l->x_label[r] < s->max[r], without, ties), f = a / total;
        l->f[r] = (float)f;
        l->f_low[r] = (float)(f - (double)l->f[r]);
        l->target[r] = csm_loss_simple_target(a, others, total);
        l->loss[r] = s->tail[r] + (s->max[r] - l->x_label[r]);
    }
}

static NOINLINE void csm_finish_losses(csm_pending_losses *pending) {
    double loss[CSM_PENDING];
    for (int i = pending->count; i < CSM_PENDING; i++) /* the values do not matter */
        pending->q[i] = pending->q_low[i] = pending->factor[i] = pending->far[i] = pending->label[i] =
            pending->weight[i] = 0;
    SIMD
    for (int i = 0; i < CSM_PENDING; i++) {
        const double tail = csm_log1p(pending->q[i], pending->q_low[i]);
        loss[i] = pending->weight[i] * ((pending->factor[i] * tail + pending->far[i]) + pending->label[i]);
    }
    for (int i = 0; i < pending->count; i++) *pending->loss[i] = loss[i];
    pending->count = 0;
}

#endif
