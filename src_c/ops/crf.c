/* The driver of the linear-chain CRF: sequences, threads, and the sums over sequences.
 *
 * A sequence is computed by one thread, alone, so that its bits depend on nothing else: not on the batch, on padding,
 * on threads, or on the instruction set.  It takes the fast path of kernel/crf/crf.inc.h, or, where that says so, the
 * one with an exponent for each tag.
 *
 * Sums over sequences (loss, gradients of the parameters): first each sequence, then blocks of 32 consecutive sequences
 * in order, then the blocks in a binary tree over their index.  Groups of sequences are computed at a time into slots,
 * so that the memory of the slots does not grow with the number of sequences.
 *
 * Results of a sequence with NaN, with +inf, or without a possible path: see csoftmax.h. */
#include "crf.h"

enum {
    BLOCK = 32,             /* sequences */
    BLOCKS = 8,             /* for each thread, so that they end together */
    GROUP = 256,            /* most slots of a group */
    GROUP_BYTES = 4 << 20,  /* of its slots, if that suffices for one a thread */
    TREE_LEVELS = 60
};

static int is_ordinary(const crf_sequence *s) { return !s->is_nan && !s->is_inf && s->outcome == CSM_CRF_DONE; }
static double log_partition_of(const crf_sequence *s) {
    return s->is_nan ? CSM_NAN : s->is_inf ? CSM_INF : s->outcome == CSM_CRF_DONE ? s->log_z : -CSM_INF;
}

/* Losses below 2^-500 are computed again with one exponent a tag: paths may have vanished beside the labels'. */
static int is_small(const csm_crf_model *m, double r, double r_n) {
    double top = r;
    if (m->tags == 1) return 0;
    return r == 0 || r_n + csm_take_exponent(&top) < -500;
}

/* p and n of the scores of the labels. */
static void split_gold(csm_crf_chain *c, const csm_crf_kernels *kernels) {
    double *scores = c->beside;
    const size_t padded = (c->n + 7) / 8 * 8;
    for (size_t t = 0; t < padded; t++) scores[t] = t < c->n ? c->x[t * c->model->pitch + (size_t)c->labels[t]] : 0;
    kernels->split(scores, c->gold, c->gold_n, padded);
}
csm_status csm_crf_measure(crf_sequence *s) {
    csm_crf_chain *c = s->chain;
    double r = 0, r_n = 0;
    const int was_slow = s->is_slow;
    s->loss = CSM_INF;
    if (!was_slow) {
        split_gold(c, s->call->kernels);
        if (!s->call->kernels->tail(c, &r, &r_n)) return CSM_OK;
        s->loss = csm_crf_loss_of(r, r_n);
        if (!is_small(c->model, r, r_n)) return CSM_OK;
    }
    const csm_status status = csm_crf_compute_slow(s, 0);
    s->is_slow = was_slow;
    return status;
}

/* mu, and the sums of pairs in g, of labels whose path is impossible: marginals less the labels themselves. */
static void subtract_counts(csm_crf_chain *c) {
    const csm_crf_model *m = c->model;
    const size_t P = m->pitch;
    for (size_t t = 0; t < c->n; t++) {
        c->mu[t * P + (size_t)c->labels[t]] -= 1;
        if (t) c->g[(size_t)c->labels[t - 1] * P + (size_t)c->labels[t]] -= 1;
    }
}
/* Labels of the sequence, -1 for unknown ones; returns whether there is one. */
static int read_labels(crf_sequence *s, int64_t *labels) {
    const csm_crf_options *o = s->call->o;
    int found = 0;
    for (size_t t = 0; t < s->n; t++) {
        labels[t] = o->labels[crf_row(s, t)];
        if (o->has_ignore && labels[t] == o->ignore) {
            labels[t] = -1;
            found = 1;
        }
    }
    return found;
}

