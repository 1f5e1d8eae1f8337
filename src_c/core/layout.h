/* Strided copies, and the normal form of a layout. */
#ifndef CSM_CORE_LAYOUT_H
#define CSM_CORE_LAYOUT_H

#include "../../csoftmax/include/csoftmax.h"

typedef struct csm_strided {
    const char *data;
    ptrdiff_t row, axis; /* bytes between rows, between classes */
} csm_strided;

/* to[r][j] = from[r][j], or the itemsize bytes at fill where the mask is 0.  pitch: bytes between rows of `to`. */
void csm_gather(char *to, size_t pitch, csm_strided from, size_t rows, size_t n, size_t itemsize,
                const csm_strided *mask, const void *fill);
void csm_scatter(char *to, ptrdiff_t row, ptrdiff_t axis, const char *from, size_t pitch, size_t rows, size_t n,
                 size_t itemsize);

/* Writes the itemsize bytes at fill over the elements of a row whose mask is 0. */
void csm_fill_masked(char *row, ptrdiff_t axis, csm_strided mask, size_t n, size_t itemsize, const void *fill);

/* Whether every element is aligned and, if the view has the softmax axis, rows are contiguous along it. */
int csm_is_contiguous(const csm_shape *shape, const csm_view *view, size_t itemsize, int keeps_axis);

/* Whether neighbouring rows are neighbours in memory, and every element is aligned.  has_axis: the axis counts too. */
int csm_is_side_by_side(const csm_shape *shape, const csm_view *view, size_t itemsize, int has_axis);

/* Rows that are copied to scratch in groups: bytes between two rows, an odd number of cache lines, so that rows do not
 * share a cache set; and the number of rows in a group. */
size_t csm_pack_pitch(size_t n, size_t itemsize);
size_t csm_pack_rows(size_t n, size_t itemsize);
enum { CSM_PACK_LIMIT_BYTES = 8 << 20 };

/* Byte offset of a row, from its index in C order; bytes between two rows along the last batch axis. */
ptrdiff_t csm_offset(const csm_shape *shape, const ptrdiff_t *strides, size_t row);
ptrdiff_t csm_last_stride(const csm_shape *, const csm_view *);

enum { CSM_MAX_VIEWS = 12 };
/* Copies a view up to its last batch axis: a csm_view is 528 bytes. */
static inline void csm_copy_view(csm_view *to, const csm_view *from, size_t ndim) {
    to->data = from->data;
    to->axis_stride = from->axis_stride;
    for (size_t i = 0; i < ndim; i++) to->strides[i] = from->strides[i];
}
/* Sorts the batch axes by the strides of the first view, drops axes of length 1, and joins axes where possible. */
void csm_collapse(csm_shape *shape, csm_view *const *views, int count);

#endif
