"""Callers that were compiled with an older csoftmax.h: what their shorter structures of options lack is not read."""

import ctypes
import struct
import sys

import numpy as np
import pytest
from helpers import ROOT, assert_same_bits
from helpers.c_arrays import Shape, view_of

import csoftmax
from csoftmax._spec.samples import logits

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shared library of a build on Linux")
# The options of each structure that its first version did not have begin with this one.
FIRST_ADDED = {
    "csm_options": "temperatures",
    "csm_loss_options": "temperatures",
    "csm_topk_options": "temperatures",
    "csm_entmax_options": "alphas",
    "csm_sample_options": "typical_p",
}
LINES = (ROOT / "tests/records/abi.txt").read_text().splitlines()
RECORD = dict(line.removeprefix("struct ").rsplit(" ", 1) for line in LINES if " " in line)
SHAPE, X = Shape(300, 1, (ctypes.c_size_t * 64)(5)), logits((5, 300), "float32", 1, 3.0)
LABELS = np.arange(5)[:, np.newaxis] * 7  # the last axis is that of the softmax, as in all views


def older(name, end=None, **given):
    """Options that end before one of them, those of the first version by default; behind them unusable bytes."""
    end = int(RECORD[f"{name}.{end or FIRST_ADDED[name]}"])
    options = bytearray(end) + b"\x55" * (int(RECORD[name]) - end)
    struct.pack_into("N", options, 0, end)
    for option, (code, value) in given.items():
        struct.pack_into(code, options, int(RECORD[f"{name}.{option}"]), value)
    return (ctypes.c_char * len(options)).from_buffer(options)


def view(a):
    return ctypes.byref(view_of(a))


@pytest.fixture(scope="module")
def c():
    return ctypes.CDLL(csoftmax.get_library())


def test_softmax(c):
    y = np.empty_like(X)
    options = older("csm_options", temperature=("d", 2.0), threads=("i", 1))
    assert c.csm_softmax_f32(ctypes.byref(SHAPE), view(X), view(y), options) == 0
    assert_same_bits(y, csoftmax.softmax(X, temperature=2.0))


@pytest.mark.parametrize("end", ["temperatures", "softcap", "positives"])
@pytest.mark.parametrize("segments", [False, True])
def test_cross_entropy(c, segments, end):
    """The position of a bad label is written although the structure is short."""
    labels, losses = LABELS.copy(), np.empty(6)
    given = view_of(labels)
    common = {"label_type": ("i", 3), "temperature": ("d", 2.0), "threads": ("i", 1)}
    options = older("csm_loss_options", end, labels=("N", ctypes.addressof(given)), **common)
    indptr = np.array([0, 300])
    whole = struct.pack("NNNNi4x", 40, 1, indptr.ctypes.data, 0, 8)
    of_segments = [whole] if segments else []
    function = c.csm_segment_cross_entropy_f32 if segments else c.csm_cross_entropy_f32
    call = [ctypes.byref(SHAPE), *of_segments, view(X), None, ctypes.c_void_p(losses.ctypes.data), options]
    assert function(*call) == 0
    expected = csoftmax.cross_entropy(X, LABELS[:, 0], temperature=2.0, reduction="none")
    assert_same_bits(losses[:5].astype(np.float32), expected)
    labels[3] = 300
    assert function(*call) == 6
    assert struct.unpack_from("N", options, int(RECORD["csm_loss_options.position"])) == (3,)


def test_topk(c):
    values, indices = np.empty((5, 4), np.float32), np.empty((5, 4), np.int64)
    options = older("csm_topk_options", normalize=("i", 2), temperature=("d", 2.0), threads=("i", 1))
    assert c.csm_topk_f32(ctypes.byref(SHAPE), view(X), ctypes.c_size_t(4), view(values), view(indices), options) == 0
    expected = csoftmax.topk_softmax(X, 4, temperature=2.0, normalize="full")
    assert_same_bits(values, expected[0])
    assert (indices == expected[1]).all()


def test_entmax(c):
    y, losses = np.empty_like(X), np.empty(5)
    common = {"alpha": ("d", 1.7), "threads": ("i", 1)}
    options = older("csm_entmax_options", **common)
    assert c.csm_entmax_f32(ctypes.byref(SHAPE), view(X), view(y), options) == 0
    assert_same_bits(y, csoftmax.entmax(X, 1.7))
    loss = ctypes.c_void_p(losses.ctypes.data)
    assert c.csm_entmax_loss_f32(ctypes.byref(SHAPE), view(X), view(LABELS), None, None, loss, options) == 0
    expected = csoftmax.entmax_loss(X, LABELS[:, 0], alpha=1.7, reduction="none")
    assert_same_bits(losses.astype(np.float32), expected)


def test_sample(c):
    uniform, indices = np.full((5, 2), 0.3), np.empty((5, 2), np.int64)
    options = older("csm_sample_options", threads=("i", 1))
    status = c.csm_sample_f32(ctypes.byref(SHAPE), view(X), ctypes.c_size_t(2), view(uniform), view(indices), options)
    assert status == 0
    assert (indices == csoftmax.sample(X, size=2, uniforms=uniform)).all()
