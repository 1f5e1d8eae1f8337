/* The k largest (smallest) of a contiguous row, one storage type T.
 *
 *   maxima      of blocks of 8 elements (one lane of 8 vectors), in one pass over the row; blocks with NaN get +inf
 *   threshold   the maxima are folded until about 3 k are left: at least k elements reach the k-th largest of those,
 *               whatever the order of the row
 *   candidates  the elements that reach the threshold, from the blocks whose maximum does.  If there are many, because
 *               the row is sorted or full of ties, they are cut to the best k, and only better ones are added
 *   sort        select.inc.h
 *
 * If k is a large part of n, maxima do not help, and the threshold is found on a copy of the row.
 * There is no arithmetic and therefore no rounding.  Integers (integer.inc.h) have no NaN.  NaN comes first among the
 * largest and last among the smallest.
 */
#ifndef FN
#error "topk.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

enum { FN(STEP) = CSM_SELECT_GROUP * V(W) };

/* The state of the search.  FN(wanted) finds the candidates. */
typedef struct FN(sieve) {
    csm_select *s;
    const T *x;
    size_t k;
    REAL limit;
    int all, done;
} FN(sieve);

/* Among the largest: greater than the limit, or NaN.  Among the smallest: the reverse of x is at least the limit. */
INLINE V(mask) FN(wanted)(V(t) x, REAL limit, const int smallest) {
    V(t) t = SET_REAL(limit);
    return smallest ? V(ge)(V(reverse)(x), t) : V(not_le)(x, t);
}

/* Cuts the candidates to the best k; later ones must be better than all of those. */
static NOINLINE void FN(cut)(FN(sieve) * q, const int smallest) {
    csm_select *s = q->s;
    V(sort)(s);
    s->count = q->k;
    const V(key) last = ((const V(key) *)s->key)[q->k - 1];
    q->all = 0;
    if (!smallest) {
        q->done = last == KEY_MAX;
        q->limit = V(of_key)(last);
    } else if (last == KEY_MIN && HAS_NAN) {
        q->limit = REAL_MIN; /* any number */
    } else {
        q->done = V(of_key)(last) == REAL_MAX;
        if (!q->done) q->limit = V(of_key)(last + 1);
    }
}

/* Collects the candidates of [i, end), up to a group.  Compares the group into a bit mask first, so that there is one
 * unpredictable branch for each candidate instead of one for each element. */
