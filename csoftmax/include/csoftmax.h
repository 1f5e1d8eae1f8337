/* csoftmax: the softmax family for C programs.
 *
 * Every function computes along one axis of an N-dimensional array that is described by a shape and byte
 * strides, so that the caller's layout (transposed, sliced, broadcast, reversed, unaligned) is read in place.
 * Results have the same bits for every number of threads, layout, alignment and instruction set.  No function
 * prints or aborts; each returns a csm_status.
 *
 *     csm_shape shape = {.n = 1000, .ndim = 1, .shape = {128}};
 *     csm_view x = csm_contiguous(&shape, 1000, data, sizeof(float));
 *     csm_view y = csm_contiguous(&shape, 1000, result, sizeof(float));
 *     csm_status status = csm_softmax_f32(&shape, &x, &y, NULL);
 *
 * Half types are passed as uint16_t bit patterns.  This header is append-only within one CSM_ABI_MAJOR.
 */
#ifndef CSOFTMAX_H
#define CSOFTMAX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

#define CSM_ABI_MAJOR 0
#define CSM_ABI_MINOR 4
#define CSM_MAX_NDIM 64

typedef enum csm_status {
    CSM_OK = 0,
    CSM_NO_MEMORY = 1,      /* an allocation failed; the output may be partly written */
    CSM_INTERRUPTED = 2,    /* options->interrupt asked to stop; the output may be partly written */
    CSM_BAD_SHAPE = 3,      /* ndim > CSM_MAX_NDIM, or the number of bytes exceeds PTRDIFF_MAX */
    CSM_BAD_TEMPERATURE = 4,/* negative or NaN; for gradients also 0 and infinity */
    CSM_SMALL_SCRATCH = 5,  /* options->scratch is smaller than csm_scratch_size() */
    CSM_BAD_LABEL = 6,      /* a label is not a class (loss->position), or a soft label is negative or not finite */
    CSM_BAD_OPTION = 7, /* an option is out of range: smoothing, a clip, k, alpha, top-p ...; or there are no labels */
    CSM_NO_MASS = 8, /* a row to draw from holds NaN or +inf, or only -inf */
    CSM_TOO_FEW = 9 /* a row has fewer classes than draws without replacement */
} csm_status;

/* The batch axes, outermost first, and the number of classes n along the softmax axis. */
typedef struct csm_shape {
    size_t n;
    size_t ndim;
    size_t shape[CSM_MAX_NDIM];
} csm_shape;

/* An array: its data, and strides in bytes, of any sign, 0 for broadcasting (inputs only). */
typedef struct csm_view {
    void *data;
    ptrdiff_t axis_stride;
    ptrdiff_t strides[CSM_MAX_NDIM];
} csm_view;

/* Start from CSM_OPTIONS_INIT or csm_default_options(); a NULL pointer to options means the same. */
typedef struct csm_options {
    size_t size; /* sizeof(csm_options) when the caller was compiled */
    double temperature; /* T > 0, or one of the limits 0 and infinity */
    const csm_view *where; /* one byte for each element, 0: the element takes no part; NULL = all take part */
    int threads; /* an upper bound, at least 1 */
    void *scratch; /* csm_scratch_size() bytes, aligned to 64; NULL = allocated and freed by the call */
    size_t scratch_size;
    int (*interrupt)(void *context); /* called about every 30 ms by the calling thread; non-zero stops the call */
    void *interrupt_context;
    const csm_view *temperatures; /* a double for each row, instead of `temperature`; NULL = the same for all */
} csm_options;
#define CSM_OPTIONS_INIT {sizeof(csm_options), 1.0, NULL, 1, NULL, 0, NULL, NULL, NULL}

