/* The lists from which everything else is made (operations, dtypes, instruction sets) and the kernel table that
 * one instruction-set unit fills.  One row here adds an operation, a dtype or an instruction set. */
#ifndef CSM_REGISTRY_H
#define CSM_REGISTRY_H

#include "vec/standard.h"

#if defined(__GNUC__)
#define PREFETCH(p) __builtin_prefetch(p)
#else
#define PREFETCH(p) ((void)(p))
#endif

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

/* No unit needs the last: rows come to the CPU best when it is told little of them ahead (csm_tells). */
enum { CSM_CPU_NEON = 1, CSM_CPU_AVX2 = 2, CSM_CPU_AVX512 = 4, CSM_CPU_FETCHES = 8 };
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
    double inv_t, inv_t_low;      /* 1/T rounded, and what that leaves over */
    double inv_t1, inv_t2;        /* 1/T as a product that cannot overflow or underflow by itself */
    double limit;                 /* rows with |max| <= limit take the ordinary path (NaN and infinity do not) */
    double reference_limit;       /* the reference maximum of a block is clamped to this */
} csm_temperature;

/* A call's temperature: constants for rows as they are, and for rows that row.c transforms (x less the maximum or not,
 * times scale1 and scale2) first. */
typedef struct csm_scales {
    double temperature, scale1, scale2;
    csm_temperature ordinary, transformed;
    int always_transform; /* T is 0, infinite or outside the range of `ordinary` */
} csm_scales;

/* What one block of a row contributes.  Forward: reference exponent n, sum = hi + lo of e' over the block (over
 * the elements that are not the maximum, for the log family), count of elements equal to max, e' of max as a pair.
 * Backward: sum = hi + lo. */
typedef struct csm_block {
    double max, n, hi, lo, count, top, top_low;
    double mass, far; /* cross-entropy: sum a_j and sum a_j (max - x_j), in units of x */
} csm_block;

/* What a whole row needs in its second pass. */
typedef struct csm_row {
    double max, n;
    double r, r_low; /* softmax: 1 / sum e' as a pair */
    double tail;     /* log family: log(sum e^(x - max)) */
    double hi, lo;   /* log family: sum of e' without the maxima; backward: the dot product or sum */
    double count, top, top_low; /* log family: of the maximum, as in csm_block */
    int is_nan;      /* the whole row is NaN */
} csm_row;

/* What a CPU is told of ahead (prefetches): nothing where all is in its cache; the sources of long rows; sources and
 * results. */
typedef enum csm_tells { CSM_TELLS_NOTHING, CSM_TELLS_LONG, CSM_TELLS_ALL } csm_tells;

/* Rows that are contiguous along the softmax axis and at most CSM_BLOCK long (any length: pass1/pass2). */
typedef struct csm_rows_job {
    const char *a, *b;
    char *y;
    ptrdiff_t a_step, b_step, y_step; /* bytes between rows */
    size_t rows, n;
    const csm_temperature *temperature;
    void *scratch; /* CSM_BLOCK elements of the compute type */
    csm_tells tells;
} csm_rows_job;

/* A tile of neighbouring rows that lie side by side: the softmax axis strided, the rows contiguous across. */
typedef struct csm_tile_job {
    const char *a, *b;
    char *y;
    ptrdiff_t a_step, b_step, y_step; /* bytes between successive classes */
    size_t n, width;
    const csm_temperature *temperature;
    void *scratch; /* CSM_TILE_BYTES */
} csm_tile_job;
enum {
    CSM_TILE_BYTES = 520 * 1024, /* room for 16 rows of (CSM_BLOCK | 1) doubles */
    CSM_TILE_WIDTH = 512,        /* most rows of a tile; */
    CSM_VJP_WIDTH = 128          /* of gradients; float64 half of them */
};

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

/* Cross-entropy.  A row's loss is s [Q tail + sum a_j (max - x_j)/T + z_loss lse^2] and its gradient
 * (s/T) [p_j (Q + 2 z_loss lse) - a_j], where a_j = w_j q_j, Q = sum a_j. */

