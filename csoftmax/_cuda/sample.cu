/* Draws from contiguous rows of logits: the classes that the CPU draws from the same uniform numbers.
 *
 *   sums      a warp for each block of CSM_BLOCK elements of a row: maximum, n, sum of e'
 *   min_sums  the same sums, of the elements that min-p keeps
 *   draw      a warp for each block again: the draws that land in the block
 *   chosen    a warp for each row, from its largest logits in falling order (topk.cu): top-k and top-p; the classes
 *             that they keep are put into the order of the indices, then min-p and the draws
 *
 * A draw is the first class, in the order of the indices, whose running sum exceeds its target.  The sums run in
 * double: one thread adds a block and stores the sum every MARK_ELEMENTS, from where each thread searches for its
 * draws.
 * Reads of each element: one; two with min-p or for rows beyond exp's range; one more for blocks in which draws land.
 * top-k: the reads of topk.cu; top-p alone: one more.  If 1024 logits are not enough, a library sorts, and everything
 * is read again.
 * Masses: e' of softmax.  Sums: of blocks in the lanes of sum.inc.h, all others in double, from first to last.
 * Error: the draws are the CPU's (tests/cuda), because the sums are.
 * A row with NaN or +inf, or with only -inf, has no mass, and gets the state NO_MASS.  Time: not measured on hardware
 * yet.
 */
#define LOADS 8
#include "forward.cuh"

enum { MARK_ELEMENTS = 64, MARKS = CSM_BLOCK / MARK_ELEMENTS };
enum { TOTAL, NUCLEUS, SUMS, DRAWS }; /* stages of `chosen`: mass of top_k, number kept by top_p, sums of blocks */
enum { DRAWN, NO_MASS, MORE_WANTED }; /* states of rows; the last: too few logits were chosen */

/* The record of a block of a row. */
struct part {
    double sum;
#if EXP_MANTISSA == 52
    double rest; /* below the last bit of the sum; 0 for floats, whose sums have 53 bits */
#else
    enum { rest = 0 };
#endif
    REAL n, max_mass, max; /* max_mass: the largest e' */
    int nan;
};

INLINE void set_rest(part &p, double rest) {
#if EXP_MANTISSA == 52
    p.rest = rest;
#endif
}

/* The scale of a row's masses. */
struct base {
    const csm_temperature *t;
    double max; /* before any transformation */
    double n, max_mass; /* n and e' of the maximum */
    int transforms, empty; /* the row is beyond exp's range; it has no mass */
};
INLINE base base_of(double max, int nan, const csm_scales &c) {
    base row;
    row.max = max;
    row.empty = nan || !(max > -CSM_INF && max < CSM_INF);
    row.transforms = !row.empty && !csm_fits_range(&c, max);
    row.t = row.transforms ? &c.transformed : &c.ordinary;
    const REAL highest = row.transforms ? (REAL)csm_transformed(&c, (double)(REAL)max, max) : (REAL)max;
    REAL n0;
    const V(shift) by = V(shift_to)((REAL)csm_reference((double)highest, row.t), row.t, 1, &n0);
    row.n = (double)n0;
    row.max_mass = (double)exp_of(highest, by);
    return row;
}
/* Computes the base of a row from its blocks.  All threads of the warp call it. */
INLINE base base_of(const part *parts, long long count, const csm_scales &c) {
    double max = -CSM_INF;
    int nan = 0;
    for (long long b = threadIdx.x; b < count; b += WARP) {
        max = (double)parts[b].max > max ? (double)parts[b].max : max;
        nan |= parts[b].nan;
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        const double other = __shfl_xor_sync(ALL_LANES, max, d);
        max = other > max ? other : max;
    }
    return base_of(max, group_any(nan, WARP), c);
}

/* The mass of a block: 0 if its largest mass is too small for the compute type. */
INLINE double mass_of(const part &p, const base &row) {
    const double scale = csm_pow2((double)p.n - row.n), mass = (p.sum + p.rest) * scale;
    return scale != 1 && !((REAL)((double)p.max_mass * scale) > 0) ? 0 : mass;
}

