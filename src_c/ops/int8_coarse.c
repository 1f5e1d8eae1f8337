/* Coarse codes of queries of int8 output layers, which with six bits of the codes of weights drop most classes in fewer
 * products; the bounds of the full codes decide about the others.
 *
 * The coarse upper bound of a class is never below the upper bound of the scan with full codes.  So a class that it
 * drops would have been dropped as well: the candidates, their number and the answer are those of full codes, however
 * often, and for whichever classes, coarse codes are used.  Let x^ be the coded query of the scan, with the norm n and
 * the error e, y its coarse one with the norm m, and p the middle of the codes of weights with the same leading bits:
 *   s q.x^ = s p.y + s (q - p).y + s q.(x^ - y) <= s p.y + s |q - p| m + (|w'| + r) delta,   delta >= |x^ - y|,
 * because s |q| <= |w'| + r.  With r n + |w'| e of the scan's own bound, the roundings of both, and
 * |q - p| <= 1.5 sqrt(D):
 *   upper = s p.y + bias + 1.5 s sqrt(D) m + r (n + delta) + |w'| (e + delta).
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

int csm_int8_filter_of(const csm_int8_layer *l, const csm_int8_codes *c, const double *scaled, size_t vector,
                       int8_t *codes, int32_t *offset, csm_int8_filter *filter) {
    double max = 0, square = 0;
    int32_t sum = 0;
    for (size_t d = 0; d < l->dims; d++) max = fabs(scaled[d]) > max ? fabs(scaled[d]) : max;
    const double unit = max / CSM_INT8_NARROW_LIMIT;
    const double inverse = unit > 0 ? 1 / unit : 0;
    for (size_t d = 0; d < l->dims; d++) {
        const size_t row = vector / CSM_INT8_VECTORS * csm_int8_steps(l) + d / 4;
        const size_t lane = vector % CSM_INT8_VECTORS * 4 + d % 4;
        const double a = csm_int8_nearest(scaled[d] * inverse);
        codes[row * 4 * CSM_INT8_VECTORS + lane] = (int8_t)a;
        sum += (int32_t)a;
        square = unit * a * (unit * a) + square;
    }
    offset[vector] = -253 * sum;
    const double size = sqrt(square) * (1 + 0x1p-20), slack = SLACK * (size + c->size);
    const double delta = distance(l, c, scaled, unit), residual = c->size + delta, norm = c->error + delta + slack;
    *filter = (csm_int8_filter){
        .factor = (float)(unit / 2),
        .constant = csm_int8_up(1.5 * sqrt((double)l->dims) * (size + slack)),
        .residual = csm_int8_up(residual + slack),
        .norm = csm_int8_up(norm),
    };
    const double most = size + residual + norm;
    return l->largest > 0 && most < MOST_PRODUCT && most * sqrt((double)l->dims) * l->largest < MOST_PRODUCT;
}
