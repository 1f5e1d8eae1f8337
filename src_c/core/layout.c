/* Strided copies, and the normal form of a layout. */
#include "call.h"

enum {
    PACK_BYTES = 64 * 1024, /* size of a packed group; eight rows may need more, up to CSM_PACK_LIMIT_BYTES */
    PACK_ROWS = 64          /* maximum number of rows in a group */
};

/* Copies 2, 4 or 8 bytes, at any alignment. */
#define COPY(size, to, from)                         \
    do {                                             \
        if (size == 2) memcpy((to), (from), 2);      \
        else if (size == 4) memcpy((to), (from), 4); \
        else memcpy((to), (from), 8);                \
    } while (0)

/* Interleaved rows, element by element (a short axis after the softmax axis): 2, 4 or 8 of them, aligned.
 * With a constant number of rows the compiler turns these loops into loads, shuffles and stores. */
#define INTERLEAVED(T, ROWS)                                                                         \
    static void split_##T##_##ROWS(T *restrict to, size_t pitch, const T *restrict from, size_t n) { \
        for (size_t j = 0; j < n; j++)                                                               \
            for (size_t r = 0; r < ROWS; r++) to[r * pitch + j] = from[j * ROWS + r];                \
    }                                                                                                \
    static void join_##T##_##ROWS(T *restrict to, const T *restrict from, size_t pitch, size_t n) {  \
        for (size_t j = 0; j < n; j++)                                                               \
            for (size_t r = 0; r < ROWS; r++) to[j * ROWS + r] = from[r * pitch + j];                \
    }
INTERLEAVED(uint16_t, 2)
INTERLEAVED(uint16_t, 4)
INTERLEAVED(uint16_t, 8)
INTERLEAVED(uint32_t, 2)
INTERLEAVED(uint32_t, 4)
INTERLEAVED(uint32_t, 8)
INTERLEAVED(uint64_t, 2)
INTERLEAVED(uint64_t, 4)
INTERLEAVED(uint64_t, 8)
#undef INTERLEAVED
static int is_interleaved(const void *data, ptrdiff_t row, ptrdiff_t axis, size_t rows, size_t size) {
    return (rows == 2 || rows == 4 || rows == 8) && row == (ptrdiff_t)size && axis == (ptrdiff_t)(rows * size) &&
           (uintptr_t)data % size == 0;
}
#define FOR_INTERLEAVED(T, name, ...)                    \
    do {                                                 \
        if (rows == 2) name##_##T##_2(__VA_ARGS__);      \
        else if (rows == 4) name##_##T##_4(__VA_ARGS__); \
        else name##_##T##_8(__VA_ARGS__);                \
    } while (0)

/* Prefetches eight elements ahead: hardware prefetchers stop at page boundaries. */
#define PREFETCH_STRIDED(p, step) PREFETCH((const char *)((uintptr_t)(p) + 8 * (uintptr_t)(step)))

/* Inlined with a constant size.  Copies eight rows at a time, so that their lines of `to` stay in the first-level
 * cache. */
static inline void gather(char *to, size_t pitch, csm_strided from, size_t rows, size_t n, const size_t size) {
    if (from.axis == (ptrdiff_t)size) {
        for (size_t r = 0; r < rows; r++) memcpy(to + r * pitch, from.data + (ptrdiff_t)r * from.row, n * size);
        return;
    }
    size_t r = 0;
    for (; r + 8 <= rows; r += 8)
        for (size_t j = 0; j < n; j++) {
            const char *x = from.data + (ptrdiff_t)r * from.row + (ptrdiff_t)j * from.axis;
            PREFETCH_STRIDED(x, from.axis);
            for (size_t i = 0; i < 8; i++) COPY(size, to + (r + i) * pitch + j * size, x + (ptrdiff_t)i * from.row);
        }
    for (; r < rows; r++)
        for (size_t j = 0; j < n; j++)
            COPY(size, to + r * pitch + j * size, from.data + (ptrdiff_t)r * from.row + (ptrdiff_t)j * from.axis);
}

/* Writes `fill` where the mask is 0.  Uses a bitwise select: with random masks a branch took 5 ns per element, the
 * select takes 1. */
#define MASK(T)                                                                                  \
    static void mask_##T(T *restrict x, const char *restrict mask, size_t n, const void *fill) { \
        T filler;                                                                                \
        memcpy(&filler, fill, sizeof filler);                                                    \
        for (size_t j = 0; j < n; j++) {                                                         \
            const T kept = (T)-(T)(mask[j] != 0);                                                \
            x[j] = (T)((x[j] & kept) | (filler & ~kept));                                        \
        }                                                                                        \
    }
