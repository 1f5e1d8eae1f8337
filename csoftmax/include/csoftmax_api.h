/* The functions of csoftmax.h for extension modules of Python, found at run time: nothing needs to be linked.
 *
 *     #include <Python.h>
 *     #include <csoftmax_api.h>
 *
 *     const csm_api *csm = csm_import();      with the GIL, once; NULL: a Python exception is set
 *     csm->softmax_f32(&shape, &x, &y, NULL);  without the GIL too
 *
 * The table is that of the capsule csoftmax._C_API.  It is append-only within one CSM_ABI_MAJOR; csm_import() refuses
 * one that is shorter than in this header.
 */
#ifndef CSOFTMAX_API_H
#define CSOFTMAX_API_H

#include "csoftmax.h"

/* Generated from csoftmax.h by src_c/make_interface.py: */
typedef csm_status (*csm_map_fn)(const csm_shape *, const csm_view *, const csm_view *, const csm_options *);
typedef csm_status (*csm_vjp_fn)(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                 const csm_options *);
typedef csm_status (*csm_loss_fn)(const csm_shape *, const csm_view *, const csm_view *, double *, csm_loss_options *);
typedef csm_status (*csm_topk_fn)(const csm_shape *, const csm_view *, size_t, const csm_view *, const csm_view *,
                                  const csm_topk_options *);
typedef csm_status (*csm_entmax_fn)(const csm_shape *, const csm_view *, const csm_view *, const csm_entmax_options *);
typedef csm_status (*csm_entmax_vjp_fn)(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                        const csm_entmax_options *);
typedef csm_status (*csm_entmax_loss_fn)(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                         const csm_view *, double *, const csm_entmax_options *);
typedef csm_status (*csm_sample_fn)(const csm_shape *, const csm_view *, size_t, const csm_view *, const csm_view *,
                                    const csm_sample_options *);
typedef csm_status (*csm_rows_f32_fn)(const float *, ptrdiff_t, float *, ptrdiff_t, size_t, size_t, size_t, double);
typedef csm_status (*csm_rows_f64_fn)(const double *, ptrdiff_t, double *, ptrdiff_t, size_t, size_t, size_t, double);
typedef csm_status (*csm_rows_u16_fn)(const uint16_t *, ptrdiff_t, uint16_t *, ptrdiff_t, size_t, size_t, size_t,
                                      double);
typedef size_t (*csm_scratch_size_fn)(const csm_shape *, int);
typedef const char *(*csm_status_text_fn)(csm_status);
typedef const char *(*csm_isa_fn)(void);
typedef int (*csm_of_isa_fn)(const char *);
typedef csm_status (*csm_topk_integer_fn)(csm_label_type, const csm_shape *, const csm_view *, size_t, const csm_view *,
                                          const csm_view *, const csm_topk_options *);
typedef csm_status (*csm_crf_f32_fn)(csm_crf_task, const void *, csm_crf_options *);
typedef csm_status (*csm_alias_masses_fn)(size_t, const double *, double, double, uint64_t *, const csm_options *);
typedef csm_status (*csm_alias_table_fn)(size_t, const uint64_t *, csm_alias_cell *);
typedef csm_status (*csm_alias_draw_fn)(size_t, const csm_alias_cell *, size_t, const uint64_t *, int64_t *,
                                        const csm_options *);
typedef csm_status (*csm_alias_log_q_fn)(const uint64_t *, uint64_t, double, int, size_t, const int64_t *, double *,
                                         const csm_options *);
typedef csm_status (*csm_alias_inclusion_fn)(size_t, const uint64_t *, double, double *, double *, const csm_options *);
typedef csm_status (*csm_row_dots_f32_fn)(size_t, size_t, size_t, const float *, ptrdiff_t, const float *, ptrdiff_t,
                                          const int64_t *, ptrdiff_t, float *, ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_dots_f64_fn)(size_t, size_t, size_t, const double *, ptrdiff_t, const double *, ptrdiff_t,
                                          const int64_t *, ptrdiff_t, double *, ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_dots_f16_fn)(size_t, size_t, size_t, const uint16_t *, ptrdiff_t, const uint16_t *,
                                          ptrdiff_t, const int64_t *, ptrdiff_t, float *, ptrdiff_t,
                                          const csm_options *);
