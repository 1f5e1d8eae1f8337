/* Cross-entropy and its gradient for contiguous rows, with the options and bits of the core's kernels.
 *
 *   labels   checks the label of every row, and computes the term that the row adds to the mean's divisor
 *   masses   does the same for soft labels, and computes the mass of each row
 *   divide   computes the divisor, before any gradient, and the constants that depend on it
 *   rows     a block of threads for each row, warps for the row's blocks of CSM_BLOCK.  The gradient may overwrite the
 *            logits.  A warp holds one block.  A row with more blocks than warps is read again for each pass, and its
 *            sums begin before its maximum is known; they are repeated if the maximum is beyond exp's range
 *   reduce   computes the sum or mean of the row losses, in a tree over their order
 *   cap      with a soft cap: what `rows` reads instead of the logits, in the module of the compute type, and slopes
 *   uncap    multiplies its gradient by them
 *   clip     does the same and clips; the norm is computed by one thread, in the order of the CPU's sum
 *
 * As a module of its own, with IS_SEGMENTED, the rows are segments: of different lengths, one behind the other.
 *
 * A label that is not a class, or a soft label that is negative or not finite, makes its row's loss and gradient NaN:
 * an exception would require the host to wait.  Ignored rows are not read.
 * Reads and writes of each logit: one and one; two and one in rows that do not fit shared memory (clip_norm and
 * transformed rows: one more read each).  Soft labels are read three times: before any gradient, for the mean; for the
 * loss; and for the gradient, by the same warp (16 bytes per thread, for half types in two halves of a sector).
 * Keeping them in shared memory would halve the length of the rows that fit.
 * A row of labels reads 7 more sectors of 32 bytes (constants, the label) and writes 2 (the loss, the gradient of the
 * label).
 * Accumulators: as in softmax.cu; weighted sums add four terms in the compute type, then in double (pairs for double);
 * one thread computes the row constants in double and pairs.  A row with NaN or +inf, or with only -inf, gives NaN for
 * loss and gradient.
 * Formulas: the core's headers of cross-entropy.  Error: the CPU's (ACCURACY.md), because the bits are the CPU's.
 * Time: not measured on hardware yet.
 */
#define LOADS 4
#include "forward.cuh"
#include "kernel/softcap/job.h"
#include "kernel/softcap/tanh.inc.h"

enum { IGNORED = -1, BAD = -2 };

/* The state that the threads of a row share. */
struct alignas(16) shared_row {
    csm_scales scales;
    csm_loss_call call;
    csm_loss_input in;
    csm_loss_row row;
};
static_assert(sizeof(prepared) == RECORD_BYTES && sizeof(shared_row) == SHARED_ROW_BYTES,
              "sizes that the launch plans assume");

/* type: a csm_label_type; 0 to 3 are int8 to int64, 4 to 7 uint8 to uint64. */
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

/* Where rows lie.  Segments: `count` of them in each stretch of `length` elements, from indptr[s] to indptr[s + 1];
 * otherwise rows of `length`. */
struct layout {
    long long length;
    const long long *indptr;
    long long count;
    /* Sets the begin and the number of classes of row `at`; segments are counted through all stretches. */
    INLINE_MEMBER void find(long long at, long long *begin, long long *n) const {
        *begin = at * length;
        *n = length;
        if (!IS_SEGMENTED) return;
        const long long stretch = at / count, segment = at - stretch * count;
        *begin = stretch * length + indptr[segment];
        *n = indptr[segment + 1] - indptr[segment];
    }
};

