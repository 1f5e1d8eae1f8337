"""Contents of a file of `csoftmax.heads.ClusteredHead`.

Arrays: those of `Int8Head`, with codes, scale, residual and norm in the order of the lists; order (K,), the class of
each code; begin (lists + 1,), the codes at which lists begin; means (lists - 2, D); and numbers of each list.  Orders
and offsets are checked before a kernel follows them; the numbers may be any that leave no NaN.
"""

from __future__ import annotations

from os import PathLike
from typing import Any

import numpy as np

from .._cpu import binding
from .._ops.clusters import Lists
from .._ops.int8 import MAX_CLASSES, quantise
from . import store
from .int8_file import check_given, collect, make_layer, need_array
from .store import Arrays, need

CLASS = "ClusteredHead"
NUMBERS = Lists._fields[3:]
SIGNED = ("largest", "typical", "least", "along")


def save(lists: Lists, w: Any, bias: Any, path: str | PathLike[str], weights: bool) -> None:
    """Write a layer; bias: float64, or None."""
    arrays, header = collect(lists.layer, w, bias, weights)
    arrays |= {"order": lists.layer.order, "begin": lists.begin, "means": lists.centers.w}  # type: ignore[dict-item]
    arrays |= {name: getattr(lists, name) for name in NUMBERS}
    store.write(path, CLASS, arrays, header)


def load(path: str | PathLike[str], w: Any, *, mmap: bool, verify: bool, num_threads: Any) -> tuple[Lists, Any, Any]:
    """Read a layer, its weights and its bias."""
    arrays, header = store.read(path, CLASS, mmap=mmap, verify=verify)
    given = check_given(path, arrays, w)
    with store.reading(path):
        order = _read_order(arrays, header.get("n_classes"))
        layer, weights, bias = make_layer(arrays, header, given, verify, order)
        begin = _read_begin(arrays, layer.n_classes)
        n = len(begin) - 3
        need_array(arrays, "means", np.float64, (n, layer.n_features))
        means = np.array(arrays["means"])
        need(np.isfinite(means).all(), "means are not finite")
        numbers = {name: _read_numbers(arrays, name, n) for name in NUMBERS}
        centers = quantise(means, binding.DTYPES["float64"], None, 1, num_threads)
        return Lists(layer, centers, begin, **numbers), weights, bias


def _read_order(arrays: Arrays, k: Any) -> Any:
    need(type(k) is int and 1 <= k <= MAX_CLASSES, f"n_classes is {k!r}")
    need_array(arrays, "order", np.int64, (k,))
    order = np.array(arrays["order"])
    need(order.min() >= 0 and order.max() < k, "order names classes that do not exist")
    need((np.bincount(order, minlength=k) == 1).all(), "order does not hold every class once")
    return order


def _read_begin(arrays: Arrays, k: int) -> Any:
    need("begin" in arrays, "begin is missing")
    begin = np.array(arrays["begin"])
    need(begin.dtype == np.int64 and begin.ndim == 1 and len(begin) >= 4, "begin has another dtype or shape")
    need(begin[0] == 0 and begin[-1] == k and (begin[1:] >= begin[:-1]).all(), f"begin does not rise from 0 to {k}")
    return begin


def _read_numbers(arrays: Arrays, name: str, n: int) -> Any:
    need_array(arrays, name, np.float64, (n + 2,))
    numbers = np.array(arrays[name])
    of_lists = numbers[:n] if name == "largest" else numbers
    need(np.isfinite(of_lists).all(), f"{name} is not finite")
    need(name in SIGNED or (numbers >= 0).all(), f"{name} is negative")
    need(name != "largest" or numbers[n:].tolist() == [np.inf, -np.inf], "largest ends with other numbers than +-inf")
    return numbers
