# Pieces of rows of the softmax family, for SoftmaxState. Arrays are contiguous, and of the dtypes that the callers
# check; blocks and rows are csm_block and csm_row as float64 (a csm_row with its flag as bytes). Included by
# binding.pyx.

cdef extern from "core/extension.h" nogil:
    ctypedef struct csm_stream_call:
        int dtype
        size_t rows, n
        const void *x
        double temperature
        const double *max
        const void *values
        size_t width
        int threads
        int (*interrupt)(void *) noexcept
    cpu.csm_status csm_run_stream_blocks(int, const csm_table *, const csm_stream_call *, csm_block *)
    void csm_stream_combine(int, const csm_table *, const csm_stream_call *, size_t, const csm_block *, csm_row *,
                            double *)
    cpu.csm_status csm_run_stream_results(const csm_table *, const csm_stream_call *, const csm_row *, void *, int *)
    cpu.csm_status csm_run_stream_values(const csm_table *, const csm_stream_call *, csm_block *, double *)


cdef csm_stream_call _stream_call(int dtype, x, double temperature, max, num_threads) except *:
    cdef csm_stream_call c
    c.dtype = dtype
    c.rows = c.n = 0
    if x is not None:
        c.rows, c.n = x.shape
    c.x = _data(x)
    c.temperature = temperature
    c.max = <const double *>_data(max)
    c.values = NULL
    c.width = 0
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    return c


def run_stream_blocks(int operation, int dtype, x, double temperature, max, blocks, num_threads):
    """blocks[r, i]: block i of row r of x; max: None, or the maximum of each row that is to be transformed."""
    cdef csm_stream_call c = _stream_call(dtype, x, temperature, max, num_threads)
    cdef csm_block *to = <csm_block *>_data(blocks)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_stream_blocks(operation, csm_current_table(), &c, to)
    _raise(status)


def combine_stream(int operation, int dtype, double temperature, max, blocks, rows, lse):
    """rows[r]: the sums of blocks[r]; lse[r], unless None: its log-sum-exp."""
    cdef csm_stream_call c = _stream_call(dtype, None, temperature, max, None)
    cdef size_t count = blocks.shape[1]
    cdef const csm_block *of = <const csm_block *>_data(blocks)
    cdef csm_row *to = <csm_row *>_data(rows)
    cdef double *values = <double *>_data(lse)
    c.rows = blocks.shape[0]
    with nogil:
        csm_stream_combine(operation, csm_current_table(), &c, count, of, to, values)


def run_stream_results(int dtype, x, double temperature, max, rows, y, num_threads):
    """y: the softmax of x, pieces of rows whose sums are in `rows`.

    Returns whether x has NaN or elements above the maximum of their row; y is not theirs then, nor their blocks'.
    """
    cdef int has_others = 0
    cdef csm_stream_call c = _stream_call(dtype, x, temperature, max, num_threads)
    cdef const csm_row *of = <const csm_row *>_data(rows)
    cdef void *to = _data(y)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_stream_results(csm_current_table(), &c, of, to, &has_others)
    _raise(status)
    return bool(has_others)


def run_stream_values(int dtype, x, double temperature, max, values, blocks, sums, num_threads):
    """blocks[r]: the softmax block of row r of x; sums[r]: the sum of its e' times the rows of values[r]."""
    cdef csm_stream_call c = _stream_call(dtype, x, temperature, max, num_threads)
    cdef csm_block *to = <csm_block *>_data(blocks)
    cdef double *total = <double *>_data(sums)
    cdef cpu.csm_status status
    c.values = _data(values)
    c.width = values.shape[2]
    with nogil:
        status = csm_run_stream_values(csm_current_table(), &c, to, total)
    _raise(status)
