/* Loops over a block of a row that is drawn from, in the vocabulary of one compute type.
 *
 *   keep:    x_i = x_i if low <= x_i <= high, else -inf
 *   divide:  the same, and the numbers of those outside, within a wider interval
 *   filter:  m_i = m_i if m_i >= least, else 0; sum m_i
 *
 * Passes: one over the block.  Comparisons are exact.  Accumulators of `filter`: a float64 lane for each lane of a
 * vector; callers make sure that no sum of these masses is rounded, so that the bits do not depend on the lanes.
 * NaN lies in no interval, and is not at least anything.  Error: none.
 */
#ifndef V
#error "sample.inc.h needs V(name)"
#endif

INLINE V(t) V(within)(V(t) x, V(t) low, V(t) high, V(t) otherwise) {
    return V(select)(V(ge)(x, low), V(select)(V(ge)(high, x), x, otherwise), otherwise);
}
static int V(sample_keep)(void *x, size_t k, double low, double high) {
    REAL *p = x;
    const V(t) a = SET_REAL((REAL)low), b = SET_REAL((REAL)high), none = SET_REAL((REAL)-CSM_INF);
    V(t) largest = none;
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) {
        const V(t) kept = V(within)(V(LOAD_REAL)(p + i), a, b, none);
        largest = V(max)(kept, largest);
        V(STORE_REAL)(p + i, kept);
    }
    if (i < k) {
        const V(t) kept = V(within)(V(LOAD_PART_REAL)(p + i, k - i, none), a, b, none);
        largest = V(max)(kept, largest);
        V(STORE_PART_REAL)(p + i, k - i, kept);
    }
    return V(top)(largest) > (REAL)-CSM_INF;
}

static int V(sample_divide)(void *x, size_t k, const double *outer, const double *inner, uint32_t first, uint32_t *list,
                            size_t *listed) {
    REAL *p = x;
    const V(t) none = SET_REAL((REAL)-CSM_INF);
    const V(t) a = SET_REAL((REAL)inner[0]), b = SET_REAL((REAL)inner[1]);
    const V(t) c = SET_REAL((REAL)outer[0]), d = SET_REAL((REAL)outer[1]);
    V(t) largest = none;
    size_t count = *listed;
    for (size_t i = 0; i < k; i += V(W)) {
        const int is_part = k - i < V(W);
        const V(t) v = is_part ? V(LOAD_PART_REAL)(p + i, k - i, none) : V(LOAD_REAL)(p + i);
        const V(t) kept = V(within)(v, a, b, none);
        unsigned bits = V(bits)(V(ge)(v, c)) & V(bits)(V(ge)(d, v));
        bits &= ~(V(bits)(V(ge)(v, a)) & V(bits)(V(ge)(b, v)));
        if (is_part) bits &= (1u << (k - i)) - 1;
        largest = V(max)(kept, largest);
        if (is_part) V(STORE_PART_REAL)(p + i, k - i, kept);
        else V(STORE_REAL)(p + i, kept);
        for (; bits; bits &= bits - 1) list[count++] = first + (uint32_t)i + (uint32_t)CSM_LOWEST_BIT(bits);
    }
    *listed = count;
    return V(top)(largest) > (REAL)-CSM_INF;
}

static double V(sample_filter)(void *mass, size_t k, double least) {
    enum { PARTS = V(W) / v64_W };
    REAL *p = mass;
    const V(t) t = SET_REAL((REAL)least), zero = V(zero)();
    v64_t sum[PARTS], part[PARTS];
    double total = 0;
    size_t i = 0;
    for (int l = 0; l < PARTS; l++) sum[l] = v64_zero();
    for (; i < k; i += V(W)) {
        const int is_part = k - i < V(W);
        const V(t) m = is_part ? V(LOAD_PART_REAL)(p + i, k - i, zero) : V(LOAD_REAL)(p + i);
        const V(t) kept = V(keep)(V(ge)(m, t), m);
        if (is_part) V(STORE_PART_REAL)(p + i, k - i, kept);
        else V(STORE_REAL)(p + i, kept);
        V(TO_DOUBLE)(kept, part);
        for (int l = 0; l < PARTS; l++) sum[l] = v64_add(sum[l], part[l]);
    }
    for (int l = 0; l < PARTS; l++) {
        double lane[v64_W];
        v64_store_f64(lane, sum[l]);
        for (int j = 0; j < v64_W; j++) total += lane[j];
    }
    return total;
}