/* The passes of the fast path behind the forward pass. */
static csm_status compute_gradient(crf_sequence *s, int *is_slow) {
    csm_crf_chain *c = s->chain;
    const csm_crf_kernels *k = s->call->kernels;
    const int64_t *labels = c->labels;
    const int is_possible = s->loss < CSM_INF;
    const int pairs = labels || s->call->o->pair_sums || s->call->o->pairs;
    csm_crf_outcome outcome = k->backward(c, pairs);
    *is_slow = outcome == CSM_CRF_SLOW;
    if (outcome != CSM_CRF_DONE) return crf_stopped(outcome);
    if (!labels && !s->call->o->pair_sums) return CSM_OK;
    if (!is_possible) c->labels = NULL;
    outcome = k->pairs(c);
    c->labels = labels;
    if (outcome != CSM_CRF_DONE) return crf_stopped(outcome);
    if (labels && is_possible) k->gradients(c);
    else if (labels) subtract_counts(c);
    return CSM_OK;
}

csm_status csm_crf_compute(crf_sequence *s, int gradient) {
    const csm_crf_options *o = s->call->o;
    csm_crf_chain *c = s->chain;
    s->is_slow = o->is_slow;
    s->loss = 0;
    if (!is_ordinary(s)) return CSM_OK;
    int is_set = 0;
    if (s->call->task == CSM_CRF_LOSS) {
        int64_t *labels = NULL;
        if (o->labels) {
            labels = (int64_t *)(void *)csm_scratch_get(&s->call->scratch, s->thread, CRF_LABELS,
                                                        s->call->longest * sizeof *labels);
            if (!labels) return CSM_NO_MEMORY;
            is_set = read_labels(s, labels);
        } else {
            is_set = 1;
        }
        c->labels = labels;
    }
    if (s->is_slow || is_set) return csm_crf_compute_slow(s, gradient);
    csm_crf_outcome outcome = s->call->kernels->forward(c);
    if (outcome == CSM_CRF_DONE && c->is_doubtful) outcome = s->call->kernels->backward(c, 0);
    if (outcome == CSM_CRF_SLOW) return csm_crf_compute_slow(s, gradient);
    s->outcome = outcome;
    if (outcome != CSM_CRF_DONE) return crf_stopped(outcome);
    s->log_z = csm_crf_log_of(s, c->z, c->z_n);
    csm_status status = CSM_OK;
    if (c->labels) {
        double r = 0, r_n = 0;
        split_gold(c, s->call->kernels);
        if (!s->call->kernels->tail(c, &r, &r_n)) s->loss = CSM_INF;
        else if (is_small(c->model, r, r_n)) return csm_crf_compute_slow(s, gradient);
        else s->loss = csm_crf_loss_of(r, r_n);
    }
    int is_slow = 0;
    if (gradient) status = compute_gradient(s, &is_slow);
    if (!is_slow) return status;
    const double log_z = s->log_z, loss = s->loss; /* those of a call without gradients */
    status = csm_crf_compute_slow(s, gradient);
    s->log_z = log_z;
    s->loss = loss;
    return status;
}

/* Writes a value to the rows of the sequence, times 0 or 1 L of them. */
static void fill_rows(const crf_sequence *s, double value, void *to) {
    const size_t P = s->call->model.pitch;
    double *row = s->chain->mu;
    for (size_t j = 0; j < P; j++) row[j] = value;
    for (size_t t = 0; t < s->n; t++) csm_crf_store(s, row, 1, crf_row(s, t) * s->call->o->tags, to);
}
static void fill_numbers(double *x, size_t count, double value) {
    for (size_t i = 0; i < count; i++) x[i] = value;
}

/* Adds n rows of a pitch, times a factor, to numbers of the slot; the first sequence of a slot sets them. */
static void add_rows(const crf_sequence *s, const double *rows, size_t n, double by, double *to) {
    const csm_crf_kernels *k = s->call->kernels;
    (s->is_first ? k->store_f64 : k->add_f64)(rows, n, s->call->o->tags, s->call->model.pitch, by, to);
}
static void add_number(const crf_sequence *s, size_t count, double value, double *to) {
    for (size_t i = 0; i < count; i++) to[i] = s->is_first ? value : to[i] + value;
}

