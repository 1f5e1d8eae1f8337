/* Forward and backward passes of a linear-chain CRF in double, whatever the dtype of the scores.
 *
 *   alpha(1, j) = start_a(j) e(1, j),            alpha(t, j) = e(t, j) sum_i alpha(t - 1, i) a(i, j)
 *   beta(n, i) = end_a(i),                       beta(t, i)  = sum_j a(i, j) e(t + 1, j) beta(t + 1, j)
 *   Z = sum_j alpha(n, j) end_a(j),              mu(t, j)    = alpha(t, j) beta(t, j) / Z
 *
 * e, a, start_a and end_a are p 2^(n - n of the largest): x - max is never formed, and the powers of two are counted
 * beside the vectors (alpha_n and so on), which are scaled by a power of two when their largest element leaves
 * [2^-64, 2^64].
 *
 * A sum over tags is two chains of fma from +0, over even and over odd tags, added at the end.  It does not depend on
 * the other columns, so that every vector length gives the same bits.  Sums for exact tails leave out one term and run
 * in 8 lanes (tag mod 8), which v64_tree adds.
 *
 * Elements may vanish without harm if what leads to them, or away from them, weighs little.  While every sum is at
 * least 2^-300 of its vector's largest element times the largest a, what was lost is below 2^-650 of any sum.
 * Otherwise the sequence is doubtful, and its backward pass decides: it is right if the largest alpha times the largest
 * beta is below 2^200 Z at every position, since a lost weight is below 2^-950 of them.  That is the case with -1e4 or
 * -1e9 in place of -inf.  Where it is not, the sequence is computed with one exponent a tag (ops/crf_slow.c).
 *
 * Only products and sums of positive numbers, so that every result has a relative error below 2 n (L / 2 + 3) 2^-53.
 * NaN and +inf never come here.  Largest error measured against mpmath (tests/ops/test_crf.py): see ACCURACY.md. */
#include "structure.h"

static const double csm_crf_lanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
enum { CRF_SIDE = 4 };

/* x = max(x, lowest) becomes t, e^x = (1 + t) 2^n; n keeps its magic number. */
INLINE void crf_exp(const int count, v64_t *x, v64_t *n) {
    v64_t r[CRF_SIDE], q[CRF_SIDE];
#define EACH \
    UNROLL   \
    for (int v = 0; v < count; v++)
    const v64_t magic = v64_set(0x1.8p52);
    EACH x[v] = v64_max(v64_set(-0x1p50), x[v]);
    EACH n[v] = v64_sub(v64_fma(x[v], v64_set(EXP_LOG2E), magic), magic);
    EACH r[v] = v64_fnma(n[v], v64_set(EXP_LN2_HI), x[v]);
    EACH r[v] = v64_fnma(n[v], v64_set(EXP_LN2_LO), r[v]);
    EACH q[v] = v64_fma(v64_set(0x1.ad7e35e7d73e4p-26), r[v], v64_set(0x1.28ae790e15635p-22));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.71df27c50cf1bp-19));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.a01998fd3c442p-16));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.a01a01288200bp-13));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.6c16c18488a09p-10));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.111111112836ep-7));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.55555555506eap-5));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.55555555554f7p-3));
    EACH q[v] = v64_fma(q[v], r[v], v64_set(0x1.000000000000ap-1));
    EACH x[v] = v64_fma(v64_mul(r[v], r[v]), q[v], r[v]);
#undef EACH
}

static void crf_split(const double *x, double *p, double *n, size_t count) {
    for (size_t i = 0; i < count; i += v64_W) {
        v64_t t = v64_load_f64(x + i), power;
        crf_exp(1, &t, &power);
        v64_store_f64(p + i, v64_add(v64_set(1), t));
        v64_store_f64(n + i, power);
    }
    for (size_t i = 0; i < count; i++) {
        if (x[i] >= -0x1p50) continue;
        const double y = x[i] * EXP_LOG2E; /* an integer from 2^52 on */
        p[i] = x[i] > -CSM_INF;
        n[i] = x[i] == -CSM_INF ? 0 : y > -0x1p52 ? (y - 0x1p52) + 0x1p52 : y < -EXP_MOST ? -EXP_MOST : y;
    }
}

