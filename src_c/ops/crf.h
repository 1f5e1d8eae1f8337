/* A call of the linear-chain CRF, shared by the files of its driver: crf.c (sequences, threads, sums), crf_model.c (the
 * parameters), crf_slow.c (one exponent a tag), csm_crf_decode.c (paths). */
#ifndef CSM_OPS_CRF_H
#define CSM_OPS_CRF_H

#include "../core/call.h"
#include "../core/extension.h"
#include "../core/reduction.h"

typedef struct crf_call {
    const csm_table *table;
    const csm_crf_kernels *kernels;
    csm_dtype dtype;
    csm_crf_task task;
    size_t itemsize;
    const char *emissions;
    csm_crf_options *o;
    csm_crf_model model;
    size_t longest; /* number of positions of the longest sequence */
    int has_gradient;
    csm_scratch scratch; /* of each thread: see below */
    csm_interrupt interrupt;
    csm_crf_chain *chains; /* one for each thread */
    double *slots; /* sums of a group of sequences: transitions, start, end */
    double divisor; /* of a mean */
    size_t slot, in_slot; /* numbers of a slot; sequences that are added into it: 1, or a block */
    size_t first, count; /* the first sequence of the group; sequences from there on */
} crf_call;
enum { CRF_CHAIN, CRF_SLOW, CRF_HALF, CRF_LABELS, CRF_BUFFERS };

/* One sequence while it is computed. */
typedef struct crf_sequence {
    crf_call *call;
    csm_crf_chain *chain;
    size_t index, n, begin; /* n positions, the first of which is `begin` of the call */
    int thread;
    double *slot;
    int is_first; /* of its slot */
    double offset; /* subtracted from the scores of the chain, and added to log Z */
    csm_crf_outcome outcome;
    int is_nan, is_inf, is_slow; /* is_slow: results come from crf_slow.c */
    double log_z, loss;
    double weight, factor; /* of the loss, of the gradient */
} crf_sequence;

static inline size_t crf_begin(const csm_crf_options *o, size_t i) {
    return o->offsets ? (size_t)o->offsets[i] : i * o->length;
}
static inline size_t crf_row(const crf_sequence *s, size_t t) {
    const int64_t *rows = s->call->o->rows;
    return rows ? (size_t)rows[s->begin + t] : s->begin + t;
}

/* A number of a sequence as it is returned. */
static inline double crf_round(const crf_call *call, double x) { return csm_finish_loss(x, call->itemsize < 8); }

static inline csm_status crf_stopped(csm_crf_outcome outcome) {
    return outcome == CSM_CRF_STOPPED ? CSM_INTERRUPTED : CSM_OK;
}

/* crf_model.c */
csm_status csm_crf_make_model(crf_call *);
void csm_crf_release_model(crf_call *);
csm_status csm_crf_make_chain(crf_call *, int thread);
/* Reads the scores of a sequence; sets is_nan, is_inf, and outcome where there is no path for a plain reason. */
void csm_crf_load(crf_sequence *, int shifts);
void csm_crf_store(const crf_sequence *, const double *row, double by, size_t at, void *to);
double csm_crf_log_of(const crf_sequence *, double z, double z_n);
double csm_crf_loss_of(double r, double r_n); /* log(1 + r 2^r_n) */

/* crf_slow.c: the same results as the kernels' in chain->mu, chain->g, log_z and loss. */
csm_status csm_crf_compute_slow(crf_sequence *, int gradient);
/* Writes one weight for each tag at position t, relative to the largest: that of all prefixes that end in the tag,
 * times its transition into the tag `next` (-1: its end weight).  Only for sequences with is_slow. */
void csm_crf_slow_weights(const crf_sequence *, size_t t, int64_t next, double *weights);

/* crf.c */
csm_status csm_crf_compute(crf_sequence *, int gradient);
/* The loss of the labels in chain->labels, after the forward pass. */
csm_status csm_crf_measure(crf_sequence *);

/* csm_crf_decode.c */
csm_status csm_crf_decode(crf_sequence *);
csm_status csm_crf_draw(crf_sequence *);
double csm_crf_score(const crf_sequence *, const int64_t *tags);

#endif