/* to: a class, IGNORED or BAD for each row; terms: the row's term of the divisor. */
extern "C" __global__ void __launch_bounds__(128, 1)
    labels(const void *from, long long *to, double *terms, const REAL *__restrict__ w,
           const double *__restrict__ weight, long long length, const long long *__restrict__ indptr, long long count,
           long long rows, int type, int ignores, long long ignored) {
    const layout all = {length, indptr, count};
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows;
         i += (long long)gridDim.x * blockDim.x) {
        long long label = read_label(from, type, i), begin, n;
        all.find(i, &begin, &n);
        if (ignores && label == ignored) label = IGNORED;
        else if (label < 0 || label >= n) label = BAD; /* unsigned labels beyond 2^63 are negative here */
        to[i] = label;
        const double s = weight ? weight[i] : 1;
        terms[i] = label < 0 ? 0 : s * (w ? (double)w[label] : 1);
    }
}

/* Checks soft labels, a warp for each row.  to: the mass of a row, sum w_j q_j, or NaN if one of its labels is bad. */
extern "C" __global__ void __launch_bounds__(128, 1)
    masses(const REAL *__restrict__ q, double *to, double *terms, const REAL *__restrict__ w,
           const double *__restrict__ weight, long long length, const long long *__restrict__ indptr, long long count,
           long long rows) {
    const layout all = {length, indptr, count};
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (long long at = (long long)blockIdx.x * warps + threadIdx.x / WARP; at < rows;
         at += (long long)gridDim.x * warps) {
        long long first, n;
        all.find(at, &first, &n);
        csm_pair_sum total;
        double mass = 0; /* of a row of one block */
        int bad = 0;
        csm_pair_sum_zero(&total);
        for (long long begin = 0; begin < n; begin += CSM_BLOCK) {
            const int k = block_length(n, begin);
            const REAL *part = q + first + begin, *weights = w ? w + begin : NULL;
            V(dot) sum;
            double hi, lo;
            V(dot_zero)(&sum);
            const auto checked = [&](int i) {
                const REAL a = part[i];
                bad |= !(a >= 0 && (double)a < CSM_INF);
                return a;
            };
            int i = lane;
            if (lane < DOT_TEAM && !weights)
                for (; i - lane + 32 <= k; i += 32) {
                    const REAL a = checked(i), b = checked(i + 16);
                    V(dot_add)(&sum, 0, a + b, 1);
                }
            if (lane < DOT_TEAM)
                for (; i < k; i += DOT_TEAM) V(dot_add)(&sum, 0, checked(i), weights ? weights[i] : (REAL)1);
            dot_total<WARP>(sum, &hi, &lo);
            if (!(hi + lo - (hi + lo) == 0)) { /* a sum of two labels overflows in the compute type */
                hi = lo = 0;
                for (int j = 0; j < k; j++) hi += weights ? (double)part[j] * (double)weights[j] : (double)part[j];
            }
            if (n <= CSM_BLOCK) mass = hi + lo;
            else csm_pair_sum_add(&total, hi, lo);
        }
        bad = group_any(bad, WARP);
        if (lane > 0) continue;
        if (n > CSM_BLOCK) mass = csm_pair_sum_rounded(&total);
        to[at] = bad ? CSM_NAN : mass;
        terms[at] = bad ? 0 : (weight ? weight[at] : 1) * to[at];
    }
}

/* The core's csm_tree_sum, by one block of threads; x is overwritten. */
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

/* Runs in one block of threads for the whole call. */
extern "C" __global__ void __launch_bounds__(1024, 1)
    divide(double *terms, const REAL *__restrict__ w, prepared *to, long long rows, int mean, csm_loss_call call) {
    const double divisor = mean ? tree_sum(terms, rows) : 1;
    if (threadIdx.x > 0) return;
    to->divisor = divisor;
    double sum = (double)call.n;
    if (w && call.smoothing != 0) {
        csm_pair_sum all;
        csm_pair_sum_zero(&all);
        for (size_t begin = 0; begin < call.n; begin += CSM_BLOCK) {
            double low = 0;
            sum = 0;
            for (size_t j = begin; j < call.n && j < begin + CSM_BLOCK; j++) csm_two_sum(&sum, &low, (double)w[j]);
            if (call.n <= CSM_BLOCK) sum += low;
            else csm_pair_sum_add(&all, sum, low);
        }
        if (call.n > CSM_BLOCK) sum = csm_pair_sum_rounded(&all);
    }
    to->call = call;
    to->call.w = w;
    to->call.weight_sum = sum;
    csm_loss_divide(&to->call, divisor);
}

