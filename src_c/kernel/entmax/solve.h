/* alpha-entmax of the numbers that can have probability: y_i = u_i^p, u_i = z_i + c > 0, p = 1 / (alpha - 1),
 * z_i = (alpha - 1) (x_i - max) and the c in (0, 1] for which sum y = 1 (Peters, Niculae & Martins 2019;
 * sparsemax, p = 1: Martins & Astudillo 2016).  Everything is in double, in the unit's vectors; the last sums are
 * pairs.
 *
 * p >= 1: Newton's method on the p-norm of u, sum^(1/p) = 1.  The norm is convex, so that c falls to the root from
 * c = 1, where the sum is at least 1.  For p = 1 these are Michelot's steps (1986); for p = 2 four or five suffice.
 * c = 1 + t: near alpha = 1 t is tiny, and u^p needs its digits.
 * p < 1: Newton's method, in a bracket, on the largest probability m = c^p, sum m (1 + z_i / c)^p = 1, whose slope is
 * sum (1 + z_i / c)^(p-1); c itself may be as small as count^-(alpha - 1).
 * The root is then improved with sums of pairs; the result sums to 1 within rounding, for any size.
 */
#ifndef CSM_ENTMAX_SOLVE_H
#define CSM_ENTMAX_SOLVE_H

#include "../../math/scalars.h"
#include "job.h"

/* sum u^p and sum u^(p-1), in eight lanes for the closed forms. */
INLINE void csm_entmax_sums(csm_support *s, const csm_entmax *e, double t, double *sum, double *slope) {
    enum { EIGHT = 8 / v64_W };
    *sum = *slope = 0;
    if (e->kind == CSM_ENTMAX_ANY) {
        double low = 0, slope_low = 0;
        for (size_t i = 0; i < s->count; i++) {
            const double v = s->z[i] + t, u = 1 + v;
            if (csm_support_stops(s, i)) return;
            if (!(u > 0)) continue;
            const double w = csm_pow(u, v - (u - 1), e->p - 1, e->p_low);
            csm_two_sum(slope, &slope_low, w);
            csm_two_sum(sum, &low, w * u);
        }
        *sum += low;
        return;
    }
    const v64_t c = v64_set(1 + t), none = v64_zero(), ones = v64_set(1);
    v64_t a[EIGHT], b[EIGHT];
    for (int l = 0; l < EIGHT; l++) a[l] = b[l] = none;
    for (size_t i = 0; i < s->count; i += 8) {
        if (i % CSM_POLL_STEP == CSM_POLL_STEP - 8 && csm_support_stops(s, i + 7)) return;
        for (int l = 0; l < EIGHT; l++) {
            v64_t u = v64_add(v64_load_f64(s->z + i + l * v64_W), c);
            v64_mask in = v64_not_le(u, none);
            u = v64_keep(in, u);
            if (e->kind == CSM_SPARSEMAX) {
                a[l] = v64_add(a[l], u);
                b[l] = v64_add(b[l], v64_keep(in, ones));
            } else {
                a[l] = v64_fma(u, u, a[l]);
                b[l] = v64_add(b[l], u);
            }
        }
    }
    *sum = v64_tree(a);
    *slope = v64_tree(b);
}

/* u_i = z_i + c as a pair, the low part below the last digit of the high one. */
INLINE double csm_entmax_u(const csm_support *s, const csm_entmax *e, size_t i, double *low) {
    double v = s->z[i], rest = s->z_low[i] + s->t_low, u = e->p < 1 ? 0 : 1;
    csm_two_sum(&v, &rest, s->t);
    *low = 0;
    csm_two_sum(&u, low, v);
    rest += *low;
    v = u + rest;
    *low = (u - v) + rest;
    return v;
}

/* Finds t for p >= 1. */
INLINE double csm_entmax_newton(csm_support *s, const csm_entmax *e) {
    /* ANY: the steps in pairs below add the other digits. */
    const double near = e->kind == CSM_ENTMAX_ANY ? 0x1p-20 : 0x1p-53;
    double t = 0, low = -1, high = 0, sum, slope;
    for (int i = 0; i < 200; i++) {
        csm_entmax_sums(s, e, t, &sum, &slope);
        if (s->is_stopped) break;
        if (sum >= 1) high = t;
        else low = t;
        double root = e->kind == CSM_SPARSEMAX  ? 1
                      : e->kind == CSM_ENTMAX15 ? sqrt(sum)
                                                : csm_pow(sum, 0, 1 - e->scale, 0); /* sum^(1 - 1/p) */
        const double next = t - (sum - root) / slope;
        if (!(next > low && next < high)) break; /* at the root, within rounding */
        const double step = next < t ? t - next : next - t;
        t = next;
        if (step <= -t * near) break;
    }
    return t;
}

