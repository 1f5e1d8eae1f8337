/* The kernels of drawing, one compute type: loops over the logits and the masses of a block. */
#ifndef CSM_SAMPLE_JOB_H
#define CSM_SAMPLE_JOB_H

#include "../../vec/standard.h"

typedef struct csm_sample_kernels {
    /* Replaces the numbers outside [low, high] by -inf; returns whether one is left. */
    int (*keep)(void *x, size_t k, double low, double high);
    /* The same, and lists first + i for those that lie within [outer[0], outer[1]] but outside [inner[0], inner[1]];
     * *listed: their number, to which that of this block is added.  The list has room for k more. */
    int (*divide)(void *x, size_t k, const double *outer, const double *inner, uint32_t first, uint32_t *list,
                  size_t *listed);
    /* Replaces masses below `least` by 0 and returns the sum of the others, which must be free of rounding. */
    double (*filter)(void *mass, size_t k, double least);
    /* The sum of m_i (x_i - origin) over the finite logits. */
    double (*moment)(const void *x, const void *mass, size_t k, double origin);
    /* The sum of d_i^power, d_i = (x_i / 2 - number[0]) number[1] - number[2], over the finite logits; *count: their
     * number.  power: 1 or 2. */
    double (*spread)(const void *x, size_t k, const double *number, int power, double *count);
} csm_sample_kernels;

#endif
