/* The Kullback-Leibler divergence of two rows of logits, sum p (log p - log q), p = softmax(x / T), q = softmax(y / T),
 * and its gradient with respect to y, (q - p) / T, for one storage type.
 *
 *   w_j  = log p_j - log q_j = ((x_j - m_x) - (y_j - m_y)) / T + (tail_y - tail_x)
 *   loss = sum p_j w_j = sum p_j h(w_j),  h(w) = w - 1 + e^-w >= 0
 *
 * Where the distributions differ by enough, the first sum is accurate (csm_kl_is_linear).  Otherwise the second one
 * replaces it, whose terms p log(p / q) - p + q have one sign: where |w| <= 1/2, h is w^2 times a polynomial, so that
 * neither the rounding of w nor that of p matters to first order; elsewhere the term is p w + (q - p).  An element with
 * x = -inf has the term q.  p and q are e' of the two rows, times 1 / total: sums are divided once.
 * Passes: the maxima; e' of both rows and their sums without the maxima, kept in scratch; loss and gradient.
 * Accumulators: those of sum.inc.h; of the loss, four terms in the compute type, then double (float64: pairs).
 * NaN: rows whose sums are NaN, whose loss is not finite (q = 0 < p, or a product beyond the range), or beyond exp's
 * range are left to ops/divergence_row.c before anything of them is overwritten.
 * Measured error: ACCURACY.md.
 */
#ifndef FN
#error "divergence.inc.h needs FN(name), T, LOAD, LOAD_PART, STORE, STORE_PART"
#endif

/* h(w) / w^2 for |w| <= 1/2, a minimax fit: float 2^-25, double 2^-52. */
INLINE V(t) FN(kl_curve)(V(t) w) {
#if EXP_MANTISSA == 23
    V(t) q = V(fma)(V(set)(-0x1.a0d278p-13), w, V(set)(0x1.6e8798p-10));
    q = V(fma)(q, w, V(set)(-0x1.11121p-7));
    q = V(fma)(q, w, V(set)(0x1.555382p-5));
    q = V(fma)(q, w, V(set)(-0x1.555554p-3));
#else
    V(t) q = V(fma)(V(set)(0x1.1f49dd4d1c1b1p-29), w, V(set)(-0x1.b04a4bf24536p-26));
    q = V(fma)(q, w, V(set)(0x1.27e5584b4e687p-22));
    q = V(fma)(q, w, V(set)(-0x1.71dd4794d4f9ep-19));
    q = V(fma)(q, w, V(set)(0x1.a01a011244006p-16));
    q = V(fma)(q, w, V(set)(-0x1.a01a020a1e943p-13));
    q = V(fma)(q, w, V(set)(0x1.6c16c16c542cfp-10));
    q = V(fma)(q, w, V(set)(-0x1.11111110fe2f2p-7));
    q = V(fma)(q, w, V(set)(0x1.5555555555446p-5));
    q = V(fma)(q, w, V(set)(-0x1.5555555555592p-3));
#endif
    return V(fma)(q, w, V(set)(0.5));
}

typedef struct FN(kl_constants) {
    V(t) max_x, max_y, inv_t, offset, ratio, factor, up_x, up_y, post1, post2;
} FN(kl_constants);

/* Adds the term of a vector to the lane `sum` and returns its gradient.  exact: h(w) instead of w.  plain: there are no
 * powers of two apart. */
INLINE V(t) FN(kl_term)(V(t) x, V(t) y, V(t) e_x, V(t) e_y, const FN(kl_constants) * c, V(t) *sum, const int exact,
                        const int tempered, const int plain) {
    if (!plain) {
        e_x = V(mul)(e_x, c->up_x);
        e_y = V(mul)(e_y, c->up_y);
    }
    const V(t) far = V(sub)(V(sub)(x, c->max_x), V(sub)(y, c->max_y));
    const V(t) w = tempered ? V(fma)(far, c->inv_t, c->offset) : V(add)(far, c->offset);
    const V(mask) takes_part = V(ge)(x, V(set)(-EXP_MOST));
    const V(t) difference = V(fnma)(e_y, c->ratio, e_x); /* p - q */
    if (exact) {
        const V(t) square = V(mul)(w, w);
        const V(mask) is_small = V(ge)(V(set)(0.25), square);
        const V(t) h = V(keep)(takes_part, V(select)(is_small, V(mul)(square, FN(kl_curve)(w)), w));
        *sum = V(fma)(e_x, h, V(sub)(*sum, V(drop)(is_small, difference)));
    } else {
        *sum = V(fma)(e_x, V(keep)(takes_part, w), *sum);
    }
    V(t) g = V(sub)(V(zero)(), V(mul)(difference, c->factor)); /* no -0 */
    if (!plain) {
        g = V(mul)(V(mul)(g, c->post1), c->post2);
        g = V(select)(V(ordered)(g), g, V(set)(CSM_NAN)); /* infinite factors */
    }
    return g;
}

