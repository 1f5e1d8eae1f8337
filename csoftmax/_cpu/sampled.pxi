# Losses over sampled classes. Matrices have contiguous rows, and their dtypes are those that the arguments name; the
# callers check them. Included by binding.pyx.


def run_row_dots(int dtype, x, w, ids, out, num_threads):
    """out[i, j] = x[i] . w[ids[i, j]]; ids (int64) of one row are the same for all. out has the compute type."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = out.shape[0], m = out.shape[1], d = x.shape[1]
    cdef ptrdiff_t x_step = x.strides[0], w_step = w.strides[0], out_step = out.strides[0]
    cdef ptrdiff_t ids_step = ids.strides[0] // 8 if ids.shape[0] != 1 else 0
    cdef const void *given = _address(x)
    cdef const void *rows = _address(w)
    cdef const int64_t *numbers = <const int64_t *>_address(ids)
    cdef void *to = _address(out)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_row_dots(dtype, csm_current_table(), n, m, d, given, x_step, rows, w_step, numbers, ids_step,
                                  to, out_step, &options)
    _raise(status)


def run_row_sums(int dtype, offsets, g, w, ids, out, num_threads):
    """out[i] += sum of g[e] w[ids[e]] over e from offsets[i] to offsets[i + 1] - 1. g, out have the compute type."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = out.shape[0], d = out.shape[1]
    cdef ptrdiff_t w_step = w.strides[0], out_step = out.strides[0]
    cdef const int64_t *limits = <const int64_t *>_address(offsets)
    cdef const void *factors = _address(g)
    cdef const void *rows = _address(w)
    cdef const int64_t *numbers = <const int64_t *>_address(ids)
    cdef void *to = _address(out)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_row_sums(dtype, csm_current_table(), n, limits, d, factors, rows, w_step, numbers, to,
                                  out_step, &options)
    _raise(status)


def run_row_add(int dtype, ids, values, double scale, w, num_threads):
    """w[ids] += scale * values, all in the dtype; ids (int64) are distinct."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = values.shape[0], d = values.shape[1]
    cdef ptrdiff_t values_step = values.strides[0], w_step = w.strides[0]
    cdef const int64_t *numbers = <const int64_t *>_address(ids)
    cdef const void *given = _address(values)
    cdef void *to = _address(w)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_row_add(dtype, csm_current_table(), n, d, numbers, given, values_step, scale, to, w_step,
                                 &options)
    _raise(status)


def sort_rows(keys, size_t bins):
    """Counting sort of int64 keys below `bins`: offsets (bins + 1) and the positions of equal keys, ascending."""
    cdef size_t count = len(keys)
    offsets, order = _empty(bins + 1, "int64"), _empty(count, "int64")
    cdef const int64_t *given = <const int64_t *>_address(keys)
    cdef int64_t *limits = <int64_t *>_address(offsets)
    cdef int64_t *to = <int64_t *>_address(order)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_sort_rows(count, given, bins, limits, to)
    _raise(status)
    return offsets, order


def run_logistic_loss(int dtype, u, counts, scale, upstream, loss, bint gradient, double temperature,
                      double clip_norm, double clip_value, num_threads):
    """Losses (float64) of rows of logistic terms, the target last; with `gradient`, u becomes their gradient.

    counts, float64, has one row for all, one for each, or is None; scale and upstream are float64 for each row or None.
    """
    cdef cpu.csm_logistic_options options = cpu.csm_default_logistic_options()
    cdef size_t n = u.shape[0], m = u.shape[1] - 1
    cdef ptrdiff_t step = u.strides[0]
    cdef void *terms = _address(u)
    cdef const double *c = <const double *>_address(counts) if counts is not None else NULL
    cdef size_t counts_step = counts.shape[1] if counts is not None and counts.shape[0] != 1 else 0
    cdef const double *s = <const double *>_address(scale) if scale is not None else NULL
    cdef const double *up = <const double *>_address(upstream) if upstream is not None else NULL
    cdef double *to = <double *>_address(loss)
    cdef cpu.csm_status status
    options.gradient = gradient
    options.temperature = temperature
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    with nogil:
        status = csm_run_logistic_loss(dtype, csm_current_table(), n, m, terms, step, c, counts_step, s, up, to,
                                       &options)
    _raise(status)
