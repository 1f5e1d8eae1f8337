/* Gradients of cross-entropy in rows whose probabilities underflow, but not their products with the row's factors.
 *
 * The kernels compute e' in the compute type, where a probability below 2^-186 (float64: 2^-1522) of the largest is 0.
 * 1/T, weights, `upstream` or z-loss can bring its gradient back into the range of the result.  Such a row is rare: its
 * factors exceed 2^30 (2^430), and a class lies as far below the maximum as csm_loss_reach says.  It is computed by the
 * definition (job.h), in numbers whose exponents have no limit:
 *
 *     p_j = e_j / S,  e_j = exp((x_j - max) / T),  S = sum e_j
 *     g_j = k (p_j G - a_j),  of the label k (p_l (G - a_l) - a_l (S - e_l) / S)
 *
 * Passes: one to find such a class, one for S, one for the norm if it is clipped, one for the gradient.
 * Accumulators: pairs of doubles with an exponent; the terms are added in the order of the classes.
 * NaN: rows with NaN, or without a finite maximum, do not come here; an infinite result is infinite.
 * Error: that of e_j, below 1 ULP of double, and of the rounding of the result.
 */
#ifndef CSM_CROSS_ENTROPY_UNDERFLOW_H
#define CSM_CROSS_ENTROPY_UNDERFLOW_H

#include "row.h"

/* A number with its mantissa between 1 and 2; 0: all members are 0. */
INLINE csm_factor csm_factor_of(csm_pair m, double e) {
    csm_factor f = {m, 0};
    if (m.hi == 0) return f;
    const double exponent = csm_take_exponent(&f.m.hi);
    f.m.lo = csm_times_pow2(m.lo, -exponent);
    f.e = e + exponent;
    return f;
}
INLINE csm_factor csm_factor_of_number(double x) { return csm_factor_of(csm_pair_of(x, 0), 0); }
INLINE csm_factor csm_factor_mul(csm_factor a, csm_factor b) {
    return csm_factor_of(csm_pair_mul(a.m, b.m), a.e + b.e);
}
INLINE csm_factor csm_factor_div(csm_factor a, csm_factor b) {
    return csm_factor_of(csm_pair_div(a.m, b.m), a.e - b.e);
}
INLINE csm_factor csm_factor_minus(csm_factor a) {
    a.m.hi = -a.m.hi;
    a.m.lo = -a.m.lo;
    return a;
}
INLINE csm_factor csm_factor_add(csm_factor a, csm_factor b) {
    if (a.m.hi == 0) return b;
    if (b.m.hi == 0) return a;
    if (a.e < b.e) {
        const csm_factor c = a;
        a = b;
        b = c;
    }
    if (b.e - a.e < -250) return a; /* below the last digit of a pair */
    const double power = csm_pow2(b.e - a.e);
    double hi = a.m.hi, lo = a.m.lo + b.m.lo * power;
    csm_two_sum(&hi, &lo, b.m.hi * power);
    const double sum = hi + lo;
    return csm_factor_of(csm_pair_of(sum, (hi - sum) + lo), a.e);
}
INLINE double csm_factor_rounded(csm_factor a) { return csm_times_pow2(a.m.hi, a.e); }
/* Whether |a| > |b|. */
INLINE int csm_factor_exceeds(csm_factor a, csm_factor b) {
    if (a.m.hi == 0 || b.m.hi == 0) return a.m.hi != 0;
    return a.e != b.e ? a.e > b.e : fabs(a.m.hi) > fabs(b.m.hi);
}

