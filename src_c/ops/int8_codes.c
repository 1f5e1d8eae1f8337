/* Codes of int8 output layers: those of rows of weights, and those of queries.
 *
 * w'_d = w_d 2^-e_d and x'_d = x_d 2^e_d, so that w.x = w'.x' exactly.  A row has the scale s = max|w'| / 127, rounded
 * up to float, codes q = rint(w' / s), a second limb q2 = rint(254 (w' / s - q)), and the norms of w' and of what the
 * codes leave of it.  A query has the unit s_x = max|x'| / 63, a = rint(x' / s_x), a2 = rint(126 (x' / s_x - a)) and
 * a3 = rint(126 (126 (x' / s_x - a) - a2)).  All norms are computed in double and rounded up: by 2^-20, which also
 * covers the roundings of the bound in single precision, and by 2^-50 of the norm of the whole, which covers the
 * rounding of each difference.
 * A row with NaN, infinity or an element beyond float has codes 0 and infinite norms: it is always scored exactly.
 * Rows are distinct, and the bytes of their codes too, so that no result depends on how threads share them.
 */
#include "../isa/dispatch.h"
#include "int8.h"

#define NORM_ROUNDING (1 + 0x1p-20)
#define DIFFERENCE_ROUNDING 0x1p-50
#define MIN_FACTOR 0x1p-100 /* of a query, in float: below it the roundings of the bound might underflow */

int csm_int8_has_vnni(const csm_table *table) {
    static atomic_int vnni; /* 0: not yet known.  Cached, because CPUID takes longer than a group. */
    int answer = atomic_load_explicit(&vnni, memory_order_relaxed);
    if (!answer) {
        answer = csm_cpu_features() & CSM_CPU_VNNI ? 2 : 1;
        atomic_store_explicit(&vnni, answer, memory_order_relaxed);
    }
    return answer == 2 && table->int8.dots_vnni;
}

void csm_int8_dots(const csm_table *table, const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors,
                   const int32_t *offset, int32_t *out) {
    if (csm_int8_has_vnni(table)) table->int8.dots_vnni(codes, steps, x, vectors, offset, out);
    else table->int8.dots(codes, steps, x, vectors, offset, out);
}

int csm_run_int8_dots(const csm_table *table, int which, const uint8_t *codes, size_t steps, const int8_t *x,
                      size_t vectors, const int32_t *offset, int32_t *out) {
    if (which && !(table->int8.dots_vnni && csm_cpu_features() & CSM_CPU_VNNI)) return -1;
    (which ? table->int8.dots_vnni : table->int8.dots)(codes, steps, x, vectors, offset, out);
    return 0;
}

void csm_run_int8_narrow_dots(const csm_table *table, const uint8_t *codes, size_t steps, const int8_t *x,
                              size_t vectors, const int32_t *offset, uint8_t *scratch, int32_t *out) {
    table->int8.narrow(codes, steps, scratch);
    table->int8.narrow_dots(scratch, steps, x, vectors, offset, out);
}

const double *csm_int8_row(const csm_table *table, const csm_int8_layer *l, size_t row, char *to) {
    csm_call sizes;
    csm_set_dtype(&sizes, l->dtype, table);
    const size_t part = csm_rounded(l->dims * sizeof(double));
    const char *from = (const char *)l->w + (ptrdiff_t)row * l->w_row;
    const int is_plain =
        (l->w_axis == (ptrdiff_t)sizes.itemsize || l->dims == 1) && (uintptr_t)from % sizes.itemsize == 0;
    if (!is_plain) {
        csm_gather(to + 2 * part, 0, (csm_strided){(char *)from, 0, l->w_axis}, 1, l->dims, sizes.itemsize, NULL, NULL);
        from = to + 2 * part;
    }
    if (l->dtype == CSM_DTYPE_f64) return (const double *)from;
    if (l->dtype != CSM_DTYPE_f32) {
        table->widen[l->dtype](from, to + part, l->dims);
        from = to + part;
    }
    double *wide = (double *)to;
    for (size_t d = 0; d < l->dims; d++) wide[d] = (double)((const float *)from)[d];
    return wide;
}

