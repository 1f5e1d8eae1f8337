/* softmax, log_softmax and logsumexp of contiguous rows, for one storage type T (FN(name) = name_<suffix>).
 *
 *   softmax      y_j = e'_j / sum e',   e'_j = P(r_j) 2^(n_j - n0 + B)           (math.inc.h)
 *   log_softmax  y_j = (x_j - m)/T - log1p((c - 1) + S'/e'_m)                    c maxima, S' the sum of the others
 *   logsumexp    m/T + log1p((c - 1) + S'/e'_m)
 *
 * Passes: maximum; e' and its sum (softmax stores e'); result.  Rows longer than CSM_BLOCK are computed block by
 * block, each with its own n0, and combined exactly (scalars.h): that is the specification.
 * Sums: sum.inc.h.  NaN: the maximum drops it, the sum keeps it, the whole row becomes the canonical NaN.
 * Maxima that are infinite, NaN or beyond the limit are left to special.c.
 * Measured: ACCURACY.md.
 */
#ifndef FN
#error "forward.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

static double FN(max)(const void *from, size_t k) {
    const T *x = from;
    V(t) low = V(set)(-CSM_INF), a = low, b = low, c = low, d = low;
    size_t i = 0;
    for (; i + 4 * V(W) <= k; i += 4 * V(W)) {
        a = V(max)(LOAD(x + i), a);
        b = V(max)(LOAD(x + i + V(W)), b);
        c = V(max)(LOAD(x + i + 2 * V(W)), c);
        d = V(max)(LOAD(x + i + 3 * V(W)), d);
    }
    for (; i + V(W) <= k; i += V(W)) a = V(max)(LOAD(x + i), a);
    if (i < k) b = V(max)(LOAD_PART(x + i, k - i, low), b);
    return (double)V(top)(V(max)(V(max)(a, b), V(max)(c, d)));
}

INLINE int FN(ordinary)(double max, const csm_temperature *t) { return max <= t->limit && max >= -t->limit; }

/* The second pass: e' of every element, their sums to block.  store: e' goes to e.  exact: the log family, which
 * keeps elements equal to the maximum out of the sum and counts them.  ahead: what to prefetch meanwhile. */
INLINE void FN(exp_sum)(const T *x, REAL *e, size_t k, const csm_temperature *t, csm_block *block, const int tempered,
                        const int store, const int exact, const char *ahead) {
    double ref = block->max;
    ref = ref > t->reference_limit ? t->reference_limit : ref;
    ref = ref < -t->reference_limit ? -t->reference_limit : ref;
    V(t) low = V(set)(-CSM_INF), m = V(set)(block->max), n0;
    V(t) count = V(zero)(), partial[V(PARTIALS)];
    V(shift) s = V(shift_to)(V(set)(ref), t, tempered, &n0);
    V(sum) sum;
    size_t i = 0;
    V(sum_zero)(&sum);
    for (; i + CSM_GROUP <= k; i += CSM_GROUP) {
        UNROLL
        for (int l = 0; l < 32; l += V(W)) {
            V(t) y[4];
            UNROLL
            for (int h = 0; h < 4; h++) {
                V(t) z = LOAD(x + i + l + 32 * h);
                y[h] = V(exp_value)(z, s, tempered);
                if (store) V(STORE_REAL)(e + i + l + 32 * h, y[h]);
                if (exact) {
                    V(mask) is_max = V(eq)(z, m);
                    count = V(add)(count, V(keep)(is_max, V(set)(1)));
                    y[h] = V(drop)(is_max, y[h]);
                }
            }
            partial[l / V(W)] = V(sum_four)(&sum, (int)(l / V(W)), y[0], y[1], y[2], y[3]);
        }
        if (ahead) {
            for (size_t at = 0; at < CSM_GROUP * sizeof(T); at += 64) PREFETCH(ahead + i * sizeof(T) + at);
        }
        V(sum_group)(&sum, partial);
    }
    if (i < k) {
        for (size_t l = 0; l < 32; l += V(W)) {
            V(t) y[4];
            UNROLL
            for (int h = 0; h < 4; h++) {
                size_t at = i + l + 32 * (size_t)h;
                y[h] = V(zero)();
                if (at >= k) continue;
                V(t) z = at + V(W) <= k ? LOAD(x + at) : LOAD_PART(x + at, k - at, low);
                y[h] = V(exp_value)(z, s, tempered);
                if (store) {
                    if (at + V(W) <= k) V(STORE_REAL)(e + at, y[h]);
                    else V(STORE_PART_REAL)(e + at, k - at, y[h]);
                }
                if (exact) {
                    V(mask) is_max = V(eq)(z, m);
                    if (at + V(W) > k) /* the filler equals a maximum of -inf */
                        is_max = V(eq)(LOAD_PART(x + at, k - at, V(set)(CSM_NAN)), m);
                    count = V(add)(count, V(keep)(is_max, V(set)(1)));
                    y[h] = V(drop)(is_max, y[h]);
                }
            }
            partial[l / V(W)] = V(sum_four)(&sum, (int)(l / V(W)), y[0], y[1], y[2], y[3]);
        }
        V(sum_group)(&sum, partial);
    }
    V(sum_total)(&sum, &block->hi, &block->lo);
    REAL n[V(W)];
    V(STORE_REAL)(n, n0);
    block->n = (double)n[0];
    if (exact) {
        V(STORE_REAL)(n, V(exp_value)(V(set)(ref), s, tempered));
        block->top = (double)n[0];
        block->count = V(sum_exact)(count);
    }
}

