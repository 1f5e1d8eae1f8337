/* The gradient of alpha-entmax with respect to alpha (Correia, Niculae & Martins 2019), from dy and y alone.
 *
 * With a = alpha - 1, s = y^(1 - a), m = sum(s dy) / sum(s), the mean of vjp.h, and l = -a log y >= 0,
 *     dL/dalpha = sum h (dy - m) = - sum g (dy - m),   h = y (1 + l) / a^2,   g = y (e^l - 1 - l) / a^2 = s / a^2 - h,
 * as sum s (dy - m) = 0.  At a = 0 g is y log^2 y / 2.  Both sums are computed, and the result is the one whose terms
 * have the smaller sum of magnitudes: h is large near alpha = 1, g where y is so small that s is far from y.
 *
 * Accumulators: pairs.  Error: 2^-50 times that smaller sum of |h| or |g| times (|dy_i - dy_r| + the mean of these).
 */
#ifndef CSM_ENTMAX_ALPHA_H
#define CSM_ENTMAX_ALPHA_H

#include "vjp.h"

/* Passes over the elements with y > 0: those of the gradient, and the last. */
typedef enum csm_alpha_pass {
    CSM_ALPHA_REFER,
    CSM_ALPHA_NEXT,
    CSM_ALPHA_ADD,
    CSM_ALPHA_SUM,
    CSM_ALPHA_END
} csm_alpha_pass;

typedef struct csm_alpha_sums {
    csm_pair h, g;
    double h_size, g_size; /* sums of magnitudes */
} csm_alpha_sums;

INLINE csm_alpha_sums csm_alpha_start(void) {
    const csm_alpha_sums sums = {{0, 0}, {0, 0}, 0, 0};
    return sums;
}

INLINE csm_alpha_pass csm_alpha_first(const csm_entmax *e) {
    return e->kind == CSM_ENTMAX_ANY ? CSM_ALPHA_REFER : CSM_ALPHA_ADD;
}
/* After a pass: what the next one needs. */
INLINE csm_alpha_pass csm_alpha_next(csm_entmax_vjp *v, const csm_entmax *e, csm_alpha_pass done) {
    if (done == CSM_ALPHA_REFER && csm_vjp_measure(v, e)) return CSM_ALPHA_NEXT;
    if (done == CSM_ALPHA_NEXT) csm_vjp_scale(v);
    if (done <= CSM_ALPHA_NEXT) return CSM_ALPHA_ADD;
    if (done == CSM_ALPHA_SUM) return CSM_ALPHA_END;
    csm_vjp_finish(v, e);
    return CSM_ALPHA_SUM;
}

/* (e^l - 1 - l) / l^2 for l >= 0: a series where the difference would cancel. */
INLINE double csm_alpha_excess(double l) {
    if (l > 1) return (csm_exp_less(l, 0, 0) - 1 - l) / (l * l);
    double sum = 0.5, term = 0.5;
    for (int k = 3; k < 22; k++) {
        term *= l / k;
        sum += term;
    }
    return sum;
}

/* The last pass, for an element with y > 0. */
INLINE void csm_alpha_add(const csm_entmax_vjp *v, const csm_entmax *e, csm_alpha_sums *sums, double y, double dy) {
    csm_pair d = csm_pair_of(dy, 0);
    if (e->kind == CSM_ENTMAX_ANY) csm_two_sum(&d.hi, &d.lo, -v->dy);
    const double difference = (d.hi - v->mean.hi) + (d.lo - v->mean.lo);
    const double log = csm_pair_log(csm_pair_of(y, 0)).hi, l = -log * e->scale;
    const double h = y * (1 + l) / e->scale / e->scale * difference;
    const double g = -y * (log * log) * csm_alpha_excess(l) * difference;
    csm_two_sum(&sums->h.hi, &sums->h.lo, h);
    csm_two_sum(&sums->g.hi, &sums->g.lo, g);
    sums->h_size += h < 0 ? -h : h;
    sums->g_size += g < 0 ? -g : g;
}

INLINE void csm_alpha_visit(csm_alpha_pass pass, csm_entmax_vjp *v, const csm_entmax *e, csm_alpha_sums *sums, double y,
                            double dy) {
    if (pass == CSM_ALPHA_REFER) csm_vjp_refer(v, e, y, dy);
    else if (pass == CSM_ALPHA_NEXT) csm_vjp_next(v, e, y, dy);
    else if (pass == CSM_ALPHA_ADD) csm_vjp_add(v, e, csm_vjp_weight(v, e, y), y, dy);
    else csm_alpha_add(v, e, sums, y, dy);
}

INLINE double csm_alpha_end(const csm_entmax_vjp *v, const csm_alpha_sums *sums) {
    const csm_pair *sum = sums->h_size < sums->g_size || !(sums->g_size < CSM_INF) ? &sums->h : &sums->g;
    const double result = sum->lo - sum->lo == 0 ? sum->hi + sum->lo : sum->hi;
    return v->is_nan || result != result ? CSM_NAN : result;
}

#endif
