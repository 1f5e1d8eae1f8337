/* softmax, log_softmax and logsumexp of contiguous rows, for one storage type T (FN(name) = name_<suffix>).
 *
 *   softmax      y_j = e'_j / sum e',   e'_j = P(r_j) 2^(n_j - n0 + B)           (exp.inc.h)
 *   log_softmax  y_j = (x_j - m)/T - log1p((c - 1) + S'/e'_m)                    c maxima, S' the sum of the others
 *   logsumexp    m/T + log1p((c - 1) + S'/e'_m)
 *   entropy      log1p((c - 1) + S'/e'_m) + sum e'_j (m - x_j) / (T sum e'), terms of one sign
 *
 * Passes: maximum; e' and its sum (softmax stores e'); result.  Rows longer than CSM_BLOCK are computed block by
 * block, each with its own n0, and combined exactly (combine.h): that is the specification.
 * Accumulators: the lanes of sum.inc.h; blocks, tail and 1 / sum e' in double and pairs (combine.h).
 * NaN: the maximum drops it, the sum keeps it, and the whole row becomes the canonical NaN.
 * Rows whose maximum is infinite, NaN or beyond the limit are left to ops/softmax_row.c.
 * Measured error (ACCURACY.md; ULP, float32 and float64): softmax 2.5, 2.6; log_softmax 1.8, 3.7; logsumexp 1.3, 2.6;
 * half types 0.50.
 */
#ifndef FN
#error "forward.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* Number of elements before the first cache line, for passes whose result does not depend on lanes: after them no
 * vector crosses two lines.  NumPy's large arrays begin 16 bytes after a page; without this (64, 32000) takes 15 %
 * longer. */
INLINE size_t FN(head)(const T *x, size_t k) {
    return k < ALIGNED_LENGTH ? 0 : (0 - (uintptr_t)x) % 64 / sizeof(T) % V(W);
}

INLINE V(t) FN(max_lanes)(const T *x, size_t k) {
    V(t) low = V(set)(-CSM_INF), a = low, b = low, c = low, d = low;
    size_t i = FN(head)(x, k);
    if (i) d = V(max)(LOAD_PART(x, i, low), low); /* through max, because it may be NaN */
    for (; i + 4 * V(W) <= k; i += 4 * V(W)) {
        a = V(max)(LOAD(x + i), a);
        b = V(max)(LOAD(x + i + V(W)), b);
        c = V(max)(LOAD(x + i + 2 * V(W)), c);
        d = V(max)(LOAD(x + i + 3 * V(W)), d);
    }
    for (; i + V(W) <= k; i += V(W)) a = V(max)(LOAD(x + i), a);
    if (i < k) b = V(max)(LOAD_PART(x + i, k - i, low), b);
    return V(max)(V(max)(a, b), V(max)(c, d));
}
static double FN(max)(const void *from, size_t k) { return (double)V(top)(FN(max_lanes)(from, k)); }

/* The second pass: e' of up to CSM_FLUSH elements of a row (block) whose maximum is m and whose constants are s, and
 * their sums in the lanes of `sum`.
 *
 * store: e' is stored in e.  A partial last vector goes to *last instead, unless that is NULL: loading it right after a
 * partial store would stall.
 * exact: the log family, which keeps elements equal to the maximum out of the sum and counts them.
 * far: NULL, or what receives the sum of e' (m - x), only with exact.
 * ahead, ahead_to: addresses to prefetch, which will be read and written next ((256, 50257) on AVX2: 0.42 ns per
 * element without, 0.38 with the first, 0.35 with both). */
