/* csoftmax_shards.h is a part of csoftmax.h, which includes it. */
#ifndef CSOFTMAX_SHARDS_H
#define CSOFTMAX_SHARDS_H

/* Rows whose classes are divided among shards, such as the processes of a group.  A shard is a run of classes that
 * begins at a multiple of 4096, of a row of more than 4096 classes.  Its sums are a record of 64-bit words for each
 * row, whose merge depends on neither order nor grouping; from the merged record every shard computes its part of the
 * result, with the bits of the function that is given the whole row.
 *
 *     csm_shard_rows, csm_shard_losses     rows of a shard -> records, and the maximum of each block of 4096 classes
 *     csm_records_merge                  or reductions of integers: csm_records_fold, csm_records_raise, then sums
 *     csm_finish_rows, csm_finish_losses   rows of a shard and merged records -> its part of the result
 *
 * Words: 0 to 5 an exact sum (the number of its highest bin, five bins), 6 the maximum (a double), 7 how many elements
 * equal it, 8 to 10 its exponent and its power as a pair (doubles), 11 flags; with labels 12 to 14 the label's logit,
 * power and exponent, 15 the number of shards that hold the label; with smoothing or soft labels 16 to 27 the exact
 * sums of distances and of masses, with soft labels 28 to 33 that of the row's mass; with labels and class weights a
 * last word, the label's weight.  Records are contiguous, in the C order of the rows. */
typedef enum csm_record_words {
    CSM_SUM_WORDS = 7, /* of a sum of squares or of class weights */
    CSM_RECORD_WORDS = 12,
    CSM_LABEL_WORDS = 16,
    CSM_TERMS_WORDS = 28,
    CSM_SOFT_WORDS = 34
} csm_record_words;
typedef enum csm_record_flag {
    CSM_RECORD_NAN = 1,
    CSM_RECORD_INFINITE_TERMS = 4, /* losses: a weighted distance or mass is infinite */
    CSM_RECORD_KEPT = 8, /* at least one element takes part */
    CSM_RECORD_TRANSFORMED = 16, /* of the second round */
    CSM_RECORD_POSITIVE = 32, /* gradients: a term is infinite; losses: the row's mass is */
    CSM_RECORD_NAN_TERMS = 64, /* losses: a weighted distance is NaN */
    CSM_RECORD_NEGATIVE = 128 /* gradients: a term is -infinite */
} csm_record_flag;
typedef enum csm_shard_kind {
    CSM_SHARD_SOFTMAX,
    CSM_SHARD_LOG_SOFTMAX,
    CSM_SHARD_LOGSUMEXP, /* its records are those of log_softmax */
    CSM_SHARD_SOFTMAX_VJP,
    CSM_SHARD_LOG_SOFTMAX_VJP,
    CSM_SHARD_LOSS
} csm_shard_kind;
typedef enum csm_array_type { CSM_F32, CSM_F64, CSM_F16, CSM_BF16 } csm_array_type; /* the type of the arrays */

