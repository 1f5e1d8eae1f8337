/* Sums and dot products in the vocabulary of one compute type.
 *
 * Sums, float:  e_j goes to lane j mod 16, in order of j.  A lane starts at 2^61, which is more than any element, so
 *               that hi + e and its rounding error take three additions (Dekker 1971); the error goes to the lane's
 *               low part.  After every 512 elements both parts are added to sixteen float64 lanes.  Rows of up
 *               to 16 elements go directly to the float64 lanes.  (Adding four elements first, rounded, takes 0.235
 *               instead of 0.284 ns per element, AVX2, and costs 1 ULP: the largest element would be rounded twice.
 *               Adding every element in float64 takes 0.327.)
 * Sums, double: the same with eight lanes that start at 2^501, and one block in place of 512 elements.
 * Small sums:   low parts are plain sums, whose roundings show where they hold most of the sum.  The log family leaves
 *               out the maximum (e' about 2^60; double 2^500), so all of its elements can be that small.  If the sum of
 *               k elements is below k EXP_SMALL_MEAN, the dot product of e' with ones replaces it.
 * Dot products: sixteen lanes j mod 16, then lane l + lane l+8; float: exact float64 products, fused into the sum;
 *               double: products and sums with their errors (Ogita, Rump & Oishi 2005, Dot2).
 * Products:     sums of e' (m - x), whose terms are not negative: four terms of a lane (float: j mod 16, double:
 *               j mod 8) are fused in the compute type, then added in double (double: with the rounding errors).
 * Eight lanes are added as ((0+4) + (2+6)) + ((1+5) + (3+7)).
 * fold, dot_one and pair_of do the same for W rows side by side, a lane being a vector of one lane of each row.
 * NaN in an element makes the total NaN.  Measured error: that of the kernels (forward.inc.h, vjp.inc.h).
 */
#ifndef V
#error "sum.inc.h needs V(name)"
#endif

enum { V(EIGHT) = 8 / v64_W, V(SIXTEEN) = 16 / V(W) };

INLINE v64_t V(eight_added)(const v64_t *a) {
    return v64_add(v64_add(v64_add(a[0], a[4]), v64_add(a[2], a[6])),
                   v64_add(v64_add(a[1], a[5]), v64_add(a[3], a[7])));
}

#if EXP_MANTISSA == 23
enum { V(PARTS) = v32_W / v64_W, V(LANES) = 16, V(CYCLE) = 16 / V(W) };
typedef struct V(sum) {
    V(t) hi[V(CYCLE)], lo[V(CYCLE)];
    v64_t lane[2 * V(EIGHT)];
} V(sum);