INLINE void FN(exp_part)(const T *x, REAL *e, size_t k, const V(t) m, const V(shift) s, V(sum) *sum, V(t) *count,
                         const int tempered, const int store, const int exact, V(distances) *far, V(t) *last,
                         const char *ahead, const char *ahead_to) {
    enum { STEP = (int)V(CYCLE) > (int)V(STEP) ? (int)V(CYCLE) : (int)V(STEP) }; /* a multiple of CYCLE */
    _Static_assert(STEP % V(SIDE) == 0, "groups of vectors whose exp is computed side by side");
    size_t i = 0;
    for (; i + STEP * V(W) <= k; i += STEP * V(W)) {
        if (ahead) {
            for (size_t at = 0; at < STEP * V(W) *sizeof(T); at += 64) {
                PREFETCH(ahead + i * sizeof(T) + at);
                if (ahead_to) PREFETCH(ahead_to + i * sizeof(T) + at);
            }
        }
        V(t) y[STEP];
        V(mask) any = V(eq)(m, V(set)(CSM_NAN));
        UNROLL
        for (size_t first = 0; first < STEP; first += V(SIDE)) {
            UNROLL
            for (size_t v = first; v < first + V(SIDE); v++) {
                y[v] = LOAD(x + i + v * V(W));
                if (exact) any = V(either)(any, V(eq)(y[v], m));
            }
            V(exp_values)(V(SIDE), y + first, s, tempered);
            if (exact) continue;
            UNROLL
            for (size_t v = first; v < first + V(SIDE); v++) {
                if (store) V(STORE_REAL)(e + i + v * V(W), y[v]);
                V(sum_add)(sum, v % V(CYCLE), y[v]);
            }
            UNROLL
            for (int v = 0; v < V(CYCLE); v++) {
                KEEP_IN_REGISTER(sum->hi[v]);
                KEEP_IN_REGISTER(sum->lo[v]);
            }
        }
        if (!exact) continue;
        const int has_max = V(bits)(any) != 0; /* rare; testing first saves 10 % on all other vectors */
        for (size_t v = 0; v < STEP && has_max; v++) {
            V(t) z = LOAD(x + i + v * V(W)); /* e may be x */
            if (store) V(STORE_REAL)(e + i + v * V(W), y[v]);
            y[v] = V(without_max)(y[v], V(eq)(z, m), count);
        }
        UNROLL
        for (size_t v = 0; v < STEP; v++) {
            if (store && !has_max) V(STORE_REAL)(e + i + v * V(W), y[v]);
            V(sum_add)(sum, v % V(CYCLE), y[v]);
            if (far) V(distances_add)(far, i / V(W) + v, y[v], V(distance)(far, LOAD(x + i + v * V(W)), tempered));
        }
    }
    for (size_t first = 0; i < k;
         i += V(SIDE) *V(W), first += V(SIDE)) { /* the end of the row; the filler -inf adds 0 */
        const size_t whole = (k - i) / V(W), rest = whole < V(SIDE) ? (k - i) % V(W) : 0;
        V(t) y[V(SIDE)], z[V(SIDE)], d[V(SIDE)], end = V(set)(-CSM_INF), end_z = V(set)(CSM_NAN);
        if (rest) end = LOAD_PART(x + i + whole * V(W), rest, end);
        /* a maximum of -inf must not be found in the filler */
        if (rest && exact) end_z = LOAD_PART(x + i + whole * V(W), rest, end_z);
        UNROLL
        for (size_t v = 0; v < V(SIDE); v++) {
            z[v] = y[v] = v < whole ? LOAD(x + i + v * V(W)) : v == whole ? end : V(set)(-CSM_INF);
            if (exact && v >= whole) z[v] = v == whole ? end_z : V(set)(CSM_NAN);
            if (far) d[v] = V(distance)(far, y[v], tempered);
        }
        V(exp_values)(V(SIDE), y, s, tempered);
        UNROLL
        for (size_t v = 0; v < V(SIDE); v++) {
            if (store && v < whole) V(STORE_REAL)(e + i + v * V(W), y[v]); /* e may be x: after all loads */
            if (v == whole) end = y[v];
            if (exact) y[v] = V(without_max)(y[v], V(eq)(z[v], m), count);
            V(sum_add)(sum, V(SIDE) % V(CYCLE) == 0 ? v % V(CYCLE) : (first + v) % V(CYCLE), y[v]);
            if (far) V(distances_add)(far, i / V(W) + v, y[v], d[v]);
        }
        if (rest && store && last) *last = end;
        else if (rest && store) V(STORE_PART_REAL)(e + i + whole * V(W), rest, end);
    }
    if (far) V(products_flush)(&far->sum);
}

/* Adds the e' of a row or block again, as a small sum (sum.inc.h).  e: where they are stored, or NULL; last: NULL, or
 * their partial last vector, which is not stored there. */
static NOINLINE void FN(add_small)(const T *x, const REAL *e, size_t k, const csm_temperature *t, const V(t) *last,
                                   csm_block *block) {
    enum { PER = 16 / V(W), GROUP = PER > (int)V(SIDE) ? PER : (int)V(SIDE) };
    _Static_assert(GROUP % PER == 0 && GROUP % V(SIDE) == 0, "whole cycles of lanes, whole groups for exp");
    V(t) n0, y[GROUP];
    const V(shift) s = V(shift_to)(V(set)(csm_reference(block->max, t)), t, t->tempered, &n0);
    V(dot) sum;
    V(dot_zero)(&sum);
    for (size_t i = 0; i < k; i += GROUP * V(W)) {
        UNROLL
        for (size_t v = 0; v < GROUP; v++) {
            const size_t at = i + v * V(W);
            y[v] = V(set)(e ? 0 : -CSM_INF);
            if (at + V(W) <= k) y[v] = e ? V(LOAD_REAL)(e + at) : LOAD(x + at);
            else if (at < k && !e) y[v] = LOAD_PART(x + at, k - at, y[v]);
            else if (at < k) y[v] = last ? *last : V(LOAD_PART_REAL)(e + at, k - at, y[v]);
        }
        UNROLL
        for (int v = 0; v < GROUP && !e; v += V(SIDE)) V(exp_values)(V(SIDE), y + v, s, t->tempered);
        UNROLL
        for (int v = 0; v < GROUP; v++) V(dot_add)(&sum, v % PER, V(small_term)(y[v]), V(set)(1));
    }
    V(dot_total)(&sum, &block->hi, &block->lo);
}

