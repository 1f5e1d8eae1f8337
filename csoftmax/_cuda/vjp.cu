/* Gradients of softmax or log_softmax (-DOP=CSM_OP_<name>) for contiguous rows: kernels as in softmax.cu, with dy and y
 * in shared memory.  The dot product runs over the sixteen lanes of the specification, so only sixteen threads of a
 * warp add; all threads share the other computations.
 *
 * Formulas, passes over a block, and the results of elements with y = 0 (log: -inf) and NaN: the core's vjp kernels.
 * Reads and writes of each element: two and one; blocks + apply: four and one (tests/cuda counts them).
 * Accumulators: double in 16 lanes, for double pairs.  Error: the CPU's (ACCURACY.md), because the bits are the CPU's.
 * Time: not measured on hardware yet.
 */
#define LOADS 4
#include "common.cuh"

#include "math/factor.h"

enum { LOG = OP == CSM_OP_log_softmax_vjp };
#define ABSENT (LOG ? (REAL)-CSM_INF : (REAL)0) /* y of an element that takes no part in its row */

static_assert(sizeof(csm_row) == RECORD_BYTES, "a size that the launch plans assume");

/* Adds dy y, or dy, of k elements to the lanes of the first sixteen threads of each `width`. */
template <int width> INLINE void add_products(V(dot) *sum, const REAL *dy, const REAL *y, int k) {
    if (threadIdx.x % width >= DOT_TEAM) return;
    for (int i = threadIdx.x % DOT_TEAM; i < k; i += DOT_TEAM) {
        const REAL b = y[i], a = b == ABSENT ? 0 : dy[i];
        V(dot_add)(sum, 0, a, LOG ? (REAL)1 : b);
    }
}
struct gradient {
    const REAL *dy, *y;
    V(vjp_constants) c;
    INLINE_MEMBER REAL at(int i) const { return canonical(V(vjp_element)(dy[i], y[i], c, LOG, c.lifts)); }
    INLINE_MEMBER wide wide_at(int i) const {
        wide a = load_wide(dy + i), b = load_wide(y + i);
        UNROLL
        for (int j = 0; j < WIDE; j++) a.v[j] = canonical(V(vjp_element)(a.v[j], b.v[j], c, LOG, c.lifts));
        return a;
    }
};
/* lift: the factor that dy and the sums of the row have because of the row; c.lift is that of all rows. */
INLINE gradient gradient_of(const REAL *dy, const REAL *y, const csm_row &row, const csm_scales &c, double lift) {
    csm_temperature t = c.ordinary;
    t.inv_t1 /= lift;
    const gradient g = {dy, y, V(vjp_set)(&t, V(set)(row.hi), V(set)(row.lo), LOG)};
    return g;
}

/* Whether the row has elements that csm_log_vjp_exact computes. */
INLINE bool is_exact(const csm_row &row, const csm_scales &c) {
    return LOG && !csm_vjp_is_ordinary(&c.ordinary, row.hi, LOG, SINGLE);
}
/* Computes the gradient of such a row in place, over dy, without registers in the loops of ordinary rows; the caller
 * synchronises. */
static __device__ NOINLINE void replace_exactly(REAL *dy, const REAL *y, int k, const csm_row &row, const csm_scales &c,
                                                int thread, int threads) {
    const double exact_below = csm_vjp_exact_below(&c.ordinary, row.hi, SINGLE, 0);
    const gradient ordinary = gradient_of(dy, y, row, c, 1);
    ROLLED /* two loops, which share registers */
        for (int i = thread; i < k; i += threads) {
        const double b = (double)y[i];
        if (!(b < exact_below && b > -CSM_INF)) dy[i] = ordinary.at(i);
    }
    ROLLED
    for (int i = thread; i < k; i += threads) {
        const double b = (double)y[i];
        if (b < exact_below && b > -CSM_INF)
            dy[i] = canonical(
                (REAL)csm_log_vjp_exact((double)dy[i] / c.lift, b, row.hi / c.lift, row.lo / c.lift, c.temperature));
    }
}

/* The largest |dy| of the k classes of a team or warp that take part. */
template <int width> INLINE REAL largest_dy(const REAL *dy, const REAL *y, int k) {
    REAL max = 0;
    for (int i = threadIdx.x % width; i < k; i += width) {
        const REAL size = y[i] == ABSENT ? 0 : dy[i] < 0 ? -dy[i] : dy[i];
        max = size > max ? size : max;
    }
    return group_max(max, width);
}
template <int width> INLINE void lift_dy(REAL *dy, int k, double lift) {
    for (int i = threadIdx.x % width; i < k; i += width) dy[i] *= (REAL)lift;
    __syncwarp();
}

