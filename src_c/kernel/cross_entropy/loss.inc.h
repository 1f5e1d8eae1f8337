/* Cross-entropy and its gradient for contiguous rows, one storage type T: hard and soft labels, class weights,
 * smoothing, z-loss, temperature, clipping.  job.h has the formulas, row.h the scalar work for a row.
 *
 * Pass 1: the maximum; for soft or smoothed labels sum a_j and sum a_j (max - x_j), both with terms >= 0 (sums of
 * a_j x_j would cancel); e' and its sum without the maxima.  Pass 2: g_j = e'_j f - a_j.  Rows of one block keep e' in
 * scratch, longer rows in the gradient if it has the compute type; otherwise e' is computed twice.
 * The label's own gradient is computed in double from the sum of the others, and written last.
 * Sums: e' in the lanes of sum.inc.h; weighted sums add four terms in the compute type, then in double (pairs for
 * float64).  The loss and the gradient of a row with NaN, +inf or only -inf are NaN; in other rows -inf is a class of
 * probability 0.  Rows whose maximum is beyond exp's range are left to ops/cross_entropy.c, which transforms them.
 * Measured error (ACCURACY.md; loss, gradient in ULP): labels 1.5, 2.1 (float32), 1.6, 2.0 (float64), others up to 2.9;
 * float64 with T and z-loss 4.1 (tests/ops/test_cross_entropy.py).
 * Time relative to softmax, gradient included, K = 1000: 1.25; with weights and smoothing 1.7, with soft labels 1.9;
 * K = 10: 2.1.
 */
#ifndef FN
#error "loss.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* block->far = sum a_j (ref - x_j) and block->mass = sum a_j, each as soft times a sum with q plus flat times a sum
 * without q.  Four terms are added in the compute type, then in double, which costs up to 1 ULP.  exact: a term with
 * a_j = 0 is 0 even if x_j = -inf. */
typedef struct FN(loss_far_sums) {
    V(dot) far_q, far_1, mass_q, mass_1;
} FN(loss_far_sums);

/* Adds 64 elements, four to each lane. */
INLINE void FN(loss_add)(V(dot) *sum, const V(t) *p) {
    enum { Q = 16 / V(W) };
    UNROLL
    for (int v = 0; v < Q; v++)
        V(dot_add)(sum, v, V(add)(V(add)(p[v], p[v + Q]), V(add)(p[v + 2 * Q], p[v + 3 * Q])), V(set)(1));
}
INLINE void FN(loss_add_product)(V(dot) *sum, const V(t) *a, const V(t) *b) {
    enum { Q = 16 / V(W) };
    UNROLL
    for (int v = 0; v < Q; v++) {
        V(t) p = V(mul)(a[v], b[v]), r = V(mul)(a[v + Q], b[v + Q]);
        p = V(fma)(a[v + 2 * Q], b[v + 2 * Q], p);
        r = V(fma)(a[v + 3 * Q], b[v + 3 * Q], r);
        V(dot_add)(sum, v, V(add)(p, r), V(set)(1));
    }
}