/* y = softmax(x / T), y = log(softmax(x / T)); y may be x, other overlap is not allowed. */
csm_status csm_softmax_f32(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_softmax_f64(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_softmax_f16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_softmax_bf16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_log_softmax_f32(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_log_softmax_f64(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_log_softmax_f16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_log_softmax_bf16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);

/* y = log(sum(exp(x / T))).  y has no softmax axis; its axis_stride is not used. */
csm_status csm_logsumexp_f32(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_logsumexp_f64(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_logsumexp_f16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_logsumexp_bf16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);

/* y = the entropy of softmax(x / T), in nats.  y has no softmax axis. */
csm_status csm_entropy_f32(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_entropy_f64(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_entropy_f16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);
csm_status csm_entropy_bf16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_options *);

/* dx = dL/dx from dy = dL/dy and y, the result of the forward function; dx may be dy or y. */
csm_status csm_softmax_vjp_f32(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                               const csm_options *);
csm_status csm_softmax_vjp_f64(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                               const csm_options *);
csm_status csm_softmax_vjp_f16(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                               const csm_options *);
csm_status csm_softmax_vjp_bf16(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                                const csm_options *);
csm_status csm_log_softmax_vjp_f32(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                                   const csm_options *);
csm_status csm_log_softmax_vjp_f64(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                                   const csm_options *);
csm_status csm_log_softmax_vjp_f16(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                                   const csm_options *);
csm_status csm_log_softmax_vjp_bf16(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                                    const csm_options *);

/* Cross-entropy.  Per row, with q the label's distribution (one-hot or soft, then smoothed: (1 - epsilon) q +
 * epsilon / n), class weights w, sample weight s and z = x / T:
 *     loss = s [sum w_j q_j (lse - z_j) + z_loss lse^2],  lse = log(sum e^z)
 * Ignored rows, and rows of sample weight 0, are not read and contribute 0. */
typedef enum csm_label_type {
    CSM_INT8,
    CSM_INT16,
    CSM_INT32,
    CSM_INT64,
    CSM_UINT8,
    CSM_UINT16,
    CSM_UINT32,
    CSM_UINT64
} csm_label_type;
typedef enum csm_reduction { CSM_NONE, CSM_SUM, CSM_MEAN } csm_reduction;

typedef struct csm_loss_options {
    size_t size; /* sizeof(csm_loss_options) when the caller was compiled */
    const csm_view *labels; /* a class index for each row (no softmax axis) ... */
    csm_label_type label_type;
    int has_ignore;
    uint64_t ignore; /* the bits of the label to ignore, sign-extended to 64 */
    const csm_view *soft; /* ... or a distribution for each row: float (f32 and half types) or double */
    const void *weight; /* n class weights >= 0: float or double as soft; NULL = 1 */
    const csm_view *sample_weight; /* a double >= 0 for each row; NULL = 1 */
    const csm_view *upstream; /* a double for each row, the factor of its gradient; NULL = 1 */
    double temperature, label_smoothing, z_loss;
    double clip_norm, clip_value; /* of a row's gradient before reduction (norm first); 0 = none */
    csm_reduction reduction; /* CSM_MEAN divides by the sum of s w[label], of s sum w_j q_j with soft labels */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
    size_t position; /* set with CSM_BAD_LABEL: the row, in C order */
    const csm_view *temperatures; /* a double for each row, instead of `temperature`; NULL = the same for all */
    double softcap; /* c: logits become c tanh(logits / c) first; 0 = none */
    const csm_view *positives; /* of segments alone, instead of labels: one byte for each element, 0: it is none */
} csm_loss_options;
static inline csm_loss_options csm_default_loss_options(void) {
    csm_loss_options o = {sizeof(csm_loss_options),
                          NULL,
                          CSM_INT64,
                          0,
                          0,
                          NULL,
                          NULL,
                          NULL,
                          NULL,
                          1,
                          0,
                          0,
                          0,
                          0,
                          CSM_MEAN,
                          1,
                          NULL,
                          NULL,
                          0,
                          NULL,
                          0,
                          NULL};
    return o;
}

/* loss: one double, or with CSM_NONE one for each row in C order, rounded to float except for f64.
 * gradient: that of the reduced loss (with CSM_NONE, of the sum) times upstream, or NULL; may be x.
 * Nothing is written if a label is bad. */
csm_status csm_cross_entropy_f32(const csm_shape *, const csm_view *x, const csm_view *gradient, double *loss,
                                 csm_loss_options *);
csm_status csm_cross_entropy_f64(const csm_shape *, const csm_view *x, const csm_view *gradient, double *loss,
                                 csm_loss_options *);
csm_status csm_cross_entropy_f16(const csm_shape *, const csm_view *x, const csm_view *gradient, double *loss,
                                 csm_loss_options *);
csm_status csm_cross_entropy_bf16(const csm_shape *, const csm_view *x, const csm_view *gradient, double *loss,
                                  csm_loss_options *);

/* The k largest elements of each row, or their softmax.  Ties: the lowest index first; NaN is greater than all numbers,
 * -0 equals +0. */
typedef enum csm_topk_normalize {
    CSM_TOPK_NONE,
    CSM_TOPK_SOFTMAX, /* the softmax of the k values */
    CSM_TOPK_FULL /* the softmax of the whole row at the k indices */
} csm_topk_normalize;
typedef struct csm_topk_options {
    size_t size; /* sizeof(csm_topk_options) when the caller was compiled */
    int smallest; /* the k smallest, ascending; not with normalize */
    int unsorted; /* results in any order, which is faster */
    csm_topk_normalize normalize;
    double temperature;
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
    const csm_view *temperatures; /* a double for each row, instead of `temperature`; NULL = the same for all */
} csm_topk_options;
static inline csm_topk_options csm_default_topk_options(void) {
    csm_topk_options o = {sizeof(csm_topk_options), 0, 0, CSM_TOPK_NONE, 1, 1, NULL, NULL, NULL};
    return o;
}
/* values: k elements along the axis in the dtype of x; indices: as many int64_t; k <= n.  Neither may overlap x. */
csm_status csm_topk_f32(const csm_shape *, const csm_view *x, size_t k, const csm_view *values, const csm_view *indices,
                        const csm_topk_options *);
csm_status csm_topk_f64(const csm_shape *, const csm_view *x, size_t k, const csm_view *values, const csm_view *indices,
                        const csm_topk_options *);
csm_status csm_topk_f16(const csm_shape *, const csm_view *x, size_t k, const csm_view *values, const csm_view *indices,
                        const csm_topk_options *);
csm_status csm_topk_bf16(const csm_shape *, const csm_view *x, size_t k, const csm_view *values,
                         const csm_view *indices, const csm_topk_options *);
/* The same for integers, which are compared exactly; no normalize. */
csm_status csm_topk_integer(csm_label_type, const csm_shape *, const csm_view *x, size_t k, const csm_view *values,
                            const csm_view *indices, const csm_topk_options *);

/* The Kullback-Leibler divergence of softmax(x / T) from softmax(y / T), sum p (log p - log q), and its gradient with
 * respect to y.  Views of rows have doubles, and no softmax axis. */
typedef struct csm_divergence_options {
    size_t size; /* sizeof(csm_divergence_options) when the caller was compiled */
    double temperature; /* as in csm_options; T > 0 and finite with a gradient */
    const csm_view *temperatures; /* one for each row, instead of `temperature`; NULL = the same for all */
    const csm_view *where; /* as in csm_options */
    const csm_view *sample_weight; /* of each row, at least 0; NULL = 1 */
    const csm_view *upstream; /* of each row, a factor of the gradient; NULL = 1 */
    csm_reduction reduction; /* the mean is weighted by sample_weight */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_divergence_options;
static inline csm_divergence_options csm_default_divergence_options(void) {
    csm_divergence_options o;
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.temperature = 1.0;
    o.reduction = CSM_MEAN;
    o.threads = 1;
    return o;
}
/* loss: one number, or with CSM_NONE one for each row in C order.  gradient: NULL, x, y, or without overlap. */
csm_status csm_kl_divergence_f32(const csm_shape *, const csm_view *x, const csm_view *y, const csm_view *gradient,
                                 double *loss, const csm_divergence_options *);
csm_status csm_kl_divergence_f64(const csm_shape *, const csm_view *x, const csm_view *y, const csm_view *gradient,
                                 double *loss, const csm_divergence_options *);
csm_status csm_kl_divergence_f16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_view *gradient,
                                 double *loss, const csm_divergence_options *);
csm_status csm_kl_divergence_bf16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_view *gradient,
                                  double *loss, const csm_divergence_options *);

/* alpha-entmax, y_i = [(alpha - 1) x_i - tau]_+^(1 / (alpha - 1)) with the tau for which sum y = 1; alpha > 1, 2 is
 * sparsemax.  Its gradient from dy and y, and its Fenchel-Young loss. */
typedef struct csm_entmax_options {
    size_t size; /* sizeof(csm_entmax_options) when the caller was compiled */
    double alpha;
    const csm_view *where; /* unsigned char; NULL: all elements take part */
    csm_reduction reduction; /* of the loss */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
    const csm_view *alphas; /* a double for each row, instead of `alpha`; but for the loss, 1 is softmax; NULL = one */
    const csm_view *alpha_gradient; /* of the gradient: a double for each row, dL/dalpha; NULL = not computed */
    /* The loss of a row, and its gradient, are multiplied by s w[label], with soft labels by s sum w_j q_j; CSM_MEAN
     * divides by the sum of these factors. */
    const void *weight; /* n class weights >= 0: float or double as soft labels; NULL = 1 */
    const csm_view *sample_weight; /* s, a double >= 0 for each row; NULL = 1 */
    int has_ignore;
    int64_t ignore; /* rows of this label, and of sample weight 0, are not read and contribute 0 */
} csm_entmax_options;
static inline csm_entmax_options csm_default_entmax_options(void) {
    csm_entmax_options o = {
        sizeof(csm_entmax_options), 1.5, NULL, CSM_MEAN, 1, NULL, NULL, NULL, NULL, NULL, NULL, 0, 0};
    return o;
}
csm_status csm_entmax_f32(const csm_shape *, const csm_view *x, const csm_view *y, const csm_entmax_options *);
csm_status csm_entmax_f64(const csm_shape *, const csm_view *x, const csm_view *y, const csm_entmax_options *);
csm_status csm_entmax_f16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_entmax_options *);
csm_status csm_entmax_bf16(const csm_shape *, const csm_view *x, const csm_view *y, const csm_entmax_options *);
csm_status csm_entmax_vjp_f32(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                              const csm_entmax_options *);
csm_status csm_entmax_vjp_f64(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                              const csm_entmax_options *);
csm_status csm_entmax_vjp_f16(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                              const csm_entmax_options *);
csm_status csm_entmax_vjp_bf16(const csm_shape *, const csm_view *dy, const csm_view *y, const csm_view *dx,
                               const csm_entmax_options *);
/* labels: int64_t, a class for each row; or soft: a distribution for each row, float (f32 and half types) or double. 
 * loss and gradient as in csm_cross_entropy. */
csm_status csm_entmax_loss_f32(const csm_shape *, const csm_view *x, const csm_view *labels, const csm_view *soft,
                               const csm_view *gradient, double *loss, const csm_entmax_options *);
csm_status csm_entmax_loss_f64(const csm_shape *, const csm_view *x, const csm_view *labels, const csm_view *soft,
                               const csm_view *gradient, double *loss, const csm_entmax_options *);
csm_status csm_entmax_loss_f16(const csm_shape *, const csm_view *x, const csm_view *labels, const csm_view *soft,
                               const csm_view *gradient, double *loss, const csm_entmax_options *);
csm_status csm_entmax_loss_bf16(const csm_shape *, const csm_view *x, const csm_view *labels, const csm_view *soft,
                                const csm_view *gradient, double *loss, const csm_entmax_options *);

/* Draws from softmax(x / T), filtered to the logits of at least max - top_n_sigma sigma (sigma: the population standard
 * deviation of the finite ones), to the top_k largest, to the smallest set of mass at least typical_p whose -log p are
 * nearest to the entropy, to the smallest set of the most probable ones whose mass is at least top_p, and to those with
 * at least min_p times the largest probability, in this order or in another one, each applied to the result of the
 * previous one, ties to the lowest index.
 * Each draw consumes one uniform number in [0, 1).  A row with NaN, +inf or only -inf: CSM_NO_MASS. */
typedef enum csm_filter {
    CSM_FILTER_TEMPERATURE,
    CSM_FILTER_TOP_N_SIGMA,
    CSM_FILTER_TOP_K,
    CSM_FILTER_TYPICAL_P,
    CSM_FILTER_TOP_P,
    CSM_FILTER_MIN_P,
    CSM_FILTER_COUNT
} csm_filter;
typedef struct csm_sample_options {
    size_t size; /* sizeof(csm_sample_options) when the caller was compiled */
    const csm_view *where; /* unsigned char; NULL: all elements take part */
    const csm_view *temperature; /* a double >= 0 for each row, 0: the first maximum; NULL = 1 */
    const csm_view *top_k; /* an int64_t for each row, at least 1, or 0 or -1 for all; NULL: all */
    const csm_view *top_p; /* a double in (0, 1] for each row; NULL = 1 */
    const csm_view *min_p; /* a double in [0, 1] for each row; NULL = 0 */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
    const csm_view *typical_p; /* a double in (0, 1] for each row; NULL = 1 */
    const csm_view *top_n_sigma; /* a double >= 0 for each row; NULL = infinity */
    const csm_filter *order; /* each filter that is used once, and the temperature unless it is 1; NULL: as above */
    size_t order_count;
    int without_replacement; /* each draw is one of what the previous ones have left; too few classes: CSM_TOO_FEW */
    const csm_view *log_prob; /* receives that of each draw: floats, of f64 doubles; laid out as indices; NULL */
    const csm_view *raw_log_prob; /* the same of log_softmax(x); NULL */
} csm_sample_options;
static inline csm_sample_options csm_default_sample_options(void) {
    csm_sample_options o = {
        sizeof(csm_sample_options), NULL, NULL, NULL, NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL, 0, 0, NULL, NULL};
    return o;
}
/* uniform: `draws` doubles along the axis of each row; indices: as many int64_t. */
csm_status csm_sample_f32(const csm_shape *, const csm_view *x, size_t draws, const csm_view *uniform,
                          const csm_view *indices, const csm_sample_options *);
csm_status csm_sample_f64(const csm_shape *, const csm_view *x, size_t draws, const csm_view *uniform,
                          const csm_view *indices, const csm_sample_options *);
csm_status csm_sample_f16(const csm_shape *, const csm_view *x, size_t draws, const csm_view *uniform,
                          const csm_view *indices, const csm_sample_options *);
csm_status csm_sample_bf16(const csm_shape *, const csm_view *x, size_t draws, const csm_view *uniform,
                           const csm_view *indices, const csm_sample_options *);

/* Logits with penalties for the tokens of each row, and with biases: for a class that is among them c > 0 times,
 * x / repetition if x > 0, else x * repetition, then minus presence, minus frequency * c; then, for each class, plus
 * its bias. */
typedef struct csm_penalize_options {
    size_t size; /* sizeof(csm_penalize_options) when the caller was compiled */
    const csm_view *lengths; /* an int64_t for each row: so many of its tokens are valid; NULL: all */
    const csm_view *repetition; /* a double > 0 for each row; NULL = 1 */
    const csm_view *presence; /* a finite double for each row; NULL = 0 */
    const csm_view *frequency; /* the same */
    const csm_view *bias; /* a double for each class; NULL = 0 */
    size_t biases; /* number of single classes with a bias, in every row */
    const int64_t *bias_classes;
    const double *bias_values;
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_penalize_options;
static inline csm_penalize_options csm_default_penalize_options(void) {
    csm_penalize_options o = {sizeof(csm_penalize_options), NULL, NULL, NULL, NULL, NULL, 0, NULL, NULL, 1, NULL, NULL};
    return o;
}
/* tokens: `count` int64_t along the axis of each row, those that are no class are ignored; y may be x. */
csm_status csm_penalize_f32(const csm_shape *, const csm_view *x, const csm_view *y, size_t count,
                            const csm_view *tokens, const csm_penalize_options *);
csm_status csm_penalize_f64(const csm_shape *, const csm_view *x, const csm_view *y, size_t count,
                            const csm_view *tokens, const csm_penalize_options *);
csm_status csm_penalize_f16(const csm_shape *, const csm_view *x, const csm_view *y, size_t count,
                            const csm_view *tokens, const csm_penalize_options *);
csm_status csm_penalize_bf16(const csm_shape *, const csm_view *x, const csm_view *y, size_t count,
                             const csm_view *tokens, const csm_penalize_options *);

/* Linear-chain conditional random fields: sequences of positions, each with a row of L scores (emissions), and scores
 * of transitions between the tags of neighbouring positions.  A path y of n positions has the score
 *     start[y_1] + sum_t emissions[t, y_t] + sum_(t > 1) transitions[y_(t-1), y_t] + end[y_n],
 * and Z is the sum of exp(score) over all paths.  -inf: impossible.  A sequence with NaN is NaN; one with +inf has the
 * log-partition +inf and otherwise NaN; one without a possible path has -inf and otherwise NaN, and no tags. */
typedef enum csm_crf_task {
    CSM_CRF_LOG_PARTITION, /* result: log Z */
    CSM_CRF_SCORE, /* result: the score of the labels */
    CSM_CRF_LOSS, /* result: sample_weight (log Z - log Z of the paths that agree with labels or sets) */
    CSM_CRF_MARGINALS, /* result: log Z; by_tag: probabilities of the tags of each position */
    CSM_CRF_DECODE, /* decoded: a path; result: its score */
    CSM_CRF_SAMPLE /* decoded: paths drawn by their probabilities */
} csm_crf_task;
typedef enum csm_crf_method {
    CSM_CRF_VITERBI, /* the path of the largest score; among equals the smallest, read from the end */
    CSM_CRF_POSTERIOR, /* the most probable tag of each position, the lowest of equals */
    CSM_CRF_POSTERIOR_PATH /* the possible path with the largest sum of the probabilities of its tags */
} csm_crf_method;
typedef enum csm_crf_reduction {
    CSM_CRF_NONE, /* gradients are those of the sum */
    CSM_CRF_SUM,
    CSM_CRF_MEAN, /* over the sample weights of the sequences with a position */
    CSM_CRF_TOKEN_MEAN /* over the sum of sample weight times positions */
} csm_crf_reduction;
typedef struct csm_crf_options {
    size_t size; /* sizeof(csm_crf_options) when the caller was compiled */
    size_t sequences, tags; /* their numbers, N and L */
    size_t length; /* positions of each sequence, unless there are offsets */
    const int64_t *offsets; /* N + 1, rising: sequence i has the positions offsets[i] to offsets[i + 1] - 1 */
    const int64_t *rows; /* of each position, its row of emissions and of what follows; NULL: position p has row p */
    const double *transitions; /* L x L: from, to */
    const double *start; /* L numbers; NULL = 0 */
    const double *end; /* the same */
    const unsigned char *allowed; /* rows x L, 0: the emission is not read and counts as -inf; NULL: all allowed */
    const int64_t *labels; /* of each row, ... */
    int has_ignore; /* ... of which this one means unknown, which is summed over */
    int64_t ignore;
    const unsigned char *sets; /* or rows x L: 1 for each label that is possible */
    const double *sample_weight; /* of each sequence; one with 0 is not read; NULL = 1 */
    const double *upstream; /* of each sequence, factor of its gradients; NULL = 1 */
    csm_crf_reduction reduction;
    double *result; /* one for each sequence (and path); NULL: not wanted.  Numbers of sequences are rounded to float,
                     * unless the emissions are double */
    double *total; /* the reduced loss; NaN and gradients of 0 where a mean divides by 0 */
    void *by_tag; /* gradient of the emissions or marginals, rows x L in the dtype; only used rows are written */
    void *pairs; /* marginals of pairs, one L x L for each row, at that of the later position, or NULL */
    double *pair_sums; /* expected numbers of transitions, N x L x L, or NULL */
    double *grad_transitions; /* of the sum of all losses */
    double *grad_start;
    double *grad_end;
    unsigned single; /* whose gradients are rounded to float: 1 transitions, 2 start, 4 end */
    csm_crf_method method;
    size_t paths; /* of each sequence: the best ones (CSM_CRF_VITERBI), or numbers of draws */
    int64_t *decoded; /* path k of sequence i: at row + i sequence_step + k path_step */
    size_t sequence_step, path_step;
    int64_t fill; /* where there is no tag */
    double *log_prob; /* of each path, or NULL */
    const double
        *uniforms; /* in [0, 1), one for each sequence, draw and position, from the last position to the first */
    int is_slow; /* 1: one exponent a tag throughout, for tests */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
    size_t position; /* set with CSM_BAD_LABEL: the row */
} csm_crf_options;
static inline csm_crf_options csm_default_crf_options(void) {
    csm_crf_options o; /* so many members that an initialiser would hide which is which */
    memset(&o, 0, sizeof o);
    o.size = sizeof o;
    o.fill = -1;
    o.paths = 1;
    o.threads = 1;
    return o;
}
/* emissions: contiguous rows of L numbers.  by_tag may be emissions; other overlap is not allowed.  Nothing is written
 * if a label is bad. */
csm_status csm_crf_f32(csm_crf_task, const void *emissions, csm_crf_options *);
csm_status csm_crf_f64(csm_crf_task, const void *emissions, csm_crf_options *);
csm_status csm_crf_f16(csm_crf_task, const void *emissions, csm_crf_options *);
csm_status csm_crf_bf16(csm_crf_task, const void *emissions, csm_crf_options *);

/* Segments: groups of elements along the axis.  Each gives the bits that its elements, in their order, give as a row of
 * the function of the same name.  A result of a reduction, and every array with one element a row there
 * (temperatures, labels, sample_weight, upstream), has one for each row and segment: the segments go along the axis. */
typedef struct csm_segments {
    size_t size; /* sizeof(csm_segments) when the caller was compiled */
    size_t count;
    const int64_t *indptr; /* count + 1 numbers that rise within 0 to n: segment s has indptr[s] to indptr[s + 1] - 1 */
    const void *order; /* these are places in a list of all n positions along the axis, each once; NULL: positions */
    int order_bytes; /* 4: the lists hold int32_t; 8: int64_t */
    /* NULL, or the inverse of `order`: the place of each position.  Losses need the order; the others take the places,
     * with which they are faster, if there are any. */
    const void *places;
} csm_segments;
static inline csm_segments csm_default_segments(void) {
    csm_segments o = {sizeof(csm_segments), 0, NULL, NULL, 8, NULL};
    return o;
}
/* Sorts n ids into indptr and order, stably: ids are -1 (before the first segment: no part) to count - 1.  *is_sorted:
 * they are ascending, and `order` has not been written.  An id out of range: CSM_BAD_LABEL, and its *position. */
csm_status csm_segment_sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *order, int order_bytes,
                            int *is_sorted, size_t *position);
/* Elements outside of all segments: 0, of log_softmax -inf.  options->scratch is not used. */
csm_status csm_segment_softmax_f32(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                   const csm_options *);
csm_status csm_segment_softmax_f64(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                   const csm_options *);
csm_status csm_segment_softmax_f16(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                   const csm_options *);
csm_status csm_segment_softmax_bf16(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                    const csm_options *);
csm_status csm_segment_log_softmax_f32(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                       const csm_options *);
csm_status csm_segment_log_softmax_f64(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                       const csm_options *);
csm_status csm_segment_log_softmax_f16(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                       const csm_options *);
csm_status csm_segment_log_softmax_bf16(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                        const csm_options *);
csm_status csm_segment_logsumexp_f32(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                     const csm_options *);
csm_status csm_segment_logsumexp_f64(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                     const csm_options *);
csm_status csm_segment_logsumexp_f16(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                     const csm_options *);
csm_status csm_segment_logsumexp_bf16(const csm_shape *, const csm_segments *, const csm_view *x, const csm_view *y,
                                      const csm_options *);
csm_status csm_segment_softmax_vjp_f32(const csm_shape *, const csm_segments *, const csm_view *dy, const csm_view *y,
                                       const csm_view *dx, const csm_options *);
csm_status csm_segment_softmax_vjp_f64(const csm_shape *, const csm_segments *, const csm_view *dy, const csm_view *y,
                                       const csm_view *dx, const csm_options *);
csm_status csm_segment_softmax_vjp_f16(const csm_shape *, const csm_segments *, const csm_view *dy, const csm_view *y,
                                       const csm_view *dx, const csm_options *);
csm_status csm_segment_softmax_vjp_bf16(const csm_shape *, const csm_segments *, const csm_view *dy, const csm_view *y,
                                        const csm_view *dx, const csm_options *);
csm_status csm_segment_log_softmax_vjp_f32(const csm_shape *, const csm_segments *, const csm_view *dy,
                                           const csm_view *y, const csm_view *dx, const csm_options *);
csm_status csm_segment_log_softmax_vjp_f64(const csm_shape *, const csm_segments *, const csm_view *dy,
                                           const csm_view *y, const csm_view *dx, const csm_options *);
csm_status csm_segment_log_softmax_vjp_f16(const csm_shape *, const csm_segments *, const csm_view *dy,
                                           const csm_view *y, const csm_view *dx, const csm_options *);
csm_status csm_segment_log_softmax_vjp_bf16(const csm_shape *, const csm_segments *, const csm_view *dy,
                                            const csm_view *y, const csm_view *dx, const csm_options *);
/* labels: an element of the segment, from 0 on.  loss: one for each row and segment, in C order with the segments last,
 * and after them one more, their sum or mean.  options->temperatures, if given, has one for each row and segment.
 * options->weight is not allowed; segments without elements weigh 0.  options->positives: the loss is minus the
 * logarithm of the total probability of a segment's positives, +inf if it has none; label_smoothing must be 0. */
csm_status csm_segment_cross_entropy_f32(const csm_shape *, const csm_segments *, const csm_view *x,
                                         const csm_view *gradient, double *loss, csm_loss_options *);
csm_status csm_segment_cross_entropy_f64(const csm_shape *, const csm_segments *, const csm_view *x,
                                         const csm_view *gradient, double *loss, csm_loss_options *);
csm_status csm_segment_cross_entropy_f16(const csm_shape *, const csm_segments *, const csm_view *x,
                                         const csm_view *gradient, double *loss, csm_loss_options *);
csm_status csm_segment_cross_entropy_bf16(const csm_shape *, const csm_segments *, const csm_view *x,
                                          const csm_view *gradient, double *loss, csm_loss_options *);

/* Rows begin to end - 1 of a matrix with n contiguous columns, in the calling thread only: for programs that distribute
 * the rows of a call over their own threads.  Steps: elements between two rows.  The y of a log-sum-exp or an
 * entropy has one element for each row. */
csm_status csm_softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n, size_t begin,
                                size_t end, double temperature);
csm_status csm_softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n, size_t begin,
                                size_t end, double temperature);
