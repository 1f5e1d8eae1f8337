/* Exact scores of an int8 output layer, and scores of all classes with bounds of their errors, for one query.
 *
 *   z = J (s unit / (254 126^2)) + bias,  J = 254 (126^2 q a + 126 q a2 + q a3) + 126^2 q2 a + 126 q2 a2 + q2 a3
 *   E = r n + |w'| e + 2^-48 (|z| + |bias|) + 2^-118
 *
 * J is an exact integer below 2^62 for 2^18 dimensions; z and E are computed in double, whose roundings the third term
 * of E covers.  A bias of -infinity gives z = -infinity and E = 0: the class has probability 0.  Where the score is not
 * known, because the row has an infinite residual or z is not finite, z = 0 and E is infinite, whatever the bias: NaN
 * or infinity in the row may make the score NaN.
 */
#include "int8.h"

int csm_int8_takes_part(const csm_int8_search *s, size_t query, size_t id) {
    if (s->where && !s->where[(ptrdiff_t)query * s->where_row + (ptrdiff_t)id]) return 0;
    if (!s->indptr) return 1;
    int64_t low = s->indptr[query], high = s->indptr[query + 1];
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (s->excluded[middle] == (int64_t)id) return 0;
        if (s->excluded[middle] < (int64_t)id) low = middle + 1;
        else high = middle;
    }
    return 1;
}

int csm_int8_compare(const void *left, const void *right) {
    const csm_int8_scored *a = left, *b = right;
    const int a_nan = a->score != a->score, b_nan = b->score != b->score;
    if (a_nan != b_nan) return b_nan - a_nan;
    if (!a_nan && a->score != b->score) return a->score < b->score ? 1 : -1;
    return a->id < b->id ? -1 : a->id > b->id;
}

typedef struct scores_call {
    const csm_table *table;
    const csm_int8_layer *layer;
    const double *x;
    const int64_t *ids;
    double *scores, *bounds;
    const int8_t *codes;
    const int32_t *offset;
    csm_int8_codes coded;
    csm_scratch scratch;
    csm_interrupt interrupt;
} scores_call;

static csm_status exact_body(void *context, size_t begin, size_t end, int thread) {
    scores_call *call = context;
    const csm_int8_layer *l = call->layer;
    char *memory = csm_scratch_get(&call->scratch, thread, 0, csm_int8_row_size(l));
    if (!memory) return CSM_NO_MEMORY;
    for (size_t i = begin; i < end; i++) {
        const size_t id = call->ids ? (size_t)call->ids[i] : i;
        call->scores[i] = csm_int8_score(call->table, l, id, csm_int8_row(call->table, l, id, memory), call->x);
        if (csm_stops(&call->interrupt, thread, l->dims)) return CSM_OK; /* csm_parallel reports it */
    }
    return CSM_OK;
}

static csm_status run(scores_call *call, csm_body body, size_t units, double elements, size_t piece) {
    const csm_int8_layer *l = call->layer;
    csm_fp_environment saved = csm_fp_enter();
    csm_buffer single[1];
    call->interrupt = (csm_interrupt){.check = l->interrupt, .caller = saved};
    const int threads = csm_threads_for(elements, units, l->threads < 1 ? 1 : l->threads);
    csm_status status = csm_scratch_begin(&call->scratch, threads, 1, single);
    if (status == CSM_OK) {
        status = csm_parallel(units, piece, threads, body, call, &call->interrupt);
        csm_scratch_end(&call->scratch);
    }
    csm_fp_leave(call->interrupt.caller); /* the callback may have changed it */
    return status;
}

csm_status csm_run_int8_scores(const csm_table *table, const csm_int8_layer *l, const double *x, size_t count,
                               const int64_t *ids, double *scores) {
    scores_call call = {.table = table, .layer = l, .x = x, .ids = ids, .scores = scores};
    return run(&call, exact_body, count, (double)count * (double)l->dims, CSM_PIECE_ELEMENTS / 4 / (l->dims + 16) + 1);
}