/* Adds 64 elements starting at i, or the last `left`. */
INLINE void FN(loss_far_group)(FN(loss_far_sums) * s, const T *x, V(t) ref, const csm_loss_terms *terms, size_t i,
                               size_t left, const int whole, const int with_mass, const int exact) {
    enum { STEP = 64 / V(W) };
    V(t) z[STEP], w[STEP], q[STEP];
#define COUNT(v) (whole ? (size_t)V(W) : (v) * V(W) < left ? left - (v) * V(W) : 0)
#define READ(to, from) \
    UNROLL             \
    for (size_t v = 0; v < STEP; v++) to[v] = COUNT(v) ? V(loss_reals)(from, i + v * V(W), COUNT(v)) : V(zero)();
    UNROLL
    for (size_t v = 0; v < STEP; v++) {
        const T *at = x + i + v * V(W);
        z[v] = COUNT(v) >= V(W) ? LOAD(at) : COUNT(v) ? LOAD_PART(at, COUNT(v), ref) : ref;
        z[v] = V(sub)(ref, z[v]); /* 0 beyond the row */
    }
    if (terms->w) {
        READ(w, terms->w)
        UNROLL
        for (size_t v = 0; v < STEP; v++) {
            if (exact) z[v] = V(drop)(V(eq)(w[v], V(zero)()), z[v]);
            z[v] = V(mul)(z[v], w[v]);
        }
    }
    if (with_mass && !terms->w) {
        UNROLL
        for (size_t v = 0; v < STEP; v++) { /* 1 within the row */
            const V(t) ones = V(set)(1), none = V(set)(CSM_NAN);
            w[v] = COUNT(v) >= V(W) ? ones : V(zero)();
            if (COUNT(v) && COUNT(v) < V(W))
                w[v] = V(keep)(V(ordered)(LOAD_PART(x + i + v * V(W), COUNT(v), none)), ones);
        }
    }
    if (terms->flat != 0 && !exact) FN(loss_add)(&s->far_1, z);
    if (terms->flat != 0 && with_mass) FN(loss_add)(&s->mass_1, w);
    if (terms->q) {
        READ(q, terms->q)
        if (with_mass) FN(loss_add_product)(&s->mass_q, q, w);
        if (!exact) FN(loss_add_product)(&s->far_q, q, z);
    }
    if (exact) { /* products with a_j, added in double: sums of distances can overflow */
        const V(t) flat = V(set)(terms->flat), soft = V(set)(terms->soft);
        UNROLL
        for (size_t v = 0; v < STEP; v++) {
            V(t) a = flat;
            if (terms->q)
                a = V(fma)(soft, (COUNT(v) ? V(loss_reals)(terms->q, i + v * V(W), COUNT(v)) : V(zero)()), flat);
            a = V(mul)(a, V(drop)(V(eq)(a, V(zero)()), z[v]));
            V(dot_add)(&s->far_1, (int)(v % (16 / V(W))), a, V(set)(1));
        }
    }
#undef READ
#undef COUNT
}
/* Out of line: reached only at the ends of long rows and in rows with infinities. */
static NOINLINE void FN(loss_far_rest)(FN(loss_far_sums) * s, const T *x, V(t) ref, const csm_loss_terms *terms,
                                       size_t i, size_t left, int exact) {
    FN(loss_far_group)(s, x, ref, terms, i, left, 0, 1, exact);
}
INLINE double FN(loss_both)(const V(dot) *q, const V(dot) *uniform, const csm_loss_terms *terms) {
    double hi, lo, sum = 0;
    if (terms->q && terms->soft != 0) {
        V(dot_total)(q, &hi, &lo);
        sum += terms->soft * (lo - lo == 0 ? hi + lo : hi);
    }
    if (terms->flat != 0) {
        V(dot_total)(uniform, &hi, &lo);
        sum += terms->flat * (lo - lo == 0 ? hi + lo : hi);
    }
    return sum;
}
INLINE void FN(loss_far)(const T *x, size_t k, const csm_temperature *t, const csm_loss_terms *terms, csm_block *block,
                         const int with_mass, const int exact) {
    const V(t) ref = V(set)(csm_reference(block->max, t));
    FN(loss_far_sums) s;
    size_t i = 0;
    V(dot_zero)(&s.far_q);
    V(dot_zero)(&s.far_1);
    if (with_mass) V(dot_zero)(&s.mass_q);
    if (with_mass) V(dot_zero)(&s.mass_1);
    for (; i + 64 <= k && !exact; i += 64) {
        /* Prefetches the next row or block, if it follows in memory: (4096, 1000) 0.57 -> 0.46 ns per element. */
        if (terms->q)
            for (size_t at = 0; at < 64; at += 64 / sizeof(REAL)) PREFETCH((const REAL *)terms->q + k + i + at);
        FN(loss_far_group)(&s, x, ref, terms, i, 64, 1, with_mass, exact);
    }
    for (; i < k; i += 64) {
        if (with_mass) FN(loss_far_rest)(&s, x, ref, terms, i, k - i, exact);
        else FN(loss_far_group)(&s, x, ref, terms, i, k - i, 0, 0, 0);
    }
    if (exact) {
        double hi, lo;
        V(dot_total)(&s.far_1, &hi, &lo);
        block->far = lo - lo == 0 ? hi + lo : hi;
    } else {
        block->far = FN(loss_both)(&s.far_q, &s.far_1, terms);
    }
    if (with_mass) block->mass = FN(loss_both)(&s.mass_q, &s.mass_1, terms);
}
static NOINLINE void FN(loss_term_sums)(const T *x, size_t k, const csm_temperature *t, const csm_loss_terms *terms,
                                        csm_block *block, int with_mass) {
    if (with_mass) FN(loss_far)(x, k, t, terms, block, 1, 0);
    else FN(loss_far)(x, k, t, terms, block, 0, 0);
    if (!(block->far - block->far == 0)) FN(loss_far)(x, k, t, terms, block, 1, 1); /* -inf, or NaN */
}