/* One copy of each form, whoever calls it: the code is long. */
static NOINLINE void FN(exp_store)(const T *x, REAL *e, size_t k, const csm_temperature *t, csm_block *block, const char *ahead) {
    if (t->tempered) FN(exp_sum)(x, e, k, t, block, 1, 1, 0, ahead);
    else FN(exp_sum)(x, e, k, t, block, 0, 1, 0, ahead);
}
static NOINLINE void FN(exp_only)(const T *x, size_t k, const csm_temperature *t, csm_block *block) {
    if (t->tempered) FN(exp_sum)(x, NULL, k, t, block, 1, 0, 0, NULL);
    else FN(exp_sum)(x, NULL, k, t, block, 0, 0, 0, NULL);
}
static NOINLINE void FN(exp_exact)(const T *x, size_t k, const csm_temperature *t, csm_block *block, const char *ahead) {
    if (t->tempered) FN(exp_sum)(x, NULL, k, t, block, 1, 0, 1, ahead);
    else FN(exp_sum)(x, NULL, k, t, block, 0, 0, 1, ahead);
}

static void FN(fill)(T *y, size_t k, double value) {
    V(t) v = V(set)(value);
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, v);
    if (i < k) STORE_PART(y + i, k - i, v);
}

/* softmax */

static void FN(softmax_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t, csm_block *block) {
    (void)b;
    block->max = FN(max)(a, k);
    if (e) FN(exp_store)(a, e, k, t, block, NULL);
    else FN(exp_only)(a, k, t, block);
}

static void FN(softmax_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    (void)t;
    csm_combine_softmax(blocks, count, EXP_MANTISSA == 23, row);
}

INLINE V(t) FN(scaled)(V(t) e, V(t) r, V(t) r_low) { return V(fma)(e, r, V(mul)(e, r_low)); }

/* y = e' 2^d / sum.  Where r 2^d could be subnormal the power of two comes first. */
INLINE void FN(scale)(const REAL *e, T *y, size_t k, const csm_row *row, double d) {
    size_t i = 0;
    if (d >= -EXP_SAFE) {
        V(t) f = V(set)(row->r * csm_pow2(d)), f_low = V(set)(row->r_low * csm_pow2(d));
        for (; i + 2 * V(W) <= k; i += 2 * V(W)) {
            STORE(y + i, FN(scaled)(V(LOAD_REAL)(e + i), f, f_low));
            STORE(y + i + V(W), FN(scaled)(V(LOAD_REAL)(e + i + V(W)), f, f_low));
        }
        for (; i + V(W) <= k; i += V(W)) STORE(y + i, FN(scaled)(V(LOAD_REAL)(e + i), f, f_low));
        if (i < k) STORE_PART(y + i, k - i, FN(scaled)(V(LOAD_PART_REAL)(e + i, k - i, f), f, f_low));
    } else {
        V(t) g = V(set)(d + EXP_SAFE < 1 - EXP_EXPONENT_BIAS ? 0 : csm_pow2(d + EXP_SAFE));
        V(t) f = V(set)(row->r * csm_pow2(-EXP_SAFE)), f_low = V(set)(row->r_low * csm_pow2(-EXP_SAFE));
        for (; i + V(W) <= k; i += V(W)) STORE(y + i, FN(scaled)(V(mul)(g, V(LOAD_REAL)(e + i)), f, f_low));
        if (i < k) STORE_PART(y + i, k - i, FN(scaled)(V(mul)(g, V(LOAD_PART_REAL)(e + i, k - i, f)), f, f_low));
    }
}