/* The codes of the first four dimensions of a class; those of the next four are 64 bytes behind. */
static uint8_t *codes_of(uint8_t *codes, const csm_int8_layer *l, size_t id) {
    const size_t group = id / CSM_INT8_GROUP, lane = id % CSM_INT8_GROUP;
    return codes + group * csm_int8_steps(l) * 4 * CSM_INT8_GROUP + 4 * lane;
}

/* One row of weights; factor: 2^-exponent of each dimension; w: room for w'. */
static void code_row(const csm_int8_layer *l, size_t id, const double *row, const double *factor, double *w) {
    double max = 0, square = 0, rest = 0, second_rest = 0;
    for (size_t d = 0; d < l->dims; d++) {
        w[d] = row[d] * factor[d];
        const double size = fabs(w[d]);
        if (size > max) max = size;
        square = w[d] * w[d] + square; /* infinite or NaN if an element is */
    }
    const int is_finite = square < INFINITY;
    const float scale = csm_int8_up(max / 127), norm = csm_int8_up(sqrt(square) * NORM_ROUNDING);
    const int is_coded = is_finite && scale < INFINITY && norm < INFINITY && (square > 0x1p-900 || max == 0);
    const double inverse = is_coded && max > 0 ? 1 / (double)scale : 0;
    uint8_t *codes = codes_of(l->codes, l, id), *second = l->second ? codes_of(l->second, l, id) : NULL;
    for (size_t d = 0; d < csm_int8_steps(l) * 4; d++) {
        const double ratio = is_coded && d < l->dims ? w[d] * inverse : 0, q = csm_int8_nearest(ratio);
        const size_t at = d / 4 * 4 * CSM_INT8_GROUP + d % 4;
        codes[at] = (uint8_t)((int)q + 128);
        if (d >= l->dims) {
            if (second) second[at] = 128;
            continue;
        }
        const double left = w[d] - (double)scale * q;
        rest = left * left + rest;
        if (!second) continue;
        const double q2 = csm_int8_nearest(CSM_INT8_WEIGHT_SECOND * (ratio - q));
        const double second_left = w[d] - (double)scale * (q + q2 / CSM_INT8_WEIGHT_SECOND);
        second[at] = (uint8_t)((int)q2 + 128);
        second_rest = second_left * second_left + second_rest;
    }
    const double rounding = DIFFERENCE_ROUNDING * (double)norm;
    l->scale[id] = is_coded ? scale : 0;
    l->norm[id] = is_coded ? norm : INFINITY;
    l->residual[id] = is_coded ? csm_int8_up(sqrt(rest) * NORM_ROUNDING + rounding) : INFINITY;
    if (l->second)
        l->second_residual[id] = is_coded ? csm_int8_up(sqrt(second_rest) * NORM_ROUNDING + rounding) : INFINITY;
}

typedef struct quantise_call {
    const csm_table *table;
    const csm_int8_layer *layer;
    const int64_t *ids;
    csm_scratch scratch;
    csm_interrupt interrupt;
} quantise_call;

static csm_status quantise_body(void *context, size_t begin, size_t end, int thread) {
    quantise_call *call = context;
    const csm_int8_layer *l = call->layer;
    const size_t copied = csm_rounded(l->dims * sizeof(double));
    char *memory = csm_scratch_get(&call->scratch, thread, 0, csm_int8_row_size(l) + 2 * copied);
    if (!memory) return CSM_NO_MEMORY;
    double *factor = (double *)(memory + copied);
    for (size_t d = 0; d < l->dims; d++) factor[d] = ldexp(1, -l->exponent[d]);
    for (size_t i = begin; i < end; i++) {
        const double *row = csm_int8_row(call->table, l, i, memory + 2 * copied);
        code_row(l, call->ids ? (size_t)call->ids[i] : i, row, factor, (double *)memory);
        if (csm_stops(&call->interrupt, thread, l->dims)) return CSM_OK; /* csm_parallel reports it */
    }
    return CSM_OK;
}

