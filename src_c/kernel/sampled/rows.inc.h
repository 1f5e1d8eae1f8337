/* Products with rows that are gathered by number, one storage type T.
 *
 *   dots:  out_j = sum_k x_k w_{ids_j, k}
 *   sums:  y_k = from_k + sum_j g_j w_{ids_j, k}; from may be y, or NULL: 0
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
enum { ROW_AHEAD = 8, LANES = 16, HELD_VECTORS = 8, DOT_ROWS = 4 };
/* Prefetches the first kilobyte of a row. */
INLINE void csm_prefetch_row(const char *row, size_t bytes) {
    for (size_t at = 0; at < bytes && at < 1024; at += 64) PREFETCH(row + at);
}
#endif

/* Dots of x with `rows` rows at once: the chains of different rows overlap, and x is loaded once. */
INLINE void FN(row_dots_of)(const T *x, const T *const *w, size_t d, REAL *out, const int rows) {
    enum { VECTORS = LANES / V(W) };
    V(t) sum[DOT_ROWS][VECTORS];
    size_t k = 0;
    UNROLL
    for (int r = 0; r < rows; r++) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) sum[r][v] = V(zero)();
    }
    for (; k + LANES <= d; k += LANES) {
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const V(t) a = LOAD(x + k + v * V(W));
            UNROLL
            for (int r = 0; r < rows; r++) sum[r][v] = V(fma)(a, LOAD(w[r] + k + v * V(W)), sum[r][v]);
        }
    }
    if (k < d) { /* lanes without an element get fma(0, 0, sum) */
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const size_t at = k + (size_t)v * V(W), left = at < d ? d - at : 0, part = left < V(W) ? left : V(W);
            const V(t) a = LOAD_PART(x + (left ? at : k), part, V(zero)());
            UNROLL
            for (int r = 0; r < rows; r++)
                sum[r][v] = V(fma)(a, LOAD_PART(w[r] + (left ? at : k), part, V(zero)()), sum[r][v]);
        }
    }
    for (int r = 0; r < rows; r++) {
        REAL lane[LANES];
        CSM_FOLD(sum[r], lane);
        out[r] = lane[0] == lane[0] ? lane[0] : (REAL)CSM_NAN;
    }
}
static void FN(row_dots)(const void *x, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                         void *to) {
    REAL *out = to;
    const T *w[DOT_ROWS];
    size_t j = 0;
    for (; j + DOT_ROWS <= m; j += DOT_ROWS) {
        for (size_t r = 0; r < DOT_ROWS; r++) {
            if (j + r + ROW_AHEAD < m) csm_prefetch_row(rows + ids[j + r + ROW_AHEAD] * step, d * sizeof(T));
            w[r] = (const T *)(const void *)(rows + ids[j + r] * step);
        }
        FN(row_dots_of)(x, w, d, out + j, DOT_ROWS);
    }
    for (size_t r = 0; j + r < m; r++) w[r] = (const T *)(const void *)(rows + ids[j + r] * step);
    if (m - j == 3) FN(row_dots_of)(x, w, d, out + j, 3);
    else if (m - j == 2) FN(row_dots_of)(x, w, d, out + j, 2);
    else if (m - j == 1) FN(row_dots_of)(x, w, d, out + j, 1);
}

/* Elements [k, k + vectors W) of the sums, which stay in registers. */
INLINE void FN(sum_vectors)(const REAL *g, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                            const REAL *from, REAL *y, size_t k, const int vectors) {
    V(t) sum[HELD_VECTORS];
    UNROLL
    for (int v = 0; v < vectors; v++) sum[v] = from ? V(LOAD_REAL)(from + k + v * V(W)) : V(zero)();
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
                         const REAL *from, REAL *y, size_t k) {
    V(t) sum = from ? V(LOAD_PART_REAL)(from + k, d - k, V(zero)()) : V(zero)();
    for (size_t j = 0; j < m; j++) {
        const T *w = (const T *)(const void *)(rows + ids[j] * step) + k;
        if (k == 0 && j + ROW_AHEAD < m) csm_prefetch_row(rows + ids[j + ROW_AHEAD] * step, d * sizeof(T));
        sum = V(fma)(V(set)((double)g[j]), LOAD_PART(w, d - k, V(zero)()), sum);
    }
    V(STORE_PART_REAL)(y + k, d - k, V(select)(V(ordered)(sum), sum, V(set)(CSM_NAN)));
}
static void FN(row_sums)(const void *g, const char *rows, ptrdiff_t step, const int64_t *ids, size_t m, size_t d,
                         const void *from, void *y) {
    size_t k = 0;
    if (m == 0 && from == y) return;
    for (; k + HELD_VECTORS * V(W) <= d; k += HELD_VECTORS * V(W))
        FN(sum_vectors)(g, rows, step, ids, m, d, from, y, k, HELD_VECTORS);
    for (; k + HELD_VECTORS / 2 * V(W) <= d; k += HELD_VECTORS / 2 * V(W))
        FN(sum_vectors)(g, rows, step, ids, m, d, from, y, k, HELD_VECTORS / 2);
    for (; k + HELD_VECTORS / 4 * V(W) <= d; k += HELD_VECTORS / 4 * V(W))
        FN(sum_vectors)(g, rows, step, ids, m, d, from, y, k, HELD_VECTORS / 4);
    for (; k + V(W) <= d; k += V(W)) FN(sum_vectors)(g, rows, step, ids, m, d, from, y, k, 1);
    if (k < d) FN(sum_rest)(g, rows, step, ids, m, d, from, y, k);
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
