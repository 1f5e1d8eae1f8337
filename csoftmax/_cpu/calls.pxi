# One function for each signature: converts buffers to views, calls the core once, and turns its status into an
# exception. Included by binding.pyx.


cdef void _describe(Py_buffer *buffer, cpu.csm_view *view, bint has_axis) noexcept:
    cdef int i, ndim = buffer.ndim - (1 if has_axis else 0)
    view.data = buffer.buf
    view.axis_stride = buffer.strides[ndim] if has_axis else 0
    for i in range(ndim):
        view.strides[i] = buffer.strides[i]


cdef class _Buffers:
    # the buffers of a call, released when this object dies, even after an exception
    cdef Py_buffer buffer[12]
    cdef cpu.csm_view view[12]
    cdef bint held[12]
    cdef cpu.csm_shape shape

    def __dealloc__(self):
        for i in range(12):
            if self.held[i]:
                PyBuffer_Release(&self.buffer[i])

    cdef const cpu.csm_view *take(self, int i, array, bint has_axis, bint writable) except? NULL:
        # the view of an array, NULL for None; array 0 gives the call its shape
        if array is None:
            return NULL
        PyObject_GetBuffer(array, &self.buffer[i], PyBUF_STRIDED_RO | (PyBUF_WRITABLE if writable else 0))
        self.held[i] = True
        _describe(&self.buffer[i], &self.view[i], has_axis)
        if i == 0:
            self.shape.ndim = self.buffer[0].ndim - 1
            for j in range(<int>self.shape.ndim):
                self.shape.shape[j] = self.buffer[0].shape[j]
            self.shape.n = self.buffer[0].shape[self.shape.ndim]
        return &self.view[i]


def scales(int dtype, double temperature):
    """The constants of a temperature for kernels on a device: a csm_scales, as an array of one element."""
    cdef csm_scales s
    csm_set_scales(&s, temperature, dtype != CSM_DTYPE_f64)
    return _frombuffer((<char *>&s)[:sizeof(s)], f"V{sizeof(s)}")


def entmax(int dtype, double alpha):
    """The constants of alpha-entmax for kernels on a device: a csm_entmax."""
    cdef csm_entmax e
    csm_set_entmax(&e, alpha, dtype != CSM_DTYPE_f64)
    return _frombuffer((<char *>&e)[:sizeof(e)], f"V{sizeof(e)}")


def softcap(int dtype, double cap):
    """The constants of a soft cap for kernels on a device: a csm_softcap."""
    cdef csm_softcap s = csm_softcap_of(cap, dtype != CSM_DTYPE_f64)
    return _frombuffer((<char *>&s)[:sizeof(s)], f"V{sizeof(s)}")


def loss_call(size_t n, double temperature, double label_smoothing, double z_loss, double clip_norm,
              double clip_value, bint soft, bint gradient):
    """The constants of a loss for kernels on a device: a csm_loss_call without the parts set by labels and weights."""
    cdef cpu.csm_loss_options options = cpu.csm_default_loss_options()
    cdef cpu.csm_view view
    cdef csm_loss_call call
    options.temperature = temperature
    options.label_smoothing = label_smoothing
    options.z_loss = z_loss
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.soft = &view if soft else NULL
    call = csm_loss_call_of(&options, n, gradient)
    return _frombuffer((<char *>&call)[:sizeof(call)], f"V{sizeof(call)}")