csm_status csm_softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                size_t begin, size_t end, double temperature);
csm_status csm_softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                 size_t begin, size_t end, double temperature);
csm_status csm_log_softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                                    size_t begin, size_t end, double temperature);
csm_status csm_log_softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                                    size_t begin, size_t end, double temperature);
csm_status csm_log_softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                    size_t begin, size_t end, double temperature);
csm_status csm_log_softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                     size_t begin, size_t end, double temperature);
csm_status csm_logsumexp_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n, size_t begin,
                                  size_t end, double temperature);
csm_status csm_logsumexp_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                                  size_t begin, size_t end, double temperature);
csm_status csm_logsumexp_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                  size_t begin, size_t end, double temperature);
csm_status csm_logsumexp_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                   size_t begin, size_t end, double temperature);
csm_status csm_entropy_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n, size_t begin,
                                size_t end, double temperature);
csm_status csm_entropy_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n, size_t begin,
                                size_t end, double temperature);
csm_status csm_entropy_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                size_t begin, size_t end, double temperature);
csm_status csm_entropy_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                                 size_t begin, size_t end, double temperature);

/* Bytes of scratch that suffice for any function above with csm_options, on this shape with this many threads. */
size_t csm_scratch_size(const csm_shape *, int threads);

const char *csm_status_text(csm_status);

