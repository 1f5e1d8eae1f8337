"""ONNX graphs of linear softmax models: Gemm, then ArgMax and Gather for the label, and Softmax."""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import store
from .messages import show

OPSET, IR_VERSION = 13, 7  # of 2021: every operator below has its present form, and older runtimes read the file


def _load_onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError(
            f"to_onnx needs onnx, which cannot be imported ({error}); install it with: pip install 'csoftmax[onnx]'"
        ) from error
    return onnx


def _name_labels(classes: NDArray[Any]) -> NDArray[Any]:
    """The classes in one of the types that labels have in ONNX: int64, bool, double or string."""
    if classes.dtype.kind in "iu":
        if classes[-1] > np.iinfo(np.int64).max:
            raise ValueError(
                f"classes_ has {classes[-1]}, which int64, the type of integers as labels in ONNX, cannot hold"
            )
        return classes.astype(np.int64)
    if classes.dtype.kind == "b":
        return classes
    if classes.dtype.kind == "f":
        return classes.astype(np.float64)
    return np.array([str(label) for label in classes], object)


def make_onnx(model: Any, path: str | PathLike[str] | None) -> Any:
    """The result of `csoftmax.linear_model.SoftmaxRegression.to_onnx`."""
    onnx = _load_onnx()
    from .._runtime.config import __version__

    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    with np.errstate(over="ignore"):
        coef, intercept = (
            (a.astype(np.float64) / model.temperature).astype(model.coef_.dtype)
            for a in (model.coef_, model.intercept_)
        )
    if not (np.isfinite(coef).all() and np.isfinite(intercept).all()):
        raise ValueError(f"coef_ / temperature is not finite, temperature is {show(model.temperature)}")
    k, d = coef.shape
    labels = _name_labels(model.classes_)
    real, kind = (helper.np_dtype_to_tensor_dtype(np.dtype(a.dtype)) for a in (coef, labels))
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["X", "coef", "intercept"], ["logits"], transB=1),
            helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["classes", "index"], ["label"], axis=0),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        type(model).__name__,
        [helper.make_tensor_value_info("X", real, ["N", d])],
        [
            helper.make_tensor_value_info("label", kind, ["N"]),
            helper.make_tensor_value_info("probabilities", real, ["N", k]),
        ],
        [
            numpy_helper.from_array(coef, "coef"),
            numpy_helper.from_array(intercept, "intercept"),
            numpy_helper.from_array(labels, "classes"),
        ],
    )
    proto = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="csoftmax",
        producer_version=__version__,
    )
    if hasattr(model, "feature_names_in_"):
        helper.set_model_props(proto, {"feature_names": json.dumps(list(map(str, model.feature_names_in_)))})
    onnx.checker.check_model(proto)
    if path is not None:
        store.write_whole(path, lambda f: f.write(proto.SerializeToString()))
    return proto
