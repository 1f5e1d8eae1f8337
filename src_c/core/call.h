/* What the files of the core share: the data flows dispatch.c -> driver.c -> row.c -> a unit's table. */
#ifndef CSM_INTERNAL_H
#define CSM_INTERNAL_H

#include "../csoftmax/include/csoftmax.h"
#include "registry.h"

#include <string.h>

/* parallel.c: the only file that knows of threads */
/* The default floating-point environment for the calling thread, and back.  Whole calls run in it: constants and
 * what is done between parallel regions must not depend on the caller's rounding mode or flush-to-zero. */
typedef struct csm_fp_environment {
    uint64_t control, status;
} csm_fp_environment;
typedef struct csm_interrupt {
    int (*check)(void *context);
    void *context;
    double last;               /* when it was last called, or the call began; 0 = not yet known */
    csm_fp_environment caller; /* in which it is called */
} csm_interrupt;
csm_fp_environment csm_fp_enter(void);
void csm_fp_leave(csm_fp_environment);
typedef csm_status (*csm_body)(void *context, size_t begin, size_t end, int thread);
/* Calls body on [0, units) in pieces of at most `piece` units, on at most `threads` threads, in any order.  The first
 * status that is not CSM_OK stops the call and is returned. */
csm_status csm_parallel(size_t units, size_t piece, int threads, csm_body body, void *context, csm_interrupt *);
double csm_now(void); /* seconds */
int csm_threads_for(double elements, size_t units, int threads);

/* layout.c: strided copies, sums of row losses */
/* A tree whose shape depends on the count alone. */
double csm_tree_sum(const double *x, size_t n);
typedef struct csm_strided {
    const char *data;
    ptrdiff_t row, axis; /* bytes between rows, between classes */
} csm_strided;
/* to[r][j] = from[r][j], or the itemsize bytes at fill where the mask is 0.  pitch: bytes between rows of `to`. */
void csm_gather(char *to, size_t pitch, csm_strided from, size_t rows, size_t n, size_t itemsize,
                const csm_strided *mask, const void *fill);
void csm_scatter(char *to, ptrdiff_t row, ptrdiff_t axis, const char *from, size_t pitch, size_t rows, size_t n,
                 size_t itemsize);
int csm_contiguous_view(const csm_shape *shape, const csm_view *view, size_t itemsize, int keeps_axis);
/* Rows copied to scratch in groups: bytes between two of them (an odd number of cache lines, so that rows do not share
 * a set), and how many. */
size_t csm_pack_pitch(size_t n, size_t itemsize);
size_t csm_pack_rows(size_t n, size_t itemsize);
enum { CSM_ALIGN = 64 };
static inline size_t csm_rounded(size_t size) { return (size + CSM_ALIGN - 1) / CSM_ALIGN * CSM_ALIGN; }
enum { CSM_PACK_LIMIT = 8 << 20, CSM_PIECE = 256 * 1024 /* elements between two looks at the clock */ };
void *csm_allocate(size_t size); /* aligned to a cache line, or NULL */
void csm_release(void *);
/* Byte offset of a row from the indices of its batch axes; bytes between two rows along the last of them. */
ptrdiff_t csm_last_stride(const csm_shape *, const csm_view *);
ptrdiff_t csm_offset(const csm_shape *shape, const ptrdiff_t *strides, size_t row);
enum { CSM_MAX_VIEWS = 8 };
/* Orders the batch axes by the strides of x, drops those of length 1 and joins those that allow it. */
void csm_collapse(csm_shape *shape, csm_view *const *views, int count);

/* driver.c */
typedef struct csm_call {
    csm_op op;
    csm_dtype dtype, wide_dtype;     /* of the arrays, and the one it computes in */
    const csm_table *table;
    const csm_kernels *kernels;      /* of op and dtype */
    const csm_kernels *wide_kernels; /* of op and the compute dtype, for transformed rows */
    size_t itemsize, wide_size;
    csm_shape shape;
    csm_view a, b, y, where;
    int has_b, has_where, keeps_axis, forward;
    csm_scales scales;               /* of the temperature */
    uint64_t absent;                 /* storage bits of an element that takes no part */
    int threads;
    csm_interrupt interrupt;
    char *scratch;                   /* the caller's, or NULL */
    size_t scratch_each;             /* bytes a thread */
} csm_call;

/* Shape and views of a call in normal form.  to: where view i goes, NULL: it is not used; given[i] NULL: the row's
 * index in C order.  rows: how many. */
csm_status csm_lay_out(csm_call *, const csm_shape *, const csm_view *const *given, csm_view *const *to, int count,
                       size_t *rows);
/* dtype and table of a call, and the sizes that follow. */
void csm_set_dtype(csm_call *, csm_dtype, const csm_table *);