/* exp((x - max) / T), x <= max. */
INLINE csm_factor csm_factor_exp(double x, double max, csm_factor t) {
    const csm_factor d = csm_factor_add(csm_factor_of_number(x), csm_factor_minus(csm_factor_of_number(max)));
    const csm_factor z = csm_factor_div(d, t), one = csm_factor_of_number(1), nothing = {{0, 0}, 0};
    if (!(x > -CSM_INF) || (z.m.hi != 0 && z.e > 14)) return nothing;
    if (z.m.hi == 0 || z.e < -200) return one;
    const double hi = csm_times_pow2(z.m.hi, z.e), n = (hi * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    const double near = fma(-n, 0x1.62e42fefa39efp-1, hi);
    const double rest = csm_times_pow2(z.m.lo, z.e) - n * 0x1.abc9e3b39803fp-56, r = near + rest;
    const double more = r + (((near - r) + rest) + r * r * (0.5 + (r * csm_exp_rest(r) + 0x1.4p-50)));
    double sum = 1, low = 0;
    csm_two_sum(&sum, &low, more);
    return csm_factor_of(csm_pair_of(sum, low), n);
}

/* The distance (max - x) / T from which the kernels' probabilities underflow, less some nats. */
INLINE double csm_distance_of_underflow(const int single) { return single ? 125 : 1045; }
/* The largest distance (max - x) / T at which a class can still have a gradient other than 0; 0: none where the kernels
 * do not compute it.  In nats, rounded up by some of them. */
INLINE double csm_loss_reach(const csm_loss_call *c, const csm_loss_input *in, const int single) {
    double weight = in->weight, upstream = in->upstream, z = 2 * c->z_loss, max = in->max, t = c->temperature;
    double q = in->mass + (c->smoothing != 0 ? c->smoothing / (double)c->n * c->weight_sum : 0);
    double e = csm_take_exponent(&weight) + csm_take_exponent(&upstream) + c->t_exponent + c->divisor_exponent;
    const double lowest = single ? -151 : -1076, nearest = csm_distance_of_underflow(single);
    double of_q = q == 0 ? -1e5 : csm_take_exponent(&q);
    if (z != 0) {
        double of_lse = max == 0 ? 0 : csm_take_exponent(&max) - csm_take_exponent(&t) + 1;
        of_lse = (of_lse > 6 ? of_lse : 6) + 1 + csm_take_exponent(&z); /* log n < 2^6 */
        of_q = (of_q > of_lse ? of_q : of_lse) + 1;
    }
    if (weight == 0 || upstream == 0 || !(e + of_q < 20000)) return 0; /* infinity too */
    const double reach = (e + of_q + 5 - lowest) * 0.6931471805599453;
    return reach > nearest ? reach : 0;
}
/* The logits whose gradient the kernels lose: those from `low` to `high`, none if low > high. */
typedef struct csm_loss_lost {
    double low, high;
} csm_loss_lost;
INLINE csm_loss_lost csm_loss_lost_of(const csm_loss_call *c, const csm_loss_input *in, const int single) {
    const double reach = csm_loss_reach(c, in, single);
    csm_loss_lost lost = {CSM_INF, -CSM_INF};
    if (reach == 0 || !(in->max - in->max == 0)) return lost;
    lost.high = in->max - csm_distance_of_underflow(single) * c->temperature;
    lost.low = in->max - reach * c->temperature;
    if (lost.low < -0x1.fffffffffffffp1023) lost.low = -0x1.fffffffffffffp1023;
    return lost;
}
INLINE int csm_loss_is_lost(csm_loss_lost lost, double x) { return x <= lost.high && x >= lost.low; }

/* The state of a row: the sums, then the factors of its gradient. */
typedef struct csm_loss_exact {
    csm_factor t, below, without, e_label; /* below: S without the maxima; without: S - e_l; no label: e_l = 0 */
    csm_factor sum, g, k, reduction, clip, rest, flat; /* rest: 1 - epsilon; flat: epsilon / n; clip: 0 if there is none */
    double max, maxima; /* maxima: their number */
} csm_loss_exact;

INLINE csm_loss_exact csm_loss_exact_begin(const csm_loss_call *c, double max) {
    const csm_factor nothing = {{0, 0}, 0};
    csm_loss_exact row;
    row.t = csm_factor_of_number(c->temperature);
    row.max = max;
    row.maxima = 0;
    row.below = row.without = row.e_label = row.sum = row.g = row.k = row.reduction = row.clip = row.rest = row.flat = nothing;
    return row;
}
INLINE void csm_loss_exact_add(csm_loss_exact *row, double x, int is_label) {
    const csm_factor e = csm_factor_exp(x, row->max, row->t);
    if (x == row->max) row->maxima += 1;
    else row->below = csm_factor_add(row->below, e);
    if (is_label) row->e_label = e;
    else row->without = csm_factor_add(row->without, e);
}
/* log S = log1p(S - 1), which is S - 1 where it is tiny. */
INLINE csm_factor csm_loss_exact_log(const csm_loss_exact *row) {
    const csm_factor over = csm_factor_add(csm_factor_of_number(row->maxima - 1), row->below);
    if (over.m.hi == 0 || over.e < -60) return over;
    return csm_factor_of_number(csm_log1p(csm_times_pow2(over.m.hi, over.e), csm_times_pow2(over.m.lo, over.e)));
}
/* Sets the factors, from the sums. */
INLINE void csm_loss_exact_factors(const csm_loss_call *c, const csm_loss_input *in, csm_loss_exact *row) {
    const csm_factor per_t = {{c->per_t, c->per_t_low}, c->t_exponent};
    const csm_factor per_divisor = {{c->per_divisor, c->per_divisor_low}, c->divisor_exponent};
    row->sum = csm_factor_add(row->without, row->e_label);
    row->rest = csm_factor_add(csm_factor_of_number(1), csm_factor_of_number(-c->smoothing));
    if (c->smoothing != 0)
        row->flat = csm_factor_div(csm_factor_of_number(c->smoothing), csm_factor_of_number((double)c->n));
    row->g = csm_factor_add(csm_factor_mul(row->rest, csm_factor_of_number(in->mass)),
                            csm_factor_mul(row->flat, csm_factor_of_number(c->weight_sum)));
    if (c->z_loss != 0) {
        const csm_factor of_max = csm_factor_div(csm_factor_of_number(row->max), row->t);
        const csm_factor lse = csm_factor_add(of_max, csm_loss_exact_log(row));
        row->g = csm_factor_add(row->g, csm_factor_mul(csm_factor_of_number(2 * c->z_loss), lse));
    }
    row->reduction = csm_factor_mul(csm_factor_of(per_divisor.m, per_divisor.e), csm_factor_of_number(in->upstream));
    row->k = csm_factor_mul(csm_factor_of(per_t.m, per_t.e), csm_factor_of_number(in->weight));
    if (c->clip_value < CSM_INF) row->clip = csm_factor_of_number(c->clip_value);
}
/* The gradient of the row loss alone.  q, w: the class's; of the label q is 1. */
INLINE csm_factor csm_loss_exact_of_row(const csm_loss_exact *row, double x, double q, double w, int is_label) {
    const csm_factor share = csm_factor_add(csm_factor_mul(row->rest, csm_factor_of_number(q)), row->flat);
    const csm_factor a = csm_factor_mul(csm_factor_of_number(w), share);
    csm_factor sum;
    if (is_label) {
        const csm_factor apart = csm_factor_add(row->g, csm_factor_minus(a));
        sum = csm_factor_add(csm_factor_mul(row->e_label, apart), csm_factor_minus(csm_factor_mul(a, row->without)));
    } else {
        const csm_factor e = csm_factor_exp(x, row->max, row->t);
        sum = csm_factor_add(csm_factor_mul(e, row->g), csm_factor_minus(csm_factor_mul(a, row->sum)));
    }
    return csm_factor_mul(row->k, csm_factor_div(sum, row->sum));
}
/* Limits the norm, whose square is given. */
INLINE void csm_loss_exact_shrink(const csm_loss_call *c, csm_factor square, csm_loss_exact *row) {
    if (square.m.hi == 0) return;
    const double odd = square.e - 2 * ((square.e * 0.5 + 0x1.8p52) - 0x1.8p52); /* -1, 0 or 1 */
    const csm_factor norm =
        csm_factor_of(csm_pair_of(sqrt(square.m.hi * csm_pow2(odd)), 0), (square.e - odd) * 0.5);
    const csm_factor limit = csm_factor_of_number(c->clip_norm);
    if (csm_factor_exceeds(norm, limit)) row->k = csm_factor_mul(row->k, csm_factor_div(limit, norm));
}
/* The element of the result. */
INLINE double csm_loss_exact_result(const csm_loss_exact *row, csm_factor g) {
    if (row->clip.m.hi != 0 && csm_factor_exceeds(g, row->clip))
        g = g.m.hi < 0 ? csm_factor_minus(row->clip) : row->clip;
    return 0 + csm_factor_rounded(csm_factor_mul(g, row->reduction)); /* no -0 */
}

#endif