/* Draws from a given distribution over n <= 2^31 classes by the alias method, in integers: the table realises
 * masses[j] / (n 2^32) exactly.  These functions read threads and interrupt of the options. */
typedef struct csm_alias_cell {
    uint32_t cut, alias;
} csm_alias_cell;
/* masses: (weights + smoothing)^power as integers whose sum is n 2^32, by largest remainder, at least 1 where the
 * weight is not 0.  weights NULL: log((j + 2) / (j + 1)).  CSM_BAD_OPTION: a weight is negative or not finite;
 * CSM_NO_MASS: all are 0. */
csm_status csm_alias_masses(size_t n, const double *weights, double smoothing, double power, uint64_t *masses,
                            const csm_options *);
csm_status csm_alias_table(size_t n, const uint64_t *masses, csm_alias_cell *cells);
/* One class for each random 64-bit number.  cells NULL: uniform, for any n up to 2^63 - 1. */
csm_status csm_alias_draw(size_t n, const csm_alias_cell *cells, size_t draws, const uint64_t *random, int64_t *classes,
                          const csm_options *);
/* The logarithm of the expected count in `rate` draws, rate * mass / total; is_poisson: that of the probability to be
 * among the draws of a Poisson process of this rate.  masses NULL: every mass is 1. */
csm_status csm_alias_log_q(const uint64_t *masses, uint64_t total, double rate, int is_poisson, size_t count,
                           const int64_t *classes, double *log_q, const csm_options *);
