/* Drawing: top-k and top-p of few classes, which the kernels select in falling order, ties by lowest index; those that
 * are kept are put back into the order of the indices.
 *
 * The sum that top-p compares runs in falling order, in double.  64 classes are selected for it.  If their mass does
 * not suffice, or top-k keeps many, passes over the row find the last class that is kept (sample_filter.c).  Their sum
 * runs in another order: where it is so close to the limit that the order might matter, classes are selected after all,
 * 8 times as many in each round.
 */
#include "sample.h"

#include "../core/selection.h"

enum { GROWTH = 8 }; /* factor by which the number of selected classes grows if they do not suffice */

/* Loops over masses, for each compute type REAL. */
#define LOOPS(REAL)                                                                                       \
    /* Adds up masses in order. */                                                                        \
    static double add_##REAL(const REAL *mass, size_t k, double sum) {                                    \
        for (size_t i = 0; i < k; i++) sum += (double)mass[i];                                            \
        return sum;                                                                                       \
    }                                                                                                     \
    /* The same while the sum is below the limit; *count: their number. */                                \
    static double add_until_##REAL(const REAL *mass, size_t k, double sum, double limit, size_t *count) { \
        size_t i = 0;                                                                                     \
        while (i < k && sum < limit) sum += (double)mass[i++];                                            \
        *count = i;                                                                                       \
        return sum;                                                                                       \
    }
LOOPS(float)
LOOPS(double)
#undef LOOPS

/* Finds the k largest logits: their classes, and themselves in `values`. */
static csm_status select_best(csm_sample_row *row, const char *whole, size_t k, char *values) {
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, size = c->itemsize;
    csm_poll poll = csm_poll_of(&call->base.interrupt, row->thread);
    if (call->is_split) {
        int64_t *classes =
            (int64_t *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_SELECT, k * sizeof *classes);
        if (!classes) return CSM_NO_MEMORY;
        const csm_shape shape = {.n = n};
        const csm_view x = {(void *)(uintptr_t)whole, (ptrdiff_t)size, {0}}, to = {values, (ptrdiff_t)size, {0}};
        const csm_view indices = {classes, sizeof *classes, {0}};
        csm_topk_options o = csm_default_topk_options();
        o.threads = c->threads;
        o.interrupt = csm_stops_inner;
        o.interrupt_context = &poll;
        row->classes = classes;
        return csm_run_topk(c->dtype, c->table, &shape, &x, k, &to, &indices, &o);
    }
    char *memory = csm_sample_buffer(call, row->thread, CSM_SAMPLE_SELECT, csm_select_size(n, k, c->wide_size));
    if (!memory) return CSM_NO_MEMORY;
    csm_select chosen = csm_select_at(memory, n, k, c->wide_size, poll);
    c->table->select[c->dtype](whole, n, k, 0, 1, &chosen);
    if (chosen.is_stopped) return CSM_INTERRUPTED;
    for (size_t i = 0; i < k; i++) memcpy(values + i * size, whole + (size_t)chosen.index[i] * size, size);
    row->classes = chosen.index;
    return CSM_OK;
}

/* Adds up the masses in order. */
static csm_status total_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_row *row = context;
    const size_t first = begin * CSM_BLOCK, last = end * CSM_BLOCK < row->count ? end * CSM_BLOCK : row->count;
    (void)thread;
    row->total = CSM_BY_TYPE(row, add, row->mass + first * row->call->base.wide_size, last - first, row->total);
    return CSM_OK;
}
/* The same until the limit. */
static csm_status nucleus_body(void *context, size_t begin, size_t end, int thread) {
    csm_sample_row *row = context;
    const size_t first = begin * CSM_BLOCK, last = end * CSM_BLOCK < row->count ? end * CSM_BLOCK : row->count;
    size_t added;
    (void)thread;
    row->sum = CSM_BY_TYPE(row, add_until, row->mass + first * row->call->base.wide_size, last - first, row->sum,
                           row->limit, &added);
    row->kept += added;
    return CSM_OK;
}
csm_status csm_sample_nucleus(csm_sample_row *row) {
    row->sum = 0;
    row->kept = 0;
    return csm_sample_in_order(row, nucleus_body);
}
int csm_sample_begins_with_passes(const csm_sample_row *row, double all) {
    return CSM_SAMPLE_FIRST_SELECTED * row->max_mass < row->top_p * all;
}

/* Puts the classes that are kept, and their logits in `values`, into the order of the indices: one bit for each class
 * of the row, set for those that are kept, is read from the first to the last. */
