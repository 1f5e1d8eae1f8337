/* Functions that the Python extension calls in addition to those of csoftmax.h.  In a shared library they have a
 * separate symbol version (csoftmax.map, which make_interface.py writes from this header). */
#ifndef CSM_CORE_EXTENSION_H
#define CSM_CORE_EXTENSION_H

#include "../../csoftmax/include/csoftmax.h"
#include "../kernel/table.h"

#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility push(default)
#endif

/* isa/dispatch.c */
const csm_table *csm_current_table(void);
const char *csm_source(void); /* CSM_SOURCE_HASH of the library */

/* core/parallel.c */
int csm_openmp(void); /* _OPENMP, 0 without OpenMP */
int csm_openmp_limit(void); /* threads that OpenMP would use by default */

/* core/reduction.c */
double csm_tree_sum(const double *x, size_t n);

/* ops/shard.c: the first of the records that no shard can have made, of which a merge or a result could leave its
 * arrays; or their number. */
size_t csm_records_check(const int64_t *records, size_t rows, size_t words);

/* Constants for the CUDA backend.  The core computes them, so that both backends have the same ones, in double. */
void csm_set_scales(csm_scales *, double temperature, int single);
void csm_set_entmax(csm_entmax *, double alpha, int single);
csm_loss_call csm_loss_call_of(const csm_loss_options *, size_t n, int gradient);
csm_softcap csm_softcap_of(double cap, int is_single);

/* The drivers, called with the table to use; the functions of csoftmax.h pass the current one. */
csm_status csm_run_softmax(csm_op, csm_dtype, const csm_table *, const csm_shape *, const csm_view *input,
                           const csm_view *y, const csm_view *result,
                           const csm_options *); /* input: x, or dy of a gradient, whose y is given */
csm_status csm_run_cross_entropy(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x,
                                 const csm_view *gradient, double *loss, csm_loss_options *);
csm_status csm_run_segments(csm_op, csm_dtype, const csm_table *, const csm_shape *, const csm_segments *,
                            const csm_view *input, const csm_view *y, const csm_view *result, const csm_options *);
/* csm_segment_sort, which can be interrupted, and finds places instead of the order: numbers of 4 bytes if there are
 * less than 2^31 ids and segments, else of 8.  Their content is undefined if the ids are sorted. */
csm_status csm_run_segment_sort(size_t n, const int64_t *ids, size_t count, int64_t *indptr, void *places, int bytes,
                                int *is_sorted, size_t *position, int (*interrupt)(void *context));
/* order[places[i]] = i */
csm_status csm_run_invert_places(size_t n, const void *places, int bytes, void *order, int order_bytes,
                                 int (*interrupt)(void *context));
/* losses: a double for each row and segment, in any order but without gaps; with CSM_NONE the results. */
csm_status csm_run_segment_loss(csm_dtype, const csm_table *, const csm_shape *, const csm_segments *,
                                const csm_view *x, const csm_view *gradient, const csm_view *losses, double *total,
                                csm_loss_options *);
csm_status csm_run_topk(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, size_t k,
                        const csm_view *values, const csm_view *indices, const csm_topk_options *);
csm_status csm_run_topk_integer(csm_label_type, const csm_table *, const csm_shape *, const csm_view *x, size_t k,
                                const csm_view *values, const csm_view *indices, const csm_topk_options *);
csm_status csm_run_entmax(csm_dtype, const csm_table *, const csm_shape *, const csm_view *input, const csm_view *y,
                          const csm_view *result, const csm_entmax_options *); /* as csm_run_softmax */
csm_status csm_run_entmax_loss(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x,
                               const csm_view *labels, const csm_view *soft, const csm_view *gradient, double *loss,
                               const csm_entmax_options *);
/* log |sum b e^(x / T)| of each row, in double, and the sign of the sum (ops/weighted_sum.c).  0 < T < infinity. */
typedef struct csm_weighted_sum {
    const csm_view *x, *b, *where; /* b: doubles; where: NULL */
    const csm_view *result, *sign; /* doubles, one for each row */
    const csm_view *temperatures;  /* doubles, one for each row; NULL: temperature */
    double temperature;
    int threads;
    int (*interrupt)(void *context);
} csm_weighted_sum;
csm_status csm_run_weighted_sum(csm_dtype, const csm_table *, const csm_shape *, const csm_weighted_sum *);
csm_status csm_run_divergence(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, const csm_view *y,
                              const csm_view *gradient, double *loss, const csm_divergence_options *);
