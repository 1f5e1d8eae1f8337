/* Gradients of softmax and log_softmax, one storage type T.
 *
 *   softmax_vjp      dx_j = y_j ((dy_j - s_hi) - s_lo) / T,           s = sum dy y
 *   log_softmax_vjp  dx_j = (dy_j - s 2^n_j - s em1_j) / T,           s = sum dy,  e^y = 2^n + em1
 *
 * Passes: the dot product (sum.inc.h; s is a pair in the compute type, so that dy - s keeps its digits if one class
 * dominates); the result.  Rows are computed one at a time (vjp_rows), short rows in groups of as many as a vector has
 * lanes (vjp_group), rows along a strided axis side by side (vjp_tile): the same operations in the same order, and so
 * the same bits.  The split of e^y makes 1 - e^y exact near y = 0, where log_softmax has kept the tail.  Elements with
 * y = 0 (log: y = -inf) take no part: their dy does not matter, and their dx is +0.
 * Any other NaN is written as the canonical NaN.
 * The division by T comes last for T > 1 and first for T < 1; powers of two keep what is not subnormal in the end from
 * being rounded as a subnormal number (element.inc.h).  Rows whose s is so small or so large that this is not enough
 * are left to ops/softmax_row.c (csm_vjp_is_ordinary).
 * Measured error (ACCURACY.md): 3.1 ULP of dx (softmax, beyond the rounding of s), of max(|dy - s 2^n|, |s em1|)/T
 * (log); float64 1.3.
 */
#ifndef FN
#error "vjp.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

INLINE void FN(dot)(const T *dy, const T *y, size_t k, V(dot) *dot, const int log) {
    V(t) absent = V(set)(log ? -CSM_INF : 0), ones = V(set)(1);
    enum { PER = 16 / V(W) };
    size_t i = 0;
    V(dot_zero)(dot);
    for (; i + 16 <= k; i += 16) {
        UNROLL
        for (int v = 0; v < PER; v++) {
            V(t) b = LOAD(y + i + v * V(W)), a = V(drop)(V(eq)(b, absent), LOAD(dy + i + v * V(W)));
            V(dot_add)(dot, v, a, log ? ones : b);
        }
    }
    UNROLL
    for (int v = 0; v < PER; v++) {
        size_t at = i + (size_t)v * V(W);
        if (at >= k) continue;
        V(t) a, b;
        if (at + V(W) <= k) {
            a = LOAD(dy + at);
            b = LOAD(y + at);
        } else {
            a = LOAD_PART(dy + at, k - at, V(zero)());
            b = LOAD_PART(y + at, k - at, absent);
        }
        a = V(drop)(V(eq)(b, absent), a);
        V(dot_add)(dot, v, a, log ? ones : b);
    }
}

static NOINLINE void FN(softmax_vjp_pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t,
                                           csm_block *block) {
    (void)e;
    (void)t;
    V(dot) dot;
    FN(dot)(a, b, k, &dot, 0);
    V(dot_total)(&dot, &block->hi, &block->lo);
}
static NOINLINE void FN(log_softmax_vjp_pass1)(const void *a, const void *b, void *e, size_t k,
                                               const csm_temperature *t, csm_block *block) {
    (void)e;
    (void)t;
    V(dot) dot;
    FN(dot)(a, b, k, &dot, 1);
    V(dot_total)(&dot, &block->hi, &block->lo);
}
static void FN(vjp_combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row) {
    (void)t;
    csm_combine_pair(blocks, count, EXP_MANTISSA == 23, row);
}

