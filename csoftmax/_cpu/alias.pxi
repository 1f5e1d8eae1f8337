# Alias tables. Arrays are contiguous, of the dtypes that the arguments name; their owners are checked by the samplers.
# Included by binding.pyx.


cdef void *_address(array) except? NULL:
    # By the buffer protocol, in 0.1 us: array.ctypes takes 0.7. The caller keeps the array alive.
    cdef Py_buffer view
    cdef void *data
    try:
        PyObject_GetBuffer(array, &view, PyBUF_STRIDED_RO)
    except (BufferError, ValueError):  # a dtype without a format, such as bfloat16
        return <void *><uintptr_t>array.ctypes.data
    data = view.buf
    PyBuffer_Release(&view)
    return data


cdef cpu.csm_options _options(num_threads) except *:
    cdef cpu.csm_options options = cpu.csm_default_options()
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    return options


def run_alias_masses(weights, double smoothing, double power, masses, num_threads):
    """Integer masses (uint64) of weights (float64); None: log-uniform. Returns whether there is any mass."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef size_t n = len(masses)
    cdef const double *given = <const double *>_address(weights) if weights is not None else NULL
    cdef uint64_t *to = <uint64_t *>_address(masses)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_alias_masses(n, given, smoothing, power, to, &options)
    if status == cpu.CSM_NO_MASS:
        return False
    _raise(status)
    return True


def run_alias_table(masses, cells):
    """The table of integer masses: uint32 of the shape (n, 2), cut and alias of each column."""
    cdef size_t n = len(masses)
    cdef const uint64_t *given = <const uint64_t *>_address(masses)
    cdef cpu.csm_alias_cell *to = <cpu.csm_alias_cell *>_address(cells)
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_alias_table(n, given, to)
    _raise(status)


def run_alias_draw(size_t n, cells, random, classes, num_threads):
    """One class (int64) for each random number (uint64); without cells, of n equally probable ones."""
    cdef cpu.csm_options options = _options(num_threads)
    cdef const cpu.csm_alias_cell *table = <const cpu.csm_alias_cell *>_address(cells) if cells is not None else NULL
    cdef const uint64_t *given = <const uint64_t *>_address(random)
    cdef int64_t *to = <int64_t *>_address(classes)
    cdef size_t draws = random.size
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_alias_draw(n, table, draws, given, to, &options)
    _raise(status)


def run_alias_log_q(masses, uint64_t total, double rate, bint is_poisson, classes, log_q):
    """Logarithms of expected counts, or of inclusion probabilities, of classes (int64); without masses all have 1."""
    cdef cpu.csm_options options = _options(None)
    cdef const uint64_t *given = <const uint64_t *>_address(masses) if masses is not None else NULL
    cdef const int64_t *at = <const int64_t *>_address(classes)
    cdef double *to = <double *>_address(log_q)
    cdef size_t count = classes.size
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_alias_log_q(given, total, rate, is_poisson, count, at, to, &options)
    _raise(status)


def run_alias_inclusion(masses, size_t n, double t):
    """The expected number of classes among the draws of a Poisson process of the rate t, and its derivative."""
    cdef cpu.csm_options options = _options(None)
    cdef const uint64_t *given = <const uint64_t *>_address(masses) if masses is not None else NULL
    cdef double expected = 0, slope = 0
    cdef cpu.csm_status status
    with nogil:
        status = cpu.csm_alias_inclusion(n, given, t, &expected, &slope, &options)
    _raise(status)
    return expected, slope
