/* y = c tanh(x / c) and its derivative in the vocabulary of one compute type, for groups of vectors.
 *
 *   |x / c| <= 1     y = x + x w, slope = 1 - z (1 + w)^2;  z = (x / c)^2, w = z P(z)
 *   beyond           t = exp(-2 |x| / c), r = 1 / (1 + t), q = 2 t r:  |y| = c - c q, slope = 2 q r
 *   -inf, +inf, NaN  y = x, slope = 1
 *
 * P interpolates (tanh(u) / u - 1) / u^2 at Chebyshev's nodes (float: 2^-25.3 of tanh, double: 2^-53.7).  No form
 * subtracts near numbers: 1 - tanh^2 would lose the slope's digits where tanh is near 1, and t keeps them.  The second
 * form is computed only for groups with such an element; then elements choose, so that bits do not depend on groups.
 * Slopes below the normal numbers are rounded as often as t is multiplied, and are the driver's matter where a factor
 * could bring them back.  Measured error (tests/ops/test_softcap.py): y 1.25 ULP, its product with the slope 6.55.
 */
#ifndef V
#error "tanh.inc.h needs V(name)"
#endif

#define EACH \
    UNROLL   \
    for (int v = 0; v < count; v++)
/* Replaces y and slope where z is beyond the polynomial.  Returns the largest finite |x| of these, or `far`. */
INLINE V(t)
    V(cap_beyond)(const int count, const V(t) *x, const V(t) *z, V(t) *y, V(t) *slope, V(t) far, const csm_softcap *c) {
    const V(shift) s = V(shift_by)(V(set)(EXP_EXPONENT_BIAS + EXP_BIAS), &c->half, 1);
    const V(t) cap = V(set)(c->cap), one = V(set)(1), scale = V(set)(EXP_UNBIAS);
    V(t) a[V(SIDE)], t[V(SIDE)], r[V(SIDE)], q[V(SIDE)];
    EACH a[v] = V(max)(x[v], V(sub)(V(zero)(), x[v]));
    EACH t[v] = V(sub)(V(zero)(), a[v]);
    V(exp_values)(count, t, s, 1);
    EACH t[v] = V(mul)(t[v], scale);
    EACH r[v] = V(div)(one, V(add)(one, t[v]));
    EACH q[v] = V(mul)(V(add)(t[v], t[v]), r[v]);
    EACH {
        const V(mask) beyond = V(not_le)(z[v], one), finite = V(ordered)(V(sub)(x[v], x[v]));
        const V(t) value = V(fnma)(cap, q[v], cap), steep = V(mul)(q[v], V(add)(r[v], r[v]));
        const V(t) signed_value = V(select)(V(ge)(x[v], V(zero)()), value, V(sub)(V(zero)(), value));
        y[v] = V(select)(beyond, V(select)(finite, signed_value, x[v]), y[v]);
        slope[v] = V(select)(beyond, V(select)(finite, steep, one), slope[v]);
        far = V(max)(V(keep)(finite, a[v]), far);
    }
    return far;
}
INLINE V(t) V(cap_group)(const int count, const V(t) *x, V(t) *y, V(t) *slope, const int with_slope, V(t) far,
                         const csm_softcap *c) {
    const V(t) per_cap = V(set)(c->per_cap), one = V(set)(1);
    V(t) z[V(SIDE)], w[V(SIDE)], p[V(SIDE)];
    unsigned beyond = 0;
    EACH z[v] = V(mul)(x[v], per_cap);
    EACH z[v] = V(mul)(z[v], z[v]);
#if EXP_MANTISSA == 23
    EACH w[v] = V(fma)(V(set)(-0x1.b92196p-12), z[v], V(set)(0x1.490d0ap-9));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.0d5150p-7));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.62e11cp-6));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.b9d574p-5));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.110ffep-3));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.555554p-2));
#else
    EACH w[v] = V(fma)(V(set)(-0x1.3e4e5b56742f9p-24), z[v], V(set)(0x1.8c95e67948caap-21));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.f06b42ce76685p-19));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.b07f4e4c6db59p-17));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.34ad69ec82d78p-15));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.902b5522e3175p-14));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.f412b74eb8ebap-13));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.353a84f50cebap-11));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.7d9ff00529386p-10));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.d6d389a29500ap-9));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.226e337c1456bp-7));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.664f4873514e1p-6));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.ba1ba1b9d921ep-5));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(0x1.1111111110d85p-3));
    EACH w[v] = V(fma)(w[v], z[v], V(set)(-0x1.5555555555554p-2));
#endif
    EACH w[v] = V(mul)(w[v], z[v]);
    EACH y[v] = V(fma)(x[v], w[v], x[v]);
    EACH beyond |= V(bits)(V(not_le)(z[v], one));
    EACH p[v] = V(add)(w[v], one);
    if (with_slope) {
        EACH p[v] = V(mul)(p[v], p[v]);
        EACH slope[v] = V(fnma)(p[v], z[v], one);
    }
    return beyond ? V(cap_beyond)(count, x, z, y, slope, far, c) : far;
}
#undef EACH