/* Pass 1 over a block.  scratch: e is padded to whole vectors.  ahead, ahead_to: addresses to prefetch. */
INLINE void FN(loss_block)(const T *x, REAL *e, size_t k, const csm_temperature *t, const csm_loss_terms *terms,
                           csm_block *block, const int scratch, const char *ahead, const char *ahead_to) {
    block->mass = block->far = 0;
    if (terms) FN(loss_term_sums)(x, k, t, terms, block, !scratch);
    if (!e) {
        FN(exp_exact)(x, NULL, k, t, block, NULL, ahead, NULL);
    } else if (scratch) {
        V(t) last = V(zero)();
        FN(exp_exact)(x, e, k, t, block, &last, ahead, ahead_to);
        if (k % V(W)) V(STORE_REAL)(e + k / V(W) *V(W), last);
    } else {
        FN(exp_exact)(x, e, k, t, block, NULL, ahead, ahead_to);
    }
}

/* loss_block without terms for a row of up to 16 elements, in registers; it also finds the maximum.  Sums are those of
 * `tiny_rows` in forward.inc.h.  Returns 0, with nothing stored, if the row is not ordinary. */
INLINE int FN(loss_small)(const T *x, REAL *e, size_t n, const csm_temperature *t, csm_block *block) {
    const int tempered = t->tempered;
    const size_t used = (n + V(W) - 1) / V(W), left = n - (used - 1) * V(W);
    const V(t) low = V(set)(-CSM_INF);
    V(t) z[V(SIXTEEN)], y[V(SIXTEEN)], max = low, n0, count = V(zero)();
    V(sum) sum;
    REAL first[V(W)];
    UNROLL
    for (size_t v = 0; v < V(SIXTEEN); v++) {
        z[v] = low;
        if (v + 1 < used || (v + 1 == used && left == V(W))) z[v] = LOAD(x + v * V(W));
        else if (v + 1 == used) z[v] = LOAD_PART(x + v * V(W), left, low);
        max = V(max)(z[v], max);
    }
    block->max = (double)V(top)(max);
    if (!csm_is_ordinary(t, block->max)) return 0;
    max = V(set)(block->max);
    V(shift) s = V(shift_to)(max, t, tempered, &n0);
    UNROLL
    for (size_t v = 0; v < V(SIXTEEN); v++) {
        y[v] = V(zero)();
        if (v >= used) continue;
        y[v] = V(exp_value)(z[v], s, tempered);
        if (e) V(STORE_REAL)(e + v * V(W), y[v]);
        y[v] = V(without_max)(y[v], V(eq)(z[v], max), &count);
    }
    V(sum_sixteen)(&sum, y);
    V(sum_total)(&sum, &block->hi, &block->lo);
    V(STORE_REAL)(first, n0);
    block->n = (double)first[0];
    block->mass = block->far = 0;
    csm_top(block->max, t->t, EXP_BIAS, EXP_MANTISSA == 23, block);
    block->count = V(sum_exact)(count);
    if (V(is_small_sum)(block->hi + block->lo, n)) FN(add_small)(x, NULL, n, t, NULL, block);
    return 1;
}

static void FN(loss_pass1)(const void *x, void *e, size_t k, const csm_temperature *t, const csm_loss_terms *terms,
                           csm_block *block) {
    FN(loss_block)(x, e, k, t, terms, block, 0, (const char *)x + k * sizeof(T),
                   e ? (const char *)e + k * sizeof(REAL) : NULL);
}
static void FN(loss_sums)(const csm_loss_call *c, const csm_loss_input *in, const csm_block *blocks, size_t count,
                          csm_loss_row *row) {
    csm_loss_sums(c, in, blocks, count, EXP_BIAS, row, NULL, NULL);
}
static void FN(loss_factors)(const csm_loss_call *c, const csm_loss_input *in, double shrink, csm_loss_row *row) {
    csm_loss_factors(c, in, shrink, EXP_MANTISSA == 23, row);
}