typedef csm_status (*csm_row_sums_f32_fn)(size_t, const int64_t *, size_t, const float *, const float *, ptrdiff_t,
                                          const int64_t *, float *, ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_sums_f64_fn)(size_t, const int64_t *, size_t, const double *, const double *, ptrdiff_t,
                                          const int64_t *, double *, ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_sums_f16_fn)(size_t, const int64_t *, size_t, const float *, const uint16_t *, ptrdiff_t,
                                          const int64_t *, float *, ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_add_f32_fn)(size_t, size_t, const int64_t *, const float *, ptrdiff_t, double, float *,
                                         ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_add_f64_fn)(size_t, size_t, const int64_t *, const double *, ptrdiff_t, double, double *,
                                         ptrdiff_t, const csm_options *);
typedef csm_status (*csm_row_add_f16_fn)(size_t, size_t, const int64_t *, const uint16_t *, ptrdiff_t, double,
                                         uint16_t *, ptrdiff_t, const csm_options *);
typedef csm_status (*csm_sort_rows_fn)(size_t, const int64_t *, size_t, int64_t *, int64_t *);
typedef csm_status (*csm_logistic_loss_f32_fn)(size_t, size_t, float *, ptrdiff_t, const double *, size_t,
                                               const double *, const double *, double *, const csm_logistic_options *);
typedef csm_status (*csm_logistic_loss_f64_fn)(size_t, size_t, double *, ptrdiff_t, const double *, size_t,
                                               const double *, const double *, double *, const csm_logistic_options *);
typedef csm_status (*csm_penalize_f32_fn)(const csm_shape *, const csm_view *, const csm_view *, size_t,
                                          const csm_view *, const csm_penalize_options *);
typedef csm_status (*csm_kl_fn)(const csm_shape *, const csm_view *, const csm_view *, const csm_view *, double *,
                                const csm_divergence_options *);
typedef csm_status (*csm_segment_sort_fn)(size_t, const int64_t *, size_t, int64_t *, void *, int, int *, size_t *);
typedef csm_status (*csm_segment_softmax_f32_fn)(const csm_shape *, const csm_segments *, const csm_view *,
                                                 const csm_view *, const csm_options *);
typedef csm_status (*csm_segment_softmax_vjp_f32_fn)(const csm_shape *, const csm_segments *, const csm_view *,
                                                     const csm_view *, const csm_view *, const csm_options *);
typedef csm_status (*csm_segment_cross_entropy_f32_fn)(const csm_shape *, const csm_segments *, const csm_view *,
                                                       const csm_view *, double *, csm_loss_options *);
typedef csm_status (*csm_shard_rows_fn)(csm_shard_kind, csm_array_type, const csm_shape *, const csm_view *,
                                        const csm_view *, const csm_view *, int64_t *, double *,
                                        const csm_shard_options *);
typedef csm_status (*csm_finish_rows_fn)(csm_shard_kind, csm_array_type, const csm_shape *, const csm_view *,
                                         const csm_view *, int, const int64_t *, const double *, const csm_view *,
                                         const csm_shard_options *);
typedef csm_status (*csm_shard_losses_fn)(csm_array_type, const csm_shape *, const csm_view *, const csm_view *,
                                          int64_t *, double *, const csm_shard_options *, csm_loss_options *);
typedef csm_status (*csm_shard_squares_fn)(csm_array_type, const csm_shape *, const csm_view *, const int64_t *,
                                           const double *, int64_t *, const csm_shard_options *, csm_loss_options *);
typedef csm_status (*csm_shard_lost_fn)(csm_array_type, const csm_shape *, const csm_view *, const int64_t *, int64_t *,
                                        const csm_shard_options *, csm_loss_options *);
typedef csm_status (*csm_finish_losses_fn)(csm_array_type, const csm_shape *, const csm_view *, int, const int64_t *,
                                           const double *, double *, const csm_view *, const csm_shard_options *,
                                           csm_loss_options *);
