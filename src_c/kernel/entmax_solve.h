/* alpha-entmax of the numbers that can have probability: y_i = u_i^p, u_i = z_i + c > 0, p = 1 / (alpha - 1),
 * z_i = (alpha - 1) (x_i - max) and the c in (0, 1] for which sum y = 1 (Peters, Niculae & Martins 2019;
 * sparsemax, p = 1: Martins & Astudillo 2016).  Everything in double, on the unit's vectors.
 *
 * Newton on the p-norm of u, sum^(1/p) = 1: convex for p >= 1, so that from c = 1, where the sum is at least 1, c falls
 * to the root; for p = 1 these are Michelot's steps (1986), for p = 2 four or five suffice.  A bracket guards p < 1.
 * The root is then improved once with sums of pairs; the result sums to 1 within rounding, whatever its size.
 * c = 1 + t: near alpha = 1 t is tiny, and u^p needs its digits.
 */
#ifndef CSM_ENTMAX_SOLVE_H
#define CSM_ENTMAX_SOLVE_H

/* sum u^p and sum u^(p-1), in eight lanes for the closed forms. */
INLINE void csm_entmax_sums(const csm_support *s, const csm_entmax *e, double t, double *sum, double *slope) {
    enum { EIGHT = 8 / v64_W };
    *sum = *slope = 0;
    if (e->kind == CSM_ENTMAX_ANY) {
        double low = 0, slope_low = 0;
        for (size_t i = 0; i < s->count; i++) {
            const double v = s->z[i] + t, u = 1 + v;
            if (!(u > 0)) continue;
            const double w = csm_pow(u, v - (u - 1), e->p - 1, e->p_low);
            csm_two_sum(slope, &slope_low, w);
            csm_two_sum(sum, &low, w * u);
        }
        *sum += low;
        return;
    }
    const v64_t c = v64_set(1 + t), none = v64_zero(), one = v64_set(1);
    v64_t a[EIGHT], b[EIGHT];
    for (int l = 0; l < EIGHT; l++) a[l] = b[l] = none;
    for (size_t i = 0; i < s->count; i += 8)
        for (int l = 0; l < EIGHT; l++) {
            v64_t u = v64_add(v64_load_f64(s->z + i + l * v64_W), c);
            v64_mask in = v64_not_le(u, none);
            u = v64_keep(in, u);
            if (e->kind == CSM_SPARSEMAX) {
                a[l] = v64_add(a[l], u);
                b[l] = v64_add(b[l], v64_keep(in, one));
            } else {
                a[l] = v64_fma(u, u, a[l]);
                b[l] = v64_add(b[l], u);
            }
        }
    *sum = v64_tree(a);
    *slope = v64_tree(b);
}

/* u_i = z_i + 1 + t as a pair, the low part below the last digit of the high one. */
INLINE double csm_entmax_u(const csm_support *s, size_t i, double t, double t_low, double *low) {
    double v = s->z[i], rest = s->z_low[i] + t_low, u = 1;
    csm_two_sum(&v, &rest, t);
    *low = 0;
    csm_two_sum(&u, low, v);
    rest += *low;
    v = u + rest;
    *low = (u - v) + rest;
    return v;
}

/* From z (padded to a multiple of 8 with -inf) to the probabilities and indices of the support, in order. */
static NOINLINE void csm_entmax_solve(csm_support *s, const csm_entmax *e) {
    /* ANY: the steps with pairs do the rest */
    const double near = e->kind == CSM_ENTMAX_ANY && e->p >= 1 ? 0x1p-20 : 0x1p-53;
    double t = 0, low = -1, high = 0, sum, slope;
    for (int i = 0; i < 200 && s->count > 1; i++) {
        csm_entmax_sums(s, e, t, &sum, &slope);
        if (sum >= 1) high = t;
        else low = t;
        double root = e->kind == CSM_SPARSEMAX  ? 1
                      : e->kind == CSM_ENTMAX15 ? sqrt(sum)
                                                : csm_pow(sum, 0, 1 - e->scale, 0); /* sum^(1 - 1/p) */
        double next = t - (sum - root) / slope;
        if (e->p < 1 && sum - 1 <= 0x1p-50 && 1 - sum <= 0x1p-50) break; /* the slope has no bound there */
        if (!(next > low && next < high)) {
            /* at the root within rounding, or a step of a concave sum that leaves the bracket */
            if (e->p >= 1 || high - low <= 0x1p-52 * -low) break;
            next = 0.5 * (low + high);
        }
        const double step = next < t ? t - next : next - t;
        t = next;
        if (step <= -t * near) break;
    }
    /* steps whose residual is a sum of pairs: one, and near alpha = 1, where sum and root all but cancel above, two */
    double t_low = 0;
    const int any = e->kind == CSM_ENTMAX_ANY;
    for (int again = !any ? !e->single : e->single && e->p >= 1 ? 1 : 2; again > 0 && s->count > 1; again--) {
        double rest = 0;
        sum = -1;
        slope = 0;
        for (size_t i = 0; i < s->count; i++) {
            double u_low, u = csm_entmax_u(s, i, t, t_low, &u_low);
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
        t_low -= (sum + rest) / slope;
    }
    size_t kept = 0;
    for (size_t i = 0; e->single && !any && i < s->count; i++) {
        const double u = s->z[i] + (1 + t), y = e->kind == CSM_SPARSEMAX ? u : u * u;
        s->p[kept] = y;
        s->u[kept] = u;
        s->index[kept] = s->index[i];
        kept += u > 0 && y > 0;
    }
    for (size_t i = 0; (!e->single || any) && i < s->count; i++) {
        double u_low, u = csm_entmax_u(s, i, t, t_low, &u_low), y;
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
    s->t = t;
    s->t_low = t_low;
}

#endif