INLINE void FN(vjp_elements)(const T *dy, const T *y, T *dx, size_t k, V(vjp_constants) c, const int log,
                             const int lifts) {
    size_t i = 0;
    for (; i + V(W) <= k; i += V(W)) STORE(dx + i, V(vjp_element)(LOAD(dy + i), LOAD(y + i), c, log, lifts));
    if (i == k) return;
    const V(t) a = LOAD_PART(dy + i, k - i, V(zero)()), b = LOAD_PART(y + i, k - i, c.absent);
    STORE_PART(dx + i, k - i, V(vjp_element)(a, b, c, log, lifts));
}
INLINE void FN(vjp_results)(const T *dy, const T *y, T *dx, size_t k, V(vjp_constants) c, const int log) {
    if (c.lifts) FN(vjp_elements)(dy, y, dx, k, c, 0, 1);
    else FN(vjp_elements)(dy, y, dx, k, c, log, 0);
}
INLINE void FN(vjp_pass2)(const T *dy, const T *y, T *dx, size_t k, const csm_temperature *t, const csm_row *row,
                          const int log) {
    FN(vjp_results)(dy, y, dx, k, V(vjp_set)(t, V(set)(row->hi), V(set)(row->lo), log), log);
}
static NOINLINE void FN(softmax_vjp_pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t,
                                           const csm_row *row, const csm_block *block) {
    (void)block;
    FN(vjp_pass2)(a, b, y, k, t, row, 0);
}
static NOINLINE void FN(log_softmax_vjp_pass2)(const void *a, const void *b, void *y, size_t k,
                                               const csm_temperature *t, const csm_row *row, const csm_block *block) {
    (void)block;
    FN(vjp_pass2)(a, b, y, k, t, row, 1);
}

/* Whether both gradients share their loops, which saves 2.5 KB for each type and unit. */
#define VJP_ONE_COPY (V(W) == 1 || !STORED_AS_REAL)

/* The constants of many rows that differ from row to row. */
typedef struct FN(vjp_many) {
    REAL hi[CSM_VJP_WIDTH], lo[CSM_VJP_WIDTH], magic[CSM_VJP_WIDTH], lowest[CSM_VJP_WIDTH];
} FN(vjp_many);
/* Sets them for the W rows starting at i, from their sums: csm_combine_pair for W rows side by side.  Returns 0 if one
 * of the first `count` is not ordinary. */
INLINE int FN(vjp_put)(FN(vjp_many) * m, size_t i, v64_t *total, v64_t rest, const csm_temperature *t, const int log,
                       size_t count) {
    V(t) high, low;
    V(pair_of)(total, rest, &high, &low);
    if (log || (EXP_MANTISSA != 23 && t->inv_t1 > 1)) {
        REAL sums[V(W)];
        int is_ordinary = 1;
        V(STORE_REAL)(sums, high);
        for (size_t r = 0; r < V(W) &&r < count; r++)
            is_ordinary &= csm_vjp_is_ordinary(t, (double)sums[r], log, EXP_MANTISSA == 23);
        if (!is_ordinary) return 0;
    }
    V(vjp_constants) c = V(vjp_set)(t, high, low, log);
    V(STORE_REAL)(m->hi + i, c.hi);
    V(STORE_REAL)(m->lo + i, c.lo);
    V(STORE_REAL)(m->magic + i, c.shift.magic);
    V(STORE_REAL)(m->lowest + i, c.shift.lowest);
    return 1;
}
#define VJP_GET(from, m, i, c)                                                           \
    (c.hi = from(m->hi + i), c.lo = from(m->lo + i), c.shift.magic = from(m->magic + i), \
     c.shift.lowest = from(m->lowest + i))

#if EXP_MANTISSA == 23
/* A group of as many rows as a vector has lanes, whose sums are added side by side: (4096, 16) on AVX2, 22 -> 11 to
 * 13 ns per row.  Returns 0, with nothing written, if one of them is not ordinary. */
INLINE int FN(vjp_group)(const csm_rows_job *job, size_t i, const int log) {
    const T *dy[V(W)], *y[V(W)];
    v64_t sums[V(W)][V(EIGHT)], total[V(PARTS)];
    FN(vjp_many) many;
    for (int r = 0; r < V(W); r++) {
        V(dot) dot;
        dy[r] = (const T *)(job->input + (ptrdiff_t)(i + r) * job->input_step);
        y[r] = (const T *)(job->y + (ptrdiff_t)(i + r) * job->y_step);
        FN(dot)(dy[r], y[r], job->n, &dot, log);
        V(sum_eight)(&dot, sums[r]);
    }
    V(trees)((const v64_t(*)[V(EIGHT)])sums, total);
    if (!FN(vjp_put)(&many, 0, total, v64_zero(), job->temperature, log, V(W))) return 0;
    V(vjp_constants) c = V(vjp_set)(job->temperature, V(zero)(), V(zero)(), log);
    for (int r = 0; r < V(W); r++) {
        VJP_GET(V(splat), (&many), r, c);
        FN(vjp_results)(dy[r], y[r], (T *)(job->result + (ptrdiff_t)(i + r) * job->result_step), job->n, c, log);
    }
    return 1;
}
#endif

