# cython: auto_pickle=False, freethreading_compatible=True
# The kernels as functions of this module: for `cimport` without linking, for Numba (by address) and for
# scipy.LowLevelCallable.  None of them needs the GIL; each works in the calling thread only.

from libc.stdint cimport intptr_t, uint16_t


cdef int softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_softmax_rows_f32(x, x_step, y, y_step, n, begin, end, temperature)


cdef int softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_softmax_rows_f64(x, x_step, y, y_step, n, begin, end, temperature)


cdef int softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_softmax_rows_f16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                           size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_softmax_rows_bf16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int log_softmax_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                              size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_log_softmax_rows_f32(x, x_step, y, y_step, n, begin, end, temperature)


cdef int log_softmax_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                              size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_log_softmax_rows_f64(x, x_step, y, y_step, n, begin, end, temperature)


cdef int log_softmax_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                              size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_log_softmax_rows_f16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int log_softmax_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                               size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_log_softmax_rows_bf16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int logsumexp_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                            size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_logsumexp_rows_f32(x, x_step, y, y_step, n, begin, end, temperature)


cdef int logsumexp_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                            size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_logsumexp_rows_f64(x, x_step, y, y_step, n, begin, end, temperature)


cdef int logsumexp_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                            size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_logsumexp_rows_f16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int logsumexp_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                             size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_logsumexp_rows_bf16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int entropy_rows_f32(const float *x, ptrdiff_t x_step, float *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_entropy_rows_f32(x, x_step, y, y_step, n, begin, end, temperature)


cdef int entropy_rows_f64(const double *x, ptrdiff_t x_step, double *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_entropy_rows_f64(x, x_step, y, y_step, n, begin, end, temperature)


cdef int entropy_rows_f16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                          size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_entropy_rows_f16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int entropy_rows_bf16(const uint16_t *x, ptrdiff_t x_step, uint16_t *y, ptrdiff_t y_step, size_t n,
                           size_t begin, size_t end, double temperature) noexcept nogil:
    return csm_entropy_rows_bf16(x, x_step, y, y_step, n, begin, end, temperature)


cdef int softmax_line(double *x, intptr_t n, double *y, intptr_t m, void *temperature) noexcept nogil:
    # scipy.ndimage.generic_filter1d with filter_size=1; temperature: a double, or NULL
    if n != m:
        return 0
    return csm_softmax_rows_f64(x, n, y, n, n, 0, 1, (<double *>temperature)[0] if temperature else 1) == CSM_OK


cdef int logsumexp_window(double *x, intptr_t n, double *y, void *temperature) noexcept nogil:
    # scipy.ndimage.generic_filter
    return csm_logsumexp_rows_f64(x, n, y, 1, n, 0, 1, (<double *>temperature)[0] if temperature else 1) == CSM_OK
