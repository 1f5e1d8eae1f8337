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
    v64_t sums[V(PARTS)], far[V(PARTS)]; /* exact: without the maxima; far: of entropies only */
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

/* The same for rows with temperatures of their own, t[r], other than 1: all of *s differs from row to row. */
typedef struct FN(own_constants) {
    REAL log2e[V(W)], ln2_hi[V(W)], ln2_lo[V(W)], inv_t[V(W)], inv_t_low[V(W)];
} FN(own_constants);
INLINE int FN(own_shift)(const V(t) *tops, const csm_temperature *t, FN(own_constants) * c, REAL *magic, REAL *lowest,
                         REAL *max, REAL *n) {
    const V(t) all = V(tops)(tops);
    V(STORE_REAL)(max, all);
    for (size_t r = 0; r < V(W); r++) {
        if (!csm_is_ordinary(&t[r], (double)max[r])) return 0;
        c->log2e[r] = (REAL)t[r].log2e;
        c->ln2_hi[r] = (REAL)t[r].ln2_hi;
        c->ln2_lo[r] = (REAL)t[r].ln2_lo;
        c->inv_t[r] = (REAL)t[r].inv_t;
        c->inv_t_low[r] = (REAL)t[r].inv_t_low;
    }
    const V(t) magic_number = V(set)(EXP_MAGIC);
    const V(t) n0 = V(sub)(V(fma)(all, V(LOAD_REAL)(c->log2e), magic_number), magic_number);
    const V(t) bias = V(sub)(V(set)(EXP_EXPONENT_BIAS + EXP_BIAS), n0);
    V(STORE_REAL)(magic, V(add)(magic_number, bias));
    V(STORE_REAL)(lowest, V(fnma)(bias, V(LOAD_REAL)(c->ln2_hi), V(zero)()));
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

/* Computes e' and the sums of a group.  tempered: 2 if t points to a temperature for each row.  each: the rows, of up
 * to n elements; NULL: all of n, `step` bytes apart from a on.  Returns 0 if a row is not ordinary. */
INLINE int FN(group_exp)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                         const size_t max_vectors, const int tempered, const int exact, const int entropy,
                         const csm_short_rows *each) {
    const size_t used = USED(n, max_vectors), left = n - (used - 1) * V(W);
    const V(t) low = V(set)(-CSM_INF);
    REAL (*z)[16] = exact ? g->z : g->e, magic[V(W)], lowest[V(W)];
    V(t) tops[V(W)];
    v64_t sums[V(W)][V(EIGHT)], far_sums[V(W)][V(EIGHT)];
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
    FN(own_constants) own;
    if (!(tempered == 2 ? FN(own_shift)(tops, t, &own, magic, lowest, g->max, g->n)
                        : FN(rows_shift)(tops, t, tempered, &s, magic, lowest, g->max, g->n)))
        return 0;
    for (size_t r = 0; r < V(W); r++) {
        V(sum) sum;
        V(t) y[V(SIXTEEN)];
        unsigned count = 0;
        s.magic = V(splat)(magic + r);
        s.lowest = V(splat)(lowest + r);
        if (tempered == 2) {
            s.log2e = V(splat)(own.log2e + r);
            s.ln2_hi = V(splat)(own.ln2_hi + r);
            s.ln2_lo = V(splat)(own.ln2_lo + r);
            s.inv_t = V(splat)(own.inv_t + r);
            s.inv_t_low = V(splat)(own.inv_t_low + r);
        }
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
        if (!entropy) continue;
        const V(distances) far = V(distances_from)((double)g->max[r], s.lowest, csm_distance_scale(t));
        UNROLL
        for (size_t v = 0; v < V(SIXTEEN); v++)
            if (v < used) y[v] = V(mul)(y[v], V(distance)(&far, V(LOAD_REAL)(z[r] + v * V(W)), tempered));
        V(sum_sixteen)(&sum, y);
        V(sum_eight)(&sum, far_sums[r]);
    }
    V(trees)((const v64_t(*)[V(EIGHT)])sums, g->sums);
    if (entropy) V(trees)((const v64_t(*)[V(EIGHT)])far_sums, g->far);
    return 1;
}

/* Computes e', the sums and the tails of a group.  Returns 0 if a row is NaN or not ordinary. */
INLINE int FN(group_log_of)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                            csm_tails *s, const size_t max_vectors, const int tempered, const int entropy,
                            const csm_short_rows *each) {
    double check = 0;
    if (!FN(group_exp)(g, a, step, n, t, max_vectors, tempered, 1, entropy, each)) return 0;
    for (int p = 0; p < V(PARTS); p++) v64_store_f64(s->sum + p * v64_W, g->sums[p]);
    for (int p = 0; entropy && p < V(PARTS); p++) v64_store_f64(s->far + p * v64_W, g->far[p]);
    for (int r = 0; r < V(W); r++) {
        s->max[r] = (double)g->max[r];
        s->n[r] = (double)g->n[r];
        s->count[r] = g->count[r];
        check += s->sum[r] * 0;
    }
    csm_find_tails(s, t->t, EXP_BIAS);
    if (entropy) csm_find_entropies(s, t);
    return check == 0;
}
/* Out of line on purpose: the body is large and has several callers. */
static NOINLINE int FN(group_log)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                                  csm_tails *s) {
    if (ONE_VECTOR(n))
        return t->tempered ? FN(group_log_of)(g, a, step, n, t, s, 1, 1, 0, NULL)
                           : FN(group_log_of)(g, a, step, n, t, s, 1, 0, 0, NULL);
    return t->tempered ? FN(group_log_of)(g, a, step, n, t, s, 2, 1, 0, NULL)
                       : FN(group_log_of)(g, a, step, n, t, s, 2, 0, 0, NULL);
}
/* The same for entropies, which are left in s->tail. */
static NOINLINE int FN(group_entropy)(FN(group) * g, const char *a, ptrdiff_t step, size_t n, const csm_temperature *t,
                                      csm_tails *s) {
    if (ONE_VECTOR(n))
        return t->tempered ? FN(group_log_of)(g, a, step, n, t, s, 1, 1, 1, NULL)
                           : FN(group_log_of)(g, a, step, n, t, s, 1, 0, 1, NULL);
    return t->tempered ? FN(group_log_of)(g, a, step, n, t, s, 2, 1, 1, NULL)
                       : FN(group_log_of)(g, a, step, n, t, s, 2, 0, 1, NULL);
}

/* Stores vector v of a row. */
INLINE void FN(group_store)(T *y, size_t n, size_t v, V(t) result) {
    const size_t left = n - v * V(W);
    if (left >= V(W)) STORE(y + v * V(W), result);
    else STORE_PART(y + v * V(W), left, result);
}
#endif