/* The expected number of classes among the draws of a Poisson process of the rate t, and its derivative.  masses NULL:
 * all classes are equally probable. */
csm_status csm_alias_inclusion(size_t n, const uint64_t *masses, double t, double *expected, double *slope,
                               const csm_options *);

/* Products with the rows of a matrix that are gathered by number, for losses over few of many classes.  Rows are
 * contiguous, steps are bytes between them (of ids: elements).  These functions read threads and interrupt of the
 * options; numbers of rows are not checked. */
/* out[i][j] = x[i] . w[ids[i][j]] for n rows and m numbers each, ids_step = 0: the same numbers for every row. */
csm_status csm_row_dots_f32(size_t n, size_t m, size_t d, const float *x, ptrdiff_t x_step, const float *w,
                            ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step, float *out, ptrdiff_t out_step,
                            const csm_options *);
csm_status csm_row_dots_f64(size_t n, size_t m, size_t d, const double *x, ptrdiff_t x_step, const double *w,
                            ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step, double *out, ptrdiff_t out_step,
                            const csm_options *);
csm_status csm_row_dots_f16(size_t n, size_t m, size_t d, const uint16_t *x, ptrdiff_t x_step, const uint16_t *w,
                            ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step, float *out, ptrdiff_t out_step,
                            const csm_options *);
