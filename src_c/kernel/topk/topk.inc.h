/* The k largest (smallest) of a contiguous row, one storage type T.
 *
 *   maxima      of blocks of 8 elements (one lane of 8 vectors), in one pass over the row; blocks with NaN get +inf
 *   threshold   the maxima are folded until about 3 k are left: at least k elements reach the k-th largest of those,
 *               whatever the order of the row
 *   candidates  what reaches the threshold, from the blocks whose maximum does; where they are many, because the row
 *               is sorted or full of ties, they are cut to the best k and only what is better comes after
 *   sort        select.inc.h
 *
 * Rows of which a large part is wanted have no use for maxima: the threshold is found on a copy.
 * Nothing is computed: no accumulators, no rounding.  NaN comes first among the largest, last among the smallest.
 */
#ifndef FN
#error "topk.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

enum { FN(STEP) = CSM_SELECT_GROUP * V(W) };

/* What is still wanted: see FN(wanted). */
typedef struct FN(sieve) {
    csm_select *s;
    const T *x;
    size_t k;
    REAL limit;
    int all, done;
} FN(sieve);

/* Largest: greater than the limit, or NaN.  Smallest: minus x at least the limit. */
INLINE V(mask) FN(wanted)(V(t) x, REAL limit, const int smallest) {
    V(t) t = V(set)((double)limit);
    return smallest ? V(ge)(V(sub)(V(zero)(), x), t) : V(not_le)(x, t);
}

/* The candidates are cut to the best k; what comes later must be better than those. */
static NOINLINE void FN(cut)(FN(sieve) * q, const int smallest) {
    csm_select *s = q->s;
    V(sort)(s);
    s->count = q->k;
    const V(key) last = ((const V(key) *)s->key)[q->k - 1];
    q->all = 0;
    if (!smallest) {
        q->done = last == KEY_MOST;
        q->limit = V(of_key)(last);
    } else if (last == KEY_LEAST) {
        q->limit = -(REAL)CSM_INF; /* any number */
    } else {
        q->done = V(of_key)(last) == (REAL)CSM_INF;
        q->limit = V(of_key)(last + 1);
    }
}

/* What is wanted of [i, end), at most a group, to the candidates: first a bit each, so that the branches that nobody
 * can predict are one a candidate. */
INLINE void FN(sift)(FN(sieve) * q, size_t i, size_t end, const int smallest) {
    enum { WORD = 64 / V(W) < CSM_SELECT_GROUP ? 64 / V(W) : CSM_SELECT_GROUP }; /* vectors whose bits fit */
    csm_select *s = q->s;
    V(key) *key = s->key;
    int64_t *index = s->index;
    size_t count = s->count;
    for (; i < end; i += WORD * V(W)) {
        REAL real[STORED_AS_REAL ? 1 : WORD * V(W)];
        uint64_t bits = 0;
        UNROLL
        for (size_t g = 0; g < WORD; g++) {
            const size_t at = i + g * V(W);
            if (at >= end) break;
            V(t) v = end - at >= V(W) ? LOAD(q->x + at) : LOAD_PART(q->x + at, end - at, V(zero)());
            uint64_t some = V(bits)(FN(wanted)(v, q->limit, smallest));
            if (q->all) some = ((uint64_t)1 << V(W))-1;
            if (end - at < V(W)) some &= ((uint64_t)1 << (end - at)) - 1;
            bits |= some << g * V(W);
            if (!STORED_AS_REAL) V(STORE_REAL)(real + g * V(W), v);
        }
        for (; bits; bits &= bits - 1) {
            const size_t j = CSM_LOWEST_BIT(bits);
            key[count] = V(key_of)(STORED_AS_REAL ? (REAL)q->x[i + j] : real[STORED_AS_REAL ? 0 : j], smallest);
            index[count++] = (int64_t)(i + j);
        }
    }
    s->count = count;
    if (count > s->capacity - FN(STEP)) FN(cut)(q, smallest);
}

/* Block maxima of [i, end), at most a group; in smallest, of minus x.  Prefetching, (64, 128256) takes 0.91 ms, not
 * 1.08. */
INLINE V(t) FN(group_max)(const T *x, size_t i, size_t end, const int smallest) {
    enum { AHEAD = 6144 };
    const V(t) none = V(set)(smallest ? CSM_INF : -CSM_INF);
    V(t) v[CSM_SELECT_GROUP], a = none, b = none;
    UNROLL
    for (size_t g = 0; g < CSM_SELECT_GROUP; g++, i += V(W)) {
        PREFETCH((const char *)(x + i) + AHEAD);
        v[g] = i + V(W) <= end ? LOAD(x + i) : i < end ? LOAD_PART(x + i, end - i, none) : none;
    }
    UNROLL
    for (size_t g = 0; g < CSM_SELECT_GROUP; g += 2) {
        a = smallest ? V(min)(v[g], a) : V(max)(v[g], a);
        b = smallest ? V(min)(v[g + 1], b) : V(max)(v[g + 1], b);
    }
    if (smallest) return V(sub)(V(zero)(), V(min)(a, b));
    V(mask) nan = V(unordered)(v[0], v[1]);
    UNROLL
    for (size_t g = 2; g < CSM_SELECT_GROUP; g += 2) nan = V(either)(nan, V(unordered)(v[g], v[g + 1]));
    return V(select)(nan, V(set)(CSM_INF), V(max)(a, b));
}