static void FN(softmax_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                              const csm_row *row, const csm_block *block) {
    REAL e[CSM_BLOCK];
    (void)b;
    if (row->is_nan) {
        FN(fill)(y, k, CSM_NAN);
    } else if (a) {
        csm_block again = *block;
        FN(exp_store)(a, e, k, t, &again, NULL);
        FN(scale)(e, y, k, row, block->n - row->n);
    } else {
        FN(scale)((const REAL *)y, y, k, row, block->n - row->n); /* row.c: only where T is REAL */
    }
}

static size_t FN(softmax_rows)(const csm_rows_job *job) {
    const csm_temperature *t = job->temperature;
    for (size_t i = 0; i < job->rows; i++) {
        const T *x = (const T *)(job->a + (ptrdiff_t)i * job->a_step);
        T *y = (T *)(job->y + (ptrdiff_t)i * job->y_step);
        REAL *e = STORED_AS_REAL ? (REAL *)(void *)y : job->scratch;
        csm_block block;
        csm_row row;
        block.max = FN(max)(x, job->n);
        if (!FN(ordinary)(block.max, t)) return i;
        FN(exp_store)(x, e, job->n, t, &block, (const char *)x + job->a_step);
        FN(softmax_combine)(&block, 1, t, &row);
        if (row.is_nan) FN(fill)(y, job->n, CSM_NAN);
        else FN(scale)(e, y, job->n, &row, 0);
    }
    return job->rows;
}

/* log_softmax and logsumexp */

static void FN(log_softmax_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t, csm_block *block) {
    (void)b;
    (void)e;
    block->max = FN(max)(a, k);
    FN(exp_exact)(a, k, t, block, NULL);
}

static void FN(log_softmax_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    (void)t;
    csm_combine_log(blocks, count, row);
}

/* (x - m)/T - tail: both terms have one sign, so nothing cancels. */
static void FN(log_softmax_pass2)(const void *a, const void *b, void *to, size_t k, const csm_temperature *t,
                                  const csm_row *row, const csm_block *block) {
    const T *x = a;
    T *y = to;
    V(t) m = V(set)(row->max), inv_t = V(set)(t->inv_t), tail = V(set)(-row->tail);
    size_t i = 0;
    (void)b;
    (void)block;
    if (row->is_nan) {
        FN(fill)(y, k, CSM_NAN);
        return;
    }
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, V(fma)(V(sub)(LOAD(x + i), m), inv_t, tail));
    if (i < k) STORE_PART(y + i, k - i, V(fma)(V(sub)(LOAD_PART(x + i, k - i, m), m), inv_t, tail));
}

static void FN(logsumexp_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                                const csm_row *row, const csm_block *block) {
    (void)a;
    (void)b;
    (void)k;
    (void)block;
    FN(fill)(y, 1, row->is_nan ? CSM_NAN : row->max / t->t + row->tail);
}

INLINE size_t FN(log_rows)(const csm_rows_job *job, const int keeps_axis) {
    const csm_temperature *t = job->temperature;
    for (size_t i = 0; i < job->rows; i++) {
        const T *x = (const T *)(job->a + (ptrdiff_t)i * job->a_step);
        T *y = (T *)(job->y + (ptrdiff_t)i * job->y_step);
        csm_block block;
        csm_row row;
        block.max = FN(max)(x, job->n);
        if (!FN(ordinary)(block.max, t)) return i;
        FN(exp_exact)(x, job->n, t, &block, (const char *)x + job->a_step);
        csm_combine_log(&block, 1, &row);
        if (keeps_axis) FN(log_softmax_pass2)(x, NULL, y, job->n, t, &row, &block);
        else FN(logsumexp_pass2)(x, NULL, y, 1, t, &row, &block);
    }
    return job->rows;
}
static size_t FN(log_softmax_rows)(const csm_rows_job *job) { return FN(log_rows)(job, 1); }
static size_t FN(logsumexp_rows)(const csm_rows_job *job) { return FN(log_rows)(job, 0); }

/* Half types are storage; these two let special.c work on the compute type. */
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
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, V(LOAD_REAL)(x + i));
    if (i < k) STORE_PART(y + i, k - i, V(LOAD_PART_REAL)(x + i, k - i, V(zero)()));
}
