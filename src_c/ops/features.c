/* The driver of sparse features (kernel/features): which thread computes which tokens, or which attributes.
 *
 * Tokens are shared out as they come.  Attributes are shared out in blocks of about equal work, which the caller has
 * cut: some occur in every token, most in one or two.
 */
#include "../core/extension.h"
#include "../core/memory.h"
#include "../core/parallel.h"

typedef struct features_call {
    const csm_table *table;
    const csm_pairs *pairs;
    const csm_entries *entries;
    const int64_t *blocks; /* of attributes */
    double *matrix;        /* emissions, or their gradient */
    char *scratch;
    csm_interrupt interrupt;
} features_call;

static double *scratch_of(const features_call *c, int thread) {
    return (double *)(c->scratch + (size_t)thread * csm_rounded(c->pairs->width * sizeof(double)));
}

static csm_status emissions_body(void *context, size_t begin, size_t end, int thread) {
    features_call *c = context;
    const csm_poll poll = csm_poll_of(&c->interrupt, thread);
    return c->table->features.emissions(c->pairs, c->entries, begin, end, c->matrix, scratch_of(c, thread), &poll)
               ? CSM_INTERRUPTED
               : CSM_OK;
}

static csm_status gradient_body(void *context, size_t begin, size_t end, int thread) {
    features_call *c = context;
    const csm_poll poll = csm_poll_of(&c->interrupt, thread);
    return c->table->features.gradient(c->pairs, c->entries, (size_t)c->blocks[begin], (size_t)c->blocks[end],
                                       c->matrix, scratch_of(c, thread), &poll)
               ? CSM_INTERRUPTED
               : CSM_OK;
}

static csm_status run(features_call *c, csm_body body, size_t units, size_t piece, double elements, int threads,
                      int (*interrupt)(void *)) {
    csm_fp_environment saved = csm_fp_enter();
    c->interrupt = (csm_interrupt){.check = interrupt, .caller = saved};
    threads = csm_threads_for(elements, units, threads < 1 ? 1 : threads);
    c->scratch = csm_allocate((size_t)threads * csm_rounded(c->pairs->width * sizeof(double)) + CSM_ALIGN);
    csm_status status = CSM_NO_MEMORY;
    if (c->scratch) status = csm_parallel(units, piece, threads, body, c, &c->interrupt);
    csm_release(c->scratch);
    csm_fp_leave(c->interrupt.caller); /* the callback may have changed it */
    return status;
}

csm_status csm_run_emissions(const csm_table *table, const csm_pairs *pairs, size_t attributes,
                             const csm_entries *entries, size_t tokens, double *emissions, int threads,
                             int (*interrupt)(void *)) {
    for (size_t a = 0; a < attributes; a++) {
        if (pairs->row[a] < 0) continue;
        double *row = pairs->rows + (size_t)pairs->row[a] * pairs->width;
        for (int64_t i = pairs->offsets[a]; i < pairs->offsets[a + 1]; i++) row[pairs->label[i]] = pairs->weight[i];
    }
    if (tokens == 0) return CSM_OK;
    features_call c = {table, pairs, entries, NULL, emissions, NULL, {0}};
    const double work = (double)(entries->begin[tokens] - entries->begin[0]) + (double)tokens;
    return run(&c, emissions_body, tokens, 2048, work * (double)pairs->width, threads, interrupt);
}

csm_status csm_run_feature_gradient(const csm_table *table, const csm_pairs *pairs, const int64_t *blocks,
                                    size_t block_count, const csm_entries *entries, const double *grad, int threads,
                                    int (*interrupt)(void *)) {
    if (block_count == 0) return CSM_OK;
    features_call c = {table, pairs, entries, blocks, (double *)grad, NULL, {0}};
    const double work = (double)entries->begin[blocks[block_count]];
    return run(&c, gradient_body, block_count, 1, work * (double)pairs->width, threads, interrupt);
}
