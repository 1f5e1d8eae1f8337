/* The loss of a set of positives: the scalar work for a row, in double whatever the dtype of its logits.  With S_p and
 * S_o the sums of e' over the positives and over the others,
 *
 *   rho = S_o / S_p,  loss = log1p(rho) + z_loss lse^2
 *   gradient of an element: -(1 - P) times its softmax within the positives, or +(1 - P) times its softmax within the
 *   others, 1 - P = rho / (1 + rho); with z-loss plus 2 z_loss lse p
 *
 * so that nothing cancels, and a small loss keeps its digits.  Each group has its own reference exponent.  Groups that
 * lie so far apart that one of them is out of range beside the other are each computed from its own maximum: e^gap is
 * 0, and only the loss knows the gap.
 * Accumulators: pairs of doubles.  NaN: a row with NaN or +inf, or of nothing but -inf, is NaN, and not computed here.
 * A row without positives has the loss +inf and the gradient p; so has one whose positives are all -inf, where the
 * gradient of a single positive is -1 and that of several NaN, because no share is defined.
 * Measured error: loss and gradient below 5e-16 relative (decision segments 5).
 */
#ifndef CSM_CROSS_ENTROPY_ANY_H
#define CSM_CROSS_ENTROPY_ANY_H

#include "../softmax/combine.h"

/* The positives of a row, or its other elements; row.hi, lo and n: the sum of e', (hi + lo) 2^n. */
typedef struct csm_any_group {
    double *x;
    csm_block *blocks;
    csm_row row;
    double max, reference; /* reference: what is subtracted from the elements of a transformed row */
    double gap; /* 0, or (max - the row's maximum) / T of a group computed from its own maximum */
    size_t count;
    int is_nothing; /* no element, or nothing but -inf */
} csm_any_group;

/* An element of a row that is transformed, from `reference`, as csm_transformed does it from the row's maximum. */
INLINE double csm_any_transformed(const csm_scales *s, double x, double reference) {
    return (x * s->scale0 - reference * s->scale0) * s->scale1 * s->scale2;
}
INLINE int csm_any_is_out_of_range(const csm_scales *s, const csm_any_group *g, double reference) {
    return !g->is_nothing && !csm_is_ordinary(&s->transformed, csm_any_transformed(s, g->max, reference));
}

/* Sets the reference of a group: its own maximum where it is out of range beside that of the row. */
INLINE void csm_any_refer(const csm_scales *s, csm_any_group *g, double max, double reference) {
    g->reference = reference;
    if (!csm_any_is_out_of_range(s, g, reference)) return;
    g->gap = s->temperature > 1 ? (g->max * 0.5 - max * 0.5) / (s->temperature * 0.5) : (g->max - max) / s->temperature;
    g->reference = g->max;
}
/* Whether the elements of a row are transformed, and from what.  *reference: that of the row, whose maximum is max. */
INLINE int csm_any_transforms(const csm_scales *s, csm_any_group *p, csm_any_group *o, double max, double *reference) {
    *reference = 0;
    if ((p->is_nothing || csm_fits_range(s, p->max)) && (o->is_nothing || csm_fits_range(s, o->max))) return 0;
    if (csm_any_is_out_of_range(s, p, 0) || csm_any_is_out_of_range(s, o, 0)) *reference = max;
    csm_any_refer(s, p, max, *reference);
    csm_any_refer(s, o, max, *reference);
    return 1;
}

/* (log, low) += n ln 2 */
INLINE void csm_any_add_ln2(double n, double *log, double *low) {
    *low += n * 0x1.abc9e3b39803fp-56 + fma(n, 0x1.62e42fefa39efp-1, -(n * 0x1.62e42fefa39efp-1));
    csm_two_sum(log, low, n * 0x1.62e42fefa39efp-1);
}

/* The loss without z-loss, 1 - P and P. */
typedef struct csm_any_share {
    double loss, rest, positives;
} csm_any_share;
INLINE csm_any_share csm_any_share_of(const csm_any_group *p, const csm_any_group *o) {
    csm_any_share s = {CSM_INF, 1, 0};
    if (p->is_nothing) return s;
    s.loss = s.rest = 0;
    s.positives = 1;
    if (o->is_nothing || o->gap < 0) return s;
    const double b = p->row.hi + p->row.lo, b_low = (p->row.hi - b) + p->row.lo;
    const double a = o->row.hi + o->row.lo, a_low = (o->row.hi - a) + o->row.lo;
    const double q = a / b, q_low = ((fma(-q, b, a) + a_low) - q * b_low) / b, d = o->row.n - p->row.n;
    if (d > 400 || p->gap < 0) { /* log(1 + rho) = log(rho) to all digits */
        double low, log = csm_log(q, q_low, &low);
        csm_any_add_ln2(d, &log, &low);
        s.loss = p->gap < 0 ? log + low - p->gap : log + low;
        s.rest = 1;
        s.positives = p->gap < 0 ? 0 : csm_times_pow2(1 / q, -d);
        return s;
    }
    const double rho = csm_times_pow2(q, d);
    s.loss = csm_log1p(rho, csm_times_pow2(q_low, d));
    s.rest = rho / (1 + rho);
    s.positives = 1 / (1 + rho);
    return s;
}

/* log of the sum of both groups, plus the reference of the row over T.  No pointer is chosen, with which CUDA would
 * keep both groups in local memory. */
INLINE double csm_any_lse(const csm_any_group *p, const csm_any_group *o, double loss, double reference, double t) {
    const int is_alone = p->is_nothing || p->gap < 0; /* otherwise log S_p + log(1 + rho) */
    const double hi = is_alone ? o->row.hi : p->row.hi, lo = is_alone ? o->row.lo : p->row.lo;
    double low, log = csm_log(hi, lo, &low);
    csm_any_add_ln2((is_alone ? o->row.n : p->row.n) - 500, &log, &low); /* the bias of e' */
    if (!is_alone) csm_two_sum(&log, &low, loss);
    csm_two_sum(&log, &low, reference / t);
    return log + low;
}

/* The loss of a row, and the factors of the softmax within each group that make the gradient; nothing: the gradient of
 * positives that are all -inf. */
typedef struct csm_any_result {
    double loss, of_positive, of_other, of_nothing;
} csm_any_result;
INLINE csm_any_result csm_any_result_of(const csm_any_group *p, const csm_any_group *o, double temperature,
                                        double reference, double z_loss, double weight) {
    csm_any_result r;
    const csm_any_share s = csm_any_share_of(p, o);
    const double lse = z_loss != 0 ? csm_any_lse(p, o, s.loss, reference, temperature) : 0;
    const double scale = weight / temperature, z = 2 * z_loss * lse;
    r.loss = weight * (s.loss + z_loss * lse * lse);
    r.of_positive = scale * (z * s.positives - s.rest);
    r.of_other = scale * (z * s.rest + s.rest);
    r.of_nothing = p->count == 1 ? -scale : CSM_NAN;
    return r;
}

/* The factor that limits the norm of a gradient, and an element that has it, within +-clip_value. */
INLINE double csm_any_shrink(double sum_of_squares, double clip_norm) {
    const double norm = sqrt(sum_of_squares);
    return norm > clip_norm ? clip_norm / norm : 1;
}
INLINE double csm_any_clipped(double g, double shrink, double clip_value) {
    g *= shrink;
    return g > clip_value ? clip_value : g < -clip_value ? -clip_value : g;
}

#endif
