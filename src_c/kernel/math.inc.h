/* exp in the vocabulary of one compute type: e' = P(r) 2^(n - n0 + B).  Included once with V(name) = v32_name and
 * once with V(name) = v64_name.
 *
 *   n = round(z log2 e),  r = z - n ln 2,  z = x / T
 *
 * n0 is the n of the row's (block's) maximum and B a bias that keeps what becomes subnormal only after the final
 * product.  x - max is never formed, so its rounding error, which exp amplifies, never arises.  For T != 1 the
 * division is part of the reduction (constants log2(e)/T, T ln 2, and one factor 1/T on r).
 *
 * Rounding: x log2(e) + magic leaves an integer in the low bits.  The magic number includes the exponent bias,
 * magic = 0x1.8p23 + 127 + B - n0, so that these low bits are the exponent field of the scale 2^(n - n0 + B), one
 * shift away.  (x log2 e is never halfway between integers, so that n does not depend on the parity of n0.)
 */
#ifndef V
#error "math.inc.h needs V(name)"
#endif

/* Constants of one row, or of one vector of rows: all that exp needs, so that a loop holds them in registers. */
typedef struct V(shift) {
    V(t) magic, log2e, ln2_hi, ln2_lo, inv_t;
    V(t) lowest; /* below it the scale is 0, and so is the result */
} V(shift);

/* bias: 127 + B - n0 */
INLINE V(shift) V(shift_by)(V(t) bias, const csm_temperature *c, const int tempered) {
    V(shift) s;
    s.magic = V(add)(V(set)(EXP_MAGIC), bias);
    s.log2e = V(set)(tempered ? c->log2e : EXP_LOG2E);
    s.ln2_hi = V(set)(tempered ? c->ln2_hi : EXP_LN2_HI);
    s.ln2_lo = V(set)(tempered ? c->ln2_lo : EXP_LN2_LO);
    s.inv_t = V(set)(tempered ? c->inv_t : 1);
    s.lowest = V(fnma)(bias, s.ln2_hi, V(zero)());
    return s;
}

/* For rows whose maximum is max; *n gets their n0. */
INLINE V(shift) V(shift_to)(V(t) max, const csm_temperature *c, const int tempered, V(t) *n) {
    *n = V(sub)(V(fma)(max, V(set)(tempered ? c->log2e : EXP_LOG2E), V(set)(EXP_MAGIC)), V(set)(EXP_MAGIC));
    return V(shift_by)(V(sub)(V(set)(EXP_EXPONENT_BIAS + EXP_BIAS), *n), c, tempered);
}

/* e' = scale + p (r scale), scale = 2^(n - n0 + B): the parts serve expm1 as well. */
typedef struct V(exp_parts) {
    V(t) p, r_scale, scale;
} V(exp_parts);

INLINE V(exp_parts) V(exp)(V(t) x, V(shift) s, const int tempered) {
    V(exp_parts) e;
    V(t) t, n, r;
    x = V(max)(s.lowest, x); /* the constant first: NaN passes */
    t = V(fma)(x, s.log2e, s.magic);
    n = V(sub)(t, s.magic);
    r = V(fnma)(n, s.ln2_lo, V(fnma)(n, s.ln2_hi, x));
    if (tempered) r = V(mul)(r, s.inv_t);
    /* (e^r - 1) / r on |r| <= 0.378; float: as published in ONNX Runtime's MLAS; double: our Remez fit, 0.03 ULP */
#if EXP_MANTISSA == 23
    V(t) p = V(set)(0x1.694p-10);
    p = V(fma)(p, r, V(set)(0x1.125edcp-7));
    p = V(fma)(p, r, V(set)(0x1.555b5ap-5));
    p = V(fma)(p, r, V(set)(0x1.55545p-3));
    p = V(fma)(p, r, V(set)(0x1.fffff6p-2));
#else
    V(t) p = V(set)(0x1.ad580ea144266p-26);
    p = V(fma)(p, r, V(set)(0x1.28b0b08eb0f76p-22));
    p = V(fma)(p, r, V(set)(0x1.71df4bb095bc7p-19));
    p = V(fma)(p, r, V(set)(0x1.a019963447a70p-16));
    p = V(fma)(p, r, V(set)(0x1.a01a010f7ee66p-13));
    p = V(fma)(p, r, V(set)(0x1.6c16c185c49b2p-10));
    p = V(fma)(p, r, V(set)(0x1.11111111302c3p-7));
    p = V(fma)(p, r, V(set)(0x1.555555554ffbfp-5));
    p = V(fma)(p, r, V(set)(0x1.55555555554afp-3));
    p = V(fma)(p, r, V(set)(0x1.000000000000cp-1));
#endif
    e.p = V(fma)(p, r, V(set)(1));
    e.scale = V(exponent)(t);
    e.r_scale = V(mul)(r, e.scale);
    return e;
}

INLINE V(t) V(exp_value)(V(t) x, V(shift) s, const int tempered) {
    V(exp_parts) e = V(exp)(x, s, tempered);
    return V(fma)(e.p, e.r_scale, e.scale);
}
