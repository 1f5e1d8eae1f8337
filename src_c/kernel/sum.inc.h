/* The summation trees in the vocabulary of one compute type (see "Sums" in CONTRIBUTING.md).
 *
 * A group is 128 elements; lane l (0 ... 31) of it is t_l = (e_l + e_{l+32}) + (e_{l+64} + e_{l+96}), missing
 * elements +0.
 *   float:  t goes to eight float64 lanes, l mod 8, in order of l.
 *   double: every e_j goes to one of eight lanes, j mod 8 (in a group: l, l+32, l+64, l+96, then l+8, ...).  A lane
 *           starts at 2^511, more than a block can add to it, so that hi + e and what its rounding leaves over are
 *           found with three additions (Dekker 1971); the rest goes to the lane's low part.  Nothing is lost.
 * The eight lanes are added as ((0+4) + (2+6)) + ((1+5) + (3+7)).
 * Dot products: sixteen lanes j mod 16; float: exact float64 products, fused into the sum; double: products and
 * sums with their errors (Ogita, Rump & Oishi 2005, Dot2).
 */
#ifndef V
#error "sum.inc.h needs V(name)"
#endif

enum { V(PARTIALS) = 32 / V(W), V(SIXTEEN) = 16 / V(W) };

#if EXP_MANTISSA == 23
enum { V(WIDE) = v64_W < 8 ? 8 / v64_W : 1, V(PARTS) = v32_W / v64_W };
typedef struct V(sum) {
    v64_t lane[V(WIDE)];
} V(sum);

INLINE void V(sum_zero)(V(sum) *s) {
    for (int i = 0; i < V(WIDE); i++) s->lane[i] = v64_zero();
}
/* t_l of partial sum i of a group */
INLINE V(t) V(sum_four)(V(sum) *s, int i, V(t) a, V(t) b, V(t) c, V(t) d) {
    (void)s;
    (void)i;
    return V(add)(V(add)(a, b), V(add)(c, d));
}
INLINE void V(sum_group)(V(sum) *s, const V(t) *t) {
    v64_t wide[V(PARTS)];
    UNROLL
    for (int i = 0; i < V(PARTIALS); i++) {
        v32_widen(t[i], wide);
        UNROLL
        for (int p = 0; p < V(PARTS); p++) {
            int at = (i * V(PARTS) + p) % V(WIDE);
            s->lane[at] = v64_add(s->lane[at], wide[p]);
        }
    }
}
/* The same for a row of at most 16: what is missing would only add zeros. */
INLINE void V(sum_sixteen)(V(sum) *s, const V(t) *e) {
    v64_t wide[V(PARTS)];
    UNROLL
    for (int i = 0; i < V(SIXTEEN); i++) {
        v32_widen(e[i], wide);
        UNROLL
        for (int p = 0; p < V(PARTS); p++) {
            int at = (i * V(PARTS) + p) % V(WIDE);
            int first = (i * V(PARTS) + p) < V(WIDE);
            s->lane[at] = first ? wide[p] : v64_add(s->lane[at], wide[p]);
        }
    }
}
INLINE void V(sum_total)(const V(sum) *s, double *hi, double *lo) {
    *hi = v64_tree(s->lane);
    *lo = 0;
}

enum { V(DOT_LANES) = 16 / v64_W };
typedef struct V(dot) {
    v64_t lane[V(DOT_LANES)];
} V(dot);
INLINE void V(dot_zero)(V(dot) *s) {
    for (int i = 0; i < V(DOT_LANES); i++) s->lane[i] = v64_zero();
}
/* i: which vector of the sixteen elements */
INLINE void V(dot_add)(V(dot) *s, int i, V(t) a, V(t) b) {
    v64_t x[V(PARTS)], y[V(PARTS)];
    v32_widen(a, x);
    v32_widen(b, y);
    UNROLL
    for (int p = 0; p < V(PARTS); p++) s->lane[i * V(PARTS) + p] = v64_fma(x[p], y[p], s->lane[i * V(PARTS) + p]);
}
INLINE void V(dot_total)(const V(dot) *s, double *hi, double *lo) {
    v64_t a[V(WIDE)];
    for (int i = 0; i < V(WIDE); i++) a[i] = v64_add(s->lane[i], s->lane[i + V(WIDE)]);
    *hi = v64_tree(a);
    *lo = 0;
}
#else
enum { V(WIDE) = 8 / v64_W };
typedef struct V(sum) {
    v64_t hi[V(WIDE)], lo[V(WIDE)];
} V(sum);

