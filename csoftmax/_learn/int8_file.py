"""Contents of a file of `csoftmax.heads.Int8Head`.

Arrays: codes (groups of 16 classes, D / 4, 16, 4), scale, residual, norm (K,), exponent (D,); bias; second and
second_residual, the second limb of the weights; w.  Header: "n_classes", "n_features", "dtype" of the weights.
Everything that a kernel uses as a size or an offset is compared with the shapes before a kernel runs; codes may be any
bytes, for which no kernel saturates or overflows.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from .._cpu import binding
from .._cpu.dtypes import as_buffer, is_bfloat16
from .._ops import int8
from .._ops.clusters import set_order
from .._ops.int8 import Layer
from . import store
from .store import Arrays, need

CLASS = "Int8Head"
MAX_STORED_EXPONENT = 1000  # 2**1000 is a normal float64
CHECKED_ROWS = 1000  # of given weights
DTYPES = ("float32", "float64", "float16", "bfloat16")


def save(layer: Layer, w: Any, bias: Any, path: str | PathLike[str], weights: bool) -> None:
    """Write a layer; bias: float64, or None."""
    store.write(path, CLASS, *collect(layer, w, bias, weights))


def collect(layer: Layer, w: Any, bias: Any, weights: bool) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the header that a file holds of a layer."""
    k = layer.n_classes
    numbers = {"scale": layer.scale, "residual": layer.residual, "norm": layer.norm}
    arrays: Arrays = {"codes": layer.codes, "exponent": layer.exponent}
    arrays |= {name: a[:k] for name, a in numbers.items()}
    if layer.second is not None and layer.second_residual is not None:
        arrays |= {"second": layer.second, "second_residual": layer.second_residual[:k]}
    if bias is not None:
        arrays["bias"] = bias
    if weights:
        arrays["w"] = as_buffer(w)
    dtype = "bfloat16" if is_bfloat16(w.dtype) else w.dtype.name
    return arrays, {"n_classes": k, "n_features": layer.n_features, "dtype": dtype}


def load(path: str | PathLike[str], w: Any, *, mmap: bool, verify: bool) -> tuple[Layer, Any, Any]:
    """Read a layer, its weights and its bias."""
    arrays, header = store.read(path, CLASS, mmap=mmap, verify=verify)
    given = check_given(path, arrays, w)
    with store.reading(path):
        return make_layer(arrays, header, given, verify)


def check_given(path: str | PathLike[str], arrays: Arrays, w: Any) -> Any:
    """The weights that were given beside the file, or None."""
    if "w" not in arrays and w is None:
        raise ValueError(f"{str(path)!r} was saved without weights: pass w=")
    return None if w is None else int8.check_weights(w)[0]


def make_layer(
    arrays: Arrays, header: dict[str, Any], given: Any, verify: bool, order: Any = None
) -> tuple[Layer, Any, Any]:
    """The layer, its weights and its bias; order: the class of each code."""
    k, d, name = header.get("n_classes"), header.get("n_features"), header.get("dtype")
    need(type(k) is int and 1 <= k <= int8.MAX_CLASSES, f"n_classes is {k!r}")
    need(type(d) is int and 1 <= d <= binding.INT8_MAX_FEATURES, f"n_features is {d!r}")
    need(name in DTYPES, f"dtype is {name!r}")
    k, d, name = int(k), int(d), str(name)  # type: ignore[arg-type]
    shape = (int8.padded(k) // binding.INT8_GROUP, -(-d // 4), binding.INT8_GROUP, 4)
    need_array(arrays, "codes", np.uint8, shape)
    need_array(arrays, "exponent", np.int16, (d,))
    exponent = np.array(arrays["exponent"])
    need((np.abs(exponent.astype(np.int64)) <= MAX_STORED_EXPONENT).all(), "exponent is out of range")
    names = ["scale", "residual", "norm"]
    if "second" in arrays:
        need_array(arrays, "second", np.uint8, shape)
        names.append("second_residual")
    numbers = {}
    for each in names:
        need_array(arrays, each, np.float32, (k,))
        need((arrays[each] >= 0).all(), f"{each} is negative or NaN")
        numbers[each] = int8.pad(arrays[each])
    need(np.isfinite(numbers["scale"]).all(), "scale is infinite")
    bias = None
    if "bias" in arrays:
        need_array(arrays, "bias", np.float64, (k,))
        bias = np.array(arrays["bias"])
    w = _read_weights(arrays, name, (k, d)) if given is None else given
    need(w.shape == (k, d), f"w has shape {w.shape}; the file has {k} classes and {d} features")
    own = "bfloat16" if is_bfloat16(w.dtype) else w.dtype.name
    need(own == name, f"w has dtype {own}; the file was made from {name}")
    single, exact = int8.make_biases(bias, k)
    layer = Layer(k, d, as_buffer(w), binding.DTYPES[name], arrays["codes"], arrays.get("second"), numbers["scale"],
                  numbers["residual"], numbers.get("second_residual"), numbers["norm"], single, exact,
                  exponent, 1.0)  # fmt: skip
    if verify and given is not None:
        _compare_rows(layer, w, order)
    return int8.finish(layer, bias) if order is None else set_order(layer, bias, order), w, bias


def need_array(arrays: Arrays, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
    """Refuse a file without this array."""
    need(name in arrays, f"{name} is missing")
    a = arrays[name]
    need(a.dtype == dtype and a.shape == shape, f"{name} has shape {a.shape}, dtype {a.dtype}; {shape} is needed")


def _read_weights(arrays: Arrays, name: str, shape: tuple[int, int]) -> Any:
    if name != "bfloat16":
        need_array(arrays, "w", np.dtype(name), shape)
        return arrays["w"]
    need_array(arrays, "w", np.uint16, shape)
    import ml_dtypes

    return arrays["w"].view(ml_dtypes.bfloat16)


def _compare_rows(layer: Layer, w: Any, order: Any) -> None:
    """Compare the codes and numbers of up to 1,000 rows of given weights with the stored ones."""
    ids = np.linspace(0, layer.n_classes - 1, min(CHECKED_ROWS, layer.n_classes)).astype(np.int64)
    rows = ids if order is None else order[ids]
    part = int8.quantise(w[rows], layer.dtype, None, 1 if layer.second is None else 2, None, layer.exponent)
    is_same = np.ones(len(ids), bool)
    for name in ("scale", "residual", "norm", "second_residual"):
        if (stored := getattr(layer, name)) is not None:
            is_same &= getattr(part, name)[: len(ids)] == stored[ids]
    (group, lane), (from_group, from_lane) = (np.divmod(i, binding.INT8_GROUP) for i in (ids, np.arange(len(ids))))
    for name in ("codes", "second"):
        if (stored := getattr(layer, name)) is not None:
            made = getattr(part, name)[from_group, :, from_lane]
            is_same &= (made == stored[group, :, lane]).all(axis=(1, 2))
    need(is_same.all(), f"w is not what the file was made from: row {rows[int(np.argmin(is_same))]} differs")
