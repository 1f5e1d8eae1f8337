/* The second passes for one element, or one vector of elements.  The kernels of every storage type share them with the
 * CUDA kernels, which include this file with the scalar vocabulary.
 *
 *   softmax         y = e' r, r = 1 / sum e' as a pair
 *   softmax_vjp     dx of vjp.inc.h, also for log_softmax
 *   cross-entropy   g = e' f - w (soft q + flat), f as a pair (job.h)
 *
 * Nothing is accumulated; the factors of a row are pairs of the compute type, and powers of two that would make them
 * subnormal or infinite are separate factors.
 * NaN: vjp_element writes the canonical NaN; rows of softmax and cross-entropy that are NaN are filled by the kernels.
 * Measured error: forward.inc.h, vjp.inc.h, cross_entropy/loss.inc.h.
 */
#ifndef V
#error "element.inc.h needs V(name), the constants of the compute type and V(LOAD_REAL)"
#endif

INLINE V(t) V(without_max)(V(t) e, V(mask) is_max, V(t) *count) {
    *count = V(add)(*count, V(keep)(is_max, V(set)(1)));
    return V(drop)(is_max, e);
}

INLINE V(t) V(scaled)(V(t) e, V(t) r, V(t) r_low) { return V(fma)(e, r, V(mul)(e, r_low)); }

/* The factor 2^d r of e' in softmax, d = n of the block minus n of the row: r as a pair, and `up`, which is applied
 * first and holds the power of two if r 2^d could be subnormal (else 1). */
typedef struct V(scaling) {
    V(t) up, f, f_low;
    int plain; /* up is 1 */
} V(scaling);
INLINE V(scaling) V(scaling_of)(const csm_row *row, double d) {
    V(scaling) s;
    const double power = csm_pow2(d >= -EXP_SAFE ? d : -EXP_SAFE);
    s.plain = d >= -EXP_SAFE;
    s.up = V(set)(s.plain ? 1 : d + EXP_SAFE < 1 - EXP_EXPONENT_BIAS ? 0 : csm_pow2(d + EXP_SAFE));
    s.f = V(set)(row->r * power);
    s.f_low = V(set)(row->r_low * power);
    return s;
}

/* Softmax: 1/T as inv_t1 inv_t2; where y is subnormal, its product with inv_t1 > 1 would be rounded as such a number,
 * so it takes 2^(mantissa + 1) along as far as inv_t2_lifted.  Log: dy, hi and lo are multiplied by `lift` and the
 * result by inv_t2, so that for T < 1 nothing is rounded as a subnormal number that is none in the end. */
typedef struct V(vjp_constants) {
    V(t) hi, lo, inv_t1, inv_t1_lifted, inv_t2, inv_t2_lifted, lift, absent;
    V(shift) shift;
    int lifts; /* softmax: whether inv_t1 can lose the digits of y, the argument of vjp_element */
} V(vjp_constants);

/* The constants of one row, or of as many rows as a vector has lanes, from their sum s = hi + lo. */
INLINE V(vjp_constants) V(vjp_set)(const csm_temperature *t, V(t) hi, V(t) lo, const int log) {
    V(vjp_constants) c;
    /* Log: e^y is scaled by 2^bias and s by its inverse, so that e^y keeps its digits down to the subnormal numbers,
     * unless s itself would lose digits; then e^y s vanishes anyway. */
    const double lift = log && EXP_MANTISSA != 23 ? csm_lift_of(t) : 1;
    V(t) bias = V(zero)(), down = V(set)(lift);
    if (log) {
        const V(t) small = V(set)(EXP_SMALL / lift);
        V(mask) ample = V(either)(V(ge)(hi, small), V(ge)(V(sub)(V(zero)(), small), hi));
        bias = V(keep)(ample, V(set)(EXP_BIAS));
        down = V(select)(ample, V(set)(csm_pow2(-EXP_BIAS) * lift), down);
    }
    c.hi = V(mul)(hi, down);
    c.lo = V(mul)(lo, down);
    c.lift = V(set)(lift);
    c.lifts = !log && t->inv_t1 > 1 && t->inv_t1 < csm_pow2(EXP_MANTISSA + 1);
    c.inv_t1 = V(set)(t->inv_t1);
    c.inv_t2 = V(set)(log ? t->inv_t1 / lift * t->inv_t2 : t->inv_t2);
    c.inv_t1_lifted = V(set)(c.lifts ? t->inv_t1 * csm_pow2(1 + EXP_MANTISSA) : 1);
    c.inv_t2_lifted = V(set)(t->inv_t2 * csm_pow2(-1 - EXP_MANTISSA));
    c.absent = V(set)(log ? -CSM_INF : 0);
    c.shift = V(shift_by)(V(add)(V(set)(EXP_EXPONENT_BIAS), bias), t, 0);
    return c;
}

