/* The gradient of alpha-entmax, dx_i = s_i (dy_i - sum(s dy) / sum(s)), s = y^(1 - a) where y > 0, a = alpha - 1: what
 * the kernels of the CPU and of CUDA compute for one element after the other, in the order of the classes.
 *
 * The sums are pairs.  alpha other than 1.5 and 2: they are of g_i = dy_i - dy_r, r the element of the largest weight,
 * because the others' weights may be so small that the mean is dy_r to the last digit, while dx_r = - s_r mean(g) is
 * not 0.
 * A row is wide if some s lies outside e^-600 ... e^600, as for large alpha.  There elements with g = 0, r first of
 * them, have s_i (g_i - mean(g)) = inf 0: with the numbers that tie with r apart, mean(g) = (G + s_n H / s_r) / R, where
 * G is the sum of g over them, n the element of the largest weight among the others with g != 0, H = sum s_i g_i / s_n
 * over the others and R = sum s / s_r; where G = 0 and g_i = 0, dx_i = - (s_i s_n / s_r) H / R.
 * Error: ULP of the result, and 2^-51 s_i (|g_i| + mean |g|), that of the weights; alpha 1.5 and 2: 2^-98 s_i mean |dy|.
 */
#ifndef CSM_ENTMAX_VJP_H
#define CSM_ENTMAX_VJP_H

#include "../../math/power.h"
#include "job.h"

typedef struct csm_entmax_vjp {
    double y, dy, next;        /* of r; y of n, 0 if there is none */
    double largest, smallest;  /* y */
    csm_pair log_y, log_next;  /* logarithms */
    csm_pair tied, top, all;   /* G; sum of s g or H; sum of s or R */
    csm_pair mean, share;      /* mean(g); H / R */
    int is_wide, is_nan;
} csm_entmax_vjp;