csm_status csm_row_dots_bf16(size_t n, size_t m, size_t d, const uint16_t *x, ptrdiff_t x_step, const uint16_t *w,
                             ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step, float *out, ptrdiff_t out_step,
                             const csm_options *);
/* out[i] += sum of g[e] w[ids[e]] over e from offsets[i] to offsets[i + 1] - 1, in this order. */
csm_status csm_row_sums_f32(size_t n, const int64_t *offsets, size_t d, const float *g, const float *w,
                            ptrdiff_t w_step, const int64_t *ids, float *out, ptrdiff_t out_step, const csm_options *);
csm_status csm_row_sums_f64(size_t n, const int64_t *offsets, size_t d, const double *g, const double *w,
                            ptrdiff_t w_step, const int64_t *ids, double *out, ptrdiff_t out_step, const csm_options *);
csm_status csm_row_sums_f16(size_t n, const int64_t *offsets, size_t d, const float *g, const uint16_t *w,
                            ptrdiff_t w_step, const int64_t *ids, float *out, ptrdiff_t out_step, const csm_options *);
csm_status csm_row_sums_bf16(size_t n, const int64_t *offsets, size_t d, const float *g, const uint16_t *w,
                             ptrdiff_t w_step, const int64_t *ids, float *out, ptrdiff_t out_step, const csm_options *);
