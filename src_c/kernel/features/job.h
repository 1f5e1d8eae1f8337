/* What the kernels of sparse features get: the weights of (attribute, label) pairs, and the attributes of tokens. */
#ifndef CSM_KERNEL_FEATURES_JOB_H
#define CSM_KERNEL_FEATURES_JOB_H

#include "../../vec/standard.h"
#include "../poll.h"

enum {
    CSM_FEATURE_LANES = 8, /* dense rows are padded to a multiple of this, on every instruction set */
    CSM_FEATURE_CHUNK = 64 /* attributes of a token that are added together */
};

/* Weights packed by attribute: those of attribute a are weight[offsets[a]] to weight[offsets[a + 1]], of label[i].  An
 * attribute with many labels also has a row of `width` doubles, 0 for labels without a weight. */
typedef struct csm_pairs {
    size_t labels, width; /* L, and L rounded up to CSM_FEATURE_LANES */
    const int64_t *offsets;
    const uint16_t *label;
    double *weight;     /* of the gradient: the result */
    const int32_t *row; /* of an attribute in `rows`; -1: it has none */
    double *rows;
} csm_pairs;

/* A sparse matrix in compressed form: the entries of line i are index[begin[i]] to index[begin[i + 1]]. */
typedef struct csm_entries {
    const int64_t *begin;
    const int32_t *index;
    const float *value; /* NULL: every value is 1 */
} csm_entries;

typedef struct csm_feature_kernels {
    /* Scores of the tokens `first` to `last`, for entries by token; scratch: width doubles. */
    int (*emissions)(const csm_pairs *, const csm_entries *, size_t first, size_t last, double *emissions,
                     double *scratch, const csm_poll *);
    /* Sums over tokens for the pairs of the attributes `first` to `last`, for entries by attribute. */
    int (*gradient)(const csm_pairs *, const csm_entries *, size_t first, size_t last, const double *grad,
                    double *scratch, const csm_poll *);
} csm_feature_kernels;

#endif
