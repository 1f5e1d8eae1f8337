/* softmax, log_softmax and logsumexp of contiguous rows of different lengths, one behind the other.
 *
 * Rows of up to 16 floats are collected and computed as many at a time as a vector has lanes, side by side as in
 * short_rows.inc.h; equal neighbours among all others are one job of forward.inc.h.  Formulas, sums, rule for NaN, bits
 * and so the errors are those of these files.  Memory is read once and written once.
 *
 * A group whose rows are neighbours is stored to the stack as overlapping vectors, and from there in whole ones: of
 * partial vectors AVX2 stores one part for each bit of the length, and their branches are mispredicted.
 */
#ifndef FN
#error "ragged.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

#if EXP_MANTISSA == 23
/* The rows of a group: those of the job with the numbers `at`; where there are fewer than lanes, the first fills up. */
typedef struct FN(ragged) {
    csm_short_rows rows;
    size_t begin[V(W)], elements; /* in the job; of all rows */
    int are_neighbours;
} FN(ragged);

INLINE void FN(ragged_collect)(FN(ragged) * g, const csm_ragged_job *job, const uint32_t *at, size_t count) {
    enum { AHEAD = 1024 /* bytes */ };
    const int64_t *p = job->indptr;
    g->elements = 0;
    for (size_t r = 0; r < V(W); r++) {
        const size_t s = at[r < count ? r : 0];
        g->begin[r] = (size_t)(p[s] - p[0]);
        g->rows.x[r] = job->input + g->begin[r] * sizeof(T);
        g->rows.n[r] = (size_t)(p[s + 1] - p[s]);
        if (r < count) g->elements += g->rows.n[r];
    }
    /* The lines of later groups: 10^6 floats of mean 10 took 1.9 ns an element, and take 1.2. */
    for (size_t i = 0; i < g->elements * sizeof(T); i += 64)
        PREFETCH((const char *)((uintptr_t)g->rows.x[0] + AHEAD + i));
    g->are_neighbours = g->begin[count - 1] + g->rows.n[count - 1] - g->begin[0] == g->elements;
}

/* Where row r of a group is stored first: on the stack, or at once where it belongs. */
INLINE T *FN(ragged_target)(const FN(ragged) * g, const csm_ragged_job *job, T *stack, size_t r) {
    if (g->are_neighbours) return stack + (g->begin[r] - g->begin[0]);
    return (T *)(void *)job->result + g->begin[r];
}
INLINE void FN(ragged_store)(const FN(ragged) * g, T *y, size_t r, size_t v, V(t) result) {
    if (g->are_neighbours) STORE(y + v * V(W), result);
    else if (v * V(W) < g->rows.n[r]) FN(group_store)(y, g->rows.n[r], v, result);
}
INLINE void FN(ragged_flush)(const FN(ragged) * g, const csm_ragged_job *job, const T *stack) {
    T *y = (T *)(void *)job->result + g->begin[0];
    const size_t k = g->elements;
    size_t i = 0;
    if (!g->are_neighbours) return;
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, LOAD(stack + i));
    if (i < k) STORE_PART(y + i, k - i, LOAD_PART(stack + i, k - i, V(zero)()));
}

/* Returns 0, with nothing written, if a row is NaN or not ordinary. */
INLINE int FN(ragged_softmax)(const csm_ragged_job *job, const uint32_t *at, size_t count, const size_t max_vectors) {
    FN(ragged) rows;
    FN(group) g;
    T stack[V(W) * 16 + 16];
    REAL f[V(W)], f_low[V(W)];
    FN(ragged_collect)(&rows, job, at, count);
    if (!FN(group_exp)(&g, NULL, 0, max_vectors * V(W), job->temperature, max_vectors, job->temperature->tempered != 0,
                       0, 0, &rows.rows))
        return 0;
    FN(reciprocals)(g.sums, f, f_low);
    V(t) all = V(LOAD_REAL)(f);
    if (!(V(sum_exact)(V(sub)(all, all)) == 0)) return 0; /* a sum is NaN */
    for (size_t r = 0; r < count; r++) {
        T *y = FN(ragged_target)(&rows, job, stack, r);
        UNROLL
        for (size_t v = 0; v < max_vectors; v++)
            FN(ragged_store)(&rows, y, r, v,
                             V(scaled)(V(LOAD_REAL)(g.e[r] + v * V(W)), V(splat)(f + r), V(splat)(f_low + r)));
    }
    FN(ragged_flush)(&rows, job, stack);
    return 1;
}

