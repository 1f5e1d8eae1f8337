/* The first pass over a block of logits that lies in shared memory: maximum, transformation of rows that exp's range
 * reduction does not take, e' and its sums.  Shared by softmax.cu and cross_entropy.cu.
 */
#ifndef CSOFTMAX_FORWARD_CUH
#define CSOFTMAX_FORWARD_CUH

#include "common.cuh"

enum { SEGMENT = WARP }; /* of few, so that shared memory holds as long a row of the log family as of softmax */

/* The k elements of a warp's part, whose row exp does not take, max: its maximum. */
INLINE void transform(REAL *s, int k, const csm_scales &c, double max) {
    for (int i = threadIdx.x % WARP; i < k; i += WARP) s[i] = CSM_TRANSFORMED(REAL, s[i], &c, max);
    __syncwarp();
}
/* The maximum of what a warp has in shared memory. */
INLINE REAL warp_max(const REAL *s, int k) {
    REAL max = (REAL)-CSM_INF;
    for (int i = threadIdx.x % WARP; i < k; i += WARP) max = V(max)(s[i], max);
    return group_max(max, WARP);
}
/* T = 1 has a form of its own, with a rounding less. */
INLINE REAL exp_of(REAL z, const V(shift) &s) { return V(exp_value)(z, s, s.inv_t != 1 || s.inv_t_low != 0); }

/* e' of a warp's part of a block that add_up has seen, once more. */
INLINE void exp_again(REAL *s, int k, const csm_block &block, const csm_temperature &t) {
    REAL n0;
    const V(shift) by = V(shift_to)((REAL)csm_reference(block.max, &t), &t, 1, &n0);
    for (int i = threadIdx.x % WARP; i < k; i += WARP) s[i] = exp_of(s[i], by);
    __syncwarp();
}

/* Sums of e' of the k elements at s, at most CSM_BLOCK, by a group of `width` threads: a team, or a warp.  All of the
 * warp calls it.  exact: elements equal to the maximum are kept out of the sums and counted.  keep: e' stays at s;
 * else, in double, `apart` is room for SEGMENT numbers, because eight lanes are too few to compute exp as they add. */
template <int width, bool exact, bool keep>
INLINE void add_up(REAL *s, REAL *apart, int k, double max, const csm_temperature &t, csm_block *block) {
    const int thread = threadIdx.x % width, lane = thread % TEAM, teams = width / TEAM, team = thread / TEAM;
    const double ref = csm_reference(max, &t);
    const REAL m = (REAL)max;
    REAL n0, count = 0;
    const V(shift) shift = V(shift_to)((REAL)ref, &t, 1, &n0);
    block->max = max;
    block->n = (double)n0;
    block->mass = block->far = 0;
    __syncwarp(); /* others have read what is written here */
    if (!SINGLE && width == WARP) { /* exp by everyone, sums by one team */
        REAL hi = EXP_SUM_START, lo = 0;
        const int segment = keep ? k : (int)SEGMENT;
        for (int begin = 0; begin < k; begin += segment) {
            const int end = k < begin + segment ? k : begin + segment;
            REAL *e = keep ? s : apart - begin;
            for (int i = begin + thread; i < end; i += WARP) {
                const REAL z = s[i];
                REAL y = exp_of(z, shift);
                if (exact) {
                    count += z == m;
                    y = z == m ? 0 - y : y; /* the sign tells the adders */
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
            /* neighbouring teams one step apart: otherwise they would ask the same banks of shared memory */
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
            for (int of = 0; of < teams; of++) { /* the chunks in their order */
                const int from = threadIdx.x % WARP / width * width + of * TEAM + lane;
                sum = sum + (double)__shfl_sync(EVERYONE, hi, from);
                if (SINGLE) sum = sum + (double)__shfl_sync(EVERYONE, lo, from);
                else low = (double)__shfl_sync(EVERYONE, lo, from);
            }
        }
        if (SINGLE) {
            sum += __shfl_xor_sync(EVERYONE, sum, 8);
            block->hi = tree(sum);
            block->lo = 0;
        } else {
            tree_pair(sum, low, threadIdx.x % WARP / TEAM * TEAM, &block->hi, &block->lo);
        }
    }
    if (exact) {
        block->count = (double)group_count(count, width);
        csm_top(ref, t.t, EXP_BIAS, SINGLE, block);
    }
}

#endif
