/* A row of logistic terms and their derivatives, one compute type REAL.
 *
 *   loss = softplus(-u_n) + sum_{j < n} c_j softplus(u_j),  softplus(u) = max(u, 0) + log(1 + e^-|u|)
 *   g_n = -sigma(-u_n),  g_j = c_j sigma(u_j);  sigma(u) = 1 / (1 + e^-|u|) for u >= 0, e^-|u| / (1 + e^-|u|) below
 *
 * So no difference of nearly equal numbers is formed, for any u.  Everything is computed in double, for float as well,
 * by elementwise loops over parts of PART numbers that the compiler vectorises; the sums run over 8 lanes, j mod 8, in
 * the order of j, and are added in a fixed tree.  Every instruction set therefore has the same bits.
 * Without counts, a lane takes one logarithm for many terms: the q of 1 + q = prod (1 + e^-|u|) grows by
 * q <- q e + (q + e), whose terms are positive, so that q keeps its relative precision however small the e are.
 * Passes: one (decision sampled 4 has the time).
 * -inf contributes 0 to the loss and to the gradient, which is how accidental hits are left out; +inf gives an infinite
 * loss and a derivative of c.  NaN makes the loss and its own derivative NaN.
 * Error, against mpmath (tests/ops/test_sampled_logistic.py): derivatives below 2 ULP of double, then rounded to REAL;
 * the loss below 2 ULP + n / 4 units of its sum.
 */
#ifndef V
#error "logistic.inc.h needs V(name), REAL"
#endif

#ifndef CSM_LOGISTIC_PART
#define CSM_LOGISTIC_PART
enum {
    LOGISTIC_PART = 128,
    LOGISTIC_FLUSH = 32 /* parts: a product of 512 factors of at most 2 */
};
/* e^-a for a >= 0: 0 beyond 745.2, NaN passes.  No branch, so that loops of it become vectors. */
INLINE double csm_exp_falling(double a) {
    const double w = -csm_choose(a > 746, 746, a);
    /* an integer n with the bias of the exponent in its low bits, 64 more so that no scale is subnormal */
    const double shifted = w * 0x1.71547652b82fep+0 + (0x1.8p52 + 1087), n = shifted - (0x1.8p52 + 1087);
    const double scale = csm_double_of(csm_double_bits(shifted) << 52);
    const double r = fma(-n, 0x1.abc9e3b39803fp-56, fma(-n, 0x1.62e42fefa39efp-1, w));
    const double t = r + r * r * (0.5 + (r * csm_exp_rest(r) + 0x1.4p-50));
    return fma(t, scale, scale) * 0x1p-64;
}
#endif

/* Adds numbers, or their squares, to lane i mod 8 in the order of i. */
INLINE void V(logistic_add)(double *lanes, const double *x, size_t k, const int square) {
    size_t i = 0;
    for (; i + LOGISTIC_LANES <= k; i += LOGISTIC_LANES) {
        SIMD
        for (int l = 0; l < LOGISTIC_LANES; l++) lanes[l] += square ? x[i + l] * x[i + l] : x[i + l];
    }
    for (int l = 0; i < k; i++, l++) lanes[l] += square ? x[i] * x[i] : x[i];
}
/* Multiplies the 1 + q of lane i mod 8 by 1 + x_i. */
INLINE void V(logistic_multiply)(double *lanes, const double *x, size_t k) {
    size_t i = 0;
    for (; i + LOGISTIC_LANES <= k; i += LOGISTIC_LANES) {
        SIMD
        for (int l = 0; l < LOGISTIC_LANES; l++) lanes[l] = fma(lanes[l], x[i + l], lanes[l] + x[i + l]);
    }
    for (int l = 0; i < k; i++, l++) lanes[l] = fma(lanes[l], x[i], lanes[l] + x[i]);
}
/* Adds log(1 + q) of each lane to the losses, and begins again. */
INLINE void V(logistic_flush)(double *losses, double *products) {
    SIMD
    for (int l = 0; l < LOGISTIC_LANES; l++) {
        losses[l] += csm_log1p(products[l], 0);
        products[l] = 0;
    }
}
/* Many rows of at most eight terms without counts, as those of word2vec are.  Each has its own vector, one term for
 * each lane, and vectors of different rows overlap: alone, a row waits for the latencies of one exp, one log1p and
 * three divisions.  Six terms: 30 ns a row instead of 65 (decision sampled 6). */