INLINE size_t FN(vjp_rows)(const csm_rows_job *job, const int log) {
    const csm_temperature *t = job->temperature;
    size_t i = 0;
#if EXP_MANTISSA == 23
    for (; V(W) > 1 && job->n <= GROUPED_VJP_LENGTH && i + V(W) <= job->rows; i += V(W))
        if (!FN(vjp_group)(job, i, log)) break; /* the row that is not ordinary ends the loop below */
#endif
    for (; i < job->rows; i++) { /* out of line, so that there is one copy of the passes */
        const char *dy = job->input + (ptrdiff_t)i * job->input_step, *y = job->y + (ptrdiff_t)i * job->y_step;
        char *dx = job->result + (ptrdiff_t)i * job->result_step;
        csm_block block;
        csm_row row;
        if (log) FN(log_softmax_vjp_pass1)(dy, y, NULL, job->n, t, &block);
        else FN(softmax_vjp_pass1)(dy, y, NULL, job->n, t, &block);
        FN(vjp_combine)(&block, 1, t, &row);
        if (!csm_vjp_is_ordinary(t, row.hi, log, EXP_MANTISSA == 23)) return i;
        if (log) FN(log_softmax_vjp_pass2)(dy, y, dx, job->n, t, &row, NULL);
        else FN(softmax_vjp_pass2)(dy, y, dx, job->n, t, &row, NULL);
    }
    return job->rows;
}
static NOINLINE size_t FN(vjp_rows_of_either)(const csm_rows_job *job, const int log) { return FN(vjp_rows)(job, log); }
static size_t FN(softmax_vjp_rows)(const csm_rows_job *job) {
    return VJP_ONE_COPY ? FN(vjp_rows_of_either)(job, 0) : FN(vjp_rows)(job, 0);
}
static size_t FN(log_softmax_vjp_rows)(const csm_rows_job *job) {
    return VJP_ONE_COPY ? FN(vjp_rows_of_either)(job, 1) : FN(vjp_rows)(job, 1);
}

/* Along a strided axis, rows side by side: the lanes of all rows are kept in scratch, and one class after the other is
 * added to them, so that memory is read in long runs.  It is read twice, the second time from the caches.
 * Rejected: a copy of the tile in scratch, as in tile.inc.h (1.3 to 2 times the time even if the stride is a power of
 * two); tiles of 128 bytes (twice the time of 256). */
