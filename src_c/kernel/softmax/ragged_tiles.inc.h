/* Tiles of up to CSM_SHORT_TILE classes of different numbers, one behind the other: segments of rows side by side, such
 * as attention heads.
 *
 * Each vector of rows stays in the first-level cache from the load to the store, without scratch and tables of the
 * tile's width.  Formulas, sums, rule for NaN, bits and so the errors are those of tile.inc.h.
 */
#ifndef FN
#error "ragged_tiles.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* One tile of n classes.  Returns 0, with nothing written, if a row is not ordinary. */
INLINE int FN(short_tile)(const char *input, char *result, const csm_ragged_tiles_job *job, size_t n, const int exact,
                          const int keeps_axis) {
    const csm_temperature *t = job->temperature;
    const V(t) inv_t = V(set)(t->inv_t);
    REAL max[CSM_TILE_WIDTH], z[CSM_SHORT_TILE * V(W)], factor[V(W)], factor_low[V(W)];
    for (size_t c = 0; c < job->width; c += V(W)) {
        V(t) m = V(set)(-CSM_INF);
        for (size_t j = 0; j < n; j++)
            m = V(max)(
                FN(tile_load)((const T *)(const void *)(input + (ptrdiff_t)j * job->input_step) + c, job->width - c),
                m);
        if (!((double)V(top)(V(max)(m, V(sub)(V(zero)(), m))) <= t->limit)) return 0;
        V(STORE_REAL)(max + c, m);
    }
    for (size_t c = 0; c < job->width; c += V(W)) {
        const size_t lanes = job->width - c < V(W) ? job->width - c : V(W);
        for (size_t j = 0; j < n; j++)
            V(STORE_REAL)(z + j * V(W),
                          FN(tile_load)((const T *)(const void *)(input + (ptrdiff_t)j * job->input_step) + c, lanes));
        const int has_nan = FN(tile_factors)(z, n, max + c, lanes, t, exact,
                                             keeps_axis ? NULL : (T *)(void *)result + c, factor, factor_low);
        const V(t) f = V(LOAD_REAL)(factor), low = exact ? f : V(LOAD_REAL)(factor_low), m = V(LOAD_REAL)(max + c);
        for (size_t j = 0; j < n && keeps_axis; j++) {
            T *y = (T *)(void *)(result + (ptrdiff_t)j * job->result_step) + c;
            const V(t) v = FN(tile_result)(V(LOAD_REAL)(z + j * V(W)), f, low, m, inv_t, exact, has_nan);
            if (lanes == V(W)) STORE(y, v);
            else STORE_PART(y, lanes, v);
        }
    }
    return 1;
}

INLINE size_t FN(ragged_tiles)(const csm_ragged_tiles_job *job, uint32_t *left, const int exact, const int keeps_axis) {
    const int64_t *p = job->indptr;
    size_t count = 0;
    for (size_t s = 0; s < job->count; s++) {
        const size_t n = (size_t)(p[s + 1] - p[s]);
        const ptrdiff_t first = (ptrdiff_t)(p[s] - p[0]);
        if (n == 0 || n > CSM_SHORT_TILE ||
            !FN(short_tile)(job->input + first * job->input_step,
                            job->result + (keeps_axis ? first : (ptrdiff_t)s) * job->result_step, job, n, exact,
                            keeps_axis))
            left[count++] = (uint32_t)s;
    }
    return count;
}
static size_t FN(softmax_ragged_tiles)(const csm_ragged_tiles_job *job, uint32_t *left) {
#if EXP_MANTISSA == 23 && STORED_AS_REAL && !defined(CSM_NO_UNROLL)
    const int classes = FN(packed_classes)(job);
    if (classes) return FN(packed_tiles)(job, left, classes);
#endif
    return FN(ragged_tiles)(job, left, 0, 1);
}
static NOINLINE size_t FN(log_ragged_tiles)(const csm_ragged_tiles_job *job, uint32_t *left, int keeps_axis) {
    return FN(ragged_tiles)(job, left, 1, keeps_axis);
}
static size_t FN(log_softmax_ragged_tiles)(const csm_ragged_tiles_job *job, uint32_t *left) {
    return FN(log_ragged_tiles)(job, left, 1);
}
static size_t FN(logsumexp_ragged_tiles)(const csm_ragged_tiles_job *job, uint32_t *left) {
    return FN(log_ragged_tiles)(job, left, 0);
}
enum { FN(softmax_vjp_ragged_tiles) = 0, FN(log_softmax_vjp_ragged_tiles) = 0, FN(entropy_ragged_tiles) = 0 };
