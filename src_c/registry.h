/* The lists from which the rest is generated: a row adds an operation, a dtype or an instruction set. */
#ifndef CSM_REGISTRY_H
#define CSM_REGISTRY_H

/* Functions that share a driver (ops/softmax.c) and a table of kernels (kernel/table.h).
 *        name             signature, output has the softmax axis; whose pass 1 and combination of blocks it uses */
#define CSM_OPS(X)                                      \
    X(softmax, UNARY, 1, softmax, softmax)              \
    X(log_softmax, UNARY, 1, log_softmax, log_softmax)  \
    X(logsumexp, UNARY, 0, log_softmax, log_softmax)    \
    X(softmax_vjp, BINARY, 1, softmax_vjp, vjp)         \
    X(log_softmax_vjp, BINARY, 1, log_softmax_vjp, vjp) \
    X(entropy, UNARY, 0, entropy, entropy)
#define CSM_INPUTS_UNARY 1  /* x -> y */
#define CSM_INPUTS_BINARY 2 /* dy, y -> dx */

/*        suffix storage    computes in
 * CSM_DTYPES_WITH passes its further arguments on to X, so that CSM_OPS can expand this list for each of its rows. */
#define CSM_DTYPES_WITH(X, ...)        \
    X(f32, float, f32, __VA_ARGS__)    \
    X(f64, double, f64, __VA_ARGS__)   \
    X(f16, uint16_t, f32, __VA_ARGS__) \
    X(bf16, uint16_t, f32, __VA_ARGS__)
#define CSM_DTYPES(X) CSM_DTYPES_WITH(CSM_DTYPE_ROW, X)
#define CSM_DTYPE_ROW(suffix, storage, compute, X) X(suffix, storage, compute)

/*        name    CPU bits needed; later rows are preferred */
#define CSM_ISAS(X)       \
    X(scalar, 0)          \
    X(neon, CSM_CPU_NEON) \
    X(avx2, CSM_CPU_AVX2) \
    X(avx512, CSM_CPU_AVX2 | CSM_CPU_AVX512)

/* CSM_CPU_FETCHES selects no unit.  It marks CPUs whose hardware prefetcher does better with few software
 * prefetches.  CSM_CPU_VNNI selects a function within the avx512 unit. */
enum { CSM_CPU_NEON = 1, CSM_CPU_AVX2 = 2, CSM_CPU_AVX512 = 4, CSM_CPU_FETCHES = 8, CSM_CPU_VNNI = 16 };

#define CSM_OP_ENUM(name, ...) CSM_OP_##name,
typedef enum csm_op { CSM_OPS(CSM_OP_ENUM) CSM_OP_COUNT } csm_op;
#undef CSM_OP_ENUM
#define CSM_DTYPE_ENUM(name, storage, compute) CSM_DTYPE_##name,
typedef enum csm_dtype { CSM_DTYPES(CSM_DTYPE_ENUM) CSM_DTYPE_COUNT } csm_dtype;
#undef CSM_DTYPE_ENUM

#endif