/* slope: NULL, or what the gradient is multiplied by before it is stored, of a soft cap.  The powers of a shard come
 * from memory again, after the exchange of its sums: AHEAD is how far they are prefetched, in bytes (one thread,
 * AVX-512: (1024, 8192) 1.03 instead of 1.17 ms, (64, 50257) 0.29 instead of 0.34). */
INLINE void FN(loss_write_any)(const REAL *e, T *y, const REAL *slope, size_t k, const csm_block *block,
                               const csm_loss_row *row, const csm_loss_terms *terms, const int scratch) {
    enum { AHEAD = 8192 };
    size_t i = 0;
#define STEEP(g, at) (slope ? V(mul)(g, V(LOAD_REAL)(slope + (at))) : (g))
#define STEEP_PART(g, at, count) (slope ? V(mul)(g, V(LOAD_PART_REAL)(slope + (at), count, V(zero)())) : (g))
    const double d = block->n - row->sums.n;
    if (row->plain && !terms && d >= -8) {
        const double up = csm_pow2(d);
        const V(t) f = V(set)(row->f * up), f_low = V(set)(row->f_low * up);
        if (!scratch && k >= ALIGNED_IN_PLACE_LENGTH && (i = FN(head)(y, k)) > 0)
            STORE_PART(y, i, STEEP_PART(V(scaled)(V(LOAD_PART_REAL)(e, i, f), f, f_low), 0, i));
        for (; i + 2 * V(W) <= k; i += 2 * V(W)) {
            for (size_t at = 0; at < 2 * V(W); at += 64 / sizeof(REAL)) PREFETCH((const char *)(e + i + at) + AHEAD);
            STORE(y + i, STEEP(V(scaled)(V(LOAD_REAL)(e + i), f, f_low), i));
            STORE(y + i + V(W), STEEP(V(scaled)(V(LOAD_REAL)(e + i + V(W)), f, f_low), i + V(W)));
        }
        for (; i + V(W) <= k; i += V(W)) STORE(y + i, STEEP(V(scaled)(V(LOAD_REAL)(e + i), f, f_low), i));
        if (i < k) {
            V(t) last = scratch ? V(LOAD_REAL)(e + i) : V(LOAD_PART_REAL)(e + i, k - i, f);
            STORE_PART(y + i, k - i, STEEP_PART(V(scaled)(last, f, f_low), i, k - i));
        }
        return;
    }
    V(loss_constants) c;
    const int plain = V(loss_set)(block, row, &c) && row->plain;
    if (plain && terms) {
#define WHOLE(q, w)                  \
    for (; i + V(W) <= k; i += V(W)) \
        STORE(y + i, STEEP(V(loss_gradient)(V(LOAD_REAL)(e + i), terms, i, V(W), c, q, w, 1), i));
        if (terms->q && terms->w) WHOLE(1, 1)
        else if (terms->q) WHOLE(1, 0)
        else if (terms->w) WHOLE(0, 1)
        else WHOLE(0, 0)
#undef WHOLE
    }
    for (; i < k; i += V(W)) {
        const int whole = k - i >= V(W);
        V(t) z = whole || scratch ? V(LOAD_REAL)(e + i) : V(LOAD_PART_REAL)(e + i, k - i, V(zero)());
        V(t) g = V(loss_any_gradient)(z, terms, i, k - i, c);
        if (!plain) {
            g = V(scaled)(V(max)(c.clip_low, V(min)(c.clip_high, g)), c.post, c.post_low);
            g = V(mul)(V(mul)(g, c.power1), c.power2);
            g = V(select)(V(ordered)(g), g, V(set)(CSM_NAN)); /* infinite factors */
        }
        if (whole) STORE(y + i, STEEP(g, i));
        else STORE_PART(y + i, k - i, STEEP_PART(g, i, k - i));
    }
#undef STEEP
#undef STEEP_PART
}
#if STORED_AS_REAL
static NOINLINE void FN(loss_write_capped)(const REAL *e, REAL *y, const REAL *slope, size_t k, const csm_block *block,
                                           const csm_loss_row *row, const csm_loss_terms *terms, int scratch) {
    FN(loss_write_any)(e, y, slope, k, block, row, terms, scratch);
}
#endif
INLINE void FN(loss_write)(const REAL *e, T *y, const REAL *slope, size_t k, const csm_block *block,
                           const csm_loss_row *row, const csm_loss_terms *terms, const int scratch) {
#if STORED_AS_REAL /* capped rows are */
    if (slope) {
        FN(loss_write_capped)(e, y, slope, k, block, row, terms, scratch);
        return;
    }
#else
    (void)slope;
#endif
    FN(loss_write_any)(e, y, NULL, k, block, row, terms, scratch);
}

