/* log |sum b_j e^(x_j / T)| and the sign of the sum, for weights b of any sign: logsumexp(b=...).
 *
 * kernel/softmax/weighted.h has the formula.  An element with b = 0 is left out, whatever it holds.  A row is computed
 * element by element (about 0.3 us each): this is no path for speed.
 */
#include "../core/call.h"
#include "../core/extension.h"
#include "../kernel/softmax/weighted.h"

typedef struct weighted_call {
    csm_call base;
    csm_view x, b, result, sign, temperatures;
    const csm_weighted_sum *given;
} weighted_call;

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

/* Returns log |sum|; sets the sign. */
static double sum_row(csm_call *c, const weighted_row *from, int thread, double *sign) {
    const csm_poll poll = csm_poll_of(&c->interrupt, thread);
    const size_t n = c->shape.n;
    csm_weighted_row row = {.is_nan = 0};
    double x, b;
    for (size_t j = 0; j < n && !row.is_nan && !csm_poll_at(&poll, j); j++) {
        if (!element(c, from, j, &x, &b) || !csm_weighted_reads(&row, x, b)) continue;
        const csm_weighted_term u = csm_weighted_term_of(x, b, from->t);
        csm_weighted_find(&row, &u);
    }
    for (size_t j = 0; j < n && !csm_weighted_is_known(&row) && !csm_poll_at(&poll, j); j++) {
        if (!element(c, from, j, &x, &b) || !csm_weighted_adds(&row, x, b)) continue;
        const csm_weighted_term u = csm_weighted_term_of(x, b, from->t);
        row.rest = csm_pair_add(row.rest, csm_weighted_ratio(&u, &row.top));
    }
    return csm_weighted_end(&row, sign);
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
