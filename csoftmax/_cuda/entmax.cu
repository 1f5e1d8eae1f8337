/* alpha-entmax of contiguous rows and its gradient, with the CPU's bits: the threshold is that of
 * src_c/kernel/entmax_solve.h.
 *
 *   forward   a thread block for each row, part by part: the maximum so far; the numbers that can have probability
 *             beside it, in the order of their indices (src_c/kernel/entmax.inc.h), to shared memory, or, where
 *             more than FEW survive, to `elsewhere`; the solver, in one thread, because its sums have an order;
 *             zeros, and what is left of the numbers
 *   rows      the same for the loss, in one thread (src_c/kernel/entmax_loss.h), and its gradient, which may be x
 *   backward  a thread block for each row: the elements with y > 0, a part of the row at a time; their sums, as pairs,
 *             in one thread; the row once more
 *
 * Reads and writes of each element, however long the row: one and one, of what has probability one write more; beyond
 * FEW survivors go through global memory (forty bytes each).  Soft labels are read twice, with a gradient three times,
 * and the loss reads the logits of labels outside the support once more.  backward reads a row that shared memory does
 * not hold twice (tests/test_cuda.py counts, but for soft labels).
 * Accumulators: double, or pairs of them.  Error: the CPU's (ACCURACY.md), because the bits are the CPU's.
 * NaN, +inf or nothing but -inf: the whole row is NaN, as on the CPU; a row of which a mask leaves nothing is zeros,
 * and its loss NaN; a label that is no class makes its row and its loss NaN.
 * Time: not measured on hardware yet; the solver of a row is one thread, beside other rows' blocks.
 */
#define LOADS 4
#define SIMD
#include "common.cuh"
#include "kernel/topk/select.inc.h"
#include "kernel/entmax/loss.h"
#include "kernel/entmax/solve.h"

enum { MOST_THREADS = 256, FEW = 512 /* survivors in shared memory */ };

/* What the threads of a row share. */
struct shared_row {
    csm_support s;
    size_t counts[MOST_THREADS / WARP];
    double most[MOST_THREADS / WARP], top, top_low, all, all_low;
};
static_assert(sizeof(shared_row) <= SHARED_BYTES, "room that the launch rules leave");

/* put(i, number) for the i in [0, count) that are wanted, numbered in their order from `done` on; returns done and how
 * many there were.  All threads of the block call it. */
template <class Wanted, class Put>
INLINE size_t number(int count, size_t done, size_t *counts, Wanted wanted, Put put) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int each = (count + warps * WARP - 1) / (warps * WARP) * WARP, begin = warp * each;
    const int end = begin + each < count ? begin + each : count;
    size_t own = 0, all = done;
    for (int i = begin; i < end; i += WARP)
        own += (size_t)__popc(__ballot_sync(EVERYONE, i + lane < end && wanted(i + lane)));
    if (lane == 0) counts[warp] = own;
    __syncthreads();
    own = done;
    for (int w = 0; w < warps; w++) {
        own += w < warp ? counts[w] : 0;
        all += counts[w];
    }
    for (int i = begin; i < end; i += WARP) {
        const bool is = i + lane < end && wanted(i + lane);
        const unsigned some = __ballot_sync(EVERYONE, is);
        if (is) put(i + lane, own + (size_t)__popc(some & ((1u << lane) - 1)));
        own += (size_t)__popc(some);
    }
    __syncthreads();
    return all;
}

INLINE csm_support support_at(double *memory, size_t capacity) {
    csm_support s = {memory,
                     memory + capacity,
                     memory + 2 * capacity,
                     memory + 3 * capacity,
                     (size_t *)(void *)(memory + 4 * capacity),
                     capacity};
    return s;
}

extern __shared__ __align__(16) unsigned char memory[];

/* Where shared memory has the parts of the arrays, `part` elements at most, and what follows them. */
INLINE REAL *array_at(int number, int part) {
    return (REAL *)(void *)(memory + SHARED_BYTES) + number * room((size_t)part);
}

