/* The standard headers that kernels need (sizes, memcpy, fma), and macros for compilers.  CUDA's run-time compiler has
 * no headers, but knows their functions. */
#ifndef CSM_VEC_STANDARD_H
#define CSM_VEC_STANDARD_H

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
typedef unsigned long long uintptr_t;
#define INT32_MAX 0x7fffffff
#define INT32_MIN (-INT32_MAX - 1)
#define INT64_MAX 0x7fffffffffffffff
#define INT64_MIN (-INT64_MAX - 1)
#else
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#endif

#ifndef INLINE
#if defined(_MSC_VER)
#define INLINE static __forceinline
#define NOINLINE __declspec(noinline)
#else
#define INLINE static inline __attribute__((always_inline, unused))
#if defined(__CUDACC_RTC__)
#define NOINLINE inline /* a call would need a stack */
#else
#define NOINLINE __attribute__((noinline))
#endif
#endif
#endif

/* Tells the compiler a bound that it cannot infer, such as that of an index. */
#if defined(_MSC_VER)
#define CSM_ASSUME(condition) __assume(condition)
#else
#define CSM_ASSUME(condition) ((condition) ? (void)0 : __builtin_unreachable())
#endif

#if defined(__GNUC__)
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define PREFETCH(p) ((void)(p))
#endif

#if defined(__GNUC__)
#define CSM_LOWEST_BIT(bits) ((unsigned)__builtin_ctzll(bits))
#else
INLINE unsigned csm_lowest_bit(uint64_t bits) {
    unsigned i = 0;
    while (!(bits >> i & 1)) i++;
    return i;
}
#define CSM_LOWEST_BIT(bits) csm_lowest_bit(bits)
#endif

#if defined(__POPCNT__) || (defined(__GNUC__) && defined(__aarch64__)) /* elsewhere it would be a call */
#define CSM_BIT_COUNT(bits) ((unsigned)__builtin_popcount(bits))
#else
INLINE unsigned csm_bit_count(uint64_t bits) {
    unsigned count = 0;
    for (; bits; bits &= bits - 1) count++;
    return count;
}
#define CSM_BIT_COUNT(bits) csm_bit_count(bits)
#endif

#endif