def run_softmax(int op, int dtype, first, second, result, where, double temperature, num_threads, temperatures):
    """Compute an operation of OPS. The last axis is the softmax axis, which the result of a reduction lacks.

    `first` is x, or dy of a gradient, whose y is `second`. `temperatures` is None, or a float64 for each row, which
    then counts instead of `temperature`.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_options options = cpu.csm_default_options()
    cdef const cpu.csm_view *to
    cdef const cpu.csm_view *second_view
    cdef cpu.csm_status status
    options.temperature = temperature
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, first, True, False)
    to = buffers.take(1, result, csm_op_keeps_axis[op] != 0, True)
    second_view = buffers.take(2, second, True, False)
    options.where = buffers.take(3, where, True, False)
    options.temperatures = buffers.take(4, temperatures, False, False)
    with nogil:
        status = csm_run_softmax(op, dtype, csm_current_table(), &buffers.shape, &buffers.view[0], second_view, to,
                                 &options)
    _raise(status)


def run_cross_entropy(int dtype, x, y, loss, labels, ignore, soft, weight, sample_weight, upstream,
                      double temperature, double label_smoothing, double z_loss, double clip_norm,
                      double clip_value, int reduction, num_threads, temperatures=None, double softcap=0):
    """Compute cross-entropy, and with y its gradient. x, y and soft have the class axis last; other arrays lack it.

    labels are integers of a native dtype, ignore is a label as 64 bits or None; sample_weight, upstream and
    temperatures (None: one number) are float64, weight and soft have the compute dtype. Returns None, or, if a label is
    bad, the index of the first row with a bad hard label (any number for soft labels), and then writes nothing.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_loss_options options = cpu.csm_default_loss_options()
    cdef const cpu.csm_view *gradient
    cdef cpu.csm_status status
    options.temperature = temperature
    options.label_smoothing = label_smoothing
    options.z_loss = z_loss
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.softcap = softcap
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
    options.labels = buffers.take(3, labels, False, False)
    options.sample_weight = buffers.take(4, sample_weight, False, False)
    options.upstream = buffers.take(5, upstream, False, False)
    buffers.take(6, loss, False, True)
    options.temperatures = buffers.take(7, temperatures, False, False)
    if weight is not None:
        options.weight = <const void *><uintptr_t>weight.ctypes.data
    with nogil:
        status = csm_run_cross_entropy(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], gradient,
                                       <double *>buffers.view[6].data, &options)
    if status == cpu.CSM_BAD_LABEL:
        return options.position
    _raise(status)


def run_topk(int dtype, x, values, indices, bint smallest, bint unsorted, int normalize, double temperature,
             num_threads, temperatures=None):
    """The k best along the last axis; k is the length of the last axis of values and indices.

    dtype: one of DTYPES, or INTEGER for x of any integer dtype. temperatures: a float64 for each row, or None.
    """
    cdef _Buffers b = _Buffers()
    cdef cpu.csm_topk_options options = cpu.csm_default_topk_options()
    cdef cpu.csm_status status
    cdef size_t k = values.shape[-1]
    options.smallest = smallest
    options.unsorted = unsorted
    options.normalize = <cpu.csm_topk_normalize>normalize
    options.temperature = temperature
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    b.take(0, x, True, False)
    b.take(1, values, True, True)
    b.take(2, indices, True, True)
    options.temperatures = b.take(3, temperatures, False, False)
    cdef bint is_integer = dtype == INTEGER
    cdef int integer = LABELS[f"{'u' * (x.dtype.kind == 'u')}int{8 * x.dtype.itemsize}"] if is_integer else 0
    with nogil:
        if is_integer:
            status = csm_run_topk_integer(<cpu.csm_label_type>integer, csm_current_table(), &b.shape, &b.view[0], k,
                                          &b.view[1], &b.view[2], &options)
        else:
            status = csm_run_topk(dtype, csm_current_table(), &b.shape, &b.view[0], k, &b.view[1], &b.view[2],
                                  &options)
    _raise(status)


def run_weighted_sum(int dtype, x, b, result, sign, where, double temperature, temperatures, num_threads):
    """log |sum b e^(x / T)| of rows along the last axis, and the sign of the sum; all but x and where are float64."""
    cdef _Buffers buffers = _Buffers()
    cdef csm_weighted_sum sum
    cdef cpu.csm_status status
    sum.temperature = temperature
    sum.threads = _threads(num_threads)
    sum.interrupt = _check_signals
    sum.x = buffers.take(0, x, True, False)
    sum.b = buffers.take(1, b, True, False)
    sum.result = buffers.take(2, result, False, True)
    sum.sign = buffers.take(3, sign, False, True)
    sum.where = buffers.take(4, where, True, False)
    sum.temperatures = buffers.take(5, temperatures, False, False)
    with nogil:
        status = csm_run_weighted_sum(dtype, csm_current_table(), &buffers.shape, &sum)
    _raise(status)