static csm_status order_kept(csm_sample_row *row, const char *whole, char *values) {
    csm_sample_call *call = row->call;
    const size_t words = (call->base.shape.n + 63) / 64, size = call->base.itemsize;
    csm_poll poll = csm_poll_of(&call->base.interrupt, row->thread);
    if (row->count == 1) return CSM_OK;
    uint64_t *bits = (uint64_t *)(void *)csm_sample_buffer(call, row->thread, CSM_SAMPLE_KEPT, words * sizeof *bits);
    if (!bits) return CSM_NO_MEMORY;
    memset(bits, 0, words * sizeof *bits);
    for (size_t i = 0; i < row->count; i++) {
        bits[row->classes[i] / 64] |= (uint64_t)1 << row->classes[i] % 64;
        if (csm_poll_at(&poll, i)) return CSM_INTERRUPTED;
    }
    for (size_t word = 0, i = 0; word < words; word++) {
        for (uint64_t left = bits[word]; left; left &= left - 1) {
            const size_t at = word * 64 + CSM_LOWEST_BIT(left);
            row->classes[i] = (int64_t)at;
            csm_sample_copy_number(values + i++ * size, whole + at * size, size);
        }
        if (csm_poll_at(&poll, word)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

csm_status csm_sample_selected_masses(csm_sample_row *row) {
    csm_status status = csm_sample_blocks(row, csm_sample_sum_body);
    return status == CSM_OK ? csm_sample_blocks(row, csm_sample_scale_body) : status;
}

/* How close, as a part of it, sums of n masses in different orders may be to their limit. */
static double doubtful(size_t n) { return (double)n * 0x1p-51; }

/* Keeps the classes of top-k and top-p by passes over the row, in its set.  weighed: the masses of the row, or NULL;
 * all: their sum.  *is_done: 0 if the kept classes might depend on the order of the sum; the set is then all of the
 * row. */
static csm_status keep_many(csm_sample_row *row, char *weighed, double all, int *is_done) {
    csm_status status = CSM_OK;
    const size_t n = row->count;
    const double min_p = row->min_p;
    double margin = CSM_INF, unused;
    row->classes = NULL;
    row->min_p = 0;
    row->mass = weighed;
    if (row->top_k < n) {
        status = csm_sample_narrow(row, CSM_SAMPLE_COUNT, (double)row->top_k, all, &unused, &margin);
        if (status == CSM_OK && row->top_p < 1) status = csm_sample_total(row, &all);
    }
    if (status == CSM_OK && row->top_p < 1)
        status = csm_sample_narrow(row, CSM_SAMPLE_MASS_OF, row->top_p * all, all, &unused, &margin);
    row->min_p = min_p;
    *is_done = row->top_p == 1 || margin > doubtful(n);
    if (!*is_done) csm_sample_clear_set(&row->set);
    return status;
}

/* Selects k classes, keeps those that top-p needs and brings them into order; *is_done: 0 if they do not suffice. */
static csm_status keep_few(csm_sample_row *row, const char *whole, size_t k, double all, int *is_done) {
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t n = c->shape.n, top_k = row->top_k;
    const double top_p = row->top_p;
    char *values = csm_sample_buffer(call, row->thread, CSM_SAMPLE_VALUES, k * c->itemsize);
    row->mass = csm_sample_buffer(call, row->thread, CSM_SAMPLE_MASS, k * c->wide_size);
    if (!values || !row->mass) return CSM_NO_MEMORY;
    csm_status status = select_best(row, whole, k, values);
    if (status == CSM_OK && top_k < n)
        status = csm_sample_set_max(row, csm_element(c, values, 0)); /* NaN comes first */
    row->whole = values;
    row->count = k;
    if (status == CSM_OK && top_p < 1) status = csm_sample_selected_masses(row);
    if (status != CSM_OK) return status;
    row->total = top_k < n ? 0 : all;
    if (top_k < n && top_p < 1) status = csm_sample_in_order(row, total_body);
    row->limit = top_p * row->total;
    row->kept = k;
    if (status == CSM_OK && top_p < 1) status = csm_sample_nucleus(row);
    if (status != CSM_OK) return status;
    *is_done = row->kept < k || top_k < n || k == n || row->sum >= row->limit;
    if (!*is_done) return CSM_OK;
    row->count = row->kept;
    return order_kept(row, whole, values);
}

csm_status csm_sample_selected(csm_sample_row *row) {
    csm_sample_call *call = row->call;
    const csm_call *c = &call->base;
    const size_t n = row->count, top_k = row->top_k;
    const char *whole = row->whole;
    const int is_many = top_k < n && top_k > CSM_SAMPLE_MANY_SELECTED && top_k > n / CSM_SAMPLE_MANY_PART;
    csm_status status = CSM_OK;
    char *weighed = NULL;
    double all = 0;
    if (top_k == n || is_many) {
        status = csm_sample_weigh(row, &all);
        weighed = row->mass;
    }
    size_t k = top_k < n ? top_k : n < CSM_SAMPLE_FIRST_SELECTED ? n : CSM_SAMPLE_FIRST_SELECTED;
    int is_done = 0;
    /* Where 64 times the largest mass does not suffice, selecting 64 is in vain. */
    const int begins_with_passes =
        is_many || (top_k == n && n > CSM_SAMPLE_FIRST_SELECTED && csm_sample_begins_with_passes(row, all));
    for (int rounds = begins_with_passes; status == CSM_OK && !is_done; rounds++) {
        if (rounds == 1) {
            row->whole = whole;
            row->count = n;
            status = keep_many(row, weighed, all, &is_done);
            if (status != CSM_OK || is_done) break;
        }
        if (rounds > 0 && top_k == n) k = k > n / GROWTH ? n : k * GROWTH;
        row->whole = whole;
        row->count = n;
        status = keep_few(row, whole, k, all, &is_done);
    }
    if (status != CSM_OK) return status;
    if (row->set.is_active) return csm_sample_sum_all(row);
    row->mass = csm_sample_buffer(call, row->thread, CSM_SAMPLE_MASS, row->count * c->wide_size);
    if (!row->mass) return CSM_NO_MEMORY;
    status = csm_sample_selected_masses(row);
    return status == CSM_OK ? csm_sample_blocks(row, csm_sample_min_p_body) : status;
}
