# cython: auto_pickle=False, binding=False, freethreading_compatible=True
# The CPU binding: pointers and strides out of buffers, one C call, status to exception.
#
# One function per kind of signature, not per operation.  Arguments arrive checked (see _args.py), except in
# `fast_loss`, which takes the cases that must cost as little as possible and declines everything else; _quick.c does
# so for the softmax family.

from cpython.buffer cimport (
    PyBUF_FORMAT, PyBUF_STRIDED_RO, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.pycapsule cimport PyCapsule_New
from libc.float cimport DBL_MAX, FLT_MAX
from libc.stdint cimport uint64_t, uintptr_t

cimport csoftmax.cpu as cpu

import operator
import os
import threading
from inspect import signature as _signature
from math import prod as _prod

from numpy import (
    dtype as _dtype, empty as _empty, empty_like as _empty_like, frombuffer as _frombuffer, ndarray as _ndarray,
)


cdef extern from "internal.h" nogil:
    ctypedef struct csm_table:
        pass
    ctypedef struct csm_scales:
        pass
    ctypedef struct csm_entmax:
        pass
    const csm_table *csm_current_table()
    const char *csm_source()
    int csm_openmp()
    int csm_openmp_limit()
    cpu.csm_status csm_run_topk(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *, size_t,
                                const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_topk_options *)
    cpu.csm_status csm_run_entmax(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                  const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_entmax_options *)
    cpu.csm_status csm_run_entmax_loss(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                       const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_view *, double *,
                                       const cpu.csm_entmax_options *)
    cpu.csm_status csm_run_sample(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *, size_t,
                                  const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_sample_options *)
    cpu.csm_status csm_run_loss(int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                                const cpu.csm_view *, double *, cpu.csm_loss_options *)
    cpu.csm_status csm_run(int, int, const csm_table *, const cpu.csm_shape *, const cpu.csm_view *,
                           const cpu.csm_view *, const cpu.csm_view *, const cpu.csm_options *)

    ctypedef struct csm_loss_call:
        pass
    void csm_set_scales(csm_scales *, double, int)
    void csm_set_entmax(csm_entmax *, double, int)
    csm_loss_call csm_loss_call_of(const cpu.csm_loss_options *, size_t, int)

cdef extern from "registry.h" nogil:
    int CSM_OP_softmax, CSM_OP_log_softmax, CSM_OP_logsumexp, CSM_OP_softmax_vjp, CSM_OP_log_softmax_vjp
    int CSM_DTYPE_f32, CSM_DTYPE_f64, CSM_DTYPE_f16, CSM_DTYPE_bf16

cdef extern from *:
    """
    #include "csoftmax_api.h"
    #define CSM_API_ENTRY(type, name) csm_##name,
    static const csm_api csm_api_table = {CSM_ABI_MAJOR, CSM_ABI_MINOR, sizeof(csm_api),
                                          CSM_API_FUNCTIONS(CSM_API_ENTRY)};

    /* Settings of the process.  Atomic: without the GIL a thread may read one while another changes it. */
    #include <stdatomic.h>
    static atomic_int csm_threads_default = 1, csm_threads_limit = 1, csm_threads_contexts, csm_threads_openmp = 1;
    static void csm_count_contexts(int change) { atomic_fetch_add(&csm_threads_contexts, change); }
    """
    const void *csm_api_pointer "&csm_api_table"
    const char *CSM_SOURCE_HASH
    int _default "csm_threads_default"    # set_num_threads, or the limit
    int _limit "csm_threads_limit"        # no call uses more
    int _contexts "csm_threads_contexts"  # how many csoftmax.threads() are entered, in any thread
    # OpenMP's default; less in a thread: threadpoolctl or omp_set_num_threads wants fewer there
    int _openmp "csm_threads_openmp"
    void csm_count_contexts(int)

cdef extern from "Python.h":
    int PyErr_CheckSignals()

cdef extern from "_pages.h":
    size_t CSM_LARGE
    bint csm_keeps_pages(size_t)
    void csm_set_pages_limit(size_t)
    size_t csm_kept_pages()
    void csm_set_tracemalloc(uintptr_t, uintptr_t)
    void *csm_take_pages(size_t)
    void csm_give_pages(void *, size_t)

cdef extern from "_quick.h":
    ctypedef struct csm_quick:
        void *ndarray
        void *empty
        void *empty_like
        void *dtypes[4]
        int (*threads)(object) except -1
        int (*interrupt)(void *) noexcept
        int (*raise_ "raise")(cpu.csm_status) except -1
    int CSM_KEEP_GIL
    bint csm_is_plain(const Py_buffer *) noexcept
    bint csm_are_apart(const Py_buffer *, const Py_buffer *) noexcept
    bint csm_may_write(const Py_buffer *, const Py_buffer *) noexcept
    int csm_quick_set_up(const csm_quick *) except -1
    object csm_quick_function(int, object, object, object)

cdef extern from "_xla.h" nogil:
    void csm_xla_softmax()
    void csm_xla_log_softmax()
    void csm_xla_logsumexp()
    void csm_xla_softmax_vjp()
    void csm_xla_log_softmax_vjp()
    void csm_xla_entmax()
    void csm_xla_entmax_vjp()
    void csm_xla_cross_entropy()

OPS = {
    "softmax": CSM_OP_softmax,
    "log_softmax": CSM_OP_log_softmax,
    "logsumexp": CSM_OP_logsumexp,
    "softmax_vjp": CSM_OP_softmax_vjp,
    "log_softmax_vjp": CSM_OP_log_softmax_vjp,
}
DTYPES = {
    "float32": CSM_DTYPE_f32, "float64": CSM_DTYPE_f64, "float16": CSM_DTYPE_f16, "bfloat16": CSM_DTYPE_bf16,
}
SUFFIXES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}  # CSM_DTYPES
LABELS = {
    "int8": cpu.CSM_INT8, "int16": cpu.CSM_INT16, "int32": cpu.CSM_INT32, "int64": cpu.CSM_INT64,
    "uint8": cpu.CSM_UINT8, "uint16": cpu.CSM_UINT16, "uint32": cpu.CSM_UINT32, "uint64": cpu.CSM_UINT64,
}
REDUCTIONS = {"none": cpu.CSM_NONE, "sum": cpu.CSM_SUM, "mean": cpu.CSM_MEAN}
NORMALIZE = {None: cpu.CSM_TOPK_NONE, "topk": cpu.CSM_TOPK_SOFTMAX, "full": cpu.CSM_TOPK_FULL}
ISAS = ("scalar", "neon", "avx2", "avx512")
SOURCE_HASH = CSM_SOURCE_HASH.decode()
ABI = f"{cpu.CSM_ABI_MAJOR}.{cpu.CSM_ABI_MINOR}"
C_API = PyCapsule_New(<void *>csm_api_pointer, "csoftmax._C_API", NULL)
OPENMP = csm_openmp()