INLINE void V(sum_restart)(V(sum) *s) {
    for (int i = 0; i < V(CYCLE); i++) {
        s->hi[i] = V(set)(EXP_SUM_START);
        s->lo[i] = V(zero)();
    }
}
INLINE void V(sum_zero)(V(sum) *s) {
    V(sum_restart)(s);
    for (int i = 0; i < 2 * V(EIGHT); i++) s->lane[i] = v64_zero();
}
INLINE void V(sum_one)(V(t) *hi, V(t) *lo, V(t) e) {
    V(t) sum = V(add)(*hi, e);
    *lo = V(add)(*lo, V(sub)(e, V(sub)(sum, *hi)));
    *hi = sum;
}
/* i: index of the vector in the row, modulo V(CYCLE) */
INLINE void V(sum_add)(V(sum) *s, size_t i, V(t) e) { V(sum_one)(&s->hi[i], &s->lo[i], e); }
INLINE void V(sum_wide)(v64_t *lane, V(t) hi, V(t) lo) {
    v64_t a[V(PARTS)], b[V(PARTS)];
    v32_widen(V(sub)(hi, V(set)(EXP_SUM_START)), a);
    v32_widen(lo, b);
    for (int p = 0; p < V(PARTS); p++) lane[p] = v64_add(v64_add(lane[p], a[p]), b[p]);
}
INLINE void V(sum_flush)(V(sum) *s) {
    for (int i = 0; i < V(CYCLE); i++) V(sum_wide)(&s->lane[i * V(PARTS)], s->hi[i], s->lo[i]);
    V(sum_restart)(s);
}
/* A row of up to 16 elements, padded with 0. */
INLINE void V(sum_sixteen)(V(sum) *s, const V(t) *e) {
    UNROLL
    for (int i = 0; i < V(SIXTEEN); i++) v32_widen(e[i], &s->lane[i * V(PARTS)]);
}
INLINE void V(sum_eight)(const V(sum) *s, v64_t *eight) {
    for (int i = 0; i < V(EIGHT); i++) eight[i] = v64_add(s->lane[i], s->lane[i + V(EIGHT)]);
}
/* sum_eight for up to CSM_FLUSH elements, added since V(sum_restart). */
INLINE void V(sum_eight_of_part)(V(sum) *s, v64_t *eight) {
    for (int i = 0; i < 2 * V(EIGHT); i++) s->lane[i] = v64_zero();
    V(sum_flush)(s);
    V(sum_eight)(s, eight);
}
INLINE void V(sum_total)(const V(sum) *s, double *hi, double *lo) {
    v64_t eight[V(EIGHT)];
    V(sum_eight)(s, eight);
    *hi = v64_tree(eight);
    *lo = 0;
}

typedef V(sum) V(products); /* hi: four terms; its float64 lanes */
INLINE void V(products_zero)(V(products) *s) {
    for (int i = 0; i < V(CYCLE); i++) s->hi[i] = V(zero)();
    for (int i = 0; i < 2 * V(EIGHT); i++) s->lane[i] = v64_zero();
}
INLINE void V(products_flush)(V(products) *s) {
    UNROLL
    for (int i = 0; i < V(CYCLE); i++) {
        v64_t wide[V(PARTS)];
        v32_widen(s->hi[i], wide);
        UNROLL
        for (int p = 0; p < V(PARTS); p++) s->lane[i * V(PARTS) + p] = v64_add(s->lane[i * V(PARTS) + p], wide[p]);
        s->hi[i] = V(zero)();
    }
}
INLINE double V(products_total)(const V(products) *s) {
    double hi, lo;
    V(sum_total)(s, &hi, &lo);
    return hi;
}