static NOINLINE double FN(loss_squares)(const REAL *e, size_t k, const csm_block *block, const csm_loss_row *row,
                                        const csm_loss_terms *terms, ptrdiff_t label) {
    enum { PER = 16 / V(W) };
    V(loss_constants) c;
    V(dot) squares;
    double hi, lo;
    V(loss_set)(block, row, &c);
    V(dot_zero)(&squares);
    for (size_t i = 0; i < k; i += 16) {
        UNROLL
        for (int v = 0; v < PER; v++) {
            size_t at = i + (size_t)v * V(W);
            if (at >= k) continue;
            V(t) g = V(loss_any_gradient)(V(loss_reals)(e, at, k - at), terms, at, k - at, c);
            /* leaves out elements beyond the row, to which `flat` would add, and the label, whose gradient differs */
            const int holds_label = label >= (ptrdiff_t)at && label < (ptrdiff_t)(at + V(W));
            if (k - at < V(W) || holds_label) {
                REAL kept[V(W)] = {0};
                if (k - at < V(W)) V(STORE_PART_REAL)(kept, k - at, g);
                else V(STORE_REAL)(kept, g);
                if (holds_label) kept[label - (ptrdiff_t)at] = 0;
                g = V(LOAD_REAL)(kept);
            }
            V(dot_add)(&squares, v, g, g);
        }
    }
    V(dot_total)(&squares, &hi, &lo);
    return hi + lo;
}

static double FN(loss_norm)(const void *x, const void *e, size_t k, const csm_temperature *t, const csm_block *block,
                            const csm_loss_row *row, const csm_loss_terms *terms, ptrdiff_t label, void *scratch) {
    if (!e) {
        csm_block again = *block;
        FN(exp_store)(x, scratch, k, t, &again, NULL, NULL, NULL);
        e = scratch;
    }
    return FN(loss_squares)(e, k, block, row, terms, label);
}

static void FN(loss_pass2)(const void *x, const void *e, void *y, const void *slope, size_t k, const csm_temperature *t,
                           const csm_block *block, const csm_loss_row *row, const csm_loss_terms *terms,
                           void *scratch) {
    if (!e) {
        csm_block again = *block;
        FN(exp_store)(x, scratch, k, t, &again, NULL, (const char *)x + k * sizeof(T), (const char *)y + k * sizeof(T));
        e = scratch;
    }
    FN(loss_write)(e, y, slope, k, block, row, terms, 0);
}

static int FN(loss_mass)(const void *q, const void *w, size_t k, double *hi, double *lo) {
    enum { PER = 16 / V(W) };
    V(t) lowest = V(zero)();
    V(dot) sum;
    size_t i = 0;
    V(dot_zero)(&sum);
    for (; !w && i + 32 <= k; i += 32) { /* adds two elements in the compute type: 0.5 ULP */
        for (size_t at = 0; at < 32; at += 64 / sizeof(REAL)) PREFETCH((const char *)((const REAL *)q + i + at) + 6144);
        UNROLL
        for (int v = 0; v < PER; v++) {
            const REAL *at = (const REAL *)q + i + (size_t)v * V(W);
            V(t) a = V(LOAD_REAL)(at), b = V(LOAD_REAL)(at + 16);
            lowest = V(min)(a, V(min)(b, lowest));
            V(dot_add)(&sum, v, V(add)(a, b), V(set)(1));
        }
    }
    for (; i < k; i += 16) {
        UNROLL
        for (int v = 0; v < PER; v++) {
            const size_t at = i + (size_t)v * V(W);
            if (at >= k) continue;
            V(t) z = V(loss_reals)(q, at, k - at);
            lowest = V(min)(z, lowest);
            V(dot_add)(&sum, v, z, w ? V(loss_reals)(w, at, k - at) : V(set)(1));
        }
    }
    V(dot_total)(&sum, hi, lo);
    double low = -(double)V(top)(V(sub)(V(zero)(), lowest)), total = *hi + *lo;
    if (low >= 0 && total - total == 0) return 1;
    if (!(low >= 0)) return 0;
    *hi = *lo = 0; /* NaN, infinity, or an overflow when two elements were added */
    for (size_t j = 0; j < k; j++) {
        double z = (double)((const REAL *)q)[j];
        if (!(z >= 0 && z < CSM_INF)) return 0;
        *hi += w ? z * (double)((const REAL *)w)[j] : z;
    }
    return 1;
}

