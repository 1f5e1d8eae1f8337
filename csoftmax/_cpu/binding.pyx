# cython: auto_pickle=False, binding=False, freethreading_compatible=True
# The binding of the C core. Arguments arrive checked by csoftmax._arguments, except in quick calls (quick.c), which
# accept plain arguments only.
#
# threads.pxi has thread counts, results.pxi the memory of results, calls.pxi one function for each signature, crf.pxi
# and crf_quick.pxi those of the CRF, alias.pxi those of alias tables, sampled.pxi those of losses over sampled classes,
# int8.pxi those of output layers in int8, tree.pxi those of trees, hashed.pxi those of class hashing,
# adversarial.pxi those of certificates, geometric.pxi that of g-softmax, segments.pxi those over segments, streams.pxi
# those of rows in pieces, subsets.pxi and rankings.pxi those of subsets and rankings.

from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_SIMPLE, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcpy, memset

cimport csoftmax.cpu as cpu

import operator
import os
from contextvars import ContextVar as _ContextVar
from inspect import signature as _signature
from math import prod as _prod

from numpy import (
    dtype as _dtype, empty as _empty, empty_like as _empty_like, float32 as _float32, float64 as _float64,
    frombuffer as _frombuffer, ndarray as _ndarray,
)


cdef extern from "core/extension.h" nogil:
    ctypedef struct csm_table:
        pass
    ctypedef struct csm_scales:
        pass
    ctypedef struct csm_entmax:
        pass
    ctypedef struct csm_block:
        pass
    ctypedef struct csm_row:
        pass
    int CSM_BLOCK
    const csm_table *csm_current_table()
    const char *csm_source()
    int csm_openmp()
    int csm_openmp_limit()
    cpu.csm_status csm_run_topk(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *, size_t,
                                const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_topk_options *)
    cpu.csm_status csm_run_topk_integer(cpu.csm_label_type, const csm_table *, const cpu.csm_shape *,
                                        const cpu.csm_view *, size_t, const cpu.csm_view *, const cpu.csm_view *,
                                        const cpu.csm_topk_options *)
    ctypedef struct csm_weighted_sum:
        const cpu.csm_view *x
        const cpu.csm_view *b
        const cpu.csm_view *where
        const cpu.csm_view *result
        const cpu.csm_view *sign
        const cpu.csm_view *temperatures
        double temperature
        int threads
        int (*interrupt)(void *) noexcept

    cpu.csm_status csm_run_weighted_sum(int, const csm_table *, const cpu.csm_shape *, const csm_weighted_sum *)
    cpu.csm_status csm_run_divergence(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                      const cpu.csm_view *, const cpu.csm_view *, double *,
                                      const cpu.csm_divergence_options *)
    cpu.csm_status csm_run_entmax(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                  const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_entmax_options *)
    cpu.csm_status csm_run_entmax_loss(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                       const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_view *, double *,
                                       const cpu.csm_entmax_options *)
    cpu.csm_status csm_run_sample(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *, size_t,
                                  const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_sample_options *)
    cpu.csm_status csm_run_penalize(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                    const cpu.csm_view *, size_t, const cpu.csm_view *,
                                    const cpu.csm_penalize_options *)
    cpu.csm_status csm_run_crf(int, cpu.csm_crf_task, const csm_table *, const void *, cpu.csm_crf_options *)
    ctypedef struct csm_row_update:
        int kind
        double learning_rate, penalty
        void *w
        ptrdiff_t w_row, w_axis
        size_t n, count
        const int64_t *rows
        const void *g
        void *state
        void *second
        uint32_t *visits
        int64_t *last
        int64_t step
        int threads
        int (*interrupt)(void *) noexcept
    int CSM_SGD, CSM_ROWWISE_ADAGRAD, CSM_ADAGRAD, CSM_ADAM
    cpu.csm_status csm_run_row_update(int, const csm_table *, const csm_row_update *)
    cpu.csm_status csm_run_row_dots(int, const csm_table *, size_t, size_t, size_t, const void *, ptrdiff_t,
                                    const void *, ptrdiff_t, const int64_t *, ptrdiff_t, void *, ptrdiff_t,
                                    const cpu.csm_options *)
    cpu.csm_status csm_run_row_sums(int, const csm_table *, size_t, const int64_t *, size_t, const void *,
                                    const void *, ptrdiff_t, const int64_t *, const void *, ptrdiff_t,
                                    const int64_t *, void *, ptrdiff_t, const cpu.csm_options *)
    cpu.csm_status csm_run_row_add(int, const csm_table *, size_t, size_t, const int64_t *, const void *, ptrdiff_t,
                                   double, void *, ptrdiff_t, const cpu.csm_options *)
    cpu.csm_status csm_run_logistic_loss(int, const csm_table *, size_t, size_t, void *, ptrdiff_t, const double *,
                                         size_t, const double *, const double *, double *,
                                         const cpu.csm_logistic_options *)
    cpu.csm_status csm_group_rows(size_t, const int64_t *, size_t, int64_t *, int64_t *, int64_t *, int64_t *,
                                  size_t *)
    ctypedef struct csm_sampled_loss:
        int is_softmax
        size_t n, m, d
        const void *x
        const void *w
        ptrdiff_t x_step, w_step
        const int64_t *ids
        const int64_t *labels
        void *u
        ptrdiff_t u_step
        const void *terms
        ptrdiff_t terms_step
        const void *label_terms
        int masks_hits
        const int64_t *sorted
        const int64_t *order
        const double *counts
        size_t counts_step
        const double *scale
        const double *upstream
        double *loss
        double *sums
        void *grad_x
        ptrdiff_t grad_x_step
        cpu.csm_logistic_options options
    cpu.csm_status csm_run_sampled_loss(int, const csm_table *, const csm_sampled_loss *)
    cpu.csm_status csm_run_cross_entropy(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                         const cpu.csm_view *, double *, cpu.csm_loss_options *)
    cpu.csm_status csm_run_softmax(int, int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                   const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_options *)
    cpu.csm_status csm_run_segments(int, int, const csm_table *, const cpu.csm_shape *, const cpu.csm_segments *,
                                    const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_view *,
                                    const cpu.csm_options *)
    cpu.csm_status csm_run_segment_sort(size_t, const int64_t *, size_t, int64_t *, void *, int, int *, size_t *,
                                        int (*)(void *) noexcept) nogil
    cpu.csm_status csm_run_invert_places(size_t, const void *, int, void *, int, int (*)(void *) noexcept) nogil
    cpu.csm_status csm_run_segment_loss(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_segments *,
                                        const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_view *, double *,
                                        cpu.csm_loss_options *)

    ctypedef struct csm_pairs:
        size_t labels, width
        const int64_t *offsets
        const uint16_t *label
        double *weight
        const int32_t *row
        double *rows
    ctypedef struct csm_entries:
        const int64_t *begin
        const int32_t *index
        const float *value
    int CSM_FEATURE_LANES
    cpu.csm_status csm_run_emissions(const csm_table *, const csm_pairs *, size_t, const csm_entries *, size_t,
                                     double *, int, int (*)(void *) noexcept)
    cpu.csm_status csm_run_feature_gradient(const csm_table *, const csm_pairs *, const int64_t *, size_t,
                                            const csm_entries *, const double *, int, int (*)(void *) noexcept)

    ctypedef enum csm_geometric_task:
        CSM_GEOMETRIC_SOLVE
        CSM_GEOMETRIC_MEASURE
        CSM_GEOMETRIC_DIFFERENTIATE
    ctypedef struct csm_geometric:
        size_t rows, classes, groups, pitch
        const double *similarities
        const int32_t *group
        const double *x
        const double *dy
        double *y
        double *excess
        double *gap
        int threads
        int (*interrupt)(void *) noexcept
    int CSM_GEOMETRIC_LANES
    cpu.csm_status csm_run_geometric(csm_geometric_task, const csm_table *, const csm_geometric *)

    ctypedef struct csm_int8_layer:
        size_t classes, dims
        int dtype
        uint8_t *codes
        uint8_t *second
        float *scale
        float *residual
        float *second_residual
        float *norm
        float *bias
        const double *exact_bias
        const int16_t *exponent
        const void *w
        ptrdiff_t w_row, w_axis
        double ratio
        double largest
        int threads
        int (*interrupt)(void *) noexcept
        const int64_t *order
        uint8_t *nibbles
        float *gap
        float *reach
        uint8_t *part
        int is_biased
    ctypedef struct csm_int8_search:
        size_t queries, k
        const double *x
        int limbs
        const unsigned char *where
        ptrdiff_t where_row
        const int64_t *indptr
        const int64_t *excluded
        double *values
        int64_t *indices
        int64_t *found
        int64_t *rescored
    ctypedef struct csm_int8_lists:
        const csm_int8_layer *centers
        size_t lists
        const int64_t *begin
        const double *radius
        const double *largest
        const double *typical
        const double *spread
        const double *along
        size_t probes
        int is_exact
        size_t limit
        unsigned char *certified
        int64_t *scanned
        int64_t *probed
    int CSM_INT8_GROUP, CSM_INT8_DIMS
    cpu.csm_status csm_run_int8_quantise(const csm_table *, const csm_int8_layer *, size_t, const int64_t *)
    cpu.csm_status csm_run_int8_nibbles(const csm_table *, const csm_int8_layer *, size_t, const int64_t *)
    cpu.csm_status csm_run_int8_topk(const csm_table *, const csm_int8_layer *, const csm_int8_search *)
    cpu.csm_status csm_run_int8_lists(const csm_table *, const csm_int8_layer *, const csm_int8_search *,
                                      const csm_int8_lists *)
    cpu.csm_status csm_run_int8_scores(const csm_table *, const csm_int8_layer *, const double *, size_t,
                                       const int64_t *, double *)
    cpu.csm_status csm_run_int8_bounds(const csm_table *, const csm_int8_layer *, const double *, double *, double *,
                                       double *)
    int csm_run_int8_dots(const csm_table *, int, const uint8_t *, size_t, const int8_t *, size_t, const int32_t *,
                          int32_t *)
    void csm_run_int8_narrow_dots(const csm_table *, const uint8_t *, size_t, const int8_t *, size_t, const int32_t *,
                                  uint8_t *, int32_t *)
    void csm_run_int8_nibble_dots(const csm_table *, const uint8_t *, size_t, const int8_t *, int32_t, int32_t *)

    ctypedef struct csm_hash:
        size_t hashes
        uint64_t buckets
        const uint64_t *first
        const uint64_t *second
        const uint64_t *add
    ctypedef struct csm_hash_call:
        csm_hash hash
        size_t rows, tables, count
        const float *table
        uint64_t begin
        const uint64_t *ids
        size_t ids_row
        int is_least
        double divisor
        const float *prior
        int threads
        int (*interrupt)(void *) noexcept
    cpu.csm_status csm_run_hash_buckets(const csm_table *, const csm_hash_call *, int64_t *)
    cpu.csm_status csm_run_hash_scores(const csm_table *, const csm_hash_call *, float *)
    cpu.csm_status csm_run_hash_topk(const csm_table *, const csm_hash_call *, size_t, float *, int64_t *)

    ctypedef struct csm_tree:
        size_t classes
        int64_t root
        const int32_t *child
        uint32_t *leaf_parent
        uint32_t *node_parent
        int32_t *order
        int32_t *depth
    ctypedef struct csm_tree_call:
        const csm_tree *tree
        const void *theta
        const void *bias
        const void *x
        size_t n, d
        double temperature
        int threads
        int (*interrupt)(void *) noexcept
    ctypedef struct csm_tree_loss:
        const int64_t *labels
        const int64_t *offsets
        const double *scale
        const double *upstream
        double clip_norm, clip_value
        int is_rounded
        int64_t *ids
        uint8_t *codes
        void *g
        void *grad_x
        double *loss
        uint64_t *keys
        uint32_t *rows
    ctypedef struct csm_tree_groups:
        int64_t *nodes
        int64_t *starts
        int64_t *examples
        void *g
        size_t count
    ctypedef struct csm_tree_rows:
        const csm_tree_groups *groups
        void *values
        void *bias_values
        const csm_row_update *theta
        const csm_row_update *bias
        const uint8_t *frozen
    void csm_tree_huffman(size_t, const double *, const int64_t *, int32_t *, double *)
    size_t csm_tree_trace(csm_tree *, int32_t *)
    void csm_tree_sums(const csm_tree *, const double *, double *)
    cpu.csm_status csm_run_tree_loss(int, const csm_table *, const csm_tree_call *, const csm_tree_loss *)
    void csm_tree_group(const csm_tree_call *, const csm_tree_loss *, csm_tree_groups *)
    cpu.csm_status csm_run_tree_rows(int, const csm_table *, const csm_tree_call *, const csm_tree_rows *)
    cpu.csm_status csm_run_tree_log_proba(int, const csm_table *, const csm_tree_call *, double *)
    cpu.csm_status csm_run_tree_topk(int, const csm_table *, const csm_tree_call *, size_t, double *, int64_t *,
                                     int64_t *)
    cpu.csm_status csm_run_tree_walk(int, const csm_table *, const csm_tree_call *, const int64_t *, size_t,
                                     const double *, int64_t *)

    ctypedef struct csm_certify_call:
        size_t n, classes, d
        const double *x
        const double *w
        const double *bias
        const int64_t *target
        const double *low
        const double *high
        size_t low_step, high_step
        int norm
        double exponent
        double *radius
        double *margin
        int64_t *rival
        int threads
        int (*interrupt)(void *) noexcept
        void *interrupt_context
    int CSM_NORM_1, CSM_NORM_2, CSM_NORM_INF, CSM_NORM_OTHER
    cpu.csm_status csm_run_certify(const csm_table *, const csm_certify_call *)
    ctypedef struct csm_climb_rows:
        const void *x
        const void *bias
        const void *start
        const int64_t *labels
        const double *low
        const double *high
        size_t low_step, high_step
        void *delta
    ctypedef struct csm_climb_block:
        size_t classes, d
        const void *w
        const void *scaled
        double step, eps
        int norm
    ctypedef struct csm_climb_call:
        size_t n, steps
        csm_climb_rows rows
        csm_climb_block layer
        int threads
        int (*interrupt)(void *) noexcept
    cpu.csm_status csm_run_climb(int, const csm_table *, const csm_climb_call *)
    cpu.csm_status csm_run_climb_step(int, const csm_table *, size_t, void *, const void *, const void *, const void *,
                                      double, int, int (*)(void *) noexcept)
    cpu.csm_status csm_run_dual_norms(const csm_table *, const csm_certify_call *, size_t, const int64_t *, double *)

    ctypedef struct csm_loss_call:
        pass
    ctypedef struct csm_softcap:
        pass
    void csm_set_scales(csm_scales *, double, int)
    void csm_set_entmax(csm_entmax *, double, int)
    csm_loss_call csm_loss_call_of(const cpu.csm_loss_options *, size_t, int)
    double csm_tree_sum(const double *, size_t)
    size_t csm_records_check(const int64_t *, size_t, size_t)
    csm_softcap csm_softcap_of(double, int)

