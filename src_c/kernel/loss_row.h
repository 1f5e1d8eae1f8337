/* Cross-entropy: what is done once a row, in double and, where the rounding would show, in pairs of doubles. */
#ifndef CSM_KERNEL_LOSS_ROW_H
#define CSM_KERNEL_LOSS_ROW_H

#include "scalars.h"

typedef struct csm_pair {
    double hi, lo;
} csm_pair;

INLINE csm_pair csm_pair_of(double hi, double lo) {
    csm_pair p = {hi, lo};
    return p;
}
/* Products and quotients to about 2^-100 (Dekker 1971). */
INLINE csm_pair csm_pair_mul(csm_pair a, csm_pair b) {
    double p = a.hi * b.hi, low = fma(a.hi, b.hi, -p) + (a.hi * b.lo + a.lo * b.hi), s = p + low;
    return csm_pair_of(s, low - (s - p));
}
INLINE csm_pair csm_pair_div(csm_pair a, csm_pair b) {
    double q = a.hi / b.hi, low = (fma(-q, b.hi, a.hi) + (a.lo - q * b.lo)) / b.hi, s = q + low;
    return csm_pair_of(s, low - (s - q));
}

/* e^(x/T - n ln 2) 2^bias for the n of a row's maximum, x <= max. */
INLINE double csm_exp_at(double x, const csm_temperature *t, double n, double bias) {
    csm_block at;
    double z = x / t->t;
    if (!((n - 4) * 0.6931471805599453 - z < 1400)) return 0; /* below the subnormal numbers whatever the bias */
    at.n = (z * 0x1.71547652b82fep+0 + 0x1.8p52) - 0x1.8p52;
    csm_top(x, t->t, 0, &at);
    double d = at.n - n + bias, half = (d * 0.5 + 0x1.8p52) - 0x1.8p52;
    return at.top * csm_pow2(half) * csm_pow2(d - half);
}

INLINE void csm_loss_sums(const csm_loss_call *c, const csm_loss_input *in, const csm_block *blocks, size_t count,
                          double bias, csm_loss_row *row) {
    const double epsilon = c->smoothing, t = c->t->t;
    double far = 0;
    csm_combine_log(blocks, count, &row->sums);
    const csm_row *s = &row->sums;
    for (size_t b = 0; b < count && (c->soft || epsilon != 0); b++) { /* every term is at least 0 */
        far += blocks[b].far;
        if (blocks[b].mass != 0) far += (s->max - csm_reference(blocks[b].max, c->t)) * blocks[b].mass;
    }
    /* total = S' + count top */
    double maxima = s->count * s->top;
    row->total = s->hi;
    row->total_low = s->lo + (fma(s->count, s->top, -maxima) + s->count * s->top_low);
    csm_two_sum(&row->total, &row->total_low, maxima);
    double sum = row->total + row->total_low; /* the low part of a sum can be large */
    row->total_low = (row->total - sum) + row->total_low;
    row->total = sum;

    double q = (1 - epsilon) * in->mass + (epsilon != 0 ? epsilon / (double)c->n * c->weight_sum : 0);
    double loss = q * s->tail + (far != 0 ? far / t : 0), own = (1 - epsilon) * in->w_label;
    if (in->label >= 0) {
        if (own != 0) loss += own * (t == 1 ? s->max - in->x_label : (s->max - in->x_label) / t);
        if (c->gradient) {
            row->e_label = s->top;
            row->others = (s->hi + (s->count - 1) * s->top) + s->lo;
            if (in->x_label < s->max) {
                double d = in->n - s->n;
                if (in->e_label < 0) row->e_label = csm_exp_at(in->x_label, c->t, s->n, bias);
                else row->e_label = in->e_label * csm_pow2(d < -1000 ? -1000 : d) * csm_pow2(d < -1000 ? d + 1000 : 0);
                row->others = (row->total - row->e_label) + row->total_low;
            }
        }
    }
    if (c->z_loss != 0) {
        double lse = in->max / c->temperature + s->tail;
        loss += c->z_loss * (lse * lse);
    }
    row->is_nan = s->is_nan;
    row->loss = row->is_nan ? CSM_NAN : in->weight * loss;
}