# Threads

_local = threading.local()


cdef int _bounded(object num_threads) except -1:
    if type(num_threads) is not int:
        num_threads = _count(num_threads)
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}")
    return <int>min(num_threads, _limit)


cdef int _threads(object num_threads) except -1:
    # of a call
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
    """Called once at import with what the machine allows."""
    global _limit, _default
    _limit = _default = max(1, limit)


def set_openmp_default(int threads):
    """Called once at import: OMP_NUM_THREADS, or the CPUs."""
    global _openmp
    _openmp = threads


def get_threads():
    return _threads(None)


def thread_settings():
    """What csoftmax.threads (0: not entered), set_num_threads and OpenMP (0: its default) say to this thread."""
    cdef int openmp = csm_openmp_limit()
    return getattr(_local, "limit", 0), _default, openmp if openmp < _openmp else 0


def set_threads(num_threads):
    global _default
    _default = _limit if num_threads is None else _bounded(num_threads)


def enter_threads(num_threads):
    """Set this thread's bound; returns the one before, for leave_threads."""
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


# Instruction sets

def isa():
    return cpu.csm_isa().decode()


def isa_built():
    return tuple(name for name in ISAS if cpu.csm_isa_built(name.encode()))


def isa_available():
    return tuple(name for name in ISAS if cpu.csm_isa_available(name.encode()))