cdef extern from "registry.h" nogil:
    int CSM_DTYPE_f32, CSM_DTYPE_f64, CSM_DTYPE_f16, CSM_DTYPE_bf16, CSM_OP_COUNT, CSM_DTYPE_COUNT

cdef extern from *:
    """
    #include "csoftmax_api.h"
    #define CSM_API_ENTRY(type, name) csm_##name,
    static const csm_api csm_api_table = {CSM_ABI_MAJOR, CSM_ABI_MINOR, sizeof(csm_api),
                                          CSM_API_FUNCTIONS(CSM_API_ENTRY)};
    """
    const void *csm_api_pointer "&csm_api_table"
    const char *CSM_SOURCE_HASH
    const char *CSM_VERSION

# From the lists of registry.h, whose rows begin with the name.
cdef extern from *:
    """
    #include "xla.h"
    #define CSM_ROW_NAME(name, ...) #name,
    #define CSM_ROW_COUNT(name, ...) +1
    #define CSM_ROW_KEEPS_AXIS(name, signature, keeps_axis, ...) keeps_axis,
    #define CSM_ROW_TARGET(name, ...) (void *)csm_xla_##name,
    #define CSM_ROW_SEGMENT_TARGET(name, ...) (void *)csm_xla_segment_##name,
    static const char *const csm_op_names[] = {CSM_OPS(CSM_ROW_NAME)};
    static const char csm_op_keeps_axis[] = {CSM_OPS(CSM_ROW_KEEPS_AXIS)};
    static void *const csm_xla_targets[] = {CSM_OPS(CSM_ROW_TARGET)};
    static void *const csm_xla_segment_targets[] = {CSM_OPS(CSM_ROW_SEGMENT_TARGET)};
    static const char *const csm_dtype_suffixes[] = {CSM_DTYPES(CSM_ROW_NAME)};
    static const char *const csm_isa_names[] = {CSM_ISAS(CSM_ROW_NAME)};
    enum { CSM_ISA_COUNT = 0 CSM_ISAS(CSM_ROW_COUNT) };
    """
    const char **csm_op_names
    const char *csm_op_keeps_axis
    void **csm_xla_targets
    void **csm_xla_segment_targets
    const char **csm_dtype_suffixes
    const char **csm_isa_names
    int CSM_ISA_COUNT

