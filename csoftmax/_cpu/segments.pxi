# The calls over segments. Included by binding.pyx.

cdef cpu.csm_segments _segments(_Buffers buffers, int i, indptr, order):
    # the segments of arrays i and i + 1 of a call; the arrays are contiguous
    cdef cpu.csm_segments segments = cpu.csm_default_segments()
    buffers.take(i, indptr, False, False)
    segments.indptr = <const int64_t *>buffers.view[i].data
    segments.count = len(indptr) - 1
    if order is not None:
        buffers.take(i + 1, order, False, False)
        segments.order = buffers.view[i + 1].data
        segments.order_bytes = order.itemsize
    return segments


def sort_segments(ids, size_t count, indptr, order):
    """Sort int64 ids into indptr and order; None if they are sorted already, and order has not been written.

    Returns True after sorting, or, if an id is bad, the negative of its position, less 1.
    """
    cdef _Contiguous arrays = _Contiguous()
    cdef cpu.csm_status status
    cdef int is_sorted = 0
    cdef size_t position = 0
    cdef size_t n = len(ids)
    cdef int order_bytes = order.itemsize
    cdef const int64_t *given = <const int64_t *>arrays.read(ids)
    cdef int64_t *offsets = <int64_t *>arrays.write(indptr)
    cdef void *places = arrays.write(order)
    with nogil:
        status = cpu.csm_segment_sort(n, given, count, offsets, places, order_bytes, &is_sorted, &position)
    if status == cpu.CSM_BAD_LABEL:
        return -<object>position - 1
    _raise(status)
    return None if is_sorted else True


def run_segments(int op, int dtype, first, second, result, where, double temperature, temperatures, indptr, order,
                 num_threads):
    """Compute an operation of OPS over segments of the last axis, which are the last axis of a reduction's result.

    The other arguments are as those of run_softmax; temperatures have the segments as their last axis.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_options options = cpu.csm_default_options()
    cdef cpu.csm_segments segments = _segments(buffers, 5, indptr, order)
    cdef const cpu.csm_view *second_view
    cdef cpu.csm_status status
    options.temperature = temperature
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, first, True, False)
    buffers.take(1, result, True, True)
    second_view = buffers.take(2, second, True, False)
    options.where = buffers.take(3, where, True, False)
    options.temperatures = buffers.take(4, temperatures, True, False)
    with nogil:
        status = csm_run_segments(op, dtype, csm_current_table(), &buffers.shape, &segments, &buffers.view[0],
                                  second_view, &buffers.view[1], &options)
    _raise(status)
