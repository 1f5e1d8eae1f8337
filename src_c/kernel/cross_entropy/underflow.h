/* Gradients of cross-entropy in rows whose probabilities underflow, but not their products with the row's factors.
 *
 * The kernels compute e' in the compute type, where a probability below 2^-186 (float64: 2^-1522) of the largest is 0.
 * 1/T, weights, `upstream` or z-loss can bring its gradient back into the range of the result.  Such a row is rare: its
 * factors exceed 2^24 (2^217), and a class lies in a range far below the maximum (csm_loss_lost_of).  It is computed by
 * the definition (job.h), in numbers whose exponents have no limit:
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

#include "../../math/factor.h"
#include "row.h"

/* The logits whose gradient the kernels lose: those from `low` to `high`, none if low > high.  In distances
 * d = (max - x) / T: at the near end the kernels' probabilities underflow (float64: their products with a factor of at
 * most 2^300, the rest of which is applied last), or, if a clip comes before a factor above 1, what is clipped; at the
 * far end the gradient itself is 0.  Both ends have some nats to spare. */
typedef struct csm_loss_lost {
    double low, high;
} csm_loss_lost;
INLINE csm_loss_lost csm_loss_lost_of(const csm_loss_call *c, const csm_loss_input *in, const int single) {
    const double ln2 = 0.6931471805599453, largest = 0x1.fffffffffffffp1023;
    csm_loss_lost lost = {CSM_INF, -CSM_INF};
    double weight = in->weight, upstream = in->upstream, z = 2 * c->z_loss, max = in->max, t = c->temperature;
    double q = in->mass + (c->smoothing != 0 ? c->smoothing / (double)c->n * c->weight_sum : 0);
    if (weight == 0 || upstream == 0 || !(in->max - in->max == 0)) return lost;
    /* exponents: of the terms without p, before and after the reduction */
    const double of_reduction = csm_take_exponent(&upstream) + c->divisor_exponent;
    double of_row = q == 0 ? -1e5 : csm_take_exponent(&q);
    if (z != 0) {
        double of_lse = max == 0 ? 0 : csm_take_exponent(&max) - csm_take_exponent(&t) + 1;
        of_lse = (of_lse > 6 ? of_lse : 6) + 1 + csm_take_exponent(&z); /* log n < 2^6 */
        of_row = (of_row > of_lse ? of_row : of_lse) + 1;
    }
    of_row += csm_take_exponent(&weight) + c->t_exponent;
    if (!(of_row + of_reduction < 20000)) return lost; /* infinite */
    double near = single ? 125 : 900;
    if (c->clip_value < CSM_INF && of_reduction > 1) {
        double of_norm = c->clip_norm;
        double scaled = of_norm < CSM_INF ? csm_take_exponent(&of_norm) : of_row;
        scaled = scaled < of_row ? scaled : of_row;
        if (scaled < (single ? -20 : -300)) scaled = 0;
        const double clipped = scaled + (single ? 122 : 1018);
        near = clipped * ln2 < near ? clipped * ln2 : near;
    }
    const double far = (of_row + of_reduction + 5 + (single ? 151 : 1076)) * ln2;
    if (!(far > near)) return lost;
    lost.high = in->max - near * c->temperature;
    lost.low = in->max - far * c->temperature;
    if (lost.low < -largest) lost.low = -largest;
    return lost;
}
INLINE int csm_loss_is_lost(csm_loss_lost lost, double x) { return x <= lost.high && x >= lost.low; }

/* The state of a row: the sums, then the factors of its gradient. */
typedef struct csm_loss_exact {
    csm_factor t, below, without, e_label; /* below: S without the maxima; without: S - e_l; no label: e_l = 0 */
    csm_factor sum, g, k, reduction, clip, rest,
        flat; /* rest: 1 - epsilon; flat: epsilon / n; clip: 0 if there is none */
    double max, maxima; /* maxima: their number */
} csm_loss_exact;

INLINE csm_loss_exact csm_loss_exact_begin(const csm_loss_call *c, double max) {
    const csm_factor nothing = {{0, 0}, 0};
    csm_loss_exact row;
    row.t = csm_factor_of_number(c->temperature);
    row.max = max;
    row.maxima = 0;
    row.below = row.without = row.e_label = row.sum = row.g = row.k = row.reduction = row.clip = row.rest = row.flat =
        nothing;
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
    const csm_factor norm = csm_factor_of(csm_pair_of(sqrt(square.m.hi * csm_pow2(odd)), 0), (square.e - odd) * 0.5);
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
