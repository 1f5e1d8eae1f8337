/* The loss of the positives of segments and its gradient, in double whatever the storage type, with the bits of
 * ops/segments_any.c: a warp for each segment.
 *
 *   any   counts the positives and finds both maxima; moves the positives, and behind them the other elements, to a
 *         space of the segment, where each group is computed by the passes of softmax; brings them back
 *
 * The space is in shared memory for segments of up to CSM_BLOCK elements, else in global memory.
 * Reads and writes of each element: two and one; longer segments move it through global memory, seven accesses more.
 * They are not vectors: the place of an element depends on the positives before it.
 * Accumulators: pairs in eight lanes, as in softmax.cu; with clip_norm the squares are added in the order of the
 * elements.  NaN, formulas and error: kernel/cross_entropy/any.h.  Time: not measured on hardware yet.
 */
#define LOADS 1
#define IN_DOUBLE
#include "forward.cuh"
#include "kernel/cross_entropy/any.h"

/* The compute type of the results. */
#if defined(STORAGE_f64)
typedef double LOSS;
INLINE LOSS rounded(double x) { return canonical(x); }
#else
typedef float LOSS;
INLINE LOSS rounded(double x) { return x == x ? (float)x : csm_float_of(0x7fc00000u); }
#endif

/* Calls action(i, exists, is_positive, place) for all elements of a segment, as many at a time as a warp has threads;
 * place: that of the element in the segment's space. */
template <class Action>
INLINE void for_each(const uint8_t *positives, long long n, long long count_of_positives, Action action) {
    const int lane = threadIdx.x % WARP;
    long long p = 0, o = count_of_positives;
    for (long long begin = 0; begin < n; begin += WARP) {
        const long long i = begin + lane;
        const int exists = i < n, is_positive = exists && positives[i];
        const unsigned all = __ballot_sync(ALL_LANES, is_positive);
        const int before = __popc(all & ((1u << lane) - 1));
        action(i, exists, is_positive, is_positive ? p + before : o + lane - before);
        p += __popc(all);
        o += WARP - __popc(all);
    }
}

/* Replaces the elements of a group by e', and sums them. */
INLINE void sum_group(csm_any_group &g, const csm_temperature &t) {
    for (size_t begin = 0; begin < g.count && !g.is_nothing; begin += CSM_BLOCK) {
        const int k = block_length((long long)g.count, (long long)begin);
        csm_block block;
        add_up<WARP, false, true>(g.x + begin, NULL, k, warp_max(g.x + begin, k), t, &block);
        if (threadIdx.x % WARP == 0) g.blocks[begin / CSM_BLOCK] = block;
        __syncwarp();
    }
    if (!g.is_nothing) csm_combine_softmax(g.blocks, (g.count + CSM_BLOCK - 1) / CSM_BLOCK, 0, &g.row);
}

/* Replaces e' by the softmax within the group, times `factor`. */
INLINE void divide_group(const csm_any_group &g, double factor, double of_nothing) {
    for (size_t begin = 0; begin < g.count; begin += CSM_BLOCK) {
        const int k = block_length((long long)g.count, (long long)begin);
        const V(scaling) s = V(scaling_of)(&g.row, g.is_nothing ? 0 : g.blocks[begin / CSM_BLOCK].n - g.row.n);
        for (int i = threadIdx.x % WARP; i < k; i += WARP) {
            double *x = g.x + begin + i;
            *x = g.is_nothing ? of_nothing : factor * V(scaled)(s.up * *x, s.f, s.f_low);
        }
    }
}

extern __shared__ __align__(16) unsigned char memory[];

/* Segments as those of softmax.cu, of at most `longest` elements.  positives: one byte for each element; weight,
 * upstream, losses, row_losses: one number for each segment, row_losses in the compute type of the storage type; space
 * and records: NULL, or global memory for the elements of all stretches, and for the blocks of gridDim.x segments. */