cdef extern from "Python.h":
    int PyErr_CheckSignals()

cdef extern from "pages.h":
    size_t CSM_LARGE
    bint csm_fits_kept_pages(size_t)
    void csm_set_pages_limit(size_t)
    size_t csm_kept_pages()
    void csm_set_tracemalloc(uintptr_t, uintptr_t)
    void *csm_take_pages(size_t)
    void csm_give_pages(void *, size_t)

cdef extern from "quick.h":
    ctypedef struct csm_quick:
        void *ndarray
        void *empty
        void *empty_like
        void *dtypes[4]
        void *scalars[4]
        void *int64
        void *int32
        int (*threads)(object) except -1
        int (*interrupt)(void *) noexcept
        int (*raise_ "raise")(cpu.csm_status) except -1
    int CSM_QUICK_CROSS_ENTROPY, CSM_QUICK_CROSS_ENTROPY_WITH_GRAD
    int CSM_QUICK_KL_DIVERGENCE, CSM_QUICK_KL_DIVERGENCE_WITH_GRAD
    int csm_quick_set_up(const csm_quick *) except -1
    object csm_quick_function(int, object, object, object, object)

cdef extern from "xla.h" nogil:
    void csm_xla_entmax()
    void csm_xla_entmax_vjp()
    void csm_xla_segment_cross_entropy()
    void csm_xla_cross_entropy()
    void csm_xla_kl_divergence()
    void csm_xla_crf()
    void csm_xla_crf_vjp()
    void csm_xla_shard()
    void csm_xla_merge_shards()
    void csm_xla_finish_shard()