/* w[ids[i]] += scale values[i]; the numbers are distinct. */
csm_status csm_row_add_f32(size_t n, size_t d, const int64_t *ids, const float *values, ptrdiff_t values_step,
                           double scale, float *w, ptrdiff_t w_step, const csm_options *);
csm_status csm_row_add_f64(size_t n, size_t d, const int64_t *ids, const double *values, ptrdiff_t values_step,
                           double scale, double *w, ptrdiff_t w_step, const csm_options *);
csm_status csm_row_add_f16(size_t n, size_t d, const int64_t *ids, const uint16_t *values, ptrdiff_t values_step,
                           double scale, uint16_t *w, ptrdiff_t w_step, const csm_options *);
csm_status csm_row_add_bf16(size_t n, size_t d, const int64_t *ids, const uint16_t *values, ptrdiff_t values_step,
                            double scale, uint16_t *w, ptrdiff_t w_step, const csm_options *);
/* Counting sort of `count` keys below `bins`: order holds the positions of equal keys ascending, from offsets[key] on;
 * offsets has bins + 1 elements. */
csm_status csm_sort_rows(size_t count, const int64_t *keys, size_t bins, int64_t *offsets, int64_t *order);

/* Negative sampling and noise-contrastive estimation: per row of m negatives and a target, the last,
 *     loss = s [softplus(-u_m) + sum_j c_j softplus(u_j)],  softplus(u) = log(1 + e^u). */
