/* exp in the vocabulary of one compute type: e' = e^r 2^(n - n0 + B).  Included once with V(name) = v32_name and
 * once with V(name) = v64_name.
 *
 *   n = round(z log2 e),  r = z - n ln 2,  z = x / T
 *
 * n0 is the n of the row's (block's) maximum and B a bias that preserves terms that become subnormal only after the
 * final product.  x - max is never formed, so its rounding error, which exp amplifies, never arises.  For T != 1 the
 * division is part of the reduction (constants log2(e)/T, T ln 2, and 1/T on r, whose roundings are compensated: they
 * would cost 0.4 ULP of the result).
 *
 * Rounding: x log2(e) + magic leaves an integer in the low bits.  The magic number includes the exponent bias,
 * magic = 0x1.8p23 + 127 + B - n0, so that these low bits, shifted, are the exponent field of the scale
 * 2^(n - n0 + B).  For T = 1, x log2 e is never halfway between integers.  For another T it can be, and n then depends
 * on the parity of n0, which is part of the specification: n0 depends only on the row, and every unit and path forms
 * the same sum.
 *
 * NaN passes; -inf and whatever is below the range of the scale give 0.  Rows beyond the range do not come here.
 * Error at T = 1: float 0.988 ULP at worst over every |x| <= 10^6, non-decreasing (tests/c/run.sh exp-all); double: the
 * polynomial's is 0.03 ULP.
 */
#ifndef V
#error "exp.inc.h needs V(name)"
#endif

/* The constants that exp needs for one row, or for one vector of rows; a loop holds them in registers. */
typedef struct V(shift) {
    V(t) magic, log2e, ln2_hi, ln2_lo, inv_t, inv_t_low;
    V(t) lowest; /* below it, the scale and so the result are 0 */
} V(shift);

/* bias: 127 + B - n0 */
INLINE V(shift) V(shift_by)(V(t) bias, const csm_temperature *c, const int tempered) {
    V(shift) s;
    s.magic = V(add)(V(set)(EXP_MAGIC), bias);
    s.log2e = V(set)(tempered ? c->log2e : EXP_LOG2E);
    s.ln2_hi = V(set)(tempered ? c->ln2_hi : EXP_LN2_HI);
    s.ln2_lo = V(set)(tempered ? c->ln2_lo : EXP_LN2_LO);
    s.inv_t = V(set)(tempered ? c->inv_t : 1);
    s.inv_t_low = V(set)(tempered ? c->inv_t_low : 0);
    s.lowest = V(fnma)(bias, s.ln2_hi, V(zero)());
    return s;
}

/* The constants of rows whose maximum is max; *n receives their n0. */
INLINE V(shift) V(shift_to)(V(t) max, const csm_temperature *c, const int tempered, V(t) *n) {
    *n = V(sub)(V(fma)(max, V(set)(tempered ? c->log2e : EXP_LOG2E), V(set)(EXP_MAGIC)), V(set)(EXP_MAGIC));
    return V(shift_by)(V(sub)(V(set)(EXP_EXPONENT_BIAS + EXP_BIAS), *n), c, tempered);
}

/* The parts of e' = scale + scale t, t = e^r - 1, scale = 2^(n - n0 + B), which expm1 needs as well.
 *
 * t = r + r^2 Q(r) is rounded once, to the spacing of r, and increases with r at least 0.7 times as fast: that makes
 * exp non-decreasing.  (1 + r P(r) has 0.86 ULP at best, but decreases at 2,993 floats.)  Float: 0.988 ULP over all
 * |x| <= 10^6; Q is a minimax fit that favours r < -0.245, where the roundings leave the smallest margin.  Double: Q is
 * our Remez fit, 0.03 ULP.
 *
 * x becomes t, for `count` vectors, up to V(SIDE).  The vectors advance in lockstep.  Finishing one chain before the
 * next would fill the scheduler with stalled operations (rows of 1000, AVX2 on Zen 4: 0.38 instead of 0.35 ns for each
 * element). */
#define EACH \
    UNROLL   \
    for (int v = 0; v < count; v++)
INLINE void V(exp_parts)(const int count, V(t) *x, V(t) *scale, V(shift) s, const int tempered) {
    V(t) r[V(SIDE)], q[V(SIDE)], low[V(SIDE)];
    EACH x[v] = V(max)(s.lowest, x[v]); /* the constant comes first, so that NaN passes */
    EACH scale[v] = V(fma)(x[v], s.log2e, s.magic);
    EACH q[v] = V(sub)(scale[v], s.magic);
    EACH r[v] = V(fnma)(q[v], s.ln2_hi, x[v]);
    EACH r[v] = V(fnma)(q[v], s.ln2_lo, r[v]);
    if (tempered) { /* times 1/T; the roundings of 1/T and of the product are kept in low */
        EACH low[v] = V(mul)(r[v], s.inv_t);
        EACH q[v] = V(fma)(r[v], s.inv_t, V(sub)(V(zero)(), low[v]));
        EACH q[v] = V(fma)(r[v], s.inv_t_low, q[v]);
        EACH r[v] = low[v];
        EACH low[v] = q[v];
    }
#if EXP_MANTISSA == 23
    EACH q[v] = V(fma)(V(set)(0x1.5e87e2p-10), r[v], V(set)(0x1.1235c0p-7));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.55696cp-5));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.55549ap-3));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.ffffe6p-2));
#else
    EACH q[v] = V(fma)(V(set)(0x1.ad7e35e7d73e4p-26), r[v], V(set)(0x1.28ae790e15635p-22));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.71df27c50cf1bp-19));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.a01998fd3c442p-16));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.a01a01288200bp-13));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.6c16c18488a09p-10));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.111111112836ep-7));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.55555555506eap-5));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.55555555554f7p-3));
    EACH q[v] = V(fma)(q[v], r[v], V(set)(0x1.000000000000ap-1));
#endif
    EACH x[v] = V(mul)(r[v], r[v]);
    EACH scale[v] = V(exponent)(scale[v]);
    if (tempered) {
        EACH x[v] = V(add)(r[v], V(fma)(x[v], q[v], low[v]));
    } else {
        EACH x[v] = V(fma)(x[v], q[v], r[v]);
    }
}

/* Replaces x by e'. */
INLINE void V(exp_values)(const int count, V(t) *x, V(shift) s, const int tempered) {
    V(t) scale[V(SIDE)];
    V(exp_parts)(count, x, scale, s, tempered);
    EACH x[v] = V(fma)(x[v], scale[v], scale[v]);
}
#undef EACH
INLINE V(t) V(exp_value)(V(t) x, V(shift) s, const int tempered) {
    V(exp_values)(1, &x, s, tempered);
    return x;
}
