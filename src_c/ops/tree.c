/* Hierarchical softmax: losses along paths of a binary tree, gradients and steps at its nodes.
 *
 *   p(y) = prod sigma(s_j z_j) over the nodes on the path to y;  loss = sum softplus(-s_j z_j)
 *
 * First the rows: paths, logits, losses, derivatives, the gradient of x.  Then a stable counting sort by digits brings
 * the entries of a node together.  Then the nodes: the sum of g x over their entries in the order of the rows and, if
 * there is an optimiser, its step at once, while the gradient is in cache.  The unit of work is a row or a node, so
 * that no bit depends on the threads.  Sums along paths are pairs of doubles: below 1 ULP for any depth, and the pair
 * of a child never exceeds that of its parent, which tree_search.c needs.
 */
#include "tree.h"

#include "row_optimizer.h"

enum { DIGIT_BITS = 10, NODE_ELEMENTS = 32, UNIT_ENTRIES = 64, AHEAD = 4, NEAR_LEVELS = 4 };

void csm_tree_job_begin(csm_tree_job *job, csm_dtype dtype, const csm_table *table, const csm_tree_call *call) {
    memset(job, 0, sizeof *job);
    job->interrupt.caller = csm_fp_enter();
    job->interrupt.check = call->interrupt;
    job->interrupt.context = call->interrupt_context;
    job->call = call;
    job->tree = call->tree;
    job->dtype = dtype;
    job->table = table;
    job->dots = table->rows[dtype].dots;
    job->size = dtype == CSM_DTYPE_f64 ? 8 : 4;
    job->row_bytes = (ptrdiff_t)(call->d * job->size);
}

csm_status csm_tree_job_run(csm_tree_job *job, size_t units, double elements, csm_body body) {
    const size_t piece = (size_t)(CSM_POLL_ELEMENTS / (elements + 1)) + 1;
    const int wanted = job->call->threads < 1 ? 1 : job->call->threads;
    const int threads = csm_threads_for((double)units * elements, units / piece + 1, wanted);
    return csm_parallel(units, piece, threads, body, job, &job->interrupt);
}

csm_status csm_tree_job_end(csm_tree_job *job, csm_status status) {
    csm_fp_leave(job->interrupt.caller); /* the callback may have changed it */
    return status;
}

void csm_tree_logits(const csm_tree_job *job, const int64_t *ids, size_t n, const void *u, double *z) {
    const double t = job->call->temperature;
    const int has_bias = job->call->bias != NULL;
    if (job->size == 4) {
        const float *from = u, *bias = job->call->bias;
        for (size_t i = 0; i < n; i++) z[i] = (double)(has_bias ? from[i] + bias[ids[i]] : from[i]);
    } else {
        const double *from = u, *bias = job->call->bias;
        for (size_t i = 0; i < n; i++) z[i] = has_bias ? from[i] + bias[ids[i]] : from[i];
    }
    for (size_t i = 0; t != 1 && i < n; i++) z[i] /= t;
}

/* Writes the path from the root to a leaf, which has m nodes. */
static void find_path(const csm_tree *tree, int64_t leaf, int64_t *ids, uint8_t *codes, size_t m) {
    uint32_t parent = m ? tree->leaf_parent[leaf] : 0;
    const uint32_t *node_parent = tree->node_parent;
    while (m-- > 0) {
        const uint32_t node = parent & 0x7fffffff;
        ids[m] = node;
        codes[m] = (uint8_t)(parent >> 31);
        parent = node_parent[node];
    }
}

static void put_real(void *to, size_t i, double value, int is_single) {
    value = value == value ? value : CSM_NAN;
    if (is_single) ((float *)to)[i] = (float)value;
    else ((double *)to)[i] = value;
}
static double get_real(const void *from, size_t i, int is_single) {
    return is_single ? (double)((const float *)from)[i] : ((const double *)from)[i];
}

/* Of entries [begin, begin + k), whose products with x are in g: losses, and in slope the derivatives by the logits. */
static void compute_terms(const csm_tree_job *job, size_t begin, size_t k, double *term, double *slope) {
    const csm_tree_loss *l = job->loss;
    double z[CSM_TREE_PART];
    csm_tree_logits(job, l->ids + begin, k, (const char *)l->g + begin * job->size, z);
    job->table->tree.terms(z, l->codes + begin, k, term, slope);
}

static void prefetch_theta(const csm_tree_job *job, size_t node) {
    const char *row = (const char *)job->call->theta + (ptrdiff_t)node * job->row_bytes;
    for (ptrdiff_t at = 0; at < job->row_bytes && at < 512; at += 64) PREFETCH(row + at);
}

