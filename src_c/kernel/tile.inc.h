/* softmax, log_softmax and logsumexp along a strided axis, rows side by side (any axis but the last of a C array).
 *
 * One vector lane is one row, so nothing is shuffled.  A tile (all classes of `width` rows) is copied to scratch
 * while the maxima are found: memory is read once in long runs, and power-of-two strides, which would fall into
 * one cache set, are gone.  Then, per vector of rows, e' and the sums in the order of sum.inc.h: residue by
 * residue (l mod 8), each adding its partial sums in the order in which the row kernel adds them.  Last, the
 * result is written in long runs.
 * NaN, sums, accuracy: as forward.inc.h, bit for bit.
 */
#ifndef FN
#error "tile.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* e' of class j for one vector of rows; in the log family 0 where it is the maximum, which is counted. */
INLINE V(t) FN(tile_term)(REAL *z, size_t j, size_t n, size_t pitch, V(t) m, V(shift) s, const int tempered,
                          const int exact, V(t) *count) {
    if (j >= n) return V(zero)();
    V(t) x = V(LOAD_REAL)(z + j * pitch);
    V(t) e = V(exp_value)(x, s, tempered);
    if (exact) {
        V(mask) is_max = V(eq)(x, m);
        *count = V(add)(*count, V(keep)(is_max, V(set)(1)));
        return V(drop)(is_max, e);
    }
    V(STORE_REAL)(z + j * pitch, e);
    return e;
}

/* Sums of one vector of rows: hi and lo, W doubles each. */
INLINE void FN(tile_sum)(REAL *z, size_t n, size_t pitch, V(t) m, V(shift) s, const int tempered,
                         const int exact, V(t) *count, double *hi, double *lo) {
    enum { N64 = V(W) / v64_W };
    v64_t sum[8][N64], low[8][N64];
    for (int l = 0; l < 8; l++) {
        for (int p = 0; p < N64; p++) sum[l][p] = low[l][p] = v64_zero();
        for (size_t i = (size_t)l; i < n; i += CSM_GROUP) {
#if EXP_MANTISSA == 52
            V(t) partial[4];
#endif
            for (int q = 0; q < 4; q++) {
                size_t j = i + 8 * (size_t)q;
                V(t) e0 = FN(tile_term)(z, j, n, pitch, m, s, tempered, exact, count);
                V(t) e1 = FN(tile_term)(z, j + 32, n, pitch, m, s, tempered, exact, count);
                V(t) e2 = FN(tile_term)(z, j + 64, n, pitch, m, s, tempered, exact, count);
                V(t) e3 = FN(tile_term)(z, j + 96, n, pitch, m, s, tempered, exact, count);
#if EXP_MANTISSA == 23
                v64_t wide[N64];
                v32_widen(V(add)(V(add)(e0, e1), V(add)(e2, e3)), wide);
                for (int p = 0; p < N64; p++) sum[l][p] = v64_add(sum[l][p], wide[p]);
#else
                partial[q] = V(add_four)(&low[l][0], e0, e1, e2, e3);
#endif
            }
#if EXP_MANTISSA == 52
            V(accumulate)(&sum[l][0], &low[l][0], V(add_four)(&low[l][0], partial[0], partial[1], partial[2], partial[3]));
#endif
        }
    }
    double a[8][V(W)], b[8][V(W)];
    for (int l = 0; l < 8; l++)
        for (int p = 0; p < N64; p++) {
            v64_store_f64(&a[l][p * v64_W], sum[l][p]);
            v64_store_f64(&b[l][p * v64_W], low[l][p]);
        }
    for (int c = 0; c < V(W); c++) {
#if EXP_MANTISSA == 23
        hi[c] = ((a[0][c] + a[4][c]) + (a[2][c] + a[6][c])) + ((a[1][c] + a[5][c]) + (a[3][c] + a[7][c]));
        lo[c] = 0;
#else
        double h[8], r[8];
        for (int l = 0; l < 8; l++) h[l] = a[l][c], r[l] = b[l][c];
        V(pair_total)(h, r, &hi[c], &lo[c]);
#endif
    }
}

