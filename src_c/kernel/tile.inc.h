/* softmax, log_softmax and logsumexp along a strided axis, rows side by side (any axis but the last of a C array).
 *
 * One vector lane is one row, so nothing is shuffled.  A tile (all classes of `width` rows) is copied to scratch,
 * vector of rows after vector of rows, while the maxima are found: memory is read once in long runs, and power-of-two
 * strides, which would fall into one cache set, are gone.  Then, per vector of rows, e' and the sums in the order of
 * sum.inc.h.  Last, the result is written in long runs.
 * NaN, sums, accuracy: as forward.inc.h, bit for bit.
 */
#ifndef FN
#error "tile.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* e' of class j for one vector of rows; in the log family 0 where it is the maximum, which is counted. */
INLINE V(t) FN(tile_term)(REAL *z, V(t) m, V(shift) s, const int tempered, const int exact, V(t) *count) {
    V(t) x = V(LOAD_REAL)(z), e = V(exp_value)(x, s, tempered);
    if (exact) return FN(without_max)(e, V(eq)(x, m), count);
    V(STORE_REAL)(z, e);
    return e;
}

/* Adds four e' of one residue (float: their t_l) to a lane, as sum.inc.h has it. */
INLINE void FN(tile_four)(v64_t *sum, v64_t *low, V(t) a, V(t) b, V(t) c, V(t) d) {
#if EXP_MANTISSA == 23
    v64_t wide[V(PARTS)];
    (void)low;
    v32_widen(V(add)(V(add)(a, b), V(add)(c, d)), wide);
    for (int p = 0; p < V(PARTS); p++) sum[p] = v64_add(sum[p], wide[p]);
#else
    V(sum_one)(sum, low, a);
    V(sum_one)(sum, low, b);
    V(sum_one)(sum, low, c);
    V(sum_one)(sum, low, d);
#endif
}

/* Sums of one vector of rows, W of each: hi and lo.  Each of the eight lanes gets what it gets in the row kernel, in
 * the same order; z is walked in four streams, not lane by lane (which left the caches behind: 0.46 against 0.36 ns an
 * element at 1000 classes, AVX-512). */
INLINE void FN(tile_sum)(REAL *z, size_t n, V(t) m, V(shift) s, const int tempered, const int exact, V(t) *count,
                         v64_t *hi, v64_t *lo) {
#if EXP_MANTISSA == 23
    const double START = 0;
#else
    const double START = EXP_SUM_START;
#endif
    enum { N64 = V(W) / v64_W };
    v64_t sum[8][N64], low[8][N64];
    const V(t) none = V(zero)();
    size_t i = 0;
    for (int l = 0; l < 8; l++)
        for (int p = 0; p < N64; p++) {
            sum[l][p] = v64_set(START);
            low[l][p] = v64_zero();
        }
    for (; i + CSM_GROUP <= n; i += CSM_GROUP)
        for (size_t l = 0; l < 32; l++) {
            V(t) e[4];
            UNROLL
            for (size_t h = 0; h < 4; h++) e[h] = FN(tile_term)(z + (i + l + 32 * h) * V(W), m, s, tempered, exact, count);
            FN(tile_four)(sum[l % 8], low[l % 8], e[0], e[1], e[2], e[3]);
        }
    if (i < n) { /* the group that is not whole: 0 where it has no class */
        const size_t left = n - i, quarters = (left + 31) / 32;
        V(t) e[CSM_GROUP];
        for (size_t j = 0; j < left; j++) e[j] = FN(tile_term)(z + (i + j) * V(W), m, s, tempered, exact, count);
        for (size_t j = left; j < 32 * quarters; j++) e[j] = none;
        for (size_t l = 0; l < 32 && l < left; l++)
            FN(tile_four)(sum[l % 8], low[l % 8], e[l], quarters > 1 ? e[l + 32] : none, quarters > 2 ? e[l + 64] : none,
                          quarters > 3 ? e[l + 96] : none);
    }
    for (int l = 0; l < 8; l++)
        for (int p = 0; p < N64; p++) sum[l][p] = v64_sub(sum[l][p], v64_set(START));
#if EXP_MANTISSA == 23
    for (int p = 0; p < N64; p++) {
        hi[p] = v64_add(v64_add(v64_add(sum[0][p], sum[4][p]), v64_add(sum[2][p], sum[6][p])),
                        v64_add(v64_add(sum[1][p], sum[5][p]), v64_add(sum[3][p], sum[7][p])));
        lo[p] = v64_zero();
    }
#else /* as pair_total has it */
    v64_t tail = v64_add(v64_add(v64_add(low[0][0], low[4][0]), v64_add(low[2][0], low[6][0])),
                         v64_add(v64_add(low[1][0], low[5][0]), v64_add(low[3][0], low[7][0])));
    for (int i = 0; i < 4; i++) V(accumulate)(&sum[i][0], &tail, sum[i + 4][0]);
    V(accumulate)(&sum[0][0], &tail, sum[2][0]);
    V(accumulate)(&sum[1][0], &tail, sum[3][0]);
    V(accumulate)(&sum[0][0], &tail, sum[1][0]);
    *hi = sum[0][0];
    *lo = tail;
#endif
}

