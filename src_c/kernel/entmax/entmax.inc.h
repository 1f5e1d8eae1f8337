/* alpha-entmax of a contiguous row and its gradient, one storage type T.  The numbers above max - 1/(alpha - 1), the
 * only ones that can have probability, are copied to doubles; solve.h does the rest.
 *
 * Accumulators: double, or pairs of doubles, for every T.  Largest error measured (tests/ops/test_entmax.py and
 * test_entmax_worst.py, against mpmath): 0.51 ULP of T, but for numbers so close to the threshold that a change of tau
 * by 2^-90 matters.
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
    const size_t capacity = s->capacity;
    size_t count = 0;
    for (size_t begin = 0, end; begin < n; begin = end) {
        end = csm_poll_end(begin, n);
        if (csm_support_stops_after(s, begin)) break;
        for (size_t i = begin; i < end; i += V(W)) {
            const size_t k = end - i < V(W) ? end - i : V(W);
            V(t) v = k == V(W) ? LOAD(x + i) : LOAD_PART(x + i, k, limit);
            unsigned bits = V(bits)(V(not_le)(v, limit));
            if (!bits) continue;
            REAL lane[V(W)];
            V(STORE_REAL)(lane, v);
            for (; bits; bits &= bits - 1) {
                const size_t j = CSM_LOWEST_BIT(bits);
                if (count < capacity) {
                    s->z[count] = (double)lane[j];
                    s->index[count] = i + j;
                }
                count++;
            }
        }
    }
    return count;
}

/* Returns the number of survivors of the filter; if more than s->capacity, it must be called again with more space,
 * unless s->is_stopped. */
static size_t FN(support)(const void *from, size_t n, const csm_entmax *e, csm_support *s) {
    const T *x = from;
    double max = -CSM_INF;
    enum { PART = 8 * CSM_POLL_STEP };
    for (size_t begin = 0; begin < n; begin += PART) {
        if (csm_support_stops_after(s, begin)) return 0;
        const double part = FN(max)(x + begin, n - begin < PART ? n - begin : PART);
        if (part > max || begin == 0) max = part;
    }
    s->max = max;
    s->is_nan = !(max > -CSM_INF && max < CSM_INF);
    s->count = 0;
    if (s->is_nan) return 0;
    /* rounded down: one more survivor changes no result */
    const double lower = csm_entmax_bound(e, max);
    REAL bound = lower < -EXP_MOST ? -(REAL)CSM_INF : (REAL)lower;
    if ((double)bound >= lower && bound > -(REAL)CSM_INF) bound = V(below)(bound);
    const size_t count = FN(survivors)(x, n, bound, s);
    if (count > s->capacity || s->is_stopped) return count;
    for (size_t i = 0; i < count; i++) {
        if (csm_support_stops(s, i)) return count;
        if (s->z[i] != s->z[i]) s->is_nan = 1;
        csm_entmax_place(s, e, i);
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

/* A pass of the gradient over the elements with y > 0; elsewhere dy is not read and dx is 0, for any dy. */
enum { FN(REFER), FN(NEXT), FN(ADD), FN(WRITE) };
INLINE void FN(vjp_pass)(int pass, csm_entmax_vjp *state, const T *g, const T *p, T *to, size_t n, const csm_entmax *e,
                         const csm_poll *poll) {
    csm_entmax_vjp v = *state; /* in registers */
    for (size_t i = 0; i < n; i += V(W)) {
        if (csm_poll_at(poll, i + V(W) - 1)) break;
        const size_t k = n - i < V(W) ? n - i : V(W);
        V(t) y = k == V(W) ? LOAD(p + i) : LOAD_PART(p + i, k, V(zero)());
        unsigned bits = V(bits)(V(not_le)(y, V(zero)()));
        REAL lane[V(W)], grad[V(W)], out[V(W)];
        if (bits) {
            V(STORE_REAL)(lane, y);
            V(STORE_REAL)(grad, k == V(W) ? LOAD(g + i) : LOAD_PART(g + i, k, V(zero)()));
        }
        if (pass == FN(WRITE)) V(STORE_REAL)(out, V(zero)());
        for (; bits; bits &= bits - 1) {
            const size_t j = CSM_LOWEST_BIT(bits);
            const double yj = (double)lane[j], dyj = (double)grad[j];
            if (pass == FN(REFER)) csm_vjp_refer(&v, e, yj, dyj);
            else if (pass == FN(NEXT)) csm_vjp_next(&v, e, yj, dyj);
            else if (pass == FN(ADD)) csm_vjp_add(&v, e, csm_vjp_weight(&v, e, yj), yj, dyj);
            else {
                const double dx = csm_vjp_value(&v, e, yj, dyj);
                out[j] = (REAL)(dx == dx ? dx : CSM_NAN);
            }
        }
        if (pass != FN(WRITE)) continue;
        if (k == V(W)) STORE(to + i, V(LOAD_REAL)(out));
        else STORE_PART(to + i, k, V(LOAD_REAL)(out));
    }
    *state = v;
}
/* dx may be dy or y; see vjp.h. */
static void FN(entmax_vjp)(const void *dy, const void *y, void *dx, size_t n, const csm_entmax *e,
                           const csm_poll *poll) {
    csm_entmax_vjp v = csm_vjp_start();
    if (e->kind == CSM_ENTMAX_ANY) {
        FN(vjp_pass)(FN(REFER), &v, dy, y, dx, n, e, poll);
        if (csm_vjp_measure(&v, e)) {
            FN(vjp_pass)(FN(NEXT), &v, dy, y, dx, n, e, poll);
            csm_vjp_scale(&v);
        }
    }
    FN(vjp_pass)(FN(ADD), &v, dy, y, dx, n, e, poll);
    csm_vjp_finish(&v, e);
    FN(vjp_pass)(FN(WRITE), &v, dy, y, dx, n, e, poll);
}