/* Copies k elements to shared memory, transforms them if the row needs it, and returns their maximum. */
INLINE REAL fetch(REAL *s, const T *from, int k, const base &row, const csm_scales &c) {
    __syncwarp(); /* other threads have read the previous elements */
    load(s, from, NULL, k, (REAL)-CSM_INF, threadIdx.x, WARP);
    __syncwarp();
    if (row.transforms) transform(s, k, c, row.max);
    return warp_max(s, k);
}
/* Computes the masses of k elements in shared memory, 0 for those below `lowest`. */
INLINE void masses(REAL *s, const T *from, int k, double lowest, const base &row, const csm_scales &c) {
    const double max = (double)fetch(s, from, k, row, c);
    REAL n0;
    const V(shift) by = V(shift_to)((REAL)csm_reference(max, row.t), row.t, 1, &n0);
    const double scale = csm_pow2((double)n0 - row.n);
    __syncwarp(); /* other threads have read the elements for the maximum */
    for (int i = threadIdx.x; i < k; i += WARP) {
        REAL e = exp_of(s[i], by);
        if (scale != 1) e = (REAL)((double)e * scale);
        s[i] = (double)e >= lowest ? e : 0;
    }
    __syncwarp();
}

/* The running sum of k masses, from the first to the last: its values before every MARK_ELEMENTS elements and at the
 * end, and the last element that increases it. */
struct trail {
    double before[MARKS];
    double sum;
    int last;
};
static_assert(sizeof(part) <= RECORD_BYTES && sizeof(trail) == TRAIL_BYTES, "sizes that the launch plans assume");
INLINE void walk(const REAL *s, int k, trail *t) {
    if (threadIdx.x == 0) {
        double sum = 0;
        int last = 0;
        for (int begin = 0; begin < k; begin += MARK_ELEMENTS) {
            t->before[begin / MARK_ELEMENTS] = sum;
            const int end = k - begin < MARK_ELEMENTS ? k : begin + MARK_ELEMENTS;
            for (int i = begin; i < end; i++) {
                const double next = sum + (double)s[i];
                last = next > sum ? i : last;
                sum = next;
            }
        }
        t->sum = sum;
        t->last = last;
    }
    __syncwarp();
}
/* The first i whose running sum exceeds the target, else the last i that increases the sum. */
INLINE int search(const REAL *s, int k, const trail *t, double target) {
    int mark = (k - 1) / MARK_ELEMENTS;
    while (mark > 0 && t->before[mark] > target) mark--;
    double sum = t->before[mark];
    for (int i = mark * MARK_ELEMENTS; i < k; i++) {
        sum += (double)s[i];
        if (sum > target) return i;
    }
    return t->last;
}

/* The place of a block in the running sum of a row's blocks; `pass` is called with the mass of every block in order. */
struct place {
    csm_exact sum; /* of the masses so far; `total` is its rounded value */
    double before, after, mass, total;
    bool is_last; /* of the blocks with mass: draws beyond the total land in it */
};
INLINE void pass(place *p, double mass, bool is_this) {
    double rest;
    if (is_this) {
        p->before = p->total;
        p->mass = mass;
    }
    if (mass > 0) p->is_last = is_this;
    csm_exact_add(&p->sum, mass, 0, 1);
    csm_exact_pair(&p->sum, 0, &p->total, &rest);
    if (is_this) p->after = p->total;
}
INLINE void clear_place(place *p) {
    csm_exact_zero(&p->sum);
    p->before = p->after = p->mass = p->total = 0;
    p->is_last = false;
}
/* Whether a draw lands in the block; *rest: the target within it. */
INLINE bool has_draw(const place &p, double uniform, double *rest) {
    const double target = uniform * p.total;
    const bool beyond = !(p.total > target);
    *rest = target - (beyond ? p.total - p.mass : p.before);
    return p.mass > 0 && (beyond ? p.is_last : p.before <= target && p.after > target);
}

extern __shared__ __align__(16) unsigned char memory[];
INLINE REAL *elements(const T *from) { return (REAL *)(void *)(memory + (sizeof(trail) + 15) / 16 * 16) + lead(from); }

/* which: the index of each row's temperature.  known: NULL in the first launch, its records in the second, where rows
 * beyond exp's range are transformed and the records of all others are copied. */
