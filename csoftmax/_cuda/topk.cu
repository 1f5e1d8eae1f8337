/* The k largest (smallest) of contiguous rows, with the CPU's results, because the total order is that of the core's
 * selection: NaN is the greatest, -0 equals +0, and of equal elements the one with the lowest index comes first.
 *
 *   choose   a block of threads for each piece of a row.  The piece is in shared memory as integer keys; the k-th
 *            largest key is found four bits at a time; the keys that reach it are collected in the order of their
 *            indices; each is ranked by counting the keys that come before it.  If a row has several pieces, each
 *            leaves k candidates, from which the next launch selects
 *   keys     for larger k: integers that a library sorts
 *   gather   elements at indices
 *
 * Integers of 4 and 8 bytes come as the bits of float and double, of which they are copies: `kind` says how to compare
 * them.
 *
 * Reads of each element: one, wherever a row is cut (tests/cuda counts them), and k more.  Nothing is computed, so
 * nothing is rounded.  Time: (bits of a key) / 4 passes over shared memory, and k^2 comparisons per row if sorted; not
 * measured on hardware yet.
 */
#define LOADS 4
#define SIMD
#include "common.cuh"
#include "kernel/topk/select.inc.h"

typedef V(ukey) ukey;
enum { DIGIT_BITS = 4, MAX_THREADS = 512 };
enum { NUMBERS, SIGNED, UNSIGNED }; /* kinds of elements; the order is that of _KINDS in topk.py */
/* The key of an element: the best has the largest. */
INLINE V(key) key_as(REAL x, int smallest, int kind) {
    if (kind == NUMBERS) return V(key_of)(x, smallest);
    V(key) key;
    memcpy(&key, &x, sizeof key);
    if (kind == UNSIGNED) key ^= KEY_MIN;
    return smallest ? ~key : key;
}
INLINE ukey ordered_key(REAL x, int smallest, int kind) { return (ukey)key_as(x, smallest, kind) ^ (ukey)KEY_MIN; }
/* Copies an element, with the CPU's NaN. */
INLINE void copy_element(T *to, const T *from, int kind) {
    if (kind == NUMBERS) STORE(to, canonical(LOAD(from)));
    else *to = *from;
}

/* Counts the keys of each digit among those with `prefix` under `mask`.  Each number holds four 16-bit counts, which
 * limits a piece to 65,535 elements.  total: of all threads.  by_warp: scratch, four numbers per warp. */
typedef unsigned long long four_counts;
INLINE void count_digits(const ukey *keys, int count, ukey mask, ukey prefix, int shift, four_counts *by_warp,
                         four_counts total[4]) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    UNROLL
    for (int j = 0; j < 4; j++) total[j] = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const ukey key = keys[i];
        const int digit = (int)(key >> shift & 15);
        const four_counts added = (key & mask) == prefix ? 1ull << 16 * (digit % 4) : 0;
        UNROLL
        for (int j = 0; j < 4; j++) total[j] += digit / 4 == j ? added : 0;
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        for (int d = WARP / 2; d > 0; d /= 2) total[j] += __shfl_xor_sync(ALL_LANES, total[j], d);
        if (lane == 0) by_warp[4 * warp + j] = total[j];
    }
    __syncthreads();
    UNROLL
    for (int j = 0; j < 4; j++) total[j] = 0;
    for (int w = 0; w < warps; w++) {
        UNROLL
        for (int j = 0; j < 4; j++) total[j] += by_warp[4 * w + j];
    }
    __syncthreads();
}

extern __shared__ __align__(16) unsigned char memory[];

/* Selects min(k, length) elements of each piece.  Pieces have `piece` elements, the last of a row possibly fewer.
 * Results are stored row after row.  from: indices of x's elements, or NULL: they count from 0. */
extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1)
    choose(const T *x, const long long *__restrict__ from, T *values, long long *indices, long long rows, long long n,
           int piece, int k, int smallest, int sorted, int kind) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const unsigned before = (1u << lane) - 1;
    const long long pieces = (n + piece - 1) / piece, last = n - (pieces - 1) * piece;
    const long long merged = (pieces - 1) * k + (last < k ? last : k);
    four_counts *const by_warp = (four_counts *)(void *)memory;
    int *const above_by_warp = (int *)(void *)(by_warp + 4 * warps), *const same_by_warp = above_by_warp + warps;
    ukey *const all_keys = (ukey *)(void *)(memory + (5 * warps * sizeof(four_counts) + 15) / 16 * 16);
    ukey *const best = all_keys + room(piece);
    int *const place = (int *)(void *)(best + k);
    for (long long unit = blockIdx.x; unit < rows * pieces; unit += gridDim.x) {
        const long long at = unit / pieces, number = unit - at * pieces, first = at * n + number * piece;
        const int count = number + 1 < pieces ? piece : (int)last, selected = count < k ? count : k;
        const T *const part = x + first;
        REAL *const real = (REAL *)(void *)all_keys + lead(part);
        ukey *const keys = all_keys + lead(part);
        load(real, part, NULL, count, 0, threadIdx.x, blockDim.x);
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) keys[i] = ordered_key(real[i], smallest, kind);
        __syncthreads();

        /* the k-th largest key has `prefix` under `mask`; of the keys with this prefix, `wanted` are among the k */
        ukey mask = 0, prefix = 0;
        int wanted = selected, remaining = count;
        for (int shift = 8 * (int)sizeof(ukey) - DIGIT_BITS; shift >= 0 && wanted < remaining; shift -= DIGIT_BITS) {
            four_counts total[4];
            count_digits(keys, count, mask, prefix, shift, by_warp, total);
            int found = 0;
            ukey digit = 0;
            UNROLL
            for (int d = 15; d >= 0; d--) {
                const int here = (int)(total[d / 4] >> 16 * (d % 4) & 0xffff);
                if (found) continue;
                found = here >= wanted;
                digit = (ukey)d;
                remaining = here;
                if (!found) wanted -= here;
            }
            mask |= (ukey)15 << shift;
            prefix |= digit << shift;
        }

        /* each warp has a contiguous part of the piece, so that the order of the warps is that of the indices */
        const int per_warp = (count + warps * WARP - 1) / (warps * WARP) * WARP, begin = warp * per_warp;
        const int end = begin + per_warp < count ? begin + per_warp : count;
        int above = 0, same = 0;
        for (int i = begin; i < end; i += WARP) {
            const ukey key = i + lane < end ? keys[i + lane] & mask : 0;
            above += __popc(__ballot_sync(ALL_LANES, i + lane < end && key > prefix));
            same += __popc(__ballot_sync(ALL_LANES, i + lane < end && key == prefix));
        }
        if (lane == 0) {
            above_by_warp[warp] = above;
            same_by_warp[warp] = same;
        }
        __syncthreads();
        above = same = 0;
        for (int w = 0; w < warp; w++) {
            above += above_by_warp[w];
            same += same_by_warp[w];
        }
        for (int i = begin; i < end; i += WARP) {
            const ukey whole = i + lane < end ? keys[i + lane] : 0, key = whole & mask;
            const unsigned greater = __ballot_sync(ALL_LANES, i + lane < end && key > prefix);
            const unsigned ties = __ballot_sync(ALL_LANES, i + lane < end && key == prefix);
            const int earlier = same + __popc(ties & before);
            const bool taken = i + lane < end && (key > prefix || (key == prefix && earlier < wanted));
            if (taken) {
                const int to = above + __popc(greater & before) + (earlier < wanted ? earlier : wanted);
                best[to] = whole;
                place[to] = i + lane;
            }
            above += __popc(greater);
            same += __popc(ties);
        }
        __syncthreads();

        const long long to = at * merged + number * k;
        for (int i = threadIdx.x; i < selected; i += blockDim.x) {
            const ukey key = best[i];
            int rank = i;
            if (sorted) {
                rank = 0;
                for (int j = 0; j < selected; j++) rank += best[j] > key || (best[j] == key && j < i);
            }
            const long long index = number * piece + place[i];
            copy_element(values + to + rank, x + at * n + index, kind);
            indices[to + rank] = from ? from[at * n + index] : index;
        }
        __syncthreads();
    }
}

/* Integers whose ascending order is best first. */
extern "C" __global__ void __launch_bounds__(128, 1)
    keys(const T *x, V(key) *to, long long count, int smallest, int kind) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x)
        to[i] = ~key_as(LOAD(x + i), smallest, kind);
}

extern "C" __global__ void __launch_bounds__(128, 1) gather(const T *x, const long long *__restrict__ indices, T *to,
                                                            long long rows, long long n, long long k, int kind) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * k;
         i += (long long)gridDim.x * blockDim.x)
        copy_element(to + i, x + i / k * n + indices[i], kind);
}
