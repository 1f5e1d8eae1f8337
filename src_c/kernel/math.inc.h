/* exp in the vocabulary of one compute type: e' = P(r) 2^(n - n0 + B).  Included once with V(name) = v32_name and
 * once with V(name) = v64_name.
 *
 *   n = round(z log2 e),  r = z - n ln 2,  z = x / T
 *
 * n0 is the n of the row's (block's) maximum and B a bias that keeps what becomes subnormal only after the final
 * product.  x - max is never formed, so its rounding error, which exp amplifies, never arises.  For T != 1 the
 * division is part of the reduction (constants log2(e)/T, T ln 2, and one factor 1/T on r).
 */
#ifndef V
#error "math.inc.h needs V(name)"
#endif

/* Constants of one row, or one vector of rows. */
typedef struct V(shift) {
    V(t) lowest;  /* below it the scale is 0, and so is the result */
    V(bits) bias; /* (127 + B - n0) << 23 */
} V(shift);

/* t = magic + n: its low bits are n. */
INLINE V(t) V(reference)(V(t) max, const csm_temperature *c) {
    return V(fma)(max, V(set)(c->log2e), V(set)(EXP_MAGIC));
}
INLINE V(shift) V(shift_from)(V(t) t, const csm_temperature *c) {
    V(shift) s;
    V(t) n = V(sub)(t, V(set)(EXP_MAGIC));
    s.lowest = V(mul)(V(sub)(n, V(set)(EXP_EXPONENT_BIAS + EXP_BIAS)), V(set)(c->ln2_hi));
    s.bias = V(bias)(t, V(set_bits)((EXP_UINT)(EXP_EXPONENT_BIAS + EXP_BIAS) << EXP_MANTISSA));
    return s;
}

/* e' = scale + p (r scale), scale = 2^(n - n0 + B): the parts serve expm1 as well. */
typedef struct V(exp_parts) {
    V(t) p, r_scale, scale;
} V(exp_parts);

INLINE V(exp_parts) V(exp)(V(t) x, V(shift) s, const csm_temperature *c, const int tempered) {
    V(exp_parts) e;
    V(t) magic = V(set)(EXP_MAGIC), t, n, r;
    x = V(max)(s.lowest, x); /* the constant first: NaN passes */
    if (tempered) {
        t = V(fma)(x, V(set)(c->log2e), magic);
        n = V(sub)(t, magic);
        r = V(fnma)(n, V(set)(c->ln2_lo), V(fnma)(n, V(set)(c->ln2_hi), x));
        r = V(mul)(r, V(set)(c->inv_t));
    } else {
        t = V(fma)(x, V(set)(EXP_LOG2E), magic);
        n = V(sub)(t, magic);
        r = V(fnma)(n, V(set)(EXP_LN2_LO), V(fnma)(n, V(set)(EXP_LN2_HI), x));
    }
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
    e.scale = V(exponent)(t, s.bias);
    e.r_scale = V(mul)(r, e.scale);
    return e;
}