def run_divergence(int dtype, x, y, gradient, loss, where, double temperature, temperatures, sample_weight, upstream,
                   int reduction, num_threads):
    """Kullback-Leibler divergence of rows in float64, and with `gradient` that of y.

    `temperatures`, `sample_weight` and `upstream` are None or a float64 for each row.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_divergence_options options = cpu.csm_default_divergence_options()
    cdef const cpu.csm_view *to
    cdef cpu.csm_status status
    options.temperature = temperature
    options.reduction = <cpu.csm_reduction>reduction
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, x, True, False)
    buffers.take(1, y, True, False)
    to = buffers.take(2, gradient, True, True)
    buffers.take(3, loss, False, True)
    options.where = buffers.take(4, where, True, False)
    options.temperatures = buffers.take(5, temperatures, False, False)
    options.sample_weight = buffers.take(6, sample_weight, False, False)
    options.upstream = buffers.take(7, upstream, False, False)
    with nogil:
        status = csm_run_divergence(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], &buffers.view[1], to,
                                    <double *>buffers.view[3].data, &options)
    _raise(status)


def run_entmax(int dtype, first, second, result, where, double alpha, num_threads, alphas=None, alpha_gradient=None):
    """alpha-entmax of `first` along the last axis, or, with `second`, its gradient from dy and y = entmax(x).

    alphas: a float64 for each row, which then counts instead of alpha, or None; alpha_gradient receives a float64 for
    each row, or is None.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_entmax_options options = cpu.csm_default_entmax_options()
    cdef const cpu.csm_view *second_view
    cdef cpu.csm_status status
    options.alpha = alpha
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, first, True, False)
    second_view = buffers.take(1, second, True, False)
    buffers.take(2, result, True, True)
    options.where = buffers.take(3, where, True, False)
    options.alphas = buffers.take(4, alphas, False, False)
    options.alpha_gradient = buffers.take(5, alpha_gradient, False, True)
    with nogil:
        status = csm_run_entmax(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], second_view,
                                &buffers.view[2], &options)
    _raise(status)


def run_entmax_loss(int dtype, x, labels, soft, gradient, loss, double alpha, int reduction, num_threads, alphas=None,
                    weight=None, sample_weight=None):
    """Fenchel-Young loss in float64 and its gradient; labels are int64, soft labels have the compute dtype.

    Rows of label -1 are left out. alphas and sample_weight have a float64 for each row, weight, contiguous, has the
    compute dtype; None where they do not count.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_entmax_options options = cpu.csm_default_entmax_options()
    cdef const cpu.csm_view *hard
    cdef const cpu.csm_view *distribution
    cdef const cpu.csm_view *to
    cdef cpu.csm_status status
    options.alpha = alpha
    options.has_ignore = True
    options.ignore = -1
    options.reduction = <cpu.csm_reduction>reduction
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, x, True, False)
    hard = buffers.take(1, labels, False, False)
    distribution = buffers.take(2, soft, True, False)
    to = buffers.take(3, gradient, True, True)
    buffers.take(4, loss, False, True)
    options.alphas = buffers.take(5, alphas, False, False)
    options.sample_weight = buffers.take(6, sample_weight, False, False)
    if buffers.take(7, weight, True, False) is not NULL:
        options.weight = buffers.view[7].data
    with nogil:
        status = csm_run_entmax_loss(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], hard, distribution,
                                     to, <double *>buffers.view[4].data, &options)
    _raise(status)


def run_sample(int dtype, x, uniform, indices, where, temperature, top_k, top_p, min_p, num_threads, typical_p=None,
               top_n_sigma=None, order=None, bint replace=True, log_prob=None, raw_log_prob=None):
    """Draw from rows along the last axis of x, one index for each uniform number; parameters have one value a row.

    order holds numbers of FILTERS, or is None; log_prob and raw_log_prob have the shape of indices and the compute
    dtype, or are None. Returns whether all rows have mass and, without replacement, as many classes as draws.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_sample_options options = cpu.csm_default_sample_options()
    cdef cpu.csm_filter filters[cpu.CSM_FILTER_COUNT]
    cdef cpu.csm_status status
    cdef size_t draws = uniform.shape[-1]
    cdef int i
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    options.without_replacement = not replace
    if order is not None:
        for i in range(len(order)):
            filters[i] = <cpu.csm_filter><int>order[i]
        options.order = filters
        options.order_count = len(order)
    buffers.take(0, x, True, False)
    buffers.take(1, uniform, True, False)
    buffers.take(2, indices, True, True)
    options.where = buffers.take(3, where, True, False)
    options.temperature = buffers.take(4, temperature, False, False)
    options.top_k = buffers.take(5, top_k, False, False)
    options.top_p = buffers.take(6, top_p, False, False)
    options.min_p = buffers.take(7, min_p, False, False)
    options.typical_p = buffers.take(8, typical_p, False, False)
    options.top_n_sigma = buffers.take(9, top_n_sigma, False, False)
    options.log_prob = buffers.take(10, log_prob, True, True)
    options.raw_log_prob = buffers.take(11, raw_log_prob, True, True)
    with nogil:
        status = csm_run_sample(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], draws,
                                &buffers.view[1], &buffers.view[2], &options)
    if status == cpu.CSM_NO_MASS or status == cpu.CSM_TOO_FEW:
        return False
    _raise(status)
    return True


