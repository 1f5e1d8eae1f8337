/* alpha-entmax of the numbers that can have probability: y_i = u_i^p, u_i = z_i + c > 0, p = 1 / a, a = alpha - 1,
 * z_i = a (x_i - max) and the c in (0, 1] for which sum y = 1 (Peters, Niculae & Martins 2019; sparsemax, p = 1:
 * Martins & Astudillo 2016).  The sums of the closed forms are in the unit's vectors, all else in double and in pairs.
 *
 * p >= 1: Newton's method on the p-norm of u, sum^(1/p) = 1.  The norm is convex, so that c falls to the root from
 * c = 1, where the sum is at least 1.  For p = 1 these are Michelot's steps (1986); for p = 2 four or five suffice.
 * c = 1 + t: near alpha = 1 t is tiny, and u^p needs its digits.
 *
 * p < 1: c cannot be the unknown.  u^p rises so steeply from 0 that the least probability can be anywhere between 0 and
 * 0.2 (alpha = 50) while c moves by one unit in its last place, even as a pair.  The unknown is the least probability q
 * itself, that of the least number x_k in the support: with w = q^a and distances d_i = a (x_i - x_k) >= 0, which are
 * exact, u_i = d_i + w.  The sum of the norms y_i = (d_i + q^a)^(1/a) is convex in q, its slope is between 1 and the
 * size of the support, and Newton's method falls to the root.  x_k is the least number whose sum of d_i^p over the
 * numbers above it is less than 1 (search in csm_entmax_base).
 *
 * Pairs: the error of a double sum, 2^-51, is that of tau.  It is too large for double, and for float where a number
 * lies so close to the threshold that its probability feels it (about one number in 2^20).  There a step of
 * Newton's method follows whose powers and sums are pairs (power.h); the error of tau is then about 2^-98.
 *
 * Passes: one over the survivors for each step, none over the row.  NaN: no row with NaN or an infinite maximum comes
 * here.  Every loop over the survivors asks for interrupts; after one s->is_stopped says that there is no result.
 * Measured error: entmax.inc.h.
 */
#ifndef CSM_ENTMAX_SOLVE_H
#define CSM_ENTMAX_SOLVE_H

#include "../../math/power.h"
#include "job.h"

/* |u| times sum y / u (closed forms: |u|) below which a number may feel the error of tau.  Above it 2^-51 (closed forms
 * 2^-53, and p = 2) is less than 0.01 ULP of float. */
#define CSM_ENTMAX_NEAR 0x1p-20
#define CSM_ENTMAX_NEAR_CLOSED 0x1p-21

/* u^p and (1 + v)^p.  Out of line: two functions of 300 instructions. */
static NOINLINE csm_pair csm_pair_pow(csm_pair u, csm_pair p) {
    return csm_pair_exp(csm_pair_mul(csm_pair_log(u), p), 0);
}
static NOINLINE csm_pair csm_pair_pow1p(csm_pair v, csm_pair p) {
    return csm_pair_exp(csm_pair_mul(csm_pair_log1p(v), p), 0);
}

/* Survivor i of the filter, whose x is in z: what the solver reads.  p < 1: x.  Closed forms in single: z, exact or
 * more precise than float, and x in z_low.  Otherwise z as a pair. */
INLINE void csm_entmax_place(csm_support *s, const csm_entmax *e, size_t i) {
    const double x = s->z[i];
    double d = -s->max, low = 0;
    if (e->p < 1) return;
    if (e->single && e->kind != CSM_ENTMAX_ANY) {
        s->z[i] = (x - s->max) * e->scale;
        s->z_low[i] = x;
        return;
    }
    csm_two_sum(&d, &low, x);
    s->z[i] = d * e->scale;
    s->z_low[i] = fma(d, e->scale, -s->z[i]) + low * e->scale;
}

/* Makes survivor i the number `to` of the support, to <= i. */
INLINE void csm_entmax_keep(csm_support *s, size_t to, size_t i, csm_pair y, csm_pair u) {
    s->p[to] = y.hi;
    s->z[to] = y.lo;
    s->u[to] = u.hi;
    s->z_low[to] = u.lo;
    s->index[to] = s->index[i];
}

