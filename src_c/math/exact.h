/* Sums of doubles that do not depend on the order, the number or the grouping of their terms.  The blocks of a row are
 * combined with them, and so can be the blocks of different shards of a row.
 *
 * A term v 2^e is cut at fixed places, the multiples of 28 in the exponent, into pieces of 28 bits, and each piece is
 * added to an integer of its own (the idea of Demmel & Nguyen 2015, with integers).  The five bins from the leading bit
 * of the largest term down are kept; when a larger term arrives, the lowest ones are dropped.  A bin that is kept at
 * the end has been kept from the beginning, so it holds the same sum of the same pieces in any order and grouping.  At
 * least 113 bits count from the leading bit of the largest term, and 2^34 terms fit.
 *
 * The result is a pair: the sum rounded to nearest, and the rest rounded to nearest.  Passes: none over a row; one over
 * the records of its blocks.  NaN and infinities are not added: callers keep them apart (csm_pair_sum).  Error: none
 * within the bins, against rational arithmetic (tests/build/test_exact_sums.py); 2^-105 of the largest term beyond.
 * The two adds of a block take 7 ns, the pair 29 ns (AVX-512 machine).
 */
#ifndef CSM_MATH_EXACT_H
#define CSM_MATH_EXACT_H

#include "scalars.h"

enum { CSM_LIMBS = 5, CSM_BIN_BITS = 28, CSM_BIN_MASK = (1 << CSM_BIN_BITS) - 1 };

typedef struct csm_exact {
    int64_t top;             /* the bin of the leading bit of the largest term; CSM_EMPTY: there is no term */
    int64_t limb[CSM_LIMBS]; /* the sum is sum limb[i] 2^(28 (top - i)) */
} csm_exact;
#define CSM_EMPTY (INT64_MIN / 4)
/* Indices must be constants on CUDA, or the limbs live in local memory. */
#if defined(__CUDACC_RTC__)
#define EACH_LIMB(i) _Pragma("unroll") for (int i = 0; i < CSM_LIMBS; i++)
#else
#define EACH_LIMB(i) for (int i = 0; i < CSM_LIMBS; i++)
#endif

/* The bin of a bit: bit / 28, rounded down. */
INLINE int64_t csm_bin_of(int64_t bit) { return (bit >= 0 ? bit : bit - (CSM_BIN_BITS - 1)) / CSM_BIN_BITS; }

INLINE void csm_exact_zero(csm_exact *a) {
    a->top = CSM_EMPTY;
    EACH_LIMB(i) a->limb[i] = 0;
}
/* Makes room for a term whose leading bit is in the bin `top`. */
INLINE void csm_exact_raise(csm_exact *a, int64_t top) {
    if (top <= a->top) return;
    const int by = top - a->top < CSM_LIMBS ? (int)(top - a->top) : CSM_LIMBS;
    for (int step = 0; step < by; step++) { /* constant indices: the limbs stay in registers */
        EACH_LIMB(i) {
            const int at = CSM_LIMBS - 1 - i;
            a->limb[at] = at > 0 ? a->limb[at > 0 ? at - 1 : 0] : 0;
        }
    }
    a->top = top;
}
/* Adds `times` times v 2^e; v is finite. */
static NOINLINE void csm_exact_add(csm_exact *a, double v, int64_t e, int64_t times) {
    const uint64_t bits = csm_double_bits(v), fraction = bits & 0xfffffffffffffu;
    const int64_t field = (int64_t)(bits >> 52 & 0x7ff);
    if (times == 0 || (field == 0 && fraction == 0)) return;
    const uint64_t m = field ? fraction | (uint64_t)1 << 52 : fraction;
    const int64_t last = (field ? field : 1) + e - 1075; /* the exponent of the last bit of m */
    int64_t lead = last + 52;
    for (uint64_t bit = (uint64_t)1 << 52; !(m & bit); bit >>= 1) lead--; /* subnormal numbers only */
    csm_exact_raise(a, csm_bin_of(lead));
    if (bits >> 63) times = -times;
    const int64_t low = csm_bin_of(last), at = a->top - low;
    const int shift = (int)(last - low * CSM_BIN_BITS);
    const int64_t lowest = (int64_t)(m << shift & CSM_BIN_MASK) * times;
    const int64_t middle = (int64_t)(m >> (CSM_BIN_BITS - shift) & CSM_BIN_MASK) * times;
    const int64_t highest = (int64_t)(m >> (2 * CSM_BIN_BITS - shift)) * times;
#if defined(__CUDACC_RTC__)
    EACH_LIMB(i) a->limb[i] += i == at ? lowest : i == at - 1 ? middle : i == at - 2 ? highest : 0;
#else /* the same with indices: 80 instead of 110 ns for the eight blocks of a row */
    if (at < CSM_LIMBS) a->limb[at] += lowest;
    if (at >= 1 && at <= CSM_LIMBS) a->limb[at - 1] += middle;
    if (at >= 2 && at <= CSM_LIMBS + 1) a->limb[at - 2] += highest;
#endif
}
INLINE void csm_exact_merge(csm_exact *a, const csm_exact *b) {
    csm_exact c = *b;
    csm_exact_raise(a, c.top);
    csm_exact_raise(&c, a->top);
    EACH_LIMB(i) a->limb[i] += c.limb[i];
}

/* The magnitude of a sum, most significant word first. */
typedef struct csm_words {
    uint64_t w[3];
} csm_words;