INLINE REAL capped(REAL plain, REAL *steep, const V(cap_constants) &s, const csm_softcap &c) {
    REAL z = plain, y;
    if (c.exponent != 0) z = (REAL)csm_softcap_scaled(&c, (double)plain, (double)(REAL)EXP_MOST);
    V(cap_group)(1, &z, &y, steep, 1, 0, &s, &c);
    return c.exponent != 0 ? (REAL)csm_softcap_unscaled(&c, (double)plain, (double)z, (double)y) : y;
}
/* y: the capped logits, slope: NULL, or the slopes of the cap; both of the compute type, at 16-byte boundaries. */
extern "C" __global__ void __launch_bounds__(256, 1)
    cap(const T *__restrict__ x, REAL *__restrict__ y, REAL *__restrict__ slope, long long count, csm_softcap c) {
    const V(cap_constants) s = V(cap_constants_of)(&c);
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
    const long long vectors = lead(x) == 0 ? count / VECTOR : 0;
    REAL steep = 1;
    for (long long v = first; v < vectors; v += step) {
        const vector from = ((const vector *)(const void *)x)[v];
        UNROLL
        for (int w = 0; w < VECTOR / WIDE; w++) {
            wide to, slopes;
            UNROLL
            for (int i = 0; i < WIDE; i++) {
                to.v[i] = capped(LOAD(&from.v[w * WIDE + i]), &steep, s, c);
                slopes.v[i] = steep;
            }
            const long long at = v * (VECTOR / WIDE) + w;
            ((wide *)(void *)y)[at] = to;
            if (slope) ((wide *)(void *)slope)[at] = slopes;
        }
    }
    for (long long i = vectors * VECTOR + first; i < count; i += step) {
        y[i] = capped(LOAD(x + i), &steep, s, c);
        if (slope) slope[i] = steep;
    }
}

/* Multiplies the gradient of capped logits by the slopes; both begin at 16-byte boundaries. */
extern "C" __global__ void __launch_bounds__(256, 1)
    uncap(const REAL *__restrict__ g, const REAL *__restrict__ slope, T *y, long long count) {
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x, step = (long long)gridDim.x * blockDim.x;
    const long long vectors = lead(y) == 0 ? count / VECTOR : 0;
    for (long long v = first; v < vectors; v += step) {
        vector to;
        UNROLL
        for (int w = 0; w < VECTOR / WIDE; w++) {
            const wide a = ((const wide *)(const void *)g)[v * (VECTOR / WIDE) + w];
            const wide b = ((const wide *)(const void *)slope)[v * (VECTOR / WIDE) + w];
            UNROLL
            for (int i = 0; i < WIDE; i++) STORE(&to.v[w * WIDE + i], canonical(a.v[i] * b.v[i]));
        }
        ((vector *)(void *)y)[v] = to;
    }
    for (long long i = vectors * VECTOR + first; i < count; i += step) STORE(y + i, canonical(g[i] * slope[i]));
}

/* The same where the product is clipped: a block of threads for a row, one of which computes the norm. */
extern "C" __global__ void __launch_bounds__(256, 1)
    clip(REAL *g, const REAL *__restrict__ slope, T *y, const double *__restrict__ upstream,
         const prepared *__restrict__ from, long long rows, long long n, double clip_norm, double clip_value) {
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        REAL *const row = g + at * n;
        for (long long i = threadIdx.x; i < n; i += blockDim.x) row[i] = row[i] * slope[at * n + i];
        __syncthreads();
        if (threadIdx.x == 0) {
            const double k = fabs(upstream ? upstream[at] : 1) * from->call.per_divisor;
            csm_clip_capped(row, SINGLE, (size_t)n, clip_norm, clip_value,
                            csm_times_pow2(k, from->call.divisor_exponent));
        }
        __syncthreads();
        for (long long i = threadIdx.x; i < n; i += blockDim.x) STORE(y + at * n + i, canonical(row[i]));
    }
}