/* The second pass over a row or block of any length whose maximum is known; the sums go to *block. */
INLINE void FN(exp_sum)(const T *x, REAL *e, size_t k, const csm_temperature *t, csm_block *block, const int tempered,
                        const int store, const int exact, const int entropy, V(t) *last, const char *ahead,
                        const char *ahead_to) {
    const double ref = csm_reference(block->max, t);
    V(t) n0, count;
    V(shift) s = V(shift_to)(V(set)(ref), t, tempered, &n0);
    V(sum) sum;
    REAL n[V(W)];
    V(STORE_REAL)(n, n0);
    block->n = (double)n[0];
    if (exact) csm_top(ref, t->t, EXP_BIAS, EXP_MANTISSA == 23, block); /* overlaps with the vectors */
    V(sum_zero)(&sum);
    count = V(zero)();
    V(distances) far;
    if (entropy) far = V(distances_from)(ref, s.lowest, csm_distance_scale(t));
    for (size_t i = 0; i < k; i += CSM_FLUSH) {
        FN(exp_part)(x + i, store ? e + i : NULL, k - i < CSM_FLUSH ? k - i : CSM_FLUSH, V(set)(block->max), s, &sum,
                     &count, tempered, store, exact, entropy ? &far : NULL, last, ahead ? ahead + i * sizeof(T) : NULL,
                     ahead_to ? ahead_to + i * sizeof(T) : NULL);
        V(sum_flush)(&sum);
    }
    V(sum_total)(&sum, &block->hi, &block->lo);
    if (!exact) return;
    if (entropy) block->far = V(products_total)(&far.sum);
    block->count = V(sum_exact)(count);
    if (V(is_small_sum)(block->hi + block->lo, k)) FN(add_small)(x, store ? e : NULL, k, t, last, block);
}

/* Out of line on purpose: the body is large and has many callers. */
static NOINLINE void FN(exp_store)(const T *x, REAL *e, size_t k, const csm_temperature *t, csm_block *block,
                                   V(t) *last, const char *ahead, const char *ahead_to) {
    if (t->tempered) FN(exp_sum)(x, e, k, t, block, 1, 1, 0, 0, last, ahead, ahead_to);
    else FN(exp_sum)(x, e, k, t, block, 0, 1, 0, 0, last, ahead, ahead_to);
}
static NOINLINE void FN(exp_only)(const T *x, size_t k, const csm_temperature *t, csm_block *block) {
    if (t->tempered) FN(exp_sum)(x, NULL, k, t, block, 1, 0, 0, 0, NULL, NULL, NULL);
    else FN(exp_sum)(x, NULL, k, t, block, 0, 0, 0, 0, NULL, NULL, NULL);
}
/* e: the destination of e', or NULL. */
static NOINLINE void FN(exp_exact)(const T *x, REAL *e, size_t k, const csm_temperature *t, csm_block *block,
                                   V(t) *last, const char *ahead, const char *ahead_to) {
    if (t->tempered) FN(exp_sum)(x, e, k, t, block, 1, e != NULL, 1, 0, last, ahead, ahead_to);
    else if (e) FN(exp_sum)(x, e, k, t, block, 0, 1, 1, 0, last, ahead, ahead_to);
    else FN(exp_sum)(x, NULL, k, t, block, 0, 0, 1, 0, NULL, ahead, ahead_to);
}
/* For an entropy, whose weighted sum goes to block->far. */
static NOINLINE void FN(exp_entropy)(const T *x, size_t k, const csm_temperature *t, csm_block *block,
                                     const char *ahead) {
    if (t->tempered) FN(exp_sum)(x, NULL, k, t, block, 1, 0, 1, 1, NULL, ahead, NULL);
    else FN(exp_sum)(x, NULL, k, t, block, 0, 0, 1, 1, NULL, ahead, NULL);
}