static NOINLINE int FN(ragged_log)(const csm_ragged_job *job, const uint32_t *at, size_t count, int keeps_axis) {
    const csm_temperature *t = job->temperature;
    const V(t) inv_t = V(set)(t->inv_t);
    FN(ragged) rows;
    FN(group) g;
    csm_tails s;
    T stack[V(W) * 16 + 16];
    FN(ragged_collect)(&rows, job, at, count);
    if (!FN(group_log_of)(&g, NULL, 0, 16, t, &s, V(SIXTEEN), t->tempered != 0, 0, &rows.rows)) return 0;
    for (size_t r = 0; r < count; r++) {
        if (!keeps_axis) {
            T *y = (T *)(void *)(job->result + (ptrdiff_t)at[r] * job->result_step);
            STORE_PART(y, 1, V(set)(s.max[r] / t->t + s.tail[r]));
            continue;
        }
        T *y = FN(ragged_target)(&rows, job, stack, r);
        const V(t) tail = V(set)(-s.tail[r]), max = V(splat)(g.max + r);
        UNROLL
        for (size_t v = 0; v < V(SIXTEEN); v++)
            FN(ragged_store)(&rows, y, r, v, V(fma)(V(sub)(V(LOAD_REAL)(g.z[r] + v * V(W)), max), inv_t, tail));
    }
    if (keeps_axis) FN(ragged_flush)(&rows, job, stack);
    return 1;
}

static NOINLINE int FN(ragged_group)(const csm_ragged_job *job, const uint32_t *at, size_t count, int op) {
    if (op != CSM_OP_softmax) return FN(ragged_log)(job, at, count, op == CSM_OP_log_softmax);
    return FN(ragged_softmax)(job, at, count, V(SIXTEEN));
}
#endif

/* Rows [s, end) of one length, or for softmax any of more than 16 elements, those that are not ordinary to `left`.
 * Returns how many these are. */
static size_t FN(ragged_run)(const csm_ragged_job *job, size_t s, size_t end, uint32_t *left, int op) {
    const size_t n = (size_t)(job->indptr[s + 1] - job->indptr[s]);
    const int keeps_axis = op != CSM_OP_logsumexp;
    const ptrdiff_t step = (ptrdiff_t)(n * sizeof(T));
    size_t count = 0;
    while (s < end) {
        const size_t begin = (size_t)(job->indptr[s] - job->indptr[0]) * sizeof(T);
        const csm_rows_job rows = {.input = job->input + begin,
                                   .result =
                                       job->result + (keeps_axis ? (ptrdiff_t)begin : (ptrdiff_t)s * job->result_step),
                                   .input_step = step,
                                   .result_step = keeps_axis ? step : job->result_step,
                                   .rows = end - s,
                                   .n = n,
                                   .temperature = job->temperature,
                                   .scratch = job->scratch,
                                   .indptr = op == CSM_OP_softmax && n > 16 ? job->indptr + s : NULL};
        if (op == CSM_OP_softmax) s += FN(softmax_rows)(&rows);
        else s += keeps_axis ? FN(log_softmax_rows)(&rows) : FN(logsumexp_rows)(&rows);
        if (s < end) left[count++] = (uint32_t)s++;
    }
    return count;
}

static NOINLINE size_t FN(ragged_rows)(const csm_ragged_job *job, uint32_t *left, int op) {
    const int64_t *p = job->indptr;
    size_t count = 0, s = 0;
#if EXP_MANTISSA == 23
    enum { GROUP = V(W), RUN = 2 * GROUP };
    uint32_t held[GROUP];
    size_t holds = 0;
#else
    enum { GROUP = 1, RUN = 2 }; /* no groups */
#endif
    while (s < job->count) {
        const int64_t n = p[s + 1] - p[s];
        if (n == 0 || n > CSM_BLOCK) {
            if (n || op == CSM_OP_logsumexp) left[count++] = (uint32_t)s;
            s++;
            continue;
        }
        size_t end = s + 1;
        if (n > 16 && op == CSM_OP_softmax) {
            while (end < job->count && p[end + 1] - p[end] > 16 && p[end + 1] - p[end] <= CSM_BLOCK) end++;
        } else if (end + RUN <= job->count && p[s + RUN] - p[s] == RUN * n) /* rare, unless the lengths are equal */
            while (end < job->count && p[end + 1] - p[end] == n) end++;
        if (n > 16 || GROUP == 1 || end - s >= RUN) {
            count += FN(ragged_run)(job, s, end, left + count, op);
            s = end;
            continue;
        }
#if EXP_MANTISSA == 23
        held[holds++] = (uint32_t)s++;
        if (holds < V(W)) continue;
        holds = 0;
        if (FN(ragged_group)(job, held, V(W), op)) continue;
        for (int r = 0; r < V(W); r++) count += FN(ragged_run)(job, held[r], (size_t)held[r] + 1, left + count, op);
#endif
    }
#if EXP_MANTISSA == 23
    if (holds && !FN(ragged_group)(job, held, holds, op))
        for (size_t r = 0; r < holds; r++) count += FN(ragged_run)(job, held[r], (size_t)held[r] + 1, left + count, op);
#endif
    return count;
}
static size_t FN(softmax_ragged)(const csm_ragged_job *job, uint32_t *left) {
    return FN(ragged_rows)(job, left, CSM_OP_softmax);
}
static size_t FN(log_softmax_ragged)(const csm_ragged_job *job, uint32_t *left) {
    return FN(ragged_rows)(job, left, CSM_OP_log_softmax);
}
static size_t FN(logsumexp_ragged)(const csm_ragged_job *job, uint32_t *left) {
    return FN(ragged_rows)(job, left, CSM_OP_logsumexp);
}
enum { FN(softmax_vjp_ragged) = 0, FN(log_softmax_vjp_ragged) = 0, FN(entropy_ragged) = 0 };
