# Distances to the decision boundaries of linear layers. Arrays are contiguous, of float64 and int64; the callers check
# them. Included by binding.pyx.

cdef csm_certify_call _certify_call(w, bias, norm, num_threads) except *:
    cdef csm_certify_call c
    c.classes = w.shape[0]
    c.d = w.shape[1]
    c.w = <const double *>_address(w)
    c.bias = <const double *>_address_or_null(bias)
    c.norm, c.exponent = norm
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    c.interrupt_context = NULL
    return c


def run_certify(x, w, bias, target, low, high, norm, radius, margin, rival, num_threads):
    """Radii, margins and rivals of the rows of x; low and high: None, or walls of one row or one for each.

    norm: 0 to 3 (1, 2, infinity, other), and the exponent of the dual norm.
    """
    cdef csm_certify_call c = _certify_call(w, bias, norm, num_threads)
    cdef cpu.csm_status status
    c.n = x.shape[0]
    c.x = <const double *>_address(x)
    c.target = <const int64_t *>_address_or_null(target)
    c.low = <const double *>_address_or_null(low)
    c.high = <const double *>_address_or_null(high)
    c.low_step = c.d if low is not None and low.shape[0] != 1 else 0
    c.high_step = c.d if high is not None and high.shape[0] != 1 else 0
    c.radius = <double *>_address(radius)
    c.margin = <double *>_address(margin)
    c.rival = <int64_t *>_address(rival)
    with nogil:
        status = csm_run_certify(csm_current_table(), &c)
    _raise(status)


def run_dual_norms(w, classes, norm, out, num_threads):
    """out[i, j]: the dual norm of w[classes[i]] - w[j]; norm as in run_certify."""
    cdef csm_certify_call c = _certify_call(w, None, norm, num_threads)
    cdef size_t count = classes.shape[0]
    cdef const int64_t *of = <const int64_t *>_address(classes)
    cdef double *to = <double *>_address(out)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_dual_norms(csm_current_table(), &c, count, of, to)
    _raise(status)


def run_climb(int dtype, x, layer, labels, walls, ball, steps, start, delta, num_threads):
    """The perturbations, delta, that steps of projected gradient ascent reach; arrays of float32 or float64.

    layer: w, w times a power of two, and the bias or None.  walls: None, or float64 of one row or one for each.  ball:
    eps, the norm as a number of NORMS, and the length of a step.  start: the first perturbations, or None for 0.
    """
    cdef csm_climb_call c
    cdef cpu.csm_status status
    w, scaled, bias = layer
    low, high = (None, None) if walls is None else walls
    c.n, c.steps = x.shape[0], steps
    c.layer.classes, c.layer.d = w.shape
    c.layer.w = _address(w)
    c.layer.scaled = _address(scaled)
    c.layer.eps, c.layer.norm, c.layer.step = ball
    c.rows.x = _address(x)
    c.rows.bias = _address_or_null(bias)
    c.rows.start = _address_or_null(start)
    c.rows.labels = <const int64_t *>_address(labels)
    c.rows.low = <const double *>_address_or_null(low)
    c.rows.high = <const double *>_address_or_null(high)
    c.rows.low_step = c.layer.d if low is not None and low.shape[0] != 1 else 0
    c.rows.high_step = c.layer.d if high is not None and high.shape[0] != 1 else 0
    c.rows.delta = _address(delta)
    c.threads = _threads(num_threads)
    c.interrupt = _check_signals
    with nogil:
        status = csm_run_climb(dtype, csm_current_table(), &c)
    _raise(status)


def run_climb_step(int dtype, delta, g, low, high, double step, num_threads):
    """A step along the signs of g and the projection between low and high; arrays of float32 or float64, in place."""
    cdef size_t n = delta.size
    cdef int threads = _threads(num_threads)
    cdef void *to = _address(delta)
    cdef const void *slope = _address(g)
    cdef const void *least = _address(low)
    cdef const void *largest = _address(high)
    cdef cpu.csm_status status
    with nogil:
        status = csm_run_climb_step(dtype, csm_current_table(), n, to, slope, least, largest, step, threads,
                                    _check_signals)
    _raise(status)