static void V(logistic_few)(void *p, ptrdiff_t step, size_t rows, size_t n, int gradient, const double *factor,
                            double *loss, double *sum) {
    REAL z[(LOGISTIC_FEW + 1) * LOGISTIC_LANES]; /* a vector of floats may be two rows */
    double term[LOGISTIC_FEW * LOGISTIC_LANES], g[LOGISTIC_FEW * LOGISTIC_LANES];
    char *u = p;
    for (size_t r = 0; r < rows; r++)
        for (size_t at = 0; at < LOGISTIC_LANES; at += V(W)) {
            const size_t left = at <= n ? n + 1 - at : 0;
            const REAL *from = (const REAL *)(const void *)(u + (ptrdiff_t)r * step) + (left ? at : 0);
            V(STORE_REAL)(z + r * LOGISTIC_LANES + at, V(LOAD_PART_REAL)(from, left < V(W) ? left : V(W), V(zero)()));
        }
    for (size_t r = 0; r < rows; r++) z[r * LOGISTIC_LANES + n] = -z[r * LOGISTIC_LANES + n];
    SIMD
    for (size_t i = 0; i < rows * LOGISTIC_LANES; i++) {
        const double v = (double)z[i], a = csm_double_of(csm_double_bits(v) & 0x7fffffffffffffffu);
        const int rises = v >= 0;
        const double e = csm_exp_falling(a), rise = csm_choose(rises, v, csm_choose(v < 0, 0, v));
        g[i] = csm_choose(rises, 1, e) / (1 + e);
        term[i] = rise + csm_log1p(e, 0);
    }
    for (size_t r = 0; r < rows; r++) {
        double *own = g + r * LOGISTIC_LANES, *t = term + r * LOGISTIC_LANES;
        REAL *to = (REAL *)(void *)(u + (ptrdiff_t)r * step);
        own[n] = -own[n];
        for (size_t i = n + 1; i < LOGISTIC_LANES; i++) t[i] = own[i] = 0;
        for (int half = LOGISTIC_LANES / 2; half > 0; half /= 2)
            for (int i = 0; i < half; i++) t[i] += t[i + half];
        loss[r] = t[0];
        if (!gradient) continue;
        for (size_t i = 0; i <= n; i++) {
            const double v = own[i] * factor[r];
            own[i] = csm_choose(v == v, v, CSM_NAN);
            to[i] = (REAL)own[i];
        }
        if (!sum) continue;
        for (int half = LOGISTIC_LANES / 2; half > 0; half /= 2)
            for (int i = 0; i < half; i++) own[i] += own[i + half];
        sum[r] = own[0];
    }
}
static void V(logistic_row)(csm_logistic_row *row, int gradient, int wants_square, double factor) {
    REAL *u = row->u;
    double e[LOGISTIC_PART], g[LOGISTIC_PART], rise[LOGISTIC_PART];
    double losses[LOGISTIC_LANES], squares[LOGISTIC_LANES], sums[LOGISTIC_LANES], products[LOGISTIC_LANES];
    for (int i = 0; i < LOGISTIC_LANES; i++) losses[i] = squares[i] = sums[i] = products[i] = 0; /* no call of libc */
    for (int i = 0; i < LOGISTIC_LANES; i++) losses[i] = squares[i] = sums[i] = products[i] = 0; /* no call of libc */
    for (size_t begin = 0; begin <= row->n; begin += LOGISTIC_PART) {
        const size_t left = row->n + 1 - begin;
        const size_t k = left < LOGISTIC_PART ? left : LOGISTIC_PART;
        REAL *part = u + begin;
        const int has_target = left <= LOGISTIC_PART;
        SIMD
        for (size_t i = 0; i < k; i++) g[i] = (double)part[i];
        if (has_target) g[k - 1] = -g[k - 1];
        SIMD
        for (size_t i = 0; i < k; i++) {
            const double a = csm_double_of(csm_double_bits(g[i]) & 0x7fffffffffffffffu);
            const int rises = g[i] >= 0;
            e[i] = csm_exp_falling(a);
            rise[i] = csm_choose(rises, g[i], csm_choose(g[i] < 0, 0, g[i]));
            g[i] = csm_choose(rises, 1, e[i]) / (1 + e[i]);
        }
        if (row->counts) {
            const size_t negatives = k - (size_t)has_target;
            SIMD
            for (size_t i = 0; i < k; i++) e[i] = rise[i] + csm_log1p(e[i], 0);
            for (size_t i = 0; i < negatives; i++) {
                e[i] *= row->counts[begin + i];
                g[i] *= row->counts[begin + i];
            }
            V(logistic_add)(losses, e, k, 0);
        } else {
            V(logistic_add)(losses, rise, k, 0);
            V(logistic_multiply)(products, e, k);
            if (begin / LOGISTIC_PART % LOGISTIC_FLUSH == LOGISTIC_FLUSH - 1) V(logistic_flush)(losses, products);
        }
        if (has_target) g[k - 1] = -g[k - 1];
        if (!gradient) continue;
        if (wants_square) V(logistic_add)(squares, g, k, 1);
        SIMD
        for (size_t i = 0; i < k; i++) {
            const double v = g[i] * factor;
            g[i] = csm_choose(v == v, v, CSM_NAN);
        }
        if (row->wants_sum) V(logistic_add)(sums, g, k, 0);
        SIMD
        for (size_t i = 0; i < k; i++) part[i] = (REAL)g[i];
    }
    if (!row->counts) V(logistic_flush)(losses, products);
    for (int half = LOGISTIC_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) {
            losses[i] += losses[i + half];
            squares[i] += squares[i + half];
            sums[i] += sums[i + half];
        }
    row->loss = losses[0];
    row->square = squares[0];
    row->sum = sums[0];
}

static double V(logistic_clip)(void *p, size_t n, double before, double limit, double factor) {
    REAL *g = p;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double a = (double)g[i] * before;
        a = a > limit ? limit : a < -limit ? -limit : a;
        sum += a * factor;
        g[i] = (REAL)(a * factor);
    }
    return sum;
}
