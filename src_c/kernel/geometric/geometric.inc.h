/* Three products of g-softmax, in double.
 *
 *     dot       sum of a(i) b(i):   8 lanes (element i in lane i mod 8), each a chain of fma from +0, added by v64_tree
 *     subtract  y(i) - a x(i):      one fma for each element
 *     combine   y(j) = sum over k of w(k) matrix(rows(k), j): for each j a chain of fma from +0, in the order of k
 *
 * Each passes once over its arrays; combine holds up to four vectors of y in registers while it goes down the rows.
 * NaN and infinity propagate as in any sum; the driver passes none.  Every result is the same on every instruction set.
 *
 * Error: that of chains of fma, at most (n / 8 + 4) 2^-53 of the sum of magnitudes for dot and count 2^-53 for combine,
 * whose terms are positive; measured with 100 terms 0.8 and 8.1 2^-53.
 */
static double geometric_dot(const double *a, const double *b, size_t n) {
    enum { VECTORS = 8 / v64_W };
    v64_t sum[VECTORS];
    size_t i = 0;
    for (int v = 0; v < VECTORS; v++) sum[v] = v64_zero();
    for (; n - i >= 8; i += 8) {
        UNROLL
        for (int v = 0; v < VECTORS; v++)
            sum[v] = v64_fma(v64_load_f64(a + i + v * v64_W), v64_load_f64(b + i + v * v64_W), sum[v]);
    }
    for (int v = 0; v < VECTORS && i < n; v++, i += v64_W) {
        const size_t k = n - i < v64_W ? n - i : v64_W;
        sum[v] = v64_fma(v64_load_part_f64(a + i, k, v64_zero()), v64_load_part_f64(b + i, k, v64_zero()), sum[v]);
    }
    return v64_tree(sum);
}

static void geometric_subtract(double *y, double a, const double *x, size_t n) {
    const v64_t by = v64_set(a);
    size_t i = 0;
    for (; n - i >= v64_W; i += v64_W) v64_store_f64(y + i, v64_fnma(by, v64_load_f64(x + i), v64_load_f64(y + i)));
    if (i < n) {
        const v64_t part = v64_load_part_f64(y + i, n - i, v64_zero());
        v64_store_part_f64(y + i, n - i, v64_fnma(by, v64_load_part_f64(x + i, n - i, v64_zero()), part));
    }
}

INLINE void geometric_columns(const int count, const double *matrix, size_t pitch, const size_t *rows, const double *w,
                              size_t n, double *y) {
    v64_t sum[4];
    UNROLL
    for (int v = 0; v < count; v++) sum[v] = v64_zero();
    for (size_t k = 0; k < n; k++) {
        const double *from = matrix + rows[k] * pitch;
        const v64_t by = v64_set(w[k]);
        UNROLL
        for (int v = 0; v < count; v++) sum[v] = v64_fma(by, v64_load_f64(from + v * v64_W), sum[v]);
    }
    UNROLL
    for (int v = 0; v < count; v++) v64_store_f64(y + v * v64_W, sum[v]);
}

static void geometric_combine(const double *matrix, size_t pitch, const size_t *rows, const double *w, size_t count,
                              double *y) {
    size_t j = 0;
    for (; pitch - j >= 4 * v64_W; j += 4 * v64_W) geometric_columns(4, matrix + j, pitch, rows, w, count, y + j);
    for (; j < pitch; j += v64_W) geometric_columns(1, matrix + j, pitch, rows, w, count, y + j);
}
