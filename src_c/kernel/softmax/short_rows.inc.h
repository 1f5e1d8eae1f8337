/* Rows of up to 16 elements of a type that is computed in float, in groups of as many rows as a vector has lanes: their
 * maxima, reference exponents and sums are found side by side.  Formulas, sums (in double) and bits, and so the errors,
 * are those of `tiny_rows` in forward.inc.h.  Memory is read once and written once.  A group with a row that is NaN, or
 * whose maximum is infinite or beyond the limit, is left to the caller.
 *
 * 10 elements, AVX-512, one thread: softmax 6 ns per row, log_softmax 8 (one row at a time 30), a loss and its gradient
 * 13 (49).
 */
#ifndef FN
#error "short_rows.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

#if EXP_MANTISSA == 23
typedef struct FN(group) {
    REAL z[V(W)][16], e[V(W)][16]; /* whole vectors; z only if exact, -inf beyond the row */
    REAL max[V(W)], n[V(W)];
    v64_t sums[V(PARTS)]; /* exact: without the maxima */
    double count[V(W)]; /* exact: number of maxima */
} FN(group);

/* Number of vectors of a row.  max_vectors: 1 if a row fits one vector, else 2; a constant, so that loops over the
 * vectors are unrolled completely. */
#define ONE_VECTOR(n) (V(SIXTEEN) != 2 || (n) <= V(W))
#define USED(n, max_vectors) (V(SIXTEEN) == 1 ? 1 : V(SIXTEEN) == 2 ? (max_vectors) : ((n) + V(W) - 1) / V(W))

/* Computes the constants of W rows, from a vector for each row whose largest lane is its maximum: *s, whose magic and
 * lowest differ from row to row, and each row's maximum and n.  Returns 0 if a row is not ordinary. */
INLINE int FN(rows_shift)(const V(t) *tops, const csm_temperature *t, const int tempered, V(shift) *s, REAL *magic,
                          REAL *lowest, REAL *max, REAL *n) {
    V(t) all = V(tops)(tops), n0;
    if (!((double)V(top)(V(max)(all, V(sub)(V(zero)(), all))) <= t->limit)) return 0;
    *s = V(shift_to)(all, t, tempered, &n0);
    V(STORE_REAL)(magic, s->magic);
    V(STORE_REAL)(lowest, s->lowest);
    V(STORE_REAL)(max, all);
    V(STORE_REAL)(n, n0);
    return 1;
}

/* Elements [v V(W), v V(W) + V(W)) of a row of n, those beyond it -inf: without a branch, which differences between
 * neighbouring rows would mispredict. */
INLINE V(t) FN(short_part)(const T *x, size_t n, size_t v) {
    size_t left = n > v * V(W) ? n - v * V(W) : 0;
    left = left < V(W) ? left : V(W);
    return LOAD_PART(x + v * V(W), left, V(set)(-CSM_INF));
}

/* Computes e' and the sums of a group.  each: the rows, of up to n elements; NULL: all of n, `step` bytes apart from a
 * on.  Returns 0 if a row is not ordinary. */
INLINE int FN(group_exp)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                         const size_t max_vectors, const int tempered, const int exact, const csm_short_rows *each) {
    const size_t used = USED(n, max_vectors), left = n - (used - 1) * V(W);
    const V(t) low = V(set)(-CSM_INF);
    REAL (*z)[16] = exact ? g->z : g->e, magic[V(W)], lowest[V(W)];
    V(t) tops[V(W)];
    v64_t sums[V(W)][V(EIGHT)];
    for (size_t r = 0; r < V(W); r++) {
        const T *x = (const T *)(const void *)(each ? each->x[r] : a + (ptrdiff_t)r * step);
        tops[r] = low;
        UNROLL
        for (size_t v = 0; v < used; v++) {
            V(t) part;
            if (each) part = FN(short_part)(x, each->n[r], v);
            else part = v + 1 < used || left == V(W) ? LOAD(x + v * V(W)) : LOAD_PART(x + v * V(W), left, low);
            tops[r] = V(max)(part, tops[r]);
            V(STORE_REAL)(z[r] + v * V(W), part);
        }
    }
    V(shift) s;
    if (!FN(rows_shift)(tops, t, tempered, &s, magic, lowest, g->max, g->n)) return 0;
    for (size_t r = 0; r < V(W); r++) {
        V(sum) sum;
        V(t) y[V(SIXTEEN)];
        unsigned count = 0;
        s.magic = V(splat)(magic + r);
        s.lowest = V(splat)(lowest + r);
        UNROLL
        for (size_t v = 0; v < V(SIXTEEN); v++) {
            y[v] = V(zero)();
            if (v >= used) continue;
            V(t) part = V(LOAD_REAL)(z[r] + v * V(W));
            y[v] = V(exp_value)(part, s, tempered);
            V(STORE_REAL)(g->e[r] + v * V(W), y[v]);
            if (!exact) continue;
            const V(mask) is_max = V(eq)(part, V(splat)(g->max + r));
            count += CSM_BIT_COUNT(V(bits)(is_max));
            y[v] = V(drop)(is_max, y[v]);
        }
        g->count[r] = (double)count;
        V(sum_sixteen)(&sum, y);
        V(sum_eight)(&sum, sums[r]);
    }
    V(trees)((const v64_t(*)[V(EIGHT)])sums, g->sums);
    return 1;
}

/* Computes e', the sums and the tails of a group.  Returns 0 if a row is NaN or not ordinary. */
INLINE int FN(group_log_of)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                            csm_tails *s, const size_t max_vectors, const int tempered, const csm_short_rows *each) {
    double check = 0;
    if (!FN(group_exp)(g, a, step, n, t, max_vectors, tempered, 1, each)) return 0;
    for (int p = 0; p < V(PARTS); p++) v64_store_f64(s->sum + p * v64_W, g->sums[p]);
    for (int r = 0; r < V(W); r++) {
        s->max[r] = (double)g->max[r];
        s->n[r] = (double)g->n[r];
        s->count[r] = g->count[r];
        check += s->sum[r] * 0;
    }
    csm_find_tails(s, t->t, EXP_BIAS);
    return check == 0;
}
/* Out of line on purpose: the body is large and has several callers. */
static NOINLINE int FN(group_log)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                                  csm_tails *s) {
    if (ONE_VECTOR(n))
        return t->tempered ? FN(group_log_of)(g, a, step, n, t, s, 1, 1, NULL)
                           : FN(group_log_of)(g, a, step, n, t, s, 1, 0, NULL);
    return t->tempered ? FN(group_log_of)(g, a, step, n, t, s, 2, 1, NULL)
                       : FN(group_log_of)(g, a, step, n, t, s, 2, 0, NULL);
}

/* Stores vector v of a row. */
INLINE void FN(group_store)(T *y, size_t n, size_t v, V(t) result) {
    const size_t left = n - v * V(W);
    if (left >= V(W)) STORE(y + v * V(W), result);
    else STORE_PART(y + v * V(W), left, result);
}
#endif
