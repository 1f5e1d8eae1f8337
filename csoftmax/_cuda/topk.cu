/* The k largest (smallest) of contiguous rows, in the total order of src_c/kernel/select.inc.h, so with the CPU's
 * results: NaN is the greatest, -0 equals +0, of equal elements the one with the lowest index comes first.
 *
 *   choose   a thread block for each piece of a row, which lies in shared memory as integer keys: the k-th largest key,
 *            four bits at a time; what reaches it, in the order of the indices; the best first by counting what comes
 *            before each.  A row of several pieces leaves k candidates of each, which are selected from in turn
 *   keys     for many more: integers that a library sorts
 *   gather   elements at indices
 *
 * Reads of each element: one, wherever a row is cut (tests/test_cuda.py counts them), and k more.  Nothing is computed,
 * so nothing is rounded.  Time: (bits of a key) / 4 passes over shared memory, k^2 comparisons a row, sorted; not
 * measured on hardware yet.
 */
#define LOADS 4
#define SIMD
#include "common.cuh"
#include "kernel/topk/select.inc.h"

typedef V(ukey) ukey;
enum { DIGIT = 4, MOST_THREADS = 512, MOST_OF_A_PIECE = 65535 /* counts have 16 bits */ };
INLINE ukey ordered_key(REAL x, int smallest) { return (ukey)V(key_of)(x, smallest) ^ (ukey)KEY_LEAST; }

/* How many keys have each digit, four counts in each number; the sums are those of all threads.  all: 4 a warp. */
typedef unsigned long long four_counts;
INLINE void count_digits(const ukey *keys, int count, ukey mask, ukey prefix, int shift, four_counts *all,
                         four_counts total[4]) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    UNROLL
    for (int j = 0; j < 4; j++) total[j] = 0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const ukey key = keys[i];
        const int digit = (int)(key >> shift & 15);
        const four_counts one = (key & mask) == prefix ? 1ull << 16 * (digit % 4) : 0;
        UNROLL
        for (int j = 0; j < 4; j++) total[j] += digit / 4 == j ? one : 0;
    }
    UNROLL
    for (int j = 0; j < 4; j++) {
        for (int d = WARP / 2; d > 0; d /= 2) total[j] += __shfl_xor_sync(EVERYONE, total[j], d);
        if (lane == 0) all[4 * warp + j] = total[j];
    }
    __syncthreads();
    UNROLL
    for (int j = 0; j < 4; j++) total[j] = 0;
    for (int w = 0; w < warps; w++) {
        UNROLL
        for (int j = 0; j < 4; j++) total[j] += all[4 * w + j];
    }
    __syncthreads();
}

extern __shared__ __align__(16) unsigned char memory[];

/* Pieces of `piece` elements, the last one of a row perhaps shorter; each yields min(k, its length), rows one after the
 * other.  from: indices of x's elements, or NULL: they count from 0. */
