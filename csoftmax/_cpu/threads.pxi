# Thread counts: the process's default, contexts of threads, and what OpenMP allows. Included by binding.pyx.

cdef extern from *:
    """
    /* Settings of the process. They are atomic because a thread without the GIL may read one while another sets it. */
    #include <stdatomic.h>
    static atomic_int csm_threads_default = 1, csm_threads_limit = 1, csm_threads_contexts, csm_threads_openmp = 1;
    static void csm_count_contexts(int change) { atomic_fetch_add(&csm_threads_contexts, change); }
    """
    int _default "csm_threads_default"    # of set_num_threads, else the limit
    int _limit "csm_threads_limit"        # upper bound of every call
    int _contexts "csm_threads_contexts"  # entered csoftmax.threads() in all threads
    # OpenMP's default; a lower number in a thread was set there by threadpoolctl or OpenMP
    int _openmp "csm_threads_openmp"
    void csm_count_contexts(int)

_local = threading.local()


cdef int _bounded(object num_threads) except -1:
    if type(num_threads) is not int:
        num_threads = _count(num_threads)
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return <int>min(num_threads, _limit)


cdef int _threads(object num_threads) except -1:
    # threads of a call
    cdef int wanted = 0, openmp = csm_openmp_limit()
    if num_threads is not None:
        wanted = _bounded(num_threads)
    else:
        if _contexts:
            wanted = getattr(_local, "limit", 0)
        wanted = wanted if wanted else _default
    return openmp if openmp < _openmp and openmp < wanted else wanted


def _count(value):
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"num_threads must be an int or None, got {value!r} of type {type(value).__name__}")


def set_thread_limit(int limit):
    """Set the upper bound of every call; called once at import with what the machine allows."""
    global _limit, _default
    _limit = _default = max(1, limit)


def set_openmp_default(int threads):
    """Set OpenMP's default, OMP_NUM_THREADS or the number of CPUs; called once at import."""
    global _openmp
    _openmp = threads


def get_threads():
    return _threads(None)


def thread_settings():
    """The bounds of csoftmax.threads (0: not entered), set_num_threads and OpenMP (0: its default) in this thread."""
    cdef int openmp = csm_openmp_limit()
    return getattr(_local, "limit", 0), _default, openmp if openmp < _openmp else 0


def set_threads(num_threads):
    global _default
    _default = _limit if num_threads is None else _bounded(num_threads)


def enter_threads(num_threads):
    """Set this thread's bound, and return the previous one for leave_threads."""
    if num_threads is None:
        raise TypeError("num_threads must be an int, got None")
    limit = _bounded(num_threads)
    before = getattr(_local, "limit", 0)
    csm_count_contexts(1)
    _local.limit = limit
    return before


def leave_threads(int before):
    _local.limit = before
    csm_count_contexts(-1)