/* Whether the temperature is beyond the range of float, and gradients are computed in double; never for double. */
INLINE bool is_in_double(const csm_scales &c) { return SINGLE && csm_exceeds_float(&c); }
/* Computes the gradient of such a row in place, over dy; all `threads` threads take part. */
static __device__ NOINLINE void replace_in_double(REAL *dy, const REAL *y, int k, const csm_row &row,
                                                  const csm_scales &c, int thread, int threads) {
    const double exact_below = LOG ? csm_vjp_exact_below(&c.ordinary, row.hi, SINGLE, 1) : -CSM_INF;
    for (int i = thread; i < k; i += threads) {
        const double a = (double)dy[i], b = (double)y[i], t = c.temperature;
        dy[i] =
            canonical((REAL)(LOG && b < exact_below && b > -CSM_INF ? csm_log_vjp_exact(a, b, row.hi, row.lo, t)
                                                                    : csm_vjp_in_double(a, b, row.hi, row.lo, t, LOG)));
    }
    __syncwarp();
}

/* Copies count elements of dy and y to shared memory.  Returns the beginning of dy; *second: that of y. */
INLINE REAL *load_both(REAL *to, size_t capacity, const T *dy, const T *y, const uint8_t *mask, int count, int thread,
                       double lift, const REAL **second) {
    REAL *a = to + lead(dy), *b = to + capacity + lead(y);
    load(a, dy, NULL, count, 0, thread, WARP);
    load(b, y, mask, count, ABSENT, thread, WARP);
    *second = b;
    __syncwarp();
    if (lift == 1) return a;
    for (int i = thread; i < count; i += WARP) a[i] *= (REAL)lift;
    __syncwarp();
    return a;
}

extern __shared__ __align__(16) unsigned char memory[];

extern "C" __global__ void __launch_bounds__(128, 3)
    teams(const T *dy, const T *y, const uint8_t *__restrict__ mask, T *dx, long long rows, int n, int rows_per_warp,
          csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int team = lane / DOT_TEAM, thread = lane % DOT_TEAM;
    const size_t capacity = room((size_t)rows_per_warp * n);
    REAL *warp_data = (REAL *)(void *)memory + warp * 2 * capacity;
    for (long long first = ((long long)blockIdx.x * warps + warp) * rows_per_warp; first < rows;
         first += (long long)gridDim.x * warps * rows_per_warp) {
        const int count = rows - first < rows_per_warp ? (int)(rows - first) : rows_per_warp;
        const REAL *b;
        REAL *a = load_both(warp_data, capacity, dy + first * n, y + first * n, mask ? mask + first * n : NULL,
                            count * n, lane, c.lift, &b);
        for (int at = 0; at < count; at += WARP / DOT_TEAM) { /* a team without a row takes part for the shuffles */
            const int r = at + team, k = r < count ? n : 0, begin = (r < count ? r : 0) * n;
            V(dot) sum;
            csm_block block = {0};
            csm_row row;
            V(dot_zero)(&sum);
            add_products<DOT_TEAM>(&sum, a + begin, b + begin, k);
            dot_total<DOT_TEAM>(sum, &block.hi, &block.lo);
            csm_combine_pair(&block, 1, SINGLE && !is_in_double(c), &row);
            if (is_in_double(c)) {
                replace_in_double(a + begin, b + begin, k, row, c, thread, DOT_TEAM);
                continue;
            }
            double lift = 1;
            if (!SINGLE && !LOG) { /* rows whose sum underflows, as on the CPU */
                const bool is_lifted = !csm_vjp_is_ordinary(&c.ordinary, row.hi, LOG, SINGLE);
                if (__any_sync(ALL_LANES, is_lifted)) {
                    const double max = (double)largest_dy<DOT_TEAM>(a + begin, b + begin, k);
                    if (is_lifted) lift = csm_vjp_lift(&c.ordinary, max);
                    lift_dy<DOT_TEAM>(a + begin, k, lift);
                    V(dot_zero)(&sum);
                    add_products<DOT_TEAM>(&sum, a + begin, b + begin, k);
                    dot_total<DOT_TEAM>(sum, &block.hi, &block.lo);
                    csm_combine_pair(&block, 1, SINGLE, &row);
                }
            }
            if (is_exact(row, c)) {
                replace_exactly(a + begin, b + begin, k, row, c, thread, DOT_TEAM);
                continue;
            }
            const gradient value = gradient_of(a + begin, b + begin, row, c, lift);
            for (int i = thread; i < k; i += DOT_TEAM) a[begin + i] = value.at(i);
        }
        __syncwarp();
        const copied value = {a};
        store(dx + first * n, count * n, value, lane, WARP);
        __syncwarp();
    }
}

