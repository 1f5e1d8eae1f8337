/* Drawing: the logits of a row between two intervals, and intervals around a number.
 *
 * A pass marks what is in the outer interval and not in the inner one, lists it, and adds up what is in the inner one:
 * the other logits are -inf before the kernel of softmax sees them, so that the sum of a block is the kernel's; blocks
 * are added without rounding.  Comparisons are in the compute type.  Only rows that no threads share come here.
 */
#include "sample.h"

#include "../kernel/softmax/combine.h"

void csm_sample_clear_set(csm_sample_set *set) {
    const csm_sample_range all = {-CSM_INF, CSM_INF, -CSM_INF, CSM_INF, INT64_MAX};
    *set = (csm_sample_set){.large = all, .near = all};
}

/* Numbers of the compute type in order, as integers, and back. */
static int64_t number_of(const csm_sample_row *row, double x) {
    x += 0.0; /* -0 is 0 */
    if (csm_is_single(&row->call->base)) {
        const float f = (float)x;
        int32_t bits;
        memcpy(&bits, &f, sizeof bits);
        return bits >= 0 ? bits : -(int64_t)(bits & INT32_MAX);
    }
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits >= 0 ? bits : -(bits & INT64_MAX);
}
static double of_number(const csm_sample_row *row, int64_t number) {
    const uint64_t size = (uint64_t)(number < 0 ? -number : number);
    double x;
    if (csm_is_single(&row->call->base)) {
        const uint32_t bits = (uint32_t)size;
        float f;
        memcpy(&f, &bits, sizeof f);
        x = (double)f;
    } else {
        memcpy(&x, &size, sizeof x);
    }
    return number < 0 ? -x : x;
}
double csm_sample_next(const csm_sample_row *row, double x) { return of_number(row, number_of(row, x) + 1); }
double csm_sample_least(const csm_sample_row *row, double x) {
    if (!csm_is_single(&row->call->base)) return x;
    const double near = (double)(float)x;
    return near >= x ? near : csm_sample_next(row, near);
}

/* The outermost number on one side of the middle whose distance from the centre is below `distance`, or equal to it:
 * distances are rounded, so that only trying tells. */
static double outermost(const csm_sample_row *row, double middle, double end, double distance, int equal) {
    int64_t in = number_of(row, middle), out = number_of(row, end);
    while ((uint64_t)in - (uint64_t)out + 1 > 2) { /* their difference is beyond 1 */
        const int64_t at = in / 2 + out / 2 + (in % 2 + out % 2) / 2;
        const double d = fabs(of_number(row, at) - row->set.center);
        if (d < distance || (equal && d == distance)) in = at;
        else out = at;
    }
    return of_number(row, in);
}
void csm_sample_around(const csm_sample_row *row, double distance, csm_sample_range *r) {
    const double center = row->set.center, largest = csm_is_single(&row->call->base) ? 0x1p128 : CSM_INF;
    const double middle = csm_is_single(&row->call->base) ? (double)(float)center : center;
    const double d = fabs(middle - center);
    r->low = r->wide_low = CSM_INF; /* empty */
    r->high = r->wide_high = -CSM_INF;
    if (d < distance) {
        r->low = outermost(row, middle, -largest, distance, 0);
        r->high = outermost(row, middle, largest, distance, 0);
    }
    if (d <= distance) {
        r->wide_low = outermost(row, middle, -largest, distance, 1);
        r->wide_high = outermost(row, middle, largest, distance, 1);
    }
}

csm_status csm_sample_pick(const csm_sample_row *row, size_t count, csm_sample_row *some) {
    const csm_call *c = &row->call->base;
    const size_t step = row->count / count;
    csm_strided from = {row->from.data, 0, row->from.axis * (ptrdiff_t)step};
    csm_strided mask = {row->mask.data, 0, row->mask.axis * (ptrdiff_t)step};
    char *stored = csm_sample_buffer(row->call, row->thread, CSM_SAMPLE_LOGS, count * c->itemsize);
    if (!stored) return CSM_NO_MEMORY;
    csm_gather(stored, 0, from, 1, count, c->itemsize, &mask, &c->absent);
    *some = *row;
    some->whole = stored;
    some->count = count;
    some->mass = NULL;
    return CSM_OK;
}

/* Loops over a block, for each compute type REAL. */
#define LOOPS(REAL)                                                    \
    static size_t count_##REAL(const REAL *x, size_t k) {              \
        size_t count = 0;                                              \
        for (size_t i = 0; i < k; i++) count += x[i] > (REAL)-CSM_INF; \
        return count;                                                  \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS

csm_status csm_sample_list(csm_sample_row *row, int counts, int level, const csm_sample_range *before,
                           const csm_sample_range *until, double *start, csm_sample_row *listed,
                           const uint32_t **numbers) {
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    /* What the set has left out is -inf, which is in no interval: a bound of -inf is the lowest number. */
    const double lowest = csm_is_single(c) ? -0x1.fffffep127 : -0x1.fffffffffffffp1023;
    const double outer_low = until->wide_low > lowest ? until->wide_low : lowest;
    const double outer[2] = {outer_low, until->wide_high}, inner[2] = {before->low, before->high};
    const int lists = level ? CSM_SAMPLE_NUMBERS : CSM_SAMPLE_KEPT,
              values = level ? CSM_SAMPLE_CLOSER : CSM_SAMPLE_RECORDS;
    uint32_t *list = (uint32_t *)(void *)csm_sample_buffer(call, row->thread, lists, (row->count + 8) * sizeof *list);
    size_t count = 0, above = 0;
    csm_exact sum;
    double rest;
    if (!list) return CSM_NO_MEMORY;
    csm_exact_zero(&sum);
    for (size_t b = 0; b < csm_block_count(row->count); b++) {
        const size_t k = csm_block_length(row->count, b * CSM_BLOCK);
        csm_block block;
        char *x = csm_sample_wide(row, b, row->thread);
        if (!x) return CSM_NO_MEMORY;
        const int is_any =
            c->table->sample[c->dtype].divide(x, k, outer, inner, (uint32_t)(b * CSM_BLOCK), list, &count);
        if (is_any && counts) above += CSM_BY_TYPE(row, count, x, k);
        if (is_any && !counts) {
            if (row->is_transformed) csm_transform(row->scales, csm_is_single(c), x, k, row->max);
            c->table->kernels[CSM_OP_softmax][c->wide_dtype].pass1(x, NULL, NULL, k, csm_sample_temperature(row),
                                                                   &block);
            csm_exact_add_block(&sum, &block);
        }
        if (csm_stops(&call->base.interrupt, row->thread, k)) return CSM_INTERRUPTED;
    }
    csm_exact_pair(&sum, (int64_t)row->n, start, &rest);
    if (counts) *start = (double)above;
    char *stored = csm_sample_buffer(call, row->thread, values, (count + 1) * c->itemsize);
    if (!stored) return CSM_NO_MEMORY;
    for (size_t i = 0; i < count; i++)
        csm_sample_copy_number(stored + i * c->itemsize, row->from.data + (ptrdiff_t)list[i] * row->from.axis,
                               c->itemsize);
    *numbers = list;
    *listed = *row;
    listed->whole = stored;
    listed->from = (csm_strided){stored, 0, (ptrdiff_t)c->itemsize};
    listed->mask = (csm_strided){NULL, 0, 0};
    listed->count = count;
    listed->set.is_active = 0;
    return CSM_OK;
}