cdef _numpy_name(suffix):
    # "f32" to "float32", "bf16" to "bfloat16"
    return suffix.replace("f", "float")


OPS = {csm_op_names[i].decode(): i for i in range(CSM_OP_COUNT)}
SUFFIXES = {_numpy_name(csm_dtype_suffixes[i].decode()): csm_dtype_suffixes[i].decode() for i in range(CSM_DTYPE_COUNT)}
DTYPES = {name: i for i, name in enumerate(SUFFIXES)}
INTEGER = CSM_DTYPE_COUNT  # the dtype of a selection among integers
LABELS = {
    "int8": cpu.CSM_INT8, "int16": cpu.CSM_INT16, "int32": cpu.CSM_INT32, "int64": cpu.CSM_INT64,
    "uint8": cpu.CSM_UINT8, "uint16": cpu.CSM_UINT16, "uint32": cpu.CSM_UINT32, "uint64": cpu.CSM_UINT64,
}
REDUCTIONS = {"none": cpu.CSM_NONE, "sum": cpu.CSM_SUM, "mean": cpu.CSM_MEAN}
NORMALIZE = {None: cpu.CSM_TOPK_NONE, "topk": cpu.CSM_TOPK_SOFTMAX, "full": cpu.CSM_TOPK_FULL}
FILTERS = {
    "temperature": cpu.CSM_FILTER_TEMPERATURE, "top_n_sigma": cpu.CSM_FILTER_TOP_N_SIGMA,
    "top_k": cpu.CSM_FILTER_TOP_K, "typical_p": cpu.CSM_FILTER_TYPICAL_P, "top_p": cpu.CSM_FILTER_TOP_P,
    "min_p": cpu.CSM_FILTER_MIN_P,
}
CRF_TASKS = {
    "log_partition": cpu.CSM_CRF_LOG_PARTITION, "score": cpu.CSM_CRF_SCORE, "loss": cpu.CSM_CRF_LOSS,
    "marginals": cpu.CSM_CRF_MARGINALS, "decode": cpu.CSM_CRF_DECODE, "sample": cpu.CSM_CRF_SAMPLE,
}
CRF_REDUCTIONS = {
    "none": cpu.CSM_CRF_NONE, "sum": cpu.CSM_CRF_SUM, "mean": cpu.CSM_CRF_MEAN,
    "token_mean": cpu.CSM_CRF_TOKEN_MEAN,
}
CRF_METHODS = {
    "viterbi": cpu.CSM_CRF_VITERBI, "posterior": cpu.CSM_CRF_POSTERIOR,
    "posterior_path": cpu.CSM_CRF_POSTERIOR_PATH,
}
OPTIMIZERS = {"sgd": CSM_SGD, "rowwise_adagrad": CSM_ROWWISE_ADAGRAD, "adagrad": CSM_ADAGRAD, "adam": CSM_ADAM}
NORMS = {1.0: CSM_NORM_1, 2.0: CSM_NORM_2, float("inf"): CSM_NORM_INF, None: CSM_NORM_OTHER}
ISAS = tuple(csm_isa_names[i].decode() for i in range(CSM_ISA_COUNT))
BLOCK_ELEMENTS = CSM_BLOCK
FEATURE_LANES = CSM_FEATURE_LANES
GEOMETRIC_LANES = CSM_GEOMETRIC_LANES
GEOMETRIC_TASKS = {
    "solve": CSM_GEOMETRIC_SOLVE, "measure": CSM_GEOMETRIC_MEASURE, "differentiate": CSM_GEOMETRIC_DIFFERENTIATE,
}
SHARD_KINDS = {
    "softmax": cpu.CSM_SHARD_SOFTMAX, "log_softmax": cpu.CSM_SHARD_LOG_SOFTMAX, "logsumexp": cpu.CSM_SHARD_LOGSUMEXP,
    "softmax_vjp": cpu.CSM_SHARD_SOFTMAX_VJP, "log_softmax_vjp": cpu.CSM_SHARD_LOG_SOFTMAX_VJP,
    "loss": cpu.CSM_SHARD_LOSS,
}
SUM_WORDS = cpu.CSM_SUM_WORDS
RECORD_WORDS = cpu.CSM_RECORD_WORDS
LABEL_WORDS = cpu.CSM_LABEL_WORDS
TERMS_WORDS = cpu.CSM_TERMS_WORDS
SOFT_WORDS = cpu.CSM_SOFT_WORDS
INT8_GROUP = CSM_INT8_GROUP  # classes
INT8_MAX_FEATURES = CSM_INT8_DIMS
STRUCT_BYTES = {"csm_block": sizeof(csm_block), "csm_row": sizeof(csm_row)}  # for kernels on a device
SOURCE_HASH = CSM_SOURCE_HASH.decode()
VERSION = CSM_VERSION.decode()
ABI = f"{cpu.CSM_ABI_MAJOR}.{cpu.CSM_ABI_MINOR}"
C_API = PyCapsule_New(<void *>csm_api_pointer, "csoftmax._C_API", NULL)
OPENMP = csm_openmp()

