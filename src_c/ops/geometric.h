/* What the drivers of g-softmax share: one row's support, the factor of its similarities, and its weights. */
#ifndef CSM_OPS_GEOMETRIC_H
#define CSM_OPS_GEOMETRIC_H

#include "../core/extension.h"
#include "../core/memory.h"
#include "../core/parallel.h"

typedef struct geometric_row {
    const csm_geometric *call;
    const csm_geometric_kernels *kernels;
    csm_poll poll;
    double ridge; /* added to the diagonal of K */
    size_t n;                       /* classes of the support */
    size_t *support;                /* their numbers, in the order of the factor */
    double *factor;                 /* lower triangle L, packed by rows: K = L L' on the support */
    double *u, *product;            /* of all groups of classes: e^(x / 2), and K w; the length of a row of K */
    double *w, *z, *forward, *rest; /* of the support: weights, solutions, L^-1 u, scratch */
    double *x, *power;              /* of all groups: logits, halves of them */
    size_t *count;                  /* of all groups: classes whose logit is that of the group */
    unsigned char *state;           /* of all groups: GEOMETRIC_... */
    int is_stopped;
} geometric_row;

enum { GEOMETRIC_FREE, GEOMETRIC_INSIDE, GEOMETRIC_REFUSED, GEOMETRIC_ABSENT };

/* ops/geometric_solve.c */
static inline double *geometric_factor_row(const geometric_row *r, size_t k) { return r->factor + k * (k + 1) / 2; }
/* Adds a group to the support, behind the others.  0: its similarities are those of a combination of the support. */
int csm_geometric_append(geometric_row *, size_t group);
/* Solves K z = b on the support, in place. */
void csm_geometric_solve(geometric_row *, double *b);
/* The weights of a row whose u and ridge are set, its support, and K w. */
void csm_geometric_find(geometric_row *, size_t first);
/* Weights w with w (K w) = q on the support, whose groups have q > 0; K w in r->product, of all groups. */
void csm_geometric_balance(geometric_row *, const double *q);

#endif
