/* The arguments of the kernels of cross-entropy, and the table of the kernels. */
#ifndef CSM_CROSS_ENTROPY_JOB_H
#define CSM_CROSS_ENTROPY_JOB_H

#include "../../math/block.h"
#include "../../math/temperature.h"

/* Cross-entropy.  A row's loss is s [Q tail + sum a_j (max - x_j)/T + z_loss lse^2] and its gradient
 * (s/T) [p_j (Q + 2 z_loss lse) - a_j], where a_j = w_j q_j, Q = sum a_j. */

/* a_j of the classes other than the label: w_j (soft q_j + flat). */
typedef struct csm_loss_terms {
    const void *q, *w; /* of the compute type; NULL: q_j = 0, w_j = 1 */
    double soft, flat;
} csm_loss_terms;

/* The constants that the rows of a call have in common. */
typedef struct csm_loss_call {
    size_t n;
    const csm_temperature *t;
    double temperature;    /* the caller's; t may belong to transformed rows */
    const void *w;         /* class weights in the compute type, or NULL */
    double weight_sum;     /* of all classes */
    double smoothing, z_loss;
    double clip_norm, clip_value; /* infinity: none */
    /* 1 / (the divisor of the mean, else 1) and 1 / temperature: pairs times powers of two */
    double per_divisor, per_divisor_low, divisor_exponent, per_t, per_t_low, t_exponent;
    int soft, gradient;
    int simple; /* labels, no options, 1 / divisor in the middle of the range */
} csm_loss_call;

/* The inputs of a row other than its logits. */
typedef struct csm_loss_input {
    ptrdiff_t label;      /* negative with soft labels */
    double x_label, w_label; /* logit and weight of the label */
    double z_label;       /* x_label, transformed if the row is */
    double mass;          /* sum w_j q_j before smoothing */
    double weight, upstream; /* sample weight, derivative of the result with respect to the reduced row loss */
    double max;           /* of the caller's array, even if the row is transformed */
    double e_label, n;    /* e' of the label as pass 1 left it, in a block with this n; negative: unknown */
} csm_loss_input;

/* g_j = e'_j (f + f_low) - w_j (soft q_j + flat), clipped to +-clip, times (post + post_low) 2^post_exponent;
 * target: g of the label.  plain: no clip, and post is 1.  is_nan: the loss and the gradient are NaN; after `factors`,
 * the gradient. */
typedef struct csm_loss_row {
    csm_row sums;
    double total, total_low; /* sum of all e' */
    double e_label;            /* e' of the label */
    double others, others_low; /* sum of all other e', a pair */
    double loss;
    double f, f_low, soft, flat, clip, post, post_low, post_exponent, target;
    double shrink_exponent;  /* of the factor that clip_norm requires */
    int plain, is_nan;
} csm_loss_row;

/* Contiguous rows of at most CSM_BLOCK elements. */
typedef struct csm_loss_job {
    const csm_loss_call *call;
    const char *x, *q;
    char *gradient;                          /* may be x */
    ptrdiff_t x_step, q_step, gradient_step; /* bytes between rows */
    const int64_t *label;             /* negative: ignored; NULL: soft */
    const double *mass;               /* soft labels: sum w_j q_j */
    double *loss;
    ptrdiff_t order;                  /* rows between two rows in label, mass and loss */
    const char *weight, *upstream;    /* double; NULL: 1 */
    ptrdiff_t weight_step, upstream_step;
    size_t rows;
    void *scratch;                    /* csm_loss_scratch elements of the compute type */
    /* Logits with a soft cap, which the kernels see capped: the caller's in their storage type, the slopes of the cap,
     * by which the gradient is multiplied, and the largest of the caller's that is not small beside the cap, of each
     * row.  NULL: none. */
    const char *uncapped;
    const char *slope; /* NULL: no gradient */
    const double *far;
    ptrdiff_t uncapped_step, slope_step;
    /* Of capped rows: their maxima; and x, where e' may take their place.  NULL: unknown. */
    const double *max;
    char *rows_in_scratch;
} csm_loss_job;

/* Elements of scratch for rows of n: e' of a row or, from CSM_LOSS_VECTOR + 1 to CSM_LOSS_GROUP_LENGTH, of a group of
 * rows.  Shorter rows are in vectors.  A group has no more rows than the call. */
enum { CSM_LOSS_VECTOR = 16, CSM_LOSS_GROUP_LENGTH = 512, CSM_LOSS_GROUP_ROWS = 16 };
static inline size_t csm_loss_scratch(size_t n, size_t rows) {
    const size_t group = rows > 1 && rows < CSM_LOSS_GROUP_ROWS ? rows : rows > 1 ? CSM_LOSS_GROUP_ROWS : 1;
    return ((n + 15) / 16 * 16 + 16) * (n > CSM_LOSS_VECTOR && n <= CSM_LOSS_GROUP_LENGTH ? group : 1);
}

typedef struct csm_loss_kernels {
    /* Computes rows in order and returns how many it has done, as csm_kernels.rows does. */
    size_t (*rows)(const csm_loss_job *);
    /* Sums one block whose maximum is in *block.  e: the destination of e', or NULL; terms: NULL if there are none. */
    void (*pass1)(const void *x, void *e, size_t k, const csm_temperature *, const csm_loss_terms *terms,
                  csm_block *block);
    /* Combines the blocks of a row: sums and loss; then the factors of its gradient. */
    void (*sums)(const csm_loss_call *, const csm_loss_input *, const csm_block *, size_t count, csm_loss_row *);
    void (*factors)(const csm_loss_call *, const csm_loss_input *, double shrink, csm_loss_row *);
    /* The sum of the squares of what pass2 would write, except the label's.  label: its place in the block, or
     * negative.  e: e' from pass1; NULL: it is computed from x again, in scratch (k + 16 elements). */
    double (*norm)(const void *x, const void *e, size_t k, const csm_temperature *, const csm_block *,
                   const csm_loss_row *, const csm_loss_terms *terms, ptrdiff_t label, void *scratch);
    void (*pass2)(const void *x, const void *e, void *y, const void *slope, size_t k, const csm_temperature *,
                  const csm_block *, const csm_loss_row *, const csm_loss_terms *terms, void *scratch);
    /* sum w_j q_j of soft labels as a pair; returns 0 if a label is negative, infinite or NaN. */
    int (*mass)(const void *q, const void *w, size_t k, double *hi, double *lo);
} csm_loss_kernels;

#endif