def select_isa(str name):
    if cpu.csm_select_isa(name.encode()) != 0:
        raise ValueError(f"instruction set {name!r} is not available; available here: {', '.join(isa_available())}")


# Large results

cdef char *_BYTES = "B"  # of the struct module


cdef class _Pages:
    # memory that is used again when the array that lies in it is gone
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
    # a result of so many bytes
    return _ndarray(shape, dtype, _Pages(size)) if csm_keeps_pages(size) else _empty(shape, dtype)


def empty(shape, dtype):
    """numpy.empty for a result or scratch; dtype is a numpy dtype."""
    return _new(shape, dtype, _prod(shape) * dtype.itemsize)


def empty_like(x):
    """numpy.empty_like for a result."""
    cdef size_t size = x.nbytes
    return _new(x.shape, x.dtype, size) if csm_keeps_pages(size) and _in_c_order(x) else _empty_like(x)


cdef bint _in_c_order(x):
    # whether an array like x is C-contiguous, which x itself need not be
    steps = [abs(step) for step, length in zip(x.strides, x.shape) if length != 1]
    return steps == sorted(steps, reverse=True) and 0 not in steps


def set_pages_limit(size_t size):
    """Bytes of results' memory that are kept at most, at the system's disposal, when nobody has them any more."""
    csm_set_pages_limit(size)


def set_tracemalloc(uintptr_t track, uintptr_t untrack):
    """Addresses of PyTraceMalloc_Track and PyTraceMalloc_Untrack."""
    csm_set_tracemalloc(track, untrack)


def kept_pages():
    """Bytes that are kept now."""
    return csm_kept_pages()


# Calls

cdef int _check_signals(void *context) noexcept with gil:
    return PyErr_CheckSignals()


cdef int _propagate() except -1:
    # the signal handler has set the exception
    return -1


cdef int _raise(cpu.csm_status status) except -1:
    if status == cpu.CSM_OK:
        return 0
    if status == cpu.CSM_INTERRUPTED:
        return _propagate()
    if status == cpu.CSM_NO_MEMORY:
        raise MemoryError("csoftmax: no memory for scratch; the output may be partly written")
    raise ValueError(f"csoftmax: {cpu.csm_status_text(status).decode()}")


cdef void _describe(Py_buffer *buffer, cpu.csm_view *view, bint has_axis) noexcept:
    cdef int i, ndim = buffer.ndim - (1 if has_axis else 0)
    view.data = buffer.buf
    view.axis_stride = buffer.strides[ndim] if has_axis else 0
    for i in range(ndim):
        view.strides[i] = buffer.strides[i]


cdef class _Buffers:
    # the buffers of a call: held while it runs, whatever happens
    cdef Py_buffer buffer[8]
    cdef cpu.csm_view view[8]
    cdef bint held[8]
    cdef cpu.csm_shape shape

    def __dealloc__(self):
        for i in range(8):
            if self.held[i]:
                PyBuffer_Release(&self.buffer[i])

    cdef const cpu.csm_view *take(self, int i, array, bint has_axis, bint writable) except? NULL:
        # the view of an array, NULL for None; the first one gives the shape
        if array is None:
            return NULL
        PyObject_GetBuffer(array, &self.buffer[i], PyBUF_STRIDED_RO | (PyBUF_WRITABLE if writable else 0))
        self.held[i] = True
        _describe(&self.buffer[i], &self.view[i], has_axis)
        if i == 0:
            self.shape.ndim = self.buffer[0].ndim - 1
            for j in range(<int>self.shape.ndim):
                self.shape.shape[j] = self.buffer[0].shape[j]
            self.shape.n = self.buffer[0].shape[self.shape.ndim]
        return &self.view[i]


def scales(int dtype, double temperature):
    """A call's temperature as the constants that kernels elsewhere need: a csm_scales, in an array of one element."""
    cdef csm_scales s
    csm_set_scales(&s, temperature, dtype != CSM_DTYPE_f64)
    return _frombuffer((<char *>&s)[:sizeof(s)], f"V{sizeof(s)}")


def entmax(int dtype, double alpha):
    """The same of alpha-entmax: a csm_entmax."""
    cdef csm_entmax e
    csm_set_entmax(&e, alpha, dtype != CSM_DTYPE_f64)
    return _frombuffer((<char *>&e)[:sizeof(e)], f"V{sizeof(e)}")


