/* The terms of a ranking: rankings_terms.inc.h for doubles and for numbers with an exponent; ties as sums over subsets.
 *
 * All numbers are positive, and none is the difference of two others: the relative error of a sum of n terms is at most
 * n 2^-53, and the loss has it too, however small it is. */
#include "rankings.h"

#include "../math/scalars.h"

enum { LANES = 4 };

/* A product of numbers of at least 1, less 1, in four factors, and the logarithm of what no longer fits. */
typedef struct ranking_product {
    double less_one[LANES], log;
    size_t next; /* the factor that the next number goes to */
} ranking_product;

static double ranking_log(double u) {
    double low;
    return csm_log(u, 0, &low);
}
/* Multiplies a factor by 1 + rho. */
static inline void multiply_by(ranking_product *product, size_t lane, double rho) {
    double *q = &product->less_one[lane];
    *q = (*q + rho) + *q * rho;
    if (!(*q <= 0x1p100)) {
        product->log += csm_log1p(*q, 0);
        *q = 0;
    }
}
static inline void multiply_next(ranking_product *product, double rho) {
    multiply_by(product, product->next, rho);
    product->next = (product->next + 1) % LANES;
}
static double ranking_product_log(ranking_product *product) {
    for (size_t i = 1; i < LANES; i++) multiply_by(product, 0, product->less_one[i]);
    return product->log + csm_log1p(product->less_one[0], 0);
}

/* Doubles, for x that are not far apart: every quotient of sums is within their range. */
#define NUM double
#define NAME(name) plain_##name
#define RUN csm_ranking_terms
static inline double plain_zero(void) { return 0; }
static inline double plain_of(double x) { return x; }
static inline int plain_is_zero(double x) { return x == 0; }
static inline double plain_element(const ranking_list *list, size_t i) { return list->e[i]; }
static inline double plain_add(double a, double b) { return a + b; }
static inline double plain_mul(double a, double b) { return a * b; }
static inline double plain_divide(double a, double b) { return a / b; }
static inline double plain_to_double(double a) { return a; }
static inline void plain_put(double *to, size_t i, double a) { to[i] = a; }
static inline double plain_get(const double *from, size_t i) { return from[i]; }
static inline void plain_multiply(ranking_product *product, double others, double e) {
    if (e > 0) multiply_next(product, others / e);
    else product->log = CSM_INF;
}
static inline void plain_accumulate(double *mantissa, double *exponent, double den, double e) {
    *mantissa = e > 0 && *mantissa < CSM_INF ? *mantissa * (den / e) : CSM_INF;
    if (*mantissa < CSM_INF) *exponent += csm_take_exponent(mantissa);
}
#include "rankings_terms.inc.h"

/* m 2^e, 1 <= m < 2, or m = 0. */
typedef struct ranking_far {
    double m, e;
} ranking_far;
#define NUM ranking_far
#define NAME(name) far_##name
#define RUN csm_ranking_terms_wide
static inline ranking_far far_zero(void) { return (ranking_far){0, 0}; }
static inline ranking_far far_scaled(double m, double e) {
    const double by = csm_take_exponent(&m);
    return (ranking_far){m, m == 0 ? 0 : e + by};
}
static inline ranking_far far_of(double x) { return far_scaled(x, 0); }
static inline int far_is_zero(ranking_far a) { return a.m == 0; }
static inline ranking_far far_element(const ranking_list *list, size_t i) {
    return far_scaled(list->p[i], list->power[i]);
}
static inline ranking_far far_add(ranking_far a, ranking_far b) {
    if (a.m == 0) return b;
    if (b.m == 0) return a;
    const double d = a.e - b.e;
    return d >= 0 ? far_scaled(a.m + b.m * csm_pow2(-d), a.e) : far_scaled(b.m + a.m * csm_pow2(d), b.e);
}
static inline ranking_far far_mul(ranking_far a, ranking_far b) { return far_scaled(a.m * b.m, a.e + b.e); }
static inline ranking_far far_divide(ranking_far a, ranking_far b) { return far_scaled(a.m / b.m, a.e - b.e); }
static inline double far_to_double(ranking_far a) { return csm_times_pow2(a.m, a.e); }
static inline void far_put(double *to, size_t i, ranking_far a) {
    to[2 * i] = a.m;
    to[2 * i + 1] = a.e;
}
static inline ranking_far far_get(const double *from, size_t i) { return (ranking_far){from[2 * i], from[2 * i + 1]}; }
static inline void far_multiply(ranking_product *product, ranking_far others, ranking_far e) {
    if (e.m == 0) {
        product->log = CSM_INF;
        return;
    }
    const ranking_far rho = far_divide(others, e);
    if (rho.e > 100) product->log += ranking_log(rho.m) + rho.e * 0x1.62e42fefa39efp-1;
    else multiply_next(product, far_to_double(rho));
}
static inline void far_accumulate(double *mantissa, double *exponent, ranking_far den, ranking_far e) {
    if (e.m == 0 || !(*mantissa < CSM_INF)) {
        *mantissa = CSM_INF;
        return;
    }
    const ranking_far ratio = far_divide(den, e);
    *mantissa *= ratio.m;
    *exponent += ratio.e + csm_take_exponent(mantissa);
}
#include "rankings_terms.inc.h"

