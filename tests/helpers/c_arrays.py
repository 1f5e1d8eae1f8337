"""Arrays as functions of csoftmax.h take them, for calls through ctypes."""

import ctypes


class Shape(ctypes.Structure):
    _fields_ = (("n", ctypes.c_size_t), ("ndim", ctypes.c_size_t), ("shape", ctypes.c_size_t * 64))


class View(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("axis", ctypes.c_ssize_t), ("strides", ctypes.c_ssize_t * 64))


def view_of(a):
    """View an array whose last axis is that of the softmax."""
    return View(a.ctypes.data, a.strides[-1], (ctypes.c_ssize_t * 64)(*a.strides[:-1]))
