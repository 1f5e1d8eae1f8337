/* Code that all CUDA kernels share: the storage type of a module (-DSTORAGE_f32, _f64, _f16 or _bf16), copies between
 * global and shared memory, and sums in the lanes of the CPU's specification.  A module that defines IN_DOUBLE computes
 * in double whatever its storage type.
 *
 * exp, the row constants and the formulas of an element come from the core's headers with its scalar vocabulary, and
 * the sums run over the same lanes in the same order, so that results have the CPU's bits.  Modules are compiled with
 * -fmad=false (products and sums are fused only where the source says fma) and without flush-to-zero.
 *
 * A row stays in shared memory while it is computed: each element is read once and written once, at any alignment.
 * Elements are copied 16 bytes at a time.  In shared memory a row begins as many elements past a 16-byte boundary as it
 * does in global memory.
 */
#ifndef CSOFTMAX_COMMON_CUH
#define CSOFTMAX_COMMON_CUH

#define UNROLL _Pragma("unroll")
#define ROLLED _Pragma("unroll 1") /* of rare loops, which then take fewer registers */
#define CSM_ON_DEVICE
#include "vec/scalar.h"
#include "kernel/cross_entropy/row.h"

#if defined(STORAGE_f64) || defined(IN_DOUBLE)
#include "math/double.inc.h"
#define v64_LOAD_REAL v64_load_f64
#define v64_LOAD_PART_REAL v64_load_part_f64
#else
#include "math/single.inc.h"
#define v32_LOAD_REAL v32_load_f32
#define v32_LOAD_PART_REAL v32_load_part_f32
#endif
#if defined(STORAGE_f64)
typedef double T;
#define LOAD v64_load_f64
#define STORE v64_store_f64
#elif defined(STORAGE_f32)
typedef float T;
#define LOAD v32_load_f32
#define STORE v32_store_f32
#elif defined(STORAGE_f16)
typedef uint16_t T;
#define LOAD v32_load_f16
#define STORE v32_store_f16
#elif defined(STORAGE_bf16)
typedef uint16_t T;
#define LOAD v32_load_bf16
#define STORE v32_store_bf16
#else
#error "a STORAGE_<dtype> must be defined"
#endif
#include "math/exp.inc.h"
#include "kernel/softmax/element.inc.h"
#include "math/sum.inc.h"

enum {
    WARP = 32,
    VECTOR = 16 / sizeof(T), /* elements in 16 bytes of storage */
    WIDE = 16 / sizeof(REAL), /* elements in 16 bytes of the compute type */
    BATCH = LOADS, /* vectors of one array that each thread keeps in flight */
    SINGLE = EXP_MANTISSA == 23,
    TEAM = SINGLE ? 16 : 8, /* threads that add e', one for each lane of sum.inc.h */
    CHUNK = SINGLE ? (int)CSM_FLUSH : (int)CSM_BLOCK, /* elements that the lanes add before double takes over */
    DOT_TEAM = 16 /* lanes of dot products */
};
static_assert(CSM_BLOCK == BLOCK_ELEMENTS && sizeof(csm_block) == BLOCK_BYTES, "sizes that the launch plans assume");
#define ALL_LANES 0xffffffffu
#define INLINE_MEMBER __device__ __forceinline__

/* The constants that `divide` of cross_entropy.cu computes on the device. */
struct prepared {
    double divisor;
    csm_loss_call call; /* without the constants of the temperature */
};

struct alignas(16) vector {
    T v[VECTOR];
};
struct alignas(16) wide {
    REAL v[WIDE];
};

/* The length of the block that begins at `begin` in a row of n. */
INLINE int block_length(long long n, long long begin) {
    return n - begin < CSM_BLOCK ? (int)(n - begin) : (int)CSM_BLOCK;
}

