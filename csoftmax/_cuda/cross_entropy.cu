/* Cross-entropy and its gradient for contiguous rows, with the options and bits of
 * src_c/kernel/cross_entropy.inc.h.
 *
 *   labels   of every row: checked, the term that it adds to the mean's divisor; soft labels: their masses
 *   divide   the divisor, before any gradient; constants that follow from it
 *   rows     a thread block for each row, warps for its blocks of CSM_BLOCK.  The gradient may overwrite the logits.  A
 *            warp holds one block: rows with more blocks than warps are read once more for each pass, and their sums
 *            are begun before the maximum of the row is known: again for rows that turn out to need transforming
 *   reduce   row losses to their sum or mean, in a tree over their order
 *
 * A label that is no class, or a soft label that is negative or not finite, makes its row's loss and gradient NaN: it
 * could only raise an exception if the host waited.  Ignored rows are not read.
 * Reads and writes of each logit: one and one; rows that shared memory does not hold: two and one (clip_norm, and
 * rows to transform: one read more each).  Soft labels: three reads, one of them before any gradient, for the mean,
 * one for the loss and, by the same warp, one for the gradient (of 16 bytes a thread, for half types in two halves of a
 * sector); to keep them in shared memory would halve the rows that fit.
 * A row of labels reads 7 sectors of 32 bytes more (constants, the label) and writes 2 (the loss, its own gradient).
 * Accumulators: as in softmax.cu; weighted sums add four terms in the compute type, then in double (pairs for double);
 * row constants in double and pairs, by one thread.  A row with NaN, +inf or nothing but -inf gives NaN, loss and
 * gradient.
 * Formulas: registry.h.  Error: the CPU's (ACCURACY.md), because the bits are.  Time: not measured on hardware yet.
 */
#define LOADS 4
#include "forward.cuh"

/* What `divide` leaves for `rows` and `reduce`. */
struct prepared {
    double divisor;
    csm_loss_call call; /* all but the temperature's constants */
};
enum { IGNORED = -1, BAD = -2 };

/* What the threads of a row share. */
struct shared_row {
    csm_scales scales;
    csm_loss_call call;
    csm_loss_input in;
    csm_loss_row row;
};
static_assert(sizeof(csm_block) == BLOCK_BYTES && sizeof(prepared) == ROW_BYTES && sizeof(shared_row) == SHARED_BYTES,
              "sizes that the launch rules have");

/* type: a csm_label_type: 0 to 3 int8 to int64, 4 to 7 uint8 to uint64. */
INLINE long long read_label(const void *labels, int type, long long i) {
    switch (type) {
    case 0: return ((const int8_t *)labels)[i];
    case 1: return ((const short *)labels)[i];
    case 2: return ((const int32_t *)labels)[i];
    case 3: return ((const int64_t *)labels)[i];
    case 4: return ((const uint8_t *)labels)[i];
    case 5: return ((const uint16_t *)labels)[i];
    case 6: return ((const uint32_t *)labels)[i];
    default: return ((const int64_t *)labels)[i];
    }
}

/* to: labels as IGNORED, BAD or a class; terms: what a row adds to the divisor. */
extern "C" __global__ void __launch_bounds__(128, 1)
    labels(const void *from, long long *to, double *terms, const REAL *__restrict__ w,
           const double *__restrict__ weight, long long rows, long long n, int type, int ignores, long long ignored) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows;
         i += (long long)gridDim.x * blockDim.x) {
        long long label = read_label(from, type, i);
        if (ignores && label == ignored) label = IGNORED;
        else if (label < 0 || label >= n) label = BAD; /* unsigned ones beyond 2^63 are negative here */
        to[i] = label;
        const double s = weight ? weight[i] : 1;
        terms[i] = label < 0 ? 0 : s * (w ? (double)w[label] : 1);
    }
}

