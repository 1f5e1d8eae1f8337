/* The Fenchel-Young loss of alpha-entmax of one row, from the solver's support (Blondel, Martins & Niculae 2020),
 * with Omega(p) = sum (p^alpha - p) / (alpha (alpha - 1)):
 *     L(x, q) = Omega*(x) + Omega(q) - <x, q>
 *             = sum over p_j > 0 of d(q_j, p_j), d the Bregman divergence of Omega,
 *               + sum over p_j = 0 of q_j [(ln_a q_j - 1) / alpha - v_j / a]
 *               - (sum q - 1) (max - (c - 1/alpha) / a),
 * a = alpha - 1, v_j = a (x_j - max) + c - 1.  No term is negative if q sums to 1, so that a small loss keeps its
 * digits.  The deformed logarithm ln_a v = (v^a - 1) / a keeps them near alpha = 1, where powers differ little.
 *
 * Plain C in double, one thread for each row, on the CPU and on CUDA; the terms are added in the order of the classes.
 * Largest error measured (ACCURACY.md, against mpmath): 0.50 ULP of a float32 loss; 1.8 ULP of a double, and 15.4 for
 * alpha = 1.5, where (sqrt q - sqrt p)^2 is computed from rounded roots.  A row whose threshold is NaN has loss NaN.
 */
#ifndef CSM_ENTMAX_LOSS_H
#define CSM_ENTMAX_LOSS_H

#include "../../math/scalars.h"
#include "job.h"

/* d(q, p) = (q^alpha - p^alpha - alpha p^a (q - p)) / (alpha a) = [q (ln_a q - ln_a p) - (q - p) p^a] / alpha;
 * u = p^a, less = q - p. */
static inline double csm_divergence(const csm_entmax *e, double q, double p, double u, double less) {
    if (q == 0) return p * u / e->alpha;
    if (e->kind == CSM_SPARSEMAX) return 0.5 * less * less;
    if (e->kind == CSM_ENTMAX15) { /* with a = sqrt q and b = sqrt p: (a - b)^2 (a + b/2) / 0.75 */
        const double a = sqrt(q), d = less / (a + u);
        return d * d * (a + 0.5 * u) / 0.75;
    }
    const double part = less / q;
    if (part < -0.4 || part > 0.4)
        return (q * (csm_log_deformed(q, e->scale) - csm_log_deformed(p, e->scale)) - less * u) / e->alpha;
    /* q^alpha times the integral of v (1 - v)^(alpha-2) from 0 to part */
    double sum = 0, term = part * part;
    for (int k = 0; k < 60 && term != 0; k++) {
        sum += term / (k + 2);
        term *= part * (k - (e->alpha - 2)) / (k + 1);
    }
    return csm_pow(q, 0, e->alpha, 0) * sum;
}

/* (c - 1) / a */
static inline double csm_c_less_one(const csm_entmax *e, const csm_support *s) {
    return ((e->p < 1 ? s->t - 1 : s->t) + s->t_low) / e->scale;
}

/* The term of a class outside the support. */
static inline double csm_outside(const csm_entmax *e, const csm_support *s, double q, double x) {
    return q * ((csm_log_deformed(q, e->scale) - 1) / e->alpha - ((x - s->max) + csm_c_less_one(e, s)));
}

/* The loss for a label.  p becomes p - q where p > 0; the caller adds the part of q outside the support. */
static inline double csm_hard_loss(const csm_entmax *e, csm_support *s, size_t label, double x_label) {
    double loss = 0, others = 0;
    size_t at = s->count;
    for (size_t i = 0; i < s->count; i++) {
        if (s->index[i] == label) {
            at = i;
            continue;
        }
        others += s->p[i];
        loss += csm_divergence(e, 0, s->p[i], s->u[i], 0);
        if (csm_support_stops(s, i)) return loss;
    }
    if (at == s->count) return loss + csm_outside(e, s, 1, x_label);
    loss += csm_divergence(e, 1, s->p[at], s->u[at], others);
    s->p[at] = 0 - others;
    return loss;
}

/* The loss for soft labels, class by class; classes with neither probability nor a label may be left out. */
typedef struct csm_soft_loss {
    double loss, mass, mass_low;
    size_t next; /* next class of the support */
} csm_soft_loss;

static inline csm_soft_loss csm_soft_start(void) {
    const csm_soft_loss l = {0, -1, 0, 0};
    return l;
}
/* Adds class j with soft label q.  Returns 1 if it has a label but no probability: the caller then adds csm_outside. */
static inline int csm_soft_add(const csm_entmax *e, csm_support *s, csm_soft_loss *l, size_t j, double q) {
    csm_two_sum(&l->mass, &l->mass_low, q);
    if (l->next == s->count || s->index[l->next] != j) return q > 0;
    const double p = s->p[l->next];
    l->loss += csm_divergence(e, q, p, s->u[l->next], q - p);
    s->p[l->next++] -= q;
    return 0;
}
static inline double csm_soft_end(const csm_entmax *e, const csm_support *s, const csm_soft_loss *l) {
    const double mass = l->mass + l->mass_low;
    return mass == 0 ? l->loss : l->loss - mass * (s->max - (csm_c_less_one(e, s) + 1 / e->alpha));
}

#endif
