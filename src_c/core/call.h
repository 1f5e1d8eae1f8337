/* One call of any family: its shape in normal form, its types, its options. */
#ifndef CSM_CORE_CALL_H
#define CSM_CORE_CALL_H

#include "../kernel/table.h"
#include "layout.h"
#include "memory.h"
#include "parallel.h"
#include "scratch.h"
#include "temperature.h"

typedef struct csm_call {
    csm_dtype dtype, wide_dtype; /* those of the arrays and of the computation */
    const csm_table *table;
    size_t itemsize, wide_size;
    csm_shape shape;
    csm_view where;
    int has_where;
    csm_scales scales; /* of the temperature */
    uint64_t absent;   /* storage bits of an element that takes no part */
    int threads;
    csm_interrupt interrupt;
} csm_call;

/* Brings the shape and the views of a call to normal form.  All families but softmax use it; small calls of softmax
 * must return earlier.  given[i] is copied to *to[i]; NULL in `to`: the view is not used; NULL in `given`: a view whose
 * offsets are the rows' indices in C order.  *rows: the number of rows. */
csm_status csm_lay_out(csm_call *, const csm_shape *, const csm_view *const *given, csm_view *const *to, int count,
                       size_t *rows);
/* Sets dtype and table of a call, and the sizes that depend on them. */
void csm_set_dtype(csm_call *, csm_dtype, const csm_table *);
static inline int csm_is_single(const csm_call *c) { return c->wide_size == 4; }

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
/* Writes a value as one element of storage. */
static inline void csm_put(const csm_call *c, void *to, double value) {
    csm_wide w = csm_to_wide(c, value), narrow;
    c->table->narrow[c->dtype](&w, &narrow, 1);
    memcpy(to, &narrow, c->itemsize);
}

/* A row of a view, and of the mask (data is NULL if there is none). */
static inline const char *csm_row_data(const csm_call *c, const csm_view *v, size_t row) {
    return (const char *)v->data + csm_offset(&c->shape, v->strides, row);
}
static inline csm_strided csm_row_of(const csm_call *c, const csm_view *v, size_t row) {
    return (csm_strided){csm_row_data(c, v, row), 0, v->axis_stride};
}
static inline csm_strided csm_mask_of(const csm_call *c, size_t row) {
    return c->has_where ? csm_row_of(c, &c->where, row) : (csm_strided){NULL, 0, 0};
}

/* Copies a row of any length to contiguous storage, or back, and asks for interrupts in between.  Returns 0 if the call
 * is to end. */
int csm_gather_row(csm_call *, int thread, char *to, csm_strided x, size_t n, size_t size, const csm_strided *mask,
                   const void *absent);
int csm_scatter_row(csm_call *, int thread, char *to, ptrdiff_t axis, const char *from, size_t n, size_t size);

/* Blocks of a row. */
static inline size_t csm_block_count(size_t n) { return (n + CSM_BLOCK - 1) / CSM_BLOCK; }
static inline size_t csm_block_length(size_t n, size_t begin) { return n - begin < CSM_BLOCK ? n - begin : CSM_BLOCK; }

#endif
