/* Gradients of softmax and log_softmax for contiguous rows, one storage type T.
 *
 *   softmax_vjp      dx_j = y_j ((dy_j - s_hi) - s_lo) / T,           s = sum dy y
 *   log_softmax_vjp  dx_j = (dy_j - s 2^n_j - s em1_j) / T,           s = sum dy,  e^y = 2^n + em1
 *
 * Passes: the dot product (sum.inc.h; s is a pair in the compute type, so that dy - s keeps its digits where one
 * class dominates); the result.  The split of e^y makes 1 - e^y exact near y = 0, where log_softmax has kept the
 * tail.  Elements with y = 0 (log: y = -inf) take no part: their dy does not matter, their dx is +0.
 * NaN elsewhere is written as the canonical NaN.
 * For T > 1 the quotient comes last, for T < 1 first; there y_j / T is rounded as a subnormal number if y_j is one.
 * Measured error (ACCURACY.md): 3.1 ULP of dx (softmax, beyond the rounding of s), of max(|dy - s 2^n|, |s em1|)/T
 * (log); float64 1.3.
 */
#ifndef FN
#error "vjp.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

INLINE void FN(dot)(const T *dy, const T *y, size_t k, csm_block *block, const int log) {
    V(dot) dot;
    V(t) absent = V(set)(log ? -CSM_INF : 0), one = V(set)(1);
    enum { PER = 16 / V(W) };
    size_t i = 0;
    V(dot_zero)(&dot);
    for (; i + 16 <= k; i += 16) {
        UNROLL
        for (int v = 0; v < PER; v++) {
            V(t) b = LOAD(y + i + v * V(W)), a = V(drop)(V(eq)(b, absent), LOAD(dy + i + v * V(W)));
            V(dot_add)(&dot, v, a, log ? one : b);
        }
    }
    UNROLL
    for (int v = 0; v < PER; v++) {
        size_t at = i + (size_t)v * V(W);
        if (at >= k) continue;
        V(t) a, b;
        if (at + V(W) <= k) {
            a = LOAD(dy + at);
            b = LOAD(y + at);
        } else {
            a = LOAD_PART(dy + at, k - at, V(zero)());
            b = LOAD_PART(y + at, k - at, absent);
        }
        a = V(drop)(V(eq)(b, absent), a);
        V(dot_add)(&dot, v, a, log ? one : b);
    }
    V(dot_total)(&dot, &block->hi, &block->lo);
}

static void FN(softmax_vjp_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t,
                                  csm_block *block) {
    (void)e;
    (void)t;
    FN(dot)(a, b, k, block, 0);
}
static void FN(log_softmax_vjp_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t,
                                      csm_block *block) {
    (void)e;
    (void)t;
    FN(dot)(a, b, k, block, 1);
}
static void FN(vjp_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    (void)t;
    csm_combine_pair(blocks, count, EXP_MANTISSA == 23, row);
}

INLINE void FN(vjp_pass2)(const T *dy, const T *y, T *dx, size_t k, const csm_temperature *t, const csm_row *row,
                          const int log) {
    V(vjp_constants) c = V(vjp_set)(t, row, log);
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) STORE(dx + i, V(vjp_element)(LOAD(dy + i), LOAD(y + i), c, log));
    if (i < k)
        STORE_PART(dx + i, k - i,
                   V(vjp_element)(LOAD_PART(dy + i, k - i, V(zero)()), LOAD_PART(y + i, k - i, c.absent), c, log));
}
static void FN(softmax_vjp_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                                  const csm_row *row, const csm_block *block) {
    (void)block;
    FN(vjp_pass2)(a, b, y, k, t, row, 0);
}
static void FN(log_softmax_vjp_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                                      const csm_row *row, const csm_block *block) {
    (void)block;
    FN(vjp_pass2)(a, b, y, k, t, row, 1);
}

INLINE size_t FN(vjp_rows)(const csm_rows_job *job, const int log) {
    for (size_t i = 0; i < job->rows; i++) {
        const T *dy = (const T *)(job->a + (ptrdiff_t)i * job->a_step);
        const T *y = (const T *)(job->b + (ptrdiff_t)i * job->b_step);
        csm_block block;
        csm_row row;
        FN(dot)(dy, y, job->n, &block, log);
        FN(vjp_combine)(&block, 1, job->temperature, &row);
        FN(vjp_pass2)(dy, y, (T *)(job->y + (ptrdiff_t)i * job->y_step), job->n, job->temperature, &row, log);
    }
    return job->rows;
}
static size_t FN(softmax_vjp_rows)(const csm_rows_job *job) { return FN(vjp_rows)(job, 0); }
static size_t FN(log_softmax_vjp_rows)(const csm_rows_job *job) { return FN(vjp_rows)(job, 1); }