/* Lane by lane over every `width`-th number: neighbours stay apart, for sorted rows. */
INLINE void FN(fold)(const REAL *level, size_t count, REAL *to, size_t width) {
    for (size_t i = 0; i < width; i += V(W)) {
        V(t) m = V(LOAD_REAL)(level + i);
        for (size_t at = i + width; at < count; at += width) m = V(max)(V(LOAD_REAL)(level + at), m);
        V(STORE_REAL)(to + i, m);
    }
}

INLINE void FN(select_as)(const T *x, size_t n, size_t k, const int smallest, int sorted, csm_select *s) {
    FN(sieve) q = {s, x, k, -(REAL)CSM_INF, 0, 0};
    REAL *level = s->level, t = -(REAL)CSM_INF;
    const int dense = csm_select_dense(n, k);
    size_t count = 0;
    s->count = s->maxima = 0;
    if (!dense) {
        const size_t groups = (n + FN(STEP) - 1) / FN(STEP);
        count = groups * V(W);
        for (size_t g = 0; g + 1 < groups; g++)
            V(STORE_REAL)(level + g * V(W), FN(group_max)(x, g * FN(STEP), (g + 1) * FN(STEP), smallest));
        V(STORE_REAL)(level + count - V(W), FN(group_max)(x, (groups - 1) * FN(STEP), n, smallest));
        size_t width = (3 * k + V(W) - 1) / V(W) *V(W);
        REAL *top = level;
        if (2 * width <= count) FN(fold)(level, count, top = level + count, width);
        else width = count;
        s->maxima = count;
        t = V(threshold)(top, width, k, 0);
    } else if (n > 64 && k < n) {
        count = (n + V(W) - 1) / V(W) *V(W);
        const V(t) none = V(set)(smallest ? CSM_INF : -CSM_INF), most = V(set)(CSM_INF);
        for (size_t i = 0; i < n; i += V(W)) {
            V(t) v = n - i >= V(W) ? LOAD(x + i) : LOAD_PART(x + i, n - i, none);
            v = V(select)(V(ordered)(v), v, most); /* NaN: the greatest */
            V(STORE_REAL)(level + i, smallest ? V(sub)(V(zero)(), v) : v);
        }
        t = V(threshold)(level, count, k, !sorted);
    }
    /* t itself is wanted */
    q.all = smallest && t == -(REAL)CSM_INF;
    if (smallest) q.limit = t;
    else q.limit = t > -(REAL)CSM_INF ? V(below)(t) : (REAL)CSM_NAN;
    if (dense) {
        for (size_t i = 0; i < n && !q.done; i += FN(STEP))
            FN(sift)(&q, i, n - i < FN(STEP) ? n : i + FN(STEP), smallest);
    } else {
        enum { CHUNK = 256 };
        for (size_t chunk = 0; chunk * V(W) < count && !q.done; chunk += CHUNK) {
            const size_t end = count / V(W) - chunk < CHUNK ? count / V(W) : chunk + CHUNK;
            const V(t) limit = V(set)((double)q.limit);
            /* a block with NaN is +inf, and wanted beyond +inf; in smallest the maxima are those of minus x */
            const int inclusive = smallest || q.limit == (REAL)CSM_INF;
            uint32_t hit[CHUNK];
            size_t hits = 0;
            for (size_t g = chunk; g < end; g++) {
                V(t) m = V(LOAD_REAL)(level + g * V(W));
                unsigned some = V(bits)(inclusive ? V(ge)(m, limit) : V(not_le)(m, limit));
                hit[hits] = (uint32_t)(g - chunk);
                hits += some != 0 || q.all;
            }
            for (size_t h = 0; h < hits && !q.done; h++) {
                const size_t begin = (chunk + hit[h]) * FN(STEP);
                FN(sift)(&q, begin, n - begin < FN(STEP) ? n : begin + FN(STEP), smallest);
            }
        }
    }
    if (sorted || s->count > k) V(sort)(s);
    s->count = k;
}

static void FN(select)(const void *x, size_t n, size_t k, int smallest, int sorted, csm_select *s) {
    if (smallest) FN(select_as)(x, n, k, 1, sorted, s);
    else FN(select_as)(x, n, k, 0, sorted, s);
}