/* blockDim.x / WARP is the number of blocks of CSM_BLOCK in a row. */
extern "C" __global__ void __launch_bounds__(MAX_WARPS *WARP, 1)
    whole(const T *dy, const T *y, const uint8_t *__restrict__ mask, T *dx, long long rows, int n, csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const size_t capacity = room(n < CSM_BLOCK ? n : CSM_BLOCK);
    csm_block *blocks = (csm_block *)(void *)memory;
    REAL *warp_data = (REAL *)(void *)(memory + (warps * sizeof(csm_block) + 15) / 16 * 16) + warp * 2 * capacity;
    const int begin = warp * CSM_BLOCK, k = block_length(n, begin);
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const long long from = at * n + begin;
        const REAL *b;
        REAL *a = load_both(warp_data, capacity, dy + from, y + from, mask ? mask + from : NULL, k, lane, c.lift, &b);
        V(dot) sum;
        csm_block block = {0};
        csm_row row;
        V(dot_zero)(&sum);
        add_products<WARP>(&sum, a, b, k);
        dot_total<WARP>(sum, &block.hi, &block.lo);
        if (lane == 0) blocks[warp] = block;
        __syncthreads();
        csm_combine_pair(blocks, (size_t)warps, SINGLE && !is_in_double(c), &row);
        if (is_in_double(c)) {
            replace_in_double(a, b, k, row, c, lane, WARP);
            const copied value = {a};
            store(dx + from, k, value, lane, WARP);
        } else if (is_exact(row, c)) {
            replace_exactly(a, b, k, row, c, lane, WARP);
            __syncwarp();
            const copied value = {a};
            store(dx + from, k, value, lane, WARP);
        } else {
            double lift = 1;
            if (!SINGLE && !LOG && !csm_vjp_is_ordinary(&c.ordinary, row.hi, LOG, SINGLE)) { /* as in `teams` */
                const REAL of_warp = largest_dy<WARP>(a, b, k);
                __syncthreads(); /* all threads have read the blocks */
                if (lane == 0) blocks[warp].max = (double)of_warp;
                __syncthreads();
                double max = 0;
                for (int i = 0; i < warps; i++) max = blocks[i].max > max ? blocks[i].max : max;
                lift = csm_vjp_lift(&c.ordinary, max);
                lift_dy<WARP>(a, k, lift);
                V(dot_zero)(&sum);
                add_products<WARP>(&sum, a, b, k);
                dot_total<WARP>(sum, &block.hi, &block.lo);
                __syncthreads(); /* all threads have read the maxima */
                if (lane == 0) blocks[warp] = block;
                __syncthreads();
                csm_combine_pair(blocks, (size_t)warps, SINGLE, &row);
            }
            store(dx + from, k, gradient_of(a, b, row, c, lift), lane, WARP);
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(32, 1) blocks(const T *dy, const T *y, const uint8_t *__restrict__ mask,
                                                           csm_block *to, long long rows, long long n, csm_scales c) {
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, begin = (unit - at * blocks_per_row) * CSM_BLOCK,
                        from = at * n + begin;
        const int k = block_length(n, begin);
        V(dot) sum;
        csm_block block = {0};
        V(dot_zero)(&sum);
        for (int done = 0; done < k; done += GRADIENT_SEGMENT_ELEMENTS) {
            const int length = k - done < GRADIENT_SEGMENT_ELEMENTS ? k - done : GRADIENT_SEGMENT_ELEMENTS;
            const long long first = from + done;
            const REAL *b;
            const REAL *a = load_both((REAL *)(void *)memory, room(GRADIENT_SEGMENT_ELEMENTS), dy + first, y + first,
                                      mask ? mask + first : NULL, length, threadIdx.x, c.lift, &b);
            add_products<WARP>(&sum, a, b, length);
            __syncwarp();
        }
        dot_total<WARP>(sum, &block.hi, &block.lo);
        if (threadIdx.x == 0) to[unit] = block;
    }
}

/* A thread for each row. */
extern "C" __global__ void __launch_bounds__(128, 1)
    combine(const csm_block *__restrict__ from, csm_row *to, long long rows, long long n, csm_scales c) {
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < rows;
         at += (long long)gridDim.x * blockDim.x) {
        csm_row row;
        row.is_nan = 0;
        row.max = row.n = row.r = row.r_low = row.tail = row.count = row.top = row.top_low = 0;
        csm_combine_pair(from + at * blocks_per_row, (size_t)blocks_per_row, SINGLE && !is_in_double(c), &row);
        to[at] = row;
    }
}

