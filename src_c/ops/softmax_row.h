/* One row of the softmax family, of any length, layout and content. */
#ifndef CSM_OPS_SOFTMAX_ROW_H
#define CSM_OPS_SOFTMAX_ROW_H

#include "../core/extension.h"
#include "shard.h"

typedef struct csm_softmax_call {
    csm_call base;
    csm_op op;
    const csm_kernels *kernels;      /* of op and dtype */
    const csm_kernels *wide_kernels; /* of op and the compute dtype, for transformed rows */
    csm_view input;                  /* x; for a gradient dy */
    csm_view y;                      /* for a gradient: the result of the forward function */
    csm_view result;
    csm_view temperatures;           /* a double for each row, if has_temperatures */
    csm_view order;                  /* of a shard: offsets are the rows' indices in C order */
    const csm_shard *shard;          /* the call is of a shard of the classes, or NULL */
    int has_temperatures;
    uint64_t masked, nan;            /* storage bits of a masked element in the result, and of NaN */
    int is_gradient, keeps_axis; /* keeps_axis: the result has the softmax axis */
    char *given_scratch;         /* the caller's, or NULL */
    size_t given_size;           /* bytes of it for each thread */
} csm_softmax_call;

/* Whether a gradient is computed in double because of its temperature. */
static inline int csm_is_in_double(const csm_softmax_call *c) {
    return c->is_gradient && csm_is_single(&c->base) && csm_exceeds_float(&c->base.scales);
}

/* Whether the kernels of many rows know the call's temperature. */
static inline int csm_is_for_kernels(const csm_softmax_call *c) {
    if (c->is_gradient) return !csm_is_in_double(c) && c->base.scales.lift == 1;
    return !c->base.scales.always_transform;
}
/* Checks a temperature: gradients exclude the limits. */
static inline int csm_is_temperature(const csm_softmax_call *c, double t) {
    return t >= 0 && !(c->is_gradient && (t == 0 || !(t < CSM_INF)));
}
/* Gives a call the temperature of one of its rows. */
static inline void csm_take_temperature(csm_softmax_call *c, double t) {
    if (t != c->base.scales.temperature) csm_set_scales(&c->base.scales, t, csm_is_single(&c->base));
}

/* The two parts of the beginning of a call: what options and types say, with a check of the temperature; and, once the
 * views are there, fillers and the interrupt. */
csm_status csm_begin_softmax(csm_softmax_call *, csm_op, csm_dtype, const csm_table *, const csm_options *);
void csm_finish_softmax(csm_softmax_call *, const csm_options *, const csm_fp_environment *caller);
/* Rows of a tile of the call's n classes. */
size_t csm_tile_width(const csm_softmax_call *);

/* The location of a row in memory. */
typedef struct csm_row_place {
    csm_strided input, y, where; /* `row` is not used; where.data NULL: all elements take part */
    char *result;
    ptrdiff_t result_axis;
    int is_gathered; /* the mask has been applied already */
    size_t index;    /* of a shard: the row, in C order */
} csm_row_place;

typedef struct csm_row_scratch {
    char *raw_input, *raw_y, *wide; /* CSM_BLOCK elements each */
    csm_block *blocks;              /* one for each block of the row */
} csm_row_scratch;
size_t csm_row_scratch_size(size_t n);
csm_row_scratch csm_row_scratch_at(char *memory, size_t n);

/* Whether a row of a masked call is NaN: then its masked elements still need their value.  The kernels make all of such
 * a row NaN, so that the first element tells. */
static inline int csm_is_masked_nan(const csm_softmax_call *c, const char *result) {
    uint64_t first = 0;
    if (!c->base.has_where || !c->keeps_axis || c->is_gradient) return 0;
    if (c->base.itemsize == 8) memcpy(&first, result, 8);
    else if (c->base.itemsize == 4) memcpy(&first, result, 4);
    else memcpy(&first, result, 2);
    return first == c->nan;
}

/* Computes a row in the calling thread. */
void csm_run_row(const csm_softmax_call *, const csm_row_place *, const csm_row_scratch *);
/* Does the same with the blocks of the row distributed over threads.  each: the scratch of every thread; the first
 * supplies the blocks. */
csm_status csm_run_split_row(csm_softmax_call *, const csm_row_place *, const csm_row_scratch *each);

#endif
