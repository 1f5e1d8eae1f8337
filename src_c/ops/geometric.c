/* The driver of g-softmax: rows, threads, and what is computed of a row.
 *
 *     LSE_C(x) = -log min over p in the simplex of sum p_i p_j e^(-(x_i + x_j + C_ij) / 2),
 *
 * whose minimiser is g-softmax.  With K = e^(-C/2) and u = e^(x/2), p_i is proportional to u_i w_i, where w minimises
 * w'K w / 2 - u'w over w >= 0 (geometric_solve.c), and LSE_C = log u'w.  u is p 2^(n - n of the maximum), so that x - m
 * is never formed: the power of two cancels.
 *
 * LSE_C(x) - m = log1p(excess), m the largest logit.  Where its class b is in the support, the excess u'w / u_b^2 - 1
 * is the sum of squares of L^-1 u without b, with b first in the factor: positive terms, so that a small loss keeps its
 * digits.  Elsewhere it is r'w + u_b ((K w)_b - u_b), r = u - K_b u_b.
 *
 * Classes of cost 0 to each other are one group: their u compete, and equal ones share the probability evenly.
 *
 * Certificate: gap = 2 (1 - min_i ((K w)_i / u_i) u'w / w'K w), the relative Frank-Wolfe gap of p; LSE_C is at most
 * -log(1 - gap) away.
 *
 * A row's numbers depend on that row alone: neither on threads nor on the instruction set. */
#include "geometric.h"

#include "../math/scalars.h"

/* Exponent of u below which a class takes no part: its probability, at most u^2, is less than half the smallest number.
 * All others are far from subnormal, and so is what matters beside them. */
enum { VANISHING = -540 };

/* Relative gap beyond which a row is solved once more, with a ridge.  K is at least 0 and 1 on its diagonal, so that w
 * of the support is at most u: K w + ridge w = u leaves (K w)_i >= u_i (1 - ridge) for every class.  The gap is at
 * most twice the ridge, and no support is singular. */
#define ENOUGH 5e-14
#define RIDGE 2e-14

typedef struct geometric_call {
    const csm_geometric *call;
    const csm_table *table;
    csm_geometric_task task;
    geometric_row *rows; /* of each thread; memory NULL: not made yet */
    char **memory;
    csm_interrupt interrupt;
} geometric_call;

static void *take(char **at, size_t bytes) {
    void *taken = *at;
    *at += csm_rounded(bytes);
    return taken;
}

static csm_status make_row(geometric_call *c, int thread) {
    const size_t groups = c->call->groups, pitch = c->call->pitch;
    if (groups > ((size_t)1 << 30)) return CSM_NO_MEMORY;
    const size_t triangle = groups * (groups + 1) / 2, vector = csm_rounded((pitch + 1) * sizeof(double));
    geometric_row *r = &c->rows[thread];
    char *at = csm_allocate(csm_rounded(triangle * sizeof(double)) + 12 * vector);
    if (!at) return CSM_NO_MEMORY;
    c->memory[thread] = at;
    *r = (geometric_row){.call = c->call, .kernels = &c->table->geometric, .poll = csm_poll_of(&c->interrupt, thread)};
    double **vectors[] = {&r->u, &r->product, &r->w, &r->z, &r->forward, &r->rest, &r->x, &r->power};
    for (size_t i = 0; i < sizeof vectors / sizeof *vectors; i++) *vectors[i] = take(&at, vector);
    r->support = take(&at, vector);
    r->count = take(&at, vector);
    r->state = take(&at, groups);
    r->factor = take(&at, triangle * sizeof(double));
    return CSM_OK;
}

static size_t group_of(const csm_geometric *c, size_t i) { return c->group ? (size_t)c->group[i] : i; }
static void fill(double *to, size_t n, double value) {
    for (size_t i = 0; i < n && to; i++) to[i] = value;
}

/* Logits of groups, the largest of their classes, and how many classes have it.  Returns the group of the largest of
 * all, whose logit is infinite or NaN where the row has no ordinary result. */
static size_t read_logits(geometric_row *r, const double *x) {
    const csm_geometric *c = r->call;
    size_t best = 0;
    for (size_t g = 0; g < c->groups; g++) {
        r->x[g] = -CSM_INF;
        r->count[g] = 0;
    }
    for (size_t i = 0; i < c->classes; i++) {
        const size_t g = group_of(c, i);
        if (x[i] != x[i]) {
            r->x[g] = CSM_NAN;
            return g;
        }
        if (x[i] > r->x[g]) {
            r->x[g] = x[i];
            r->count[g] = 0;
        }
        r->count[g] += x[i] == r->x[g];
    }
    for (size_t g = 1; g < c->groups; g++)
        if (r->x[g] > r->x[best]) best = g;
    return best;
}