MASK(uint16_t)
MASK(uint32_t)
MASK(uint64_t)
#undef MASK

/* Applies a mask.  If it is not contiguous along the axis, it is copied first, in pieces, eight rows at a time. */
static void apply_mask(char *to, size_t pitch, csm_strided mask, size_t rows, size_t n, size_t size, const void *fill) {
    enum { ROWS = 8, PIECE = 64 };
    char copy[ROWS][PIECE];
    for (size_t r = 0; r < rows; r += ROWS) {
        const size_t count = rows - r < ROWS ? rows - r : ROWS, piece = mask.axis == 1 ? n : PIECE;
        for (size_t begin = 0; begin < n; begin += piece) {
            const size_t k = n - begin < piece ? n - begin : piece;
            const char *from = mask.data + (ptrdiff_t)r * mask.row + (ptrdiff_t)begin * mask.axis;
            for (size_t j = 0; mask.axis != 1 && j < k; j++) {
                const char *m = from + (ptrdiff_t)j * mask.axis;
                PREFETCH_STRIDED(m, mask.axis);
                for (size_t i = 0; i < count; i++) copy[i][j] = m[(ptrdiff_t)i * mask.row];
            }
            for (size_t i = 0; i < count; i++) {
                const char *m = mask.axis == 1 ? from + (ptrdiff_t)i * mask.row : copy[i];
                void *x = to + (r + i) * pitch + begin * size;
                if (size == 2) mask_uint16_t(x, m, k, fill);
                else if (size == 4) mask_uint32_t(x, m, k, fill);
                else mask_uint64_t(x, m, k, fill);
            }
        }
    }
}

void csm_gather(char *to, size_t pitch, csm_strided from, size_t rows, size_t n, size_t itemsize,
                const csm_strided *mask, const void *fill) {
    if (is_interleaved(from.data, from.row, from.axis, rows, itemsize)) {
        const void *x = from.data;
        void *y = to;
        if (itemsize == 2) FOR_INTERLEAVED(uint16_t, split, y, pitch / 2, x, n);
        else if (itemsize == 4) FOR_INTERLEAVED(uint32_t, split, y, pitch / 4, x, n);
        else FOR_INTERLEAVED(uint64_t, split, y, pitch / 8, x, n);
    } else if (itemsize == 2) gather(to, pitch, from, rows, n, 2);
    else if (itemsize == 4) gather(to, pitch, from, rows, n, 4);
    else gather(to, pitch, from, rows, n, 8);
    if (mask && mask->data) apply_mask(to, pitch, *mask, rows, n, itemsize, fill);
}

static inline void scatter(char *to, ptrdiff_t row, ptrdiff_t axis, const char *from, size_t pitch, size_t rows,
                           size_t n, const size_t size) {
    if (axis == (ptrdiff_t)size) {
        for (size_t r = 0; r < rows; r++) memcpy(to + (ptrdiff_t)r * row, from + r * pitch, n * size);
        return;
    }
    size_t r = 0;
    for (; r + 8 <= rows; r += 8)
        for (size_t j = 0; j < n; j++) {
            char *y = to + (ptrdiff_t)r * row + (ptrdiff_t)j * axis;
            PREFETCH_STRIDED(y, axis);
            for (size_t i = 0; i < 8; i++) COPY(size, y + (ptrdiff_t)i * row, from + (r + i) * pitch + j * size);
        }
    for (; r < rows; r++)
        for (size_t j = 0; j < n; j++)
            COPY(size, to + (ptrdiff_t)r * row + (ptrdiff_t)j * axis, from + r * pitch + j * size);
}

void csm_scatter(char *to, ptrdiff_t row, ptrdiff_t axis, const char *from, size_t pitch, size_t rows, size_t n,
                 size_t itemsize) {
    if (is_interleaved(to, row, axis, rows, itemsize)) {
        const void *x = from;
        void *y = to;
        if (itemsize == 2) FOR_INTERLEAVED(uint16_t, join, y, x, pitch / 2, n);
        else if (itemsize == 4) FOR_INTERLEAVED(uint32_t, join, y, x, pitch / 4, n);
        else FOR_INTERLEAVED(uint64_t, join, y, x, pitch / 8, n);
    } else if (itemsize == 2) scatter(to, row, axis, from, pitch, rows, n, 2);
    else if (itemsize == 4) scatter(to, row, axis, from, pitch, rows, n, 4);
    else scatter(to, row, axis, from, pitch, rows, n, 8);
}

