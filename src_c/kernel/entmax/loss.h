/* The Fenchel-Young loss of alpha-entmax of one row, from the solver's support (Blondel, Martins & Niculae 2020),
 * with Omega(p) = sum (p^alpha - p) / (alpha (alpha - 1)):
 *     L(x, q) = Omega*(x) + Omega(q) - <x, q>
 *             = sum over p_j > 0 of d(q_j, p_j), d the Bregman divergence of Omega,
 *               + sum over p_j = 0 of q_j [q_j^a / alpha - u_j] / a
 *               - (sum q - 1) (max - (c - 1/alpha) / a),
 * a = alpha - 1, u_j = a (x_j - max) + c.  No term is negative if q sums to 1, so that a small loss keeps its
 * digits.  The deformed logarithm ln_a v = (v^a - 1) / a keeps them near alpha = 1, where powers differ little;
 * in the support ln_a p_j = (u_j - 1) / a.
 *
 * Plain C in pairs of doubles, one thread for each row, on the CPU and on CUDA; the terms are added in the order of the
 * classes.  Largest error measured (ACCURACY.md and tests/ops/test_entmax_worst.py, against mpmath): 0.51 ULP of a
 * float32 loss, 0.6 ULP of a double.  A row whose threshold is NaN has loss NaN.
 */
#ifndef CSM_ENTMAX_LOSS_H
#define CSM_ENTMAX_LOSS_H

#include "../../math/power.h"
#include "job.h"

/* q^a and ln_a q, q > 0.  For p >= 1 in single their error, a few units of double, is far below that of the result. */
static inline csm_pair csm_entmax_label_power(const csm_entmax *e, double q) {
    if (q == 1) return csm_pair_of(1, 0);
    if (e->single && e->p >= 1) return csm_pair_of(csm_pow(q, 0, e->scale, 0), 0);
    return csm_pair_exp(csm_pair_times(csm_pair_log(csm_pair_of(q, 0)), e->scale), 0);
}
static inline csm_pair csm_entmax_label_log(const csm_entmax *e, double q) {
    if (q == 1) return csm_pair_of(0, 0);
    if (e->single) return csm_pair_of(csm_log_deformed(q, e->scale), 0);
    const csm_pair log = csm_pair_log(csm_pair_of(q, 0));
    return csm_pair_div(csm_pair_exp(csm_pair_times(log, e->scale), 1), csm_pair_of(e->scale, 0));
}

/* q^alpha times the integral of v (1 - v)^(alpha-2) from 0 to part: d(q, q - q part), as a series. */
static inline csm_pair csm_divergence_near(const csm_entmax *e, double q, csm_pair part) {
    double rest = 0, term = part.hi * (2 - e->alpha);
    for (int k = 1; k < 60 && term != 0; k++) {
        rest += term / (k + 2);
        term *= part.hi * (k - (e->alpha - 2)) / (k + 1);
    }
    const csm_pair power = csm_pair_times(csm_entmax_label_power(e, q), q);
    return csm_pair_mul(csm_pair_mul(power, csm_pair_mul(part, part)), csm_pair_plus(csm_pair_of(0.5, 0), rest));
}

/* d(q, p) = (q^alpha - p^alpha - alpha p^a (q - p)) / (alpha a) = [q (ln_a q - ln_a p) - (q - p) p^a] / alpha;
 * u = p^a, less = q - p. */
static inline csm_pair csm_divergence(const csm_entmax *e, double q, csm_pair p, csm_pair u, csm_pair less) {
    const csm_pair alpha = csm_pair_of(e->alpha, 0), scale = csm_pair_of(e->scale, 0);
    if (q == 0) return csm_pair_div(csm_pair_mul(p, u), alpha);
    if (e->kind == CSM_SPARSEMAX) return csm_pair_times(csm_pair_mul(less, less), 0.5);
    if (e->kind == CSM_ENTMAX15) { /* with a = sqrt q and b = sqrt p: (a - b)^2 (a + b/2) / 0.75 */
        const double root = sqrt(q);
        const csm_pair a = csm_pair_of(root, fma(-root, root, q) / (2 * root));
        const csm_pair d = csm_pair_div(less, csm_pair_add(a, u)), half = csm_pair_of(0.5 * u.hi, 0.5 * u.lo);
        return csm_pair_div(csm_pair_mul(csm_pair_mul(d, d), csm_pair_add(a, half)), csm_pair_of(0.75, 0));
    }
    /* The two terms nearly cancel if q is close to p; powers are known to 2^-51 in single, else to 2^-98, and near
     * alpha = 1 the quotient by a is known less well. */
    const csm_pair part = csm_pair_div(less, csm_pair_of(q, 0));
    const double size = part.hi < 0 ? -part.hi : part.hi;
    if (e->scale < 0x1p-6 ? size < 0.4 : size * e->alpha < (csm_entmax_is_cheap(e) ? 0x1p-10 : 0x1p-17))
        return csm_divergence_near(e, q, part);
    csm_pair gain; /* ln_a q - ln_a p */
    if (e->p < 1) gain = csm_pair_div(csm_pair_add(csm_entmax_label_power(e, q), csm_pair_minus(u)), scale);
    else
        gain = csm_pair_add(csm_entmax_label_log(e, q),
                            csm_pair_div(csm_pair_add(csm_pair_of(1, 0), csm_pair_minus(u)), scale));
    return csm_pair_div(csm_pair_add(csm_pair_times(gain, q), csm_pair_minus(csm_pair_mul(less, u))), alpha);
}