# Errors and signals

cdef int _check_signals(void *context) noexcept with gil:
    return PyErr_CheckSignals()


cdef int _propagate() except -1:
    # the signal handler has set the exception
    return -1


cdef int _raise(cpu.csm_status status) except -1:
    if status == cpu.CSM_OK:
        return 0
    if status == cpu.CSM_INTERRUPTED:
        return _propagate()
    if status == cpu.CSM_NO_MEMORY:
        raise MemoryError("csoftmax: no memory for scratch; the output may be partly written")
    raise ValueError(f"csoftmax: {cpu.csm_status_text(status).decode()}")


include "threads.pxi"
include "results.pxi"
include "features.pxi"
include "calls.pxi"
include "shard.pxi"
include "crf.pxi"
include "crf_quick.pxi"
include "alias.pxi"
include "sampled.pxi"
include "int8.pxi"
include "hashed.pxi"
include "tree.pxi"
include "adversarial.pxi"
include "geometric.pxi"
include "segments.pxi"
include "streams.pxi"
include "subsets.pxi"
include "rankings.pxi"


# Instruction sets

def isa():
    return cpu.csm_isa().decode()


def isa_built():
    return tuple(name for name in ISAS if cpu.csm_isa_built(name.encode()))


def isa_available():
    return tuple(name for name in ISAS if cpu.csm_isa_available(name.encode()))