extern "C" __global__ void __launch_bounds__(128, 3)
    any(const T *x, const uint8_t *__restrict__ positives, T *y, const double *__restrict__ weight,
        const double *__restrict__ upstream, double *losses, LOSS *row_losses, double *space, csm_block *records,
        const prepared *__restrict__ ready, long long stretches, long long length, const long long *__restrict__ indptr,
        long long of_stretch, const long long *__restrict__ which, long long count, long long longest, csm_scales c) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const long long most = space ? (longest + CSM_BLOCK - 1) / CSM_BLOCK + 1 : 2; /* blocks of a segment */
    csm_block *blocks = space ? records + blockIdx.x * most : (csm_block *)(void *)memory + warp * most;
    double *held = (double *)(void *)(memory + warps * most * sizeof(csm_block)) + warp * longest;
    for (long long unit = (long long)blockIdx.x * warps + warp; unit < stretches * count;
         unit += (long long)gridDim.x * warps) {
        const long long at = which[unit % count] + unit / count * of_stretch, segment = at % of_stretch;
        const long long first = at / of_stretch * length + indptr[segment], n = indptr[segment + 1] - indptr[segment];
        const T *from = x + first;
        const uint8_t *is_positive = positives + first;
        T *to = y ? y + first : NULL;
        csm_any_group p, o;
        double max = -CSM_INF, max_of_others = -CSM_INF, positive = 0, loss = 0;
        int bad = 0;
        for (long long i = lane; i < n; i += WARP) {
            const double z = (double)LOAD(from + i);
            if (is_positive[i]) max = z > max ? z : max;
            else max_of_others = z > max_of_others ? z : max_of_others;
            positive += is_positive[i] ? 1 : 0;
            bad |= !(z < CSM_INF);
        }
        p.max = group_max(max, WARP);
        o.max = group_max(max_of_others, WARP);
        p.count = (size_t)group_count(positive, WARP);
        o.count = (size_t)n - p.count;
        p.gap = p.row.n = p.row.hi = p.row.lo = p.row.r = p.row.r_low = 0;
        o.gap = o.row.n = o.row.hi = o.row.lo = o.row.r = o.row.r_low = 0;
        p.is_nothing = p.max == -CSM_INF;
        o.is_nothing = o.max == -CSM_INF;
        max = p.max > o.max ? p.max : o.max;
        const double s = weight ? weight[at] : 1;
        const bool skipped = n == 0 || s == 0 || csm_loss_is_empty(&ready->call);
        if (skipped || group_any(bad, WARP) || max == -CSM_INF) {
            loss = skipped ? 0 : CSM_NAN;
            for (long long i = lane; to && i < n; i += WARP) STORE(to + i, rounded(loss));
        } else {
            double reference;
            const bool transforms = csm_any_transforms(&c, &p, &o, max, &reference);
            const csm_temperature t = transforms ? c.transformed : c.ordinary;
            double *const data = space ? space + first : held;
            p.x = data;
            o.x = data + p.count;
            p.blocks = blocks;
            o.blocks = blocks + (p.count + CSM_BLOCK - 1) / CSM_BLOCK;
            for_each(is_positive, n, (long long)p.count, [&](long long i, int exists, int in_p, long long place) {
                if (!exists) return;
                const double z = (double)LOAD(from + i);
                data[place] = transforms ? csm_any_transformed(&c, z, in_p ? p.reference : o.reference) : z;
            });
            __syncwarp();
            sum_group(p, t);
            sum_group(o, t);
            const csm_any_result r = csm_any_result_of(&p, &o, c.temperature, reference, ready->call.z_loss, s);
            loss = r.loss;
            if (to) {
                __syncwarp(); /* all threads have read the blocks */
                divide_group(p, r.of_positive, r.of_nothing);
                divide_group(o, r.of_other, r.of_other * 0);
                __syncwarp();
                double squares = 0;
                if (ready->call.clip_norm < CSM_INF)
                    for_each(is_positive, n, (long long)p.count, [&](long long, int exists, int, long long place) {
                        const double g = exists ? data[place] : 0, square = g * g;
                        for (int l = 0; l < WARP; l++) squares += __shfl_sync(ALL_LANES, square, l);
                    });
                const double shrink = csm_any_shrink(squares, ready->call.clip_norm);
                const double factor = 1 / ready->divisor * (upstream ? upstream[at] : 1);
                for_each(is_positive, n, (long long)p.count, [&](long long i, int exists, int, long long place) {
                    if (!exists) return;
                    const double g = csm_any_clipped(data[place], shrink, ready->call.clip_value) * factor;
                    STORE(to + i, rounded(g));
                });
            }
        }
        if (lane == 0) {
            losses[at] = loss;
            if (row_losses) row_losses[at] = rounded(loss);
        }
        __syncwarp();
    }
}