static int crf_maxima(const double *x, size_t n, size_t pitch, double *max) {
    int found = 0;
    for (size_t t = 0; t < n; t++, x += pitch) {
        v64_t top = v64_set(-CSM_INF);
        unsigned bits = 0;
        for (size_t i = 0; i < pitch; i += v64_W) {
            const v64_t v = v64_load_f64(x + i);
            bits |= v64_bits(v64_unordered(v, v));
            top = v64_max(v, top);
        }
        max[t] = v64_top(top);
        if (bits) return 1;
        if (max[t] == CSM_INF) found = 2;
    }
    return found;
}

/* e = p 2^(n - e_n), where e_n is the n of the row's maximum. */
INLINE void crf_exp_row(const int count, const double *x, double *e, v64_t power) {
    v64_t t[CRF_SIDE], n[CRF_SIDE];
    for (int v = 0; v < count; v++) t[v] = v64_load_f64(x + v * v64_W);
    crf_exp(count, t, n);
    for (int v = 0; v < count; v++) {
        const v64_t d = v64_max(v64_set(-1023), v64_sub(n[v], power));
        const v64_t scale = v64_exponent(v64_add(d, v64_set(0x1.8p52 + 1023)));
        v64_store_f64(e + v * v64_W, v64_mul(v64_add(v64_set(1), t[v]), scale));
    }
}
static void crf_exponentials(const double *x, const double *max, double *e, double *e_n, size_t n, size_t pitch) {
    for (size_t t = 0; t < n; t++, x += pitch, e += pitch) {
        e_n[t] = fma(max[t], EXP_LOG2E, 0x1.8p52) - 0x1.8p52;
        const v64_t power = v64_set(e_n[t]);
        size_t i = 0;
        for (; i + 4 * v64_W <= pitch; i += 4 * v64_W) crf_exp_row(4, x + i, e + i, power);
        for (; i + 2 * v64_W <= pitch; i += 2 * v64_W) crf_exp_row(2, x + i, e + i, power);
        for (; i < pitch; i += v64_W) crf_exp_row(1, x + i, e + i, power);
    }
}

/* `count` vectors of columns of sum_i x_i a(i, j). */
INLINE void crf_columns(const int count, const double *x, size_t n, const double *a, size_t pitch, v64_t *sum) {
    v64_t odd[CRF_SIDE];
    size_t i = 0;
    UNROLL
    for (int v = 0; v < count; v++) sum[v] = odd[v] = v64_zero();
    for (; i + 2 <= n; i += 2, a += 2 * pitch) {
        const v64_t first = v64_set(x[i]), second = v64_set(x[i + 1]);
        UNROLL
        for (int v = 0; v < count; v++) {
            sum[v] = v64_fma(first, v64_load_f64(a + v * v64_W), sum[v]);
            odd[v] = v64_fma(second, v64_load_f64(a + pitch + v * v64_W), odd[v]);
        }
    }
    if (i < n) {
        const v64_t first = v64_set(x[i]);
        UNROLL
        for (int v = 0; v < count; v++) sum[v] = v64_fma(first, v64_load_f64(a + v * v64_W), sum[v]);
    }
    UNROLL
    for (int v = 0; v < count; v++) sum[v] = v64_add(sum[v], odd[v]);
}

