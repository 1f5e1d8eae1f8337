/* The loss of a set of positives (kernel/cross_entropy/any.h): both groups of a row are copied to scratch and computed
 * there by the passes of softmax, each with its own reference exponent.
 */
#include "segments_any.h"

#include "../kernel/cross_entropy/any.h"

static void sum_group(const csm_any_call *c, const csm_temperature *t, csm_any_group *g, const csm_poll *poll) {
    const csm_kernels *k = &c->table->kernels[CSM_OP_softmax][CSM_DTYPE_f64];
    for (size_t b = 0; b < csm_block_count(g->count); b++) {
        const size_t begin = b * CSM_BLOCK, length = csm_block_length(g->count, begin);
        k->pass1(g->x + begin, NULL, NULL, length, t, &g->blocks[b]);
        if (b > 0 && csm_poll_stops(poll, length)) return;
    }
    if (!g->is_nothing) k->combine(g->blocks, csm_block_count(g->count), t, &g->row);
}

/* Replaces the elements of a group by their softmax within it. */
static void divide_group(const csm_any_call *c, const csm_temperature *t, csm_any_group *g, const csm_poll *poll) {
    const csm_kernels *k = &c->table->kernels[CSM_OP_softmax][CSM_DTYPE_f64];
    for (size_t b = 0; b < csm_block_count(g->count); b++) {
        const size_t begin = b * CSM_BLOCK, length = csm_block_length(g->count, begin);
        if (!g->is_nothing) k->pass2(g->x + begin, NULL, g->x + begin, length, t, &g->row, &g->blocks[b]);
        for (size_t j = begin; g->is_nothing && j < begin + length; j++) g->x[j] = 0;
        if (b > 0 && csm_poll_stops(poll, length)) return;
    }
}

/* NaN for a row without a result. */
static double fill(double *x, size_t n, int gradient) {
    for (size_t j = 0; j < n && gradient; j++) x[j] = CSM_NAN;
    return CSM_NAN;
}

/* Counts the elements of the groups and finds their maxima.  Returns how many elements are NaN or +inf, or SIZE_MAX
 * after an interrupt. */
static size_t look_at_groups(csm_any_group *p, csm_any_group *o, const double *x, const unsigned char *is_positive,
                             size_t n, const csm_poll *poll) {
    size_t bad = 0;
    p->max = o->max = -CSM_INF;
    for (size_t j = 0; j < n; j++) {
        csm_any_group *g = is_positive[j] ? p : o;
        g->max = x[j] > g->max ? x[j] : g->max;
        g->count++;
        bad += !(x[j] < CSM_INF);
        if (csm_poll_at(poll, j)) return SIZE_MAX;
    }
    p->is_nothing = p->max == -CSM_INF;
    o->is_nothing = o->max == -CSM_INF;
    return bad;
}

/* The gradient, from the softmax within the groups. */
static void join_groups(const csm_any_call *c, const csm_any_group *p, const csm_any_group *o, double *x,
                        const unsigned char *is_positive, const csm_any_result *r, double factor,
                        const csm_poll *poll) {
    const size_t n = p->count + o->count;
    double square = 0;
    for (size_t j = 0, i = 0, k = 0; j < n; j++) {
        x[j] = is_positive[j] ? r->of_positive * p->x[i++] : r->of_other * o->x[k++];
        if (p->is_nothing && is_positive[j]) x[j] = r->of_nothing;
        square += x[j] * x[j];
        if (csm_poll_at(poll, j)) return;
    }
    const double shrink = csm_any_shrink(square, c->clip_norm);
    for (size_t j = 0; j < n; j++) {
        x[j] = csm_any_clipped(x[j], shrink, c->clip_value) * factor;
        if (csm_poll_at(poll, j)) return;
    }
}

double csm_any_row(const csm_any_call *c, double *x, const unsigned char *is_positive, size_t n, double weight,
                   int gradient, double factor, double *scratch, csm_block *blocks, const csm_poll *poll) {
    const csm_temperature *t = &c->scales.ordinary;
    csm_any_group p = {.x = scratch, .blocks = blocks}, o = p;
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
    double reference;
    if (csm_any_transforms(&c->scales, &p, &o, max, &reference)) {
        t = &c->scales.transformed;
        for (size_t i = 0; i < p.count; i++) p.x[i] = csm_any_transformed(&c->scales, p.x[i], p.reference);
        for (size_t i = 0; i < o.count; i++) o.x[i] = csm_any_transformed(&c->scales, o.x[i], o.reference);
    }
    sum_group(c, t, &p, poll);
    sum_group(c, t, &o, poll);
    const csm_any_result r = csm_any_result_of(&p, &o, c->scales.temperature, reference, c->z_loss, weight);
    if (!gradient) return r.loss;
    divide_group(c, t, &p, poll);
    divide_group(c, t, &o, poll);
    join_groups(c, &p, &o, x, is_positive, &r, factor, poll);
    return r.loss;
}
