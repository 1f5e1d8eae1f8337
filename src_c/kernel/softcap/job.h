/* The soft cap of logits, c tanh(x / c): its constants, and the table of its kernels. */
#ifndef CSM_SOFTCAP_JOB_H
#define CSM_SOFTCAP_JOB_H

#include "../../math/temperature.h"

/* The caps for which the constants are in the range of float. */
#define CSM_SOFTCAP_LEAST 1e-30
#define CSM_SOFTCAP_LARGEST 1e30

typedef struct csm_softcap {
    double cap, per_cap;
    csm_temperature half; /* of exp(-|x| / (c / 2)) */
} csm_softcap;

typedef struct csm_softcap_kernels {
    /* y = c tanh(x / c), and slope, unless it is NULL, its derivative; y and slope have the compute type.  Returns the
     * largest finite |x| that is not small beside c, or 0. */
    double (*cap)(const void *x, void *y, void *slope, size_t k, const csm_softcap *);
    /* y = g slope; g and slope have the compute type, y the storage type.  y may be g. */
    void (*uncap)(const void *g, const void *slope, void *y, size_t k);
} csm_softcap_kernels;

#endif