static csm_status run_loss(crf_sequence *s) {
    crf_call *call = s->call;
    const csm_crf_options *o = call->o;
    const size_t L = o->tags, P = call->model.pitch, last = call->slot - 1;
    const int is_used = s->weight != 0,
              gradient = call->has_gradient && s->factor != 0 && is_used && call->divisor != 0;
    csm_status status = CSM_OK;
    if (s->n == 0 || !is_used) {
        s->loss = 0;
        add_number(s, call->slot, 0, s->slot);
        if (call->has_gradient) fill_rows(s, 0, o->by_tag);
        if (o->result) o->result[s->index] = 0;
        return CSM_OK;
    }
    csm_crf_load(s, 1);
    if ((status = csm_crf_compute(s, gradient)) != CSM_OK) return status;
    const int is_good = is_ordinary(s);
    const double loss = is_good ? s->weight * s->loss : CSM_NAN;
    add_number(s, 1, loss, s->slot + last);
    if (o->result) o->result[s->index] = crf_round(call, loss);
    if (!call->has_gradient) return CSM_OK;
    if (!gradient || !is_good) {
        add_number(s, last, gradient ? CSM_NAN : 0, s->slot);
        fill_rows(s, gradient ? CSM_NAN : 0, o->by_tag);
        return CSM_OK;
    }
    const csm_crf_chain *c = s->chain;
    for (size_t t = 0; t < s->n; t++) csm_crf_store(s, c->mu + t * P, s->factor, crf_row(s, t) * L, o->by_tag);
    add_rows(s, c->g, L, s->factor, s->slot);
    add_rows(s, c->mu, 1, s->factor, s->slot + L * L);
    add_rows(s, c->mu + (s->n - 1) * P, 1, s->factor, s->slot + L * L + L);
    return CSM_OK;
}

/* Marginals of the pairs of each position, at its row. */
static void store_pairs(crf_sequence *s) {
    const csm_crf_chain *c = s->chain;
    const csm_crf_model *m = c->model;
    const size_t L = m->tags, P = m->pitch;
    double *row = c->beta;
    for (size_t t = 0; t < s->n; t++)
        for (size_t i = 0; i < L; i++) {
            for (size_t j = 0; j < P; j++)
                row[j] = t && is_ordinary(s)        ? c->alpha[(t - 1) * P + i] * m->a[i * P + j] * c->u[t * P + j]
                         : is_ordinary(s) || t == 0 ? 0
                                                    : CSM_NAN;
            csm_crf_store(s, row, 1, (crf_row(s, t) * L + i) * L, s->call->o->pairs);
        }
}

static csm_status run_marginals(crf_sequence *s) {
    crf_call *call = s->call;
    const csm_crf_options *o = call->o;
    const size_t L = o->tags, P = call->model.pitch;
    const int gradient = o->by_tag || o->pairs || o->pair_sums;
    double *sums = o->pair_sums ? o->pair_sums + s->index * L * L : NULL;
    csm_status status = CSM_OK;
    if (s->n == 0) {
        if (o->result) o->result[s->index] = 0;
        if (sums) fill_numbers(sums, L * L, 0);
        return CSM_OK;
    }
    csm_crf_load(s, 1);
    if ((status = csm_crf_compute(s, gradient)) != CSM_OK) return status;
    if (o->result) o->result[s->index] = crf_round(call, log_partition_of(s));
    const int is_good = is_ordinary(s);
    if (!is_good) {
        if (o->by_tag) fill_rows(s, CSM_NAN, o->by_tag);
        if (sums) fill_numbers(sums, L * L, CSM_NAN);
    }
    if (o->pairs && !(is_good && s->is_slow)) store_pairs(s); /* csm_crf_compute_slow has stored its own */
    if (!is_good) return CSM_OK;
    for (size_t t = 0; t < s->n && o->by_tag; t++)
        csm_crf_store(s, s->chain->mu + t * P, 1, crf_row(s, t) * L, o->by_tag);
    for (size_t i = 0; i < L && sums; i++)
        for (size_t j = 0; j < L; j++) sums[i * L + j] = crf_round(call, s->chain->g[i * P + j]);
    return CSM_OK;
}

