/* Logistic decisions at the nodes of a binary tree.
 *
 *   terms: loss = softplus(-s z), slope = -s sigma(-s z); s = 1 where the code is 1, else -1
 *   sides: left = -softplus(z), right = -softplus(-z)
 *   softplus(u) = max(u, 0) + log(1 + e^-|u|);  sigma(u) = 1 / (1 + e^-|u|) for u >= 0, e^-|u| / (1 + e^-|u|) below
 *
 * No difference of nearly equal numbers is formed, for any z, and both kernels have the same bits for the same side.
 * Passes: one; everything is elementwise in double, without branches, so that compilers make vectors of it and every
 * instruction set has the same bits.  There are no accumulators: sums along paths belong to the driver.
 * An infinite z gives 0 on its side and infinity on the other; NaN gives NaN.
 * Error, against mpmath (tests/ops/test_tree.py): losses and slopes below 2 ULP of double.
 */
#ifndef SIMD
#error "tree.inc.h needs SIMD and the functions of sampled/logistic.inc.h"
#endif

static void tree_terms(const double *z, const uint8_t *codes, size_t n, double *loss, double *slope) {
    SIMD
    for (size_t i = 0; i < n; i++) {
        const double u = csm_choose(codes[i], -z[i], z[i]); /* of the side that was not taken */
        const double e = csm_exp_falling(csm_double_of(csm_double_bits(u) & 0x7fffffffffffffffu));
        const double g = csm_choose(u >= 0, 1, e) / (1 + e);
        loss[i] = csm_choose(u >= 0, u, csm_choose(u < 0, 0, u)) + csm_log1p(e, 0);
        slope[i] = csm_choose(codes[i], -g, g);
    }
}

static void tree_sides(const double *z, size_t n, double *left, double *right) {
    SIMD
    for (size_t i = 0; i < n; i++) {
        const double u = z[i], e = csm_exp_falling(csm_double_of(csm_double_bits(u) & 0x7fffffffffffffffu));
        const double l = csm_log1p(e, 0);
        left[i] = -(csm_choose(u >= 0, u, csm_choose(u < 0, 0, u)) + l);
        right[i] = -(csm_choose(-u >= 0, -u, csm_choose(-u < 0, 0, -u)) + l);
    }
}
