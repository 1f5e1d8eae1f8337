"""Labels of sequences as class indices: a label, None for an unknown one, or a set of the labels that are possible."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .messages import show

UNKNOWN = -100  # ignore_index of the loss

Nested = list[list[Any]]


class Tags(NamedTuple):
    """Labels of all tokens: class indices, UNKNOWN among them, or with sets a row of bools for each token."""

    hard: NDArray[np.int64]  # UNKNOWN also where there is a set
    sets: NDArray[np.bool_] | None  # (tokens, labels); None if no token has a set

    @property
    def targets(self) -> NDArray[Any]:
        """The argument `tags` of the loss."""
        return self.hard if self.sets is None else self.sets

    def take(self, rows: NDArray[np.int64]) -> Tags:
        """Return the tags of some tokens."""
        return Tags(self.hard[rows], None if self.sets is None else self.sets[rows])


def _is_list(y: Any) -> bool:
    return isinstance(y, list | tuple | np.ndarray)


def nest(y: Any, starts: NDArray[np.int64], name: str = "y") -> Nested:
    """Labels as one list for each sequence; beside a matrix and lengths they may be flat."""
    if isinstance(y, str | bytes) or not isinstance(y, Iterable):
        raise TypeError(f"{name} must be a list of sequences of labels, got {show(y)}")
    given = y.tolist() if isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype != object else list(y)
    count = len(starts) - 1
    if len(given) == starts[-1] and not any(map(_is_list, given)) and (count != len(given) or given):
        given = [given[a:b] for a, b in zip(starts[:-1].tolist(), starts[1:].tolist())]
    if len(given) != count:
        raise ValueError(f"{name} has {len(given)} sequences, X has {count}")
    lists = list_sequences(given, name)
    for i, (labels, length) in enumerate(zip(lists, np.diff(starts).tolist())):
        if len(labels) != length:
            raise ValueError(f"{name}[{i}] has {len(labels)} labels, X[{i}] has {length} tokens")
    return lists


def list_sequences(y: Any, name: str) -> Nested:
    """Labels as one list for each sequence."""
    if isinstance(y, str | bytes) or not isinstance(y, Iterable):
        raise TypeError(f"{name} must be a list of sequences of labels, got {show(y)}")
    lists = list(y)
    for i, labels in enumerate(lists):
        if isinstance(labels, str | bytes | set | frozenset) or not isinstance(labels, Iterable):
            raise TypeError(f"{name}[{i}] is {show(labels)}; a sequence of labels is a list")
    return [labels.tolist() if isinstance(labels, np.ndarray) else list(labels) for labels in lists]


def list_labels(labels: Any, name: str) -> list[Any]:
    """Labels as a list, each as it is: an array would make one type of them."""
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise TypeError(f"{name} must be a list of labels, got {show(labels)}")
    found = labels.tolist() if isinstance(labels, np.ndarray) else list(labels)
    if any(map(_is_list, found)):
        raise ValueError(f"{name} must have one axis, got {show(labels)}")
    return found


def as_classes(labels: Iterable[Any], name: str) -> NDArray[Any]:
    """Distinct labels, sorted, as an array: strings, or integers, or bools."""
    distinct = set(labels)
    kinds = {str if isinstance(c, str) else bool if isinstance(c, bool | np.bool_) else int for c in distinct}
    numbers = [c for c in distinct if not isinstance(c, str)]
    wrong = [c for c in numbers if not isinstance(c, bool | np.bool_ | int | np.integer)]
    if wrong:
        raise TypeError(f"{name} has the label {show(wrong[0])}; labels are strings, integers or bools")
    if len(kinds) > 1:
        raise TypeError(f"{name} mixes labels of different kinds: {show(sorted(map(repr, distinct)))}")
    beyond = [c for c in numbers if not -(2**63) <= c < 2**63]
    if beyond:
        raise ValueError(f"{name} has the label {beyond[0]}; integers are within the range of int64")
    ending = sorted(c for c in distinct if isinstance(c, str) and c.endswith("\0"))
    if ending:
        raise ValueError(f"{name} has the label {show(ending[0])}; an array of strings would lose the NUL at its end")
    return np.array(sorted(distinct))


def find_classes(lists: Nested, name: str = "y") -> NDArray[Any]:
    """The distinct known labels."""
    distinct: set[Any] = set()
    for i, labels in enumerate(lists):
        for t, label in enumerate(labels):
            try:
                if isinstance(label, set | frozenset):
                    distinct |= label
                elif label is not None:
                    distinct.add(label)
            except TypeError:
                raise TypeError(
                    f"{name}[{i}][{t}] is {show(label)}; a label is a string, an integer or a bool"
                ) from None
    return as_classes(distinct, name)


def make_tags(lists: Nested, classes: NDArray[Any], name: str = "y") -> Tags:
    """Class indices of nested labels."""
    index: dict[Any, int] = {label: i for i, label in enumerate(classes.tolist())}
    flat: list[int] = []
    sets: dict[int, list[int]] = {}
    for i, labels in enumerate(lists):
        for t, label in enumerate(labels):
            if label is None:
                flat.append(UNKNOWN)
                continue
            members = label if isinstance(label, set | frozenset) else (label,)
            try:
                found = [index[member] for member in members]
            except (KeyError, TypeError):
                unknown = next(m for m in members if not _is_known(m, index))
                raise ValueError(
                    f"{name}[{i}][{t}] has the label {show(unknown)}, which is not among the classes: {show(classes)}"
                ) from None
            if not found:
                raise ValueError(f"{name}[{i}][{t}] is an empty set; a set has the labels that are possible")
            if members is label:
                sets[len(flat)] = found
                flat.append(UNKNOWN)
            else:
                flat.append(found[0])
    hard = np.array(flat, np.int64)
    if not sets:
        return Tags(hard, None)
    rows = np.zeros((len(hard), len(classes)), bool)
    rows[hard == UNKNOWN] = True
    known = np.flatnonzero(hard != UNKNOWN)
    rows[known, hard[known]] = True
    for row, found in sets.items():
        rows[row] = False
        rows[row, found] = True
    return Tags(hard, rows)


def _is_known(label: Any, index: dict[Any, int]) -> bool:
    try:
        return label in index
    except TypeError:
        return False


def split(values: list[Any], starts: NDArray[np.int64]) -> list[Any]:
    """Cut a flat list into sequences."""
    edges = starts.tolist()
    return [values[a:b] for a, b in itertools.pairwise(edges)]