extern "C" __global__ void __launch_bounds__(WARP, 1)
    sums(const T *x, const part *__restrict__ known, part *to, long long rows, long long n,
         const csm_scales *__restrict__ scales, const int *__restrict__ which) {
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, begin = (unit - at * blocks_per_row) * CSM_BLOCK;
        const int k = block_length(n, begin);
        const T *from = x + at * n + begin;
        const csm_scales &c = scales[which[at]];
        base row;
        row.t = &c.ordinary;
        row.transforms = 0;
        if (known) {
            row = base_of(known + at * blocks_per_row, blocks_per_row, c);
            if (!row.transforms) {
                if (threadIdx.x == 0) to[unit] = known[unit];
                continue;
            }
        }
        REAL *s = elements(from);
        const REAL max = fetch(s, from, k, row, c);
        part p;
        p.nan = 0;
        for (int i = threadIdx.x; i < k; i += WARP) p.nan |= s[i] != s[i];
        p.nan = group_any(p.nan, WARP);
        csm_block block;
        add_up<WARP, false, true>(s, s, k, (double)max, *row.t, &block);
        __syncwarp();
        p.max = known ? known[unit].max : max;
        p.n = (REAL)block.n;
        p.sum = block.hi;
        set_rest(p, block.lo);
        p.max_mass = warp_max(s, k);
        if (threadIdx.x == 0) to[unit] = p;
    }
}

extern "C" __global__ void __launch_bounds__(WARP, 1)
    min_sums(const T *x, const part *__restrict__ parts, part *to, const double *__restrict__ min_p, long long rows,
             long long n, const csm_scales *__restrict__ scales, const int *__restrict__ which) {
    trail *const walked = (trail *)(void *)memory;
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, begin = (unit - at * blocks_per_row) * CSM_BLOCK;
        const int k = block_length(n, begin);
        const T *from = x + at * n + begin;
        const csm_scales &c = scales[which[at]];
        const base row = base_of(parts + at * blocks_per_row, blocks_per_row, c);
        part p = parts[unit];
        if (!row.empty && min_p[at] > 0) {
            REAL *s = elements(from);
            masses(s, from, k, min_p[at] * row.max_mass, row, c);
            walk(s, k, walked);
            p.n = (REAL)row.n;
            p.sum = walked->sum;
            set_rest(p, 0);
        }
        if (threadIdx.x == 0) to[unit] = p;
        __syncwarp();
    }
}

/* min_p: NULL, or one number per row; then the parts come from `min_sums`. */
extern "C" __global__ void __launch_bounds__(WARP, 1)
    draw(const T *x, const part *__restrict__ parts, const double *__restrict__ min_p,
         const double *__restrict__ uniform, long long *indices, int *states, long long rows, long long n,
         long long size, const csm_scales *__restrict__ scales, const int *__restrict__ which) {
    trail *const walked = (trail *)(void *)memory;
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * blocks_per_row; unit += gridDim.x) {
        const long long at = unit / blocks_per_row, number = unit - at * blocks_per_row, begin = number * CSM_BLOCK;
        const int k = block_length(n, begin);
        const T *from = x + at * n + begin;
        const csm_scales &c = scales[which[at]];
        const base row = base_of(parts + at * blocks_per_row, blocks_per_row, c);
        if (number == 0 && threadIdx.x == 0) states[at] = row.empty ? NO_MASS : DRAWN;
        if (row.empty) continue;
        place here;
        clear_place(&here);
        for (long long done = 0; done < blocks_per_row; done += WARP) {
            const long long b = done + threadIdx.x;
            const double mass = b < blocks_per_row ? mass_of(parts[at * blocks_per_row + b], row) : 0;
            const int count = blocks_per_row - done < WARP ? (int)(blocks_per_row - done) : WARP;
            for (int j = 0; j < count; j++) pass(&here, __shfl_sync(ALL_LANES, mass, j), done + j == number);
        }
        REAL *s = elements(from);
        bool has_masses = false;
        for (long long first = 0; first < size; first += WARP) {
            const long long i = at * size + first + threadIdx.x;
            const bool draws = first + threadIdx.x < size;
            double rest = 0;
            const bool is_here = draws && has_draw(here, uniform[i], &rest);
            if (!__any_sync(ALL_LANES, is_here)) continue;
            if (!has_masses) {
                masses(s, from, k, min_p ? min_p[at] * row.max_mass : 0, row, c);
                walk(s, k, walked);
                has_masses = true;
            }
            if (is_here) indices[i] = begin + search(s, k, walked, rest);
        }
        __syncwarp();
    }
}

/* Puts the first `kept` logits of a row and their classes into the order of the classes.  all: the row; marks: n
 * zeros. */
