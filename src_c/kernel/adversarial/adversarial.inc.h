/* Smallest perturbations that let one class of a linear layer overtake another.
 *
 *   a = w - other;  g = x . a + (bias - other_bias), what the first class is ahead;
 *   gap:   distance = g / ||a||_q, 1/p + 1/q = 1
 *   reach: min ||delta||_p such that sum q_i delta_i >= g, 0 <= delta_i <= r_i, where q_i = |a_i| and r_i is the room
 *          between x_i and the wall in the direction that lowers g
 *
 * reach, p = 2 and infinity: delta_i = min(level s_i, r_i), s = q (p = 2) or 1 (infinity).  The sum S(level) of
 * q_i delta_i is concave and piecewise linear; Newton's method from below ends at its root after a few passes, and each
 * step is a tangent, which lies above S, so that every level on the way is a lower bound.  p = 1: coordinates of the
 * largest q_i are used up first (a heap, so that only those that are needed are sorted); R + (need - c) / q_k, with the
 * sums R of r and c of q r over those used up, is a lower bound for every k by duality.
 *
 * Every result is a certain lower bound in exact arithmetic.  g is a pair: products and sums with their rounding errors
 * (two-sum and fma), less the bound (n + 8)^2 2^-104 sum |x_i a_i| for n additions a lane.  |a_i| and r_i are rounded
 * up, norms grow by (n + 8) 2^-52, results are multiplied by 1 - 2^-51.
 * Accumulators: 8 lanes of doubles or pairs, i mod 8, which are added in a fixed tree; no sum depends on the
 * instruction set.  Weights are scaled by a power of two, so that no square overflows and no product of a norm is
 * subnormal; distances within walls that are below 2^-960 are 0.
 * Passes: gap one over both rows and x; reach one over them, and one over 2 d numbers for each step (3 to 6).
 * NaN and infinity: gap->ahead is not finite if a difference, a product or a sum is not; callers do not call reach
 * then.  Distances above the largest double are that number; infinite ones cannot be reached.
 * Error, against exact rational arithmetic (tests/ops/test_adversarial.py): radii are never above the true ones.  They
 * are usually below them by less than (n + 20) 2^-52 of them; by 1e-12 for the other norms, whose powers are bounded by
 * (n + 64) 2^-46; by more where g is a difference of products that cancel to less than 2^-50 of their size (its bound
 * of the error is then a part of g, and may exceed it: radius 0), and with walls for features of very unequal size
 * (6e-7 seen with sizes from 1e-8 to 1e8), where the bound of sum q r is larger than the need that is left.
 */
#ifndef SIMD
#error "adversarial.inc.h needs SIMD"
#endif

enum { GAP_LANES = 8, GAP_MAX_STEPS = 100000 };
#define GAP_BIGGEST 0x1.fffffffffffffp+1023 /* the largest number: infinite distances are those that none can reach */

INLINE double csm_lower(double x) { /* a number below any that was rounded to x once or twice; at least 0 */
    x = x * (1 - 0x1p-51) - 0x1p-1074;
    return x > 0 ? x : 0;
}
INLINE double csm_wider(double x, double roundings) { return x * (1 + (roundings + 8) * 0x1p-52); }

/* A sum of pairs in lanes. */
typedef struct gap_sum {
    double sum[GAP_LANES], low[GAP_LANES];
} gap_sum;