/* row.c: one row of any length, layout and content */
/* One number of the compute type. */
typedef union csm_wide {
    float f;
    double d;
} csm_wide;
static inline csm_wide csm_to_wide(const csm_call *c, double value) {
    csm_wide w;
    if (c->wide_size == 4) w.f = (float)value;
    else w.d = value;
    return w;
}
static inline double csm_from_wide(const csm_call *c, csm_wide w) { return c->wide_size == 4 ? (double)w.f : w.d; }
/* Element i of an array of the compute type; element j of storage. */
static inline double csm_wide_at(const csm_call *c, const char *wide, size_t i) {
    csm_wide w;
    memcpy(&w, wide + i * c->wide_size, c->wide_size);
    return csm_from_wide(c, w);
}
static inline double csm_element(const csm_call *c, const char *x, size_t j) {
    csm_wide w;
    c->table->widen[c->dtype](x + j * c->itemsize, &w, 1);
    return csm_from_wide(c, w);
}
/* value as one element of storage */
static inline void csm_put(const csm_call *c, void *to, double value) {
    csm_wide w = csm_to_wide(c, value), narrow;
    c->table->narrow[c->dtype](&w, &narrow, 1);
    memcpy(to, &narrow, c->itemsize);
}
/* A row of a view, and of the mask (data NULL: there is none). */
static inline csm_strided csm_row_of(const csm_call *c, const csm_view *v, size_t row) {
    return (csm_strided){(const char *)v->data + csm_offset(&c->shape, v->strides, row), 0, v->axis_stride};
}
static inline csm_strided csm_mask_of(const csm_call *c, size_t row) {
    return c->has_where ? csm_row_of(c, &c->where, row) : (csm_strided){NULL, 0, 0};
}
typedef struct csm_one_row {
    csm_strided a, b, where; /* row is not used; where.data NULL: all take part */
    char *y;
    ptrdiff_t y_axis;
    int gathered;            /* a and b have the mask applied already */
} csm_one_row;
typedef struct csm_row_scratch {
    char *raw_a, *raw_b, *wide; /* CSM_BLOCK elements each */
    csm_block *blocks;          /* one for each block of a row */
} csm_row_scratch;
size_t csm_row_scratch_size(size_t n);
csm_row_scratch csm_row_scratch_at(char *memory, size_t n);
/* Computes a row in order (all other rows of the call may use this scratch next). */
void csm_row_any(const csm_call *, const csm_one_row *, const csm_row_scratch *);
/* The same with the blocks of the row handed to threads; scratch: one a thread, blocks of the first are used. */
csm_status csm_row_split(csm_call *, const csm_one_row *, csm_row_scratch *each);

/* The transformation that row.c describes, of one block in the compute type. */
void csm_transform(const csm_call *, void *wide, size_t k, double max);

/* dispatch.c */
csm_tells csm_tells_of(double bytes); /* of a call that reads and writes so much */

/* topk.c */
size_t csm_select_size(size_t n, size_t k, size_t wide_size);
csm_select csm_select_at(char *memory, size_t n, size_t k, size_t wide_size);

/* What the extension module calls beside csoftmax.h; in a shared library these have a version of their own
 * (csoftmax.map). */
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif
/* dispatch.c */
const csm_table *csm_current_table(void);
const char *csm_source(void); /* CSM_SOURCE_HASH of the library */
/* parallel.c */
int csm_openmp(void);       /* _OPENMP, 0 without */
int csm_openmp_limit(void); /* threads that it would use by default */
/* driver.c */
void csm_set_scales(csm_scales *, double temperature, int single);
void csm_set_entmax(csm_entmax *, double alpha, int single);
csm_status csm_run(csm_op, csm_dtype, const csm_table *, const csm_shape *, const csm_view *a, const csm_view *b,
                   const csm_view *y, const csm_options *);
/* cross_entropy.c */
csm_loss_call csm_loss_call_of(const csm_loss_options *, size_t n, int gradient);
csm_status csm_run_loss(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, const csm_view *gradient,
                        double *loss, csm_loss_options *);
/* topk.c */
csm_status csm_run_topk(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, size_t k,
                        const csm_view *values, const csm_view *indices, const csm_topk_options *);
/* entmax.c */
csm_status csm_run_entmax(csm_dtype, const csm_table *, const csm_shape *, const csm_view *a, const csm_view *b,
                          const csm_view *y, const csm_entmax_options *); /* b: y of a gradient, whose dy is a */
csm_status csm_run_entmax_loss(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x,
                               const csm_view *labels, const csm_view *soft, const csm_view *gradient, double *loss,
                               const csm_entmax_options *);
/* sample.c */
csm_status csm_run_sample(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, size_t size,
                          const csm_view *uniform, const csm_view *indices, const csm_sample_options *);
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif

#endif