/* Writes the paths of rows [begin, end) that take part, then their products.  Nodes far from the root are in no cache,
 * so all of a group are prefetched before the first is used. */
static void begin_rows(const csm_tree_job *job, size_t begin, size_t end) {
    const csm_tree_loss *l = job->loss;
    const csm_tree_call *c = job->call;
    for (size_t i = begin; i < end; i++) {
        const size_t first = (size_t)l->offsets[i], m = (size_t)l->offsets[i + 1] - first;
        if (l->labels[i] < 0) continue; /* whatever it holds */
        find_path(job->tree, l->labels[i], l->ids + first, l->codes + first, m);
        for (size_t j = NEAR_LEVELS; j < m && m <= CSM_TREE_PART; j++) prefetch_theta(job, (size_t)l->ids[first + j]);
        for (size_t e = first; e < first + m && l->grad_x; e++) {
            l->keys[e] = (uint64_t)l->ids[e] << 32 | e;
            l->rows[e] = (uint32_t)i;
        }
    }
    for (size_t i = begin; i < end; i++) {
        const size_t first = (size_t)l->offsets[i], m = (size_t)l->offsets[i + 1] - first;
        if (l->grad_x) memset((char *)l->grad_x + (ptrdiff_t)i * job->row_bytes, 0, (size_t)job->row_bytes);
        l->loss[i] = 0;
        if (l->labels[i] >= 0)
            job->dots((const char *)c->x + (ptrdiff_t)i * job->row_bytes, c->theta, job->row_bytes, l->ids + first, m,
                      c->d, (char *)l->g + first * job->size);
    }
}

/* The sums of a row's terms, which come in parts. */
typedef struct row_sums {
    double sum, low, square;
} row_sums;

/* Adds k terms; derivatives times factor are written to g. */
static void add_terms(const csm_tree_job *job, row_sums *s, size_t begin, size_t k, const double *term,
                      const double *slope, double factor) {
    const csm_tree_loss *l = job->loss;
    double sum = s->sum, low = s->low;
    for (size_t i = 0; i < k; i++) csm_tree_add(&sum, &low, term[i]);
    s->sum = sum, s->low = low;
    if (!l->grad_x) return;
    for (size_t i = 0; i < k; i++) {
        if (l->clip_norm > 0) s->square += slope[i] * slope[i];
        put_real(l->g, begin + i, slope[i] * factor, job->size == 4);
    }
}

static int clips(const csm_tree_loss *l) { return l->grad_x && (l->clip_norm > 0 || l->clip_value > 0); }
static double factor_of(const csm_tree_job *job, size_t i) {
    const csm_tree_loss *l = job->loss;
    if (clips(l)) return 1;
    return (l->scale ? l->scale[i] : 1) / job->call->temperature * (l->upstream ? l->upstream[i] : 1);
}

/* The loss of row i, its clipped derivatives, and its gradient of x. */
static void end_row(const csm_tree_job *job, size_t i, const row_sums *s) {
    const csm_tree_loss *l = job->loss;
    const csm_tree_call *c = job->call;
    const int single = job->size == 4;
    const size_t first = (size_t)l->offsets[i], m = (size_t)l->offsets[i + 1] - first;
    const double loss = s->sum + s->low, scale = l->scale ? l->scale[i] : 1;
    char *g = (char *)l->g + first * job->size;
    /* a weight of 0 takes an infinite loss away, as in cross_entropy, but does not hide NaN */
    const double weighted = scale == 0 && loss == loss ? 0 : scale * loss;
    l->loss[i] = l->is_rounded ? csm_finish_loss(weighted, single) : 0 - loss;
    if (clips(l)) {
        const double inner = scale / c->temperature, norm = inner * sqrt(s->square);
        const double shrink = l->clip_norm > 0 && norm > l->clip_norm ? l->clip_norm / norm : 1;
        const double limit = l->clip_value > 0 ? l->clip_value : CSM_INF, upstream = l->upstream ? l->upstream[i] : 1;
        for (size_t j = 0; j < m; j++) {
            const double a = get_real(g, j, single) * (inner * shrink);
            put_real(g, j, (a > limit ? limit : a < -limit ? -limit : a) * upstream, single);
        }
    }
    if (l->grad_x) {
        char *to = (char *)l->grad_x + (ptrdiff_t)i * job->row_bytes;
        job->table->rows[job->dtype].sums(g, c->theta, job->row_bytes, l->ids + first, m, c->d, to, to);
    }
}

