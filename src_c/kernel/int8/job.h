/* The arguments of the kernels of int8 output layers, and the table of the kernels. */
#ifndef CSM_INT8_JOB_H
#define CSM_INT8_JOB_H

#include "../../vec/standard.h"

enum {
    CSM_INT8_GROUP = 16,  /* classes whose codes lie together: the lanes of a vector are classes */
    CSM_INT8_VECTORS = 4, /* codes of features that one pass over a group multiplies */
    CSM_INT8_LIMIT = 63,  /* of the codes of features; that of the codes of weights is 127 */
    CSM_INT8_SECOND = 126, /* a second limb of features counts 1 / 126 of the first one */
    CSM_INT8_WEIGHT_SECOND = 254, /* the same for weights */
    CSM_INT8_DIMS = 1 << 18, /* most features: 127 * 63 * 2^18 < 2^31 */
    CSM_INT8_SUMS = 8, /* pairs of coarse products that 16 bits hold */
    CSM_INT8_NARROW_LIMIT = 31, /* of the codes of features that are multiplied by 6 bits */
    CSM_INT8_NIBBLE_LIMIT = 127, /* the same for 4 bits */
    CSM_INT8_COARSE_DIMS = 1 << 16 /* most features for both */
};

/* How a query turns integers into scores and bounds, and which scores it keeps. */
typedef struct csm_int8_query {
    float factor;    /* score = integer * (scale[class] * factor) + bias */
    float residual;  /* bound = residual[class] * this ... */
    float norm;      /* ... + norm[class] * this ... */
    float below;     /* classes whose score + bound is at most this are dropped: the float below the threshold */
    int limbs;       /* 1: the integer is q a, 2: 126 q a + q a2 */
    int is_wide;     /* the integer may exceed 31 bits */
    size_t vector;   /* of its products */
} csm_int8_query;

/* The numbers of the classes of a group. */
typedef struct csm_int8_group {
    const float *scale, *residual, *norm, *bias;
} csm_int8_group;

/* How a query turns coarse integers into upper bounds, in single precision. */
typedef struct csm_int8_filter {
    float factor, constant; /* score = (integer * factor + constant) * scale[class] + bias */
    float residual;  /* bound = residual[class] * this ... */
    float norm;      /* ... + norm[class] * this.  Of four bits all is
                        (integer * factor + gap[group] * constant + reach[group] * norm) * scale[class] + bias */
    float below;     /* as above */
} csm_int8_filter;

/* A scan of the leading four bits by one query. */
typedef struct csm_int8_scan {
    const uint8_t *nibbles;
    const float *scale, *bias; /* of classes; bias NULL: 0 */
    const float *gap, *reach;  /* of groups */
    size_t lines, groups, ahead; /* ahead: groups between one and that which is prefetched */
    const int8_t *x; /* four dimensions, then 12 bytes that are not read */
    int32_t offset;
    csm_int8_filter filter;
} csm_int8_scan;

typedef struct csm_int8_kernels {
    /* out[v][class] = sum of q x over the group's codes, for v < vectors.  x: blocks of CSM_INT8_VECTORS vectors, of
     * which four dimensions lie together.  offset[v]: -128 times the sum of the codes of vector v.  The second one
     * needs CSM_CPU_VNNI and is NULL where there is no such instruction. */
    void (*dots)(const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors, const int32_t *offset,
                 int32_t *out);
    void (*dots_vnni)(const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors, const int32_t *offset,
                      int32_t *out);
    /* For each query, a bit for each class of the group that may reach the threshold. */
    void (*reach)(const csm_int8_query *, size_t count, const csm_int8_group *, const int32_t *dots, uint16_t *kept);
    /* Lower and upper bounds of the scores of one query. */
    void (*bounds)(const csm_int8_query *, const csm_int8_group *, const int32_t *dots, float *lower, float *upper);
    /* the product in double, in 8 lanes */
    double (*exact)(const double *w, const double *x, size_t n);
    /* Codes of a group without their last two bits; and their products, as `dots` has them. */
    void (*narrow)(const uint8_t *codes, size_t steps, uint8_t *to);
    void (*narrow_dots)(const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors, const int32_t *offset,
                        int32_t *out);
    /* For each query, a bit for each class of the group whose upper bound from coarse integers exceeds `below`. */
    void (*test)(const csm_int8_filter *, size_t count, const csm_int8_group *, const int32_t *dots, uint16_t *reached);
    /* The leading four bits of the codes of a group, and for each class the sum of the squares of twice what they leave
     * out, relative to their middle; the last step counts twice if the number of steps is odd. */
    void (*nibbles)(const uint8_t *codes, size_t steps, uint8_t *to, uint32_t *left);
    /* Products of the leading four bits with one vector, `lines` of 64 bytes for eight dimensions each. */
    void (*nibble_dots)(const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset, int32_t *out);
    /* Upper bounds of the classes of `count` groups from their leading four bits, and a bit for each class whose bound
     * exceeds `below`. */
    void (*nibble_scan)(const csm_int8_scan *, size_t begin, size_t count, float *upper, uint16_t *reached);
} csm_int8_kernels;

#endif