INLINE int FN(tile)(const csm_tile_job *job, const int op) {
    const csm_temperature *t = job->temperature;
    const size_t n = job->n, width = job->width, whole = width / V(W) * V(W);
    const size_t lines = (width + 15) / 16, pitch = 16 * (lines | 1); /* an odd number of cache lines */
    const int exact = op != CSM_OP_softmax;
    REAL *z = job->scratch, max[CSM_TILE_WIDTH], factor[CSM_TILE_WIDTH], factor_low[CSM_TILE_WIDTH];
    V(t) low = V(set)(-CSM_INF);
    int has_nan = 0;

    for (size_t c = 0; c < width; c += V(W)) V(STORE_REAL)(max + c, low);
    for (size_t j = 0; j < n; j++) {
        const T *x = (const T *)(job->a + (ptrdiff_t)j * job->a_step);
        REAL *to = z + j * pitch;
        for (size_t c = 0; c < whole; c += V(W)) {
            V(t) v = LOAD(x + c);
            V(STORE_REAL)(to + c, v);
            V(STORE_REAL)(max + c, V(max)(v, V(LOAD_REAL)(max + c)));
        }
        if (whole < width) {
            V(t) v = LOAD_PART(x + whole, width - whole, V(zero)());
            V(STORE_REAL)(to + whole, v);
            V(STORE_REAL)(max + whole, V(max)(v, V(LOAD_REAL)(max + whole)));
        }
    }
    for (size_t c = 0; c < width; c++)
        if (!FN(ordinary)((double)max[c], t)) return 0;

    for (size_t c = 0; c < width; c += V(W)) {
        V(t) m = V(LOAD_REAL)(max + c), count = V(zero)(), n0;
        V(shift) s = V(shift_to)(m, t, 1, &n0);
        double hi[V(W)], lo[V(W)];
        if (t->tempered) FN(tile_sum)(z + c, n, pitch, m, s, 1, exact, &count, hi, lo);
        else FN(tile_sum)(z + c, n, pitch, m, s, 0, exact, &count, hi, lo);
        REAL counts[V(W)], tops[V(W)];
        if (exact) {
            V(STORE_REAL)(tops, V(exp_value)(m, s, 1)); /* r times 1 is r */
            V(STORE_REAL)(counts, count);
        }
        for (size_t i = 0; i < V(W) && c + i < width; i++) {
            csm_block block = {.max = (double)max[c + i], .n = 0, .hi = hi[i], .lo = lo[i]};
            csm_row row;
            if (exact) {
                block.count = (double)counts[i];
                block.top = (double)tops[i];
                csm_combine_log(&block, 1, &row);
                factor[c + i] = (REAL)-row.tail;
                if (op == CSM_OP_logsumexp) FN(logsumexp_pass2)(NULL, NULL, (T *)(void *)job->y + c + i, 1, t, &row, &block);
            } else {
                csm_combine_softmax(&block, 1, EXP_MANTISSA == 23, &row);
                factor[c + i] = (REAL)row.r;
                factor_low[c + i] = (REAL)row.r_low;
            }
            has_nan |= row.is_nan;
        }
    }
    if (op == CSM_OP_logsumexp) return 1;

    V(t) inv_t = V(set)(t->inv_t);
    for (size_t j = 0; j < n; j++) {
        T *y = (T *)(job->y + (ptrdiff_t)j * job->y_step);
        for (size_t c = 0; c < width; c += V(W)) {
            V(t) v = V(LOAD_REAL)(z + j * pitch + c), f = V(LOAD_REAL)(factor + c);
            v = exact ? V(fma)(V(sub)(v, V(LOAD_REAL)(max + c)), inv_t, f)
                      : FN(scaled)(v, f, V(LOAD_REAL)(factor_low + c));
            if (has_nan) v = V(select)(V(ordered)(f), v, V(set)(CSM_NAN));
            if (c < whole) STORE(y + c, v);
            else STORE_PART(y + c, width - c, v);
        }
    }
    return 1;
}
static int FN(softmax_tile)(const csm_tile_job *job) { return FN(tile)(job, CSM_OP_softmax); }
static int FN(log_softmax_tile)(const csm_tile_job *job) { return FN(tile)(job, CSM_OP_log_softmax); }
static int FN(logsumexp_tile)(const csm_tile_job *job) { return FN(tile)(job, CSM_OP_logsumexp); }