def run_penalize(int dtype, x, y, tokens, lengths, repetition, presence, frequency, bias, classes, values, num_threads):
    """Write the logits x with penalties to y, which may be x; the class axis is the last.

    tokens are int64, with an axis of any length last; lengths (int64) and the three penalties (float64) have one
    value a row; bias is float64 with the class axis, or None; classes (int64) and values (float64) are single biases.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_penalize_options options = cpu.csm_default_penalize_options()
    cdef const cpu.csm_view *seen
    cdef cpu.csm_status status
    cdef size_t count = tokens.shape[-1]
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, x, True, False)
    buffers.take(1, y, True, True)
    seen = buffers.take(2, tokens, True, False)
    options.lengths = buffers.take(3, lengths, False, False)
    options.repetition = buffers.take(4, repetition, False, False)
    options.presence = buffers.take(5, presence, False, False)
    options.frequency = buffers.take(6, frequency, False, False)
    options.bias = buffers.take(7, bias, True, False)
    if classes is not None and len(classes):
        options.biases = len(classes)
        buffers.take(8, classes, True, False)
        buffers.take(9, values, True, False)
        options.bias_classes = <const int64_t *>buffers.view[8].data
        options.bias_values = <const double *>buffers.view[9].data
    with nogil:
        status = csm_run_penalize(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], &buffers.view[1], count,
                                  seen, &options)
    _raise(status)


def run_row_update(int dtype, int kind, double learning_rate, double penalty, w, rows, g, state, second, visits, last,
                   int64_t step, num_threads):
    """Take one step of an optimiser of OPTIMIZERS on rows of w (K, D), in place.

    rows are distinct int64 in range, or None for all rows; g has a row for each, or is None where only the decay that
    is due is applied. g, state and second have the compute dtype, visits uint32, last int64; all are contiguous.
    """
    cdef _Buffers buffers = _Buffers()
    cdef csm_row_update update
    cdef cpu.csm_status status
    memset(&update, 0, sizeof(update))
    update.kind = kind
    update.learning_rate = learning_rate
    update.penalty = penalty
    update.step = step
    update.threads = _threads(num_threads)
    update.interrupt = _check_signals
    buffers.take(0, w, True, True)
    update.w = buffers.view[0].data
    update.w_row = buffers.view[0].strides[0]
    update.w_axis = buffers.view[0].axis_stride
    update.n = buffers.shape.n
    update.count = len(w) if rows is None else len(rows)
    if buffers.take(1, rows, False, False) is not NULL:
        update.rows = <const int64_t *>buffers.view[1].data
    if buffers.take(2, g, True, False) is not NULL:
        update.g = buffers.view[2].data
    if buffers.take(3, state, False, True) is not NULL:
        update.state = buffers.view[3].data
    if buffers.take(4, second, False, True) is not NULL:
        update.second = buffers.view[4].data
    if buffers.take(5, visits, False, True) is not NULL:
        update.visits = <uint32_t *>buffers.view[5].data
    if buffers.take(6, last, False, True) is not NULL:
        update.last = <int64_t *>buffers.view[6].data
    with nogil:
        status = csm_run_row_update(dtype, csm_current_table(), &update)
    _raise(status)