/* u = e^(x/2), up to a power of two. */
static void exponentiate(geometric_row *r, const csm_table *table, size_t best) {
    const size_t groups = r->call->groups, pitch = r->call->pitch;
    const double m = r->x[best], offset = m < 0x1p40 && m > -0x1p40 ? 0 : m;
    for (size_t g = 0; g < pitch; g++) r->power[g] = g < groups ? (r->x[g] - offset) / 2 : -CSM_INF;
    table->crf.split(r->power, r->u, r->product, pitch);
    for (size_t g = 0; g < groups; g++) {
        const double n = r->product[g] - r->product[best];
        r->u[g] = n < VANISHING ? 0 : r->u[g] * csm_pow2(n);
    }
}

static double excess_of(geometric_row *r, size_t best) {
    const double u = r->u[best], *similar = r->call->similarities + best * r->call->pitch;
    double sum = 0;
    if (r->state[best] == GEOMETRIC_INSIDE) {
        size_t k = 0, n = r->n;
        while (r->support[k] != best) k++;
        if (k) {
            for (; k; k--) r->support[k] = r->support[k - 1];
            r->support[0] = best;
            r->n = 0;
            for (k = 0; k < n; k++) csm_geometric_append(r, r->support[k]);
        }
        return r->kernels->dot(r->forward + 1, r->forward + 1, r->n - 1) / (u * u);
    }
    for (size_t k = 0; k < r->n; k++) sum += (r->u[r->support[k]] - similar[r->support[k]] * u) * r->w[k];
    sum += u * (r->product[best] - u);
    return sum > 0 ? sum / (u * u) : 0;
}

static double gap_of(const geometric_row *r, double total) {
    double quadratic = 0, least = CSM_INF;
    for (size_t k = 0; k < r->n; k++) quadratic += r->w[k] * r->product[r->support[k]];
    for (size_t g = 0; g < r->call->groups; g++)
        if (r->u[g] > 0 && r->product[g] < least * r->u[g]) least = r->product[g] / r->u[g];
    const double gap = 2 * (1 - least * (total / quadratic));
    return gap > 0 ? gap : 0;
}

static void solve_row(geometric_call *call, geometric_row *r, size_t row) {
    const csm_geometric *c = call->call;
    const double *x = c->x + row * c->classes;
    double *y = c->y ? c->y + row * c->classes : NULL;
    const size_t best = read_logits(r, x);
    if (!(r->x[best] > -CSM_INF && r->x[best] < CSM_INF)) {
        fill(y, c->classes, CSM_NAN);
        if (c->excess) c->excess[row] = CSM_NAN;
        if (c->gap) c->gap[row] = CSM_NAN;
        return;
    }
    exponentiate(r, call->table, best);
    double total, gap;
    r->ridge = 0;
    do {
        csm_geometric_find(r, best);
        if (r->is_stopped) return;
        total = 0;
        for (size_t k = 0; k < r->n; k++) total += r->u[r->support[k]] * r->w[k];
        gap = gap_of(r, total);
    } while (gap > ENOUGH && r->ridge == 0 && (r->ridge = RIDGE) > 0);
    if (c->gap) c->gap[row] = gap;
    if (y) {
        fill(r->z, c->groups, 0);
        for (size_t k = 0; k < r->n; k++)
            r->z[r->support[k]] = r->u[r->support[k]] * r->w[k] / total / (double)r->count[r->support[k]];
        for (size_t i = 0; i < c->classes; i++) {
            const size_t g = group_of(c, i);
            y[i] = x[i] == r->x[g] ? r->z[g] : 0;
        }
    }
    if (c->excess) c->excess[row] = csm_log1p(excess_of(r, best), 0);
}

/* Sums over the groups of q, whose support becomes that of the row; in r->x. */
static void read_probabilities(geometric_row *r, const double *q, int factor) {
    const csm_geometric *c = r->call;
    fill(r->x, c->groups, 0);
    fill(r->u, c->pitch, 0);
    for (size_t i = 0; i < c->classes; i++) r->x[group_of(c, i)] += q[i];
    r->n = 0;
    r->ridge = 0;
    r->is_stopped = 0;
    for (size_t g = 0; g < c->groups && !r->is_stopped; g++) {
        if (!(r->x[g] > 0)) continue;
        if (!factor) r->support[r->n++] = g;
        else if (!csm_geometric_append(r, g) && r->ridge == 0) { /* not without a ridge: once more from the start */
            r->ridge = RIDGE;
            r->n = 0;
            g = (size_t)-1;
        }
    }
}