/* A row times a matrix, and each sum times `by` if there is one.  Returns the largest result; *least: smallest sum. */
typedef struct crf_range {
    v64_t top, low;
} crf_range;
INLINE void crf_multiply_part(const int count, const double *x, size_t j, const double *a, size_t n, size_t pitch,
                              const double *by, double *to, crf_range *range) {
    v64_t sum[CRF_SIDE];
    crf_columns(count, x, n, a + j, pitch, sum);
    UNROLL
    for (int v = 0; v < count; v++) {
        const size_t at = j + (size_t)v * v64_W;
        if (at + v64_W <= n) {
            range->low = v64_min(sum[v], range->low);
        } else { /* what lies beyond the last tag is 0 */
            const v64_t lane = v64_add(v64_load_f64(csm_crf_lanes), v64_set((double)at));
            range->low = v64_min(v64_select(v64_ge(lane, v64_set((double)n)), range->low, sum[v]), range->low);
        }
        if (by) sum[v] = v64_mul(sum[v], v64_load_f64(by + at));
        range->top = v64_max(sum[v], range->top);
        v64_store_f64(to + at, sum[v]);
    }
}
INLINE double crf_multiply(const double *x, const double *a, size_t n, size_t pitch, const double *by, double *to,
                           double *least) {
    crf_range range = {v64_zero(), v64_set(CSM_INF)};
    size_t j = 0;
    for (; j + 3 * v64_W < n; j += 4 * v64_W) crf_multiply_part(4, x, j, a, n, pitch, by, to, &range);
    if (j + 2 * v64_W < n) crf_multiply_part(3, x, j, a, n, pitch, by, to, &range);
    else if (j + v64_W < n) crf_multiply_part(2, x, j, a, n, pitch, by, to, &range);
    else if (j < n) crf_multiply_part(1, x, j, a, n, pitch, by, to, &range);
    *least = -v64_top(v64_sub(v64_zero(), range.low));
    return v64_top(range.top);
}

/* Scales a row whose largest element has left [2^-64, 2^64], and returns the largest. */
INLINE double crf_rescale(double *x, size_t pitch, double max, double *n) {
    if (max <= 0x1p64 && max >= 0x1p-64) return max;
    double top = max;
    const double k = csm_take_exponent(&top);
    const v64_t by = v64_set(csm_pow2(-k));
    for (size_t i = 0; i < pitch; i += v64_W) v64_store_f64(x + i, v64_mul(v64_load_f64(x + i), by));
    *n += k;
    return top;
}

INLINE double crf_dot(const double *x, const double *y, size_t n) {
    double even = 0, odd = 0;
    size_t i = 0;
    for (; i + 2 <= n; i += 2) {
        even = fma(x[i], y[i], even);
        odd = fma(x[i + 1], y[i + 1], odd);
    }
    if (i < n) even = fma(x[i], y[i], even);
    return even + odd;
}
/* sum of x_i y_i (y NULL: of x_i) over i other than `skip`, in 8 lanes. */
INLINE double crf_dot_except(const double *x, const double *y, size_t pitch, size_t skip) {
    v64_t sum[8 / v64_W];
    const v64_t without = v64_set((double)skip);
    for (int v = 0; v < 8 / v64_W; v++) sum[v] = v64_zero();
    for (size_t i = 0; i < pitch; i += 8)
        for (int v = 0; v < 8 / v64_W; v++) {
            const size_t at = i + (size_t)v * v64_W;
            const v64_t lane = v64_add(v64_load_f64(csm_crf_lanes + v * v64_W), v64_set((double)i));
            const v64_t kept = v64_drop(v64_eq(lane, without), v64_load_f64(x + at));
            sum[v] = y ? v64_fma(kept, v64_load_f64(y + at), sum[v]) : v64_add(sum[v], kept);
        }
    return v64_tree(sum);
}

/* Asks for an interrupt about every CSM_POLL_STEP multiplications. */
INLINE int crf_stops(csm_crf_chain *c, size_t *work, size_t pitch) {
    *work += pitch * pitch;
    if (*work < 8 * CSM_POLL_STEP) return 0;
    const size_t done = *work;
    *work = 0;
    return csm_poll_stops(&c->poll, done);
}