enum { FN(VJP_REST) = CSM_VJP_WIDTH / 2 }; /* double: offset of a lane's low parts */
INLINE void FN(vjp_load)(const T *dy, const T *y, size_t left, V(t) absent, V(t) *a, V(t) *b) {
    if (left >= V(W)) {
        *a = LOAD(dy);
        *b = LOAD(y);
    } else {
        *a = LOAD_PART(dy, left, V(zero)());
        *b = LOAD_PART(y, left, absent);
    }
}
/* Adds all classes to the lanes of each row. */
INLINE void FN(vjp_tile_sums)(const csm_tile_job *job, double *lanes, const int log) {
    V(t) absent = V(set)(log ? -CSM_INF : 0), ones = V(set)(1);
    for (size_t j = 0; j < job->n; j++) {
        const T *dy = (const T *)(job->input + (ptrdiff_t)j * job->input_step);
        const T *y = (const T *)(job->y + (ptrdiff_t)j * job->y_step);
        double *lane = lanes + j % 16 * CSM_VJP_WIDTH;
        const double *before = j < 16 ? csm_zeros : lane;
        csm_prefetch_tile(job->input, job->input_step, j, job->n, job->width * sizeof(T));
        csm_prefetch_tile(job->y, job->y_step, j, job->n, job->width * sizeof(T));
        for (size_t c = 0; c < job->width; c += V(W)) {
            v64_t sum[V(PARTS)], rest = v64_zero();
            V(t) a, b;
            FN(vjp_load)(dy + c, y + c, job->width - c, absent, &a, &b);
            for (int p = 0; p < V(PARTS); p++) sum[p] = v64_load_f64(before + c + p * v64_W);
            if (EXP_MANTISSA != 23) rest = v64_load_f64(before + FN(VJP_REST) + c);
            V(dot_one)(sum, &rest, V(drop)(V(eq)(b, absent), a), log ? ones : b);
            for (int p = 0; p < V(PARTS); p++) v64_store_f64(lane + c + p * v64_W, sum[p]);
            if (EXP_MANTISSA != 23) v64_store_f64(lane + FN(VJP_REST) + c, rest);
        }
    }
}
/* Adds the lanes of W rows. */
INLINE void FN(vjp_tile_total)(const double *lanes, size_t n, size_t c, v64_t *total, v64_t *rest) {
    for (size_t p = 0; p < V(PARTS); p++) {
        v64_t sum[8], low[8];
        for (size_t l = 0; l < 8; l++) {
            const double *first = (l < n ? lanes + l * CSM_VJP_WIDTH : csm_zeros) + c + p * v64_W;
            const double *other = (l + 8 < n ? lanes + (l + 8) * CSM_VJP_WIDTH : csm_zeros) + c + p * v64_W;
            v64_t first_low = v64_zero(), other_low = v64_zero();
            if (EXP_MANTISSA != 23) {
                first_low = v64_load_f64(first + FN(VJP_REST));
                other_low = v64_load_f64(other + FN(VJP_REST));
            }
            V(dot_halves)(v64_load_f64(first), first_low, v64_load_f64(other), other_low, &sum[l], &low[l]);
        }
        V(fold)(sum, low, &total[p], rest);
    }
}
INLINE void FN(vjp_tile_results)(const csm_tile_job *job, const FN(vjp_many) * many, const int log, const int lifts) {
    V(vjp_constants) k = V(vjp_set)(job->temperature, V(zero)(), V(zero)(), log);
    for (size_t j = 0; j < job->n; j++) {
        const T *dy = (const T *)(job->input + (ptrdiff_t)j * job->input_step);
        const T *y = (const T *)(job->y + (ptrdiff_t)j * job->y_step);
        T *dx = (T *)(job->result + (ptrdiff_t)j * job->result_step);
        csm_prefetch_tile(job->result, job->result_step, j, job->n, job->width * sizeof(T));
        for (size_t c = 0; c < job->width; c += V(W)) {
            V(t) a, b;
            FN(vjp_load)(dy + c, y + c, job->width - c, k.absent, &a, &b);
            VJP_GET(V(LOAD_REAL), many, c, k);
            a = V(vjp_element)(a, b, k, log, lifts);
            if (c + V(W) <= job->width) STORE(dx + c, a);
            else STORE_PART(dx + c, job->width - c, a);
        }
    }
}
static NOINLINE int FN(vjp_tile)(const csm_tile_job *job, const int log) {
    double *lanes = job->scratch;
    FN(vjp_many) many;
    if (VJP_ONE_COPY) FN(vjp_tile_sums)(job, lanes, log);
    else if (log) FN(vjp_tile_sums)(job, lanes, 1);
    else FN(vjp_tile_sums)(job, lanes, 0);
    for (size_t c = 0; c < job->width; c += V(W)) {
        v64_t total[V(PARTS)], rest;
        FN(vjp_tile_total)(lanes, job->n, c, total, &rest);
        if (!FN(vjp_put)(&many, c, total, rest, job->temperature, log, job->width - c)) return 0;
    }
    const int lifts = V(vjp_set)(job->temperature, V(zero)(), V(zero)(), log).lifts;
    if (VJP_ONE_COPY) FN(vjp_tile_results)(job, &many, log, lifts);
    else if (log) FN(vjp_tile_results)(job, &many, 1, 0);
    else if (lifts) FN(vjp_tile_results)(job, &many, 0, 1);
    else FN(vjp_tile_results)(job, &many, 0, 0);
    return 1;
}
static int FN(softmax_vjp_tile)(const csm_tile_job *job) { return FN(vjp_tile)(job, 0); }
static int FN(log_softmax_vjp_tile)(const csm_tile_job *job) { return FN(vjp_tile)(job, 1); }
#undef VJP_GET
#undef VJP_ONE_COPY
