"""Arrays and options as functions of csoftmax.h take them, for calls through ctypes."""

import ctypes


class Shape(ctypes.Structure):
    _fields_ = (("n", ctypes.c_size_t), ("ndim", ctypes.c_size_t), ("shape", ctypes.c_size_t * 64))


class View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("axis", ctypes.c_ssize_t), ("strides", ctypes.c_ssize_t * 64))


class CSegments(ctypes.Structure):
    _fields_ = (
        *(("size", ctypes.c_size_t), ("count", ctypes.c_size_t), ("indptr", ctypes.c_void_p)),
        *(("order", ctypes.c_void_p), ("order_bytes", ctypes.c_int)),
    )


class PlacedSegments(ctypes.Structure):
    """The structure with its last member, which older callers lack."""

    _fields_ = (("older", CSegments), ("places", ctypes.c_void_p))


class LossOptions(ctypes.Structure):
    _fields_ = (
        *(("size", ctypes.c_size_t), ("labels", ctypes.c_void_p), ("label_type", ctypes.c_int)),
        *(("has_ignore", ctypes.c_int), ("ignore", ctypes.c_uint64), ("soft", ctypes.c_void_p)),
        *(("weight", ctypes.c_void_p), ("sample_weight", ctypes.c_void_p), ("upstream", ctypes.c_void_p)),
        *((name, ctypes.c_double) for name in ("temperature", "label_smoothing", "z_loss", "clip_norm", "clip_value")),
        *(("reduction", ctypes.c_int), ("threads", ctypes.c_int), ("interrupt", ctypes.c_void_p)),
        *(("interrupt_context", ctypes.c_void_p), ("position", ctypes.c_size_t), ("temperatures", ctypes.c_void_p)),
        *(("softcap", ctypes.c_double), ("positives", ctypes.c_void_p)),
    )


def view_of(a):
    """View an array whose last axis is that of the softmax."""
    return View(a.ctypes.data, a.strides[-1], (ctypes.c_ssize_t * 64)(*a.strides[:-1]))
