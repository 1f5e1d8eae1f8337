/* softmax, log_softmax or logsumexp (-DOP=CSM_OP_<name>) of contiguous rows, with the bits of the core's forward
 * kernels.
 *
 *   teams    short rows: each warp copies several of them at once, and a team of threads, one for each lane, computes a
 *            row
 *   whole    a block of threads for each row, a warp for each of the row's blocks of CSM_BLOCK; shared memory holds
 *            them all
 *   blocks, combine, apply
 *            rows that do not fit shared memory: a warp for each block, twice; in between one thread combines the
 *            blocks in their order
 *
 *   segments rows of different lengths, one behind the other (segments.py): a warp for each
 *
 * Reads and writes of each element: one and one; blocks + apply: two and one (tests/cuda counts them).
 * Accumulators: pairs of the compute type in 16 (double: 8) lanes; float lanes are added to double after 512 elements;
 * row constants are double.  NaN: the maximum drops it, the sum keeps it, and the whole row becomes the canonical NaN.
 * Rows of infinities, rows without elements and rows beyond exp's range reduction are transformed or filled as on the
 * CPU.
 * Error: the CPU's (ACCURACY.md), because the bits are the CPU's.  Time: not measured on hardware yet.
 */
#define LOADS 8
#include "forward.cuh"

#define EXACT (OP != CSM_OP_softmax) /* the log family keeps the maximum out of the sum */
#define REDUCES (OP == CSM_OP_logsumexp)
#define SEGMENTED (!SINGLE && EXACT) /* add_up needs a segment beside the logits */

/* The sums of a whole row, and its special cases. */
struct whole_row {
    csm_row sums;
    double max; /* before any transformation */
    double fill;
    int transforms, special; /* the row is beyond exp's range; all of its result is `fill` */
};
static_assert(sizeof(whole_row) == RECORD_BYTES, "a size that the launch plans assume");

/* The log-sum-exp of a row. */
INLINE REAL log_sum_exp(const whole_row &row, const csm_scales &c) {
    if (row.special) return canonical((REAL)row.fill);
    return canonical((REAL)(row.sums.is_nan ? CSM_NAN : csm_lse(&c, row.max, row.sums.tail, row.transforms)));
}
/* Whether the result of a row is one value throughout, and that value. */
INLINE int is_filled(const whole_row &row) { return row.special || row.sums.is_nan; }
INLINE REAL fill_of(const whole_row &row) { return canonical((REAL)(row.special ? row.fill : CSM_NAN)); }

/* The value of a row of one value throughout, except where it is masked: there a probability is 0. */
struct filled {
    REAL value;
    const uint8_t *kept;
    INLINE_MEMBER REAL at(int i) const {
        return !kept || kept[i] ? value : OP == CSM_OP_softmax ? (REAL)0 : (REAL)-CSM_INF;
    }
    INLINE_MEMBER wide wide_at(int i) const {
        wide w;
        UNROLL
        for (int j = 0; j < WIDE; j++) w.v[j] = at(i + j);
        return w;
    }
};

INLINE void combine_blocks(const csm_block *blocks, size_t count, csm_row *row) {
    if (EXACT) csm_combine_log(blocks, count, row);
    else csm_combine_softmax(blocks, count, SINGLE, row);
}

/* The result of a block from the numbers that add_up left at s. */
struct result {
    const REAL *s;
    V(scaling) scaling;
    REAL max, inv_t, minus_tail;
    INLINE_MEMBER REAL from(REAL x) const {
        if (EXACT) return V(fma)(x - max, inv_t, minus_tail);
        return V(scaled)(scaling.up * x, scaling.f, scaling.f_low);
    }
    INLINE_MEMBER REAL at(int i) const { return from(s[i]); }
    INLINE_MEMBER wide wide_at(int i) const {
        wide w = load_wide(s + i);
        UNROLL
        for (int j = 0; j < WIDE; j++) w.v[j] = from(w.v[j]);
        return w;
    }
};
INLINE result result_of(const REAL *s, const csm_row &row, double n, const csm_temperature &t) {
    result r;
    r.s = s;
    r.scaling = V(scaling_of)(&row, EXACT ? 0 : n - row.n);
    r.max = (REAL)row.max;
    r.inv_t = (REAL)t.inv_t;
    r.minus_tail = (REAL)-row.tail;
    return r;
}