def select_isa(str name):
    if cpu.csm_select_isa(name.encode()) != 0:
        raise ValueError(f"instruction set {name!r} is not available; available here: {', '.join(isa_available())}")


# Quick calls

cdef object _f32 = _dtype("float32"), _f64 = _dtype("float64"), _f16 = _dtype("float16")
cdef object _i64 = _dtype("int64"), _i32 = _dtype("int32")


cdef _set_up_quick():
    cdef csm_quick needs
    needs.ndarray = <void *>_ndarray
    needs.empty = <void *>_empty
    needs.empty_like = <void *>empty_like
    needs.dtypes[CSM_DTYPE_f32] = <void *>_f32
    needs.dtypes[CSM_DTYPE_f64] = <void *>_f64
    needs.dtypes[CSM_DTYPE_f16] = <void *>_f16
    needs.dtypes[CSM_DTYPE_bf16] = NULL
    needs.scalars[CSM_DTYPE_f32] = <void *>_float32
    needs.scalars[CSM_DTYPE_f64] = <void *>_float64
    needs.scalars[CSM_DTYPE_f16] = needs.scalars[CSM_DTYPE_bf16] = NULL
    needs.int64 = <void *>_i64
    needs.int32 = <void *>_i32
    needs.threads = _threads
    needs.interrupt = _check_signals
    needs.raise_ = _raise
    csm_quick_set_up(&needs)


