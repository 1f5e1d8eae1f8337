/* Draws from contiguous rows of logits: the classes that src_c/sample.c draws from the same uniform numbers.
 *
 *   sums      a warp for each block of CSM_BLOCK elements of a row: maximum, n, sum of e'
 *   min_sums  the same for min-p: the sums of what it leaves
 *   draw      a warp for each block again, which computes the draws that land in it
 *   chosen    a warp for each row, from its largest logits in falling order (topk.cu): top-k, top-p, min-p
 *
 * A draw walks through running sums in double, which have the order of the classes: one thread adds a block up, leaving
 * a mark every APART elements, from where the threads walk on to their draws.
 * Reads of each element: one, two with min-p or where exp does not take a row as it is, one more for blocks in which
 * draws land.  With top-k those of topk.cu, with top-p alone one more; again, sorted by a library, where 1024 are too
 * few.
 * Masses: e' of softmax.  Sums: of blocks in the lanes of sum.inc.h, all others in double, from first to last.
 * Error: draws are the CPU's (tests/test_cuda.py), because the sums are.
 * NaN, +inf or nothing but -inf: no mass; the row's state says so.  Time: not measured on hardware yet.
 */
#define LOADS 8
#include "forward.cuh"

enum { APART = 64, MARKS = CSM_BLOCK / APART };
enum { TOTAL, NUCLEUS, SUMS, DRAWS }; /* of `chosen`: the mass of top_k, what top_p leaves of it, sums of blocks */
enum { DRAWN, NO_MASS, MORE_WANTED }; /* states of rows; the last: so few chosen logits are not enough */

/* A block of a row; `most`: the largest e'. */
struct part {
    double sum;
    REAL n, most, max;
    int nan;
};

/* What the masses of a row are relative to. */
struct base {
    const csm_temperature *t;
    double max; /* as given, before any transformation */
    double n, most; /* n and e' of the maximum */
    int cold, empty; /* transformed; without mass */
};
INLINE base base_of(double max, int nan, const csm_scales &c) {
    base row;
    row.max = max;
    row.empty = nan || !(max > -CSM_INF && max < CSM_INF);
    row.cold = !row.empty && !csm_fits_range(&c, max);
    row.t = row.cold ? &c.transformed : &c.ordinary;
    const REAL highest = row.cold ? CSM_TRANSFORMED(REAL, (REAL)max, &c, max) : (REAL)max;
    REAL n0;
    const V(shift) by = V(shift_to)((REAL)csm_reference((double)highest, row.t), row.t, 1, &n0);
    row.n = (double)n0;
    row.most = (double)exp_of(highest, by);
    return row;
}
/* The same from the blocks of a row; all of a warp calls it. */
INLINE base base_of(const part *parts, long long count, const csm_scales &c) {
    double max = -CSM_INF;
    int nan = 0;
    for (long long b = threadIdx.x; b < count; b += WARP) {
        max = (double)parts[b].max > max ? (double)parts[b].max : max;
        nan |= parts[b].nan;
    }
    for (int d = WARP / 2; d > 0; d /= 2) {
        const double other = __shfl_xor_sync(EVERYONE, max, d);
        max = other > max ? other : max;
    }
    return base_of(max, group_any(nan, WARP), c);
}

/* Mass of a block; masses that are too small for their type are none. */
INLINE double mass_of(const part &p, const base &row) {
    const double scale = csm_pow2((double)p.n - row.n), mass = p.sum * scale;
    return scale != 1 && !((REAL)((double)p.most * scale) > 0) ? 0 : mass;
}

/* k elements to shared memory, as exp takes them, and their maximum there. */
INLINE REAL fetch(REAL *s, const T *from, int k, const base &row, const csm_scales &c) {
    __syncwarp(); /* others have read what was there */
    load(s, from, NULL, k, (REAL)-CSM_INF, threadIdx.x, WARP);
    __syncwarp();
    if (row.cold) transform(s, k, c, row.max);
    return warp_max(s, k);
}
/* The masses of k elements, 0 where they are below `least`. */
INLINE void masses(REAL *s, const T *from, int k, double least, const base &row, const csm_scales &c) {
    const double max = (double)fetch(s, from, k, row, c);
    REAL n0;
    const V(shift) by = V(shift_to)((REAL)csm_reference(max, row.t), row.t, 1, &n0);
    const double scale = csm_pow2((double)n0 - row.n);
    __syncwarp(); /* others have looked for the maximum */
    for (int i = threadIdx.x; i < k; i += WARP) {
        REAL e = exp_of(s[i], by);
        if (scale != 1) e = (REAL)((double)e * scale);
        s[i] = (double)e >= least ? e : 0;
    }
    __syncwarp();
}

