/* log |sum b_j e^(x_j / T)| and the sign of the sum, for weights b of any sign: logsumexp(b=...).
 *
 * With m the element of the largest |b| e^(x / T):
 *     result = x_m / T + log |b_m| + log1p(R),  R = sum of the others (b_j / b_m) e^((x_j - x_m) / T)
 * Terms of R are pairs of doubles, and so is the sum of the three parts: the error is that of one rounding where
 * nothing cancels in R.  An element with b = 0 is left out, whatever it holds; a weight that is not finite makes the
 * row NaN.  A row is computed element by element (about 0.3 us each): this is no path for speed.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../math/power.h"

typedef struct weighted_call {
    csm_call base;
    csm_view x, b, result, sign, temperatures;
    const csm_weighted_sum *given;
} weighted_call;

/* x / T as a pair. */
static csm_pair divided(double x, double t) {
    if (t == 1) return csm_pair_of(x, 0);
    const double q = x / t, low = fma(-q, t, x) / t;
    return csm_pair_of(q, low - low == 0 ? low : 0);
}
/* a - b of two elements. */
static csm_pair difference(csm_pair a, csm_pair b) {
    const csm_pair d = csm_pair_add(a, csm_pair_minus(b));
    return d.hi - d.hi == 0 && d.lo - d.lo == 0 ? d : csm_pair_of(a.hi - b.hi, 0);
}

/* An element with a weight that is not 0: x, z = x / T, b and log |b|. */
typedef struct term {
    double x, b;
    csm_pair z, log;
} term;
static term term_of(double x, double b, double t) {
    const term u = {x, b, divided(x, t), csm_pair_log(csm_pair_of(fabs(b), 0))};
    return u;
}
/* u.z - v.z.  Beyond the range of double, two quotients of different elements are infinitely far apart. */
static csm_pair distance(const term *u, const term *v) {
    const csm_pair d = difference(u->z, v->z);
    if (d.hi - d.hi == 0) return d;
    return csm_pair_of(u->x == v->x ? 0 : u->x < v->x ? -CSM_INF : CSM_INF, 0);
}
/* log (|b_u| e^z_u / (|b_v| e^z_v)); -inf and inf where z_u - z_v is. */
static csm_pair log_ratio(const term *u, const term *v) {
    const csm_pair d = distance(u, v);
    return d.hi - d.hi == 0 ? csm_pair_add(d, difference(u->log, v->log)) : d;
}
/* (b_u / b_v) e^(z_u - z_v): a product, unless a factor may leave the range of double. */
static csm_pair ratio(const term *u, const term *v) {
    const csm_pair d = distance(u, v);
    if (fabs(d.hi) < 600 && fabs(u->log.hi) < 300 && fabs(v->log.hi) < 300)
        return csm_pair_mul(csm_pair_exp(d, 0), csm_pair_div(csm_pair_of(u->b, 0), csm_pair_of(v->b, 0)));
    const csm_pair e = csm_pair_exp(log_ratio(u, v), 0);
    return (u->b > 0) == (v->b > 0) ? e : csm_pair_minus(e);
}

/* The elements that take part. */
typedef struct weighted_row {
    const char *x, *b, *where;
    ptrdiff_t x_axis, b_axis, where_axis;
    double t;
} weighted_row;
static int element(const csm_call *c, const weighted_row *row, size_t j, double *x, double *b) {
    memcpy(b, row->b + (ptrdiff_t)j * row->b_axis, sizeof *b);
    if (*b == 0 || (row->where && !row->where[(ptrdiff_t)j * row->where_axis])) return 0;
    char value[8];
    memcpy(value, row->x + (ptrdiff_t)j * row->x_axis, c->itemsize);
    *x = csm_element(c, value, 0);
    return 1;
}