_set_up_quick()
_QUICK = {
    **OPS,
    "cross_entropy": CSM_QUICK_CROSS_ENTROPY,
    "cross_entropy_with_grad": CSM_QUICK_CROSS_ENTROPY_WITH_GRAD,
    "kl_divergence": CSM_QUICK_KL_DIVERGENCE,
    "kl_divergence_with_grad": CSM_QUICK_KL_DIVERGENCE_WITH_GRAD,
}


cdef _quick_function(function, result_type):
    signature = _signature(function)  # without annotations, which __text_signature__ cannot have
    parameters = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    signature = signature.replace(parameters=parameters, return_annotation=signature.empty)
    doc = f"{function.__name__}{signature}\n--\n\n{function.__doc__ or ''}"
    which = _QUICK.get(function.__name__)
    if which is None:
        raise ImportError(
            f"{function.__name__} is not among the operations of this build, {', '.join(_QUICK)}: it needs a row in "
            "CSM_OPS of src_c/registry.h, and a new build"
        )
    return csm_quick_function(which, function, function.__module__, doc, result_type)


def quick(function):
    """Decorate the Python function of an operation or of cross_entropy: quick.c handles plain calls without it."""
    return _quick_function(function, None)


def quick_returning(result_type):
    """`quick` for cross_entropy_with_grad, which returns a named tuple."""
    return lambda function: _quick_function(function, result_type)


# The functions that XLA calls for csoftmax.jax, in the capsules that it accepts.
cdef _target(void *function):
    return PyCapsule_New(function, "xla._CUSTOM_CALL_TARGET", NULL)


XLA_TARGETS = {name: _target(csm_xla_targets[i]) for name, i in OPS.items()} | {
    f"segment_{name}": _target(csm_xla_segment_targets[i]) for name, i in OPS.items()
} | {
    "segment_cross_entropy": _target(<void *>csm_xla_segment_cross_entropy),
    "entmax": _target(<void *>csm_xla_entmax),
    "entmax_vjp": _target(<void *>csm_xla_entmax_vjp),
    "cross_entropy": _target(<void *>csm_xla_cross_entropy),
    "kl_divergence": _target(<void *>csm_xla_kl_divergence),
    "crf": _target(<void *>csm_xla_crf),
    "crf_vjp": _target(<void *>csm_xla_crf_vjp),
    "shard": _target(<void *>csm_xla_shard),
    "merge_shards": _target(<void *>csm_xla_merge_shards),
    "finish_shard": _target(<void *>csm_xla_finish_shard),
}


def _choose_isa():
    name = os.environ.get("CSOFTMAX_ISA")
    if name and cpu.csm_select_isa(name.encode()) != 0:
        raise ImportError(f"CSOFTMAX_ISA={name} is not available; available here: {', '.join(isa_available())}")


if csm_source().decode() != SOURCE_HASH:
    raise ImportError(
        f"csoftmax {SOURCE_HASH} has loaded the libcsoftmax of another build, {csm_source().decode()!r}: check "
        "LD_LIBRARY_PATH, or install csoftmax again"
    )
_choose_isa()
