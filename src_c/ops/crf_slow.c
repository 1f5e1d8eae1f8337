/* The linear-chain CRF with one exponent for each tag: for sequences whose weights spread over more than the range of
 * double, and for sets of labels.
 *
 * A weight is m 2^n with 1 <= m < 2, or 0, so that nothing vanishes or overflows.  Sums over tags are formed from
 * numbers relative to the largest of the vector, in the two chains of the fast path; one below 2^-300 of its largest
 * possible term is formed again with the exponent of each term, less those below 2^-1000 of the largest.
 *
 * With labels or sets Y there are two vectors a position: `in`, prefixes within the sets, and `out`, those that have
 * left them at least once.
 *
 *   in(t, j)  = [j in Y_t] e_j sum_i in_i a_ij
 *   out(t, j) = e_j (sum_i out_i a_ij + [j not in Y_t] sum_i in_i a_ij)
 *
 * and loss = log1p(Z_out / Z_in) has no cancellation.  Backward the same, b_in and b_out of what follows.  Gradient:
 * P(out, t, j) - P(out) mu_in(t, j), P(out, t, j) = (out_j (b_in + b_out) + in_j b_out) / Z, mu_in = in_j b_in / Z_in;
 * where a position has a single label, minus the sum of the others.  Without labels every prefix is in `in`.
 *
 * Relative error of every weight: below 2 n (L / 2 + 3) 2^-53.  A position of 9 tags takes 0.2 us for log Z and 0.8 us
 * for loss and gradients, 10 times as long as on the fast path. */
#include "crf.h"

typedef struct big {
    double m, n;
} big;

static big normal(double m, double n) {
    if (m == 0) return (big){0, 0};
    n += csm_take_exponent(&m);
    return (big){m, n};
}
static big times(big a, big b) { return normal(a.m * b.m, a.n + b.n); }
static big plus(big a, big b) {
    if (a.m == 0) return b;
    if (b.m == 0) return a;
    if (a.n < b.n) {
        const big c = a;
        a = b;
        b = c;
    }
    return normal(a.m + b.m * csm_pow2(b.n - a.n), a.n);
}
/* a b / z as a double. */
static double ratio(big a, big b, big z) {
    if (a.m == 0 || b.m == 0) return 0;
    return csm_times_pow2(a.m * b.m / z.m, a.n + b.n - z.n);
}

/* Everything that the passes over one sequence share. */
typedef struct slow {
    crf_sequence *s;
    const csm_crf_model *m;
    size_t L, P, n;
    big *in, *out, *e;          /* of all positions */
    big *b_in, *b_out, *next;   /* of one position: suffixes; products with e */
    big *start, *end, z, z_in, z_out;
    double *p, *exponent;       /* of a row of scores */
    double *buffer;             /* 8 rows of a pitch */
    double p_out;               /* Z_out / Z */
    int has_target, is_hard; /* is_hard: a label for each position, none unknown */
} slow;

/* sum_i v_i a_i over i = 0 ... L - 1, where a_i = p_i 2^n_i with a stride. */
static big sum_of(const big *v, const double *p, const double *n, size_t stride, size_t L) {
    double top = -CSM_INF, chain[2] = {0, 0};
    for (size_t i = 0; i < L; i++)
        if (v[i].m != 0 && p[i * stride] != 0 && v[i].n + n[i * stride] > top) top = v[i].n + n[i * stride];
    if (top == -CSM_INF) return (big){0, 0};
    for (size_t i = 0; i < L; i++) {
        if (v[i].m == 0 || p[i * stride] == 0) continue;
        const double d = v[i].n + n[i * stride] - top;
        if (d >= -1000) chain[i & 1] = fma(v[i].m * csm_pow2(d), p[i * stride], chain[i & 1]);
    }
    return normal(chain[0] + chain[1], top);
}

/* The numbers of a vector relative to its largest, 0 beyond the last tag; returns the exponent that they have lost. */
static double scale_vector(const big *v, size_t L, size_t P, double *to) {
    double top = -CSM_INF;
    for (size_t i = 0; i < L; i++)
        if (v[i].m != 0 && v[i].n > top) top = v[i].n;
    for (size_t i = 0; i < P; i++) to[i] = i < L && v[i].m != 0 ? v[i].m * csm_pow2(v[i].n - top) : 0;
    return top == -CSM_INF ? 0 : top;
}
/* sum over i of v_i a_i for every column j of a matrix of scaled weights (a, or its transpose); sums that are small
 * beside the largest product may have lost digits, and are computed again with the exponent of each term. */