/* Rows whose paths together fit one part, so that vectors of decisions are full; a longer path is a group of its own,
 * in several parts. */
static csm_status loss_body(void *context, size_t begin, size_t end, int thread) {
    csm_tree_job *job = context;
    const csm_tree_loss *l = job->loss;
    double term[CSM_TREE_PART], slope[CSM_TREE_PART];
    for (size_t i = begin, last; i < end; i = last) {
        const size_t first = (size_t)l->offsets[i];
        for (last = i + 1; last < end && (size_t)l->offsets[last + 1] - first <= CSM_TREE_PART;) last++;
        const size_t m = (size_t)l->offsets[last] - first;
        begin_rows(job, i, last);
        if (m <= CSM_TREE_PART) {
            compute_terms(job, first, m, term, slope);
            for (size_t row = i; row < last; row++) {
                const size_t at = (size_t)l->offsets[row], k = (size_t)l->offsets[row + 1] - at;
                row_sums sums = {0, 0, 0};
                if (l->labels[row] < 0) continue;
                add_terms(job, &sums, at, k, term + (at - first), slope + (at - first), factor_of(job, row));
                end_row(job, row, &sums);
            }
        } else {
            row_sums sums = {0, 0, 0};
            for (size_t at = first; at < first + m; at += CSM_TREE_PART) {
                const size_t k = first + m - at < CSM_TREE_PART ? first + m - at : CSM_TREE_PART;
                compute_terms(job, at, k, term, slope);
                add_terms(job, &sums, at, k, term, slope, factor_of(job, i));
                if (csm_stops(&job->interrupt, thread, k * (job->call->d + 16))) return CSM_INTERRUPTED;
            }
            end_row(job, i, &sums);
        }
        if (csm_stops(&job->interrupt, thread, m * (job->call->d + 16))) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

csm_status csm_run_tree_loss(csm_dtype dtype, const csm_table *table, const csm_tree_call *call,
                             const csm_tree_loss *loss) {
    csm_tree_job job;
    csm_tree_job_begin(&job, dtype, table, call);
    job.loss = loss;
    const double mean = call->n ? (double)loss->offsets[call->n] / (double)call->n : 0;
    return csm_tree_job_end(&job, csm_tree_job_run(&job, call->n, (mean + 1) * (double)(2 * call->d + 32), loss_body));
}

/* Keys are the node, then the number of the entry; the sort is by the digits of the node, each pass stable. */
static uint64_t *sort_keys(uint64_t *keys, uint64_t *other, size_t n, size_t nodes) {
    int bits = 0;
    while (bits < 32 && nodes > (size_t)1 << bits) bits++;
    const int passes = (bits + DIGIT_BITS - 1) / DIGIT_BITS, digit = passes ? (bits + passes - 1) / passes : 0;
    const uint64_t mask = ((uint64_t)1 << digit) - 1;
    for (int pass = 0; pass < passes; pass++) {
        uint32_t places[2][1 << DIGIT_BITS], sum = 0; /* two counts: equal digits in a row would wait for one another */
        const int shift = 32 + pass * digit;
        memset(places[0], 0, (mask + 1) * sizeof **places);
        memset(places[1], 0, (mask + 1) * sizeof **places);
        for (size_t i = 0; i < n; i++) places[i & 1][keys[i] >> shift & mask]++;
        for (size_t v = 0; v <= mask; v++) {
            const uint32_t count = places[0][v] + places[1][v];
            places[0][v] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++) other[places[0][keys[i] >> shift & mask]++] = keys[i];
        uint64_t *sorted = other;
        other = keys;
        keys = sorted;
    }
    return keys;
}

void csm_tree_group(const csm_tree_call *call, const csm_tree_loss *l, csm_tree_groups *groups) {
    const size_t total = (size_t)l->offsets[call->n];
    const uint64_t *keys = sort_keys(l->keys, l->keys + total, total, call->tree->classes - 1);
    size_t count = 0;
    for (size_t i = 0; i < total; i++) {
        const int64_t node = (int64_t)(keys[i] >> 32);
        if (i > 0 && node == groups->nodes[count - 1]) continue;
        groups->starts[count] = (int64_t)i;
        groups->nodes[count++] = node;
    }
    groups->starts[count] = (int64_t)total;
    groups->count = count;
    groups->keys = keys;
    groups->loss = l;
}

/* The first node of the groups whose entries begin at or after `entry`. */
static size_t node_at(const csm_tree_groups *groups, size_t entry) {
    size_t low = 0, high = groups->count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if ((size_t)groups->starts[middle] < entry) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void prefetch_node(const csm_tree_job *job, size_t node) {
    prefetch_theta(job, node);
    if (job->rows->theta->kind == CSM_ROWWISE_ADAGRAD)
        PREFETCH((const char *)job->rows->theta->state + node * job->size);
}

/* Rows and derivatives of entries [first, first + m) of the groups. */
static void gather_entries(const csm_tree_job *job, size_t first, size_t m) {
    const csm_tree_groups *groups = job->rows->groups;
    const csm_tree_loss *l = groups->loss;
    for (size_t e = first; e < first + m; e++) {
        const uint32_t entry = (uint32_t)groups->keys[e];
        groups->examples[e] = l->rows[entry];
        if (job->size == 4) ((float *)groups->g)[e] = ((const float *)l->g)[entry];
        else ((double *)groups->g)[e] = ((const double *)l->g)[entry];
    }
}

/* Units are equal numbers of entries, because the nodes near the root have most of them; a node belongs to the unit in
 * which its entries begin. */
static csm_status rows_body(void *context, size_t begin, size_t end, int thread) {
    csm_tree_job *job = context;
    const csm_tree_rows *r = job->rows;
    const csm_tree_groups *groups = r->groups;
    const csm_tree_call *c = job->call;
    const int single = job->size == 4;
    const size_t last = node_at(groups, end * UNIT_ENTRIES);
    csm_row_stepper theta, bias;
    if (r->theta) csm_row_stepper_begin(&theta, job->dtype, job->table, r->theta);
    if (r->bias) csm_row_stepper_begin(&bias, job->dtype, job->table, r->bias);
    for (size_t i = node_at(groups, begin * UNIT_ENTRIES); i < last; i++) {
        const size_t node = (size_t)groups->nodes[i], first = (size_t)groups->starts[i];
        const size_t m = (size_t)groups->starts[i + 1] - first;
        char *g = (char *)groups->g + first * job->size;
        double sum = 0;
        csm_wide narrow;
        if (r->theta && r->frozen && r->frozen[node]) continue;
        if (r->theta && i + AHEAD < last) prefetch_node(job, (size_t)groups->nodes[i + AHEAD]);
        char *row = r->theta ? csm_scratch_get(&job->scratch, thread, 0, (size_t)job->row_bytes)
                             : (char *)r->values + (ptrdiff_t)i * job->row_bytes;
        gather_entries(job, first, m);
        job->table->rows[job->dtype].sums(g, c->x, job->row_bytes, groups->examples + first, m, c->d, NULL, row);
        for (size_t j = 0; j < m; j++) sum += get_real(g, j, single);
        if (r->theta) csm_row_stepper_take(&theta, node, row, (char *)r->theta->w + (ptrdiff_t)node * job->row_bytes);
        if (r->bias) {
            put_real(&narrow, 0, sum, single);
            csm_row_stepper_take(&bias, node, &narrow, (char *)r->bias->w + node * job->size);
        }
        if (r->bias_values) put_real(r->bias_values, i, sum, single);
        if (!r->theta && csm_stops(&job->interrupt, thread, m * c->d)) return CSM_INTERRUPTED;
    }
    return CSM_OK;
}

csm_status csm_run_tree_rows(csm_dtype dtype, const csm_table *table, const csm_tree_call *call,
                             const csm_tree_rows *rows) {
    csm_tree_job job;
    csm_buffer single[1];
    const csm_tree_groups *groups = rows->groups;
    const size_t entries = groups->count ? (size_t)groups->starts[groups->count] : 0;
    csm_tree_job_begin(&job, dtype, table, call);
    job.rows = rows;
    if (rows->theta) job.interrupt.check = NULL;
    const int threads = call->threads < 1 ? 1 : call->threads;
    csm_status status = csm_scratch_begin(&job.scratch, threads, 1, single);
    if (status == CSM_OK) {
        /* Before anything is written, so that a step that lacks memory changes nothing.  The byte more keeps the size
         * positive without features: NULL then always means that there is no memory. */
        for (int t = 0; rows->theta && t < threads && status == CSM_OK; t++)
            if (!csm_scratch_get(&job.scratch, t, 0, (size_t)job.row_bytes + 1)) status = CSM_NO_MEMORY;
        const double elements = UNIT_ENTRIES * (double)(2 * call->d + NODE_ELEMENTS);
        if (status == CSM_OK)
            status = csm_tree_job_run(&job, (entries + UNIT_ENTRIES - 1) / UNIT_ENTRIES, elements, rows_body);
        csm_scratch_end(&job.scratch);
    }
    return csm_tree_job_end(&job, status);
}