INLINE void order_kept(T *logits, long long *classes, const T *all, uint8_t *marks, long long n, long long kept) {
    const int lane = threadIdx.x;
    for (long long i = lane; i < kept; i += WARP) marks[classes[i]] = 1;
    __syncwarp();
    long long next = 0;
    for (long long begin = 0; begin < n; begin += WARP) {
        const bool is_kept = begin + lane < n && marks[begin + lane] != 0;
        const unsigned lanes = __ballot_sync(ALL_LANES, is_kept);
        if (is_kept) {
            const long long to = next + __popc(lanes & ((1u << lane) - 1));
            classes[to] = begin + lane;
            logits[to] = all[begin + lane];
        }
        next += __popc(lanes);
    }
    __syncwarp();
}

/* x, from: the k largest logits of each row in falling order, and their indices; both are put into another order.
 * all: the rows; marks: a 0 for each element of `all`.  parts: records of all logits, for rows without top_k, or NULL.
 * sums: space for one number for each CSM_BLOCK of the k. */
extern "C" __global__ void __launch_bounds__(WARP, 12)
    chosen(T *x, long long *from, const T *all, uint8_t *marks, const part *__restrict__ parts,
           const long long *__restrict__ top_k, const double *__restrict__ top_p, const double *__restrict__ min_p,
           const double *__restrict__ uniform, double *sums, long long *indices, int *states, long long rows,
           long long n, long long k, long long size, const csm_scales *__restrict__ scales,
           const int *__restrict__ which) {
    trail *const walked = (trail *)(void *)memory;
    const long long blocks_per_row = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const csm_scales &c = scales[which[at]];
        T *logits = x + at * k;
        const REAL highest = LOAD(logits);
        const base row = base_of((double)highest, highest != highest, c);
        const long long wanted = top_k[at], count = wanted < k ? wanted : k;
        int state = row.empty ? NO_MASS : wanted < n && wanted > k ? MORE_WANTED : DRAWN;
        long long kept = count;
        double total = 0, sum = 0, rest;
        if (wanted == n && top_p[at] < 1) {
            csm_exact whole;
            csm_exact_zero(&whole);
            for (long long b = 0; b < blocks_per_row && !row.empty; b++) {
                const part p = parts[at * blocks_per_row + b];
                csm_exact_add(&whole, p.sum, (int64_t)p.n, 1);
                csm_exact_add(&whole, p.rest, (int64_t)p.n, 1);
            }
            csm_exact_pair(&whole, (int64_t)row.n, &total, &rest);
        }
        double *const mass = sums + at * ((k + CSM_BLOCK - 1) / CSM_BLOCK);
        int stage = top_p[at] == 1 ? SUMS : wanted == n ? NUCLEUS : TOTAL;
        for (; stage <= DRAWS && state == DRAWN; stage++) {
            const long long end = stage <= NUCLEUS ? count : kept;
            const double lowest = stage > NUCLEUS && min_p ? min_p[at] * row.max_mass : 0, limit = top_p[at] * total;
            if (stage == NUCLEUS) kept = 0;
            if (stage == SUMS && kept > 1) order_kept(logits, from + at * k, all + at * n, marks + at * n, n, kept);
            for (long long begin = 0; begin < end; begin += CSM_BLOCK) {
                const int length = block_length(end, begin);
                REAL *s = elements(logits + begin);
                if (stage == NUCLEUS && !(sum < limit)) break;
                masses(s, logits + begin, length, lowest, row, c);
                if (stage >= SUMS) walk(s, length, walked);
                if (stage == SUMS) {
                    if (threadIdx.x == 0) mass[begin / CSM_BLOCK] = walked->sum;
                } else if (stage == DRAWS) {
                    place block;
                    clear_place(&block);
                    for (long long b = 0; b * CSM_BLOCK < end; b++) pass(&block, mass[b], b * CSM_BLOCK == begin);
                    for (long long draw = threadIdx.x; draw < size; draw += WARP) {
                        double rest;
                        if (has_draw(block, uniform[at * size + draw], &rest))
                            indices[at * size + draw] = from[at * k + begin + search(s, length, walked, rest)];
                    }
                } else {
                    for (int i = 0; i < length; i++) { /* every thread computes the same */
                        if (stage == TOTAL) total += (double)s[i];
                        else if (sum < limit) {
                            sum += (double)s[i];
                            kept++;
                        }
                    }
                }
                __syncwarp();
            }
            if (stage == NUCLEUS && kept == count && count < wanted && sum < limit) state = MORE_WANTED;
        }
        if (threadIdx.x == 0) states[at] = state;
    }
}