/* Bytes before a row of a job, and its length. */
INLINE ptrdiff_t FN(row_offset)(const csm_rows_job *job, size_t r, ptrdiff_t step) {
    return job->indptr ? (ptrdiff_t)(job->indptr[r] - job->indptr[0]) * (ptrdiff_t)sizeof(T) : (ptrdiff_t)r * step;
}
INLINE size_t FN(row_length)(const csm_rows_job *job, size_t r) {
    return job->indptr ? (size_t)(job->indptr[r + 1] - job->indptr[r]) : job->n;
}

#if EXP_MANTISSA == 23
/* The second pass over W rows at T = 1, grouped, so that no row stalls on its maximum, its sum and its scalar
 * computations. */
typedef struct FN(rows) {
    REAL max[V(W)], n[V(W)];
    v64_t sums[V(PARTS)], far[V(PARTS)]; /* far: of entropies only */
    double count[V(W)]; /* exact only */
    V(t) last[V(W)]; /* not exact: the last vector of a row, if it is partial */
} FN(rows);

/* e: the destination of e' of the rows, `pitch` bytes apart.  Returns 0, with nothing written, if a row is not
 * ordinary. */
INLINE int FN(exp_rows)(const csm_rows_job *job, char *e, ptrdiff_t pitch, FN(rows) * g, const int store,
                        const int exact, const int entropy) {
    const int prefetches = exact ? job->prefetch != CSM_PREFETCH_NOTHING : job->prefetch == CSM_PREFETCH_ALL;
    const size_t n = job->n; /* at most CSM_FLUSH */
    REAL magic[V(W)], lowest[V(W)];
    V(t) tops[V(W)];
    V(sum) sum[V(W)];
    v64_t sums[V(W)][V(EIGHT)], far_sums[V(W)][V(EIGHT)];
    for (int r = 0; r < V(W); r++)
        tops[r] = FN(max_lanes)((const T *)(const void *)(job->input + r * job->input_step), n);
    V(shift) s;
    if (!FN(rows_shift)(tops, job->temperature, 0, &s, magic, lowest, g->max, g->n)) return 0;
    for (int r = 0; r < V(W); r++) {
        const T *x = (const T *)(const void *)(job->input + r * job->input_step);
        const V(t) m = V(splat)(g->max + r);
        V(t) count = V(zero)();
        s.magic = V(splat)(magic + r);
        s.lowest = V(splat)(lowest + r);
        V(sum_restart)(&sum[r]);
        V(distances) far;
        if (entropy) far = V(distances_from)((double)g->max[r], s.lowest, 1);
        FN(exp_part)(x, store ? (REAL *)(void *)(e + r * pitch) : NULL, n, m, s, &sum[r], &count, 0, store, exact,
                     entropy ? &far : NULL, exact ? NULL : &g->last[r],
                     prefetches ? (const char *)x + V(W) *job->input_step : NULL,
                     prefetches && job->result ? job->result + (r + 1) * job->result_step : NULL);
        if (exact) g->count[r] = V(sum_exact)(count);
        if (entropy) V(sum_eight)(&far.sum, far_sums[r]);
    }
    for (int r = 0; r < V(W); r++) { /* in a separate loop, so that no row stalls the next */
        V(sum_eight_of_part)(&sum[r], sums[r]);
    }
    V(trees)((const v64_t(*)[V(EIGHT)])sums, g->sums);
    if (entropy) V(trees)((const v64_t(*)[V(EIGHT)])far_sums, g->far);
    return 1;
}
/* Out of line as above.  Grouped only at T = 1: a second copy for other temperatures would push the wheel past its size
 * limit. */
static NOINLINE int FN(exp_rows_store)(const csm_rows_job *job, char *e, ptrdiff_t pitch, FN(rows) * g) {
    return FN(exp_rows)(job, e, pitch, g, 1, 0, 0);
}
static NOINLINE int FN(exp_rows_exact)(const csm_rows_job *job, char *e, ptrdiff_t pitch, FN(rows) * g) {
    return FN(exp_rows)(job, e, pitch, g, e != NULL, 1, 0);
}
static NOINLINE int FN(exp_rows_entropy)(const csm_rows_job *job, FN(rows) * g) {
    return FN(exp_rows)(job, NULL, 0, g, 0, 1, 1);
}
#endif

static void FN(fill)(T *y, size_t k, double value) {
    V(t) v = V(set)(value);
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, v);
    if (i < k) STORE_PART(y + i, k - i, v);
}