typedef struct csm_logistic_options {
    size_t size; /* sizeof(csm_logistic_options) when the caller was compiled */
    int gradient; /* u becomes the gradient of the sum of the losses, divided by the temperature */
    double temperature; /* that u has been divided by */
    double clip_norm, clip_value; /* of a row's gradient (norm first); 0 = none */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_logistic_options;
static inline csm_logistic_options csm_default_logistic_options(void) {
    csm_logistic_options o = {sizeof(csm_logistic_options), 1, 1, 0, 0, 1, NULL, NULL};
    return o;
}
/* u: n rows of m + 1 numbers, u_step bytes apart.  counts: c, counts_step elements between rows (0: the same), or NULL.
 * scale: s of each row, upstream: the factor of its gradient; NULL = 1. */
csm_status csm_logistic_loss_f32(size_t n, size_t m, float *u, ptrdiff_t u_step, const double *counts,
                                 size_t counts_step, const double *scale, const double *upstream, double *loss,
                                 const csm_logistic_options *);
csm_status csm_logistic_loss_f64(size_t n, size_t m, double *u, ptrdiff_t u_step, const double *counts,
                                 size_t counts_step, const double *scale, const double *upstream, double *loss,
                                 const csm_logistic_options *);

#include "csoftmax_shards.h"

/* Instruction sets: the best one of the machine is chosen once; names as in CSOFTMAX_ISA. */
const char *csm_isa(void); /* in use */
int csm_select_isa(const char *name); /* 0 = done, -1 = not built or not available; do not call it while calls run */
int csm_isa_built(const char *name);
int csm_isa_available(const char *name);

/* CSM_OPTIONS_INIT for languages that cannot use an initialiser. */
static inline csm_options csm_default_options(void) {
    csm_options options = CSM_OPTIONS_INIT;
    return options;
}

/* A C-contiguous array, the softmax axis last; n = shape->n, or 1 for the result of a log-sum-exp. */
static inline csm_view csm_contiguous(const csm_shape *shape, size_t n, const void *data, size_t itemsize) {
    csm_view view;
    ptrdiff_t stride = (ptrdiff_t)itemsize;
    size_t i;
    view.data = (void *)(uintptr_t)data;
    view.axis_stride = stride;
    stride *= (ptrdiff_t)n;
    for (i = shape->ndim; i-- > 0;) {
        view.strides[i] = stride;
        stride *= (ptrdiff_t)shape->shape[i];
    }
    return view;
}

#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