INLINE csm_words csm_words_negated(csm_words a) {
    csm_words b;
    b.w[2] = 0 - a.w[2];
    b.w[1] = ~a.w[1] + (b.w[2] == 0);
    b.w[0] = ~a.w[0] + (b.w[2] == 0 && b.w[1] == 0);
    return b;
}
/* Shifts the leading bit to the front and returns the number of places; a is not 0. */
INLINE int csm_words_normalise(csm_words *a) {
    int places = 0;
    while (!a->w[0]) {
        a->w[0] = a->w[1];
        a->w[1] = a->w[2];
        a->w[2] = 0;
        places += 64;
    }
    for (int half = 32; half > 0; half /= 2) {
        if (a->w[0] >> (64 - half)) continue;
        a->w[0] = a->w[0] << half | a->w[1] >> (64 - half);
        a->w[1] = a->w[1] << half | a->w[2] >> (64 - half);
        a->w[2] <<= half;
        places += half;
    }
    return places;
}
/* The leading 53 bits of a normalised magnitude, rounded to nearest even; *rest: what is left over, as a magnitude
 * whose first bit has half the value of the last of the 53 bits; *sign is changed if it is below 0. */
INLINE double csm_words_rounded(const csm_words *a, csm_words *rest, double *sign) {
    const uint64_t half = 0x400, below = a->w[0] & 0x7ff;
    uint64_t m = a->w[0] >> 11;
    const int goes_up = below > half || (below == half && (a->w[1] || a->w[2] || m & 1));
    rest->w[0] = below << 53 | a->w[1] >> 11;
    rest->w[1] = a->w[1] << 53 | a->w[2] >> 11;
    rest->w[2] = a->w[2] << 53;
    if (goes_up) {
        m++;
        *rest = csm_words_negated(*rest);
        *sign = -*sign;
    }
    return (double)m;
}
/* x 2^e for |x| in [1, 2^53], or 0, rounded once. */
INLINE double csm_exact_scaled(double x, int64_t e) {
    if (e >= -1022 && e <= 970) return x * csm_pow2((double)e);
    const double d = e < -2200 ? -2200 : e > 2046 ? 2046 : (double)e;
    const double half = (d * 0.5 + 0x1.8p52) - 0x1.8p52;
    return x * csm_pow2(half < -1022 ? -1022 : half) * csm_pow2(d - half < -1022 ? -1022 : d - half);
}
/* The sum times 2^-e as a pair: rounded to nearest, and the rest rounded to nearest. */
static NOINLINE void csm_exact_pair(const csm_exact *a, int64_t e, double *hi, double *lo) {
    csm_words words, rest;
    int64_t limb[CSM_LIMBS];
    double sign = 1, rest_sign;
    *hi = *lo = 0;
    if (a->top == CSM_EMPTY) return;
    EACH_LIMB(i) limb[i] = a->limb[i];
    EACH_LIMB(i) { /* bins of 28 bits, but for the first, which has the sign */
        const int at = CSM_LIMBS - 1 - i;
        if (at == 0) continue;
        const int64_t low = limb[at] & CSM_BIN_MASK;
        limb[at - 1] += (limb[at] - low) / (1 << CSM_BIN_BITS);
        limb[at] = low;
    }
    const uint64_t first = (uint64_t)limb[0];
    words.w[2] = (uint64_t)limb[4] | (uint64_t)limb[3] << 28 | (uint64_t)limb[2] << 56;
    words.w[1] = (uint64_t)limb[2] >> 8 | (uint64_t)limb[1] << 20 | first << 48;
    words.w[0] = first >> 16 | (limb[0] < 0 ? (uint64_t)0xffff << 48 : 0);
    if (limb[0] < 0) {
        words = csm_words_negated(words);
        sign = -1;
    }
    if (!(words.w[0] | words.w[1] | words.w[2])) return;
    /* the exponent of the last of the 53 bits */
    int64_t last = CSM_BIN_BITS * (a->top - (CSM_LIMBS - 1)) - e + 192 - 53 - csm_words_normalise(&words);
    rest_sign = sign;
    *hi = sign * csm_exact_scaled(csm_words_rounded(&words, &rest, &rest_sign), last);
    if (!(rest.w[0] | rest.w[1] | rest.w[2])) return;
    last -= 53 + csm_words_normalise(&rest);
    *lo = rest_sign * csm_exact_scaled(csm_words_rounded(&rest, &words, &sign), last);
}

/* Adds finite pairs, such as the sums of blocks, and keeps apart what is NaN or infinite. */
typedef struct csm_pair_sum {
    csm_exact finite;
    double other; /* the sum of the terms that are not finite; 0: there is none */
} csm_pair_sum;
INLINE void csm_pair_sum_add(csm_pair_sum *sum, double hi, double lo) {
    if (hi - hi == 0 && lo - lo == 0) {
        csm_exact_add(&sum->finite, hi, 0, 1);
        csm_exact_add(&sum->finite, lo, 0, 1);
    } else {
        sum->other += hi - hi == 0 ? lo : hi;
    }
}
INLINE void csm_pair_sum_zero(csm_pair_sum *sum) {
    csm_exact_zero(&sum->finite);
    sum->other = 0;
}
INLINE void csm_pair_sum_total(const csm_pair_sum *sum, double *hi, double *lo) {
    csm_exact_pair(&sum->finite, 0, hi, lo);
    if (sum->other != 0) *hi = sum->other;
}
/* The total, rounded to nearest. */
INLINE double csm_pair_sum_rounded(const csm_pair_sum *sum) {
    double hi, lo;
    csm_pair_sum_total(sum, &hi, &lo);
    return hi;
}

#endif