/* The sum of k masses from the first to the last, and what is needed to look for draws in it: the sum before every
 * APART elements, and the last mass that adds to it. */
struct trail {
    double before[MARKS];
    double sum;
    int last;
};
static_assert(sizeof(part) <= ROW_BYTES && sizeof(trail) == TRAIL_BYTES, "sizes that the launch rules have");
INLINE void walk(const REAL *s, int k, trail *t) {
    if (threadIdx.x == 0) {
        double sum = 0;
        int last = 0;
        for (int begin = 0; begin < k; begin += APART) {
            t->before[begin / APART] = sum;
            const int end = k - begin < APART ? k : begin + APART;
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
/* The first i with a running sum beyond the target, else the last that adds to it. */
INLINE int search(const REAL *s, int k, const trail *t, double target) {
    int mark = (k - 1) / APART;
    while (mark > 0 && t->before[mark] > target) mark--;
    double sum = t->before[mark];
    for (int i = mark * APART; i < k; i++) {
        sum += (double)s[i];
        if (sum > target) return i;
    }
    return t->last;
}

/* Where among the masses of a row's blocks one of them lies; each mass in turn is given to `pass`. */
struct place {
    double before, mass, total;
    bool is_last; /* that has mass: the draws beyond the total are its own */
};
INLINE void pass(place *p, double mass, bool is_own) {
    if (is_own) {
        p->before = p->total;
        p->mass = mass;
    }
    if (mass > 0) p->is_last = is_own;
    p->total += mass;
}
/* Whether a draw lands in the block, and how far in it. */
INLINE bool lands(const place &p, double uniform, double *rest) {
    const double target = uniform * p.total;
    const bool beyond = !(p.total > target);
    *rest = target - (beyond ? p.total - p.mass : p.before);
    return p.mass > 0 && (beyond ? p.is_last : p.before <= target && p.before + p.mass > target);
}

extern __shared__ __align__(16) unsigned char memory[];
INLINE REAL *elements(const T *from) { return (REAL *)(void *)(memory + (sizeof(trail) + 15) / 16 * 16) + lead(from); }

/* which: the temperature of each row.  known: NULL, or what the first call left, for rows that exp does not take as
 * they are: those are transformed, the rest is passed on. */
extern "C" __global__ void __launch_bounds__(WARP, 1)
    sums(const T *x, const part *__restrict__ known, part *to, long long rows, long long n,
         const csm_scales *__restrict__ scales, const int *__restrict__ which) {
    const long long per = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * per; unit += gridDim.x) {
        const long long at = unit / per, begin = (unit - at * per) * CSM_BLOCK;
        const int k = block_length(n, begin);
        const T *from = x + at * n + begin;
        const csm_scales &c = scales[which[at]];
        base row;
        row.t = &c.ordinary;
        row.cold = 0;
        if (known) {
            row = base_of(known + at * per, per, c);
            if (!row.cold) {
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
        p.sum = block.hi + block.lo;
        p.most = warp_max(s, k);
        if (threadIdx.x == 0) to[unit] = p;
    }
}

extern "C" __global__ void __launch_bounds__(WARP, 1)
    min_sums(const T *x, const part *__restrict__ parts, part *to, const double *__restrict__ min_p, long long rows,
             long long n, const csm_scales *__restrict__ scales, const int *__restrict__ which) {
    trail *const own = (trail *)(void *)memory;
    const long long per = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * per; unit += gridDim.x) {
        const long long at = unit / per, begin = (unit - at * per) * CSM_BLOCK;
        const int k = block_length(n, begin);
        const T *from = x + at * n + begin;
        const csm_scales &c = scales[which[at]];
        const base row = base_of(parts + at * per, per, c);
        part p = parts[unit];
        if (!row.empty && min_p[at] > 0) {
            REAL *s = elements(from);
            masses(s, from, k, min_p[at] * row.most, row, c);
            walk(s, k, own);
            p.n = (REAL)row.n;
            p.sum = own->sum;
        }
        if (threadIdx.x == 0) to[unit] = p;
        __syncwarp();
    }
}

/* min_p: NULL, or of each row: parts are those of `min_sums`. */
extern "C" __global__ void __launch_bounds__(WARP, 1)
    draw(const T *x, const part *__restrict__ parts, const double *__restrict__ min_p,
         const double *__restrict__ uniform, long long *indices, int *states, long long rows, long long n,
         long long size, const csm_scales *__restrict__ scales, const int *__restrict__ which) {
    trail *const own = (trail *)(void *)memory;
    const long long per = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long unit = blockIdx.x; unit < rows * per; unit += gridDim.x) {
        const long long at = unit / per, number = unit - at * per, begin = number * CSM_BLOCK;
        const int k = block_length(n, begin);
        const T *from = x + at * n + begin;
        const csm_scales &c = scales[which[at]];
        const base row = base_of(parts + at * per, per, c);
        if (number == 0 && threadIdx.x == 0) states[at] = row.empty ? NO_MASS : DRAWN;
        if (row.empty) continue;
        place own_place = {0, 0, 0, false};
        for (long long some = 0; some < per; some += WARP) {
            const long long b = some + threadIdx.x;
            const double mass = b < per ? mass_of(parts[at * per + b], row) : 0;
            const int count = per - some < WARP ? (int)(per - some) : WARP;
            for (int j = 0; j < count; j++) pass(&own_place, __shfl_sync(EVERYONE, mass, j), some + j == number);
        }
        REAL *s = elements(from);
        bool is_there = false;
        for (long long first = 0; first < size; first += WARP) {
            const long long i = at * size + first + threadIdx.x;
            const bool draws = first + threadIdx.x < size;
            double rest = 0;
            const bool here = draws && lands(own_place, uniform[i], &rest);
            if (!__any_sync(EVERYONE, here)) continue;
            if (!is_there) {
                masses(s, from, k, min_p ? min_p[at] * row.most : 0, row, c);
                walk(s, k, own);
                is_there = true;
            }
            if (here) indices[i] = begin + search(s, k, own, rest);
        }
        __syncwarp();
    }
}

/* k logits of each row in falling order, and where they were.  parts: of all logits, for rows without top_k, or NULL.
 * sums: room for one of each CSM_BLOCK of them. */
extern "C" __global__ void __launch_bounds__(WARP, 1)
    chosen(const T *x, const long long *__restrict__ from, const part *__restrict__ parts,
           const long long *__restrict__ top_k, const double *__restrict__ top_p, const double *__restrict__ min_p,
           const double *__restrict__ uniform, double *sums, long long *indices, int *states, long long rows,
           long long n, long long k, long long size, const csm_scales *__restrict__ scales,
           const int *__restrict__ which) {
    trail *const own = (trail *)(void *)memory;
    const long long per = (n + CSM_BLOCK - 1) / CSM_BLOCK;
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const csm_scales &c = scales[which[at]];
        const T *logits = x + at * k;
        const REAL highest = LOAD(logits);
        const base row = base_of((double)highest, highest != highest, c);
        const long long wanted = top_k[at], count = wanted < k ? wanted : k;
        int state = row.empty ? NO_MASS : wanted < n && wanted > k ? MORE_WANTED : DRAWN;
        long long kept = count;
        double total = 0, low = 0, sum = 0;
        for (long long b = 0; b < per && wanted == n && top_p[at] < 1; b++) {
            const part p = parts[at * per + b];
            csm_two_sum(&total, &low, p.sum * csm_pow2((double)p.n - row.n));
        }
        total += low;
        double *const mass = sums + at * ((k + CSM_BLOCK - 1) / CSM_BLOCK);
        int stage = top_p[at] == 1 ? SUMS : wanted == n ? NUCLEUS : TOTAL;
        for (; stage <= DRAWS && state == DRAWN; stage++) {
            const long long end = stage <= NUCLEUS ? count : kept;
            const double lowest = stage > NUCLEUS && min_p ? min_p[at] * row.most : 0, limit = top_p[at] * total;
            if (stage == NUCLEUS) kept = 0;
            for (long long begin = 0; begin < end; begin += CSM_BLOCK) {
                const int length = block_length(end, begin);
                REAL *s = elements(logits + begin);
                if (stage == NUCLEUS && !(sum < limit)) break;
                masses(s, logits + begin, length, lowest, row, c);
                if (stage >= SUMS) walk(s, length, own);
                if (stage == SUMS) {
                    if (threadIdx.x == 0) mass[begin / CSM_BLOCK] = own->sum;
                } else if (stage == DRAWS) {
                    place block = {0, 0, 0, false};
                    for (long long b = 0; b * CSM_BLOCK < end; b++) pass(&block, mass[b], b * CSM_BLOCK == begin);
                    for (long long draw = threadIdx.x; draw < size; draw += WARP) {
                        double rest;
                        if (lands(block, uniform[at * size + draw], &rest))
                            indices[at * size + draw] = from[at * k + begin + search(s, length, own, rest)];
                    }
                } else {
                    for (int i = 0; i < length; i++) { /* every thread alike */
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