/* The same of soft labels: masses, sum w_j q_j, NaN where one is bad.  A warp for each row. */
extern "C" __global__ void __launch_bounds__(128, 1)
    masses(const REAL *__restrict__ q, double *to, double *terms, const REAL *__restrict__ w,
           const double *__restrict__ weight, long long rows, long long n) {
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (long long at = (long long)blockIdx.x * warps + threadIdx.x / WARP; at < rows;
         at += (long long)gridDim.x * warps) {
        double total = 0, low = 0;
        int bad = 0;
        for (long long begin = 0; begin < n; begin += CSM_BLOCK) {
            const int k = block_length(n, begin);
            const REAL *part = q + at * n + begin, *own = w ? w + begin : NULL;
            V(dot) sum;
            double hi, lo;
            V(dot_zero)(&sum);
            const auto checked = [&](int i) {
                const REAL a = part[i];
                bad |= !(a >= 0 && (double)a < CSM_INF);
                return a;
            };
            int i = lane;
            if (lane < DOT_TEAM && !own)
                for (; i - lane + 32 <= k; i += 32) {
                    const REAL a = checked(i), b = checked(i + 16);
                    V(dot_add)(&sum, 0, a + b, 1);
                }
            if (lane < DOT_TEAM)
                for (; i < k; i += DOT_TEAM) V(dot_add)(&sum, 0, checked(i), own ? own[i] : (REAL)1);
            dot_total<WARP>(sum, &hi, &lo);
            if (!(hi + lo - (hi + lo) == 0)) { /* the sum of two overflows in the compute type */
                hi = lo = 0;
                for (int j = 0; j < k; j++) hi += own ? (double)part[j] * (double)own[j] : (double)part[j];
            }
            csm_two_sum(&total, &low, hi);
            low += lo;
        }
        bad = group_any(bad, WARP);
        if (lane > 0) continue;
        to[at] = bad ? CSM_NAN : total + low;
        terms[at] = bad ? 0 : (weight ? weight[at] : 1) * to[at];
    }
}

/* csm_tree_sum of layout.c in one thread block; x is overwritten. */
INLINE double tree_sum(double *x, long long n) {
    const long long leaves = (n + 7) / 8;
    for (long long leaf = threadIdx.x; leaf < leaves; leaf += blockDim.x) {
        double s = 0;
        for (long long i = 8 * leaf; i < n && i < 8 * leaf + 8; i++) s += x[i];
        x[8 * leaf] = s;
    }
    __syncthreads();
    for (long long step = 1; step < leaves; step *= 2) {
        for (long long i = 2 * step * threadIdx.x; i + step < leaves; i += 2 * step * blockDim.x)
            x[8 * i] += x[8 * (i + step)];
        __syncthreads();
    }
    return n > 0 ? x[0] : 0;
}

