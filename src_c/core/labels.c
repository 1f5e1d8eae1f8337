#include "labels.h"

#include "layout.h"

#include <string.h>

/* Reads a label, sign-extended to 64 bits; returns whether it is negative. */
static int read_label(const char *p, csm_label_type type, uint64_t *bits) {
#define READ(TYPE)               \
    do {                         \
        TYPE v;                  \
        memcpy(&v, p, sizeof v); \
        *bits = (uint64_t)v;     \
        return v < 0;            \
    } while (0)
#define READ_UNSIGNED(TYPE)      \
    do {                         \
        TYPE v;                  \
        memcpy(&v, p, sizeof v); \
        *bits = (uint64_t)v;     \
        return 0;                \
    } while (0)
    switch (type) {
    case CSM_INT8: READ(int8_t);
    case CSM_INT16: READ(int16_t);
    case CSM_INT32: READ(int32_t);
    case CSM_INT64: READ(int64_t);
    case CSM_UINT8: READ_UNSIGNED(uint8_t);
    case CSM_UINT16: READ_UNSIGNED(uint16_t);
    case CSM_UINT32: READ_UNSIGNED(uint32_t);
    case CSM_UINT64: READ_UNSIGNED(uint64_t);
    }
#undef READ
#undef READ_UNSIGNED
    *bits = UINT64_MAX;
    return 1;
}

csm_status csm_read_labels(const csm_shape *shape, csm_loss_options *o, size_t rows, int64_t *labels) {
    const int is_flat = shape->ndim == 1; /* then no label needs a division */
    for (size_t i = 0; i < rows; i++) {
        uint64_t bits;
        ptrdiff_t at = is_flat ? (ptrdiff_t)i * o->labels->strides[0] : csm_offset(shape, o->labels->strides, i);
        int is_negative = read_label((const char *)o->labels->data + at, o->label_type, &bits);
        if (o->has_ignore && bits == o->ignore) {
            labels[i] = -1;
        } else if (is_negative || bits >= shape->n) {
            o->position = i;
            return CSM_BAD_LABEL;
        } else {
            labels[i] = (int64_t)bits;
        }
    }
    return CSM_OK;
}
