/* Coarse codes of queries of int8 output layers, which with six bits of the codes of weights drop most classes in fewer
 * products, and with four bits after reading half as many bytes; the bounds of the full codes decide about the others.
 *
 * The coarse upper bound of a class is never below the upper bound of the scan with full codes.  So a class that it
 * drops would have been dropped as well: the candidates, their number and the answer are those of full codes, however
 * often, and for whichever classes, coarse codes are used.  Let x^ be the coded query of the scan, with the norm n and
 * the error e, y its coarse one with the norm m, and p the middle of the codes of weights with the same leading bits:
 *   s q.x^ = s p.y + s (q - p).y + s q.(x^ - y) <= s p.y + s |q - p| m + (|w'| + r) delta,   delta >= |x^ - y|,
 * because s |q| <= |w'| + r.  With r n + |w'| e of the scan's own bound, the roundings of both, and
 * |q - p| <= 1.5 sqrt(D):
 *   upper = s p.y + bias + 1.5 s sqrt(D) m + r (n + delta) + |w'| (e + delta).
 * With four bits the same holds with the middle of 16 codes.  s |q - p| m + r (n + delta) <= s (|q - p| + r / s) M with
 * M = max(m, n + delta), and |w'| = s (|w'| / s), so that gap and reach, the largest |q - p| + r / s and |w'| / s of a
 * group, take the place of the numbers of each class:
 *   upper = s p.y + bias + s (gap M + reach (e + delta)).
 * The group waits with the bound of its best class, whose own |q - p| + r / s is (part + 1) / 256 of the gap.
 * Roundings: all terms are at most (|w'| + r + s |q - p|) (m + n) + |bias|, and 2^-18 of these are added, 64 units of
 * single precision; each of both bounds takes at most 12.  Underflows are below 2^-116.  Where a bound of the scan
 * overflows, it keeps its class, which a coarse bound could drop: neither queries with large products are filtered, nor
 * any query of a layer with a bias beyond 2^126, whose `largest` is 0.
 */
#include "int8.h"

#define SLACK 0x1p-18
#define MOST_PRODUCT 0x1p+96 /* of norms: far from the overflow of a sum */

/* The norm of the difference between two codings of a query: in the limbs of the scan, and as `unit` times integers.
 * The scan has one limb or two; a third one would have to be added here, and the bound would not hold without it. */
_Static_assert(CSM_INT8_SCAN_LIMBS == 2, "distance() adds two limbs");
static double distance(const csm_int8_layer *l, const csm_int8_codes *c, const double *scaled, double unit) {
    const double inverse = c->unit > 0 ? 1 / c->unit : 0, coarse = unit > 0 ? 1 / unit : 0;
    double square = 0;
    for (size_t d = 0; d < l->dims; d++) {
        const double ratio = scaled[d] * inverse, a = csm_int8_nearest(ratio);
        const double second = c->limbs > 1 ? csm_int8_nearest(CSM_INT8_SECOND * (ratio - a)) / CSM_INT8_SECOND : 0;
        const double left = c->unit * (a + second) - unit * csm_int8_nearest(scaled[d] * coarse);
        square = left * left + square;
    }
    return sqrt(square) * (1 + 0x1p-20) + 0x1p-50 * c->whole;
}

int csm_int8_filter_of(const csm_int8_layer *l, const csm_int8_codes *c, const double *scaled, int bits, size_t vector,
                       int8_t *codes, int32_t *offset, csm_int8_filter *filter) {
    const int limit = bits == 4 ? CSM_INT8_NIBBLE_LIMIT : CSM_INT8_NARROW_LIMIT;
    const size_t steps = bits == 4 ? 2 * csm_int8_lines(l) : csm_int8_steps(l);
    double max = 0, square = 0;
    int32_t sum = 0;
    for (size_t d = 0; d < l->dims; d++) max = fabs(scaled[d]) > max ? fabs(scaled[d]) : max;
    const double unit = max / limit;
    const double inverse = unit > 0 ? 1 / unit : 0;
    for (size_t d = 0; d < l->dims; d++) {
        const size_t row = vector / CSM_INT8_VECTORS * steps + d / 4;
        const size_t lane = vector % CSM_INT8_VECTORS * 4 + d % 4;
        const double a = csm_int8_nearest(scaled[d] * inverse);
        codes[row * 4 * CSM_INT8_VECTORS + lane] = (int8_t)a;
        sum += (int32_t)a;
        square = unit * a * (unit * a) + square;
    }
    offset[vector] = (bits == 4 ? -241 : -253) * sum;
    const double size = sqrt(square) * (1 + 0x1p-20), slack = SLACK * (size + c->size);
    const double delta = distance(l, c, scaled, unit), residual = c->size + delta, norm = c->error + delta + slack;
    const double larger = size > residual ? size : residual;
    *filter = (csm_int8_filter){
        .factor = (float)(unit / 2),
        .constant = csm_int8_up(bits == 4 ? larger + slack : 1.5 * sqrt((double)l->dims) * (size + slack)),
        .residual = csm_int8_up(residual + slack),
        .norm = csm_int8_up(norm),
    };
    const double most = size + residual + norm;
    return l->largest > 0 && most < MOST_PRODUCT && most * sqrt((double)l->dims) * l->largest < MOST_PRODUCT;
}

