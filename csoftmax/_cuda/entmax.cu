/* alpha-entmax of contiguous rows and its gradient, with the CPU's bits: the threshold comes from the core's solver.
 *
 *   forward   a block of threads for each row, which reads one part of the row after the other.  It keeps the maximum
 *             so far and the survivors, elements that can have probability beside it, in the order of their indices, in
 *             shared memory, or, if there are more than SHARED_SURVIVORS, in global memory.  One thread runs the
 *             solver, because its sums have an order.  Then zeros are written, and over them the support
 *   rows      does the same for the loss, which one thread computes, and its gradient, which may overwrite x
 *   backward  a block of threads for each row, which reads the elements with y > 0, one part of the row at a time; one
 *             thread adds them as pairs; then the row is read again; an alpha other than 1.5 and 2 takes one pass more,
 *             a wide row (vjp.h) two
 *
 * Reads and writes of each element, however long the row: one and one; an element with probability is written twice.
 * Survivors in global memory take forty bytes each.  Soft labels are read twice, with a gradient three times, and the
 * loss reads the logits of labels outside the support once more.  backward reads a row twice if it does not fit shared
 * memory (tests/cuda counts all of this except soft labels).
 * Accumulators: double, or pairs of them.  Error: the CPU's (ACCURACY.md), because the bits are the CPU's.
 * A row with NaN or +inf, or with only -inf, becomes NaN, as on the CPU.  A row that is masked completely becomes
 * zeros, and its loss NaN.  A label that is not a class makes its row and its loss NaN.
 * Time: not measured on hardware yet; one thread solves a row while the blocks of other rows run.
 */
#define LOADS 4
#define SIMD
#include "common.cuh"
#include "kernel/topk/select.inc.h"
#include "kernel/entmax/loss.h"
#include "kernel/entmax/solve.h"
#include "kernel/entmax/vjp.h"

enum { MAX_THREADS = 256 };

/* The state that the threads of a row share. */
struct shared_row {
    csm_support s;
    size_t counts[MAX_THREADS / WARP]; /* of each warp */
    double maxima[MAX_THREADS / WARP]; /* of each warp */
    csm_entmax_vjp v;                  /* backward */
};
static_assert(sizeof(shared_row) <= SHARED_ROW_BYTES, "space that the launch plans reserve");

/* Calls put(i, number) for each i in [0, count) that is wanted, numbered in order starting at `done`.  Returns the next
 * number.  counts: scratch, one number per warp.  All threads of the block call it. */
