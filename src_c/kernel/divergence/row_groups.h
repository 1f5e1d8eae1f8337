/* The scalar computations of row.h for as many rows of floats as a vector has lanes, in double: a loop over rows, which
 * compilers vectorise.  Each row has the bits that it has on its own. */
#ifndef CSM_DIVERGENCE_ROW_GROUPS_H
#define CSM_DIVERGENCE_ROW_GROUPS_H

#include "../cross_entropy/row_groups.h"
#include "row.h"

/* The constants of a group of rows, from their tails. */
typedef struct csm_kl_group {
    double offset[v32_W], ratio[v32_W], total[v32_W];
} csm_kl_group;
static NOINLINE void csm_kl_find_group(const csm_tails *x, const csm_tails *y, csm_kl_group *g) {
    SIMD
    for (int r = 0; r < v32_W; r++) {
        const double total_x = fma(x->count[r], x->top[r], x->sum[r]);
        const double total_y = fma(y->count[r], y->top[r], y->sum[r]);
        g->offset[r] = y->tail[r] - x->tail[r];
        g->ratio[r] = total_x / total_y;
        g->total[r] = total_x;
    }
}

#endif