extern "C" __global__ void __launch_bounds__(32, 1)
    apply(const T *dy, const T *y, const uint8_t *__restrict__ mask, T *dx, const csm_row *__restrict__ known,
          long long rows, long long n, csm_scales c) {
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, begin = (unit - at * blocks_per_row) * CSM_BLOCK,
                        from = at * n + begin;
        const int k = block_length(n, begin);
        const csm_row row = known[at];
        for (int done = 0; done < k; done += GRADIENT_SEGMENT_ELEMENTS) {
            const int length = k - done < GRADIENT_SEGMENT_ELEMENTS ? k - done : GRADIENT_SEGMENT_ELEMENTS;
            const long long first = from + done;
            const REAL *b;
            REAL *a = load_both((REAL *)(void *)memory, room(GRADIENT_SEGMENT_ELEMENTS), dy + first, y + first,
                                mask ? mask + first : NULL, length, threadIdx.x, c.lift, &b);
            if (is_in_double(c)) {
                replace_in_double(a, b, length, row, c, threadIdx.x, WARP);
                const copied value = {a};
                store(dx + first, length, value, threadIdx.x, WARP);
                __syncwarp();
                continue;
            }
            if (is_exact(row, c)) {
                replace_exactly(a, b, length, row, c, threadIdx.x, WARP);
                __syncwarp();
                const copied value = {a};
                store(dx + first, length, value, threadIdx.x, WARP);
                __syncwarp();
                continue;
            }
            store(dx + first, length, gradient_of(a, b, row, c, 1), threadIdx.x, WARP);
            __syncwarp();
        }
    }
}

/* Segments of up to CSM_BLOCK elements, as in softmax.cu. */
extern "C" __global__ void __launch_bounds__(128, 3)
    segments(const T *dy, const T *y, const uint8_t *__restrict__ mask, T *dx, long long stretches, long long length,
             const long long *__restrict__ indptr, long long of_stretch, const long long *__restrict__ which,
             long long count, int capacity, csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    REAL *warp_data = (REAL *)(void *)memory + warp * 2 * capacity;
    for (long long unit = (long long)blockIdx.x * warps + warp; unit < stretches * count;
         unit += (long long)gridDim.x * warps) {
        const long long at = which[unit % count] + unit / count * of_stretch, segment = at % of_stretch;
        const long long begin = at / of_stretch * length + indptr[segment];
        const int k = (int)(indptr[segment + 1] - indptr[segment]);
        const REAL *b;
        REAL *a =
            load_both(warp_data, capacity, dy + begin, y + begin, mask ? mask + begin : NULL, k, lane, c.lift, &b);
        V(dot) sum;
        csm_block block = {0};
        csm_row row;
        double lift = 1;
        V(dot_zero)(&sum);
        add_products<WARP>(&sum, a, b, k);
        dot_total<WARP>(sum, &block.hi, &block.lo);
        __syncwarp(); /* other threads have read the elements that are overwritten below */
        csm_combine_pair(&block, 1, SINGLE && !is_in_double(c), &row);
        if (!SINGLE && !LOG && !csm_vjp_is_ordinary(&c.ordinary, row.hi, LOG, SINGLE)) { /* as in `teams` */
            lift = csm_vjp_lift(&c.ordinary, (double)largest_dy<WARP>(a, b, k));
            __syncwarp();
            lift_dy<WARP>(a, k, lift);
            V(dot_zero)(&sum);
            add_products<WARP>(&sum, a, b, k);
            dot_total<WARP>(sum, &block.hi, &block.lo);
            csm_combine_pair(&block, 1, SINGLE, &row);
        }
        if (is_in_double(c) || is_exact(row, c)) {
            if (is_in_double(c)) replace_in_double(a, b, k, row, c, lane, WARP);
            else replace_exactly(a, b, k, row, c, lane, WARP);
            __syncwarp();
            const copied value = {a};
            store(dx + begin, k, value, lane, WARP);
        } else {
            store(dx + begin, k, gradient_of(a, b, row, c, lift), lane, WARP);
        }
        __syncwarp();
    }
}