/* Returns log |sum|; sets the sign: 1, -1, 0 or NaN. */
static double sum_row(csm_call *c, const weighted_row *row, int thread, double *sign) {
    const csm_poll poll = csm_poll_of(&c->interrupt, thread);
    const size_t n = c->shape.n;
    double x, b, infinite = 0;
    term top = {0};
    *sign = CSM_NAN;
    for (size_t j = 0; j < n && !csm_poll_at(&poll, j); j++) {
        if (!element(c, row, j, &x, &b)) continue;
        if (x != x || b - b != 0) return CSM_NAN;
        if (x == CSM_INF) {
            const double s = b > 0 ? 1 : -1;
            if (infinite == -s) return CSM_NAN;
            infinite = s;
        }
        if (!(x > -CSM_INF) || infinite != 0) continue;
        const term u = term_of(x, b, row->t);
        if (top.b == 0 || log_ratio(&u, &top).hi > 0) top = u;
    }
    *sign = infinite;
    if (infinite != 0) return CSM_INF;
    if (top.b == 0) return -CSM_INF;
    csm_pair rest = {0, 0};
    int is_left_out = 0; /* one element like the largest */
    for (size_t j = 0; j < n && !csm_poll_at(&poll, j); j++) {
        if (!element(c, row, j, &x, &b) || !(x > -CSM_INF)) continue;
        if (!is_left_out && b == top.b && x == top.x) {
            is_left_out = 1;
            continue;
        }
        const term u = term_of(x, b, row->t);
        rest = csm_pair_add(rest, ratio(&u, &top));
    }
    const csm_pair sum = csm_pair_plus(rest, 1);
    const double direction = top.b > 0 ? 1 : -1;
    *sign = sum.hi > 0 ? direction : sum.hi < 0 ? -direction : 0;
    if (sum.hi == 0) return -CSM_INF;
    if (top.z.hi - top.z.hi != 0) return top.z.hi;
    const csm_pair log = sum.hi > 0 ? csm_pair_log1p(rest) : csm_pair_log(csm_pair_minus(sum));
    const csm_pair all = csm_pair_add(csm_pair_add(top.z, top.log), log);
    return all.lo - all.lo == 0 ? all.hi + all.lo : all.hi;
}

static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    weighted_call *call = context;
    csm_call *c = &call->base;
    for (size_t i = begin; i < end; i++) {
        const csm_strided mask = csm_mask_of(c, i);
        weighted_row row = {.x = csm_row_data(c, &call->x, i),
                            .b = csm_row_data(c, &call->b, i),
                            .where = mask.data,
                            .x_axis = call->x.axis_stride,
                            .b_axis = call->b.axis_stride,
                            .where_axis = mask.axis,
                            .t = call->given->temperature};
        if (call->given->temperatures) memcpy(&row.t, csm_row_data(c, &call->temperatures, i), sizeof row.t);
        double sign;
        const double value = sum_row(c, &row, thread, &sign);
        memcpy((char *)call->result.data + csm_offset(&c->shape, call->result.strides, i), &value, sizeof value);
        memcpy((char *)call->sign.data + csm_offset(&c->shape, call->sign.strides, i), &sign, sizeof sign);
        if (csm_stops(&c->interrupt, thread, 32 * c->shape.n)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

csm_status csm_run_weighted_sum(csm_dtype dtype, const csm_table *table, const csm_shape *shape,
                                const csm_weighted_sum *given) {
    weighted_call call;
    csm_call *c = &call.base;
    size_t rows;
    memset(&call, 0, sizeof call);
    call.given = given;
    csm_fp_environment saved = csm_fp_enter();
    c->has_where = given->where != NULL;
    csm_status status = csm_lay_out(
        c, shape,
        (const csm_view *[]){given->x, given->b, given->result, given->sign, given->where, given->temperatures},
        (csm_view *[]){&call.x, &call.b, &call.result, &call.sign, given->where ? &c->where : NULL,
                       given->temperatures ? &call.temperatures : NULL},
        6, &rows);
    if (status == CSM_OK) {
        csm_set_dtype(c, dtype, table);
        c->interrupt = (csm_interrupt){.check = given->interrupt, .caller = saved};
        c->threads = csm_threads_for(32 * (double)rows * (double)shape->n, rows, given->threads);
        status = csm_parallel(rows, CSM_PIECE_ELEMENTS / (32 * shape->n + 1) + 1, c->threads, rows_body, &call,
                              &c->interrupt);
        saved = c->interrupt.caller; /* the callback may have changed it */
    }
    csm_fp_leave(saved);
    return status;
}
