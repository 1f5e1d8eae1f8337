/* The driver of top-k within lists of an int8 output layer: searches the lists whose means promise most, and says
 * whether another one could hold one of the k best.
 *
 *   bound   z + E + |x| radius + largest >= the score of each class of the list
 *   key     z + sqrt(|x|^2 spread + z^2 along) + typical, by which the lists are searched, highest first
 *
 * z and E are the score of the list's mean and the bound of its error, from three limbs of x (int8_scores.c).  |x| is
 * rounded up by 2^-40, and so is the sum; radius has been, and contains the rounding of exact scores.  Within a list
 * the bounds of the codes decide, as in int8.c: the threshold is the k-th largest lower bound so far, kept in a heap,
 * codes whose upper bound is below it are dropped, and what is left in the end is scored exactly from w.  Order: the
 * exact score falling, NaN greatest, then the class rising.
 * A list is left out with certainty if its bound is below the k-th best exact score, or below the threshold.  Scores of
 * codes with finite numbers are finite (|w'|, |x'| < 2^128), so that a k-th best score of NaN, which only lists with
 * the bound infinity hold, is above all others.
 * Lists need not begin with a group of 16 codes: lanes outside of a list are left out.
 * A query is one thread's: the result is the same for every number of threads, batch and instruction set.
 */
#include "int8.h"

#include "../core/selection.h"

#include <stdlib.h>

enum { FIRST_KEPT = 256 /* room for codes, before it doubles */ };

/* Codes of one query that may be among the k best. */
typedef struct kept {
    float *upper; /* one allocation */
    int32_t *code;
    size_t count, capacity;
    float *heap; /* the k largest lower bounds, the least of them first */
    size_t heaped;
} kept;

typedef struct lists_call {
    const csm_table *table;
    const csm_int8_layer *layer;
    const csm_int8_search *search;
    const csm_int8_lists *lists;
    csm_scratch scratch;
    csm_interrupt interrupt;
} lists_call;

/* Scratch of a thread, and what is known of its query. */
typedef struct state {
    lists_call *call;
    int thread;
    const double *x;
    size_t number; /* of the query */
    int8_t *codes, *center_codes;
    int32_t offset[CSM_INT8_VECTORS], center_offset[CSM_INT8_VECTORS];
    double *scaled, *key, *bound;
    unsigned char *is_searched;
    csm_int8_scored *rest; /* lists that have not been searched */
    csm_int8_query query;
    kept kept;
    int64_t scanned, probed;
} state;

static float threshold_of(const state *s) { return s->kept.heaped == s->call->search->k ? s->kept.heap[0] : -INFINITY; }

