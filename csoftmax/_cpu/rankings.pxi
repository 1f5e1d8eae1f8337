# The loss of rankings. Arrays are contiguous, and of the dtypes of csm_ranking_call; the callers check them. Included
# by binding.pyx.

cdef extern from "core/extension.h" nogil:
    int CSM_RANKING_BRESLOW, CSM_RANKING_EFRON, CSM_RANKING_EXACT, CSM_RANKING_ORDER
    ctypedef struct csm_ranking_call:
        int dtype
        size_t lists
        const int64_t *offsets
        const void *x
        const double *relevance
        const float *relevance_single
        const unsigned char *observed
        int ties
        size_t top
        double temperature
        const double *temperatures
        const double *sample_weight
        const double *upstream
        int reduction
        double *losses
        float *single
        double total
        void *grad
        int threads
        int (*interrupt)(void *) noexcept
    cpu.csm_status csm_run_rankings(const csm_table *, csm_ranking_call *)


RANKING_TIES = {
    "breslow": CSM_RANKING_BRESLOW, "efron": CSM_RANKING_EFRON, "exact": CSM_RANKING_EXACT, "order": CSM_RANKING_ORDER,
}


def run_rankings(int dtype, x, relevance, observed, offsets, int ties, top, temperature, sample_weight, upstream,
                 int reduction, losses, single, grad, num_threads):
    """Write the losses of lists, and as float32 and the gradient unless these are None; return the reduced loss.

    top: None, or a number of places; temperature: a number, or an array with one for each list.
    """
    cdef csm_ranking_call c
    cdef cpu.csm_status status
    cdef bint is_number = isinstance(temperature, float)
    c.dtype = dtype
    c.lists = losses.shape[0]
    c.offsets = <const int64_t *>_data(offsets)
    c.x = _data(x)
    c.relevance = <const double *>_data(relevance) if relevance.itemsize == 8 else NULL
    c.relevance_single = <const float *>_data(relevance) if relevance.itemsize == 4 else NULL
    c.observed = <const unsigned char *>_data(observed)
    c.ties = ties
    c.top = <size_t>-1 if top is None else top
    c.temperature = temperature if is_number else 1
    c.temperatures = NULL if is_number else <const double *>_data(temperature)
    c.sample_weight = <const double *>_data(sample_weight)
    c.upstream = <const double *>_data(upstream)
    c.reduction = reduction
    c.losses = <double *>_data(losses)
    c.single = <float *>_data(single)
    c.total = 0
    c.grad = _data(grad)
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    with nogil:
        status = csm_run_rankings(csm_current_table(), &c)
    _raise(status)
    return c.total
