/* The kernels of rankings: places of elements by counting, terms of a long list, and short lists side by side. */
#ifndef CSM_RANKINGS_JOB_H
#define CSM_RANKINGS_JOB_H

#include "../../math/scalars.h"
#include "../poll.h"

/* Longest list that is counted, and computed beside others; room behind arrays; lists side by side. */
enum { CSM_RANKING_COUNTED = 64, CSM_RANKING_PAD = 16, CSM_RANKING_LANES = 8 };
#define RANKING_LARGEST 0x1p45 /* beyond it, x are taken relative to a neighbour */
#define RANKING_LEAST 0x1p-200 /* least e^(x - max) of lists side by side */

/* Whether x / T is not rounded. */
static inline int ranking_is_power(double temperature) {
    return (csm_double_bits(temperature) & 0xfffffffffffffu) == 0;
}

typedef struct csm_ranking_order {
    /* Times CSM_RANKING_LANES: places, equal ones in their order, and numbers of larger members; for NaN, both are the
     * number of members. */
    int32_t row[CSM_RANKING_COUNTED + CSM_RANKING_PAD], group[CSM_RANKING_COUNTED + CSM_RANKING_PAD];
    int has_ties;
} csm_ranking_order;

/* Up to CSM_RANKING_LANES lists: number l of a row is of list l.  Ties are those of "breslow". */
typedef struct csm_ranking_lanes {
    size_t rows; /* of the longest list */
    double *e;   /* x in falling order, -inf behind the end of a list; becomes e^((x - max) / T) */
    double *counts, *tied; /* with flags: 1 for elements that contribute a factor; for those tied with the one before */
    double *inverse, *before; /* scratch */
    double *grad; /* scratch; result if has_grad, times factor */
    double temperature[CSM_RANKING_LANES], factor[CSM_RANKING_LANES];
    double count[CSM_RANKING_LANES]; /* of elements */
    double loss[CSM_RANKING_LANES]; /* result; NaN if the scores are not finite, too large, or too far apart */
    int has_grad, has_flags; /* no flags: all count, none is tied */
} csm_ranking_lanes;

typedef struct csm_ranking_kernels {
    /* Finds the places of n relevances, at most CSM_RANKING_COUNTED floats or doubles.  Returns the number of members,
     * which are not NaN, or SIZE_MAX if floats do not hold the relevances. */
    size_t (*places)(const void *relevance, int is_single, size_t n, csm_ranking_order *);
    /* Loss and gradient of n elements in falling order, all observed and without ties: e > 0, with room for
     * CSM_RANKING_PAD more in each array; `sum` and `inverse` are scratch.  Returns 0 if the call is interrupted. */
    int (*terms)(const csm_poll *, double *e, size_t n, double *sum, double *inverse, double *grad, double *loss);
    void (*side_by_side)(csm_ranking_lanes *); /* loss and gradient of the lists of all lanes */
} csm_ranking_kernels;

#endif
