# Public Cython API: the functions of csoftmax.h, and functions of this module.  Append-only.
#
#     cimport csoftmax.cpu as cpu
#
# Compile with csoftmax.get_include(); for the functions of csoftmax.h link with csoftmax.get_library() too, for those
# at the end nothing (see README, "Embed it").

from libc.stdint cimport intptr_t, uint16_t, uint64_t

cdef extern from "csoftmax.h" nogil:
    enum:
        CSM_ABI_MAJOR
        CSM_ABI_MINOR
        CSM_MAX_NDIM

    ctypedef enum csm_status:
        CSM_OK
        CSM_NO_MEMORY
        CSM_INTERRUPTED
        CSM_BAD_SHAPE
        CSM_BAD_TEMPERATURE
        CSM_SMALL_SCRATCH
        CSM_BAD_LABEL
        CSM_BAD_OPTION
        CSM_NO_MASS

    ctypedef struct csm_shape:
        size_t n
        size_t ndim
        size_t shape[64]

    ctypedef struct csm_view:
        void *data
        ptrdiff_t axis_stride
        ptrdiff_t strides[64]

    ctypedef struct csm_options:
        size_t size
        double temperature
        const csm_view *where
        int threads
        void *scratch
        size_t scratch_size
        int (*interrupt)(void *context) noexcept nogil
        void *interrupt_context

    csm_options csm_default_options()

    csm_status csm_softmax_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_softmax_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_softmax_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_softmax_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_log_softmax_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_log_softmax_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_log_softmax_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_log_softmax_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_logsumexp_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_logsumexp_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_logsumexp_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_logsumexp_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_options *)
    csm_status csm_softmax_vjp_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_options *)
    csm_status csm_softmax_vjp_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_options *)
    csm_status csm_softmax_vjp_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_options *)
    csm_status csm_softmax_vjp_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                    const csm_options *)
    csm_status csm_log_softmax_vjp_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                       const csm_options *)
    csm_status csm_log_softmax_vjp_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                       const csm_options *)
    csm_status csm_log_softmax_vjp_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                       const csm_options *)
    csm_status csm_log_softmax_vjp_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                        const csm_options *)

    ctypedef enum csm_label_type:
        CSM_INT8
        CSM_INT16
        CSM_INT32
        CSM_INT64
        CSM_UINT8
        CSM_UINT16
        CSM_UINT32
        CSM_UINT64

    ctypedef enum csm_reduction:
        CSM_NONE
        CSM_SUM
        CSM_MEAN

    ctypedef struct csm_loss_options:
        size_t size
        const csm_view *labels
        csm_label_type label_type
        int has_ignore
        uint64_t ignore
        const csm_view *soft
        const void *weight
        const csm_view *sample_weight
        const csm_view *upstream
        double temperature
        double label_smoothing
        double z_loss
        double clip_norm
        double clip_value
        csm_reduction reduction
        int threads
        int (*interrupt)(void *context) noexcept nogil
        void *interrupt_context
        size_t position

    csm_loss_options csm_default_loss_options()

    csm_status csm_cross_entropy_f32(const csm_shape *, const csm_view *, const csm_view *, double *,
                                     csm_loss_options *)
    csm_status csm_cross_entropy_f64(const csm_shape *, const csm_view *, const csm_view *, double *,
                                     csm_loss_options *)
    csm_status csm_cross_entropy_f16(const csm_shape *, const csm_view *, const csm_view *, double *,
                                     csm_loss_options *)
    csm_status csm_cross_entropy_bf16(const csm_shape *, const csm_view *, const csm_view *, double *,
                                      csm_loss_options *)

    ctypedef enum csm_topk_normalize:
        CSM_TOPK_NONE
        CSM_TOPK_SOFTMAX
        CSM_TOPK_FULL

    ctypedef struct csm_topk_options:
        size_t size
        int smallest
        int unsorted
        csm_topk_normalize normalize
        double temperature
        int threads
        int (*interrupt)(void *context) noexcept nogil
        void *interrupt_context

    csm_topk_options csm_default_topk_options()

    csm_status csm_topk_f32(const csm_shape *, const csm_view *, size_t k, const csm_view *, const csm_view *,
                            const csm_topk_options *)
    csm_status csm_topk_f64(const csm_shape *, const csm_view *, size_t k, const csm_view *, const csm_view *,
                            const csm_topk_options *)
    csm_status csm_topk_f16(const csm_shape *, const csm_view *, size_t k, const csm_view *, const csm_view *,
                            const csm_topk_options *)
    csm_status csm_topk_bf16(const csm_shape *, const csm_view *, size_t k, const csm_view *, const csm_view *,
                             const csm_topk_options *)

    ctypedef struct csm_entmax_options:
        size_t size
        double alpha
        const csm_view *where
        csm_reduction reduction
        int threads
        int (*interrupt)(void *context) noexcept nogil
        void *interrupt_context

    csm_entmax_options csm_default_entmax_options()

    csm_status csm_entmax_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_entmax_options *)
    csm_status csm_entmax_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_entmax_options *)
    csm_status csm_entmax_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_entmax_options *)
    csm_status csm_entmax_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_entmax_options *)
    csm_status csm_entmax_vjp_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                  const csm_entmax_options *)
    csm_status csm_entmax_vjp_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                  const csm_entmax_options *)
    csm_status csm_entmax_vjp_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                  const csm_entmax_options *)
    csm_status csm_entmax_vjp_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_entmax_options *)
    csm_status csm_entmax_loss_f32(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_view *, double *, const csm_entmax_options *)
    csm_status csm_entmax_loss_f64(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_view *, double *, const csm_entmax_options *)
    csm_status csm_entmax_loss_f16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                   const csm_view *, double *, const csm_entmax_options *)
    csm_status csm_entmax_loss_bf16(const csm_shape *, const csm_view *, const csm_view *, const csm_view *,
                                    const csm_view *, double *, const csm_entmax_options *)

    ctypedef struct csm_sample_options:
        size_t size
        const csm_view *where
        const csm_view *temperature
        const csm_view *top_k
        const csm_view *top_p
        const csm_view *min_p
        int threads
        int (*interrupt)(void *context) noexcept nogil
        void *interrupt_context

    csm_sample_options csm_default_sample_options()

    csm_status csm_sample_f32(const csm_shape *, const csm_view *, size_t draws, const csm_view *, const csm_view *,
                              const csm_sample_options *)
    csm_status csm_sample_f64(const csm_shape *, const csm_view *, size_t draws, const csm_view *, const csm_view *,
                              const csm_sample_options *)
    csm_status csm_sample_f16(const csm_shape *, const csm_view *, size_t draws, const csm_view *, const csm_view *,
                              const csm_sample_options *)
    csm_status csm_sample_bf16(const csm_shape *, const csm_view *, size_t draws, const csm_view *, const csm_view *,
                               const csm_sample_options *)

    csm_status csm_softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step,
                                    size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step,
                                    size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step,
                                    size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step,
                                     size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_log_softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step,
                                        size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_log_softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step,
                                        size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_log_softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step,
                                        size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_log_softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step,
                                         size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_logsumexp_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step,
                                      size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_logsumexp_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step,
                                      size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_logsumexp_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step,
                                      size_t n, size_t begin, size_t end, double temperature)
    csm_status csm_logsumexp_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step,
                                       size_t n, size_t begin, size_t end, double temperature)

    size_t csm_scratch_size(const csm_shape *, int threads)
    const char *csm_status_text(csm_status)
    const char *csm_isa()
    int csm_select_isa(const char *)
    int csm_isa_built(const char *)
    int csm_isa_available(const char *)
    csm_view csm_contiguous(const csm_shape *, size_t n, const void *data, size_t itemsize)

# Functions of the module csoftmax.cpu: nothing to link.  They return a csm_status, the last two 1, or 0 for an error.

cdef int softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil
cdef int softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil
cdef int softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil
cdef int softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                           size_t begin, size_t end, double temperature) noexcept nogil
cdef int log_softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                              size_t begin, size_t end, double temperature) noexcept nogil
cdef int log_softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                              size_t begin, size_t end, double temperature) noexcept nogil
cdef int log_softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                              size_t begin, size_t end, double temperature) noexcept nogil
cdef int log_softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                               size_t begin, size_t end, double temperature) noexcept nogil
cdef int logsumexp_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                            size_t begin, size_t end, double temperature) noexcept nogil
cdef int logsumexp_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                            size_t begin, size_t end, double temperature) noexcept nogil
cdef int logsumexp_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                            size_t begin, size_t end, double temperature) noexcept nogil
cdef int logsumexp_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                             size_t begin, size_t end, double temperature) noexcept nogil
cdef int softmax_line(double *x, intptr_t n, double *y, intptr_t m, void *temperature) noexcept nogil
cdef int logsumexp_window(double *x, intptr_t n, double *y, void *temperature) noexcept nogil