INLINE double FN(kl_pass)(const T *x, const T *y, const REAL *e_x, const REAL *e_y, T *to, size_t k,
                          const FN(kl_constants) * c, const int stores, const int exact, const int tempered,
                          const int plain) {
    V(products) sum;
    V(products_zero)(&sum);
    size_t i = 0;
    for (; i + V(PRODUCTS) *V(W) <= k; i += V(PRODUCTS) *V(W)) {
        UNROLL
        for (size_t v = 0; v < V(PRODUCTS); v++) {
            const size_t at = i + v * V(W);
            const V(t) g = FN(kl_term)(LOAD(x + at), LOAD(y + at), V(LOAD_REAL)(e_x + at), V(LOAD_REAL)(e_y + at), c,
                                       &sum.hi[v % V(CYCLE)], exact, tempered, plain);
            if (stores) STORE(to + at, g);
        }
        V(products_flush)(&sum);
    }
    for (size_t v = 0; i < k; i += V(W), v++) {
        const size_t left = k - i;
        const V(t) low = V(set)(-CSM_INF), none = V(zero)();
        const int is_whole = left >= V(W);
        const V(t) a = is_whole ? LOAD(x + i) : LOAD_PART(x + i, left, low);
        const V(t) b = is_whole ? LOAD(y + i) : LOAD_PART(y + i, left, none);
        const V(t) e_a = is_whole ? V(LOAD_REAL)(e_x + i) : V(LOAD_PART_REAL)(e_x + i, left, none);
        const V(t) e_b = is_whole ? V(LOAD_REAL)(e_y + i) : V(LOAD_PART_REAL)(e_y + i, left, none);
        const V(t) g = FN(kl_term)(a, b, e_a, e_b, c, &sum.hi[v % V(CYCLE)], exact, tempered, plain);
        if (stores && is_whole) STORE(to + i, g);
        else if (stores) STORE_PART(to + i, left, g);
    }
    V(products_flush)(&sum);
    return V(products_total)(&sum);
}
/* The common cases, each out of line. */
static NOINLINE double FN(kl_linear)(const T *x, const T *y, const REAL *e_x, const REAL *e_y, T *to, size_t k,
                                     const FN(kl_constants) * c, int tempered) {
    if (tempered) return FN(kl_pass)(x, y, e_x, e_y, to, k, c, 1, 0, 1, 1);
    return FN(kl_pass)(x, y, e_x, e_y, to, k, c, 1, 0, 0, 1);
}
static NOINLINE double FN(kl_sum)(const T *x, const T *y, const REAL *e_x, const REAL *e_y, size_t k,
                                  const FN(kl_constants) * c, int exact) {
    if (exact) return FN(kl_pass)(x, y, e_x, e_y, NULL, k, c, 0, 1, 1, 1);
    return FN(kl_pass)(x, y, e_x, e_y, NULL, k, c, 0, 0, 1, 1);
}

/* shift_x, shift_y: powers of two of e', those of a block relative to its row.  The larger of them is taken out of both
 * sides, so that what is left is not subnormal; it is returned in *shift, and the gradient has it with the exponent of
 * its factor.  Returns whether all powers can be left out. */
INLINE int FN(kl_set)(const csm_kl_row *row, const csm_temperature *t, double shift_x, double shift_y,
                      FN(kl_constants) * c, double *shift) {
    c->max_x = V(set)(row->max_x);
    c->max_y = V(set)(row->max_y);
    c->inv_t = V(set)(t->inv_t);
    c->offset = V(set)(row->offset);
    c->ratio = V(set)(row->ratio);
    c->factor = V(set)(row->factor);
    *shift = shift_x > shift_y ? shift_x : shift_y;
    if (shift_x == 0 && shift_y == 0 && row->exponent == 0) return 1;
    const double lowest = 1 - EXP_EXPONENT_BIAS, exponent = row->exponent + *shift;
    const double half = (exponent * 0.5 + 0x1.8p52) - 0x1.8p52;
    shift_x -= *shift;
    shift_y -= *shift;
    c->up_x = V(set)(shift_x < lowest ? 0 : csm_pow2(shift_x));
    c->up_y = V(set)(shift_y < lowest ? 0 : csm_pow2(shift_y));
    c->post1 = V(set)(csm_times_pow2(1, half));
    c->post2 = V(set)(csm_times_pow2(1, exponent - half));
    return 0;
}