extern "C" __global__ void __launch_bounds__(1024, 1)
    reduce(double *losses, REAL *to, const prepared *__restrict__ from, long long rows) {
    const double sum = tree_sum(losses, rows) / from->divisor;
    if (threadIdx.x == 0) *to = canonical((REAL)(from->divisor == 0 ? CSM_NAN : sum));
}

/* Weighted distances from the reference, sum a_j (ref - x_j), and masses, sum a_j, of a block at s; separate for the
 * soft labels (q) and for 1, as on the CPU. */
struct far_sums {
    V(dot) far_q, far_1, mass_q, mass_1;
};
INLINE REAL sum_of_four(const REAL *p) { return (p[0] + p[1]) + (p[2] + p[3]); }
INLINE REAL sum_of_products(const REAL *a, const REAL *b) {
    return V(fma)(a[2], b[2], a[0] * b[0]) + V(fma)(a[3], b[3], a[1] * b[1]);
}
INLINE double weighted_total(const V(dot) &q, const V(dot) &uniform, const csm_loss_terms &terms) {
    double hi, lo, sum = 0;
    dot_total<WARP>(q, &hi, &lo);
    if (terms.q && terms.soft != 0) sum += terms.soft * (lo - lo == 0 ? hi + lo : hi);
    dot_total<WARP>(uniform, &hi, &lo);
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
            const int j = i + v * DOT_TEAM, exists = j < k;
            z[v] = exists ? ref - s[j] : ref - ref;
            w[v] = exists ? tw ? tw[j] : (REAL)1 : 0;
            q[v] = exists && tq ? tq[j] : 0;
            if (tw) {
                if (exact) z[v] = w[v] == 0 ? 0 : z[v];
                z[v] = z[v] * w[v];
            }
        }
        if (terms.flat != 0) V(dot_add)(&sums.mass_1, 0, sum_of_four(w), 1);
        if (tq) V(dot_add)(&sums.mass_q, 0, sum_of_products(q, w), 1);
        if (!exact && terms.flat != 0) V(dot_add)(&sums.far_1, 0, sum_of_four(z), 1);
        if (!exact && tq) V(dot_add)(&sums.far_q, 0, sum_of_products(q, z), 1);
        if (exact) {
            UNROLL
            for (int v = 0; v < 4; v++) {
                const REAL a = tq ? V(fma)(soft, q[v], flat) : flat;
                V(dot_add)(&sums.far_1, 0, a * (a == 0 ? 0 : z[v]), 1);
            }
        }
    }
    block->mass = weighted_total(sums.mass_q, sums.mass_1, terms);
    if (exact) {
        double hi, lo;
        dot_total<WARP>(sums.far_1, &hi, &lo);
        block->far = lo - lo == 0 ? hi + lo : hi;
    } else {
        block->far = weighted_total(sums.far_q, sums.far_1, terms);
    }
}

/* The gradient of a block from its e' at s, as values for `store`. */
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
    INLINE_MEMBER REAL at(int i) const { return value(s[i], terms, i); }
    INLINE_MEMBER wide wide_at(int i) const {
        wide w = load_wide(s + i);
        if (terms.q) { /* in one access, like the store of the gradient */
            const wide q = load_wide((const REAL *)terms.q + i);
            csm_loss_terms shifted = terms;
            shifted.q = q.v;
            if (terms.w) shifted.w = (const REAL *)terms.w + i;
            UNROLL
            for (int j = 0; j < WIDE; j++) w.v[j] = value(w.v[j], shifted, j);
            return w;
        }
        UNROLL
        for (int j = 0; j < WIDE; j++) w.v[j] = value(w.v[j], terms, i + j);
        return w;
    }
};