INLINE v64_t V(two_sum)(v64_t a, v64_t b, v64_t *error) {
    v64_t s = v64_add(a, b), v = v64_sub(s, a);
    *error = v64_add(v64_sub(a, v64_sub(s, v)), v64_sub(b, v));
    return s;
}
INLINE void V(accumulate)(v64_t *hi, v64_t *lo, v64_t x) {
    v64_t error;
    *hi = V(two_sum)(*hi, x, &error);
    *lo = v64_add(*lo, error);
}
INLINE void V(sum_zero)(V(sum) *s) {
    for (int i = 0; i < V(WIDE); i++) {
        s->hi[i] = v64_set(EXP_SUM_START);
        s->lo[i] = v64_zero();
    }
}
INLINE void V(sum_one)(v64_t *hi, v64_t *lo, v64_t e) {
    v64_t sum = v64_add(*hi, e);
    *lo = v64_add(*lo, v64_sub(e, v64_sub(sum, *hi)));
    *hi = sum;
}
INLINE V(t) V(sum_four)(V(sum) *s, int i, V(t) a, V(t) b, V(t) c, V(t) d) {
    v64_t *hi = &s->hi[i % V(WIDE)], *lo = &s->lo[i % V(WIDE)];
    V(sum_one)(hi, lo, a);
    V(sum_one)(hi, lo, b);
    V(sum_one)(hi, lo, c);
    V(sum_one)(hi, lo, d);
    return a;
}
INLINE void V(sum_group)(V(sum) *s, const V(t) *t) {
    (void)s;
    (void)t; /* sum_four has added them */
}
INLINE void V(sum_sixteen)(V(sum) *s, const V(t) *e) {
    V(sum_zero)(s);
    UNROLL
    for (int i = 0; i < V(SIXTEEN); i++) V(sum_one)(&s->hi[i % V(WIDE)], &s->lo[i % V(WIDE)], e[i]);
}
INLINE void V(pair_total)(double hi[8], const double low[8], double *total, double *rest) {
    double a = ((low[0] + low[4]) + (low[2] + low[6])) + ((low[1] + low[5]) + (low[3] + low[7]));
    for (int i = 0; i < 4; i++) csm_two_sum(&hi[i], &a, hi[i + 4]);
    csm_two_sum(&hi[0], &a, hi[2]);
    csm_two_sum(&hi[1], &a, hi[3]);
    csm_two_sum(&hi[0], &a, hi[1]);
    *total = hi[0];
    *rest = a;
}
INLINE void V(sum_total)(const V(sum) *s, double *hi, double *lo) {
    double a[8], b[8];
    for (int i = 0; i < V(WIDE); i++) {
        v64_store_f64(a + i * v64_W, v64_sub(s->hi[i], v64_set(EXP_SUM_START)));
        v64_store_f64(b + i * v64_W, s->lo[i]);
    }
    V(pair_total)(a, b, hi, lo);
}

enum { V(DOT_LANES) = 16 / v64_W };
typedef struct V(dot) {
    v64_t hi[V(DOT_LANES)], lo[V(DOT_LANES)];
} V(dot);
INLINE void V(dot_zero)(V(dot) *s) {
    for (int i = 0; i < V(DOT_LANES); i++) s->hi[i] = s->lo[i] = v64_zero();
}
INLINE void V(dot_add)(V(dot) *s, int i, V(t) a, V(t) b) {
    v64_t p = v64_mul(a, b), minus_error = v64_fnma(a, b, p);
    s->lo[i] = v64_sub(s->lo[i], minus_error);
    V(accumulate)(&s->hi[i], &s->lo[i], p);
}
INLINE void V(dot_total)(const V(dot) *s, double *hi, double *lo) {
    double a[16], b[16];
    for (int i = 0; i < V(DOT_LANES); i++) {
        v64_store_f64(a + i * v64_W, s->hi[i]);
        v64_store_f64(b + i * v64_W, s->lo[i]);
    }
    for (int i = 0; i < 8; i++) {
        b[i] += b[i + 8];
        csm_two_sum(&a[i], &b[i], a[i + 8]);
    }
    V(pair_total)(a, b, hi, lo);
}
#endif