csm_status csm_run_sample(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, size_t draws,
                          const csm_view *uniform, const csm_view *indices, const csm_sample_options *);
enum {
    CSM_SAMPLE_FIRST_SELECTED = 64, /* number of classes first selected for top-p */
    CSM_SAMPLE_MANY_SELECTED = 4096, /* with more, and at least a part of the row, passes over it are faster */
    CSM_SAMPLE_MANY_PART = 24
};
/* Stages of drawing from rows of several blocks whose classes are divided among shards (ops/sample_shard.c). */
typedef enum csm_sample_stage {
    CSM_SAMPLE_STAGE_MASSES, /* masses of the blocks of a shard, and their sum; draws: 1 */
    CSM_SAMPLE_STAGE_NUCLEUS, /* x: the largest logits of rows in falling order, which top_p cuts; draws: 1 */
    CSM_SAMPLE_STAGE_DRAWS /* draws of classes of this shard, -1 for all others */
} csm_sample_stage;
typedef struct csm_sample_shard {
    csm_sample_stage stage;
    size_t classes, offset; /* of the whole row; of the shard's first class, a multiple of 4096 */
    const double *row_max; /* the largest logit of each row */
    const double *last; /* the last logit of each row that top_p keeps, NaN for all; or NULL */
    const int64_t *last_class; /* its class in the whole row */
    double *masses; /* of blocks: of the shard, or of the row for DRAWS */
    int64_t *sums; /* records: MASSES: of the shard, or NULL; NUCLEUS: of the row */
    int64_t *kept; /* NUCLEUS, two a row: how many are kept, 0: more; whether whole rows begin with a selection */
} csm_sample_shard;
csm_status csm_run_sample_shard(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, size_t draws,
                                const csm_view *uniform, const csm_view *indices, const csm_sample_options *,
                                const csm_sample_shard *);
csm_status csm_run_penalize(csm_dtype, const csm_table *, const csm_shape *, const csm_view *x, const csm_view *y,
                            size_t count, const csm_view *tokens, const csm_penalize_options *);
csm_status csm_run_crf(csm_dtype, csm_crf_task, const csm_table *, const void *emissions, csm_crf_options *);
csm_status csm_run_row_dots(csm_dtype, const csm_table *, size_t n, size_t m, size_t d, const void *x, ptrdiff_t x_step,
                            const void *w, ptrdiff_t w_step, const int64_t *ids, ptrdiff_t ids_step, void *out,
                            ptrdiff_t out_step, const csm_options *);
/* out_i = start + sum of g_e w[ids_e] for e from offsets[i] on.  start: out itself, NULL: 0, or row start_ids[i] of
 * another matrix (-1: 0). */
csm_status csm_run_row_sums(csm_dtype, const csm_table *, size_t n, const int64_t *offsets, size_t d, const void *g,
                            const void *w, ptrdiff_t w_step, const int64_t *ids, const void *start,
                            ptrdiff_t start_step, const int64_t *start_ids, void *out, ptrdiff_t out_step,
                            const csm_options *);
csm_status csm_run_row_add(csm_dtype, const csm_table *, size_t n, size_t d, const int64_t *ids, const void *values,
                           ptrdiff_t values_step, double scale, void *w, ptrdiff_t w_step, const csm_options *);
csm_status csm_run_logistic_loss(csm_dtype, const csm_table *, size_t n, size_t m, void *u, ptrdiff_t u_step,
                                 const double *counts, size_t counts_step, const double *scale, const double *upstream,
                                 double *loss, const csm_logistic_options *);

/* Distinct keys >= 0, ascending, as `rows`; positions order[offsets[r]] to order[offsets[r + 1] - 1] hold rows[r], in
 * order.  rows and order have room for `count` numbers, offsets for one more; *found: the number of rows.
 * With `source`, keys are n x m numbers and then n, of the last column: `order` has the positions in n x (m + 1), and
 * `source` their first index. */