static csm_status run_score(crf_sequence *s) {
    const csm_crf_options *o = s->call->o;
    if (s->n == 0) {
        o->result[s->index] = 0;
        return CSM_OK;
    }
    csm_crf_load(s, 0);
    int64_t *labels =
        (int64_t *)(void *)csm_scratch_get(&s->call->scratch, s->thread, CRF_LABELS, s->call->longest * sizeof *labels);
    if (!labels) return CSM_NO_MEMORY;
    read_labels(s, labels);
    o->result[s->index] = s->is_nan || s->is_inf ? CSM_NAN : crf_round(s->call, csm_crf_score(s, labels));
    return CSM_OK;
}

static csm_status sequences_body(void *context, size_t begin, size_t end, int thread) {
    crf_call *call = context;
    const csm_crf_options *o = call->o;
    const size_t last = end * call->in_slot < call->count ? end * call->in_slot : call->count;
    csm_status status = CSM_OK;
    if (!call->chains[thread].model && (status = csm_crf_make_chain(call, thread)) != CSM_OK) return status;
    for (size_t i = begin * call->in_slot; i < last && status == CSM_OK; i++) {
        crf_sequence s = {.call = call, .chain = &call->chains[thread], .thread = thread};
        s.index = call->first + i;
        s.is_first = i % call->in_slot == 0;
        s.begin = crf_begin(o, s.index);
        s.n = crf_begin(o, s.index + 1) - s.begin;
        s.slot = call->slots ? call->slots + i / call->in_slot * call->slot : NULL;
        s.weight = o->sample_weight ? o->sample_weight[s.index] : 1;
        s.factor = s.weight * (o->upstream ? o->upstream[s.index] : 1) / call->divisor;
        switch (call->task) {
        case CSM_CRF_LOG_PARTITION:
        case CSM_CRF_MARGINALS: status = run_marginals(&s); break;
        case CSM_CRF_SCORE: status = run_score(&s); break;
        case CSM_CRF_LOSS: status = run_loss(&s); break;
        case CSM_CRF_DECODE: status = csm_crf_decode(&s); break;
        case CSM_CRF_SAMPLE: status = csm_crf_draw(&s); break;
        }
        if (status == CSM_OK && csm_stops(&call->interrupt, thread, s.n * o->tags)) status = CSM_INTERRUPTED;
    }
    return status;
}

/* A binary tree over the blocks: levels whose bit of `count` is set hold the sum of 2^level blocks. */
typedef struct crf_tree {
    double *levels[TREE_LEVELS];
    double *block;
    size_t count, filled, size; /* blocks; sequences in the block; numbers of a slot */
} crf_tree;
static void add_numbers(double *to, const double *from, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] += from[i];
}
static csm_status end_block(crf_tree *tree) {
    int level = 0;
    for (; tree->count >> level & 1; level++) add_numbers(tree->block, tree->levels[level], tree->size);
    if (!tree->levels[level] && !(tree->levels[level] = csm_allocate(tree->size * sizeof *tree->block)))
        return CSM_NO_MEMORY;
    memcpy(tree->levels[level], tree->block, tree->size * sizeof *tree->block);
    tree->count++;
    tree->filled = 0;
    return CSM_OK;
}
/* Adds the slot of `count` sequences. */
static csm_status add_slot(crf_tree *tree, const double *slot, size_t count) {
    if (tree->filled == 0) memcpy(tree->block, slot, tree->size * sizeof *slot);
    else add_numbers(tree->block, slot, tree->size);
    return (tree->filled += count) >= BLOCK ? end_block(tree) : CSM_OK;
}
/* The sum of all blocks, in tree->block. */
static csm_status end_tree(crf_tree *tree) {
    csm_status status = tree->filled ? end_block(tree) : CSM_OK;
    int is_first = 1;
    if (status != CSM_OK) return status;
    fill_numbers(tree->block, tree->size, 0);
    for (int level = 0; level < TREE_LEVELS; level++)
        if (tree->count >> level & 1) {
            if (is_first) memcpy(tree->block, tree->levels[level], tree->size * sizeof *tree->block);
            else add_numbers(tree->block, tree->levels[level], tree->size);
            is_first = 0;
        }
    return CSM_OK;
}