/* The part of a_j that is not the label's own: w_j (soft q_j + flat). */
typedef struct csm_loss_terms {
    const void *q, *w; /* of the compute type; NULL: q_j = 0, w_j = 1 */
    double soft, flat;
} csm_loss_terms;

/* What one call has in common. */
typedef struct csm_loss_call {
    size_t n;
    const csm_temperature *t;
    double temperature;    /* the caller's; t may be of transformed rows */
    const void *w;         /* class weights in the compute type, or NULL */
    double weight_sum;     /* of all classes */
    double smoothing, z_loss;
    double clip_norm, clip_value; /* infinity: none */
    /* 1 / (the divisor of the mean, else 1) and 1 / temperature: pairs times powers of two */
    double per_divisor, per_divisor_low, divisor_exponent, per_t, per_t_low, t_exponent;
    int soft, gradient;
    int simple; /* labels, no options, 1 / divisor in the middle of the range */
} csm_loss_call;

/* What a row brings along. */
typedef struct csm_loss_input {
    ptrdiff_t label;      /* negative with soft labels */
    double x_label, w_label; /* logit and weight of the label */
    double mass;          /* sum w_j q_j before smoothing */
    double weight, upstream; /* sample weight, derivative of the result with respect to the reduced row loss */
    double max;           /* as in the caller's array, where t stands for a transformed row */
    double e_label, n;    /* e' of the label as pass 1 left it, in a block with this n; negative: not at hand */
} csm_loss_input;

/* g_j = e'_j (f + f_low) - w_j (soft q_j + flat), clipped to +-clip, times (post + post_low) 2^post_exponent;
 * target: g of the label.  plain: no clip, post is 1.  is_nan: loss and gradient, or after `factors` the gradient. */
typedef struct csm_loss_row {
    csm_row sums;
    double total, total_low; /* sum of all e' */
    double e_label, others;  /* e' of the label, sum of all others */
    double loss;
    double f, f_low, soft, flat, clip, post, post_low, post_exponent, target;
    int plain, is_nan;
} csm_loss_row;

/* Rows that are contiguous and at most CSM_BLOCK long. */
typedef struct csm_loss_job {
    const csm_loss_call *call;
    const char *x, *q;
    char *y;                          /* the gradient; may be x */
    ptrdiff_t x_step, q_step, y_step; /* bytes between rows */
    const int64_t *label;             /* negative: ignored; NULL: soft */
    const double *mass;               /* soft labels: sum w_j q_j */
    double *loss;
    ptrdiff_t order;                  /* rows between two rows in label, mass and loss */
    const char *weight, *upstream;    /* double; NULL: 1 */
    ptrdiff_t weight_step, upstream_step;
    size_t rows;
    void *scratch;                    /* n + 16 elements of the compute type */
} csm_loss_job;

typedef struct csm_loss_kernels {
    /* Computes rows in order and returns how many are done, as csm_kernels has it. */
    size_t (*rows)(const csm_loss_job *);
    /* One block whose maximum is in *block.  e: where e' goes, NULL: nowhere; terms: NULL: none. */
    void (*pass1)(const void *x, void *e, size_t k, const csm_temperature *, const csm_loss_terms *terms,
                  csm_block *block);
    /* A row from its blocks: sums and loss; then the factors of its gradient. */
    void (*sums)(const csm_loss_call *, const csm_loss_input *, const csm_block *, size_t count, csm_loss_row *);
    void (*factors)(const csm_loss_call *, const csm_loss_input *, double shrink, csm_loss_row *);
    /* Sum of the squares of what pass2 would write, the label's own excepted.  label: its place in the block, or
     * negative.  e: e' from pass1, NULL: from x once more. */
    double (*norm)(const void *x, const void *e, size_t k, const csm_temperature *, const csm_block *,
                   const csm_loss_row *, const csm_loss_terms *terms, ptrdiff_t label);
    void (*pass2)(const void *x, const void *e, void *y, size_t k, const csm_temperature *, const csm_block *,
                  const csm_loss_row *, const csm_loss_terms *terms);
    /* sum w_j q_j of soft labels as a pair; returns 0 if one of them is negative, infinite or NaN. */
    int (*mass)(const void *q, const void *w, size_t k, double *hi, double *lo);
} csm_loss_kernels;