def loss_call(size_t n, double temperature, double label_smoothing, double z_loss, double clip_norm,
              double clip_value, bint soft, bint gradient):
    """The same of a loss: a csm_loss_call, all but what the labels and the weights decide."""
    cdef cpu.csm_loss_options options = cpu.csm_default_loss_options()
    cdef cpu.csm_view view
    cdef csm_loss_call call
    options.temperature = temperature
    options.label_smoothing = label_smoothing
    options.z_loss = z_loss
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.soft = &view if soft else NULL
    call = csm_loss_call_of(&options, n, gradient)
    return _frombuffer((<char *>&call)[:sizeof(call)], f"V{sizeof(call)}")


def run(int op, int dtype, a, b, y, where, double temperature, num_threads):
    """Run an operation on arrays whose last axis is the softmax axis (y of a log-sum-exp has none)."""
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_options options = cpu.csm_default_options()
    cdef const cpu.csm_view *to
    cdef const cpu.csm_view *second
    cdef cpu.csm_status status
    options.temperature = temperature
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, a, True, False)
    to = buffers.take(1, y, op != CSM_OP_logsumexp, True)
    second = buffers.take(2, b, True, False)
    options.where = buffers.take(3, where, True, False)
    with nogil:
        status = csm_run(op, dtype, csm_current_table(), &buffers.shape, &buffers.view[0], second, to, &options)
    _raise(status)


# Native dtypes are mostly these objects, but not those of arrays that were pickled.
cdef object _f32 = _dtype("float32"), _f64 = _dtype("float64"), _f16 = _dtype("float16")
cdef object _i64 = _dtype("int64"), _i32 = _dtype("int32")


cdef _native(dtype):
    # that of the objects above which is equal to a dtype, or itself
    if dtype is _f32 or dtype is _f64 or dtype is _i64 or dtype is _i32:
        return dtype
    for known in (_f32, _f64, _i64, _i32):
        if dtype == known:
            return known
    return dtype


cdef inline bint _are_weights(Py_buffer *w, bint single) noexcept:
    # finite and not negative
    cdef Py_ssize_t i
    cdef double most = FLT_MAX if single else DBL_MAX
    cdef bint good = True
    for i in range(w.shape[0]):
        if single:
            good &= 0 <= (<float *>w.buf)[i] <= most
        else:
            good &= 0 <= (<double *>w.buf)[i] <= most
    return good


cdef _set_up_quick():
    cdef csm_quick needs
    needs.ndarray = <void *>_ndarray
    needs.empty = <void *>_empty
    needs.empty_like = <void *>empty_like
    needs.dtypes[CSM_DTYPE_f32] = <void *>_f32
    needs.dtypes[CSM_DTYPE_f64] = <void *>_f64
    needs.dtypes[CSM_DTYPE_f16] = <void *>_f16
    needs.dtypes[CSM_DTYPE_bf16] = NULL
    needs.threads = _threads
    needs.interrupt = _check_signals
    needs.raise_ = _raise
    csm_quick_set_up(&needs)


_set_up_quick()


def quick(function):
    """Decorates the Python function of an operation in OPS: plain arguments will not reach it (see _quick.c)."""
    doc = f"{function.__name__}{_signature(function)}\n--\n\n{function.__doc__ or ''}"
    return csm_quick_function(OPS[function.__name__], function, function.__module__, doc)