/* All threads of a block: one value to a whole row. */
INLINE void fill(T *to, long long n, int part, double x) {
    const constant all = {canonical((REAL)x)};
    for (long long begin = 0; begin < n; begin += part)
        store(to + begin, (int)(n - begin < part ? n - begin : part), all, threadIdx.x, blockDim.x);
}

/* Of the first `count` survivors those that are greater than the bound or NaN, in their order; how many.  A thread has
 * read its survivor before any is moved. */
INLINE size_t sift(const csm_support &s, size_t count, REAL bound, size_t *counts) {
    size_t kept = 0;
    for (size_t begin = 0; begin < count; begin += blockDim.x) {
        const int k = count - begin < blockDim.x ? (int)(count - begin) : (int)blockDim.x;
        const size_t i = begin + threadIdx.x;
        const double z = i < count ? s.z[i] : 0;
        const size_t index = i < count ? s.index[i] : 0;
        kept = number(
            k, kept, counts, [&](int) { return !(z <= (double)bound); },
            [&](int, size_t j) {
                s.z[j] = z;
                s.index[j] = index;
            });
    }
    return kept;
}

/* The support and the probabilities of a row to shared->s.  elsewhere: five times `capacity` doubles for each block,
 * where capacity, at least n, is a multiple of 8; NULL: no row is longer than FEW.  A part's survivors are those above
 * the bound that its and the former parts' maximum sets, so that the row is read once. */
enum outcome { FOUND, NOTHING /* the mask leaves no element */, UNDEFINED };
INLINE outcome find_support(const T *from, const uint8_t *mask, double *elsewhere, long long capacity, long long n,
                            int part, const csm_entmax &e) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    shared_row *const shared = (shared_row *)(void *)memory;
    REAL *const own = array_at(0, part);
    csm_support s = support_at((double *)(void *)array_at(1, part), n < FEW ? (size_t)(n + 7) / 8 * 8 : (size_t)FEW);
    REAL most = (REAL)-CSM_INF, bound = most;
    double max = -CSM_INF;
    size_t count = 0;
    int there = 0; /* an element that the mask leaves */
    for (long long begin = 0; begin < n; begin += part) {
        const int k = n - begin < part ? (int)(n - begin) : part;
        const REAL *const v = own + lead(from + begin);
        __syncthreads();
        load(own + lead(from + begin), from + begin, mask ? mask + begin : NULL, k, (REAL)-CSM_INF, threadIdx.x,
             blockDim.x);
        __syncthreads();
        for (int i = threadIdx.x; i < k; i += blockDim.x) {
            most = V(max)(v[i], most);
            there |= !mask || mask[begin + i];
        }
        most = group_max(most, WARP);
        if (lane == 0) shared->most[warp] = (double)most;
        __syncthreads();
        for (int w = 0; w < warps; w++) max = shared->most[w] > max ? shared->most[w] : max;

        const double least = max - 1 / e.scale;
        bound = least < -EXP_MOST ? (REAL)-CSM_INF : (REAL)least;
        if ((double)bound >= least && bound > (REAL)-CSM_INF) bound = V(below)(bound);
        const auto wanted = [&](int i) { return !(v[i] <= bound); };
        const auto put = [&](int i, size_t j) {
            if (j >= s.capacity) return;
            s.z[j] = (double)v[i];
            s.index[j] = (size_t)(begin + i);
        };
        const size_t all = number(k, count, shared->counts, wanted, put);
        if (all <= s.capacity) {
            count = all;
            continue;
        }
        /* no room: without those that the bound has left behind, or elsewhere */
        const size_t more = all - count;
        count = sift(s, count, bound, shared->counts);
        if (count + more > s.capacity) {
            const csm_support far = support_at(elsewhere + (long long)blockIdx.x * 5 * capacity, (size_t)capacity);
            for (size_t i = threadIdx.x; i < count; i += blockDim.x) {
                far.z[i] = s.z[i];
                far.index[i] = s.index[i];
            }
            s = far;
        }
        count = number(k, count, shared->counts, wanted, put);
    }
    if (n > part) count = sift(s, count, bound, shared->counts);
    there = group_any(there, WARP);
    if (lane == 0) shared->counts[warp] = (size_t)there;
    __syncthreads();
    there = 0;
    for (int w = 0; w < warps; w++) there |= (int)shared->counts[w];
    __syncthreads();
    if (!(max > -CSM_INF && max < CSM_INF)) return there ? UNDEFINED : NOTHING;

    int nan = 0;
    for (size_t i = threadIdx.x; i < (count + 7) / 8 * 8; i += blockDim.x) {
        if (i >= count) {
            s.z[i] = -CSM_INF;
            continue;
        }
        const double z = s.z[i];
        nan |= z != z;
        if (e.single && e.kind != CSM_ENTMAX_ANY) {
            s.z[i] = (z - max) * e.scale;
            continue;
        }
        double d = -max, low = 0;
        csm_two_sum(&d, &low, z);
        s.z[i] = d * e.scale;
        s.z_low[i] = fma(d, e.scale, -s.z[i]) + low * e.scale;
    }
    nan = group_any(nan, WARP);
    if (lane == 0) shared->counts[warp] = (size_t)nan;
    __syncthreads();
    for (int w = 0; w < warps; w++) nan |= (int)shared->counts[w];
    if (threadIdx.x == 0 && !nan) {
        shared->s = s;
        shared->s.count = count;
        shared->s.max = max;
        shared->s.is_nan = 0;
        csm_entmax_solve(&shared->s, &e);
    }
    __syncthreads();
    return nan ? UNDEFINED : FOUND;
}