static void multiply_vector(const slow *w, const big *v, int transposed, big *to) {
    const csm_crf_model *m = w->m;
    const size_t L = w->L, P = w->P;
    const double *a = transposed ? m->a_t : m->a;
    double *x = w->buffer, *even = x + P, *odd = even + P;
    const double n = scale_vector(v, L, P, x) + m->a_n, limit = CSM_CRF_SMALL * m->a_max;
    memset(even, 0, 2 * P * sizeof *even);
    for (size_t i = 0; i < L; i++) {
        double *sum = i & 1 ? odd : even;
        if (x[i] == 0) continue;
        for (size_t j = 0; j < P; j += 4) { /* by fours, which compilers vectorise */
            sum[j] += x[i] * a[i * P + j];
            sum[j + 1] += x[i] * a[i * P + j + 1];
            sum[j + 2] += x[i] * a[i * P + j + 2];
            sum[j + 3] += x[i] * a[i * P + j + 3];
        }
    }
    for (size_t j = 0; j < L; j++) {
        const double sum = even[j] + odd[j];
        if (sum >= limit && sum > 0) to[j] = normal(sum, n);
        else if (transposed) to[j] = sum_of(v, m->p + j * P, m->n + j * P, 1, L);
        else to[j] = sum_of(v, m->p + j, m->n + j, P, L);
    }
}

/* Whether a label agrees with what is given for a position. */
static int agrees(const slow *w, size_t t, size_t j) {
    const csm_crf_options *o = w->s->call->o;
    const int64_t *labels = w->s->chain->labels;
    if (!w->has_target) return 1;
    if (labels) return labels[t] < 0 || labels[t] == (int64_t)j;
    return o->sets[crf_row(w->s, t) * w->L + j] != 0;
}
/* The only label that is possible at a position, or L if there are several (or none). */
static size_t single_label(const slow *w, size_t t) {
    size_t found = w->L;
    if (!w->has_target) return w->L;
    for (size_t j = 0; j < w->L; j++)
        if (agrees(w, t, j)) {
            if (found < w->L) return w->L;
            found = j;
        }
    return found;
}

static csm_status begin_slow(slow *w, crf_sequence *s) {
    const csm_crf_model *m = &s->call->model;
    const size_t L = m->tags, P = m->pitch, n = s->n, longest = s->call->longest;
    memset(w, 0, sizeof *w);
    w->s = s;
    w->m = m;
    w->L = L;
    w->P = P;
    w->n = n;
    w->has_target = s->call->task == CSM_CRF_LOSS || s->chain->labels != NULL;
    big *at = (big *)(void *)csm_scratch_get(&s->call->scratch, s->thread, CRF_SLOW,
                                             (3 * longest * L + 5 * L + 5 * P) * sizeof *at);
    if (!at) return CSM_NO_MEMORY;
    big **const all[] = {&w->in, &w->out, &w->e};
    big **const rows[] = {&w->b_in, &w->b_out, &w->next, &w->start, &w->end};
    for (size_t i = 0; i < 3; i++, at += longest * L) *all[i] = at;
    for (size_t i = 0; i < 5; i++, at += L) *rows[i] = at;
    w->p = (double *)at;
    w->exponent = w->p + P;
    w->buffer = w->exponent + P;
    w->is_hard = s->chain->labels != NULL;
    for (size_t t = 0; t < n && w->is_hard; t++) w->is_hard = s->chain->labels[t] >= 0;
    for (size_t j = 0; j < L; j++) {
        w->start[j] = normal(m->start_p[j], m->start_n[j]);
        w->end[j] = normal(m->end_p[j], m->end_n[j]);
    }
    for (size_t t = 0; t < n; t++) {
        s->call->kernels->split(s->chain->x + t * P, w->p, w->exponent, P);
        for (size_t j = 0; j < L; j++) w->e[t * L + j] = normal(w->p[j], w->exponent[j]);
    }
    return CSM_OK;
}

static csm_status pass_forward(slow *w) {
    const size_t L = w->L;
    const big nothing = {0, 0};
    for (size_t t = 0; t < w->n; t++) {
        const big *in = w->in + (t - (t > 0)) * L, *out = w->out + (t - (t > 0)) * L, *e = w->e + t * L;
        if (csm_poll_stops(&w->s->chain->poll, 4 * L * L)) return CSM_INTERRUPTED;
        if (t) multiply_vector(w, in, 0, w->next);
        if (t && w->has_target) multiply_vector(w, out, 0, w->b_in);
        for (size_t j = 0; j < L; j++) {
            const big a = t ? w->next[j] : w->start[j], b = t && w->has_target ? w->b_in[j] : nothing;
            const int is_in = agrees(w, t, j);
            w->in[t * L + j] = is_in ? times(e[j], a) : nothing;
            w->out[t * L + j] = times(e[j], is_in ? b : plus(a, b));
        }
    }
    w->z_in = w->z_out = nothing;
    for (size_t j = 0; j < L; j++) {
        w->z_in = plus(w->z_in, times(w->in[(w->n - 1) * L + j], w->end[j]));
        w->z_out = plus(w->z_out, times(w->out[(w->n - 1) * L + j], w->end[j]));
    }
    w->z = plus(w->z_in, w->z_out);
    return CSM_OK;
}

