/* A row of the Kullback-Leibler divergence that the kernels leave: beyond exp's range, with an extreme temperature,
 * NaN, without elements, with an infinite divergence or a very small one.  In double and, where the rounding would
 * show, in pairs; the formulas are those of kernel/divergence/divergence.inc.h.  This is the cold path: it is not
 * optimised for speed.
 *
 *   NaN, +inf, or only -inf on either side    NaN
 *   nothing left by the mask, no class        0
 *   q = 0 < p                                 +inf
 *   T = 0, T = inf                            uniform over the maxima, over what is greater than -inf
 */
#include "divergence.h"

#include "../math/factor.h"

/* One side of a row: its maximum; number of maxima; sum of the other exp((x - max) / T); log of the whole sum. */
typedef struct side {
    double max, count, tail, total;
    csm_pair others;
} side;

typedef struct slow_row {
    const csm_call *call;
    const csm_kl_row_place *place;
    const csm_scales *scales;
    side x, y;
    double kept; /* elements that take part */
    int is_nan, is_infinite;
    csm_pair loss;
    csm_factor factor;
} slow_row;

/* (x - max) / T as a pair; -inf for x = -inf. */
static csm_pair distance(const csm_scales *s, double x, double max) {
    const double t = s->temperature;
    csm_pair d = {0, 0};
    if (t == 0 || !(t < CSM_INF)) return csm_pair_of((t == 0 ? x == max : x > -CSM_INF) ? 0 : -CSM_INF, 0);
    if (!(x > -CSM_INF)) return csm_pair_of(-CSM_INF, 0);
    const int is_large = fabs(x) > 0x1p1000 || fabs(max) > 0x1p1000;
    const double scale = is_large ? 0.5 : 1;
    d.hi = x * scale;
    csm_two_sum(&d.hi, &d.lo, -max * scale);
    if (!(t >= 0x1p-400 && t <= 0x1p400)) return csm_pair_of(is_large ? d.hi / (t * 0.5) : d.hi / t, 0);
    const double q = d.hi / t, low = (fma(-q, t, d.hi) + d.lo) / t;
    return csm_pair_of(q / scale, low / scale);
}
static double exp_of(csm_pair d) { return d.hi > -CSM_INF ? csm_exp_less(d.hi, d.lo, 0) : 0; }

static void add(side *s, csm_pair d) {
    if (d.hi == 0 && d.lo == 0) s->count++;
    else csm_two_sum(&s->others.hi, &s->others.lo, exp_of(d));
}
static void finish(side *s) {
    double q = s->count - 1, low = s->others.lo;
    csm_two_sum(&q, &low, s->others.hi);
    s->tail = csm_log1p(q, low);
    s->total = s->count + (s->others.hi + s->others.lo);
}

static void inspect(slow_row *s, size_t j, double x, double y) {
    const csm_strided *where = &s->place->where;
    s->is_nan |= x != x || y != y;
    if (x > s->x.max) s->x.max = x;
    if (y > s->y.max) s->y.max = y;
    s->kept += !where->data || where->data[(ptrdiff_t)j * where->axis] != 0;
}
/* The term of an element and the difference q - p. */
static double term_of(slow_row *s, csm_pair u, csm_pair v, int is_absent, int is_impossible, double *difference) {
    const double p = exp_of(u) / s->x.total, q = exp_of(v) / s->y.total, offset = s->y.tail - s->x.tail;
    *difference = q - p;
    if (is_absent) return q;
    if (is_impossible) return CSM_INF;
    if (!(u.hi > -CSM_INF)) return q; /* (x - max) / T overflows, and p vanishes */
    const double w = (u.hi - v.hi) + ((u.lo - v.lo) + offset);
    if (fabs(w) <= 0.5) return p * (csm_exp_less(-w, 0, 1) + w);
    return p == 0 ? q : p * w + *difference;
}

/* q - p of an element whose q - p is subnormal in double, while the factor of the gradient is large. */
static csm_factor small_difference(const slow_row *s, double x, double y) {
    const csm_factor t = csm_factor_of_number(s->scales->temperature);
    const csm_factor p = csm_factor_div(csm_factor_exp(x, s->x.max, t), csm_factor_of_number(s->x.total));
    const csm_factor q = csm_factor_div(csm_factor_exp(y, s->y.max, t), csm_factor_of_number(s->y.total));
    return csm_factor_add(q, csm_factor_minus(p));
}