static csm_crf_outcome crf_forward(csm_crf_chain *c) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    size_t work = 0;
    double *row = c->alpha, max = 0, least, n = c->e_n[0] + m->start_n0;
    for (size_t j = 0; j < P; j++) {
        row[j] = m->start_a[j] * c->e[j];
        max = row[j] > max ? row[j] : max;
    }
    c->is_doubtful = 0;
    for (size_t t = 0;;) {
        if (max < CSM_CRF_SMALL) { /* of a product of numbers about 1, or of sums that have been compared */
            csm_crf_know_before(c, t + 1);
            int is_possible = 0;
            for (size_t j = 0; j < L; j++) is_possible |= c->before[t * L + j];
            return is_possible ? CSM_CRF_SLOW : CSM_CRF_NO_PATH;
        }
        c->alpha_max[t] = max = crf_rescale(row, P, max, &n);
        c->alpha_n[t] = n;
        if (++t == c->n) break;
        if (crf_stops(c, &work, P)) return CSM_CRF_STOPPED;
        const double *from = row, limit = CSM_CRF_SMALL * max * m->a_max, before = max;
        row += P;
        n += c->e_n[t] + m->a_n;
        max = crf_multiply(from, m->a, L, P, c->e + t * P, row, &least);
        if (least < limit) c->is_doubtful = 1;
        if (max < CSM_CRF_SMALL * before) max = 0; /* relative to the vector before: see above */
    }
    const double z = crf_dot(row, m->end_a, L);
    c->z = z;
    c->z_n = n + m->end_n0;
    if (z > 0 && z >= CSM_CRF_SMALL * max * m->end_max) {
        c->z_n += csm_take_exponent(&c->z);
        return CSM_CRF_DONE;
    }
    csm_crf_know_before(c, c->n);
    for (size_t j = 0; j < L; j++)
        if (c->before[(c->n - 1) * L + j] && m->end[j] > -CSM_INF) return CSM_CRF_SLOW;
    return CSM_CRF_NO_PATH;
}

static csm_crf_outcome crf_backward(csm_crf_chain *c, int pairs) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    const double inverse = 1 / c->z;
    size_t work = 0;
    double *beta = c->beta, *v = c->beta + P, n = m->end_n0, max = m->end_max, least;
    for (size_t i = 0; i < P; i++) beta[i] = m->end_a[i];
    for (size_t t = c->n; t-- > 0;) {
        /* alpha beta 2^d / z */
        double d = c->alpha_n[t] + n - c->z_n;
        if (!(d < 900)) return CSM_CRF_SLOW;
        double factor = inverse * csm_pow2(d);
        if (!(c->alpha_max[t] * max * factor <= CSM_CRF_LARGE)) return CSM_CRF_SLOW;
        v64_t by = v64_set(factor), top = v64_zero();
        for (size_t i = 0; i < P; i += v64_W) {
            const v64_t b = v64_load_f64(beta + i);
            const v64_t mu = v64_mul(v64_mul(v64_load_f64(c->alpha + t * P + i), b), by);
            v64_store_f64(c->mu + t * P + i, mu);
            const v64_t product = v64_mul(b, v64_load_f64(c->e + t * P + i));
            top = v64_max(product, top);
            v64_store_f64(v + i, product);
        }
        if (t == 0) break;
        if (crf_stops(c, &work, P)) return CSM_CRF_STOPPED;
        const double v_max = v64_top(top);
        if (v_max < CSM_CRF_SMALL * max) return CSM_CRF_SLOW;
        n += c->e_n[t] + m->a_n;
        if (pairs) {
            d = c->alpha_n[t - 1] + n - c->z_n;
            if (!(d < 900)) return CSM_CRF_SLOW;
            by = v64_set(inverse * csm_pow2(d));
            for (size_t i = 0; i < P; i += v64_W) v64_store_f64(c->u + t * P + i, v64_mul(v64_load_f64(v + i), by));
        }
        max = crf_multiply(v, m->a_t, L, P, NULL, beta, &least);
        max = crf_rescale(beta, P, max, &n);
    }
    return CSM_CRF_DONE;
}

