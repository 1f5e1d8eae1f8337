"""The softmax family and cross-entropy over segments: records of calls with one segment, which is the row.

Properties hold for one segment as for the rows of the dense functions, with their oracles and bounds; tests/ops
compares any number of segments with the dense functions bit by bit.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from . import cross_entropy, softmax
from .record import CLASSES, Argument, BadCall, Operation

FAMILY = "segments"
NOT_QUICK = "it has no quick path"
ONE_INTEGER = "indptr must hold integers, got dtype float64"


def place_of(axis: Any, ndim: int) -> tuple[Any, int]:
    """Return the axes as a tuple, and where the segments lie in results; any axis that is refused is left as it is."""
    given = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    try:
        axes = [operator.index(a) for a in given]
    except TypeError:
        return axis, 0
    if not axes or not all(-ndim <= a < ndim for a in axes):
        return axis, 0
    first, *rest = (a % ndim for a in axes)
    return (given if len(given) > 1 else axes[0]), first - sum(a < first for a in rest)


def in_one_segment(function: Callable, *arrays: Any, axis: Any = -1, **options: Any) -> Any:
    """Call a function over segments with one segment, whose results lack its axis, as rows do."""
    shape = np.shape(arrays[0])
    if not shape:
        return function(*arrays, axis=axis, indptr=[0, 0], **options)
    axis, place = place_of(axis, len(shape))
    first = axis[0] if isinstance(axis, tuple) and axis else axis
    joined = {a % len(shape) for a in (axis if isinstance(axis, tuple) else (axis,)) if isinstance(a, int | np.integer)}
    is_axis = isinstance(first, int | np.integer) and -len(shape) <= first < len(shape)
    options.setdefault("indptr", [0, shape[first] if is_axis else 0])
    at = (slice(None),) * place

    def widen(x, is_of_rows):
        """Give an array with one element a row the axis of the segment."""
        if not is_of_rows:
            return x
        return (x if hasattr(x, "reshape") else np.asarray(x))[(*at, None)]

    if np.ndim(options.get("temperature", 1.0)) == len(shape):  # one a row: its joined axes are those of the segments
        rows = [n for i, n in enumerate(np.shape(options["temperature"])) if i not in joined]
        options["temperature"] = np.reshape(options["temperature"], (*rows[:place], 1, *rows[place:]))
    name = function.__name__
    if name == "segment_logsumexp":
        out = options.get("out")
        result = function(*arrays, axis=axis, **(options | {"out": widen(out, out is not None)}))
        return result[(*at, 0)] if out is None else out
    if "cross_entropy" not in name:
        return function(*arrays, axis=axis, **options)
    x, target = arrays
    for key in ("sample_weight", "upstream"):
        if key in options:
            options[key] = widen(options[key], np.ndim(options[key]) > 0)
    result = function(x, widen(target, np.ndim(target) != len(shape)), axis=axis, **options)
    loss, *rest = result if isinstance(result, tuple) else (result,)
    loss = loss[(*at, 0)] if getattr(loss, "ndim", 0) else loss
    return type(result)(loss, *rest) if rest else loss


def name_arguments(sample: Any) -> dict[str, Any]:
    """Return the arguments of a call of rows with one segment each."""
    arrays = dict(sample.arrays)
    rows, n = next(iter(arrays.values())).shape
    if "target" in arrays and arrays["target"].ndim == 1:
        arrays["target"] = arrays["target"].reshape(rows, 1)
    return {**arrays, "axis": 1, "indptr": [0, n], **sample.options}


SEGMENT_ERRORS = (
    BadCall({"indptr": [0.0, 4.0]}, TypeError, ONE_INTEGER),
    BadCall({"indptr": [[0, 4]]}, ValueError, r"indptr has shape \(1, 2\); one axis is allowed"),
    BadCall({"indptr": []}, ValueError, "indptr is empty"),
    BadCall({"indptr": [2, 1]}, ValueError, r"indptr must rise, but indptr\[0\] is 2 and indptr\[1\] is 1"),
    BadCall({"indptr": [-1, 4]}, ValueError, "indptr must rise from at least 0"),
    BadCall({"indptr": [0, 5]}, ValueError, "has 4 elements along axis 1; indptr ends at 5"),
    BadCall({"indptr": [0, 4], "segment_ids": [0, 0, 0, 0]}, TypeError, "got indptr and segment_ids"),
    BadCall({"indptr": None}, TypeError, "exactly one of indptr, segment_ids and segments is needed, got none"),
    BadCall({"indptr": None, "segments": [0, 4]}, TypeError, "segments must be a csoftmax.Segments, got list"),
    BadCall({"indptr": None, "segment_ids": [0, 1, 2, -2]}, IndexError, r"segment_ids\[3\] is -2; allowed are -1 to 2"),
    BadCall({"indptr": None, "segment_ids": [0, 0, 1]}, ValueError, "segment_ids has 3"),
    BadCall({"num_segments": 3}, ValueError, "num_segments is 3, and indptr has 1 segments"),
)


def over_segments(record: Operation, **changes: Any) -> Operation:
    """Return the record of a function over segments from that of its dense function."""
    exempt = {k: v for k, v in record.exempt.items() if k != "overlap"} | {"quick": NOT_QUICK}
    fields: dict[str, Any] = {
        "name": f"segment_{record.name}",
        "family": FAMILY,
        "bad_calls": (*record.bad_calls, *SEGMENT_ERRORS),
        "golden": ("segments",),
        "exempt": exempt,
        "invoke": in_one_segment,
        "name_arguments": name_arguments,
    }
    return dataclasses.replace(record, **(fields | changes))


def without_weights(variants: Any) -> dict[str, Any]:
    """Return the variants of a loss without what segments lack: class weights, soft caps, temperatures of rows."""

    def is_shared(options: dict[str, Any]) -> bool:
        return not {"weight", "softcap"} & set(options) and np.ndim(options.get("temperature", 1)) == 0

    return {name: v for name, v in variants.items() if is_shared(v.options((2, 3), "float32", 0))}


LOSS_ERRORS = (
    BadCall({"target": np.array([[0], [4], [2]])}, IndexError, r"target\[1, 0\] is 4: the segment has the elements 0"),
    BadCall({"target": np.array([[0], [1]])}, ValueError, r"target has shape \(2, 1\)"),
    BadCall({"target": np.zeros((3, 5))}, ValueError, r"target has shape \(3, 5\)"),
    BadCall({"target": np.zeros((3, 1), complex)}, TypeError, "got dtype complex128"),
    BadCall({"target": -np.ones((3, 4))}, ValueError, "soft labels must be at least 0 and finite"),
    BadCall({"target": np.full((3, 4), np.nan)}, ValueError, r"has nan at \(0, 0\)"),
    BadCall({"reduction": "avg"}, ValueError, 'reduction must be "none", "sum" or "mean"'),
    BadCall({"sample_weight": [[1], [np.nan], [1]]}, ValueError, "sample_weight must be at least 0 and finite"),
    BadCall({"sample_weight": [1, 2]}, ValueError, "sample_weight has shape"),
    BadCall({"label_smoothing": 1.5}, ValueError, "label_smoothing must be at least 0 and at most 1, got 1.5"),
    BadCall({"z_loss": -1.0}, ValueError, "z_loss must be at least 0 and finite, got -1.0"),
    BadCall({"temperature": 0.0}, ValueError, "temperature must be positive and finite"),
    BadCall({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got 1.5"),
    BadCall({"positives": "all"}, ValueError, 'positives must be "each" or "any"'),
    BadCall({"positives": "any"}, ValueError, 'positives="any" needs a target of bool'),
    *SEGMENT_ERRORS,
)
GRADIENT_ERRORS = (
    BadCall({"upstream": [[1.0], [2.0], [3.0]], "reduction": "mean"}, ValueError, "upstream must be a number where"),
    BadCall({"upstream": [1.0, 2.0], "reduction": "none"}, ValueError, r"upstream has shape \(2,\)"),
    BadCall({"clip_norm": 0.0}, ValueError, "clip_norm must be positive or None, got 0.0"),
    BadCall({"clip_value": -1}, ValueError, "clip_value must be positive or None, got -1"),
)


def loss_over_segments(record: Operation, errors: tuple[BadCall, ...]) -> Operation:
    """Return the record of a loss, whose labels are elements of the segment."""
    return over_segments(
        record,
        arguments=(Argument("x", CLASSES), record.arguments[1]),
        make_arrays=record.make_arrays,
        bad_calls=errors,
        variants=without_weights(record.variants),
        exempt={**record.exempt, "quick": NOT_QUICK},
    )


_LOSSES = {record.name: record for record in cross_entropy.RECORDS}
RECORDS = (
    *(over_segments(record) for record in softmax.RECORDS if record.name != "entropy"),
    loss_over_segments(_LOSSES["cross_entropy"], LOSS_ERRORS),
    loss_over_segments(_LOSSES["cross_entropy_with_grad"], LOSS_ERRORS + GRADIENT_ERRORS),
)
