/* log |sum b_j e^(x_j / T)| and the sign of the sum, element by element: two passes over the elements that take part.
 *
 * With m the element of the largest |b| e^(x / T):
 *     result = x_m / T + log |b_m| + log1p(R),  R = sum of the others (b_j / b_m) e^((x_j - x_m) / T)
 * Terms of R are pairs of doubles, and so is the sum of the three parts: the error is that of one rounding where
 * nothing cancels in R.  A weight that is not finite makes the row NaN.
 */
#ifndef CSM_WEIGHTED_ROW_H
#define CSM_WEIGHTED_ROW_H

#include "../../math/power.h"

/* x / T as a pair. */
INLINE csm_pair csm_weighted_divided(double x, double t) {
    if (t == 1) return csm_pair_of(x, 0);
    const double q = x / t, low = fma(-q, t, x) / t;
    return csm_pair_of(q, low - low == 0 ? low : 0);
}
/* a - b of two elements. */
INLINE csm_pair csm_weighted_difference(csm_pair a, csm_pair b) {
    const csm_pair d = csm_pair_add(a, csm_pair_minus(b));
    return d.hi - d.hi == 0 && d.lo - d.lo == 0 ? d : csm_pair_of(a.hi - b.hi, 0);
}

/* An element with a weight that is not 0: x, z = x / T, b and log |b|. */
typedef struct csm_weighted_term {
    double x, b;
    csm_pair z, log;
} csm_weighted_term;
INLINE csm_weighted_term csm_weighted_term_of(double x, double b, double t) {
    const csm_weighted_term u = {x, b, csm_weighted_divided(x, t), csm_pair_log(csm_pair_of(fabs(b), 0))};
    return u;
}
/* u.z - v.z.  Beyond the range of double, two quotients of different elements are infinitely far apart. */
INLINE csm_pair csm_weighted_distance(const csm_weighted_term *u, const csm_weighted_term *v) {
    const csm_pair d = csm_weighted_difference(u->z, v->z);
    if (d.hi - d.hi == 0) return d;
    return csm_pair_of(u->x == v->x ? 0 : u->x < v->x ? -CSM_INF : CSM_INF, 0);
}
/* log (|b_u| e^z_u / (|b_v| e^z_v)); -inf and inf where z_u - z_v is. */
INLINE csm_pair csm_weighted_log_ratio(const csm_weighted_term *u, const csm_weighted_term *v) {
    const csm_pair d = csm_weighted_distance(u, v);
    return d.hi - d.hi == 0 ? csm_pair_add(d, csm_weighted_difference(u->log, v->log)) : d;
}
/* (b_u / b_v) e^(z_u - z_v): a product, unless a factor may leave the range of double. */
INLINE csm_pair csm_weighted_ratio(const csm_weighted_term *u, const csm_weighted_term *v) {
    const csm_pair d = csm_weighted_distance(u, v);
    if (fabs(d.hi) < 600 && fabs(u->log.hi) < 300 && fabs(v->log.hi) < 300)
        return csm_pair_mul(csm_pair_exp(d, 0), csm_pair_div(csm_pair_of(u->b, 0), csm_pair_of(v->b, 0)));
    const csm_pair e = csm_pair_exp(csm_weighted_log_ratio(u, v), 0);
    return (u->b > 0) == (v->b > 0) ? e : csm_pair_minus(e);
}

/* The state of a row.  infinite: the sign of its elements that are +inf, or 0. */
typedef struct csm_weighted_row {
    csm_weighted_term top;
    csm_pair rest;
    double infinite;
    int is_nan, is_left_out; /* is_left_out: one element like the largest, in the second pass */
} csm_weighted_row;

/* The first pass finds the largest element.  Whether it has to be compared: it is finite, with a finite weight. */
INLINE int csm_weighted_reads(csm_weighted_row *row, double x, double b) {
    if (x != x || b - b != 0) row->is_nan = 1;
    if (x == CSM_INF && !row->is_nan) {
        const double s = b > 0 ? 1 : -1;
        if (row->infinite == -s) row->is_nan = 1;
        row->infinite = s;
    }
    return x > -CSM_INF && x < CSM_INF && !row->is_nan && row->infinite == 0;
}
INLINE void csm_weighted_find(csm_weighted_row *row, const csm_weighted_term *u) {
    if (row->top.b == 0 || csm_weighted_log_ratio(u, &row->top).hi > 0) row->top = *u;
}
/* Whether the row is known after the first pass. */
INLINE int csm_weighted_is_known(const csm_weighted_row *row) {
    return row->is_nan || row->infinite != 0 || row->top.b == 0;
}
/* The second pass adds the others.  Whether an element is one of them. */
INLINE int csm_weighted_adds(csm_weighted_row *row, double x, double b) {
    if (!(x > -CSM_INF)) return 0;
    if (row->is_left_out || b != row->top.b || x != row->top.x) return 1;
    row->is_left_out = 1;
    return 0;
}
/* Returns log |sum|; sets the sign: 1, -1, 0 or NaN. */
INLINE double csm_weighted_end(const csm_weighted_row *row, double *sign) {
    *sign = row->is_nan ? CSM_NAN : row->infinite;
    if (row->is_nan) return CSM_NAN;
    if (row->infinite != 0) return CSM_INF;
    if (row->top.b == 0) return -CSM_INF;
    const csm_pair sum = csm_pair_plus(row->rest, 1);
    const double direction = row->top.b > 0 ? 1 : -1;
    *sign = sum.hi > 0 ? direction : sum.hi < 0 ? -direction : 0;
    if (sum.hi == 0) return -CSM_INF;
    if (row->top.z.hi - row->top.z.hi != 0) return row->top.z.hi;
    const csm_pair log = sum.hi > 0 ? csm_pair_log1p(row->rest) : csm_pair_log(csm_pair_minus(sum));
    const csm_pair all = csm_pair_add(csm_pair_add(row->top.z, row->top.log), log);
    return all.lo - all.lo == 0 ? all.hi + all.lo : all.hi;
}

#endif
