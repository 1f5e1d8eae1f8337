/* softmax, log_softmax and logsumexp along a strided axis, rows side by side (any axis but the last of a C array).
 *
 * One vector lane is one row, so nothing is shuffled.  A tile (all classes of `width` rows) is copied to scratch, one
 * vector of rows after the other, while the maxima are found: memory is read once in long runs, and scratch has no
 * power-of-two strides, which would map to one cache set.  Then e' and the sums are computed for each vector of rows,
 * in the order of sum.inc.h.  Last, the result is written in long runs.
 * NaN, sums and accuracy are those of forward.inc.h, bit for bit.
 */
#ifndef FN
#error "tile.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* e' of `classes` classes for one vector of rows.  The log family counts maxima and sets them to 0. */
INLINE void FN(tile_terms)(const int classes, REAL *z, V(t) *e, V(t) m, V(shift) s, const int tempered, const int exact,
                           V(t) *count) {
    V(t) x[V(SIDE)];
    UNROLL
    for (int j = 0; j < classes; j++) e[j] = x[j] = V(LOAD_REAL)(z + j * V(W));
    V(exp_values)(classes, e, s, tempered);
    UNROLL
    for (int j = 0; j < classes; j++) {
        if (exact) e[j] = V(without_max)(e[j], V(eq)(x[j], m), count);
        else V(STORE_REAL)(z + j * V(W), e[j]);
    }
}
/* Adds the classes [from, to) of one vector of rows, class j to lane j mod V(LANES). */
INLINE void FN(tile_add)(REAL *z, size_t from, size_t to, V(t) m, V(shift) s, const int tempered, const int exact,
                         V(t) *count, V(t) *sum, V(t) *low) {
    size_t j = from;
    V(t) e[V(SIDE)];
    for (; j + V(SIDE) <= to; j += V(SIDE)) {
        FN(tile_terms)(V(SIDE), z + j * V(W), e, m, s, tempered, exact, count);
        UNROLL
        for (size_t v = 0; v < V(SIDE); v++) V(sum_one)(&sum[(j + v) % V(LANES)], &low[(j + v) % V(LANES)], e[v]);
    }
    for (; j < to; j++) {
        FN(tile_terms)(1, z + j * V(W), e, m, s, tempered, exact, count);
        V(sum_one)(&sum[j % V(LANES)], &low[j % V(LANES)], e[0]);
    }
}

/* Sums of one vector of rows, hi and lo of W rows.  Each lane adds the elements that it adds in the row kernel, in the
 * same order.  Going lane by lane instead of class by class would miss the caches: 0.46 instead of 0.36 ns per element
 * at 1000 classes. */
INLINE void FN(tile_sum)(REAL *z, size_t n, V(t) m, V(shift) s, const int tempered, const int exact, V(t) *count,
                         v64_t *hi, v64_t *lo) {
    V(t) sum[V(LANES)], low[V(LANES)];
#if EXP_MANTISSA == 23
    v64_t wide[V(LANES)][V(PARTS)];
    const int used = n <= 8 ? 8 : V(LANES); /* other lanes are 0, and not added */
    for (int l = 0; l < used; l++)
        for (int p = 0; p < V(PARTS); p++) wide[l][p] = v64_zero();
    if (n <= 16) {
        for (size_t j = 0; j < n; j++) {
            V(t) e;
            FN(tile_terms)(1, z + j * V(W), &e, m, s, tempered, exact, count);
            v32_widen(e, wide[j]);
        }
    } else {
        for (size_t j = 0; j < n; j += CSM_FLUSH) {
            for (int l = 0; l < V(LANES); l++) {
                sum[l] = V(set)(EXP_SUM_START);
                low[l] = V(zero)();
            }
            FN(tile_add)(z, j, n - j < CSM_FLUSH ? n : j + CSM_FLUSH, m, s, tempered, exact, count, sum, low);
            for (int l = 0; l < V(LANES); l++) V(sum_wide)(wide[l], sum[l], low[l]);
        }
    }
    for (int p = 0; p < V(PARTS); p++) {
        v64_t eight[8];
        for (int l = 0; l < 8; l++) eight[l] = used == 8 ? wide[l][p] : v64_add(wide[l][p], wide[l + 8][p]);
        V(fold)(eight, NULL, &hi[p], &lo[p]);
    }
#else
    for (int l = 0; l < V(LANES); l++) {
        sum[l] = V(set)(EXP_SUM_START);
        low[l] = V(zero)();
    }
    FN(tile_add)(z, 0, n, m, s, tempered, exact, count, sum, low);
    for (int l = 0; l < V(LANES); l++) sum[l] = v64_sub(sum[l], v64_set(EXP_SUM_START));
    V(fold)(sum, low, hi, lo);
#endif
}