extern __shared__ __align__(16) unsigned char memory[];

extern "C" __global__ void __launch_bounds__(128, 3)
    teams(const T *x, const uint8_t *__restrict__ mask, T *y, long long rows, int n, int rows_per_warp, csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int team = lane / TEAM, thread = lane % TEAM;
    REAL *warp_data = (REAL *)(void *)memory + warp * room((size_t)rows_per_warp * n);
    for (long long first = ((long long)blockIdx.x * warps + warp) * rows_per_warp; first < rows;
         first += (long long)gridDim.x * warps * rows_per_warp) {
        const int count = rows - first < rows_per_warp ? (int)(rows - first) : rows_per_warp;
        const T *from = x + first * n;
        const uint8_t *kept = mask ? mask + first * n : NULL;
        REAL *data = warp_data + lead(from);
        load(data, from, kept, count * n, (REAL)-CSM_INF, lane, WARP);
        __syncwarp();
        for (int at = 0; at < count; at += WARP / TEAM) { /* a team without a row takes part for the shuffles */
            const int r = at + team, k = r < count ? n : 0;
            REAL *s = data + (r < count ? r : 0) * n;
            REAL max = (REAL)-CSM_INF;
            for (int i = thread; i < k; i += TEAM) max = V(max)(s[i], max);
            max = group_max(max, TEAM);
            whole_row row;
            row.max = (double)max;
            row.transforms = k > 0 && !csm_fits_range(&c, row.max);
            row.special = 0;
            if (__any_sync(ALL_LANES, row.transforms)) {
                int nan = 0, any = 0;
                for (int i = thread; i < k; i += TEAM) {
                    nan |= s[i] != s[i];
                    any |= !kept || kept[r * n + i];
                }
                nan = group_any(nan, TEAM);
                any = group_any(any, TEAM);
                row.special = row.transforms && csm_is_special(OP, c.temperature, row.max, nan, any, &row.fill);
                if (row.transforms && !row.special) {
                    for (int i = thread; i < k; i += TEAM) s[i] = (REAL)csm_transformed(&c, (double)s[i], row.max);
                    max = (REAL)csm_transformed(&c, (double)max, row.max);
                }
                __syncwarp();
            }
            const csm_temperature t = row.transforms ? c.transformed : c.ordinary;
            csm_block block;
            add_up<TEAM, EXACT, !EXACT>(s, s, k, (double)max, t, &block);
            combine_blocks(&block, 1, &row.sums);
            if (REDUCES) {
                if (thread == 0 && k > 0) STORE(y + first + r, log_sum_exp(row, c));
                continue;
            }
            const result value = result_of(s, row.sums, block.n, t);
            const int is_constant = is_filled(row);
            const filled fill = {fill_of(row), kept ? kept + r * n : NULL};
            __syncwarp();
            for (int i = thread; i < k; i += TEAM) s[i] = is_constant ? fill.at(i) : value.at(i);
        }
        __syncwarp();
        if (!REDUCES) {
            const copied value = {data};
            store(y + first * n, count * n, value, lane, WARP);
        }
        __syncwarp();
    }
}

/* Whether a warp's block holds NaN (1), and an element that the mask keeps (2). */
INLINE int inspect(const REAL *s, const uint8_t *kept, int k) {
    int found = 0;
    for (int i = threadIdx.x % WARP; i < k; i += WARP) found |= (s[i] != s[i] ? 1 : 0) | (!kept || kept[i] ? 2 : 0);
    return group_any(found, WARP);
}