/* The support times factor, where the row has been written already. */
INLINE void scatter(T *to, double factor) {
    const csm_support &s = ((shared_row *)(void *)memory)->s;
    __syncthreads();
    for (size_t i = threadIdx.x; i < s.count; i += blockDim.x) STORE(to + s.index[i], V(set)(s.p[i] * factor));
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
    forward(const T *x, const uint8_t *__restrict__ mask, T *y, double *elsewhere, long long capacity, long long rows,
            long long n, int part, csm_entmax e) {
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const outcome found = find_support(x + at * n, mask ? mask + at * n : NULL, elsewhere, capacity, n, part, e);
        fill(y + at * n, n, part, found == UNDEFINED ? CSM_NAN : 0);
        if (found == FOUND) scatter(y + at * n, 1);
    }
}

/* The losses of rows, and their gradients times factor to y, unless that is NULL.  labels: negative where they are no
 * class; or NULL: soft labels q, whose masses are NaN where one is bad. */
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
    rows(const T *x, const REAL *__restrict__ q, T *y, const long long *__restrict__ labels,
         const double *__restrict__ masses, double *losses, REAL *row_losses, double *elsewhere, long long capacity,
         long long rows, long long n, int part, double factor, csm_entmax e) {
    shared_row *const shared = (shared_row *)(void *)memory;
    int *const some = (int *)(void *)array_at(0, part); /* where the row was */
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const T *const from = x + at * n;
        T *const to = y ? y + at * n : NULL;
        const long long label = labels ? labels[at] : 0;
        outcome found = labels ? (label < 0 ? UNDEFINED : FOUND) : (masses[at] == masses[at] ? FOUND : UNDEFINED);
        if (found == FOUND) found = find_support(from, NULL, elsewhere, capacity, n, part, e);
        double loss = CSM_NAN;
        if (found == FOUND && labels && threadIdx.x == 0)
            loss = csm_hard_loss(&e, &shared->s, (size_t)label, (double)LOAD(from + label));
        if (found == FOUND && !labels) {
            csm_soft_loss l = csm_soft_start();
            for (long long begin = 0; begin < n; begin += part) {
                const int k = n - begin < part ? (int)(n - begin) : part;
                const REAL *const own = q + at * n + begin;
                const size_t count = number(
                    k, 0, shared->counts, [&](int i) { return own[i] != 0; }, [&](int i, size_t j) { some[j] = i; });
                if (threadIdx.x == 0) {
                    csm_support &s = shared->s;
                    for (size_t i = 0; i <= count; i++) {
                        const size_t j = (size_t)(begin + (i < count ? some[i] : k));
                        while (l.next < s.count && s.index[l.next] < j) csm_soft_add(&e, &s, &l, s.index[l.next], 0);
                        if (i == count) break;
                        const double qj = (double)own[some[i]];
                        if (csm_soft_add(&e, &s, &l, j, qj))
                            l.loss += csm_outside(&e, &s, qj, (double)LOAD(x + at * n + j));
                    }
                }
                __syncthreads();
            }
            if (threadIdx.x == 0) loss = csm_soft_end(&e, &shared->s, &l);
        }
        if (threadIdx.x == 0) {
            losses[at] = loss == loss ? loss : CSM_NAN;
            if (row_losses) row_losses[at] = canonical((REAL)loss);
        }
        __syncthreads();
        if (!to) continue;
        fill(to, n, part, found == FOUND ? 0 : CSM_NAN);
        if (found != FOUND) {
            __syncthreads();
            continue;
        }
        __syncthreads();
        if (labels && threadIdx.x == 0) STORE(to + label, V(set)(-factor));
        for (long long j = threadIdx.x; !labels && j < n; j += blockDim.x) {
            const double qj = (double)q[at * n + j];
            if (qj > 0) STORE(to + j, V(set)(-qj * factor));
        }
        scatter(to, factor);
    }
}

extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
    backward(const T *dy, const T *y, const uint8_t *__restrict__ mask, T *dx, long long rows, long long n, int part,
             csm_entmax e) {
    shared_row *const shared = (shared_row *)(void *)memory;
    REAL *const first = array_at(0, part), *const second = array_at(1, part);
    double *const w = (double *)(void *)array_at(2, part), *const d = w + part;
    const auto weight = [&](double v) {
        return e.kind == CSM_SPARSEMAX  ? (v == v ? 1 : v)
               : e.kind == CSM_ENTMAX15 ? sqrt(v)
                                        : csm_pow(v, 0, 1 - e.scale, 0);
    };
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        double mean = 0, mean_low = 0;
        if (threadIdx.x == 0) shared->top = shared->top_low = shared->all = shared->all_low = 0;
        for (int pass = 0; pass < 2; pass++) {
            if (pass == 1) {
                const double den = shared->all + shared->all_low, num = shared->top + shared->top_low;
                mean = num / den;
                mean_low = (fma(-mean, den, num) + ((shared->top - num) + shared->top_low) -
                            mean * ((shared->all - den) + shared->all_low)) /
                           den;
            }
            for (long long begin = 0; begin < n; begin += part) {
                const long long from = at * n + begin;
                const int k = n - begin < part ? (int)(n - begin) : part;
                REAL *const g = first + lead(dy + from), *const p = second + lead(y + from);
                if (pass == 0 || n > part) {
                    __syncthreads();
                    load(g, dy + from, NULL, k, 0, threadIdx.x, blockDim.x);
                    load(p, y + from, mask ? mask + from : NULL, k, 0, threadIdx.x, blockDim.x);
                    __syncthreads();
                }
                if (pass == 0) {
                    const size_t count = number(
                        k, 0, shared->counts, [&](int i) { return !(p[i] <= 0); },
                        [&](int i, size_t j) {
                            w[j] = weight((double)p[i]);
                            d[j] = (double)g[i];
                        });
                    if (threadIdx.x == 0) {
                        double top = shared->top, top_low = shared->top_low, all = shared->all, low = shared->all_low;
                        for (size_t j = 0; j < count; j++) {
                            const double product = w[j] * d[j];
                            csm_two_sum(&top, &top_low, product);
                            top_low += fma(w[j], d[j], -product);
                            csm_two_sum(&all, &low, w[j]);
                        }
                        shared->top = top;
                        shared->top_low = top_low;
                        shared->all = all;
                        shared->all_low = low;
                    }
                    __syncthreads();
                    continue;
                }
                for (int i = threadIdx.x; i < k; i += blockDim.x) {
                    const REAL v = p[i];
                    double value = 0;
                    if (!(v <= 0)) value = weight((double)v) * (((double)g[i] - mean) - mean_low);
                    g[i] = canonical((REAL)(value == value ? value : CSM_NAN));
                }
                __syncthreads();
                const copied value = {g};
                store(dx + from, k, value, threadIdx.x, blockDim.x);
            }
        }
        __syncthreads();
    }
}
