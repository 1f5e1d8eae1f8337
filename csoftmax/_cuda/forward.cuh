/* The first pass over a block of logits in shared memory: its maximum, the transformation of rows beyond exp's range
 * reduction, e' and its sums.  softmax.cu, cross_entropy.cu and sample.cu use it.
 */
#ifndef CSOFTMAX_FORWARD_CUH
#define CSOFTMAX_FORWARD_CUH

#include "common.cuh"

static_assert((int)LOG_SEGMENT_ELEMENTS == (int)WARP, "one number of a segment for each thread of a warp");

/* Transforms the k elements of a warp's part of a row beyond exp's range; max is the row's maximum. */
INLINE void transform(REAL *s, int k, const csm_scales &c, double max) {
    for (int i = threadIdx.x % WARP; i < k; i += WARP) s[i] = (REAL)csm_transformed(&c, (double)s[i], max);
    __syncwarp();
}
/* The maximum of the k elements of a warp in shared memory. */
INLINE REAL warp_max(const REAL *s, int k) {
    REAL max = (REAL)-CSM_INF;
    for (int i = threadIdx.x % WARP; i < k; i += WARP) max = V(max)(s[i], max);
    return group_max(max, WARP);
}
/* e' of z.  T = 1 has a separate form, with one rounding less. */
INLINE REAL exp_of(REAL z, const V(shift) &s) { return V(exp_value)(z, s, s.inv_t != 1 || s.inv_t_low != 0); }

/* Computes e' of a warp's block again; add_up has left the block's maximum in `block`. */
INLINE void exp_again(REAL *s, int k, const csm_block &block, const csm_temperature &t) {
    REAL n0;
    const V(shift) by = V(shift_to)((REAL)csm_reference(block.max, &t), &t, 1, &n0);
    for (int i = threadIdx.x % WARP; i < k; i += WARP) s[i] = exp_of(s[i], by);
    __syncwarp();
}

/* Adds e' again, as a small sum (sum.inc.h).  at: gives e' of element i.
 * The lanes of double are two for each thread of a team.  All threads of the warp call it. */
template <int width, class Value> INLINE void add_small(Value at, int k, double *hi, double *lo) {
    const int thread = threadIdx.x % width, lane = thread % TEAM;
    double sum[DOT_TEAM / TEAM], low[DOT_TEAM / TEAM];
    UNROLL
    for (int half = 0; half < DOT_TEAM / TEAM; half++) sum[half] = low[half] = 0;
    if (thread < TEAM)
        for (int i = lane; i < k; i += DOT_TEAM) {
            UNROLL
            for (int half = 0; half < DOT_TEAM / TEAM; half++)
                if (i + half * TEAM < k)
                    V(dot_one)(&sum[half], &low[half], V(small_term)(at(i + half * TEAM)), (REAL)1);
        }
    if (SINGLE) {
        sum[0] += __shfl_xor_sync(ALL_LANES, sum[0], 8);
        *hi = __shfl_sync(ALL_LANES, tree(sum[0]), threadIdx.x % WARP / width * width);
        *lo = 0;
    } else {
        low[0] += low[DOT_TEAM / TEAM - 1];
        csm_two_sum(&sum[0], &low[0], sum[DOT_TEAM / TEAM - 1]);
        tree_pair(sum[0], low[0], threadIdx.x % WARP / width * width, hi, lo);
    }
}

/* Sums of e' of the k <= CSM_BLOCK elements at s, by a group of `width` threads: a team or a warp.  All threads of the
 * warp call it.  exact: elements equal to the maximum are left out of the sums and counted.  keep: e' stays at s.
 * Without keep, warps in double need `segment`, space for LOG_SEGMENT_ELEMENTS numbers: the eight lanes that add are
 * too few to compute exp as well. */
template <int width, bool exact, bool keep>
INLINE void add_up(REAL *s, REAL *segment, int k, double max, const csm_temperature &t, csm_block *block) {
    const int thread = threadIdx.x % width, lane = thread % TEAM, teams = width / TEAM, team = thread / TEAM;
    const double ref = csm_reference(max, &t);
    const REAL m = (REAL)max;
    REAL n0, count = 0;
    const V(shift) shift = V(shift_to)((REAL)ref, &t, 1, &n0);
    block->max = max;
    block->n = (double)n0;
    block->mass = block->far = 0;
    __syncwarp(); /* other threads have read the elements that are overwritten here */
    if (!SINGLE && width == WARP) { /* all threads compute exp, one team adds */
        REAL hi = EXP_SUM_START, lo = 0;
        const int step = keep ? k : LOG_SEGMENT_ELEMENTS;
        for (int begin = 0; begin < k; begin += step) {
            const int end = k < begin + step ? k : begin + step;
            REAL *e = keep ? s : segment - begin;
            for (int i = begin + thread; i < end; i += WARP) {
                const REAL z = s[i];
                REAL y = exp_of(z, shift);
                if (exact) {
                    count += z == m;
                    y = z == m ? 0 - y : y; /* the sign marks it for the threads that add */
                }
                e[i] = y;
            }
            __syncwarp();
            if (team == 0)
                for (int i = begin + lane; i < end; i += TEAM) {
                    const REAL y = e[i];
                    V(sum_one)(&hi, &lo, exact && y < 0 ? 0 : y);
                    if (exact && keep && y < 0) e[i] = 0 - y;
                }
            __syncwarp();
        }
        tree_pair((double)(hi - (REAL)EXP_SUM_START), (double)lo, 0, &block->hi, &block->lo);
    } else {
        double sum = 0, low = 0;
        for (int first = 0; first < k || first == 0; first += teams * CHUNK) {
            const int begin = first + team * CHUNK, end = k < begin + CHUNK ? k : begin + CHUNK;
            REAL hi = EXP_SUM_START, lo = 0;
            /* neighbouring teams run one step apart; otherwise they would access the same banks of shared memory */
            for (int i = begin + lane - (team & 1) * TEAM; i < end; i += TEAM) {
                if (i < begin) continue;
                const REAL z = s[i];
                REAL y = exp_of(z, shift);
                if (keep) s[i] = y;
                if (exact) {
                    count += z == m;
                    y = z == m ? 0 : y;
                }
                V(sum_one)(&hi, &lo, y);
            }
            hi -= (REAL)EXP_SUM_START;
            for (int from_team = 0; from_team < teams; from_team++) { /* chunks in order */
                const int from = threadIdx.x % WARP / width * width + from_team * TEAM + lane;
                sum = sum + (double)__shfl_sync(ALL_LANES, hi, from);
                if (SINGLE) sum = sum + (double)__shfl_sync(ALL_LANES, lo, from);
                else low = (double)__shfl_sync(ALL_LANES, lo, from);
            }
        }
        if (SINGLE) {
            sum += __shfl_xor_sync(ALL_LANES, sum, 8);
            block->hi = tree(sum);
            block->lo = 0;
        } else {
            tree_pair(sum, low, threadIdx.x % WARP / TEAM * TEAM, &block->hi, &block->lo);
        }
    }
    if (exact) {
        block->count = (double)group_count(count, width);
        csm_top(ref, t.t, EXP_BIAS, SINGLE, block);
        const bool small = V(is_small_sum)(block->hi + block->lo, (size_t)k);
        if (__any_sync(ALL_LANES, small)) {
            double hi, lo;
            __syncwarp(); /* the lanes read e' that other threads have written */
            add_small<width>([&](int i) { return keep ? s[i] : exp_of(s[i], shift); }, k, &hi, &lo);
            if (small) {
                block->hi = hi;
                block->lo = lo;
            }
        }
    }
}

#endif
