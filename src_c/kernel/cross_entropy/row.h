/* Cross-entropy: the scalar work for a row, in double and, where the rounding would show, in pairs of doubles.
 *
 * csm_loss_sums computes the sums and the loss of a row from the records of its blocks; csm_loss_factors computes the
 * factors of its gradient, and the gradient of the label.  job.h has the formulas.  No element of the row is read.
 * Accumulators: a pair of doubles for the sum of e', a double for the weighted distances, whose terms are not negative.
 * Factors are computed in double if the compute type is float, and in pairs for float64, where successive roundings
 * would add up; mantissa and exponent are separate, so that no intermediate is subnormal or infinite.
 * NaN: a sum that is NaN makes the loss NaN, and a factor that is NaN the gradient (is_nan).
 * Measured error: loss.inc.h.
 */
#ifndef CSM_CROSS_ENTROPY_ROW_H
#define CSM_CROSS_ENTROPY_ROW_H

#include "../../math/factor.h"
#include "../softmax/combine.h"
#include "job.h"

/* Sets the divisor of a mean; 1 for other reductions.  A mean that divides by 0 is NaN, and its gradient is 0 whatever
 * the rows hold (csm_loss_is_empty). */
INLINE void csm_loss_divide(csm_loss_call *c, double divisor) {
    csm_pair per = csm_pair_of(0, 0);
    c->divisor_exponent = 0;
    if (divisor != 0) per = csm_pair_reciprocal(divisor, &c->divisor_exponent);
    c->per_divisor = per.hi;
    c->per_divisor_low = per.lo;
    c->simple = !c->soft && c->smoothing == 0 && c->z_loss == 0 && c->temperature == 1 && c->clip_norm == CSM_INF &&
                c->clip_value == CSM_INF && c->divisor_exponent >= -20 && c->divisor_exponent <= 0;
}

INLINE int csm_loss_is_empty(const csm_loss_call *c) { return c->per_divisor == 0; }

/* factor (max - x) / T, factor > 0, which is infinite only if the result is or x = -inf. */
INLINE double csm_distance(double factor, double max, double x, double t) {
    const double d = max - x, quotient = t == 1 ? d : d / t;
    if (quotient < CSM_INF || !(x > -CSM_INF)) return factor * quotient;
    return d < CSM_INF ? factor * d / t : factor * (max * 0.5 - x * 0.5) / (t * 0.5);
}
/* Sums of the weighted distances of a transformed row, sum a_j (max - x_j) / T with a_j = w (soft q + flat), from its
 * logits as they were: their transformations, in the compute type, overflow before the sum does.  Element j of a block
 * goes to lane j mod CSM_FAR_LANES; the lanes are added in order. */
enum { CSM_FAR_LANES = 16 };
INLINE void csm_far_add(csm_pair *lane, const csm_loss_terms *terms, double q, double w, double max, double x,
                        double t) {
    const double a = w * fma(terms->soft, q, terms->flat);
    if (a != 0) csm_two_sum(&lane->hi, &lane->lo, csm_distance(a, max, x, t));
}
INLINE void csm_far_join(csm_pair *sum, csm_pair lane) {
    csm_two_sum(&sum->hi, &sum->lo, lane.hi);
    sum->lo += lane.lo;
}
INLINE double csm_far_total(csm_pair sum) { return sum.lo - sum.lo == 0 ? sum.hi + sum.lo : sum.hi; }

