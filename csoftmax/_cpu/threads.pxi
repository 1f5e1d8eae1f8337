# Thread counts: the process's default, contexts of threads, and what OpenMP allows. Included by binding.pyx.

cdef extern from *:
    """
    /* Settings of the process. They are atomic because a thread without the GIL may read one while another sets it. */
    #include <stdatomic.h>
    static atomic_int csm_threads_default = 1, csm_threads_limit = 1, csm_threads_bounds, csm_threads_openmp = 1;
    static void csm_count_bounds(int change) { atomic_fetch_add(&csm_threads_bounds, change); }
    """
    ctypedef int csm_flag "atomic_int"
    int _default "csm_threads_default"  # of set_num_threads, else the limit
    int _limit "csm_threads_limit"      # upper bound of every call
    int _bounds "csm_threads_bounds"    # existing _ThreadBound objects: without any, no context has to be asked
    # OpenMP's default; a lower number in a thread was set there by threadpoolctl or OpenMP
    int _openmp "csm_threads_openmp"
    void csm_count_bounds(int)


cdef class _ThreadBound:
    """The bound of one `csoftmax.threads` that was entered. It lives as long as a context holds it, copies included."""
    cdef int limit
    cdef csm_flag is_void

    def __cinit__(self, int limit):
        self.limit = limit
        csm_count_bounds(1)

    def __dealloc__(self):
        csm_count_bounds(-1)


# The bounds that the current context has entered and not left, the innermost last. A tuple rather than the innermost
# bound alone, because generators may leave them in any order.
_entered = _ContextVar("csoftmax.threads", default=())
cdef object _get_entered = _entered.get


cdef int _context_limit() except -1:
    # the innermost bound of the current context, or 0
    cdef tuple entered
    cdef _ThreadBound bound
    if not _bounds:
        return 0
    entered = _get_entered()
    for i in range(len(entered) - 1, -1, -1):
        bound = entered[i]
        if not bound.is_void:
            return bound.limit
    return 0


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
        wanted = _context_limit()
        wanted = wanted if wanted else _default
    return openmp if openmp < _openmp and openmp < wanted else wanted


def _count(value):
    try:
        if not str(getattr(value, "dtype", type(value).__name__)).endswith("bool"):  # an array or a tensor as well
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


cdef tuple _without(bound):
    # the bounds of the current context that hold, but for this one
    cdef _ThreadBound other
    kept = []
    for other in _get_entered():
        if other is not bound and not other.is_void:
            kept.append(other)
    return tuple(kept)


def get_threads():
    return _threads(None)


def thread_settings():
    """The bounds of csoftmax.threads (0: not entered), set_num_threads and OpenMP (0: its default) here."""
    cdef int openmp = csm_openmp_limit()
    return _context_limit(), _default, openmp if openmp < _openmp else 0


def thread_bounds():
    """The number of bounds that contexts hold."""
    return _bounds


def set_threads(num_threads):
    global _default
    _default = _limit if num_threads is None else _bounded(num_threads)


def enter_threads(num_threads):
    """Add a bound to the current context, and return what leave_threads needs."""
    if num_threads is None:
        raise TypeError("num_threads must be an int, got None")
    bound = _ThreadBound(_bounded(num_threads))
    return bound, _entered.set(_without(bound) + (bound,))


def leave_threads(entered):
    """Remove the bound of enter_threads from the current context, whatever was entered or left since.

    Contexts that were copied in between keep it, as they keep the value of every variable.
    """
    cdef _ThreadBound bound
    bound, token = entered
    remaining = _without(bound)
    try:
        _entered.reset(token)  # only to learn whether this is the context that has entered the bound
    except ValueError:
        # A generator was begun in one context and is closed in another. The former is out of reach, so the bound
        # ends everywhere.
        bound.is_void = True
    _entered.set(remaining)