void csm_fill_masked(char *row, ptrdiff_t axis, csm_strided mask, size_t n, size_t itemsize, const void *fill) {
    for (size_t j = 0; j < n; j++)
        if (!mask.data[(ptrdiff_t)j * mask.axis]) memcpy(row + (ptrdiff_t)j * axis, fill, itemsize);
}

int csm_is_contiguous(const csm_shape *shape, const csm_view *view, size_t itemsize, int keeps_axis) {
    uintptr_t bits = (uintptr_t)view->data;
    if (keeps_axis && shape->n > 1 && view->axis_stride != (ptrdiff_t)itemsize) return 0;
    for (size_t i = 0; i < shape->ndim; i++) bits |= (uintptr_t)view->strides[i];
    return bits % itemsize == 0;
}

int csm_is_side_by_side(const csm_shape *shape, const csm_view *view, size_t itemsize, int has_axis) {
    uintptr_t bits = (uintptr_t)view->data;
    if (has_axis) bits |= (uintptr_t)view->axis_stride;
    for (size_t i = 0; i < shape->ndim; i++) bits |= (uintptr_t)view->strides[i];
    return bits % itemsize == 0 && csm_last_stride(shape, view) == (ptrdiff_t)itemsize;
}

size_t csm_pack_pitch(size_t n, size_t itemsize) { return ((n * itemsize + 63) / 64 | 1) * 64; }
size_t csm_pack_rows(size_t n, size_t itemsize) {
    size_t pitch = csm_pack_pitch(n, itemsize), rows = PACK_BYTES / pitch;
    if (rows < 8) rows = 8 * pitch <= CSM_PACK_LIMIT_BYTES ? 8 : 1;
    return rows > PACK_ROWS ? PACK_ROWS : rows;
}

ptrdiff_t csm_last_stride(const csm_shape *shape, const csm_view *view) {
    return shape->ndim ? view->strides[shape->ndim - 1] : 0;
}
ptrdiff_t csm_offset(const csm_shape *shape, const ptrdiff_t *strides, size_t row) {
    ptrdiff_t offset = 0;
    if (shape->ndim == 1) return (ptrdiff_t)row * strides[0]; /* without a division */
    for (size_t i = shape->ndim; i-- > 0;) {
        offset += (ptrdiff_t)(row % shape->shape[i]) * strides[i];
        row /= shape->shape[i];
    }
    return offset;
}

static size_t magnitude(ptrdiff_t stride) { return stride < 0 ? 0 - (size_t)stride : (size_t)stride; }

void csm_collapse(csm_shape *shape, csm_view *const *views, int count) {
    size_t ndim = 0;
    for (size_t i = 0; i < shape->ndim; i++) { /* drops length 1, inserts by falling stride of the first view */
        if (shape->shape[i] == 1) continue;
        size_t length = shape->shape[i], at = ndim;
        ptrdiff_t strides[CSM_MAX_VIEWS];
        for (int v = 0; v < count; v++) strides[v] = views[v]->strides[i];
        while (at > 0 && magnitude(views[0]->strides[at - 1]) < magnitude(strides[0])) {
            shape->shape[at] = shape->shape[at - 1];
            for (int v = 0; v < count; v++) views[v]->strides[at] = views[v]->strides[at - 1];
            at--;
        }
        shape->shape[at] = length;
        for (int v = 0; v < count; v++) views[v]->strides[at] = strides[v];
        ndim++;
    }
    size_t joined = ndim ? 1 : 0;
    for (size_t i = 1; i < ndim; i++) {
        int joins = 1;
        for (int v = 0; v < count; v++)
            joins &= views[v]->strides[joined - 1] == views[v]->strides[i] * (ptrdiff_t)shape->shape[i];
        if (joins) {
            shape->shape[joined - 1] *= shape->shape[i];
            for (int v = 0; v < count; v++) views[v]->strides[joined - 1] = views[v]->strides[i];
        } else {
            shape->shape[joined] = shape->shape[i];
            for (int v = 0; v < count; v++) views[v]->strides[joined] = views[v]->strides[i];
            joined++;
        }
    }
    shape->ndim = joined;
}