typedef V(sum) V(dot); /* its float64 lanes */
INLINE void V(dot_zero)(V(dot) *s) { V(sum_zero)(s); }
INLINE void V(dot_one)(v64_t *hi, v64_t *lo, V(t) a, V(t) b) {
    v64_t x[V(PARTS)], y[V(PARTS)];
    (void)lo;
    v32_widen(a, x);
    v32_widen(b, y);
    UNROLL
    for (int p = 0; p < V(PARTS); p++) hi[p] = v64_fma(x[p], y[p], hi[p]);
}
INLINE void V(dot_add)(V(dot) *s, int i, V(t) a, V(t) b) { V(dot_one)(&s->lane[i * V(PARTS)], NULL, a, b); }
INLINE void V(dot_total)(const V(dot) *s, double *hi, double *lo) { V(sum_total)(s, hi, lo); }
/* Adds lanes l and l + 8 of a vector of rows. */
INLINE void V(dot_halves)(v64_t first, v64_t first_low, v64_t second, v64_t second_low, v64_t *sum, v64_t *low) {
    (void)first_low;
    (void)second_low;
    *sum = v64_add(first, second);
    *low = v64_zero();
}
/* Adds the eight lanes of a vector of rows (double: with their rounding errors, as in pair_total). */
INLINE void V(fold)(const v64_t *lane, const v64_t *rest, v64_t *hi, v64_t *lo) {
    (void)rest;
    *hi = V(eight_added)(lane);
    *lo = v64_zero();
}
/* csm_combine_pair for one block. */
INLINE void V(pair_of)(v64_t *hi, v64_t lo, V(t) *high, V(t) *low) {
    v64_t rest[V(PARTS)];
    (void)lo; /* 0 */
    for (int p = 0; p < V(PARTS); p++) hi[p] = v64_add(v64_zero(), hi[p]); /* never -0 */
    *high = V(narrow)(hi);
    v32_widen(*high, rest);
    for (int p = 0; p < V(PARTS); p++) rest[p] = v64_sub(hi[p], rest[p]);
    *low = V(keep)(V(eq)(V(sub)(*high, *high), V(zero)()), V(narrow)(rest));
}
#else
enum { V(PARTS) = 1, V(LANES) = 8, V(CYCLE) = 8 / V(W) };
typedef struct V(sum) {
    v64_t hi[V(EIGHT)], lo[V(EIGHT)];
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
INLINE void V(sum_one)(v64_t *hi, v64_t *lo, v64_t e) {
    v64_t sum = v64_add(*hi, e);
    *lo = v64_add(*lo, v64_sub(e, v64_sub(sum, *hi)));
    *hi = sum;
}
INLINE void V(sum_zero)(V(sum) *s) {
    for (int i = 0; i < V(EIGHT); i++) {
        s->hi[i] = v64_set(EXP_SUM_START);
        s->lo[i] = v64_zero();
    }
}
INLINE void V(sum_add)(V(sum) *s, size_t i, V(t) e) { V(sum_one)(&s->hi[i], &s->lo[i], e); }
INLINE void V(sum_flush)(V(sum) *s) { (void)s; }
INLINE void V(sum_sixteen)(V(sum) *s, const V(t) *e) {
    V(sum_zero)(s);
    UNROLL
    for (int i = 0; i < V(SIXTEEN); i++) V(sum_add)(s, (size_t)i % V(CYCLE), e[i]);
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
    for (int i = 0; i < V(EIGHT); i++) {
        v64_store_f64(a + i * v64_W, v64_sub(s->hi[i], v64_set(EXP_SUM_START)));
        v64_store_f64(b + i * v64_W, s->lo[i]);
    }
    V(pair_total)(a, b, hi, lo);
}

typedef struct V(products) {
    v64_t hi[V(CYCLE)], lane[V(EIGHT)], low[V(EIGHT)]; /* hi: four terms */
} V(products);
INLINE void V(products_zero)(V(products) *s) {
    for (int i = 0; i < V(EIGHT); i++) s->hi[i] = s->lane[i] = s->low[i] = v64_zero();
}
INLINE void V(products_flush)(V(products) *s) {
    UNROLL
    for (int i = 0; i < V(CYCLE); i++) {
        V(accumulate)(&s->lane[i], &s->low[i], s->hi[i]);
        s->hi[i] = v64_zero();
    }
}
INLINE double V(products_total)(const V(products) *s) {
    double a[8], b[8], hi, lo;
    for (int i = 0; i < V(EIGHT); i++) {
        v64_store_f64(a + i * v64_W, s->lane[i]);
        v64_store_f64(b + i * v64_W, s->low[i]);
    }
    V(pair_total)(a, b, &hi, &lo);
    return hi + lo;
}

typedef struct V(dot) {
    v64_t hi[2 * V(EIGHT)], lo[2 * V(EIGHT)];
} V(dot);
INLINE void V(dot_zero)(V(dot) *s) {
    for (int i = 0; i < 2 * V(EIGHT); i++) s->hi[i] = s->lo[i] = v64_zero();
}
INLINE void V(dot_one)(v64_t *hi, v64_t *lo, V(t) a, V(t) b) {
    v64_t p = v64_mul(a, b), minus_error = v64_fnma(a, b, p);
    *lo = v64_sub(*lo, minus_error);
    V(accumulate)(hi, lo, p);
}
INLINE void V(dot_add)(V(dot) *s, int i, V(t) a, V(t) b) { V(dot_one)(&s->hi[i], &s->lo[i], a, b); }
INLINE void V(dot_total)(const V(dot) *s, double *hi, double *lo) {
    double a[16], b[16];
    for (int i = 0; i < 2 * V(EIGHT); i++) {
        v64_store_f64(a + i * v64_W, s->hi[i]);
        v64_store_f64(b + i * v64_W, s->lo[i]);
    }
    for (int i = 0; i < 8; i++) {
        b[i] += b[i + 8];
        csm_two_sum(&a[i], &b[i], a[i + 8]);
    }
    V(pair_total)(a, b, hi, lo);
}
INLINE void V(dot_halves)(v64_t first, v64_t first_low, v64_t second, v64_t second_low, v64_t *sum, v64_t *low) {
    *low = v64_add(first_low, second_low);
    *sum = first;
    V(accumulate)(sum, low, second);
}
INLINE void V(fold)(v64_t *lane, const v64_t *rest, v64_t *hi, v64_t *lo) {
    v64_t tail = V(eight_added)(rest);
    for (int i = 0; i < 4; i++) V(accumulate)(&lane[i], &tail, lane[i + 4]);
    V(accumulate)(&lane[0], &tail, lane[2]);
    V(accumulate)(&lane[1], &tail, lane[3]);
    V(accumulate)(&lane[0], &tail, lane[1]);
    *hi = lane[0];
    *lo = tail;
}
/* csm_combine_pair for one block. */
INLINE void V(pair_of)(const v64_t *hi, v64_t lo, V(t) *high, V(t) *low) {
    v64_t sum = v64_add(v64_zero(), *hi); /* never -0 */
    v64_t rest = v64_keep(v64_eq(v64_sub(sum, sum), v64_zero()), lo);
    rest = v64_keep(v64_eq(v64_sub(rest, rest), v64_zero()), rest);
    *high = v64_add(sum, rest);
    *low = v64_keep(v64_eq(v64_sub(*high, *high), v64_zero()), v64_add(v64_sub(sum, *high), rest));
}
#endif

/* The sum of e' (m - x) over a row, with the constants of the distances. */
enum { V(PRODUCTS) = 4 * V(CYCLE) }; /* vectors between two flushes */
typedef struct V(distances) {
    V(t) max, lowest, scale; /* scale: a power of two, csm_distance_scale */
    V(products) sum;
} V(distances);
INLINE V(distances) V(distances_from)(double ref, V(t) lowest, double scale) {
    V(distances) d;
    d.max = V(set)(ref);
    d.lowest = lowest;
    d.scale = V(set)(scale);
    V(products_zero)(&d.sum);
    return d;
}
INLINE V(t) V(distance)(const V(distances) *d, V(t) x, const int tempered) {
    const V(t) z = V(sub)(d->max, V(max)(d->lowest, x)); /* below the lowest e' is 0 */
    return tempered ? V(mul)(z, d->scale) : z;
}
/* Adds e' times a distance to the lanes of the vector number i of a row. */
INLINE void V(distances_add)(V(distances) *d, size_t i, V(t) e, V(t) distance) {
    d->sum.hi[i % V(CYCLE)] = V(fma)(e, distance, d->sum.hi[i % V(CYCLE)]);
    if ((i + 1) % V(PRODUCTS) == 0) V(products_flush)(&d->sum);
}

/* Whether a sum of k elements without the maxima is a small sum (see above). */
INLINE int V(is_small_sum)(double sum, size_t k) { return sum < (double)k * EXP_SMALL_MEAN && sum > 0; }
/* 0 in place of e' of a maximum, which is 2^B e^r, |r| <= ln 2 / 2; each other term of a small sum is far below. */
INLINE V(t) V(small_term)(V(t) e) { return V(drop)(V(ge)(e, V(set)(csm_pow2(EXP_BIAS - 2))), e); }