csm_status csm_group_rows(size_t count, const int64_t *keys, size_t m, int64_t *rows, int64_t *offsets, int64_t *order,
                          int64_t *source, size_t *found);

/* Losses of n rows over m negatives and, last, the label, from their products to their gradients. */
typedef struct csm_sampled_loss {
    int is_softmax; /* else logistic terms */
    size_t n, m, d;
    const void *x, *w; /* in storage */
    ptrdiff_t x_step, w_step;
    const int64_t *ids;    /* n x m rows of w; NULL: u holds the products with negatives that all rows share */
    const int64_t *labels; /* n rows of w */
    void *u;               /* n x (m + 1) of the compute type: the logits; result, with options.gradient: theirs */
    ptrdiff_t u_step;
    const void *terms; /* of the compute type, added to the logits of negatives, or NULL */
    ptrdiff_t terms_step; /* 0: all rows have the same */
    const void *label_terms; /* the same for the labels */
    int masks_hits;          /* negatives that are the row's label get the logit -inf */
    const int64_t *sorted, *order; /* shared negatives, ascending, and their columns (NULL: 0 to m - 1) */
    const double *counts; /* logistic terms only: of negatives, or NULL */
    size_t counts_step;
    const double *scale, *upstream; /* of each row, or NULL */
    double *loss, *sums; /* results; sums, or NULL: of the derivatives of logistic terms, over each row */
    void *grad_x; /* of the compute type, gathered negatives only, or NULL: the gradient of x is added */
    ptrdiff_t grad_x_step;
    csm_logistic_options options;
} csm_sampled_loss;
csm_status csm_run_sampled_loss(csm_dtype, const csm_table *, const csm_sampled_loss *);

