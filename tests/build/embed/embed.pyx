# csoftmax from Cython: the functions of csoftmax.h through `cimport csoftmax.cpu`, without Python objects.

cimport csoftmax.cpu as cpu


def softmax(const float[:, :] x, float[:, :] y, double temperature, int threads):
    """Compute softmax row by row, for any strides; return the status as an int."""
    cdef cpu.csm_shape shape
    cdef cpu.csm_view source, target
    cdef cpu.csm_options options
    cdef cpu.csm_status status
    shape.n = x.shape[1]
    shape.ndim = 1
    shape.shape[0] = x.shape[0]
    source.data = <void *>&x[0, 0]
    source.axis_stride = x.strides[1]
    source.strides[0] = x.strides[0]
    target.data = &y[0, 0]
    target.axis_stride = y.strides[1]
    target.strides[0] = y.strides[0]
    options = cpu.csm_default_options()
    options.temperature = temperature
    options.threads = threads
    with nogil:
        status = cpu.csm_softmax_f32(&shape, &source, &target, &options)
    return <int>status


def logsumexp(const double[::1] x):
    """Return the log-sum-exp of one row."""
    cdef cpu.csm_shape shape
    cdef cpu.csm_view source, target
    cdef double y = 0
    shape.n = x.shape[0]
    shape.ndim = 0
    source = cpu.csm_contiguous(&shape, shape.n, &x[0], sizeof(double))
    target = cpu.csm_contiguous(&shape, 1, &y, sizeof(double))
    if cpu.csm_logsumexp_f64(&shape, &source, &target, NULL) != cpu.CSM_OK:
        raise RuntimeError("csm_logsumexp_f64 failed")
    return y


def cross_entropy(const double[:, ::1] x, const long long[::1] labels, double[:, ::1] grad):
    """Return the mean over the rows, and write the gradient to grad."""
    cdef cpu.csm_shape shape
    cdef cpu.csm_view source, target, classes
    cdef cpu.csm_loss_options options = cpu.csm_default_loss_options()
    cdef double loss = 0
    shape.n = x.shape[1]
    shape.ndim = 1
    shape.shape[0] = x.shape[0]
    source = cpu.csm_contiguous(&shape, shape.n, &x[0, 0], sizeof(double))
    target = cpu.csm_contiguous(&shape, shape.n, &grad[0, 0], sizeof(double))
    classes = cpu.csm_contiguous(&shape, 1, &labels[0], sizeof(long long))
    options.labels = &classes
    status = cpu.csm_cross_entropy_f64(&shape, &source, &target, &loss, &options)
    if status == cpu.CSM_BAD_LABEL:
        raise IndexError(options.position)
    assert status == cpu.CSM_OK
    return loss


def isa():
    return cpu.csm_isa().decode()