csm_status csm_run_int8_quantise(const csm_table *table, const csm_int8_layer *l, size_t count, const int64_t *ids) {
    csm_fp_environment saved = csm_fp_enter();
    quantise_call call = {.table = table, .layer = l, .ids = ids};
    csm_buffer single[1];
    call.interrupt = (csm_interrupt){.check = l->interrupt, .caller = saved};
    const int threads = csm_threads_for(4.0 * (double)count * (double)l->dims, count, l->threads < 1 ? 1 : l->threads);
    csm_status status = csm_scratch_begin(&call.scratch, threads, 1, single);
    if (status == CSM_OK) {
        status = csm_parallel(count, CSM_PIECE_ELEMENTS / 4 / (l->dims + 16) + 1, threads, quantise_body, &call,
                              &call.interrupt);
        csm_scratch_end(&call.scratch);
    }
    csm_fp_leave(call.interrupt.caller); /* the callback may have changed it */
    return status;
}

/* Codes of x' / unit in `limbs` limbs; returns the norm of the error. */
static double write_codes(const csm_int8_layer *l, const double *scaled, double unit, int limbs, size_t vector,
                          int8_t *codes, int32_t *offset, double *size) {
    const size_t steps = csm_int8_steps(l);
    const double inverse = unit > 0 ? 1 / unit : 0;
    double square = 0, error = 0;
    for (int limb = 0; limb < limbs; limb++) offset[vector + (size_t)limb] = 0;
    for (size_t d = 0; d < steps * 4; d++) {
        double ratio = d < l->dims ? scaled[d] * inverse : 0, coded = 0, weight = 1;
        for (int limb = 0; limb < limbs; limb++) {
            const size_t v = vector + (size_t)limb;
            const double a = csm_int8_nearest(ratio);
            codes[(v / CSM_INT8_VECTORS * steps + d / 4) * 4 * CSM_INT8_VECTORS + v % CSM_INT8_VECTORS * 4 + d % 4] =
                (int8_t)a;
            offset[v] -= 128 * (int32_t)a;
            coded += a * weight;
            weight /= CSM_INT8_SECOND;
            ratio = CSM_INT8_SECOND * (ratio - a);
        }
        if (d >= l->dims) continue;
        const double part = unit * coded, rest = scaled[d] - part;
        square = part * part + square;
        error = rest * rest + error;
    }
    *size = sqrt(square);
    return sqrt(error);
}

csm_int8_codes csm_int8_code(const csm_int8_layer *l, const double *x, int limbs, size_t vector, int8_t *codes,
                             int32_t *offset, double *scaled) {
    csm_int8_codes c = {.limbs = limbs ? limbs : 1};
    double max = 0, square = 0, size;
    for (size_t d = 0; d < l->dims; d++) {
        scaled[d] = ldexp(x[d], l->exponent[d]);
        square = scaled[d] * scaled[d] + square;
        if (!(fabs(scaled[d]) <= max)) max = fabs(scaled[d]); /* NaN stays */
    }
    c.unit = max / CSM_INT8_LIMIT;
    const float least = (float)(c.unit / (CSM_INT8_SECOND * CSM_INT8_SECOND)), most = (float)c.unit;
    c.is_exact = !(square < INFINITY) || !(most < INFINITY) || (max > 0 && least < MIN_FACTOR);
    if (c.is_exact) return c;
    c.whole = sqrt(square) * NORM_ROUNDING;
    double error = write_codes(l, scaled, c.unit, c.limbs, vector, codes, offset, &size);
    if (limbs == 0 && error * l->ratio > 2 * size) {
        c.limbs = 2;
        error = write_codes(l, scaled, c.unit, c.limbs, vector, codes, offset, &size);
    }
    c.size = size * NORM_ROUNDING;
    c.error = (error + (DIFFERENCE_ROUNDING + (double)l->dims * 0x1p-52) * c.whole) * NORM_ROUNDING;
    return c;
}