/* Rows of up to 16 elements stay in registers from the load to the store. */
INLINE size_t FN(tiny_rows)(const csm_rows_job *job, const int exact, const int keeps_axis, const int entropy) {
    const csm_temperature *t = job->temperature;
    const int tempered = t->tempered; /* not specialised on T = 1: with few rows this branch is not the bottleneck */
    const size_t n = job->n, used = (n + V(W) - 1) / V(W), left = n - (used - 1) * V(W);
    V(t) low = V(set)(-CSM_INF), inv_t = V(set)(t->inv_t);
    for (size_t i = 0; i < job->rows; i++) {
        const T *x = (const T *)(job->input + (ptrdiff_t)i * job->input_step);
        T *y = (T *)(job->result + (ptrdiff_t)i * job->result_step);
        V(t) z[V(SIXTEEN)], e[V(SIXTEEN)], max = low, n0, count = V(zero)();
        V(sum) sum;
        csm_block block;
        csm_row row;
        UNROLL
        for (size_t v = 0; v < V(SIXTEEN); v++) {
            z[v] = low;
            if (v + 1 < used || (v + 1 == used && left == V(W))) z[v] = LOAD(x + v * V(W));
            else if (v + 1 == used) z[v] = LOAD_PART(x + v * V(W), left, low);
            max = V(max)(z[v], max);
        }
        block.max = (double)V(top)(max);
        if (!csm_is_ordinary(t, block.max)) return i;
        max = V(set)(block.max);
        V(shift) s = V(shift_to)(max, t, tempered, &n0);
        UNROLL
        for (size_t v = 0; v < V(SIXTEEN); v++) {
            e[v] = V(zero)();
            if (v < used) e[v] = V(exp_value)(z[v], s, tempered);
            if (v < used && exact) e[v] = V(without_max)(e[v], V(eq)(z[v], max), &count);
        }
        V(sum_sixteen)(&sum, e);
        V(sum_total)(&sum, &block.hi, &block.lo);
        if (entropy) {
            V(distances) far = V(distances_from)(block.max, s.lowest, csm_distance_scale(t));
            double hi, lo;
            UNROLL
            for (size_t v = 0; v < V(SIXTEEN); v++) e[v] = V(mul)(e[v], V(distance)(&far, z[v], 1));
            V(sum_sixteen)(&sum, e);
            V(sum_total)(&sum, &hi, &lo);
            block.far = hi + lo;
        }
        V(t) f, f_low;
        if (!exact) {
            csm_reciprocal(block.hi, block.lo, EXP_MANTISSA == 23, &row);
            f = V(set)(row.r);
            f_low = V(set)(row.r_low);
        } else {
            REAL n0s[V(W)];
            V(STORE_REAL)(n0s, n0);
            block.n = (double)n0s[0];
            csm_top(block.max, t->t, EXP_BIAS, EXP_MANTISSA == 23, &block);
            block.count = V(sum_exact)(count);
            if (V(is_small_sum)(block.hi + block.lo, n)) FN(add_small)(x, NULL, n, t, NULL, &block);
            csm_log_tail(block.count, block.hi, block.lo, block.top, block.top_low, &row);
            f = f_low = V(set)(-row.tail);
        }
        if (row.is_nan || !keeps_axis) {
            double value = CSM_NAN;
            if (!row.is_nan)
                value = entropy ? csm_entropy(&row, block.far, t, EXP_MANTISSA == 23) : block.max / t->t + row.tail;
            FN(fill)(y, keeps_axis ? n : 1, value);
            continue;
        }
        UNROLL
        for (size_t v = 0; v < V(SIXTEEN); v++) {
            V(t) result = !exact ? V(scaled)(e[v], f, f_low) : V(fma)(V(sub)(z[v], max), inv_t, f);
            if (v + 1 < used || (v + 1 == used && left == V(W))) STORE(y + v * V(W), result);
            else if (v + 1 == used) STORE_PART(y + v * V(W), left, result);
        }
    }
    return job->rows;
}
#if EXP_MANTISSA == 23
/* 1 / sum of W rows as a pair, as csm_reciprocal computes it. */
INLINE void FN(reciprocals)(v64_t *sums, REAL *r, REAL *r_low) {
    v64_t back[V(PARTS)];
    UNROLL
    for (int p = 0; p < V(PARTS); p++) sums[p] = v64_div(v64_set(1), sums[p]);
    V(t) high = V(narrow)(sums);
    V(STORE_REAL)(r, high);
    v32_widen(high, back);
    UNROLL
    for (int p = 0; p < V(PARTS); p++) sums[p] = v64_sub(sums[p], back[p]);
    V(STORE_REAL)(r_low, V(narrow)(sums));
}

/* Softmax of W rows at a time (short_rows.inc.h).  Returns the number of rows done; a group with a row that is NaN or
 * not ordinary is left to `tiny_rows`. */
