/* The kernels of drawing, one compute type: loops over the logits and the masses of a block. */
#ifndef CSM_SAMPLE_JOB_H
#define CSM_SAMPLE_JOB_H

#include "../../vec/standard.h"

enum { CSM_SAMPLE_SPARE = 4 };

/* What lies in an inner interval [0], and in an outer one [1]: masses, as pairs of numbers, and numbers of logits. */
typedef struct csm_sample_part {
    double sum[2], low[2];
    size_t count[2];
} csm_sample_part;

/* Intervals are pairs of numbers of the compute type, ends included, and hold no -inf. */
typedef struct csm_sample_kernels {
    /* Replaces the numbers outside [low, high] by -inf; returns whether one is left. */
    int (*keep)(void *x, size_t k, double low, double high);
    /* Adds up the masses, and counts the logits, in two intervals of which the outer one contains the inner one, and
     * lists the places of those that are only in the outer one.  mass NULL: sums are 0; list NULL: nothing is listed.
     * The list has room for all of them, and for CSM_SAMPLE_SPARE more. */
    void (*divide)(const void *x, const void *mass, size_t k, const double *inner, const double *outer, uint32_t *list,
                   csm_sample_part *part);
    /* Multiplies masses by a power of two that is a normal number of the compute type, or by 0; returns whether one of
     * them is left. */
    int (*scale)(void *mass, size_t k, double scale);
    /* Replaces masses below `least` by 0 and returns the sum of the others, which must be free of rounding. */
    double (*filter)(void *mass, size_t k, double least);
    /* The sum of m_i (x_i number[1] - number[0]) over the logits in an interval; *total: that of m_i. */
    double (*moment)(const void *x, const void *mass, size_t k, const double *interval, const double *number,
                     double *total);
    /* The sum of d_i^power, d_i = (x_i number[1] - number[0]) - number[2], over the logits in an interval; *count:
     * their number.  power: 1 or 2; number[1] a power of two. */
    double (*spread)(const void *x, size_t k, const double *interval, const double *number, int power, double *count);
    /* The smallest and the largest logit in an interval whose mass is at least `least` (mass NULL: of all); inf and
     * -inf if there is none. */
    void (*ends)(const void *x, const void *mass, size_t k, const double *interval, double least, double *to);
} csm_sample_kernels;

#endif
