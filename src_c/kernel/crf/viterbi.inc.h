/* The best path of a linear-chain CRF in double, each addition rounded once.
 *
 *   delta(1, j) = start(j) + x(1, j),   best(t, j) = max_i (delta(t - 1, i) + score(i, j)),
 *   delta(t, j) = best(t, j) + x(t, j)
 *
 * Only maxima are stored: the predecessor of a tag is the lowest i with delta(t - 1, i) + score(i, j) == best(t, j),
 * for which one column is computed again on the way back.  Two operations an element instead of four, and no indices.
 * Among paths of equal score the smallest is found, read from the end.  A maximum has no rounding, so any order and any
 * vector length give the same bits.  NaN and +inf never come here; -inf is impossible. */
INLINE void crf_best_part(const int count, const double *from, const double *x, const csm_crf_model *m, size_t j,
                          double *delta, double *best) {
    const size_t L = m->tags, P = m->pitch;
    v64_t top[CRF_SIDE], second[CRF_SIDE];
    const double *scores = m->scores + j;
    size_t i = 0;
    UNROLL
    for (int v = 0; v < count; v++) top[v] = second[v] = v64_set(-CSM_INF);
    for (; i + 2 <= L; i += 2, scores += 2 * P) {
        const v64_t a = v64_set(from[i]), b = v64_set(from[i + 1]);
        UNROLL
        for (int v = 0; v < count; v++) {
            top[v] = v64_max(v64_add(a, v64_load_f64(scores + v * v64_W)), top[v]);
            second[v] = v64_max(v64_add(b, v64_load_f64(scores + P + v * v64_W)), second[v]);
        }
    }
    if (i < L) {
        const v64_t a = v64_set(from[i]);
        UNROLL
        for (int v = 0; v < count; v++) { top[v] = v64_max(v64_add(a, v64_load_f64(scores + v * v64_W)), top[v]); }
    }
    UNROLL
    for (int v = 0; v < count; v++) {
        top[v] = v64_max(second[v], top[v]);
        v64_store_f64(best + j + v * v64_W, top[v]);
        v64_store_f64(delta + j + v * v64_W, v64_add(top[v], v64_load_f64(x + j + v * v64_W)));
    }
}

static csm_crf_outcome crf_viterbi(csm_crf_chain *c, double *delta, double *best) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    size_t work = 0;
    for (size_t j = 0; j < P; j++) delta[j] = m->start[j] + c->x[j];
    for (size_t t = 1; t < c->n; t++) {
        const double *from = delta + (t - 1) * P, *x = c->x + t * P;
        double *to = delta + t * P, *maxima = best + t * P;
        size_t j = 0;
        for (; j + 3 * v64_W < L; j += 4 * v64_W) crf_best_part(4, from, x, m, j, to, maxima);
        if (j + 2 * v64_W < L) crf_best_part(3, from, x, m, j, to, maxima);
        else if (j + v64_W < L) crf_best_part(2, from, x, m, j, to, maxima);
        else if (j < L) crf_best_part(1, from, x, m, j, to, maxima);
        if (crf_stops(c, &work, P)) return CSM_CRF_STOPPED;
    }
    return CSM_CRF_DONE;
}

/* The lowest i with x_i + y_i == value. */
INLINE size_t crf_find(const double *x, const double *y, size_t n, double value) {
    const v64_t wanted = v64_set(value);
    for (size_t i = 0; i < n; i += v64_W) {
        const unsigned bits = v64_bits(v64_eq(v64_add(v64_load_f64(x + i), v64_load_f64(y + i)), wanted));
        if (bits) return i + CSM_LOWEST_BIT(bits);
    }
    return 0;
}
static csm_crf_outcome crf_trace(csm_crf_chain *c, const double *delta, const double *best, int64_t *tags) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    const double *last = delta + (c->n - 1) * P;
    double top = -CSM_INF;
    size_t work = 0, y = 0;
    for (size_t j = 0; j < L; j++)
        if (last[j] + m->end[j] > top) {
            top = last[j] + m->end[j];
            y = j;
        }
    if (top == -CSM_INF) return CSM_CRF_NO_PATH;
    for (size_t t = c->n - 1;; t--) {
        tags[t] = (int64_t)y;
        if (t == 0) break;
        y = crf_find(delta + (t - 1) * P, m->scores_t + y * P, L, best[t * P + y]);
        if (crf_stops(c, &work, P)) return CSM_CRF_STOPPED;
    }
    return CSM_CRF_DONE;
}
