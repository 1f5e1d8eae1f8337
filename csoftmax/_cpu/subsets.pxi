# Sums over subsets. Arrays are contiguous, of int64 and float64; the callers check them. Included by binding.pyx.

cdef extern from "core/extension.h" nogil:
    ctypedef struct csm_subset_call:
        size_t rows
        const int64_t *offsets
        const int64_t *k
        const double *x
        double *log_sums
        double *marginals
        float *single
        int threads
        int (*interrupt)(void *) noexcept
    cpu.csm_status csm_run_subsets(const csm_table *, const csm_subset_call *)


def run_subsets(x, offsets, k, log_sums, marginals, single, num_threads):
    """log_sums[i]: over the subsets of k[i] of row i; marginals: of each element. One of them is None.

    single: the other one as float32, or None.
    """
    cdef csm_subset_call c
    cdef cpu.csm_status status
    c.rows = k.shape[0]
    c.offsets = <const int64_t *>_data(offsets)
    c.k = <const int64_t *>_data(k)
    c.x = <const double *>_data(x)
    c.single = <float *>_data(single)
    c.log_sums = <double *>_data(log_sums)
    c.marginals = <double *>_data(marginals)
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    with nogil:
        status = csm_run_subsets(csm_current_table(), &c)
    _raise(status)