/* The k largest or smallest of a row.  Scratch of the selection: candidates and their indices, twice, and block maxima
 * (or, if dense, the row) in the compute type.  Every CSM_SELECT_GROUP elements from the start of the row have one
 * block maximum, +inf if there is NaN, and these stay. */
typedef struct csm_select {
    void *key, *spare_key;
    int64_t *index, *spare_index;
    void *level;
    size_t capacity, count, maxima; /* how many of each; maxima: 0 if dense */
} csm_select;
enum { CSM_SELECT_GROUP = 8, CSM_SELECT_SLACK = 64 /* elements: whole vectors */ };
/* Whether maxima of blocks of CSM_SELECT_GROUP are too few to find a threshold for k of n. */
static inline int csm_select_dense(size_t n, size_t k) { return n < 128 || k > n / (3 * CSM_SELECT_GROUP); }

/* alpha-entmax: see kernel/entmax_solve.h. */
typedef enum csm_entmax_kind { CSM_SPARSEMAX, CSM_ENTMAX15, CSM_ENTMAX_ANY } csm_entmax_kind;
typedef struct csm_entmax {
    csm_entmax_kind kind;
    int single; /* the result is float or less: no pairs but near alpha = 1 */
    double alpha, scale, p, p_low; /* scale = alpha - 1, p = 1 / scale as a pair */
} csm_entmax;
/* Scratch and result for a row: what survives the filter (z as a pair; capacity each, a multiple of 8), then the
 * support in the order of its indices: probabilities p, u = p^scale.  c = 1 + t + t_low, where p < 1 c = t + t_low. */
typedef struct csm_support {
    double *z, *z_low, *p, *u;
    size_t *index;
    size_t capacity, count;
    double max, t, t_low;
    int is_nan;
} csm_support;
typedef struct csm_entmax_kernels {
    /* Returns how many survive the filter; more than s->capacity: nothing is done. */
    size_t (*support)(const void *x, size_t n, const csm_entmax *, csm_support *s);
    /* The support times factor, 0 elsewhere. */
    void (*spread)(const csm_support *, double factor, void *y, size_t n);
    /* dx may be dy or y. */
    void (*vjp)(const void *dy, const void *y, void *dx, size_t n, const csm_entmax *);
} csm_entmax_kernels;

typedef struct csm_table {
    const char *name;
    csm_kernels kernels[CSM_OP_COUNT][CSM_DTYPE_COUNT];
    csm_loss_kernels loss[CSM_DTYPE_COUNT];
    csm_entmax_kernels entmax[CSM_DTYPE_COUNT];
    /* Indices of the k best of n, 0 < k <= n, to s->index, best first if `sorted`. */
    void (*select[CSM_DTYPE_COUNT])(const void *x, size_t n, size_t k, int smallest, int sorted, csm_select *s);
    /* softmax's pass1 where block->max is known and e' is not wanted */
    void (*softmax_sum[CSM_DTYPE_COUNT])(const void *x, size_t n, const csm_temperature *, csm_block *block);
    double (*max[CSM_DTYPE_COUNT])(const void *x, size_t n);
    /* storage -> compute type and back, NaN canonical */
    void (*widen[CSM_DTYPE_COUNT])(const void *x, void *y, size_t n);
    void (*narrow[CSM_DTYPE_COUNT])(const void *x, void *y, size_t n);
} csm_table;

#if !defined(__cplusplus)
/* One exported symbol per unit; NULL when the unit was built without its instruction set. */
#define CSM_ISA_TABLE(name, bits) extern const csm_table *const csm_table_##name;
CSM_ISAS(CSM_ISA_TABLE)
#undef CSM_ISA_TABLE
#endif

#endif