/* shrink: the factor of clip_norm, or negative for the gradient of the row loss alone, whose norm is wanted. */
INLINE void csm_loss_factors(const csm_loss_call *c, const csm_loss_input *in, double shrink, int single,
                             csm_loss_row *row) {
    const double epsilon = c->smoothing, flat = epsilon != 0 ? epsilon / (double)c->n : 0;
    const int alone = shrink < 0, clips = !alone && c->clip_value < CSM_INF;
    const csm_row *s = &row->sums;
    csm_pair reduction = csm_pair_of(1, 0), k = csm_pair_of(in->weight, 0);
    double q = (1 - epsilon) * in->mass + (epsilon != 0 ? flat * c->weight_sum : 0), g = q;
    if (!alone) {
        reduction = csm_pair_of(c->per_divisor, c->per_divisor_low);
        if (in->upstream != 1) reduction = csm_pair_mul(reduction, csm_pair_of(in->upstream, 0));
        if (shrink != 1) k = csm_pair_mul(k, csm_pair_of(shrink, 0));
        if (!clips) k = k.hi == 1 ? reduction : csm_pair_mul(k, reduction);
    }
    if (c->temperature != 1) k = csm_pair_div(k, csm_pair_of(c->temperature, 0));
    if (!(k.hi - k.hi == 0)) k = csm_pair_of(copysign(0x1p1000, k.hi), 0);
    if (c->z_loss != 0) g += 2 * c->z_loss * (in->max / c->temperature + s->tail);

    /* Tiny factors: the power of two is put off to the end, so that nothing is subnormal in between. */
    double largest = fabs(k.hi) * (fabs(g) > q ? fabs(g) : q), put_off = 1;
    if (largest < (single ? 0x1p-20 : 0x1p-300) && largest > 0) {
        uint64_t bits;
        memcpy(&bits, &largest, 8);
        int exponent = (int)(bits >> 52) - 1023;
        if (exponent < -1000) exponent = -1000;
        put_off = csm_pow2(exponent);
        k.hi /= put_off;
        k.lo /= put_off;
    }
    csm_pair f;
    double e_label = row->e_label, others = row->others;
    if (single) {
        const double most = 0x1.fffffep127, r = 1 / row->total; /* what overflows does so in the product with e' */
        f.hi = k.hi * g * r;
        f.lo = f.hi < most && f.hi > -most ? (double)(float)(f.hi - (double)(float)f.hi) : 0;
        f.hi = f.hi > most ? most : f.hi < -most ? -most : (double)(float)f.hi;
        e_label *= r;
        others *= r;
    } else {
        f = csm_pair_of(row->total, row->total_low);
        f = csm_pair_div(g == 1 ? k : csm_pair_mul(k, csm_pair_of(g, 0)), f);
        if (!(f.hi - f.hi == 0)) f = csm_pair_of(copysign(0x1.fffffffffffffp1023, f.hi), 0);
        e_label /= row->total;
        others /= row->total;
    }
    row->f = f.hi;
    row->f_low = f.lo;
    row->soft = k.hi * (1 - epsilon);
    row->flat = k.hi * flat;
    row->post = put_off;
    row->post_low = 0;
    row->clip = CSM_INF;
    if (clips) {
        row->clip = c->clip_value / put_off;
        csm_pair post = csm_pair_mul(reduction, csm_pair_of(put_off, 0));
        row->post = post.hi;
        row->post_low = post.lo;
    }
    row->plain = !clips && put_off == 1;
    if (in->label < 0) return;
    /* p (g - a) - a (1 - p): exact where p is nearly 1 */
    double a = in->w_label * ((1 - epsilon) + flat);
    double target = k.hi * (e_label * (g - a) - a * others);
    if (clips) target = target > row->clip ? row->clip : target < -row->clip ? -row->clip : target;
    row->target = target * row->post;
}

/* The factor that brings a gradient with this sum of squares (of what `factors` with shrink -1 describes, the label's
 * own target left out) to norm clip_norm at most. */
INLINE double csm_loss_shrink(const csm_loss_call *c, const csm_loss_input *in, const csm_loss_row *row,
                              double squares) {
    squares *= row->post * row->post;
    if (in->label >= 0) squares += row->target * row->target;
    double norm = sqrt(squares);
    return norm > c->clip_norm ? c->clip_norm / norm : 1;
}

#endif
