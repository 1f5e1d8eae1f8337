/* Lists of rankings: their order, and the loss and gradient of those without ties.
 *
 *   places    place(i) = number of j with key(j) > key(i), or key(j) = key(i) and j < i
 *   terms     S(i) = e(i) + S(i + 1),  rho(i) = S(i + 1) / e(i),  loss = log of the product of 1 + rho(i),
 *             grad(i) = e(i) C(i) - S(i + 1) / S(i),  C(i + 1) = C(i) + 1 / S(i)
 *
 * Passes: places compares each key with all others, in vectors, without branches that depend on the keys; terms passes
 * once from the last element to the first, once in vectors for the quotients, and once back.  Sums of four elements
 * at a time keep the chains of additions short.
 * Accumulators: doubles; the product less 1 in 8 lanes (i mod 8), q + rho + q rho, multiplied in a fixed tree;
 * a lane above 2^100 is turned into its logarithm.  So every instruction set has the same bits.
 * NaN, infinities and elements of -inf never come here.  Error: ops/rankings_terms.c.
 */
#ifndef SIMD
#error "rankings.inc.h needs SIMD"
#endif

static const float ranking_lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

static void ranking_places(float *key, size_t n, float *place) {
    const v32_t one = v32_set(1), lanes = v32_load_f32(ranking_lanes);
    for (size_t i = n; i < n + v32_W; i++) key[i] = 0;
    for (size_t b = 0; b < n; b += v32_W) {
        const v32_t own = v32_load_f32(key + b);
        const size_t end = b + v32_W < n ? b + v32_W : n;
        v32_t before = v32_zero(), beside = v32_zero();
        size_t j = 0;
        for (; j + 2 <= b; j += 2) {
            before = v32_add(before, v32_keep(v32_ge(v32_set((double)key[j]), own), one));
            beside = v32_add(beside, v32_keep(v32_ge(v32_set((double)key[j + 1]), own), one));
        }
        for (; j < b; j++) before = v32_add(before, v32_keep(v32_ge(v32_set((double)key[j]), own), one));
        for (; j < end; j++) {
            const v32_t other = v32_set((double)key[j]), at = v32_set((double)(j - b));
            const v32_t as_later = v32_keep(v32_ge(other, own), one),
                        as_earlier = v32_keep(v32_not_le(other, own), one);
            before = v32_add(before, v32_select(v32_not_le(lanes, at), as_later, as_earlier));
        }
        for (; j + 2 <= n; j += 2) {
            before = v32_add(before, v32_keep(v32_not_le(v32_set((double)key[j]), own), one));
            beside = v32_add(beside, v32_keep(v32_not_le(v32_set((double)key[j + 1]), own), one));
        }
        for (; j < n; j++) before = v32_add(before, v32_keep(v32_not_le(v32_set((double)key[j]), own), one));
        v32_store_f32(place + b, v32_add(before, beside));
    }
}

/* (1 + a) (1 + b) - 1; what no longer fits is added to *log. */
INLINE double ranking_times(double a, double b, double *log) {
    const double q = (a + b) + a * b;
    if (q <= 0x1p100) return q;
    *log += csm_log1p(q, 0);
    return 0;
}

static double ranking_terms(double *e, size_t n, double *sum, double *inverse, double *grad) {
    enum { VECTORS = 8 / v64_W };
    double behind = 0, before = 0, log = 0, lane[8];
    v64_t q[VECTORS];
    for (size_t i = n; i < n + 9; i++) { /* quotients of 0 */
        e[i] = 1;
        sum[i] = 0;
    }
    size_t rest = n;
    for (; rest % 4; rest--) sum[rest - 1] = behind = behind + e[rest - 1];
    for (; rest > 0; rest -= 4) { /* one addition of the chain for four elements */
        const double *x = e + rest - 4;
        const double two = x[3] + x[2];
        sum[rest - 1] = behind + x[3];
        sum[rest - 2] = behind + two;
        sum[rest - 3] = behind + (two + x[1]);
        sum[rest - 4] = behind = behind + (two + (x[1] + x[0]));
    }
    UNROLL
    for (int v = 0; v < VECTORS; v++) q[v] = v64_zero();
    for (size_t i = 0; i < n; i += 8) {
        unsigned large = 0;
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            const size_t at = i + (size_t)v * v64_W;
            const v64_t next = v64_load_f64(sum + at + 1), weight = v64_load_f64(e + at);
            const v64_t rho = v64_div(next, weight), by = v64_div(v64_set(1), v64_load_f64(sum + at));
            v64_store_f64(inverse + at, by);
            v64_store_f64(grad + at, v64_mul(next, by));
            q[v] = v64_add(v64_add(q[v], rho), v64_mul(q[v], rho));
            large |= v64_bits(v64_not_le(q[v], v64_set(0x1p100)));
        }
        if (!large) continue;
        for (int v = 0; v < VECTORS; v++) v64_store_f64(lane + v * v64_W, q[v]);
        for (int l = 0; l < 8; l++) lane[l] = ranking_times(lane[l], 0, &log);
        for (int v = 0; v < VECTORS; v++) q[v] = v64_load_f64(lane + v * v64_W);
    }
    for (int v = 0; v < VECTORS; v++) v64_store_f64(lane + v * v64_W, q[v]);
    for (int half = 4; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = ranking_times(lane[l], lane[l + half], &log);
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        const double *by = inverse + i, two = by[0] + by[1];
        grad[i] = e[i] * before - grad[i];
        grad[i + 1] = e[i + 1] * (before + by[0]) - grad[i + 1];
        grad[i + 2] = e[i + 2] * (before + two) - grad[i + 2];
        grad[i + 3] = e[i + 3] * (before + (two + by[2])) - grad[i + 3];
        before = before + (two + (by[2] + by[3]));
    }
    for (; i < n; i++) {
        grad[i] = e[i] * before - grad[i];
        before += inverse[i];
    }
    return log + csm_log1p(lane[0], 0);
}