template <class Wanted, class Put>
INLINE size_t number(int count, size_t done, size_t *counts, Wanted wanted, Put put) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int per_warp = (count + warps * WARP - 1) / (warps * WARP) * WARP, begin = warp * per_warp;
    const int end = begin + per_warp < count ? begin + per_warp : count;
    size_t next = 0, all = done;
    for (int i = begin; i < end; i += WARP)
        next += (size_t)__popc(__ballot_sync(ALL_LANES, i + lane < end && wanted(i + lane)));
    if (lane == 0) counts[warp] = next;
    __syncthreads();
    next = done;
    for (int w = 0; w < warps; w++) {
        next += w < warp ? counts[w] : 0;
        all += counts[w];
    }
    for (int i = begin; i < end; i += WARP) {
        const bool is_wanted = i + lane < end && wanted(i + lane);
        const unsigned lanes = __ballot_sync(ALL_LANES, is_wanted);
        if (is_wanted) put(i + lane, next + (size_t)__popc(lanes & ((1u << lane) - 1)));
        next += (size_t)__popc(lanes);
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

/* The beginning of array `number` in shared memory, if each has `part` elements; also the end of the last array. */
INLINE REAL *array_at(int number, int part) {
    return (REAL *)(void *)(memory + SHARED_ROW_BYTES) + number * room((size_t)part);
}

/* Writes one value to a whole row.  All threads of the block call it. */
INLINE void fill(T *to, long long n, int part, double x) {
    const constant value = {canonical((REAL)x)};
    for (long long begin = 0; begin < n; begin += part)
        store(to + begin, (int)(n - begin < part ? n - begin : part), value, threadIdx.x, blockDim.x);
}

/* Keeps those of the first `count` survivors that are greater than the bound or NaN, in order; returns their number.
 * Each thread has read its survivor before any of them is moved. */
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

/* Finds the support and the probabilities of a row and leaves them in shared->s.  The survivors of a part are those
 * above the bound set by the maximum of this part and those before it, so that the row is read once.  in_global: five
 * times `capacity` doubles for each block of threads, where capacity is at least n and a multiple of 8; NULL: no row is
 * longer than SHARED_SURVIVORS. */
enum outcome { FOUND, NOTHING /* the mask leaves no element */, UNDEFINED };
INLINE outcome find_support(const T *from, const uint8_t *mask, double *in_global, long long capacity, long long n,
                            int part, const csm_entmax &e) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    shared_row *const shared = (shared_row *)(void *)memory;
    REAL *const data = array_at(0, part);
    csm_support s = support_at((double *)(void *)array_at(1, part),
                               n < SHARED_SURVIVORS ? (size_t)(n + 7) / 8 * 8 : (size_t)SHARED_SURVIVORS);
    REAL thread_max = (REAL)-CSM_INF, bound = thread_max;
    double max = -CSM_INF;
    size_t count = 0;
    int any_kept = 0; /* whether the mask leaves an element */
    for (long long begin = 0; begin < n; begin += part) {
        const int k = n - begin < part ? (int)(n - begin) : part;
        const REAL *const v = data + lead(from + begin);
        __syncthreads();
        load(data + lead(from + begin), from + begin, mask ? mask + begin : NULL, k, (REAL)-CSM_INF, threadIdx.x,
             blockDim.x);
        __syncthreads();
        for (int i = threadIdx.x; i < k; i += blockDim.x) {
            thread_max = V(max)(v[i], thread_max);
            any_kept |= !mask || mask[begin + i];
        }
        thread_max = group_max(thread_max, WARP);
        if (lane == 0) shared->maxima[warp] = (double)thread_max;
        __syncthreads();
        for (int w = 0; w < warps; w++) max = shared->maxima[w] > max ? shared->maxima[w] : max;

        const double lower = csm_entmax_bound(&e, max);
        bound = lower < -EXP_MOST ? (REAL)-CSM_INF : (REAL)lower;
        if ((double)bound >= lower && bound > (REAL)-CSM_INF) bound = V(below)(bound);
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
        /* no space: drop the survivors that are now below the bound; if that is not enough, move to global memory */
        const size_t more = all - count;
        count = sift(s, count, bound, shared->counts);
        if (count + more > s.capacity) {
            const csm_support large = support_at(in_global + (long long)blockIdx.x * 5 * capacity, (size_t)capacity);
            for (size_t i = threadIdx.x; i < count; i += blockDim.x) {
                large.z[i] = s.z[i];
                large.index[i] = s.index[i];
            }
            s = large;
        }
        count = number(k, count, shared->counts, wanted, put);
    }
    if (n > part) count = sift(s, count, bound, shared->counts);
    any_kept = group_any(any_kept, WARP);
    if (lane == 0) shared->counts[warp] = (size_t)any_kept;
    __syncthreads();
    any_kept = 0;
    for (int w = 0; w < warps; w++) any_kept |= (int)shared->counts[w];
    __syncthreads();
    if (!(max > -CSM_INF && max < CSM_INF)) return any_kept ? UNDEFINED : NOTHING;

    int nan = 0;
    for (size_t i = threadIdx.x; i < (count + 7) / 8 * 8; i += blockDim.x) {
        if (i >= count) {
            s.z[i] = -CSM_INF;
            continue;
        }
        nan |= s.z[i] != s.z[i];
        s.max = max;
        csm_entmax_place(&s, &e, i);
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

/* Writes the support times factor over a row of zeros. */
INLINE void scatter(T *to, double factor) {
    const csm_support &s = ((shared_row *)(void *)memory)->s;
    __syncthreads();
    for (size_t i = threadIdx.x; i < s.count; i += blockDim.x) STORE(to + s.index[i], V(set)(s.p[i] * factor));
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
    forward(const T *x, const uint8_t *__restrict__ mask, T *y, double *in_global, long long capacity, long long rows,
            long long n, int part, const csm_entmax *__restrict__ each, csm_entmax same) {
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const csm_entmax e = each ? each[at] : same;
        const outcome found = find_support(x + at * n, mask ? mask + at * n : NULL, in_global, capacity, n, part, e);
        fill(y + at * n, n, part, found == UNDEFINED ? CSM_NAN : 0);
        if (found == FOUND) scatter(y + at * n, 1);
        if (found != UNDEFINED || !mask) continue;
        __syncthreads(); /* masked elements have probability 0 in rows that are NaN, too */
        for (long long j = threadIdx.x; j < n; j += blockDim.x)
            if (!mask[at * n + j]) STORE(y + at * n + j, V(set)(0));
    }
}

/* Computes the losses of rows, and writes their gradients to y unless y is NULL.  labels: -1 if ignored, -2 if not a
 * class; NULL: soft labels q, whose mass is NaN in a row with a bad one.  The loss of a row has the factor terms[at]
 * (NULL: 1), its gradient also 1 / divisor[0] (NULL: 1); a row of sample weight 0 is not read. */
extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
    rows(const T *x, const REAL *__restrict__ q, T *y, const long long *__restrict__ labels,
         const double *__restrict__ masses, const double *__restrict__ terms, const double *__restrict__ weights,
         const double *__restrict__ divisor, double *losses, REAL *row_losses, double *in_global, long long capacity,
         long long rows, long long n, int part, const csm_entmax *__restrict__ each, csm_entmax same) {
    shared_row *const shared = (shared_row *)(void *)memory;
    int *const places = (int *)(void *)array_at(0, part); /* the row is no longer needed */
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const T *const from = x + at * n;
        T *const to = y ? y + at * n : NULL;
        const csm_entmax e = each ? each[at] : same;
        const long long label = labels ? labels[at] : 0;
        const double term = terms ? terms[at] : 1, whole = divisor ? divisor[0] : 1, factor = term / whole;
        if (label == -1 || (weights && weights[at] == 0) || whole == 0) {
            if (threadIdx.x == 0) losses[at] = 0;
            if (threadIdx.x == 0 && row_losses) row_losses[at] = 0;
            if (to) fill(to, n, part, 0);
            __syncthreads();
            continue;
        }
        outcome found = labels ? (label < 0 ? UNDEFINED : FOUND) : (masses[at] == masses[at] ? FOUND : UNDEFINED);
        if (found == FOUND) found = find_support(from, NULL, in_global, capacity, n, part, e);
        double loss = CSM_NAN;
        if (found == FOUND && labels && threadIdx.x == 0)
            loss = csm_hard_loss(&e, &shared->s, (size_t)label, (double)LOAD(from + label));
        if (found == FOUND && !labels) {
            csm_soft_loss l = csm_soft_start();
            for (long long begin = 0; begin < n; begin += part) {
                const int k = n - begin < part ? (int)(n - begin) : part;
                const REAL *const labels_here = q + at * n + begin;
                const size_t count = number(
                    k, 0, shared->counts, [&](int i) { return labels_here[i] != 0; },
                    [&](int i, size_t j) { places[j] = i; });
                if (threadIdx.x == 0) {
                    csm_support &s = shared->s;
                    for (size_t i = 0; i <= count; i++) {
                        const size_t j = (size_t)(begin + (i < count ? places[i] : k));
                        while (l.next < s.count && s.index[l.next] < j) csm_soft_add(&e, &s, &l, s.index[l.next], 0);
                        if (i == count) break;
                        const double qj = (double)labels_here[places[i]];
                        if (csm_soft_add(&e, &s, &l, j, qj))
                            csm_soft_outside(&e, &s, &l, qj, (double)LOAD(x + at * n + j));
                    }
                }
                __syncthreads();
            }
            if (threadIdx.x == 0) loss = csm_soft_end(&e, &shared->s, &l);
        }
        if (threadIdx.x == 0) {
            if (term != 1) loss = term == 0 && found == FOUND ? 0 : term * loss;
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
        if (labels && threadIdx.x == 0) STORE(to + label, V(set)(0 - factor));
        for (long long j = threadIdx.x; !labels && j < n; j += blockDim.x) {
            const double qj = (double)q[at * n + j];
            if (qj > 0) STORE(to + j, V(set)(0 - qj * factor));
        }
        scatter(to, factor);
    }
}

/* Adds the elements with y > 0 of a part of a row to the state of the row, in order; w and d: scratch. */
enum { REFER, NEXT, ADD, WRITE };
INLINE void gather_gradient(int pass, const REAL *p, const REAL *g, int k, double *w, double *d, const csm_entmax &e) {
    shared_row *const shared = (shared_row *)(void *)memory;
    csm_entmax_vjp &v = shared->v;
    const bool weigh = pass == ADD && !v.is_wide;
    const size_t count = number(
        k, 0, shared->counts, [&](int i) { return !(p[i] <= 0); },
        [&](int i, size_t j) {
            w[j] = weigh ? csm_vjp_weight(&v, &e, (double)p[i]) : (double)p[i];
            d[j] = (double)g[i];
        });
    if (threadIdx.x == 0)
        for (size_t j = 0; j < count; j++) {
            if (pass == REFER) csm_vjp_refer(&v, &e, w[j], d[j]);
            else if (pass == NEXT) csm_vjp_next(&v, &e, w[j], d[j]);
            else csm_vjp_add(&v, &e, weigh ? w[j] : csm_vjp_weight(&v, &e, w[j]), w[j], d[j]);
        }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
    backward(const T *dy, const T *y, const uint8_t *__restrict__ mask, T *dx, long long rows, long long n, int part,
             const csm_entmax *__restrict__ each, csm_entmax same) {
    shared_row *const shared = (shared_row *)(void *)memory;
    csm_entmax_vjp &v = shared->v;
    REAL *const first = array_at(0, part), *const second = array_at(1, part);
    double *const w = (double *)(void *)array_at(2, part), *const d = w + part;
    for (long long at = blockIdx.x; at < rows; at += gridDim.x) {
        const csm_entmax e = each ? each[at] : same;
        const int begin_pass = e.kind == CSM_ENTMAX_ANY ? REFER : ADD;
        if (threadIdx.x == 0) v = csm_vjp_start();
        for (int pass = begin_pass; pass <= WRITE; pass++) {
            __syncthreads();
            if (threadIdx.x == 0 && pass == NEXT) csm_vjp_measure(&v, &e);
            if (threadIdx.x == 0 && pass == ADD && v.is_wide) csm_vjp_scale(&v);
            if (threadIdx.x == 0 && pass == WRITE) csm_vjp_finish(&v, &e);
            __syncthreads();
            if (pass == NEXT && !v.is_wide) continue;
            for (long long begin = 0; begin < n; begin += part) {
                const long long from = at * n + begin;
                const int k = n - begin < part ? (int)(n - begin) : part;
                REAL *const g = first + lead(dy + from), *const p = second + lead(y + from);
                if (pass == begin_pass || n > part) {
                    __syncthreads();
                    load(g, dy + from, NULL, k, 0, threadIdx.x, blockDim.x);
                    load(p, y + from, mask ? mask + from : NULL, k, 0, threadIdx.x, blockDim.x);
                    __syncthreads();
                }
                if (pass != WRITE) {
                    gather_gradient(pass, p, g, k, w, d, e);
                    continue;
                }
                for (int i = threadIdx.x; i < k; i += blockDim.x) {
                    const double value = p[i] <= 0 ? 0 : csm_vjp_value(&v, &e, (double)p[i], (double)g[i]);
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
