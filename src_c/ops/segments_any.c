/* The loss of a set of positives in double, whatever the dtype: with S_p and S_o the sums of e' over the positives and
 * over the others,
 *
 *   rho = S_o / S_p,  loss = log1p(rho) + z_loss lse^2
 *   gradient of an element: -(1 - P) times its softmax within the positives, or +(1 - P) times its softmax within the
 *   others, 1 - P = rho / (1 + rho); with z-loss plus 2 z_loss lse p
 *
 * so that nothing cancels, and a small loss keeps its digits.  Both groups are copied to scratch and computed there by
 * the passes of softmax, each with its own reference exponent.  Groups that lie so far apart that one of them is out of
 * range beside the other are each computed from its own maximum: e^gap is 0, and only the loss knows the gap.
 * NaN: a row with NaN or +inf, or of nothing but -inf, is NaN.  A row without positives has the loss +inf and the
 * gradient p; so has one whose positives are all -inf, where the gradient of a single positive is -1 and that of
 * several NaN, because no share is defined.
 */
#include "segments_any.h"

/* The sum of e' of a group: (hi + lo) 2^n, n = that of the row. */
typedef struct group {
    double *x;
    size_t count;
    csm_row row;
    csm_block *blocks;
    int is_nothing; /* no element, or nothing but -inf */
    double max, gap; /* gap: 0, or (max - the row's maximum) / T of a group computed from its own maximum */
} group;

static void sum_group(const csm_any_call *c, const csm_temperature *t, group *g, const csm_poll *poll) {
    const csm_kernels *k = &c->table->kernels[CSM_OP_softmax][CSM_DTYPE_f64];
    for (size_t b = 0; b < csm_block_count(g->count); b++) {
        const size_t begin = b * CSM_BLOCK, length = csm_block_length(g->count, begin);
        k->pass1(g->x + begin, NULL, NULL, length, t, &g->blocks[b]);
        if (b > 0 && csm_poll_stops(poll, length)) return;
    }
    if (!g->is_nothing) k->combine(g->blocks, csm_block_count(g->count), t, &g->row);
}

/* Replaces the elements of a group by their softmax within it. */
static void divide_group(const csm_any_call *c, const csm_temperature *t, group *g, const csm_poll *poll) {
    const csm_kernels *k = &c->table->kernels[CSM_OP_softmax][CSM_DTYPE_f64];
    for (size_t b = 0; b < csm_block_count(g->count); b++) {
        const size_t begin = b * CSM_BLOCK, length = csm_block_length(g->count, begin);
        if (!g->is_nothing) k->pass2(g->x + begin, NULL, g->x + begin, length, t, &g->row, &g->blocks[b]);
        for (size_t j = begin; g->is_nothing && j < begin + length; j++) g->x[j] = 0;
        if (b > 0 && csm_poll_stops(poll, length)) return;
    }
}

/* The loss without z-loss, 1 - P and P. */
typedef struct share {
    double loss, rest, positives;
} share;

static share share_of(const group *p, const group *o) {
    if (p->is_nothing) return (share){CSM_INF, 1, 0};
    if (o->is_nothing || o->gap < 0) return (share){0, 0, 1};
    const double b = p->row.hi + p->row.lo, b_low = (p->row.hi - b) + p->row.lo;
    const double a = o->row.hi + o->row.lo, a_low = (o->row.hi - a) + o->row.lo;
    const double q = a / b, q_low = ((fma(-q, b, a) + a_low) - q * b_low) / b, d = o->row.n - p->row.n;
    if (d > 400 || p->gap < 0) { /* log(1 + rho) = log(rho) to all digits */
        double low, log = csm_log(q, q_low, &low);
        low += d * 0x1.abc9e3b39803fp-56 + fma(d, 0x1.62e42fefa39efp-1, -(d * 0x1.62e42fefa39efp-1));
        csm_two_sum(&log, &low, d * 0x1.62e42fefa39efp-1);
        if (p->gap < 0) return (share){log + low - p->gap, 1, 0};
        return (share){log + low, 1, csm_times_pow2(1 / q, -d)};
    }
    const double rho = csm_times_pow2(q, d);
    return (share){csm_log1p(rho, csm_times_pow2(q_low, d)), rho / (1 + rho), 1 / (1 + rho)};
}

/* log of the sum of both groups, plus max / T of a transformed row. */
static double lse_of(const csm_any_call *c, const group *p, const group *o, double loss, double max) {
    const group *g = p->is_nothing || p->gap < 0 ? o : p; /* log S_p + log(1 + rho) */
    const double n = g->row.n - 500; /* the bias of e' */
    double low, log = csm_log(g->row.hi, g->row.lo, &low);
    low += n * 0x1.abc9e3b39803fp-56 + fma(n, 0x1.62e42fefa39efp-1, -(n * 0x1.62e42fefa39efp-1));
    csm_two_sum(&log, &low, n * 0x1.62e42fefa39efp-1);
    if (g == p) csm_two_sum(&log, &low, loss);
    csm_two_sum(&log, &low, max / c->scales.temperature);
    return log + low;
}

