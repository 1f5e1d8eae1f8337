/* The lists from which everything else is made (operations, dtypes, instruction sets) and the kernel table that
 * one instruction-set unit fills.  One row here adds an operation, a dtype or an instruction set. */
#ifndef CSM_REGISTRY_H
#define CSM_REGISTRY_H

#include <stddef.h>
#include <stdint.h>

/*        name             second input, output has the softmax axis */
#define CSM_OPS(X)       \
    X(softmax, 0, 1)     \
    X(log_softmax, 0, 1) \
    X(logsumexp, 0, 0)   \
    X(softmax_vjp, 1, 1) \
    X(log_softmax_vjp, 1, 1)

/*        suffix storage    computes in */
#define CSM_DTYPES(X)     \
    X(f32, float, f32)    \
    X(f64, double, f64)   \
    X(f16, uint16_t, f32) \
    X(bf16, uint16_t, f32)

/*        name    CPU bits needed; later rows are preferred */
#define CSM_ISAS(X)       \
    X(scalar, 0)          \
    X(neon, CSM_CPU_NEON) \
    X(avx2, CSM_CPU_AVX2) \
    X(avx512, CSM_CPU_AVX2 | CSM_CPU_AVX512)

enum { CSM_CPU_NEON = 1, CSM_CPU_AVX2 = 2, CSM_CPU_AVX512 = 4 };
unsigned csm_cpu_features(void);

#define CSM_OP_ENUM(name, binary, keeps) CSM_OP_##name,
typedef enum csm_op { CSM_OPS(CSM_OP_ENUM) CSM_OP_COUNT } csm_op;
#undef CSM_OP_ENUM
#define CSM_DTYPE_ENUM(name, storage, compute) CSM_DTYPE_##name,
typedef enum csm_dtype { CSM_DTYPES(CSM_DTYPE_ENUM) CSM_DTYPE_COUNT } csm_dtype;
#undef CSM_DTYPE_ENUM

/* Elements in a block of the blockwise specification (NUMERICS: every sum is made block by block, blocks are
 * combined in order).  Changing it changes bits. */
enum { CSM_BLOCK = 4096, CSM_FLUSH = 512 }; /* CSM_FLUSH: see sum.inc.h */

/* Constants of z = x / T for one compute type; every value is already rounded to that type. */
typedef struct csm_temperature {
    double t;                     /* the T that the constants stand for, 1 when the rows are transformed first */
    int tempered;                 /* t != 1: r needs the factor 1/T */
    double log2e, ln2_hi, ln2_lo; /* log2(e)/T and the pair T ln 2 */
    double inv_t;
    double inv_t1, inv_t2;        /* 1/T as a product that cannot overflow or underflow by itself */
    double limit;                 /* rows with |max| <= limit take the ordinary path (NaN and infinity do not) */
    double reference_limit;       /* the reference maximum of a block is clamped to this */
} csm_temperature;

/* What one block of a row contributes.  Forward: reference exponent n, sum = hi + lo of e' over the block (over
 * the elements that are not the maximum, for the log family), count of elements equal to max, e' of max as a pair.
 * Backward: sum = hi + lo. */
typedef struct csm_block {
    double max, n, hi, lo, count, top, top_low;
} csm_block;

/* What a whole row needs in its second pass. */
typedef struct csm_row {
    double max, n;
    double r, r_low; /* softmax: 1 / sum e' as a pair */
    double tail;     /* log family: log(sum e^(x - max)) */
    double hi, lo;   /* backward: the dot product or sum */
    int is_nan;      /* the whole row is NaN */
} csm_row;

/* Rows that are contiguous along the softmax axis and at most CSM_BLOCK long (any length: pass1/pass2). */
typedef struct csm_rows_job {
    const char *a, *b;
    char *y;
    ptrdiff_t a_step, b_step, y_step; /* bytes between rows */
    size_t rows, n;
    const csm_temperature *temperature;
    void *scratch; /* CSM_BLOCK elements of the compute type */
} csm_rows_job;

/* A tile of neighbouring rows that lie side by side: the softmax axis strided, the rows contiguous across. */
typedef struct csm_tile_job {
    const char *a;
    char *y;
    ptrdiff_t a_step, y_step; /* bytes between successive classes */
    size_t n, width;
    const csm_temperature *temperature;
    void *scratch; /* CSM_TILE_BYTES */
} csm_tile_job;
enum { CSM_TILE_BYTES = 520 * 1024, CSM_TILE_WIDTH = 512 }; /* room for 16 rows of (CSM_BLOCK | 1) doubles */

typedef struct csm_kernels {
    /* Computes rows in order and returns how many are done; fewer than job->rows: the next one has a maximum
     * outside the ordinary range and has been neither changed nor written. */
    size_t (*rows)(const csm_rows_job *job);
    /* Computes a tile, n <= CSM_BLOCK; returns 0 when some row is not ordinary, nothing written.  May be NULL. */
    int (*tile)(const csm_tile_job *job);
    /* One block, k <= CSM_BLOCK.  e: where softmax leaves e' (NULL: nowhere), unused elsewhere. */
    void (*pass1)(const void *a, const void *b, void *e, size_t k, const csm_temperature *t, csm_block *block);
    void (*combine)(const csm_block *blocks, size_t count, const csm_temperature *t, csm_row *row);
    /* y of one block.  a NULL (softmax only): y holds e' from pass1. */
    void (*pass2)(const void *a, const void *b, void *y, size_t k, const csm_temperature *t, const csm_row *row,
                  const csm_block *block);
} csm_kernels;

typedef struct csm_table {
    const char *name;
    csm_kernels kernels[CSM_OP_COUNT][CSM_DTYPE_COUNT];
    double (*max[CSM_DTYPE_COUNT])(const void *x, size_t n);
    /* storage -> compute type and back, NaN canonical */
    void (*widen[CSM_DTYPE_COUNT])(const void *x, void *y, size_t n);
    void (*narrow[CSM_DTYPE_COUNT])(const void *x, void *y, size_t n);
} csm_table;

/* One exported symbol per unit; NULL when the unit was built without its instruction set. */
#define CSM_ISA_TABLE(name, bits) extern const csm_table *const csm_table_##name;
CSM_ISAS(CSM_ISA_TABLE)
#undef CSM_ISA_TABLE

#endif
