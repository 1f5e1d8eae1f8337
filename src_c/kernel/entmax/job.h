/* The arguments of the kernels of alpha-entmax, and the table of the kernels. */
#ifndef CSM_ENTMAX_JOB_H
#define CSM_ENTMAX_JOB_H

#include "../../vec/standard.h"
#include "../poll.h"

/* See solve.h. */
typedef enum csm_entmax_kind { CSM_SPARSEMAX, CSM_ENTMAX15, CSM_ENTMAX_ANY } csm_entmax_kind;
typedef struct csm_entmax {
    csm_entmax_kind kind;
    int single; /* the result is float or shorter: pairs only near alpha = 1 */
    double alpha, scale, p, p_low; /* scale = alpha - 1, p = 1 / scale as a pair */
} csm_entmax;
/* Whether powers in double are precise enough: not for large alpha, where a power of p has alpha times its error. */
INLINE int csm_entmax_is_cheap(const csm_entmax *e) { return e->single && e->alpha <= 8; }
/* The filter's bound, max - 1 / a, less the rounding of the quotient: one more survivor changes no result, one less may
 * have a probability of 1e-17. */
INLINE double csm_entmax_bound(const csm_entmax *e, double max) { return max - 0x1.0000000000002p0 / e->scale; }
/* Scratch and result of a row: the survivors of the filter (arrays of `capacity` elements, a multiple of 8), then the
 * support in the order of its indices: probabilities p and u = p^scale, whose low parts are in z and z_low if has_low.
 * c = 1 + t + t_low. */
typedef struct csm_support {
    double *z, *z_low, *p, *u;
    size_t *index;
    size_t capacity, count;
    double max, t, t_low;
    int is_nan, has_low;
    csm_poll poll;
    int is_stopped; /* the call has been interrupted: nothing above is valid */
} csm_support;
/* For loops of single elements: asks at the end of each step.  For loops of steps: asks if one has been done. */
static inline int csm_support_stops(csm_support *s, size_t i) {
    if (!csm_poll_at(&s->poll, i)) return 0;
    s->is_stopped = 1;
    return 1;
}
static inline int csm_support_stops_after(csm_support *s, size_t done) {
    if (!(done > 0 && csm_poll_stops(&s->poll, CSM_POLL_STEP))) return 0;
    s->is_stopped = 1;
    return 1;
}
typedef struct csm_entmax_kernels {
    /* Returns the number of survivors of the filter; if more than s->capacity, nothing is computed. */
    size_t (*support)(const void *x, size_t n, const csm_entmax *, csm_support *s);
    /* Writes the support times factor, and 0 elsewhere. */
    void (*spread)(csm_support *, double factor, void *y, size_t n);
    /* dx may be dy or y.  The polled call may be interrupted, with dx partly written. */
    void (*vjp)(const void *dy, const void *y, void *dx, size_t n, const csm_entmax *, const csm_poll *);
} csm_entmax_kernels;

#endif