extern __shared__ __align__(16) unsigned char memory[];

/* The arrays of `rows`. */
struct rows_job {
    const T *x;
    const REAL *q;
    T *y;
    const long long *labels;
    const double *masses;
    const REAL *w;
    const double *weight, *upstream;
    double *losses;
    REAL *row_losses;
};
/* The state of a row in each thread of the block that computes it. */
struct row_state {
    shared_row *shared;
    double *maxima, *squares; /* one number per warp */
    csm_block *blocks; /* a record for each block of the row */
    REAL *data; /* the block that this warp holds */
    int count; /* blocks of the row */
    bool reloads; /* there are more blocks than warps, and each pass loads them again */
    long long at, label; /* at: its number */
    long long first, n; /* its place in x, and its classes */
    const T *from;
    T *to; /* NULL: no gradient */
    double max; /* of the row, before any transformation; with reloads, known after the first pass */
    bool transforms; /* the row is beyond exp's range */
};
enum { SUMS, NORM, GRADIENT }; /* passes over a row */

/* Writes one value to a whole row.  All threads of the block call it. */
static __device__ void fill_row(T *to, long long n, REAL x) {
    for (long long i = threadIdx.x; i < n; i += blockDim.x) STORE(to + i, x);
}
/* Writes one value to the loss and, if there is one, the gradient of a row. */
INLINE void fill(const rows_job &job, const row_state &row, double x) {
    if (threadIdx.x == 0) {
        job.losses[row.at] = x;
        if (job.row_losses) job.row_losses[row.at] = canonical((REAL)x);
    }
    if (row.to) fill_row(row.to, row.n, canonical((REAL)x));
}

/* Copies the label, mass and weights of a row to shared memory.  One thread calls it. */
INLINE void read_input(const rows_job &job, const row_state &row) {
    csm_loss_input in;
    in.label = job.labels ? (ptrdiff_t)job.labels[row.at] : IGNORED;
    in.w_label = in.weight = in.upstream = 1;
    in.mass = job.masses ? job.masses[row.at] : 0;
    in.max = in.x_label = in.z_label = in.n = 0;
    in.e_label = -1;
    if (job.weight) in.weight = job.weight[row.at];
    if (job.upstream) in.upstream = job.upstream[row.at];
    if (in.label >= 0) {
        if (job.w) in.w_label = (double)job.w[in.label];
        in.mass = in.w_label;
    }
    row.shared->in = in;
}

/* Loads a row that fits the warps, and finds its maximum. */
INLINE void load_row(const rows_job &job, row_state &row) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const long long begin = (long long)warp * CSM_BLOCK;
    const T *part = row.from + begin;
    const int k = begin < row.n ? block_length(row.n, begin) : 0;
    load(row.data + lead(part), part, NULL, k, 0, lane, WARP);
    __syncwarp();
    const REAL warps_max = warp_max(row.data + lead(part), k);
    if (lane == 0) row.maxima[warp] = (double)warps_max;
    __syncthreads();
    for (int i = 0; i < warps; i++) row.max = row.maxima[i] > row.max ? row.maxima[i] : row.max;
}

/* The weighted distances of a warp's block of a row that is about to be transformed. */
static __device__ NOINLINE double far_of_block(const REAL *s, int k, const csm_loss_terms &terms, double max,
                                               double temperature) {
    const int lane = threadIdx.x % WARP;
    const REAL *q = (const REAL *)terms.q, *w = (const REAL *)terms.w;
    csm_pair sum = {0, 0}, part = {0, 0};
    for (int i = lane; i < k && lane < CSM_FAR_LANES; i += CSM_FAR_LANES)
        csm_far_add(&part, &terms, q ? (double)q[i] : 0, w ? (double)w[i] : 1, max, (double)s[i], temperature);
    for (int l = 0; l < CSM_FAR_LANES; l++) {
        csm_pair other;
        other.hi = __shfl_sync(ALL_LANES, part.hi, l);
        other.lo = __shfl_sync(ALL_LANES, part.lo, l);
        csm_far_join(&sum, other);
    }
    return csm_far_total(sum);
}

