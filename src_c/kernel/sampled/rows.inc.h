/* Products with rows that are gathered by number, one storage type T.
 *
 *   dots:  out_j = sum_k x_k w_{ids_j, k}
 *   sums:  y_k = y_k + sum_j g_j w_{ids_j, k}
 *   add:   w_k = w_k + scale v_k
 *
 * Accumulators: of the compute type REAL.  A dot has 16 lanes, k mod 16, each a chain of fma in the order of k; the
 * lanes are added in a fixed tree, i + 8, i + 4, i + 2, i + 1.  A sum is one chain of fma for each element, in the
 * order of j.  `add` rounds the product and the sum.  So every instruction set has the same bits, and a result does not
 * depend on how rows are shared out.
 * Passes: each gathered row is read once, in vectors; the row AHEAD of the current one is prefetched, because gathered
 * rows lie at random places.
 * NaN and infinities follow the arithmetic; NaN is stored as the canonical one.
 * Error, against long double (tests/ops/test_sampled.py): a dot at most 0.5 ULP + (D / 16 + 5) 2^-24 sum |x_k w_k|.
 */
#ifndef FN
#error "rows.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

#ifndef CSM_ROW_AHEAD
#define CSM_ROW_AHEAD
enum { ROW_AHEAD = 8, LANES = 16, HELD_VECTORS = 8 };
/* Prefetches the first kilobyte of a row. */
INLINE void csm_prefetch_row(const char *row, size_t bytes) {
    for (size_t at = 0; at < bytes && at < 1024; at += 64) PREFETCH(row + at);
}
#endif

INLINE REAL FN(row_dot)(const T *x, const T *w, size_t d) {
    enum { VECTORS = LANES / V(W) };
    V(t) sum[VECTORS];
    REAL lane[LANES];
    size_t k = 0;
    for (int v = 0; v < VECTORS; v++) sum[v] = V(zero)();
    for (; k + LANES <= d; k += LANES) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) sum[v] = V(fma)(LOAD(x + k + v * V(W)), LOAD(w + k + v * V(W)), sum[v]);
    }
    if (k < d) { /* lanes without an element get fma(0, 0, sum) */
        T rest[2][LANES];
        for (size_t j = 0; j < LANES; j++) rest[0][j] = k + j < d ? x[k + j] : 0, rest[1][j] = k + j < d ? w[k + j] : 0;
        for (int v = 0; v < VECTORS; v++) sum[v] = V(fma)(LOAD(rest[0] + v * V(W)), LOAD(rest[1] + v * V(W)), sum[v]);
    }
    CSM_FOLD(sum, lane);
    return lane[0] == lane[0] ? lane[0] : (REAL)CSM_NAN;
}
static void FN(row_dots)(const void *x, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                         void *to) {
    REAL *out = to;
    for (size_t j = 0; j < m; j++) {
        if (j + ROW_AHEAD < m) csm_prefetch_row(rows + ids[j + ROW_AHEAD] * step, d * sizeof(T));
        out[j] = FN(row_dot)(x, (const T *)(const void *)(rows + ids[j] * step), d);
    }
}

/* Elements [k, k + vectors W) of the sums, which stay in registers. */
INLINE void FN(sum_vectors)(const REAL *g, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                            REAL *y, size_t k, const int vectors) {
    V(t) sum[HELD_VECTORS];
    UNROLL
    for (int v = 0; v < vectors; v++) sum[v] = V(LOAD_REAL)(y + k + v * V(W));
    for (size_t j = 0; j < m; j++) {
        const T *w = (const T *)(const void *)(rows + ids[j] * step) + k;
        const V(t) factor = V(set)((double)g[j]);
        if (k == 0 && j + ROW_AHEAD < m) csm_prefetch_row(rows + ids[j + ROW_AHEAD] * step, d * sizeof(T));
        UNROLL
        for (int v = 0; v < vectors; v++) sum[v] = V(fma)(factor, LOAD(w + v * V(W)), sum[v]);
    }
    UNROLL
    for (int v = 0; v < vectors; v++)
        V(STORE_REAL)(y + k + v * V(W), V(select)(V(ordered)(sum[v]), sum[v], V(set)(CSM_NAN)));
}
/* The last elements, fewer than a vector. */
INLINE void FN(sum_rest)(const REAL *g, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                         REAL *y, size_t k) {
    V(t) sum = V(LOAD_PART_REAL)(y + k, d - k, V(zero)());
    for (size_t j = 0; j < m; j++) {
        const T *w = (const T *)(const void *)(rows + ids[j] * step) + k;
        if (k == 0 && j + ROW_AHEAD < m) csm_prefetch_row(rows + ids[j + ROW_AHEAD] * step, d * sizeof(T));
        sum = V(fma)(V(set)((double)g[j]), LOAD_PART(w, d - k, V(zero)()), sum);
    }
    V(STORE_PART_REAL)(y + k, d - k, V(select)(V(ordered)(sum), sum, V(set)(CSM_NAN)));
}
static void FN(row_sums)(const void *g, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                         void *y) {
    size_t k = 0;
    if (m == 0) return;
    for (; k + HELD_VECTORS * V(W) <= d; k += HELD_VECTORS * V(W))
        FN(sum_vectors)(g, rows, step, ids, m, d, y, k, HELD_VECTORS);
    for (; k + HELD_VECTORS / 2 * V(W) <= d; k += HELD_VECTORS / 2 * V(W))
        FN(sum_vectors)(g, rows, step, ids, m, d, y, k, HELD_VECTORS / 2);
    for (; k + V(W) <= d; k += V(W)) FN(sum_vectors)(g, rows, step, ids, m, d, y, k, 1);
    if (k < d) FN(sum_rest)(g, rows, step, ids, m, d, y, k);
}

static void FN(row_add)(const void *from, double scale, size_t d, void *to) {
    const T *v = from;
    T *row = to;
    const V(t) factor = V(set)(scale);
    for (size_t k = 0; k < d; k += V(W)) {
        const size_t left = d - k;
        const V(t) a = left >= V(W) ? LOAD(v + k) : LOAD_PART(v + k, left, V(zero)());
        const V(t) b = left >= V(W) ? LOAD(row + k) : LOAD_PART(row + k, left, V(zero)());
        V(t) s = V(add)(b, V(mul)(factor, a));
        s = V(select)(V(ordered)(s), s, V(set)(CSM_NAN));
        if (left >= V(W)) STORE(row + k, s);
        else STORE_PART(row + k, left, s);
    }
}