/* blockDim.x / WARP is the number of blocks of CSM_BLOCK in a row. */
extern "C" __global__ void __launch_bounds__(MAX_WARPS *WARP, 1)
    whole(const T *x, const uint8_t *__restrict__ mask, T *y, long long rows, int n, csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const size_t capacity = room(n < CSM_BLOCK ? n : CSM_BLOCK);
    csm_block *blocks = (csm_block *)(void *)memory;
    double *maxima = (double *)(void *)(blocks + warps);
    int *found = (int *)(void *)(maxima + warps);
    REAL *warp_data =
        (REAL *)(void *)(memory + (warps * (sizeof(csm_block) + sizeof(double) + sizeof(int)) + 15) / 16 * 16) +
        warp * (capacity + (SEGMENTED ? LOG_SEGMENT_ELEMENTS : 0));
    REAL *segment = warp_data + capacity;
    const int begin = warp * CSM_BLOCK, k = block_length(n, begin);
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const T *from = x + at * n + begin;
        const uint8_t *kept = mask ? mask + at * n + begin : NULL;
        REAL *s = warp_data + lead(from);
        load(s, from, kept, k, (REAL)-CSM_INF, lane, WARP);
        __syncwarp();
        REAL max = warp_max(s, k);
        if (lane == 0) maxima[warp] = (double)max;
        __syncthreads();
        whole_row row;
        row.max = -CSM_INF;
        for (int w = 0; w < warps; w++) row.max = maxima[w] > row.max ? maxima[w] : row.max;
        row.transforms = !csm_fits_range(&c, row.max);
        row.special = 0;
        if (row.transforms) { /* all threads agree */
            const int in_block = inspect(s, kept, k);
            if (lane == 0) found[warp] = in_block;
            __syncthreads();
            int all = 0;
            for (int w = 0; w < warps; w++) all |= found[w];
            row.special = csm_is_special(OP, c.temperature, row.max, all & 1, all & 2, &row.fill);
            if (!row.special) {
                transform(s, k, c, row.max);
                max = (REAL)csm_transformed(&c, (double)max, row.max);
            }
        }
        const csm_temperature t = row.transforms ? c.transformed : c.ordinary;
        csm_block block;
        add_up<WARP, EXACT, !EXACT>(s, segment, k, (double)max, t, &block);
        if (lane == 0) blocks[warp] = block;
        __syncthreads();
        combine_blocks(blocks, (size_t)warps, &row.sums);
        T *to = y + at * n + begin;
        if (REDUCES) {
            if (threadIdx.x == 0) STORE(y + at, log_sum_exp(row, c));
        } else if (is_filled(row)) {
            const filled value = {fill_of(row), kept};
            store(to, k, value, lane, WARP);
        } else {
            store(to, k, result_of(s, row.sums, block.n, t), lane, WARP);
        }
        __syncthreads();
    }
}

/* A warp for each block of each row.  again: compute only rows beyond exp's range, transformed. */
extern "C" __global__ void __launch_bounds__(32, 1)
    blocks(const T *x, const uint8_t *__restrict__ mask, csm_block *to, const whole_row *__restrict__ known,
           long long rows, long long n, int again, csm_scales c) {
    const int lane = threadIdx.x;
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, begin = (unit - at * blocks_per_row) * CSM_BLOCK;
        const int k = block_length(n, begin);
        if (again && (!known[at].transforms || known[at].special)) continue;
        const T *from = x + at * n + begin;
        const uint8_t *kept = mask ? mask + at * n + begin : NULL;
        REAL *s = (REAL *)(void *)memory + lead(from), *segment = (REAL *)(void *)memory + room(CSM_BLOCK);
        load(s, from, kept, k, (REAL)-CSM_INF, lane, WARP);
        __syncwarp();
        REAL max = warp_max(s, k);
        const int found = again ? 0 : inspect(s, kept, k);
        if (again) {
            const double top = known[at].max;
            transform(s, k, c, top);
            max = (REAL)csm_transformed(&c, (double)max, top);
        }
        csm_block block;
        add_up<WARP, EXACT, !EXACT>(s, segment, k, (double)max, again ? c.transformed : c.ordinary, &block);
        block.mass = found & 1; /* for `combine`: whether there is NaN, and an element that takes part */
        block.far = found & 2;
        if (lane == 0) to[unit] = block;
        __syncwarp();
    }
}

