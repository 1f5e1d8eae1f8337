/* The kernel of rankings: places of elements by counting. */
#ifndef CSM_RANKINGS_JOB_H
#define CSM_RANKINGS_JOB_H

#include "../../vec/standard.h"

enum { CSM_RANKING_COUNTED = 64, CSM_RANKING_LANES = 8 }; /* longest list that is counted; padding of its keys */

typedef struct csm_ranking_kernels {
    /* place[i]: the number of elements before i in falling order, equal ones in their order.  n is at most
     * CSM_RANKING_COUNTED; keys have room for whole groups of lanes and are not NaN.  Returns the number of pairs of
     * equal keys. */
    size_t (*places)(double *key, size_t n, int64_t *place);
} csm_ranking_kernels;

#endif