typedef struct csm_shard_options {
    size_t size; /* sizeof(csm_shard_options) when the caller was compiled */
    size_t classes, offset; /* of the whole row, more than 4096; of the shard's first class, a multiple of 4096 */
    double temperature;
    const csm_view *where; /* as in csm_options; not for losses, like the temperatures of rows */
    const csm_view *temperatures;
    const double *row_max; /* second round: of the rows that need it, NaN for all others; NULL: the first round */
    size_t words; /* losses: of a record */
    double weight_sum; /* losses, to finish: of all class weights; without class weights the number of classes */
    double divisor; /* losses, to finish: of the gradient */
    const int64_t *squares; /* losses with clip_norm, to finish: merged, CSM_SUM_WORDS a row */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_shard_options;
static inline csm_shard_options csm_default_shard_options(void) {
    csm_shard_options o = {sizeof(csm_shard_options), 0, 0, 1,    NULL, NULL, NULL,
                           CSM_LABEL_WORDS,           0, 1, NULL, 1,    NULL, NULL};
    return o;
}

/* input: x, or dy of a gradient, whose y is given.  e: an array of the shard, contiguous along the axis and other than
 * x, which receives the powers of softmax (f32, f64) for csm_finish_rows; or NULL.  block_max: ceil(n / 4096) doubles a
 * row; NULL for gradients. */
csm_status csm_shard_rows(csm_shard_kind, csm_array_type, const csm_shape *, const csm_view *input, const csm_view *y,
                          const csm_view *e, int64_t *records, double *block_max, const csm_shard_options *);
/* result: the shard's part; may be the input; without the axis for a log-sum-exp, which reads no input.  from_e: the
 * result holds the powers.  Here a shard may begin and end anywhere, with the maximum of each of its 4096 classes as
 * block_max: pieces of a block, which all have its maximum, are finished one by one. */
csm_status csm_finish_rows(csm_shard_kind, csm_array_type, const csm_shape *, const csm_view *input, const csm_view *y,
                           int from_e, const int64_t *records, const double *block_max, const csm_view *result,
                           const csm_shard_options *);
/* Of csm_loss_options: labels and smoothing are those of the whole row, weight and soft those of the shard; the
 * temperatures, the reduction, the threads and the interrupt are not used; positives are not allowed.  Labels are not
 * checked: the number of owners in the merged record tells.  CSM_BAD_LABEL: a soft label is negative or not finite.
 * e: as for softmax; it is not written with a soft cap, whose calls finish without from_e and without clip_norm. */
csm_status csm_shard_losses(csm_array_type, const csm_shape *, const csm_view *x, const csm_view *e, int64_t *records,
                            double *block_max, const csm_shard_options *, csm_loss_options *);
/* With clip_norm: CSM_SUM_WORDS a row, of the squares of the gradient of the row loss. */
csm_status csm_shard_squares(csm_array_type, const csm_shape *, const csm_view *x, const int64_t *records,
                             const double *block_max, int64_t *squares, const csm_shard_options *, csm_loss_options *);
/* lost: 1 for a row in which the shard holds a class whose gradient these functions lose, 2 for one that may have such
 * a class in any shard, else 0.  csm_cross_entropy with the whole row computes it. */
csm_status csm_shard_lost(csm_array_type, const csm_shape *, const csm_view *x, const int64_t *records, int64_t *lost,
                          const csm_shard_options *, csm_loss_options *);
/* loss: a double for each row, or NULL; gradient: that of the sum of the losses, divided by the divisor, or NULL.  As
 * csm_finish_rows, also of pieces of a block.  records NULL: the rows are whole, as those of at most 4096 classes must
 * be, of which csm_shard_losses gives only the masses of their soft labels; clip_norm with a soft cap counts. */
csm_status csm_finish_losses(csm_array_type, const csm_shape *, const csm_view *x, int from_e, const int64_t *records,
                             const double *block_max, double *loss, const csm_view *gradient, const csm_shard_options *,
                             csm_loss_options *);
/* The sum of the class weights of a shard, as CSM_SUM_WORDS words, and as a number. */
void csm_shard_weights(csm_array_type, const void *weight, size_t n, int64_t *words);
double csm_sum_total(const int64_t *words);
void csm_sums_merge(int64_t *into, const int64_t *other, size_t count);

/* Records without an element. */
void csm_records_clear(int64_t *records, size_t rows, size_t words);
void csm_records_merge(int64_t *into, const int64_t *other, size_t rows, size_t words);
/* For reductions: fold makes row_max the maximum of each record; raise brings the exact sums of a record, of which
 * there are csm_records_sums(words), to the given highest bins. */
void csm_records_fold(int64_t *records, const double *row_max, size_t rows, size_t words);
void csm_records_raise(int64_t *records, const int64_t *highest, size_t rows, size_t words);
size_t csm_records_sums(size_t words);
/* Sets row_max for the second round, and returns the number of rows that need it.  temperatures: one for each row, or
 * NULL. */
size_t csm_records_second_round(csm_shard_kind, csm_array_type, const int64_t *records, size_t rows, size_t words,
                                double temperature, const double *temperatures, double *row_max);

#endif