/* Element i of the support. */
static inline csm_pair csm_entmax_p(const csm_support *s, size_t i) {
    return csm_pair_of(s->p[i], s->has_low ? s->z[i] : 0);
}
static inline csm_pair csm_entmax_power(const csm_support *s, size_t i) {
    return csm_pair_of(s->u[i], s->has_low ? s->z_low[i] : 0);
}

/* a (x - max) + c */
static inline csm_pair csm_entmax_level(const csm_entmax *e, const csm_support *s, double x) {
    csm_pair d = csm_pair_of(x, 0);
    csm_two_sum(&d.hi, &d.lo, -s->max);
    return csm_pair_plus(csm_pair_add(csm_pair_times(d, e->scale), csm_pair_of(s->t, s->t_low)), 1);
}

/* The term of a class outside the support, q > 0: q [q^a / alpha - u] / a with u <= 0. */
static inline csm_pair csm_outside(const csm_entmax *e, const csm_support *s, double q, double x) {
    if (!((x - s->max) * e->scale > -CSM_INF)) return csm_pair_of(CSM_INF, 0);
    const csm_pair power = csm_pair_div(csm_entmax_label_power(e, q), csm_pair_of(e->alpha, 0));
    const csm_pair both = csm_pair_add(power, csm_pair_minus(csm_entmax_level(e, s, x)));
    return csm_pair_div(csm_pair_times(both, q), csm_pair_of(e->scale, 0));
}

/* The sum of terms that may be infinite, where pairs would become NaN. */
static inline csm_pair csm_loss_add(csm_pair sum, csm_pair term) {
    const csm_pair finite = csm_pair_add(sum, term);
    return finite.hi - finite.hi == 0 ? finite : csm_pair_of(sum.hi + term.hi, 0);
}

/* The loss for a label.  p becomes p - q where p > 0; the caller adds the part of q outside the support. */
static inline double csm_hard_loss(const csm_entmax *e, csm_support *s, size_t label, double x_label) {
    csm_pair loss = csm_pair_of(0, 0), others = loss;
    size_t at = s->count;
    for (size_t i = 0; i < s->count; i++) {
        if (s->index[i] == label) {
            at = i;
            continue;
        }
        const csm_pair p = csm_entmax_p(s, i), u = csm_entmax_power(s, i);
        const double product = p.hi * u.hi;
        csm_two_sum(&others.hi, &others.lo, p.hi);
        csm_two_sum(&loss.hi, &loss.lo, product);
        others.lo += p.lo;
        if (csm_support_stops(s, i)) return 0;
        if (!e->single) loss.lo += fma(p.hi, u.hi, -product) + (p.hi * u.lo + p.lo * u.hi);
    }
    others = csm_pair_plus(others, 0);
    loss = csm_pair_div(csm_pair_plus(loss, 0), csm_pair_of(e->alpha, 0));
    if (at == s->count) return csm_loss_add(loss, csm_outside(e, s, 1, x_label)).hi;
    loss = csm_pair_add(loss, csm_divergence(e, 1, csm_entmax_p(s, at), csm_entmax_power(s, at), others));
    s->p[at] = 0 - others.hi;
    return loss.hi;
}

/* The loss for soft labels, class by class; classes with neither probability nor a label may be left out. */
typedef struct csm_soft_loss {
    csm_pair loss, mass; /* mass: sum q - 1 */
    size_t next;         /* next class of the support */
} csm_soft_loss;

static inline csm_soft_loss csm_soft_start(void) {
    const csm_soft_loss l = {{0, 0}, {-1, 0}, 0};
    return l;
}
/* Adds class j with soft label q.  Returns 1 if it has a label but no probability: the caller then adds
 * csm_soft_outside, which needs the logit. */
static inline int csm_soft_add(const csm_entmax *e, csm_support *s, csm_soft_loss *l, size_t j, double q) {
    csm_two_sum(&l->mass.hi, &l->mass.lo, q);
    if (l->next == s->count || s->index[l->next] != j) return q > 0;
    const csm_pair p = csm_entmax_p(s, l->next), less = csm_pair_plus(csm_pair_minus(p), q);
    l->loss = csm_loss_add(l->loss, csm_divergence(e, q, p, csm_entmax_power(s, l->next), less));
    s->p[l->next++] = 0 - less.hi;
    return 0;
}
static inline void csm_soft_outside(const csm_entmax *e, const csm_support *s, csm_soft_loss *l, double q, double x) {
    l->loss = csm_loss_add(l->loss, csm_outside(e, s, q, x));
}
static inline double csm_soft_end(const csm_entmax *e, const csm_support *s, const csm_soft_loss *l) {
    const csm_pair mass = csm_pair_plus(l->mass, 0);
    if (mass.hi == 0) return l->loss.hi;
    /* max - (c - 1) / a - 1 / alpha */
    const csm_pair rise = csm_pair_div(csm_pair_of(-s->t, -s->t_low), csm_pair_of(e->scale, 0));
    const csm_pair least = csm_pair_div(csm_pair_of(-1, 0), csm_pair_of(e->alpha, 0));
    const csm_pair share = csm_pair_plus(csm_pair_add(rise, least), s->max);
    return csm_loss_add(l->loss, csm_pair_minus(csm_pair_mul(mass, share))).hi;
}

#endif
