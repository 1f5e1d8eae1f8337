/* The parts of a call that all families share. */
#include "call.h"

void csm_set_dtype(csm_call *c, csm_dtype dtype, const csm_table *table) {
#define SIZE(name, storage, compute) sizeof(storage),
#define WIDE(name, storage, compute) CSM_DTYPE_##compute,
    static const size_t sizes[] = {CSM_DTYPES(SIZE)};
    static const csm_dtype wide[] = {CSM_DTYPES(WIDE)};
#undef SIZE
#undef WIDE
    c->table = table;
    c->dtype = dtype;
    c->wide_dtype = wide[dtype];
    c->itemsize = sizes[dtype];
    c->wide_size = sizes[c->wide_dtype];
}

csm_status csm_lay_out(csm_call *c, const csm_shape *shape, const csm_view *const *given, csm_view *const *to,
                       int count, size_t *rows) {
    csm_view *views[CSM_MAX_VIEWS];
    int used = 0;
    size_t elements = 8; /* bytes of the widest element */
    if (shape->ndim > CSM_MAX_NDIM) return CSM_BAD_SHAPE;
    *rows = 1;
    for (size_t i = 0; i < shape->ndim; i++) *rows = shape->shape[i] ? *rows : 0;
    for (size_t i = 0; i < shape->ndim && *rows; i++) {
        if (elements > PTRDIFF_MAX / shape->shape[i]) return CSM_BAD_SHAPE;
        elements *= shape->shape[i];
        *rows *= shape->shape[i];
    }
    if (*rows && shape->n && elements > PTRDIFF_MAX / shape->n) return CSM_BAD_SHAPE;
    c->shape.n = shape->n;
    c->shape.ndim = *rows ? shape->ndim : 0;
    for (size_t i = 0; i < c->shape.ndim; i++) c->shape.shape[i] = shape->shape[i];
    for (int v = 0; v < count; v++) {
        if (!to[v]) continue;
        if (given[v]) {
            csm_copy_view(to[v], given[v], c->shape.ndim);
        } else {
            ptrdiff_t step = 1;
            for (size_t i = c->shape.ndim; i-- > 0; step *= (ptrdiff_t)shape->shape[i]) to[v]->strides[i] = step;
        }
        views[used++] = to[v];
    }
    csm_collapse(&c->shape, views, used);
    return CSM_OK;
}

int csm_gather_row(csm_call *c, int thread, char *to, csm_strided x, size_t n, size_t size, const csm_strided *mask,
                   const void *absent) {
    csm_strided part = mask ? *mask : (csm_strided){NULL, 0, 0};
    for (size_t i = 0; i < n; i += CSM_POLL_ELEMENTS) {
        const size_t k = n - i < CSM_POLL_ELEMENTS ? n - i : CSM_POLL_ELEMENTS;
        csm_gather(to + i * size, 0, x, 1, k, size, mask ? &part : NULL, absent);
        x.data += (ptrdiff_t)k * x.axis;
        if (part.data) part.data += (ptrdiff_t)k * part.axis;
        if (n > CSM_POLL_ELEMENTS && csm_stops(&c->interrupt, thread, k)) return 0;
    }
    return 1;
}

int csm_scatter_row(csm_call *c, int thread, char *to, ptrdiff_t axis, const char *from, size_t n, size_t size) {
    for (size_t i = 0; i < n; i += CSM_POLL_ELEMENTS) {
        const size_t k = n - i < CSM_POLL_ELEMENTS ? n - i : CSM_POLL_ELEMENTS;
        csm_scatter(to + (ptrdiff_t)i * axis, 0, axis, from + i * size, 0, 1, k, size);
        if (n > CSM_POLL_ELEMENTS && csm_stops(&c->interrupt, thread, k)) return 0;
    }
    return 1;
}
