/* The kernels of rankings: places of elements by counting, and the terms of lists without ties. */
#ifndef CSM_RANKINGS_JOB_H
#define CSM_RANKINGS_JOB_H

#include "../../vec/standard.h"

enum { CSM_RANKING_COUNTED = 64, CSM_RANKING_PAD = 16 }; /* longest list that is counted; room behind arrays */

typedef struct csm_ranking_kernels {
    /* place[i]: the number of elements before i in falling order, equal ones in their order.  n is at most
     * CSM_RANKING_COUNTED; keys have room for CSM_RANKING_PAD more and are not NaN. */
    void (*places)(float *key, size_t n, float *place);
    /* Loss and gradient of n elements in falling order, all observed and without ties: e > 0, with room for
     * CSM_RANKING_PAD more in each array; `sum` and `inverse` are scratch. */
    double (*terms)(double *e, size_t n, double *sum, double *inverse, double *grad);
} csm_ranking_kernels;

#endif