enum { INSPECT, SUMS, TERMS };
static void pass_over(slow_row *s, int pass, char *wide) {
    const csm_call *c = s->call;
    const csm_kl_row_place *place = s->place;
    const size_t n = c->shape.n;
    char *wide_y = wide + csm_rounded((n < CSM_BLOCK ? n : CSM_BLOCK) * c->wide_size);
    for (size_t begin = 0; begin < n; begin += CSM_BLOCK) {
        const size_t k = csm_block_length(n, begin);
        c->table->widen[c->dtype](place->x + begin * c->itemsize, wide, k);
        c->table->widen[c->dtype](place->y + begin * c->itemsize, wide_y, k);
        for (size_t j = 0; j < k; j++) {
            const double x = csm_wide_at(c, wide, j), y = csm_wide_at(c, wide_y, j);
            if (pass == INSPECT) {
                inspect(s, begin + j, x, y);
                continue;
            }
            const csm_pair u = distance(s->scales, x, s->x.max), v = distance(s->scales, y, s->y.max);
            if (pass == SUMS) {
                add(&s->x, u);
                add(&s->y, v);
                continue;
            }
            /* At T = 0 what is below the maximum takes no part. */
            const int absent = !(x > -CSM_INF) || (s->scales->temperature == 0 && x != s->x.max);
            const int impossible = !absent && (!(y > -CSM_INF) || (s->scales->temperature == 0 && y != s->y.max));
            double difference;
            const double term = term_of(s, u, v, absent, impossible, &difference);
            if (term < CSM_INF) csm_two_sum(&s->loss.hi, &s->loss.lo, term);
            else s->is_infinite = 1;
            if (!place->gradient) continue;
            const int is_small = fabs(difference) < 0x1p-960 && s->factor.e > 0;
            const csm_factor d = is_small ? small_difference(s, x, y) : csm_factor_of_number(difference);
            const csm_factor g = csm_factor_mul(d, s->factor);
            csm_put(c, place->gradient + (begin + j) * c->itemsize, 0 + csm_factor_rounded(g)); /* no -0 */
        }
        if (csm_poll_stops(&place->poll, 16 * k)) return;
    }
}

static void fill(const csm_call *c, const csm_kl_row_place *place, double value) {
    char element[8];
    const double zero = 0;
    if (!place->gradient) return;
    csm_put(c, element, value);
    for (size_t j = 0; j < c->shape.n && !csm_poll_at(&place->poll, j); j++)
        memcpy(place->gradient + j * c->itemsize, element, c->itemsize);
    if (place->where.data && value != 0)
        csm_fill_masked(place->gradient, (ptrdiff_t)c->itemsize, place->where, c->shape.n, c->itemsize, &zero);
}

void csm_kl_slow_row(const csm_call *c, const csm_kl_row_place *place, const csm_scales *scales, int is_read,
                     char *wide) {
    slow_row s = {.call = c, .place = place, .scales = scales};
    s.x.max = s.y.max = -CSM_INF;
    *place->loss = 0;
    if (is_read) pass_over(&s, INSPECT, wide);
    if (!is_read || s.kept == 0) {
        fill(c, place, 0);
        return;
    }
    if (s.is_nan || !(fabs(s.x.max) < CSM_INF && fabs(s.y.max) < CSM_INF)) {
        *place->loss = CSM_NAN;
        fill(c, place, CSM_NAN);
        return;
    }
    pass_over(&s, SUMS, wide);
    finish(&s.x);
    finish(&s.y);
    if (place->factor - place->factor == 0) {
        s.factor = csm_factor_div(csm_factor_of_number(place->factor), csm_factor_of_number(scales->temperature));
        pass_over(&s, TERMS, wide);
    } else {
        csm_kl_row_place without = *place;
        without.gradient = NULL;
        s.place = &without;
        pass_over(&s, TERMS, wide);
        fill(c, place, CSM_NAN);
    }
    const double sum = s.loss.hi + s.loss.lo;
    *place->loss = place->weight * (s.is_infinite ? CSM_INF : sum > 0 ? sum : 0);
}
