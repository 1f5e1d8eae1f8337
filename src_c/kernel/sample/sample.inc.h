/* Loops over a block of a row that is drawn from, in the vocabulary of one compute type.
 *
 *   keep:    x_i = x_i if low <= x_i <= high, else -inf
 *   divide:  sum m_i, number and places of the logits in an interval, and in a wider one
 *   scale:   m_i = m_i s
 *   filter:  m_i = m_i if m_i >= least, else 0; sum m_i
 *   moment:  sum m_i (x_i scale - origin), sum m_i
 *   spread:  sum d_i or sum d_i^2, d_i = (x_i scale - origin) - mean, and the number of terms
 *   ends:    min and max x_i with m_i >= least
 *
 * Passes: one over the block.  Comparisons are exact.  Accumulators of `filter`: a float64 lane for each lane of a
 * vector; callers make sure that no sum of these masses is rounded, so that the bits do not depend on the lanes.
 * `divide`, `moment` and `spread` have 16 float64 lanes, i mod 16, added as in sum.inc.h; a logit outside its interval
 * adds 0.  `divide` adds masses in float64 to pairs, as Dot2 does.
 * NaN lies in no interval, and is not at least anything.  Error: none; of sums that of 256 float64 additions.
 */
#ifndef V
#error "sample.inc.h needs V(name)"
#endif

INLINE V(t) V(within)(V(t) x, V(t) low, V(t) high, V(t) otherwise) {
    return V(select)(V(ge)(x, low), V(select)(V(ge)(high, x), x, otherwise), otherwise);
}
/* a where low <= x <= high, else 0. */
INLINE V(t) V(keep_within)(V(t) x, V(t) low, V(t) high, V(t) a) {
    return V(keep)(V(ge)(x, low), V(keep)(V(ge)(high, x), a));
}
INLINE unsigned V(bits_within)(V(t) x, V(t) low, V(t) high) { return V(bits)(V(ge)(x, low)) & V(bits)(V(ge)(high, x)); }

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