INLINE size_t FN(softmax_groups)(const csm_rows_job *job, const size_t max_vectors, const int tempered) {
    const size_t n = job->n, used = USED(n, max_vectors);
    size_t i = 0;
    for (; i + V(W) <= job->rows; i += V(W)) {
        FN(group) g;
        REAL f[V(W)], f_low[V(W)];
        const csm_temperature *t = job->temperature + (tempered == 2 ? i : 0);
        if (!FN(group_exp)(&g, job->input + (ptrdiff_t)i * job->input_step, job->input_step, n, t, max_vectors,
                           tempered, 0, 0, NULL))
            return i;
        FN(reciprocals)(g.sums, f, f_low);
        V(t) all = V(LOAD_REAL)(f);
        if (!(V(sum_exact)(V(sub)(all, all)) == 0)) return i; /* a sum is NaN */
        for (size_t r = 0; r < V(W); r++) {
            T *y = (T *)(job->result + (ptrdiff_t)(i + r) * job->result_step);
            UNROLL
            for (size_t v = 0; v < used; v++)
                FN(group_store)(y, n, v,
                                V(scaled)(V(LOAD_REAL)(g.e[r] + v * V(W)), V(splat)(f + r), V(splat)(f_low + r)));
        }
    }
    return i;
}
INLINE size_t FN(log_groups)(const csm_rows_job *job, const int keeps_axis, const int entropy) {
    const csm_temperature *t = job->temperature;
    const V(t) inv_t = V(set)(t->inv_t);
    size_t i = 0;
    for (; i + V(W) <= job->rows; i += V(W)) {
        FN(group) g;
        csm_tails s;
        const char *from = job->input + (ptrdiff_t)i * job->input_step;
        if (!(entropy ? FN(group_entropy)(&g, from, job->input_step, job->n, t, &s)
                      : FN(group_log)(&g, from, job->input_step, job->n, t, &s)))
            return i;
        for (size_t r = 0; r < V(W); r++) {
            T *y = (T *)(job->result + (ptrdiff_t)(i + r) * job->result_step);
            const V(t) tail = V(set)(-s.tail[r]), max = V(splat)(g.max + r);
            if (!keeps_axis) STORE_PART(y, 1, V(set)(entropy ? s.tail[r] : s.max[r] / t->t + s.tail[r]));
            for (size_t v = 0; keeps_axis && v * V(W) < job->n; v++)
                FN(group_store)(y, job->n, v, V(fma)(V(sub)(V(LOAD_REAL)(g.z[r] + v * V(W)), max), inv_t, tail));
        }
    }
    return i;
}
static NOINLINE size_t FN(small_groups)(const csm_rows_job *job, int op) {
    const int tempered = job->temperature->tempered;
    if (op == CSM_OP_log_softmax) return FN(log_groups)(job, 1, 0);
    if (op == CSM_OP_logsumexp) return FN(log_groups)(job, 0, 0);
    if (op == CSM_OP_entropy) return FN(log_groups)(job, 0, 1);
    if (job->has_temperatures)
        return ONE_VECTOR(job->n) ? FN(softmax_groups)(job, 1, 2) : FN(softmax_groups)(job, 2, 2);
    if (ONE_VECTOR(job->n)) return tempered ? FN(softmax_groups)(job, 1, 1) : FN(softmax_groups)(job, 1, 0);
    return tempered ? FN(softmax_groups)(job, 2, 1) : FN(softmax_groups)(job, 2, 0);
}
#endif

/* Softmax of short rows with temperatures of their own: W rows at a time where all differ from 1, whose form has one
 * rounding less; others one by one. */
static NOINLINE size_t FN(own_rows)(const csm_rows_job *job) {
    csm_rows_job rest = *job;
    size_t done = 0, tempered = 0; /* rows from `done` on whose temperatures differ from 1 */
    while (done < job->rows) {
        rest.input = job->input + (ptrdiff_t)done * job->input_step;
        rest.result = job->result + (ptrdiff_t)done * job->result_step;
        rest.temperature = job->temperature + done;
        while (done + tempered < job->rows && job->temperature[done + tempered].tempered) tempered++;
        size_t computed = 0;
#if EXP_MANTISSA == 23
        rest.rows = tempered;
        rest.has_temperatures = 1;
        if (V(W) > 1 && tempered >= V(W)) computed = FN(small_groups)(&rest, CSM_OP_softmax);
#endif
        if (!computed) {
            rest.rows = 1;
            rest.has_temperatures = 0;
            if (!FN(tiny_rows)(&rest, 0, 1, 0)) break;
            computed = 1;
        }
        done += computed;
        tempered -= computed < tempered ? computed : tempered;
    }
    return done;
}