INLINE void FN(sift)(FN(sieve) * q, size_t i, size_t end, const int smallest) {
    enum { WORD = 64 / V(W) < CSM_SELECT_GROUP ? 64 / V(W) : CSM_SELECT_GROUP }; /* vectors whose bits fit the mask */
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
            uint64_t word = V(bits)(FN(wanted)(v, q->limit, smallest));
            if (q->all) word = ((uint64_t)1 << V(W))-1;
            if (end - at < V(W)) word &= ((uint64_t)1 << (end - at)) - 1;
            bits |= word << g * V(W);
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

/* Block maxima of [i, end), up to a group; for the smallest, those of the reverse.  With prefetching, (64, 128256)
 * takes 0.91 ms instead of 1.08. */
INLINE V(t) FN(group_max)(const T *x, size_t i, size_t end, const int smallest) {
    enum { AHEAD = 6144 };
    const V(t) none = SET_REAL(smallest ? REAL_MAX : REAL_MIN);
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
    if (smallest) return V(reverse)(V(min)(a, b));
    if (!HAS_NAN) return V(max)(a, b);
#if HAS_NAN
    V(mask) nan = V(unordered)(v[0], v[1]);
    UNROLL
    for (size_t g = 2; g < CSM_SELECT_GROUP; g += 2) nan = V(either)(nan, V(unordered)(v[g], v[g + 1]));
    return V(select)(nan, SET_REAL(REAL_MAX), V(max)(a, b));
#endif
}

/* Maxima of every `width`-th number, lane by lane: neighbours stay apart, which matters in sorted rows. */
INLINE void FN(fold)(const REAL *level, size_t count, REAL *to, size_t width) {
    for (size_t i = 0; i < width; i += V(W)) {
        V(t) m = V(LOAD_REAL)(level + i);
        for (size_t at = i + width; at < count; at += width) m = V(max)(V(LOAD_REAL)(level + at), m);
        V(STORE_REAL)(to + i, m);
    }
}

INLINE void FN(select_as)(const T *x, size_t n, size_t k, const int smallest, int sorted, csm_select *s) {
    FN(sieve) q = {s, x, k, REAL_MIN, 0, 0};
    REAL *level = s->level, t = REAL_MIN;
    const int dense = csm_is_dense_selection(n, k);
    size_t count = 0;
    s->count = s->maxima = 0;
    if (!dense) {
        const size_t groups = (n + FN(STEP) - 1) / FN(STEP);
        count = groups * V(W);
        enum { POLLED = 1024 }; /* groups */
        for (size_t begin = 0, end; begin < groups - 1; begin = end) {
            end = groups - 1 - begin < POLLED ? groups - 1 : begin + POLLED;
            if (begin > 0 && (s->is_stopped = csm_poll_stops(&s->poll, POLLED * FN(STEP) / 2))) return;
            for (size_t g = begin; g < end; g++)
                V(STORE_REAL)(level + g * V(W), FN(group_max)(x, g * FN(STEP), (g + 1) * FN(STEP), smallest));
        }
        V(STORE_REAL)(level + count - V(W), FN(group_max)(x, (groups - 1) * FN(STEP), n, smallest));
        size_t width = (3 * k + V(W) - 1) / V(W) *V(W);
        REAL *top = level;
        if (2 * width <= count) FN(fold)(level, count, top = level + count, width);
        else width = count;
        s->maxima = count;
        t = V(threshold)(top, width, k, 0, s);
    } else if (n > 64 && k < n) {
        count = (n + V(W) - 1) / V(W) *V(W);
        const V(t) none = SET_REAL(smallest ? REAL_MAX : REAL_MIN);
        for (size_t i = 0; i < n; i += V(W)) {
            V(t) v = n - i >= V(W) ? LOAD(x + i) : LOAD_PART(x + i, n - i, none);
#if HAS_NAN
            v = V(select)(V(ordered)(v), v, SET_REAL(REAL_MAX)); /* NaN is the greatest */
#endif
            V(STORE_REAL)(level + i, smallest ? V(reverse)(v) : v);
            if (i / V(W) % 4096 == 4095 && (s->is_stopped = csm_poll_stops(&s->poll, 4096 * V(W)))) return;
        }
        t = V(threshold)(level, count, k, !sorted, s);
    }
    if (s->is_stopped) return;
    /* t itself is a candidate */
    q.all = t == REAL_MIN; /* nothing is below it */
    q.limit = smallest || q.all ? t : V(below)(t);
    if (dense) {
        for (size_t i = 0; i < n && !q.done; i += FN(STEP)) {
            FN(sift)(&q, i, n - i < FN(STEP) ? n : i + FN(STEP), smallest);
            if (i / FN(STEP) % 128 == 127) s->is_stopped |= csm_poll_stops(&s->poll, 128 * FN(STEP));
            if (s->is_stopped) return;
        }
    } else {
        enum { CHUNK = 256 };
        for (size_t chunk = 0; chunk * V(W) < count && !q.done; chunk += CHUNK) {
            const size_t end = count / V(W) - chunk < CHUNK ? count / V(W) : chunk + CHUNK;
            if (chunk > 0) s->is_stopped |= csm_poll_stops(&s->poll, CHUNK * FN(STEP));
            if (s->is_stopped) return;
            const V(t) limit = SET_REAL(q.limit);
            /* the maximum of a block with NaN is +inf, which must count even if the limit is +inf; for the smallest,
             * the maxima are those of the reverse */
            const int inclusive = smallest || q.limit == REAL_MAX;
            uint32_t hit[CHUNK];
            size_t hits = 0;
            for (size_t g = chunk; g < end; g++) {
                V(t) m = V(LOAD_REAL)(level + g * V(W));
                unsigned word = V(bits)(inclusive ? V(ge)(m, limit) : V(not_le)(m, limit));
                hit[hits] = (uint32_t)(g - chunk);
                hits += word != 0 || q.all;
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