/* Makes the first pass over a block: computes its record, and writes e' to s.  far: of a row that is transformed. */
INLINE void sum_block(const rows_job &job, const row_state &row, const csm_loss_terms &terms, bool has_terms,
                      const csm_temperature &t, int b, REAL *s, int k, double far) {
    const int lane = threadIdx.x % WARP;
    const long long place = row.label - (long long)b * CSM_BLOCK;
    const bool has_label = row.label >= 0 && place >= 0 && place < k;
    if (lane == 0 && has_label) row.shared->in.z_label = (double)s[place]; /* transformed if the row is */
    csm_block block;
    const double max = (double)warp_max(s, k), ref = csm_reference(max, &t);
    double mass = 0;
    if (has_terms && !row.transforms) {
        add_far<false>(s, k, ref, terms, &block);
        if (!(block.far - block.far == 0)) add_far<true>(s, k, ref, terms, &block);
        mass = block.mass;
        far = block.far;
    }
    add_up<WARP, true, true>(s, s, k, max, t, &block);
    block.mass = mass;
    block.far = far;
    if (lane == 0) row.blocks[b] = block;
    __syncwarp();
    if (lane == 0 && has_label) {
        /* otherwise e' of the label is computed again in double, as on the CPU */
        if (row.to && !row.transforms && (row.n <= CSM_BLOCK || sizeof(T) == sizeof(REAL)))
            row.shared->in.e_label = (double)s[place];
        row.shared->in.n = block.n;
    }
}

/* The sum of squares of a block's gradient, except the label's; place: the label's, which may lie outside the block. */
INLINE double square_block(const loss_gradient &value, const REAL *s, int k, long long place) {
    const int lane = threadIdx.x % WARP;
    V(dot) sum;
    double hi, lo;
    V(dot_zero)(&sum);
    for (int i = lane; lane < DOT_TEAM && i < k; i += DOT_TEAM) {
        const REAL g = i == place ? 0 : value.unclipped(s[i], value.terms, i);
        V(dot_add)(&sum, 0, g, g);
    }
    dot_total<WARP>(sum, &hi, &lo);
    return hi + lo;
}

/* Makes one pass over the blocks of a row.  A warp with more than one block loads each of them again. */
INLINE void pass_over(const rows_job &job, const row_state &row, const csm_scales &scales, int pass) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    /* a reference to shared memory, to save registers */
    const csm_temperature &t = row.transforms ? row.shared->scales.transformed : row.shared->scales.ordinary;
    const double smoothing = row.shared->call.smoothing;
    csm_loss_terms terms;
    terms.soft = 1 - smoothing;
    terms.flat = smoothing / (double)row.n;
    const bool has_terms = job.q || smoothing != 0;
    double sum_of_squares = 0;
    for (int b = warp; b < row.count; b += warps) {
        const long long begin = (long long)b * CSM_BLOCK, place = row.label - begin;
        const T *part = row.from + begin;
        const int k = block_length(row.n, begin);
        REAL *s = row.data + lead(part);
        terms.q = job.q ? job.q + row.first + begin : NULL;
        terms.w = job.w ? job.w + begin : NULL;
        if (row.reloads) {
            __syncwarp(); /* all threads are done with the previous block */
            load(s, part, NULL, k, 0, lane, WARP);
            __syncwarp();
        }
        double far = 0;
        if (pass == SUMS && lane == 0 && row.label >= begin && place < k)
            row.shared->in.x_label = (double)s[place]; /* as the caller gave it */
        if (row.transforms && pass == SUMS && has_terms) far = far_of_block(s, k, terms, row.max, scales.temperature);
        if (row.transforms && (row.reloads || pass == SUMS)) {
            __syncwarp(); /* all threads have read the logits */
            transform(s, k, scales, row.max);
        }
        if (pass == SUMS) {
            sum_block(job, row, terms, has_terms, t, b, s, k, far);
            continue;
        }
        const csm_block block = row.blocks[b];
        if (row.reloads) exp_again(s, k, block, t);
        loss_gradient value;
        value.s = s;
        value.terms = terms;
        value.has_terms = has_terms;
        value.plain = V(loss_set)(&block, &row.shared->row, &value.c) && row.shared->row.plain;
        if (pass == NORM) {
            const double squares = square_block(value, s, k, place);
            if (!row.reloads) sum_of_squares = squares;
            else if (lane == 0) row.blocks[b].count = squares; /* the count is no longer needed */
            __syncwarp();
            continue;
        }
        store(row.to + begin, k, value, lane, WARP);
        __syncwarp();
        if (lane == 0 && row.label >= begin && place < k)
            STORE(row.to + row.label, canonical((REAL)row.shared->row.target));
    }
    if (pass == NORM && !row.reloads && lane == 0) row.squares[warp] = sum_of_squares;
}

