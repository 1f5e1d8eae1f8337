/* alpha-entmax of a contiguous row and its gradient, one storage type T.  The numbers above max - 1/(alpha - 1), the
 * only ones that can have probability, are copied to doubles; solve.h does the rest.
 *
 * Accumulators: double, or pairs of doubles, for every T.  Largest error measured (tests/ops/test_entmax.py, against
 * mpmath): 0.51 ULP of T; for double with an alpha other than 1.5 and 2, that of a change of tau by 2^-53.
 * Time: two passes over the row and one over the result; each survivor of the filter costs a few ns.
 * A row with NaN, +inf or only -inf is NaN.
 */
#ifndef FN
#error "entmax.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* Finds the survivors of [0, n): greater than the bound, or NaN.  All are counted; they are stored while there is
 * space. */
INLINE size_t FN(survivors)(const T *x, size_t n, REAL bound, csm_support *s) {
    const V(t) limit = V(set)((double)bound);
    size_t count = 0;
    for (size_t i = 0; i < n; i += V(W)) {
        if (i % CSM_POLL_STEP == CSM_POLL_STEP - V(W) && csm_support_stops(s, CSM_POLL_STEP - 1)) break;
        const size_t k = n - i < V(W) ? n - i : V(W);
        V(t) v = k == V(W) ? LOAD(x + i) : LOAD_PART(x + i, k, limit);
        unsigned bits = V(bits)(V(not_le)(v, limit));
        if (!bits) continue;
        REAL lane[V(W)];
        V(STORE_REAL)(lane, v);
        for (; bits; bits &= bits - 1) {
            const size_t j = CSM_LOWEST_BIT(bits);
            if (count < s->capacity) {
                s->z[count] = (double)lane[j];
                s->index[count] = i + j;
            }
            count++;
        }
    }
    return count;
}

/* Returns the number of survivors of the filter; if more than s->capacity, it must be called again with more space. */
static size_t FN(support)(const void *from, size_t n, const csm_entmax *e, csm_support *s) {
    const T *x = from;
    double max = -CSM_INF;
    for (size_t begin = 0; begin < n; begin += CSM_POLL_STEP) {
        const double part = FN(max)(x + begin, n - begin < CSM_POLL_STEP ? n - begin : CSM_POLL_STEP);
        if (part > max || begin == 0) max = part;
        if (n > CSM_POLL_STEP && csm_support_stops(s, CSM_POLL_STEP - 1)) return 0;
    }
    s->max = max;
    s->is_nan = !(max > -CSM_INF && max < CSM_INF);
    s->count = 0;
    if (s->is_nan) return 0;
    /* rounded down: one more survivor changes no result */
    const double lower = max - 1 / e->scale;
    REAL bound = lower < -EXP_MOST ? -(REAL)CSM_INF : (REAL)lower;
    if ((double)bound >= lower && bound > -(REAL)CSM_INF) bound = V(below)(bound);
    const size_t count = FN(survivors)(x, n, bound, s);
    if (count > s->capacity || s->is_stopped) return count;
    for (size_t i = 0; i < count; i++) {
        if (csm_support_stops(s, i)) return count;
        double d = -max, low = 0;
        if (s->z[i] != s->z[i]) s->is_nan = 1;
        if (e->single && e->kind != CSM_ENTMAX_ANY) {
            s->z[i] = (s->z[i] - max) * e->scale; /* exact, or more precise than float */
            continue;
        }
        csm_two_sum(&d, &low, s->z[i]);
        s->z[i] = d * e->scale;
        s->z_low[i] = fma(d, e->scale, -s->z[i]) + low * e->scale;
    }
    if (s->is_nan) return 0;
    for (size_t i = count; i < (count + 7) / 8 * 8; i++) s->z[i] = -CSM_INF;
    s->count = count;
    csm_entmax_solve(s, e);
    return count;
}

/* Writes the row of probabilities, times factor. */
static void FN(spread)(csm_support *s, double factor, void *to, size_t n) {
    T *y = to;
    for (size_t i = 0; i < n; i += CSM_POLL_STEP) {
        FN(fill)(y + i, n - i < CSM_POLL_STEP ? n - i : CSM_POLL_STEP, s->is_nan ? CSM_NAN : 0);
        if (n > CSM_POLL_STEP && csm_support_stops(s, CSM_POLL_STEP - 1)) return;
    }
    for (size_t i = 0; i < s->count; i++) {
        STORE_PART(y + s->index[i], 1, V(set)(s->p[i] * factor));
        if (csm_support_stops(s, i)) return;
    }
}

/* dx = s (dy - sum(s dy) / sum(s)), s = y^(2 - alpha) where y > 0; sums as pairs; dx = 0 elsewhere, for any dy. */
static void FN(entmax_vjp)(const void *dy, const void *y, void *dx, size_t n, const csm_entmax *e,
                           const csm_poll *poll) {
    const T *g = dy, *p = y;
    T *to = dx;
    double top = 0, top_low = 0, all = 0, all_low = 0;
    for (int pass = 0; pass < 2; pass++) {
        double mean = 0, mean_low = 0;
        if (pass == 1) {
            const double den = all + all_low, num = top + top_low;
            mean = num / den;
            mean_low = (fma(-mean, den, num) + ((top - num) + top_low) - mean * ((all - den) + all_low)) / den;
        }
        for (size_t i = 0; i < n; i += V(W)) {
            const size_t k = n - i < V(W) ? n - i : V(W);
            if (i % CSM_POLL_STEP == CSM_POLL_STEP - V(W) && csm_poll_stops(poll, CSM_POLL_STEP)) return;
            V(t) v = k == V(W) ? LOAD(p + i) : LOAD_PART(p + i, k, V(zero)());
            unsigned bits = V(bits)(V(not_le)(v, V(zero)()));
            REAL lane[V(W)], grad[V(W)], out[V(W)];
            if (bits) {
                V(STORE_REAL)(lane, v);
                /* only read where y > 0; elsewhere dy may hold anything */
                V(STORE_REAL)(grad, k == V(W) ? LOAD(g + i) : LOAD_PART(g + i, k, V(zero)()));
            }
            if (pass == 1) V(STORE_REAL)(out, V(zero)());
            for (; bits; bits &= bits - 1) {
                const size_t j = CSM_LOWEST_BIT(bits);
                const double value = (double)lane[j], dyj = (double)grad[j];
                const double w = e->kind == CSM_SPARSEMAX  ? (value == value ? 1 : value)
                                 : e->kind == CSM_ENTMAX15 ? sqrt(value)
                                                           : csm_pow(value, 0, 1 - e->scale, 0);
                if (pass == 0) {
                    const double product = w * dyj;
                    csm_two_sum(&top, &top_low, product);
                    top_low += fma(w, dyj, -product);
                    csm_two_sum(&all, &all_low, w);
                } else {
                    const double dx_j = w * ((dyj - mean) - mean_low);
                    out[j] = (REAL)(dx_j == dx_j ? dx_j : CSM_NAN);
                }
            }
            if (pass == 0) continue;
            if (k == V(W)) STORE(to + i, V(LOAD_REAL)(out));
            else STORE_PART(to + i, k, V(LOAD_REAL)(out));
        }
    }
}