static double FN(kl_pass2)(const void *x, const void *y, const void *e_x, const void *e_y, void *to, size_t k,
                           const csm_temperature *t, const csm_kl_row *row, double shift_x, double shift_y, int exact) {
    FN(kl_constants) c;
    double shift, sum;
    if (FN(kl_set)(row, t, shift_x, shift_y, &c, &shift))
        return to && !exact ? FN(kl_linear)(x, y, e_x, e_y, to, k, &c, t->tempered)
                            : FN(kl_sum)(x, y, e_x, e_y, k, &c, exact);
    if (exact) sum = FN(kl_pass)(x, y, e_x, e_y, NULL, k, &c, 0, 1, 1, 0);
    else if (to) sum = FN(kl_pass)(x, y, e_x, e_y, to, k, &c, 1, 0, 1, 0);
    else sum = FN(kl_pass)(x, y, e_x, e_y, NULL, k, &c, 0, 0, 1, 0);
    return csm_times_pow2(sum, shift);
}

static void FN(kl_pass1)(const void *x, void *e, size_t k, const csm_temperature *t, csm_block *block) {
    block->max = FN(max)(x, k);
    FN(exp_exact)(x, e, k, t, block, NULL, (const char *)x + k * sizeof(T), (const char *)e + k * sizeof(REAL));
}
static void FN(kl_again)(const void *x, void *e, size_t k, const csm_temperature *t, const csm_block *block) {
    csm_block again = *block;
    FN(exp_store)(x, e, k, t, &again, NULL, NULL, NULL);
}

/* Writes the loss and the gradient of a row whose e' are known.  Returns 0, with nothing of the inputs overwritten, for
 * csm_kl_slow_row. */
INLINE int FN(kl_finish)(const csm_kl_job *job, const T *x, const T *y, const REAL *e_x, const REAL *e_y, T *to,
                         const csm_kl_row *row, double weight, double *loss) {
    /* A gradient that overwrites its input waits until the loss is known. */
    const int waits = to == x || to == y;
    double sum = FN(kl_pass2)(x, y, e_x, e_y, waits ? NULL : to, job->n, job->t, row, 0, 0, 0);
    if (!csm_kl_is_linear(row, sum, job->log_n)) sum = FN(kl_pass2)(x, y, e_x, e_y, NULL, job->n, job->t, row, 0, 0, 1);
    if (csm_kl_is_slow(row, sum, EXP_MANTISSA == 23)) return 0;
    if (waits && to) FN(kl_pass2)(x, y, e_x, e_y, to, job->n, job->t, row, 0, 0, 0);
    *loss = weight * (sum / row->total);
    return 1;
}

