"""Choice sets in long format: one row an alternative, brought together by group."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._arguments.foreign import as_native, is_foreign
from .._arguments.kinds import refuse_kind
from .._arguments.places import CPU, as_array, as_float
from .._arguments.sequences import check_integers, describe_values
from .._cpu.dtypes import is_bfloat16

_LARGEST = 1e120  # of the magnitude of features: the squares and their sums stay in range


class Groups(NamedTuple):
    """Rows by group; groups of one length lie together, so that they are the rows of a matrix."""

    labels: Any  # of the groups in the order of the caller: first appearance, or 0, 1, ... with indptr
    order: Any | None  # rows sorted by group, or None if they are
    offsets: Any  # of the groups among the sorted rows


def find_groups(groups: Any, indptr: Any, rows: int) -> Groups:
    """The groups of a number of rows, from exactly one of ids and offsets."""
    if (groups is None) == (indptr is None):
        raise TypeError("groups or indptr is needed, and not both")
    if indptr is not None:
        offsets = check_integers("indptr", indptr, CPU).astype(np.int64)
        if (
            offsets.ndim != 1
            or not len(offsets)
            or offsets[0] != 0
            or offsets[-1] != rows
            or (np.diff(offsets) < 0).any()
        ):
            raise ValueError(f"indptr must rise from 0 to the number of rows, {rows}, got {describe_values(offsets)}")
        return Groups(np.arange(len(offsets) - 1), None, offsets)
    ids, labels = number(groups, "groups")
    if len(ids) != rows:
        raise ValueError(f"groups has {len(ids)} elements; X has {rows} rows")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=len(labels)))]).astype(np.int64)
    order = None if (ids[1:] >= ids[:-1]).all() else np.argsort(ids, kind="stable")
    return Groups(labels, order, offsets)


def number(values: Any, name: str) -> tuple[Any, Any]:
    """Hashable values as numbers in the order of their first appearance, and the distinct values in that order.

    NaN, NaT and pandas.NA are refused: they equal nothing, so that each would be a group of its own.
    """
    given = _read_ids(values, name)
    if isinstance(given, np.ndarray) and given.ndim != 1:
        raise ValueError(f"{name} has shape {given.shape}; one axis is allowed")
    if isinstance(given, np.ndarray) and given.dtype.kind in "iufSU":
        if given.dtype.kind == "f" and np.isnan(given).any():
            raise ValueError(f"{name} holds NaN")
        return _number_runs(given)
    numbers: dict[Any, int] = {}
    try:
        ids = np.fromiter((numbers.setdefault(v, len(numbers)) for v in given), np.int64)
    except TypeError as error:
        raise TypeError(f"{name} must hold hashable values: {error}") from None
    tensor = next((v for v in {type(v): v for v in numbers}.values() if is_foreign(v)), None)
    if tensor is not None:  # a tensor's hash is that of the object, not of its element
        kind = f"{type(tensor).__module__}.{type(tensor).__name__}"
        raise TypeError(f"{name} holds objects of {kind}, which are compared by identity: pass one array of all ids")
    is_column = not isinstance(values, list | tuple | np.ndarray)  # whose missing values may be None
    missing = next((v for v in numbers if _is_missing(v) or (is_column and v is None)), given)
    if missing is not given:
        raise ValueError(f"{name} holds {missing}, a missing value")
    labels = np.empty(len(numbers), object)
    labels[:] = list(numbers)
    return ids, labels


def _read_ids(values: Any, name: str) -> Any:
    """Arrays and columns of any library as arrays of NumPy; other iterables as they are."""
    refuse_kind(name, values)
    native = as_native(values, name)
    return as_array(name, native) if hasattr(type(native), "__array__") else native


def read_array(name: str, values: Any) -> Any:
    """An array of any library, or what NumPy makes an array of, as an array of NumPy."""
    return as_array(name, as_native(values, name))


def _is_missing(label: Any) -> bool:
    try:
        return bool(label != label)
    except TypeError:  # raised by pandas.NA, whose comparisons are neither true nor false
        return True


def _number_runs(given: Any) -> tuple[Any, Any]:
    """`number` of an array that can be sorted: only the first of each run of equal elements is."""
    starts = np.flatnonzero(np.concatenate([[True], given[1:] != given[:-1]])) if len(given) else np.zeros(0, int)
    labels = given[starts]
    distinct, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    if len(distinct) == len(labels):  # each group is one run
        return np.repeat(np.arange(len(labels)), np.diff(np.append(starts, len(given)))), labels
    by_appearance = np.argsort(first, kind="stable")
    place = np.empty_like(by_appearance)
    place[by_appearance] = np.arange(len(distinct))
    return np.repeat(place[inverse], np.diff(np.append(starts, len(given)))), distinct[by_appearance]


def check_matrix(X: Any) -> tuple[Any, list[str]]:
    """Features as float64 (rows, columns), and the columns' names."""
    names = [str(name) for name in X.columns] if hasattr(X, "columns") else None
    if names is not None and hasattr(X, "to_numpy"):
        X = np.asarray(X.to_numpy(), np.float64)
    values, _ = as_float("X", as_native(X, "X"))
    if values.ndim != 2:
        raise ValueError(f"X has shape {values.shape}; (rows, columns) is allowed")
    if not np.isfinite(values).all():
        at = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
        raise ValueError(f"X{list(at)} is {values[at]}; finite numbers are allowed")
    names = [f"x{i}" for i in range(values.shape[1])] if names is None else names
    return np.ascontiguousarray(values, np.float64), names


def check_columns(x: Any, names: list[str]) -> None:
    """Refuse features that a fit cannot use: none, or numbers whose squares leave the range of float64."""
    if not x.shape[1]:
        raise ValueError(f"X has shape {x.shape}; at least one column is needed")
    sizes = np.abs(x).max(axis=0, initial=0)
    bad = np.flatnonzero((sizes > _LARGEST) | ((sizes < 1 / _LARGEST) & (sizes > 0)))
    if len(bad):
        raise ValueError(
            f"column {names[bad[0]]} of X has the largest magnitude {sizes[bad[0]]}; from {1 / _LARGEST} to {_LARGEST} "
            "is allowed: rescale it"
        )


def check_names(X: Any, fitted: Any) -> None:
    """Refuse a table whose columns are not those of the fit, in their order."""
    if fitted is None or not hasattr(X, "columns"):
        return
    names = [str(name) for name in X.columns]
    if names != list(fitted):
        raise ValueError(f"X has the columns {names}; the model was fitted with {list(fitted)}, in this order")


def check_vector(name: str, values: Any, size: int, what: str) -> Any:
    """Finite numbers as float64, one for each of `what`."""
    given = read_array(name, values)
    if given.dtype == bool or is_bfloat16(given.dtype):
        given = given.astype(np.float64)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"{name} must hold real numbers, got dtype {given.dtype}")
    if given.shape != (size,):
        raise ValueError(f"{name} has shape {given.shape}; there is one for each of {size} {what}")
    if not np.isfinite(given).all():
        raise ValueError(f"{name} must be finite, got {given[~np.isfinite(given)][0]}")
    return given.astype(np.float64)