/* One block of threads. */
extern "C" __global__ void __launch_bounds__(1024, 1)
    divide(double *terms, const REAL *__restrict__ w, prepared *to, long long rows, int mean, csm_loss_call call) {
    const double divisor = mean ? tree_sum(terms, rows) : 1;
    if (threadIdx.x > 0) return;
    to->divisor = divisor;
    double sum = (double)call.n, low = 0;
    if (w && call.smoothing != 0) {
        sum = 0;
        for (size_t j = 0; j < call.n; j++) csm_two_sum(&sum, &low, (double)w[j]);
        sum += low;
    }
    to->call = call;
    to->call.w = w;
    to->call.weight_sum = sum;
    csm_loss_divide(&to->call, divisor);
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    reduce(double *losses, REAL *to, const prepared *__restrict__ from, long long rows) {
    const double sum = tree_sum(losses, rows) / from->divisor;
    if (threadIdx.x == 0) *to = canonical((REAL)sum);
}

/* Weighted distances from the reference, sum a_j (ref - x_j), and sum a_j, of a block at s, as loss_far of the CPU. */
struct far_sums {
    V(dot) far_q, far_1, mass_q, mass_1;
};
INLINE REAL four(const REAL *p) { return (p[0] + p[1]) + (p[2] + p[3]); }
INLINE REAL four_products(const REAL *a, const REAL *b) {
    return V(fma)(a[2], b[2], a[0] * b[0]) + V(fma)(a[3], b[3], a[1] * b[1]);
}
INLINE double both_parts(const V(dot) &q, const V(dot) &one, const csm_loss_terms &terms) {
    double hi, lo, sum = 0;
    dot_total<WARP>(q, &hi, &lo);
    if (terms.q && terms.soft != 0) sum += terms.soft * (lo - lo == 0 ? hi + lo : hi);
    dot_total<WARP>(one, &hi, &lo);
    if (terms.flat != 0) sum += terms.flat * (lo - lo == 0 ? hi + lo : hi);
    return sum;
}
template <bool exact>
INLINE void add_far(const REAL *s, int k, double reference, const csm_loss_terms &terms, csm_block *block) {
    const int lane = threadIdx.x % WARP;
    const REAL ref = (REAL)reference, flat = (REAL)terms.flat, soft = (REAL)terms.soft;
    const REAL *tq = (const REAL *)terms.q, *tw = (const REAL *)terms.w;
    far_sums sums;
    V(dot_zero)(&sums.far_q);
    V(dot_zero)(&sums.far_1);
    V(dot_zero)(&sums.mass_q);
    V(dot_zero)(&sums.mass_1);
    for (int i = lane; lane < DOT_TEAM && i - lane < k; i += 4 * DOT_TEAM) {
        REAL z[4], w[4], q[4];
        UNROLL
        for (int v = 0; v < 4; v++) {
            const int j = i + v * DOT_TEAM, there = j < k;
            z[v] = there ? ref - s[j] : ref - ref;
            w[v] = there ? tw ? tw[j] : (REAL)1 : 0;
            q[v] = there && tq ? tq[j] : 0;
            if (tw) {
                if (exact) z[v] = w[v] == 0 ? 0 : z[v];
                z[v] = z[v] * w[v];
            }
        }
        if (terms.flat != 0) V(dot_add)(&sums.mass_1, 0, four(w), 1);
        if (tq) V(dot_add)(&sums.mass_q, 0, four_products(q, w), 1);
        if (!exact && terms.flat != 0) V(dot_add)(&sums.far_1, 0, four(z), 1);
        if (!exact && tq) V(dot_add)(&sums.far_q, 0, four_products(q, z), 1);
        if (exact) {
            UNROLL
            for (int v = 0; v < 4; v++) {
                const REAL a = tq ? V(fma)(soft, q[v], flat) : flat;
                V(dot_add)(&sums.far_1, 0, a * (a == 0 ? 0 : z[v]), 1);
            }
        }
    }
    block->mass = both_parts(sums.mass_q, sums.mass_1, terms);
    if (exact) {
        double hi, lo;
        dot_total<WARP>(sums.far_1, &hi, &lo);
        block->far = lo - lo == 0 ? hi + lo : hi;
    } else {
        block->far = both_parts(sums.far_q, sums.far_1, terms);
    }
}

/* The gradient of a block from its e' at s. */
struct loss_gradient {
    const REAL *s;
    V(loss_constants) c;
    csm_loss_terms terms;
    bool has_terms, plain;
    INLINE_MEMBER REAL unclipped(REAL e, const csm_loss_terms &of, int i) const {
        if (has_terms) return V(loss_any_gradient)(e, &of, (size_t)i, 1, c);
        return V(loss_any_gradient)(e, NULL, (size_t)i, 1, c);
    }
    INLINE_MEMBER REAL value(REAL e, const csm_loss_terms &of, int i) const {
        REAL g = unclipped(e, of, i);
        if (plain) return g;
        g = V(scaled)(V(max)(c.clip_low, V(min)(c.clip_high, g)), c.post, c.post_low);
        g = g * c.power1 * c.power2;
        return canonical(g);
    }
    INLINE_MEMBER REAL one(int i) const { return value(s[i], terms, i); }
    INLINE_MEMBER wide some(int i) const {
        wide w = several(s + i);
        if (terms.q) { /* read at once, as it is written */
            const wide q = several((const REAL *)terms.q + i);
            csm_loss_terms here = terms;
            here.q = q.v;
            if (terms.w) here.w = (const REAL *)terms.w + i;
            UNROLL
            for (int j = 0; j < WIDE; j++) w.v[j] = value(w.v[j], here, j);
            return w;
        }
        UNROLL
        for (int j = 0; j < WIDE; j++) w.v[j] = value(w.v[j], terms, i + j);
        return w;
    }
};

/* All threads of a block: one value to a whole row. */
static __device__ void fill_row(T *to, long long n, REAL x) {
    for (long long i = threadIdx.x; i < n; i += blockDim.x) STORE(to + i, x);
}

extern __shared__ __align__(16) unsigned char memory[];

/* blockDim.x / WARP: how many blocks of a row are in shared memory at a time.  stats: room for the blocks of gridDim.x
 * rows, or NULL: shared memory has it. */
extern "C" __global__ void __launch_bounds__(MOST_WARPS *WARP, 1)
    rows(const T *x, const REAL *__restrict__ q, T *y, const long long *__restrict__ labels,
         const double *__restrict__ masses, const REAL *__restrict__ w, const double *__restrict__ weight,
         const double *__restrict__ upstream, double *losses, REAL *row_losses, csm_block *stats,
         const prepared *__restrict__ ready, long long rows, long long n, csm_scales scales) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int count = (int)((n + CSM_BLOCK - 1) / CSM_BLOCK), again = count > warps;
    shared_row *const shared = (shared_row *)(void *)memory;
    double *const maxima = (double *)(void *)(shared + 1), *const squares = maxima + warps;
    csm_block *const blocks = stats ? stats + (long long)blockIdx.x * count : (csm_block *)(void *)(squares + warps);
    unsigned char *const end = stats ? (unsigned char *)(squares + warps) : (unsigned char *)(blocks + count);
    REAL *const own = (REAL *)(void *)(memory + (end - memory + 15) / 16 * 16) +
                      warp * room(n < CSM_BLOCK ? (size_t)n : (size_t)CSM_BLOCK);
    if (threadIdx.x == 0) shared->scales = scales;
    for (int i = threadIdx.x; i < (int)(sizeof shared->call / 4); i += blockDim.x) /* neighbours, whole sectors */
        ((unsigned *)&shared->call)[i] = ((const unsigned *)&ready->call)[i];
    const bool gradient = y != NULL;
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const T *const from = x + at * n;
        if (threadIdx.x == 0) {
            csm_loss_input in;
            in.label = labels ? (ptrdiff_t)labels[at] : IGNORED;
            in.w_label = in.weight = in.upstream = 1;
            in.mass = masses ? masses[at] : 0;
            in.max = in.x_label = in.n = 0;
            in.e_label = -1;
            if (weight) in.weight = weight[at];
            if (upstream) in.upstream = upstream[at];
            if (in.label >= 0) {
                if (again) in.x_label = (double)LOAD(from + in.label);
                if (w) in.w_label = (double)w[in.label];
                in.mass = in.w_label;
            }
            shared->in = in;
        }
        __syncthreads();
        const long long label = (long long)shared->in.label;
        T *const to = gradient ? y + at * n : NULL;
        const bool skipped = (labels && label == IGNORED) || shared->in.weight == 0;
        bool nan = labels ? label == BAD : !(shared->in.mass == shared->in.mass), cold = false;
        double max = -CSM_INF;
        const auto fill = [&](double x) { /* all threads agree on it */
                                          if (threadIdx.x == 0) {
                                              losses[at] = x;
                                              if (row_losses) row_losses[at] = canonical((REAL)x);
                                          }
                                          if (gradient) fill_row(to, n, canonical((REAL)x));
        };
        if (!skipped && !nan && !again) {
            const long long begin = (long long)warp * CSM_BLOCK;
            const T *part = from + begin;
            const int k = begin < n ? block_length(n, begin) : 0;
            load(own + lead(part), part, NULL, k, 0, lane, WARP);
            __syncwarp();
            const REAL most = warp_max(own + lead(part), k);
            if (lane == 0) maxima[warp] = (double)most;
            __syncthreads();
            for (int i = 0; i < warps; i++) max = maxima[i] > max ? maxima[i] : max;
            nan = !(max < CSM_INF && max > -CSM_INF);
        }
        if (skipped || nan) {
            fill(skipped ? 0 : CSM_NAN);
            __syncthreads();
            continue;
        }
        cold = !again && !csm_fits_range(&scales, max);
        const double smoothing = shared->call.smoothing;
        csm_loss_terms terms;
        terms.soft = 1 - smoothing;
        terms.flat = smoothing / (double)n;
        const bool has_terms = q || smoothing != 0;

        /* Each pass goes over the blocks; where a warp has more than one, it loads them again. */
        for (int pass = 0; pass < 3; pass++) {
            const csm_temperature &t = cold ? shared->scales.transformed : shared->scales.ordinary; /* few registers */
            const bool clips = shared->call.clip_norm < CSM_INF;
            if (pass == 1 && !(gradient && clips)) continue;
            double sum_of_squares = 0;
            for (int b = warp; b < count; b += warps) {
                const long long begin = (long long)b * CSM_BLOCK;
                const T *part = from + begin;
                const int k = block_length(n, begin);
                REAL *s = own + lead(part);
                terms.q = q ? q + at * n + begin : NULL;
                terms.w = w ? w + begin : NULL;
                if (again) {
                    __syncwarp(); /* done with the block before */
                    load(s, part, NULL, k, 0, lane, WARP);
                    __syncwarp();
                }
                if (cold && (again || pass == 0)) transform(s, k, scales, max);
                csm_block block;
                if (pass == 0) {
                    if (!again && lane == 0 && label >= begin && label - begin < k)
                        shared->in.x_label = (double)s[label - begin]; /* transformed, if the row is */
                    const double own_max = (double)warp_max(s, k), ref = csm_reference(own_max, &t);
                    double mass = 0, far = 0;
                    if (has_terms) {
                        add_far<false>(s, k, ref, terms, &block);
                        if (!(block.far - block.far == 0)) add_far<true>(s, k, ref, terms, &block);
                        mass = block.mass;
                        far = block.far;
                    }
                    add_up<WARP, true, true>(s, s, k, own_max, t, &block);
                    block.mass = mass;
                    block.far = far;
                    if (lane == 0) blocks[b] = block;
                    __syncwarp();
                    const long long place = label - begin;
                    if (lane == 0 && label >= 0 && place >= 0 && place < k) {
                        /* else it is computed once more in double, as on the CPU */
                        if (gradient && !cold && (n <= CSM_BLOCK || sizeof(T) == sizeof(REAL)))
                            shared->in.e_label = (double)s[place];
                        shared->in.n = block.n;
                    }
                    continue;
                }
                block = blocks[b];
                if (again) exp_again(s, k, block, t);
                loss_gradient value;
                value.s = s;
                value.terms = terms;
                value.has_terms = has_terms;
                value.plain = V(loss_set)(&block, &shared->row, &value.c) && shared->row.plain;
                if (pass == 1) {
                    V(dot) sum;
                    double hi, lo;
                    V(dot_zero)(&sum);
                    for (int i = lane; lane < DOT_TEAM && i < k; i += DOT_TEAM) {
                        const REAL g = begin + i == label ? 0 : value.unclipped(s[i], terms, i);
                        V(dot_add)(&sum, 0, g, g);
                    }
                    dot_total<WARP>(sum, &hi, &lo);
                    if (again) {
                        if (lane == 0) blocks[b].count = hi + lo; /* it has been used */
                    } else {
                        sum_of_squares = hi + lo;
                    }
                    __syncwarp();
                    continue;
                }
                T *out = to + begin;
                store(out, k, value, lane, WARP);
                __syncwarp();
                if (lane == 0 && label >= begin && label - begin < k)
                    STORE(out + (label - begin), canonical((REAL)shared->row.target));
            }
            if (pass == 1 && !again && lane == 0) squares[warp] = sum_of_squares;
            __syncthreads();
            if (pass == 2) break;
            if (pass == 0 && again && !cold) { /* now the row's maximum is known */
                for (int b = 0; b < count; b++) max = blocks[b].max > max ? blocks[b].max : max;
                if (!(max < CSM_INF && max > -CSM_INF)) {
                    fill(CSM_NAN);
                    break;
                }
                cold = !csm_fits_range(&scales, max);
                __syncthreads();
                if (cold) {
                    if (threadIdx.x == 0) shared->in.e_label = -1;
                    pass = -1;
                    continue;
                }
            }
            if (threadIdx.x == 0) {
                csm_loss_call *call = &shared->call;
                csm_loss_input *in = &shared->in;
                call->t = cold ? &shared->scales.transformed : &shared->scales.ordinary;
                if (pass == 0) {
                    in->max = max;
                    if (cold && again && label >= 0)
                        in->x_label = (double)(REAL)CSM_TRANSFORMED(REAL, (REAL)in->x_label, &scales, max);
                    csm_loss_sums(call, in, blocks, (size_t)count, EXP_BIAS, &shared->row, NULL, NULL);
                    losses[at] = shared->row.loss;
                    if (row_losses) row_losses[at] = canonical((REAL)shared->row.loss);
                    if (gradient) csm_loss_factors(call, in, clips ? -1 : 1, SINGLE, &shared->row);
                } else {
                    double all = 0;
                    for (int b = 0; b < count; b++) all += again ? blocks[b].count : squares[b];
                    csm_loss_factors(call, in, csm_loss_shrink(call, in, &shared->row, all), SINGLE, &shared->row);
                }
            }
            __syncthreads();
            if (!gradient) break;
            if (shared->row.is_nan) {
                fill_row(to, n, canonical((REAL)CSM_NAN));
                break;
            }
        }
        __syncthreads();
    }
}