void csm_int8_set_bounds(const csm_int8_layer *l, const csm_int8_codes *c, size_t group, const int32_t *dots,
                         const int32_t *second, double *scores, double *bounds) {
    const int64_t square = CSM_INT8_SECOND * CSM_INT8_SECOND;
    const double factor = c->unit / (double)(CSM_INT8_WEIGHT_SECOND * square);
    for (size_t i = 0; i < CSM_INT8_GROUP; i++) {
        const size_t id = group * CSM_INT8_GROUP + i;
        if (id >= l->classes) break;
        const int32_t *a = dots + i, *b = second + i;
        int64_t j = CSM_INT8_WEIGHT_SECOND *
                    (square * a[0] + CSM_INT8_SECOND * (int64_t)a[CSM_INT8_GROUP] + a[2 * CSM_INT8_GROUP]);
        if (l->second) j += square * b[0] + CSM_INT8_SECOND * (int64_t)b[CSM_INT8_GROUP] + b[2 * CSM_INT8_GROUP];
        const double bias = l->exact_bias ? l->exact_bias[id] : (double)l->bias[id];
        const double z = (double)j * ((double)l->scale[id] * factor) + bias;
        const double residual = (double)(l->second ? l->second_residual : l->residual)[id];
        const double bound = (residual * c->size + (double)l->norm[id] * c->error) * (1 + 0x1p-40) +
                             0x1p-48 * (fabs(z) + fabs(bias)) + 0x1p-118;
        const int is_coded = residual < INFINITY, is_off = is_coded && bias == -INFINITY;
        const int is_known = is_coded && bound == bound && fabs(z) < INFINITY;
        scores[id] = is_known || is_off ? z : 0;
        bounds[id] = is_off ? 0 : is_known ? bound : INFINITY;
    }
}

static csm_status bounds_body(void *context, size_t begin, size_t end, int thread) {
    scores_call *call = context;
    const csm_int8_layer *l = call->layer;
    const size_t steps = csm_int8_steps(l), bytes = steps * 4 * CSM_INT8_GROUP;
    int32_t dots[CSM_INT8_GROUP * CSM_INT8_VECTORS], second[CSM_INT8_GROUP * CSM_INT8_VECTORS];
    for (size_t g = begin; g < end; g++) {
        csm_int8_dots(call->table, l->codes + g * bytes, steps, call->codes, CSM_INT8_LIMBS, call->offset, dots);
        if (l->second)
            csm_int8_dots(call->table, l->second + g * bytes, steps, call->codes, CSM_INT8_LIMBS, call->offset, second);
        csm_int8_set_bounds(l, &call->coded, g, dots, second, call->scores, call->bounds);
        if (csm_stops(&call->interrupt, thread, l->dims)) return CSM_OK; /* csm_parallel reports it */
    }
    return CSM_OK;
}

csm_status csm_run_int8_bounds(const csm_table *table, const csm_int8_layer *l, const double *x, double *scores,
                               double *bounds, double *size) {
    const size_t coded = csm_rounded(csm_int8_steps(l) * 4 * CSM_INT8_VECTORS);
    int32_t offset[CSM_INT8_VECTORS] = {0};
    char *memory = csm_allocate(coded + csm_rounded(l->dims * sizeof(double)));
    if (!memory) return CSM_NO_MEMORY;
    memset(memory, 0, coded);
    scores_call call = {.table = table, .layer = l, .scores = scores, .bounds = bounds};
    csm_fp_environment saved = csm_fp_enter();
    call.codes = (const int8_t *)memory;
    call.offset = offset;
    call.coded = csm_int8_code(l, x, CSM_INT8_LIMBS, 0, (int8_t *)memory, offset, (double *)(memory + coded));
    csm_fp_leave(saved);
    *size = call.coded.whole;
    csm_status status = CSM_OK;
    if (call.coded.is_exact) {
        *size = INFINITY;
        for (size_t i = 0; i < l->classes; i++) {
            scores[i] = 0;
            bounds[i] = INFINITY;
        }
    } else {
        const size_t groups = csm_int8_groups(l);
        status = run(&call, bounds_body, groups, (double)l->classes * (double)(l->dims + 16),
                     CSM_PIECE_ELEMENTS / 16 / (l->dims + 16) + 1);
    }
    csm_release(memory);
    return status;
}