typedef void (*csm_shard_weights_fn)(csm_array_type, const void *, size_t, int64_t *);
typedef double (*csm_sum_total_fn)(const int64_t *);
typedef void (*csm_sums_merge_fn)(int64_t *, const int64_t *, size_t);
typedef void (*csm_records_clear_fn)(int64_t *, size_t, size_t);
typedef void (*csm_records_merge_fn)(int64_t *, const int64_t *, size_t, size_t);
typedef void (*csm_records_fold_fn)(int64_t *, const double *, size_t, size_t);
typedef size_t (*csm_records_sums_fn)(size_t);
typedef size_t (*csm_records_second_round_fn)(csm_shard_kind, csm_array_type, const int64_t *, size_t, size_t, double,
                                              const double *, double *);

/* X(type, name without csm_) */
#define CSM_API_FUNCTIONS(X)                                        \
    X(csm_map_fn, softmax_f32)                                      \
    X(csm_map_fn, softmax_f64)                                      \
    X(csm_map_fn, softmax_f16)                                      \
    X(csm_map_fn, softmax_bf16)                                     \
    X(csm_map_fn, log_softmax_f32)                                  \
    X(csm_map_fn, log_softmax_f64)                                  \
    X(csm_map_fn, log_softmax_f16)                                  \
    X(csm_map_fn, log_softmax_bf16)                                 \
    X(csm_map_fn, logsumexp_f32)                                    \
    X(csm_map_fn, logsumexp_f64)                                    \
    X(csm_map_fn, logsumexp_f16)                                    \
    X(csm_map_fn, logsumexp_bf16)                                   \
    X(csm_vjp_fn, softmax_vjp_f32)                                  \
    X(csm_vjp_fn, softmax_vjp_f64)                                  \
    X(csm_vjp_fn, softmax_vjp_f16)                                  \
    X(csm_vjp_fn, softmax_vjp_bf16)                                 \
    X(csm_vjp_fn, log_softmax_vjp_f32)                              \
    X(csm_vjp_fn, log_softmax_vjp_f64)                              \
    X(csm_vjp_fn, log_softmax_vjp_f16)                              \
    X(csm_vjp_fn, log_softmax_vjp_bf16)                             \
    X(csm_loss_fn, cross_entropy_f32)                               \
    X(csm_loss_fn, cross_entropy_f64)                               \
    X(csm_loss_fn, cross_entropy_f16)                               \
    X(csm_loss_fn, cross_entropy_bf16)                              \
    X(csm_topk_fn, topk_f32)                                        \
    X(csm_topk_fn, topk_f64)                                        \
    X(csm_topk_fn, topk_f16)                                        \
    X(csm_topk_fn, topk_bf16)                                       \
    X(csm_entmax_fn, entmax_f32)                                    \
    X(csm_entmax_fn, entmax_f64)                                    \
    X(csm_entmax_fn, entmax_f16)                                    \
    X(csm_entmax_fn, entmax_bf16)                                   \
    X(csm_entmax_vjp_fn, entmax_vjp_f32)                            \
    X(csm_entmax_vjp_fn, entmax_vjp_f64)                            \
    X(csm_entmax_vjp_fn, entmax_vjp_f16)                            \
    X(csm_entmax_vjp_fn, entmax_vjp_bf16)                           \
    X(csm_entmax_loss_fn, entmax_loss_f32)                          \
    X(csm_entmax_loss_fn, entmax_loss_f64)                          \
    X(csm_entmax_loss_fn, entmax_loss_f16)                          \
    X(csm_entmax_loss_fn, entmax_loss_bf16)                         \
    X(csm_sample_fn, sample_f32)                                    \
    X(csm_sample_fn, sample_f64)                                    \
    X(csm_sample_fn, sample_f16)                                    \
    X(csm_sample_fn, sample_bf16)                                   \
    X(csm_rows_f32_fn, softmax_rows_f32)                            \
    X(csm_rows_f64_fn, softmax_rows_f64)                            \
    X(csm_rows_u16_fn, softmax_rows_f16)                            \
    X(csm_rows_u16_fn, softmax_rows_bf16)                           \
    X(csm_rows_f32_fn, log_softmax_rows_f32)                        \
    X(csm_rows_f64_fn, log_softmax_rows_f64)                        \
    X(csm_rows_u16_fn, log_softmax_rows_f16)                        \
    X(csm_rows_u16_fn, log_softmax_rows_bf16)                       \
    X(csm_rows_f32_fn, logsumexp_rows_f32)                          \
    X(csm_rows_f64_fn, logsumexp_rows_f64)                          \
    X(csm_rows_u16_fn, logsumexp_rows_f16)                          \
    X(csm_rows_u16_fn, logsumexp_rows_bf16)                         \
    X(csm_scratch_size_fn, scratch_size)                            \
    X(csm_status_text_fn, status_text)                              \
    X(csm_isa_fn, isa)                                              \
    X(csm_of_isa_fn, select_isa)                                    \
    X(csm_of_isa_fn, isa_built)                                     \
    X(csm_of_isa_fn, isa_available)                                 \
    X(csm_topk_integer_fn, topk_integer)                            \
    X(csm_crf_f32_fn, crf_f32)                                      \
    X(csm_crf_f32_fn, crf_f64)                                      \
    X(csm_crf_f32_fn, crf_f16)                                      \
    X(csm_crf_f32_fn, crf_bf16)                                     \
    X(csm_alias_masses_fn, alias_masses)                            \
    X(csm_alias_table_fn, alias_table)                              \
    X(csm_alias_draw_fn, alias_draw)                                \
    X(csm_alias_log_q_fn, alias_log_q)                              \
    X(csm_alias_inclusion_fn, alias_inclusion)                      \
    X(csm_row_dots_f32_fn, row_dots_f32)                            \
    X(csm_row_dots_f64_fn, row_dots_f64)                            \
    X(csm_row_dots_f16_fn, row_dots_f16)                            \
    X(csm_row_dots_f16_fn, row_dots_bf16)                           \
    X(csm_row_sums_f32_fn, row_sums_f32)                            \
    X(csm_row_sums_f64_fn, row_sums_f64)                            \
    X(csm_row_sums_f16_fn, row_sums_f16)                            \
    X(csm_row_sums_f16_fn, row_sums_bf16)                           \
    X(csm_row_add_f32_fn, row_add_f32)                              \
    X(csm_row_add_f64_fn, row_add_f64)                              \
    X(csm_row_add_f16_fn, row_add_f16)                              \
    X(csm_row_add_f16_fn, row_add_bf16)                             \
    X(csm_sort_rows_fn, sort_rows)                                  \
    X(csm_logistic_loss_f32_fn, logistic_loss_f32)                  \
    X(csm_logistic_loss_f64_fn, logistic_loss_f64)                  \
    X(csm_penalize_f32_fn, penalize_f32)                            \
    X(csm_penalize_f32_fn, penalize_f64)                            \
    X(csm_penalize_f32_fn, penalize_f16)                            \
    X(csm_penalize_f32_fn, penalize_bf16)                           \
    X(csm_map_fn, entropy_f32)                                      \
    X(csm_map_fn, entropy_f64)                                      \
    X(csm_map_fn, entropy_f16)                                      \
    X(csm_map_fn, entropy_bf16)                                     \
    X(csm_rows_f32_fn, entropy_rows_f32)                            \
    X(csm_rows_f64_fn, entropy_rows_f64)                            \
    X(csm_rows_u16_fn, entropy_rows_f16)                            \
    X(csm_rows_u16_fn, entropy_rows_bf16)                           \
    X(csm_kl_fn, kl_divergence_f32)                                 \
    X(csm_kl_fn, kl_divergence_f64)                                 \
    X(csm_kl_fn, kl_divergence_f16)                                 \
    X(csm_kl_fn, kl_divergence_bf16)                                \
    X(csm_segment_sort_fn, segment_sort)                            \
    X(csm_segment_softmax_f32_fn, segment_softmax_f32)              \
    X(csm_segment_softmax_f32_fn, segment_softmax_f64)              \
    X(csm_segment_softmax_f32_fn, segment_softmax_f16)              \
    X(csm_segment_softmax_f32_fn, segment_softmax_bf16)             \
    X(csm_segment_softmax_f32_fn, segment_log_softmax_f32)          \
    X(csm_segment_softmax_f32_fn, segment_log_softmax_f64)          \
    X(csm_segment_softmax_f32_fn, segment_log_softmax_f16)          \
    X(csm_segment_softmax_f32_fn, segment_log_softmax_bf16)         \
    X(csm_segment_softmax_f32_fn, segment_logsumexp_f32)            \
    X(csm_segment_softmax_f32_fn, segment_logsumexp_f64)            \
    X(csm_segment_softmax_f32_fn, segment_logsumexp_f16)            \
    X(csm_segment_softmax_f32_fn, segment_logsumexp_bf16)           \
    X(csm_segment_softmax_vjp_f32_fn, segment_softmax_vjp_f32)      \
    X(csm_segment_softmax_vjp_f32_fn, segment_softmax_vjp_f64)      \
    X(csm_segment_softmax_vjp_f32_fn, segment_softmax_vjp_f16)      \
    X(csm_segment_softmax_vjp_f32_fn, segment_softmax_vjp_bf16)     \
    X(csm_segment_softmax_vjp_f32_fn, segment_log_softmax_vjp_f32)  \
    X(csm_segment_softmax_vjp_f32_fn, segment_log_softmax_vjp_f64)  \
    X(csm_segment_softmax_vjp_f32_fn, segment_log_softmax_vjp_f16)  \
    X(csm_segment_softmax_vjp_f32_fn, segment_log_softmax_vjp_bf16) \
    X(csm_segment_cross_entropy_f32_fn, segment_cross_entropy_f32)  \
    X(csm_segment_cross_entropy_f32_fn, segment_cross_entropy_f64)  \
    X(csm_segment_cross_entropy_f32_fn, segment_cross_entropy_f16)  \
    X(csm_segment_cross_entropy_f32_fn, segment_cross_entropy_bf16) \
    X(csm_shard_rows_fn, shard_rows)                                \
    X(csm_finish_rows_fn, finish_rows)                              \
    X(csm_shard_losses_fn, shard_losses)                            \
    X(csm_shard_squares_fn, shard_squares)                          \
    X(csm_shard_lost_fn, shard_lost)                                \
    X(csm_finish_losses_fn, finish_losses)                          \
    X(csm_shard_weights_fn, shard_weights)                          \
    X(csm_sum_total_fn, sum_total)                                  \
    X(csm_sums_merge_fn, sums_merge)                                \
    X(csm_records_clear_fn, records_clear)                          \
    X(csm_records_merge_fn, records_merge)                          \
    X(csm_records_fold_fn, records_fold)                            \
    X(csm_records_merge_fn, records_raise)                          \
    X(csm_records_sums_fn, records_sums)                            \
    X(csm_records_second_round_fn, records_second_round)
/* Until here. */

#define CSM_API_MEMBER(type, name) type name;
typedef struct csm_api {
    int abi_major, abi_minor;
    size_t size; /* sizeof(csm_api) where the table was made */
    CSM_API_FUNCTIONS(CSM_API_MEMBER)
} csm_api;
#undef CSM_API_MEMBER

#ifdef Py_PYTHON_H
static inline const csm_api *csm_import(void) {
    const csm_api *api = (const csm_api *)PyCapsule_Import("csoftmax._C_API", 0);
    if (api && (api->abi_major != CSM_ABI_MAJOR || api->size < sizeof(csm_api))) {
        PyErr_Format(PyExc_ImportError,
                     "the installed csoftmax has C ABI %d.%d; this module was compiled for %d.%d and needs a csoftmax "
                     "of that major version, at least as new",
                     api->abi_major, api->abi_minor, CSM_ABI_MAJOR, CSM_ABI_MINOR);
        return NULL;
    }
    return api;
}
#endif

#endif