/* e^(x/T - n ln 2) 2^bias for the n of a row's maximum, x <= max. */
INLINE double csm_exp_at(double x, const csm_temperature *t, double n, double bias) {
    csm_block at;
    double z = x / t->t;
    if (!((n - 4) * 0.6931471805599453 - z < 1400)) return 0; /* below the subnormal numbers with any bias */
    at.n = (z * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    csm_top(x, t->t, 0, 0, &at);
    double d = at.n - n + bias, half = (d * 0.5 + 0x1.8p52) - 0x1.8p52;
    return at.top * csm_pow2(half) * csm_pow2(d - half);
}

/* Adds the maxima to S', the sum without them. */
INLINE void csm_loss_total(double *total, double *low, double count, double top, double top_low) {
    const double maxima = count * top;
    *low += fma(count, top, -maxima) + count * top_low;
    csm_two_sum(total, low, maxima);
    const double sum = *total + *low; /* the low part of a sum can be large */
    *low = (*total - sum) + *low;
    *total = sum;
}
/* Whether a row takes part and is read.  Sets its label, or -1, and its weight in `in`. */
INLINE int csm_read_label_and_weight(const csm_loss_job *job, ptrdiff_t at, csm_loss_input *in) {
    in->label = job->label ? (ptrdiff_t)job->label[at * job->order] : -1;
    in->weight = 1;
    if (job->weight) memcpy(&in->weight, job->weight + at * job->weight_step, sizeof in->weight);
    return !(job->label && in->label < 0) && in->weight != 0;
}
/* For a simple call: the factor of a row's gradient, and the gradient of the label. */
INLINE double csm_loss_share(const csm_loss_call *c) { return c->per_divisor * csm_pow2(c->divisor_exponent); }
INLINE double csm_loss_simple_target(double share, double others, double total) { return -(share * others) / total; }

/* Losses whose logarithms are computed later, several at once: weight ((factor log1p(q) + far) + label). */
enum { CSM_PENDING = 8 };
typedef struct csm_pending_losses {
    double q[CSM_PENDING], q_low[CSM_PENDING], factor[CSM_PENDING], far[CSM_PENDING], label[CSM_PENDING],
        weight[CSM_PENDING];
    double *loss[CSM_PENDING];
    int count;
} csm_pending_losses;

/* Adds the product of two finite numbers to a sum, without rounding and at any magnitude. */
INLINE void csm_exact_add_product(csm_exact *sum, double a, double b) {
    const double e = csm_take_exponent(&a) + csm_take_exponent(&b), product = a * b;
    csm_exact_add(sum, product, (int64_t)e, 1);
    csm_exact_add(sum, fma(a, b, -product), (int64_t)e, 1);
}
/* sum a_j (max - x_j) of a row from the sums of its blocks, each relative to the block's own maximum:
 * sum far_b + sum (max - max_b) mass_b, where every product and every sum is kept whole and only the result is rounded,
 * so that it does not depend on the order or the grouping of the blocks. */
static NOINLINE double csm_loss_far(const csm_block *blocks, size_t count, const csm_temperature *t, double max) {
    csm_exact sum; /* of the masses, then of the distances: one at a time needs fewer registers on CUDA */
    double other = 0, hi, lo; /* other: infinite or NaN */
    if (count == 1) return blocks->far;
    csm_exact_zero(&sum);
    for (size_t b = 0; b < count; b++) {
        const double of_block = blocks[b].far, m = blocks[b].mass;
        if (of_block - of_block == 0 && m - m == 0) csm_exact_add(&sum, m, 0, 1);
        else other += of_block - of_block == 0 ? m : of_block;
    }
    if (other != 0) return other;
    csm_exact_pair(&sum, 0, &hi, &lo);
    csm_exact_zero(&sum);
    csm_exact_add_product(&sum, max, hi);
    csm_exact_add_product(&sum, max, lo);
    for (size_t b = 0; b < count; b++) {
        csm_exact_add(&sum, blocks[b].far, 0, 1);
        csm_exact_add_product(&sum, -csm_reference(blocks[b].max, t), blocks[b].mass);
    }
    csm_exact_pair(&sum, 0, &hi, &lo);
    return hi > 0 ? hi : 0; /* no term is negative */
}

/* Sets the sum of all e' but the label's: (a + b) + a_low as one number, and with b_low what its roundings lose. */
INLINE void csm_loss_others(csm_loss_row *row, double a, double b, double b_low, double a_low) {
    double sum = a, low = b_low;
    csm_two_sum(&sum, &low, b);
    row->others = sum + a_low;
    row->others_low = ((sum - row->others) + a_low) + low;
}

/* Computes the sums and the loss of a row.  to: a second destination of the loss; NULL only without `pending`.
 * pending: NULL, or the list to which the loss may be added; then row->loss, row->sums.tail and *to are not set.  (Only
 * the gradient of z-loss reads the tail, and a call with z-loss adds nothing to the list.) */
INLINE void csm_loss_sums(const csm_loss_call *c, const csm_loss_input *in, const csm_block *blocks, size_t count,
                          double bias, csm_loss_row *row, csm_pending_losses *pending, double *to) {
    const double epsilon = c->smoothing;
    double far = 0, quotient, quotient_low;
    csm_combine_quotient(blocks, count, &row->sums, &quotient, &quotient_low);
    const int waits = pending && c->z_loss == 0 && !row->sums.is_nan;
    if (!waits) row->sums.tail = csm_log1p(quotient, quotient_low);
    const csm_row *s = &row->sums;
    if (c->soft || epsilon != 0) far = csm_loss_far(blocks, count, c->t, s->max);
    row->total = s->hi;
    row->total_low = s->lo;
    csm_loss_total(&row->total, &row->total_low, s->count, s->top, s->top_low);

    double q = (1 - epsilon) * in->mass + (epsilon != 0 ? epsilon / (double)c->n * c->weight_sum : 0);
    const double from_far = far != 0 ? far / c->t->distance : 0, label_part = (1 - epsilon) * in->w_label;
    double from_label = 0, loss = waits ? 0 : q * s->tail + from_far;
    if (in->label >= 0) {
        if (label_part != 0) from_label = csm_distance(label_part, in->max, in->x_label, c->temperature);
        loss += from_label;
        if (c->gradient) {
            row->e_label = s->top;
            if (in->z_label < s->max) {
                double d = in->n - s->n;
                if (in->e_label < 0) row->e_label = csm_exp_at(in->z_label, c->t, s->n, bias);
                else row->e_label = in->e_label * csm_pow2(d < -1000 ? -1000 : d) * csm_pow2(d < -1000 ? d + 1000 : 0);
                csm_loss_others(row, row->total, -row->e_label, 0, row->total_low);
            } else {
                const double ties = s->count - 1, maxima = ties * s->top;
                csm_loss_others(row, s->hi, maxima, fma(ties, s->top, -maxima) + ties * s->top_low, s->lo);
            }
        }
    }
    row->is_nan = s->is_nan;
    if (waits) {
        const int at = pending->count++;
        pending->q[at] = quotient;
        pending->q_low[at] = quotient_low;
        pending->factor[at] = q;
        pending->far[at] = from_far;
        pending->label[at] = from_label;
        pending->weight[at] = in->weight;
        pending->loss[at] = to;
        return;
    }
    if (c->z_loss != 0) {
        double lse = in->max / c->temperature + s->tail;
        const double square = lse * lse;
        loss += square < CSM_INF ? c->z_loss * square : c->z_loss * lse * lse;
    }
    row->loss = row->is_nan ? CSM_NAN : in->weight * loss;
    if (to) *to = row->loss;
}

INLINE void csm_factor_by(csm_factor *f, double x) {
    if (x == 1) return;
    f->e += csm_take_exponent(&x);
    f->m = csm_pair_mul(f->m, csm_pair_of(x, 0));
}

/* Computes parts of the factors as pairs, for float64, where successive roundings would add up: (1 - epsilon),
 * epsilon / n, and g = (1 - epsilon) mass + epsilon / n weight_sum + 2 z_loss lse.  Returns 0 if numbers are too large
 * or too small. */
typedef struct csm_loss_pairs {
    csm_pair rest, flat, g;
} csm_loss_pairs;
static NOINLINE int csm_loss_in_pairs(const csm_loss_call *c, const csm_loss_input *in, double tail,
                                      csm_loss_pairs *to) {
    const double epsilon = c->smoothing, rest = 1 - epsilon, q = in->mass + c->weight_sum,
                 of_max = in->max / c->temperature;
    const double z = 2 * c->z_loss, lower = 0x1p-500, upper = 0x1p500;
    if (!(q >= lower && q <= upper && (z == 0 || (z >= lower && fabs(of_max) <= upper)))) return 0;
    to->rest = csm_pair_of(rest, (1 - rest) - epsilon);
    to->flat = csm_pair_of(0, 0);
    to->g = csm_pair_mul(to->rest, csm_pair_of(in->mass, 0));
    if (epsilon != 0) {
        to->flat = csm_pair_div(csm_pair_of(epsilon, 0), csm_pair_of((double)c->n, 0));
        const csm_pair all = csm_pair_mul(to->flat, csm_pair_of(c->weight_sum, 0));
        csm_two_sum(&to->g.hi, &to->g.lo, all.hi);
        to->g.lo += all.lo;
    }
    if (z != 0) {
        csm_pair lse = {of_max, 0};
        csm_two_sum(&lse.hi, &lse.lo, tail);
        const csm_pair by_z = csm_pair_mul(lse, csm_pair_of(z, 0));
        csm_two_sum(&to->g.hi, &to->g.lo, by_z.hi);
        to->g.lo += by_z.lo;
    }
    return 1;
}

/* The gradient k [p (g - a) - a (1 - p)] of the label, a form that keeps its digits when p is nearly 1.  p: e_label /
 * total, 1 - p: others / total; paired: *pairs holds the parts of g and a. */
INLINE double csm_loss_target(const csm_loss_input *in, csm_pair k, double g, double a, int paired,
                              csm_loss_pairs *pairs, const int single, const csm_loss_row *row) {
    if (single) return 0 + (k.hi * (g - a) * row->e_label - k.hi * a * row->others) / row->total; /* no -0 */
    /* in pairs, because every rounding counts: the error bound of plain labels is relative to the result */
    csm_pair apart = csm_pair_of(g - a, 0), label_part = csm_pair_of(a, 0);
    if (paired) { /* a flag, not a pointer that may be NULL, with which CUDA would keep the pairs in local memory */
        csm_two_sum(&pairs->rest.hi, &pairs->rest.lo, pairs->flat.hi);
        pairs->rest.lo += pairs->flat.lo;
        label_part = csm_pair_mul(csm_pair_of(in->w_label, 0), pairs->rest);
        apart = pairs->g;
        csm_two_sum(&apart.hi, &apart.lo, -label_part.hi);
        apart.lo -= label_part.lo;
    }
    csm_pair sum = csm_pair_mul(csm_pair_mul(k, label_part), csm_pair_of(-row->others, -row->others_low));
    if (g != a) {
        const csm_pair more = csm_pair_mul(csm_pair_mul(k, apart), csm_pair_of(row->e_label, 0));
        csm_two_sum(&sum.hi, &sum.lo, more.hi);
        sum.lo += more.lo;
    }
    return 0 + csm_pair_div(sum, csm_pair_of(row->total, row->total_low)).hi; /* no -0 */
}

/* Computes the factors of a row's gradient.  shrink: the factor of clip_norm; negative: compute the gradient of the row
 * loss alone, whose norm is needed. */
static NOINLINE void csm_loss_any_factors(const csm_loss_call *c, const csm_loss_input *in, double shrink, int single,
                                          csm_loss_row *row) {
    const double epsilon = c->smoothing, flat = epsilon != 0 ? epsilon / (double)c->n : 0;
    const int is_row_alone = shrink < 0, clips = !is_row_alone && c->clip_value < CSM_INF;
    const csm_row *s = &row->sums;
    const csm_factor unit = {{1, 0}, 0};
    csm_factor reduction = unit, k;
    double q = (1 - epsilon) * in->mass + (epsilon != 0 ? flat * c->weight_sum : 0), g = q;
    if (!is_row_alone) {
        reduction.m = csm_pair_of(c->per_divisor, c->per_divisor_low);
        reduction.e = c->divisor_exponent;
        csm_factor_by(&reduction, in->upstream);
    }
    k = is_row_alone || clips ? unit : reduction;
    csm_factor_by(&k, in->weight);
    if (!is_row_alone) csm_factor_by(&k, shrink);
    if (!is_row_alone && c->clip_norm < CSM_INF) k.e += row->shrink_exponent;
    if (c->temperature != 1) {
        k.m = csm_pair_mul(k.m, csm_pair_of(c->per_t, c->per_t_low));
        k.e += c->t_exponent;
    }
    if (c->z_loss != 0) g += 2 * c->z_loss * (in->max / c->temperature + s->tail);
    if (!(g - g == 0)) g = copysign(0x1.fffffffffffffp1023, g);

    /* The gradient has the magnitude k max(q, |g|).  If that is ordinary, the power of two goes into k; otherwise k
     * gets as much of it as needed and the rest is applied last, so that no intermediate is subnormal or infinite. */
    double largest = fabs(g) > q ? fabs(g) : q, e = csm_take_exponent(&largest), up = k.e;
    const double lower = single ? -20 : -300, upper = single ? 100 : 300;
    const double most = single ? 120 : 1000; /* small weights make g small, not the factors of q and of the smoothing */
    /* One class has all probability, and without z-loss the gradient is 0, which a rounding error is not. */
    if (largest == 0 || (c->n == 1 && c->z_loss == 0)) k.m = csm_pair_of(0, 0);
    if (k.e + e < lower) up = -e;
    if (k.e + e > upper) up = upper - e;
    up = up < -1000 ? -1000 : up > most ? most : up;
    double put_off = k.e - up;
    if (clips) { /* clip_value keeps its digits, and with it small elements, as far as the largest has room; what that
                  * loses in magnitude beyond it has been clipped anyway */
        double mantissa = c->clip_value;
        const double max_put_off = csm_take_exponent(&mantissa) + (single ? 100 : 900);
        if (put_off > max_put_off) {
            const double room = upper - (up + e), lift = put_off - max_put_off;
            up += room <= 0 ? 0 : lift < room ? lift : room;
            up = up > most ? most : up;
            put_off = max_put_off;
        }
    }
    const double power = csm_pow2(up);
    k.m.hi *= power;
    k.m.lo *= power;
    csm_pair f;
    csm_loss_pairs p;
    int paired = 0;
    row->soft = k.m.hi * (1 - epsilon);
    row->flat = k.m.hi * flat;
    if (single) {
        f.hi = k.m.hi * g / row->total;
        f.lo = (double)(float)(f.hi - (double)(float)f.hi);
        f.hi = (double)(float)f.hi;
    } else {
        csm_pair by_g = k.m;
        if (g != 1) {
            if ((paired = csm_loss_in_pairs(c, in, s->tail, &p))) {
                by_g = csm_pair_mul(k.m, p.g);
                row->soft = csm_pair_mul(k.m, p.rest).hi;
                row->flat = csm_pair_mul(k.m, p.flat).hi;
            } else {
                by_g = csm_pair_mul(k.m, csm_pair_of(g, 0));
            }
        }
        f = csm_pair_div(by_g, csm_pair_of(row->total, row->total_low));
    }
    row->f = f.hi;
    row->f_low = f.lo;
    row->clip = CSM_INF;
    row->post = 1;
    row->post_low = 0;
    row->post_exponent = put_off;
    if (clips) {
        row->clip = csm_times_pow2(c->clip_value, -put_off);
        row->post = reduction.m.hi;
        row->post_low = reduction.m.lo;
        row->post_exponent += reduction.e;
        if (single) {
            row->post = (double)(float)reduction.m.hi;
            row->post_low = (double)(float)((reduction.m.hi - row->post) + reduction.m.lo);
        }
    }
    row->plain = !clips && put_off == 0;
    row->is_nan = s->is_nan || f.hi != f.hi || row->post != row->post;
    if (in->label < 0) return;
    row->target = csm_loss_target(in, k.m, g, in->w_label * ((1 - epsilon) + flat), paired, &p, single, row);
    if (is_row_alone) return;
    if (clips) row->target = row->target > row->clip ? row->clip : row->target < -row->clip ? -row->clip : row->target;
    if (!row->plain) row->target = csm_times_pow2(row->target * (row->post + row->post_low), row->post_exponent);
}
/* Computes the factors; the common case is inlined, with the bits of the general one. */
INLINE void csm_loss_factors(const csm_loss_call *c, const csm_loss_input *in, double shrink, int single,
                             csm_loss_row *row) {
    if (c->simple && in->weight == 1 && in->upstream == 1 && in->w_label == 1) {
        const double a = csm_loss_share(c);
        if (single) {
            double f = a / row->total;
            row->f = (double)(float)f;
            row->f_low = (double)(float)(f - row->f);
            row->target = csm_loss_simple_target(a, row->others, row->total);
        } else {
            const csm_pair share = csm_pair_of(a, c->per_divisor_low * csm_pow2(c->divisor_exponent));
            const csm_pair total = csm_pair_of(row->total, row->total_low), f = csm_pair_div(share, total);
            const csm_pair minus_others = csm_pair_of(-row->others, -row->others_low);
            row->f = f.hi;
            row->f_low = f.lo;
            row->target = 0 + csm_pair_div(csm_pair_mul(share, minus_others), total).hi; /* no -0 */
        }
        row->soft = row->flat = row->post_low = row->post_exponent = 0;
        row->clip = CSM_INF;
        row->post = row->plain = 1;
        row->is_nan = row->sums.is_nan;
        return;
    }
    csm_loss_any_factors(c, in, shrink, single, row);
}

/* The factor that limits the norm of a gradient to clip_norm, but for a power of two, row->shrink_exponent.  squares:
 * the sum of the squares of the gradient that `factors` with shrink -1 describes, before the deferred power of two,
 * without the label's. */
INLINE double csm_loss_shrink(const csm_loss_call *c, const csm_loss_input *in, csm_loss_row *row, double squares) {
    if (in->label >= 0) squares += row->target * row->target;
    const double norm = sqrt(squares);
    const int is_larger = norm > csm_times_pow2(c->clip_norm, -row->post_exponent);
    row->shrink_exponent = is_larger ? -row->post_exponent : 0;
    return is_larger ? c->clip_norm / norm : 1;
}

#endif