static void write_gradient(const double *sum, size_t count, unsigned is_single, double *to) {
    for (size_t i = 0; i < count && to; i++) to[i] = is_single ? (double)(float)sum[i] : sum[i];
}
static void write_sums(const crf_call *call, const double *sum) {
    const csm_crf_options *o = call->o;
    const size_t L = o->tags;
    if (o->total)
        *o->total =
            call->divisor == 0 ? CSM_NAN : csm_finish_loss(sum[call->slot - 1] / call->divisor, call->itemsize < 8);
    if (!call->has_gradient) return;
    write_gradient(sum, L * L, o->single & 1, o->grad_transitions);
    write_gradient(sum + L * L, L, o->single & 2, o->grad_start);
    write_gradient(sum + L * L + L, L, o->single & 4, o->grad_end);
}

/* What a mean divides by. */
static double divisor_of(const csm_crf_options *o) {
    double sum = 0;
    if (o->reduction != CSM_CRF_MEAN && o->reduction != CSM_CRF_TOKEN_MEAN) return 1;
    for (size_t i = 0; i < o->sequences; i++) {
        const size_t n = crf_begin(o, i + 1) - crf_begin(o, i);
        const double each = o->reduction == CSM_CRF_TOKEN_MEAN ? (double)n : n > 0;
        sum += o->sample_weight ? o->sample_weight[i] * each : each;
    }
    return sum;
}

/* Computes the sequences in groups, and adds up their slots.  A slot has one sequence, or a block of them where there
 * are enough blocks for all threads: then no other thread has to add them up. */
static csm_status run_groups(crf_call *call, size_t piece, int threads) {
    const csm_crf_options *o = call->o;
    const size_t L = o->tags, N = o->sequences;
    call->divisor = divisor_of(o);
    call->slot = (call->has_gradient ? L * L + 2 * L : 0) + 1;
    call->in_slot = threads == 1 || N / BLOCK >= BLOCKS * (size_t)threads ? BLOCK : 1;
    const size_t units = (N + call->in_slot - 1) / call->in_slot;
    size_t group = GROUP_BYTES / sizeof(double) / call->slot;
    group = group < (size_t)threads ? (size_t)threads : group > GROUP ? GROUP : group;
    group = group > units && units ? units : group;
    piece = piece > call->in_slot ? piece / call->in_slot : 1;
    crf_tree tree = {.size = call->slot, .block = csm_allocate(call->slot * sizeof(double))};
    call->slots = csm_allocate(group * call->slot * sizeof(double));
    csm_status status = tree.block && call->slots ? CSM_OK : CSM_NO_MEMORY;
    for (size_t i = 0; i < units && status == CSM_OK; i += group) {
        const size_t count = units - i < group ? units - i : group;
        call->first = i * call->in_slot;
        call->count = N - call->first;
        status = csm_parallel(count, piece, threads, sequences_body, call, &call->interrupt);
        for (size_t k = 0; k < count && status == CSM_OK; k++)
            status = add_slot(&tree, call->slots + k * call->slot, call->in_slot);
    }
    if (status == CSM_OK) status = end_tree(&tree);
    if (status == CSM_OK) write_sums(call, tree.block);
    for (int level = 0; level < TREE_LEVELS; level++) csm_release(tree.levels[level]);
    csm_release(tree.block);
    csm_release(call->slots);
    return status;
}

