/* One list of a ranking in its order: elements, groups of ties, and the terms of the loss. */
#ifndef CSM_OPS_RANKINGS_H
#define CSM_OPS_RANKINGS_H

#include "subsets.h"

#include "../math/pair.h"

/* Elements of a list in falling order of relevance, their numbers and results.  A group is a run of tied elements. */
typedef struct ranking_list {
    const csm_table *table;
    csm_ranking_ties ties;
    csm_poll poll;
    int is_stopped;          /* the call is interrupted: there are no results */
    int is_wide;             /* the x are too far apart for e: p and power are used */
    size_t n;
    size_t groups, factors;  /* factors: groups that start before place `top`; those behind contribute none */
    const size_t *begin;     /* of each group, and n; NULL: every element is a group of its own */
    const unsigned char *observed; /* NULL: all are */
    const double *x;         /* x / T, or (x - max) / T */
    const double *e;         /* e^(x - max) */
    const double *p, *power; /* e^x = p 2^power */
    double *others, *weight; /* scratch: two numbers for each element */
    double *grad;            /* result: by x / T */
    double loss;             /* result */
} ranking_list;

/* Losses and gradients by the two kinds of numbers. */
void csm_ranking_terms(ranking_list *);
void csm_ranking_terms_wide(ranking_list *);
/* The same for ties that are sums over subsets; `scratch` has room for csm_ranking_exact_scratch numbers.  Returns 0 if
 * the call has been interrupted. */
size_t csm_ranking_exact_scratch(const ranking_list *);
int csm_ranking_exact(ranking_list *, double *scratch);

/* In loops over the elements of a long list. */
static inline int ranking_list_stops(ranking_list *list, size_t i) {
    return list->is_stopped |= csm_poll_at(&list->poll, i);
}
static inline int ranking_is_observed(const ranking_list *list, size_t i) {
    return !list->observed || list->observed[i];
}
static inline size_t ranking_begin(const ranking_list *list, size_t group) {
    return list->begin ? list->begin[group] : group;
}

#endif
