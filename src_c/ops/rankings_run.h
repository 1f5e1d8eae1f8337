/* A call of the Plackett-Luce loss, and the list of it that a thread computes. */
#ifndef CSM_OPS_RANKINGS_RUN_H
#define CSM_OPS_RANKINGS_RUN_H

#include "rankings.h"

#include "../core/call.h"

enum { RANKING_NUMBERS, RANKING_PLACES, RANKING_BATCH, RANKING_EXACT, RANKING_BUFFERS };

typedef struct ranking_job {
    const csm_ranking_call *call;
    csm_call base; /* dtype, table, threads, interrupt */
    double divisor;
    csm_scratch scratch;
} ranking_job;

/* A list that waits until all lanes are taken. */
typedef struct ranking_lane {
    csm_ranking_order order;
    int64_t
        element[CSM_RANKING_COUNTED]; /* its members, if only they are in `order`, which has all elements otherwise */
    size_t list;
    int is_gathered, has_flags;
} ranking_lane;
typedef struct ranking_batch {
    csm_ranking_lanes lanes;
    ranking_lane lane[CSM_RANKING_LANES];
    size_t used;
} ranking_batch;

/* A list while it is computed: arrays of its members, in the order of the call or sorted. */
typedef struct ranking_run {
    ranking_job *job;
    ranking_batch *batch;
    csm_poll poll;
    int thread, is_stopped; /* is_stopped: the call is interrupted */
    size_t list, first, length; /* its elements */
    double sample_weight, factor, temperature; /* factor: of its gradient */
    size_t n;                   /* its members: elements with a relevance */
    double *key, *sorted_key, *x, *e, *p, *power, *others, *weight, *grad;
    float *narrow; /* storage in the compute type */
    int64_t *member, *order, *beside; /* elements in their order; those of `order` in falling order */
    size_t *begin;
    unsigned char *observed;
    int has_ties, has_absent; /* has_absent: an x is -inf */
} ranking_run;

/* Whether 1 / T, which gradients are multiplied by, is neither infinite nor subnormal. */
static inline int ranking_has_inverse(const ranking_run *run) {
    return run->temperature >= 0x1p-1000 && run->temperature <= 0x1p1000;
}
/* In loops over the elements of a long list. */
static inline int ranking_stops(ranking_run *run, size_t i) { return run->is_stopped |= csm_poll_at(&run->poll, i); }
/* Sorts the places of keys in falling order, equal ones in their order. */
void csm_ranking_merge(ranking_run *);
/* Writes the gradient of the list times a factor; grad NULL: the factor for every member. */
void csm_ranking_write(ranking_run *, const double *grad, double factor);
/* Loss and gradient of the members in their order. */
csm_status csm_ranking_alone(ranking_run *);

static inline double ranking_relevance(const csm_ranking_call *c, size_t i) {
    return c->relevance ? c->relevance[i] : (double)c->relevance_single[i];
}
static inline int ranking_counts(const csm_ranking_call *c, size_t i) { return !c->observed || c->observed[i]; }

#endif