INLINE csm_entmax_vjp csm_vjp_start(void) {
    csm_entmax_vjp v;
    memset(&v, 0, sizeof v);
    return v;
}
/* Whether the weight of y is larger than that of other; 0 has the least. */
INLINE int csm_vjp_is_larger(const csm_entmax *e, double y, double other) {
    return other == 0 || (e->scale < 1 ? y > other : y < other);
}
/* ANY, first pass: finds r. */
INLINE void csm_vjp_refer(csm_entmax_vjp *v, const csm_entmax *e, double y, double dy) {
    v->is_nan |= y != y;
    if (csm_vjp_is_larger(e, y, v->y)) {
        v->y = y;
        v->dy = dy;
    }
    v->largest = y > v->largest ? y : v->largest;
    v->smallest = v->smallest == 0 || y < v->smallest ? y : v->smallest;
}
/* ANY, after the first pass: whether the row is wide, so that a pass with csm_vjp_next must follow. */
static inline int csm_vjp_measure(csm_entmax_vjp *v, const csm_entmax *e) {
    double low;
    if (v->is_nan || !(v->y > 0 && v->y < CSM_INF)) return 0;
    v->log_y = csm_pair_log(csm_pair_of(v->y, 0));
    const double top = csm_log(v->largest, 0, &low) * (1 - e->scale);
    const double end = csm_log(v->smallest, 0, &low) * (1 - e->scale);
    v->is_wide = !(top < 600 && top > -600 && end < 600 && end > -600);
    return v->is_wide;
}
/* Wide rows, second pass: finds n. */
INLINE void csm_vjp_next(csm_entmax_vjp *v, const csm_entmax *e, double y, double dy) {
    if (y != v->y && dy != v->dy && csm_vjp_is_larger(e, y, v->next)) v->next = y;
}
/* (y / base)^(1 - a) for the logarithm of base.  csm_pow's logarithm is wrong by 2^-60, its result by a 2^-60. */
static NOINLINE double csm_vjp_ratio(const csm_entmax *e, double y, csm_pair log_base) {
    csm_pair log = csm_pair_log(csm_pair_of(y, 0));
    log = csm_pair_times(csm_pair_add(log, csm_pair_minus(log_base)), 1 - e->scale);
    return csm_exp_less(log.hi, log.lo, 0);
}
/* s_i; wide rows: s_i / s_r. */
INLINE double csm_vjp_weight(const csm_entmax_vjp *v, const csm_entmax *e, double y) {
    if (e->kind == CSM_SPARSEMAX) return y == y ? 1 : y;
    if (e->kind == CSM_ENTMAX15) return sqrt(y);
    if (v->is_nan) return 1;
    if (v->is_wide) return y == v->y ? 1 : csm_vjp_ratio(e, y, v->log_y);
    if (e->single || e->scale <= 4) return csm_pow(y, 0, 1 - e->scale, 0);
    return csm_vjp_ratio(e, y, csm_pair_of(0, 0));
}
INLINE void csm_vjp_add_product(csm_pair *sum, double w, double g) {
    const double product = w * g;
    csm_two_sum(&sum->hi, &sum->lo, product);
    sum->lo += fma(w, g, -product);
}
/* Last pass over the sums: adds an element with weight w. */
INLINE void csm_vjp_add(csm_entmax_vjp *v, const csm_entmax *e, double w, double y, double dy) {
    csm_pair g = csm_pair_of(dy, 0);
    csm_two_sum(&v->all.hi, &v->all.lo, w);
    if (e->kind != CSM_ENTMAX_ANY) {
        csm_vjp_add_product(&v->top, w, dy);
        return;
    }
    csm_two_sum(&g.hi, &g.lo, -v->dy);
    if (!v->is_wide) {
        csm_vjp_add_product(&v->top, w, g.hi);
        v->top.lo += w * g.lo;
    } else if (y == v->y) {
        v->tied = csm_pair_add(v->tied, g);
    } else if (g.hi != 0) {
        const double small = y == v->next ? 1 : csm_vjp_ratio(e, y, v->log_next);
        csm_vjp_add_product(&v->top, small, g.hi);
        v->top.lo += small * g.lo;
    }
}
/* Before the pass over the sums of a wide row. */
static inline void csm_vjp_scale(csm_entmax_vjp *v) {
    if (v->next > 0) v->log_next = csm_pair_log(csm_pair_of(v->next, 0));
}
/* A quotient of sums, infinite ones included. */
static inline csm_pair csm_vjp_quotient(csm_pair top, csm_pair all) {
    const double den = all.hi + all.lo, num = top.hi + top.lo, mean = num / den;
    if (!(mean - mean == 0)) return csm_pair_of(top.hi - top.hi == 0 ? mean : top.hi, 0);
    return csm_pair_of(mean,
                       (fma(-mean, den, num) + ((top.hi - num) + top.lo) - mean * ((all.hi - den) + all.lo)) / den);
}
/* After the sums. */
static inline void csm_vjp_finish(csm_entmax_vjp *v, const csm_entmax *e) {
    v->mean = csm_vjp_quotient(v->top, v->all);
    if (!v->is_wide) return;
    v->share = v->mean;
    v->mean = csm_vjp_quotient(v->tied, v->all);
    if (v->next > 0 && v->share.hi - v->share.hi == 0) {
        const double small = csm_vjp_ratio(e, v->next, v->log_y);
        v->mean = csm_pair_add(v->mean, csm_pair_times(v->share, small));
    }
}
/* x e^log, though e^log may be outside the range of double. */
static inline double csm_vjp_times_exp(double x, csm_pair log) {
    if (x == 0) return 0;
    const double half = csm_exp_less(0.5 * log.hi, 0.5 * log.lo, 0);
    return (x * half) * half;
}
/* dx of an element with y > 0. */
INLINE double csm_vjp_value(const csm_entmax_vjp *v, const csm_entmax *e, double y, double dy) {
    if (v->is_nan) return CSM_NAN;
    if (e->kind != CSM_ENTMAX_ANY) return csm_vjp_weight(v, e, y) * ((dy - v->mean.hi) - v->mean.lo);
    csm_pair g = csm_pair_of(dy, 0);
    csm_two_sum(&g.hi, &g.lo, -v->dy);
    const double d = (g.hi - v->mean.hi) + (g.lo - v->mean.lo);
    if (!v->is_wide) return csm_vjp_weight(v, e, y) * d;
    const double power = 1 - e->scale;
    csm_pair log = csm_pair_times(csm_pair_log(csm_pair_of(y, 0)), power);
    if (g.hi != 0 || v->tied.hi != 0 || v->next == 0) return csm_vjp_times_exp(d, log);
    const csm_pair more = csm_pair_times(csm_pair_add(v->log_next, csm_pair_minus(v->log_y)), power);
    return csm_vjp_times_exp(-v->share.hi, csm_pair_add(log, more));
}

#endif
