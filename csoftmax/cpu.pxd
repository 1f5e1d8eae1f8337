# Public Cython API: the functions of csoftmax.h.  Append-only.
#
#     cimport csoftmax.cpu as cpu
#
# Compile with csoftmax.get_include() and link with csoftmax.get_library() (see README, "Embed it").

from libc.stdint cimport uint16_t

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

    size_t csm_scratch_size(const csm_shape *, int threads)
    const char *csm_status_text(csm_status)
    const char *csm_isa()
    int csm_select_isa(const char *)
    int csm_isa_built(const char *)
    int csm_isa_available(const char *)
    csm_view csm_contiguous(const csm_shape *, size_t n, const void *data, size_t itemsize)