INLINE void FN(loss_write_label)(T *y, const REAL *slope, int64_t label, double value) {
    V(t) g = V(set)(value);
    if (slope) g = V(mul)(g, V(LOAD_PART_REAL)(slope + label, 1, V(zero)()));
    STORE_PART(y + label, 1, g);
}

#if EXP_MANTISSA == 23
/* loss_rows with labels and no option for a group of W rows starting at row i, of up to GROUPED_LOSS_LENGTH elements.
 * Returns 0, with nothing written, if a row is ignored, NaN or not ordinary. */
static NOINLINE int FN(grouped_loss_rows)(const csm_loss_job *job, size_t i) {
    const csm_temperature *t = job->call->t;
    const size_t n = job->call->n;
    const int64_t *label = job->label + (ptrdiff_t)i * job->order;
    const char *x = job->x + (ptrdiff_t)i * job->x_step;
    char *y = job->call->gradient ? job->gradient + (ptrdiff_t)i * job->gradient_step : NULL;
    const char *slope = job->slope ? job->slope + (ptrdiff_t)i * job->slope_step : NULL;
    const size_t pitch = (n + 15) / 16 * 16 + 16;
    FN(group) g;
    csm_tails s;
    csm_simple_losses l;
    REAL scratch_e[V(W)];
    REAL *const e = job->scratch;
    int64_t all = 0;
    for (ptrdiff_t r = 0; r < V(W); r++) all |= label[r * job->order];
    if (all < 0) return 0; /* a row is ignored */
    const csm_rows_job rows = {.input = x,
                               .result = y,
                               .input_step = job->x_step,
                               .result_step = job->gradient_step,
                               .n = n,
                               .temperature = t,
                               .prefetch = CSM_PREFETCH_ALL};
    if (n <= 16 ? !FN(group_log)(&g, x, job->x_step, n, t, &s)
                : !FN(grouped_log_rows)(&rows, y ? (char *)e : NULL, pitch * sizeof(REAL), &s))
        return 0;
    for (ptrdiff_t r = 0; r < V(W); r++) {
        const size_t at = (size_t)label[r * job->order];
        const T *logits = (const T *)(const void *)(x + r * job->x_step);
        l.e_label[r] = n <= 16 ? (double)g.e[r][at] : y ? (double)e[(size_t)r * pitch + at] : 0;
        if (n > 16) V(STORE_REAL)(scratch_e, LOAD_PART(logits + at, 1, V(zero)()));
        l.x_label[r] = (double)(n <= 16 ? g.z[r][at] : scratch_e[0]);
    }
    csm_find_losses(job->call, &s, &l);
    for (ptrdiff_t r = 0; r < V(W); r++) {
        job->loss[((ptrdiff_t)i + r) * job->order] = l.loss[r];
        if (!y) continue;
        T *to = (T *)(void *)(y + r * job->gradient_step);
        const REAL *steep = slope ? (const REAL *)(const void *)(slope + r * job->slope_step) : NULL;
        if (n <= 16) {
            for (size_t v = 0; v * V(W) < n; v++) {
                V(t) z = V(scaled)(V(LOAD_REAL)(g.e[r] + v * V(W)), V(splat)(l.f + r), V(splat)(l.f_low + r));
                if (steep) z = V(mul)(z, V(loss_reals)(steep, v * V(W), n - v * V(W)));
                FN(group_store)(to, n, v, z);
            }
        } else {
            const csm_block block = {0};
            const csm_loss_row row = {.f = (double)l.f[r], .f_low = (double)l.f_low[r], .plain = 1};
            FN(loss_write)(e + (size_t)r * pitch, to, steep, n, &block, &row, NULL, 0);
        }
        FN(loss_write_label)(to, steep, label[r * job->order], l.target[r]);
    }
    return 1;
}
#endif