/* Checks the labels of all positions before anything is written. */
static csm_status check_labels(csm_crf_options *o) {
    const size_t count = crf_begin(o, o->sequences);
    for (size_t p = o->offsets ? (size_t)o->offsets[0] : 0; p < count && o->labels; p++) {
        const size_t row = o->rows ? (size_t)o->rows[p] : p;
        const int64_t label = o->labels[row];
        if (o->has_ignore && label == o->ignore) continue;
        if (label >= 0 && (uint64_t)label < o->tags) continue;
        o->position = row;
        return CSM_BAD_LABEL;
    }
    return CSM_OK;
}

static csm_status run_crf(crf_call *call, int threads) {
    csm_crf_options *o = call->o;
    const size_t N = o->sequences, L = o->tags;
    csm_status status = check_labels(o);
    if (status != CSM_OK || (status = csm_crf_make_model(call)) != CSM_OK) return status;
    size_t positions = N ? crf_begin(o, N) - crf_begin(o, 0) : 0;
    for (size_t i = 0; i < N; i++) {
        const size_t n = crf_begin(o, i + 1) - crf_begin(o, i);
        call->longest = n > call->longest ? n : call->longest;
    }
    const double each = (double)L * (double)L / 4 + 4 * (double)L + 4, work = each * (double)positions;
    threads = csm_threads_for(work, N, threads);
    const double in_piece = CSM_PIECE_ELEMENTS / 4 / (work / (double)(N ? N : 1) + 1);
    const size_t piece = in_piece > 1 ? (size_t)in_piece : 1;
    csm_buffer single[CRF_BUFFERS];
    status = csm_scratch_begin(&call->scratch, threads, CRF_BUFFERS, single);
    if (status != CSM_OK) return status;
    call->chains = csm_allocate((size_t)threads * sizeof *call->chains);
    if (!call->chains) status = CSM_NO_MEMORY;
    else memset(call->chains, 0, (size_t)threads * sizeof *call->chains);
    if (status == CSM_OK && call->task == CSM_CRF_LOSS) status = run_groups(call, piece, threads);
    else if (status == CSM_OK) status = csm_parallel(N, piece, threads, sequences_body, call, &call->interrupt);
    csm_release(call->chains);
    csm_scratch_end(&call->scratch);
    return status;
}

csm_status csm_run_crf(csm_dtype dtype, csm_crf_task task, const csm_table *table, const void *emissions,
                       csm_crf_options *o) {
    static const size_t sizes[] = {
#define SIZE(name, storage, compute) sizeof(storage),
        CSM_DTYPES(SIZE)
#undef SIZE
    };
    crf_call call;
    csm_fp_environment saved = csm_fp_enter();
    memset(&call, 0, sizeof call);
    call.table = table;
    call.kernels = &table->crf;
    call.dtype = dtype;
    call.task = task;
    call.itemsize = sizes[dtype];
    call.emissions = emissions;
    call.o = o;
    call.in_slot = 1;
    call.count = o->sequences;
    call.has_gradient = task == CSM_CRF_LOSS && o->by_tag;
    call.interrupt = (csm_interrupt){.check = o->interrupt, .context = o->interrupt_context, .caller = saved};
    csm_status status = run_crf(&call, o->threads < 1 ? 1 : o->threads);
    csm_crf_release_model(&call);
    csm_fp_leave(call.interrupt.caller);
    return status;
}

#define CRF(suffix, storage, compute)                                                           \
    csm_status csm_crf_##suffix(csm_crf_task task, const void *emissions, csm_crf_options *o) { \
        return csm_run_crf(CSM_DTYPE_##suffix, task, csm_current_table(), emissions, o);        \
    }
CSM_DTYPES(CRF)
