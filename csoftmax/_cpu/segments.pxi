# The calls over segments. Included by binding.pyx.

cdef cpu.csm_segments _segments(_Buffers buffers, int i, indptr, order, places):
    # the segments of arrays i and i + 1 of a call, order or places if they are given; the arrays are contiguous
    cdef cpu.csm_segments segments = cpu.csm_default_segments()
    buffers.take(i, indptr, False, False)
    segments.indptr = <const int64_t *>buffers.view[i].data
    segments.count = len(indptr) - 1
    if order is not None:
        buffers.take(i + 1, order, False, False)
        segments.order = buffers.view[i + 1].data
        segments.order_bytes = order.itemsize
    elif places is not None:
        buffers.take(i + 1, places, False, False)
        segments.places = buffers.view[i + 1].data
        segments.order_bytes = places.itemsize
    return segments


def sort_segments(ids, size_t count, indptr, places):
    """Sort int64 ids into indptr and the places of the elements, which are not wanted if the ids are sorted already.

    Returns True after sorting, None if they are, or, if an id is bad, the negative of its position, less 1.
    """
    cdef _Contiguous arrays = _Contiguous()
    cdef cpu.csm_status status
    cdef int is_sorted = 0
    cdef size_t position = 0
    cdef size_t n = len(ids)
    cdef int place_bytes = places.itemsize
    cdef const int64_t *given = <const int64_t *>arrays.read(ids)
    cdef int64_t *offsets = <int64_t *>arrays.write(indptr)
    cdef void *found = arrays.write(places)
    with nogil:
        status = csm_run_segment_sort(n, given, count, offsets, found, place_bytes, &is_sorted, &position,
                                      _check_signals)
    if status == cpu.CSM_BAD_LABEL:
        return -<object>position - 1
    _raise(status)
    return None if is_sorted else True


def invert_places(places, order):
    """Write the order of elements from their places."""
    cdef _Contiguous arrays = _Contiguous()
    cdef cpu.csm_status status
    cdef size_t n = len(places)
    cdef int place_bytes = places.itemsize
    cdef int order_bytes = order.itemsize
    cdef const void *given = arrays.read(places)
    cdef void *found = arrays.write(order)
    with nogil:
        status = csm_run_invert_places(n, given, place_bytes, found, order_bytes, _check_signals)
    _raise(status)


def run_segments(int op, int dtype, first, second, result, where, double temperature, temperatures, indptr, order,
                 places, num_threads):
    """Compute an operation of OPS over segments of the last axis, which are the last axis of a reduction's result.

    Elements that are not in order have an order or places. The other arguments are as those of run_softmax;
    temperatures have the segments as their last axis.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_options options = cpu.csm_default_options()
    cdef cpu.csm_segments segments = _segments(buffers, 5, indptr, order, places)
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


def run_segment_loss(int dtype, x, y, losses, labels, ignore, soft, positives, sample_weight, upstream,
                     double temperature, double label_smoothing, double z_loss, double clip_norm, double clip_value,
                     int reduction, temperatures, indptr, order, num_threads):
    """Compute cross-entropy over segments of the last axis of x, and with y its gradient.

    Of labels, soft (with elements last) and positives (bool, the same) one is given. losses is float64 with the
    segments last; labels, sample_weight, upstream and temperatures (None: one number) have its shape. Returns the sum
    or mean, or, if a label is bad, the index of the first in C order, as an int, and then writes nothing.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_loss_options options = cpu.csm_default_loss_options()
    cdef cpu.csm_segments segments = _segments(buffers, 9, indptr, order, None)
    cdef const cpu.csm_view *gradient
    cdef cpu.csm_status status
    cdef double total = 0
    options.temperature = temperature
    options.label_smoothing = label_smoothing
    options.z_loss = z_loss
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.reduction = <cpu.csm_reduction>reduction
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    if labels is not None:
        options.label_type = LABELS[labels.dtype.name]
        if ignore is not None:
            options.has_ignore = 1
            options.ignore = <uint64_t>ignore
    buffers.take(0, x, True, False)
    gradient = buffers.take(1, y, True, True)
    options.soft = buffers.take(2, soft, True, False)
    options.labels = buffers.take(3, labels, True, False)
    options.sample_weight = buffers.take(4, sample_weight, True, False)
    options.upstream = buffers.take(5, upstream, True, False)
    buffers.take(6, losses, True, True)
    options.positives = buffers.take(7, positives, True, False)
    options.temperatures = buffers.take(8, temperatures, True, False)
    with nogil:
        status = csm_run_segment_loss(dtype, csm_current_table(), &buffers.shape, &segments, &buffers.view[0],
                                      gradient, &buffers.view[6], &total, &options)
    if status == cpu.CSM_BAD_LABEL:
        return <object>options.position
    _raise(status)
    return total