INLINE size_t FN(loss_rows_of)(const csm_loss_job *job, csm_pending_losses *pending) {
    const csm_loss_call *call = job->call;
    const csm_temperature *t = call->t;
    const size_t n = call->n;
    csm_loss_terms all_terms = {NULL, call->w, 1 - call->smoothing, call->smoothing / (double)n};
    const csm_loss_terms *terms = call->soft || call->smoothing != 0 ? &all_terms : NULL;
    const int is_small = n <= 16 && !terms;
#if EXP_MANTISSA == 23
    const int has_groups =
        V(W) > 1 && n <= GROUPED_LOSS_LENGTH && call->simple && !call->w && !job->weight && !job->upstream;
#endif
    double max = 0;
    int max_is_known = 0;
    for (size_t i = 0; i < job->rows; i++) {
#if EXP_MANTISSA == 23
        if (has_groups && i % V(W) == 0 && job->rows - i >= V(W) &&FN(grouped_loss_rows)(job, i)) {
            i += V(W) - 1;
            max_is_known = 0;
            continue;
        }
#endif
        const ptrdiff_t at = (ptrdiff_t)i, order = at * job->order;
        const T *x = (const T *)(const void *)(job->x + at * job->x_step);
        T *y = call->gradient ? (T *)(void *)(job->gradient + at * job->gradient_step) : NULL;
        const REAL *slope = job->slope ? (const REAL *)(const void *)(job->slope + at * job->slope_step) : NULL;
        csm_loss_input in = {.w_label = 1, .upstream = 1}, next;
        csm_block block;
        csm_loss_row row;
        REAL scratch_e[V(W)], *e = call->gradient ? job->scratch : NULL;
        if (e && job->max) e = (REAL *)(void *)(job->rows_in_scratch + at * job->x_step);
        if (job->upstream) memcpy(&in.upstream, job->upstream + at * job->upstream_step, sizeof in.upstream);
        if (!csm_read_label_and_weight(job, at, &in)) {
            job->loss[order] = 0;
            if (y) FN(fill)(y, n, 0);
            continue;
        }
        if (is_small) {
            if (!FN(loss_small)(x, e, n, t, &block)) return i;
        } else {
            block.max = job->max ? job->max[at] : max_is_known ? max : FN(max)(x, n);
            if (!csm_is_ordinary(t, block.max)) return i;
        }
        if (job->label) {
            V(STORE_REAL)(scratch_e, LOAD_PART(x + in.label, 1, V(zero)()));
            in.x_label = in.z_label = (double)scratch_e[0];
            if (call->w) in.w_label = (double)((const REAL *)call->w)[in.label];
            in.mass = in.w_label;
        } else {
            all_terms.q = job->q + at * job->q_step;
            in.mass = job->mass[order];
        }
        in.max = block.max;
        if (!is_small) FN(loss_block)(x, e, n, t, terms, &block, 1, (const char *)x + job->x_step, (const char *)y);
        in.n = block.n;
        in.e_label = e && job->label ? (double)e[in.label] : -1;
        if (pending && pending->count == CSM_PENDING) csm_finish_losses(pending);
        csm_loss_sums(call, &in, &block, 1, EXP_BIAS, &row, pending, &job->loss[order]);
        max_is_known = n <= EARLY_MAX_LENGTH && !is_small && !job->max && i + 1 < job->rows &&
                       csm_read_label_and_weight(job, at + 1, &next);
        if (max_is_known) max = FN(max)((const char *)x + job->x_step, n);
        if (!y) continue;
        if (row.is_nan) {
            FN(fill)(y, n, CSM_NAN);
            continue;
        }
        double shrink = 1;
        if (call->clip_norm < CSM_INF) {
            csm_loss_factors(call, &in, -1, EXP_MANTISSA == 23, &row);
            shrink = csm_loss_shrink(call, &in, &row, FN(loss_squares)(e, n, &block, &row, terms, in.label));
        }
        csm_loss_factors(call, &in, shrink, EXP_MANTISSA == 23, &row);
        if (row.is_nan) {
            FN(fill)(y, n, CSM_NAN);
            continue;
        }
        FN(loss_write)(e, y, slope, n, &block, &row, terms, 1);
        if (job->label) FN(loss_write_label)(y, slope, in.label, row.target);
    }
    return job->rows;
}
static size_t FN(loss_rows)(const csm_loss_job *job) {
    csm_pending_losses pending;
    pending.count = 0;
    const size_t done = FN(loss_rows_of)(job, job->rows < 4 ? NULL : &pending); /* worthwhile with at least four rows */
    if (pending.count) csm_finish_losses(&pending);
    return done;
}