/* mu of a position: marginals, or the gradient. */
static void set_tags(const slow *w, size_t t) {
    const size_t L = w->L, single = single_label(w, t);
    const big *in = w->in + t * L, *out = w->out + t * L;
    double *mu = w->s->chain->mu + t * w->P, others = 0;
    const int is_impossible = w->has_target && w->z_in.m == 0;
    memset(mu, 0, w->P * sizeof *mu);
    for (size_t j = 0; j < L; j++) {
        const big any = plus(w->b_in[j], w->b_out[j]);
        if (!w->has_target) {
            mu[j] = ratio(in[j], w->b_in[j], w->z);
        } else if (is_impossible) {
            mu[j] = ratio(plus(in[j], out[j]), any, w->z) - (j == single);
            if (!w->is_hard) mu[j] = CSM_NAN;
        } else {
            const double p_out = ratio(out[j], any, w->z) + ratio(in[j], w->b_out[j], w->z);
            if (j == single) continue;
            mu[j] = single < L ? p_out : p_out - w->p_out * ratio(in[j], w->b_in[j], w->z_in);
            others += mu[j];
        }
    }
    if (single < L && !is_impossible) mu[single] = others == 0 ? 0 : -others;
}

/* The products of the suffixes of position t with its e: into `next`, those that leave the sets into b_out. */
static void multiply_suffixes(slow *w, size_t t) {
    for (size_t j = 0; j < w->L; j++) {
        const big e = w->e[t * w->L + j];
        const int is_in = agrees(w, t, j);
        w->next[j] = is_in ? times(e, w->b_in[j]) : (big){0, 0};
        w->b_out[j] = times(e, is_in ? w->b_out[j] : plus(w->b_in[j], w->b_out[j]));
    }
}
/* The pair (i, j) into position t, after multiply_suffixes. */
static double pair_of(const slow *w, size_t t, size_t i, size_t j) {
    const size_t at = i * w->P + j;
    const big a = normal(w->m->p[at], w->m->n[at]), in = times(w->in[(t - 1) * w->L + i], a);
    if (!w->has_target) return ratio(in, w->next[j], w->z);
    const big out = times(w->out[(t - 1) * w->L + i], a), any = plus(w->next[j], w->b_out[j]);
    const double p_out = ratio(out, any, w->z) + ratio(in, w->b_out[j], w->z);
    if (w->z_in.m == 0) return p_out + ratio(in, w->next[j], w->z);
    return p_out - w->p_out * ratio(in, w->next[j], w->z_in);
}
/* What the pairs into position t multiply a(i, j) with, in doubles: out_i any_j + in_i (b_out_j - P(out) b_in_j).
 * Returns 0 if a factor is so large that small numbers would have vanished. */
typedef struct pair_factors {
    double *in, *out, *any, *b_out, *b_in;
} pair_factors;
static int scale_pairs(const slow *w, size_t t, pair_factors *f) {
    const size_t L = w->L, P = w->P;
    double *at = w->buffer;
    const double in_n = scale_vector(w->in + (t - 1) * L, L, P, f->in = at) + w->m->a_n;
    const double out_n = scale_vector(w->out + (t - 1) * L, L, P, f->out = at + P) + w->m->a_n;
    const big z_in = w->has_target && w->z_in.m != 0 ? w->z_in : w->z;
    const double p_out = w->has_target && w->z_in.m != 0 ? w->p_out : -1; /* all pairs, or none is in the sets */
    const double next_n = scale_vector(w->next, L, P, f->b_in = at + 2 * P);
    const double b_out_n = scale_vector(w->b_out, L, P, f->b_out = at + 3 * P);
    const double top = next_n > b_out_n ? next_n : b_out_n; /* of any = next + b_out */
    const double e_any = out_n + top - w->z.n, e_out = in_n + b_out_n - w->z.n, e_in = in_n + next_n - z_in.n;
    f->any = at + 4 * P;
    if (!(e_any < 300 && e_out < 300 && e_in < 300)) return 0;
    const double by_any = csm_pow2(e_any) / w->z.m, by_out = csm_pow2(e_out) / w->z.m;
    const double by_in = p_out * (csm_pow2(e_in) / z_in.m), down = csm_pow2(next_n - top),
                 other = csm_pow2(b_out_n - top);
    for (size_t j = 0; j < P; j++) {
        f->any[j] = (f->b_in[j] * down + f->b_out[j] * other) * by_any;
        f->b_out[j] *= by_out;
        f->b_in[j] *= by_in;
    }
    return 1;
}
static void add_pairs(const slow *w, size_t t) {
    const size_t L = w->L, P = w->P, from = single_label(w, t - 1), to = single_label(w, t);
    const double *mu = w->s->chain->mu + t * P;
    double *g = w->s->chain->g, *row = w->s->chain->beta, beside = 0;
    const csm_crf_options *o = w->s->call->o;
    const int is_impossible = w->has_target && w->z_in.m == 0;
    const int is_label = from < L && to < L;
    pair_factors f;
    const int is_scaled = scale_pairs(w, t, &f);
    for (size_t i = 0; i < L; i++) {
        const double *a = w->m->a + i * P;
        for (size_t j = 0; j < L; j++) {
            row[j] = is_scaled ? a[j] * f.out[i] * f.any[j] + (a[j] * f.in[i] * f.b_out[j] - a[j] * f.in[i] * f.b_in[j])
                               : pair_of(w, t, i, j);
            if (is_label && i == from && j == to && !is_impossible) row[j] = 0;
            if (is_impossible && !w->is_hard) row[j] = CSM_NAN;
            g[i * P + j] += row[j];
        }
        beside += is_label ? row[to] : 0;
        if (o->pairs) csm_crf_store(w->s, row, 1, (crf_row(w->s, t) * L + i) * L, o->pairs);
    }
    if (!is_label) return;
    if (is_impossible) { /* without unknown labels, or NaN */
        g[from * P + to] -= 1;
        return;
    }
    for (size_t j = 0; j < L; j++) beside += j == to ? 0 : mu[j];
    g[from * P + to] -= beside;
}