/* One step of an optimiser on some rows of w, in place; the state has the compute type. */
typedef struct csm_row_update {
    csm_optimizer_kind kind;
    double learning_rate, penalty; /* weight decay; their product is at most 1 */
    void *w;                       /* dtype of the call */
    ptrdiff_t w_row, w_axis;       /* bytes */
    size_t n;                      /* elements of a row */
    size_t count;
    const int64_t *rows; /* distinct; NULL: 0 to count - 1 */
    const void *g;       /* count x n of the compute type; NULL: only the decay that is due */
    void *state;         /* a number for each row of w (row-wise Adagrad), or for each element */
    void *second;        /* Adam: mean squares */
    uint32_t *visits;    /* Adam: of each row of w */
    int64_t *last;       /* the step up to which each row of w has decayed; NULL without a penalty */
    int64_t step;        /* number of this step, from 1 */
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_row_update;
csm_status csm_run_row_update(csm_dtype, const csm_table *, const csm_row_update *);

/* An output layer in int8 (ops/int8*.c).  Codes: for each group of 16 classes, and each four dimensions, 16 x 4 bytes;
 * dimensions are padded to 4, classes and the arrays of a number for each class to 16. */
typedef struct csm_int8_layer {
    size_t classes, dims;
    csm_dtype dtype; /* of w */
    uint8_t *codes, *second;    /* second: the second limb of the weights, or NULL */
    float *scale, *residual, *second_residual, *norm, *bias;
    const double *exact_bias;   /* of each class; NULL: bias is exact */
    const int16_t *exponent;    /* of each dimension: codes are those of w 2^-exponent */
    const void *w;
    ptrdiff_t w_row, w_axis;    /* bytes */
    double ratio;               /* norm / residual of a usual class */
    double largest;             /* finite norm; 0: no filter by coarse codes, as with a bias beyond 2^126 */
    int threads;
    int (*interrupt)(void *context);
    const int64_t *order;       /* the row of w, which is the class, of each code and its numbers; NULL: their own */
    /* The leading four bits of codes, for single queries, or NULL: 64 bytes for each group and eight dimensions.
     * gap, reach: for each group a bound of what they leave out of a code, and of norm / scale.  part: of each class,
     * whose own bound is (part + 1) / 256 of the gap. */
    uint8_t *nibbles;
    float *gap, *reach;
    uint8_t *part;
    int is_biased; /* 0: all biases are 0, and need not be read */
} csm_int8_layer;

/* The k best classes of each query: `found` of them, best first; rescored: the number of exact scores, or -1 where the
 * bounds leave so many classes that the caller must compute all scores. */
typedef struct csm_int8_search {
    size_t queries, k;
    const double *x;            /* queries x dims */
    int limbs;                  /* of x: 1, 2, or 0 for the default */
    const unsigned char *where; /* 0: the class takes no part; NULL */
    ptrdiff_t where_row;
    const int64_t *indptr, *excluded; /* ascending classes of each query that take no part; NULL */
    double *values;
    int64_t *indices, *found, *rescored;
} csm_int8_search;

/* Codes of `count` rows of layer->w, for the classes `ids` (NULL: from 0 on), which are distinct. */
csm_status csm_run_int8_quantise(const csm_table *, const csm_int8_layer *, size_t count, const int64_t *ids);
/* Fills nibbles, gap, reach and part of `count` groups (groups NULL: from 0 on). */
csm_status csm_run_int8_nibbles(const csm_table *, const csm_int8_layer *, size_t count, const int64_t *groups);
csm_status csm_run_int8_topk(const csm_table *, const csm_int8_layer *, const csm_int8_search *);
/* Exact scores of one query for the classes `ids` (NULL: count classes from 0 on). */
csm_status csm_run_int8_scores(const csm_table *, const csm_int8_layer *, const double *x, size_t count,
                               const int64_t *ids, double *scores);
/* Scores of all classes for one query, and bounds of their errors, from three limbs of x and all limbs of w.
 * Returns bounds of infinity for a query that cannot be coded.  *size: the bound of the norm of the scaled query. */
csm_status csm_run_int8_bounds(const csm_table *, const csm_int8_layer *, const double *x, double *scores,
                               double *bounds, double *size);
/* Lists of the codes of a layer, each of a mean and of codes that lie together, and what a search in them finds. */
typedef struct csm_int8_lists {
    const csm_int8_layer *centers; /* a class for each of the first lists: their means */
    size_t lists;
    const int64_t *begin;   /* lists + 1 */
    const double *radius;   /* no score is above x.mean + |x| radius + largest, whatever its rounding */
    const double *largest;  /* largest bias; of lists without a mean, their bound: infinity or -infinity */
    const double *typical;  /* bias; lists are ordered by z + sqrt(|x|^2 spread + z^2 along) + typical, z = x.mean */
    const double *spread, *along;
    size_t probes;          /* lists that are searched, and more until there are k classes */
    int is_exact;           /* search more, until no other list can hold one of the k best */
    size_t limit;           /* with is_exact: most codes of these; with more the query is given back */
    unsigned char *certified; /* no other list can hold one of the k best */
    int64_t *scanned, *probed; /* codes and lists that were searched */
} csm_int8_lists;
/* The same as csm_run_int8_topk within lists.  rescored is -1 where x is out of range, and -2 with too many codes. */
csm_status csm_run_int8_lists(const csm_table *, const csm_int8_layer *, const csm_int8_search *,
                              const csm_int8_lists *);
/* The kernel of dot products: which = 0 or 1 (VNNI; returns -1 without it). */
int csm_run_int8_dots(const csm_table *, int which, const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors,
                      const int32_t *offset, int32_t *out);
/* The same for their leading six bits. */
void csm_run_int8_narrow_dots(const csm_table *, const uint8_t *codes, size_t steps, const int8_t *x, size_t vectors,
                              const int32_t *offset, uint8_t *scratch, int32_t *out);
/* The same for their leading four bits, in pairs. */
void csm_run_int8_nibble_dots(const csm_table *, const uint8_t *nibbles, size_t lines, const int8_t *x, int32_t offset,
                              int32_t *out);
/* A binary tree of `classes` leaves and classes - 1 nodes, which csm_tree_trace has checked. */
typedef struct csm_tree {
    size_t classes;
    int64_t root;          /* a node; unused where there is none */
    const int32_t *child;  /* 2 a node, of its sides 0 and 1: a node, or ~leaf */
    uint32_t *leaf_parent; /* node and, in bit 31, side */
    uint32_t *node_parent;
    int32_t *order;        /* nodes, parents first */
    int32_t *depth;        /* of leaves: nodes above them */
} csm_tree;

/* ops/tree_shape.c.  Huffman's tree of ascending weights, whose leaves are `classes`; the root is node 0.  Sums has
 * room for a number for each node. */
void csm_tree_huffman(size_t n, const double *weights, const int64_t *classes, int32_t *child, double *sums);
/* Fills the parents, the order and the depths from child and root, where every node but the root and every leaf is a
 * child exactly once; returns the number of nodes that the root reaches: fewer than all if there is a circle. */
size_t csm_tree_trace(csm_tree *, int32_t *node_depth);
/* Sums of weights of the leaves below the sides of each node, 2 a node. */
void csm_tree_sums(const csm_tree *, const double *weights, double *sums);

/* ops/tree.c.  The logits of nodes are (theta x + bias) / temperature; arrays have contiguous rows of the dtype. */
typedef struct csm_tree_call {
    const csm_tree *tree;
    const void *theta, *bias; /* bias: NULL for 0 */
    const void *x;
    size_t n, d; /* rows of x, elements of a row */
    double temperature;
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_tree_call;

/* Losses of labels; entry offsets[i] + j is node j on the path to the label of row i. */
typedef struct csm_tree_loss {
    const int64_t *labels;  /* -1: the row takes no part */
    const int64_t *offsets; /* n + 1 */
    const double *scale, *upstream; /* of each row; NULL: 1 */
    double clip_norm, clip_value;   /* 0: none */
    int is_rounded;         /* losses are rounded to the dtype */
    int64_t *ids;           /* result: nodes of the entries */
    uint8_t *codes;         /* result: their sides */
    void *g;                /* result: derivatives of the loss by their logits, in the dtype, if there is grad_x */
    void *grad_x;           /* result, or NULL */
    double *loss;           /* result */
    uint64_t *keys;         /* result, if there is grad_x: node and number of each entry, and as much scratch */
    uint32_t *rows;         /* result, if there is grad_x: row of each entry */
} csm_tree_loss;
csm_status csm_run_tree_loss(csm_dtype, const csm_table *, const csm_tree_call *, const csm_tree_loss *);

/* The entries of a loss, sorted by node; in the order of the rows where the node is the same. */
typedef struct csm_tree_groups {
    const csm_tree_loss *loss;
    int64_t *nodes;       /* the distinct nodes, ascending */
    int64_t *starts;      /* of their entries, and the end of the last */
    int64_t *examples;    /* row of each entry, and */
    void *g;              /* its derivative: written where they are used, by threads */
    const uint64_t *keys; /* those of the loss, sorted */
    size_t count;         /* of nodes */
} csm_tree_groups;
void csm_tree_group(const csm_tree_call *, const csm_tree_loss *, csm_tree_groups *);

/* The gradients of the nodes of groups, or the steps of optimisers on them: `theta` and `bias` then give the arrays and
 * states.  Steps cannot be interrupted, so that they are whole. */
typedef struct csm_tree_rows {
    const csm_tree_groups *groups;
    void *values, *bias_values;         /* a row and a number for each node of the groups, or NULL */
    const csm_row_update *theta, *bias; /* or NULL */
    const uint8_t *frozen;              /* of all nodes, or NULL: steps leave them out */
} csm_tree_rows;
csm_status csm_run_tree_rows(csm_dtype, const csm_table *, const csm_tree_call *, const csm_tree_rows *);

/* Log-probabilities of all classes, n rows of doubles. */
csm_status csm_run_tree_log_proba(csm_dtype, const csm_table *, const csm_tree_call *, double *out);
/* The k best classes of each row, 0 < k <= classes; evaluated: the number of nodes whose logits were computed. */
csm_status csm_run_tree_topk(csm_dtype, const csm_table *, const csm_tree_call *, size_t k, double *values,
                             int64_t *indices, int64_t *evaluated);
/* Moves each row down from its place, a node or ~leaf, by up to `levels` levels; uniforms: n x levels.  CSM_NO_MASS: a
 * logit is NaN. */
csm_status csm_run_tree_walk(csm_dtype, const csm_table *, const csm_tree_call *, const int64_t *rows, size_t levels,
                             const double *uniforms, int64_t *places);

/* ops/adversarial.c.  Distances of the rows of x to the classes of a linear layer; contiguous arrays of doubles. */
typedef struct csm_certify_call {
    size_t n, classes, d;
    const double *x, *w, *bias;
    const int64_t *target;             /* NULL: the class with the largest logit */
    const double *low, *high;          /* walls, or NULL for none */
    size_t low_step, high_step;        /* d: each row has its own; 0: one row for all */
    csm_distance_norm norm;
    double exponent;                   /* of the dual norm, for CSM_NORM_OTHER */
    double *radius, *margin;           /* results */
    int64_t *rival;
    int threads;
    int (*interrupt)(void *context);
    void *interrupt_context;
} csm_certify_call;
csm_status csm_run_certify(const csm_table *, const csm_certify_call *);
/* Of each of `count` classes and each class j: the dual norm of w_class - w_j. */
csm_status csm_run_dual_norms(const csm_table *, const csm_certify_call *, size_t count, const int64_t *of,
                              double *out);

/* ops/adversarial_climb.c.  Projected gradient ascent from n perturbations; arrays of the dtype, f32 or f64. */
typedef struct csm_climb_call {
    size_t n, steps;
    csm_climb_rows rows;
    csm_climb_block layer; /* without scratch */
    int threads;
    int (*interrupt)(void *context);
} csm_climb_call;
csm_status csm_run_climb(csm_dtype, const csm_table *, const csm_climb_call *);
/* A step of n perturbations in the inf-norm along the signs of g, in place. */
csm_status csm_run_climb_step(csm_dtype, const csm_table *, size_t n, void *delta, const void *g, const void *low,
                              const void *high, double step, int threads, int (*interrupt)(void *));

/* ops/geometric.c: g-softmax.  Similarities e^(-C/2) of `groups` groups of classes, rows of a pitch that is a multiple
 * of CSM_GEOMETRIC_LANES, 0 beyond the last group; group: that of each class, or NULL if each is one of its own. */
typedef enum csm_geometric_task {
    CSM_GEOMETRIC_SOLVE,        /* x: logits, -inf where they take no part */
    CSM_GEOMETRIC_MEASURE,      /* x: distributions; excess: their Omega */
    CSM_GEOMETRIC_DIFFERENTIATE /* x: g-softmax, dy; y: the gradient of the logits */
} csm_geometric_task;
typedef struct csm_geometric {
    size_t rows, classes, groups, pitch;
    const double *similarities;
    const int32_t *group;
    const double *x, *dy;
    double *y;      /* result, rows x classes, or NULL: may be x or dy itself */
    double *excess; /* result, or NULL: log-sum-exp less the largest logit of each row */
    double *gap;    /* result, or NULL: relative Frank-Wolfe gap of each row */
    int threads;
    int (*interrupt)(void *);
} csm_geometric;
csm_status csm_run_geometric(csm_geometric_task, const csm_table *, const csm_geometric *);

/* ops/features.c.  Emissions: the rows of the first `attributes` attributes are filled from their weights before.
 * Gradient: the sums replace the weights of `pairs`; rows of `grad` are read up to pairs->width, so that
 * CSM_FEATURE_LANES doubles must follow it. */
csm_status csm_run_emissions(const csm_table *, const csm_pairs *, size_t attributes, const csm_entries *,
                             size_t tokens, double *emissions, int threads, int (*interrupt)(void *));
csm_status csm_run_feature_gradient(const csm_table *, const csm_pairs *, const int64_t *blocks, size_t block_count,
                                    const csm_entries *, const double *grad, int threads, int (*interrupt)(void *));

/* ops/hashed.c: class hashing.  Rows have `tables` tables of B floats, one for each hash or one for all, after another;
 * no number is NaN, or all of a row are.  Classes are begin to begin + count - 1, or ids: those of the rows are ids_row
 * apart. */
typedef struct csm_hash_call {
    csm_hash hash;
    size_t rows, tables, count;
    const float *table;
    uint64_t begin;      /* a multiple of CSM_HASH_BLOCK */
    const uint64_t *ids; /* NULL */
    size_t ids_row;      /* ids, 0 if all rows have the same */
    int is_least;        /* the least number in place of the sum */
    double divisor;
    const float *prior;  /* of each class; NULL */
    int threads;
    int (*interrupt)(void *context);
} csm_hash_call;
/* Buckets of count ids: count x hashes. */
csm_status csm_run_hash_buckets(const csm_table *, const csm_hash_call *, int64_t *out);
/* Scores: rows x count. */
csm_status csm_run_hash_scores(const csm_table *, const csm_hash_call *, float *out);
/* The k best classes of each row, 0 < k <= count, by their place among the classes; of equal ones the first. */
csm_status csm_run_hash_topk(const csm_table *, const csm_hash_call *, size_t k, float *values, int64_t *places);

/* ops/streams.c: rows x n contiguous elements of the softmax family.  max: NULL for rows within the ordinary range of
 * exp; else the maximum of each row, all of which are transformed first (ops/softmax_row.c). */
typedef struct csm_stream_call {
    csm_dtype dtype;
    size_t rows, n;
    const void *x;
    double temperature;
    const double *max;
    const void *values; /* rows x n x width, of the dtype */
    size_t width;
    int threads;
    int (*interrupt)(void *);
} csm_stream_call;
/* The blocks of each row, for logsumexp or softmax. */
csm_status csm_run_stream_blocks(csm_op, const csm_table *, const csm_stream_call *, csm_block *blocks);
/* The sums of rows of `count` blocks, and with logsumexp the results.  Reads neither x nor n. */
void csm_stream_combine(csm_op, const csm_table *, const csm_stream_call *, size_t count, const csm_block *blocks,
                        csm_row *rows, double *lse);
/* The softmax of pieces of rows whose sums are known.  has_others: set if a piece has NaN, or elements above
 * the maximum of its row, which are not in the sums; results of their blocks mean nothing then. */
csm_status csm_run_stream_results(const csm_table *, const csm_stream_call *, const csm_row *, void *y,
                                  int *has_others);
/* One block a row, n <= CSM_BLOCK: its softmax block, and the sums of e' times the values. */
csm_status csm_run_stream_values(const csm_table *, const csm_stream_call *, csm_block *blocks, double *sums);

/* ops/subsets.c: subsets of k[i] of the elements offsets[i] to offsets[i + 1] - 1. */
typedef struct csm_subset_call {
    size_t rows;
    const int64_t *offsets, *k;
    const double *x;
    double *log_sums;  /* result: one a row, or NULL */
    double *marginals; /* result: one an element, or NULL */
    float *single;     /* result: the one or the other as floats, or NULL */
    int threads;
    int (*interrupt)(void *);
} csm_subset_call;
csm_status csm_run_subsets(const csm_table *, const csm_subset_call *);

/* ops/rankings.c: the Plackett-Luce loss of `lists` lists, list i of the elements offsets[i] to offsets[i + 1] - 1. */
typedef enum csm_ranking_ties {
    CSM_RANKING_BRESLOW,
    CSM_RANKING_EFRON,
    CSM_RANKING_EXACT,
    CSM_RANKING_ORDER
} csm_ranking_ties;
typedef struct csm_ranking_call {
    csm_dtype dtype;
    size_t lists;
    const int64_t *offsets;
    const void *x;                 /* of the dtype */
    const double *relevance;       /* NaN: not in the list */
    const float *relevance_single; /* the same as floats; one of the two is NULL */
    const unsigned char *observed; /* or NULL: all are */
    csm_ranking_ties ties;
    size_t top;                  /* SIZE_MAX: all places */
    double temperature;          /* of all lists, unless there are temperatures */
    const double *temperatures;  /* one a list, or NULL */
    const double *sample_weight; /* the same */
    const double *upstream;      /* the same */
    csm_reduction reduction;
    double *losses; /* result: one a list */
    float *single;  /* result: the same as floats, or NULL */
    double total;   /* result with a reduction */
    void *grad;     /* result, or NULL: of the dtype; elements outside the lists are not written */
    int threads;
    int (*interrupt)(void *);
} csm_ranking_call;
csm_status csm_run_rankings(const csm_table *, csm_ranking_call *);

#if defined(__GNUC__) && !defined(_WIN32)
#pragma GCC visibility pop
#endif

#endif