/* Computes, after the pass SUMS, the row's loss and the factors of its gradient, which NORM corrects.  One thread calls
 * it. */
INLINE void combine(const rows_job &job, const row_state &row, const csm_scales &scales, int pass, bool clips) {
    csm_loss_call *call = &row.shared->call;
    csm_loss_input *in = &row.shared->in;
    csm_loss_row *to = &row.shared->row;
    call->t = row.transforms ? &row.shared->scales.transformed : &row.shared->scales.ordinary;
    if (pass == SUMS) {
        in->max = row.max;
        csm_loss_sums(call, in, row.blocks, (size_t)row.count, EXP_BIAS, to, NULL, NULL);
        job.losses[row.at] = to->loss;
        if (job.row_losses) job.row_losses[row.at] = canonical((REAL)to->loss);
        if (row.to) csm_loss_factors(call, in, clips ? -1 : 1, SINGLE, to);
    } else {
        csm_pair_sum all;
        csm_pair_sum_zero(&all);
        for (int b = 0; b < row.count; b++)
            csm_pair_sum_add(&all, row.reloads ? row.blocks[b].count : row.squares[b], 0);
        csm_loss_factors(call, in, csm_loss_shrink(call, in, to, csm_pair_sum_rounded(&all)), SINGLE, to);
    }
}

/* Makes all passes over a row. */
INLINE void run_passes(const rows_job &job, row_state &row, const csm_scales &scales) {
    for (int pass = SUMS; pass <= GRADIENT; pass++) {
        const bool clips = row.shared->call.clip_norm < CSM_INF;
        if (pass == NORM && !(row.to && clips)) continue;
        pass_over(job, row, scales, pass);
        __syncthreads();
        if (pass == GRADIENT) break;
        if (pass == SUMS && row.reloads && !row.transforms) { /* the row's maximum is now known */
            for (int b = 0; b < row.count; b++) row.max = row.blocks[b].max > row.max ? row.blocks[b].max : row.max;
            if (!(row.max < CSM_INF && row.max > -CSM_INF)) {
                fill(job, row, CSM_NAN);
                break;
            }
            row.transforms = !csm_fits_range(&scales, row.max);
            __syncthreads();
            if (row.transforms) {
                if (threadIdx.x == 0) row.shared->in.e_label = -1;
                pass = SUMS - 1;
                continue;
            }
        }
        if (threadIdx.x == 0) combine(job, row, scales, pass, clips);
        __syncthreads();
        if (!row.to) break;
        if (row.shared->row.is_nan) {
            fill_row(row.to, row.n, canonical((REAL)CSM_NAN));
            break;
        }
    }
}

