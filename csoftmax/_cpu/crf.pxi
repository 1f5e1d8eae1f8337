# The call of the linear-chain CRF, whose arrays are all C-contiguous. Included by binding.pyx.

cdef class _Contiguous:
    # the buffers of a call, released when this object dies, even after an exception
    cdef Py_buffer buffer[24]
    cdef int count

    def __dealloc__(self):
        for i in range(self.count):
            PyBuffer_Release(&self.buffer[i])

    cdef void *read(self, array) except? NULL:
        # the data of an array, NULL for None
        return self._take(array, PyBUF_C_CONTIGUOUS)

    cdef void *write(self, array) except? NULL:
        return self._take(array, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)

    cdef void *_take(self, array, int flags) except? NULL:
        if array is None:
            return NULL
        PyObject_GetBuffer(array, &self.buffer[self.count], flags)
        self.count += 1
        return self.buffer[self.count - 1].buf


def run_crf(int task, int dtype, emissions, shape, transitions, start, end, offsets, rows, allowed, labels, ignore,
            sets, num_threads, *, bint is_slow=False, sample_weight=None, upstream=None, result=None, total=None,
            by_tag=None, pairs=None, pair_sums=None, grad_transitions=None, grad_start=None, grad_end=None,
            int method=0, size_t paths=1, decoded=None, sequence_step=0, path_step=0, fill=-1, log_prob=None,
            uniforms=None, int reduction=0, unsigned int single=0):
    """Compute a task of CRF_TASKS; the members of csm_crf_options say what each array is.

    shape: numbers of sequences, of positions of each (unless there are offsets), and of tags. Returns None, or, if a
    label is bad, the number of its row, and then writes nothing.
    """
    cdef _Contiguous arrays = _Contiguous()
    cdef cpu.csm_crf_options o = cpu.csm_default_crf_options()
    cdef cpu.csm_status status
    cdef const void *x = arrays.read(emissions)
    o.sequences, o.length, o.tags = shape
    o.transitions = <const double *>arrays.read(transitions)
    o.start = <const double *>arrays.read(start)
    o.end = <const double *>arrays.read(end)
    o.offsets = <const int64_t *>arrays.read(offsets)
    o.rows = <const int64_t *>arrays.read(rows)
    o.allowed = <const unsigned char *>arrays.read(allowed)
    o.labels = <const int64_t *>arrays.read(labels)
    if ignore is not None:
        o.has_ignore = 1
        o.ignore = ignore
    o.sets = <const unsigned char *>arrays.read(sets)
    o.is_slow = is_slow
    o.sample_weight = <const double *>arrays.read(sample_weight)
    o.upstream = <const double *>arrays.read(upstream)
    o.reduction = <cpu.csm_crf_reduction>reduction
    o.single = single
    o.result = <double *>arrays.write(result)
    o.total = <double *>arrays.write(total)
    o.by_tag = arrays.write(by_tag)
    o.pairs = arrays.write(pairs)
    o.pair_sums = <double *>arrays.write(pair_sums)
    o.grad_transitions = <double *>arrays.write(grad_transitions)
    o.grad_start = <double *>arrays.write(grad_start)
    o.grad_end = <double *>arrays.write(grad_end)
    o.method = <cpu.csm_crf_method>method
    o.paths = paths
    o.decoded = <int64_t *>arrays.write(decoded)
    o.sequence_step = sequence_step
    o.path_step = path_step
    o.fill = fill
    o.log_prob = <double *>arrays.write(log_prob)
    o.uniforms = <const double *>arrays.read(uniforms)
    o.threads = _threads(num_threads)
    o.interrupt = _check_signals
    with nogil:
        status = csm_run_crf(dtype, <cpu.csm_crf_task>task, csm_current_table(), x, &o)
    if status == cpu.CSM_BAD_LABEL:
        return o.position
    _raise(status)