#if EXP_MANTISSA == 23
/* A group of W rows without weights.  Returns the number of rows done, 0 if a row is NaN or not ordinary. */
static NOINLINE size_t FN(kl_group_rows)(const csm_kl_job *job, size_t i) {
    const size_t n = job->n, pitch = (n + 15) / 16 * 16 + 16;
    const char *x = job->x + (ptrdiff_t)i * job->x_step, *y = job->y + (ptrdiff_t)i * job->y_step;
    REAL *const e_x = job->scratch, *const e_y = e_x + csm_loss_scratch(n, V(W));
    FN(group) g_x, g_y;
    csm_tails tails_x, tails_y;
    csm_kl_group all;
    const csm_rows_job rows_x = {.input = x, .input_step = job->x_step, .n = n, .temperature = job->t};
    const csm_rows_job rows_y = {.input = y, .input_step = job->y_step, .n = n, .temperature = job->t};
    if (n <= 16 ? !FN(group_log)(&g_x, x, job->x_step, n, job->t, &tails_x) ||
                      !FN(group_log)(&g_y, y, job->y_step, n, job->t, &tails_y)
                : !FN(grouped_log_rows)(&rows_x, (char *)e_x, pitch * sizeof(REAL), &tails_x) ||
                      !FN(grouped_log_rows)(&rows_y, (char *)e_y, pitch * sizeof(REAL), &tails_y))
        return 0;
    csm_kl_find_group(&tails_x, &tails_y, &all);
    for (size_t r = 0; r < V(W); r++) {
        double weight, factor;
        csm_kl_read(job, (ptrdiff_t)(i + r), &weight, &factor);
        factor /= job->t->t;
        csm_kl_row row = {.max_x = tails_x.max[r],
                          .max_y = tails_y.max[r],
                          .offset = all.offset[r],
                          .tails = tails_x.tail[r] + tails_y.tail[r],
                          .ratio = all.ratio[r],
                          .total = all.total[r],
                          .factor = factor / all.total[r]};
        csm_kl_balance(&row, factor, EXP_SAFE);
        char *to = job->gradient ? job->gradient + (ptrdiff_t)(i + r) * job->gradient_step : NULL;
        if (!FN(kl_finish)(job, (const T *)(const void *)(x + (ptrdiff_t)r * job->x_step),
                           (const T *)(const void *)(y + (ptrdiff_t)r * job->y_step),
                           n <= 16 ? g_x.e[r] : e_x + r * pitch, n <= 16 ? g_y.e[r] : e_y + r * pitch, (T *)(void *)to,
                           &row, weight, job->loss + ((ptrdiff_t)i + (ptrdiff_t)r) * job->order))
            return r;
    }
    return V(W);
}
#endif

static size_t FN(kl_rows)(const csm_kl_job *job) {
    const csm_temperature *t = job->t;
    const size_t n = job->n;
    REAL *const e_x = job->scratch, *const e_y = e_x + csm_loss_scratch(n, EXP_MANTISSA == 23 ? job->rows : 1);
    for (size_t i = 0; i < job->rows; i++) {
#if EXP_MANTISSA == 23
        if (V(W) > 1 && n <= GROUPED_LOG_LENGTH && (n <= 16 || !t->tempered) && !job->weight && job->rows - i >= V(W)) {
            const size_t done = FN(kl_group_rows)(job, i);
            i += done;
            if (done == V(W)) {
                i--;
                continue;
            }
        }
#endif
        const ptrdiff_t at = (ptrdiff_t)i;
        const T *x = (const T *)(const void *)(job->x + at * job->x_step);
        const T *y = (const T *)(const void *)(job->y + at * job->y_step);
        T *to = job->gradient ? (T *)(void *)(job->gradient + at * job->gradient_step) : NULL;
        double weight, factor, *loss = job->loss + at * job->order;
        csm_block block_x = {0}, block_y = {0};
        csm_row sums_x, sums_y;
        csm_kl_row row;
        if (!csm_kl_read(job, at, &weight, &factor)) {
            *loss = 0;
            if (to) FN(fill)(to, n, 0);
            continue;
        }
        factor /= t->t;
        block_x.max = FN(max)(x, n);
        block_y.max = FN(max)(y, n);
        if (!csm_is_ordinary(t, block_x.max) || !csm_is_ordinary(t, block_y.max)) return i;
        if (n <= 16) {
            FN(loss_small)(x, e_x, n, t, &block_x);
            FN(loss_small)(y, e_y, n, t, &block_y);
        } else {
            FN(exp_exact)(x, e_x, n, t, &block_x, NULL, (const char *)x + job->x_step, NULL);
            FN(exp_exact)(y, e_y, n, t, &block_y, NULL, (const char *)y + job->y_step, (const char *)to);
        }
        csm_log_tail(block_x.count, block_x.hi, block_x.lo, block_x.top, block_x.top_low, &sums_x);
        csm_log_tail(block_y.count, block_y.hi, block_y.lo, block_y.top, block_y.top_low, &sums_y);
        csm_kl_set(&row, block_x.max, block_y.max, sums_x.tail, sums_y.tail, csm_kl_total(&sums_x),
                   csm_kl_total(&sums_y), factor);
        csm_kl_balance(&row, factor, EXP_SAFE);
        if (row.is_nan || sums_x.is_nan || sums_y.is_nan || !FN(kl_finish)(job, x, y, e_x, e_y, to, &row, weight, loss))
            return i;
    }
    return job->rows;
}
