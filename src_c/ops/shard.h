/* Shards of rows: the records of their sums, and what a call of a shard gets in addition.
 *
 * A record holds what the blocks of a shard contribute to a row (csoftmax_shards.h lists its words).  Its sum is exact
 * and absolute: the powers of two of the blocks are part of it, so that no reference is needed before a merge.  In the
 * log family the maxima are not in the sum but counted, each with its power; when a larger maximum arrives, they join
 * the sum as csm_combine_quotient adds them.  Merging is associative and commutative to the bit.
 */
#ifndef CSM_OPS_SHARD_H
#define CSM_OPS_SHARD_H

#include "../core/call.h"
#include "../math/exact.h"

typedef struct csm_record {
    csm_exact sum;          /* softmax: of all e'; log family: without the maxima; gradients: of the terms */
    double max;             /* gradients: the largest |dy|, or 0 */
    int64_t count;          /* of the maxima */
    double n, top, top_low; /* of the maximum; 0 in softmax, whose maxima are not counted */
    int64_t flags;
} csm_record;

/* Of losses, after the record. */
typedef struct csm_label_record {
    double x, e, n; /* e: -1 if pass 1 did not store it */
    int64_t owners;
} csm_label_record;

_Static_assert(sizeof(csm_record) == CSM_RECORD_WORDS * sizeof(int64_t), "words of a record");
_Static_assert(sizeof(csm_record) + sizeof(csm_label_record) == CSM_LABEL_WORDS * sizeof(int64_t), "with a label");
_Static_assert(CSM_LABEL_WORDS * sizeof(int64_t) + 2 * sizeof(csm_exact) == CSM_TERMS_WORDS * sizeof(int64_t), "terms");
_Static_assert(CSM_TERMS_WORDS * sizeof(int64_t) + sizeof(csm_exact) == CSM_SOFT_WORDS * sizeof(int64_t), "soft");

/* The record of a loss, whatever the number of words that it travels with. */
typedef struct csm_loss_record {
    csm_record base;
    csm_label_record label;
    csm_exact far, mass; /* sum (far_b - max_b mass_b) and sum mass_b over the blocks */
    csm_exact row_mass;  /* sum w_j q_j of soft labels */
    double w_label;
} csm_loss_record;

void csm_record_clear(csm_record *);
void csm_loss_record_clear(csm_loss_record *);
csm_record csm_record_load(const int64_t *words);
void csm_record_store(const csm_record *, int64_t *words);
csm_loss_record csm_loss_record_load(const int64_t *words, size_t count);
void csm_loss_record_store(const csm_loss_record *, int64_t *words, size_t count);
void csm_record_merge(csm_record *a, const csm_record *b);
/* The record of blocks.  A sum that is NaN or infinite adds nothing. */
csm_record csm_record_of_blocks(const csm_block *, size_t count, int is_log);

/* A sum of terms that are not negative, of which an infinite or NaN one is kept apart: CSM_SUM_WORDS. */
csm_pair_sum csm_sum_load(const int64_t *words);
void csm_sum_store(const csm_pair_sum *, int64_t *words);

/* Sets max and n of a block whose sums are merged already. */
void csm_restore_block(const csm_call *, const csm_temperature *, double max, csm_block *);

/* What a call gets for a shard.  Its driver then computes row by row, as for very long rows. */
typedef enum csm_stage {
    CSM_STAGE_SHARD,
    CSM_STAGE_SQUARES,
    CSM_STAGE_LOST,
    CSM_STAGE_FINISH,
    CSM_STAGE_WHOLE /* losses of whole rows: an ordinary call whose divisor is given */
} csm_stage;
typedef struct csm_shard {
    csm_stage stage;
    const csm_shard_options *options;
    const int64_t *merged; /* all stages but the first */
    int64_t *records;      /* results: records, squares or marks of lost gradients */
    double *block_max;
    const double *merged_block_max;
    size_t words;
    int from_e;
} csm_shard;
/* The maximum of a row in the second round; NaN in the first, and for rows that do not need it. */
static inline double csm_shard_row_max(const csm_shard *s, size_t row) {
    return s->options->row_max ? s->options->row_max[row] : CSM_NAN;
}

/* The drivers of csm_run_softmax and csm_run_cross_entropy for a shard. */
csm_status csm_run_softmax_shard(csm_op, csm_dtype, const csm_table *, const csm_shape *, const csm_view *input,
                                 const csm_view *y, const csm_view *result, const csm_options *, const csm_shard *);
csm_status csm_run_loss_shard(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x,
                              const csm_view *gradient, double *loss, csm_loss_options *, const csm_shard *);

#endif
