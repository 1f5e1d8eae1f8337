/* softmax of tiles of float whose rows fill a vector, or half of one of 16, without gaps: segments of 8 heads, and with
 * AVX-512 of 16.
 *
 * A tile is then one run of memory, of which a vector holds one class, or two, of every row.  Up to 16 classes stay in
 * registers, and those beyond the end are -inf, so that the only branches on the number of classes are those at 4, 8
 * and 16.  More classes keep e' in the result.
 * Formulas, sums, rule for NaN, bits and so the errors are those of tile.inc.h.
 */
#ifndef FN
#error "packed_tiles.inc.h needs FN(name), T, LOAD, STORE, STORE_PART, STORED_AS_REAL"
#endif

#if EXP_MANTISSA == 23 && STORED_AS_REAL && !defined(CSM_NO_UNROLL)
/* Classes of a vector: 1 or 2; 0 if the tiles are others. */
INLINE int FN(packed_classes)(const csm_ragged_tiles_job *job) {
    const ptrdiff_t step = (ptrdiff_t)(job->width * sizeof(T));
    if (V(W) < 8 || job->input_step != step || job->result_step != step || job->temperature->tempered) return 0;
    return job->width == V(W) ? 1 : job->width == V(W) / 2 && V(W) == 16 ? 2 : 0;
}

/* The maxima of the rows, in each class of the vector.  Returns 0 if a row is not ordinary. */
INLINE int FN(packed_shift)(V(t) m, const csm_temperature *t, const int classes, V(shift) *s) {
    V(t) n0;
    if (classes == 2) {
        v64_t part[V(PARTS)];
        v32_widen(m, part);
        part[0] = part[V(PARTS) - 1] = v64_max(part[0], part[V(PARTS) - 1]);
        m = V(narrow)(part);
    }
    *s = V(shift_to)(m, t, 0, &n0);
    return !V(bits)(V(not_le)(V(max)(m, V(sub)(V(zero)(), m)), V(set)(t->limit)));
}

/* The factors of the results from sums of 4, 8 or 16 classes, one behind the other.  Returns 1 if a row is NaN. */
INLINE int FN(packed_factors)(const v64_t *lane, const int lanes, const int classes, V(t) *f, V(t) *f_low) {
    enum { PARTS = V(PARTS) };
    const int step = PARTS / classes; /* vectors of a class */
    v64_t hi[PARTS], lo[PARTS];
    REAL r[V(W)], r_low[V(W)];
    UNROLL
    for (int p = 0; p < PARTS; p++) {
        v64_t eight[8];
        UNROLL
        for (int l = 0; l < 8; l++) {
            eight[l] = l < lanes ? lane[l * step + p % step] : v64_zero();
            if (lanes == 16) eight[l] = v64_add(eight[l], lane[(l + 8) * step + p % step]);
        }
        V(fold)(eight, NULL, &hi[p], &lo[p]);
    }
    FN(tile_reciprocal)(hi, lo, r, r_low);
    *f = V(LOAD_REAL)(r);
    *f_low = V(LOAD_REAL)(r_low);
    return V(bits)(V(unordered)(*f, *f)) != 0;
}

/* A tile of up to `lanes` classes, 4, 8 or 16, as many of which can be read. */
INLINE int FN(packed_short)(const T *x, T *y, size_t n, const csm_temperature *t, const int lanes, const int classes) {
    static const float class_of_lane[16] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
    enum { MOST = 16 };
    const int vectors = lanes / classes;
    const size_t count = n * (V(W) / (size_t)classes);
    const V(t) low = V(set)(-CSM_INF), length = V(set)((double)n);
    const V(t) left = classes == 1 ? length : V(sub)(length, V(LOAD_REAL)(class_of_lane));
    V(t) e[MOST], m = low, f, f_low;
    V(shift) s;
    v64_t lane[MOST * V(PARTS)];
    UNROLL
    for (int v = 0; v < vectors; v++) {
        e[v] = LOAD(x + (size_t)v * V(W));
        KEEP_IN_REGISTER(e[v]); /* or GCC makes masked loads: 11 instead of 7 ms for segments of 5 */
        e[v] = V(select)(V(not_le)(left, V(set)((double)(v * classes))), e[v], low);
        m = V(max)(e[v], m);
    }
    if (!FN(packed_shift)(m, t, classes, &s)) return 0;
    UNROLL
    for (int v = 0; v < vectors; v += V(SIDE)) V(exp_values)(V(SIDE), e + v, s, 0);
    UNROLL
    for (int v = 0; v < vectors; v++) v32_widen(e[v], lane + v * V(PARTS));
    if (FN(packed_factors)(lane, lanes, classes, &f, &f_low)) return 0;
    UNROLL
    for (int v = vectors - 1; v >= 0; v--) { /* backwards: those beyond the end go where the last one is stored then */
        const V(t) result = V(scaled)(e[v], f, f_low);
        const size_t at = (size_t)v * V(W);
        if (classes == 1) STORE(y + (at < count ? at : count - V(W)), result);
        else STORE_PART(y + at, at + V(W) <= count ? V(W) : at < count ? count - at : 0, result);
    }
    return 1;
}