/* NaN for a row without a result. */
static double fill(double *x, size_t n, int gradient) {
    for (size_t j = 0; j < n && gradient; j++) x[j] = CSM_NAN;
    return CSM_NAN;
}

/* Counts the elements of the groups and finds their maxima.  Returns how many elements are NaN or +inf, or SIZE_MAX
 * after an interrupt. */
static size_t look_at_groups(group *p, group *o, const double *x, const unsigned char *is_positive, size_t n,
                             const csm_poll *poll) {
    size_t bad = 0;
    p->max = o->max = -CSM_INF;
    for (size_t j = 0; j < n; j++) {
        group *g = is_positive[j] ? p : o;
        g->max = x[j] > g->max ? x[j] : g->max;
        g->count++;
        bad += !(x[j] < CSM_INF);
        if (csm_poll_at(poll, j)) return SIZE_MAX;
    }
    p->is_nothing = p->max == -CSM_INF;
    o->is_nothing = o->max == -CSM_INF;
    return bad;
}

/* Where the elements of a row are transformed: from `reference`, as csm_transformed does it from the row's maximum. */
static double transformed(const csm_scales *s, double x, double reference) {
    return (x * s->scale0 - reference * s->scale0) * s->scale1 * s->scale2;
}
static int is_out_of_range(const csm_scales *s, const group *g, double reference) {
    return !g->is_nothing && !csm_is_ordinary(&s->transformed, transformed(s, g->max, reference));
}

/* Copies a group, transformed from the reference, or from its own maximum where that is out of range beside it. */
static void transform_group(const csm_scales *s, group *g, double max, double reference) {
    if (is_out_of_range(s, g, reference)) {
        g->gap =
            s->temperature > 1 ? (g->max * 0.5 - max * 0.5) / (s->temperature * 0.5) : (g->max - max) / s->temperature;
        reference = g->max;
    }
    for (size_t i = 0; i < g->count; i++) g->x[i] = transformed(s, g->x[i], reference);
}

/* The gradient, from the softmax within the groups. */
static void join_groups(const csm_any_call *c, const group *p, const group *o, double *x,
                        const unsigned char *is_positive, double of_positive, double of_other, double of_nothing,
                        double factor, const csm_poll *poll) {
    const size_t n = p->count + o->count;
    double square = 0;
    for (size_t j = 0, i = 0, k = 0; j < n; j++) {
        x[j] = is_positive[j] ? of_positive * p->x[i++] : of_other * o->x[k++];
        if (p->is_nothing && is_positive[j]) x[j] = of_nothing;
        square += x[j] * x[j];
        if (csm_poll_at(poll, j)) return;
    }
    const double norm = sqrt(square), shrink = norm > c->clip_norm ? c->clip_norm / norm : 1;
    for (size_t j = 0; j < n; j++) {
        double g = x[j] * shrink;
        g = g > c->clip_value ? c->clip_value : g < -c->clip_value ? -c->clip_value : g;
        x[j] = g * factor;
        if (csm_poll_at(poll, j)) return;
    }
}

double csm_any_row(const csm_any_call *c, double *x, const unsigned char *is_positive, size_t n, double weight,
                   int gradient, double factor, double *scratch, csm_block *blocks, const csm_poll *poll) {
    const csm_temperature *t = &c->scales.ordinary;
    group p = {.x = scratch, .blocks = blocks}, o = p;
    const size_t bad = look_at_groups(&p, &o, x, is_positive, n, poll);
    const double max = p.max > o.max ? p.max : o.max;
    if (bad == SIZE_MAX) return CSM_NAN;
    if (bad > 0 || max == -CSM_INF) return fill(x, n, gradient);
    o.x = scratch + p.count;
    o.blocks = blocks + csm_block_count(p.count);
    for (size_t j = 0, i = 0, k = 0; j < n; j++) {
        if (is_positive[j]) p.x[i++] = x[j];
        else o.x[k++] = x[j];
        if (csm_poll_at(poll, j)) return CSM_NAN;
    }
    const int is_transformed =
        !(p.is_nothing || csm_fits_range(&c->scales, p.max)) || !(o.is_nothing || csm_fits_range(&c->scales, o.max));
    double reference = 0;
    if (is_transformed) {
        t = &c->scales.transformed;
        if (is_out_of_range(&c->scales, &p, 0) || is_out_of_range(&c->scales, &o, 0)) reference = max;
        transform_group(&c->scales, &p, max, reference);
        transform_group(&c->scales, &o, max, reference);
    }
    sum_group(c, t, &p, poll);
    sum_group(c, t, &o, poll);
    const share s = share_of(&p, &o);
    const double lse = c->z_loss != 0 ? lse_of(c, &p, &o, s.loss, reference) : 0;
    const double loss = weight * (s.loss + c->z_loss * lse * lse);
    if (!gradient) return loss;
    divide_group(c, t, &p, poll);
    divide_group(c, t, &o, poll);
    const double scale = weight / c->scales.temperature, z = 2 * c->z_loss * lse;
    join_groups(c, &p, &o, x, is_positive, scale * (z * s.positives - s.rest), scale * (z * s.rest + s.rest),
                p.count == 1 ? -scale : CSM_NAN, factor, poll);
    return loss;
}
