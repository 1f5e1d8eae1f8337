/* y = c tanh(x / c) and its derivative in the vocabulary of one compute type, for groups of vectors.
 *
 *   |x / c| <= 0.95   y = x + x z P(z), slope = 1 - y^2 / c^2;  z = x^2, P of job.h
 *   beyond            t = exp(-2 |x| / c), r = 1 / (1 + t), q = 2 t r:  |y| = c - c q, slope = 2 q r
 *   -inf, +inf, NaN   y = x, slope = 1
 *
 * 1 - y^2 / c^2 would lose the slope's digits where tanh is near 1, and t keeps them.  The second form is computed only
 * for groups with such an element; then elements choose, so that bits do not depend on groups.  Slopes below the normal
 * numbers are rounded as often as t is multiplied, and are the driver's matter where a factor could bring them back.
 * Measured error (tests/ops/test_softcap.py): y 1.5 ULP, its product with the slope 6.5.
 */
#ifndef V
#error "tanh.inc.h needs V(name)"
#endif

#if EXP_MANTISSA == 23
enum { V(CAP_TERMS) = CSM_SOFTCAP_TERMS_F32 };
#else
enum { V(CAP_TERMS) = CSM_SOFTCAP_TERMS_F64 };
#endif
typedef struct V(cap_constants) {
    V(t) terms[V(CAP_TERMS)], largest_square, per_square;
} V(cap_constants);
INLINE V(cap_constants) V(cap_constants_of)(const csm_softcap *c) {
    V(cap_constants) s;
    UNROLL
    for (int i = 0; i < V(CAP_TERMS); i++) s.terms[i] = V(set)(c->terms[i]);
    s.largest_square = V(set)(c->largest_square);
    s.per_square = V(set)(c->per_square);
    return s;
}

#define EACH \
    UNROLL   \
    for (int v = 0; v < count; v++)
/* Replaces y and slope where z is beyond the polynomial.  Returns the largest finite |x| of these, or `far`. */
INLINE V(t) V(cap_beyond)(const int count, const V(t) *x, const V(t) *z, V(t) *y, V(t) *slope, V(t) far,
                          const V(cap_constants) *constants, const csm_softcap *c) {
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
        const V(mask) beyond = V(not_le)(z[v], constants->largest_square), finite = V(ordered)(V(sub)(x[v], x[v]));
        const V(t) value = V(fnma)(cap, q[v], cap), steep = V(mul)(q[v], V(add)(r[v], r[v]));
        const V(t) signed_value = V(select)(V(ge)(x[v], V(zero)()), value, V(sub)(V(zero)(), value));
        y[v] = V(select)(beyond, V(select)(finite, signed_value, x[v]), y[v]);
        slope[v] = V(select)(beyond, V(select)(finite, steep, one), slope[v]);
        far = V(max)(V(keep)(finite, a[v]), far);
    }
    return far;
}
INLINE V(t) V(cap_group)(const int count, const V(t) *x, V(t) *y, V(t) *slope, const int with_slope, V(t) far,
                         const V(cap_constants) *s, const csm_softcap *c) {
    V(t) z[V(SIDE)], w[V(SIDE)];
    unsigned beyond = 0;
    EACH z[v] = V(mul)(x[v], x[v]);
    EACH beyond |= V(bits)(V(not_le)(z[v], s->largest_square));
    EACH w[v] = V(fma)(s->terms[0], z[v], s->terms[1]);
    UNROLL
    for (int i = 2; i < V(CAP_TERMS); i++) EACH w[v] = V(fma)(w[v], z[v], s->terms[i]);
    EACH w[v] = V(mul)(w[v], z[v]);
    EACH y[v] = V(fma)(x[v], w[v], x[v]);
    if (with_slope) {
        EACH w[v] = V(mul)(y[v], y[v]);
        EACH slope[v] = V(fnma)(w[v], s->per_square, V(set)(1));
    }
    return beyond ? V(cap_beyond)(count, x, z, y, slope, far, s, c) : far;
}
#undef EACH