/* p >= 1 */

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
    const size_t count = s->count;
    const double *z = s->z;
    for (size_t begin = 0, end; begin < count; begin = end) {
        end = csm_poll_end(begin, count);
        if (csm_support_stops_after(s, begin)) return;
        for (size_t i = begin; i < end; i += 8)
            for (int l = 0; l < EIGHT; l++) {
                v64_t u = v64_add(v64_load_f64(z + i + l * v64_W), c);
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
INLINE double csm_entmax_u(const csm_support *s, size_t i, double *low) {
    double v = s->z[i], rest = s->z_low[i] + s->t_low, u = 1;
    csm_two_sum(&v, &rest, s->t);
    *low = 0;
    csm_two_sum(&u, low, v);
    rest += *low;
    v = u + rest;
    *low = (u - v) + rest;
    return v;
}

/* Finds t. */
INLINE double csm_entmax_newton(csm_support *s, const csm_entmax *e) {
    /* ANY: the steps in pairs below add the other digits. */
    const double near = e->kind != CSM_ENTMAX_ANY ? 0x1p-53 : e->single ? 0x1p-20 : 0x1p-24;
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

/* Improves t by steps whose residual is a sum of pairs: one step, more near alpha = 1, where sum and root nearly cancel
 * above, and where a number is so close to the threshold that a step may change the support.  Returns the least |u|
 * times sum y / u (closed forms: the least |u|). */
INLINE double csm_entmax_refine(csm_support *s, const csm_entmax *e) {
    double least = CSM_INF;
    for (int again = 8; again > 0; again--) {
        double sum = -1, rest = 0, slope = 0;
        least = CSM_INF;
        for (size_t i = 0; i < s->count; i++) {
            double u_low, u = csm_entmax_u(s, i, &u_low);
            const double size = u < 0 ? -u : u;
            if (csm_support_stops(s, i)) return 0;
            least = size < least ? size : least;
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
        const double step = (sum + rest) / slope, size = step < 0 ? -step : step;
        if (!(size < 1)) break; /* the slope is 0, or not a number */
        s->t_low -= step;
        if (e->kind == CSM_ENTMAX_ANY) least *= slope * e->scale;
        /* the remaining error is of the order of its square, or nothing */
        if (e->kind == CSM_ENTMAX_ANY ? size <= 0x1p-30 / e->p : size * 4 <= least || size <= 0x1p-104) break;
    }
    return least;
}

/* ANY: a step, or more if some number is close to the threshold, whose powers are pairs too; then the result.  z holds
 * v = u - 1, which keeps its digits near alpha = 1. */
static NOINLINE void csm_entmax_polish(csm_support *s, const csm_entmax *e) {
    const csm_pair power = csm_pair_of(e->p, e->p_low);
    csm_pair step = csm_pair_of(s->t, s->t_low);
    size_t kept = 0;
    s->t = s->t_low = 0;
    /* Many ties next to the threshold: sum y rises from there like u^p, and each step divides u by p / (p - 1) only. */
    for (int again = 64, is_near = 1; again > 0 && is_near; again--) {
        double sum = -1, rest = 0, slope = 0, least = CSM_INF;
        for (size_t i = 0; i < s->count; i++) {
            const csm_pair v = csm_pair_add(csm_pair_of(s->z[i], s->z_low[i]), step);
            const double u = csm_pair_plus(v, 1).hi, size = u < 0 ? -u : u;
            s->z[i] = v.hi;
            s->z_low[i] = v.lo;
            s->p[i] = 0;
            least = size < least ? size : least;
            if (csm_support_stops(s, i)) return;
            if (!(u > 0)) continue;
            const csm_pair y = csm_pair_pow1p(v, power);
            csm_two_sum(&sum, &rest, y.hi);
            rest += y.lo;
            slope += y.hi / u;
            s->p[i] = y.hi;
            s->u[i] = y.lo;
        }
        const csm_pair t = csm_pair_add(csm_pair_of(s->t, s->t_low), step);
        s->t = t.hi;
        s->t_low = t.lo;
        step = csm_pair_of(-(sum + rest) / slope * e->scale, 0);
        const double size = step.hi < 0 ? -step.hi : step.hi;
        is_near = !(size * e->p < least * 0x1p-33) && !(size < 0x1p-100);
    }
    const csm_pair t = csm_pair_add(csm_pair_of(s->t, s->t_low), step);
    s->t = t.hi;
    s->t_low = t.lo;
    for (size_t i = 0; i < s->count; i++) {
        const csm_pair v = csm_pair_add(csm_pair_of(s->z[i], s->z_low[i]), step), u = csm_pair_plus(v, 1);
        const double change = e->p * (step.hi / u.hi);
        csm_pair y;
        if (csm_support_stops(s, i)) return;
        if (!(u.hi > 0)) continue;
        if (s->p[i] > 0 && change < 0x1p-33 && change > -0x1p-33)
            y = csm_pair_plus(csm_pair_of(s->p[i], s->u[i]), s->p[i] * change);
        else y = csm_pair_pow1p(v, power);
        if (!(y.hi > 0)) continue;
        csm_entmax_keep(s, kept++, i, y, u);
    }
    s->count = kept;
}

/* Whether a closed form in single needs pairs: a number so close to the threshold that it feels the error of t, or the
 * rounding of z. */
INLINE int csm_entmax_is_near(csm_support *s) {
    const v64_t c = v64_set(1 + s->t);
    v64_t least = v64_set(1);
    for (size_t begin = 0, end; begin < s->count; begin = end) {
        end = csm_poll_end(begin, s->count);
        if (csm_support_stops_after(s, begin)) return 0;
        for (size_t i = begin; i < end; i += v64_W) {
            const v64_t u = v64_add(v64_load_f64(s->z + i), c);
            least = v64_min(v64_max(u, v64_sub(v64_zero(), u)), least);
        }
    }
    double lane[v64_W];
    v64_store_f64(lane, least);
    for (int l = 1; l < v64_W; l++) lane[0] = lane[l] < lane[0] ? lane[l] : lane[0];
    return lane[0] < CSM_ENTMAX_NEAR_CLOSED;
}

static NOINLINE void csm_entmax_convex(csm_support *s, const csm_entmax *e) {
    const int any = e->kind == CSM_ENTMAX_ANY;
    int pairs = any || !e->single;
    s->t = s->count > 1 ? csm_entmax_newton(s, e) : 0;
    s->t_low = 0;
    if (s->is_stopped) return;
    if (any && !e->single && s->count > 1) {
        csm_entmax_polish(s, e);
        return;
    }
    if (!pairs && s->count > 1 && csm_entmax_is_near(s)) {
        csm_entmax wide = *e;
        wide.single = 0;
        for (size_t i = 0; i < s->count; i++) {
            s->z[i] = s->z_low[i];
            csm_entmax_place(s, &wide, i);
            if (csm_support_stops(s, i)) return;
        }
        pairs = 1;
    }
    if (pairs && s->count > 1) {
        const double least = csm_entmax_refine(s, e);
        if (s->is_stopped) return;
        /* p large: so close to the threshold nothing has probability */
        const int is_near = any && least < CSM_ENTMAX_NEAR && csm_pow(CSM_ENTMAX_NEAR, 0, e->p, e->p_low) > 0x1p-152;
        if (is_near) {
            csm_entmax_polish(s, e);
            return;
        }
    }
    size_t kept = 0;
    for (size_t i = 0; !pairs && i < s->count; i++) {
        const double u = s->z[i] + (1 + s->t), y = e->kind == CSM_SPARSEMAX ? u : u * u;
        s->p[kept] = y;
        s->u[kept] = u;
        s->index[kept] = s->index[i];
        kept += u > 0 && y > 0;
        if (csm_support_stops(s, i)) return;
    }
    s->has_low = pairs;
    for (size_t i = 0; pairs && i < s->count; i++) {
        double u_low, u = csm_entmax_u(s, i, &u_low), y, y_low = 0;
        if (csm_support_stops(s, i)) return;
        if (!(u > 0)) continue;
        if (e->kind == CSM_SPARSEMAX) {
            y = u;
            y_low = u_low;
        } else if (e->kind == CSM_ENTMAX15) {
            y = fma(u, u, 2 * u * u_low);
            y_low = fma(u, u, -y) + 2 * u * u_low;
        } else y = csm_pow(u, u_low, e->p, e->p_low);
        if (!(y > 0)) continue;
        csm_entmax_keep(s, kept++, i, csm_pair_of(y, y_low), csm_pair_of(u, u_low));
    }
    s->count = kept;
}

/* p < 1 */

/* a (x - base), exact but for the last bit of the pair. */
INLINE csm_pair csm_entmax_distance(const csm_entmax *e, double x, double base) {
    double d = -base, low = 0;
    csm_two_sum(&d, &low, x);
    const double product = d * e->scale;
    return csm_pair_of(product, fma(d, e->scale, -product) + low * e->scale);
}

/* The sum of d^p over the numbers above the base, less 1; *c becomes Newton's estimate of c from there. */
INLINE csm_pair csm_entmax_above(csm_support *s, const csm_entmax *e, double base, double *c) {
    const csm_pair power = csm_pair_of(e->p, e->p_low);
    double sum = -1, rest = 0, slope = 0;
    *c = 0;
    for (size_t i = 0; i < s->count; i++) {
        if (csm_support_stops(s, i)) return csm_pair_of(0, 0);
        if (!(s->z[i] > base)) continue;
        const double d = (s->z[i] - base) * e->scale, y = csm_pow(d, 0, e->p, e->p_low);
        csm_two_sum(&sum, &rest, y);
        slope += y / d;
    }
    if (sum < 0x1p-45 && sum > -0x1p-45) {
        sum = -1;
        rest = 0;
        for (size_t i = 0; i < s->count; i++) {
            if (csm_support_stops(s, i)) return csm_pair_of(0, 0);
            if (!(s->z[i] > base)) continue;
            const csm_pair y = csm_pair_pow(csm_entmax_distance(e, s->z[i], base), power);
            csm_two_sum(&sum, &rest, y.hi);
            rest += y.lo;
        }
    }
    /* the largest probability m = c^p: dy / dm = (y / u) (c / m) */
    const double here = (s->max - base) * e->scale, m = csm_pow(here, 0, e->p, e->p_low);
    const double next = m - sum / slope * (m / here);
    *c = next > 0 ? csm_pow(next < 1 ? next : 1, 0, e->scale, 0) : 0;
    return csm_pair_plus(csm_pair_of(sum, 0), rest);
}

/* Finds the least number of the support; *rest becomes the sum of d^p over the numbers above it, less 1, which is
 * negative.  Newton's method proposes the next number; every third time it is one in the middle, so that the number of
 * steps is that of a bisection at worst. */
static NOINLINE double csm_entmax_base(csm_support *s, const csm_entmax *e, csm_pair *rest) {
    double low = s->max, high = -CSM_INF, c, ties = 0; /* low is in the support, high is not */
    *rest = csm_pair_of(-1, 0);
    for (size_t begin = 0, end; begin < s->count; begin = end) {
        end = csm_poll_end(begin, s->count);
        if (csm_support_stops_after(s, begin)) return low;
        for (size_t i = begin; i < end; i++) ties += s->z[i] == low;
    }
    c = csm_pow(ties, 0, -e->scale, 0); /* no number below the maxima has probability: the largest c */
    for (int step = 1;; step++) {
        double proposed = CSM_INF, next = high;
        size_t between = 0;
        for (size_t begin = 0, end; begin < s->count; begin = end) {
            end = csm_poll_end(begin, s->count);
            if (csm_support_stops_after(s, begin)) return low;
            for (size_t i = begin; i < end; i++) {
                const double x = s->z[i];
                if (!(x > high && x < low)) continue;
                between++;
                next = x > next ? x : next;
                if ((s->max - x) * e->scale < c && x < proposed) proposed = x;
            }
        }
        if (!between) return low;
        if (!(proposed < low)) proposed = next;
        if (step % 3 == 0) {
            size_t middle = between / 2;
            for (size_t i = 0; i < s->count; i++) {
                if (s->z[i] > high && s->z[i] < low && middle-- == 0) {
                    proposed = s->z[i];
                    break;
                }
                if (csm_support_stops(s, i)) return low;
            }
        }
        const csm_pair sum = csm_entmax_above(s, e, proposed, &c);
        if (s->is_stopped) return low;
        if (sum.hi < 0) {
            low = proposed;
            *rest = sum;
        } else high = proposed;
    }
}

/* Finds the least probability q in double, from above; its error is that of a sum, 2^-51, over the slope. */
INLINE double csm_entmax_least(csm_support *s, const csm_entmax *e, double base, double ties, double q) {
    const double near = 0x1p-20 / e->scale;
    for (int step = 0; step < 100; step++) {
        const double w = csm_pow(q, 0, e->scale, 0);
        double sum = ties * q - 1, rest = 0, slope = ties;
        for (size_t i = 0; i < s->count; i++) {
            if (csm_support_stops(s, i)) return q;
            if (!(s->z[i] > base)) continue;
            const double d = (s->z[i] - base) * e->scale, u = d + w;
            const double y = csm_pow(u, w - (u - d), e->p, e->p_low);
            csm_two_sum(&sum, &rest, y);
            slope += (w / u) * (y / q);
        }
        sum += rest;
        const double change = sum / slope, size = change < 0 ? -change : change;
        if (!(q - change > 0)) break;
        q -= change;
        if (size <= near * q || size * slope <= 0x1p-50) break;
    }
    return q;
}

static NOINLINE void csm_entmax_concave(csm_support *s, const csm_entmax *e) {
    const csm_pair power = csm_pair_of(e->p, e->p_low);
    csm_pair rest, q, w, step = csm_pair_of(0, 0);
    const double base = csm_entmax_base(s, e, &rest);
    double ties = 0, size = 0;
    if (s->is_stopped) return;
    for (size_t begin = 0, end; begin < s->count; begin = end) {
        end = csm_poll_end(begin, s->count);
        if (csm_support_stops_after(s, begin)) return;
        for (size_t i = begin; i < end; i++) {
            ties += s->z[i] == base;
            size += s->z[i] >= base;
        }
    }
    rest = csm_pair_div(csm_pair_minus(rest), csm_pair_of(ties, 0));
    q = size == ties         ? csm_pair_div(csm_pair_of(1, 0), csm_pair_of(ties, 0))
        : rest.hi < 1 / size ? rest
                             : csm_pair_of(1 / size, 0);
    int pairs = 1, is_near = size > ties;
    if (is_near && rest.hi > 0x1p-40) {
        q = csm_pair_of(csm_entmax_least(s, e, base, ties, q.hi), 0);
        if (s->is_stopped) return;
        pairs = !csm_entmax_is_cheap(e) || q.hi * ties < CSM_ENTMAX_NEAR;
    }
    for (int again = 6; again > 0 && pairs && is_near; again--) {
        const csm_pair share = csm_pair_times(q, ties);
        double sum = -1, low = 0, slope = ties;
        w = csm_pair_pow(q, csm_pair_of(e->scale, 0));
        csm_two_sum(&sum, &low, share.hi);
        low += share.lo;
        for (size_t i = 0; i < s->count; i++) {
            if (csm_support_stops(s, i)) return;
            if (!(s->z[i] > base)) continue;
            const csm_pair u = csm_pair_add(csm_entmax_distance(e, s->z[i], base), w), y = csm_pair_pow(u, power);
            csm_two_sum(&sum, &low, y.hi);
            low += y.lo;
            s->p[i] = y.hi;
            s->z_low[i] = y.lo;
            s->u[i] = (w.hi / u.hi) * (y.hi / q.hi); /* dy / dq */
            slope += s->u[i];
        }
        const csm_pair next = csm_pair_plus(q, -(sum + low) / slope);
        if (!(next.hi > 0)) break;
        step = csm_pair_add(next, csm_pair_minus(q));
        q = next;
        is_near = !((step.hi / q.hi) * (step.hi / q.hi) * e->scale <= 0x1p-66);
    }
    w = csm_pair_pow(q, csm_pair_of(e->scale, 0));
    const csm_pair t = csm_pair_plus(csm_pair_add(csm_entmax_distance(e, s->max, base), w), -1);
    s->t = t.hi;
    s->t_low = t.lo;
    size_t kept = 0;
    for (size_t i = 0; i < s->count; i++) {
        const double x = s->z[i];
        if (csm_support_stops(s, i)) return;
        if (!(x >= base)) continue;
        csm_pair y = q, u = w;
        if (x > base) {
            u = csm_pair_add(csm_entmax_distance(e, x, base), w);
            if (!pairs) y = csm_pair_of(csm_pow(u.hi, u.lo, e->p, e->p_low), 0);
            else y = csm_pair_plus(csm_pair_of(s->p[i], s->z_low[i]), s->u[i] * step.hi);
        }
        csm_entmax_keep(s, kept++, i, y, u);
    }
    s->count = kept;
}

/* Finds the support from the survivors, which csm_entmax_place has prepared, padded to a multiple of 8 with -inf. */
INLINE void csm_entmax_solve(csm_support *s, const csm_entmax *e) {
    s->has_low = 1;
    if (e->p < 1) csm_entmax_concave(s, e);
    else csm_entmax_convex(s, e);
}

#endif