/* Adds q 2^d to *r 2^*r_n. */
INLINE void crf_add(double *r, double *r_n, double q, double d) {
    if (q == 0) return;
    if (*r_n == 0 && d > -400 && d < 400) { /* the ordinary case */
        *r += q * csm_pow2(d);
        if (*r < 0x1p500) return;
        *r_n = csm_take_exponent(r);
        return;
    }
    d += csm_take_exponent(&q);
    if (*r == 0) {
        *r = q;
        *r_n = d;
        return;
    }
    *r_n += csm_take_exponent(r);
    if (d > *r_n) {
        const double other = *r, other_n = *r_n;
        *r = q, *r_n = d;
        q = other, d = other_n;
    }
    *r += csm_times_pow2(q, d - *r_n);
}

/* rho = (weight of all paths) / (weight of the labels' path) - 1, by the position at which a path last joins that of
 * the labels:  rho = sum_t (sum_(i != y_(t-1)) alpha(t - 1, i) a(i, y_t)) / (g_(t-1) a(y_(t-1), y_t)),  g the weight of
 * the labels' prefix.  All terms are positive; g is multiplied up from p and n, which never vanish. */
static int crf_tail(csm_crf_chain *c, double *r, double *r_n) {
    const csm_crf_model *m = c->model;
    const size_t P = m->pitch;
    size_t y = (size_t)c->labels[0];
    double g = m->start_p[y] * c->gold[0], n = m->start_n[y] + c->gold_n[0];
    *r = *r_n = 0;
    for (size_t t = 1; t < c->n; t++) {
        const size_t before = y;
        y = (size_t)c->labels[t];
        c->beside[t] = crf_dot_except(c->alpha + (t - 1) * P, m->a_t + y * P, P, before);
        const double ga = g * m->p[before * P + y], ga_n = n + m->n[before * P + y];
        if (ga == 0) return 0;
        crf_add(r, r_n, c->beside[t] / ga, c->alpha_n[t - 1] + m->a_n - ga_n);
        g = ga * c->gold[t];
        n = ga_n + c->gold_n[t];
        if (g < 0x1p-100 || g > 0x1p100) n += csm_take_exponent(&g);
    }
    const double last = g * m->end_p[y];
    if (last == 0) return 0;
    crf_add(r, r_n, crf_dot_except(c->alpha + (c->n - 1) * P, m->end_a, P, y) / last,
            c->alpha_n[c->n - 1] + m->end_n0 - (n + m->end_n[y]));
    return 1;
}

/* A block of g = a (sum + h): `rows` tags by `count` vectors, one chain of fma from +0 over the positions; h is added
 * to the rows that have been touched (NULL: to none). */
INLINE void crf_outer(const int rows, const int count, const double *alpha, const double *u, size_t n, size_t P,
                      const double *a, const double *h, const unsigned char *touched, double *g) {
    v64_t sum[4][2];
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int v = 0; v < count; v++) sum[i][v] = v64_zero();
    }
    for (size_t t = 1; t < n; t++, alpha += P) {
        v64_t from[2];
        UNROLL
        for (int v = 0; v < count; v++) from[v] = v64_load_f64(u + t * P + v * v64_W);
        UNROLL
        for (int i = 0; i < rows; i++) {
            const v64_t by = v64_set(alpha[i]);
            UNROLL
            for (int v = 0; v < count; v++) sum[i][v] = v64_fma(by, from[v], sum[i][v]);
        }
    }
    UNROLL
    for (int i = 0; i < rows; i++) {
        UNROLL
        for (int v = 0; v < count; v++) {
            const size_t at = (size_t)i * P + (size_t)v * v64_W;
            if (touched && touched[i]) sum[i][v] = v64_add(sum[i][v], v64_load_f64(h + at));
            v64_store_f64(g + at, v64_mul(sum[i][v], v64_load_f64(a + at)));
        }
    }
}
/* g over all positions but, with labels, row y_(t - 1) of position t, whose other elements go to h, in order.  Rows of
 * h are set to 0 when they are first touched: a short sequence has few labels, and must not pay for all pairs. */
