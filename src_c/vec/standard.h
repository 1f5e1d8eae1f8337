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

#endif
