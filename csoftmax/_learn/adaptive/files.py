"""Files and state dicts of an adaptive softmax, checked before anything is made of them.

Arrays of a file: the parameters, "order" and, if there are any, "counts" and "frozen".  Header: "cutoffs", "div_value".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from ..._arguments.foreign import is_tensor
from ..._cpu.dtypes import is_bfloat16
from ..store import Arrays, need
from .classes import Classes, make_classes
from .state import LayerState

Made = TypeVar("Made", bound=LayerState)

FLOATS = (np.float32, np.float64)


def describe(layer: LayerState) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and header of a file."""
    arrays = {**layer.parameters, "order": layer.classes.order}
    if layer.counts is not None:
        arrays["counts"] = layer.counts
    if layer.frozen is not None:
        arrays["frozen"] = layer.frozen.astype(np.uint8)
    return arrays, {"cutoffs": list(layer.classes.cutoffs), "div_value": layer.div_value}


def restore(cls: type[Made], arrays: Arrays, header: dict[str, Any]) -> Made:
    """Invert `describe`, in the context of `store.reading`; arrays are not copied."""
    arrays = dict(arrays)
    order, counts, frozen = (arrays.pop(name, None) for name in ("order", "counts", "frozen"))
    need(order is not None and order.ndim == 1 and order.dtype == np.int32 and len(order), "order is missing or bad")
    assert order is not None
    n = len(order)
    need(order.min() >= 0 and order.max() < n, "order has a class that does not exist")
    need((np.bincount(order, minlength=n) == 1).all(), "order is no permutation")
    cutoffs: Any = header.get("cutoffs")
    div_value: Any = header.get("div_value")
    need(
        isinstance(cutoffs, list) and all(type(c) is int and 0 < c < n for c in cutoffs),
        "cutoffs are not numbers from 1 to the number of classes less 1",
    )
    need(all(a < b for a, b in pairwise(cutoffs)), "cutoffs do not ascend")
    is_number = isinstance(div_value, int | float) and not isinstance(div_value, bool)
    need(is_number and 1 <= float(div_value) < np.inf, "div_value is not a number from 1")
    classes = make_classes(order, tuple(cutoffs))
    check_parameters(arrays, classes)
    need(
        counts is None or (counts.shape == (n,) and counts.dtype == np.float64 and np.isfinite(counts).all()),
        "counts are not one number for each class",
    )
    need(counts is None or (counts >= 0).all(), "counts are negative")
    need(frozen is None or frozen.shape == (n,), "frozen is not one number for each class")
    layer = cls._of(arrays, classes, float(div_value))
    layer._counts, layer._frozen = counts, None if frozen is None else frozen.astype(bool)
    return layer


def check_parameters(arrays: Arrays, classes: Classes, names: Mapping[str, str] | None = None) -> None:
    """Refuse arrays that are not the parameters of a layer with these classes; names: for messages."""
    names = {} if names is None else names
    head = arrays.get("head")
    need(head is not None and head.ndim == 2 and head.dtype in FLOATS, "head is missing or no matrix of floats")
    assert head is not None
    rows, features = classes.shortlist + len(classes.cutoffs), head.shape[1]
    shapes: dict[str, tuple[int, ...]] = {"head": (rows, features)}
    if "head_bias" in arrays:
        shapes["head_bias"] = (rows,)
    for c, ranks in enumerate(classes.clusters):
        width = arrays[f"projection{c}"].shape[0] if arrays.get(f"projection{c}", np.zeros(())).ndim == 2 else 0
        need(width, f"{names.get(f'projection{c}', f'projection{c}')} is missing, no matrix or empty")
        shapes[f"projection{c}"], shapes[f"tail{c}"] = (width, features), (ranks.stop - ranks.start, width)
    need(features > 0, "there is no feature")
    need(arrays.keys() == shapes.keys(), f"the arrays are {sorted(arrays)}, not {sorted(shapes)}")
    for name, shape in shapes.items():
        a = arrays[name]
        need(
            a.shape == shape and a.dtype == head.dtype,
            f"{names.get(name, name)} has shape {a.shape}, dtype {a.dtype}, not {shape}, {head.dtype}",
        )


# Of torch.nn.AdaptiveLogSoftmaxWithLoss
NAMES = re.compile(r"head\.weight|head\.bias|tail\.(0|[1-9][0-9]{0,5})\.[01]\.weight")


def _as_array(name: str, value: Any) -> Any:
    """A float matrix or vector of a state dict, in float64 if it is that, else in float32; a copy."""
    if is_tensor(value):
        value = value.detach().cpu()
        if value.dtype.is_floating_point and value.dtype.itemsize == 2:
            value = value.float()
        value = value.numpy()
    a = np.asarray(value)
    if not (a.dtype.kind == "f" and a.dtype.itemsize in (2, 4, 8)) and not is_bfloat16(a.dtype):
        raise TypeError(f"state_dict[{name!r}] must hold floats, got dtype {a.dtype}")
    return np.array(a, np.float64 if a.dtype.itemsize == 8 else np.float32, order="C")


def read_state_dict(state_dict: Any) -> tuple[Arrays, Classes]:
    """Parameters and classes of a state dict of torch.nn.AdaptiveLogSoftmaxWithLoss."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a mapping of names to tensors, got {type(state_dict).__name__}")
    unknown = [name for name in state_dict if not isinstance(name, str) or not NAMES.fullmatch(name)]
    if unknown:
        raise ValueError(f"state_dict has {unknown[0]!r}, which is no name of torch.nn.AdaptiveLogSoftmaxWithLoss")
    given = {name: _as_array(name, value) for name, value in state_dict.items()}
    clusters = sum(name.endswith(".0.weight") for name in given)
    wanted = ["head.weight", *(f"tail.{c}.{i}.weight" for c in range(clusters) for i in (0, 1))]
    missing = [name for name in wanted if name not in given]
    if missing or clusters == 0:
        raise ValueError(f"state_dict lacks {(missing or ['tail.0.0.weight'])[0]!r}")
    names = {"head": "head.weight"} | ({"head_bias": "head.bias"} if "head.bias" in given else {})
    for c in range(clusters):
        names |= {f"projection{c}": f"tail.{c}.0.weight", f"tail{c}": f"tail.{c}.1.weight"}
    arrays = {name: given.pop(theirs) for name, theirs in names.items()}
    if given:
        raise ValueError(f"state_dict has {next(iter(given))!r} without the rest of its cluster")
    for name, a in arrays.items():
        if a.ndim != (1 if name == "head_bias" else 2) or 0 in a.shape:
            axes = "one axis" if name == "head_bias" else "two axes"
            raise ValueError(
                f"state_dict[{names[name]!r}] has shape {a.shape}; {axes} without a length of 0 are needed"
            )
    shortlist = len(arrays["head"]) - clusters
    if shortlist < 1:
        raise ValueError(f"state_dict: head.weight has {len(arrays['head'])} rows for {clusters} clusters")
    sizes = [len(arrays[f"tail{c}"]) for c in range(clusters)]
    cutoffs = tuple(int(v) for v in shortlist + np.cumsum([0, *sizes[:-1]]))
    classes = make_classes(np.arange(shortlist + sum(sizes)), cutoffs)
    dtypes = {a.dtype for a in arrays.values()}
    if len(dtypes) > 1:
        raise TypeError(f"state_dict mixes dtypes: {', '.join(sorted(map(str, dtypes)))}")
    try:
        check_parameters(arrays, classes, {name: repr(theirs) for name, theirs in names.items()})
    except ValueError as error:
        raise ValueError(f"state_dict: {error}") from None
    return arrays, classes
