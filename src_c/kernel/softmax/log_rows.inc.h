/* log_softmax, logsumexp and entropy of contiguous rows, for one storage type: the passes after exp and its sum
 * (forward.inc.h, which has the formulas).
 *
 * Passes: one over the row for log_softmax, none for the others.  Accumulators: those of the sums; tails in double.
 * NaN: a sum that is NaN makes the row NaN.  Measured error: forward.inc.h; entropy 2.2, 2.4 ULP (float32, float64).
 */
#ifndef FN
#error "log_rows.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

static void FN(log_softmax_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t,
                                  csm_block *block) {
    (void)b;
    (void)e;
    block->max = FN(max)(a, k);
    FN(exp_exact)(a, NULL, k, t, block, NULL, NULL, NULL);
}

static void FN(entropy_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t,
                              csm_block *block) {
    (void)b;
    (void)e;
    block->max = FN(max)(a, k);
    FN(exp_entropy)(a, k, t, block, NULL);
}

static void FN(entropy_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    csm_combine_entropy(blocks, count, t, EXP_MANTISSA == 23, row);
}

static void FN(log_softmax_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    (void)t;
    csm_combine_log(blocks, count, row);
}

/* (x - m)/T - tail: both terms have one sign, so nothing cancels. */
static void FN(log_softmax_pass2)(const void *a, const void *b, void *to, size_t k, const csm_temperature *t,
                                  const csm_row *row, const csm_block *block) {
    const T *x = a;
    T *y = to;
    V(t) m = V(set)(row->max), inv_t = V(set)(t->inv_t), tail = V(set)(-row->tail);
    size_t i = 0;
    (void)b;
    (void)block;
    if (row->is_nan) {
        FN(fill)(y, k, CSM_NAN);
        return;
    }
    if ((i = FN(head)(y, k)) > 0) STORE_PART(y, i, V(fma)(V(sub)(LOAD_PART(x, i, m), m), inv_t, tail));
    for (; i + V(W) <= k; i += V(W)) STORE(y + i, V(fma)(V(sub)(LOAD(x + i), m), inv_t, tail));
    if (i < k) STORE_PART(y + i, k - i, V(fma)(V(sub)(LOAD_PART(x + i, k - i, m), m), inv_t, tail));
}

static void FN(logsumexp_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                                const csm_row *row, const csm_block *block) {
    (void)a;
    (void)b;
    (void)k;
    (void)block;
    FN(fill)(y, 1, row->is_nan ? CSM_NAN : row->max / t->t + row->tail);
}

/* The entropy is the tail. */
static void FN(entropy_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                              const csm_row *row, const csm_block *block) {
    (void)a;
    (void)b;
    (void)k;
    (void)t;
    (void)block;
    FN(fill)(y, 1, row->is_nan ? CSM_NAN : row->tail);
}

#if EXP_MANTISSA == 23
/* The first W rows, grouped, of up to GROUPED_LOG_LENGTH elements, and their tails.  e: the destination of e', or NULL.
 * Returns 0 if a row is NaN or not ordinary. */
INLINE int FN(grouped_log_rows_of)(const csm_rows_job *job, char *e, ptrdiff_t pitch, csm_tails *s, const int entropy) {
    double none = 0;
    FN(rows) g;
    if (!(entropy ? FN(exp_rows_entropy)(job, &g) : FN(exp_rows_exact)(job, e, pitch, &g))) return 0;
    for (int p = 0; p < V(PARTS); p++) v64_store_f64(s->sum + p * v64_W, g.sums[p]);
    for (int p = 0; entropy && p < V(PARTS); p++) v64_store_f64(s->far + p * v64_W, g.far[p]);
    for (int r = 0; r < V(W); r++) {
        s->max[r] = (double)g.max[r];
        s->n[r] = (double)g.n[r];
        s->count[r] = g.count[r];
        none += s->sum[r] * 0;
        if (V(is_small_sum)(s->sum[r], job->n)) {
            csm_block block = {.max = s->max[r]};
            FN(add_small)((const T *)(const void *)(job->input + r * job->input_step), NULL, job->n, job->temperature,
                          NULL, &block);
            s->sum[r] = block.hi;
        }
    }
    csm_find_tails(s, job->temperature->t, EXP_BIAS);
    if (entropy) csm_find_entropies(s, job->temperature);
    return none == 0;
}
static NOINLINE int FN(grouped_log_rows)(const csm_rows_job *job, char *e, ptrdiff_t pitch, csm_tails *s) {
    return FN(grouped_log_rows_of)(job, e, pitch, s, 0);
}
#endif

