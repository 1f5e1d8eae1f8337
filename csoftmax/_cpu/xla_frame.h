/* The frame in which XLA calls a target of its foreign function interface, and how targets read it.
 *
 * XLA calls a target with one structure.  The part that is needed is declared here, following the layout that XLA
 * publishes (version 0 of its interface), so that building does not need JAX.  Every structure begins with its size,
 * which is checked before any later field is read.  Rows lie along the last axis of contiguous arrays.
 */
#ifndef CSM_XLA_FRAME_H
#define CSM_XLA_FRAME_H

#include "xla.h"

#include "core/extension.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct xla_extension {
    size_t size;
    int type;
    struct xla_extension *next;
} xla_extension;
typedef struct xla_version {
    size_t size;
    xla_extension *extensions;
    int major, minor;
} xla_version;
/* An extension of type 1, with which XLA requests metadata when a target is registered. */
typedef struct xla_metadata {
    size_t size;
    xla_version version;
    uint32_t traits;
    int64_t state_type;
} xla_metadata;
typedef struct xla_metadata_extension {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_new_error {
    size_t size;
    xla_extension *extensions;
    const char *message;
    int code;
} xla_new_error;
typedef struct xla_api {
    size_t size;
    xla_extension *extensions;
    xla_version version;
    const void *internal;
    void *(*create_error)(xla_new_error *);
} xla_api;
enum {
    XLA_INVALID_ARGUMENT = 3,
    XLA_OUT_OF_MEMORY = 8,
    XLA_METADATA = 1,
    XLA_BUFFER = 1,
    XLA_SCALAR = 3,
    XLA_EXECUTE = 3
};

typedef struct xla_buffer {
    size_t size;
    xla_extension *extensions;
    int dtype;
    void *data;
    int64_t rank;
    int64_t *dims;
} xla_buffer;
typedef struct xla_list {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *types;
    void **items;
} xla_list;
typedef struct xla_text {
    const char *at;
    size_t length;
} xla_text;
typedef struct xla_attributes {
    size_t size;
    xla_extension *extensions;
    int64_t count;
    int *types;
    xla_text **names;
    void **items;
} xla_attributes;
typedef struct xla_scalar {
    int dtype;
    void *value;
} xla_scalar;
struct xla_frame {
    size_t size;
    xla_extension *extensions;
    const xla_api *api;
    void *context;
    int stage;
    xla_list arguments, results;
    xla_attributes attributes;
};
enum { XLA_S32 = 4, XLA_S64 = 5, XLA_U32 = 8, XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_BF16 = 16 };

static inline int has_api(const xla_frame *f) { return f->api && f->api->size >= sizeof *f->api; }

static inline void *failure(const xla_frame *f, int code, const char *message) {
    xla_new_error error = {sizeof error, NULL, message, code};
    return f->api->create_error(&error);
}

static inline void *failed_with(const xla_frame *f, csm_status status) {
    if (status == CSM_OK) return NULL;
    char text[160];
    snprintf(text, sizeof text, "csoftmax: %s", csm_status_text(status));
    return failure(f, status == CSM_NO_MEMORY ? XLA_OUT_OF_MEMORY : XLA_INVALID_ARGUMENT, text);
}

/* Answers XLA's query for the version of the interface, and returns whether the frame is one.  XLA expects its own
 * version, which it passes since minor version 2; the sizes show whether the layout is the one declared here. */
static inline int answer_query(const xla_frame *f) {
    if (f->size < offsetof(xla_frame, context)) return 0;
    for (xla_extension *e = f->extensions; e; e = e->next) {
        if (e->size < sizeof(xla_metadata_extension) || e->type != XLA_METADATA) continue;
        xla_metadata *metadata = ((xla_metadata_extension *)e)->metadata;
        if (metadata->size < offsetof(xla_metadata, traits)) return 0;
        metadata->version.major = 0;
        metadata->version.minor = has_api(f) ? f->api->version.minor : 1;
        return 1;
    }
    return 0;
}

/* Whether the frame asks for a computation; otherwise the target returns *answer. */
static inline int is_execution(const xla_frame *f, void **answer) {
    *answer = NULL;
    if (answer_query(f)) return 0;
    if (f->size < sizeof *f || f->api->version.major != 0 || f->arguments.size < sizeof f->arguments ||
        f->results.size < sizeof f->results || f->attributes.size < sizeof f->attributes) {
        /* the constructor of errors has had the same place since the first version */
        *answer =
            failure(f, XLA_INVALID_ARGUMENT, "csoftmax: this version of XLA has another foreign function interface");
        return 0;
    }
    return f->stage == XLA_EXECUTE;
}

static inline const xla_buffer *buffer_of(const xla_list *list, int64_t i) {
    if (i >= list->count || list->types[i] != XLA_BUFFER) return NULL;
    const xla_buffer *b = list->items[i];
    return b->size >= sizeof *b ? b : NULL;
}

static inline const void *attribute(const xla_frame *f, const char *name, int dtype) {
    for (int64_t i = 0; i < f->attributes.count; i++) {
        const xla_text *text = f->attributes.names[i];
        const xla_scalar *scalar = f->attributes.items[i];
        if (f->attributes.types[i] == XLA_SCALAR && text->length == strlen(name) &&
            memcmp(text->at, name, text->length) == 0 && scalar->dtype == dtype)
            return scalar->value;
    }
    return NULL;
}
static inline void read_real(const xla_frame *f, const char *name, double *value) {
    const double *given = attribute(f, name, XLA_F64);
    if (given) *value = *given;
}
static inline int threads(const xla_frame *f) {
    const int64_t *value = attribute(f, "threads", XLA_S64);
    return value && *value > 0 && *value < INT32_MAX ? (int)*value : 1;
}

static inline int dtype_of(int kind, csm_dtype *dtype) {
    switch (kind) {
    case XLA_F16: *dtype = CSM_DTYPE_f16; return 1;
    case XLA_BF16: *dtype = CSM_DTYPE_bf16; return 1;
    case XLA_F32: *dtype = CSM_DTYPE_f32; return 1;
    case XLA_F64: *dtype = CSM_DTYPE_f64; return 1;
    default: return 0;
    }
}
static inline size_t itemsize_of(int kind) {
    return kind == XLA_F64 ? 8 : kind == XLA_F32 || kind == XLA_S32 || kind == XLA_U32 ? 4 : 2;
}

/* The first argument, x, as rows. */
typedef struct matrix {
    int kind; /* XLA's code of the dtype */
    csm_dtype dtype;
    csm_shape shape;
    csm_view x;
} matrix;
static inline int matrix_of(const xla_frame *f, matrix *m) {
    const xla_buffer *x = buffer_of(&f->arguments, 0);
    if (!x || x->rank < 1 || !dtype_of(x->dtype, &m->dtype)) return 0;
    m->kind = x->dtype;
    m->shape.n = (size_t)x->dims[x->rank - 1];
    m->shape.ndim = 1;
    m->shape.shape[0] = 1;
    for (int64_t i = 0; i < x->rank - 1; i++) m->shape.shape[0] *= (size_t)x->dims[i];
    m->x = csm_contiguous(&m->shape, m->shape.n, x->data, itemsize_of(m->kind));
    return 1;
}
/* Views the buffer as n elements of the dtype `kind` for each of x's rows; returns 0 if it is not that. */
static inline int view_of(const matrix *m, const xla_buffer *b, int kind, size_t n, csm_view *view) {
    if (!b || b->dtype != kind) return 0;
    size_t count = 1;
    for (int64_t i = 0; i < b->rank; i++) count *= (size_t)b->dims[i];
    if (count != m->shape.shape[0] * n) return 0;
    *view = csm_contiguous(&m->shape, n, b->data, itemsize_of(kind));
    return 1;
}
/* Numbers of the rows, as doubles: in the buffer itself, or in `memory`, to be freed, where that has floats. */
typedef struct row_numbers {
    const xla_buffer *buffer;
    double *memory;
    csm_view view;
} row_numbers;
/* Reads n numbers for each row.  Returns 0 if the buffer has other elements; without memory `view` has no data. */
static inline int row_numbers_of(const matrix *m, const xla_buffer *b, size_t n, row_numbers *numbers) {
    *numbers = (row_numbers){.buffer = b};
    if (view_of(m, b, XLA_F64, n, &numbers->view)) return 1;
    if (!view_of(m, b, XLA_F32, n, &numbers->view)) return 0;
    const size_t count = m->shape.shape[0] * n;
    numbers->memory = malloc((count | 1) * sizeof(double));
    for (size_t i = 0; numbers->memory && i < count; i++) numbers->memory[i] = (double)((const float *)b->data)[i];
    numbers->view = csm_contiguous(&m->shape, n, numbers->memory, sizeof(double));
    return 1;
}
static inline void *wrong(const xla_frame *f) {
    return failure(f, XLA_INVALID_ARGUMENT,
                   "csoftmax: the arguments have other shapes or dtypes than those that csoftmax.jax passes");
}

/* Losses of rows in float64, as the core writes them, for a result of float64 or float32; NULL without memory. */
static inline double *begin_losses(const csm_view *loss, int wide, size_t rows) {
    return wide ? loss->data : malloc((rows | 1) * sizeof(double));
}
static inline void end_losses(const csm_view *loss, int wide, double *each, size_t rows, csm_status status) {
    if (wide) return;
    for (size_t i = 0; status == CSM_OK && i < rows; i++) ((float *)loss->data)[i] = (float)each[i];
    free(each);
}

#endif
