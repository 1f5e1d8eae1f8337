# Plain calls of the CRF, which never reach the checks in Python: NumPy arrays of float32, float64 and int64 that are
# C-contiguous, with lengths or none, and default options otherwise. A call of (1, 40, 9) with gradients takes 12 us
# instead of 45. Anything else, and every error, is left to the checks: these functions then return None.
# Included by binding.pyx.

cdef object _environ_get = os.environ.get


cdef inline bint _holds(object array, Py_buffer *buffer, const char *kinds) except -1:
    # whether an array is plain and of one of the kinds, which are letters of the struct module; takes its buffer
    cdef int i = 0
    if type(array) is not _ndarray:
        return False
    try:
        PyObject_GetBuffer(array, buffer, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    except (BufferError, ValueError):
        return False
    while kinds[i]:
        if buffer.format[0] == kinds[i] and buffer.format[1] == 0:
            return True
        i += 1
    PyBuffer_Release(buffer)
    return False


cdef void _copy_out(const double *found, object array) except *:
    # writes numbers to a new array of float32 or float64
    cdef Py_buffer buffer
    cdef Py_ssize_t i, count
    PyObject_GetBuffer(array, &buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    count = buffer.len // buffer.itemsize
    if buffer.itemsize == 4:
        for i in range(count):
            (<float *>buffer.buf)[i] = <float>found[i]
    else:
        memcpy(buffer.buf, found, buffer.len)
    PyBuffer_Release(&buffer)


cdef class _PlainCrf:
    # the arguments that the calls share, in one piece of memory of doubles and integers
    cdef Py_buffer x
    cdef Py_buffer buffer[3]
    cdef int held  # buffers, x first
    cdef cpu.csm_crf_options o
    cdef double *memory
    cdef double *gradients
    cdef double *results
    cdef int64_t *rows
    cdef int64_t *labels
    cdef Py_ssize_t positions
    cdef int dtype
    cdef unsigned int single

    def __dealloc__(self):
        if self.held > 0:
            PyBuffer_Release(&self.x)
        for i in range(self.held - 1):
            PyBuffer_Release(&self.buffer[i])
        PyMem_Free(self.memory)

    cdef bint _take_parameter(self, object array, int ndim, double *to, unsigned int bit) except -1:
        cdef Py_buffer *buffer = &self.buffer[self.held - 1]
        cdef Py_ssize_t i, L = <Py_ssize_t>self.o.tags, count = L * L if ndim == 2 else L
        if not _holds(array, buffer, b"fd"):
            return False
        self.held += 1
        if buffer.ndim != ndim or buffer.shape[0] != L or buffer.shape[ndim - 1] != L:
            return False
        if buffer.itemsize == 4:
            self.single |= bit
            for i in range(count):
                to[i] = (<float *>buffer.buf)[i]
        else:
            memcpy(to, buffer.buf, buffer.len)
        return True

    cdef bint take(self, emissions, transitions, start, end, lengths, num_threads) except -1:
        # whether all arguments are plain
        cdef Py_ssize_t i, L, T, N = 1, square
        if not _holds(emissions, &self.x, b"fd"):
            return False
        self.held = 1
        if self.x.ndim < 2 or self.x.len == 0:
            return False
        L, T = self.x.shape[self.x.ndim - 1], self.x.shape[self.x.ndim - 2]
        for i in range(self.x.ndim - 2):
            N *= self.x.shape[i]
        if _environ_get("CSOFTMAX_CRF_SLOW") is not None:
            return False
        self.dtype = CSM_DTYPE_f32 if self.x.itemsize == 4 else CSM_DTYPE_f64
        self.o = cpu.csm_default_crf_options()
        self.o.sequences, self.o.length, self.o.tags = <size_t>N, <size_t>T, <size_t>L
        square = L * L + 2 * L
        self.memory = <double *>PyMem_Malloc((2 * square + 3 * N + 1 + 2 * N * T) * sizeof(double))
        if self.memory == NULL:
            raise MemoryError("csoftmax: no memory for the arguments of a call")
        self.gradients = self.memory + square
        self.results = self.gradients + square  # 2 N
        self.rows = <int64_t *>(self.results + 2 * N)  # N + 1 offsets, N T rows, N T labels
        self.labels = self.rows + N + 1 + N * T
        self.positions = N * T
        if not self._take_parameter(transitions, 2, self.memory, 1):
            return False
        self.o.transitions = self.memory
        if start is not None:
            if not self._take_parameter(start, 1, self.memory + L * L, 2):
                return False
            self.o.start = self.memory + L * L
        if end is not None:
            if not self._take_parameter(end, 1, self.memory + L * L + L, 4):
                return False
            self.o.end = self.memory + L * L + L
        self.o.threads = _threads(num_threads)
        self.o.interrupt = _check_signals
        return lengths is None or self._take_lengths(lengths, N, T)

    cdef bint _take_lengths(self, lengths, Py_ssize_t N, Py_ssize_t T) except -1:
        cdef Py_buffer given
        cdef Py_ssize_t i, t, used = 0
        cdef int64_t length
        cdef int64_t *rows = self.rows + N + 1
        cdef bint is_good
        if not _holds(lengths, &given, b"lq"):
            return False
        is_good = given.ndim == self.x.ndim - 2 and given.itemsize == 8
        for i in range(given.ndim if is_good else 0):
            is_good = is_good and given.shape[i] == self.x.shape[i]
        self.rows[0] = 0
        for i in range(N if is_good else 0):
            length = (<int64_t *>given.buf)[i]
            if length < 0 or length > T:
                is_good = False
                break
            for t in range(<Py_ssize_t>length):
                rows[used] = i * T + t
                used += 1
            self.rows[i + 1] = used
        PyBuffer_Release(&given)
        self.o.offsets = self.rows
        self.o.rows = rows
        return is_good

    cdef object target(self, emissions, out):
        # the array for a result like the emissions, or None if `out` is not plain
        cdef Py_buffer given
        cdef bint is_good
        if out is None:
            result = empty_like(emissions)
        else:
            if not _holds(out, &given, b"f" if self.x.itemsize == 4 else b"d"):
                return None
            is_good = given.ndim == self.x.ndim and given.readonly == 0
            for i in range(given.ndim if is_good else 0):
                is_good = is_good and given.shape[i] == self.x.shape[i]
            if given.buf != self.x.buf:
                is_good = is_good and (<char *>given.buf + given.len <= <char *>self.x.buf or
                                       <char *>self.x.buf + self.x.len <= <char *>given.buf)
            PyBuffer_Release(&given)
            if not is_good:
                return None
            result = out
        PyObject_GetBuffer(result, &given, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        self.o.by_tag = given.buf
        PyBuffer_Release(&given)  # the caller holds the array
        return result

    cdef void clear_absent(self) noexcept nogil:
        # 0 in the rows of by_tag that take no part
        cdef size_t i, n, row_bytes = self.o.tags * <size_t>self.x.itemsize
        if self.o.offsets == NULL:
            return
        for i in range(self.o.sequences):
            n = <size_t>(self.o.offsets[i + 1] - self.o.offsets[i])
            memset(<char *>self.o.by_tag + (i * self.o.length + n) * row_bytes, 0, (self.o.length - n) * row_bytes)

    cdef cpu.csm_status run(self, cpu.csm_crf_task task) noexcept nogil:
        return csm_run_crf(self.dtype, task, csm_current_table(), self.x.buf, &self.o)

    cdef object scalar(self, double value):
        return _float32(value) if self.x.itemsize == 4 else _float64(value)

    cdef object per_sequence(self, const double *values):
        # one number a sequence, in the shape of the batch
        shape = tuple([self.x.shape[i] for i in range(self.x.ndim - 2)])
        if not shape:
            return self.scalar(values[0])
        result = _empty(shape, _f32 if self.x.itemsize == 4 else _f64)
        _copy_out(values, result)
        return result


def quick_crf_loss(emissions, tags, transitions, start, end, lengths, reduction, out, num_threads):
    """The results of crf_loss_with_grad as a tuple, or None: see above."""
    cdef _PlainCrf call = _PlainCrf()
    cdef Py_buffer given
    cdef cpu.csm_status status
    cdef double total = 0
    cdef bint is_good
    cdef Py_ssize_t i, L
    if type(reduction) is not str or reduction not in ("mean", "sum", "token_mean"):
        return None
    if not call.take(emissions, transitions, start, end, lengths, num_threads) or not _holds(tags, &given, b"lq"):
        return None
    is_good = given.itemsize == 8 and given.ndim == call.x.ndim - 1
    for i in range(given.ndim if is_good else 0):
        is_good = is_good and given.shape[i] == call.x.shape[i]
    if is_good:
        memcpy(call.labels, given.buf, given.len)
    PyBuffer_Release(&given)
    if not is_good:
        return None
    grad = call.target(emissions, out)
    if grad is None:
        return None
    L = <Py_ssize_t>call.o.tags
    call.o.labels = call.labels
    call.o.has_ignore = 1
    call.o.ignore = -100
    call.o.total = &total
    call.o.grad_transitions = call.gradients
    call.o.grad_start = call.gradients + L * L
    call.o.grad_end = call.gradients + L * L + L
    call.o.reduction = CRF_REDUCTIONS[reduction]
    call.o.single = call.single
    with nogil:
        status = call.run(cpu.CSM_CRF_LOSS)
        if status == cpu.CSM_OK:
            call.clear_absent()
    if status == cpu.CSM_BAD_LABEL:
        return None
    _raise(status)
    grad_transitions = _empty_like(transitions)
    _copy_out(call.gradients, grad_transitions)
    grad_start = grad_end = None
    if start is not None:
        grad_start = _empty_like(start)
        _copy_out(call.gradients + L * L, grad_start)
    if end is not None:
        grad_end = _empty_like(end)
        _copy_out(call.gradients + L * L + L, grad_end)
    return call.scalar(total), grad, grad_transitions, grad_start, grad_end


def quick_crf_marginals(emissions, transitions, start, end, lengths, out, num_threads):
    """The marginals of the tags and log Z, or None: see above."""
    cdef _PlainCrf call = _PlainCrf()
    cdef cpu.csm_status status
    if not call.take(emissions, transitions, start, end, lengths, num_threads):
        return None
    tags = call.target(emissions, out)
    if tags is None:
        return None
    call.o.result = call.results
    with nogil:
        status = call.run(cpu.CSM_CRF_MARGINALS)
        if status == cpu.CSM_OK:
            call.clear_absent()
    _raise(status)
    return tags, call.per_sequence(call.results)


def quick_crf_decode(emissions, transitions, start, end, lengths, num_threads):
    """The best path of each sequence and its score, or None: see above."""
    cdef _PlainCrf call = _PlainCrf()
    cdef Py_buffer given
    cdef cpu.csm_status status
    cdef Py_ssize_t i
    if not call.take(emissions, transitions, start, end, lengths, num_threads):
        return None
    tags = _empty(tuple([call.x.shape[i] for i in range(call.x.ndim - 1)]), _i64)
    PyObject_GetBuffer(tags, &given, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
    call.o.decoded = <int64_t *>given.buf
    PyBuffer_Release(&given)
    call.o.result = call.results
    if lengths is not None:
        for i in range(call.positions):
            call.o.decoded[i] = -1
    with nogil:
        status = call.run(cpu.CSM_CRF_DECODE)
    _raise(status)
    return tags, call.per_sequence(call.results)