INLINE void gap_clear(gap_sum *s) {
    for (int l = 0; l < GAP_LANES; l++) s->sum[l] = s->low[l] = 0;
}
INLINE void gap_fold(gap_sum *s) {
    for (int half = GAP_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) {
            csm_two_sum(&s->sum[l], &s->low[l], s->sum[l + half]);
            s->low[l] += s->low[l + half];
        }
}
INLINE double gap_total(double *lanes) {
    for (int half = GAP_LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

typedef struct gap_lanes {
    gap_sum ahead;
    double product[GAP_LANES], norm[GAP_LANES], square[GAP_LANES], top[GAP_LANES];
} gap_lanes;

INLINE void gap_add(gap_lanes *s, int l, double first, double second, double x) {
    double a = first, low = 0;
    csm_two_sum(&a, &low, -second);
    const double p = a * x, size = csm_magnitude(a);
    s->ahead.low[l] += fma(a, x, -p) + low * x;
    csm_two_sum(&s->ahead.sum[l], &s->ahead.low[l], p);
    s->product[l] += csm_magnitude(p);
    s->norm[l] += size;
    s->square[l] = fma(a, a, s->square[l]);
    s->top[l] = csm_choose(size > s->top[l], size, s->top[l]);
}

/* (sum |a_i / top|^e)^(1 / e), at least 1. */
static double gap_power_norm(const double *w, const double *other, size_t d, double top, double e) {
    double lanes[GAP_LANES] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (size_t i = 0; i < d; i++) {
        const double u = csm_magnitude(w[i] - other[i]) / top;
        lanes[i % GAP_LANES] += u > 0 ? csm_pow(u, 0, e, 0) : 0;
    }
    return csm_pow(gap_total(lanes), 0, 1 / e, 0);
}

static double gap_square_norm(const double *w, const double *other, size_t d, double top) {
    double lanes[GAP_LANES] = {0, 0, 0, 0, 0, 0, 0, 0};
    for (size_t i = 0; i < d; i++) {
        const double u = (w[i] - other[i]) / top;
        lanes[i % GAP_LANES] = fma(u, u, lanes[i % GAP_LANES]);
    }
    return sqrt(gap_total(lanes));
}

/* The dual norm over the largest magnitude. */
static double gap_root(const double *w, const double *other, size_t d, csm_distance_norm norm, double exponent,
                       double top) {
    return norm == CSM_NORM_OTHER ? gap_power_norm(w, other, d, top, exponent) : gap_square_norm(w, other, d, top);
}

/* The dual norm, from the sums of magnitudes and squares and the largest magnitude. */
INLINE double gap_norm(const double *w, const double *other, size_t d, csm_distance_norm norm, double exponent,
                       double sum, double square, double top) {
    if (norm == CSM_NORM_INF) return sum;
    if (norm == CSM_NORM_1 || !(top > 0) || top - top != 0) return top;
    if (norm == CSM_NORM_2 && square > 0x1p-900 && square < 0x1p900) return sqrt(square);
    return top * gap_root(w, other, d, norm, exponent, top);
}

static void adversarial_gap(const double *w, const double *other, const double *x, size_t d, double bias,
                            double other_bias, csm_distance_norm norm, double exponent, csm_gap *gap) {
    gap_lanes s;
    gap_clear(&s.ahead);
    for (int l = 0; l < GAP_LANES; l++) s.product[l] = s.norm[l] = s.square[l] = s.top[l] = 0;
    size_t i = 0;
    for (; d - i >= GAP_LANES; i += GAP_LANES) {
        SIMD
        for (int l = 0; l < GAP_LANES; l++) gap_add(&s, l, w[i + l], other[i + l], x[i + l]);
    }
    for (int l = 0; i < d; i++, l++) gap_add(&s, l, w[i], other[i], x[i]);
    gap_fold(&s.ahead);
    double top = s.top[0];
    for (int l = 1; l < GAP_LANES; l++) top = s.top[l] > top ? s.top[l] : top;
    const double n = (double)(d / GAP_LANES), sum = gap_total(s.norm), square = gap_total(s.square);
    double ahead = s.ahead.sum[0], low = s.ahead.low[0];
    csm_two_sum(&ahead, &low, bias);
    csm_two_sum(&ahead, &low, -other_bias);
    const double size = gap_total(s.product) + csm_magnitude(bias) + csm_magnitude(other_bias);
    const double error = (n + 8) * (n + 8) * 0x1p-104 * size + (n + 8) * 0x1p-1066;
    const double rounded = ahead + low;
    gap->ahead = rounded;
    gap->ahead_low = low - (rounded - ahead);
    gap->top = top;
    gap->need = csm_lower(ahead + (low - error));
    /* Sums and maxima of subnormal numbers are exact, but not their products with roots, which are formed larger. */
    const double scale = top < 0x1p-900 && (norm == CSM_NORM_2 || norm == CSM_NORM_OTHER) ? 0x1p+200 : 1;
    const double dual = scale > 1 ? top * scale * gap_root(w, other, d, norm, exponent, top)
                                  : gap_norm(w, other, d, norm, exponent, sum, square, top);
    /* an exponent that is not an integer or 1/2 goes through logarithms */
    const double above = norm == CSM_NORM_OTHER ? dual * (1 + (n + 64) * 0x1p-46) : csm_wider(dual, n);
    const double need = gap->need * scale < GAP_BIGGEST ? gap->need * scale : GAP_BIGGEST;
    const double distance = csm_lower(need / above);
    gap->distance = top > 0 ? (distance < GAP_BIGGEST ? distance : GAP_BIGGEST) : rounded > 0 ? CSM_INF : 0;
}

static double adversarial_norm(const double *w, const double *other, size_t d, csm_distance_norm norm,
                               double exponent) {
    double sum[GAP_LANES], square[GAP_LANES], top = 0;
    for (int l = 0; l < GAP_LANES; l++) sum[l] = square[l] = 0;
    for (size_t i = 0; i < d; i += GAP_LANES) {
        const int width = d - i < GAP_LANES ? (int)(d - i) : GAP_LANES;
        for (int l = 0; l < width; l++) {
            const double a = w[i + l] - other[i + l], size = csm_magnitude(a);
            sum[l] += size;
            square[l] = fma(a, a, square[l]);
            top = csm_choose(size > top || size != size, size, top);
        }
    }
    return gap_norm(w, other, d, norm, exponent, gap_total(sum), gap_total(square), top);
}

/* Of the coordinates below their room at a level: sum q s; of the others: their number, and the pair sum q r. */
typedef struct level_sums {
    gap_sum full;
    double open[GAP_LANES], count[GAP_LANES];
} level_sums;

INLINE void level_add(level_sums *s, int l, double q, double r, double level, const int is_two) {
    const double step = is_two ? q : 1;
    const int is_full = r < level * step;
    const double room = csm_choose(is_full, r, 0), p = q * room; /* 0 times infinity would be NaN */
    s->full.low[l] += fma(q, room, -p);
    csm_two_sum(&s->full.sum[l], &s->full.low[l], p);
    s->open[l] += csm_choose(is_full, 0, q * step);
    s->count[l] += csm_choose(is_full, 1, 0);
}
INLINE void find_level_sums(level_sums *s, const double *q, const double *r, size_t d, double level, const int is_two) {
    gap_clear(&s->full);
    for (int l = 0; l < GAP_LANES; l++) s->open[l] = s->count[l] = 0;
    size_t i = 0;
    for (; d - i >= GAP_LANES; i += GAP_LANES) {
        SIMD
        for (int l = 0; l < GAP_LANES; l++) level_add(s, l, q[i + l], r[i + l], level, is_two);
    }
    for (int l = 0; i < d; i++, l++) level_add(s, l, q[i], r[i], level, is_two);
    gap_fold(&s->full);
}

/* A lower bound of the root of sum q_i min(level s_i, r_i) = need. */
INLINE double find_level(const double *q, const double *r, size_t d, double need, const int is_two) {
    const double n = (double)(d / GAP_LANES);
    double level = 0, count = -1;
    for (int step = 0; step < GAP_MAX_STEPS; step++) {
        level_sums s;
        find_level_sums(&s, q, r, d, level, is_two);
        const double full = s.full.sum[0], open = gap_total(s.open), now = gap_total(s.count);
        if (now == count || !(open > 0)) break;
        count = now;
        const double left = (need - full) - s.full.low[0];
        double next = csm_lower(left - (n + 8) * ((n + 8) * 0x1p-104 * full + 0x1p-1070)) / csm_wider(open, n);
        next = csm_lower(next < GAP_BIGGEST ? next : GAP_BIGGEST);
        if (!(next > level)) break;
        level = next;
    }
    return level;
}

/* The Euclidean norm of min(level q_i, r_i). */
static double find_level_norm(const double *q, const double *r, size_t d, double level) {
    double lanes[GAP_LANES] = {0, 0, 0, 0, 0, 0, 0, 0}, top = 0;
    for (size_t i = 0; i < d; i++) {
        const double u = level * q[i] < r[i] ? level * q[i] : r[i];
        top = u > top ? u : top;
    }
    if (!(top > 0) || top - top != 0) return top;
    for (size_t i = 0; i < d; i++) {
        const double u = (level * q[i] < r[i] ? level * q[i] : r[i]) / top;
        lanes[i % GAP_LANES] = fma(u, u, lanes[i % GAP_LANES]);
    }
    return csm_lower(top * sqrt(gap_total(lanes)) * (1 - ((double)(d / GAP_LANES) + 8) * 0x1p-52));
}

/* A heap of coordinates: the largest q first, of equal ones that of the lowest index. */
INLINE int heap_before(const double *q, double a, double b) {
    const double qa = q[(size_t)a], qb = q[(size_t)b];
    return qa > qb || (qa == qb && a < b);
}
static void heap_sink(double *heap, size_t n, size_t at, const double *q) {
    const double item = heap[at];
    for (size_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && heap_before(q, heap[child + 1], heap[child])) child++;
        if (!heap_before(q, heap[child], item)) break;
        heap[at] = heap[child];
    }
    heap[at] = item;
}

static double reach_in_sum(const double *q, const double *r, size_t d, double need, double *heap) {
    size_t n = 0;
    for (size_t i = 0; i < d; i++)
        if (r[i] > 0) heap[n++] = (double)i;
    for (size_t i = n / 2; i-- > 0;) heap_sink(heap, n, i, q);
    double total = 0, full = 0, low = 0, taken = 0;
    while (n > 0) {
        const size_t i = (size_t)heap[0];
        const double p = q[i] * r[i];
        double next = full, next_low = low + fma(q[i], r[i], -p);
        csm_two_sum(&next, &next_low, p);
        if (!(next < need && (need - next) - next_low > 0)) {
            const double slack = (taken + 8) * ((taken + 8) * 0x1p-104 * full + 0x1p-1070);
            const double left = ((need - full) - low) - slack;
            const double part = left > 0 ? csm_lower(left) / q[i] : left / q[i] * (1 + 0x1p-50);
            return csm_lower(total * (1 - (taken + 8) * 0x1p-52) + csm_choose(part > 0, part * (1 - 0x1p-52), part));
        }
        total += r[i];
        full = next;
        low = next_low;
        taken++;
        heap[0] = heap[--n];
        if (n > 0) heap_sink(heap, n, 0, q);
    }
    return csm_lower(total * (1 - (taken + 8) * 0x1p-52));
}

static double adversarial_reach(const double *w, const double *other, const double *x, size_t d, const csm_walls *walls,
                                csm_distance_norm norm, const csm_gap *gap, double *scratch) {
    double *q = scratch, *r = scratch + d, top = gap->top;
    double lanes[GAP_LANES] = {0, 0, 0, 0, 0, 0, 0, 0};
    const double exponent = -csm_take_exponent(&top);
    const double scale = csm_pow2(exponent > 1000 ? 1000 : exponent < -1000 ? -1000 : exponent);
    SIMD
    for (size_t i = 0; i < d; i++) {
        const double a = w[i] - other[i], size = csm_magnitude(a);
        const double room = csm_choose(a > 0, x[i] - walls->low[i], walls->high[i] - x[i]);
        /* a sum with the least number rounds those up that the scale has made subnormal */
        q[i] = csm_choose(size > 0, size * scale * (1 + 0x1p-51) + 0x1p-1074, 0);
        r[i] = csm_choose(size > 0, room * (1 + 0x1p-51), 0);
    }
    size_t i = 0;
    for (; d - i >= GAP_LANES; i += GAP_LANES) {
        SIMD
        for (int l = 0; l < GAP_LANES; l++) lanes[l] = fma(q[i + l], r[i + l], lanes[l]);
    }
    for (int l = 0; i < d; i++, l++) lanes[l] = fma(q[i], r[i], lanes[l]);
    double need = csm_lower(gap->need * scale);
    need = need < GAP_BIGGEST ? need : GAP_BIGGEST;
    if (csm_wider(gap_total(lanes), (double)(d / GAP_LANES)) < need) return CSM_INF;
    double result = 0;
    if (norm == CSM_NORM_1) result = reach_in_sum(q, r, d, need, scratch + 2 * d);
    if (norm == CSM_NORM_INF) result = find_level(q, r, d, need, 0);
    if (norm == CSM_NORM_2) result = find_level_norm(q, r, d, find_level(q, r, d, need, 1));
    /* rounding errors of subnormal numbers may exceed what the bounds subtract */
    return result < 0x1p-960 ? 0 : result < GAP_BIGGEST ? result : GAP_BIGGEST;
}