/* csm_reciprocal for one vector of rows. */
INLINE void FN(tile_reciprocal)(const v64_t *hi, const v64_t *lo, REAL *r, REAL *r_low) {
#if EXP_MANTISSA == 23
    v64_t full[V(PARTS)], back[V(PARTS)];
    for (int p = 0; p < V(PARTS); p++) full[p] = v64_div(v64_set(1), v64_add(hi[p], lo[p]));
    V(t) high = V(narrow)(full);
    v32_widen(high, back);
    for (int p = 0; p < V(PARTS); p++) full[p] = v64_sub(full[p], back[p]);
    V(STORE_REAL)(r, high);
    V(STORE_REAL)(r_low, V(narrow)(full));
#else
    v64_t sum = v64_add(*hi, *lo), full = v64_div(v64_set(1), sum);
    v64_t rest = v64_add(v64_sub(*hi, sum), *lo);
    V(STORE_REAL)(r, full);
    V(STORE_REAL)(r_low, v64_mul(full, v64_sub(v64_fnma(full, sum, v64_set(1)), v64_mul(full, rest))));
#endif
}

INLINE int FN(tile)(const csm_tile_job *job, const int op) {
    const csm_temperature *t = job->temperature;
    const size_t n = job->n, width = job->width, whole = width / V(W) * V(W);
    const size_t plane = (n | 1) * V(W); /* of z: one vector of rows, class after class */
    const int exact = op != CSM_OP_softmax;
    enum { AHEAD = 8 }; /* classes; the hardware does not prefetch across pages: (1000, 4096) axis 0, 0.88 -> 0.66 ns */
    REAL *z = job->scratch, max[CSM_TILE_WIDTH], factor[CSM_TILE_WIDTH], factor_low[CSM_TILE_WIDTH];
    V(t) low = V(set)(-CSM_INF);
    int has_nan = 0;

    for (size_t c = 0; c < width; c += V(W)) V(STORE_REAL)(max + c, low);
    for (size_t j = 0; j < n; j++) {
        const T *x = (const T *)(job->a + (ptrdiff_t)j * job->a_step);
        REAL *to = z + j * V(W);
        for (size_t at = 0; j + AHEAD < n && at < width * sizeof(T); at += 64)
            PREFETCH((const char *)x + AHEAD * job->a_step + (ptrdiff_t)at);
        for (size_t c = 0; c < whole; c += V(W)) {
            V(t) v = LOAD(x + c);
            V(STORE_REAL)(to + c / V(W) * plane, v);
            V(STORE_REAL)(max + c, V(max)(v, V(LOAD_REAL)(max + c)));
        }
        if (whole < width) {
            V(t) v = LOAD_PART(x + whole, width - whole, V(zero)());
            V(STORE_REAL)(to + whole / V(W) * plane, v);
            V(STORE_REAL)(max + whole, V(max)(v, V(LOAD_REAL)(max + whole)));
        }
    }
    for (size_t c = 0; c < width; c++)
        if (!FN(ordinary)((double)max[c], t)) return 0;

    for (size_t c = 0; c < width; c += V(W)) {
        V(t) m = V(LOAD_REAL)(max + c), count = V(zero)(), n0;
        V(shift) s = V(shift_to)(m, t, 1, &n0);
        v64_t hi[V(W) / v64_W], lo[V(W) / v64_W];
        if (t->tempered) FN(tile_sum)(z + c / V(W) * plane, n, m, s, 1, exact, &count, hi, lo);
        else FN(tile_sum)(z + c / V(W) * plane, n, m, s, 0, exact, &count, hi, lo);
        if (!exact) {
            FN(tile_reciprocal)(hi, lo, factor + c, factor_low + c);
            V(t) r = V(LOAD_REAL)(factor + c);
            has_nan |= !(V(sum_exact)(V(sub)(r, r)) == 0);
            continue;
        }
        REAL counts[V(W)], tops[V(W)];
        double h[V(W)], r[V(W)];
        V(STORE_REAL)(tops, V(exp_value)(m, s, 1)); /* r times 1 is r */
        V(STORE_REAL)(counts, count);
        for (int p = 0; p < V(W) / v64_W; p++) {
            v64_store_f64(h + p * v64_W, hi[p]);
            v64_store_f64(r + p * v64_W, lo[p]);
        }
        for (size_t i = 0; i < V(W) && c + i < width; i++) {
            csm_row row;
            row.max = (double)max[c + i];
            csm_log_tail((double)counts[i], h[i], r[i], (double)tops[i], &row);
            factor[c + i] = (REAL)-row.tail;
            has_nan |= row.is_nan;
            if (op == CSM_OP_logsumexp) FN(logsumexp_pass2)(NULL, NULL, (T *)(void *)job->y + c + i, 1, t, &row, NULL);
        }
    }
    if (op == CSM_OP_logsumexp) return 1;

    V(t) inv_t = V(set)(t->inv_t);
    for (size_t j = 0; j < n; j++) {
        T *y = (T *)(job->y + (ptrdiff_t)j * job->y_step);
        for (size_t at = 0; j + AHEAD < n && at < width * sizeof(T); at += 64)
            PREFETCH((char *)y + AHEAD * job->y_step + (ptrdiff_t)at);
        for (size_t c = 0; c < width; c += V(W)) {
            V(t) v = V(LOAD_REAL)(z + c / V(W) * plane + j * V(W)), f = V(LOAD_REAL)(factor + c);
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