enum { ROW_WARPS = IS_SEGMENTED && MAX_WARPS > MAX_SEGMENT_WARPS ? MAX_SEGMENT_WARPS : MAX_WARPS };

/* Computes `rows` rows of at most `longest` classes, or the segments with the numbers `which` in each of `rows`
 * stretches; a segment without elements has loss 0.  blockDim.x / WARP is the number of blocks of a row in shared
 * memory at a time.  records: space for the blocks of gridDim.x rows, or NULL if they are in shared memory. */
extern "C" __global__ void __launch_bounds__(ROW_WARPS *WARP, 1)
    rows(const T *x, const REAL *__restrict__ q, T *y, const long long *__restrict__ labels,
         const double *__restrict__ masses, const REAL *__restrict__ w, const double *__restrict__ weight,
         const double *__restrict__ upstream, double *losses, REAL *row_losses, csm_block *records,
         const prepared *__restrict__ ready, long long length, const long long *__restrict__ indptr, long long count,
         long long rows, const long long *__restrict__ which, long long listed, long long longest, csm_scales scales) {
    const layout all = {length, indptr, count};
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int most = (int)((longest + CSM_BLOCK - 1) / CSM_BLOCK);
    const rows_job job = {x, q, y, labels, masses, w, weight, upstream, losses, row_losses};
    row_state row;
    row.shared = (shared_row *)(void *)memory;
    row.maxima = (double *)(void *)(row.shared + 1);
    row.squares = row.maxima + warps;
    csm_block *const after = (csm_block *)(void *)(row.squares + warps);
    row.blocks = records ? records + (long long)blockIdx.x * most : after;
    unsigned char *const end = (unsigned char *)(records ? after : after + most);
    row.data = (REAL *)(void *)(memory + (end - memory + 15) / 16 * 16) +
               warp * room(longest < CSM_BLOCK ? (size_t)longest : (size_t)CSM_BLOCK);
    if (threadIdx.x == 0) row.shared->scales = scales;
    for (int i = threadIdx.x; i < (int)(sizeof row.shared->call / 4); i += blockDim.x) /* neighbours, whole sectors */
        ((unsigned *)&row.shared->call)[i] = ((const unsigned *)&ready->call)[i];
    if (IS_SEGMENTED) __syncthreads(); /* the call is about to get the length of a segment */
    const long long units = IS_SEGMENTED ? rows * listed : rows;
    for (long long unit = blockIdx.x; unit < units; unit += gridDim.x) {
        row.at = unit;
        if (IS_SEGMENTED) row.at = which[unit % listed] + unit / listed * all.count;
        all.find(row.at, &row.first, &row.n);
        row.count = (int)((row.n + CSM_BLOCK - 1) / CSM_BLOCK);
        row.reloads = row.count > warps;
        row.from = x + row.first;
        row.to = y ? y + row.first : NULL;
        if (threadIdx.x == 0) read_input(job, row);
        if (IS_SEGMENTED && threadIdx.x == 0) {
            row.shared->call.n = (size_t)row.n;
            row.shared->call.weight_sum = (double)row.n;
        }
        __syncthreads();
        row.label = (long long)row.shared->in.label;
        row.max = -CSM_INF;
        bool nan = labels ? row.label == BAD : !(row.shared->in.mass == row.shared->in.mass);
        const bool is_empty = csm_loss_is_empty(&row.shared->call) || (IS_SEGMENTED && row.n == 0);
        const bool skipped = (labels && row.label == IGNORED) || row.shared->in.weight == 0 || (is_empty && !nan);
        if (!skipped && !nan && !row.reloads) {
            load_row(job, row);
            nan = !(row.max < CSM_INF && row.max > -CSM_INF);
        }
        row.transforms = !row.reloads && !csm_fits_range(&scales, row.max);
        if (skipped || nan) fill(job, row, skipped ? 0 : CSM_NAN);
        else run_passes(job, row, scales);
        __syncthreads();
    }
}