extern "C" __global__ void __launch_bounds__(MOST_THREADS, 1)
    choose(const T *x, const long long *__restrict__ from, T *values, long long *indices, long long rows, long long n,
           int piece, int k, int smallest, int sorted) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const unsigned before = (1u << lane) - 1;
    const long long pieces = (n + piece - 1) / piece, last = n - (pieces - 1) * piece;
    const long long merged = (pieces - 1) * k + (last < k ? last : k);
    four_counts *const all = (four_counts *)(void *)memory;
    int *const reaching = (int *)(void *)(all + 4 * warps), *const equal = reaching + warps;
    ukey *const all_keys = (ukey *)(void *)(memory + (5 * warps * sizeof(four_counts) + 15) / 16 * 16);
    ukey *const best = all_keys + room(piece);
    int *const place = (int *)(void *)(best + k);
    for (long long unit = blockIdx.x; unit < rows * pieces; unit += gridDim.x) {
        const long long at = unit / pieces, number = unit - at * pieces, first = at * n + number * piece;
        const int count = number + 1 < pieces ? piece : (int)last, some = count < k ? count : k;
        const T *const part = x + first;
        REAL *const real = (REAL *)(void *)all_keys + lead(part);
        ukey *const keys = all_keys + lead(part);
        load(real, part, NULL, count, 0, threadIdx.x, blockDim.x);
        __syncthreads();
        for (int i = threadIdx.x; i < count; i += blockDim.x) keys[i] = ordered_key(real[i], smallest);
        __syncthreads();

        /* the k-th largest has `prefix` under `mask`, and `wanted` of those that have it are among the k */
        ukey mask = 0, prefix = 0;
        int wanted = some, there = count;
        for (int shift = 8 * (int)sizeof(ukey) - DIGIT; shift >= 0 && wanted < there; shift -= DIGIT) {
            four_counts total[4];
            count_digits(keys, count, mask, prefix, shift, all, total);
            int found = 0;
            ukey digit = 0;
            UNROLL
            for (int d = 15; d >= 0; d--) {
                const int here = (int)(total[d / 4] >> 16 * (d % 4) & 0xffff);
                if (found) continue;
                found = here >= wanted;
                digit = (ukey)d;
                there = here;
                if (!found) wanted -= here;
            }
            mask |= (ukey)15 << shift;
            prefix |= digit << shift;
        }

        /* each warp has its part of the piece, so that the order of the indices is that of the warps */
        const int each = (count + warps * WARP - 1) / (warps * WARP) * WARP, begin = warp * each;
        const int end = begin + each < count ? begin + each : count;
        int above = 0, same = 0;
        for (int i = begin; i < end; i += WARP) {
            const ukey key = i + lane < end ? keys[i + lane] & mask : 0;
            above += __popc(__ballot_sync(EVERYONE, i + lane < end && key > prefix));
            same += __popc(__ballot_sync(EVERYONE, i + lane < end && key == prefix));
        }
        if (lane == 0) {
            reaching[warp] = above;
            equal[warp] = same;
        }
        __syncthreads();
        above = same = 0;
        for (int w = 0; w < warp; w++) {
            above += reaching[w];
            same += equal[w];
        }
        for (int i = begin; i < end; i += WARP) {
            const ukey own = i + lane < end ? keys[i + lane] : 0, key = own & mask;
            const unsigned greater = __ballot_sync(EVERYONE, i + lane < end && key > prefix);
            const unsigned ties = __ballot_sync(EVERYONE, i + lane < end && key == prefix);
            const int earlier = same + __popc(ties & before);
            const bool taken = i + lane < end && (key > prefix || (key == prefix && earlier < wanted));
            if (taken) {
                const int to = above + __popc(greater & before) + (earlier < wanted ? earlier : wanted);
                best[to] = own;
                place[to] = i + lane;
            }
            above += __popc(greater);
            same += __popc(ties);
        }
        __syncthreads();

        const long long to = at * merged + number * k;
        for (int i = threadIdx.x; i < some; i += blockDim.x) {
            const ukey key = best[i];
            int rank = i;
            if (sorted) {
                rank = 0;
                for (int j = 0; j < some; j++) rank += best[j] > key || (best[j] == key && j < i);
            }
            const long long index = number * piece + place[i];
            STORE(values + to + rank, canonical(LOAD(x + at * n + index)));
            indices[to + rank] = from ? from[at * n + index] : index;
        }
        __syncthreads();
    }
}

/* Ascending, these bring the best first. */
extern "C" __global__ void __launch_bounds__(128, 1) keys(const T *x, V(key) *to, long long count, int smallest) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (long long)gridDim.x * blockDim.x)
        to[i] = ~V(key_of)(LOAD(x + i), smallest);
}

extern "C" __global__ void __launch_bounds__(128, 1)
    gather(const T *x, const long long *__restrict__ indices, T *to, long long rows, long long n, long long k) {
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * k;
         i += (long long)gridDim.x * blockDim.x)
        STORE(to + i, canonical(LOAD(x + i / k * n + indices[i])));
}
