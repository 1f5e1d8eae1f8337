/* The sums of a block, those of a row whose blocks are combined, and the numbers of a row that follow from them: the
 * reciprocal of softmax, the e' of the maximum and the tail of the log family.
 *
 * Accumulators are doubles, in pairs.  A sum that is NaN makes the row NaN (is_nan).  Each function states its error.
 */
#ifndef CSM_MATH_BLOCK_H
#define CSM_MATH_BLOCK_H

#include "exact.h"
#include "temperature.h"

/* Number of elements in a block.  Every sum is computed block by block, and blocks are combined without rounding and
 * in any order (exact.h): changing CSM_BLOCK changes bits.  CSM_FLUSH: see sum.inc.h. */
enum { CSM_BLOCK = 4096, CSM_FLUSH = 512 };

/* The contribution of one block to its row.  Forward: reference exponent n; sum = hi + lo of e' over the block (log
 * family: over the elements that are not the maximum); count of elements equal to max; e' of max as a pair.
 * Gradients: sum = hi + lo. */
typedef struct csm_block {
    double max, n, hi, lo, count, top, top_low;
    double mass,
        far; /* cross-entropy: sum a_j and sum a_j (max - x_j), in units of x; entropy: far = sum e' (max - x) */
} csm_block;

/* The sums of a whole row, which its second pass needs. */
typedef struct csm_row {
    double max, n;
    double r, r_low; /* softmax: 1 / sum e' as a pair */
    double tail;     /* log family: log(sum e^(x - max)) */
    double hi, lo;   /* log family: sum of e' without the maxima; backward: the dot product or sum */
    double count, top, top_low; /* log family: as in csm_block */
    int is_nan;      /* the whole row is NaN */
} csm_row;

/* softmax: 1 / (hi + lo) as a pair, so that neither the rounding of the sum nor that of the reciprocal reaches the
 * result: a single number would cost up to 1.9 ULP more.  single: a pair of floats (lo is then 0). */
INLINE void csm_reciprocal(double hi, double lo, int single, csm_row *row) {
    double sum = hi + lo, r = 1 / sum;
    if (single) {
        row->r = (double)(float)r;
        row->r_low = (double)(float)(r - row->r);
    } else {
        row->r = r;
        row->r_low = r * (fma(-r, sum, 1) - r * ((hi - sum) + lo));
    }
    row->is_nan = r != r;
}

/* e' = e^(max/T - n ln 2) 2^bias of a maximum as a pair, accurate to 0.1 ULP of double: the divisor of the log family.
 * With the vectors' exp, its error would count twice if one other class makes up the sum (4.6 ULP in log_softmax,
 * float64).  single: a double without a low part, accurate to 2 ULP of double, suffices for floats. */
INLINE void csm_top(double max, double t, double bias, const int single, csm_block *block) {
    const double ln2 = 0x1.62e42fefa39efp-1, ln2_low = 0x1.abc9e3b39803fp-56;
    double z = max, z_low = 0, p = block->n * ln2, near, r, scale = csm_pow2(bias);
    if (t != 1) {
        z = max / t;
        if (!single) z_low = fma(-z, t, max) / t;
    }
    near = z - p; /* exact, because z and p are close */
    z_low = z_low - fma(block->n, ln2, -p) - block->n * ln2_low;
    r = near + z_low;
    double r2 = r * r, q = csm_exp_rest(r);
    if (single) {
        q = fma(q, r, 0x1.000000000000ap-1);
        block->top = (1 + fma(r2, q, r)) * scale;
        block->top_low = 0;
        return;
    }
    z_low = (near - r) + z_low;
    double half = r2 * 0.5, top = 1 + r, low = ((1 - top) + r) + (r2 * (q * r + 0x1.4p-50) + (z_low + r * z_low));
    low += fma(r, r, -r2) * 0.5;
    csm_two_sum(&top, &low, half);
    block->top = (top + low) * scale;
    block->top_low = ((top - (top + low)) + low) * scale;
}

/* log family: tail = log(sum e^(x - max)) = log1p(q + q_low), q = (count - 1) + S'/e'_max, S' = hi + lo without the
 * maxima.  Sets everything in the row but the tail. */
INLINE void csm_log_quotient(double count, double hi, double lo, double top, double top_low, csm_row *row, double *to,
                             double *to_low) {
    double sum = hi, rest = 0;
    csm_two_sum(&sum, &rest, lo); /* lo can be the larger one */
    double r = 1 / top, quotient = sum * r, q = count - 1;
    double q_low = (fma(-quotient, top, sum) + (rest - quotient * top_low)) * r;
    csm_two_sum(&q, &q_low, quotient);
    row->hi = hi;
    row->lo = lo;
    row->count = count;
    row->top = top;
    row->top_low = top_low;
    row->is_nan = q != q;
    *to = q;
    *to_low = q_low;
}
INLINE void csm_log_tail(double count, double hi, double lo, double top, double top_low, csm_row *row) {
    double q, q_low;
    csm_log_quotient(count, hi, lo, top, top_low, row, &q, &q_low);
    row->tail = csm_log1p(q, q_low);
}

/* The entropy of a row whose tail and sums are known: tail + sum e'_j (max - x_j) / (T sum e'), terms of one sign.
 * far: the sum times csm_distance_scale. */
INLINE double csm_entropy_of(double tail, double far, double total, const csm_temperature *t) {
    return tail + far / (total * (t->t * csm_distance_scale(t)));
}
/* The same of a row's sums; for doubles in pairs, since the roundings would cost up to 4 ULP more. */
INLINE double csm_entropy(const csm_row *row, double far, const csm_temperature *t, const int single) {
    const double plain = csm_entropy_of(row->tail, far, fma(row->count, row->top, row->hi + row->lo), t);
    if (single) return plain;
    const double scale = t->t * csm_distance_scale(t), maxima = row->count * row->top;
    double total = row->hi, low = 0, sum = row->tail, rest = 0;
    csm_two_sum(&total, &low, row->lo);
    csm_two_sum(&total, &low, maxima);
    low += fma(row->count, row->top, -maxima) + row->count * row->top_low;
    const double p = total * scale, p_low = fma(total, scale, -p) + low * scale, q = far / p;
    csm_two_sum(&sum, &rest, q);
    const double exact = sum + (rest + (fma(-q, p, far) - q * p_low) / p);
    return exact - exact == 0 ? exact : plain;
}

#endif