static csm_crf_outcome crf_pairs(csm_crf_chain *c) {
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    if (c->labels) {
        for (size_t t = 1; t < c->n; t++) {
            const size_t y = (size_t)c->labels[t - 1];
            double *from = c->alpha + (t - 1) * P + y, *to = c->h + y * P;
            for (size_t i = 0; i < P && !c->touched[y]; i += v64_W) v64_store_f64(to + i, v64_zero());
            c->touched[y] = 1;
            const v64_t by = v64_set(*from), without = v64_set((double)c->labels[t]);
            *from = 0;
            for (size_t i = 0; i < P; i += v64_W) {
                const v64_t lane = v64_add(v64_load_f64(csm_crf_lanes), v64_set((double)i));
                const v64_t other = v64_drop(v64_eq(lane, without), v64_load_f64(c->u + t * P + i));
                v64_store_f64(to + i, v64_fma(by, other, v64_load_f64(to + i)));
            }
        }
    }
    for (size_t i = 0; i < L; i += 4) {
        if (csm_poll_stops(&c->poll, c->n * P)) return CSM_CRF_STOPPED;
        for (size_t j = 0; j < L; j += 2 * v64_W) {
            const double *alpha = c->alpha + i, *u = c->u + j, *a = m->a + i * P + j, *h = c->h + i * P + j;
            const unsigned char *touched = c->labels ? c->touched + i : NULL;
            double *g = c->g + i * P + j;
            const int is_wide = j + v64_W < L;
#define OUTER(rows)                                                    \
    (is_wide ? crf_outer(rows, 2, alpha, u, c->n, P, a, h, touched, g) \
             : crf_outer(rows, 1, alpha, u, c->n, P, a, h, touched, g))
            if (L - i >= 4) OUTER(4);
            else if (L - i == 3) OUTER(3);
            else if (L - i == 2) OUTER(2);
            else OUTER(1);
#undef OUTER
        }
    }
    for (size_t t = 1; t < c->n && c->labels; t++) c->touched[c->labels[t - 1]] = 0;
    return CSM_CRF_DONE;
}

/* Gradients of log Z - score: of a label, minus the sum over the other tags of its position; of a pair of labels, minus
 * the sum of all pairs beside it, which are those into other tags and those from other tags.  Those sums are in d,
 * which is 0 elsewhere, before and after. */
static void crf_gradients(csm_crf_chain *c) {
    const size_t P = c->model->pitch;
    for (size_t t = 0; t < c->n; t++) {
        const size_t y = (size_t)c->labels[t];
        const double others = crf_dot_except(c->mu + t * P, NULL, P, y);
        c->mu[t * P + y] = others == 0 ? 0 : -others;
        if (t) c->d[(size_t)c->labels[t - 1] * P + y] += others + c->beside[t] * c->u[t * P + y];
    }
    for (size_t t = 1; t < c->n; t++) {
        const size_t at = (size_t)c->labels[t - 1] * P + (size_t)c->labels[t];
        c->g[at] -= c->d[at];
        c->d[at] = 0;
    }
}

/* Rows of float or double, of L numbers each, to rows of a pitch and back, times a factor. */
static void crf_load_f32(const float *from, size_t n, size_t L, size_t pitch, double *to) {
    for (; n > 0; n--, from += L, to += pitch) {
        SIMD
        for (size_t i = 0; i < L; i++) to[i] = (double)from[i];
    }
}
static void crf_store_f32(const double *from, size_t n, size_t L, size_t pitch, double by, float *to) {
    for (; n > 0; n--, from += pitch, to += L) {
        SIMD
        for (size_t i = 0; i < L; i++) to[i] = (float)(from[i] * by);
    }
}
static void crf_store_f64(const double *from, size_t n, size_t L, size_t pitch, double by, double *to) {
    for (; n > 0; n--, from += pitch, to += L) {
        SIMD
        for (size_t i = 0; i < L; i++) to[i] = from[i] * by;
    }
}
/* The same, added to what is there. */
static void crf_add_f64(const double *from, size_t n, size_t L, size_t pitch, double by, double *to) {
    for (; n > 0; n--, from += pitch, to += L) {
        SIMD
        for (size_t i = 0; i < L; i++) to[i] += from[i] * by;
    }
}