/* Finds c for p < 1. */
INLINE double csm_entmax_concave(csm_support *s, const csm_entmax *e) {
    double low = 1 / (double)s->count, high = 1, m = low, c = 0;
    for (int i = 0; i < 200; i++) {
        double sum = 0, slope = 0;
        c = csm_pow(m, 0, e->scale, 0);
        for (size_t k = 0; k < s->count; k++) {
            const double v = s->z[k] == 0 ? 1 : 1 + s->z[k] / c;
            if (csm_support_stops(s, k)) return 0;
            if (!(v > 0)) continue;
            const double w = csm_pow(v, 0, e->p - 1, e->p_low);
            slope += w;
            sum += w * v;
        }
        sum *= m;
        if (sum == 1) break;
        if (sum > 1) high = m;
        else low = m;
        double next = m - (sum - 1) / slope;
        /* the ends of the bracket have been tried, except 1 */
        if (!(next > low && (next < high || (next == 1 && m < 1 && high == 1 && i == 0)))) next = 0.5 * (low + high);
        const double step = next < m ? m - next : next - m;
        m = next;
        if (step <= 0x1p-52 * m) break;
    }
    return csm_pow(m, 0, e->scale, 0);
}

/* Finds the probabilities and indices of the support, in order, from z, which is padded to a multiple of 8 with
 * -inf. */
static NOINLINE void csm_entmax_solve(csm_support *s, const csm_entmax *e) {
    const int any = e->kind == CSM_ENTMAX_ANY;
    double sum, slope;
    s->t = e->p < 1;
    s->t_low = 0;
    if (s->count > 1) s->t = e->p < 1 ? csm_entmax_concave(s, e) : csm_entmax_newton(s, e);
    if (s->is_stopped) return;
    if (s->t == 0 && e->p < 1) { /* c underflows: only maxima have probability */
        size_t kept = 0;
        for (size_t i = 0; i < s->count; i++)
            if (s->z[i] == 0) s->index[kept++] = s->index[i];
        for (size_t i = 0; i < kept; i++) {
            s->p[i] = 1 / (double)kept;
            s->u[i] = 0;
        }
        s->count = kept;
        return;
    }
    /* Steps whose residual is a sum of pairs: one step, and more near alpha = 1, where sum and root nearly cancel
     * above.  p < 1: in a bracket, because the slope is unbounded where a number enters the support. */
    const double c = s->t;
    double low = -CSM_INF, high = CSM_INF;
    if (e->p < 1) {
        high = (4 + e->scale) * 0x1p-48;
        high = (high < 0.5 ? high : 0.5) * c;
        low = -high;
    }
    for (int again = e->p < 1 ? 150 : any ? 8 : !e->single; again > 0 && s->count > 1; again--) {
        double rest = 0;
        sum = -1;
        slope = 0;
        for (size_t i = 0; i < s->count; i++) {
            double u_low, u = csm_entmax_u(s, e, i, &u_low);
            if (csm_support_stops(s, i)) return;
            if (!(u > 0)) continue;
            if (e->kind == CSM_SPARSEMAX) {
                csm_two_sum(&sum, &rest, u);
                rest += u_low;
                slope += 1;
            } else if (e->kind == CSM_ENTMAX15) {
                const double square = u * u;
                csm_two_sum(&sum, &rest, square);
                rest += fma(u, u, -square) + 2 * u * u_low;
                slope += 2 * u;
            } else {
                const double y = csm_pow(u, u_low, e->p, e->p_low);
                csm_two_sum(&sum, &rest, y);
                slope += e->p * (y / u);
            }
        }
        double next = s->t_low - (sum + rest) / slope;
        if (sum + rest >= 0) high = s->t_low;
        else low = s->t_low;
        if (!(next >= low && next <= high)) {
            if (e->p >= 1) break; /* the slope is 0, or not a number */
            next = 0.5 * (low + high);
        }
        const double step = next < s->t_low ? s->t_low - next : next - s->t_low;
        s->t_low = next;
        if (step <= (e->p < 1 ? c * 0x1p-100 : 0x1p-30 / e->p))
            break; /* the remaining error is of the order of its square */
    }
    size_t kept = 0;
    for (size_t i = 0; e->single && !any && i < s->count; i++) {
        const double u = s->z[i] + (1 + s->t), y = e->kind == CSM_SPARSEMAX ? u : u * u;
        s->p[kept] = y;
        s->u[kept] = u;
        s->index[kept] = s->index[i];
        kept += u > 0 && y > 0;
        if (csm_support_stops(s, i)) return;
    }
    for (size_t i = 0; (!e->single || any) && i < s->count; i++) {
        double u_low, u = csm_entmax_u(s, e, i, &u_low), y;
        if (csm_support_stops(s, i)) return;
        if (!(u > 0)) continue;
        if (e->kind == CSM_SPARSEMAX) y = u + u_low;
        else if (e->kind == CSM_ENTMAX15) y = fma(u, u, 2 * u * u_low);
        else y = csm_pow(u, u_low, e->p, e->p_low);
        if (!(y > 0)) continue;
        s->p[kept] = y;
        s->u[kept] = u;
        s->index[kept++] = s->index[i];
    }
    s->count = kept;
}

#endif