INLINE V(t) V(vjp_element)(V(t) dy, V(t) y, V(vjp_constants) c, const int log, const int lifts) {
    V(mask) absent = V(eq)(y, c.absent);
    V(t) d;
    if (log) {
        /* The minimum prevents an overflow of the exponent; no logarithm of a probability is that large. */
        V(t) e = V(min)(V(set)(EXP_LARGEST_LOG), y), scale;
        V(exp_parts)(1, &e, &scale, c.shift, 0);
        d = V(fnma)(c.lo, scale, V(fnma)(c.hi, scale, V(mul)(dy, c.lift)));
        d = V(fnma)(c.hi, V(mul)(e, scale), d);
        d = V(mul)(d, c.inv_t2);
    } else if (lifts) {
        const V(mask) normal = V(ge)(y, V(set)(csm_pow2(2 - EXP_EXPONENT_BIAS)));
        d = V(mul)(y, V(select)(normal, c.inv_t1, c.inv_t1_lifted));
        d = V(mul)(V(mul)(d, V(sub)(V(sub)(dy, c.hi), c.lo)), V(select)(normal, c.inv_t2, c.inv_t2_lifted));
    } else {
        d = V(mul)(V(mul)(V(mul)(y, c.inv_t1), V(sub)(V(sub)(dy, c.hi), c.lo)), c.inv_t2);
    }
    d = V(select)(V(ordered)(d), d, V(set)(CSM_NAN));
    return V(drop)(absent, d);
}

/* The numbers starting at i: a whole vector, or the last `count` followed by 0. */
INLINE V(t) V(loss_reals)(const void *p, size_t i, size_t count) {
    const REAL *from = (const REAL *)p;
    return count >= V(W) ? V(LOAD_REAL)(from + i) : V(LOAD_PART_REAL)(from + i, count, V(zero)());
}
typedef struct V(loss_constants) {
    V(t) f, f_low, shift, post, post_low, power1, power2, clip_high, clip_low, soft, flat;
} V(loss_constants);

/* e' of a block is relative to the block's n and needs the factor 2^d, d <= 0.  It is part of f; below 2^-8 it is a
 * separate factor, `shift`, as long as that is a normal number (beyond that the gradient is subnormal, and the
 * remainder does no harm in f). */
INLINE int V(loss_set)(const csm_block *block, const csm_loss_row *row, V(loss_constants) *c) {
    const double d = block->n - row->sums.n, min_shift = 26 - EXP_EXPONENT_BIAS;
    const int folded = d >= -8;
    const double own_shift = folded ? 0 : d < min_shift ? min_shift : d, up = csm_pow2(d - own_shift);
    c->f = V(set)(row->f * up);
    c->f_low = V(set)(row->f_low * up);
    c->shift = V(set)(csm_pow2(own_shift));
    c->post = V(set)(row->post);
    c->post_low = V(set)(row->post_low);
    double e = row->post_exponent,
           range = 2 * EXP_EXPONENT_BIAS; /* a power of two, in two halves that are normal numbers */
    e = e > range ? range : e < 4 - range ? 4 - range : e;
    double half = (e * 0.5 + 0x1.8p52) - 0x1.8p52;
    c->power1 = V(set)(csm_pow2(half));
    c->power2 = V(set)(csm_pow2(e - half));
    c->clip_high = V(set)(row->clip);
    c->clip_low = V(set)(-row->clip);
    c->soft = V(set)(row->soft > EXP_MOST ? EXP_MOST : row->soft);
    c->flat = V(set)(row->flat > EXP_MOST ? EXP_MOST : row->flat);
    return folded;
}
/* g = e f + e f_low - w (soft q + flat).  q, w: whether they exist; plain: no shift, no clip, no post. */
INLINE V(t) V(loss_gradient)(V(t) e, const csm_loss_terms *terms, size_t i, size_t count, V(loss_constants) c,
                             const int q, const int w, const int plain) {
    if (!plain) e = V(mul)(e, c.shift);
    V(t) g;
    if (w) {
        V(t) a = q ? V(fma)(c.soft, V(loss_reals)(terms->q, i, count), c.flat) : c.flat;
        a = V(min)(V(set)(EXP_MOST), a); /* a weight of 0 makes it 0 */
        g = V(fnma)(a, V(loss_reals)(terms->w, i, count), V(mul)(e, c.f_low));
    } else {
        g = V(fma)(e, c.f_low, V(sub)(V(zero)(), c.flat));
        if (q) g = V(fnma)(c.soft, V(loss_reals)(terms->q, i, count), g);
    }
    return V(fma)(e, c.f, g);
}
/* loss_gradient for terms that may be NULL. */
INLINE V(t) V(loss_any_gradient)(V(t) e, const csm_loss_terms *terms, size_t i, size_t count, V(loss_constants) c) {
    if (!terms) return V(scaled)(V(mul)(e, c.shift), c.f, c.f_low);
    if (terms->w)
        return terms->q ? V(loss_gradient)(e, terms, i, count, c, 1, 1, 0)
                        : V(loss_gradient)(e, terms, i, count, c, 0, 1, 0);
    return terms->q ? V(loss_gradient)(e, terms, i, count, c, 1, 0, 0)
                    : V(loss_gradient)(e, terms, i, count, c, 0, 0, 0);
}
