/* The arguments of the kernels of the linear-chain CRF, and the table of the kernels.
 *
 * Every weight is a double beside an integer exponent of 2, itself a double so that no score overflows it:
 * e^x = p 2^n.  Arrays of tags have a pitch, a multiple of 8; what lies beyond the last tag has weight +0. */
#ifndef CSM_CRF_JOB_H
#define CSM_CRF_JOB_H

#include "../../math/pair.h"
#include "../poll.h"

/* Sums below this, relative to the largest terms they could have, may have lost digits; and the largest product of
 * weights of a prefix and a suffix, relative to all paths, beside which nothing is lost: see crf.inc.h. */
#define CSM_CRF_SMALL 0x1p-300
#define CSM_CRF_LARGE 0x1p200
#define CSM_CRF_LARGEST 0x1p45 /* largest |score| of a position or a parameter; beyond, the maximum is subtracted */

/* Scores of the parameters, and their exponentials. */
typedef struct csm_crf_model {
    size_t tags, pitch;
    double *scores, *scores_t; /* transitions and their transpose, beyond the last tag -inf */
    double *start, *end;       /* scores */
    double *p, *n;             /* of the transitions: e^score = p 2^n */
    double *start_p, *start_n, *end_p, *end_n;
    double *a, *a_t;                /* p 2^(n - a_n), and its transpose */
    double *start_a, *end_a;        /* the same of start and end */
    double a_n, start_n0, end_n0;   /* the n of the largest score */
    double a_max, start_max, end_max; /* the largest of a, start_a, end_a */
    double offset, start_offset, end_offset; /* subtracted from the scores: 0 in the ordinary range */
    int is_nan, is_inf;             /* a parameter is NaN, or +inf */
} csm_crf_model;

/* One sequence of n positions: inputs, and what the passes leave behind. */
typedef struct csm_crf_chain {
    const csm_crf_model *model;
    size_t n;
    double *x;                 /* scores, n rows of a pitch */
    double *e, *e_n;           /* their exponentials e, times 2^e_n of the position */
    double *alpha, *alpha_n;   /* weights of all prefixes that end in a tag, without the position's offset */
    double *alpha_max;         /* the largest of each position */
    double *max;               /* largest score of each position */
    double *mu;                /* marginals of the tags */
    double *u;                 /* ... of pairs: alpha(t - 1, i) a(i, j) u(t, j) */
    double *beta;              /* two rows */
    unsigned char *before; /* 1: a prefix through this tag is possible; computed when needed */
    size_t before_end; /* the positions for which it is known */
    double z, z_n;             /* the partition function */
    int is_doubtful; /* of the forward pass: the backward pass has to decide */
    const int64_t *labels;     /* of the positions, or NULL */
    double *gold, *gold_n;     /* p and n of the scores of the labels */
    double *beside;            /* sum of alpha(t - 1, i) a(i, y_t) over i other than y_(t - 1) */
    double *g, *h, *d;         /* tags x pitch: sums for the gradient of the transitions */
    unsigned char *touched;    /* 1: this row of h is not 0; all 0 between two sequences */
    csm_poll poll;
} csm_crf_chain;

typedef enum csm_crf_outcome {
    CSM_CRF_DONE,
    CSM_CRF_NO_PATH, /* the partition function is 0 */
    CSM_CRF_SLOW,    /* to be computed with one exponent a tag */
    CSM_CRF_STOPPED  /* the call has been interrupted */
} csm_crf_outcome;

typedef struct csm_crf_kernels {
    /* n rows of L numbers to rows of a pitch, and back, times a factor. */
    void (*load_f32)(const float *from, size_t n, size_t L, size_t pitch, double *to);
    void (*store_f32)(const double *from, size_t n, size_t L, size_t pitch, double by, float *to);
    void (*store_f64)(const double *from, size_t n, size_t L, size_t pitch, double by, double *to);
    void (*add_f64)(const double *from, size_t n, size_t L, size_t pitch, double by, double *to);
    /* e^x = p 2^n for `count` numbers, a multiple of 8; -inf: p = 0. */
    void (*split)(const double *x, double *p, double *n, size_t count);
    /* Row maxima of n rows, for each of which NaN is found: returns 1 if there is a NaN, 2 if there is +inf, else 0. */
    int (*maxima)(const double *x, size_t n, size_t pitch, double *max);
    void (*exponentials)(const double *x, const double *max, double *e, double *e_n, size_t n, size_t pitch);
    csm_crf_outcome (*forward)(csm_crf_chain *);
    csm_crf_outcome (*backward)(csm_crf_chain *, int pairs); /* pairs: u is kept */
    /* Weight of the labels' path and of all others: the loss's argument rho = *r 2^*r_n.  0: the path is impossible. */
    int (*tail)(csm_crf_chain *, double *r, double *r_n);
    /* g = a times the sum over t of alpha(t - 1) u(t)^T, without the pairs of the labels if there are any. */
    csm_crf_outcome (*pairs)(csm_crf_chain *);
    /* Turns mu and g into gradients (without a factor): those of the labels are minus the sum of the others. */
    void (*gradients)(csm_crf_chain *);
    /* Best scores: delta of each position, and its maxima before the position's score is added. */
    csm_crf_outcome (*viterbi)(csm_crf_chain *, double *delta, double *best);
    /* Last tag, and the predecessors, of the best path; -1 if there is none. */
    csm_crf_outcome (*trace)(csm_crf_chain *, const double *delta, const double *best, int64_t *tags);
} csm_crf_kernels;

#endif