static int V(sample_scale)(void *mass, size_t k, double scale) {
    REAL *p = mass;
    const V(t) by = SET_REAL((REAL)scale), zero = V(zero)();
    V(t) largest = zero;
    for (size_t i = 0; i < k; i += V(W)) {
        const int is_part = k - i < V(W);
        const V(t) m = V(mul)(is_part ? V(LOAD_PART_REAL)(p + i, k - i, zero) : V(LOAD_REAL)(p + i), by);
        largest = V(max)(m, largest);
        if (is_part) V(STORE_PART_REAL)(p + i, k - i, m);
        else V(STORE_REAL)(p + i, m);
    }
    return V(top)(largest) > 0;
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

/* Two sums of sixteen lanes. */
typedef struct V(lanes) {
    v64_t first[16 / v64_W], second[16 / v64_W];
} V(lanes);
INLINE void V(lanes_zero)(V(lanes) *s) {
    for (int l = 0; l < 16 / v64_W; l++) s->first[l] = s->second[l] = v64_zero();
}
INLINE double V(lanes_total)(const v64_t *lane) {
    v64_t eight[8 / v64_W];
    for (int l = 0; l < 8 / v64_W; l++) eight[l] = v64_add(lane[l], lane[l + 8 / v64_W]);
    return v64_tree(eight);
}
#if EXP_MANTISSA == 23
enum { V(TALLIES) = 16 / v64_W, V(TALLY_LOW) = 1 };
#else
enum { V(TALLIES) = 16 / v64_W, V(TALLY_LOW) = 16 / v64_W };
#endif
/* Adds masses to the lanes of vector i of sixteen; float masses have no low parts. */
INLINE void V(tally)(v64_t *lane, v64_t *low, int i, V(t) a) {
#if EXP_MANTISSA == 23
    v64_t part[V(PARTS)];
    (void)low;
    v32_widen(a, part);
    UNROLL
    for (int p = 0; p < V(PARTS); p++) lane[i * V(PARTS) + p] = v64_add(lane[i * V(PARTS) + p], part[p]);
#else
    V(accumulate)(&lane[i], &low[i], a);
#endif
}
INLINE void V(tally_total)(const v64_t *lane, const v64_t *low, double *sum, double *rest) {
    V(dot) s;
#if EXP_MANTISSA == 23
    (void)low;
    for (int i = 0; i < V(TALLIES); i++) s.lane[i] = lane[i];
#else
    for (int i = 0; i < V(TALLIES); i++) s.hi[i] = lane[i];
    for (int i = 0; i < V(TALLIES); i++) s.lo[i] = low[i];
#endif
    V(dot_total)(&s, sum, rest);
}
/* The last logits of a block, followed by -inf, and their masses, followed by 0: in all `count`. */
INLINE void V(pad)(const REAL *x, const REAL *mass, size_t k, REAL *to, REAL *to_mass, size_t count) {
    for (size_t j = 0; j < count; j++) {
        to[j] = j < k ? x[j] : (REAL)-CSM_INF;
        to_mass[j] = mass && j < k ? mass[j] : 0;
    }
}

INLINE void V(divide_block)(const REAL *x, const REAL *mass, size_t k, const double *inner, const double *outer,
                            uint32_t *list, csm_sample_part *part) {
    enum { EACH = 32 };
    const V(t) a = SET_REAL((REAL)inner[0]), b = SET_REAL((REAL)inner[1]);
    const V(t) c = SET_REAL((REAL)outer[0]), d = SET_REAL((REAL)outer[1]);
    v64_t in[V(TALLIES)], in_low[V(TALLY_LOW)], out[V(TALLIES)], out_low[V(TALLY_LOW)];
    size_t inside = 0, all = 0;
    for (int i = 0; i < V(TALLIES); i++) in[i] = out[i] = v64_zero();
    for (int i = 0; i < V(TALLY_LOW); i++) in_low[i] = out_low[i] = v64_zero();
    for (size_t first = 0; first < k; first += EACH) {
        REAL rest[2][EACH];
        const REAL *p = x + first, *m = mass ? mass + first : NULL;
        uint32_t words[2] = {0, 0};
        if (k - first < EACH) {
            V(pad)(p, m, k - first, rest[0], rest[1], EACH);
            p = rest[0];
            if (mass) m = rest[1];
        }
        UNROLL
        for (int i = 0; i < EACH / V(W); i++) {
            const V(t) v = V(LOAD_REAL)(p + i * V(W));
            words[0] |= (uint32_t)V(bits_within)(v, a, b) << (i * V(W));
            words[1] |= (uint32_t)V(bits_within)(v, c, d) << (i * V(W));
            if (!mass) continue;
            const V(t) e = V(LOAD_REAL)(m + i * V(W));
            V(tally)(in, in_low, i % (16 / V(W)), V(keep_within)(v, a, b, e));
            V(tally)(out, out_low, i % (16 / V(W)), V(keep_within)(v, c, d, e));
        }
        inside += CSM_BIT_COUNT(words[0]);
        all += CSM_BIT_COUNT(words[1]);
        if (list) {
            /* Four at a time, whether they are there or not: their number is not predictable. */
            uint64_t left = words[1] & ~words[0];
            const unsigned count = CSM_BIT_COUNT((uint32_t)left);
            unsigned i = 0;
            do {
                for (int j = 0; j < CSM_SAMPLE_SPARE; j++, left &= left - 1)
                    list[i++] = (uint32_t)first + CSM_LOWEST_BIT(left | (uint64_t)1 << EACH);
            } while (i < count);
            list += count;
        }
    }
    part->count[0] = inside;
    part->count[1] = all;
    V(tally_total)(in, in_low, &part->sum[0], &part->low[0]);
    V(tally_total)(out, out_low, &part->sum[1], &part->low[1]);
}
static void V(sample_divide)(const void *x, const void *mass, size_t k, const double *inner, const double *outer,
                             uint32_t *list, csm_sample_part *part) {
    if (mass) V(divide_block)(x, mass, k, inner, outer, list, part);
    else V(divide_block)(x, NULL, k, inner, outer, list, part);
}

/* Adds a vector of sixteen logits.  all: none of them is masked.  power 0: moment. */
INLINE void V(add_vector)(V(lanes) *s, int i, V(t) x, V(t) mass, const double *number, const int power, const int all,
                          V(t) inside) {
    enum { PARTS = V(W) / v64_W };
    const v64_t origin = v64_set(number[0]), scale = v64_set(number[1]), mean = v64_set(number[2]);
    v64_t a[PARTS], m[PARTS];
    V(TO_DOUBLE)(x, a);
    if (power == 0) V(TO_DOUBLE)(mass, m);
    else if (!all) V(TO_DOUBLE)(inside, m);
    UNROLL
    for (int p = 0; p < PARTS; p++) {
        v64_t *const lane = &s->first[i * PARTS + p], *const total = &s->second[i * PARTS + p];
        v64_t d = v64_sub(v64_mul(a[p], scale), origin);
        if (power == 0) {
            *total = v64_add(*total, m[p]);
            *lane = v64_fma(m[p], d, *lane);
            continue;
        }
        d = v64_sub(d, mean);
        if (!all) d = v64_mul(d, m[p]);
        *lane = power == 1 ? v64_add(*lane, d) : v64_fma(d, d, *lane);
    }
}
/* Adds sixteen logits; returns how many are in the interval.  Mostly all of them are. */
INLINE unsigned V(sixteen)(V(lanes) *s, const REAL *x, const REAL *mass, V(t) low, V(t) high, const double *number,
                           const int power) {
    const V(t) one = V(set)(1);
    unsigned bits = 0;
    UNROLL
    for (int i = 0; i < 16 / V(W); i++) bits |= V(bits_within)(V(LOAD_REAL)(x + i * V(W)), low, high) << (i * V(W));
    if (bits == 0xffff) {
        UNROLL
        for (int i = 0; i < 16 / V(W); i++)
            V(add_vector)(s, i, V(LOAD_REAL)(x + i * V(W)), power == 0 ? V(LOAD_REAL)(mass + i * V(W)) : one, number,
                          power, 1, one);
    } else {
        UNROLL
        for (int i = 0; i < 16 / V(W); i++) {
            const V(t) v = V(LOAD_REAL)(x + i * V(W)), m = power == 0 ? V(LOAD_REAL)(mass + i * V(W)) : one;
            V(add_vector)(s, i, V(keep_within)(v, low, high, v), V(keep_within)(v, low, high, m), number, power, 0,
                          V(keep_within)(v, low, high, one));
        }
    }
    return CSM_BIT_COUNT(bits);
}
INLINE double V(add_sixteens)(const REAL *x, const REAL *mass, size_t k, const double *interval, const double *number,
                              const int power, double *more) {
    const V(t) low = SET_REAL((REAL)interval[0]), high = SET_REAL((REAL)interval[1]);
    V(lanes) s;
    V(lanes_zero)(&s);
    size_t i = 0, count = 0;
    for (; i + 16 <= k; i += 16) count += V(sixteen)(&s, x + i, mass ? mass + i : NULL, low, high, number, power);
    if (i < k) {
        REAL rest[2][16];
        V(pad)(x + i, mass ? mass + i : NULL, k - i, rest[0], rest[1], 16);
        count += V(sixteen)(&s, rest[0], rest[1], low, high, number, power);
    }
    *more = power == 0 ? V(lanes_total)(s.second) : (double)count;
    return V(lanes_total)(s.first);
}
static double V(sample_moment)(const void *x, const void *mass, size_t k, const double *interval, const double *number,
                               double *total) {
    return V(add_sixteens)(x, mass, k, interval, number, 0, total);
}
static double V(sample_spread)(const void *x, size_t k, const double *interval, const double *number, int power,
                               double *count) {
    return power == 1 ? V(add_sixteens)(x, NULL, k, interval, number, 1, count)
                      : V(add_sixteens)(x, NULL, k, interval, number, 2, count);
}

static void V(sample_ends)(const void *x, const void *mass, size_t k, const double *interval, double least,
                           double *to) {
    const REAL *p = x, *m = mass;
    const V(t) a = SET_REAL((REAL)interval[0]), b = SET_REAL((REAL)interval[1]), t = SET_REAL((REAL)least);
    const V(t) none = SET_REAL((REAL)-CSM_INF), zero = V(zero)();
    const V(t) highest = SET_REAL((REAL)CSM_INF);
    V(t) smallest = highest, largest = none;
    for (size_t i = 0; i < k; i += V(W)) {
        const int is_part = k - i < V(W);
        V(t) v = is_part ? V(LOAD_PART_REAL)(p + i, k - i, none) : V(LOAD_REAL)(p + i);
        if (m) {
            const V(t) w = is_part ? V(LOAD_PART_REAL)(m + i, k - i, zero) : V(LOAD_REAL)(m + i);
            v = V(select)(V(ge)(w, t), v, none);
        }
        largest = V(max)(V(within)(v, a, b, none), largest);
        smallest = V(min)(V(within)(v, a, b, highest), smallest);
    }
    to[0] = (double)V(bottom)(smallest);
    to[1] = (double)V(top)(largest);
}