static csm_status pass_backward(slow *w) {
    const size_t L = w->L, P = w->P;
    const csm_crf_options *o = w->s->call->o;
    const int pairs = w->s->call->task == CSM_CRF_LOSS || o->pairs || o->pair_sums;
    memset(w->s->chain->g, 0, L * P * sizeof *w->s->chain->g);
    memcpy(w->b_in, w->end, L * sizeof *w->end);
    memset(w->b_out, 0, L * sizeof *w->b_out);
    w->p_out = w->z_out.m == 0 ? 0 : ratio(w->z_out, (big){1, 0}, w->z);
    for (size_t t = w->n; t-- > 0;) {
        if (csm_poll_stops(&w->s->chain->poll, 16 * L * L)) return CSM_INTERRUPTED;
        set_tags(w, t);
        if (t == 0) break;
        multiply_suffixes(w, t);
        if (pairs) add_pairs(w, t);
        multiply_vector(w, w->next, 1, w->b_in);
        memcpy(w->next, w->b_out, L * sizeof *w->next);
        if (w->has_target) multiply_vector(w, w->next, 1, w->b_out);
    }
    if (o->pairs) {
        memset(w->s->chain->beta, 0, P * sizeof(double));
        for (size_t i = 0; i < L; i++)
            csm_crf_store(w->s, w->s->chain->beta, 1, (crf_row(w->s, 0) * L + i) * L, o->pairs);
    }
    return CSM_OK;
}

csm_status csm_crf_compute_slow(crf_sequence *s, int gradient) {
    slow w;
    csm_status status = begin_slow(&w, s);
    s->is_slow = 1;
    if (status != CSM_OK || (status = pass_forward(&w)) != CSM_OK) return status;
    if (w.z.m == 0) {
        s->outcome = CSM_CRF_NO_PATH;
        return CSM_OK;
    }
    s->log_z = csm_crf_log_of(s, w.z.m, w.z.n);
    s->loss = 0;
    if (w.has_target && w.z_in.m == 0) s->loss = CSM_INF;
    else if (w.has_target && w.z_out.m != 0) s->loss = csm_crf_loss_of(w.z_out.m / w.z_in.m, w.z_out.n - w.z_in.n);
    return gradient ? pass_backward(&w) : CSM_OK;
}

void csm_crf_slow_weights(const crf_sequence *s, size_t t, int64_t next, double *weights) {
    const csm_crf_model *m = &s->call->model;
    const size_t L = m->tags, P = m->pitch;
    const big *in =
        (const big *)(const void *)s->call->scratch.buffers[s->thread * CRF_BUFFERS + CRF_SLOW].data + t * L;
    double top = -CSM_INF;
    for (size_t i = 0; i < L; i++) {
        const double p = next < 0 ? m->end_p[i] : m->p[i * P + (size_t)next];
        const double n = in[i].n + (next < 0 ? m->end_n[i] : m->n[i * P + (size_t)next]);
        if (in[i].m != 0 && p != 0 && n > top) top = n;
    }
    for (size_t i = 0; i < L; i++) {
        const double p = next < 0 ? m->end_p[i] : m->p[i * P + (size_t)next];
        const double n = in[i].n + (next < 0 ? m->end_n[i] : m->n[i * P + (size_t)next]);
        weights[i] = in[i].m == 0 || p == 0 ? 0 : in[i].m * p * csm_pow2(n - top);
    }
}