/* Exact ties */

size_t csm_ranking_exact_scratch(const ranking_list *list) {
    size_t most = 0;
    for (size_t g = 0; g < list->factors && list->begin; g++) {
        const size_t numbers = csm_subset_scratch(list->n, list->begin[g + 1] - list->begin[g], 1);
        if (numbers == 0) return SIZE_MAX / 16;
        if (numbers > most) most = numbers;
    }
    return most + 4 * list->n;
}

/* The loss of a group whose elements, above all others, are the likeliest set: log1p of the sum over other sets, the
 * m-th elementary polynomial of e^-x of the group times that of e^x of the others.  x: the group's first, d of n. */
static double loss_of_likeliest(const double *x, size_t n, size_t d, double middle, double *scratch) {
    const size_t most = d < n - d ? d : n - d;
    double *inside = scratch, *outside = scratch + most + 1, total = 0;
    for (size_t m = 0; m <= most; m++) inside[m] = outside[m] = m == 0;
    for (size_t i = 0; i < n; i++) {
        double *of = i < d ? inside : outside;
        const double u = csm_exp_less(i < d ? middle - x[i] : x[i] - middle, 0, 0);
        for (size_t m = most; m > 0; m--) of[m] += of[m - 1] * u;
    }
    for (size_t m = most; m > 0; m--) total += inside[m] * outside[m];
    return csm_log1p(total, 0);
}

/* -log of the probability that the d observed elements of a group are the ones taken. */
static double loss_of_group(const csm_subset_row *r, size_t d, double *scratch) {
    double least = CSM_INF, largest = -CSM_INF, sum = r->log_f, low = 0;
    for (size_t i = 0; i < r->n; i++) {
        if (i < d && r->x[i] < least) least = r->x[i];
        if (i >= d && r->x[i] > largest) largest = r->x[i];
    }
    if (least >= largest) {
        const double loss = loss_of_likeliest(r->x, r->n, d, 0.5 * least + 0.5 * largest, scratch);
        if (loss < CSM_INF) return loss;
    }
    csm_two_sum(&sum, &low, r->table->subsets.logs(r->x, r->shift, r->n));
    for (size_t i = 0; i < r->n; i++) {
        const double a = r->x[i] + r->shift;
        if (i < d ? a < 0 : a > 0) csm_two_sum(&sum, &low, i < d ? -a : a);
    }
    return sum + low;
}

static int add_group(ranking_list *list, size_t begin, size_t end, size_t d, double *scratch) {
    const size_t n = list->n;
    double *x = scratch, *taken = x + n;
    csm_subset_row r = {.table = list->table, .poll = list->poll, .x = x, .k = d};
    size_t possible = 0;
    for (int pass = 0; pass < 2; pass++) /* the observed elements of the group first */
        for (size_t i = begin; i < n; i++) {
            const int is_own = i < end && ranking_is_observed(list, i);
            if (is_own == (pass == 0) && list->x[i] > -CSM_INF) x[r.n++] = list->x[i];
            possible += pass == 0 && is_own && list->x[i] > -CSM_INF;
        }
    r.taken = taken;
    r.left = taken + n;
    r.scratch = taken + 2 * n;
    if (r.n > d) {
        if (!csm_subset_run(&r)) return 0;
    } else {
        for (size_t i = 0; i < r.n; i++) {
            r.taken[i] = 1;
            r.left[i] = 0;
        }
    }
    if (possible < d) list->loss = CSM_INF;
    else if (r.n > d) list->loss += loss_of_group(&r, d, r.scratch);
    size_t at = 0;
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = begin; i < n; i++) {
            const int is_own = i < end && ranking_is_observed(list, i);
            if (is_own != (pass == 0)) continue;
            if (!(list->x[i] > -CSM_INF)) list->grad[i] -= is_own;
            else if (is_own) list->grad[i] -= r.left[at++];
            else list->grad[i] += r.taken[at++];
        }
    return 1;
}
int csm_ranking_exact(ranking_list *list, double *scratch) {
    for (size_t g = 0; g < list->factors && list->begin; g++) {
        const size_t begin = list->begin[g], end = list->begin[g + 1];
        size_t d = 0;
        for (size_t i = begin; i < end; i++) d += (size_t)ranking_is_observed(list, i);
        if (d > 1 && !add_group(list, begin, end, d, scratch)) return 0;
        if (csm_poll_stops(&list->poll, list->n)) return 0;
    }
    return 1;
}
