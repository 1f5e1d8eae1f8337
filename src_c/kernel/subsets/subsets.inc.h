/* Sums over subsets of k of n elements: elements taken with odds e^a, a = x + shift, and their number.
 *
 *     sigmoids   p = 1 / (1 + e^-a), q = 1 / (1 + e^a), without 1 - p
 *     logs       sum of log(1 + e^-|a|)
 *     step       to(j) = from(j) q + from(j - 1) p: the probabilities of j elements, once another one is decided on
 *
 * Passes: one each.  Accumulators: doubles, 8 lanes (element i in lane i mod 8) in the order of i, added by v64_tree;
 * all else is elementwise, so that every instruction set has the same bits.  All terms are positive.
 * NaN and infinities never come here.  What a loses in rounding is given back to the smaller of p and
 * q, whose digits it would cost.  Error: p and q below 2 ULP; a step 1.5 ULP.
 */
#ifndef SIMD
#error "subsets.inc.h needs SIMD and the functions of sampled/logistic.inc.h"
#endif

enum { SUBSET_LANES = 8 };

/* The sum of 8 lanes, as v64_tree adds them. */
INLINE double subset_total(const double *a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

static double subset_sigmoids(const double *x, double shift, size_t n, double *p, double *q, double *spread) {
    double sum[SUBSET_LANES] = {0, 0, 0, 0, 0, 0, 0, 0}, product[SUBSET_LANES] = {0, 0, 0, 0, 0, 0, 0, 0};
    SIMD
    for (size_t i = 0; i < n; i++) {
        const double a = x[i] + shift, e = csm_exp_falling(csm_double_of(csm_double_bits(a) & 0x7fffffffffffffffu));
        const double near = 1 / (1 + e), b = a - x[i], rest = (x[i] - (a - b)) + (shift - b); /* x + shift - a */
        const double far = e / (1 + e), exact = far - far * (near * csm_choose(a >= 0, rest, -rest));
        p[i] = csm_choose(a >= 0, near, exact);
        q[i] = csm_choose(a >= 0, exact, near);
    }
    size_t i = 0;
    for (; i + SUBSET_LANES <= n; i += SUBSET_LANES) {
        SIMD
        for (int l = 0; l < SUBSET_LANES; l++) {
            sum[l] += p[i + l];
            product[l] += p[i + l] * q[i + l];
        }
    }
    for (int l = 0; i < n; i++, l++) {
        sum[l] += p[i];
        product[l] += p[i] * q[i];
    }
    *spread = subset_total(product);
    return subset_total(sum);
}

static double subset_logs(const double *x, double shift, size_t n) {
    double sum[SUBSET_LANES] = {0, 0, 0, 0, 0, 0, 0, 0}, part[SUBSET_LANES];
    for (size_t i = 0; i < n; i += SUBSET_LANES) {
        const size_t k = n - i < SUBSET_LANES ? n - i : SUBSET_LANES;
        SIMD
        for (size_t l = 0; l < SUBSET_LANES; l++) {
            const double a = x[l < k ? i + l : i] + shift;
            part[l] = csm_log1p(csm_exp_falling(csm_double_of(csm_double_bits(a) & 0x7fffffffffffffffu)), 0);
        }
        for (size_t l = 0; l < k; l++) sum[l] += part[l];
    }
    return subset_total(sum);
}

static void subset_step(const double *from, double *to, size_t n, double p, double q) {
    const v64_t taken = v64_set(p), left = v64_set(q);
    size_t j = 0;
    for (; n - j >= v64_W; j += v64_W) {
        const v64_t moved = v64_mul(v64_load_f64(from + j - 1), taken);
        v64_store_f64(to + j, v64_fma(v64_load_f64(from + j), left, moved));
    }
    if (j < n) {
        const v64_t moved = v64_mul(v64_load_part_f64(from + j - 1, n - j, v64_zero()), taken);
        v64_store_part_f64(to + j, n - j, v64_fma(v64_load_part_f64(from + j, n - j, v64_zero()), left, moved));
    }
}