/* Adds a lower bound to the heap of the k largest ones. */
static void add_lower(state *s, float lower) {
    kept *list = &s->kept;
    float *heap = list->heap;
    const size_t k = s->call->search->k;
    size_t at;
    if (list->heaped < k) {
        for (at = list->heaped++; at > 0 && heap[(at - 1) / 2] > lower; at = (at - 1) / 2)
            heap[at] = heap[(at - 1) / 2];
        heap[at] = lower;
        return;
    }
    if (lower <= heap[0]) return;
    for (at = 0; 2 * at + 1 < k;) {
        size_t child = 2 * at + 1;
        if (child + 1 < k && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= lower) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = lower;
}

static void drop_below(state *s) {
    kept *list = &s->kept;
    const float threshold = threshold_of(s);
    size_t count = 0;
    for (size_t i = 0; i < list->count; i++) {
        if (list->upper[i] < threshold) continue;
        list->upper[count] = list->upper[i];
        list->code[count++] = list->code[i];
    }
    list->count = count;
}

/* Makes room in a full list: by the threshold, or else by more memory. */
static csm_status make_room(state *s) {
    kept *list = &s->kept;
    drop_below(s);
    if (list->count <= list->capacity / 2 && list->capacity) return CSM_OK;
    const size_t capacity = list->capacity ? 2 * list->capacity : FIRST_KEPT;
    float *memory = csm_allocate(capacity * (sizeof(float) + sizeof(int32_t)));
    if (!memory) return CSM_NO_MEMORY;
    if (list->count) {
        memcpy(memory, list->upper, list->count * sizeof(float));
        memcpy(memory + capacity, list->code, list->count * sizeof(int32_t));
    }
    csm_release(list->upper);
    list->upper = memory;
    list->code = (int32_t *)(memory + capacity);
    list->capacity = capacity;
    return CSM_OK;
}

/* Keeps the codes of a group whose bits are set. */
static csm_status keep(state *s, size_t group, unsigned bits, const float *lower, const float *upper) {
    const csm_int8_layer *l = s->call->layer;
    for (size_t i = 0; bits; i++, bits >>= 1) {
        const size_t code = group * CSM_INT8_GROUP + i;
        if (!(bits & 1) || !csm_int8_takes_part(s->call->search, s->number, csm_int8_row_of(l, code))) continue;
        if (s->kept.count == s->kept.capacity) {
            csm_status status = make_room(s);
            if (status != CSM_OK) return status;
        }
        const int is_bound = lower[i] == lower[i] && l->bias[code] > CSM_INT8_OFF_BIAS;
        s->kept.upper[s->kept.count] = upper[i];
        s->kept.code[s->kept.count++] = (int32_t)code;
        add_lower(s, is_bound ? lower[i] : -INFINITY);
    }
    return CSM_OK;
}

static csm_status search_list(state *s, size_t list) {
    lists_call *call = s->call;
    const csm_int8_layer *l = call->layer;
    const size_t begin = (size_t)call->lists->begin[list], end = (size_t)call->lists->begin[list + 1];
    const size_t steps = csm_int8_steps(l), bytes = steps * 4 * CSM_INT8_GROUP;
    int32_t dots[CSM_INT8_GROUP * CSM_INT8_VECTORS];
    float lower[CSM_INT8_GROUP], upper[CSM_INT8_GROUP];
    uint16_t reached;
    s->is_searched[list] = 1;
    s->scanned += (int64_t)(end - begin);
    s->probed++;
    for (size_t g = begin / CSM_INT8_GROUP; g * CSM_INT8_GROUP < end; g++) {
        const size_t first = g * CSM_INT8_GROUP;
        unsigned present = end - first < CSM_INT8_GROUP ? (1u << (end - first)) - 1 : 0xffff;
        if (first < begin) present &= 0xffffu << (begin - first);
        const csm_int8_group group = {l->scale + first, l->residual + first, l->norm + first, l->bias + first};
        csm_int8_dots(call->table, l->codes + g * bytes, steps, s->codes, (size_t)s->query.limbs, s->offset, dots);
        s->query.below = nextafterf(threshold_of(s), -INFINITY);
        call->table->int8.reach(&s->query, 1, &group, dots, &reached);
        present &= reached;
        if (present) {
            call->table->int8.bounds(&s->query, &group, dots, lower, upper);
            csm_status status = keep(s, g, present, lower, upper);
            if (status != CSM_OK) return status;
        }
        if (csm_stops(&call->interrupt, s->thread, 2 * l->dims)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

/* The keys and bounds of all lists. */
static void order_lists(state *s, const csm_int8_codes *coded) {
    const csm_int8_lists *lists = s->call->lists;
    const csm_int8_layer *c = lists->centers;
    const size_t steps = csm_int8_steps(c), bytes = steps * 4 * CSM_INT8_GROUP;
    int32_t dots[CSM_INT8_GROUP * CSM_INT8_VECTORS];
    double square = 0;
    for (size_t d = 0; d < c->dims; d++) square = s->x[d] * s->x[d] + square;
    const double norm = sqrt(square) * (1 + 0x1p-30) + 0x1p-500; /* where squares underflow, |x| is below 2^-500 */
    for (size_t g = 0; g < csm_int8_groups(c); g++) {
        csm_int8_dots(s->call->table, c->codes + g * bytes, steps, s->center_codes, CSM_INT8_LIMBS, s->center_offset,
                      dots);
        csm_int8_set_bounds(c, coded, g, dots, dots, s->key, s->bound);
    }
    for (size_t i = 0; i < lists->lists; i++) {
        s->is_searched[i] = 0;
        if (i >= c->classes) {
            s->bound[i] = lists->largest[i];
            continue;
        }
        const double z = s->key[i], largest = lists->largest[i];
        s->bound[i] = (z + largest) + (s->bound[i] + norm * lists->radius[i]) * (1 + 0x1p-40) +
                      0x1p-48 * (fabs(z) + fabs(largest)) + 0x1p-118;
        const double spread = norm * norm * lists->spread[i] + z * z * lists->along[i];
        s->key[i] = z + sqrt(spread > 0 ? spread : 0) + lists->typical[i];
    }
}

/* Lists that have not been searched and may hold one of the k best, in the order of their bounds. */
static size_t find_rest(state *s, size_t *codes) {
    const csm_int8_lists *lists = s->call->lists;
    const double threshold = (double)threshold_of(s);
    size_t count = 0;
    *codes = 0;
    for (size_t i = 0; i < lists->lists; i++) {
        if (s->is_searched[i] || s->bound[i] < threshold) continue;
        s->rest[count++] = (csm_int8_scored){s->bound[i], (int64_t)i};
        *codes += (size_t)(lists->begin[i + 1] - lists->begin[i]);
    }
    if (count > 1) qsort(s->rest, count, sizeof *s->rest, csm_int8_compare);
    return count;
}

/* Searches lists beyond the probes: until k classes are found or, if exact, no other list can hold one of the k best.
 * Returns in *is_given_back whether that would be too many codes. */
static csm_status search_rest(state *s, int *is_given_back) {
    const csm_int8_lists *lists = s->call->lists;
    *is_given_back = 0;
    if (!lists->is_exact && s->kept.count >= s->call->search->k) return CSM_OK;
    size_t codes;
    const size_t count = find_rest(s, &codes);
    if (lists->is_exact && codes > lists->limit) {
        *is_given_back = 1;
        return CSM_OK;
    }
    for (size_t i = 0; i < count; i++) {
        if (lists->is_exact ? s->rest[i].score < (double)threshold_of(s) : s->kept.count >= s->call->search->k) break;
        csm_status status = search_list(s, (size_t)s->rest[i].id);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

/* Exact scores of what is left, the k best of them, and whether they are those of all lists. */
static csm_status rescore(state *s) {
    lists_call *call = s->call;
    const csm_int8_layer *l = call->layer;
    const csm_int8_search *search = call->search;
    const size_t row_size = csm_int8_row_size(l), at = s->number * search->k;
    drop_below(s);
    const size_t kept = s->kept.count, count = kept < search->k ? kept : search->k;
    char *memory = csm_scratch_get(&call->scratch, s->thread, 1, row_size + kept * sizeof(csm_int8_scored));
    if (!memory) return CSM_NO_MEMORY;
    csm_int8_scored *best = (csm_int8_scored *)(memory + row_size);
    for (size_t i = 0; i < kept; i++) {
        const size_t code = (size_t)s->kept.code[i], row = csm_int8_row_of(l, code);
        const double *w = csm_int8_row(call->table, l, row, memory);
        best[i] = (csm_int8_scored){csm_int8_score(call->table, l, code, w, s->x), (int64_t)row};
        if (csm_stops(&call->interrupt, s->thread, l->dims)) return CSM_INTERRUPTED;
    }
    if (kept > 1) qsort(best, kept, sizeof *best, csm_int8_compare);
    for (size_t i = 0; i < count; i++) {
        search->values[at + i] = best[i].score;
        search->indices[at + i] = best[i].id;
    }
    const double last = count == search->k && count ? best[count - 1].score : -INFINITY;
    int is_certified = 1;
    for (size_t i = 0; i < call->lists->lists; i++)
        if (!s->is_searched[i] && s->bound[i] >= last && call->lists->begin[i] < call->lists->begin[i + 1])
            is_certified = 0;
    search->found[s->number] = (int64_t)count;
    search->rescored[s->number] = (int64_t)kept;
    call->lists->certified[s->number] = (unsigned char)is_certified;
    call->lists->scanned[s->number] = s->scanned;
    call->lists->probed[s->number] = s->probed;
    return CSM_OK;
}

static csm_status search_query(state *s, char *selection) {
    lists_call *call = s->call;
    const csm_int8_layer *l = call->layer, *centers = call->lists->centers;
    const csm_int8_search *search = call->search;
    search->found[s->number] = 0;
    search->rescored[s->number] = -1;
    const csm_int8_codes c = csm_int8_code(l, s->x, 2, 0, s->codes, s->offset, s->scaled);
    if (c.is_exact) return CSM_OK;
    s->query = (csm_int8_query){
        .factor = (float)(c.unit / CSM_INT8_SECOND),
        .residual = csm_int8_up(c.size),
        .norm = csm_int8_up(c.error),
        .limbs = c.limbs,
        .is_wide = (double)l->dims * (CSM_INT8_SECOND + 1) * 127 * CSM_INT8_LIMIT >= 0x1p31,
    };
    const csm_int8_codes of_centers =
        csm_int8_code(centers, s->x, CSM_INT8_LIMBS, 0, s->center_codes, s->center_offset, s->scaled);
    if (of_centers.is_exact) return CSM_OK;
    order_lists(s, &of_centers);
    const size_t n = centers->classes, probes = call->lists->probes < n ? call->lists->probes : n;
    csm_status status = CSM_OK;
    for (size_t i = n; i < call->lists->lists && status == CSM_OK; i++)
        if (s->bound[i] > 0) status = search_list(s, i);
    if (status != CSM_OK) return status;
    csm_select chosen = csm_select_at(selection, n, probes, sizeof(double), csm_poll_of(&call->interrupt, s->thread));
    call->table->select[CSM_DTYPE_f64](s->key, n, probes, 0, 1, &chosen);
    if (chosen.is_stopped) return CSM_INTERRUPTED;
    for (size_t i = 0; i < probes && status == CSM_OK; i++) status = search_list(s, (size_t)chosen.index[i]);
    int is_given_back = 0;
    if (status == CSM_OK) status = search_rest(s, &is_given_back);
    if (is_given_back) search->rescored[s->number] = -2;
    else if (status == CSM_OK) status = rescore(s);
    return status;
}

static csm_status lists_body(void *context, size_t begin, size_t end, int thread) {
    lists_call *call = context;
    const csm_int8_layer *l = call->layer, *centers = call->lists->centers;
    const size_t lists = call->lists->lists, n = centers->classes, k = call->search->k;
    const size_t probes = call->lists->probes < n ? call->lists->probes : n;
    const size_t codes = csm_rounded(csm_int8_steps(l) * 4 * CSM_INT8_VECTORS);
    const size_t doubles = csm_rounded(lists * sizeof(double)), scaled = csm_rounded(l->dims * sizeof(double));
    const size_t rest = csm_rounded(lists * sizeof(csm_int8_scored)), flags = csm_rounded(lists);
    const size_t heap = csm_rounded(k * sizeof(float));
    const size_t size = 2 * codes + 2 * doubles + scaled + rest + flags + heap;
    char *memory = csm_scratch_get(&call->scratch, thread, 0, size + csm_select_size(n, probes, sizeof(double)));
    if (!memory) return CSM_NO_MEMORY;
    memset(memory, 0, 2 * codes); /* lanes of vectors that do not exist */
    csm_status status = CSM_OK;
    for (size_t q = begin; q < end && status == CSM_OK; q++) {
        state s = {.call = call, .thread = thread, .x = call->search->x + q * l->dims, .number = q};
        char *at = memory;
        s.codes = (int8_t *)at, at += codes;
        s.center_codes = (int8_t *)at, at += codes;
        s.key = (double *)at, at += doubles;
        s.bound = (double *)at, at += doubles;
        s.scaled = (double *)at, at += scaled;
        s.rest = (csm_int8_scored *)at, at += rest;
        s.is_searched = (unsigned char *)at, at += flags;
        s.kept.heap = (float *)at, at += heap;
        status = search_query(&s, at);
        csm_release(s.kept.upper);
    }
    return status == CSM_INTERRUPTED ? CSM_OK : status; /* csm_parallel reports it */
}

csm_status csm_run_int8_lists(const csm_table *table, const csm_int8_layer *l, const csm_int8_search *search,
                              const csm_int8_lists *lists) {
    csm_fp_environment saved = csm_fp_enter();
    lists_call call = {.table = table, .layer = l, .search = search, .lists = lists};
    csm_buffer single[2];
    call.interrupt = (csm_interrupt){.check = l->interrupt, .caller = saved};
    const double codes = (double)l->classes / (double)lists->lists * (double)lists->probes;
    const double work = ((double)lists->lists + codes) * (double)(l->dims + 16) * (double)search->queries / 8;
    const int threads = csm_threads_for(work, search->queries, l->threads < 1 ? 1 : l->threads);
    csm_status status = csm_scratch_begin(&call.scratch, threads, 2, single);
    if (status == CSM_OK) {
        status = csm_parallel(search->queries, 1, threads, lists_body, &call, &call.interrupt);
        csm_scratch_end(&call.scratch);
    }
    csm_fp_leave(call.interrupt.caller); /* the callback may have changed it */
    return status;
}