/* e' of `used` vectors from v on in place of x, and their sums. */
INLINE void FN(packed_terms)(V(t) *e, const int used, size_t v, size_t cycle, V(shift) s, V(t) *sum, V(t) *low) {
    V(exp_values)(used, e, s, 0);
    UNROLL
    for (int i = 0; i < used; i++) {
        const size_t at = (v + (size_t)i) % cycle;
        V(sum_one)(sum + at, low + at, e[i]);
    }
}
/* A tile of any number of classes up to CSM_BLOCK. */
INLINE int FN(packed_long)(const T *x, T *y, size_t n, const csm_temperature *t, const int classes) {
    enum { SIDE = V(SIDE) };
    const size_t cycle = 16 / (size_t)classes, count = n * (V(W) / (size_t)classes), whole = count / V(W);
    const size_t part = count % V(W), flush = CSM_FLUSH / (size_t)classes;
    V(t) m = V(set)(-CSM_INF), other = m, sum[16], low[16], e[SIDE], f, f_low;
    V(shift) s;
    v64_t lane[16 * V(PARTS)];
    size_t v = 0;
    for (; v + 2 <= whole; v += 2) {
        m = V(max)(LOAD(x + v * V(W)), m);
        other = V(max)(LOAD(x + (v + 1) * V(W)), other);
    }
    for (; v * V(W) < count; v++) m = V(max)(FN(short_part)(x, count, v), m);
    if (!FN(packed_shift)(V(max)(m, other), t, classes, &s)) return 0;
    for (size_t i = 0; i < cycle * V(PARTS); i++) lane[i] = v64_zero();
    for (v = 0; v * V(W) < count;) {
        const size_t end = whole - v < flush ? whole : v + flush;
        for (size_t i = 0; i < cycle; i++) {
            sum[i] = V(set)(EXP_SUM_START);
            low[i] = V(zero)();
        }
        for (; v + SIDE <= end; v += SIDE) {
            UNROLL
            for (size_t i = 0; i < SIDE; i++) e[i] = LOAD(x + (v + i) * V(W));
            FN(packed_terms)(e, SIDE, v, cycle, s, sum, low);
            UNROLL
            for (size_t i = 0; i < SIDE; i++) STORE(y + (v + i) * V(W), e[i]);
        }
        for (; v < end; v++) {
            *e = LOAD(x + v * V(W));
            FN(packed_terms)(e, 1, v, cycle, s, sum, low);
            STORE(y + v * V(W), *e);
        }
        if (v == whole && part) {
            *e = FN(short_part)(x, count, v);
            FN(packed_terms)(e, 1, v, cycle, s, sum, low);
            STORE_PART(y + v * V(W), part, *e);
            v++;
        }
        for (size_t i = 0; i < cycle; i++) V(sum_wide)(lane + i * V(PARTS), sum[i], low[i]);
    }
    const int has_nan = FN(packed_factors)(lane, 16, classes, &f, &f_low);
    for (v = 0; v < whole; v++) STORE(y + v * V(W), FN(tile_result)(LOAD(y + v * V(W)), f, f_low, f, f, 0, has_nan));
    if (part) STORE_PART(y + v * V(W), part, FN(tile_result)(FN(short_part)(y, count, v), f, f_low, f, f, 0, has_nan));
    return 1;
}

/* One tile, of which `room` classes can be read.  Returns 0, with nothing written, if it is left to others. */
INLINE int FN(packed_tile)(const T *x, T *y, size_t n, size_t room, const csm_temperature *t, const int classes) {
    T copy[16 * V(W)];
    if (n > 16) return n <= CSM_BLOCK && FN(packed_long)(x, y, n, t, classes);
    if (room < 16) { /* near the end of the job */
        for (size_t i = 0; i < n * (V(W) / (size_t)classes); i++) copy[i] = x[i];
        x = copy;
    }
    if (n > 8) return FN(packed_short)(x, y, n, t, 16, classes);
    if (n > 4) return FN(packed_short)(x, y, n, t, 8, classes);
    return FN(packed_short)(x, y, n, t, 4, classes);
}
INLINE size_t FN(packed_tiles_of)(const csm_ragged_tiles_job *job, uint32_t *left, const int classes) {
    const int64_t *p = job->indptr;
    size_t count = 0;
    for (size_t s = 0; s < job->count; s++) {
        const size_t n = (size_t)(p[s + 1] - p[s]), room = (size_t)(p[job->count] - p[s]);
        const ptrdiff_t at = (ptrdiff_t)(p[s] - p[0]) * job->input_step;
        const T *x = (const T *)(const void *)(job->input + at);
        T *y = (T *)(void *)(job->result + at);
        if (n == 0 || !FN(packed_tile)(x, y, n, room, job->temperature, classes)) left[count++] = (uint32_t)s;
    }
    return count;
}
static size_t FN(packed_tiles)(const csm_ragged_tiles_job *job, uint32_t *left, int classes) {
#if defined(CSM_VEC_AVX512_H)
    if (classes == 2) return FN(packed_tiles_of)(job, left, 2);
#endif
    (void)classes;
    return FN(packed_tiles_of)(job, left, 1);
}
#endif