def run_loss(int dtype, x, y, loss, labels, ignore, soft, weight, sample_weight, upstream, double temperature,
             double label_smoothing, double z_loss, double clip_norm, double clip_value, int reduction, num_threads):
    """Cross-entropy of arrays whose last axis is that of the classes (x, y, soft), or that have none (the others).

    labels are integers of a native dtype, ignore is a label as 64 bits or None; sample_weight and upstream are
    float64, weight and soft have the compute dtype.  Returns None, or, nothing written, the first bad row: its
    label is no class (soft labels: some row is bad, not this one).
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_loss_options options = cpu.csm_default_loss_options()
    cdef const cpu.csm_view *gradient
    cdef cpu.csm_status status
    options.temperature = temperature
    options.label_smoothing = label_smoothing
    options.z_loss = z_loss
    options.clip_norm = clip_norm
    options.clip_value = clip_value
    options.reduction = <cpu.csm_reduction>reduction
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    if labels is not None:
        options.label_type = LABELS[labels.dtype.name]
        if ignore is not None:
            options.has_ignore = 1
            options.ignore = <uint64_t>ignore
    buffers.take(0, x, True, False)
    gradient = buffers.take(1, y, True, True)
    options.soft = buffers.take(2, soft, True, False)
    options.labels = buffers.take(3, labels, False, False)
    options.sample_weight = buffers.take(4, sample_weight, False, False)
    options.upstream = buffers.take(5, upstream, False, False)
    buffers.take(6, loss, False, True)
    if weight is not None:
        options.weight = <const void *><uintptr_t>weight.ctypes.data
    with nogil:
        status = csm_run_loss(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], gradient,
                              <double *>buffers.view[6].data, &options)
    if status == cpu.CSM_BAD_LABEL:
        return options.position
    _raise(status)


def run_topk(int dtype, x, values, indices, bint smallest, bint unsorted, int normalize, double temperature,
             num_threads):
    """The k best of arrays whose last axis is that of the classes; k is the last axis of values and indices."""
    cdef _Buffers b = _Buffers()
    cdef cpu.csm_topk_options options = cpu.csm_default_topk_options()
    cdef cpu.csm_status status
    cdef size_t k = values.shape[-1]
    options.smallest = smallest
    options.unsorted = unsorted
    options.normalize = <cpu.csm_topk_normalize>normalize
    options.temperature = temperature
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    b.take(0, x, True, False)
    b.take(1, values, True, True)
    b.take(2, indices, True, True)
    with nogil:
        status = csm_run_topk(dtype, csm_current_table(), &b.shape, &b.view[0], k, &b.view[1], &b.view[2], &options)
    _raise(status)


def run_entmax(int dtype, a, b, y, where, double alpha, num_threads):
    """alpha-entmax of a to y, or, with b, its gradient from dy = a and y = b; the last axis is that of the classes."""
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_entmax_options options = cpu.csm_default_entmax_options()
    cdef const cpu.csm_view *second
    cdef cpu.csm_status status
    options.alpha = alpha
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, a, True, False)
    second = buffers.take(1, b, True, False)
    buffers.take(2, y, True, True)
    options.where = buffers.take(3, where, True, False)
    with nogil:
        status = csm_run_entmax(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], second,
                                &buffers.view[2], &options)
    _raise(status)


def run_entmax_loss(int dtype, x, labels, soft, gradient, loss, double alpha, int reduction, num_threads):
    """Fenchel-Young loss, float64, and its gradient; labels are int64, soft labels have the compute dtype."""
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_entmax_options options = cpu.csm_default_entmax_options()
    cdef const cpu.csm_view *hard
    cdef const cpu.csm_view *distribution
    cdef const cpu.csm_view *to
    cdef cpu.csm_status status
    options.alpha = alpha
    options.reduction = <cpu.csm_reduction>reduction
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, x, True, False)
    hard = buffers.take(1, labels, False, False)
    distribution = buffers.take(2, soft, True, False)
    to = buffers.take(3, gradient, True, True)
    buffers.take(4, loss, False, True)
    with nogil:
        status = csm_run_entmax_loss(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], hard, distribution,
                                     to, <double *>buffers.view[4].data, &options)
    _raise(status)


def run_sample(int dtype, x, uniform, indices, where, temperature, top_k, top_p, min_p, num_threads):
    """Draws from rows whose last axis is that of the classes; the others but where have an axis of draws, or none.

    Returns whether all rows had mass.
    """
    cdef _Buffers buffers = _Buffers()
    cdef cpu.csm_sample_options options = cpu.csm_default_sample_options()
    cdef cpu.csm_status status
    cdef size_t draws = uniform.shape[-1]
    options.threads = _threads(num_threads)
    options.interrupt = _check_signals
    buffers.take(0, x, True, False)
    buffers.take(1, uniform, True, False)
    buffers.take(2, indices, True, True)
    options.where = buffers.take(3, where, True, False)
    options.temperature = buffers.take(4, temperature, False, False)
    options.top_k = buffers.take(5, top_k, False, False)
    options.top_p = buffers.take(6, top_p, False, False)
    options.min_p = buffers.take(7, min_p, False, False)
    with nogil:
        status = csm_run_sample(dtype, csm_current_table(), &buffers.shape, &buffers.view[0], draws,
                                &buffers.view[1], &buffers.view[2], &options)
    if status == cpu.CSM_NO_MASS:
        return False
    _raise(status)
    return True


def fast_loss(x, target, bint gradient, out, reduction, ignore_index, axis, weight, sample_weight, label_smoothing,
              z_loss, temperature, upstream, clip_norm, clip_value, device, num_threads):
    """The plain case: C-contiguous native numpy arrays of floats; labels of int64, int32 or (soft) the logits' dtype;
    class weights of the logits' dtype; other options None or Python floats, no sample_weight, upstream 1.

    Returns None for everything else, bad labels included (nothing has been written then); (loss, gradient) else.
    """
    cdef Py_buffer source, labels, result, weights, losses
    cdef cpu.csm_view from_view, to_view, label_view
    cdef cpu.csm_shape shape
    cdef cpu.csm_loss_options options
    cdef cpu.csm_status status
    cdef double loss = 0
    cdef int dtype, ndim, i
    cdef Py_ssize_t rows = 1
    cdef double *to_loss = &loss
    cdef bint have_labels = False, have_result = False, have_weights = False, have_losses = False, soft = False
    if (type(x) is not _ndarray or type(target) is not _ndarray or type(ignore_index) is not int
            or type(axis) is not int or <object>axis != -1 or sample_weight is not None or device is not None
            or type(label_smoothing) is not float or not 0 <= <double>label_smoothing <= 1
            or type(z_loss) is not float or not 0 <= <double>z_loss <= DBL_MAX
            or type(temperature) is not float or not 0 < <double>temperature <= DBL_MAX
            or type(upstream) is not float or <double>upstream != 1
            or (clip_norm is not None and (type(clip_norm) is not float or not 0 < <double>clip_norm <= DBL_MAX))
            or (clip_value is not None and (type(clip_value) is not float or not 0 < <double>clip_value <= DBL_MAX))):
        return None
    kind, labels_kind = _native(x.dtype), _native(target.dtype)
    if kind is _f32:
        dtype = CSM_DTYPE_f32
    elif kind is _f64:
        dtype = CSM_DTYPE_f64
    else:
        return None
    options = cpu.csm_default_loss_options()
    if reduction == "mean":
        options.reduction = cpu.CSM_MEAN
    elif reduction == "sum":
        options.reduction = cpu.CSM_SUM
    elif reduction == "none":
        options.reduction = cpu.CSM_NONE
    else:
        return None
    if labels_kind is _i64:
        options.label_type = cpu.CSM_INT64
    elif labels_kind is _i32:
        options.label_type = cpu.CSM_INT32
    elif labels_kind is kind:
        soft = True
    else:
        return None
    if weight is not None and (type(weight) is not _ndarray or _native(weight.dtype) is not kind):
        return None
    if not -2147483648 <= ignore_index <= 2147483647:
        return None
    if out is not None and (type(out) is not _ndarray or _native(out.dtype) is not kind):
        return None
    PyObject_GetBuffer(x, &source, PyBUF_STRIDED_RO)
    try:
        ndim = source.ndim
        if ndim == 0 or (ndim == 1 and options.reduction == cpu.CSM_NONE) or not csm_is_plain(&source):
            return None
        PyObject_GetBuffer(target, &labels, PyBUF_STRIDED_RO)
        have_labels = True
        if labels.ndim != ndim - 1 + soft or not csm_is_plain(&labels):
            return None
        for i in range(labels.ndim):
            if labels.shape[i] != source.shape[i]:
                return None
        for i in range(ndim - 1):
            rows *= source.shape[i]
        if weight is not None:
            PyObject_GetBuffer(weight, &weights, PyBUF_STRIDED_RO)
            have_weights = True
            if (weights.ndim != 1 or weights.shape[0] != source.shape[ndim - 1] or not csm_is_plain(&weights)
                    or not _are_weights(&weights, source.itemsize == 4)):
                return None
            options.weight = weights.buf
        grad = None
        if gradient:
            grad = out if out is not None else _new(x.shape, x.dtype, source.len)
            PyObject_GetBuffer(grad, &result, PyBUF_STRIDED_RO)
            have_result = True
            if out is not None and not (csm_may_write(&result, &source)
                                        and (not soft or csm_are_apart(&result, &labels))
                                        and (not have_weights or csm_are_apart(&result, &weights))):
                return None
        each = None
        if options.reduction == cpu.CSM_NONE:
            each = _empty(x.shape[:-1], _f64)
            PyObject_GetBuffer(each, &losses, PyBUF_STRIDED_RO)
            have_losses = True
            to_loss = <double *>losses.buf
        shape.n = source.shape[ndim - 1]
        shape.ndim = 1
        shape.shape[0] = rows
        from_view.data = source.buf
        from_view.axis_stride = to_view.axis_stride = source.itemsize
        from_view.strides[0] = to_view.strides[0] = source.itemsize * <Py_ssize_t>shape.n
        if gradient:
            to_view.data = result.buf
        label_view.data = labels.buf
        label_view.strides[0] = from_view.strides[0] if soft else labels.itemsize
        label_view.axis_stride = labels.itemsize
        if soft:
            options.soft = &label_view
        else:
            options.labels = &label_view
            options.has_ignore = 1
            options.ignore = <uint64_t><Py_ssize_t>ignore_index
        options.label_smoothing = label_smoothing
        options.z_loss = z_loss
        options.temperature = temperature
        if clip_norm is not None:
            options.clip_norm = clip_norm
        if clip_value is not None:
            options.clip_value = clip_value
        options.threads = _threads(num_threads)
        options.interrupt = _check_signals
        if source.len < CSM_KEEP_GIL * source.itemsize:
            status = csm_run_loss(dtype, csm_current_table(), &shape, &from_view, &to_view if gradient else NULL,
                                  to_loss, &options)
        else:
            with nogil:
                status = csm_run_loss(dtype, csm_current_table(), &shape, &from_view, &to_view if gradient else NULL,
                                      to_loss, &options)
    finally:
        if have_result:
            PyBuffer_Release(&result)
        if have_labels:
            PyBuffer_Release(&labels)
        if have_weights:
            PyBuffer_Release(&weights)
        if have_losses:
            PyBuffer_Release(&losses)
        PyBuffer_Release(&source)
    if status == cpu.CSM_BAD_LABEL:
        return None
    _raise(status)
    if each is not None:
        return each if kind is _f64 else each.astype(kind), grad
    return kind.type(loss), grad


# For csoftmax.jax: what XLA calls, in the capsules that it takes.
cdef _target(void *function):
    return PyCapsule_New(function, "xla._CUSTOM_CALL_TARGET", NULL)


XLA_TARGETS = {
    "softmax": _target(<void *>csm_xla_softmax),
    "log_softmax": _target(<void *>csm_xla_log_softmax),
    "logsumexp": _target(<void *>csm_xla_logsumexp),
    "softmax_vjp": _target(<void *>csm_xla_softmax_vjp),
    "log_softmax_vjp": _target(<void *>csm_xla_log_softmax_vjp),
    "entmax": _target(<void *>csm_xla_entmax),
    "entmax_vjp": _target(<void *>csm_xla_entmax_vjp),
    "cross_entropy": _target(<void *>csm_xla_cross_entropy),
}


def _choose_isa():
    name = os.environ.get("CSOFTMAX_ISA")
    if name and cpu.csm_select_isa(name.encode()) != 0:
        raise ImportError(f"CSOFTMAX_ISA={name} is not available; available here: {', '.join(isa_available())}")


if csm_source().decode() != SOURCE_HASH:
    raise ImportError(
        f"csoftmax {SOURCE_HASH} has found the libcsoftmax of another build, {csm_source().decode()!r}: look at "
        "LD_LIBRARY_PATH, or install csoftmax again"
    )
_choose_isa()