/* |q - p| + r / s of a class, and its norm / s.  left: |2 (q - p)|^2, in which codes that pad dimensions count too. */
static double gap_of(const csm_int8_layer *l, size_t id, uint32_t left, double *reach) {
    const double scale = (double)l->scale[id];
    *reach = 0;
    if (!(l->norm[id] < INFINITY && l->residual[id] < INFINITY)) return *reach = INFINITY; /* is always kept */
    if (scale == 0) return 0;
    *reach = (double)l->norm[id] / scale * (1 + 0x1p-20);
    return (sqrt((double)left) / 2 + (double)l->residual[id] / scale) * (1 + 0x1p-20);
}

/* The leading four bits of the codes of a group, and its gap and reach. */
static void lead(const csm_table *table, const csm_int8_layer *l, size_t g) {
    const size_t steps = csm_int8_steps(l), line = 4 * CSM_INT8_GROUP;
    uint32_t left[CSM_INT8_GROUP];
    double gap = 0, reach = 0, own[CSM_INT8_GROUP];
    table->int8.nibbles(l->codes + g * steps * line, steps, l->nibbles + g * csm_int8_lines(l) * line, left);
    for (size_t c = 0; c < CSM_INT8_GROUP; c++) {
        double far;
        own[c] = gap_of(l, g * CSM_INT8_GROUP + c, left[c], &far);
        gap = own[c] > gap ? own[c] : gap;
        reach = far > reach ? far : reach;
    }
    l->gap[g] = csm_int8_up(gap);
    l->reach[g] = csm_int8_up(reach);
    for (size_t c = 0; c < CSM_INT8_GROUP; c++) { /* one more than needed, whose rounding errors are smaller */
        const double part = gap > 0 && gap < INFINITY ? 256 * own[c] / gap : 255;
        l->part[g * CSM_INT8_GROUP + c] = (uint8_t)(part < 255 ? part : 255);
    }
}

typedef struct nibbles_call {
    const csm_table *table;
    const csm_int8_layer *layer;
    const int64_t *groups;
    csm_interrupt interrupt;
} nibbles_call;

static csm_status nibbles_body(void *context, size_t begin, size_t end, int thread) {
    nibbles_call *call = context;
    const csm_int8_layer *l = call->layer;
    for (size_t i = begin; i < end; i++) {
        lead(call->table, l, call->groups ? (size_t)call->groups[i] : i);
        if (csm_stops(&call->interrupt, thread, l->dims * CSM_INT8_GROUP)) break; /* csm_parallel reports it */
    }
    return CSM_OK;
}

csm_status csm_run_int8_nibbles(const csm_table *table, const csm_int8_layer *l, size_t count, const int64_t *groups) {
    csm_fp_environment saved = csm_fp_enter();
    nibbles_call call = {.table = table, .layer = l, .groups = groups};
    call.interrupt = (csm_interrupt){.check = l->interrupt, .caller = saved};
    const double work = (double)count * CSM_INT8_GROUP * (double)l->dims;
    const int threads = csm_threads_for(work, count, l->threads < 1 ? 1 : l->threads);
    const size_t piece = CSM_PIECE_ELEMENTS / CSM_INT8_GROUP / (l->dims + 16) + 1;
    csm_status status = csm_parallel(count, piece, threads, nibbles_body, &call, &call.interrupt);
    csm_fp_leave(call.interrupt.caller); /* the callback may have changed it */
    return status;
}

void csm_run_int8_nibble_dots(const csm_table *table, const uint8_t *nibbles, size_t lines, const int8_t *x,
                              int32_t offset, int32_t *out) {
    table->int8.nibble_dots(nibbles, lines, x, offset, out);
}