INLINE size_t FN(log_rows)(const csm_rows_job *job, csm_op op) {
    const csm_temperature *t = job->temperature;
    const int keeps_axis = op == CSM_OP_log_softmax, entropy = op == CSM_OP_entropy;
    if (job->n <= 16) return FN(small_rows)(job, op);
    double max = 0; /* of the next row: found while the scalar work for this one is in flight */
    int is_known = 0;
    for (size_t i = 0; i < job->rows; i++) {
        const T *x = (const T *)(job->input + (ptrdiff_t)i * job->input_step);
        T *y = (T *)(job->result + (ptrdiff_t)i * job->result_step);
        csm_block block;
        csm_row row;
#if EXP_MANTISSA == 23
        csm_tails s;
        csm_rows_job group_job = *job;
        group_job.input = (const char *)x;
        group_job.result = keeps_axis ? (char *)y : NULL;
        if (V(W) > 1 && !t->tempered && job->n <= GROUPED_LOG_LENGTH && i % V(W) == 0 &&
            job->rows - i >= V(W) &&(entropy ? FN(grouped_log_rows_of)(&group_job, NULL, 0, &s, 1)
                                             : FN(grouped_log_rows)(&group_job, NULL, 0, &s))) {
            for (int r = 0; r < V(W); r++) {
                block.max = row.max = s.max[r];
                row.tail = s.tail[r];
                row.is_nan = 0;
                if (keeps_axis) FN(log_softmax_pass2)(x, NULL, y, job->n, t, &row, &block);
                else if (entropy) FN(entropy_pass2)(x, NULL, y, 1, t, &row, &block);
                else FN(logsumexp_pass2)(x, NULL, y, 1, t, &row, &block);
                x = (const T *)((const char *)x + job->input_step);
                y = (T *)((char *)y + job->result_step);
            }
            i += V(W) - 1;
            is_known = 0;
            continue;
        }
#endif
        block.max = is_known ? max : FN(max)(x, job->n);
        if (!csm_is_ordinary(t, block.max)) return i;
        if (entropy) FN(exp_entropy)(x, job->n, t, &block, (const char *)x + job->input_step);
        else
            FN(exp_exact)(x, NULL, job->n, t, &block, NULL, (const char *)x + job->input_step,
                          keeps_axis ? (const char *)y : NULL);
        row.max = block.max;
        csm_log_tail(block.count, block.hi, block.lo, block.top, block.top_low, &row);
        if (entropy) row.tail = csm_entropy(&row, block.far, t, EXP_MANTISSA == 23);
        is_known = job->n <= EARLY_MAX_LENGTH && i + 1 < job->rows;
        if (is_known) max = FN(max)((const char *)x + job->input_step, job->n);
        if (keeps_axis) FN(log_softmax_pass2)(x, NULL, y, job->n, t, &row, &block);
        else if (entropy) FN(entropy_pass2)(x, NULL, y, 1, t, &row, &block);
        else FN(logsumexp_pass2)(x, NULL, y, 1, t, &row, &block);
    }
    return job->rows;
}
static size_t FN(log_softmax_rows)(const csm_rows_job *job) { return FN(log_rows)(job, CSM_OP_log_softmax); }
static size_t FN(logsumexp_rows)(const csm_rows_job *job) { return FN(log_rows)(job, CSM_OP_logsumexp); }
static size_t FN(entropy_rows)(const csm_rows_job *job) { return FN(log_rows)(job, CSM_OP_entropy); }
enum { FN(entropy_tile) = 0 }; /* other axes go through scratch */