static NOINLINE size_t FN(small_rows)(const csm_rows_job *job, int op) {
    csm_rows_job rest = *job;
    size_t done = 0;
    if (job->n == 0) return 0; /* nothing to load: left to ops/softmax_row.c */
    if (job->has_temperatures) return FN(own_rows)(job);
    while (done < job->rows) {
        rest.input = job->input + (ptrdiff_t)done * job->input_step;
        rest.result = job->result + (ptrdiff_t)done * job->result_step;
        rest.rows = job->rows - done;
#if EXP_MANTISSA == 23
        if (V(W) > 1 && rest.rows >= V(W)) {
            size_t groups = FN(small_groups)(&rest, op);
            done += groups;
            rest.input += (ptrdiff_t)groups * job->input_step;
            rest.result += (ptrdiff_t)groups * job->result_step;
            rest.rows -= groups;
            if (rest.rows > V(W)) rest.rows = V(W); /* just past the row that stopped the groups */
        }
#endif
        size_t single;
        if (op == CSM_OP_softmax) single = FN(tiny_rows)(&rest, 0, 1, 0);
        else if (op == CSM_OP_entropy) single = FN(tiny_rows)(&rest, 1, 0, 1);
        else single = FN(tiny_rows)(&rest, 1, op != CSM_OP_logsumexp, 0);
        done += single;
        if (single < rest.rows) break;
    }
    return done;
}

/* softmax */

static void FN(softmax_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t,
                              csm_block *block) {
    (void)b;
    block->max = FN(max)(a, k);
    if (e) FN(exp_store)(a, e, k, t, block, NULL, (const char *)a + k * sizeof(T), (const char *)e + k * sizeof(T));
    else FN(exp_only)(a, k, t, block);
}

/* Pass 1 for a known maximum, without storing e'. */
static void FN(softmax_sum)(const void *a, size_t k, const csm_temperature *t, csm_block *block) {
    FN(exp_only)(a, k, t, block);
}

static void FN(softmax_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    (void)t;
    csm_combine_softmax(blocks, count, EXP_MANTISSA == 23, row);
}

/* y = e' 2^d / sum */
INLINE void FN(scale)(const REAL *e, T *y, size_t k, const csm_row *row, double d, const V(t) *last) {
    const V(scaling) c = V(scaling_of)(row, d);
    size_t i = 0;
    if (c.plain) {
        const size_t stored = last ? k / V(W) *V(W) : k;
        if (STORED_AS_REAL && k >= ALIGNED_IN_PLACE_LENGTH && (i = FN(head)(y, k)) > 0)
            STORE_PART(y, i, V(scaled)(V(LOAD_PART_REAL)(e, i, c.f), c.f, c.f_low));
        for (; i + 2 * V(W) <= stored; i += 2 * V(W)) {
            STORE(y + i, V(scaled)(V(LOAD_REAL)(e + i), c.f, c.f_low));
            STORE(y + i + V(W), V(scaled)(V(LOAD_REAL)(e + i + V(W)), c.f, c.f_low));
        }
        for (; i + V(W) <= stored; i += V(W)) STORE(y + i, V(scaled)(V(LOAD_REAL)(e + i), c.f, c.f_low));
        if (i < stored)
            STORE_PART(y + i, stored - i, V(scaled)(V(LOAD_PART_REAL)(e + i, stored - i, c.f), c.f, c.f_low));
        if (stored < k) STORE_PART(y + stored, k - stored, V(scaled)(*last, c.f, c.f_low));
    } else {
        for (; i + V(W) <= k; i += V(W)) STORE(y + i, V(scaled)(V(mul)(c.up, V(LOAD_REAL)(e + i)), c.f, c.f_low));
        if (i < k)
            STORE_PART(y + i, k - i, V(scaled)(V(mul)(c.up, V(LOAD_PART_REAL)(e + i, k - i, c.f)), c.f, c.f_low));
    }
}

static void FN(softmax_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                              const csm_row *row, const csm_block *block) {
    enum { PART = 1024 }; /* elements: the stack may be small */
    REAL e[PART];
    (void)b;
    if (row->is_nan) {
        FN(fill)(y, k, CSM_NAN);
    } else if (a) {
        for (size_t i = 0; i < k; i += PART) {
            const size_t part = k - i < PART ? k - i : PART;
            csm_block again = *block;
            FN(exp_store)((const T *)a + i, e, part, t, &again, NULL, NULL, NULL);
            FN(scale)(e, (T *)y + i, part, row, block->n - row->n, NULL);
        }
    } else {
        FN(scale)((const REAL *)y, y, k, row, block->n - row->n,
                  NULL); /* only where T is REAL: see ops/softmax_row.c */
    }
}

