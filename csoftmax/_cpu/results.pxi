# Memory of results: large results use pages that are kept for later results (pages.c). Included by binding.pyx.

cdef char *_BYTES = "B"  # format code of the struct module


cdef class _Pages:
    # memory that is kept for reuse when the array on it dies
    cdef void *memory
    cdef size_t size
    cdef Py_ssize_t shape, stride

    def __cinit__(self, size_t size):
        self.memory = csm_take_pages(size)
        if self.memory == NULL:
            raise MemoryError(f"csoftmax: no memory for a result of {size} bytes")
        self.size = self.shape = size
        self.stride = 1

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        buffer.buf = self.memory
        buffer.obj = self
        buffer.len = self.shape
        buffer.readonly = 0
        buffer.itemsize = buffer.ndim = 1
        buffer.format = _BYTES if flags & PyBUF_FORMAT else NULL
        buffer.shape = &self.shape
        buffer.strides = &self.stride
        buffer.suboffsets = NULL
        buffer.internal = NULL

    def __dealloc__(self):
        if self.memory != NULL:
            csm_give_pages(self.memory, self.size)


cdef inline _new(shape, dtype, Py_ssize_t size):
    # a result of `size` bytes
    return _ndarray(shape, dtype, _Pages(size)) if csm_fits_kept_pages(size) else _empty(shape, dtype)


def empty(shape, dtype):
    """numpy.empty for a result or scratch; dtype must be a numpy.dtype."""
    return _new(shape, dtype, _prod(shape) * dtype.itemsize)


def empty_like(x):
    """numpy.empty_like for a result."""
    cdef size_t size = x.nbytes
    return _new(x.shape, x.dtype, size) if csm_fits_kept_pages(size) and _in_c_order(x) else _empty_like(x)


cdef bint _in_c_order(x):
    # whether numpy.empty_like(x) is C-contiguous, which x itself need not be
    steps = [abs(step) for step, length in zip(x.strides, x.shape) if length != 1]
    return steps == sorted(steps, reverse=True) and 0 not in steps


def set_pages_limit(size_t size):
    """Set the upper bound, in bytes, on memory of dead results that is kept for reuse. The system may reclaim it."""
    csm_set_pages_limit(size)


def set_tracemalloc(uintptr_t track, uintptr_t untrack):
    """Register the addresses of PyTraceMalloc_Track and PyTraceMalloc_Untrack."""
    csm_set_tracemalloc(track, untrack)


def kept_pages():
    """Number of bytes that are currently kept."""
    return csm_kept_pages()