/* A block of threads for each row, whose first thread combines.  staged: shared memory holds the row's records. */
extern "C" __global__ void __launch_bounds__(128, 1)
    combine(const csm_block *__restrict__ from, whole_row *to, T *y, long long rows, long long n, int again, int staged,
            csm_scales c) {
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const csm_block *blocks = from + at * blocks_per_row;
        if (again && (!to[at].transforms || to[at].special)) continue;
        if (staged) {
            csm_block *copy = (csm_block *)(void *)memory;
            for (long long b = threadIdx.x; b < blocks_per_row; b += blockDim.x) copy[b] = blocks[b];
            blocks = copy;
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            whole_row row;
            if (again) {
                row = to[at];
            } else {
                int nan = 0, kept = 0;
                row.max = -CSM_INF;
                for (long long b = 0; b < blocks_per_row; b++) {
                    row.max = blocks[b].max > row.max ? blocks[b].max : row.max;
                    nan |= blocks[b].mass != 0;
                    kept |= blocks[b].far != 0;
                }
                row.transforms = !csm_fits_range(&c, row.max);
                row.fill = 0;
                row.special = row.transforms && csm_is_special(OP, c.temperature, row.max, nan, kept, &row.fill);
            }
            combine_blocks(blocks, (size_t)blocks_per_row, &row.sums);
            if (REDUCES) STORE(y + at, log_sum_exp(row, c));
            to[at] = row;
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(32, 1)
    apply(const T *x, const uint8_t *__restrict__ mask, T *y, const csm_block *__restrict__ known_blocks,
          const whole_row *__restrict__ known, long long rows, long long n, csm_scales c) {
    const int lane = threadIdx.x;
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, begin = (unit - at * blocks_per_row) * CSM_BLOCK;
        const int k = block_length(n, begin);
        const uint8_t *kept = mask ? mask + at * n + begin : NULL;
        T *to = y + at * n + begin;
        const whole_row row = known[at];
        if (is_filled(row)) {
            const filled value = {fill_of(row), kept};
            store(to, k, value, lane, WARP);
            continue;
        }
        const T *from = x + at * n + begin;
        REAL *s = (REAL *)(void *)memory + lead(from);
        load(s, from, kept, k, (REAL)-CSM_INF, lane, WARP);
        __syncwarp();
        const csm_temperature t = row.transforms ? c.transformed : c.ordinary;
        const csm_block block = known_blocks[unit];
        if (row.transforms) transform(s, k, c, row.max);
        if (!EXACT) exp_again(s, k, block, t);
        store(to, k, result_of(s, row.sums, block.n, t), lane, WARP);
        __syncwarp();
    }
}

/* Segments of up to CSM_BLOCK elements: a warp for each.  A stretch of `length` elements has `of_stretch` segments,
 * which are counted through all stretches; which: the numbers of `count` of them, in each of so many stretches;
 * capacity: the room of a warp. */
extern "C" __global__ void __launch_bounds__(128, 3)
    segments(const T *x, const uint8_t *__restrict__ mask, T *y, long long stretches, long long length,
             const long long *__restrict__ indptr, long long of_stretch, const long long *__restrict__ which,
             long long count, int capacity, csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    REAL *warp_data = (REAL *)(void *)memory + warp * (capacity + (SEGMENTED ? LOG_SEGMENT_ELEMENTS : 0));
    REAL *part = warp_data + capacity;
    for (long long unit = (long long)blockIdx.x * warps + warp; unit < stretches * count;
         unit += (long long)gridDim.x * warps) {
        const long long at = which[unit % count] + unit / count * of_stretch, segment = at % of_stretch;
        const long long begin = at / of_stretch * length + indptr[segment];
        const int k = (int)(indptr[segment + 1] - indptr[segment]);
        const uint8_t *kept = mask ? mask + begin : NULL;
        REAL *s = warp_data + lead(x + begin);
        load(s, x + begin, kept, k, (REAL)-CSM_INF, lane, WARP);
        __syncwarp();
        REAL max = warp_max(s, k);
        whole_row row;
        row.max = (double)max;
        row.transforms = !csm_fits_range(&c, row.max);
        row.special = 0;
        if (row.transforms) { /* all threads agree */
            const int found = inspect(s, kept, k);
            row.special = csm_is_special(OP, c.temperature, row.max, found & 1, found & 2, &row.fill);
            if (!row.special) {
                transform(s, k, c, row.max);
                max = (REAL)csm_transformed(&c, (double)max, row.max);
            }
        }
        const csm_temperature t = row.transforms ? c.transformed : c.ordinary;
        csm_block block;
        add_up<WARP, EXACT, !EXACT>(s, part, k, (double)max, t, &block);
        combine_blocks(&block, 1, &row.sums);
        __syncwarp();
        if (REDUCES) {
            if (lane == 0) STORE(y + at, log_sum_exp(row, c));
        } else if (is_filled(row)) {
            const filled value = {fill_of(row), kept};
            store(y + begin, k, value, lane, WARP);
        } else {
            store(y + begin, k, result_of(s, row.sums, block.n, t), lane, WARP);
        }
        __syncwarp();
    }
}