/* Omega(q) = 2 sum of q_i log (K w)_i, w (K w) = q: minus the entropy that belongs to the cost. */
static void measure_row(geometric_row *r, size_t row) {
    const csm_geometric *c = r->call;
    double sum = 0;
    read_probabilities(r, c->x + row * c->classes, 0);
    csm_geometric_balance(r, r->x);
    for (size_t k = 0; k < r->n; k++) {
        double low;
        const double log = csm_log(r->product[r->support[k]], 0, &low);
        sum += r->x[r->support[k]] * (log + low);
    }
    c->excess[row] = 2 * sum;
}

/* dx = (D + p M^-1 D) / 2, D = p (dy - sum of p dy), M = diag(w) K diag(w) of w (K w) = p: a constant in dy has no
 * effect, and none of its rounding. */
static void differentiate_row(geometric_row *r, size_t row) {
    const csm_geometric *c = r->call;
    const double *p = c->x + row * c->classes, *dy = c->dy + row * c->classes;
    double *dx = c->y + row * c->classes, total = 0;
    int is_nan = 0;
    for (size_t i = 0; i < c->classes; i++) is_nan |= p[i] != p[i] || (p[i] != 0 && dy[i] - dy[i] != 0);
    if (is_nan) {
        for (size_t i = 0; i < c->classes; i++) dx[i] = p[i] == 0 ? 0 : CSM_NAN;
        return;
    }
    read_probabilities(r, p, 1);
    csm_geometric_balance(r, r->x);
    if (r->is_stopped) return;
    fill(r->power, c->groups, 0);
    double mass = 0;
    for (size_t i = 0; i < c->classes; i++)
        if (p[i] > 0) {
            total += p[i] * dy[i];
            mass += p[i];
        }
    const double mean = total / mass;
    for (size_t i = 0; i < c->classes; i++)
        if (p[i] > 0) r->power[group_of(c, i)] += p[i] * (dy[i] - mean);
    for (size_t k = 0; k < r->n; k++) r->z[k] = r->power[r->support[k]] / r->w[k];
    csm_geometric_solve(r, r->z);
    for (size_t k = 0; k < r->n; k++) r->u[r->support[k]] = r->z[k] / r->w[k];
    for (size_t i = 0; i < c->classes; i++) {
        const size_t g = group_of(c, i);
        dx[i] = p[i] > 0 ? p[i] * (r->power[g] / r->x[g] + r->u[g]) / 2 : 0;
    }
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    geometric_call *c = context;
    csm_status status = CSM_OK;
    if (!c->memory[thread] && (status = make_row(c, thread)) != CSM_OK) return status;
    geometric_row *r = &c->rows[thread];
    for (size_t row = begin; row < end; row++) {
        switch (c->task) {
        case CSM_GEOMETRIC_SOLVE: solve_row(c, r, row); break;
        case CSM_GEOMETRIC_MEASURE: measure_row(r, row); break;
        case CSM_GEOMETRIC_DIFFERENTIATE: differentiate_row(r, row); break;
        }
        if (r->is_stopped || csm_stops(&c->interrupt, thread, c->call->pitch)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

csm_status csm_run_geometric(csm_geometric_task task, const csm_table *table, const csm_geometric *call) {
    if (call->rows == 0 || call->groups == 0) return CSM_OK;
    csm_fp_environment saved = csm_fp_enter();
    geometric_call c = {call, table, task, NULL, NULL, {.check = call->interrupt, .caller = saved}};
    const double each = (double)call->groups * 64; /* a row takes some tens of passes over its classes */
    const int threads = csm_threads_for(each * (double)call->rows, call->rows, call->threads);
    const size_t row_bytes = csm_rounded((size_t)threads * sizeof *c.rows);
    char *memory = csm_allocate(row_bytes + (size_t)threads * sizeof *c.memory);
    csm_status status = CSM_NO_MEMORY;
    if (memory) {
        c.rows = (geometric_row *)(void *)memory;
        c.memory = (char **)(void *)(memory + row_bytes);
        for (int i = 0; i < threads; i++) c.memory[i] = NULL;
        const size_t piece = (size_t)(CSM_PIECE_ELEMENTS / each);
        status = csm_parallel(call->rows,
                              piece < 1    ? 1
                              : piece > 64 ? 64
                                           : piece,
                              threads, rows_body, &c, &c.interrupt);
        for (int i = 0; i < threads; i++) csm_release(c.memory[i]);
    }
    csm_release(memory);
    csm_fp_leave(c.interrupt.caller); /* the callback may have changed it */
    return status;
}