#if EXP_MANTISSA == 23
/* The first W rows, grouped, of up to GROUPED_SOFTMAX_LENGTH floats, at T = 1.  Returns 0, with nothing written, if a
 * row is not ordinary. */
static int FN(grouped_softmax_rows)(const csm_rows_job *job) {
    REAL r[V(W)], r_low[V(W)];
    FN(rows) g;
    if (!FN(exp_rows_store)(job, job->result, job->result_step, &g)) return 0;
    FN(reciprocals)(g.sums, r, r_low);
    for (int i = 0; i < V(W); i++) {
        T *y = (T *)(void *)(job->result + i * job->result_step);
        const csm_row row = {.r = (double)r[i], .r_low = (double)r_low[i]};
        if (r[i] != r[i]) FN(fill)(y, job->n, CSM_NAN);
        else FN(scale)((const REAL *)(const void *)y, y, job->n, &row, 0, &g.last[i]);
    }
    return 1;
}
#endif

static size_t FN(softmax_rows)(const csm_rows_job *job) {
    const csm_temperature *t = job->temperature;
    if (job->n <= 16) return FN(small_rows)(job, CSM_OP_softmax);
    double max = 0; /* of the next row: found while the scalar work for this one is in flight */
    int is_known = 0;
    /* On Zen 4 prefetching both costs (4096, 1000) 12 %, prefetching results costs (4096, 4000) 7 %; on Zen 3 it saves
     * a fifth. */
    const int prefetches =
        job->prefetch == CSM_PREFETCH_ALL || (job->prefetch == CSM_PREFETCH_LONG && job->n > EARLY_MAX_LENGTH);
    for (size_t i = 0; i < job->rows; i++) {
        const T *x = (const T *)(job->input + FN(row_offset)(job, i, job->input_step));
        T *y = (T *)(job->result + FN(row_offset)(job, i, job->result_step));
        const size_t n = FN(row_length)(job, i);
        REAL *e = STORED_AS_REAL ? (REAL *)(void *)y : job->scratch;
        V(t) last;
        csm_block block;
        csm_row row;
#if EXP_MANTISSA == 23
        csm_rows_job group_job = *job;
        group_job.input = (const char *)x;
        group_job.result = (char *)y;
        if (STORED_AS_REAL && V(W) == 8 && !t->tempered && !job->indptr && job->n <= GROUPED_SOFTMAX_LENGTH &&
            i % V(W) == 0 && job->rows - i >= V(W) &&FN(grouped_softmax_rows)(&group_job)) {
            i += V(W) - 1;
            is_known = 0;
            continue;
        }
#endif
        block.max = is_known ? max : FN(max)(x, n);
        if (!csm_is_ordinary(t, block.max)) return i;
        FN(exp_store)(x, e, n, t, &block, &last, prefetches ? (const char *)x + job->input_step : NULL,
                      job->prefetch == CSM_PREFETCH_ALL ? (const char *)y + job->result_step : NULL);
        csm_reciprocal(block.hi, block.lo, EXP_MANTISSA == 23, &row);
        is_known = i + 1 < job->rows && FN(row_length)(job, i + 1) <= EARLY_MAX_LENGTH;
        if (is_known)
            max = FN(max)(job->input + FN(row_offset)(job, i + 1, job->input_step), FN(row_length)(job, i + 1));
        if (row.is_nan) FN(fill)(y, n, CSM_NAN);
        else FN(scale)(e, y, n, &row, 0, &last);
    }
    return job->rows;
}

/* Conversions between storage and compute type, for drivers that work on the compute type. */
static void FN(widen)(const void *from, void *to, size_t k) {
    const T *x = from;
    REAL *y = to;
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) V(STORE_REAL)(y + i, LOAD(x + i));
    if (i < k) V(STORE_PART_REAL)(y + i, k - i, LOAD_PART(x + i, k - i, V(zero)()));
}
static void FN(narrow)(const void *from, void *to, size_t k) {
    const REAL *x = from;
    T *y = to;
    size_t i = 0;
    for (; i < k; i += V(W)) {
        V(t) v = k - i >= V(W) ? V(LOAD_REAL)(x + i) : V(LOAD_PART_REAL)(x + i, k - i, V(zero)());
        v = V(select)(V(ordered)(v), v, V(set)(CSM_NAN));
        if (k - i >= V(W)) STORE(y + i, v);
        else STORE_PART(y + i, k - i, v);
    }
}