/* Finds the small sums (sum.inc.h) among those of one vector of rows, and adds them again.  z: the logits. */
static NOINLINE void FN(tile_add_small)(const REAL *z, size_t n, V(shift) s, int tempered, double *hi, double *lo) {
    v64_t sum[16][V(PARTS)], rest[16][V(PARTS)];
    for (int l = 0; l < 16; l++)
        for (int p = 0; p < V(PARTS); p++) sum[l][p] = rest[l][p] = v64_zero();
    for (size_t j = 0; j < n; j++) {
        const V(t) e = V(exp_value)(V(LOAD_REAL)(z + j * V(W)), s, tempered);
        V(dot_one)(sum[j % 16], rest[j % 16], V(small_term)(e), V(set)(1));
    }
    for (int p = 0; p < V(PARTS); p++) {
        v64_t eight[8], low[8], total, total_low;
        double again[v64_W], again_low[v64_W];
        for (int l = 0; l < 8; l++)
            V(dot_halves)(sum[l][p], rest[l][p], sum[l + 8][p], rest[l + 8][p], &eight[l], &low[l]);
        V(fold)(eight, low, &total, &total_low);
        v64_store_f64(again, total);
        v64_store_f64(again_low, total_low);
        for (int r = 0; r < v64_W; r++) {
            const int at = p * v64_W + r;
            if (!V(is_small_sum)(hi[at] + lo[at], n)) continue;
            hi[at] = again[r];
            lo[at] = again_low[r];
        }
    }
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

/* The tails of one vector of rows. */
INLINE void FN(tile_tails)(csm_tails *s, const double *low, const csm_temperature *t) {
#if EXP_MANTISSA == 23
    (void)low; /* 0 */
    csm_find_tails(s, t->t, EXP_BIAS);
#else
    for (int i = 0; i < V(W); i++) {
        csm_block block;
        csm_row row;
        block.n = s->n[i];
        csm_top(s->max[i], t->t, EXP_BIAS, 0, &block);
        csm_log_tail(s->count[i], s->sum[i], low[i], block.top, block.top_low, &row);
        s->tail[i] = row.tail;
    }
#endif
}

/* The sums of one vector of rows, of which `lanes` count: the factors of their results, or, with `reduced`, these
 * results.  z: the logits, which e' replaces unless exact.  Returns 1 if a row is NaN. */
INLINE int FN(tile_factors)(REAL *z, size_t n, const REAL *max, size_t lanes, const csm_temperature *t, const int exact,
                            T *reduced, REAL *factor, REAL *factor_low) {
    V(t) m = V(LOAD_REAL)(max), count = V(zero)(), n0;
    V(shift) s = V(shift_to)(m, t, 1, &n0);
    v64_t hi[V(W) / v64_W], lo[V(W) / v64_W];
    /* The log family tests for a temperature inside the loop, which saves a second copy of a large body. */
    if (exact || t->tempered) FN(tile_sum)(z, n, m, s, t->tempered, exact, &count, hi, lo);
    else FN(tile_sum)(z, n, m, s, 0, exact, &count, hi, lo);
    if (!exact) {
        FN(tile_reciprocal)(hi, lo, factor, factor_low);
        V(t) r = V(LOAD_REAL)(factor);
        return !(V(sum_exact)(V(sub)(r, r)) == 0);
    }
    csm_tails tails;
    REAL counts[V(W)], n0s[V(W)];
    double low_parts[V(W)];
    V(STORE_REAL)(n0s, n0);
    V(STORE_REAL)(counts, count);
    for (int p = 0; p < V(W) / v64_W; p++) {
        v64_store_f64(tails.sum + p * v64_W, hi[p]);
        v64_store_f64(low_parts + p * v64_W, lo[p]);
    }
    int small = 0, has_nan = 0;
    for (size_t i = 0; i < V(W); i++) small |= V(is_small_sum)(tails.sum[i] + low_parts[i], n);
    if (small) FN(tile_add_small)(z, n, s, t->tempered, tails.sum, low_parts);
    for (size_t i = 0; i < V(W); i++) {
        tails.max[i] = (double)max[i];
        tails.n[i] = (double)n0s[i];
        tails.count[i] = (double)counts[i];
    }
    FN(tile_tails)(&tails, low_parts, t);
    for (size_t i = 0; i < lanes; i++) {
        const double tail = tails.tail[i];
        factor[i] = (REAL)-tail;
        has_nan |= tail != tail;
        if (reduced) FN(fill)(reduced + i, 1, tail == tail ? tails.max[i] / t->t + tail : CSM_NAN);
    }
    return has_nan;
}

/* One class of one vector of rows: v is its e', or its logit if exact; f and low are the factors. */
INLINE V(t) FN(tile_result)(V(t) v, V(t) f, V(t) low, V(t) m, V(t) inv_t, const int exact, int has_nan) {
    v = exact ? V(fma)(V(sub)(v, m), inv_t, f) : V(scaled)(v, f, low);
    return has_nan ? V(select)(V(ordered)(f), v, V(set)(CSM_NAN)) : v;
}

INLINE V(t) FN(tile_load)(const T *x, size_t lanes) { return lanes >= V(W) ? LOAD(x) : LOAD_PART(x, lanes, V(zero)()); }

/* Copies a tile to z, one vector of rows after the other, and finds the maxima of the rows. */
INLINE void FN(tile_copy)(const csm_tile_job *job, REAL *z, REAL *max) {
    const size_t n = job->n, width = job->width, whole = width / V(W) *V(W), plane = (n | 1) * V(W);
    for (size_t c = 0; c < width; c += V(W)) V(STORE_REAL)(max + c, V(set)(-CSM_INF));
    for (size_t j = 0; j < n; j++) {
        const T *x = (const T *)(job->input + (ptrdiff_t)j * job->input_step);
        REAL *to = z + j * V(W);
        csm_prefetch_tile(job->input, job->input_step, j, n, width * sizeof(T));
        for (size_t c = 0; c < whole; c += V(W)) {
            V(t) v = LOAD(x + c);
            V(STORE_REAL)(to + c / V(W) *plane, v);
            V(STORE_REAL)(max + c, V(max)(v, V(LOAD_REAL)(max + c)));
        }
        if (whole < width) {
            V(t) v = LOAD_PART(x + whole, width - whole, V(zero)());
            V(STORE_REAL)(to + whole / V(W) *plane, v);
            V(STORE_REAL)(max + whole, V(max)(v, V(LOAD_REAL)(max + whole)));
        }
    }
}

INLINE int FN(tile)(const csm_tile_job *job, const int exact, const int keeps_axis) {
    const csm_temperature *t = job->temperature;
    const size_t n = job->n, width = job->width, whole = width / V(W) *V(W);
    const size_t plane = (n | 1) * V(W); /* elements of z for one vector of rows, class after class */
    const size_t rows = (width + V(W) - 1) / V(W) *V(W);
    REAL *z = job->scratch, max[CSM_TILE_WIDTH];
    REAL *factor = z + rows / V(W) *plane, *factor_low = factor + rows; /* in scratch: the stack may be small */
    V(t) low = V(set)(-CSM_INF);
    int has_nan = 0;

    if (width <= V(W)) { /* one vector, whose maxima stay in a register */
        V(t) m = low;
        for (size_t j = 0; j < n; j++) {
            const T *x = (const T *)(job->input + (ptrdiff_t)j * job->input_step);
            const V(t) v = FN(tile_load)(x, width);
            if (job->input_step > 256) csm_prefetch_tile(job->input, job->input_step, j, n, 64);
            V(STORE_REAL)(z + j * V(W), v);
            m = V(max)(v, m);
        }
        V(STORE_REAL)(max, m);
    } else {
        FN(tile_copy)(job, z, max);
    }
    for (size_t c = 0; c < width; c++)
        if (!csm_is_ordinary(t, (double)max[c])) return 0;

    for (size_t c = 0; c < width; c += V(W))
        has_nan |= FN(tile_factors)(z + c / V(W) *plane, n, max + c, width - c < V(W) ? width - c : V(W), t, exact,
                                    keeps_axis ? NULL : (T *)(void *)job->result + c, factor + c, factor_low + c);
    if (!keeps_axis) return 1;

    V(t) inv_t = V(set)(t->inv_t);
    for (size_t j = 0; j < n; j++) {
        T *y = (T *)(job->result + (ptrdiff_t)j * job->result_step);
        csm_prefetch_tile(job->result, job->result_step, j, n, width * sizeof(T));
        for (size_t c = 0; c < width; c += V(W)) {
            const V(t) v = FN(tile_result)(V(LOAD_REAL)(z + c / V(W) *plane + j * V(W)), V(LOAD_REAL)(factor + c),
                                           V(LOAD_REAL)(factor_low + c), V(LOAD_REAL)(max + c), inv_t, exact, has_nan);
            if (c < whole) STORE(y + c, v);
            else STORE_PART(y + c, width - c, v);
        }
    }
    return 1;
}
static int FN(softmax_tile)(const csm_tile_job *job) { return FN(tile)(job, 0, 1); }
static NOINLINE int FN(log_tile)(const csm_tile_job *job, int keeps_axis) { return FN(tile)(job, 1, keeps_axis); }
static int FN(log_softmax_tile)(const csm_tile_job *job) { return FN(log_tile)(job, 1); }
static int FN(logsumexp_tile)(const csm_tile_job *job) { return FN(log_tile)(job, 0); }
