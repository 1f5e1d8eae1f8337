/* Loops over a block of a row that is drawn from, in the vocabulary of one compute type.
 *
 *   keep:    x_i = x_i if low <= x_i <= high, else -inf
 *   divide:  the same, and the numbers of those outside, within a wider interval
 *   filter:  m_i = m_i if m_i >= least, else 0; sum m_i
 *   moment:  sum m_i (x_i - origin)
 *   spread:  sum d_i or sum d_i^2, d_i = (x_i / 2 - origin) scale - mean, and the number of terms
 *
 * Passes: one over the block.  Comparisons are exact.  Accumulators of `filter`: a float64 lane for each lane of a
 * vector; callers make sure that no sum of these masses is rounded, so that the bits do not depend on the lanes.
 * `moment` and `spread` have 16 float64 lanes, i mod 16, added as in sum.inc.h; -inf is left out.
 * NaN lies in no interval, and is not at least anything.  Error: none; of the last two that of 256 float64 additions.
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
    for (size_t first_of_word = 0; first_of_word < k; first_of_word += 64) {
        const size_t end = k - first_of_word < 64 ? k : first_of_word + 64;
        uint64_t word = 0; /* of 64 elements, so that one branch for each of those that are listed is unpredictable */
        for (size_t i = first_of_word; i < end; i += V(W)) {
            const int is_part = end - i < V(W);
            const V(t) v = is_part ? V(LOAD_PART_REAL)(p + i, end - i, none) : V(LOAD_REAL)(p + i);
            const V(t) kept = V(within)(v, a, b, none);
            unsigned bits = V(bits)(V(ge)(v, c)) & V(bits)(V(ge)(d, v));
            bits &= ~(V(bits)(V(ge)(v, a)) & V(bits)(V(ge)(b, v)));
            if (is_part) bits &= (1u << (end - i)) - 1;
            word |= (uint64_t)bits << (i - first_of_word);
            largest = V(max)(kept, largest);
            if (is_part) V(STORE_PART_REAL)(p + i, end - i, kept);
            else V(STORE_REAL)(p + i, kept);
        }
        for (; word; word &= word - 1) list[count++] = first + (uint32_t)(first_of_word + CSM_LOWEST_BIT(word));
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

/* Adds sixteen logits, and their masses, to the lanes. */
typedef struct V(lanes) {
    v64_t lane[16 / v64_W], count[16 / v64_W];
} V(lanes);
INLINE void V(lanes_zero)(V(lanes) *s) {
    for (int l = 0; l < 16 / v64_W; l++) s->lane[l] = s->count[l] = v64_zero();
}
INLINE double V(lanes_total)(const v64_t *lane) {
    v64_t eight[8 / v64_W];
    for (int l = 0; l < 8 / v64_W; l++) eight[l] = v64_add(lane[l], lane[l + 8 / v64_W]);
    return v64_tree(eight);
}
INLINE void V(sixteen)(V(lanes) *s, const REAL *x, const REAL *mass, const double *number, const int power) {
    enum { PARTS = V(W) / v64_W };
    const v64_t origin = v64_set(number[0]), scale = v64_set(number[1]), mean = v64_set(number[2]);
    const v64_t lowest = v64_set(-0x1.fffffffffffffp1023), half = v64_set(0.5), one = v64_set(1);
    UNROLL
    for (int i = 0; i < 16 / V(W); i++) {
        v64_t a[PARTS], m[PARTS];
        V(TO_DOUBLE)(V(LOAD_REAL)(x + i * V(W)), a);
        if (power == 0) V(TO_DOUBLE)(V(LOAD_REAL)(mass + i * V(W)), m);
        UNROLL
        for (int p = 0; p < PARTS; p++) {
            v64_t *const lane = &s->lane[i * PARTS + p], *const count = &s->count[i * PARTS + p];
            const v64_mask finite = v64_ge(a[p], lowest);
            if (power == 0) {
                *lane = v64_fma(m[p], v64_keep(finite, v64_sub(a[p], origin)), *lane);
                continue;
            }
            const v64_t far = v64_mul(v64_sub(v64_mul(a[p], half), origin), scale);
            const v64_t d = v64_keep(finite, v64_sub(far, mean));
            *lane = power == 1 ? v64_add(*lane, d) : v64_fma(d, d, *lane);
            *count = v64_add(*count, v64_keep(finite, one));
        }
    }
}
/* power 0: moment.  The last logits are followed by -inf, their masses by 0. */
INLINE double V(add_sixteens)(const REAL *x, const REAL *mass, size_t k, const double *number, const int power,
                              double *count) {
    V(lanes) s;
    V(lanes_zero)(&s);
    size_t i = 0;
    for (; i + 16 <= k; i += 16) V(sixteen)(&s, x + i, mass ? mass + i : NULL, number, power);
    if (i < k) {
        REAL rest[2][16];
        for (size_t j = 0; j < 16; j++) {
            rest[0][j] = i + j < k ? x[i + j] : (REAL)-CSM_INF;
            rest[1][j] = mass && i + j < k ? mass[i + j] : 0;
        }
        V(sixteen)(&s, rest[0], rest[1], number, power);
    }
    if (count) *count = V(lanes_total)(s.count);
    return V(lanes_total)(s.lane);
}
static double V(sample_moment)(const void *x, const void *mass, size_t k, double origin) {
    const double number[3] = {origin, 0, 0};
    return V(add_sixteens)(x, mass, k, number, 0, NULL);
}
static double V(sample_spread)(const void *x, size_t k, const double *number, int power, double *count) {
    return power == 1 ? V(add_sixteens)(x, NULL, k, number, 1, count) : V(add_sixteens)(x, NULL, k, number, 2, count);
}