/* x, with every NaN replaced by the CPU's: the device's NaN and its conversions have other bits. */
INLINE REAL canonical(REAL x) {
#if EXP_MANTISSA == 23
    const uint32_t u = csm_bits_of(x);
    return csm_float_of((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : u);
#else
    uint64_t u;
    memcpy(&u, &x, 8);
    return csm_double_of((u & 0x7fffffffffffffffu) > 0x7ff0000000000000u ? 0x7ff8000000000000u : u);
#endif
}

/* Number of elements between the preceding 16-byte boundary and p. */
INLINE int lead(const T *p) { return (int)((uintptr_t)p / sizeof(T) % VECTOR); }

/* Number of elements of shared memory to reserve for `count` elements at any alignment. */
INLINE size_t room(size_t count) { return (count + 2 * VECTOR - 1) / VECTOR * VECTOR; }

/* Copies [0, count) of storage to shared memory, writing `absent` where the mask is 0.  `to` lies lead(from) elements
 * past a 16-byte boundary. */
INLINE void load(REAL *to, const T *from, const uint8_t *mask, int count, REAL absent, int thread, int threads) {
    int head = (VECTOR - lead(from)) % VECTOR;
    head = head < count ? head : count;
    const int vectors = (count - head) / VECTOR, tail = head + vectors * VECTOR;
    const vector *body = (const vector *)(const void *)(from + head);
    if (thread < head) to[thread] = LOAD(from + thread);
    for (int v = thread; v < vectors; v += BATCH * threads) {
        vector batch[BATCH];
        UNROLL
        for (int b = 0; b < BATCH; b++)
            if (v + b * threads < vectors) batch[b] = body[v + b * threads];
        UNROLL
        for (int b = 0; b < BATCH; b++) {
            if (v + b * threads >= vectors) break;
            wide *at = (wide *)(void *)(to + head + (v + b * threads) * VECTOR);
            UNROLL
            for (int w = 0; w < VECTOR / WIDE; w++) {
                wide part;
                UNROLL
                for (int i = 0; i < WIDE; i++) part.v[i] = LOAD(&batch[b].v[w * WIDE + i]);
                at[w] = part;
            }
        }
    }
    if (tail + thread < count) to[tail + thread] = LOAD(from + tail + thread);
    if (!mask) return;
    if (threads > WARP) __syncthreads(); /* other threads have loaded the elements that this one masks */
    else __syncwarp();
    for (int i = thread; i < count; i += threads)
        if (!mask[i]) to[i] = absent;
}

/* Writes the value at each i in [0, count) to storage. */
template <class Value> INLINE void store(T *to, int count, Value value, int thread, int threads) {
    int head = (VECTOR - lead(to)) % VECTOR;
    head = head < count ? head : count;
    const int vectors = (count - head) / VECTOR, tail = head + vectors * VECTOR;
    vector *body = (vector *)(void *)(to + head);
    if (thread < head) STORE(to + thread, value.at(thread));
    for (int v = thread; v < vectors; v += threads) {
        vector all;
        UNROLL
        for (int w = 0; w < VECTOR / WIDE; w++) {
            const wide part = value.wide_at(head + v * VECTOR + w * WIDE);
            UNROLL
            for (int i = 0; i < WIDE; i++) STORE(&all.v[w * WIDE + i], part.v[i]);
        }
        body[v] = all;
    }
    if (tail + thread < count) STORE(to + tail + thread, value.at(tail + thread));
}

/* WIDE numbers starting at s, in one access if s is aligned. */
INLINE wide load_wide(const REAL *s) {
    wide w;
    if ((uintptr_t)s % 16 == 0) return *(const wide *)(const void *)s;
    UNROLL
    for (int i = 0; i < WIDE; i++) w.v[i] = s[i];
    return w;
}
/* Values for `store`: one number throughout, or the numbers in shared memory. */
struct constant {
    REAL x;
    INLINE_MEMBER REAL at(int) const { return x; }
    INLINE_MEMBER wide wide_at(int) const {
        wide w;
        UNROLL
        for (int i = 0; i < WIDE; i++) w.v[i] = x;
        return w;
    }
};
struct copied {
    const REAL *s;
    INLINE_MEMBER REAL at(int i) const { return s[i]; }
    INLINE_MEMBER wide wide_at(int i) const { return load_wide(s + i); }
};

/* The largest x of a group of `width` neighbouring threads; none is NaN. */
INLINE REAL group_max(REAL x, int width) {
    for (int d = width / 2; d > 0; d /= 2) x = V(max)(__shfl_xor_sync(ALL_LANES, x, d), x);
    return x;
}
/* The sum of small integers of a group. */
INLINE REAL group_count(REAL x, int width) {
    for (int d = width / 2; d > 0; d /= 2) x += __shfl_xor_sync(ALL_LANES, x, d);
    return x;
}
/* All bits that are set in a group. */
INLINE int group_any(int x, int width) {
    for (int d = width / 2; d > 0; d /= 2) x |= __shfl_xor_sync(ALL_LANES, x, d);
    return x;
}
/* The sum of eight lanes as ((0+4) + (2+6)) + ((1+5) + (3+7)), the order of v64_tree. */
INLINE double tree(double x) {
    x += __shfl_xor_sync(ALL_LANES, x, 4);
    x += __shfl_xor_sync(ALL_LANES, x, 2);
    return x + __shfl_xor_sync(ALL_LANES, x, 1);
}
/* The sum of pairs in the eight lanes starting at `first`, in the same order. */
INLINE void tree_pair(double hi, double low, int first, double *total, double *rest) {
#if EXP_MANTISSA == 52
    double a[8], b[8];
    UNROLL
    for (int i = 0; i < 8; i++) {
        a[i] = __shfl_sync(ALL_LANES, hi, first + i);
        b[i] = __shfl_sync(ALL_LANES, low, first + i);
    }
    V(pair_total)(a, b, total, rest);
#else /* never called */
    *total = *rest = 0;
#endif
}

/* The total of a dot product whose lanes are the first sixteen threads of each `width`.  All threads of the warp call
 * it. */
template <int width> INLINE void dot_total(const V(dot) &sum, double *hi, double *lo) {
    const int lane = threadIdx.x % DOT_TEAM, first = threadIdx.x % WARP / width * width;
#if EXP_MANTISSA == 23
    double both = __shfl_sync(ALL_LANES, sum.lane[0], first + lane);
    both += __shfl_xor_sync(ALL_LANES, both, 8);
    *hi = tree(both);
    *lo = 0;
#else
    double high = sum.hi[0], low = sum.lo[0];
    const double other = __shfl_sync(ALL_LANES, high, first + lane % 8 + 8);
    low += __shfl_sync(ALL_LANES, low, first + lane % 8 + 8);
    csm_two_sum(&high, &low, other); /* lanes 0 to 7 hold the results */
    tree_pair(high, low, first, hi, lo);
#endif
}

#endif
