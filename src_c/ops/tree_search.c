/* Hierarchical softmax at prediction: all log-probabilities, the k best classes, draws.
 *
 * Best-first search: a heap of nodes and leaves by the log-probability of their paths, which bounds everything below
 * them, because the sum of a path in pairs never grows (tree.c).  The best is taken out: a leaf is the next result, a
 * node is replaced by its two sides.  Of equal ones nodes come first, then leaves by their number, so that ties go to
 * the lowest class.  NaN counts as -inf, which keeps the bound.
 */
#include "tree.h"

typedef struct heap_entry {
    double key, sum, low; /* key: sum + low, -inf for NaN */
    int64_t place;        /* a node, or ~leaf */
} heap_entry;

enum { HEAP_START = 128, BLOCK_NODES = 128, GROUP_ROWS = 8, GROUP_BYTES = 8 << 20, WALK_ELEMENTS = 64 };

/* All log-probabilities of rows [begin, end): blocks of nodes, parents first, so that theta is read once a group. */

static csm_status log_proba_of_group(csm_tree_job *job, size_t begin, size_t end, int thread, double *sums) {
    const csm_tree *tree = job->tree;
    const csm_tree_call *c = job->call;
    const size_t nodes = tree->classes - 1;
    union {
        float f[BLOCK_NODES];
        double d[BLOCK_NODES];
    } u;
    double z[BLOCK_NODES], side[2][BLOCK_NODES];
    int64_t ids[BLOCK_NODES];
    for (size_t at = 0; at < nodes; at += BLOCK_NODES) {
        const size_t k = nodes - at < BLOCK_NODES ? nodes - at : BLOCK_NODES;
        for (size_t j = 0; j < k; j++) ids[j] = tree->order[at + j];
        for (size_t i = begin; i < end; i++) {
            double *of_row = sums + 2 * nodes * (i - begin), *out = job->values + i * tree->classes;
            if (at == 0) of_row[2 * tree->root] = of_row[2 * tree->root + 1] = 0;
            job->dots((const char *)c->x + (ptrdiff_t)i * job->row_bytes, c->theta, job->row_bytes, ids, k, c->d, &u);
            csm_tree_logits(job, ids, k, &u, z);
            job->table->tree.sides(z, k, side[0], side[1]);
            for (size_t j = 0; j < 2 * k; j++) {
                const int64_t node = ids[j / 2];
                const int32_t below = tree->child[2 * node + (int64_t)(j % 2)];
                double sum = of_row[2 * node], low = of_row[2 * node + 1];
                csm_tree_add(&sum, &low, side[j % 2][j / 2]);
                if (below < 0) {
                    out[~below] = sum + low;
                } else {
                    of_row[2 * (size_t)below] = sum;
                    of_row[2 * (size_t)below + 1] = low;
                }
            }
        }
        if (csm_stops(&job->interrupt, thread, k * (end - begin) * (c->d + 32))) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

static size_t group_rows(const csm_tree *tree) {
    const size_t fits = GROUP_BYTES / (16 * tree->classes);
    return fits < 1 ? 1 : fits < GROUP_ROWS ? fits : GROUP_ROWS;
}

static csm_status log_proba_body(void *context, size_t begin, size_t end, int thread) {
    csm_tree_job *job = context;
    const size_t rows = group_rows(job->tree);
    double *sums = (double *)(void *)csm_scratch_get(&job->scratch, thread, 0, 16 * rows * job->tree->classes);
    if (!sums) return CSM_NO_MEMORY;
    for (size_t i = begin * rows; i < end * rows && i < job->call->n; i += rows) {
        const size_t last = i + rows < job->call->n ? i + rows : job->call->n;
        const csm_status status = log_proba_of_group(job, i, last, thread, sums);
        if (status != CSM_OK) return status;
    }
    return CSM_OK;
}

csm_status csm_run_tree_log_proba(csm_dtype dtype, const csm_table *table, const csm_tree_call *call, double *out) {
    csm_tree_job job;
    csm_buffer single[1];
    const size_t rows = group_rows(call->tree);
    csm_tree_job_begin(&job, dtype, table, call);
    job.values = out;
    csm_status status = CSM_OK;
    if (call->tree->classes == 1) {
        memset(out, 0, call->n * sizeof *out);
    } else {
        status = csm_scratch_begin(&job.scratch, call->threads < 1 ? 1 : call->threads, 1, single);
        if (status == CSM_OK) {
            const double elements = (double)rows * (double)call->tree->classes * (double)(call->d + 32);
            status = csm_tree_job_run(&job, (call->n + rows - 1) / rows, elements, log_proba_body);
            csm_scratch_end(&job.scratch);
        }
    }
    return csm_tree_job_end(&job, status);
}

/* The heap, which grows on demand: a search visits few of the nodes, but may visit all. */
typedef struct heap {
    heap_entry *entries, start[HEAP_START];
    size_t count, room;
} heap;

/* Whether a comes before b. */
static int precedes(const heap_entry *a, const heap_entry *b) {
    if (a->key != b->key) return a->key > b->key;
    if ((a->place < 0) != (b->place < 0)) return a->place >= 0;
    return a->place < 0 ? a->place > b->place : a->place < b->place;
}

static csm_status push(heap *h, double sum, double low, int64_t place) {
    if (h->count == h->room) {
        heap_entry *larger = csm_allocate(2 * h->room * sizeof *larger);
        if (!larger) return CSM_NO_MEMORY;
        memcpy(larger, h->entries, h->count * sizeof *larger);
        if (h->entries != h->start) csm_release(h->entries);
        h->entries = larger;
        h->room *= 2;
    }
    const double value = sum + low;
    const heap_entry entry = {value == value ? value : -CSM_INF, sum, low, place};
    size_t at = h->count++;
    while (at > 0 && precedes(&entry, &h->entries[(at - 1) / 2])) {
        h->entries[at] = h->entries[(at - 1) / 2];
        at = (at - 1) / 2;
    }
    h->entries[at] = entry;
    return CSM_OK;
}

static heap_entry pop(heap *h) {
    const heap_entry best = h->entries[0], last = h->entries[--h->count];
    size_t at = 0;
    for (;;) {
        size_t below = 2 * at + 1;
        if (below >= h->count) break;
        if (below + 1 < h->count && precedes(&h->entries[below + 1], &h->entries[below])) below++;
        if (!precedes(&h->entries[below], &last)) break;
        h->entries[at] = h->entries[below];
        at = below;
    }
    h->entries[at] = last;
    return best;
}

static csm_status search(csm_tree_job *job, heap *h, size_t row, int thread) {
    const csm_tree_call *c = job->call;
    const csm_tree *tree = job->tree;
    const char *x = (const char *)c->x + (ptrdiff_t)row * job->row_bytes;
    double *values = job->values + row * job->k;
    int64_t *indices = job->indices + row * job->k;
    size_t found = 0, visited = 0;
    h->count = 0;
    csm_status status = push(h, 0, 0, tree->classes == 1 ? ~(int64_t)0 : tree->root);
    while (status == CSM_OK && found < job->k) {
        const heap_entry best = pop(h);
        if (best.place < 0) {
            values[found] = best.sum + best.low;
            values[found] = values[found] == values[found] ? values[found] : CSM_NAN;
            indices[found++] = ~best.place;
            continue;
        }
        csm_wide u;
        double z, side[2];
        job->dots(x, c->theta, job->row_bytes, &best.place, 1, c->d, &u);
        csm_tree_logits(job, &best.place, 1, &u, &z);
        job->table->tree.sides(&z, 1, &side[0], &side[1]);
        visited++;
        for (int i = 0; i < 2 && status == CSM_OK; i++) {
            const int32_t below = tree->child[2 * best.place + i];
            double sum = best.sum, low = best.low;
            if (below >= 0) PREFETCH((const char *)c->theta + below * job->row_bytes);
            csm_tree_add(&sum, &low, side[i]);
            status = push(h, sum, low, below);
        }
        if (csm_stops(&job->interrupt, thread, c->d + 64)) status = CSM_INTERRUPTED;
    }
    job->evaluated[row] = (int64_t)visited;
    return status;
}

static csm_status search_body(void *context, size_t begin, size_t end, int thread) {
    heap h;
    csm_status status = CSM_OK;
    h.entries = h.start;
    h.room = HEAP_START;
    for (size_t i = begin; i < end && status == CSM_OK; i++) status = search(context, &h, i, thread);
    if (h.entries != h.start) csm_release(h.entries);
    return status;
}

csm_status csm_run_tree_topk(csm_dtype dtype, const csm_table *table, const csm_tree_call *call, size_t k,
                             double *values, int64_t *indices, int64_t *evaluated) {
    csm_tree_job job;
    csm_tree_job_begin(&job, dtype, table, call);
    job.k = k, job.values = values, job.indices = indices, job.evaluated = evaluated;
    const double elements = 7 * (double)(k + 2) * (double)(call->d + 64); /* about 7 nodes for each of many results */
    return csm_tree_job_end(&job, csm_tree_job_run(&job, call->n, elements, search_body));
}

/* One step down at a time: side 1 where the uniform number is below sigma(z). */
static csm_status walk_body(void *context, size_t begin, size_t end, int thread) {
    csm_tree_job *job = context;
    const csm_tree_call *c = job->call;
    for (size_t i = begin; i < end; i++) {
        const char *x = (const char *)c->x + (ptrdiff_t)job->of_row[i] * job->row_bytes;
        for (size_t level = 0; level < job->k && job->indices[i] >= 0; level++) {
            const int64_t node = job->indices[i];
            const uint8_t code = 1;
            csm_wide u;
            double z, loss, slope;
            job->dots(x, c->theta, job->row_bytes, &node, 1, c->d, &u);
            csm_tree_logits(job, &node, 1, &u, &z);
            job->table->tree.terms(&z, &code, 1, &loss, &slope); /* slope = sigma(-z) with the sign of the side */
            if (z != z) return CSM_NO_MASS;
            job->indices[i] = job->tree->child[2 * node + (job->uniforms[i * job->k + level] < 1 + slope)];
            if (csm_stops(&job->interrupt, thread, c->d + WALK_ELEMENTS)) return CSM_INTERRUPTED;
        }
    }
    return CSM_OK;
}

csm_status csm_run_tree_walk(csm_dtype dtype, const csm_table *table, const csm_tree_call *call, const int64_t *rows,
                             size_t levels, const double *uniforms, int64_t *places) {
    csm_tree_job job;
    csm_tree_job_begin(&job, dtype, table, call);
    job.k = levels, job.uniforms = uniforms, job.indices = places, job.of_row = rows;
    const double elements = (double)levels * (double)(call->d + WALK_ELEMENTS);
    return csm_tree_job_end(&job, csm_tree_job_run(&job, call->n, elements, walk_body));
}
